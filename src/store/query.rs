//! The shards' questions, each answered from a snapshot. Every answer is bounded.

use std::cell::OnceCell;
use std::sync::Once;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row};

use super::columns::{ROOM_COLUMNS, integer, role, room_columns, room_row, room_tables, signed, user};
use super::facts::SqlFacts;
use super::history::{self, Ask};
use super::isolate::is_about_values;
use super::{audit, tallies};
use crate::engine::auth::{self, Names};
use crate::engine::event::{DELIVERED_MAX, Membership, Page, Query, RoomRow};
use crate::engine::sequencer::Facts as _;
use crate::protocol::ids::{DeviceId, Position, Role, RoomKey, RoomKind, RoomName, Seq, UserId};

/// Most rows of any page, whatever is asked for.
const LIMIT_MAX: u32 = 10_000;

/// Answers one question.
pub(super) fn answer(snapshot: &Snapshot<'_>, query: &Query) -> rusqlite::Result<Page> {
    Ok(match query {
        Query::User(user) => user_page(snapshot, user)?,
        Query::Room(name) => {
            let at = snapshot.position()?;
            Page::Room { at, room: SqlFacts(snapshot).room_by_name(name)? }
        }
        Query::History { room, after, before, newest, thread, current, limit, bytes_max } => {
            let ask = Ask {
                room: *room,
                after: *after,
                before: *before,
                newest: *newest,
                thread: *thread,
                current: *current,
                limit: (*limit).clamp(1, LIMIT_MAX),
                bytes_max: *bytes_max,
            };
            history::page(snapshot, &ask)?
        }
        Query::Members { room, after, limit } => members(snapshot, *room, after.as_ref(), *limit)?,
        Query::PresenceHistory(ask) => Page::PresenceHistory(super::presence::history(snapshot, ask)?),
        Query::PresenceAnalytics { now, hours } => {
            Page::PresenceAnalytics(Box::new(super::presence::analytics(snapshot, *now, *hours)?))
        }
        Query::Tallies(of) => {
            let at = of.iter().map(|(room, seq)| tallies::at(snapshot, *room, *seq));
            Page::Tallies(at.collect::<rusqlite::Result<_>>()?)
        }
        Query::Audit { room, seq } => Page::Audit(audit::stretch(snapshot, *room, *seq)?),
        Query::DeadLetters { filter, after, limit } => {
            let (letters, more) = super::dead::page(snapshot, filter, *after, (*limit).clamp(1, LIMIT_MAX))?;
            Page::DeadLetters { letters, more }
        }
        Query::Rooms { user, within, kind, after, limit } => {
            rooms(snapshot, user, within, *kind, after.as_ref(), *limit)?
        }
    })
}

/// One deferred transaction, within which everything sees the same commit. Its statements are kept like
/// all others: to parse them anew costs as much as a small answer.
pub(super) struct Snapshot<'a> {
    conn: &'a Connection,
    /// Where its log ends, once somebody has asked.
    position: OnceCell<Position>,
}

impl<'a> Snapshot<'a> {
    pub fn open(conn: &'a Connection) -> rusqlite::Result<Self> {
        super::run(conn, "BEGIN DEFERRED")?;
        Ok(Self { conn, position: OnceCell::new() })
    }

    fn position(&self) -> rusqlite::Result<Position> {
        if let Some(known) = self.position.get() {
            return Ok(*known);
        }
        let mut statement = self.conn.prepare_cached("SELECT coalesce(max(position), 0) FROM log")?;
        let position = statement.query_row([], |row| integer(row, 0))?;
        Ok(*self.position.get_or_init(|| position))
    }
}

impl std::ops::Deref for Snapshot<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        // Nothing was written: whatever became of the question, there is nothing to take back.
        if let Err(error) = super::run(self.conn, "COMMIT") {
            tracing::warn!(%error, "store: a snapshot could not be ended");
        }
    }
}

fn user_page(snapshot: &Snapshot<'_>, user: &UserId) -> rusqlite::Result<Page> {
    let (at, conn) = (snapshot.position()?, snapshot.conn);
    let mut statement = conn.prepare_cached(concat!(
        "SELECT ",
        room_columns!(),
        ", m.role, m.read, m.counted
         FROM members m JOIN rooms r ON r.key = m.room LEFT JOIN heads h ON h.room = r.key
         WHERE m.user = ?1 AND m.role > 0 ORDER BY m.room"
    ))?;
    let rows = statement.query_map([user.as_str()], |row| {
        Ok(Membership {
            room: room_row(row)?,
            role: role(row.get(ROOM_COLUMNS)?)?,
            read: integer(row, ROOM_COLUMNS + 1)?,
            counted: integer(row, ROOM_COLUMNS + 2)?,
            deleted: Vec::new(),
        })
    })?;
    let mut memberships: Vec<Membership> = readable(rows)?;
    for membership in memberships.iter_mut().filter(|of| of.counted < of.room.tally.messages) {
        membership.deleted = tallies::deleted_after(conn, membership.room.key, membership.read)?;
    }
    let inbox = super::inbox::waiting(conn, user)?;
    Ok(Page::User { at, memberships, bans: bans(conn, user)?, inbox, delivered: delivered(conn, user)? })
}

/// All of them, whatever their number: a ban that was left out would be none.
fn bans(conn: &Connection, user: &UserId) -> rusqlite::Result<Vec<RoomKey>> {
    let mut statement = conn.prepare_cached("SELECT room FROM members WHERE user = ?1 AND role = 0 ORDER BY room")?;
    let rows = statement.query_map([user.as_str()], |row| Ok(RoomKey(integer(row, 0)?)))?;
    rows.collect()
}

