//! Where the last entry of each room stands, as the writer keeps it between batches: what a new
//! entry's `prev` is, and the check that its seq follows.

use ahash::AHashMap;
use rusqlite::{Connection, OptionalExtension as _};

use super::columns::{integer, signed};
use crate::protocol::ids::{Position, RoomKey, Seq};

/// Rooms that are kept in memory; past it all are forgotten and read again as they come.
const ROOMS_MAX: usize = 65_536;

/// The last entry of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub seq: Seq,
    pub position: Position,
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

    /// The room's next entry is (`seq`, `position`): gives the position of the one before, 0: none.
    ///
    /// # Errors
    /// SQLite's; `SQLITE_CORRUPT` when `seq` does not follow what stands.
    pub fn advance(
        &mut self,
        conn: &Connection,
        room: RoomKey,
        seq: Seq,
        position: Position,
    ) -> rusqlite::Result<Position> {
        let next = Head { seq, position };
        let last = match self.known.get_mut(&room) {
            Some(head) => std::mem::replace(head, next),
            None => {
                let last = read(conn, room)?.unwrap_or(Head { seq: 0, position: 0 });
                self.known.insert(room, next);
                last
            }
        };
        if seq != last.seq + 1 || position <= last.position {
            let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            let text = format!("room {}: seq {seq} does not follow {}", room.0, last.seq);
            return Err(rusqlite::Error::SqliteFailure(error, Some(text)));
        }
        if last.position < self.first {
            self.moved.push(room);
        }
        Ok(last.position)
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

fn read(conn: &Connection, room: RoomKey) -> rusqlite::Result<Option<Head>> {
    conn.prepare_cached("SELECT seq, position FROM heads WHERE room = ?1")?
        .query_row([signed(room.0)], |row| Ok(Head { seq: integer(row, 0)?, position: integer(row, 1)? }))
        .optional()
}
