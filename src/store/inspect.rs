//! A look at a data directory from outside: what stands in it, and whether it is whole. Changes
//! nothing, takes no lock, and works beside a running server.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::columns::{integer, room_columns, room_row, room_tables, signed};
use super::open::OpenError;
use super::schema::{ANCHOR_EVERY, check_ownership, database_path, schema_version};
use crate::engine::event::RoomRow;
use crate::engine::tally::Tally;
use crate::protocol::encode::EventKind;
use crate::protocol::ids::{Position, RoomKey, Seq, UnixMillis};

/// What a data directory holds.
#[derive(Debug)]
pub struct Report {
    /// Version of the schema; 0: an empty file.
    pub schema_version: u32,
    /// Which history.
    pub epoch: Option<String>,
    /// Position and time of the first entry.
    pub first: Option<(Position, UnixMillis)>,
    /// Position and time of the last entry.
    pub last: Option<(Position, UnixMillis)>,
    /// Every room, by key.
    pub rooms: Vec<RoomRow>,
    /// Revocations that stand.
    pub revocations: u64,
    /// What is wrong, one sentence each; empty: nothing.
    pub faults: Vec<String>,
    /// The thorough checks were made: `integrity_check`, and every entry of every room counted.
    pub is_thorough: bool,
    /// Bytes of the database.
    pub database_bytes: u64,
    /// Bytes of its write-ahead log.
    pub wal_bytes: u64,
}

/// Inspects the directory. With `thorough` the whole file is read, which takes its time.
///
/// # Errors
/// The database is not there, is not ours, or cannot be read at all. What is wrong inside is no error
/// but a line in [`Report::faults`].
pub fn inspect(dir: &Path, thorough: bool) -> Result<Report, OpenError> {
    let path = database_path(dir);
    let bytes = |name: &Path| std::fs::metadata(name).map(|meta| meta.len());
    let database_bytes = bytes(&path).map_err(|error| OpenError::Dir { path: path.clone(), error })?;
    let wal_bytes = bytes(&path.with_extension("db-wal")).unwrap_or(0);
    let conn = open(&path)?;
    check_ownership(&conn)?;
    let schema_version = schema_version(&conn)?;
    let mut report = Report {
        schema_version,
        epoch: None,
        first: None,
        last: None,
        rooms: Vec::new(),
        revocations: 0,
        faults: Vec::new(),
        is_thorough: thorough,
        database_bytes,
        wal_bytes,
    };
    if schema_version > super::schema::SCHEMA_VERSION {
        let known = super::schema::SCHEMA_VERSION;
        return Err(OpenError::NewerSchema { found: schema_version, known });
    }
    if schema_version == 0 {
        return Ok(report);
    }
    // One snapshot, so that the parts agree while a server writes.
    let snapshot = conn.unchecked_transaction()?;
    fill(&snapshot, &mut report)?;
    if thorough {
        check_integrity(&snapshot, &mut report.faults)?;
        check_density(&snapshot, &report.rooms, &mut report.faults)?;
        check_heads(&snapshot, &mut report.faults)?;
        check_members(&snapshot, &report.rooms, &mut report.faults)?;
        check_messages(&snapshot, &mut report.faults)?;
        if has_tallies(&report) {
            check_tallies(&snapshot, &report.rooms, &mut report.faults)?;
        }
    }
    Ok(report)
}

/// Read-only where that is possible. A log left by a crash is only readable for who may replay it.
fn open(path: &Path) -> Result<Connection, OpenError> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    if conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).is_ok() {
        return Ok(conn);
    }
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.execute_batch("PRAGMA query_only = 1")?;
    Ok(conn)
}

fn fill(conn: &Connection, report: &mut Report) -> rusqlite::Result<()> {
    let end = |order: &str| {
        let sql = format!("SELECT position, ts FROM log ORDER BY position {order} LIMIT 1");
        conn.query_row(&sql, [], |row| Ok((integer(row, 0)?, integer(row, 1)?))).optional()
    };
    report.first = end("ASC")?;
    report.last = end("DESC")?;
    report.epoch = conn.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0)).optional()?;
    report.revocations = conn.query_row("SELECT count(*) FROM revocations", [], |row| integer(row, 0))?;
    let mut statement = conn.prepare(match has_tallies(report) {
        true => concat!("SELECT ", room_columns!(), " FROM ", room_tables!(), " ORDER BY r.key"),
        // A database of an older version that was not opened for writing yet.
        false => concat!(
            "SELECT r.key, r.name, r.kind, r.title, r.members, h.seq, 0, 0 FROM ",
            room_tables!(),
            " ORDER BY r.key"
        ),
    })?;
    report.rooms = statement.query_map([], room_row)?.collect::<rusqlite::Result<_>>()?;
    if let (Some((first, _)), Some((last, _))) = (report.first, report.last) {
        let count = conn.query_row("SELECT count(*) FROM log", [], |row| integer(row, 0))?;
        if first != 1 || count != last - first + 1 {
            report
                .faults
                .push(format!("the log has {count} entries from position {first} to {last}: some are missing"));
        }
    }
    Ok(())
}

fn check_integrity(conn: &Connection, faults: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut statement = conn.prepare("PRAGMA integrity_check(20)")?;
    let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    faults.extend(lines.into_iter().filter(|line| line != "ok").map(|line| format!("integrity_check: {line}")));
    Ok(())
}

