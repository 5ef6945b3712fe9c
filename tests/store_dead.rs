//! Dead letters on a real disk: items past their attempts, entries that cannot be written, replay,
//! purge, the bound, and what older databases held.

#![allow(clippy::unwrap_used)]

mod store_support;

use antiphon::engine::dead::{DeadAct, DeadFilter, DeadKind, DeadLetter};
use antiphon::engine::event::{Entry, Page, Query};
use antiphon::engine::inbox::NewItem;
use antiphon::protocol::error::ErrorCode;
use antiphon::protocol::ids::{Priority, RoomKey, RoomKind};
use antiphon::store::schema::DATABASE_FILE;
use store_support::*;

fn notify(to: &str, name: &str) -> Entry {
    let (name, data) = (name.into(), r#"{"n": [1.50]}"#.into());
    let (priority, from) = (Priority::Critical, Some(user("alice")));
    Entry::Notify {
        item: NewItem { user: user(to), name, data, priority, ttl_ms: None, from, covers: None },
        by_admin: true,
    }
}

fn letters(store: &Store, filter: DeadFilter) -> Vec<DeadLetter> {
    let Page::DeadLetters { letters, more: false } = store.page(Query::DeadLetters { filter, after: 0, limit: 100 })
    else {
        panic!("a page of letters")
    };
    letters
}

fn all(store: &Store) -> Vec<DeadLetter> {
    letters(store, DeadFilter::default())
}

fn replay(id: u64) -> Entry {
    Entry::Dead(DeadAct::Replay(id))
}

fn purge(filter: DeadFilter) -> Entry {
    Entry::Dead(DeadAct::Purge(filter))
}

/// Another connection to the database, for what only an accident does.
fn meddle(dir: &TempDir, sql: &str) {
    rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).unwrap().execute_batch(sql).unwrap();
}

const POISON: &str = "CREATE TRIGGER poison BEFORE INSERT ON log WHEN new.fields LIKE '%poison%'
    BEGIN SELECT RAISE(ABORT, 'no such body'); END";

#[test]
fn an_item_that_died_is_listed_replayed_once_and_purged() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    store.committed(notify("bob", "one"));
    store.committed(notify("eve", "two"));
    let dead = |who: &str, item| Entry::InboxDead { user: user(who), items: [item].into() };
    store.committed(Entry::InboxTried { user: user("bob"), items: [1].into() });
    store.committed(dead("bob", 1));
    store.committed(dead("eve", 2));
    store.stop();
    let store = Store::open(&config(&dir));
    eventually("the gauge is set", || store.running().stats().letters == 2);
    let found = all(&store);
    assert_eq!(
        found.iter().map(|letter| (letter.id, letter.kind, letter.attempts)).collect::<Vec<_>>(),
        [(1, DeadKind::Inbox, 2), (2, DeadKind::Inbox, 1)]
    );
    assert_eq!(
        &*found[0].payload,
        r#"{"what":"item","name":"one","data":{"n": [1.50]},"priority":"critical","from":"alice"}"#
    );
    let of_bob = DeadFilter { user: Some(user("bob")), ..DeadFilter::default() };
    assert_eq!(letters(&store, of_bob.clone()), found[..1]);
    // Twice in one batch, and again later: applied once.
    store.submit(vec![replay(1), replay(1)]);
    let batch = store.batch();
    let results: Vec<_> =
        batch.outcomes[0].iter().map(|o| o.result.as_ref().map(|c| c.seq).map_err(|r| r.code)).collect();
    assert_eq!(results, [Ok(3), Err(ErrorCode::NotFound)]);
    assert_eq!(store.ask(replay(1)).unwrap_err().code, ErrorCode::NotFound);
    let Page::User { inbox, .. } = store.page(Query::User(user("bob"))) else { panic!() };
    assert_eq!(
        (&*inbox[0].name, &*inbox[0].data, inbox[0].from.clone()),
        ("one", r#"{"n": [1.50]}"#, Some(user("alice")))
    );
    assert_eq!(store.committed(purge(of_bob)).seq, 0);
    assert_eq!(store.committed(purge(DeadFilter { before: Some(found[1].last_ts), ..DeadFilter::default() })).seq, 0);
    assert_eq!(store.committed(purge(DeadFilter::one(2))).seq, 1);
    assert!(all(&store).is_empty());
    eventually("the gauge follows", || store.running().stats().letters == 0);
    store.stop();
}

