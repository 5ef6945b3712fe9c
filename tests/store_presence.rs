//! What is kept of presence on a real disk: once, through restarts and failed commits, as the model
//! in maps has it; old rows go; numbers for the operator add up.

#![allow(clippy::unwrap_used)]

mod store_support;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use antiphon::engine::event::{Entry, Page, Query, ShardId};
use antiphon::engine::presence::Cause;
use antiphon::engine::presence::history::{
    Analytics, Ask, DAY_MS, HOUR_MS, History, News, SessionSum, Transition, month_of,
};
use antiphon::engine::presence::kept::KeptPresence;
use antiphon::protocol::command::Status;
use antiphon::protocol::ids::DeviceId;
use antiphon::store::schema::DATABASE_FILE;
use store_support::*;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn change(who: &str, ts: u64, was: Status, status: Status, cause: Cause) -> Transition {
    let device = (cause != Cause::Set).then(|| DeviceId::parse("phone-1").unwrap());
    let was_ms = if was == Status::Offline { 0 } else { 1_000 };
    Transition { user: user(who), ts, status, cause, device, was, was_ms }
}

fn news(number: u64, ts: u64, transitions: Vec<Transition>) -> News {
    News { shard: ShardId(0), boot: u64::MAX, number, ts, transitions, present: [0; 3], sessions: Vec::new() }
}

fn tell(store: &Store, news: &News) {
    store.committed(Entry::PresenceNews(Arc::new(news.clone())));
}

fn history(store: &Store, who: &str, from: u64, to: u64, limit: u32) -> History {
    let ask = Ask { user: user(who), from, to, limit };
    let Page::PresenceHistory(history) = store.page(Query::PresenceHistory(ask)) else { panic!("a history") };
    history
}

fn analytics(store: &Store, now: u64, hours: u32) -> Analytics {
    let page = store.page(Query::PresenceAnalytics { now, hours });
    let Page::PresenceAnalytics(analytics) = page else { panic!("numbers") };
    *analytics
}

#[test]
fn news_are_kept_once_and_the_lost_are_offline_once() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let began = now_ms();
    let first = news(
        1,
        began,
        vec![
            change("alice", began - 50, Status::Offline, Status::Online, Cause::Connect),
            change("bob", began - 40, Status::Offline, Status::Online, Cause::Connect),
            change("bob", began - 30, Status::Online, Status::Offline, Cause::Timeout),
        ],
    );
    let position = store.position();
    tell(&store, &first);
    // The same again, and an older one: no news.
    tell(&store, &first);
    tell(&store, &news(1, began, vec![change("eve", began, Status::Offline, Status::Busy, Cause::Connect)]));
    assert_eq!(store.position(), position, "presence has no place in the log");
    assert_eq!(history(&store, "eve", 0, u64::MAX >> 1, 10), History::default());
    let bob = history(&store, "bob", 0, began, 10);
    assert_eq!(bob.transitions.iter().map(|kept| kept.cause).collect::<Vec<_>>(), [Cause::Connect, Cause::Timeout]);
    assert_eq!((bob.summary.online_ms, bob.summary.sessions), (10, 1));
    // The process is lost without a word.
    drop(store);
    let store = Store::open(&config(&dir));
    assert_eq!(store.origin.presence_lost, 1);
    let alice = history(&store, "alice", 0, now_ms() + 1_000, 10);
    assert_eq!(alice.transitions.len(), 2);
    let lost = &alice.transitions[1];
    assert_eq!((lost.status, lost.cause, &lost.device), (Status::Offline, Cause::ServerRestart, &None));
    assert!(lost.ts >= began && lost.lost_ts == Some(began), "{lost:?}");
    assert_eq!(alice.summary.online_ms, 50, "as long as the server is known to have lived");
    assert_eq!(history(&store, "bob", 0, now_ms() + 1_000, 10).transitions.len(), 2);
    drop(store);
    let store = Store::open(&config(&dir));
    assert_eq!(store.origin.presence_lost, 0, "a second restart loses nobody");
    assert_eq!(history(&store, "alice", 0, now_ms() + 1_000, 10).transitions.len(), 2);
    // A new life numbers anew.
    let later = now_ms();
    let again = vec![change("alice", later, Status::Offline, Status::Busy, Cause::Connect)];
    tell(&store, &News { boot: 7, ..news(1, later, again) });
    assert_eq!(history(&store, "alice", 0, later + 1, 10).transitions.len(), 3);
    store.stop();
    assert_eq!(Store::open(&config(&dir)).origin.presence_lost, 1, "no drain said otherwise");
}

