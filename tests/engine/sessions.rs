//! Opening, hello, replaced devices, heartbeat, drain.

use antiphon::engine::event::Input;
use antiphon::engine::limits::Limits;

use crate::harness::{Given, Table};

#[test]
fn a_connection_is_parked_until_its_user_is_read_and_greeted_first() {
    let mut table = Table::new();
    table.opens("a", "alice").gives(
        r#"
        read user alice
        a park
        "#,
    );
    table.answer().gives(
        r#"
        a ! {"type":"hello","session":"*","user":"alice","device":"a","epoch":"e1","ts":1000000,"heartbeat_ms":25000,"token_expires_ts":4600000,"rooms":[],"limits":{"message_bytes_max":16384,"body_bytes_max":8192,"data_bytes_max":4096,"meta_bytes_max":1024,"rooms_max":256,"subscriptions_max":256,"dedupe_window_ms":600000,"resume_events_max":500,"resume_bytes_max":1048576,"commands_per_second":200,"messages_per_second":100},"inbox":0}
        a unpark
        "#,
    );
}

#[test]
fn the_second_device_of_a_loaded_user_is_greeted_at_once_with_rooms_and_cursors() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "general");
    table.sends("a", "general", "hi");
    table.says("a", r#"{"type":"message:read","id":1,"room":"general","seq":2}"#).whatever();
    table.commit().gives(
        r#"
        a ! {"type":"ok","id":1,"room":"general","seq":2}
        "#,
    );
    table.opens("b", "alice").gives(
        r#"
        b park
        b ! {"type":"hello","session":"*","user":"alice","device":"b","epoch":"e1","ts":1000000,"heartbeat_ms":25000,"token_expires_ts":4600000,"rooms":[{"room":"general","seq":2,"read":2,"delivered":2,"unread":0,"role":"owner"}],"limits":{"message_bytes_max":16384,"body_bytes_max":8192,"data_bytes_max":4096,"meta_bytes_max":1024,"rooms_max":256,"subscriptions_max":256,"dedupe_window_ms":600000,"resume_events_max":500,"resume_bytes_max":1048576,"commands_per_second":200,"messages_per_second":100},"inbox":0}
        b unpark
        "#,
    );
}

#[test]
fn commands_before_the_hello_wait_because_the_connection_is_parked() {
    let mut table = Table::new();
    table.opens("a", "alice").whatever();
    // The driver gives a parked connection no frames; should it do so all the same, nothing happens.
    table.says("a", r#"{"type":"ping","id":1}"#).gives_nothing();
    table.answer().whatever();
    table.says("a", r#"{"type":"ping","id":1}"#).gives(
        r#"
        a ! {"type":"ok","id":1,"ts":1000000}
        "#,
    );
    table.says("a", r#"{"type":"ping"}"#).gives_nothing();
}

#[test]
fn the_same_device_again_replaces_the_older_connection() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "general");
    let claims = table.claims("alice");
    table.opens_with("b", "a", claims).gives(
        r#"
        a close 4203 replaced: the same device connected again
        b park
        b ! {"type":"hello","session":"*","user":"alice","device":"a","epoch":"e1","ts":1000000,"heartbeat_ms":25000,"token_expires_ts":4600000,"rooms":[{"room":"general","seq":1,"read":1,"delivered":1,"unread":0,"role":"owner"}],"limits":{"message_bytes_max":16384,"body_bytes_max":8192,"data_bytes_max":4096,"meta_bytes_max":1024,"rooms_max":256,"subscriptions_max":256,"dedupe_window_ms":600000,"resume_events_max":500,"resume_bytes_max":1048576,"commands_per_second":200,"messages_per_second":100},"inbox":0}
        b unpark
        "#,
    );
    // The older one hears nothing more.
    table.says("b", r#"{"type":"message:send","id":1,"room":"general","body":"x"}"#).whatever();
    table.commit().gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","seq":2,"ts":1000000,"duplicate":false,"trace":"*"}
        "#,
    );
}

