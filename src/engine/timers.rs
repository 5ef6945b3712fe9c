//! Deadlines without scanning all connections: what is due, by when.
//!
//! Those of sessions are rounded, so that many share one place and none is looked for. In a heap, taking one of 15,000
//! touched a dozen cold cache lines, a twelfth of what a heartbeat costs.
//!
//! Nothing is ever removed early. Whoever is called at a deadline that no longer holds (a
//! connection that is gone, a token that was renewed) does nothing and, if need be, sets a new one.

use std::collections::{BTreeMap, VecDeque};

use super::event::ConnKey;
use super::users::UserIdx;
use crate::protocol::ids::{RoomKey, UnixMillis};

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A session's next ping, silence check or token expiry.
    Session(ConnKey),
    /// Waiting `read:advanced` events go out.
    FlushReads,
    /// Inbox items of a user are to be sent again, or have expired.
    Inbox(UserIdx),
    /// Rooms and users without connections are unloaded, old batches dropped.
    Sweep,
    /// A few rooms are compared with the store.
    Consistency,
    /// A gone device of this user counts no longer.
    Grace(UserIdx),
    /// Changes of presence go out.
    PresenceTick,
    /// Counts of large rooms go out.
    PresenceCounts,
    /// Views of presence are compared.
    PresenceProbe,
    /// An activity of a user in a room has waited long enough.
    Activity(UserIdx, RoomKey),
    /// Changes of presence go to the store.
    PresenceRecord,
    /// A question of presence is answered with what is there.
    Gather(u64),
}

/// Deadlines of things of one kind.
#[derive(Debug)]
pub struct Timers<T> {
    /// What is due, by when, in the order it was set.
    at: BTreeMap<UnixMillis, VecDeque<T>>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { at: BTreeMap::new() }
    }
}

impl<T> Timers<T> {
    /// Calls for `timer` at `at`.
    pub fn set(&mut self, at: UnixMillis, timer: T) {
        self.at.entry(at).or_default().push_back(timer);
    }

    /// When the next one is due.
    pub fn next_deadline(&self) -> Option<UnixMillis> {
        self.at.first_key_value().map(|(at, _)| *at)
    }

    /// The next one that is due at `now`, with the time it was set for.
    pub fn next_due(&mut self, now: UnixMillis) -> Option<(UnixMillis, T)> {
        let mut first = self.at.first_entry().filter(|first| *first.key() <= now)?;
        let (at, timer) = (*first.key(), first.get_mut().pop_front()?);
        if first.get().is_empty() {
            first.remove();
        }
        Some((at, timer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_order_and_not_early() {
        let conn = ConnKey { slot: 1, generation: 1 };
        let mut timers = Timers::default();
        assert_eq!(timers.next_deadline(), None);
        timers.set(30, Timer::Sweep);
        timers.set(10, Timer::Session(conn));
        timers.set(20, Timer::FlushReads);
        assert_eq!(timers.next_deadline(), Some(10));
        assert_eq!(timers.next_due(9), None);
        assert_eq!(timers.next_due(25), Some((10, Timer::Session(conn))));
        assert_eq!(timers.next_due(25), Some((20, Timer::FlushReads)));
        assert_eq!(timers.next_due(25), None);
        assert_eq!(timers.next_deadline(), Some(30));
    }

    #[test]
    fn those_of_one_time_come_as_they_were_set() {
        let mut timers = Timers::default();
        for number in 0..1_000 {
            timers.set(100, Timer::Gather(number));
        }
        for number in 0..1_000 {
            assert_eq!(timers.next_due(100), Some((100, Timer::Gather(number))));
            if number == 500 {
                timers.set(100, Timer::Sweep);
            }
        }
        assert_eq!(timers.next_due(100), Some((100, Timer::Sweep)));
        assert_eq!((timers.next_due(100), timers.next_deadline()), (None, None));
    }
}
