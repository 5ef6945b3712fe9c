//! Stretches of rooms counted again over a real database that somebody has meddled with: what is told
//! apart, what the core puts right, and what it closes.

#![allow(clippy::unwrap_used)]

mod store_support;

use antiphon::engine::consistency::{Audit, Broken, Finding, Witness, judge};
use antiphon::engine::event::{Amend, AmendAct, Entry, Page, Query};
use antiphon::engine::tally::Tally;
use antiphon::protocol::error::ErrorCode;
use antiphon::protocol::ids::RoomKey;
use antiphon::store::RoomLog;
use store_support::*;

/// Entries of the room: two anchors, and a stretch behind the second.
const HEAD: u64 = 150;

fn audit(store: &Store, key: RoomKey, seq: u64) -> Result<Audit, Broken> {
    let Page::Audit(audit) = store.page(Query::Audit { room: key, seq }) else { panic!("an audit") };
    audit
}

fn tally(store: &Store, key: RoomKey, seq: u64) -> Tally {
    let Page::Tallies(found) = store.page(Query::Tallies(vec![(key, seq)])) else { panic!("tallies") };
    found[0].expect("an entry")
}

fn meddle(dir: &TempDir, sql: &str) {
    let db = rusqlite::Connection::open(dir.path().join(antiphon::store::schema::DATABASE_FILE)).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(db.execute(sql, []).unwrap(), 1, "{sql}");
}

/// Two rooms whose entries alternate.
fn a_history(store: &Store) -> (RoomKey, Witness) {
    let key = store.committed(join("first", "alice")).room;
    let other = store.committed(join("second", "alice")).room;
    for n in 1..HEAD as usize {
        store.submit(vec![numbered(key, "alice", n), numbered(other, "alice", 1_000 + n)]);
        store.batch();
    }
    (key, Witness { seq: HEAD, tally: tally(store, key, HEAD) })
}

fn faults(dir: &TempDir) -> Vec<String> {
    antiphon::store::inspect::inspect(dir.path(), true).unwrap().faults
}

#[test]
fn every_stretch_of_a_sound_room_is_well() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let (key, _) = a_history(&store);
    for seq in 1..=HEAD {
        let found = audit(&store, key, seq);
        assert_eq!(judge(&found, tally(&store, key, seq)), Finding::Well, "{seq}");
        let found = found.unwrap();
        let end = [64, 128, HEAD].into_iter().find(|end| *end >= seq).unwrap();
        assert_eq!((found.last.0, found.is_head), (end, end == HEAD), "{seq}");
    }
    assert_eq!(audit(&store, key, HEAD + 1).unwrap().here, None, "nobody has seen that one");
    assert!(audit(&store, RoomKey(77), 1).is_err());
    store.stop();
}

/// The head row is changed in some way, is found to be wrong, and is put right by the core.
#[track_caller]
fn head_is_mended(change: &str, is_known_to_core: bool) {
    let dir = TempDir::new();
    let config = config(&dir);
    let mut store = Store::open(&config);
    let (key, witness) = a_history(&store);
    if !is_known_to_core {
        store.stop();
        store = Store::open(&config);
    }
    meddle(&dir, &change.replace("?", &key.0.to_string()));
    assert_eq!(judge(&audit(&store, key, HEAD), witness.tally), Finding::Head, "{change}");
    assert!(!faults(&dir).is_empty());
    let mended = store.committed(Entry::Mend { room: key, witness });
    assert_eq!((mended.seq, mended.value), (HEAD, 1), "{change}");
    assert_eq!(judge(&audit(&store, key, HEAD), witness.tally), Finding::Well, "{change}");
    assert_eq!(store.committed(numbered(key, "alice", 9_999)).seq, HEAD + 1);
    assert_eq!(store.committed(Entry::Mend { room: key, witness }).value, 0, "{change}");
    store.stop();
    assert_eq!(faults(&dir), Vec::<String>::new(), "{change}");
}