/// Every room's seqs are 1, 2, 3 … up to its head, each entry points back at the one before, and the
/// anchors are where they should be.
fn check_density(conn: &Connection, rooms: &[RoomRow], faults: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut heads: BTreeMap<RoomKey, (Seq, Position)> = rooms.iter().map(|room| (room.key, (0, 0))).collect();
    let mut statement = conn.prepare(
        "SELECT l.room, l.seq, l.position, l.prev, coalesce(a.position, 0)
         FROM log l LEFT JOIN anchors a ON l.seq % ?1 = 0 AND a.room = l.room AND a.seq = l.seq ORDER BY l.position",
    )?;
    let mut rows = statement.query([signed(ANCHOR_EVERY)])?;
    while let Some(row) = rows.next()? {
        let (key, seq, position) = (RoomKey(integer(row, 0)?), integer(row, 1)?, integer(row, 2)?);
        let (prev, anchor) = (integer(row, 3)?, integer(row, 4)?);
        let Some((head, last)) = heads.get_mut(&key) else {
            faults.push(format!("entry {position} is of room {}, which does not exist", key.0));
            continue;
        };
        if seq != *head + 1 {
            faults.push(format!("room {}: seq {seq} follows {head}", key.0));
        }
        if prev != *last {
            faults.push(format!("room {}: seq {seq} points back at position {prev} instead of {last}", key.0));
        }
        if anchor != if seq.is_multiple_of(ANCHOR_EVERY) { position } else { 0 } {
            faults.push(format!("room {}: seq {seq} is anchored at position {anchor}", key.0));
        }
        (*head, *last) = (seq, position);
    }
    for room in rooms {
        let (seq, _) = heads[&room.key];
        if seq != room.head {
            faults.push(format!("room {}: the last seq is {seq} where {} is noted", room.key.0, room.head));
        }
    }
    Ok(())
}

/// Heads point at the entries that they name.
fn check_heads(conn: &Connection, faults: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut statement = conn.prepare(
        "SELECT h.room, h.seq, h.position FROM heads h LEFT JOIN log l ON l.position = h.position
         WHERE l.room IS NOT h.room OR l.seq IS NOT h.seq LIMIT 20",
    )?;
    let rows = statement.query_map([], |row| Ok((integer(row, 0)?, integer(row, 1)?, row.get::<_, i64>(2)?)))?;
    for row in rows {
        let (room, seq, position) = row?;
        faults.push(format!("room {room}: its head {seq} is not at position {position}"));
    }
    Ok(())
}

/// What is kept beside the log about messages fits the log, and reactions are counted.
fn check_messages(conn: &Connection, faults: &mut Vec<String>) -> rusqlite::Result<()> {
    if !conn.table_exists(None, "message_state")? {
        return Ok(()); // A database of an older version that was not opened for writing yet.
    }
    let queries = [
        (
            "SELECT s.room, s.seq FROM message_state s LEFT JOIN log l ON l.position = s.position
             WHERE l.room IS NOT s.room OR l.seq IS NOT s.seq OR l.kind IS NOT 1 LIMIT 20",
            "has a state and is no message",
        ),
        (
            "SELECT DISTINCT coalesce(r.room, c.room), coalesce(r.seq, c.seq)
             FROM (SELECT room, seq, emoji, count(*) AS n FROM reactions GROUP BY room, seq, emoji) r
             FULL OUTER JOIN reaction_counts c ON c.room = r.room AND c.seq = r.seq AND c.emoji = r.emoji
             WHERE r.n IS NOT c.count LIMIT 20",
            "has another number of reactions than is noted",
        ),
    ];
    for (query, fault) in queries {
        let mut statement = conn.prepare(query)?;
        let rows = statement.query_map([], |row| Ok((integer(row, 0)?, integer(row, 1)?)))?;
        for row in rows {
            let (room, seq) = row?;
            faults.push(format!("room {room}: seq {seq} {fault}"));
        }
    }
    Ok(())
}

fn has_tallies(report: &Report) -> bool {
    report.schema_version >= super::schema::TALLIES_STEP
}

/// Heads and anchors say what the entries come to.
fn check_tallies(conn: &Connection, rooms: &[RoomRow], faults: &mut Vec<String>) -> rusqlite::Result<()> {
    let start = |room: &RoomRow| (room.key, Tally::start(room.name.as_str()));
    let mut tallies: BTreeMap<RoomKey, Tally> = rooms.iter().map(start).collect();
    let mut statement = conn.prepare(
        "SELECT l.room, l.seq, l.ts, l.kind, a.messages, a.hash
         FROM log l LEFT JOIN anchors a ON l.seq % ?1 = 0 AND a.room = l.room AND a.seq = l.seq ORDER BY l.position",
    )?;
    let mut rows = statement.query([signed(ANCHOR_EVERY)])?;
    while let Some(row) = rows.next()? {
        let (key, seq) = (RoomKey(integer(row, 0)?), integer(row, 1)?);
        let Some(tally) = tallies.get_mut(&key) else { continue };
        match EventKind::from_number(row.get(3)?) {
            Some(kind) => tally.add(seq, integer(row, 2)?, kind),
            None => faults.push(format!("room {}: seq {seq} is of no known kind", key.0)),
        }
        let is_anchored = row.get::<_, Option<i64>>(4)?.is_some();
        if is_anchored && super::columns::tally(row, 4)? != *tally {
            faults.push(format!("room {}: another tally than that of its entries is anchored at seq {seq}", key.0));
        }
    }
    for room in rooms.iter().filter(|room| tallies[&room.key] != room.tally) {
        faults.push(format!("room {}: its head has another tally than its entries", room.key.0));
    }
    Ok(())
}

fn check_members(conn: &Connection, rooms: &[RoomRow], faults: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut statement = conn.prepare("SELECT count(*) FROM members WHERE room = ?1 AND role > 0")?;
    for room in rooms {
        let count: u32 = statement.query_row([signed(room.key.0)], |row| row.get(0))?;
        if count != room.members {
            faults.push(format!("room {}: {count} members where {} are noted", room.key.0, room.members));
        }
    }
    Ok(())
}
