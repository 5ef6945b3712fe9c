//! A stretch of a room's entries, counted again: from the anchor before an entry up to the next one, or
//! to the head. At most 64 rows are read, unless the head row points nowhere: then the room's last entry
//! is looked for, from the end of the log back.
//!
//! What does not add up is an answer here and not an error: whoever asks wants to know.

use rusqlite::{Connection, OptionalExtension as _};

use super::columns::{hash_bits, integer, signed};
use super::heads::{Head, Heads};
use super::schema::ANCHOR_EVERY;
use super::tallies::{Link, Mark, anchor, head, link, start};
use crate::engine::consistency::{Audit, Broken};
use crate::engine::sequencer::HeadRow;
use crate::protocol::ids::{Position, RoomKey, Seq};

type Answer<T> = rusqlite::Result<Result<T, Broken>>;

/// The stretch of `room` that has the entry `seq`.
///
/// # Errors
/// SQLite's, when it cannot read.
pub(super) fn stretch(conn: &Connection, room: RoomKey, seq: Seq) -> Answer<Audit> {
    let base = seq.saturating_sub(1) / ANCHOR_EVERY * ANCHOR_EVERY;
    let below = match base {
        0 => start(conn, room)?.map(|tally| Mark { seq: 0, position: 0, tally }),
        base => anchor(conn, room, base)?,
    };
    let Some(below) = below else { return broken(base, "its anchor is missing") };
    let Some((end, is_head, is_noted)) = end_of_stretch(conn, room, seq, below)? else {
        return broken(base + 1, "the entries are missing");
    };
    let mut links: Vec<Link> = Vec::with_capacity(ANCHOR_EVERY as usize);
    let (mut expected, mut position) = (end.seq, end.position);
    while expected > below.seq {
        let Some(link) = look(conn, position)? else { return broken(expected, "an entry is missing") };
        if (link.room, link.seq) != (room, expected) {
            return broken(expected, "an entry is not where it should be");
        }
        (expected, position) = (expected - 1, link.prev);
        links.push(link);
    }
    if position != below.position {
        return broken(below.seq, "the entries do not lead back to their anchor");
    }
    let mut counted = below.tally;
    let mut here = None;
    for link in links.iter().rev() {
        counted.add(link.seq, link.ts, link.kind);
        if link.seq == seq {
            here = Some(counted);
        }
    }
    if seq == 0 && end.seq == 0 {
        here = Some(counted);
    }
    let noted = is_noted.then_some(end.tally);
    Ok(Ok(Audit { is_head, noted, last: (end.seq, end.position), counted, here }))
}

/// Where the stretch ends, whether that is the room's head, and whether something is noted there.
fn end_of_stretch(
    conn: &Connection,
    room: RoomKey,
    seq: Seq,
    below: Mark,
) -> rusqlite::Result<Option<(Mark, bool, bool)>> {
    let noted = head(conn, room).or_else(unreadable)?;
    let points_at = |mark: &Mark| match look(conn, mark.position) {
        Ok(link) => Ok(link.is_some_and(|link| (link.room, link.seq) == (room, mark.seq))),
        Err(error) => Err(error),
    };
    if let Some(noted) = noted
        && noted.seq >= seq
        && points_at(&noted)?
    {
        let next = below.seq + ANCHOR_EVERY;
        if next < noted.seq {
            return Ok(anchor(conn, room, next)?.map(|mark| (mark, false, true)));
        }
        return Ok(Some((noted, true, true)));
    }
    let last = last_entry(conn, room, below.position)?;
    Ok(match last {
        // The head row may still be right: then it is the asker who is ahead.
        Some((seq, position)) if seq >= below.seq && seq <= below.seq + ANCHOR_EVERY => {
            let is_noted = noted.is_some_and(|noted| (noted.seq, noted.position) == (seq, position));
            let tally = noted.map_or(below.tally, |noted| noted.tally);
            Some((Mark { seq, position, tally }, true, is_noted))
        }
        None if below.seq == 0 && noted.is_none() => Some((below, true, true)),
        _ => None,
    })
}

/// The last entry of a room, none of which after `from` is an error of nobody's.
fn last_entry(conn: &Connection, room: RoomKey, from: Position) -> rusqlite::Result<Option<(Seq, Position)>> {
    conn.prepare_cached(
        "SELECT seq, position FROM log WHERE position >= ?2 AND room = ?1 ORDER BY position DESC LIMIT 1",
    )?
    .query_row((signed(room.0), signed(from)), |row| Ok((integer(row, 0)?, integer(row, 1)?)))
    .optional()
}

/// The row at a position, if there is one that can be read.
fn look(conn: &Connection, position: Position) -> rusqlite::Result<Option<Link>> {
    link(conn, position).or_else(unreadable)
}

/// Values that nobody writes are as good as none.
fn unreadable<T>(error: rusqlite::Error) -> rusqlite::Result<Option<T>> {
    match error {
        rusqlite::Error::IntegralValueOutOfRange(..) | rusqlite::Error::InvalidColumnType(..) => Ok(None),
        error => Err(error),
    }
}

fn broken<T>(seq: Seq, what: &'static str) -> Answer<T> {
    Ok(Err(Broken { seq, what }))
}

/// Writes the head rows that the core has put right, before anything else of the batch.
pub(super) fn write(conn: &Connection, heads: &mut Heads, mended: &[HeadRow]) -> rusqlite::Result<()> {
    for row in mended {
        let (messages, hash) = (signed(row.tally.messages), hash_bits(row.tally));
        conn.prepare_cached(
            "INSERT INTO heads (room, seq, position, messages, hash) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (room) DO UPDATE SET seq = excluded.seq, position = excluded.position,
             messages = excluded.messages, hash = excluded.hash",
        )?
        .execute((signed(row.room.0), signed(row.seq), signed(row.position), messages, hash))?;
        heads.put(row.room, Head { seq: row.seq, position: row.position, tally: row.tally });
    }
    Ok(())
}
