//! Writes a decided batch. No decision is taken here: what stands in [`Decided`] becomes rows.

use rusqlite::{CachedStatement, Connection};

use super::columns::{hash_bits, priority_number, role_number, room_kind_number, signed};
use super::heads::Heads;
use super::schema::ANCHOR_EVERY;
use super::{audit, edits};
use crate::engine::event::{Audience, Revocation};
use crate::engine::sequencer::{Decided, Row};
use crate::protocol::ids::{Position, Role, UnixMillis, UserId};

/// Devices of a user whose delivered cursors in one room are kept.
pub(super) const DELIVERED_DEVICES_MAX: u32 = 32;

/// Writes everything, within the caller's transaction.
pub(super) fn write(conn: &Connection, heads: &mut Heads, decided: &Decided) -> rusqlite::Result<()> {
    if !decided.rooms.is_empty() {
        write_rooms(conn, decided)?;
    }
    audit::write(conn, heads, &decided.mended)?;
    if !decided.rows.is_empty() {
        write_log(conn, heads, decided)?;
    }
    if !decided.members.is_empty() {
        write_members(conn, decided)?;
    }
    if !decided.cursors.is_empty() {
        write_cursors(conn, decided)?;
    }
    if !decided.members.is_empty() {
        // Behind the cursors: the batch may have both.
        forget_delivered(conn, decided)?;
    }
    edits::write(conn, decided)?;
    for revocation in &decided.revocations {
        write_revocation(conn, revocation, decided.ts)?;
    }
    if !decided.inbox.is_empty() {
        super::inbox::write(conn, &decided.inbox, decided.ts)?;
    }
    if !decided.presence.is_empty() {
        super::presence::write(conn, &decided.presence)?;
    }
    super::dead::write(conn, &decided.dead)?;
    Ok(())
}

fn write_log(conn: &Connection, heads: &mut Heads, decided: &Decided) -> rusqlite::Result<()> {
    // OR FAIL: the caller rolls everything back on an error, so SQLite need not keep a statement journal.
    let insert = conn.prepare_cached(
        "INSERT OR FAIL INTO log
         (position, room, seq, prev, author, client_id, fields, ts, kind, priority, thread, audience)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    let mut insert = LogInsert { insert, before: None };
    let mut anchor = conn.prepare_cached(
        "INSERT OR FAIL INTO anchors (room, seq, position, messages, hash) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    heads.begin(decided.first);
    for (row, position) in decided.rows.iter().zip(decided.first..) {
        let (prev, head) = heads.advance(conn, row, position, decided.ts)?;
        insert.row(row, position, prev, decided.ts)?;
        if row.seq.is_multiple_of(ANCHOR_EVERY) {
            let (messages, hash) = (signed(head.tally.messages), hash_bits(head.tally));
            anchor.execute((signed(row.room.0), signed(row.seq), signed(position), messages, hash))?;
        }
    }
    let mut upsert = conn.prepare_cached(
        "INSERT INTO heads (room, seq, position, messages, hash) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (room) DO UPDATE SET seq = excluded.seq, position = excluded.position,
         messages = excluded.messages, hash = excluded.hash",
    )?;
    for (room, head) in heads.moved() {
        let (messages, hash) = (signed(head.tally.messages), hash_bits(head.tally));
        upsert.execute((signed(room.0), signed(head.seq), signed(head.position), messages, hash))?;
    }
    Ok(())
}

/// The statement that adds a batch to the log. What a row has in common with the one before it stays bound, and that is
/// most.
struct LogInsert<'a> {
    insert: CachedStatement<'a>,
    before: Option<&'a Row>,
}

impl<'a> LogInsert<'a> {
    fn row(&mut self, row: &'a Row, position: Position, prev: Position, ts: UnixMillis) -> rusqlite::Result<()> {
        let insert = &mut *self.insert;
        insert.raw_bind_parameter(1, signed(position))?;
        insert.raw_bind_parameter(2, signed(row.room.0))?;
        insert.raw_bind_parameter(3, signed(row.seq))?;
        insert.raw_bind_parameter(4, signed(prev))?;
        insert.raw_bind_parameter(5, row.author.as_ref().map(UserId::as_str))?;
        insert.raw_bind_parameter(6, row.client_id.as_deref())?;
        insert.raw_bind_parameter(7, &*row.fields)?;
        let shared = |row: &'a Row| (row.kind, row.priority, row.thread, row.audience.as_deref());
        if self.before.map(shared) != Some(shared(row)) {
            insert.raw_bind_parameter(8, signed(ts))?;
            insert.raw_bind_parameter(9, row.kind as u8)?;
            insert.raw_bind_parameter(10, priority_number(row.priority))?;
            insert.raw_bind_parameter(11, row.thread.map(signed))?;
            insert.raw_bind_parameter(12, row.audience.as_deref().map(Audience::to_text))?;
        }
        self.before = Some(row);
        insert.raw_execute()?;
        Ok(())
    }
}

fn write_cursors(conn: &Connection, decided: &Decided) -> rusqlite::Result<()> {
    let mut read =
        conn.prepare_cached("UPDATE members SET read = ?3, counted = ?4 WHERE room = ?2 AND user = ?1 AND read < ?3")?;
    // What is read is delivered: nobody asks for these rows any more.
    let mut over = conn.prepare_cached("DELETE FROM delivered WHERE user = ?1 AND room = ?2 AND seq <= ?3")?;
    let mut delivered =
        conn.prepare_cached("UPDATE delivered SET seq = ?4 WHERE user = ?1 AND room = ?2 AND device = ?3")?;
    for cursor in &decided.cursors {
        let (user, room, seq) = (cursor.user.as_str(), signed(cursor.room.0), signed(cursor.seq));
        match &cursor.device {
            None => {
                read.execute((user, room, seq, signed(cursor.counted)))?;
                over.execute((user, room, seq))?;
            }
            Some(device) => {
                if delivered.execute((user, room, device.as_str(), seq))? == 0 {
                    insert_delivered(conn, (user, room, device.as_str(), seq))?;
                }
            }
        }
    }
    Ok(())
}

/// A device that has said nothing of this room since the user read it last. Past the bound the one that is furthest
/// behind goes.
fn insert_delivered(conn: &Connection, row @ (user, room, device, _): (&str, i64, &str, i64)) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT INTO delivered (user, room, device, seq) VALUES (?1, ?2, ?3, ?4)")?.execute(row)?;
    conn.prepare_cached(
        "DELETE FROM delivered WHERE user = ?1 AND room = ?2 AND device IN (SELECT device FROM delivered
         WHERE user = ?1 AND room = ?2 AND device <> ?3 ORDER BY seq DESC, device LIMIT -1 OFFSET ?4)",
    )?
    .execute((user, room, device, DELIVERED_DEVICES_MAX - 1))?;
    Ok(())
}

