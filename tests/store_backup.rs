//! The backup of a running server: one snapshot, taken while batches are committed, which a store opens.

#![allow(clippy::unwrap_used)]

mod store_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use antiphon::engine::event::StoreEvent;
use antiphon::protocol::ids::RoomKind;
use antiphon::store::inspect::inspect;
use antiphon::store::schema::DATABASE_FILE;
use store_support::*;

/// What the manual says, by another connection, as another program would.
fn back_up(from: &TempDir, to: &TempDir) {
    let conn = rusqlite::Connection::open(from.path().join(DATABASE_FILE)).unwrap();
    let target = to.path().join(DATABASE_FILE);
    conn.execute("VACUUM INTO ?1", [target.to_str().unwrap()]).unwrap();
}

#[test]
fn a_backup_taken_under_writes_ends_and_holds_all_that_was_acknowledged_before_it() {
    let (dir, backup) = (TempDir::new(), TempDir::new());
    let store = Store::open(&config(&dir));
    let key = store.committed(create("a", RoomKind::Private, "alice", &["bob"])).room;
    let body = "x".repeat(2_000);
    let say = |n: usize| message(key, "alice", Some(&format!("c{n}")), &body);
    const BEFORE: usize = 4_000;
    for from in (0..BEFORE).step_by(100) {
        store.submit((from..from + 100).map(say).collect());
        let mut answered = 0;
        while answered < 100 {
            answered += store.batch().outcomes[0].iter().filter(|outcome| outcome.result.is_ok()).count();
        }
    }
    let acknowledged = store.position();
    let is_done = Arc::new(AtomicBool::new(false));
    let (mut batches, mut n) = (0, BEFORE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            back_up(&dir, &backup);
            is_done.store(true, Ordering::SeqCst);
        });
        while !is_done.load(Ordering::SeqCst) {
            assert_eq!(store.committed(say(n)).seq as usize, n + 3);
            (n, batches) = (n + 1, batches + 1);
        }
    });
    assert!(batches > 5, "{batches} batches were committed while it ran");
    let epoch = store.origin.epoch.clone();
    let (json, _) = store.every_entry(key);
    store.stop();

    let report = inspect(backup.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    let store = Store::open(&config(&backup));
    let held = store.origin.position;
    assert!(held >= acknowledged && held <= acknowledged + batches, "{acknowledged} {held} {batches}");
    assert_eq!(store.origin.epoch, epoch, "a new one is for the operator to draw");
    let (restored_json, restored) = store.every_entry(key);
    assert_eq!(restored.len() as u64, store.page_head("a"));
    assert_eq!(restored_json[..], json[..restored_json.len()]);
    // It goes on from there, and knows what was said.
    let again = store.committed(say(BEFORE - 1));
    assert_eq!((again.seq as usize, again.duplicate), (BEFORE + 2, true));
    store.submit(vec![message(key, "bob", None, "after")]);
    let StoreEvent::Batch(batch) = store.event() else { panic!("a batch") };
    assert_eq!(batch.first, held + 1);
    store.stop();
    let report = inspect(backup.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
}
