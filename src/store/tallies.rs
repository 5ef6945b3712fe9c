//! What a room's entries come to at any of them: kept with each room's head and with every 64th entry,
//! and found in between by walking back from there. Also how databases from before got these columns.

use ahash::AHashMap;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::columns::{hash_bits, integer, signed, tally};
use super::heads::misplaced;
use super::schema::ANCHOR_EVERY;
use crate::engine::event::DELETED_MAX;
use crate::engine::tally::Tally;
use crate::protocol::encode::EventKind;
use crate::protocol::ids::{Position, RoomKey, Seq, UnixMillis};

/// One entry of a room, where it stands, and what the entries up to it come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub seq: Seq,
    pub position: Position,
    pub tally: Tally,
}

/// One row of the log, as far as a tally is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub room: RoomKey,
    pub seq: Seq,
    pub prev: Position,
    pub ts: UnixMillis,
    pub kind: EventKind,
}

/// What the entries of a room up to and with `seq` come to; none when there is no such entry. Reads at
/// most 63 rows of the log.
///
/// # Errors
/// SQLite's; a [`BrokenChain`](super::heads::BrokenChain) when the rows are not where they should be.
pub(super) fn at(conn: &Connection, room: RoomKey, seq: Seq) -> rusqlite::Result<Option<Tally>> {
    if seq == 0 {
        return start(conn, room);
    }
    let Some(head) = head(conn, room)?.filter(|head| seq <= head.seq) else { return Ok(None) };
    let anchored = seq.next_multiple_of(ANCHOR_EVERY);
    let mut mark = if anchored < head.seq { anchor(conn, room, anchored)?.unwrap_or(head) } else { head };
    while mark.seq > seq {
        let is_it = |link: &Link| (link.room, link.seq) == (room, mark.seq) && link.prev != 0;
        let link = link(conn, mark.position)?.filter(is_it).ok_or_else(|| misplaced(room, mark.position))?;
        mark.tally.take_back(link.seq, link.ts, link.kind);
        (mark.seq, mark.position) = (link.seq - 1, link.prev);
    }
    Ok(Some(mark.tally))
}

/// The tally of a room before its first entry; none when there is no such room.
pub(super) fn start(conn: &Connection, room: RoomKey) -> rusqlite::Result<Option<Tally>> {
    conn.prepare_cached("SELECT name FROM rooms WHERE key = ?1")?
        .query_row([signed(room.0)], |row| Ok(Tally::start(row.get_ref(0)?.as_str()?)))
        .optional()
}

pub(super) fn head(conn: &Connection, room: RoomKey) -> rusqlite::Result<Option<Mark>> {
    conn.prepare_cached("SELECT seq, position, messages, hash FROM heads WHERE room = ?1")?
        .query_row([signed(room.0)], mark)
        .optional()
}

pub(super) fn anchor(conn: &Connection, room: RoomKey, seq: Seq) -> rusqlite::Result<Option<Mark>> {
    conn.prepare_cached("SELECT seq, position, messages, hash FROM anchors WHERE room = ?1 AND seq = ?2")?
        .query_row((signed(room.0), signed(seq)), mark)
        .optional()
}

fn mark(row: &Row<'_>) -> rusqlite::Result<Mark> {
    Ok(Mark { seq: integer(row, 0)?, position: integer(row, 1)?, tally: tally(row, 2)? })
}

/// The row at a position, if there is one.
pub(super) fn link(conn: &Connection, position: Position) -> rusqlite::Result<Option<Link>> {
    conn.prepare_cached("SELECT room, seq, prev, ts, kind FROM log WHERE position = ?1")?
        .query_row([signed(position)], |row| {
            let (room, seq, prev) = (RoomKey(integer(row, 0)?), integer(row, 1)?, integer(row, 2)?);
            Ok(Link { room, seq, prev, ts: integer(row, 3)?, kind: kind(row, 4)? })
        })
        .optional()
}

fn kind(row: &Row<'_>, index: usize) -> rusqlite::Result<EventKind> {
    let number: u8 = row.get(index)?;
    EventKind::from_number(number).ok_or(rusqlite::Error::IntegralValueOutOfRange(index, number.into()))
}

/// Tombstones of a room behind `seq`, ascending: the newest [`DELETED_MAX`].
pub(super) fn deleted_after(conn: &Connection, room: RoomKey, seq: Seq) -> rusqlite::Result<Vec<Seq>> {
    let mut statement = conn.prepare_cached(
        "SELECT seq FROM message_state INDEXED BY message_deleted
         WHERE deleted = 1 AND room = ?1 AND seq > ?2 ORDER BY seq DESC LIMIT ?3",
    )?;
    let rows = statement.query_map((signed(room.0), signed(seq), DELETED_MAX as u32), |row| integer(row, 0))?;
    let mut found: Vec<Seq> = rows.collect::<rusqlite::Result<_>>()?;
    found.reverse();
    Ok(found)
}