#[test]
fn a_commit_in_doubt_changes_nothing_about_that() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let now = now_ms();
    let tally = SessionSum { sessions: 1, total_ms: 500 };
    let one = News {
        present: [1, 0, 0],
        sessions: vec![("phone".into(), tally)],
        ..news(1, now, vec![change("alice", now, Status::Offline, Status::Online, Cause::Connect)])
    };
    // It is durable and reported as failed; then it fails and leaves nothing.
    store.running().faults().fail_after_commit(1);
    assert!(store.ask(Entry::PresenceNews(Arc::new(one.clone()))).is_err());
    tell(&store, &one);
    let two = news(2, now + 9, vec![change("alice", now + 9, Status::Online, Status::Offline, Cause::Clean)]);
    store.running().faults().fail_before_commit(1);
    assert!(store.ask(Entry::PresenceNews(Arc::new(two.clone()))).is_err());
    tell(&store, &two);
    let alice = history(&store, "alice", 0, now + 100, 10);
    assert_eq!((alice.transitions.len(), alice.summary.online_ms), (2, 9));
    let numbers = analytics(&store, now, 24);
    assert_eq!(numbers.devices, [("phone".into(), tally)], "counted once");
    store.stop();
}

#[test]
fn pages_and_sums_agree_with_the_model() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let base = now_ms() - DAY_MS;
    let statuses = [Status::Online, Status::Away, Status::Busy, Status::Offline];
    let (mut model, mut dice, mut shown) = (KeptPresence::default(), 7u64, [Status::Offline; 3]);
    for number in 1..60 {
        let mut transitions = Vec::new();
        for step in 0..7 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (who, status) = ((dice >> 33) as usize % 3, statuses[(dice >> 40) as usize % 4]);
            let was = std::mem::replace(&mut shown[who], status);
            let ts = base + number * 1_000 + step * 7;
            transitions.push(change(["a", "b", "c"][who], ts, was, status, Cause::Set));
        }
        let news = news(number, base + number * 1_000 + 60, transitions);
        tell(&store, &news);
        model.apply(&news);
    }
    for who in ["a", "b", "c", "d"] {
        for (from, to, limit) in
            [(0, base + DAY_MS, 500), (base + 9_010, base + 33_333, 5), (base, base, 1), (0, base, 3)]
        {
            let ask = Ask { user: user(who), from, to, limit };
            assert_eq!(history(&store, who, from, to, limit), model.history(&ask), "{ask:?}");
        }
        // Pages put together are the whole.
        let whole = history(&store, who, 0, base + DAY_MS, 500).transitions;
        let (mut pages, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let page = history(&store, who, at, base + DAY_MS, 13);
            pages.extend(page.transitions);
            from = page.next;
        }
        assert_eq!(pages, whole, "{who}");
    }
    store.stop();
}

