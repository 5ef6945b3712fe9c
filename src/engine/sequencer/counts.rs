//! How many messages a room has up to some entry: what a read cursor remembers, so that unread
//! messages are a subtraction.
//!
//! Readers are near the head nearly always, so the sequencer keeps the kinds of each room's last
//! entries as bits. Only for a cursor further back are the facts asked.

use super::{Facts, Stop, Turn};
use crate::protocol::encode::EventKind;
use crate::protocol::ids::{RoomKey, Seq};

/// Which of a room's last entries are messages, the newest in the lowest bit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RecentKinds {
    bits: u64,
    known: u32,
}

impl RecentKinds {
    pub fn push(&mut self, kind: EventKind) {
        self.bits = (self.bits << 1) | u64::from(kind == EventKind::MessageCreated);
        self.known = (self.known + 1).min(u64::BITS);
    }

    /// How many of the last `count` entries are messages, if that is known.
    pub fn messages(self, count: u64) -> Option<u64> {
        let count = u32::try_from(count).ok().filter(|count| *count <= self.known)?;
        let mask = u64::MAX.checked_shr(u64::BITS - count).unwrap_or(0);
        Some(u64::from((self.bits & mask).count_ones()))
    }
}

impl<F: Facts> Turn<'_, F> {
    /// Messages of a loaded room up to and with `seq`, which is at most its head.
    pub(super) fn counted_at(&mut self, key: RoomKey, seq: Seq) -> Result<u64, Stop<F::Error>> {
        let room = self.room(key);
        let all = room.tally.messages;
        if let Some(after) = room.recent.messages(room.head - seq) {
            return Ok(all.saturating_sub(after));
        }
        let new = self.draft.rows.iter().filter(|row| row.room == key);
        if new.clone().next().is_some_and(|first| first.seq <= seq) {
            let after = new.filter(|row| row.seq > seq && row.kind == EventKind::MessageCreated).count();
            return Ok(all.saturating_sub(after as u64));
        }
        let tally = self.facts.tally_at(key, seq).map_err(Stop::Facts)?;
        Ok(tally.map_or(all, |tally| tally.messages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sixty_four_are_known() {
        let mut recent = RecentKinds::default();
        assert_eq!((recent.messages(0), recent.messages(1)), (Some(0), None));
        for at in 0..200u64 {
            recent.push(if at % 3 == 0 { EventKind::MessageCreated } else { EventKind::RoomJoined });
            let known = (at + 1).min(64);
            for count in 0..=known {
                let due = (at + 1 - count..=at).filter(|at| at % 3 == 0).count() as u64;
                assert_eq!(recent.messages(count), Some(due), "{count} back from {at}");
            }
            assert_eq!(recent.messages(known + 1), None);
        }
    }
}
