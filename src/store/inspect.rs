//! Looking into a data folder, also while a server runs on it: what is there, and whether it is whole.
//!
//! Reads only, in one transaction, so that the picture is of one moment. What is checked beside
//! SQLite's own integrity: positions dense over the log, seqs dense in each room.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};
use serde::Serialize;

use super::OpenError;
use super::columns::room_kind;
use super::schema;
use crate::protocol::ids::{Position, Seq, UnixMillis};

/// Problems that are listed at most.
const PROBLEMS_MAX: usize = 20;

/// What a data folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Version of the schema.
    pub schema: u32,
    /// Which history.
    pub epoch: String,
    /// Position of the last entry.
    pub position: Position,
    /// Number of rooms.
    pub rooms: u64,
    /// Memberships of all rooms together, bans left out.
    pub memberships: u64,
    /// Tokens and users that were revoked.
    pub revocations: u64,
    /// Bytes of the database file.
    pub database_bytes: u64,
    /// Bytes of the write-ahead log beside it.
    pub wal_bytes: u64,
    /// What is wrong; empty: nothing.
    pub problems: Vec<String>,
    /// The rooms that were asked for, by name.
    pub listed: Vec<InspectedRoom>,
}

/// One room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InspectedRoom {
    /// Its name.
    pub name: String,
    /// `public`, `private` or `direct`.
    pub kind: &'static str,
    /// Number of members as the room's row has it.
    pub members: u64,
    /// Last seq.
    pub head: Seq,
    /// When the last entry was numbered; 0: none.
    pub last_ts: UnixMillis,
}

/// What to look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct InspectOptions<'a> {
    /// List this room only.
    pub room: Option<&'a str>,
    /// List at most so many rooms.
    pub rooms_max: u32,
    /// Leave out the checks, which read the whole file.
    pub quick: bool,
}

/// Looks into `dir`.
///
/// # Errors
/// There is no database, it is not ours or too new, or it cannot be read. What is wrong inside of a
/// readable one is in [`Inspection::problems`].
pub fn inspect(dir: &Path, options: InspectOptions<'_>) -> Result<Inspection, OpenError> {
    let path = schema::database_path(dir);
    let database_bytes =
        std::fs::metadata(&path).map_err(|error| OpenError::Dir { path: dir.to_owned(), error })?.len();
    let wal_bytes = std::fs::metadata(path.with_extension("db-wal")).map_or(0, |meta| meta.len());
    let mut conn = schema::open_reader(dir)?;
    let conn = conn.transaction_with_behavior(TransactionBehavior::Deferred)?;
    schema::check_ownership(&conn)?;
    let version = schema::schema_version(&conn)?;
    if version > schema::SCHEMA_VERSION {
        return Err(OpenError::NewerSchema { found: version, known: schema::SCHEMA_VERSION });
    }
    let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|n| n.max(0) as u64);
    Ok(Inspection {
        schema: version,
        epoch: conn
            .query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0))
            .optional()?
            .unwrap_or_default(),
        position: count("SELECT coalesce(max(position), 0) FROM log")?,
        rooms: count("SELECT count(*) FROM rooms")?,
        memberships: count("SELECT count(*) FROM members WHERE role > 0")?,
        revocations: count("SELECT count(*) FROM revocations")?,
        database_bytes,
        wal_bytes,
        problems: if options.quick { Vec::new() } else { problems(&conn)? },
        listed: list(&conn, options)?,
    })
}

fn list(conn: &Connection, options: InspectOptions<'_>) -> rusqlite::Result<Vec<InspectedRoom>> {
    let mut statement = conn.prepare(
        "SELECT r.name, r.kind, r.members, coalesce(l.seq, 0), coalesce(l.ts, 0) FROM rooms r
         LEFT JOIN log l ON l.room = r.key AND l.seq = (SELECT max(seq) FROM log WHERE room = r.key)
         WHERE ?1 IS NULL OR r.name = ?1 ORDER BY r.name LIMIT ?2",
    )?;
    let rooms = statement.query_map((options.room, options.rooms_max), |row| {
        Ok(InspectedRoom {
            name: row.get(0)?,
            kind: room_kind(row.get(1)?)?.as_str(),
            members: row.get::<_, i64>(2)?.max(0) as u64,
            head: row.get::<_, i64>(3)?.max(0) as u64,
            last_ts: row.get::<_, i64>(4)?.max(0) as u64,
        })
    })?;
    rooms.collect()
}

fn problems(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let texts = |sql: &str| -> rusqlite::Result<Vec<String>> {
        let mut statement = conn.prepare(sql)?;
        let found = statement.query_map([], |row| row.get(0))?;
        found.take(PROBLEMS_MAX).collect()
    };
    let mut found: Vec<String> = texts("PRAGMA integrity_check(20)")?.into_iter().filter(|line| line != "ok").collect();
    found.extend(texts(
        "SELECT 'positions are not dense: ' || count(*) || ' entries end at ' || max(position) FROM log
         HAVING count(*) <> max(position) OR min(position) <> 1",
    )?);
    found.extend(texts(
        "SELECT 'room ' || room || ' is not dense: ' || count(*) || ' entries, seq ' || min(seq) || ' to ' || max(seq)
         FROM log GROUP BY room HAVING count(*) <> max(seq) OR min(seq) <> 1",
    )?);
    found.extend(texts(
        "SELECT 'entries of room ' || room || ', which does not exist' FROM log
         WHERE room NOT IN (SELECT key FROM rooms) GROUP BY room",
    )?);
    found.extend(texts(
        "SELECT 'room ' || key || ' says ' || r.members || ' members and has ' || count(m.user) FROM rooms r
         LEFT JOIN members m ON m.room = r.key AND m.role > 0 GROUP BY r.key HAVING r.members <> count(m.user)",
    )?);
    found.truncate(PROBLEMS_MAX);
    Ok(found)
}
