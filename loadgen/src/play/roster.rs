//! What several scripts share: a member's place in their room, and commands that wait for a reply.

use std::collections::VecDeque;

use crate::scan;
use crate::stage::Stage;
use crate::tally::{Tally, count_step};
use crate::verify::{Cursor, Seq};

use super::{command, text};

/// One connection's place in its room. Every entry it hears is checked: each number once, in order.
#[derive(Debug, Default, Clone)]
pub struct Place {
    cursor: Cursor,
    epoch: Box<[u8]>,
    /// The room's answer has come on this connection.
    pub is_live: bool,
    waiting: VecDeque<(u64, u32)>,
    next_id: u64,
}

impl Place {
    /// A command's number: `what` comes back from [`Place::answered`].
    pub fn ask(&mut self, what: u32) -> u64 {
        self.next_id += 1;
        self.waiting.push_back((self.next_id, what));
        self.next_id
    }

    /// What a reply answers.
    pub fn answered(&mut self, id: Option<u64>) -> Option<u32> {
        let at = self.waiting.iter().position(|(asked, _)| Some(*asked) == id)?;
        self.waiting.remove(at).map(|(_, what)| what)
    }

    /// Commands without a reply.
    pub fn unanswered(&self) -> usize {
        self.waiting.len()
    }

    /// The connection is gone; the cursor stays. Tells what was not answered.
    pub fn lose(&mut self) -> VecDeque<(u64, u32)> {
        self.is_live = false;
        std::mem::take(&mut self.waiting)
    }

    /// Says `room:subscribe` or `room:join`, with the cursor if there is one.
    pub fn enter(&mut self, stage: &mut Stage, slot: u32, kind: &str, room: &str, what: u32) {
        let id = self.ask(what);
        stage.say(slot, |out| {
            command(out, kind, id);
            text(out, "room", room);
            if !self.epoch.is_empty() {
                let epoch = String::from_utf8_lossy(&self.epoch);
                let since = format!(",\"since\":{{\"epoch\":\"{epoch}\",\"seq\":{}}}", self.cursor.last());
                out.extend_from_slice(since.as_bytes());
            }
            out.push(b'}');
        });
    }

    /// The answer to [`Place::enter`]; `each` gets every entry that it brings. Returns the room's head.
    pub fn entered(&mut self, payload: &[u8], tally: &mut Tally, mut each: impl FnMut(Seq, &[u8])) -> Option<Seq> {
        let reply = scan::reply(payload).ok()?;
        let (head, epoch) = (reply.seq?, reply.epoch?);
        if self.epoch.is_empty() {
            self.cursor = Cursor::at(head);
        } else if reply.recovered == Some(true) {
            tally.recovered += 1;
            // Entries that come before this answer have moved the cursor already, others come after it.
            tally.resumed_entries += (head + 1).saturating_sub(self.cursor.next());
            scan::each_object(reply.events.unwrap_or(b"[]"), |event| {
                match scan::head(event).ok().and_then(|entry| entry.seq) {
                    Some(seq) => {
                        self.heard(seq, tally);
                        each(seq, event);
                    }
                    None => tally.malformed += 1,
                }
            })
            .ok()?;
        } else {
            tally.not_recovered += 1;
            tally.excused += self.cursor.excuse(head);
        }
        self.epoch = epoch.into();
        self.is_live = true;
        Some(head)
    }

    /// An entry of the room.
    pub fn heard(&mut self, seq: Seq, tally: &mut Tally) {
        // Before the first answer nothing is promised.
        if !self.epoch.is_empty() {
            count_step(tally, self.cursor.advance(seq));
        }
    }

    /// A `gap`: what it names will not come by itself. `is_ours`: it is of this place's room.
    pub fn gap(&mut self, is_ours: bool, payload: &[u8], tally: &mut Tally) {
        tally.gaps += 1;
        match scan::reply(payload) {
            Ok(scan::Reply { head: Some(head), .. }) if is_ours => tally.excused += self.cursor.excuse(head),
            _ => tally.malformed += 1,
        }
    }

    /// Leaves the room for good: the next [`Place::enter`] begins anew.
    pub fn forget(&mut self) {
        self.epoch = Box::default();
        self.is_live = false;
    }

    /// True when it was in the room before and may return with its cursor.
    pub fn has_cursor(&self) -> bool {
        !self.epoch.is_empty()
    }

    /// The last number it has.
    pub fn last(&self) -> Seq {
        self.cursor.last()
    }
}

/// Before the next try to connect: 50 to 250 ms.
pub fn pause_ns(stage: &mut Stage) -> u64 {
    50_000_000 + u64::from(stage.rng.below(200_000_000))
}

/// The promises that every script with rooms holds its tally to.
pub fn judge(verdict: &mut super::Verdict, tally: &Tally) {
    let errors: Vec<String> = tally.errors.iter().map(|(code, n)| format!("{n} × {code}")).collect();
    if !errors.is_empty() {
        verdict.failures.push(format!("error replies: {}", errors.join(", ")));
    }
    verdict.forbid(tally.lost, "deliveries lost");
    verdict.forbid(tally.doubled, "deliveries doubled");
    verdict.forbid(tally.out_of_order, "deliveries out of order");
    verdict.forbid(tally.differing, "deliveries not the same for everybody");
    verdict.forbid(tally.wrong_acks, "acknowledgements that name another message");
    verdict.forbid(tally.malformed, "frames the protocol does not allow");
    verdict.forbid(tally.unanswered, "commands without a reply");
    verdict.forbid(tally.gaps, "gaps told to readers that read");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_checks_what_it_hears_and_returns_with_its_cursor() {
        let mut tally = Tally::default();
        let mut place = Place::default();
        place.heard(3, &mut tally);
        assert_eq!(place.entered(br#"{"type":"ok","id":1,"epoch":"e","seq":5}"#, &mut tally, |_, _| ()), Some(5));
        place.heard(6, &mut tally);
        place.lose();
        assert!(!place.is_live && place.last() == 6);
        let resumed = br#"{"type":"ok","id":2,"epoch":"e","seq":9,"recovered":true,"events":[{"type":"x","room":"r","seq":7},{"type":"x","room":"r","seq":9}]}"#;
        let mut brought = Vec::new();
        assert_eq!(place.entered(resumed, &mut tally, |seq, _| brought.push(seq)), Some(9));
        assert_eq!((brought, tally.lost, tally.resumed_entries, tally.recovered), (vec![7, 9], 1, 3, 1));
        place.heard(9, &mut tally);
        assert_eq!(tally.doubled, 1);
    }

    #[test]
    fn replies_find_what_they_answer() {
        let mut place = Place::default();
        let (a, b) = (place.ask(7), place.ask(8));
        assert_eq!((place.answered(Some(b)), place.answered(Some(b)), place.answered(None)), (Some(8), None, None));
        assert_eq!((place.unanswered(), place.answered(Some(a)), place.unanswered()), (1, Some(7), 0));
    }
}
