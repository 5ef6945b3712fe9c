//! Tallies over a real database: counted at any seq, kept over restarts, and filled in for databases from
//! before they were kept.

#![allow(clippy::unwrap_used)]

mod store_support;

use antiphon::engine::event::{Amend, AmendAct, Entry, Membership, Page, Query};
use antiphon::engine::tally::Tally;
use antiphon::protocol::command::Manage;
use antiphon::protocol::encode::EventKind;
use antiphon::protocol::ids::{DeviceId, Role, RoomKey};
use rusqlite::Connection;
use store_support::*;

fn tally(store: &Store, key: RoomKey, seq: u64) -> Option<Tally> {
    let Page::Tallies(found) = store.page(Query::Tallies(vec![(key, seq)])) else { panic!("tallies") };
    found[0]
}

fn standing(store: &Store, who: &str, room: &str) -> Membership {
    let Page::User { memberships, .. } = store.page(Query::User(user(who))) else { panic!("a user") };
    memberships.into_iter().find(|of| of.room.name.as_str() == room).expect("a member")
}

fn unread(of: &Membership) -> u64 {
    of.room.tally.messages - of.counted - of.deleted.len() as u64
}

fn delete(key: RoomKey, target: u64) -> Entry {
    Entry::Amend(Box::new(Amend { room: key, target, by: user("alice"), by_admin: false, act: AmendAct::Delete }))
}

/// Two rooms whose entries alternate; bob comes into the first, reads, is banned, and let in again.
fn a_history(store: &Store) -> (RoomKey, RoomKey) {
    let first = store.committed(join("first", "alice")).room;
    let second = store.committed(join("second", "alice")).room;
    for n in 0..100 {
        store.submit(vec![numbered(first, "alice", n), numbered(second, "alice", 1_000 + n)]);
        store.batch();
    }
    store.committed(join("first", "bob"));
    store.committed(join("second", "carol"));
    for n in 2_000..2_150 {
        store.submit(vec![numbered(first, "alice", n)]);
        store.batch();
    }
    store.committed(read(first, "bob", 150));
    store.committed(delete(first, 120));
    store.committed(delete(first, 200));
    (first, second)
}

#[test]
fn every_seq_has_its_tally() {
    let dir = TempDir::new();
    let config = config(&dir);
    let store = Store::open(&config);
    let (first, second) = a_history(&store);
    for (key, name) in [(first, "first"), (second, "second")] {
        let (json, entries) = store.every_entry(key);
        let mut due = Tally::start(name);
        assert_eq!(tally(&store, key, 0), Some(due));
        for entry in &entries {
            let object = std::str::from_utf8(&json[entry.span.start as usize..entry.span.end as usize]).unwrap();
            let is_message = object.starts_with("{\"type\":\"message:created\"");
            due.add(entry.seq, entry.ts, if is_message { EventKind::MessageCreated } else { EventKind::RoomJoined });
            assert_eq!(tally(&store, key, entry.seq), Some(due), "{name} {}", entry.seq);
        }
        assert_eq!(tally(&store, key, entries.len() as u64 + 1), None);
    }
    assert_eq!(tally(&store, RoomKey(77), 1), None);
    store.stop();
}

#[test]
fn unread_stands_after_a_restart() {
    let dir = TempDir::new();
    let config = config(&dir);
    let store = Store::open(&config);
    let (first, _) = a_history(&store);
    let of = standing(&store, "bob", "first");
    // 102 is bob's join; 103 to 252 are messages, of which 200 was deleted.
    assert_eq!((of.read, of.deleted.clone(), unread(&of)), (150, vec![200], 252 - 150 - 1));
    let of = standing(&store, "carol", "second");
    assert_eq!((of.read, unread(&of)), (102, 0), "what was said before somebody came is not unread");
    store.stop();
    let store = Store::open(&config);
    let of = standing(&store, "bob", "first");
    assert_eq!((of.read, of.deleted.clone(), unread(&of)), (150, vec![200], 252 - 150 - 1));
    // A cursor far behind what the core remembers is counted from the log.
    store.committed(join("first", "dan"));
    for n in 3_000..3_200 {
        store.submit(vec![numbered(first, "alice", n)]);
        store.batch();
    }
    let came = standing(&store, "dan", "first").read;
    store.committed(read(first, "dan", came + 30));
    assert_eq!(unread(&standing(&store, "dan", "first")), 170);
    // Out and in again: both sides forget where he had read to.
    store.committed(leave("first", "dan"));
    store.committed(numbered(first, "alice", 9_999));
    let back = store.committed(join("first", "dan"));
    let of = standing(&store, "dan", "first");
    assert_eq!((of.read, unread(&of)), (back.seq, 0));
    assert_eq!(store.committed(read(first, "dan", 1)).seq, back.seq);
    store.stop();
}