/// Who is a member no more has no cursors.
fn forget_delivered(conn: &Connection, decided: &Decided) -> rusqlite::Result<()> {
    let mut delete = conn.prepare_cached("DELETE FROM delivered WHERE user = ?1 AND room = ?2")?;
    for member in decided.members.iter().filter(|member| !member.role.is_some_and(Role::is_member)) {
        delete.execute((member.user.as_str(), signed(member.room.0)))?;
    }
    Ok(())
}

fn write_rooms(conn: &Connection, decided: &Decided) -> rusqlite::Result<()> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO rooms (key, name, kind, title, members, created_ts) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for room in &decided.rooms {
        insert.execute(rusqlite::params![
            signed(room.key.0),
            room.name.as_str(),
            room_kind_number(room.kind),
            room.title.as_deref(),
            room.members,
            signed(decided.ts),
        ])?;
    }
    Ok(())
}

fn write_members(conn: &Connection, decided: &Decided) -> rusqlite::Result<()> {
    let mut upsert = conn.prepare_cached(
        "INSERT INTO members (room, user, role, read, counted) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (room, user) DO UPDATE SET role = excluded.role, read = max(read, excluded.read),
         counted = max(counted, excluded.counted)",
    )?;
    let mut delete = conn.prepare_cached("DELETE FROM members WHERE room = ?1 AND user = ?2")?;
    for member in &decided.members {
        let (room, user) = (signed(member.room.0), member.user.as_str());
        match member.role {
            Some(role) => {
                let (read, counted) = member.begun.map_or((0, 0), |begun| (begun.seq, begun.counted));
                upsert.execute((room, user, role_number(role), signed(read), signed(counted)))?
            }
            None => delete.execute((room, user))?,
        };
    }
    let mut count = conn.prepare_cached("UPDATE rooms SET members = ?2 WHERE key = ?1")?;
    for (room, members) in &decided.counts {
        count.execute((signed(room.0), members))?;
    }
    Ok(())
}

fn write_revocation(conn: &Connection, revocation: &Revocation, ts: UnixMillis) -> rusqlite::Result<()> {
    match revocation {
        Revocation::Jti(jti) => write_jti(conn, jti, None, ts)?,
        Revocation::JtiUntil(jti, expires_ts) => write_jti(conn, jti, Some(*expires_ts), ts)?,
        Revocation::UserBefore(user, before) => conn
            .prepare_cached(
                "INSERT INTO revocations (user, before, ts) VALUES (?1, ?2, ?3)
                 ON CONFLICT (user) DO UPDATE SET before = max(before, excluded.before), ts = excluded.ts",
            )?
            .execute((user.as_str(), signed(*before), signed(ts)))?,
    };
    Ok(())
}

/// The longest memory wins: none is for ever.
fn write_jti(conn: &Connection, jti: &str, expires_ts: Option<UnixMillis>, ts: UnixMillis) -> rusqlite::Result<usize> {
    conn.prepare_cached(
        "INSERT INTO revocations (jti, ts, expires_ts) VALUES (?1, ?2, ?3)
         ON CONFLICT (jti) DO UPDATE SET expires_ts = max(expires_ts, excluded.expires_ts)",
    )?
    .execute((jti, signed(ts), expires_ts.map(signed)))
}