#[test]
fn a_poison_entry_is_put_aside_and_its_neighbours_are_committed() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(create("a", RoomKind::Private, "alice", &["bob"])).room;
    meddle(&dir, POISON);
    let say = |n: usize, body: &str| message(key, "alice", Some(&format!("c{n}")), body);
    store.submit(vec![say(1, "good"), say(2, "poison"), notify("bob", "n"), say(3, "also good")]);
    let mut results = Vec::new();
    while results.len() < 4 {
        let batch = store.batch();
        results.extend(batch.outcomes[0].iter().map(|o| o.result.clone()));
    }
    let seqs: Vec<_> = results.iter().map(|r| r.as_ref().map(|c| c.seq).map_err(|r| r.code)).collect();
    assert_eq!(seqs, [Ok(3), Err(ErrorCode::NotAvailable), Ok(2), Ok(4)], "an item's number is not given twice");
    let refusal = results[1].clone().unwrap_err();
    assert!(refusal.message.contains("dead letter 1") && refusal.retry_after_ms == 0, "{refusal:?}");
    let stats = store.running().stats();
    assert_eq!((stats.poisoned, stats.failures, stats.degraded, stats.letters), (1, 0, false, 1));

    // Alone it is the same; the breaker stays closed however often.
    for _ in 0..5 {
        assert_eq!(store.ask(say(9, "poison again")).unwrap_err().code, ErrorCode::NotAvailable);
    }
    assert!(!store.running().stats().degraded);
    let letter = &all(&store)[0];
    assert_eq!((letter.kind, letter.user.clone(), letter.attempts), (DeadKind::Entry, Some(user("alice")), 2));
    assert!(letter.reason.contains("no such body"), "{}", letter.reason);
    // Replayed in vain: it stays, and says so. Once mended, it takes its place at the end.
    assert_eq!(store.ask(replay(1)).unwrap_err().code, ErrorCode::NotAvailable);
    assert_eq!(all(&store)[0].attempts, 3);
    meddle(&dir, "DROP TRIGGER poison");
    assert_eq!(store.committed(replay(1)).seq, 5);
    assert_eq!(store.page_head("a"), 5);
    let again = store.committed(say(2, "poison"));
    assert_eq!((again.seq, again.duplicate), (5, true), "its author's own retry finds it");
    assert_eq!(all(&store).len(), 5);
    store.stop();
}

#[test]
fn a_large_batch_with_poison_is_refused_once_and_told_apart_the_next_time() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("a", "alice")).room;
    meddle(&dir, POISON);
    let bodies =
        || (0..100).map(|n| message(key, "alice", Some(&format!("c{n}")), if n == 50 { "poison" } else { "x" }));
    let outcomes = |store: &Store| {
        let mut codes = Vec::new();
        while codes.len() < 100 {
            codes.extend(store.batch().outcomes[0].iter().map(|o| o.result.as_ref().err().map(|r| r.code)));
        }
        codes
    };
    store.submit(bodies().collect());
    assert!(outcomes(&store).iter().all(|code| *code == Some(ErrorCode::Degraded)));
    assert_eq!(store.page_head("a"), 1, "nothing of it stands");
    store.submit(bodies().collect());
    let codes = outcomes(&store);
    assert_eq!(codes.iter().filter(|code| code.is_none()).count(), 99);
    assert_eq!(codes[50], Some(ErrorCode::NotAvailable));
    assert_eq!((store.page_head("a"), all(&store).len()), (100, 1));
    store.stop();
}

