//! The store over a real database: what was committed stands, is found again, and is told in order.

#![allow(clippy::unwrap_used)]

mod store_support;

use antiphon::engine::event::{Audience, Entry, Page, Query, Revocation, StoreEvent};
use antiphon::protocol::error::ErrorCode;
use antiphon::protocol::ids::{RoomKey, RoomKind};
use antiphon::store::{OpenError, SqliteLog};
use store_support::*;

#[test]
fn a_message_is_numbered_committed_told_to_every_shard_and_read_back() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.sequencer.shards = 2;
    let store = Store::open(&config);
    let key = store.committed(join("general", "alice")).room;
    let sent = store.committed(message(key, "alice", Some("c1"), "hi"));
    assert_eq!((sent.seq, sent.duplicate), (2, false));
    for _ in 0..2 {
        let Ok(StoreEvent::Batch(batch)) = store.ears[1].recv_timeout(PATIENCE) else {
            panic!("shard 1 hears the same")
        };
        assert!(batch.outcomes[1].is_empty());
    }
    let Page::History { json, entries, more } = store.page(history(key, 0, u64::MAX, false, 10)) else { panic!() };
    let json = String::from_utf8(json).unwrap();
    let ts = sent.ts;
    assert!(!more);
    let joined_ts = entries[0].ts;
    let joined =
        format!(r#"{{"type":"room:joined","room":"general","seq":1,"ts":{joined_ts},"user":"alice","role":"owner"}}"#);
    let created = format!(
        r#"{{"type":"message:created","room":"general","seq":2,"ts":{ts},"author":"alice","client_id":"c1","body":"hi","trace":"00"}}"#
    );
    assert_eq!(&json[entries[0].span.start as usize..entries[0].span.end as usize], joined);
    assert_eq!(&json[entries[1].span.start as usize..entries[1].span.end as usize], created);
    store.stop();
}

fn history(room: RoomKey, after: u64, before: u64, newest: bool, limit: u32) -> Query {
    Query::History { room, after, before, newest, thread: None, limit, bytes_max: 1 << 20 }
}

#[test]
fn a_restart_keeps_everything() {
    let dir = TempDir::new();
    let config = config(&dir);
    let store = Store::open(&config);
    let epoch = store.origin.epoch.clone();
    assert_eq!(store.origin.position, 0);
    let key = store.committed(create("team", RoomKind::Private, "alice", &["bob"])).room;
    let first = store.committed(numbered(key, "alice", 1));
    store.committed(read(key, "bob", 2));
    store.committed(Entry::Revoke(Revocation::Jti("t1".into())));
    store.committed(Entry::Revoke(Revocation::UserBefore(user("eve"), 7)));
    store.stop();

    let store = Store::open(&config);
    assert_eq!(store.origin.epoch, epoch);
    assert_eq!(store.origin.position, 3);
    assert_eq!(store.origin.dedupe_entries, 1);
    let revoked = [Revocation::Jti("t1".into()), Revocation::UserBefore(user("eve"), 7)];
    assert_eq!(store.origin.revocations, revoked);
    let again = store.committed(numbered(key, "alice", 1));
    assert_eq!((again.room, again.seq, again.ts, again.duplicate), (key, first.seq, first.ts, true));
    assert_eq!(store.position(), 3, "a duplicate leaves nothing");
    assert_eq!(store.committed(numbered(key, "bob", 1)).seq, 4);
    let Page::User { at, memberships } = store.page(Query::User(user("bob"))) else { panic!() };
    assert_eq!((at, memberships.len(), memberships[0].read, memberships[0].room.head), (4, 1, 2, 4));
    store.stop();
}

#[test]
fn two_processes_never_share_a_directory() {
    let dir = TempDir::new();
    let config = config(&dir);
    let store = Store::open(&config);
    let error = SqliteLog::open(&config).err().expect("refused");
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains("in use by another antiphon process"), "{error}");
    store.stop();
    Store::open(&config).stop();
}

#[test]
fn an_unknown_room_and_a_restricted_message() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let refusal = store.ask(message(RoomKey(99), "alice", None, "x")).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::UnknownRoom);
    let key = store.committed(join("general", "alice")).room;
    let audience = std::sync::Arc::new(Audience::Only([user("bob")].into()));
    let whisper = antiphon::engine::event::NewMessage {
        audience: Some(audience.clone()),
        ..new_message(key, "alice", None, "psst")
    };
    store.submit(vec![Entry::Message(whisper)]);
    let batch = store.batch();
    let told = batch.runs[0].entries[0].restricted.as_ref().unwrap();
    assert_eq!((&told.author, &told.audience), (&user("alice"), &audience));
    let Page::History { entries, .. } = store.page(history(key, 1, 3, false, 10)) else { panic!() };
    let kept = entries[0].restricted.as_ref().unwrap();
    assert_eq!((&kept.author, &kept.audience), (&user("alice"), &audience));
    store.stop();
}
