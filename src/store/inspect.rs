//! A look at a data directory from outside: what stands in it, and whether it is whole. Changes
//! nothing, takes no lock, and works beside a running server.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::columns::{integer, room_columns, room_row, room_tables, signed};
use super::open::OpenError;
use super::schema::{ANCHOR_EVERY, check_ownership, database_path, schema_version};
use crate::engine::event::RoomRow;
use crate::engine::tally::Tally;
use crate::protocol::encode::EventKind;
use crate::protocol::ids::{Position, RoomKey, Seq, UnixMillis};

/// Faults of one kind that are listed of one room; those past it are counted.
const LISTED_MAX: u64 = 4;

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
    /// What is wrong, one sentence each; empty: nothing. Of many of one kind in one room the first, and how many more.
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
        let mut faults = Faults::of(&report.rooms);
        check_density(&snapshot, &report.rooms, &mut faults)?;
        check_heads(&snapshot, &mut faults)?;
        check_members(&snapshot, &report.rooms, &mut faults)?;
        check_messages(&snapshot, &mut faults)?;
        if has_tallies(&report) {
            check_tallies(&snapshot, &report.rooms, &mut faults)?;
        }
        let found = faults.into_sentences();
        report.faults.extend(found);
    }
    Ok(report)
}

/// What a fault is about: those of one kind in one room are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    NoRoom,
    Seq,
    Prev,
    Anchor,
    Head,
    Members,
    State,
    Reactions,
    Unknown,
    Tally,
}

/// Faults as they are found: the first of each room and kind in words, the rest as a number. One cause can have
/// thousands of them.
struct Faults<'a> {
    names: BTreeMap<RoomKey, &'a str>,
    sentences: Vec<String>,
    counts: BTreeMap<(RoomKey, Kind), u64>,
}

impl<'a> Faults<'a> {
    fn of(rooms: &'a [RoomRow]) -> Self {
        let names = rooms.iter().map(|room| (room.key, room.name.as_str())).collect();
        Self { names, sentences: Vec::new(), counts: BTreeMap::new() }
    }

    fn add(&mut self, room: RoomKey, kind: Kind, fault: impl Display) {
        let count = self.counts.entry((room, kind)).or_default();
        *count += 1;
        if *count <= LISTED_MAX {
            self.sentences.push(format!("{}: {fault}", in_words(&self.names, room)));
        }
    }

    /// Where some were left out, how many, behind the others.
    fn into_sentences(self) -> Vec<String> {
        let mut sentences = self.sentences;
        let left_out = self.counts.into_iter().filter(|(_, count)| *count > LISTED_MAX);
        sentences.extend(left_out.map(|((room, kind), count)| {
            let (room, more) = (in_words(&self.names, room), count - LISTED_MAX);
            format!("{room}: {more} more {}", kind.of_many())
        }));
        sentences
    }
}

/// Operators know rooms by name; the key is what stands in the tables.
fn in_words(names: &BTreeMap<RoomKey, &str>, room: RoomKey) -> String {
    match names.get(&room) {
        Some(name) => format!("room {name} (key {})", room.0),
        None => format!("room with key {}", room.0),
    }
}

impl Kind {
    fn of_many(self) -> &'static str {
        match self {
            Self::NoRoom => "entries",
            Self::Seq => "seqs that do not follow the one before",
            Self::Prev => "entries that point back at a wrong position",
            Self::Anchor => "entries that are anchored wrongly",
            Self::Head => "faults of its head",
            Self::Members => "faults of its members",
            Self::State => "states without a message",
            Self::Reactions => "messages with another number of reactions",
            Self::Unknown => "entries of no known kind",
            Self::Tally => "places like that where tallies differ",
        }
    }
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
fn check_density(conn: &Connection, rooms: &[RoomRow], faults: &mut Faults<'_>) -> rusqlite::Result<()> {
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
            faults.add(
                key,
                Kind::NoRoom,
                format_args!("the entry at position {position} is of a room that does not exist"),
            );
            continue;
        };
        if seq != *head + 1 {
            faults.add(key, Kind::Seq, format_args!("seq {seq} follows {head}"));
        }
        if prev != *last {
            let fault = format_args!("seq {seq} points back at position {prev} instead of {last}");
            faults.add(key, Kind::Prev, fault);
        }
        if anchor != if seq.is_multiple_of(ANCHOR_EVERY) { position } else { 0 } {
            let fault = format_args!("seq {seq}, at position {position}, is anchored at position {anchor}");
            faults.add(key, Kind::Anchor, fault);
        }
        (*head, *last) = (seq, position);
    }
    for room in rooms {
        let (seq, _) = heads[&room.key];
        if seq != room.head {
            faults.add(room.key, Kind::Head, format_args!("the last seq is {seq} where {} is noted", room.head));
        }
    }
    Ok(())
}

