//! Dead letters on the disk: a table of their own, bounded by the number of letters.
//!
//! Nothing here decides what is dead: items die in `inbox`, entries in `isolate`.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::columns::{integer, priority, signed, user};
use crate::engine::dead::{DeadChange, DeadFilter, DeadKind, DeadLetter, LetterId, NOT_ACKNOWLEDGED, item_payload};
use crate::engine::inbox::ItemId;
use crate::protocol::ids::{UnixMillis, UserId};

/// A letter that has no number yet.
#[derive(Debug)]
pub(super) struct NewLetter<'a> {
    pub kind: DeadKind,
    pub user: Option<&'a UserId>,
    pub reason: &'a str,
    pub attempts: u32,
    pub first_ts: UnixMillis,
    pub last_ts: UnixMillis,
    pub payload: &'a str,
}

fn kind_number(kind: DeadKind) -> u8 {
    match kind {
        DeadKind::Inbox => 0,
        DeadKind::Entry => 1,
    }
}

fn kind(number: u8) -> rusqlite::Result<DeadKind> {
    [DeadKind::Inbox, DeadKind::Entry]
        .get(usize::from(number))
        .copied()
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(0, i64::from(number)))
}

/// Adds a letter and tells its number.
pub(super) fn insert(conn: &Connection, letter: &NewLetter<'_>) -> rusqlite::Result<LetterId> {
    conn.prepare_cached(
        "INSERT INTO dead_letters (kind, user, reason, attempts, first_ts, last_ts, payload)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .insert(params![
        kind_number(letter.kind),
        letter.user.map_or("", UserId::as_str),
        letter.reason,
        letter.attempts,
        signed(letter.first_ts),
        signed(letter.last_ts),
        letter.payload,
    ])
    .map(|id| id.unsigned_abs())
}

/// Makes letters of items that are still in their inboxes.
pub(super) fn bury_items(conn: &Connection, items: &[ItemId], now: UnixMillis) -> rusqlite::Result<()> {
    let mut find =
        conn.prepare_cached("SELECT user, priority, ts, attempts, sender, name, data FROM inbox WHERE id = ?1")?;
    for id in items {
        let found = find.query_row([signed(*id)], |row| {
            let (name, data) = (row.get_ref(5)?.as_str()?, row.get_ref(6)?.as_str()?);
            let payload = item_payload(name, data, priority(row.get(1)?)?, row.get_ref(4)?.as_str_or_null()?);
            Ok((user(row.get_ref(0)?.as_str()?)?, integer(row, 2)?, row.get::<_, u32>(3)?, payload))
        });
        let Some((user, first_ts, attempts, payload)) = found.optional()? else { continue };
        let letter = NewLetter {
            kind: DeadKind::Inbox,
            user: Some(&user),
            reason: NOT_ACKNOWLEDGED,
            attempts: attempts + 1,
            first_ts,
            last_ts: now,
            payload: &payload,
        };
        insert(conn, &letter)?;
    }
    Ok(())
}

/// Does what was decided, in order.
pub(super) fn write(conn: &Connection, changes: &[DeadChange]) -> rusqlite::Result<()> {
    for change in changes {
        match change {
            DeadChange::Replayed(id) => delete(conn, &DeadFilter::one(*id))?,
            DeadChange::Purged(filter) => delete(conn, filter)?,
        };
    }
    Ok(())
}

/// Lets the oldest go, so that `max` are left. Tells how many went.
pub(super) fn bound(conn: &Connection, max: u32) -> rusqlite::Result<usize> {
    conn.prepare_cached(
        "DELETE FROM dead_letters WHERE id <= (SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1 OFFSET ?1)",
    )?
    .execute([max])
}

/// A replayed letter failed once more.
pub(super) fn failed_again(conn: &Connection, id: LetterId, reason: &str, now: UnixMillis) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE dead_letters SET attempts = attempts + 1, last_ts = ?2, reason = ?3 WHERE id = ?1")?
        .execute((signed(id), signed(now), reason))
        .map(|_| ())
}

/// `?1` to `?4` of every statement that takes a filter: NULL is anything.
const FITS: &str = "id BETWEEN coalesce(?1, 0) AND coalesce(?1, 9223372036854775807) AND (?2 IS NULL OR kind = ?2) AND (?3 IS NULL OR user = ?3)
    AND (?4 IS NULL OR last_ts < ?4)";

type Bound<'a> = (Option<i64>, Option<u8>, Option<&'a str>, Option<i64>);

fn bind(filter: &DeadFilter) -> Bound<'_> {
    (
        filter.id.map(signed),
        filter.kind.map(kind_number),
        filter.user.as_ref().map(UserId::as_str),
        filter.before.map(signed),
    )
}

fn delete(conn: &Connection, filter: &DeadFilter) -> rusqlite::Result<usize> {
    conn.prepare_cached(&format!("DELETE FROM dead_letters WHERE {FITS}"))?.execute(bind(filter))
}

/// How many fit.
pub(super) fn count(conn: &Connection, filter: &DeadFilter) -> rusqlite::Result<u64> {
    conn.prepare_cached(&format!("SELECT count(*) FROM dead_letters WHERE {FITS}"))?
        .query_row(bind(filter), |row| integer(row, 0))
}

/// Letters after `after`, oldest first, and whether there are more.
pub(super) fn page(
    conn: &Connection,
    filter: &DeadFilter,
    after: LetterId,
    limit: u32,
) -> rusqlite::Result<(Vec<DeadLetter>, bool)> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT id, kind, user, reason, attempts, first_ts, last_ts, payload FROM dead_letters
         WHERE {FITS} AND id > ?5 ORDER BY id LIMIT ?6"
    ))?;
    let (id, kind, user, before) = bind(filter);
    let rows = statement.query_map((id, kind, user, before, signed(after), limit + 1), letter)?;
    let mut letters: Vec<DeadLetter> = rows.collect::<rusqlite::Result<_>>()?;
    let more = letters.len() > limit as usize;
    letters.truncate(limit as usize);
    Ok((letters, more))
}

fn letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    let name = row.get_ref(2)?.as_str()?;
    Ok(DeadLetter {
        id: integer(row, 0)?,
        kind: kind(row.get(1)?)?,
        user: if name.is_empty() { None } else { Some(user(name)?) },
        reason: row.get(3)?,
        attempts: row.get(4)?,
        first_ts: integer(row, 5)?,
        last_ts: integer(row, 6)?,
        payload: row.get(7)?,
    })
}
