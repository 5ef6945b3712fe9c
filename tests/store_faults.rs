//! The store when the disk fails: nothing acknowledged that does not stand, nothing published twice
//! or out of order, writes refused while they cannot work, and taken again when they can.

#![allow(clippy::unwrap_used)]

mod store_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use antiphon::engine::event::{Entry, Query, ReadRequest, Revocation, ShardId, StoreEvent, Token};
use antiphon::protocol::error::{ErrorCode, Refusal};
use antiphon::protocol::ids::{RoomKey, RoomKind};
use antiphon::store::schema::{DATABASE_FILE, SCHEMA_VERSION};
use antiphon::store::{Durability, OpenError, RoomLog as _, SqliteLog, StoreConfig};
use store_support::*;

fn quick(dir: &TempDir) -> StoreConfig {
    let mut config = config(dir);
    config.breaker.probe_min_ms = 20;
    config.breaker.probe_max_ms = 100;
    config
}

fn assert_degraded(refusal: &Refusal) {
    assert_eq!(refusal.code, ErrorCode::Degraded);
    assert!(refusal.retry_after_ms > 0);
}

#[test]
fn a_failed_commit_is_refused_and_leaves_nothing() {
    let dir = TempDir::new();
    let store = Store::open(&quick(&dir));
    let key = store.committed(join("a", "alice")).room;
    store.running().faults().fail_before_commit(1);
    assert_degraded(&store.ask(numbered(key, "alice", 1)).unwrap_err());
    assert_eq!(store.page_head("a"), 1);
    let committed = store.committed(numbered(key, "alice", 1));
    assert_eq!((committed.seq, committed.duplicate), (2, false), "the failed one is not remembered");
    assert_eq!(store.running().stats().failures, 1);
    store.stop();
}

#[test]
fn a_failed_commit_that_stands_is_published_before_the_next_batch() {
    let dir = TempDir::new();
    let store = Store::open(&quick(&dir));
    let key = store.committed(create("a", RoomKind::Private, "alice", &["bob"])).room;
    store.running().faults().fail_after_commit(1);
    assert_degraded(&store.ask(numbered(key, "alice", 1)).unwrap_err());
    assert_eq!(store.page_head("a"), 3, "it is durable all the same");

    store.submit(vec![numbered(key, "bob", 2), numbered(key, "alice", 1)]);
    let late = store.batch();
    assert_eq!((late.first, late.last), (3, 3));
    assert_eq!((late.runs[0].room, late.runs[0].entries[0].seq), (key, 3));
    assert!(late.outcomes.iter().all(Vec::is_empty), "its author was answered long ago");
    let next = store.batch();
    let results: Vec<_> = next.outcomes[0].iter().map(|outcome| outcome.result.clone().unwrap()).collect();
    assert_eq!((results[0].seq, results[0].duplicate), (4, false));
    assert_eq!((results[1].seq, results[1].duplicate), (3, true), "the retry finds the first");
    let stats = store.running().stats();
    assert_eq!((stats.adopted, stats.rows), (1, store.position()), "what stands is counted");
    store.stop();
}

#[test]
fn a_batch_in_doubt_is_settled_without_waiting_for_the_next_append() {
    let dir = TempDir::new();
    let store = Store::open(&quick(&dir));
    let key = store.committed(join("a", "alice")).room;
    store.running().faults().fail_after_commit(1);
    assert_degraded(&store.ask(numbered(key, "alice", 1)).unwrap_err());
    // Nobody says a word.
    let late = store.batch();
    assert_eq!((late.runs[0].entries[0].seq, late.outcomes.iter().all(Vec::is_empty)), (2, true));
    assert_eq!(store.running().stats().adopted, 1);
    let again = store.committed(numbered(key, "alice", 1));
    assert_eq!((again.seq, again.duplicate), (2, true));
    store.stop();
}

#[test]
fn a_failed_batch_without_entries_is_published_when_it_stands() {
    let dir = TempDir::new();
    let store = Store::open(&quick(&dir));
    let key = store.committed(join("a", "alice")).room;
    for stands in [true, false] {
        let revocation = Revocation::Jti(format!("stands {stands}").into());
        let faults = store.running().faults();
        if stands {
            faults.fail_after_commit(1)
        } else {
            faults.fail_before_commit(1)
        }
        assert_degraded(&store.ask(Entry::Revoke(revocation.clone())).unwrap_err());
        store.submit(vec![message(key, "alice", None, "x")]);
        if stands {
            assert_eq!(store.batch().revocations, [revocation]);
        }
        let next = store.batch();
        assert!(next.revocations.is_empty() && next.outcomes[0].len() == 1);
    }
    store.stop();
    assert_eq!(Store::open(&quick(&dir)).origin.revocations, [Revocation::Jti("stands true".into())]);
}