/// Fills the tallies of a database that had none, in one pass over the log, and begins the read cursors
/// of members where they came in, as is done for new ones. About a second for a million entries.
///
/// # Errors
/// SQLite's.
pub(super) fn fill(conn: &Connection) -> rusqlite::Result<()> {
    let mut cursors = Cursors::read(conn)?;
    let mut rooms: AHashMap<i64, Tally> = AHashMap::new();
    let mut names = conn.prepare("SELECT key, name FROM rooms")?;
    let mut rows = names.query([])?;
    while let Some(row) = rows.next()? {
        rooms.insert(row.get(0)?, Tally::start(row.get_ref(1)?.as_str()?));
    }
    let mut anchor = conn.prepare("UPDATE anchors SET messages = ?3, hash = ?4 WHERE room = ?1 AND seq = ?2")?;
    let mut log = conn.prepare(
        "SELECT room, seq, ts, kind, CASE WHEN kind BETWEEN 4 AND 7 THEN fields END FROM log ORDER BY position",
    )?;
    let mut rows = log.query([])?;
    while let Some(row) = rows.next()? {
        let (room, seq): (i64, i64) = (row.get(0)?, row.get(1)?);
        let Some(tally) = rooms.get_mut(&room) else { continue };
        tally.add(integer(row, 1)?, integer(row, 2)?, kind(row, 3)?);
        if seq % signed(ANCHOR_EVERY) == 0 {
            anchor.execute((room, seq, signed(tally.messages), hash_bits(*tally)))?;
        }
        if let Some(fields) = row.get_ref(4)?.as_str_or_null()? {
            cursors.on_change(room, seq, kind(row, 3)?, fields);
        }
        cursors.on_entry(room, seq, tally.messages);
    }
    let mut head = conn.prepare("UPDATE heads SET messages = ?2, hash = ?3 WHERE room = ?1")?;
    for (room, tally) in &rooms {
        head.execute((room, signed(tally.messages), hash_bits(*tally)))?;
    }
    cursors.write(conn)
}

/// The read cursors of a database, while their messages are being counted.
struct Cursors {
    /// Entries that a cursor stands at, and the messages up to them once they were met.
    counted: AHashMap<(i64, i64), u64>,
    /// Where each member came in last.
    joined: AHashMap<(i64, Box<str>), i64>,
}

impl Cursors {
    fn read(conn: &Connection) -> rusqlite::Result<Self> {
        let mut counted = AHashMap::new();
        let mut statement = conn.prepare("SELECT DISTINCT room, read FROM cursors")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            counted.insert((row.get(0)?, row.get(1)?), 0);
        }
        Ok(Self { counted, joined: AHashMap::new() })
    }

    /// An entry about a membership. A role is also changed to lift a ban: then its user is not in.
    fn on_change(&mut self, room: i64, seq: i64, kind: EventKind, fields: &str) {
        let rest = fields.strip_prefix("\"user\":\"");
        let Some((user, _)) = rest.and_then(|rest| rest.split_once('"')) else { return };
        let pair = (room, Box::from(user));
        match kind {
            EventKind::RoomLeft | EventKind::RoomKicked => {
                self.joined.remove(&pair);
            }
            EventKind::RoomRoleChanged if self.joined.contains_key(&pair) => {}
            _ => {
                self.joined.insert(pair, seq);
                self.counted.entry((room, seq)).or_insert(0);
            }
        }
    }

    fn on_entry(&mut self, room: i64, seq: i64, messages: u64) {
        if let Some(counted) = self.counted.get_mut(&(room, seq)) {
            *counted = messages;
        }
    }

    fn write(self, conn: &Connection) -> rusqlite::Result<()> {
        let mut theirs = conn.prepare("SELECT user, room, read FROM cursors")?;
        let mut update = conn.prepare("UPDATE cursors SET counted = ?3 WHERE user = ?1 AND room = ?2")?;
        let rows = theirs.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let all: Vec<(String, i64, i64)> = rows.collect::<rusqlite::Result<_>>()?;
        for (user, room, read) in all {
            let counted = self.counted.get(&(room, read)).copied().unwrap_or(0);
            update.execute((user, room, signed(counted)))?;
        }
        let mut begin = conn.prepare(
            "INSERT INTO cursors (user, room, read, counted)
             SELECT user, room, ?3, ?4 FROM members WHERE user = ?1 AND room = ?2 AND role > 0
             ON CONFLICT (user, room) DO UPDATE SET read = excluded.read, counted = excluded.counted
             WHERE excluded.read > read",
        )?;
        for ((room, user), seq) in &self.joined {
            let counted = self.counted.get(&(*room, *seq)).copied().unwrap_or(0);
            begin.execute((&**user, room, seq, signed(counted)))?;
        }
        Ok(())
    }
}
