//! What a start settles before anything is accepted: that what was recovered is on the disk, and whether
//! the log may have gone back.
//!
//! - After a failed fsync the kernel counts pages as clean that never reached the disk. The process ends; the next one
//!   reads those pages from the kernel's memory, and they look committed. Commits after them would be synced
//!   and be lost all the same, since the log is read up to the first frame that is not whole. So the log's bytes are
//!   written again where they stand and synced, and only then copied into the database.
//! - With `durability=relaxed` a power cut takes the log's last commits. Their numbers are then given again, and clients
//!   must not take the new entries for those they know: the log gets another epoch. A mark in `meta` says in which boot
//!   of the machine a relaxed writer last ran; it is durable before the first commit and goes with the last one.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

use super::checkpoint::{checkpoint, start_over};
use super::{Durability, OpenError};
use crate::protocol::ids::Epoch;

/// Bytes of the log that are written again at once.
const CHUNK_BYTES: usize = 1_024 * 1_024;

/// Brings what a lost process left in the log to the disk, and copies it into the database. Nothing to do after an
/// orderly stop. `conn` commits durably and is in no transaction.
///
/// The log is written again first: should the power be cut while the database is being written, or a reader
/// be in the way of that, the disk has the whole log.
///
/// # Errors
/// The log cannot be read, written or synced; SQLite's.
pub(super) fn make_durable(conn: &Connection, log: &Path) -> Result<(), OpenError> {
    let at = |error| OpenError::Dir { path: log.to_owned(), error };
    match std::fs::metadata(log) {
        Ok(meta) if meta.len() > 0 => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(error)),
    }
    let recovered = checkpoint(conn, "NOOP")?;
    // Nobody writes to the log or shortens it meanwhile.
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let rewritten = write_again(log, recovered.end());
    conn.execute_batch("ROLLBACK")?;
    rewritten.map_err(at)?;
    if !start_over(conn)? {
        tracing::warn!("store: a reader kept the recovered log from being copied; it is on the disk and grows on");
    }
    if recovered.frames > 0 {
        tracing::info!(frames = recovered.frames, "store: recovered the log of a process that did not stop in order");
    }
    Ok(())
}

/// Writes the first `length` bytes of a file to where they are, and syncs them. Bytes past its end are no error.
fn write_again(path: &Path, length: u64) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while offset < length {
        let wanted = CHUNK_BYTES.min(usize::try_from(length - offset).unwrap_or(CHUNK_BYTES));
        let count = read_at(&file, &mut chunk[..wanted], offset)?;
        if count == 0 {
            break;
        }
        file.write_all_at(&chunk[..count], offset)?;
        offset += count as u64;
    }
    file.sync_all()
}

