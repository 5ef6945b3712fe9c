//! Sending, acks, the order of fan-out, audiences, history.

use std::sync::Arc;

use antiphon::engine::event::{Entry, NewMessage};
use antiphon::engine::limits::Limits;
use antiphon::engine::stages::Stamps;
use antiphon::protocol::command::Manage;
use antiphon::protocol::ids::{Priority, RoomKey, RoomName};

use crate::harness::{Given, Table, user};

fn two_in_general() -> Table {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table.joins("b", "general");
    table
}

#[test]
fn a_message_is_acked_after_its_commit_and_shown_to_everybody_first() {
    let mut table = two_in_general();
    table.says("a", r#"{"type":"message:send","id":"m","room":"general","body":"hi","client_id":"c1"}"#).gives(
        r#"
        append message of alice to 1 as c1
        "#,
    );
    table.commit().gives(
        r#"
        a general 3 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","client_id":"c1","body":"hi","trace":"*"}
        b general 3 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","client_id":"c1","body":"hi","trace":"*"}
        a ! {"type":"ok","id":"m","room":"general","seq":3,"ts":1000000,"duplicate":false,"trace":"*"}
        "#,
    );
    // Retried: the first seq, and nobody is told again.
    table.says("a", r#"{"type":"message:send","id":7,"room":"general","body":"hi","client_id":"c1"}"#).whatever();
    table.commit().gives(
        r#"
        a ! {"type":"ok","id":7,"room":"general","seq":3,"ts":1000000,"duplicate":true,"trace":"*"}
        "#,
    );
    assert_eq!((table.engine.stats().acks, table.engine.stats().duplicates), (2, 1));
}

#[test]
fn a_batch_goes_to_each_room_in_one_piece_and_acks_come_last() {
    let mut table = two_in_general();
    table.joins("a", "other");
    table.says("a", r#"{"type":"message:send","id":1,"room":"general","body":"1"}"#).whatever();
    table.says("a", r#"{"type":"message:send","id":2,"room":"other","body":"2"}"#).whatever();
    table.says("b", r#"{"type":"message:send","id":3,"room":"general","body":"3"}"#).whatever();
    table.commit().gives(
        r#"
        a general 3..4 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"1","trace":"*"} {"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"bob","body":"3","trace":"*"}
        b general 3..4 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"1","trace":"*"} {"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"bob","body":"3","trace":"*"}
        a other 2 {"type":"message:created","room":"other","seq":2,"ts":1000000,"author":"alice","body":"2","trace":"*"}
        a ! {"type":"ok","id":1,"room":"general","seq":3,"ts":1000000,"duplicate":false,"trace":"*"}
        a ! {"type":"ok","id":2,"room":"other","seq":2,"ts":1000000,"duplicate":false,"trace":"*"}
        b ! {"type":"ok","id":3,"room":"general","seq":4,"ts":1000000,"duplicate":false,"trace":"*"}
        "#,
    );
}

#[test]
fn what_not_everybody_may_see_leaves_a_stand_in() {
    let mut table = two_in_general();
    table.has("c", "carol");
    table.joins("c", "general");
    table.says("a", r#"{"type":"message:send","room":"general","body":"1"}"#).whatever();
    table.says("a", r#"{"type":"message:send","room":"general","body":"2","only":["bob"]}"#).whatever();
    table.says("a", r#"{"type":"message:send","room":"general","body":"3","exclude":["bob"]}"#).whatever();
    table.says("a", r#"{"type":"message:send","room":"general","body":"4"}"#).whatever();
    table.commit().gives(
        r#"
        a general 4 {"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"alice","body":"1","trace":"*"}
        b general 4 {"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"alice","body":"1","trace":"*"}
        c general 4 {"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"alice","body":"1","trace":"*"}
        a general 5 {"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"2","trace":"*"}
        b general 5 {"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"2","trace":"*"}
        c general 5 {"type":"message:hidden","room":"general","seq":5,"ts":1000000}
        a general 6 {"type":"message:created","room":"general","seq":6,"ts":1000000,"author":"alice","body":"3","trace":"*"}
        c general 6 {"type":"message:created","room":"general","seq":6,"ts":1000000,"author":"alice","body":"3","trace":"*"}
        b general 6 {"type":"message:hidden","room":"general","seq":6,"ts":1000000}
        a general 7 {"type":"message:created","room":"general","seq":7,"ts":1000000,"author":"alice","body":"4","trace":"*"}
        b general 7 {"type":"message:created","room":"general","seq":7,"ts":1000000,"author":"alice","body":"4","trace":"*"}
        c general 7 {"type":"message:created","room":"general","seq":7,"ts":1000000,"author":"alice","body":"4","trace":"*"}
        "#,
    );
    // The same in history and in a resume, from memory and from the store.
    table.says("b", r#"{"type":"message:history","id":1,"room":"general","after":3}"#).whatever();
    table.answer().gives(
        r#"
        b unpark
        b ! {"type":"ok","id":1,"events":[{"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"alice","body":"1","trace":"*"},{"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"2","trace":"*"},{"type":"message:hidden","room":"general","seq":6,"ts":1000000},{"type":"message:created","room":"general","seq":7,"ts":1000000,"author":"alice","body":"4","trace":"*"}],"more":false}
        "#,
    );
    let since = r#"{"type":"room:subscribe","id":2,"room":"general","since":{"epoch":"e1","seq":5}}"#;
    table.says("c", since).gives(
        r#"
        c ! {"type":"ok","id":2,"room":"general","epoch":"e1","seq":7,"role":"member","members":3,"recovered":true,"events":[{"type":"message:created","room":"general","seq":6,"ts":1000000,"author":"alice","body":"3","trace":"*"},{"type":"message:created","room":"general","seq":7,"ts":1000000,"author":"alice","body":"4","trace":"*"}]}
        "#,
    );
}

#[test]
fn a_message_for_some_roles_or_devices_leaves_a_stand_in_for_the_others() {
    let mut table = two_in_general();
    for (conn, device) in [("p", "phone-1"), ("t", "tablet")] {
        let claims = table.claims("carol");
        table.opens_with(conn, device, claims).whatever();
        table.settle();
        table.joins(conn, "general");
    }
    let say = |body: &str, who: &str| {
        format!(r#"{{"type":"message:send","room":"general","body":"{body}",{who},"mentions":["bob"]}}"#)
    };
    table.says("a", &say("staff", r#""only_roles":["owner","moderator"]"#)).whatever();
    table.says("a", &say("phones", r#""only_devices":["phone"],"exclude":["bob"]"#)).whatever();
    let given = table.commit();
    let shown = |conn: &str, seq: u32| {
        let is_it = |line: &&String| line.starts_with(&format!("{conn} general {seq} "));
        given.0.iter().find(is_it).unwrap().contains("message:created")
    };
    let seen: Vec<(bool, bool)> = ["a", "b", "p", "t"].map(|conn| (shown(conn, 4), shown(conn, 5))).into();
    assert_eq!(seen, [(true, true), (false, false), (false, true), (false, false)], "{given:?}");
    assert!(table.log.kept.inbox.is_empty(), "who may not see it is not told of the mention");
    // History and resume judge likewise, history by the role of the moment.
    let events = |given: crate::harness::Given| {
        let line = given.lines("\"events\":").pop().unwrap();
        (line.contains("\"staff\""), line.contains("\"phones\""), line.matches("message:hidden").count())
    };
    let history = r#"{"type":"message:history","id":1,"room":"general","after":3}"#;
    for (conn, due) in [("b", (false, false, 2)), ("p", (false, true, 1)), ("t", (false, false, 2))] {
        table.says(conn, history).whatever();
        assert_eq!(events(table.answer()), due, "{conn}");
        let since = r#"{"type":"room:subscribe","id":2,"room":"general","since":{"epoch":"e1","seq":3}}"#;
        assert_eq!(events(table.says(conn, since)), due, "{conn}");
    }
    let promote = r#"{"type":"room:role","room":"general","user":"carol","role":"moderator"}"#;
    table.says("a", promote).whatever();
    table.commit().whatever();
    table.says("t", history).whatever();
    assert_eq!(events(table.answer()), (true, false, 1));
    // A reaction to what somebody may not see is refused as if it were not there.
    let react = |seq: u32| format!(r#"{{"type":"reaction:add","id":3,"room":"general","seq":{seq},"emoji":"+"}}"#);
    table.says("b", &react(4)).whatever();
    table.says("t", &react(4)).whatever();
    let given = table.commit();
    assert!(given.has("b ! {\"type\":\"error\",\"id\":3,\"code\":110"), "{given:?}");
    assert!(
        given.has("t ! {\"type\":\"ok\",\"id\":3") && given.has("b general 7 {\"type\":\"message:hidden\""),
        "{given:?}"
    );
}

#[test]
fn both_audiences_at_once_are_refused() {
    let mut table = two_in_general();
    let both = r#"{"type":"message:send","id":1,"room":"general","body":"2","only":["bob"],"exclude":["carol"]}"#;
    table.says("a", both).gives(
        r#"
        a ! {"type":"error","id":1,"code":107,"error":"bad_request","message":"exclude and only shut each other out","temporary":false,"retry_after_ms":0}
        "#,
    );
}

#[test]
fn whoever_is_kicked_gets_their_kick_and_nothing_behind_it() {
    let mut table = two_in_general();
    let room = RoomName::parse("general").unwrap();
    let say = |text: &str| {
        Entry::Message(NewMessage {
            room: RoomKey(1),
            author: user("alice"),
            by_admin: false,
            client_id: None,
            fields: format!("\"body\":\"{text}\"").into(),
            thread: None,
            audience: None,
            priority: Priority::Normal,
            mentions: Box::default(),
            reads: false,
        })
    };
    let manage = |act| Entry::Manage { room: room.clone(), by: user("alice"), by_admin: false, user: user("bob"), act };
    table.elsewhere(say("before"));
    table.elsewhere(manage(Manage::Kick));
    table.elsewhere(say("behind his back"));
    table.elsewhere(manage(Manage::Invite(antiphon::protocol::ids::Role::Member)));
    table.elsewhere(say("he is back, but does not listen"));
    table.commit().gives(
        r#"
        a general 3..4 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"before"} {"type":"room:kicked","room":"general","seq":4,"ts":1000000,"user":"bob","by":"alice"}
        b general 3..4 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"before"} {"type":"room:kicked","room":"general","seq":4,"ts":1000000,"user":"bob","by":"alice"}
        a general 5..7 {"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"behind his back"} {"type":"room:joined","room":"general","seq":6,"ts":1000000,"user":"bob","by":"alice","role":"member"} {"type":"message:created","room":"general","seq":7,"ts":1000000,"author":"alice","body":"he is back, but does not listen"}
        b = {"type":"inbox:item","items":[{"item":1,"name":"invitation","data":{"room":"general","seq":6,"by":"alice"},"priority":"normal","ts":1000000,"expires_ts":605800000,"attempt":1,"from":"alice"}]}
        "#,
    );
    table.sends("a", "general", "still");
    assert_eq!(table.engine.stats().subscriptions, 1);
}

#[test]
fn references_must_name_entries_that_exist() {
    let mut table = two_in_general();
    table.says("a", r#"{"type":"message:send","id":1,"room":"general","body":"x","reply_to":3}"#).gives(
        r#"
        a ! {"type":"error","id":1,"code":110,"error":"not_found","message":"thread or reply_to names no entry of this room","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("a", r#"{"type":"message:send","id":2,"room":"general","body":"x","thread":2,"reply_to":1}"#).gives(
        r#"
        append message of alice to 1
        "#,
    );
}

#[test]
fn an_unknown_outcome_is_refused_and_the_retry_finds_the_entry() {
    let mut table = two_in_general();
    let message = r#"{"type":"message:send","id":1,"room":"general","body":"x","client_id":"c"}"#;
    table.says("a", message).whatever();
    let decided = table.log.decide(std::mem::take(&mut table.appends), table.now);
    let failed = table.log.fail(decided, true);
    table.apply(failed.refused.into()).gives(
        r#"
        a ! {"type":"error","id":1,"code":117,"error":"degraded","message":"the outcome is unknown","temporary":true,"retry_after_ms":1000}
        "#,
    );
    // It stands in the log all the same; the store finds out and tells.
    table.log.adopt(&failed.held);
    table.apply(failed.held.into()).gives(
        r#"
        a general 3 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","client_id":"c","body":"x","trace":"*"}
        b general 3 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","client_id":"c","body":"x","trace":"*"}
        "#,
    );
    table.says("a", message).whatever();
    table.commit().gives(
        r#"
        a ! {"type":"ok","id":1,"room":"general","seq":3,"ts":1000000,"duplicate":true,"trace":"*"}
        "#,
    );
}

#[test]
fn who_may_no_longer_write_is_told_of_the_message_that_stands() {
    let mut table = Table::new();
    for (conn, name) in [("a", "alice"), ("b", "bob"), ("c", "carol")] {
        table.has(conn, name);
    }
    table.says("a", r#"{"type":"room:create","room":"den","kind":"private","members":["bob"]}"#).whatever();
    table.settle();
    let send = |id: u32, more: &str| format!(r#"{{"type":"message:send","id":{id},"room":"den","body":"x"{more}}}"#);
    table.says("b", &send(1, r#","client_id":"c1""#)).whatever();
    table.settle();
    table.says("a", r#"{"type":"room:kick","room":"den","user":"bob"}"#).whatever();
    table.settle();
    let denied = |conn: &str, id: u32| {
        format!(
            r#"{conn} ! {{"type":"error","id":{id},"code":103,"error":"permission_denied","message":"not allowed in this room","temporary":false,"retry_after_ms":0}}"#
        )
    };
    table.says("b", &send(2, r#","client_id":"c1""#)).gives("append repeat of bob to 1 as c1");
    table.commit().gives(
        r#"
        b ! {"type":"ok","id":2,"room":"den","seq":3,"ts":1000000,"duplicate":true,"trace":"*"}
        "#,
    );
    assert_eq!((table.engine.stats().duplicates, table.engine.stats().denied), (1, 0));
    table.says("b", &send(3, r#","client_id":"c2""#)).gives("append repeat of bob to 1 as c2");
    table.commit().gives(&denied("b", 3));
    table.says("b", &send(4, "")).gives(&denied("b", 4));
    // A stranger learns nothing of where the room stands.
    table.says("c", &send(5, r#","reply_to":999"#)).gives(&denied("c", 5));
    table.says("c", &send(6, r#","client_id":"c1","reply_to":999"#)).gives("append repeat of carol to 1 as c1");
    table.commit().gives(&denied("c", 6));
    assert_eq!(table.engine.stats().denied, 4);
}

#[test]
fn history_ends_at_the_head_that_the_shard_has_applied() {
    let mut table = two_in_general();
    table.sends("a", "general", "seen");
    table.elsewhere(Entry::Leave { room: RoomName::parse("general").unwrap(), user: user("bob") });
    let later = table.commit_only();
    table.says("b", r#"{"type":"message:history","id":1,"room":"general","before":100}"#).gives(
        r#"
        b park
        read history 1 after 0 before 4 newest 50
        "#,
    );
    table.says("a", r#"{"type":"message:history","id":2,"room":"general","after":2,"limit":3}"#).gives(
        r#"
        a park
        read history 1 after 2 before 4 oldest 3
        "#,
    );
    table.answer().gives(
        r#"
        b unpark
        b ! {"type":"ok","id":1,"events":[{"type":"room:joined","room":"general","seq":1,"ts":1000000,"user":"alice","role":"owner"},{"type":"room:joined","room":"general","seq":2,"ts":1000000,"user":"bob","role":"member"},{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"seen","trace":"*"}],"more":false}
        a unpark
        a ! {"type":"ok","id":2,"events":[{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"seen","trace":"*"}],"more":false}
        "#,
    );
    table.apply(later).gives(
        r#"
        a general 4 {"type":"room:left","room":"general","seq":4,"ts":1000000,"user":"bob"}
        b general 4 {"type":"room:left","room":"general","seq":4,"ts":1000000,"user":"bob"}
        "#,
    );
}

#[test]
fn read_marks_are_told_once_for_many_and_only_forward() {
    let mut table = two_in_general();
    table.sends("a", "general", "1");
    table.sends("a", "general", "2");
    for (id, seq) in [(1, 3), (2, 4), (3, 2), (4, 99)] {
        table.says("b", &format!(r#"{{"type":"message:read","id":{id},"room":"general","seq":{seq}}}"#)).whatever();
        table.commit().only(&["b"]).whatever();
    }
    table.passes(199).gives_nothing();
    table.passes(1).gives(
        r#"
        a ~ {"type":"read:advanced","room":"general","user":"bob","read":4}
        b ~ {"type":"read:advanced","room":"general","user":"bob","read":4}
        "#,
    );
    table.passes(1_000).gives_nothing();
}

#[test]
fn in_a_large_room_only_the_own_devices_hear_how_far_one_has_read() {
    let mut table = Table::with(Limits { receipts_room_max: 1, ..Limits::default() });
    for (conn, name) in [("a", "alice"), ("b", "bob"), ("b2", "bob"), ("b3", "bob")] {
        table.has(conn, name);
    }
    ["a", "b", "b2"].iter().for_each(|conn| table.joins(conn, "general"));
    table.sends("a", "general", "1");
    for (conn, command, seq) in [("a", "read", 2), ("b", "read", 3), ("a", "delivered", 3)] {
        table.says(conn, &format!(r#"{{"type":"message:{command}","room":"general","seq":{seq}}}"#)).whatever();
    }
    table.settle();
    let mut told = table.passes(200).0;
    told.sort_unstable();
    Given(told).gives(
        r#"
        a ~ {"type":"delivered:advanced","room":"general","user":"alice","device":"a","delivered":3}
        a ~ {"type":"read:advanced","room":"general","user":"alice","read":2}
        b ~ {"type":"read:advanced","room":"general","user":"bob","read":3}
        b2 ~ {"type":"read:advanced","room":"general","user":"bob","read":3}
        "#,
    );
}

#[test]
fn who_asks_for_it_is_told_where_the_time_went() {
    let mut table = two_in_general();
    table.engine.note_clock(1_000);
    table.says("a", r#"{"type":"message:send","id":1,"room":"general","body":"1","timing":true}"#).whatever();
    table.says("b", r#"{"type":"message:send","id":1,"room":"general","body":"2"}"#).whatever();
    // While the core gathers already.
    table.engine.note_clock(1_170);
    table.says("b", r#"{"type":"message:send","id":2,"room":"general","body":"3","timing":true}"#).whatever();
    let mut batch = table.commit_only();
    let stamps = Stamps { taken_us: 1_150, began_us: 1_180, committed_us: 1_900, published_us: 1_910 };
    Arc::get_mut(&mut batch).unwrap().stamps = stamps;
    table.engine.note_clock(2_000);
    let given = table.apply(batch);
    assert!(!given.0.iter().any(|line| line.contains("message:created") && line.contains("timing")), "{given:?}");
    let acks = Given(given.lines("\"ok\""));
    acks.gives(
        r#"
        a ! {"type":"ok","id":1,"room":"general","seq":3,"ts":1000000,"duplicate":false,"trace":"*","timing":{"queue_us":150,"gather_us":30,"commit_us":720,"fanout_us":100,"total_us":1000}}
        b ! {"type":"ok","id":1,"room":"general","seq":4,"ts":1000000,"duplicate":false,"trace":"*"}
        b ! {"type":"ok","id":2,"room":"general","seq":5,"ts":1000000,"duplicate":false,"trace":"*","timing":{"queue_us":0,"gather_us":10,"commit_us":720,"fanout_us":100,"total_us":830}}
        "#,
    );
}

#[test]
fn an_audience_of_nobody_is_refused_and_not_everybody() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "general");
    for field in ["only", "only_roles", "only_devices"] {
        let command = format!(r#"{{"type":"message:send","id":1,"room":"general","body":"x","{field}":[]}}"#);
        let message = format!("{field} is empty: name somebody, or leave it out");
        table.says("a", &command).gives(&format!(
            r#"a ! {{"type":"error","id":1,"code":107,"error":"bad_request","message":"{message}","temporary":false,"retry_after_ms":0}}"#
        ));
    }
    let nobody_out = r#"{"type":"message:send","room":"general","body":"x","exclude":[]}"#;
    table.says("a", nobody_out).whatever();
    assert!(table.commit().has(r#""body":"x""#));
}

#[test]
fn authors_who_exclude_themselves_see_their_own() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table.joins("b", "general");
    table.says("a", r#"{"type":"message:send","room":"general","body":"x","exclude":["alice","bob"]}"#).whatever();
    let given = table.commit();
    assert!(given.has(r#"a general 3 {"type":"message:created""#), "{given:?}");
    assert!(given.has(r#"b general 3 {"type":"message:hidden""#), "{given:?}");
    table.says("a", r#"{"type":"message:delete","id":1,"room":"general","seq":3}"#).whatever();
    assert!(table.commit().has(r#"a ! {"type":"ok","id":1"#));
}
