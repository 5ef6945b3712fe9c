//! The store over a real database: what was committed stands, is found again, and is told in order.

#![allow(clippy::unwrap_used)]

mod store_support;

use antiphon::clock::now_us;
use antiphon::engine::event::{Audience, Entry, Page, Query, Revocation, StoreEvent};
use antiphon::protocol::command::Manage;
use antiphon::protocol::error::ErrorCode;
use antiphon::protocol::ids::{Priority, Role, RoomKey, RoomKind};
use antiphon::store::schema::DATABASE_FILE;
use antiphon::store::{OpenError, RoomLog, SqliteLog};
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

#[test]
fn a_batch_says_when_it_passed_where() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("general", "alice")).room;
    let mut end_us = 0;
    for n in 0..20 {
        let submitted_us = now_us();
        store.submit(vec![numbered(key, "alice", n)]);
        let stamps = store.batch().stamps;
        let heard_us = now_us();
        assert!(stamps.are_known());
        let path = [submitted_us, stamps.taken_us, stamps.began_us, stamps.committed_us, stamps.published_us, heard_us];
        assert!(path.is_sorted(), "{path:?}");
        assert!(stamps.taken_us >= end_us, "one batch after the other");
        end_us = stamps.published_us;
    }
    // Two lists at once: what the writer finds waiting has waited since before.
    store.submit(vec![numbered(key, "bob", 1)]);
    store.submit(vec![numbered(key, "bob", 2)]);
    let first = store.batch();
    let last = if first.outcomes[0].len() == 2 { first.clone() } else { store.batch() };
    assert!(last.stamps.began_us >= first.stamps.began_us && last.stamps.taken_us >= end_us);
    store.stop();
}

fn history(room: RoomKey, after: u64, before: u64, newest: bool, limit: u32) -> Query {
    Query::History { room, after, before, newest, thread: None, current: false, limit, bytes_max: 1 << 20 }
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
    let Page::User { at, memberships, .. } = store.page(Query::User(user("bob"))) else { panic!() };
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

/// What a row has in common with the one before it is not bound anew.
#[test]
fn rows_of_a_batch_keep_what_is_theirs() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("general", "alice")).room;
    let only = |who: &str| Some(std::sync::Arc::new(Audience::Only([user(who)].into())));
    let (plain, low) = (Priority::Normal, Priority::Low);
    let rows = [
        (None, None, plain),
        (None, only("bob"), plain),
        (None, None, plain),
        (Some(2), None, plain),
        (Some(2), only("bob"), low),
        (Some(2), only("carol"), low),
        (Some(3), None, low),
        (None, None, plain),
    ];
    let messages = rows.iter().enumerate().map(|(n, (thread, audience, priority))| {
        Entry::Message(antiphon::engine::event::NewMessage {
            thread: *thread,
            audience: audience.clone(),
            priority: *priority,
            ..new_message(key, "alice", None, &format!("m{n}"))
        })
    });
    store.submit(messages.collect());
    assert_eq!(store.batch().runs[0].entries.len(), rows.len(), "one batch");
    let Page::History { entries, .. } = store.page(history(key, 1, u64::MAX, false, 10)) else { panic!() };
    let kept = entries.iter().map(|entry| entry.restricted.as_ref().map(|kept| kept.audience.clone()));
    assert_eq!(kept.collect::<Vec<_>>(), rows.iter().map(|(_, audience, _)| audience.clone()).collect::<Vec<_>>());
    let thread = |root| {
        let query = Query::History {
            room: key,
            after: 0,
            before: u64::MAX,
            newest: false,
            thread: Some(root),
            current: false,
            limit: 10,
            bytes_max: 1 << 20,
        };
        let Page::History { entries, .. } = store.page(query) else { panic!() };
        entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    assert_eq!((thread(2), thread(3)), (vec![2, 5, 6, 7], vec![3, 8]));
    store.stop();
    let conn = rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    let mut statement = conn.prepare("SELECT priority FROM log WHERE seq > 1 ORDER BY position").unwrap();
    let priorities = statement.query_map([], |row| row.get(0)).unwrap();
    let priorities: Vec<u8> = priorities.map(Result::unwrap).collect();
    let (plain, low) = (priorities[0], priorities[4]);
    assert!(plain != low && priorities == [plain, plain, plain, plain, low, low, low, plain]);
}

