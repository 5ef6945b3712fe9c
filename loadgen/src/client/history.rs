//! A slow reader's way back: what a `gap` (or a resume that was not recovered) left out is read from
//! the history, page by page, and checked like deliveries: each number once, in order, the same for all.

use antiphon::engine::rng::Rng;

use super::{Asked, Client, Shared, Stage};
use crate::scan;
use crate::verify::Seq;

/// Entries of a page: the most that the server gives.
const PAGE: u64 = 100;

impl Client {
    /// The server said that everything up to `head` will not come by itself.
    pub(super) fn excuse(&mut self, head: Seq, shared: &mut Shared<'_>) {
        let next = self.cursor.next();
        let excused = self.cursor.excuse(head);
        shared.tally.excused += excused;
        if excused > 0 {
            self.note_missed(next, head, shared);
        }
    }

    /// Entries `first` to `last` are to be read from the history, if this is a slow reader.
    pub(super) fn note_missed(&mut self, first: Seq, last: Seq, shared: &mut Shared<'_>) {
        if self.is_slow {
            shared.tally.missed += last + 1 - first;
            self.missed.push_back((first, last));
            self.fill(shared);
        }
    }

    /// Asks for the next page, unless one is on its way.
    pub(super) fn fill(&mut self, shared: &mut Shared<'_>) {
        let Some((first, last)) = self.missed.front().copied() else { return };
        if self.is_filling || self.stage != Stage::Live {
            return;
        }
        self.is_filling = true;
        let limit = (last + 1 - first).min(PAGE);
        self.command(shared.rng, Asked::History, |out, room| {
            out.extend_from_slice(b"\"type\":\"message:history\",\"room\":\"");
            out.extend_from_slice(room);
            out.extend_from_slice(format!("\",\"after\":{},\"limit\":{limit}", first - 1).as_bytes());
        });
    }

    /// Asks whether the connection still stands, as who was away should: when the server has given it up
    /// and the kernel has forgotten it, nothing else would ever tell.
    pub fn probe(&mut self, rng: &mut Rng) {
        if self.stage == Stage::Live {
            self.command(rng, Asked::Probe, |out, _| out.extend_from_slice(b"\"type\":\"ping\""));
        }
    }

    /// A page came: it must begin where the gap does, and go on without a hole.
    pub(super) fn on_page(&mut self, events: Option<&[u8]>, shared: &mut Shared<'_>) {
        self.is_filling = false;
        let Some((mut next, last)) = self.missed.pop_front() else { return };
        let begun = next;
        let walked = scan::each_object(events.unwrap_or(b"[]"), |event| match scan::head(event) {
            Ok(scan::Head { seq: Some(seq), kind, .. }) if seq == next && seq <= last => {
                self.compare(seq, kind == b"message:created", event, shared);
                shared.tally.refetched += 1;
                next += 1;
            }
            _ => shared.tally.malformed += 1,
        });
        shared.tally.malformed += u64::from(walked.is_err());
        if next == begun {
            // It is not there: asking again would not end.
            shared.tally.lost += last + 1 - next;
        } else if next <= last {
            self.missed.push_front((next, last));
        }
        self.fill(shared);
    }
}
