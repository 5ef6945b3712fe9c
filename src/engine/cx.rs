//! What every part of a shard needs at hand: time, bounds, counters, randomness, and the place
//! where outputs are put. Parts borrow it; it knows none of them.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::event::{Append, Class, ConnKey, Entry, Frames, Note, Output, Outputs, Query, ReadRequest, ShardId, Token};
use super::limits::Limits;
use super::rng::Rng;
use super::stats::Stats;
use crate::protocol::command::CommandId;
use crate::protocol::encode;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{Epoch, Position, RoomKey, Seq, UnixMillis};

/// The surroundings of one call of `handle`.
#[derive(Debug)]
pub(super) struct Cx {
    pub shard: ShardId,
    pub shards: u16,
    pub epoch: Epoch,
    pub limits: Arc<Limits>,
    /// Time of the call, on the axis of all deadlines: it does not jump.
    pub now: UnixMillis,
    /// How far the time of day is ahead of `now`, ms: it is set now and then.
    pub day_ahead_ms: i64,
    /// Monotonic time of the turn at hand, for `timing` alone; 0 where nobody says it.
    pub clock_us: u64,
    /// Last log position applied here.
    pub position: Position,
    /// Every committed message is to be noted in the log (TRACE).
    pub notes_messages: bool,
    /// The store takes no writes right now.
    pub degraded: bool,
    pub stats: Stats,
    pub rng: Rng,
    pub out: Outputs,
    /// Appends not yet answered.
    pub appends: u32,
    /// Reads not yet answered.
    pub reads: u32,
}

impl Cx {
    /// The time of day: what clients, tokens and the store mean by a time.
    pub fn time_of_day(&self) -> UnixMillis {
        self.now.saturating_add_signed(self.day_ahead_ms)
    }

    /// When a time of day comes, on the axis of deadlines, as far as is known by now.
    pub fn deadline(&self, time_of_day: UnixMillis) -> UnixMillis {
        time_of_day.saturating_add_signed(self.day_ahead_ms.saturating_neg())
    }

    /// Writes one frame into the turn's scratch and sends it to one connection.
    pub fn send(&mut self, conn: ConnKey, class: Class, write_json: impl FnOnce(&mut Vec<u8>)) {
        let frames = Frames::Scratch(self.scratch(write_json));
        self.out.list.push(Output::Send { conn, class, frames });
    }

    /// Writes one frame into the turn's scratch.
    pub fn scratch(&mut self, write_json: impl FnOnce(&mut Vec<u8>)) -> Range<u32> {
        let start = self.out.bytes.len() as u32;
        encode::frame_text(&mut self.out.bytes, write_json);
        start..self.out.bytes.len() as u32
    }

    /// Answers a command with `ok`; without an id there is no answer.
    pub fn ok(&mut self, conn: ConnKey, id: Option<&CommandId>, fields: impl FnOnce(&mut Vec<u8>)) {
        if let Some(id) = id {
            self.send(conn, Class::Critical, |out| encode::ok(out, id, fields));
        }
    }

    /// The same for an answer that says where a room stands, whose last seq is `head`: behind what waits of the room.
    pub fn ok_in_place(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        (room, head): (RoomKey, Seq),
        fields: impl FnOnce(&mut Vec<u8>),
    ) {
        if let Some(id) = id {
            self.send(conn, Class::Reply { room, head }, |out| encode::ok(out, id, fields));
        }
    }

    /// Answers a command with an error; without an id it becomes an error event.
    pub fn refuse(&mut self, conn: ConnKey, id: Option<&CommandId>, refusal: &Refusal) {
        self.stats.errors.count(refusal.code);
        self.send(conn, Class::Critical, |out| encode::error(out, id, refusal));
    }

    /// Sends the same to all of `targets`.
    pub fn fanout(&mut self, targets: impl IntoIterator<Item = ConnKey>, class: Class, frames: Frames) {
        let start = self.out.targets.len() as u32;
        self.out.targets.extend(targets);
        let targets = start..self.out.targets.len() as u32;
        if !targets.is_empty() {
            self.stats.fanout_recipients += u64::from(targets.end - targets.start);
            self.out.list.push(Output::Fanout { targets, class, frames });
        }
    }

    /// One frame in memory of its own, for those that outlive the turn.
    pub fn frame(write_json: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut bytes = Vec::with_capacity(256);
        encode::frame_text(&mut bytes, write_json);
        Bytes::from(bytes)
    }

    /// Asks for a line in the log.
    pub fn note(&mut self, note: Note) {
        self.out.list.push(Output::Note(note));
    }

    /// Whether one more append may go out now.
    ///
    /// # Errors
    /// `degraded` while the store takes no writes, `busy` when too many are unanswered.
    pub fn may_append(&mut self) -> Result<(), Refusal> {
        if self.degraded {
            let retry_ms = 1_000 + self.rng.below(1_000);
            return Err(Refusal::new(ErrorCode::Degraded, "the store takes no writes right now").retry_after(retry_ms));
        }
        if self.appends >= self.limits.appends_max {
            self.stats.busy += 1;
            let retry_ms = 100 + self.rng.below(200);
            return Err(Refusal::new(ErrorCode::Busy, "too many writes are waiting").retry_after(retry_ms));
        }
        Ok(())
    }

    /// Sends an entry to the persistence core; call [`Cx::may_append`] before.
    pub fn append(&mut self, token: Token, entry: Entry) {
        self.appends += 1;
        self.out.list.push(Output::Append(Append { shard: self.shard, token, seen: self.position, entry }));
    }

    /// Whether one more read may go out now.
    ///
    /// # Errors
    /// `busy` when too many are unanswered.
    pub fn may_read(&mut self) -> Result<(), Refusal> {
        if self.reads >= self.limits.reads_max {
            self.stats.busy += 1;
            let retry_ms = 100 + self.rng.below(200);
            return Err(Refusal::new(ErrorCode::Busy, "too many reads are waiting").retry_after(retry_ms));
        }
        Ok(())
    }

    /// Sends a question to the readers; call [`Cx::may_read`] before.
    pub fn read(&mut self, token: Token, query: Query) {
        self.reads += 1;
        self.out.list.push(Output::Read(ReadRequest { shard: self.shard, token, query }));
    }
}
