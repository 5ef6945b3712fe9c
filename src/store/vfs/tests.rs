//! The log through the VFS: what another connection sees, what is there after a crash, how often it is written to.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{FRAME_HEADER, Fate, GATHERED_MAX, Gathered};
use crate::test_dir::TestDir;

const PAGE: [u8; 4_096] = [7; 4_096];
const HEADER: [u8; FRAME_HEADER] = [0; FRAME_HEADER];

fn commit_header() -> [u8; FRAME_HEADER] {
    let mut header = HEADER;
    header[7] = 9;
    header
}

/// As if the last write had ended at `end`.
fn after(end: i64) -> Gathered {
    Gathered { bytes: Vec::new(), end, commits: false }
}

#[test]
fn a_commit_goes_out_with_its_last_page() {
    let mut gathered = after(32);
    assert_eq!(gathered.add(&HEADER, 32), Fate::Kept);
    assert_eq!(gathered.add(&PAGE, 56), Fate::Kept);
    assert_eq!(gathered.add(&commit_header(), 4_152), Fate::Kept);
    assert_eq!(gathered.add(&PAGE, 4_176), Fate::Flush);
    assert_eq!((gathered.begin(), gathered.bytes.len()), (32, 2 * (24 + 4_096)));
}

#[test]
fn the_page_of_a_commit_goes_out_though_its_header_was_not_gathered() {
    let mut gathered = Gathered::new();
    assert_eq!(gathered.add(&commit_header(), 32), Fate::Through);
    gathered.end = 56;
    assert_eq!(gathered.add(&PAGE, 56), Fate::Flush);
}

#[test]
fn what_is_not_an_append_is_not_gathered() {
    for offset in [0, 100, 4_096] {
        let mut gathered = after(4_152);
        assert_eq!(gathered.add(&PAGE, offset), Fate::Through);
        assert!(gathered.bytes.is_empty());
    }
}

#[test]
fn a_large_transaction_goes_out_in_parts() {
    let mut gathered = after(0);
    for frame in 1.. {
        assert_eq!(gathered.add(&HEADER, gathered.end), Fate::Kept);
        let fate = gathered.add(&PAGE, gathered.end);
        assert!(gathered.bytes.len() <= GATHERED_MAX);
        if fate == Fate::Flush {
            assert_eq!(frame, 31);
            return;
        }
    }
}

#[test]
fn what_is_too_long_is_not_gathered() {
    let mut gathered = after(0);
    assert_eq!(gathered.add(&HEADER, 0), Fate::Kept);
    assert_eq!(gathered.add(&[0; GATHERED_MAX], 24), Fate::Through);
}

fn database(dir: &TestDir) -> PathBuf {
    dir.0.join("test.db")
}

/// A database with the log written through the VFS, and so small a cache that transactions do not fit into it.
fn open(path: &Path, synchronous: &str) -> Connection {
    let name = super::name().expect("SQLite takes the VFS");
    let conn = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), name).expect("a database");
    conn.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; PRAGMA wal_autocheckpoint = 0;
         PRAGMA cache_size = 10; CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB NOT NULL);"
    ))
    .expect("settings");
    conn
}

fn content(conn: &Connection) -> (i64, i64, i64) {
    conn.query_row("SELECT count(*), total(id), total(length(body) * (id + 1)) FROM t", [], |row| {
        Ok((row.get(0)?, row.get::<_, f64>(1)? as i64, row.get::<_, f64>(2)? as i64))
    })
    .expect("the table is there")
}

/// Calls of this thread that write.
fn writes() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("syscw: "));
    line.and_then(|count| count.parse().ok()).expect("the kernel counts calls")
}

#[test]
fn a_commit_is_one_write_for_every_128_kib() {
    let dir = TestDir::new("vfs-writes");
    let conn = open(&database(&dir), "FULL");
    conn.execute_batch("PRAGMA cache_spill = OFF").expect("a setting");
    // Rows fill a page each; the tree's own pages are written too.
    let writes_of = |rows: u32| {
        let before = writes();
        let insert = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
            INSERT INTO t (body) SELECT zeroblob(3000) FROM n";
        conn.execute(insert, [rows]).expect("rows");
        writes() - before
    };
    writes_of(10);
    assert_eq!(writes_of(10), 1);
    // Lengths on both sides of 128 KiB and its multiples.
    for rows in 20..200 {
        let count = writes_of(rows);
        // Eight are of the shared memory's file, when that grows.
        assert!(count <= u64::from(rows).div_ceil(30) + 1 + 8, "{rows} rows: {count} writes");
    }
    assert_eq!(content(&after_crash(&dir)), content(&conn));
}

/// Random transactions, larger than the cache and smaller, some rolled back in part or whole, with the log copied into
/// the database now and then: a connection of the system's VFS sees each commit, and so does who comes after a crash.
fn runs_like_the_system_s(synchronous: &str) {
    let dir = TestDir::new(&format!("vfs-{synchronous}"));
    let conn = open(&database(&dir), synchronous);
    let reader = Connection::open(database(&dir)).expect("a second connection");
    let mut random = 1_u32;
    let mut next = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % below
    };
    for round in 0..400 {
        let before = content(&conn);
        conn.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        for _ in 0..=next(60) {
            let (id, bytes) = (next(400), next(6_000));
            if next(20) == 0 {
                conn.execute_batch("SAVEPOINT s").expect("a transaction runs");
            }
            conn.execute("INSERT OR REPLACE INTO t VALUES (?1, zeroblob(?2))", (id, bytes)).expect("a row");
            if next(10) == 0 {
                conn.execute("DELETE FROM t WHERE id > ?1 AND id < ?1 + 20", [next(400)]).expect("a range");
            }
            if next(20) == 0 {
                // There may be none.
                let _ = conn.execute_batch("ROLLBACK TO s");
            }
        }
        assert_eq!(content(&reader), before, "round {round}: not committed, and seen");
        let expected = if next(4) == 0 {
            conn.execute_batch("ROLLBACK").expect("a transaction runs");
            before
        } else {
            let written = content(&conn);
            conn.execute_batch("COMMIT").expect("a transaction runs");
            written
        };
        assert_eq!(content(&reader), expected, "round {round}: what the other connection sees");
        match next(12) {
            0 => reader.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").expect("a checkpoint"),
            1 => conn.execute_batch("PRAGMA wal_checkpoint(RESTART)").expect("a checkpoint"),
            2 => reader.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("a checkpoint"),
            3 => assert_eq!(content(&after_crash(&dir)), expected, "round {round}: what a crash leaves"),
            _ => {}
        }
    }
}

/// The files as they stand, opened as after the end of the process.
fn after_crash(dir: &TestDir) -> Connection {
    let copy = dir.0.join("copy.db");
    for end in ["", "-wal"] {
        let name = |base: &str| dir.0.join(format!("{base}.db{end}"));
        std::fs::copy(name("test"), name("copy")).expect("a copy");
    }
    let _ = std::fs::remove_file(dir.0.join("copy.db-shm"));
    let conn = Connection::open(copy).expect("a database");
    let answer: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer");
    assert_eq!(answer, "ok");
    conn
}

#[test]
fn durable_commits_run_like_the_system_s() {
    runs_like_the_system_s("FULL");
}

#[test]
fn relaxed_commits_run_like_the_system_s() {
    runs_like_the_system_s("NORMAL");
}
