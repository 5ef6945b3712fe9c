//! The database file: how it is opened, what is asked of SQLite and read back, the schema and its
//! migrations.
//!
//! There is no index on (room, seq). A batch has entries of many rooms, each at another place of such
//! an index, so that every batch would write nearly a page for each of its rooms: measured with 200
//! rooms, that was two thirds of the cost of a row. Instead each entry points back at its room's
//! previous one, `heads` says where to begin, and every 64th entry is in `anchors`: an entry is found
//! in one look-up and at most 63 steps, and a page of history is a walk (see `history`). That seqs are
//! dense is checked by the writer at each row, and by `inspect`.
//!
//! Settings, and why:
//! - WAL, `synchronous=FULL`: a commit is durable when it returns. Read back; anything else is refused.
//! - 4 KiB pages: a small batch rewrites the last page of each tree it touches, so pages cost their size.
//! - No memory map: a failing disk would be SIGBUS, not an error.
//! - `wal_autocheckpoint=0`: the checkpoint thread does it, outside of the commit path.
//! - `cache_spill=OFF`: a transaction that is rolled back never came near the log.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};

use super::{OpenError, recovery};

/// Version of the schema that this program writes.
pub const SCHEMA_VERSION: u32 = MIGRATIONS.len() as u32;

/// "Anti": tells our files from other people's databases.
const APPLICATION_ID: i64 = 0x416e_7469;

/// Step `n` takes a database from version `n` to `n + 1`. Steps are never changed once released.
const MIGRATIONS: [&str; 7] = [
    "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rooms (
    key INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind INTEGER NOT NULL, title TEXT,
    members INTEGER NOT NULL, created_ts INTEGER NOT NULL);
CREATE INDEX rooms_kind_name ON rooms (kind, name);
-- Append-only: rows are never updated. `prev` is the position of the room's entry before, 0: none.
-- `fields` is last, so that scans of the others skip it.
CREATE TABLE log (
    position INTEGER PRIMARY KEY, room INTEGER NOT NULL, seq INTEGER NOT NULL, prev INTEGER NOT NULL,
    ts INTEGER NOT NULL, kind INTEGER NOT NULL, priority INTEGER NOT NULL, author TEXT, client_id TEXT,
    thread INTEGER, audience TEXT, fields TEXT NOT NULL);
CREATE INDEX log_thread ON log (room, thread, seq) WHERE thread IS NOT NULL;
-- Where each room's last entry stands: written once a room and batch.
CREATE TABLE heads (room INTEGER PRIMARY KEY, seq INTEGER NOT NULL, position INTEGER NOT NULL);
-- Where every 64th entry of a room stands.
CREATE TABLE anchors (
    room INTEGER NOT NULL, seq INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (room, seq)) WITHOUT ROWID;
CREATE TABLE members (
    room INTEGER NOT NULL, user TEXT NOT NULL, role INTEGER NOT NULL, PRIMARY KEY (room, user)) WITHOUT ROWID;
CREATE INDEX members_user ON members (user, room, role);
CREATE INDEX members_owner ON members (room) WHERE role = 3;
CREATE TABLE cursors (
    user TEXT NOT NULL, room INTEGER NOT NULL, read INTEGER NOT NULL, PRIMARY KEY (user, room)) WITHOUT ROWID;
CREATE TABLE revocations (
    id INTEGER PRIMARY KEY, jti TEXT UNIQUE, user TEXT UNIQUE, before INTEGER, ts INTEGER NOT NULL);
CREATE TABLE probe (id INTEGER PRIMARY KEY, filler BLOB NOT NULL);
",
    "
-- What a device said to have, where that was ahead of the user's read cursor.
CREATE TABLE delivered (
    user TEXT NOT NULL, room INTEGER NOT NULL, device TEXT NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (user, room, device)) WITHOUT ROWID;
-- How a message stands that was edited, deleted or reacted to. `position` is that of its first entry;
-- `body` is a JSON string, NULL: the first one.
CREATE TABLE message_state (
    room INTEGER NOT NULL, seq INTEGER NOT NULL, position INTEGER NOT NULL, version INTEGER NOT NULL,
    deleted INTEGER NOT NULL, edited_ts INTEGER NOT NULL, body TEXT, PRIMARY KEY (room, seq)) WITHOUT ROWID;
CREATE TABLE reactions (
    room INTEGER NOT NULL, seq INTEGER NOT NULL, emoji TEXT NOT NULL, user TEXT NOT NULL,
    PRIMARY KEY (room, seq, emoji, user)) WITHOUT ROWID;
