//! Pages of a room's history. Entries are found by walking: each one knows the position of the one
//! before it in its room, and every 64th is anchored (see [`super::schema`]).

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::columns::{audience, integer, signed, user};
use super::edits;
use super::heads::misplaced;
use super::schema::ANCHOR_EVERY;
use crate::engine::edits::{current_fields, subject};
use crate::engine::event::{HistoryEntry, Page, Restricted};
use crate::protocol::encode::{EventKind, LoggedEvent, json_string};
use crate::protocol::ids::{Position, RoomKey, Seq};

/// What is asked for: entries `after < seq < before`, at most `limit` (at least 1) and at most
/// `bytes_max` of JSON but at least one, from the upper end when `newest`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub room: RoomKey,
    pub after: Seq,
    pub before: Seq,
    pub newest: bool,
    pub thread: Option<Seq>,
    /// As messages stand now, not as they were logged.
    pub current: bool,
    pub limit: u32,
    pub bytes_max: u32,
}

/// Answers from the snapshot that `conn` has open.
pub(super) fn page(conn: &Connection, ask: &Ask) -> rusqlite::Result<Page> {
    let name: Option<String> = conn
        .prepare_cached("SELECT name FROM rooms WHERE key = ?1")?
        .query_row([signed(ask.room.0)], |row| row.get(0))
        .optional()?;
    let mut growing = Growing { json: Vec::new(), entries: Vec::new(), more: false };
    if let Some(name) = name {
        let found = match ask.thread {
            None => stretch(conn, ask)?,
            Some(root) => thread(conn, ask, root)?,
        };
        growing.fill(conn, &found, ask, &json_string(&name))?;
    }
    let Growing { json, entries, more } = growing;
    Ok(if ask.newest { ascending(&json, entries, more) } else { Page::History { json, entries, more } })
}

/// Positions of the entries of a page in the order of reading, one more than its limit where there is one.
fn stretch(conn: &Connection, ask: &Ask) -> rusqlite::Result<Vec<Position>> {
    let Some(head) = head(conn, ask.room)? else { return Ok(Vec::new()) };
    let (mut low, mut high) = (ask.after.saturating_add(1).max(1), ask.before.saturating_sub(1).min(head.seq));
    let limit = Seq::from(ask.limit);
    if ask.newest {
        low = low.max(high.saturating_sub(limit));
    } else {
        high = high.min(low.saturating_add(limit));
    }
    let mut found = walk(conn, ask.room, head, low, high)?;
    if !ask.newest {
        found.reverse();
    }
    Ok(found)
}

/// The same for a thread. The root is older than every reply: it comes first, or last when reading
/// backwards.
fn thread(conn: &Connection, ask: &Ask, root: Seq) -> rusqlite::Result<Vec<Position>> {
    let mut statement = conn.prepare_cached(if ask.newest {
        "SELECT position FROM log INDEXED BY log_thread WHERE room = ?1 AND thread = ?2 AND seq > ?3 AND seq < ?4
         AND seq <> ?2 ORDER BY seq DESC LIMIT ?5"
    } else {
        "SELECT position FROM log INDEXED BY log_thread WHERE room = ?1 AND thread = ?2 AND seq > ?3 AND seq < ?4
         AND seq <> ?2 ORDER BY seq LIMIT ?5"
    })?;
    let bounds = (signed(ask.room.0), signed(root), signed(ask.after), signed(ask.before), ask.limit + 1);
    let replies = statement.query_map(bounds, |row| integer(row, 0))?;
    let mut found: Vec<Position> = replies.collect::<rusqlite::Result<_>>()?;
    if root > ask.after
        && root < ask.before
        && let Some(head) = head(conn, ask.room)?
    {
        let root = walk(conn, ask.room, head, root.max(1), root.min(head.seq))?;
        let at = if ask.newest { found.len() } else { 0 };
        found.splice(at..at, root);
    }
    Ok(found)
}

/// One entry of a room, and where it stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    seq: Seq,
    position: Position,
}

fn head(conn: &Connection, room: RoomKey) -> rusqlite::Result<Option<Place>> {
    conn.prepare_cached("SELECT seq, position FROM heads WHERE room = ?1")?
        .query_row([signed(room.0)], place)
        .optional()
}

fn place(row: &Row<'_>) -> rusqlite::Result<Place> {
    Ok(Place { seq: integer(row, 0)?, position: integer(row, 1)? })
}

