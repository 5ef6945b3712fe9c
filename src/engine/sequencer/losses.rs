//! Who lost the right to write in a room, and at which log position: the memory that lets the core
//! trust a shard's check of a message, unless something happened since.
//!
//! Bounded. What was forgotten raises a floor: a message checked before the floor is doubtful, and
//! the core then looks the author's role up.

use std::collections::VecDeque;

use ahash::AHashMap;

use crate::protocol::ids::{Position, RoomKey, UserId};

#[derive(Debug)]
pub(super) struct Losses {
    entries_max: usize,
    latest: AHashMap<(RoomKey, UserId), Position>,
    order: VecDeque<(Position, RoomKey, UserId)>,
    /// Losses at or before this position may have been forgotten.
    floor: Position,
    /// Position of the latest loss of anybody anywhere.
    newest: Position,
}

impl Losses {
    pub fn new(entries_max: usize, floor: Position) -> Self {
        Self { entries_max, latest: AHashMap::new(), order: VecDeque::new(), floor, newest: floor }
    }

    /// `user` may not write in `room` from `position` on.
    pub fn note(&mut self, room: RoomKey, user: UserId, position: Position) {
        self.newest = self.newest.max(position);
        self.latest.insert((room, user.clone()), position);
        self.order.push_back((position, room, user));
        while self.order.len() > self.entries_max {
            let Some((forgotten, room, user)) = self.order.pop_front() else { break };
            self.floor = self.floor.max(forgotten);
            let key = (room, user);
            if self.latest.get(&key) == Some(&forgotten) {
                self.latest.remove(&key);
            }
        }
    }

    /// Anything may have happened up to `position`.
    pub fn forget_until(&mut self, position: Position) {
        self.floor = self.floor.max(position);
        self.newest = self.newest.max(position);
    }

    /// True when `user` may have lost the right after `seen`.
    pub fn is_doubtful(&self, room: RoomKey, user: &UserId, seen: Position) -> bool {
        // The usual case: no membership anywhere was lost since the shard looked.
        if seen >= self.newest {
            return false;
        }
        seen < self.floor || self.latest.get(&(room, user.clone())).is_some_and(|lost| *lost > seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_doubt_for_those_who_looked_before_it() {
        let (alice, bob) = (UserId::parse("alice").unwrap(), UserId::parse("bob").unwrap());
        let room = RoomKey(1);
        let mut losses = Losses::new(2, 10);
        assert!(!losses.is_doubtful(room, &alice, 10));
        assert!(losses.is_doubtful(room, &alice, 9), "nothing is known of what came before the start");
        losses.note(room, alice.clone(), 12);
        assert!(losses.is_doubtful(room, &alice, 11));
        assert!(!losses.is_doubtful(room, &alice, 12));
        assert!(!losses.is_doubtful(room, &bob, 11));
        assert!(!losses.is_doubtful(RoomKey(2), &alice, 11));
        losses.note(room, bob.clone(), 13);
        losses.note(RoomKey(2), bob.clone(), 14);
        // Alice's loss at 12 is forgotten: whoever looked before it is doubtful, whoever they are.
        assert!(losses.is_doubtful(RoomKey(9), &alice, 11));
        assert!(!losses.is_doubtful(room, &alice, 12));
        assert!(losses.is_doubtful(RoomKey(2), &bob, 13));
    }
}
