//! The shards' questions, answered from one snapshot each. Every answer is bounded.

use rusqlite::{Connection, Row, Statement};

use super::columns::{audience, integer, role, room_columns, room_row, signed, user};
use super::facts::SqlFacts;
use crate::engine::event::{HistoryEntry, Membership, Page, Query, Restricted, RoomRow};
use crate::engine::sequencer::Facts as _;
use crate::protocol::encode::{EventKind, LoggedEvent, json_string};
use crate::protocol::ids::{Position, Role, RoomKey, RoomKind, RoomName, Seq, UserId};

/// Most rows of any page, whatever is asked for.
const LIMIT_MAX: u32 = 10_000;

/// Answers one question from one snapshot.
pub(super) fn answer(conn: &Connection, query: &Query) -> rusqlite::Result<Page> {
    // One deferred transaction: everything below sees the same commit.
    let snapshot = conn.unchecked_transaction()?;
    let page = match query {
        Query::User(user) => user_page(&snapshot, user)?,
        Query::Room(name) => {
            let at = position(&snapshot)?;
            Page::Room { at, room: SqlFacts(&snapshot).room_by_name(name)? }
        }
        Query::History { room, after, before, newest, thread, limit, bytes_max } => {
            let ask = Ask {
                room: *room,
                after: *after,
                before: *before,
                newest: *newest,
                limit: (*limit).clamp(1, LIMIT_MAX) as usize,
                bytes_max: *bytes_max as usize,
            };
            history(&snapshot, &ask, *thread)?
        }
        Query::Members { room, after, limit } => members(&snapshot, *room, after.as_ref(), *limit)?,
        Query::Rooms { user, kind, after, limit } => rooms(&snapshot, user, *kind, after.as_ref(), *limit)?,
    };
    snapshot.finish()?;
    Ok(page)
}

fn position(conn: &Connection) -> rusqlite::Result<Position> {
    conn.prepare_cached("SELECT coalesce(max(position), 0) FROM log")?.query_row([], |row| integer(row, 0))
}

fn user_page(conn: &Connection, user: &UserId) -> rusqlite::Result<Page> {
    let at = position(conn)?;
    let mut statement = conn.prepare_cached(concat!(
        "SELECT ",
        room_columns!(),
        ", m.role, coalesce(c.read, 0)
         FROM members m JOIN rooms r ON r.key = m.room
         LEFT JOIN cursors c ON c.user = m.user AND c.room = m.room
         WHERE m.user = ?1 ORDER BY m.room"
    ))?;
    let rows = statement.query_map([user.as_str()], |row| {
        Ok(Membership { room: room_row(row)?, role: role(row.get(6)?)?, read: integer(row, 7)? })
    })?;
    Ok(Page::User { at, memberships: rows.collect::<rusqlite::Result<_>>()? })
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
    kind: Option<RoomKind>,
    after: Option<&RoomName>,
    limit: u32,
) -> rusqlite::Result<Page> {
    let limit = limit.clamp(1, LIMIT_MAX);
    let after = after.map_or("", RoomName::as_str);
    let mut rooms: Vec<(RoomRow, Option<Role>)> = Vec::new();
    if kind.is_none_or(|kind| kind == RoomKind::Public) {
        let mut public = conn.prepare_cached(concat!(
            "SELECT ",
            room_columns!(),
            ", m.role FROM rooms r LEFT JOIN members m ON m.room = r.key AND m.user = ?1
             WHERE r.kind = 0 AND r.name > ?2 AND coalesce(m.role, 1) > 0 ORDER BY r.name LIMIT ?3"
        ))?;
        let rows = public.query_map((user.as_str(), after, limit + 1), room_and_role)?;
        rooms.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
    }
    if kind != Some(RoomKind::Public) {
        let mut own = conn.prepare_cached(concat!(
            "SELECT ",
            room_columns!(),
            ", m.role FROM members m JOIN rooms r ON r.key = m.room
             WHERE m.user = ?1 AND m.role > 0 AND r.kind > 0 AND r.name > ?2 ORDER BY r.name LIMIT ?3"
        ))?;
        let rows = own.query_map((user.as_str(), after, limit + 1), room_and_role)?;
        rooms.extend(
            rows.filter(|row| match (row, kind) {
                (Ok((room, _)), Some(kind)) => room.kind == kind,
                _ => true,
            })
            .collect::<rusqlite::Result<Vec<_>>>()?,
        );
    }
    rooms.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let more = rooms.len() > limit as usize;
    rooms.truncate(limit as usize);
    Ok(Page::Rooms { rooms, more })
}

fn room_and_role(row: &Row<'_>) -> rusqlite::Result<(RoomRow, Option<Role>)> {
    let number: Option<u8> = row.get(6)?;
    Ok((room_row(row)?, number.map(role).transpose()?))
}

// ------------------------------------------------------------------------------------------------
// History

/// Bounds of a history page.
struct Ask {
    room: RoomKey,
    after: Seq,
    before: Seq,
    newest: bool,
    limit: usize,
    bytes_max: usize,
}

/// A page that grows from one end until it is full.
struct Growing {
    json: Vec<u8>,
    entries: Vec<HistoryEntry>,
    /// There is an entry that did not fit.
    more: bool,
}