fn rows(dir: &TempDir, sql: &str) -> Vec<String> {
    let db = Connection::open(dir.path().join(antiphon::store::schema::DATABASE_FILE)).unwrap();
    let mut statement = db.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

const HEADS: &str = "SELECT room || ' ' || seq || ' ' || messages || ' ' || hash FROM heads ORDER BY 1";
const ANCHORS: &str = "SELECT room || ' ' || seq || ' ' || messages || ' ' || hash FROM anchors ORDER BY 1";
const CURSORS: &str = "SELECT user || ' ' || room || ' ' || read || ' ' || counted FROM members ORDER BY 1";

fn faults(dir: &TempDir) -> Vec<String> {
    antiphon::store::inspect::inspect(dir.path(), true).unwrap().faults
}

#[test]
fn inspect_finds_what_does_not_add_up() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let (first, second) = a_history(&store);
    store.stop();
    assert_eq!(faults(&dir), Vec::<String>::new());
    let tamper = |sql: &str| {
        let db = Connection::open(dir.path().join(antiphon::store::schema::DATABASE_FILE)).unwrap();
        assert_eq!(db.execute(sql, []).unwrap(), 1);
    };
    tamper(&format!("UPDATE heads SET messages = messages + 1 WHERE room = {}", second.0));
    let found = faults(&dir);
    let room = format!("room second (key {}): an entry from seq ", second.0);
    assert!(found.len() == 1 && found[0].starts_with(&room) && found[0].ends_with("its head was"), "{found:?}");
    tamper(&format!("UPDATE heads SET messages = messages - 1 WHERE room = {}", second.0));
    tamper(&format!("UPDATE log SET ts = ts + 1 WHERE room = {} AND seq = 130", first.0));
    // One change is one fault, however many anchors come after it.
    let room = format!("room first (key {})", first.0);
    let changed = "was changed or is missing, or the tally anchored at seq 192 was";
    assert_eq!(faults(&dir), [format!("{room}: an entry from seq 129 to 192 {changed}")]);
    tamper(&format!("UPDATE log SET ts = ts - 1 WHERE room = {} AND seq = 130", first.0));
    // Of many of a kind the first are named.
    let db = Connection::open(dir.path().join(antiphon::store::schema::DATABASE_FILE)).unwrap();
    db.execute("UPDATE log SET kind = 99 WHERE room = ?1 AND seq BETWEEN 130 AND 150", [first.0 as i64]).unwrap();
    let found = faults(&dir);
    assert!(found[..4].iter().all(|fault| fault.ends_with("is of no known kind")), "{found:?}");
    assert_eq!(found.last(), Some(&format!("{room}: 17 more entries of no known kind")), "{found:?}");
    assert_eq!(found.len(), 6, "{found:?}");
}

#[test]
fn an_older_database_is_filled_in() {
    let dir = TempDir::new();
    let config = config(&dir);
    let store = Store::open(&config);
    let (first, _) = a_history(&store);
    // In by the lifting of a ban, and a role that changes without coming in.
    store.committed(manage("first", "alice", "carol", Manage::Ban));
    store.committed(manage("first", "alice", "carol", Manage::Role(Role::Member)));
    store.committed(numbered(first, "alice", 5_000));
    store.committed(manage("first", "alice", "carol", Manage::Role(Role::Moderator)));
    store.stop();
    let due = [HEADS, ANCHORS, CURSORS].map(|sql| rows(&dir, sql));
    assert!(due.iter().all(|rows| rows.len() >= 2), "{due:?}");
    older::downgrade(&dir, 3);
    let database = Connection::open(dir.path().join(antiphon::store::schema::DATABASE_FILE)).unwrap();
    // Version 3 kept no cursor for who had read nothing.
    database.execute("DELETE FROM cursors WHERE user <> 'bob'", []).unwrap();
    drop(database);
    let store = Store::open(&config);
    assert_eq!(unread(&standing(&store, "bob", "first")), 252 - 150 - 1 + 1);
    assert_eq!(unread(&standing(&store, "carol", "first")), 1);
    store.stop();
    assert_eq!([HEADS, ANCHORS, CURSORS].map(|sql| rows(&dir, sql)), due);
}

/// Rows of `delivered`: device and seq, in order.
fn delivered(dir: &TempDir) -> Vec<(String, u32)> {
    let db = Connection::open(dir.path().join(antiphon::store::schema::DATABASE_FILE)).unwrap();
    let mut rows = db.prepare("SELECT device, seq FROM delivered ORDER BY room, seq, device").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[test]
fn what_devices_have_is_kept_while_it_is_ahead_of_what_is_read() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("a", "alice")).room;
    for who in ["bob", "carol"] {
        store.committed(join("a", who));
    }
    for n in 0..50 {
        store.committed(numbered(key, "alice", n));
    }
    let said = |who: &str, name: &str, seq| {
        let device = DeviceId::parse(name).unwrap();
        Entry::Delivered { room: key, user: user(who), device, seq }
    };
    let has = |who: &str, name: &str, seq| store.committed(said(who, name, seq));
    for n in 0..40 {
        has("bob", &format!("tab-{n:02}"), 10 + n);
    }
    let rows = delivered(&dir);
    assert_eq!((rows.len(), &rows[0], &rows[31]), (32, &("tab-08".into(), 18), &("tab-39".into(), 49)));
    // A new one comes in, however far behind it is.
    has("bob", "new", 5);
    let rows = delivered(&dir);
    assert_eq!((rows.len(), &rows[0], &rows[1]), (32, &("new".into(), 5), &("tab-09".into(), 19)));
    has("carol", "hers", 7);
    store.committed(read(key, "bob", 48));
    assert_eq!(delivered(&dir), [("hers".into(), 7), ("tab-39".into(), 49)]);
    store.submit(vec![said("carol", "hers", 9), leave("a", "carol")]);
    store.batch();
    store.committed(manage("a", "alice", "bob", Manage::Ban));
    assert_eq!(delivered(&dir), []);
    store.stop();
}
