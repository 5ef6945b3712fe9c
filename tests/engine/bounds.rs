//! Limits: rates, errors in a row, busy, subscriptions, connections.

use antiphon::engine::limits::{Limits, Rate};

use crate::harness::Table;

const PING: &str = r#"{"type":"ping","id":1}"#;

#[test]
fn a_flood_of_pings_is_closed_though_nothing_can_be_refused() {
    let connection_rate = Rate { per_second: 10, burst: 2 };
    let mut table = Table::with(Limits { connection_rate, errors_max: 3, ..Limits::default() });
    table.has("a", "alice");
    for _ in 0..4 {
        table.pings("a").gives_nothing();
    }
    table.pings("a").gives(
        r#"
        a close 4101 rate_limited: kept sending past the rate limit
        "#,
    );
}

#[test]
fn too_fast_is_refused_with_a_time_and_in_the_end_closed() {
    let connection_rate = Rate { per_second: 10, burst: 2 };
    let mut table = Table::with(Limits { connection_rate, errors_max: 3, ..Limits::default() });
    table.has("a", "alice");
    table.says("a", PING).whatever();
    table.says("a", PING).whatever();
    table.says("a", PING).gives(
        r#"
        a ! {"type":"error","id":1,"code":111,"error":"rate_limited","message":"too many commands","temporary":true,"retry_after_ms":100}
        "#,
    );
    table.now += 100;
    table.says("a", PING).gives(
        r#"
        a ! {"type":"ok","id":1,"ts":1000100}
        "#,
    );
    table.says("a", PING).whatever();
    table.says("a", PING).whatever();
    table.says("a", PING).gives(
        r#"
        a ! {"type":"error","id":1,"code":111,"error":"rate_limited","message":"too many commands","temporary":true,"retry_after_ms":100}
        a close 4101 rate_limited: kept sending past the rate limit
        "#,
    );
    assert_eq!(table.engine.stats().rate_limited, 4);
}

