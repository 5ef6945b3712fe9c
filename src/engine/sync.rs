//! Cursors and resume: which recent entries a shard still has, and whether they close a gap.
//!
//! The shard keeps the last committed batches (bounded by bytes and age), and each loaded room knows
//! its runs in them. Keeping a batch costs one reference: its bytes are shared by all shards.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::event::{CommittedBatch, LogEntry, Outcome, RoomRun};
use super::inbox::{InboxChange, Item};
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

/// A batch, when it came, and what keeping it costs.
#[derive(Debug)]
struct Kept {
    at: UnixMillis,
    cost: usize,
    batch: Arc<CommittedBatch>,
}

/// The batches that a shard keeps, oldest first.
#[derive(Debug, Default)]
pub struct Recent {
    batches: VecDeque<Kept>,
    bytes: usize,
}

impl Recent {
    /// Keeps a batch that has entries.
    pub fn push(&mut self, batch: Arc<CommittedBatch>, now: UnixMillis) {
        let cost = cost(&batch);
        self.bytes += cost;
        self.batches.push_back(Kept { at: now, cost, batch });
    }

    /// How many bytes are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops the oldest batches until they fit `bytes_max` and none is from before `before`.
    pub fn trim(&mut self, rooms: &mut Rooms, bytes_max: usize, before: UnixMillis) {
        while let Some(Kept { at, .. }) = self.batches.front() {
            if self.bytes <= bytes_max && *at >= before {
                break;
            }
            let Some(Kept { cost, batch, .. }) = self.batches.pop_front() else { break };
            self.bytes -= cost;
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
        position >= applied || self.batches.front().is_some_and(|kept| kept.batch.first <= position + 1)
    }

    /// The kept batches with entries after `position`, oldest first.
    pub fn after(&self, position: Position) -> impl Iterator<Item = &Arc<CommittedBatch>> {
        let start = self.batches.partition_point(|kept| kept.batch.last <= position);
        self.batches.range(start..).map(|kept| &kept.batch)
    }
}

/// What keeping a batch costs: its frames, about as much for what describes them, and what it holds besides, which
/// nobody needs again and which is kept with it all the same.
fn cost(batch: &CommittedBatch) -> usize {
    let outcomes: usize = batch.outcomes.iter().map(Vec::len).sum();
    let lists = outcomes * size_of::<Outcome>()
        + size_of_val(&*batch.reads)
        + size_of_val(&*batch.deleted)
        + size_of_val(&*batch.revocations)
        + size_of_val(&*batch.inbox);
    let runs: usize = batch.runs.iter().map(|run| 64 + 96 * run.entries.len()).sum();
    let inbox: usize = batch.inbox.iter().map(inbox_cost).sum();
    batch.bytes.len() + runs + lists + inbox
}

/// What a change of an inbox holds on the heap: an item with its two texts, or numbers.
fn inbox_cost(change: &InboxChange) -> usize {
    match change {
        InboxChange::Added(item) => size_of::<Item>() + 64 + item.bytes() as usize,
        InboxChange::Removed { items, .. } | InboxChange::Tried { items, .. } => size_of_val(&**items),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ids::{Priority, UserId};

    #[test]
    fn what_a_batch_holds_besides_its_frames_is_counted() {
        let item = |id| Item {
            id,
            user: UserId::parse("bob").unwrap(),
            name: "direct".into(),
            data: "x".repeat(1_000).into(),
            priority: Priority::Normal,
            ts: 0,
            expires_ts: 1,
            attempts: 0,
            from: None,
            covers: None,
        };
        let inbox = (0..100).map(|id| InboxChange::Added(Arc::new(item(id)))).collect();
        let mut recent = Recent::default();
        recent.push(Arc::new(CommittedBatch { inbox, ..CommittedBatch::default() }), 0);
        assert!((100_000..200_000).contains(&recent.bytes()), "{}", recent.bytes());
        let deleted = vec![(RoomKey(1), 1); 1_000];
        recent.push(Arc::new(CommittedBatch { deleted, ..CommittedBatch::default() }), 0);
        recent.trim(&mut Rooms::default(), 16_000, 0);
        assert_eq!(recent.bytes(), 16_000, "the older one went");
        recent.trim(&mut Rooms::default(), 15_999, 0);
        assert_eq!(recent.bytes(), 0);
    }
}