#[test]
fn history_pages_both_ways_within_its_bounds() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let (key, other) = (store.committed(join("a", "alice")).room, store.committed(join("b", "alice")).room);
    for n in 2..=30 {
        store.committed(numbered(key, "alice", n));
        store.committed(numbered(other, "alice", 100 + n));
    }
    let page = |query: Query| {
        let Page::History { json, entries, more } = store.page(query) else { panic!("a history page") };
        for entry in &entries {
            let object = &json[entry.span.start as usize..entry.span.end as usize];
            let object: serde_json::Value = serde_json::from_slice(object).unwrap();
            assert_eq!((&object["seq"], &object["room"]), (&entry.seq.into(), &"a".into()));
        }
        (entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), more)
    };
    let seqs = |range: std::ops::RangeInclusive<u64>| range.collect::<Vec<_>>();
    for (after, before, newest, limit, expected, more) in [
        (0, u64::MAX, false, 10, 1..=10, true),
        (10, u64::MAX, false, 20, 11..=30, false),
        (10, u64::MAX, false, 19, 11..=29, true),
        (0, u64::MAX, true, 10, 21..=30, true),
        (0, 21, true, 10, 11..=20, true),
        (0, 11, true, 10, 1..=10, false),
        (5, 9, false, 100, 6..=8, false),
        (5, 9, true, 100, 6..=8, false),
        (5, 9, true, 2, 7..=8, true),
    ] {
        assert_eq!(
            page(history(key, after, before, newest, limit)),
            (seqs(expected), more),
            "{after} {before} {newest}"
        );
    }
    assert_eq!(page(history(key, 30, u64::MAX, false, 10)), (vec![], false));
    assert_eq!(page(history(key, 3, 4, false, 10)), (vec![], false));
    assert_eq!(page(history(RoomKey(99), 0, u64::MAX, false, 10)), (vec![], false));
    // A bound of bytes: at least one entry, whole entries, and the rest is announced.
    let bounded = |newest, bytes_max| {
        page(Query::History {
            room: key,
            after: 1,
            before: u64::MAX,
            newest,
            thread: None,
            current: false,
            limit: 10,
            bytes_max,
        })
    };
    assert_eq!(bounded(false, 1), (vec![2], true));
    assert_eq!(bounded(true, 1), (vec![30], true));
    let (some, more) = bounded(true, 500);
    assert!(more && (2..10).contains(&some.len()) && some.last() == Some(&30), "{some:?}");
    store.stop();
}

#[test]
fn any_stretch_of_a_long_history_is_found() {
    const HEAD: u64 = 300;
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let (key, other) = (store.committed(join("a", "alice")).room, store.committed(join("b", "alice")).room);
    for list in 0..(HEAD - 1) / 13 {
        let mut entries: Vec<_> = (0..13).map(|_| message(key, "alice", None, "x")).collect();
        // Rooms lie interleaved in the log.
        (0..list % 5).for_each(|n| entries.insert(n as usize * 2, message(other, "alice", None, "y")));
        store.submit(entries);
        store.batch();
    }
    assert_eq!(store.page_head("a"), HEAD);
    let points =
        [0, 1, 2, 62, 63, 64, 65, 100, 127, 128, 129, 191, 192, 193, 255, 256, 257, 290, 299, 300, 301, u64::MAX];
    for after in points {
        for before in points {
            for (limit, newest) in
                [(1, false), (1, true), (7, false), (7, true), (64, false), (64, true), (1_000, true)]
            {
                let all: Vec<u64> = (1..=HEAD).filter(|seq| *seq > after && *seq < before).collect();
                let kept = all.len().min(limit);
                let expected = if newest { &all[all.len() - kept..] } else { &all[..kept] };
                let Page::History { entries, more, .. } = store.page(history(key, after, before, newest, limit as u32))
                else {
                    panic!("a history page")
                };
                let seqs: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
                assert_eq!((&seqs[..], more), (expected, all.len() > kept), "{after} {before} {limit} {newest}");
            }
        }
    }
    store.stop();
    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
}

