//! What is kept of presence: which changes become transitions, with which cause, what becomes of them
//! while the store takes none, and `presence:history`.

use antiphon::engine::event::{AdminAct, Entry, Input};
use antiphon::engine::limits::Limits;
use antiphon::engine::presence::history::{News, SIGN_OF_LIFE_MS};

use crate::harness::{DAWN, Table, user};

/// A user's transitions: milliseconds since the table was laid, status, cause, device.
fn kept(table: &Table, name: &str) -> Vec<String> {
    let log = &table.log.kept.presence.log;
    let theirs = log.range((user(name), 0)..=(user(name), u64::MAX));
    theirs
        .map(|((_, ts), kept)| {
            let device = kept.device.as_ref().map_or("nobody", |device| device.as_str());
            format!("{} {} {} {device}", ts - DAWN, kept.status.as_str(), kept.cause.as_str())
        })
        .collect()
}

fn last(table: &Table, name: &str) -> String {
    kept(table, name).pop().expect("something is kept")
}

fn set(table: &mut Table, conn: &str, status: &str) {
    table.says(conn, &format!(r#"{{"type":"presence:set","status":"{status}"}}"#)).whatever();
    table.passes(100).whatever();
}

/// The news that wait for an answer.
fn news(table: &Table) -> Vec<&News> {
    let news = table.news.iter().map(|append| match &append.entry {
        Entry::PresenceNews(news) => &**news,
        other => panic!("no news: {other:?}"),
    });
    news.collect()
}

#[test]
fn each_change_that_others_see_is_kept_with_its_cause() {
    let mut table = Table::with(Limits { idle_after_ms: 5_000, ..Limits::default() });
    table.has("phone", "bob");
    table.passes(100).whatever();
    set(&mut table, "phone", "busy");
    set(&mut table, "phone", "online");
    // There and back within a tick is nothing.
    table.says("phone", r#"{"type":"presence:set","status":"away"}"#).whatever();
    set(&mut table, "phone", "online");
    table.passes(5_000).whatever();
    table.says("phone", r#"{"type":"activity","kind":"active"}"#).whatever();
    table.passes(100).whatever();
    // A reconnect within the grace is nothing, and so is a second device of the same status.
    table.closes("phone").whatever();
    table.passes(5_000).whatever();
    let claims = table.claims("bob");
    table.opens_with("again", "phone", claims).whatever();
    table.has("web", "bob");
    table.passes(200).whatever();
    table.engine.note_goodbye(table.key("web"));
    table.closes("web").whatever();
    table.closes("again").whatever();
    table.passes(10_100).whatever();
    let due = [
        "100 online connect phone",
        "200 busy set phone",
        "300 online set phone",
        "5400 away idle phone",
        "5500 online active phone",
        "20800 offline timeout phone",
    ];
    assert_eq!(kept(&table, "bob"), due);
    assert_eq!(table.engine.stats().transitions_recorded, 6);
    assert_eq!(table.engine.stats().transitions_dropped, 0);
}

#[test]
fn every_end_has_its_cause() {
    let mut table = Table::with(Limits { grace_ms: 0, ..Limits::default() });
    let come = |table: &mut Table, conn: &str| {
        table.has(conn, "bob");
        table.passes(100).whatever();
        assert!(last(table, "bob").contains(" online connect "), "{:?}", kept(table, "bob"));
    };
    come(&mut table, "a");
    table.engine.note_goodbye(table.key("a"));
    table.closes("a").whatever();
    table.passes(100).whatever();
    assert!(last(&table, "bob").ends_with("offline clean a"));
    come(&mut table, "b");
    table.closes("b").whatever();
    table.passes(100).whatever();
    assert!(last(&table, "bob").ends_with("offline timeout b"));
    come(&mut table, "c");
    table.admin(AdminAct::Disconnect { user: user("bob"), reason: "out".into() }).whatever();
    table.passes(100).whatever();
    assert!(last(&table, "bob").ends_with("offline kicked c"));
    let mut claims = table.claims("bob");
    claims.expires_at = table.now + 1_000;
    table.opens_with("d", "d", claims).whatever();
    table.passes(1_200).whatever();
    assert!(last(&table, "bob").ends_with("offline expired d"), "{:?}", kept(&table, "bob"));
}

#[test]
fn who_hides_looks_like_somebody_who_went() {
    let mut table = Table::new();
    table.has("a", "bob");
    table.passes(100).whatever();
    set(&mut table, "a", "offline");
    // What an invisible user does shows nowhere.
    table.has("b", "bob");
    set(&mut table, "b", "busy");
    table.closes("b").whatever();
    table.passes(11_000).whatever();
    set(&mut table, "a", "away");
    assert_eq!(kept(&table, "bob"), ["100 online connect a", "200 offline clean a", "11400 away connect a"]);
    let before = kept(&table, "bob").len();
    set(&mut table, "a", "offline");
    table.closes("a").whatever();
    table.passes(11_000).whatever();
    assert_eq!(kept(&table, "bob").len(), before + 1, "the end of a hidden session is no news");
}

#[test]
fn a_stop_ends_everybody_whatever_their_grace() {
    let mut table = Table::new();
    for (conn, name) in [("a", "alice"), ("b", "bob"), ("c", "carol")] {
        table.has(conn, name);
    }
    table.passes(100).whatever();
    set(&mut table, "c", "offline");
    table.engine.note_goodbye(table.key("a"));
    table.closes("a").whatever();
    table.give(Input::Drain { spread_ms: 10 }).whatever();
    table.give(Input::CloseAll).whatever();
    assert!(last(&table, "alice").ends_with("offline clean a"), "went before: {:?}", kept(&table, "alice"));
    assert!(last(&table, "bob").ends_with("offline drain b"), "{:?}", kept(&table, "bob"));
    assert!(last(&table, "carol").ends_with("offline clean c"), "hidden before: {:?}", kept(&table, "carol"));
    assert!(table.log.kept.presence.shown.is_empty());
    let end = kept(&table, "bob").len();
    table.passes(20_000).whatever();
    assert_eq!(kept(&table, "bob").len(), end, "once");
}

#[test]
fn what_the_store_does_not_take_waits_and_is_told_again_as_it_was() {
    let mut table = Table::new();
    table.holds_news = true;
    table.has("a", "alice");
    table.passes(100).whatever();
    assert_eq!(news(&table).iter().map(|news| (news.number, news.transitions.len())).collect::<Vec<_>>(), [(1, 1)]);
    // One at a time: what happens meanwhile waits.
    table.has("b", "bob");
    set(&mut table, "a", "busy");
    assert_eq!(news(&table).len(), 1);
    let first = news(&table)[0].clone();
    table.answer_news(false).gives_nothing();
    table.passes(999).whatever();
    assert!(news(&table).is_empty(), "not at once");
    table.passes(1_001).whatever();
    assert_eq!(news(&table), [&first]);
    table.answer_news(true).gives_nothing();
    assert_eq!(news(&table).iter().map(|news| (news.number, news.present)).collect::<Vec<_>>(), [(2, [1, 0, 1])]);
    table.answer_news(true).gives_nothing();
    assert_eq!((kept(&table, "alice").len(), kept(&table, "bob").len()), (2, 1));
    // While the store takes no writes nothing is sent, and nothing is lost.
    table.degrades(true).whatever();
    set(&mut table, "b", "away");
    table.passes(5_000).whatever();
    assert!(news(&table).is_empty());
    assert_eq!(table.engine.stats().presence_unwritten, 1);
    table.degrades(false).whatever();
    table.passes(2_000).whatever();
    table.answer_news(true).gives_nothing();
    assert!(last(&table, "bob").contains(" away set b"));
    assert_eq!(table.engine.stats().presence_unwritten, 0);
}

#[test]
fn the_store_hears_a_sign_of_life_while_somebody_is_here() {
    let mut table = Table::new();
    table.holds_news = true;
    table.passes(2 * SIGN_OF_LIFE_MS).whatever();
    assert!(news(&table).is_empty(), "nobody is here");
    table.has("a", "alice");
    table.passes(100).whatever();
    table.answer_news(true).whatever();
    for number in 2..4 {
        table.is_heard("a");
        for _ in 0..7 {
            table.passes(10_000).whatever();
            table.is_heard("a");
        }
        let told: Vec<_> = news(&table).iter().map(|news| (news.number, news.transitions.len())).collect();
        assert_eq!(told, [(number, 0)]);
        table.answer_news(true).whatever();
    }
}

#[test]
fn history_is_asked_of_the_store_and_told_in_pages() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.passes(100).whatever();
    set(&mut table, "b", "busy");
    set(&mut table, "b", "online");
    table.passes(1).whatever();
    table.says("a", r#"{"type":"presence:history","id":1,"user":"bob","limit":2}"#).gives(
        r#"
        a park
        read presence of bob 0..1000301 2
        "#,
    );
    table.answer().gives(
        r#"
        a unpark
        a ! {"type":"ok","id":1,"transitions":[{"ts":1000100,"status":"online","device":"b","cause":"connect"},{"ts":1000200,"status":"busy","device":"b","cause":"set"}],"next":1000300,"summary":{"online_ms":201,"sessions":1,"first_seen":1000100,"last_seen":1000301}}
        "#,
    );
    table.passes(50).whatever();
    table.says("a", r#"{"type":"presence:history","id":2,"user":"bob","from":1000300,"to":9000000}"#).whatever();
    table.answer().gives(
        r#"
        a unpark
        a ! {"type":"ok","id":2,"transitions":[{"ts":1000300,"status":"online","device":"b","cause":"set"}],"summary":{"online_ms":51,"sessions":1,"first_seen":1000300,"last_seen":1000351}}
        "#,
    );
    table.says("a", r#"{"type":"presence:history","id":3,"user":"nobody"}"#).whatever();
    table.answer().gives(
        r#"
        a unpark
        a ! {"type":"ok","id":3,"transitions":[],"summary":{"online_ms":0,"sessions":0}}
        "#,
    );
    table.says("a", r#"{"type":"presence:history","id":4,"user":"bob"}"#).whatever();
    let given = table.fail_reads();
    assert!(given.has("a unpark") && given.has(r#""code":117"#), "{given:?}");
    for bad in [r#""limit":501"#, r#""limit":0"#, r#""from":5,"to":4"#, r#""from":-1"#, r#""to":"now""#] {
        let given = table.says("a", &format!(r#"{{"type":"presence:history","id":5,"user":"bob",{bad}}}"#));
        assert!(given.has(r#""code":107"#), "{bad}: {given:?}");
    }
    assert!(table.says("a", r#"{"type":"presence:history","id":6}"#).has(r#""code":107"#));
}

#[test]
fn where_nothing_is_kept_nothing_is_told() {
    let mut table = Table::with(Limits { presence_history_days: 0, ..Limits::default() });
    table.has("a", "alice");
    table.passes(1_000).whatever();
    assert!(table.log.kept.presence.log.is_empty());
    assert!(table.says("a", r#"{"type":"presence:history","id":1,"user":"alice"}"#).has(r#""code":108"#));
}

#[test]
fn devices_are_counted_by_class() {
    let mut table = Table::new();
    for (conn, name) in [("phone-1", "alice"), ("Phone-2", "bob"), ("web", "bob"), ("7", "carol")] {
        table.has(conn, name);
    }
    table.admin(AdminAct::PresenceDevices).gives(r#"admin 1 {"other": 1, "phone": 2, "web": 1}"#);
    table.admin(AdminAct::PresenceAnalytics { hours: 24 }).gives("read analytics of 24");
    table.answer().gives("admin 2 analytics");
}