/// Positions of the entries `low..=high`, descending. `high` is at most the head's seq.
fn walk(conn: &Connection, room: RoomKey, head: Place, low: Seq, high: Seq) -> rusqlite::Result<Vec<Position>> {
    if low > high {
        return Ok(Vec::new());
    }
    let anchor = if head.seq - high < ANCHOR_EVERY {
        None
    } else {
        conn.prepare_cached("SELECT seq, position FROM anchors WHERE room = ?1 AND seq >= ?2 ORDER BY seq LIMIT 1")?
            .query_row((signed(room.0), signed(high)), place)
            .optional()?
    };
    let mut at = anchor.unwrap_or(head);
    let mut found = Vec::with_capacity((high - low + 1) as usize);
    let mut step = conn.prepare_cached("SELECT room, seq, prev FROM log WHERE position = ?1")?;
    loop {
        let found_there = step.query_row([signed(at.position)], |row| {
            Ok((RoomKey(integer(row, 0)?), integer(row, 1)?, integer(row, 2)?))
        });
        let Some((_, seq, prev)) = found_there.optional()?.filter(|(owner, seq, _)| (*owner, *seq) == (room, at.seq))
        else {
            return Err(misplaced(room, at.position));
        };
        if seq <= high {
            found.push(at.position);
        }
        if seq <= low || prev == 0 {
            return Ok(found);
        }
        at = Place { seq: seq - 1, position: prev };
    }
}

/// Where an entry of a room stands.
pub(super) fn position_of(conn: &Connection, room: RoomKey, seq: Seq) -> rusqlite::Result<Option<Position>> {
    match head(conn, room)? {
        Some(head) if (1..=head.seq).contains(&seq) => Ok(walk(conn, room, head, seq, seq)?.pop()),
        _ => Ok(None),
    }
}

/// A page that grows from one end until it is full.
struct Growing {
    json: Vec<u8>,
    entries: Vec<HistoryEntry>,
    /// There is an entry that did not fit.
    more: bool,
}

impl Growing {
    fn fill(&mut self, conn: &Connection, found: &[Position], ask: &Ask, room_json: &str) -> rusqlite::Result<()> {
        let mut statement = conn.prepare_cached(
            "SELECT seq, ts, kind, author, client_id, audience, thread, fields FROM log WHERE position = ?1",
        )?;
        let shows_states = ask.current && edits::is_touched(conn, ask.room)?;
        for position in found {
            let mut rows = statement.query([signed(*position)])?;
            let row = rows.next()?.ok_or_else(|| misplaced(ask.room, *position))?;
            let state_of = shows_states.then_some((conn, ask.room));
            if self.entries.len() >= ask.limit as usize
                || !self.push(row, ask.bytes_max as usize, room_json, state_of)?
            {
                self.more = true;
                break;
            }
        }
        Ok(())
    }

    /// Adds one entry; false when it does not fit.
    fn push(
        &mut self,
        row: &Row<'_>,
        bytes_max: usize,
        room_json: &str,
        state_of: Option<(&Connection, RoomKey)>,
    ) -> rusqlite::Result<bool> {
        let (seq, ts) = (integer(row, 0)?, integer(row, 1)?);
        let number: u8 = row.get(2)?;
        let author = row.get_ref(3)?.as_str_or_null()?;
        let kind = EventKind::from_number(number).ok_or(rusqlite::Error::IntegralValueOutOfRange(2, number.into()))?;
        let logged = row.get_ref(7)?.as_str()?;
        let current = match state_of {
            Some((conn, room)) => current(conn, room, (kind, seq), row.get(6)?, logged)?,
            None => None,
        };
        let event = LoggedEvent {
            kind,
            room_json,
            seq,
            ts,
            author: author.unwrap_or(""),
            client_id: row.get_ref(4)?.as_str_or_null()?,
            fields: current.as_deref().unwrap_or(logged),
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

/// The fields of an entry as its message stands now, where that differs from what was logged.
fn current(
    conn: &Connection,
    room: RoomKey,
    (kind, seq): (EventKind, Seq),
    thread: Option<i64>,
    logged: &str,
) -> rusqlite::Result<Option<String>> {
    let Some(subject) = subject(kind, seq, logged) else { return Ok(None) };
    let Some(state) = edits::state(conn, room, subject)? else { return Ok(None) };
    let reactions = match kind {
        EventKind::MessageCreated => edits::reaction_counts(conn, room, seq)?,
        _ => Vec::new(),
    };
    let thread = thread.and_then(|root| Seq::try_from(root).ok());
    Ok(Some(current_fields(kind, logged, thread, &state, &reactions)))
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