#[test]
fn a_thread_is_its_root_and_its_replies() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("a", "alice")).room;
    // Root 2; replies are 4, 6, 8 …; the others are another thread or none.
    for seq in 2..=20 {
        let thread = if seq > 2 && seq % 2 == 0 {
            Some(2)
        } else if seq % 3 == 0 {
            Some(3)
        } else {
            None
        };
        store.committed(Entry::Message(antiphon::engine::event::NewMessage {
            thread,
            ..new_message(key, "alice", None, "x")
        }));
    }
    let page = |after, before, newest, limit| {
        let query = Query::History {
            room: key,
            after,
            before,
            newest,
            thread: Some(2),
            current: false,
            limit,
            bytes_max: 1 << 20,
        };
        let Page::History { entries, more, .. } = store.page(query) else { panic!("a history page") };
        (entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), more)
    };
    assert_eq!(page(0, u64::MAX, false, 4), (vec![2, 4, 6, 8], true));
    assert_eq!(page(8, u64::MAX, false, 100), (vec![10, 12, 14, 16, 18, 20], false));
    assert_eq!(page(0, u64::MAX, true, 3), (vec![16, 18, 20], true));
    assert_eq!(page(0, 8, true, 3), (vec![2, 4, 6], false));
    assert_eq!(page(0, 8, true, 2), (vec![4, 6], true));
    assert_eq!(page(0, 3, false, 1), (vec![2], false));
    assert_eq!(page(2, 4, false, 1), (vec![], false));
    store.stop();
}

#[test]
fn members_and_rooms_are_paged_by_name() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(create("team", RoomKind::Private, "m03", &["m01", "m05", "m02", "m04"])).room;
    store.committed(manage("team", "m03", "m04", Manage::Ban));
    let members = |after: Option<&str>, limit| {
        let Page::Members { members, more } = store.page(Query::Members { room: key, after: after.map(user), limit })
        else {
            panic!("members")
        };
        (members.iter().map(|(user, role)| format!("{user} {}", role.as_str())).collect::<Vec<_>>(), more)
    };
    assert_eq!(members(None, 2), (vec!["m01 member".to_owned(), "m02 member".to_owned()], true));
    assert_eq!(members(Some("m02"), 2), (vec!["m03 owner".to_owned(), "m05 member".to_owned()], false));

    for (name, kind, owner, others) in [
        ("beta", RoomKind::Public, "zoe", &[][..]),
        ("alpha", RoomKind::Public, "m01", &[]),
        ("gamma", RoomKind::Public, "zoe", &["m01"]),
        ("hidden", RoomKind::Private, "zoe", &[]),
        ("dm", RoomKind::Direct, "m01", &["zoe"]),
    ] {
        store.committed(create(name, kind, owner, others));
    }
    store.committed(manage("gamma", "zoe", "m02", Manage::Ban));
    let rooms_within = |within: Option<&[&str]>, who: &str, kind, after: Option<&str>, limit| {
        let query = Query::Rooms { user: user(who), within: names(within), kind, after: after.map(room), limit };
        let Page::Rooms { rooms, more } = store.page(query) else { panic!("rooms") };
        let line = |(row, role): &(antiphon::engine::event::RoomRow, Option<Role>)| {
            format!("{} {} {}", row.name, row.members, role.map_or("-", Role::as_str))
        };
        (rooms.iter().map(line).collect::<Vec<_>>().join(", "), more)
    };
    let rooms = |who: &str, kind, after, limit| rooms_within(None, who, kind, after, limit);
    assert_eq!(
        rooms("m01", None, None, 10),
        ("alpha 1 owner, beta 1 -, dm 2 owner, gamma 2 member, team 4 member".to_owned(), false)
    );
    assert_eq!(rooms("m01", None, None, 2), ("alpha 1 owner, beta 1 -".to_owned(), true));
    assert_eq!(rooms("m01", None, Some("beta"), 2), ("dm 2 owner, gamma 2 member".to_owned(), true));
    assert_eq!(rooms("m01", None, Some("gamma"), 2), ("team 4 member".to_owned(), false));
    assert_eq!(rooms("m01", Some(RoomKind::Private), None, 10).0, "team 4 member");
    assert_eq!(rooms("m01", Some(RoomKind::Direct), None, 10).0, "dm 2 owner");
    assert_eq!(rooms("m01", Some(RoomKind::Public), None, 10).0, "alpha 1 owner, beta 1 -, gamma 2 member");
    assert_eq!(rooms("m02", None, None, 10).0, "alpha 1 -, beta 1 -, team 4 member", "not where they are banned");
    assert_eq!(rooms("m04", None, None, 10).0, "alpha 1 -, beta 1 -, gamma 2 -");

    // Of a token that covers some names only: pages are full of them, and end with the last one.
    let some = |patterns: &[&str], after, limit| rooms_within(Some(patterns), "m01", None, after, limit);
    assert_eq!(some(&["g*", "alpha", "t*"], None, 2), ("alpha 1 owner, gamma 2 member".to_owned(), true));
    assert_eq!(some(&["g*", "alpha", "t*"], Some("alpha"), 1), ("gamma 2 member".to_owned(), true));
    assert_eq!(some(&["g*", "alpha", "t*"], Some("gamma"), 1), ("team 4 member".to_owned(), false));
    assert_eq!(some(&["b*", "beta", "d*"], None, 2), ("beta 1 -, dm 2 owner".to_owned(), false));
    assert_eq!(some(&["b*", "beta", "d*"], None, 1), ("beta 1 -".to_owned(), true));
    assert_eq!(some(&["gamm", "hid*"], None, 1), (String::new(), false));
    assert_eq!(some(&[], None, 1), (String::new(), false));
    store.stop();
}

