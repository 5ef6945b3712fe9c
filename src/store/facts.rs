//! The sequencer's questions, answered by SQLite: each one a point look-up in the writer's own
//! transaction.

use rusqlite::{Connection, OptionalExtension as _};

use super::columns::{integer, role, room_columns, room_row, room_tables, signed};
use super::isolate::is_about_values;
use super::{edits, tallies};
use crate::engine::consistency::{Audit, Broken};
use crate::engine::dead::{DeadFilter, DeadLetter, LetterId};
use crate::engine::event::{Revocation, RoomRow};
use crate::engine::inbox::{Head, ItemId};
use crate::engine::sequencer::{Facts, LogEnd, Reacted, Target};
use crate::engine::tally::Tally;
use crate::protocol::ids::{DeviceId, Role, RoomKey, RoomName, Seq, UnixMillis, UserId};

/// Answers from one connection.
#[derive(Debug)]
pub(super) struct SqlFacts<'a>(pub &'a Connection);

impl Facts for SqlFacts<'_> {
    type Error = rusqlite::Error;

    fn room_by_key(&mut self, room: RoomKey) -> rusqlite::Result<Option<RoomRow>> {
        self.0
            .prepare_cached(concat!("SELECT ", room_columns!(), " FROM ", room_tables!(), " WHERE r.key = ?1"))?
            .query_row([signed(room.0)], room_row)
            .optional()
    }

    fn room_by_name(&mut self, name: &RoomName) -> rusqlite::Result<Option<RoomRow>> {
        self.0
            .prepare_cached(concat!("SELECT ", room_columns!(), " FROM ", room_tables!(), " WHERE r.name = ?1"))?
            .query_row([name.as_str()], room_row)
            .optional()
    }

    fn role(&mut self, room: RoomKey, user: &UserId) -> rusqlite::Result<Option<Role>> {
        self.0
            .prepare_cached("SELECT role FROM members WHERE room = ?1 AND user = ?2")?
            .query_row((signed(room.0), user.as_str()), |row| role(row.get(0)?))
            .optional()
    }

    fn memberships(&mut self, user: &UserId) -> rusqlite::Result<u32> {
        self.0
            .prepare_cached("SELECT count(*) FROM members WHERE user = ?1 AND role > 0")?
            .query_row([user.as_str()], |row| row.get(0))
    }

    fn owners(&mut self, room: RoomKey) -> rusqlite::Result<u32> {
        self.0
            .prepare_cached("SELECT count(*) FROM members WHERE room = ?1 AND role = 3")?
            .query_row([signed(room.0)], |row| row.get(0))
    }

    fn read_cursor(&mut self, room: RoomKey, user: &UserId) -> rusqlite::Result<Seq> {
        let read = self
            .0
            .prepare_cached("SELECT read FROM members WHERE user = ?1 AND room = ?2")?
            .query_row((user.as_str(), signed(room.0)), |row| integer(row, 0))
            .optional()?;
        Ok(read.unwrap_or(0))
    }

    fn tally_at(&mut self, room: RoomKey, seq: Seq) -> rusqlite::Result<Option<Tally>> {
        tallies::at(self.0, room, seq)
    }

    fn audit(&mut self, room: RoomKey, seq: Seq) -> rusqlite::Result<Result<Audit, Broken>> {
        super::audit::stretch(self.0, room, seq)
    }

    fn members(&mut self, room: RoomKey) -> rusqlite::Result<Vec<UserId>> {
        let mut statement = self.0.prepare_cached("SELECT user FROM members WHERE room = ?1 AND role > 0")?;
        let rows = statement.query_map([signed(room.0)], |row| super::columns::user(row.get_ref(0)?.as_str()?))?;
        rows.collect()
    }

    fn shared_rooms(&mut self, one: &UserId, other: &UserId) -> rusqlite::Result<Vec<RoomKey>> {
        let mut statement = self.0.prepare_cached(
            "SELECT a.room FROM members a JOIN members b ON b.user = ?2 AND b.room = a.room AND b.role > 0
             WHERE a.user = ?1 AND a.role > 0",
        )?;
        let rows = statement.query_map((one.as_str(), other.as_str()), |row| Ok(RoomKey(integer(row, 0)?)))?;
        rows.collect()
    }

    fn inbox(&mut self, user: &UserId) -> rusqlite::Result<Vec<Head>> {
        super::inbox::heads(self.0, user)
    }

    fn expired_items(&mut self, now: UnixMillis, max: u32) -> rusqlite::Result<Vec<(UserId, ItemId)>> {
        match super::inbox::expired(self.0, now, max) {
            // Nobody's append is about these: rows that are wrong are no reason to put one aside.
            Err(error) if is_about_values(&error) => {
                tracing::warn!(%error, "store: expired inbox items could not be looked for");
                Ok(Vec::new())
            }
            result => result,
        }
    }

    fn delivered_cursor(&mut self, room: RoomKey, user: &UserId, device: &DeviceId) -> rusqlite::Result<Seq> {
        let delivered = self
            .0
            .prepare_cached("SELECT seq FROM delivered WHERE user = ?1 AND room = ?2 AND device = ?3")?
            .query_row((user.as_str(), signed(room.0), device.as_str()), |row| integer(row, 0))
            .optional()?;
        Ok(delivered.unwrap_or(0).max(self.read_cursor(room, user)?))
    }

    fn target(&mut self, room: RoomKey, seq: Seq) -> rusqlite::Result<Option<Target>> {
        edits::target(self.0, room, seq)
    }

    fn reacted(&mut self, room: RoomKey, seq: Seq, emoji: &str, user: &UserId) -> rusqlite::Result<Reacted> {
        edits::reacted(self.0, room, seq, emoji, user)
    }

    fn reaction_kinds(&mut self, room: RoomKey, seq: Seq) -> rusqlite::Result<u32> {
        edits::reaction_kinds(self.0, room, seq)
    }

    fn dead_letter(&mut self, id: LetterId) -> rusqlite::Result<Option<DeadLetter>> {
        Ok(super::dead::page(self.0, &DeadFilter::one(id), 0, 1)?.0.pop())
    }

    fn dead_count(&mut self, filter: &DeadFilter) -> rusqlite::Result<u64> {
        super::dead::count(self.0, filter)
    }
}