#[test]
fn a_user_that_cannot_be_read_is_sent_away_to_come_back() {
    let mut table = Table::new();
    table.opens("a", "alice").whatever();
    table.opens("b", "alice").gives(
        r#"
        b park
        "#,
    );
    table.fail_reads().gives(
        r#"
        a close 4100 over_capacity: the user could not be read; come back
        b close 4100 over_capacity: the user could not be read; come back
        "#,
    );
    assert_eq!(table.engine.stats().users_loaded, 0);
}

#[test]
fn whoever_leaves_while_being_read_leaves_nothing_behind() {
    let mut table = Table::new();
    table.opens("a", "alice").whatever();
    table.closes("a").gives_nothing();
    table.answer().gives_nothing();
    table.passes(70_000).whatever();
    let stats = table.engine.stats();
    assert_eq!((stats.sessions, stats.users_loaded), (0, 0));
}

#[test]
fn pings_come_once_in_every_interval_and_neighbours_are_pinged_together() {
    const CONNS: usize = 65;
    let mut table = Table::with(Limits::default());
    (0..CONNS).for_each(|n| table.has(&format!("c{n}"), &format!("u{n}")));
    let mut pings = vec![Vec::new(); CONNS];
    for second in 0..75 {
        let given = table.passes(1_000);
        for (n, pings) in pings.iter_mut().enumerate() {
            table.is_heard(&format!("c{n}"));
            if given.0.contains(&format!("c{n} ping")) {
                pings.push(second);
            }
        }
    }
    let (first, last) = (pings[0].clone(), pings[CONNS - 1].clone());
    for at in [&first, &last] {
        assert!(at.len() == 3 && at.windows(2).all(|pair| pair[1] - pair[0] == 25), "{pings:?}");
    }
    assert!(pings[..CONNS - 1].iter().all(|at| *at == first), "64 lie together: {pings:?}");
    assert_ne!(first, last, "and the next go with the next sweep");
}

#[test]
fn pings_go_in_sweeps_a_second_apart_and_a_sweep_in_parts() {
    const CONNS: usize = 2_000;
    let count = |given: &Given| given.0.iter().filter(|line| line.ends_with(" ping")).count();
    let mut table = Table::with(Limits::default());
    (0..CONNS).for_each(|n| table.has(&format!("c{n}"), &format!("u{n}")));
    for round in 0..2 {
        let mut pings = Vec::new();
        for second in 0..25 {
            assert_eq!(count(&table.passes(999)), 0, "{round}, {second}: between two sweeps");
            pings.push(count(&table.passes(1)));
            (0..CONNS).for_each(|n| table.is_heard(&format!("c{n}")));
        }
        assert_eq!(pings.iter().sum::<usize>(), CONNS, "{round}: each once");
        assert!(pings.iter().all(|pings| (64..=128).contains(pings)), "{round}: {pings:?}");
    }
    // All are due: they are not asked in one go, and nobody is forgotten.
    table.now += 25_000;
    let (mut pings, mut goes) = (0, 0);
    while table.engine.next_deadline().is_some_and(|at| at <= table.now) {
        let pinged = count(&table.give(Input::Tick));
        assert!(pinged <= 256, "{pinged} in one go");
        (pings, goes) = (pings + pinged, goes + 1);
    }
    assert!(pings == CONNS && goes >= CONNS / 256, "{pings} in {goes}");
}

#[test]
fn silence_ends_a_connection_after_two_intervals() {
    let limits = Limits { heartbeat_ms: 10_000, ..Limits::default() };
    let mut table = Table::with(limits);
    table.has("a", "alice");
    table.passes(3_200).whatever();
    table.is_heard("a");
    assert!(!table.passes(19_999).has("close"));
    // Deadlines of sessions fall on tenths of a second.
    table.passes(100).gives(
        r#"
        a close 4104 no_heartbeat: nothing arrived for two heartbeats
        "#,
    );
    assert_eq!(table.engine.stats().heartbeats_missed, 1);
    table.passes(60_000).gives_nothing();
}

