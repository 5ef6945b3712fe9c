//! What became of every message that a thread sent: accepted or not, delivered under which number. Pure.
//!
//! A [`Ledger`](crate::verify::Ledger) knows what stands under a number; the roll knows where a message
//! stands. Together they hold that messages and numbers pair off: a message stored twice has two numbers, an
//! invented one is in no roll, and one that was acknowledged and never stored is in the roll without a number.
//! The time of sending is the roll's too, so that no server can change it.
//!
//! Touched when a message is sent, answered and first seen, never for the deliveries after that. A
//! message that is both acknowledged and seen leaves the roll; ids are given in sequence, so that whatever is
//! below the first entry is known to have been settled.

use std::collections::VecDeque;

use crate::client::Message;
use crate::verify::Seq;

/// Where an id's number ends and its thread begins.
const THREAD_SHIFT: u32 = 40;
/// Entries beyond which unsettled ones make room for new ones (they are then found by hash).
const RECENT_MAX: usize = 1 << 17;

/// The first id of a thread's messages.
pub fn first_id(thread: u32) -> u64 {
    u64::from(thread + 1) << THREAD_SHIFT
}

/// The thread that gives such ids; `None` where none does.
pub fn thread_of(client: u64) -> Option<u32> {
    u32::try_from(client >> THREAD_SHIFT).ok()?.checked_sub(1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// On its way, or answered.
    Sent,
    /// Refused for now.
    PutOff,
    /// Its connection ended before the answer.
    Cut,
    /// Refused for good.
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    sent_ns: u64,
    /// The number that its acknowledgement names; 0: none has come.
    acked: Seq,
    /// The number under which it came; 0: it has not.
    seen: Seq,
    room: u32,
    /// Who sent it.
    author: u32,
    state: State,
}

impl Entry {
    fn is_settled(&self) -> bool {
        self.acked != 0 && self.seen != 0
    }
}

/// What the roll knows of a message that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Ours.
    Ours {
        /// When it was meant to be sent, ns.
        sent_ns: u64,
        /// Who sent it.
        author: u32,
        /// False when its acknowledgement named another number.
        is_acked_right: bool,
    },
    /// Another thread's, whose roll has it.
    Elsewhere,
    /// Ours, and it stands under another number already.
    Again,
    /// Settled long ago, and too old to know where it stands.
    Forgotten,
    /// Nobody sent it.
    Invented,
}

/// What is open at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// Acknowledged, and nobody got it.
    pub acked_only: u64,
    /// Refused for the time being to the last.
    pub put_off: u64,
    /// Without an answer, since the connection ended.
    pub cut: u64,
}

/// One thread's messages.
#[derive(Debug)]
pub struct Roll {
    first: u64,
    recent: VecDeque<Entry>,
    /// Unsettled ones older than all of `recent`.
    old: ahash::HashMap<u64, Entry>,
}

impl Roll {
    /// Of a thread that has sent nothing.
    pub fn new(thread: u32) -> Self {
        Self { first: first_id(thread), recent: VecDeque::new(), old: ahash::HashMap::default() }
    }

    /// A new message, to a room; ids come in sequence.
    pub fn add(&mut self, message: Message, room: u32, author: u32) {
        debug_assert_eq!(message.client, self.first + self.recent.len() as u64);
        if self.recent.len() >= RECENT_MAX
            && let Some(entry) = self.recent.pop_front()
        {
            if !entry.is_settled() {
                self.old.insert(self.first, entry);
            }
            self.first += 1;
        }
        let entry = Entry { sent_ns: message.sent_ns, acked: 0, seen: 0, room, author, state: State::Sent };
        self.recent.push_back(entry);
    }

    /// An acknowledgement names its number. False when it came under another one.
    pub fn on_ack(&mut self, client: u64, seq: Seq) -> bool {
        let Some(entry) = self.entry(client) else { return true };
        entry.acked = seq;
        entry.state = State::Sent;
        let agrees = entry.seen == 0 || entry.seen == seq;
        self.settle(client);
        agrees
    }

    /// The server wants it later.
    pub fn on_put_off(&mut self, client: u64) {
        self.set(client, State::PutOff);
    }

    /// It is on its way again.
    pub fn on_again(&mut self, client: u64) {
        self.set(client, State::Sent);
    }

    /// The server does not want it.
    pub fn on_refused(&mut self, client: u64) {
        self.set(client, State::Refused);
    }

    /// Its connection ended.
    pub fn on_cut(&mut self, client: u64) {
        self.set(client, State::Cut);
    }