CREATE TABLE reaction_counts (
    room INTEGER NOT NULL, seq INTEGER NOT NULL, emoji TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (room, seq, emoji)) WITHOUT ROWID;
",
    "
-- What waits for users. Numbers are never given twice, hence AUTOINCREMENT. `room` and `seq`: the log
-- entry that an item is about. `data` is last, so that counting a queue skips it.
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT NOT NULL, priority INTEGER NOT NULL, bytes INTEGER NOT NULL,
    ts INTEGER NOT NULL, expires_ts INTEGER NOT NULL, attempts INTEGER NOT NULL, sender TEXT, room INTEGER,
    seq INTEGER, name TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX inbox_user ON inbox (user);
CREATE INDEX inbox_expires ON inbox (expires_ts);
-- Items that were sent too often without an acknowledgement.
CREATE TABLE inbox_dead (
    id INTEGER PRIMARY KEY, user TEXT NOT NULL, priority INTEGER NOT NULL, ts INTEGER NOT NULL,
    dead_ts INTEGER NOT NULL, attempts INTEGER NOT NULL, sender TEXT, name TEXT NOT NULL, data TEXT NOT NULL);
",
    "
-- What a room's entries come to, from the first to this one: how many messages, and the rolling hash (see
-- `engine::tally`; its 64 bits as a signed number). `counted`: messages up to the read cursor.
-- TALLIES_STEP: the columns are filled from the log by `tallies::fill`.
ALTER TABLE heads ADD COLUMN messages INTEGER NOT NULL DEFAULT 0;
ALTER TABLE heads ADD COLUMN hash INTEGER NOT NULL DEFAULT 0;
ALTER TABLE anchors ADD COLUMN messages INTEGER NOT NULL DEFAULT 0;
ALTER TABLE anchors ADD COLUMN hash INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cursors ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX message_deleted ON message_state (room, seq) WHERE deleted = 1;
",
    "
-- What could not be applied. `kind`: 0 an inbox item, 1 an entry; `user`: '' for nobody. `payload` is JSON.
CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, user TEXT NOT NULL, reason TEXT NOT NULL,
    attempts INTEGER NOT NULL, first_ts INTEGER NOT NULL, last_ts INTEGER NOT NULL, payload TEXT NOT NULL);
CREATE INDEX dead_letters_user ON dead_letters (user, id);
INSERT INTO dead_letters (kind, user, reason, attempts, first_ts, last_ts, payload)
    SELECT 0, user, 'not acknowledged after the last attempt', attempts, ts, dead_ts,
        '{\"what\":\"item\",\"name\":' || json_quote(name) || ',\"data\":' || data || ',\"priority\":\"'
        || CASE priority WHEN 0 THEN 'critical' WHEN 1 THEN 'normal' ELSE 'low' END || '\"'
        || CASE WHEN sender IS NULL THEN '' ELSE ',\"from\":' || json_quote(sender) END || '}'
    FROM inbox_dead ORDER BY id;
DROP TABLE inbox_dead;
-- When the revoked token expires; NULL: not known.
ALTER TABLE revocations ADD COLUMN expires_ts INTEGER;
",
    "
-- What others saw of users, and when it changed. `lost_ts`: for those that were lost with the server,
-- its last sign of life.
CREATE TABLE presence_log (
    user TEXT NOT NULL, ts INTEGER NOT NULL, status INTEGER NOT NULL, cause INTEGER NOT NULL, device TEXT,
    lost_ts INTEGER, PRIMARY KEY (user, ts)) WITHOUT ROWID;
