//! Cursors and resume: which recent entries a shard still has, and whether they close a gap.
//!
//! The shard keeps the last committed batches (bounded by bytes and age), and each loaded room knows
//! its runs in them. Keeping a batch costs one reference: its bytes are shared by all shards.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::event::{CommittedBatch, LogEntry, RoomRun};
use super::rooms::{Room, Rooms};
use super::tally::Tally;
use crate::protocol::ids::{Position, RoomKey, Seq, UnixMillis};

/// One room's run in a kept batch.
#[derive(Debug, Clone)]
pub struct RecentRun {
    /// Seq of its first entry.
    pub first: Seq,
    /// The batch.
    pub batch: Arc<CommittedBatch>,
    /// Index into [`CommittedBatch::runs`].
    pub run: u32,
}

impl RecentRun {
    /// The run itself.
    pub fn get(&self) -> &RoomRun {
        &self.batch.runs[self.run as usize]
    }
}

/// The batches that a shard keeps, oldest first.
#[derive(Debug, Default)]
pub struct Recent {
    batches: VecDeque<(UnixMillis, Arc<CommittedBatch>)>,
    bytes: usize,
}

impl Recent {
    /// Keeps a batch that has entries.
    pub fn push(&mut self, batch: Arc<CommittedBatch>, now: UnixMillis) {
        self.bytes += cost(&batch);
        self.batches.push_back((now, batch));
    }

    /// How many bytes are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops the oldest batches until they fit `bytes_max` and none is from before `before`.
    pub fn trim(&mut self, rooms: &mut Rooms, bytes_max: usize, before: UnixMillis) {
        while let Some((at, _)) = self.batches.front() {
            if self.bytes <= bytes_max && *at >= before {
                break;
            }
            let Some((_, batch)) = self.batches.pop_front() else { break };
            self.bytes -= cost(&batch);
            for run in &batch.runs {
                if let Some(room) = rooms.get_key_mut(run.room)
                    && room.recent.front().is_some_and(|recent| Arc::ptr_eq(&recent.batch, &batch))
                {
                    room.recent.pop_front();
                    if room.recent.is_empty() {
                        room.recent = VecDeque::new();
                    }
                }
            }
        }
    }

    /// True when every entry after `position` is in a kept batch (given the shard's own position).
    pub fn covers_after(&self, position: Position, applied: Position) -> bool {
        position >= applied || self.batches.front().is_some_and(|(_, batch)| batch.first <= position + 1)
    }

    /// The kept batches with entries after `position`, oldest first.
    pub fn after(&self, position: Position) -> impl Iterator<Item = &Arc<CommittedBatch>> {
        let start = self.batches.partition_point(|(_, batch)| batch.last <= position);
        self.batches.range(start..).map(|(_, batch)| batch)
    }
}

/// What keeping a batch costs: its frames and about as much for what describes them.
fn cost(batch: &CommittedBatch) -> usize {
    batch.bytes.len() + batch.runs.iter().map(|run| 64 + 96 * run.entries.len()).sum::<usize>()
}

/// The run of `room` in a batch.
pub fn run_of(batch: &CommittedBatch, room: RoomKey) -> Option<u32> {
    batch.runs.binary_search_by_key(&room, |run| run.room).ok().map(|at| at as u32)
}

/// The recent entries of a room after `since`, in order, if they reach back that far.
pub fn recent_after(room: &Room, since: Seq) -> Option<impl Iterator<Item = (&CommittedBatch, &LogEntry)>> {
    let covered = room.recent.front().is_some_and(|run| run.first <= since + 1);
    if since < room.head && !covered {
        return None;
    }
    let start = room.recent.partition_point(|run| run.get().last_seq() <= since);
    let entries = room.recent.range(start..).flat_map(move |recent| {
        let run = recent.get();
        let from = run.entries.partition_point(|entry| entry.seq <= since);
        run.entries[from..].iter().map(move |entry| (&*recent.batch, entry))
    });
    Some(entries)
}

/// What the entries of a room up to `seq` come to, if the recent ones reach back that far.
pub fn recent_tally(room: &Room, seq: Seq) -> Option<Tally> {
    let at = room.recent.partition_point(|run| run.get().last_seq() < seq);
    // The entry before the first recent one is known as well.
    room.recent.get(at)?.get().tally_at(seq).filter(|_| seq > 0)
}

/// A run cut into stretches that everybody may see, each critical throughout or not at all, and single
/// entries that not everybody may see.
pub fn stretches(entries: &[LogEntry]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = entries.get(at)?;
        let start = at;
        at += 1;
        if first.restricted.is_none() {
            while entries.get(at).is_some_and(|e| e.restricted.is_none() && e.is_critical() == first.is_critical()) {
                at += 1;
            }
        }
        Some(start..at)
    })
}