#[test]
fn a_user_page_has_roles_bans_and_cursors_and_a_room_page_the_head() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(create("a", RoomKind::Public, "alice", &["bob"])).room;
    store.committed(join("b", "bob"));
    store.committed(read(key, "bob", 2));
    store.committed(manage("a", "alice", "bob", Manage::Ban));
    let Page::User { at, memberships, bans, .. } = store.page(Query::User(user("bob"))) else { panic!("a user") };
    assert_eq!((at, bans), (store.position(), vec![key]));
    let lines: Vec<_> = memberships
        .iter()
        .map(|m| format!("{} {} read {} of {}", m.room.name, m.role.as_str(), m.read, m.room.head))
        .collect();
    assert_eq!(lines, ["b owner read 1 of 1"]);
    let Page::Room { at, room: Some(row) } = store.page(Query::Room(room("a"))) else { panic!("a room") };
    assert_eq!((at, row.key, row.head, row.members, row.kind), (store.position(), key, 3, 1, RoomKind::Public));
    let Page::Room { room: None, .. } = store.page(Query::Room(room("nowhere"))) else { panic!("no room") };
    store.stop();
}

#[test]
fn a_crash_in_mid_batch_keeps_what_was_told_and_nothing_half() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.batch_appends_max = 16;
    let mut store = Store::open(&config);
    let epoch = store.origin.epoch.clone();
    let key = store.committed(join("a", "alice")).room;
    for list in 0..50 {
        store.submit((0..16).map(|n| numbered(key, "alice", list * 16 + n)).collect());
    }
    let told = store.batch().last;
    drop(store.running.take());
    while let Ok(StoreEvent::Batch(batch)) = store.ears[0].try_recv() {
        assert_eq!(batch.first, store.position() + 1);
        store.heard.store(batch.last, std::sync::atomic::Ordering::Relaxed);
    }
    let told = told.max(store.position());
    assert!(store.log.submit(vec![store.append(join("a", "bob"))]).is_err(), "a log that ended takes nothing");

    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    let store = Store::open(&config);
    assert_eq!(store.origin.epoch, epoch);
    assert!(store.origin.position >= told && (store.origin.position - 1).is_multiple_of(16), "whole batches");
    // Whatever stands is a duplicate, whatever does not is new, and the seqs stay dense.
    let stands = store.origin.position as usize - 1;
    for n in 0..800 {
        let committed = store.committed(numbered(key, "alice", n));
        assert_eq!((committed.seq, committed.duplicate), (n as u64 + 2, n < stands), "{n}");
    }
    store.stop();
}