#[test]
fn the_breaker_opens_refuses_probes_and_closes() {
    let dir = TempDir::new();
    let store = Store::open(&quick(&dir));
    let key = store.committed(join("a", "alice")).room;
    // Three commits, then two probes.
    store.running().faults().fail_before_commit(5);
    for n in 0..3 {
        store.submit(vec![numbered(key, "alice", n)]);
        assert_degraded(store.batch().outcomes[0][0].result.as_ref().unwrap_err());
    }
    assert!(matches!(store.event(), StoreEvent::Degraded(true)));
    assert!(store.running().stats().degraded);
    // Refused at once; reads go on.
    store.submit(vec![numbered(key, "alice", 9)]);
    let refused = store.batch();
    assert_degraded(refused.outcomes[0][0].result.as_ref().unwrap_err());
    assert!(!refused.stamps.are_known(), "nothing was tried");
    assert_eq!(store.page_head("a"), 1);
    assert!(matches!(store.event(), StoreEvent::Degraded(false)));
    assert_eq!(store.running().stats().failures, 5);
    assert_eq!(store.committed(numbered(key, "alice", 0)).seq, 2);
    assert!(!store.running().stats().degraded);
    store.stop();
}

#[test]
fn a_full_disk_is_degraded_until_there_is_room() {
    let dir = TempDir::new();
    let store = Store::open(&quick(&dir));
    let key = store.committed(join("a", "alice")).room;
    let body = "x".repeat(8_000);
    store.running().faults().bound_pages(Some(200));
    let mut acked = Vec::new();
    let began = Instant::now();
    // Fills the disk, then keeps at it until the breaker opens.
    let mut n = 0;
    while !store.running().stats().degraded {
        assert!(began.elapsed() < PATIENCE);
        let id = format!("c{n}");
        match store.ask(message(key, "alice", Some(&id), &body)) {
            Ok(committed) => acked.push((id, committed.seq)),
            Err(refusal) => assert_degraded(&refusal),
        }
        n += 1;
    }
    assert!(acked.len() > 10, "{}", acked.len());
    // Probes fail as long as the disk is full: nothing says it is over.
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert!(store.running().stats().degraded);
    assert_degraded(&store.ask(numbered(key, "alice", 100_000)).unwrap_err());
    assert_eq!(store.page_head("a"), acked.last().unwrap().1, "reads go on");
    store.running().faults().bound_pages(None);
    eventually("a probe succeeds", || !store.running().stats().degraded);
    let next = store.committed(numbered(key, "alice", 100_001));
    assert_eq!(next.seq, acked.last().unwrap().1 + 1);
    for (id, seq) in &acked {
        let again = store.committed(message(key, "alice", Some(id), &body));
        assert_eq!((again.seq, again.duplicate), (*seq, true));
    }
    store.stop();
    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
}

#[test]
fn a_failed_fsync_ends_the_process() {
    for code in
        [rusqlite::ffi::SQLITE_IOERR_FSYNC, rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC, rusqlite::ffi::SQLITE_CORRUPT]
    {
        let dir = TempDir::new();
        let ends = Arc::new(AtomicU32::new(0));
        let mut config = quick(&dir);
        config.fatal = {
            let ends = ends.clone();
            Arc::new(move |text: &str| {
                assert!(text.starts_with("store: "), "{text}");
                ends.fetch_add(1, Ordering::Relaxed);
            })
        };
        let store = Store::open(&config);
        let key = store.committed(join("a", "alice")).room;
        let faults = store.running().faults();
        faults.use_code(code as u32);
        faults.fail_before_commit(1);
        assert_degraded(&store.ask(numbered(key, "alice", 1)).unwrap_err());
        assert!(matches!(store.event(), StoreEvent::Degraded(true)));
        eventually("the hook is called", || ends.load(Ordering::Relaxed) == 1);
        drop(store);
        assert_eq!(Store::open(&quick(&dir)).origin.position, 1);
    }
}

#[test]
fn relaxed_is_an_option_and_full_the_default() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    assert_eq!(config.durability, Durability::Full);
    config.durability = Durability::Relaxed;
    let store = Store::open(&config);
    let key = store.committed(join("a", "alice")).room;
    store.committed(numbered(key, "alice", 1));
    store.stop();
    assert_eq!(Store::open(&config).origin.position, 2);
}

