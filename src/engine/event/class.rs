//! What a frame that leaves is: what may be dropped of it, and what goes before it.

use super::LogEntry;
use crate::protocol::encode::EventKind;
use crate::protocol::ids::{RoomKey, Seq};

/// What a frame is to an outbox that must choose what to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Never dropped: acks, errors, close, critical events.
    Critical,
    /// Log entries `first..=last` of a room: dropped only with a `gap` in their place.
    Log {
        /// The room.
        room: RoomKey,
        /// First seq of the frames.
        first: Seq,
        /// Last seq of the frames.
        last: Seq,
        /// News that nobody acts upon: it may wait for something to travel with.
        is_patient: bool,
    },
    /// The same for entries of `priority: critical`: they keep their room's order, and are never
    /// dropped for a `gap`. When the room is in one, the gap is told first, in their place.
    CriticalLog {
        /// The room.
        room: RoomKey,
        /// First seq of the frames.
        first: Seq,
        /// Last seq of the frames.
        last: Seq,
    },
    /// A reply that says where a room stands: never dropped, and in its place behind what waits of the room. Ahead
    /// of that it would speak of entries that come after it.
    Reply {
        /// The room.
        room: RoomKey,
        /// The room's last seq when it was made.
        head: Seq,
    },
    /// Ephemeral events of normal priority: dropped when normal is.
    Normal,
    /// May be dropped, and replaces a waiting frame with the same non-zero key (conflation).
    Low {
        /// 0: not conflated.
        key: u64,
    },
}

impl Class {
    /// The class of a room's entries, at least one, which are all critical or none.
    pub fn of_log(room: RoomKey, entries: &[LogEntry]) -> Self {
        let (first, last) = (entries[0].seq, entries[entries.len() - 1].seq);
        if entries[0].is_critical() {
            return Self::CriticalLog { room, first, last };
        }
        let is_patient = entries.iter().all(|entry| matches!(entry.kind, EventKind::RoomJoined | EventKind::RoomLeft));
        Self::Log { room, first, last, is_patient }
    }

    /// For what is never dropped because of a room's gap, and so comes behind it: the last seq before it.
    pub fn gap_ends_at(self) -> Option<(RoomKey, Seq)> {
        match self {
            Self::CriticalLog { room, first, .. } => Some((room, first - 1)),
            Self::Reply { room, head } => Some((room, head)),
            _ => None,
        }
    }

    /// True when it may wait for something to travel with.
    pub fn is_patient(self) -> bool {
        matches!(self, Self::Low { .. } | Self::Log { is_patient: true, .. })
    }
}