CREATE INDEX presence_log_ts ON presence_log (ts);
-- What is shown of each user now, and the last day and month (since the epoch; year * 12 + month) in
-- which that changed.
CREATE TABLE presence_users (
    user TEXT PRIMARY KEY, status INTEGER NOT NULL, since INTEGER NOT NULL, day INTEGER NOT NULL,
    month INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX presence_shown ON presence_users (user) WHERE status > 0;
-- What each shard last told, in this life of the server.
CREATE TABLE presence_shards (
    shard INTEGER PRIMARY KEY, boot INTEGER NOT NULL, number INTEGER NOT NULL, ts INTEGER NOT NULL,
    online INTEGER NOT NULL, away INTEGER NOT NULL, busy INTEGER NOT NULL);
-- Counts. `peak`, `online`, `away`, `busy`: most users at once.
CREATE TABLE presence_hours (
    hour INTEGER PRIMARY KEY, peak INTEGER NOT NULL, online INTEGER NOT NULL, away INTEGER NOT NULL,
    busy INTEGER NOT NULL, online_ms INTEGER NOT NULL, away_ms INTEGER NOT NULL, busy_ms INTEGER NOT NULL);
CREATE TABLE presence_devices (
    hour INTEGER NOT NULL, class TEXT NOT NULL, sessions INTEGER NOT NULL, total_ms INTEGER NOT NULL,
    PRIMARY KEY (hour, class)) WITHOUT ROWID;
-- `period` 0: days, 1: months.
CREATE TABLE presence_active (
    period INTEGER NOT NULL, at INTEGER NOT NULL, users INTEGER NOT NULL, PRIMARY KEY (period, at)) WITHOUT ROWID;
",
    "
-- The read cursor stands with the membership: who comes in has one, who leaves needs none.
ALTER TABLE members ADD COLUMN read INTEGER NOT NULL DEFAULT 0;
ALTER TABLE members ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
UPDATE members SET read = c.read, counted = c.counted FROM cursors c
    WHERE c.user = members.user AND c.room = members.room;
DROP TABLE cursors;
",
];

/// The version whose step made the columns that [`super::tallies::fill`] fills.
pub(super) const TALLIES_STEP: u32 = 4;

/// Name of the database in the data directory.
pub const DATABASE_FILE: &str = "antiphon.db";
/// What a running server holds a lock on, in its data directory.
pub const LOCK_FILE: &str = "antiphon.lock";

/// Every entry whose seq is a multiple of this has an anchor. Part of the file format.
pub(super) const ANCHOR_EVERY: u64 = 64;

/// Pages of a database, bytes.
pub(super) const PAGE_BYTES: u64 = 4_096;

/// Memory that the writer's connection may use for pages, KiB. Pages of the log are written once and stay there until
/// others want the place, so that it is soon full whatever its size; what is read again is small, or in the kernel's cache.
/// Large has a price: SQLite walks through all of it at the end of a transaction that split pages in the middle of a table
/// (`pcache1Truncate`), which with many rooms is every large one.
const WRITER_CACHE_KIB: i64 = 8 * 1_024;
/// The same for each reader.
const READER_CACHE_KIB: i64 = 8 * 1_024;
/// The WAL file is cut back to this when it starts over, bytes.
const WAL_KEEP_BYTES: i64 = 64 * 1_024 * 1_024;
/// `PRAGMA synchronous` as it is read back.
const SYNCHRONOUS_FULL: i64 = 2;
/// How long to wait for another connection (a truncating checkpoint).
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// Each connection stays on one thread, so SQLite's own mutexes are not needed.
const THREAD_FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_NO_MUTEX;

/// Held while a process owns a data directory; the kernel lets go when the process ends, however.
#[derive(Debug)]
pub(super) struct DirLock {
    _file: File,
}

/// Makes the directory if need be and takes it for this process. What lies in it is for this user only: the database
/// is everybody's messages, and whoever can open the lock file can lock it.
pub(super) fn lock_dir(dir: &Path) -> Result<DirLock, OpenError> {
    let at = |error| OpenError::Dir { path: dir.to_owned(), error };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join(LOCK_FILE))
        .map_err(at)?;
    match file.try_lock() {
        Ok(()) => {
            make_private(dir);
            Ok(DirLock { _file: file })
        }
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(at(error)),
    }
}

/// Takes from others what an older antiphon let them read. SQLite makes its other files with the database's mode.
fn make_private(dir: &Path) {
    let wal = log_path(dir);
    for path in [dir.join(LOCK_FILE), database_path(dir), wal.with_extension("db-shm"), wal] {
        let is_open = |meta: std::fs::Metadata| meta.permissions().mode() & 0o077 != 0;
        if std::fs::metadata(&path).is_ok_and(is_open)
            && let Err(error) = std::fs::set_permissions(&path, Permissions::from_mode(0o600))
        {
            tracing::warn!(path = %path.display(), %error, "store: others may use this file, and its mode cannot be changed");
        }
    }
}