#[test]
fn readers_see_whole_batches_while_the_writer_writes() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let rooms: Vec<_> = (0..4).map(|n| store.committed(join(&format!("r{n}"), "alice")).room).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                // One message into each room: a snapshot has all four or none.
                store.submit(rooms.iter().map(|key| message(*key, "alice", None, "x")).collect());
                while store.batch().runs.is_empty() {}
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut last = 0;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let Page::User { at, memberships, .. } = store.page(Query::User(user("alice"))) else { panic!("a user") };
            assert!(at >= last, "snapshots do not go back");
            let heads: Vec<_> = memberships.iter().map(|m| m.room.head).collect();
            assert_eq!(heads, [heads[0]; 4], "whole batches");
            assert_eq!(heads.iter().sum::<u64>(), at, "`at` is of the same snapshot");
            last = at;
        }
    });
    assert_eq!(store.running().stats().rows, 804);
    store.stop();
}

#[test]
fn submitting_never_blocks_and_gives_back_what_does_not_fit() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.inbox_max = 2;
    let store = Store::open(&config);
    let key = store.committed(join("a", "alice")).room;
    let (mut accepted, mut given_back) = (0, 0);
    for n in 0..5_000 {
        let append = store.append(numbered(key, "alice", n));
        let token = append.token;
        match store.log.submit(vec![append]) {
            Ok(()) => accepted += 1,
            Err(back) => {
                assert_eq!((back.len(), back[0].token), (1, token));
                given_back += 1;
            }
        }
    }
    assert!(given_back > 0, "an inbox of two is full at times");
    let mut answered = 0;
    while answered < accepted {
        answered += store.batch().outcomes[0].len();
    }
    assert_eq!(answered, accepted, "what was taken is answered");
    assert_eq!(store.running().stats().inbox_full, given_back);
    store.stop();
}

#[test]
fn stopping_commits_what_was_taken() {
    let dir = TempDir::new();
    let config = config(&dir);
    let store = Store::open(&config);
    let key = store.committed(join("a", "alice")).room;
    for n in 0..500 {
        store.submit(vec![numbered(key, "alice", n)]);
    }
    let (log, ear) = (store.log.clone(), store.ears[0].clone());
    store.stop();
    let told: usize =
        ear.drain().map(|event| if let StoreEvent::Batch(batch) = event { batch.outcomes[0].len() } else { 0 }).sum();
    assert_eq!(told, 500);
    assert_eq!(log.stats().rows, 501);
    let wal = std::fs::metadata(dir.path().join("antiphon.db-wal")).map_or(0, |meta| meta.len());
    assert_eq!(wal, 0, "the log is checkpointed");
    let store = Store::open(&config);
    assert_eq!(store.origin.position, 501);
    store.stop();
}

#[test]
fn pairs_behind_entries_of_a_clock_that_was_behind_are_remembered_too() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let key = store.committed(join("a", "alice")).room;
    for n in 1..=5 {
        store.committed(numbered(key, "alice", n));
    }
    store.stop();
    let db = rusqlite::Connection::open(dir.path().join(antiphon::store::schema::DATABASE_FILE)).unwrap();
    // As if the clock had gone back by an hour for two entries, and the first two were an hour old.
    db.execute("UPDATE log SET ts = ts - 3600000 WHERE seq IN (1, 2, 4, 5)", []).unwrap();
    drop(db);
    let store = Store::open(&config(&dir));
    assert_eq!(store.origin.dedupe_entries, 4);
    for (n, expected) in [(2, (3, true)), (3, (4, true)), (4, (5, true)), (5, (6, true)), (1, (7, false))] {
        let committed = store.committed(numbered(key, "alice", n));
        assert_eq!((committed.seq, committed.duplicate), expected, "{n}");
    }
    store.stop();
}
