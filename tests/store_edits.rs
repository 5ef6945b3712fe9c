//! Edits, deletions and reactions over a real database: they stand after a restart, history shows what
//! stands, and the log keeps each step.

#![allow(clippy::unwrap_used)]

mod store_support;

use antiphon::engine::event::{Amend, AmendAct, Entry, Page, Query};
use antiphon::protocol::error::ErrorCode;
use antiphon::protocol::ids::RoomKey;
use store_support::*;

fn amend(key: RoomKey, target: u64, by: &str, act: AmendAct) -> Entry {
    Entry::Amend(Box::new(Amend { room: key, target, by: user(by), by_admin: false, act }))
}

fn edit(key: RoomKey, target: u64, by: &str, body: &str, version: Option<u64>) -> Entry {
    amend(key, target, by, AmendAct::Edit { body_json: format!("\"{body}\"").into(), version })
}

/// One entry of history: as it stands, or as it was logged.
fn shown(store: &Store, key: RoomKey, seq: u64, current: bool) -> serde_json::Value {
    let query = Query::History {
        room: key,
        after: seq - 1,
        before: seq + 1,
        newest: false,
        thread: None,
        current,
        limit: 1,
        bytes_max: 1 << 20,
    };
    let Page::History { json, .. } = store.page(query) else { panic!() };
    serde_json::from_slice(&json).unwrap()
}

#[test]
fn edits_and_reactions_survive_a_restart_and_their_entries_are_as_they_were() {
    let dir = TempDir::new();
    let config = config(&dir);
    let store = Store::open(&config);
    let key = store.committed(join("general", "alice")).room;
    // Far from the head and from an anchor.
    for n in 2..=200 {
        store.committed(numbered(key, "alice", n));
    }
    let edited = store.committed(edit(key, 70, "alice", "new", Some(1)));
    assert_eq!((edited.seq, edited.value), (201, 2));
    assert_eq!(store.committed(amend(key, 70, "bob", AmendAct::React("+".into()))).value, 1);
    assert_eq!(store.committed(amend(key, 2, "alice", AmendAct::Delete)).value, 2);
    store.stop();

    let store = Store::open(&config);
    let conflict = store.ask(edit(key, 70, "alice", "late", Some(1))).unwrap_err();
    assert_eq!((conflict.code, conflict.current), (ErrorCode::Conflict, Some(2)));
    assert_eq!(store.ask(edit(key, 2, "alice", "x", None)).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(store.committed(amend(key, 70, "bob", AmendAct::React("+".into()))).seq, 203, "no entry");
    assert_eq!(store.committed(amend(key, 70, "alice", AmendAct::React("+".into()))).value, 2);
    let message = shown(&store, key, 70, true);
    assert_eq!((&message["body"], &message["version"]), (&"new".into(), &2.into()));
    assert_eq!(message["reactions"], serde_json::json!({"+": 2}));
    assert_eq!(message["client_id"], "c70");
    let gone = shown(&store, key, 2, true);
    assert_eq!((&gone["deleted"], gone.get("body"), gone.get("trace")), (&true.into(), None, None));
    // The log itself keeps each step.
    assert_eq!(shown(&store, key, 70, false)["body"], "body 70");
    store.stop();
    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
}

#[test]
fn a_database_from_before_edits_is_brought_up_to_date() {
    let dir = TempDir::new();
    let config = config(&dir);
    let store = Store::open(&config);
    let key = store.committed(join("general", "alice")).room;
    let sent = store.committed(numbered(key, "alice", 1));
    store.stop();
    older::downgrade(&dir, 1);
    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    let store = Store::open(&config);
    assert_eq!(store.committed(edit(key, sent.seq, "alice", "new", Some(1))).value, 2);
    assert_eq!(shown(&store, key, sent.seq, true)["body"], "new");
    store.stop();
}