macro_rules! entries_by {
    ($index:literal) => {
        concat!(
            "SELECT seq, ts, kind, author, client_id, audience, fields FROM log INDEXED BY ",
            $index,
            " WHERE room = ?1 AND seq > ?2 AND seq < ?3 "
        )
    };
}

fn history(conn: &Connection, ask: &Ask, thread: Option<Seq>) -> rusqlite::Result<Page> {
    let name: Option<String> = {
        use rusqlite::OptionalExtension as _;
        let mut statement = conn.prepare_cached("SELECT name FROM rooms WHERE key = ?1")?;
        statement.query_row([signed(ask.room.0)], |row| row.get(0)).optional()?
    };
    let mut page = Growing { json: Vec::new(), entries: Vec::new(), more: false };
    if let Some(name) = name {
        let room_json = json_string(&name);
        match (thread, ask.newest) {
            (None, false) => {
                let sql = concat!(entries_by!("log_room_seq"), "ORDER BY seq LIMIT ?4");
                page.fill(&mut *conn.prepare_cached(sql)?, ask, None, &room_json)?;
            }
            (None, true) => {
                let sql = concat!(entries_by!("log_room_seq"), "ORDER BY seq DESC LIMIT ?4");
                page.fill(&mut *conn.prepare_cached(sql)?, ask, None, &room_json)?;
            }
            // The root is older than every reply: it comes first, or last when reading backwards.
            (Some(root), false) => {
                page.root(conn, ask, root, &room_json)?;
                let sql = concat!(entries_by!("log_thread"), "AND thread = ?5 AND seq <> ?5 ORDER BY seq LIMIT ?4");
                page.fill(&mut *conn.prepare_cached(sql)?, ask, Some(root), &room_json)?;
            }
            (Some(root), true) => {
                let sql =
                    concat!(entries_by!("log_thread"), "AND thread = ?5 AND seq <> ?5 ORDER BY seq DESC LIMIT ?4");
                page.fill(&mut *conn.prepare_cached(sql)?, ask, Some(root), &room_json)?;
                page.root(conn, ask, root, &room_json)?;
            }
        }
    }
    let Growing { json, entries, more } = page;
    Ok(if ask.newest { ascending(&json, entries, more) } else { Page::History { json, entries, more } })
}

impl Growing {
    fn root(&mut self, conn: &Connection, ask: &Ask, root: Seq, room_json: &str) -> rusqlite::Result<()> {
        if root <= ask.after || root >= ask.before {
            return Ok(());
        }
        let mut statement = conn.prepare_cached(concat!(entries_by!("log_room_seq"), "LIMIT ?4"))?;
        let only = Ask { after: root - 1, before: root + 1, ..*ask };
        self.fill(&mut statement, &only, None, room_json)
    }

    fn fill(
        &mut self,
        statement: &mut Statement<'_>,
        ask: &Ask,
        thread: Option<Seq>,
        room_json: &str,
    ) -> rusqlite::Result<()> {
        if self.more {
            return Ok(());
        }
        // One more than fits, to know whether there is more.
        let limit = (ask.limit - self.entries.len()) as i64 + 1;
        let bounds = (signed(ask.room.0), signed(ask.after), signed(ask.before), limit);
        let mut rows = match thread {
            None => statement.query(bounds)?,
            Some(root) => statement.query((bounds.0, bounds.1, bounds.2, bounds.3, signed(root)))?,
        };
        while let Some(row) = rows.next()? {
            if self.entries.len() >= ask.limit || !self.push(row, ask.bytes_max, room_json)? {
                self.more = true;
                break;
            }
        }
        Ok(())
    }

    /// Adds one entry; false when it does not fit.
    fn push(&mut self, row: &Row<'_>, bytes_max: usize, room_json: &str) -> rusqlite::Result<bool> {
        let (seq, ts) = (integer(row, 0)?, integer(row, 1)?);
        let number: u8 = row.get(2)?;
        let author = row.get_ref(3)?.as_str_or_null()?;
        let event = LoggedEvent {
            kind: EventKind::from_number(number).ok_or(rusqlite::Error::IntegralValueOutOfRange(2, number.into()))?,
            room_json,
            seq,
            ts,
            author: author.unwrap_or(""),
            client_id: row.get_ref(4)?.as_str_or_null()?,
            fields: row.get_ref(6)?.as_str()?,
        };
        let start = self.json.len();
        event.write_json(&mut self.json);
        if self.json.len() > bytes_max && !self.entries.is_empty() {
            self.json.truncate(start);
            return Ok(false);
        }
        let restricted = match (row.get_ref(5)?.as_str_or_null()?, author) {
            (Some(text), Some(author)) => {
                Some(Box::new(Restricted { author: user(author)?, audience: audience(text)? }))
            }
            _ => None,
        };
        self.entries.push(HistoryEntry { seq, ts, span: start as u32..self.json.len() as u32, restricted });
        Ok(true)
    }
}

/// A page that was read backwards, turned round.
fn ascending(json: &[u8], mut entries: Vec<HistoryEntry>, more: bool) -> Page {
    entries.reverse();
    let mut turned = Vec::with_capacity(json.len());
    for entry in &mut entries {
        let start = turned.len() as u32;
        turned.extend_from_slice(&json[entry.span.start as usize..entry.span.end as usize]);
        entry.span = start..turned.len() as u32;
    }
    Page::History { json: turned, entries, more }
}