#[test]
fn what_is_too_old_goes_by_itself() {
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.presence_days = 3;
    let store = Store::open(&config);
    let now = now_ms();
    let old = now - 4 * DAY_MS;
    let mut transitions: Vec<Transition> = (0..1_200)
        .map(|number| change(&format!("u{}", number % 40), old + number, Status::Away, Status::Online, Cause::Set))
        .collect();
    transitions.push(change("u1", now - DAY_MS, Status::Online, Status::Away, Cause::Idle));
    tell(&store, &news(1, now, transitions));
    eventually("old transitions are deleted", || store.log.stats().transitions_pruned == 1_200);
    let u1 = history(&store, "u1", 0, now, 100);
    assert_eq!(u1.transitions.len(), 1);
    // What they last changed to is known all the same.
    let u2 = history(&store, "u2", now - DAY_MS, now, 100);
    assert_eq!((u2.transitions.len(), u2.summary.online_ms, u2.summary.sessions), (0, DAY_MS, 1));
    assert_eq!(store.log.stats().transitions_written, 1_201);
    // Nobody appended meanwhile, and the log is looked after all the same.
    let is_copied = || {
        let copy = dir.path().join("copy.db");
        std::fs::copy(dir.path().join(DATABASE_FILE), &copy).unwrap();
        let conn = rusqlite::Connection::open(&copy).unwrap();
        conn.query_row("SELECT count(*) FROM presence_log", [], |row| row.get::<_, i64>(0)) == Ok(1)
    };
    eventually("the database has it", is_copied);
    store.stop();
}

#[test]
fn numbers_for_the_operator_add_up() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    // Well within an hour, a day and a month.
    let now = 20_600 * DAY_MS + 12 * HOUR_MS + 60_000;
    let tally = |sessions, total_ms| SessionSum { sessions, total_ms };
    let yesterday = now - DAY_MS;
    let of_shard = |shard, number, ts, present, transitions| News {
        shard: ShardId(shard),
        present,
        ..news(number, ts, transitions)
    };
    let came = |who: &str, ts| change(who, ts, Status::Offline, Status::Online, Cause::Connect);
    tell(&store, &of_shard(0, 1, yesterday, [1, 0, 0], vec![came("a", yesterday)]));
    tell(&store, &of_shard(0, 2, now, [1, 2, 0], vec![came("a", now), came("b", now + 1)]));
    let busy = change("c", now + 2, Status::Online, Status::Busy, Cause::Set);
    tell(&store, &of_shard(1, 1, now + 5, [0, 0, 4], vec![came("c", now), busy]));
    let classes: Vec<(Box<str>, SessionSum)> = (0..40).map(|n| (format!("class{n:02}").into(), tally(1, 10))).collect();
    let ended = News { sessions: classes, ..of_shard(0, 3, now + 9, [0, 1, 0], Vec::new()) };
    tell(&store, &ended);
    let numbers = analytics(&store, now + 10, 24);
    let [hour] = numbers.hours[..] else { panic!("one hour: {numbers:?}") };
    assert_eq!((hour.hour, hour.peak, hour.peaks), (now / HOUR_MS, 7, [1, 2, 4]));
    assert_eq!((hour.shown_ms, hour.ended), ([1_000, 0, 0], tally(40, 400)));
    assert_eq!(numbers.devices.iter().map(|(_, tally)| tally.sessions).sum::<u64>(), 40);
    assert!(numbers.devices.len() <= 33 && numbers.devices.last().unwrap().0.as_ref() == "other");
    assert_eq!(numbers.days, [(20_599, 1), (20_600, 3)]);
    assert_eq!(numbers.months, [(month_of(now), 3)]);
    assert_eq!(analytics(&store, now + 10, 25).hours.len(), 2);
    store.stop();
}

/// Not a measurement, a guard: who was lost is settled well within the time that a start may take.
#[test]
fn a_start_after_many_were_lost_is_quick() {
    let dir = TempDir::new();
    let store = Store::open(&config(&dir));
    let now = now_ms();
    for number in 0..10 {
        let at =
            |index: u64| change(&format!("user-{number}-{index}"), now, Status::Offline, Status::Online, Cause::Set);
        tell(&store, &news(number + 1, now, (0..4_000).map(at).collect()));
    }
    drop(store);
    let began = Instant::now();
    let store = Store::open(&config(&dir));
    let took = began.elapsed();
    assert_eq!(store.origin.presence_lost, 40_000);
    println!("40,000 lost users settled, start in {took:?}");
    assert!(took.as_secs() < 5, "{took:?}");
    store.stop();
}
