//! Inboxes on a real disk: what was taken in, tried, acknowledged and buried is so after a restart.

#![allow(clippy::unwrap_used)]

mod store_support;

use antiphon::engine::event::{Entry, Page, Query};
use antiphon::engine::inbox::{Bounds, InboxChange, Item, NewItem, Removal};
use antiphon::protocol::command::Manage;
use antiphon::protocol::error::ErrorCode;
use antiphon::protocol::ids::{Priority, Role, RoomKind};
use store_support::*;

fn notify(to: &str, name: &str, priority: Priority, ttl_ms: Option<u64>) -> Entry {
    let item = NewItem {
        user: user(to),
        name: name.into(),
        data: format!("{{\"name\":\"{name}\"}}").into(),
        priority,
        ttl_ms,
        from: None,
        covers: None,
    };
    Entry::Notify { item, by_admin: true }
}

fn inbox(store: &Store, of: &str) -> Vec<Item> {
    let Page::User { inbox, .. } = store.page(Query::User(user(of))) else { panic!("a user") };
    inbox
}

fn ids(store: &Store, of: &str) -> Vec<(u64, u32)> {
    inbox(store, of).iter().map(|item| (item.id, item.attempts)).collect()
}

#[test]
fn items_survive_a_restart_as_they_were_and_numbers_are_never_given_twice() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let before = store.position();
    for (number, priority) in [(1, Priority::Low), (2, Priority::Normal), (3, Priority::Critical)] {
        assert_eq!(store.committed(notify("bob", "n", priority, None)).seq, number);
    }
    assert_eq!(store.committed(notify("eve", "hers", Priority::Low, Some(5))).seq, 4);
    assert_eq!(store.position(), before, "items have no place in the log");
    let key = store.committed(create("dm", RoomKind::Direct, "alice", &["bob"])).room;
    store.committed(message(key, "alice", None, "hi"));
    let bob = || user("bob");
    assert_eq!(store.committed(Entry::InboxTried { user: bob(), items: [2, 3, 4].into() }).seq, 2);
    assert_eq!(store.committed(Entry::InboxAck { user: bob(), items: [1, 1, 4, 77].into() }).seq, 1);
    let was = inbox(&store, "bob");
    assert_eq!(was.iter().map(|item| (item.id, item.attempts)).collect::<Vec<_>>(), [(2, 1), (3, 1), (5, 0)]);
    assert_eq!((&*was[2].name, was[2].covers, was[2].from.clone()), ("direct", Some((key, 3)), Some(user("alice"))));
    store.stop();
    let store = Store::open(&config(&dir));
    assert_eq!(inbox(&store, "bob"), was);
    assert_eq!(store.committed(Entry::InboxDead { user: bob(), items: [3].into() }).seq, 1);
    // The highest number goes, and is not given again after another start.
    assert_eq!(store.committed(Entry::InboxAck { user: bob(), items: [5].into() }).seq, 1);
    store.stop();
    let store = Store::open(&config(&dir));
    assert_eq!(store.committed(notify("bob", "n", Priority::Low, None)).seq, 6);
    assert_eq!(ids(&store, "bob"), [(2, 1), (6, 0)]);
    assert_eq!(ids(&store, "eve"), [], "expired ones are deleted in passing, whoever they wait for");
    store.stop();
}

#[test]
fn bounds_hold_over_restarts() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.sequencer.inbox = Bounds { items_max: 2, ..Bounds::default() };
    let store = Store::open(&config);
    store.committed(notify("bob", "a", Priority::Normal, None));
    store.committed(notify("bob", "b", Priority::Critical, None));
    store.stop();
    let store = Store::open(&config);
    assert_eq!(store.ask(notify("bob", "c", Priority::Low, None)).unwrap_err().code, ErrorCode::InboxFull);
    store.submit(vec![notify("bob", "d", Priority::Critical, None)]);
    let batch = store.batch();
    let changes: Vec<String> = batch
        .inbox
        .iter()
        .map(|change| match change {
            InboxChange::Added(item) => format!("+{}", item.id),
            InboxChange::Removed { items, why: Removal::Evicted, .. } => format!("-{items:?}"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(changes, ["-[1]", "+3"]);
    assert_eq!(ids(&store, "bob"), [(2, 0), (3, 0)]);
    store.stop();
}

#[test]
fn only_who_shares_a_room_may_notify_and_only_members_are_told_of_mentions() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("a", "alice")).room;
    let from_alice = || {
        let Entry::Notify { item, .. } = notify("bob", "n", Priority::Normal, None) else { panic!() };
        Entry::Notify { item: NewItem { from: Some(user("alice")), ..item }, by_admin: false }
    };
    assert_eq!(store.ask(from_alice()).unwrap_err().code, ErrorCode::PermissionDenied);
    // In one batch with the invitation that makes it right.
    store.submit(vec![manage("a", "alice", "bob", Manage::Invite(Role::Member)), from_alice()]);
    let batch = store.batch();
    assert!(batch.outcomes[0].iter().all(|outcome| outcome.result.is_ok()), "{batch:?}");
    let mut mention = new_message(key, "alice", None, "hi");
    mention.mentions = ["bob", "bob", "carol", "alice"].map(user).into();
    store.committed(Entry::Message(mention));
    let names: Vec<_> = inbox(&store, "bob").iter().map(|item| item.name.to_string()).collect();
    assert_eq!(names, ["invitation", "n", "mention"]);
    assert!(ids(&store, "carol").is_empty() && ids(&store, "alice").is_empty());
    store.stop();
}

/// A row that an accident made unreadable is nobody's append's fault, and hides no other row.
#[test]
fn an_expired_item_that_cannot_be_read_spoils_no_append() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("a", "alice")).room;
    for to in ["damaged", "eve"] {
        store.committed(notify(to, "n", Priority::Low, Some(1)));
    }
    store.stop();
    let meddle = rusqlite::Connection::open(dir.path().join(antiphon::store::schema::DATABASE_FILE)).unwrap();
    meddle.execute_batch("UPDATE inbox SET user = x'ff00', expires_ts = 1 WHERE user = 'damaged'").unwrap();
    drop(meddle);
    let store = Store::open(&config(&dir));
    for n in 0..40 {
        assert!(!store.committed(numbered(key, "alice", n)).duplicate);
    }
    store.submit((100..200).map(|n| numbered(key, "alice", n)).collect());
    assert!(store.batch().outcomes[0].iter().all(|outcome| outcome.result.is_ok()));
    let stats = store.running().stats();
    assert_eq!((stats.poisoned, stats.failures, stats.letters, stats.items_expired), (0, 0, 0, 1));
    assert_eq!(ids(&store, "eve"), []);
    store.stop();
}
