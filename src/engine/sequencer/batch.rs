//! A decided batch: the rows to be written, the answers that wait for the commit, and how both
//! become one [`CommittedBatch`] with every frame encoded once.

use std::sync::Arc;

use ahash::AHashMap;

use super::RoomState;
use crate::engine::dead::DeadChange;
use crate::engine::edits::MessageState;
use crate::engine::event::{
    Audience, CommittedBatch, LogEntry, MembershipChange, Outcome, ReadAdvance, Restricted, Revocation, RoomRow,
    RoomRun, ShardId, Token,
};
use crate::engine::inbox::InboxChange;
use crate::engine::presence::history::News;
use crate::engine::stages::Stamps;
use crate::engine::tally::Tally;
use crate::protocol::encode::{EventKind, LoggedEvent, frame_text};
use crate::protocol::error::Refusal;
use crate::protocol::ids::{Position, Priority, Role, RoomKey, Seq, UnixMillis, UserId};

/// One row of the log, as it is to be inserted. Its position is the batch's first plus its index.
#[derive(Debug)]
pub struct Row {
    /// The room.
    pub room: RoomKey,
    /// Number within the room.
    pub seq: Seq,
    /// What it is.
    pub kind: EventKind,
    /// Lane.
    pub priority: Priority,
    /// Who wrote it; none for membership entries.
    pub author: Option<UserId>,
    /// The author's own id for it.
    pub client_id: Option<Box<str>>,
    /// Root of its thread.
    pub thread: Option<Seq>,
    /// Who may see it, when not everybody.
    pub audience: Option<Arc<Audience>>,
    /// The rest of the event's fields as JSON, without braces.
    pub fields: Box<str>,
    /// What it does to a membership.
    pub change: Option<Box<MembershipChange>>,
}

/// The role of `user` in `room` after the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// The room.
    pub room: RoomKey,
    /// Whose role.
    pub user: UserId,
    /// None: the row is to be deleted.
    pub role: Option<Role>,
    /// Where their reading begins, when they came in by the batch.
    pub begun: Option<Begun>,
}

/// Where a new member begins to read: what was said before is not unread to them, and where they had
/// read to in an earlier membership is no matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// The entry by which they came in.
    pub seq: Seq,
    /// Messages before it.
    pub counted: u64,
}

/// Where a room's last entry stands, counted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadRow {
    /// The room.
    pub room: RoomKey,
    /// Its last entry.
    pub seq: Seq,
    /// Where that is.
    pub position: Position,
    /// What the entries come to there.
    pub tally: Tally,
}

/// How a message stands after an edit, a deletion, or its first reaction. Rows of one message follow
/// each other in order; the last one holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRow {
    /// The room.
    pub room: RoomKey,
    /// Seq of the message.
    pub target: Seq,
    /// Position of the message in the log.
    pub position: Position,
    /// How it stands.
    pub state: MessageState,
}

/// A reaction that came or went. Rows of one (message, user, emoji) follow each other in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReactionRow {
    /// The room.
    pub room: RoomKey,
    /// Seq of the message.
    pub target: Seq,
    /// Which reaction.
    pub emoji: Box<str>,
    /// Whose.
    pub user: UserId,
    /// It came; else it went.
    pub is_added: bool,
    /// How many have it now.
    pub count: u32,
}

/// A batch that has been decided and waits to be made durable, all of it or nothing. Whoever holds
/// it gives it back to [`Sequencer::commit`](super::Sequencer::commit) or
/// [`Sequencer::fail`](super::Sequencer::fail); the sequencer decides nothing else before.
#[derive(Debug)]
#[must_use = "a decided batch is given back with `commit` or `fail`"]
pub struct Decided {
    /// Position of the first row.
    pub first: Position,
    /// When the rows were numbered: the `ts` of each.
    pub ts: UnixMillis,
    /// Rows of the log, in position order.
    pub rows: Vec<Row>,
    /// New rooms; `head` and `members` are as after the batch.
    pub rooms: Vec<RoomRow>,
    /// Members of rooms whose number changed (new rooms included), ascending by room.
    pub counts: Vec<(RoomKey, u32)>,
    /// Changed roles, ascending by room and user; each pair once.
    pub members: Vec<MemberRow>,
    /// Cursors that moved; each pair once. A read cursor never moves behind where its member began.
    pub cursors: Vec<ReadAdvance>,
    /// Messages that now stand otherwise.
    pub states: Vec<StateRow>,
    /// Reactions that came or went.
    pub reactions: Vec<ReactionRow>,
    /// Tokens to revoke.
    pub revocations: Vec<Revocation>,
    /// Changes of inboxes, in order.
    pub inbox: Vec<InboxChange>,
    /// What is to be kept of presence, in order.
    pub presence: Vec<Arc<News>>,
    /// What is done with dead letters, in order. Items that die are in `inbox`.
    pub dead: Vec<DeadChange>,
    /// Heads that are put right, before any of `rows`.
    pub mended: Vec<HeadRow>,
    pub(super) outcomes: Vec<Vec<Outcome>>,
    pub(super) losses: Vec<(Position, RoomKey, UserId)>,
    pub(super) counted: Counted,
}

/// What is counted of a batch once it stands: one that is tried again is counted once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    /// Messages answered with an earlier entry.
    pub duplicates: u64,
    /// Inbox items that were refused or left out because a queue was full.
    pub refused: u64,
    /// Items that were thrown out of a full queue.
    pub evicted: u64,
    /// Items that were deleted because their time was over.
    pub expired: u64,
}

