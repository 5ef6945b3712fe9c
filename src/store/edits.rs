//! How messages stand after edits, deletions and reactions: two tables beside the log, written with
//! the entries that change them, read by the sequencer's questions and by history.
//!
//! A message that nobody touched has no row.

use rusqlite::{Connection, OptionalExtension as _};

use super::columns::{audience, integer, signed, user};
use super::history::position_of;
use crate::engine::edits::MessageState;
use crate::engine::sequencer::{Decided, Reacted, Target};
use crate::protocol::encode::EventKind;
use crate::protocol::ids::{Position, RoomKey, Seq, UserId};

/// Writes what the batch decided, within the caller's transaction.
pub(super) fn write(conn: &Connection, decided: &Decided) -> rusqlite::Result<()> {
    if decided.states.is_empty() && decided.reactions.is_empty() {
        return Ok(());
    }
    let mut state = conn.prepare_cached(
        "INSERT INTO message_state (room, seq, position, version, deleted, edited_ts, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (room, seq) DO UPDATE SET version = excluded.version, deleted = excluded.deleted,
         edited_ts = excluded.edited_ts, body = excluded.body WHERE excluded.version > version",
    )?;
    for row in &decided.states {
        state.execute(rusqlite::params![
            signed(row.room.0),
            signed(row.target),
            signed(row.position),
            signed(row.state.version),
            row.state.deleted,
            signed(row.state.edited_ts),
            row.state.body_json.as_deref(),
        ])?;
    }
    let mut add = conn.prepare_cached("INSERT INTO reactions (room, seq, emoji, user) VALUES (?1, ?2, ?3, ?4)")?;
    let mut remove =
        conn.prepare_cached("DELETE FROM reactions WHERE room = ?1 AND seq = ?2 AND emoji = ?3 AND user = ?4")?;
    let mut count = conn.prepare_cached(
        "INSERT INTO reaction_counts (room, seq, emoji, count) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (room, seq, emoji) DO UPDATE SET count = excluded.count",
    )?;
    let mut none = conn.prepare_cached("DELETE FROM reaction_counts WHERE room = ?1 AND seq = ?2 AND emoji = ?3")?;
    for row in &decided.reactions {
        let (room, seq) = (signed(row.room.0), signed(row.target));
        let change = if row.is_added { &mut add } else { &mut remove };
        change.execute((room, seq, &*row.emoji, row.user.as_str()))?;
        match row.count {
            0 => none.execute((room, seq, &*row.emoji))?,
            standing => count.execute((room, seq, &*row.emoji, standing))?,
        };
    }
    Ok(())
}

/// The message `seq` of a room, with how it stands.
pub(super) fn target(conn: &Connection, room: RoomKey, seq: Seq) -> rusqlite::Result<Option<Target>> {
    let known = state_and_position(conn, room, seq)?;
    let (position, state) = match known {
        Some(known) => known,
        None => match position_of(conn, room, seq)? {
            Some(position) => (position, MessageState::default()),
            None => return Ok(None),
        },
    };
    conn.prepare_cached("SELECT author, audience FROM log WHERE position = ?1 AND kind = ?2 AND author IS NOT NULL")?
        .query_row((signed(position), EventKind::MessageCreated as u8), |row| {
            let audience = row.get_ref(1)?.as_str_or_null()?.map(audience).transpose()?;
            Ok(Target { position, author: user(row.get_ref(0)?.as_str()?)?, audience, state: state.clone() })
        })
        .optional()
}

/// How a message stands, if anybody touched it.
pub(super) fn state(conn: &Connection, room: RoomKey, seq: Seq) -> rusqlite::Result<Option<MessageState>> {
    Ok(state_and_position(conn, room, seq)?.map(|(_, state)| state))
}

fn state_and_position(
    conn: &Connection,
    room: RoomKey,
    seq: Seq,
) -> rusqlite::Result<Option<(Position, MessageState)>> {
    conn.prepare_cached(
        "SELECT position, version, deleted, edited_ts, body FROM message_state WHERE room = ?1 AND seq = ?2",
    )?
    .query_row((signed(room.0), signed(seq)), |row| {
        let (version, edited_ts) = (integer(row, 1)?, integer(row, 3)?);
        Ok((integer(row, 0)?, MessageState { version, deleted: row.get(2)?, edited_ts, body_json: row.get(4)? }))
    })
    .optional()
}

/// True when any message of the room was ever touched.
pub(super) fn is_touched(conn: &Connection, room: RoomKey) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM message_state WHERE room = ?1 LIMIT 1")?.exists([signed(room.0)])
}

/// The reactions to a message and how many have each, ascending by the bytes of the emoji.
pub(super) fn reaction_counts(conn: &Connection, room: RoomKey, seq: Seq) -> rusqlite::Result<Vec<(Box<str>, u32)>> {
    conn.prepare_cached("SELECT emoji, count FROM reaction_counts WHERE room = ?1 AND seq = ?2 ORDER BY emoji")?
        .query_map((signed(room.0), signed(seq)), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// How many different reactions a message has.
pub(super) fn reaction_kinds(conn: &Connection, room: RoomKey, seq: Seq) -> rusqlite::Result<u32> {
    conn.prepare_cached("SELECT count(*) FROM reaction_counts WHERE room = ?1 AND seq = ?2")?
        .query_row((signed(room.0), signed(seq)), |row| row.get(0))
}

/// About one reaction to a message.
pub(super) fn reacted(
    conn: &Connection,
    room: RoomKey,
    seq: Seq,
    emoji: &str,
    user: &UserId,
) -> rusqlite::Result<Reacted> {
    let count = conn
        .prepare_cached("SELECT count FROM reaction_counts WHERE room = ?1 AND seq = ?2 AND emoji = ?3")?
        .query_row((signed(room.0), signed(seq), emoji), |row| row.get(0))
        .optional()?
        .unwrap_or(0);
    let is_there = conn
        .prepare_cached("SELECT 1 FROM reactions WHERE room = ?1 AND seq = ?2 AND emoji = ?3 AND user = ?4")?
        .exists((signed(room.0), signed(seq), emoji, user.as_str()))?;
    Ok(Reacted { is_there, count })
}
