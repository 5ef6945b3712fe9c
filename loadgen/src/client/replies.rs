//! What a client does with `ok` and `error`.

use super::{Asked, Client, News, Shared, Stage};
use crate::scan::{self, Head};
use crate::verify::Cursor;

impl Client {
    pub(super) fn on_reply(&mut self, head: &Head<'_>, payload: &[u8], shared: &mut Shared<'_>) {
        let (Some(asked), Ok(reply)) = (self.answered(head), scan::reply(payload)) else {
            shared.tally.malformed += 1;
            return;
        };
        match asked {
            Asked::Create => shared.news.push(News::Created),
            Asked::Enter { resumes } => self.on_entered(&reply, resumes, shared),
            Asked::History => self.on_page(reply.events, shared),
            Asked::Probe => {}
            Asked::Send(message) => {
                let Some(seq) = reply.seq.filter(|seq| *seq > 0) else {
                    shared.tally.malformed += 1;
                    return;
                };
                shared.ledgers[self.local_room as usize].on_head(seq);
                shared.tally.wrong_acks += u64::from(!shared.roll.on_ack(message.client, seq));
                shared.tally.acked += 1;
                shared.tally.acked_in_window += u64::from(shared.schedule.is_measuring(shared.now_ns));
                shared.meters.record_ack(shared.schedule, message.sent_ns, shared.now_ns);
                shared.news.push(News::Acked);
            }
        }
    }

    fn on_entered(&mut self, reply: &scan::Reply<'_>, resumes: bool, shared: &mut Shared<'_>) {
        let (Some(head), Some(epoch)) = (reply.seq, reply.epoch) else {
            shared.tally.malformed += 1;
            return;
        };
        self.resumed_until = head;
        shared.ledgers[self.local_room as usize].on_head(head);
        if !resumes {
            self.cursor = Cursor::at(head);
            shared.ledgers[self.local_room as usize].start_at(head);
        } else if reply.recovered == Some(true) {
            shared.tally.recovered += 1;
            // Entries that came before this reply have moved the cursor already.
            shared.tally.resumed_entries += (head + 1).saturating_sub(self.cursor.next());
            if let Some(events) = reply.events {
                let walked = scan::each_object(events, |event| match scan::head(event) {
                    Ok(entry) => self.on_entry(&entry, event, shared),
                    Err(_) => shared.tally.malformed += 1,
                });
                shared.tally.malformed += u64::from(walked.is_err());
            }
        } else {
            shared.tally.not_recovered += 1;
            self.excuse(head, shared);
        }
        self.epoch = epoch.into();
        self.stage = Stage::Live;
        self.fill(shared);
        shared.news.push(News::Live);
    }

    pub(super) fn on_error(&mut self, head: &Head<'_>, payload: &[u8], shared: &mut Shared<'_>) {
        let Ok(reply) = scan::reply(payload) else {
            shared.tally.malformed += 1;
            return;
        };
        *shared.tally.errors.entry(reply.code.unwrap_or(0)).or_default() += 1;
        match self.answered(head) {
            Some(Asked::Send(message)) if reply.temporary => {
                shared.tally.put_off += 1;
                shared.roll.on_put_off(message.client);
                let after_ns = reply.retry_after_ms.unwrap_or(0).max(1) * 1_000_000;
                shared.news.push(News::TryAgain(message, after_ns));
            }
            Some(Asked::Send(message)) => {
                shared.roll.on_refused(message.client);
                shared.news.push(News::Refused);
            }
            // What was missed stays missed, and is counted at the end.
            Some(Asked::History | Asked::Probe) => {}
            // Set-up that is refused cannot go on.
            Some(Asked::Create | Asked::Enter { .. }) => shared.news.push(News::Closed(0)),
            None => {}
        }
    }

    /// Takes what the reply answers. Replies mostly come in order, so the search is short.
    fn answered(&mut self, head: &Head<'_>) -> Option<Asked> {
        let id = head.id?;
        let at = self.asked.iter().position(|(asked, _)| *asked == id)?;
        self.asked.remove(at).map(|(_, asked)| asked)
    }
}