    /// A message of this thread came in a room under a number. `is_first`: nobody here had seen that number.
    pub fn on_seen(&mut self, client: u64, room: u32, seq: Seq, is_first: bool) -> Known {
        if client >= self.first + self.recent.len() as u64 {
            return Known::Invented;
        }
        let Some(entry) = self.entry(client) else {
            return if is_first { Known::Again } else { Known::Forgotten };
        };
        if entry.room != room {
            return Known::Invented;
        }
        if entry.seen != 0 && entry.seen != seq {
            return Known::Again;
        }
        let is_new = entry.seen == 0;
        entry.seen = seq;
        // An acknowledgement that was found wrong when it came is not counted again.
        let is_acked_right = !is_new || entry.acked == 0 || entry.acked == seq;
        let known = Known::Ours { sent_ns: entry.sent_ns, author: entry.author, is_acked_right };
        self.settle(client);
        known
    }

    /// What was never settled.
    pub fn open(&self) -> Open {
        let mut open = Open::default();
        for entry in self.recent.iter().chain(self.old.values()) {
            match (entry.acked, entry.state) {
                (0, State::PutOff) => open.put_off += 1,
                (0, State::Cut) => open.cut += 1,
                (0, State::Sent | State::Refused) => {}
                _ => open.acked_only += u64::from(entry.seen == 0),
            }
        }
        open
    }

    fn set(&mut self, client: u64, state: State) {
        if let Some(entry) = self.entry(client) {
            entry.state = state;
        }
    }

    fn entry(&mut self, client: u64) -> Option<&mut Entry> {
        match client.checked_sub(self.first) {
            Some(at) => self.recent.get_mut(usize::try_from(at).ok()?),
            None => self.old.get_mut(&client),
        }
    }

    fn settle(&mut self, client: u64) {
        if client < self.first {
            if self.old.get(&client).is_some_and(Entry::is_settled) {
                self.old.remove(&client);
            }
            return;
        }
        while self.recent.front().is_some_and(Entry::is_settled) {
            self.recent.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A roll of so many messages, sent at 10, 11, … to room 3.
    fn roll(messages: u64) -> (Roll, u64) {
        let (mut roll, first) = (Roll::new(1), first_id(1));
        (0..messages).for_each(|n| roll.add(Message { client: first + n, sent_ns: 10 + n }, 3, 8));
        (roll, first)
    }

    fn ours(sent_ns: u64, is_acked_right: bool) -> Known {
        Known::Ours { sent_ns, author: 8, is_acked_right }
    }

    #[test]
    fn messages_and_numbers_pair_off() {
        let (mut roll, first) = roll(4);
        assert_eq!((thread_of(first), thread_of(7)), (Some(1), None));
        assert!(roll.on_ack(first, 1));
        assert_eq!(roll.on_seen(first, 3, 1, true), ours(10, true));
        assert_eq!(roll.on_seen(first, 3, 5, true), Known::Again, "settled, and stored once more");
        assert_eq!(roll.on_seen(first, 3, 1, false), Known::Forgotten);
        assert_eq!(roll.on_seen(first + 1, 3, 2, true), ours(11, true));
        assert_eq!(roll.on_seen(first + 1, 3, 2, false), ours(11, true));
        assert_eq!(roll.on_seen(first + 1, 3, 6, true), Known::Again);
        assert!(!roll.on_ack(first + 1, 1), "it stands under 2");
        assert!(roll.on_ack(first + 2, 1));
        assert_eq!(roll.on_seen(first + 2, 3, 3, true), ours(12, false), "the ack named 1");
        assert_eq!(roll.on_seen(first + 3, 4, 7, true), Known::Invented, "sent to another room");
        assert_eq!(roll.on_seen(first + 4, 3, 7, true), Known::Invented, "never sent");
        assert!(roll.on_ack(first + 3, 1));
        assert_eq!(roll.open(), Open { acked_only: 1, ..Open::default() });
    }

    #[test]
    fn what_was_never_accepted_is_known_at_the_end() {
        let (mut roll, first) = roll(5);
        roll.on_put_off(first);
        roll.on_put_off(first + 1);
        roll.on_again(first + 1);
        roll.on_cut(first + 2);
        roll.on_refused(first + 3);
        assert_eq!(roll.open(), Open { put_off: 1, cut: 1, acked_only: 0 });
        roll.on_again(first);
        assert!(roll.on_ack(first, 9));
        assert_eq!(roll.open(), Open { cut: 1, acked_only: 1, put_off: 0 });
    }

    #[test]
    fn a_long_run_forgets_what_is_settled_and_nothing_else() {
        let (mut roll, first) = roll(RECENT_MAX as u64 + 10);
        assert_eq!((roll.recent.len(), roll.old.len()), (RECENT_MAX, 10));
        assert_eq!(roll.on_seen(first + 2, 3, 8, true), ours(12, true));
        assert!(roll.on_ack(first + 2, 8));
        assert_eq!((roll.old.len(), roll.on_seen(first + 2, 3, 9, true)), (9, Known::Again));
        for n in 10..RECENT_MAX as u64 + 10 {
            assert!(roll.on_ack(first + n, n));
            assert_eq!(roll.on_seen(first + n, 3, n, true), ours(10 + n, true));
        }
        assert_eq!((roll.recent.len(), roll.old.len()), (0, 9));
    }
}