fn read_at(file: &File, into: &mut [u8], offset: u64) -> std::io::Result<usize> {
    loop {
        match file.read_at(into, offset) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Names this boot of the machine; empty when the system does not tell, which is taken for another boot each time.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

const RELAXED: &str = "relaxed_boot";

/// The log's epoch. A new database gets one, and so does one whose relaxed writer ended in another boot and not in
/// order. From here on the mark says what the coming writer is. `conn` commits durably.
///
/// # Errors
/// No random bytes; SQLite's.
pub(super) fn epoch(conn: &Connection, durability: Durability, boot: &str) -> Result<Epoch, OpenError> {
    let whole = conn.unchecked_transaction()?;
    let (known, mark) = (meta(&whole, "epoch")?, meta(&whole, RELAXED)?);
    let may_have_gone_back = mark.as_deref().is_some_and(|marked| marked != boot || boot.is_empty());
    let epoch = match known {
        Some(known) if !may_have_gone_back => known,
        known => {
            let fresh = random_epoch()?;
            if let Some(known) = known {
                tracing::warn!(
                    was = known,
                    is = fresh,
                    "store: the machine went down under durability=relaxed: messages may be lost, so the log gets a new epoch"
                );
            }
            set_meta(&whole, "epoch", &fresh)?;
            fresh
        }
    };
    match durability {
        Durability::Relaxed => set_meta(&whole, RELAXED, boot)?,
        Durability::Full if mark.is_some() => end_in_order(&whole)?,
        Durability::Full => {}
    }
    whole.commit()?;
    Ok(Epoch::new(&epoch))
}

/// The writer's last commit. Of the log's commits the disk has the first ones and never one without those before it:
/// once the mark is gone there, nothing is missing.
pub(super) fn end_in_order(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM meta WHERE key = ?1", [RELAXED]).map(|_| ())
}

fn meta(conn: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    conn.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

fn set_meta(conn: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    conn.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", [key, value]).map(|_| ())
}

fn random_epoch() -> Result<String, OpenError> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(|error| OpenError::Random(error.to_string()))?;
    Ok(format!("{:016x}", u64::from_be_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::super::schema::{database_path, log_path, open_writer};
    use super::*;
    use crate::test_dir::TestDir;

    const ROW: &str = "INSERT INTO rooms (name, kind, members, created_ts) VALUES (hex(randomblob(2000)), 0, 0, 0)";

    fn rooms(conn: &Connection) -> i64 {
        conn.query_row("SELECT count(*) FROM rooms", [], |row| row.get(0)).unwrap()
    }

    /// A directory as a crash leaves it: 20 commits that stand in the log only.
    fn crashed(name: &str) -> TestDir {
        let (from, to) = (TestDir::new(&format!("{name}-from")), TestDir::new(name));
        let conn = open_writer(&from.0).unwrap();
        start_over(&conn).unwrap();
        (0..20).for_each(|_| assert_eq!(conn.execute(ROW, []), Ok(1)));
        for path in [database_path, log_path] {
            std::fs::copy(path(&from.0), path(&to.0)).unwrap();
        }
        assert!(log_path(&to.0).metadata().unwrap().len() > 20 * 4_096);
        to
    }

    #[test]
    fn what_is_recovered_is_written_anew_before_anything_is_accepted() {
        let dir = crashed("recovered");
        let conn = open_writer(&dir.0).unwrap();
        assert_eq!(log_path(&dir.0).metadata().unwrap().len(), 0);
        let database = Connection::open_with_flags(
            format!("file:{}?immutable=1", database_path(&dir.0).display()),
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI,
        );
        assert_eq!((rooms(&database.unwrap()), rooms(&conn)), (20, 20), "the database has it without a log");
    }

    #[test]
    fn a_reader_in_the_way_leaves_a_log_that_is_on_the_disk() {
        let dir = crashed("recovered-busy");
        let reader = Connection::open(database_path(&dir.0)).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(rooms(&reader), 20);
        let before = std::fs::read(log_path(&dir.0)).unwrap();
        let written = |io: &str| {
            let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
            text.lines().find_map(|line| line.strip_prefix(io)?.parse::<u64>().ok()).unwrap()
        };
        let written_before = written("wchar: ");
        let conn = open_writer(&dir.0).unwrap();
        assert!(written("wchar: ") - written_before >= before.len() as u64);
        assert_eq!(std::fs::read(log_path(&dir.0)).unwrap(), before, "written to where it was");
        conn.execute(ROW, []).unwrap();
        assert_eq!((rooms(&conn), rooms(&reader)), (21, 20));
    }

    #[test]
    fn only_as_much_is_written_again_as_is_asked_for() {
        let dir = TestDir::new("write-again");
        let path = dir.0.join("file");
        let bytes: Vec<u8> = (0..3 * CHUNK_BYTES + 5).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        for length in [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5, 4 * CHUNK_BYTES] {
            write_again(&path, length as u64).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(write_again(&dir.0.join("none"), 1).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_rollback_leaves_nothing_that_could_be_written_over_another_connection_s_commit() {
        let dir = TestDir::new("no-spill");
        let conn = open_writer(&dir.0).unwrap();
        conn.execute_batch("PRAGMA cache_size = 10").unwrap();
        for round in 1..=5 {
            let length = || log_path(&dir.0).metadata().unwrap().len();
            let before = length();
            conn.execute_batch("BEGIN IMMEDIATE").unwrap();
            (0..40).for_each(|_| assert_eq!(conn.execute(ROW, []), Ok(1)));
            assert_eq!(length(), before, "a page went to the log before the commit");
            conn.execute_batch("ROLLBACK").unwrap();
            let other = Connection::open(database_path(&dir.0)).unwrap();
            other.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
            (0..3).for_each(|_| assert_eq!(other.execute(ROW, []), Ok(1)));
            conn.execute(ROW, []).unwrap();
            let fresh = Connection::open(database_path(&dir.0)).unwrap();
            assert_eq!(rooms(&fresh), round * 4);
            assert_eq!(fresh.query_row("PRAGMA integrity_check", [], |row| row.get(0)), Ok("ok".to_owned()));
        }
    }

    #[test]
    fn a_relaxed_log_that_may_have_gone_back_gets_another_epoch() {
        use Durability::{Full, Relaxed};
        let dir = TestDir::new("epochs");
        let conn = open_writer(&dir.0).unwrap();
        let open = |durability, boot| epoch(&conn, durability, boot).unwrap();
        let first = open(Full, "monday");
        assert_eq!(open(Full, "tuesday"), first, "what was committed is there");
        assert_eq!(open(Relaxed, "tuesday"), first);
        assert_eq!(open(Relaxed, "tuesday"), first, "the process ended, the machine did not");
        let second = open(Relaxed, "wednesday");
        assert_ne!(second, first);
        end_in_order(&conn).unwrap();
        assert_eq!(open(Relaxed, "thursday"), second);
        let third = open(Full, "friday");
        assert_ne!(third, second);
        assert_eq!(open(Full, "saturday"), third, "told once");
        assert_eq!(open(Relaxed, ""), third);
        assert_ne!(open(Full, ""), third, "nobody knows");
    }
}
