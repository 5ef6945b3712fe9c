//! Deadlines without scanning all connections: a heap of (when, what).
//!
//! Nothing is ever removed early. Whoever is called at a deadline that no longer holds (a
//! connection that is gone, a token that was renewed) does nothing and, if need be, sets a new one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::event::ConnKey;
use super::users::UserIdx;
use crate::protocol::ids::{RoomKey, UnixMillis};

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

/// Room for so many is kept in any case.
const KEPT: usize = 1_024;

/// Deadlines of things of one kind.
#[derive(Debug)]
pub struct Timers<T> {
    heap: BinaryHeap<Reverse<(UnixMillis, T)>>,
}

impl<T: Ord> Default for Timers<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new() }
    }
}

impl<T: Ord> Timers<T> {
    /// Calls for `timer` at `at`.
    pub fn set(&mut self, at: UnixMillis, timer: T) {
        self.heap.push(Reverse((at, timer)));
    }

    /// When the next one is due.
    pub fn next_deadline(&self) -> Option<UnixMillis> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The next one that is due at `now`, with the time it was set for.
    pub fn next_due(&mut self, now: UnixMillis) -> Option<(UnixMillis, T)> {
        if self.next_deadline()? > now {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        // The deadlines of a storm of connections leave no memory behind.
        if self.heap.capacity() > KEPT && self.heap.len() < self.heap.capacity() / 8 {
            self.heap.shrink_to(self.heap.capacity() / 4);
        }
        Some(entry)
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
    fn many_that_are_over_leave_no_memory_behind() {
        let mut timers = Timers::default();
        (0..100_000).for_each(|at| timers.set(at, Timer::Sweep));
        for at in 0..99_999 {
            assert_eq!(timers.next_due(100_000), Some((at, Timer::Sweep)));
        }
        assert!(timers.heap.capacity() <= KEPT);
        assert_eq!(timers.next_due(100_000), Some((99_999, Timer::Sweep)));
    }
}