/// A crash in the same boot of the machine loses nothing; one in another may have, and clients are to know.
#[test]
fn a_relaxed_store_gets_another_epoch_when_the_machine_went_down_under_it() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.durability = Durability::Relaxed;
    let reboot = || {
        let conn = rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
        conn.execute("UPDATE meta SET value = 'another' WHERE key = 'relaxed_boot'", []).unwrap()
    };
    let store = Store::open(&config);
    store.committed(join("a", "alice"));
    let epoch = store.origin.epoch.clone();
    drop(store);
    let store = Store::open(&config);
    assert_eq!((store.origin.epoch.clone(), store.origin.position), (epoch.clone(), 1), "only the process ended");
    store.stop();
    assert_eq!(reboot(), 0, "an orderly stop takes the mark away");
    drop(Store::open(&config));
    assert_eq!(reboot(), 1);
    let store = Store::open(&config);
    assert_ne!(store.origin.epoch, epoch);
    let epoch = store.origin.epoch.clone();
    store.stop();
    config.durability = Durability::Full;
    drop(Store::open(&config));
    assert_eq!(reboot(), 0, "durable commits need no mark");
    assert_eq!(Store::open(&config).origin.epoch, epoch);
}

#[test]
fn a_newer_schema_and_a_foreign_database_are_refused_with_a_sentence() {
    let dir = TempDir::new();
    Store::open(&config(&dir)).stop();
    let path = dir.path().join(DATABASE_FILE);
    let set = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    set(&format!("PRAGMA user_version = {}", SCHEMA_VERSION + 1));
    let error = SqliteLog::open(&config(&dir)).err().expect("refused");
    assert!(matches!(error, OpenError::NewerSchema { .. }));
    assert!(error.to_string().contains("use a newer antiphon"), "{error}");
    set(&format!("PRAGMA user_version = {SCHEMA_VERSION}; PRAGMA application_id = 7"));
    let error = SqliteLog::open(&config(&dir)).err().expect("refused");
    assert!(matches!(error, OpenError::NotOurs), "{error}");

    let dir = TempDir::new();
    std::fs::write(dir.path().join(DATABASE_FILE), "this is not a database, whatever its name says; not at all")
        .unwrap();
    let error = SqliteLog::open(&config(&dir)).err().expect("refused");
    assert!(error.to_string().contains("cannot be opened"), "{error}");

    let dir = TempDir::new();
    let mut elsewhere = config(&dir);
    elsewhere.dir = dir.path().join("a-file");
    std::fs::write(&elsewhere.dir, "x").unwrap();
    let error = SqliteLog::open(&elsewhere).err().expect("refused");
    assert!(matches!(error, OpenError::Dir { .. }), "{error}");
}

#[test]
fn an_inspection_beside_a_running_server_finds_what_is_wrong() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(create("a", RoomKind::Private, "alice", &["bob"])).room;
    store.committed(join("b", "carol"));
    for n in 0..10 {
        store.committed(numbered(key, "alice", n));
    }
    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    assert_eq!(report.epoch.as_deref(), Some(store.origin.epoch.as_str()));
    assert_eq!((report.first.unwrap().0, report.last.unwrap().0, report.schema_version), (1, 13, SCHEMA_VERSION));
    let rooms: Vec<_> = report.rooms.iter().map(|room| (room.name.as_str(), room.head, room.members)).collect();
    assert_eq!(rooms, [("a", 12, 2), ("b", 1, 1)]);
    assert!(report.database_bytes > 0);
    store.stop();

    let conn = rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    conn.execute_batch("DELETE FROM log WHERE room = 1 AND seq = 5; UPDATE rooms SET members = 9 WHERE key = 2")
        .unwrap();
    drop(conn);
    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    let faults = report.faults.join("\n");
    for expected in [
        "some are missing",
        "room a (key 1): seq 6 follows 4",
        "room a (key 1): seq 6 points back",
        "room b (key 2): 1 members where 9 are noted",
    ] {
        assert!(faults.contains(expected), "{faults}");
    }
    let gone = antiphon::store::inspect::inspect(&dir.path().join("nowhere"), false);
    assert!(matches!(gone, Err(OpenError::Dir { .. })));
}