#[test]
fn when_the_letter_cannot_be_written_it_is_the_stores_trouble() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("a", "alice")).room;
    meddle(&dir, POISON);
    meddle(&dir, "CREATE TRIGGER full BEFORE INSERT ON dead_letters BEGIN SELECT RAISE(ABORT, 'no'); END");
    assert_eq!(store.ask(message(key, "alice", None, "poison")).unwrap_err().code, ErrorCode::Degraded);
    // It is counted right after its author was told.
    eventually("the failure is counted", || store.running().stats().failures == 1);
    assert_eq!(store.committed(message(key, "alice", None, "fine")).seq, 2);
    store.stop();
}

#[test]
fn letters_are_bounded_and_those_that_only_describe_cannot_be_replayed() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.dead_letters_max = 3;
    let store = Store::open(&config);
    let key = store.committed(join("a", "alice")).room;
    let last = store.committed(message(key, "alice", None, "hi")).seq;
    meddle(&dir, "CREATE TRIGGER poison BEFORE UPDATE OF read ON members BEGIN SELECT RAISE(ABORT, 'no'); END");
    for _ in 0..5 {
        assert_eq!(store.ask(read(key, "alice", last)).unwrap_err().code, ErrorCode::NotAvailable);
    }
    let found = all(&store);
    assert_eq!(found.iter().map(|letter| letter.id).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(store.running().stats().letters_dropped, 2);
    assert_eq!(&*found[0].payload, r#"{"what":"other","entry":"read","room":"a"}"#);
    assert_eq!(store.ask(replay(3)).unwrap_err().code, ErrorCode::NotAvailable);
    assert_eq!(all(&store).len(), 3, "a refused replay makes no letter of its own");
    assert_eq!(store.committed(purge(DeadFilter::default())).seq, 3);
    store.stop();
    assert_eq!(RoomKey(1), key);
}

#[test]
fn dead_items_of_an_older_database_come_along() {
    let dir = TempDir::new();
    Store::open(&config(&dir)).stop();
    older::downgrade(&dir, 4);
    meddle(
        &dir,
        "INSERT INTO inbox_dead VALUES (7, 'bob', 0, 5, 9, 10, 'alice', 'a \"b\"', '{\"n\": 1}');
         INSERT INTO inbox_dead VALUES (8, 'eve', 2, 6, 9, 10, NULL, 'c', 'null');",
    );
    let store = Store::open(&config(&dir));
    let found = all(&store);
    assert_eq!((found[0].id, found[0].first_ts, found[0].last_ts, found[0].attempts), (1, 5, 9, 10));
    assert_eq!(&*found[1].payload, r#"{"what":"item","name":"c","data":null,"priority":"low"}"#);
    assert_eq!(store.committed(replay(1)).seq, 1);
    let Page::User { inbox, .. } = store.page(Query::User(user("bob"))) else { panic!() };
    assert_eq!((&*inbox[0].name, inbox[0].from.clone()), ("a \"b\"", Some(user("alice"))));
    store.stop();
}

#[test]
fn revocations_of_expired_tokens_are_forgotten_at_the_next_start() {
    use antiphon::engine::event::Revocation::{Jti, JtiUntil};
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let far = 4_000_000_000_000;
    for revocation in [JtiUntil("old".into(), 1_000), JtiUntil("new".into(), far), Jti("ever".into())] {
        store.committed(Entry::Revoke(revocation));
    }
    // What is not known to end does not end, whatever is said later.
    store.committed(Entry::Revoke(JtiUntil("ever".into(), 1_000)));
    store.committed(Entry::Revoke(JtiUntil("new".into(), 1_000)));
    store.stop();
    let store = Store::open(&config(&dir));
    assert_eq!(store.origin.revocations.len(), 3, "nothing was written after its time but the clock's word");
    store.committed(join("a", "alice"));
    store.stop();
    let store = Store::open(&config(&dir));
    assert_eq!(store.origin.revocations, [JtiUntil("new".into(), far), Jti("ever".into())]);
    store.stop();
}