/// What the user's devices have beyond what is read.
fn delivered(conn: &Connection, user: &UserId) -> rusqlite::Result<Vec<(RoomKey, DeviceId, Seq)>> {
    let mut statement = conn.prepare_cached(
        "SELECT d.room, d.device, d.seq FROM delivered d LEFT JOIN members m ON m.user = d.user AND m.room = d.room
         WHERE d.user = ?1 AND d.seq > coalesce(m.read, 0) ORDER BY d.room DESC LIMIT ?2",
    )?;
    let rows = statement.query_map((user.as_str(), DELIVERED_MAX), |row| {
        let device = DeviceId::parse(row.get_ref(1)?.as_str()?)
            .map_err(|_| rusqlite::Error::InvalidColumnName("device".to_owned()))?;
        Ok((RoomKey(integer(row, 0)?), device, integer(row, 2)?))
    })?;
    rows.collect()
}

fn members(conn: &Connection, room: RoomKey, after: Option<&UserId>, limit: u32) -> rusqlite::Result<Page> {
    let limit = limit.clamp(1, LIMIT_MAX);
    let mut statement = conn.prepare_cached(
        "SELECT user, role FROM members WHERE room = ?1 AND user > ?2 AND role > 0 ORDER BY user LIMIT ?3",
    )?;
    let after = after.map_or("", UserId::as_str);
    let rows = statement.query_map((signed(room.0), after, limit + 1), |row| {
        Ok((user(row.get_ref(0)?.as_str()?)?, role(row.get(1)?)?))
    })?;
    let mut members: Vec<(UserId, Role)> = rows.collect::<rusqlite::Result<_>>()?;
    let more = members.len() > limit as usize;
    members.truncate(limit as usize);
    Ok(Page::Members { members, more })
}

/// Two ordered streams, each served by an index and so bounded by the page (and the user's own
/// rooms), merged: public rooms by name, and the user's other rooms by name.
fn rooms(
    conn: &Connection,
    user: &UserId,
    within: &[Names],
    kind: Option<RoomKind>,
    after: Option<&RoomName>,
    limit: u32,
) -> rusqlite::Result<Page> {
    let limit = limit.clamp(1, LIMIT_MAX);
    let from = after.map_or_else(Box::default, |after| auth::after(after.as_str()));
    let mut rooms: Vec<(RoomRow, Option<Role>)> = Vec::new();
    let mut more = false;
    if kind.is_none_or(|kind| kind == RoomKind::Public) {
        let mut public = conn.prepare_cached(concat!(
            "SELECT ",
            room_columns!(),
            ", m.role FROM ",
            room_tables!(),
            " LEFT JOIN members m ON m.room = r.key AND m.user = ?1
             WHERE r.kind = 0 AND r.name >= ?2 AND r.name < ?3 AND coalesce(m.role, 1) > 0 ORDER BY r.name LIMIT ?4"
        ))?;
        let mut seen = 0;
        for names in within.iter().filter(|names| names.until.as_ref().is_none_or(|until| *until > from)) {
            // In the order of SQLite every blob comes after every text.
            let until = names.until.as_deref().map_or(ValueRef::Blob(&[]), ValueRef::from);
            let asked = (user.as_str(), &**(&names.from).max(&from), ToSqlOutput::Borrowed(until), limit + 1 - seen);
            let rows = public.query_map(asked, room_and_role)?;
            rooms.extend(readable(rows.inspect(|_| seen += 1))?);
            more = seen > limit;
            if more {
                break;
            }
        }
    }
    if kind != Some(RoomKind::Public) {
        let mut own = conn.prepare_cached(concat!(
            "SELECT ",
            room_columns!(),
            ", m.role FROM members m JOIN rooms r ON r.key = m.room LEFT JOIN heads h ON h.room = r.key
             WHERE m.user = ?1 AND m.role > 0 AND r.kind > 0 AND r.name >= ?2 ORDER BY r.name"
        ))?;
        let rows = own.query_map((user.as_str(), &*from), room_and_role)?;
        let is_asked = |room: &RoomRow| {
            kind.is_none_or(|kind| room.kind == kind) && within.iter().any(|names| names.contain(room.name.as_str()))
        };
        rooms.extend(readable(rows)?.into_iter().filter(|(room, _)| is_asked(room)));
    }
    rooms.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    more |= rooms.len() > limit as usize;
    rooms.truncate(limit as usize);
    Ok(Page::Rooms { rooms, more })
}

/// Rooms that can be read. One that cannot be is left out: its members have others.
fn readable<T>(rows: impl Iterator<Item = rusqlite::Result<T>>) -> rusqlite::Result<Vec<T>> {
    static TOLD: Once = Once::new();
    let is_left_out = |row: &rusqlite::Result<T>| match row {
        Err(error) if is_about_values(error) => {
            // Once in the life of a process: whoever connects meets it again.
            TOLD.call_once(|| {
                tracing::error!(%error, "store: a room cannot be read and is left out, as are others like it");
            });
            true
        }
        _ => false,
    };
    rows.filter(|row| !is_left_out(row)).collect()
}

fn room_and_role(row: &Row<'_>) -> rusqlite::Result<(RoomRow, Option<Role>)> {
    let number: Option<u8> = row.get(ROOM_COLUMNS)?;
    Ok((room_row(row)?, number.map(role).transpose()?))
}