#[test]
fn a_wrong_head_row_is_put_right() {
    for change in [
        "UPDATE heads SET hash = hash + 1 WHERE room = ?",
        "UPDATE heads SET messages = messages + 1 WHERE room = ?",
        "UPDATE heads SET seq = seq - 1 WHERE room = ?",
        "UPDATE heads SET seq = seq + 1 WHERE room = ?",
        "UPDATE heads SET position = position - 1 WHERE room = ?",
        "UPDATE heads SET position = 4000000 WHERE room = ?",
        "UPDATE heads SET position = -1 WHERE room = ?",
        // As it stood two entries earlier.
        "UPDATE heads SET seq = seq - 1, position = (SELECT prev FROM log WHERE position = heads.position) WHERE room = ?",
        "DELETE FROM heads WHERE room = ?",
    ] {
        head_is_mended(change, true);
        head_is_mended(change, false);
    }
}

/// Entries are changed in some way: the room takes no writes until that is undone.
#[track_caller]
fn room_is_closed(change: &str, undo: &str) {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let (key, witness) = a_history(&store);
    let sql = |sql: &str| meddle(&dir, &sql.replace("?", &key.0.to_string()));
    sql(change);
    let found = judge(&audit(&store, key, HEAD), witness.tally);
    assert!(matches!(found, Finding::Rows(_)), "{change}: {found:?}");
    let refusal = store.ask(Entry::Mend { room: key, witness }).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Conflict, "{change}");
    let refusal = store.ask(numbered(key, "alice", 5_000)).unwrap_err();
    assert!(refusal.code == ErrorCode::Degraded && refusal.retry_after_ms > 0, "{change}: {refusal:?}");
    assert_eq!(store.ask(join("first", "bob")).unwrap_err().code, ErrorCode::Degraded);
    store.committed(join("second", "bob"));
    sql(undo);
    assert_eq!(store.committed(Entry::Mend { room: key, witness }).value, 0, "{change}");
    assert_eq!(store.committed(numbered(key, "alice", 5_000)).seq, HEAD + 1, "{change}");
    store.stop();
    assert_eq!(faults(&dir), Vec::<String>::new(), "{change}");
}

#[test]
fn entries_that_do_not_add_up_close_their_room() {
    for (change, undo) in [
        (
            "UPDATE log SET ts = ts + 1 WHERE room = ? AND seq = 140",
            "UPDATE log SET ts = ts - 1 WHERE room = ? AND seq = 140",
        ),
        (
            "UPDATE log SET kind = 99 WHERE room = ? AND seq = 140",
            "UPDATE log SET kind = 1 WHERE room = ? AND seq = 140",
        ),
        (
            "UPDATE log SET kind = 4 WHERE room = ? AND seq = 150",
            "UPDATE log SET kind = 1 WHERE room = ? AND seq = 150",
        ),
        // Entries that are gone: out of another room is as good as out of the table, and can be undone.
        ("UPDATE log SET room = 99 WHERE room = ? AND seq = 140", "UPDATE log SET room = ? WHERE room = 99"),
        ("UPDATE log SET room = 99 WHERE room = ? AND seq = 150", "UPDATE log SET room = ? WHERE room = 99"),
        (
            "UPDATE anchors SET hash = hash + 1 WHERE room = ? AND seq = 128",
            "UPDATE anchors SET hash = hash - 1 WHERE room = ? AND seq = 128",
        ),
        ("UPDATE anchors SET room = 99 WHERE room = ? AND seq = 128", "UPDATE anchors SET room = ? WHERE room = 99"),
    ] {
        room_is_closed(change, undo);
    }
}

#[test]
fn a_deleted_entry_is_found() {
    for seq in [140, HEAD] {
        let dir = TempDir::new();
        let store = Store::open(&config(&dir));
        let (key, witness) = a_history(&store);
        meddle(&dir, &format!("DELETE FROM log WHERE room = {} AND seq = {seq}", key.0));
        assert!(matches!(judge(&audit(&store, key, HEAD), witness.tally), Finding::Rows(_)));
        assert_eq!(store.ask(Entry::Mend { room: key, witness }).unwrap_err().code, ErrorCode::Conflict);
        store.stop();
    }
}