/// Heads point at the entries that they name.
fn check_heads(conn: &Connection, faults: &mut Faults<'_>) -> rusqlite::Result<()> {
    let mut statement = conn.prepare(
        "SELECT h.room, h.seq, h.position FROM heads h LEFT JOIN log l ON l.position = h.position
         WHERE l.room IS NOT h.room OR l.seq IS NOT h.seq LIMIT 20",
    )?;
    let rows = statement.query_map([], |row| Ok((integer(row, 0)?, integer(row, 1)?, row.get::<_, i64>(2)?)))?;
    for row in rows {
        let (room, seq, position) = row?;
        faults.add(RoomKey(room), Kind::Head, format_args!("its head {seq} is not at position {position}"));
    }
    Ok(())
}

/// What is kept beside the log about messages fits the log, and reactions are counted.
fn check_messages(conn: &Connection, faults: &mut Faults<'_>) -> rusqlite::Result<()> {
    if !conn.table_exists(None, "message_state")? {
        return Ok(()); // A database of an older version that was not opened for writing yet.
    }
    let queries = [
        (
            Kind::State,
            "SELECT s.room, s.seq FROM message_state s LEFT JOIN log l ON l.position = s.position
             WHERE l.room IS NOT s.room OR l.seq IS NOT s.seq OR l.kind IS NOT 1 LIMIT 20",
            "has a state and is no message",
        ),
        (
            Kind::Reactions,
            "SELECT DISTINCT coalesce(r.room, c.room), coalesce(r.seq, c.seq)
             FROM (SELECT room, seq, emoji, count(*) AS n FROM reactions GROUP BY room, seq, emoji) r
             FULL OUTER JOIN reaction_counts c ON c.room = r.room AND c.seq = r.seq AND c.emoji = r.emoji
             WHERE r.n IS NOT c.count LIMIT 20",
            "has another number of reactions than is noted",
        ),
    ];
    for (kind, query, fault) in queries {
        let mut statement = conn.prepare(query)?;
        let rows = statement.query_map([], |row| Ok((integer(row, 0)?, integer(row, 1)?)))?;
        for row in rows {
            let (room, seq) = row?;
            faults.add(RoomKey(room), kind, format_args!("seq {seq} {fault}"));
        }
    }
    Ok(())
}

fn has_tallies(report: &Report) -> bool {
    report.schema_version >= super::schema::TALLIES_STEP
}

/// Heads and anchors say what the entries come to. Each anchor is compared with the one before it and the entries
/// between: so one changed entry is one fault, and the anchors after it are none.
fn check_tallies(conn: &Connection, rooms: &[RoomRow], faults: &mut Faults<'_>) -> rusqlite::Result<()> {
    // Beside the tally the seq of the last anchor, up to which all was compared.
    let start = |room: &RoomRow| (room.key, (Tally::start(room.name.as_str()), 0));
    let mut tallies: BTreeMap<RoomKey, (Tally, Seq)> = rooms.iter().map(start).collect();
    let mut statement = conn.prepare(
        "SELECT l.room, l.seq, l.ts, l.kind, a.messages, a.hash
         FROM log l LEFT JOIN anchors a ON l.seq % ?1 = 0 AND a.room = l.room AND a.seq = l.seq ORDER BY l.position",
    )?;
    let mut rows = statement.query([signed(ANCHOR_EVERY)])?;
    while let Some(row) = rows.next()? {
        let (key, seq) = (RoomKey(integer(row, 0)?), integer(row, 1)?);
        let Some((tally, compared)) = tallies.get_mut(&key) else { continue };
        match EventKind::from_number(row.get(3)?) {
            Some(kind) => tally.add(seq, integer(row, 2)?, kind),
            None => faults.add(key, Kind::Unknown, format_args!("seq {seq} is of no known kind")),
        }
        if row.get::<_, Option<i64>>(4)?.is_some() {
            let anchored = super::columns::tally(row, 4)?;
            if anchored != *tally {
                let fault = changed(*compared, seq);
                faults.add(key, Kind::Tally, format_args!("{fault}, or the tally anchored at seq {seq} was"));
            }
            (*tally, *compared) = (anchored, seq);
        }
    }
    for room in rooms {
        let (tally, compared) = tallies[&room.key];
        if tally != room.tally && compared >= room.head {
            faults.add(room.key, Kind::Tally, "its head has another tally than its entries");
        } else if tally != room.tally {
            let fault = changed(compared, room.head);
            faults.add(room.key, Kind::Tally, format_args!("{fault}, or the tally of its head was"));
        }
    }
    Ok(())
}

/// All up to `compared` fits, and what is noted of `seq` does not.
fn changed(compared: Seq, seq: Seq) -> String {
    format!("an entry from seq {} to {seq} was changed or is missing", compared + 1)
}

fn check_members(conn: &Connection, rooms: &[RoomRow], faults: &mut Faults<'_>) -> rusqlite::Result<()> {
    let mut statement = conn.prepare("SELECT count(*) FROM members WHERE room = ?1 AND role > 0")?;
    for room in rooms {
        let count: u32 = statement.query_row([signed(room.key.0)], |row| row.get(0))?;
        if count != room.members {
            let fault = format_args!("{count} members where {} are noted", room.members);
            faults.add(room.key, Kind::Members, fault);
        }
    }
    Ok(())
}
