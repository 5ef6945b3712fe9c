//! Where the last entry of each room stands, as the writer keeps it between batches: what a new
//! entry's `prev` is, the check that its seq follows, and what the room's entries come to.

use std::collections::hash_map::Entry;

use ahash::AHashMap;
use rusqlite::{Connection, OptionalExtension as _};

use super::columns::{integer, signed, tally};
use crate::engine::sequencer::Row;
use crate::engine::tally::Tally;
use crate::protocol::ids::{Position, RoomKey, Seq, UnixMillis};

/// Rooms that are kept in memory; past it all are forgotten and read again as they come.
const ROOMS_MAX: usize = 65_536;

/// The last entry of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub seq: Seq,
    pub position: Position,
    pub tally: Tally,
}

/// The entries of a room do not lie where its rows say: an error of this room, not of the database.
#[derive(Debug)]
pub(super) struct BrokenChain {
    pub room: RoomKey,
    what: String,
}

impl std::fmt::Display for BrokenChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "room {}: {}", self.room.0, self.what)
    }
}

impl std::error::Error for BrokenChain {}

impl From<BrokenChain> for rusqlite::Error {
    fn from(broken: BrokenChain) -> Self {
        Self::FromSqlConversionFailure(0, rusqlite::types::Type::Integer, Box::new(broken))
    }
}

/// The entry at `position` is not the one of `room` that should be there.
pub(super) fn misplaced(room: RoomKey, position: Position) -> rusqlite::Error {
    BrokenChain { room, what: format!("the entry at position {position} is not the one expected") }.into()
}

/// The broken chain that an error is about.
pub(super) fn broken_chain(error: &rusqlite::Error) -> Option<&BrokenChain> {
    match error {
        rusqlite::Error::FromSqlConversionFailure(_, _, error) => error.downcast_ref(),
        _ => None,
    }
}

#[derive(Debug, Default)]
pub(super) struct Heads {
    known: AHashMap<RoomKey, Head>,
    /// Rooms whose head the current batch moved.
    moved: Vec<RoomKey>,
    /// First position of the current batch.
    first: Position,
}

impl Heads {
    /// A batch begins at `first`.
    pub fn begin(&mut self, first: Position) {
        if self.known.len() > ROOMS_MAX {
            self.known.clear();
        }
        self.moved.clear();
        self.first = first;
    }

    /// The room's next entry is `row` at `position`: gives the position of the one before, 0: none, and
    /// where the room stands now.
    ///
    /// # Errors
    /// SQLite's; a [`BrokenChain`] when the row does not follow what stands.
    pub fn advance(
        &mut self,
        conn: &Connection,
        row: &Row,
        position: Position,
        ts: UnixMillis,
    ) -> rusqlite::Result<(Position, Head)> {
        let (room, seq) = (row.room, row.seq);
        let head = match self.known.entry(room) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(read(conn, room)?),
        };
        let last = *head;
        (head.seq, head.position) = (seq, position);
        head.tally.add(seq, ts, row.kind);
        let next = *head;
        if seq != last.seq + 1 || position <= last.position {
            let Head { seq: last_seq, position: last_position, .. } = last;
            let what = format!("seq {seq} at {position} does not follow seq {last_seq} at {last_position}");
            return Err(BrokenChain { room, what }.into());
        }
        if last.position < self.first {
            self.moved.push(room);
        }
        Ok((last.position, next))
    }

    /// Takes over where a room was found to stand.
    pub fn put(&mut self, room: RoomKey, head: Head) {
        self.known.insert(room, head);
    }

    /// The rooms that moved and where they stand now, ascending by room: neighbours share pages.
    pub fn moved(&mut self) -> impl Iterator<Item = (RoomKey, Head)> {
        self.moved.sort_unstable();
        self.moved.iter().map(|room| (*room, self.known[room]))
    }

    /// The batch was not committed, as far as is known: read everything again.
    pub fn forget(&mut self) {
        self.known.clear();
        self.moved.clear();
    }
}

/// Where a room stands in the database; a new one before its first entry.
pub(super) fn read(conn: &Connection, room: RoomKey) -> rusqlite::Result<Head> {
    let known = conn
        .prepare_cached("SELECT seq, position, messages, hash FROM heads WHERE room = ?1")?
        .query_row([signed(room.0)], |row| {
            Ok(Head { seq: integer(row, 0)?, position: integer(row, 1)?, tally: tally(row, 2)? })
        })
        .optional()?;
    match known {
        Some(head) => Ok(head),
        None => {
            let name: String = conn
                .prepare_cached("SELECT name FROM rooms WHERE key = ?1")?
                .query_row([signed(room.0)], |row| row.get(0))?;
            Ok(Head { seq: 0, position: 0, tally: Tally::start(&name) })
        }
    }
}