#[test]
fn a_pause_of_the_process_is_no_silence_of_the_peer() {
    let heartbeat_ms = 10_000;
    // From the shortest pause that misses both pings of two intervals on.
    for pause_ms in [20_000, 22_500, 1_800_000] {
        let mut table = Table::with(Limits { heartbeat_ms, ..Limits::default() });
        table.has("a", "alice");
        // Pinged in time, and heard: as long as possible until the next ping.
        while !table.passes(100).has("a ping") {}
        table.is_heard("a");
        table.now += pause_ms;
        let given = table.give(Input::Tick);
        assert!(given.has("a ping") && !given.has("a close"), "{pause_ms}: {given:?}");
        // Asked once more, it is silent indeed.
        let rest = 2 * u64::from(heartbeat_ms);
        table.passes(rest - 1).only(&["a close"]).gives_nothing();
        assert!(table.passes(100).has("a close 4104"), "{pause_ms}");
    }
}

#[test]
fn a_drain_says_goaway_to_everybody_and_then_closes() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.opens("b", "bob").whatever();
    table.give(Input::Drain { spread_ms: 1 }).gives(
        r#"
        a ! {"type":"goaway","reason":"draining","retry_after_ms":0}
        "#,
    );
    // Bob was still being read: hello first, then goaway.
    table.answer().gives(
        r#"
        b ! {"type":"hello","session":"*","user":"bob","device":"b","epoch":"e1","ts":1000000,"heartbeat_ms":25000,"token_expires_ts":4600000,"rooms":[],"limits":{"message_bytes_max":16384,"body_bytes_max":8192,"data_bytes_max":4096,"meta_bytes_max":1024,"rooms_max":256,"subscriptions_max":256,"dedupe_window_ms":600000,"resume_events_max":500,"resume_bytes_max":1048576,"commands_per_second":200,"messages_per_second":100},"inbox":0}
        b unpark
        b ! {"type":"goaway","reason":"draining","retry_after_ms":0}
        "#,
    );
    // Commands still work, newcomers are sent away.
    table.says("a", r#"{"type":"ping","id":1}"#).gives(
        r#"
        a ! {"type":"ok","id":1,"ts":1000000}
        "#,
    );
    table.opens("c", "carol").gives(
        r#"
        c close 4200 draining: the server is being stopped
        "#,
    );
    table.give(Input::CloseAll).gives(
        r#"
        a close 4200 draining: the server is being stopped
        b close 4200 draining: the server is being stopped
        "#,
    );
}

#[test]
fn degraded_is_told_after_hello_and_refuses_writes_but_not_reads() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "general");
    table.opens("b", "bob").whatever();
    table.degrades(true).gives(
        r#"
        a ! {"type":"degraded","on":true,"what":["store"]}
        "#,
    );
    table.answer().gives(
        r#"
        b ! {"type":"hello","session":"*","user":"bob","device":"b","epoch":"e1","ts":1000000,"heartbeat_ms":25000,"token_expires_ts":4600000,"rooms":[],"limits":{"message_bytes_max":16384,"body_bytes_max":8192,"data_bytes_max":4096,"meta_bytes_max":1024,"rooms_max":256,"subscriptions_max":256,"dedupe_window_ms":600000,"resume_events_max":500,"resume_bytes_max":1048576,"commands_per_second":200,"messages_per_second":100},"inbox":0}
        b unpark
        b ! {"type":"degraded","on":true,"what":["store"]}
        "#,
    );
    let refused = table.says("a", r#"{"type":"message:send","id":1,"room":"general","body":"x"}"#);
    assert!(refused.has(r#""code":117,"error":"degraded""#) && refused.has(r#""temporary":true"#));
    table.says("a", r#"{"type":"message:history","id":2,"room":"general"}"#).whatever();
    table.answer().gives(
        r#"
        a unpark
        a ! {"type":"ok","id":2,"events":[{"type":"room:joined","room":"general","seq":1,"ts":1000000,"user":"alice","role":"owner"}],"more":false}
        "#,
    );
    table.degrades(false).gives(
        r#"
        a ! {"type":"degraded","on":false,"what":["store"]}
        b ! {"type":"degraded","on":false,"what":["store"]}
        "#,
    );
    table.says("a", r#"{"type":"message:send","id":3,"room":"general","body":"x"}"#).gives(
        r#"
        append message of alice to 1
        "#,
    );
}