#[test]
fn a_shard_that_remembers_wrongly_changes_nothing() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let (key, witness) = a_history(&store);
    let wrong = Witness { tally: Tally { hash: 1, ..witness.tally }, ..witness };
    assert_eq!(judge(&audit(&store, key, HEAD), wrong.tally), Finding::Memory);
    assert_eq!(store.committed(Entry::Mend { room: key, witness: wrong }).value, 0);
    // In one batch with others it waits.
    let appends = [numbered(key, "alice", 7_000), Entry::Mend { room: key, witness }].map(|entry| store.append(entry));
    store.log.submit(appends.into()).unwrap();
    let outcomes = store.batch().outcomes[0].clone();
    assert_eq!(outcomes[1].result.as_ref().unwrap_err().code, ErrorCode::Busy);
    // Before them it counts.
    let appends = [Entry::Mend { room: key, witness: wrong }, numbered(key, "alice", 7_001)];
    store.submit(appends.into());
    assert!(store.batch().outcomes[0].iter().all(|outcome| outcome.result.is_ok()));
    store.stop();
    assert_eq!(faults(&dir), Vec::<String>::new());
}

#[test]
fn a_head_row_that_leads_nowhere_closes_its_room_and_no_other() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let (key, witness) = a_history(&store);
    let other = RoomKey(key.0 + 1);
    store.stop();
    meddle(&dir, &format!("UPDATE heads SET position = 4000000 WHERE room = {}", key.0));
    let codes = |store: &Store, entries: Vec<Entry>| {
        store.submit(entries);
        let outcomes = store.batch().outcomes[0].clone();
        outcomes.into_iter().map(|outcome| outcome.result.err().map(|refusal| refusal.code)).collect::<Vec<_>>()
    };
    // Met by an entry, by a cursor, and by an edit.
    let edit = |target| {
        let act = AmendAct::Edit { body_json: "\"x\"".into(), version: None };
        Entry::Amend(Box::new(Amend { room: key, target, by: user("alice"), by_admin: false, act }))
    };
    let closed = Some(ErrorCode::Degraded);
    for (n, entry) in [numbered(key, "alice", 9_001), read(key, "alice", HEAD - 1), edit(HEAD)].into_iter().enumerate()
    {
        let store = Store::open(&config(&dir));
        assert_eq!(codes(&store, vec![entry, numbered(other, "alice", 9_100 + n)]), [closed, None], "{n}");
        let refusal = store.ask(numbered(key, "alice", 9_002)).unwrap_err();
        assert!(refusal.message.contains("does not add up"), "{refusal:?}");
        assert_eq!(store.running().stats().poisoned, 0);
        store.stop();
    }
    // A large batch is not kept for a second try: its authors have it.
    let store = Store::open(&config(&dir));
    let many = |base: usize| {
        let room = |n: usize| if n == base { key } else { other };
        (base..base + 40).map(|n| numbered(room(n), "alice", n)).collect::<Vec<_>>()
    };
    assert_eq!(codes(&store, many(10_000)), [closed; 40]);
    assert_eq!(codes(&store, many(10_000))[..2], [closed, None]);
    // What the shards' check does.
    assert_eq!(store.committed(Entry::Mend { room: key, witness }).value, 1);
    assert_eq!(store.committed(numbered(key, "alice", 9_003)).seq, HEAD + 1);
    store.stop();
    assert_eq!(faults(&dir), Vec::<String>::new());
}

#[test]
fn a_room_that_cannot_be_read_is_left_out_for_its_members() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    for name in ["one", "two", "six"] {
        store.committed(join(name, "alice"));
    }
    meddle(&dir, "UPDATE rooms SET members = -1 WHERE name = 'six'");
    let Page::User { memberships, .. } = store.page(Query::User(user("alice"))) else { panic!("a user") };
    let found: Vec<_> = memberships.iter().map(|of| of.room.name.as_str()).collect();
    assert_eq!(found, ["one", "two"]);
    let list = |after: Option<&str>| {
        let query =
            Query::Rooms { user: user("alice"), within: names(None), kind: None, after: after.map(room), limit: 1 };
        let Page::Rooms { rooms, more } = store.page(query) else { panic!("rooms") };
        (rooms.into_iter().map(|(room, _)| room.name.as_str().to_owned()).collect::<Vec<_>>(), more)
    };
    assert_eq!(list(None), (vec!["one".into()], true));
    // That nothing is behind it is known once it was looked there.
    assert_eq!(list(Some("one")), (vec!["two".into()], true));
    assert_eq!(list(Some("two")), (vec![], false));
    store.stop();
}