#[test]
fn a_users_message_rate_counts_over_all_connections() {
    let user_rate = Rate { per_second: 1, burst: 3 };
    let mut table = Table::with(Limits { user_rate, ..Limits::default() });
    table.has("a", "alice");
    table.has("b", "alice");
    table.joins("a", "general");
    let send = r#"{"type":"message:send","id":1,"room":"general","body":"x"}"#;
    table.says("a", send).whatever();
    table.says("b", r#"{"type":"event:send","id":1,"room":"general","name":"n","data":1}"#).whatever();
    table.says("b", send).gives(
        r#"
        b ! {"type":"error","id":1,"code":111,"error":"rate_limited","message":"too many messages","temporary":true,"retry_after_ms":1000}
        "#,
    );
    table.says("b", PING).gives(
        r#"
        b ! {"type":"ok","id":1,"ts":1000000}
        "#,
    );
}

#[test]
fn watches_of_rooms_count_as_messages() {
    let user_rate = Rate { per_second: 1, burst: 2 };
    let mut table = Table::with(Limits { user_rate, ..Limits::default() });
    table.has("a", "alice");
    table.joins("a", "general");
    let watch = r#"{"type":"presence:subscribe","id":1,"room":"general"}"#;
    assert!(table.says("a", watch).has(r#""type":"ok""#));
    table.says("a", r#"{"type":"presence:unsubscribe","room":"general"}"#).gives_nothing();
    table.says("a", watch).gives(
        r#"
        a ! {"type":"error","id":1,"code":111,"error":"rate_limited","message":"too many watches of rooms","temporary":true,"retry_after_ms":1000}
        "#,
    );
}

#[test]
fn changes_of_members_count_as_messages_and_a_full_room_as_a_hundred() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    let create = |name: &str| {
        let members: Vec<String> = (0..1_000).map(|number| format!(r#""{name}-{number}""#)).collect();
        format!(r#"{{"type":"room:create","id":1,"room":"{name}","kind":"private","members":[{}]}}"#, members.join(","))
    };
    assert!(table.says("a", &create("one")).has("append create one"));
    // 101 of 200 are gone.
    let given = table.says("a", &create("two"));
    assert!(given.has(r#""code":111"#) && given.has(r#""temporary":true,"retry_after_ms":20}"#), "{given:?}");
    table.passes(20).whatever();
    assert!(table.says("a", &create("two")).has("append create two"));
    for act in [
        r#"{"type":"room:join","id":2,"room":"new"}"#,
        r#"{"type":"room:leave","id":2,"room":"one"}"#,
        r#"{"type":"room:invite","id":2,"room":"one","user":"carol"}"#,
    ] {
        let given = table.says("a", act);
        assert!(given.has(r#""code":111"#) && !given.has("append"), "{given:?}");
    }
    // It is the user's rate.
    assert!(table.says("b", &create("three")).has("append create three"));
}

#[test]
fn a_row_of_errors_ends_a_connection_and_a_success_ends_the_row() {
    let mut table = Table::with(Limits { errors_max: 3, ..Limits::default() });
    table.has("a", "alice");
    let bad = r#"{"type":"no:such","id":1}"#;
    table.says("a", bad).whatever();
    table.says("a", "{").gives(
        r#"
        a ! {"type":"error","code":107,"error":"bad_request","message":"a frame is one JSON object (RFC 8259)","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("a", PING).whatever();
    table.says("a", bad).whatever();
    table.says("a", bad).whatever();
    table.says("a", bad).gives(
        r#"
        a ! {"type":"error","id":1,"code":104,"error":"unknown_type","message":"no command of that type","temporary":false,"retry_after_ms":0}
        a close 4007 too_many_errors: too many refused commands in a row
        "#,
    );
}

#[test]
fn errors_that_come_late_count_as_well() {
    let mut table = Table::with(Limits { errors_max: 2, ..Limits::default() });
    table.has("z", "zoe");
    table.says("z", r#"{"type":"room:create","room":"den","kind":"private"}"#).whatever();
    table.settle();
    table.has("a", "alice");
    table.says("a", r#"{"type":"room:join","id":1,"room":"den"}"#).whatever();
    table.commit().gives(
        r#"
        a ! {"type":"error","id":1,"code":103,"error":"permission_denied","message":"this room is entered by invitation only","temporary":false,"retry_after_ms":0}
        a unpark
        "#,
    );
    table.says("a", r#"{"type":"room:leave","id":2,"room":"den"}"#).whatever();
    table.commit().gives(
        r#"
        a ! {"type":"error","id":2,"code":110,"error":"not_found","message":"you are not a member of this room","temporary":false,"retry_after_ms":0}
        a close 4007 too_many_errors: too many refused commands in a row
        a unpark
        "#,
    );
}

#[test]
fn busy_when_too_many_writes_or_reads_wait() {
    let mut table = Table::with(Limits { appends_max: 1, reads_max: 1, ..Limits::default() });
    table.has("a", "alice");
    table.joins("a", "general");
    table.says("a", r#"{"type":"message:send","id":1,"room":"general","body":"x"}"#).whatever();
    let given = table.says("a", r#"{"type":"message:send","id":2,"room":"general","body":"y"}"#);
    assert!(given.has(r#""code":113,"error":"busy""#) && !given.has("append"), "{given:?}");
    table.says("a", r#"{"type":"message:history","id":3,"room":"general"}"#).whatever();
    table.opens("b", "bob").gives(
        r#"
        b close 4100 over_capacity: too busy
        "#,
    );
    table.settle();
    let stats = table.engine.stats();
    assert_eq!((stats.appends_pending, stats.reads_pending, table.engine.unanswered()), (0, 0, 0));
}

#[test]
fn what_is_refused_as_busy_costs_nothing_of_the_rate() {
    let user_rate = Rate { per_second: 1, burst: 4 };
    let mut table = Table::with(Limits { appends_max: 1, user_rate, ..Limits::default() });
    table.has("a", "alice");
    table.joins("a", "general");
    let commands = [
        r#"{"type":"message:send","id":1,"room":"general","body":"x"}"#,
        r#"{"type":"message:edit","id":1,"room":"general","seq":1,"body":"y"}"#,
        r#"{"type":"notify","id":1,"user":"bob","name":"n","data":1}"#,
    ];
    for command in commands {
        table.says("a", r#"{"type":"message:read","room":"general","seq":1}"#).whatever();
        for _ in 0..4 {
            assert!(table.says("a", command).has(r#""code":113"#), "{command}");
        }
        table.settle();
    }
    // Three are left of the four, after the join.
    for command in commands {
        assert!(table.says("a", command).has("append"), "{command}");
        table.settle();
    }
    assert!(table.says("a", commands[0]).has(r#""code":111"#));
}

#[test]
fn subscriptions_and_connections_have_their_bounds() {
    let limits =
        Limits { subscriptions_max: 1, user_connections_max: 1, shard_connections_max: 2, ..Limits::default() };
    let mut table = Table::with(limits);
    table.has("a", "alice");
    table.joins("a", "one");
    // Refused before anything is written.
    table.says("a", r#"{"type":"room:join","id":1,"room":"two"}"#).gives(
        r#"
        a ! {"type":"error","id":1,"code":106,"error":"limit_exceeded","message":"subscriptions_max is reached","temporary":false,"retry_after_ms":0}
        "#,
    );
    // To subscribe again to what it listens to is no new subscription.
    table.says("a", r#"{"type":"room:subscribe","id":2,"room":"one"}"#).gives(
        r#"
        a ! {"type":"ok","id":2,"room":"one","epoch":"e1","seq":1,"role":"owner","members":1,"recovered":false,"events":[]}
        "#,
    );
    table.opens("a2", "alice").gives(
        r#"
        a2 close 4005 connection_limit: too many connections of this user
        "#,
    );
    table.has("b", "bob");
    table.opens("c", "carol").gives(
        r#"
        c close 4100 over_capacity: too many connections
        "#,
    );
}