/// Where the log ends.
pub(super) fn log_end(conn: &Connection) -> rusqlite::Result<LogEnd> {
    let last = conn
        .prepare_cached("SELECT position, ts FROM log ORDER BY position DESC LIMIT 1")?
        .query_row([], |row| Ok((integer(row, 0)?, integer(row, 1)?)))
        .optional()?;
    let (position, ts) = last.unwrap_or((0, 0));
    let room_key =
        conn.prepare_cached("SELECT coalesce(max(key), 0) FROM rooms")?.query_row([], |row| integer(row, 0))?;
    let item = super::inbox::last_id(conn)?;
    Ok(LogEnd { position, room_key, ts, item })
}

/// Every revocation that stands, in order of its first appearance.
pub(super) fn revocations(conn: &Connection) -> rusqlite::Result<Vec<Revocation>> {
    let mut statement = conn.prepare("SELECT jti, user, before, expires_ts FROM revocations ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let jti: Option<Box<str>> = row.get(0)?;
        match jti {
            Some(jti) if row.get_ref(3)? == rusqlite::types::ValueRef::Null => Ok(Revocation::Jti(jti)),
            Some(jti) => Ok(Revocation::JtiUntil(jti, integer(row, 3)?)),
            None => Ok(Revocation::UserBefore(super::columns::user(row.get_ref(1)?.as_str()?)?, integer(row, 2)?)),
        }
    })?;
    rows.collect()
}

/// Deletes revocations of tokens that are refused for their age anyhow.
pub(super) fn forget_revocations(conn: &Connection, now: UnixMillis) -> rusqlite::Result<usize> {
    let before = now.saturating_sub(crate::engine::auth::REVOKED_SLACK_MS);
    conn.execute("DELETE FROM revocations WHERE expires_ts < ?1", [signed(before)])
}

/// True when this revocation, or a wider one, stands.
pub(super) fn is_revoked(conn: &Connection, revocation: &Revocation) -> rusqlite::Result<bool> {
    match revocation {
        Revocation::Jti(jti) | Revocation::JtiUntil(jti, _) => {
            conn.prepare_cached("SELECT 1 FROM revocations WHERE jti = ?1")?.exists([jti])
        }
        Revocation::UserBefore(user, before) => conn
            .prepare_cached("SELECT 1 FROM revocations WHERE user = ?1 AND before >= ?2")?
            .exists((user.as_str(), signed(*before))),
    }
}