/// The log starts over under constant writes too, and an idle one holds nothing that the database lacks.
#[test]
fn the_write_ahead_log_stays_bounded_and_is_copied_when_idle() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.wal_bytes = 256 * 1024;
    let store = Store::open(&config);
    let rooms: Vec<RoomKey> = (0..16).map(|n| store.committed(join(&format!("r{n}"), "alice")).room).collect();
    let wal = dir.path().join("antiphon.db-wal");
    let size = || std::fs::metadata(&wal).map_or(0, |meta| meta.len());
    let body = "x".repeat(4_000);
    let (began, mut largest, mut n) = (Instant::now(), 0, 0usize);
    // Without a rest between commits a passive checkpoint never catches up, and alone would never
    // let the log start over.
    while began.elapsed().as_millis() < 2_000 {
        for _ in 0..8 {
            n += 1;
            store.submit(vec![message(rooms[n % 16], "alice", None, &body)]);
        }
        while store.batch().outcomes[0].iter().all(|outcome| outcome.token.0 < n as u64) {}
        largest = largest.max(size());
    }
    let stats = store.running().stats();
    let written = n as u64 * 4_000;
    assert!(stats.checkpoints > 2 && largest < written / 2, "{written} bytes written, the log grew to {largest}");
    // Nobody need read the log to see it all: the database has it.
    let is_copied = |rows: usize| {
        let copy = dir.path().join("copy.db");
        std::fs::copy(dir.path().join(DATABASE_FILE), &copy).unwrap();
        let conn = rusqlite::Connection::open(&copy).unwrap();
        conn.query_row("SELECT count(*) FROM log", [], |row| row.get::<_, i64>(0)) == Ok(rows as i64)
    };
    eventually("an idle log is copied", || is_copied(n + 16));
    // Ten looks later nobody looks any more, until somebody writes.
    std::thread::sleep(Duration::from_millis(2_600));
    store.submit(vec![message(rooms[0], "alice", None, &body)]);
    eventually("an idle log is copied again", || is_copied(n + 17));
    store.stop();
    assert_eq!(size(), 0, "an orderly stop leaves no log");
}

/// A stop in the middle of a copy waits for it, and then copies the rest.
#[test]
fn an_orderly_stop_leaves_no_log_whatever_is_being_copied() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.wal_bytes = 64 * 1024;
    let body = "x".repeat(4_000);
    for round in 0..8u64 {
        let store = Store::open(&config);
        // Whoever closes the last connection empties the log too, which this one never does: it is for the stop to do.
        let other = rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
        other.query_row("SELECT count(*) FROM rooms", [], |row| row.get::<_, i64>(0)).unwrap();
        let room = store.committed(join(&format!("r{round}"), "alice")).room;
        let began = Instant::now();
        // The thread looks for the first time after 250 ms, and is at a copy most of the time from then on.
        while began.elapsed().as_millis() < 260 + 10 * u128::from(round) {
            store.submit((0..64).map(|_| message(room, "alice", None, &body)).collect());
            store.batch();
        }
        store.stop();
        assert_eq!(std::fs::metadata(dir.path().join("antiphon.db-wal")).unwrap().len(), 0);
    }
}

/// Two readers without a rest between their snapshots: there is never a moment in which nobody reads from the log, and
/// it starts over all the same.
#[test]
fn busy_readers_do_not_keep_the_write_ahead_log_from_starting_over() {
    const QUESTIONS: usize = 32;
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.wal_bytes = 1024 * 1024;
    let store = Store::open(&config);
    let key = store.committed(join("a", "alice")).room;
    let wal = dir.path().join("antiphon.db-wal");
    let body = "x".repeat(4_000);
    let (began, mut largest, mut n, mut answered) = (Instant::now(), 0, 0usize, 0usize);
    let ask = || {
        let query = Query::History {
            room: key,
            after: 0,
            before: u64::MAX,
            newest: true,
            thread: None,
            current: false,
            limit: 200,
            bytes_max: u32::MAX,
        };
        store.log.read(vec![ReadRequest { shard: ShardId(0), token: Token(0), query }]).unwrap();
    };
    (0..QUESTIONS).for_each(|_| ask());
    while began.elapsed().as_millis() < 4_000 {
        for _ in 0..8 {
            n += 1;
            store.submit(vec![message(key, "alice", None, &body)]);
        }
        while store.batch().outcomes[0].iter().all(|outcome| outcome.token.0 < n as u64) {}
        largest = largest.max(std::fs::metadata(&wal).map_or(0, |meta| meta.len()));
        for reply in store.replies[0].try_iter() {
            assert!(reply.result.is_ok());
            answered += 1;
            ask();
        }
    }
    let written = n as u64 * 4_000;
    assert!(answered > 100 && written > 16 * config.wal_bytes, "{answered} answers, {written} bytes written");
    assert!(largest < written / 2, "{written} bytes written, the log grew to {largest}");
    store.stop();
}