/// What keeps a server from opening the database in `dir`, if there is one; for whoever holds the lock of the folder.
/// Nothing is written to it.
///
/// # Errors
/// See [`OpenError`].
pub fn probe_database(dir: &Path) -> Result<(), OpenError> {
    let path = database_path(dir);
    if !path.exists() {
        return Ok(());
    }
    let conn = open(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // A write-ahead log that was left is the next server's to copy.
    let has_log = log_path(dir).exists();
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)?;
    check_ownership(&conn)?;
    check_version(&conn)?;
    // SQLite opens what it may not write as well, for reading.
    if conn.is_readonly(rusqlite::MAIN_DB)? {
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_READONLY), None).into());
    }
    // The right to write, without using it: another program may have taken it.
    conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK")?;
    Ok(())
}

/// Opens the writer's connection: settings made and read back, schema brought up to date.
/// Commits are durable (`synchronous=FULL`) until [`relax`] says otherwise.
pub(super) fn open_writer(dir: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | THREAD_FLAGS;
    let conn = set_up(Connection::open_with_flags_and_vfs(database_path(dir), flags, super::vfs::name()?)?)?;
    check_ownership(&conn)?;
    let version = check_version(&conn)?;
    conn.execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}"))?;
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    conn.execute_batch(&format!(
        "PRAGMA synchronous = {SYNCHRONOUS_FULL};
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = {WAL_KEEP_BYTES};
         PRAGMA mmap_size = 0;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -{WRITER_CACHE_KIB};"
    ))?;
    let synchronous: i64 = conn.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
    if mode != "wal" || synchronous != SYNCHRONOUS_FULL {
        return Err(OpenError::NotDurable { mode, synchronous });
    }
    conn.set_prepared_statement_cache_capacity(64);
    recovery::make_durable(&conn, &log_path(dir))?;
    migrate(&conn, version)?;
    // Nothing of a transaction goes to the log before its commit (see `vfs`). What a transaction changes stays in
    // memory until then: that of a batch is bounded by its appends, which are in memory anyhow, and that of
    // upkeep by its slices. A migration may need more, and is over.
    conn.execute_batch("PRAGMA cache_spill = OFF")?;
    Ok(conn)
}

/// From here on a commit is durable when the operating system has it.
pub(super) fn relax(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("PRAGMA synchronous = NORMAL")
}

/// Opens a connection that cannot write.
pub(super) fn open_reader(dir: &Path) -> rusqlite::Result<Connection> {
    let conn = open(&database_path(dir), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.execute_batch(&format!(
        "PRAGMA query_only = 1; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -{READER_CACHE_KIB};"
    ))?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// Opens the connection that checkpoints.
pub(super) fn open_checkpointer(dir: &Path) -> rusqlite::Result<Connection> {
    let conn = open(&database_path(dir), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.execute_batch(&format!("PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = {WAL_KEEP_BYTES};"))?;
    Ok(conn)
}

/// Path of the database in a data directory.
pub(super) fn database_path(dir: &Path) -> PathBuf {
    dir.join(DATABASE_FILE)
}

/// Path of its write-ahead log.
pub(super) fn log_path(dir: &Path) -> PathBuf {
    database_path(dir).with_extension("db-wal")
}

fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    set_up(Connection::open_with_flags(path, flags | THREAD_FLAGS)?)
}

fn set_up(conn: Connection) -> rusqlite::Result<Connection> {
    // Plans do not look at bound values. Else a statement with a bound LIMIT is parsed anew each time it
    // is bound, which costs more than most of our answers.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.busy_timeout(BUSY_WAIT)?;
    Ok(conn)
}

pub(super) fn schema_version(conn: &Connection) -> rusqlite::Result<u32> {
    conn.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// The version, unless a newer program made it.
fn check_version(conn: &Connection) -> Result<u32, OpenError> {
    let found = schema_version(conn)?;
    if found > SCHEMA_VERSION { Err(OpenError::NewerSchema { found, known: SCHEMA_VERSION }) } else { Ok(found) }
}

/// Refuses a database that some other program made.
pub(super) fn check_ownership(conn: &Connection) -> Result<(), OpenError> {
    let id: i64 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if id == APPLICATION_ID || (id == 0 && tables == 0) { Ok(()) } else { Err(OpenError::NotOurs) }
}

fn migrate(conn: &Connection, from: u32) -> Result<(), OpenError> {
    for (step, version) in MIGRATIONS.iter().zip(1u32..).skip(from as usize) {
        let step = format!("{step} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};");
        let whole = conn.unchecked_transaction()?;
        whole.execute_batch(&step)?;
        if version == TALLIES_STEP {
            super::tallies::fill(&whole)?;
        }
        whole.commit()?;
    }
    Ok(())
}
