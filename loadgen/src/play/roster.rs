//! What several scripts share: a member's place in their room, commands that wait for a reply, and the books of
//! the messages they send.

use std::collections::{BTreeMap, VecDeque};

use crate::audit::Audit;
use crate::body::Filler;
use crate::client::Message;
use crate::roll::{self, Roll};
use crate::scan;
use crate::stage::Stage;
use crate::tally::{Tally, count_step};
use crate::verify::{Cursor, Ledger, Seq};
use crate::world::World;

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

/// The messages of a script: what was sent, what is on its way, and what every room saw.
pub struct Mail {
    ledgers: Vec<Ledger>,
    roll: Roll,
    filler: Filler,
    next_client: u64,
    /// By user and command.
    on_way: BTreeMap<(u32, u64), Message>,
}

impl Mail {
    /// For so many rooms, of each of which the last `remembered` entries can be compared.
    pub fn new(rooms: u32, remembered: usize, body_bytes: usize) -> Self {
        Self {
            ledgers: (0..rooms).map(|_| Ledger::new(remembered)).collect(),
            roll: Roll::new(0),
            filler: Filler::new(body_bytes),
            next_client: roll::first_id(0),
            on_way: BTreeMap::new(),
        }
    }

    /// A new message of a user, by the command `id`.
    pub fn add(&mut self, user: u32, id: u64, room: usize, sent_ns: u64) -> Message {
        let message = Message { client: self.next_client, sent_ns };
        self.next_client += 1;
        self.roll.add(message, room as u32, user);
        self.on_way.insert((user, id), message);
        message
    }

    /// Appends what a `message:send` carries of it.
    pub fn write(&self, out: &mut Vec<u8>, message: Message) {
        out.extend_from_slice(b",\"client_id\":\"");
        scan::push_hex16(out, message.client);
        out.extend_from_slice(b"\",\"body\":\"");
        scan::push_hex16(out, message.sent_ns);
        out.extend_from_slice(self.filler.of(message.client));
        out.push(b'"');
    }

    /// The command was answered by an `ok`: which message that was, and its number.
    pub fn acked(
        &mut self,
        user: u32,
        id: u64,
        room: usize,
        payload: &[u8],
        tally: &mut Tally,
    ) -> Option<(Message, Seq)> {
        let message = self.on_way.remove(&(user, id))?;
        let Some(seq) = scan::reply(payload).ok().and_then(|reply| reply.seq).filter(|seq| *seq > 0) else {
            tally.malformed += 1;
            return None;
        };
        tally.acked += 1;
        tally.wrong_acks += u64::from(!self.roll.on_ack(message.client, seq));
        self.on_head(room, seq);
        Some((message, seq))
    }

    /// The command was answered by an error, if it was a message's.
    pub fn refused(&mut self, user: u32, id: u64) {
        if let Some(message) = self.on_way.remove(&(user, id)) {
            self.roll.on_refused(message.client);
        }
    }

    /// The user's connection is gone: nobody answers what was on its way.
    pub fn lose(&mut self, user: u32) {
        let mut theirs = self.on_way.split_off(&(user, 0));
        self.on_way.append(&mut theirs.split_off(&(user + 1, 0)));
        theirs.values().for_each(|message| self.roll.on_cut(message.client));
    }

    /// An entry came to a user of a room. Returns when it was meant to be sent, 0 where it is no message of ours.
    pub fn came(
        &mut self,
        world: &World,
        user: u32,
        (room, name): (usize, &str),
        payload: &[u8],
        tally: &mut Tally,
    ) -> u64 {
        match scan::head(payload) {
            Ok(scan::Head { kind, seq: Some(seq), room: Some(told), .. }) if told == name.as_bytes() => {
                let ledger = &mut self.ledgers[room];
                let mut audit = Audit { world, ledger, roll: &mut self.roll, filler: &self.filler, tally };
                audit.entry(user, room as u32, seq, kind == b"message:created", payload)
            }
            _ => {
                tally.malformed += 1;
                0
            }
        }
    }

    /// The server named a number of the room: everybody must get that far.
    pub fn on_head(&mut self, room: usize, head: Seq) {
        self.ledgers[room].on_head(head);
    }

    /// The highest number known of the room.
    pub fn high(&self, room: usize) -> Seq {
        self.ledgers[room].high()
    }

    /// At the end: counts what was acknowledged and never came.
    pub fn close(&self, tally: &mut Tally) {
        tally.acked_only = self.roll.open().acked_only;
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
    verdict.failures.extend(tally.failures());
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