impl Decided {
    pub(super) fn new(first: Position, ts: UnixMillis, shards: usize) -> Self {
        Self {
            first,
            ts,
            rows: Vec::new(),
            rooms: Vec::new(),
            counts: Vec::new(),
            members: Vec::new(),
            cursors: Vec::new(),
            states: Vec::new(),
            reactions: Vec::new(),
            revocations: Vec::new(),
            inbox: Vec::new(),
            presence: Vec::new(),
            dead: Vec::new(),
            mended: Vec::new(),
            outcomes: std::iter::repeat_with(Vec::new).take(shards).collect(),
            losses: Vec::new(),
            counted: Counted::default(),
        }
    }

    /// True when nothing is to be written: all were duplicates or refused.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
            && self.cursors.is_empty()
            && self.revocations.is_empty()
            && self.inbox.is_empty()
            && self.presence.is_empty()
            && self.dead.is_empty()
            && self.mended.is_empty()
    }

    /// Position of the last row; `first - 1` without rows.
    pub fn last(&self) -> Position {
        self.first + self.rows.len() as Position - 1
    }

    /// Where the next row will stand.
    pub(super) fn next_position(&self) -> Position {
        self.first + self.rows.len() as Position
    }

    pub(super) fn answer(&mut self, shard: ShardId, outcome: Outcome) {
        let index = usize::from(shard.0);
        debug_assert!(index < self.outcomes.len(), "an append of a shard that does not exist");
        if index >= self.outcomes.len() {
            self.outcomes.resize_with(index + 1, Vec::new);
        }
        self.outcomes[index].push(outcome);
    }

    /// The batch as the shards see it, frames encoded.
    pub(super) fn publish(mut self, rooms: &AHashMap<RoomKey, RoomState>) -> CommittedBatch {
        let (bytes, runs) = encode(&mut self.rows, self.first, self.ts, rooms);
        let tombstones = self.states.iter().filter(|row| row.state.deleted);
        let deleted = tombstones.map(|row| (row.room, row.target)).collect();
        CommittedBatch {
            first: self.first,
            last: self.first + self.rows.len() as Position - 1,
            bytes: bytes.into(),
            runs,
            reads: self.cursors,
            deleted,
            revocations: self.revocations,
            inbox: self.inbox,
            outcomes: self.outcomes,
            // Whoever drives the sequencer has the clock.
            stamps: Stamps::default(),
        }
    }
}

/// A batch of answers only: `refusal` for every append, or for those of `outcomes`.
pub(super) fn refused(first: Position, mut outcomes: Vec<Vec<Outcome>>, refusal: &Refusal) -> CommittedBatch {
    for outcome in outcomes.iter_mut().flatten() {
        outcome.result = Err(refusal.clone());
    }
    CommittedBatch { first, last: first - 1, outcomes, ..CommittedBatch::default() }
}

/// An answer that is no answer yet: `fail` or `refused` fills it in.
pub(super) fn refusal_outcome(token: Token, refusal: &Refusal) -> Outcome {
    Outcome { token, result: Err(refusal.clone()) }
}

/// Bytes of an event's frame beside its fields and what is its author's: keys, numbers, the room's name,
/// header.
const EVENT_BYTES_USUAL: usize = 100;

/// About what the frame of a row takes, rather too much than too little.
fn frame_bytes_usual(row: &Row) -> usize {
    let author = row.author.as_ref().map_or(0, |author| author.as_str().len() + 12);
    let client_id = row.client_id.as_ref().map_or(0, |client_id| client_id.len() + 15);
    EVENT_BYTES_USUAL + row.fields.len() + author + client_id
}

fn encode(
    rows: &mut [Row],
    first: Position,
    ts: UnixMillis,
    rooms: &AHashMap<RoomKey, RoomState>,
) -> (Vec<u8>, Vec<RoomRun>) {
    // Entries of one room lie together, so that one slice serves a subscriber.
    let mut order: Vec<(RoomKey, u32)> = rows.iter().zip(0..).map(|(row, index)| (row.room, index)).collect();
    order.sort_unstable();
    let mut bytes = Vec::with_capacity(rows.iter().map(frame_bytes_usual).sum());
    let mut runs: Vec<RoomRun> = Vec::new();
    for of_room in order.chunk_by(|a, b| a.0 == b.0) {
        let key = of_room[0].0;
        let room = rooms.get(&key).expect("a touched room stays cached until its batch is published");
        let entries = of_room.iter().map(|&(_, index)| {
            let row = &mut rows[index as usize];
            encode_row(&mut bytes, row, first + Position::from(index), ts, &room.name_json)
        });
        let entries = entries.collect();
        let (name, kind) = (room.name.clone(), room.kind);
        runs.push(RoomRun { room: key, name, kind, members: room.members, tally: room.tally, entries });
    }
    (bytes, runs)
}

fn encode_row(bytes: &mut Vec<u8>, row: &mut Row, position: Position, ts: UnixMillis, room_json: &str) -> LogEntry {
    let event = LoggedEvent {
        kind: row.kind,
        room_json,
        seq: row.seq,
        ts,
        author: row.author.as_ref().map_or("", UserId::as_str),
        client_id: row.client_id.as_deref(),
        fields: &row.fields,
    };
    let start = bytes.len() as u32;
    frame_text(bytes, |out| event.write_json(out));
    let restricted = match (row.audience.take(), &row.author) {
        (Some(audience), Some(author)) => Some(Box::new(Restricted { author: author.clone(), audience })),
        _ => None,
    };
    LogEntry {
        seq: row.seq,
        position,
        ts,
        kind: row.kind,
        priority: row.priority,
        span: start..bytes.len() as u32,
        restricted,
        change: row.change.take(),
    }
}
