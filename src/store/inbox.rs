//! Users' inboxes on the disk: what the sequencer decided, written; what it and the shards ask, read.

use std::sync::Once;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::columns::{integer, priority, priority_number, signed, user};
use crate::engine::inbox::{Head, InboxChange, Item, ItemId, Removal};
use crate::protocol::ids::{RoomKey, UnixMillis, UserId};

/// Rows that cannot be read, past which a look for expired ones ends.
const UNREADABLE_MAX: u32 = 4_096;

/// Writes changes in their order, within the caller's transaction.
pub(super) fn write(conn: &Connection, changes: &[InboxChange], now: UnixMillis) -> rusqlite::Result<()> {
    for change in changes {
        match change {
            InboxChange::Added(item) => insert(conn, item)?,
            InboxChange::Removed { items, why, .. } => {
                if *why == Removal::Dead {
                    super::dead::bury_items(conn, items, now)?;
                }
                let mut delete = conn.prepare_cached("DELETE FROM inbox WHERE id = ?1")?;
                for id in items {
                    delete.execute([signed(*id)])?;
                }
            }
            InboxChange::Tried { items, .. } => {
                let mut update = conn.prepare_cached("UPDATE inbox SET attempts = attempts + 1 WHERE id = ?1")?;
                for id in items {
                    update.execute([signed(*id)])?;
                }
            }
        }
    }
    Ok(())
}

fn insert(conn: &Connection, item: &Item) -> rusqlite::Result<()> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO inbox (id, user, priority, bytes, ts, expires_ts, attempts, sender, room, seq, name, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    insert.execute(params![
        signed(item.id),
        item.user.as_str(),
        priority_number(item.priority),
        item.bytes(),
        signed(item.ts),
        signed(item.expires_ts),
        item.attempts,
        item.from.as_ref().map(UserId::as_str),
        item.covers.map(|(room, _)| signed(room.0)),
        item.covers.map(|(_, seq)| signed(seq)),
        &*item.name,
        &*item.data,
    ])?;
    Ok(())
}

/// What waits for a user, content and all.
pub(super) fn waiting(conn: &Connection, of: &UserId) -> rusqlite::Result<Vec<Item>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, priority, ts, expires_ts, attempts, sender, room, seq, name, data FROM inbox WHERE user = ?1",
    )?;
    let rows = statement.query_map([of.as_str()], |row| read(row, of))?;
    rows.collect()
}

fn read(row: &Row<'_>, of: &UserId) -> rusqlite::Result<Item> {
    let covers = match row.get::<_, Option<i64>>(6)? {
        Some(_) => Some((RoomKey(integer(row, 6)?), integer(row, 7)?)),
        None => None,
    };
    Ok(Item {
        id: integer(row, 0)?,
        user: of.clone(),
        priority: priority(row.get(1)?)?,
        ts: integer(row, 2)?,
        expires_ts: integer(row, 3)?,
        attempts: row.get(4)?,
        from: row.get_ref(5)?.as_str_or_null()?.map(user).transpose()?,
        covers,
        name: row.get_ref(8)?.as_str()?.into(),
        data: row.get_ref(9)?.as_str()?.into(),
    })
}

/// The same for the sequencer: no content.
pub(super) fn heads(conn: &Connection, of: &UserId) -> rusqlite::Result<Vec<Head>> {
    let mut statement = conn.prepare_cached("SELECT id, priority, bytes, expires_ts FROM inbox WHERE user = ?1")?;
    let rows = statement.query_map([of.as_str()], |row| {
        Ok(Head {
            id: integer(row, 0)?,
            priority: priority(row.get(1)?)?,
            bytes: row.get(2)?,
            expires_ts: integer(row, 3)?,
        })
    })?;
    rows.collect()
}

/// Items whose time is over, the longest overdue first. Rows that cannot be read are passed over, and stay: not in
/// front of others, and not for an append to be refused.
pub(super) fn expired(conn: &Connection, now: UnixMillis, max: u32) -> rusqlite::Result<Vec<(UserId, ItemId)>> {
    let mut statement = conn.prepare_cached("SELECT user, id FROM inbox WHERE expires_ts <= ?1 ORDER BY expires_ts")?;
    let mut rows = statement.query([signed(now)])?;
    let (mut found, mut unreadable) = (Vec::new(), 0_u32);
    while found.len() < max as usize
        && unreadable < UNREADABLE_MAX
        && let Some(row) = rows.next()?
    {
        match owner(row) {
            Ok(item) => found.push(item),
            Err(error) => {
                unreadable += 1;
                tell_unreadable(row, &error);
            }
        }
    }
    Ok(found)
}

fn owner(row: &Row<'_>) -> rusqlite::Result<(UserId, ItemId)> {
    Ok((user(row.get_ref(0)?.as_str()?)?, integer(row, 1)?))
}

/// Once in the life of a process: the look comes again every few seconds, and finds the same.
fn tell_unreadable(row: &Row<'_>, error: &rusqlite::Error) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        let id = row.get::<_, i64>(1).unwrap_or_default();
        tracing::error!(id, %error, "store: an inbox item cannot be read and is left alone, as are others like it");
    });
}

/// The highest number that was ever given.
pub(super) fn last_id(conn: &Connection) -> rusqlite::Result<ItemId> {
    let last = conn
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'inbox'")?
        .query_row([], |row| integer(row, 0))
        .optional()?;
    Ok(last.unwrap_or(0))
}

/// True when what these changes lead to is what the database holds: they were committed together or
/// not at all. Attempts leave no trace that could be told from others, and nobody need know.
pub(super) fn stands(conn: &Connection, changes: &[InboxChange]) -> rusqlite::Result<bool> {
    let mut waits = std::collections::BTreeMap::new();
    for change in changes {
        match change {
            InboxChange::Added(item) => {
                waits.insert(item.id, true);
            }
            InboxChange::Removed { items, .. } => waits.extend(items.iter().map(|id| (*id, false))),
            InboxChange::Tried { .. } => {}
        }
    }
    let mut find = conn.prepare_cached("SELECT 1 FROM inbox WHERE id = ?1")?;
    for (id, waits) in waits {
        if find.exists([signed(id)])? != waits {
            return Ok(false);
        }
    }
    Ok(true)
}
