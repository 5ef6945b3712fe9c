//! Rates, bounds and heartbeats.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Connect, Heard, Options};

#[test]
fn too_many_commands_are_refused_for_a_while() {
    let server = Options::shards(2)
        .with("--rate-limits", "on")
        .with("--connection-rate-per-s", "10")
        .with("--connection-burst", "20")
        .start();
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    let ids: Vec<i64> = (0..40).map(|_| alice.begin(json!({"type": "ping"}))).collect();
    let replies: Vec<_> = ids.into_iter().map(|id| alice.reply(id)).collect();
    let passed = replies.iter().filter(|reply| reply["type"] == "ok").count();
    assert!((20..=24).contains(&passed), "{passed} passed");
    let refused = &replies[39];
    assert_eq!((&refused["code"], &refused["error"]), (&json!(111), &json!("rate_limited")), "{refused}");
    assert_eq!(refused["temporary"], true);
    let wait_ms = refused["retry_after_ms"].as_u64().unwrap();
    assert!((1..=110).contains(&wait_ms), "{wait_ms}");
    // Waiting as told is enough, and others never noticed.
    bob.ok(json!({"type": "ping"}));
    std::thread::sleep(Duration::from_millis(wait_ms));
    alice.ok(json!({"type": "ping"}));
    assert!(server.stat("rate_limited") >= 16);
}

#[test]
fn a_user_shares_one_message_rate() {
    let server = Options::shards(2)
        .with("--rate-limits", "on")
        .with("--user-rate-per-s", "5")
        .with("--user-burst", "10")
        .start();
    let mut one = server.device("alice", "one");
    let mut two = server.device("alice", "two");
    one.join("room");
    two.join("room");
    let mut passed = 0;
    for _ in 0..10 {
        for device in [&mut one, &mut two] {
            let reply = device.ask(json!({"type": "message:send", "room": "room", "body": "x"}));
            match reply["type"] == "ok" {
                true => passed += 1,
                false => assert_eq!(reply["code"], 111, "{reply}"),
            }
        }
    }
    // The join was one of ten.
    assert!((9..=14).contains(&passed), "{passed}");
    let hello = &one.hello["limits"];
    assert_eq!((&hello["messages_per_second"], &hello["commands_per_second"]), (&json!(5), &json!(200)));
}

#[test]
fn who_never_stops_is_closed() {
    let server = Options::shards(2)
        .with("--rate-limits", "on")
        .with("--connection-rate-per-s", "10")
        .with("--connection-burst", "10")
        .with("--errors-max", "50")
        .start();
    let mut fast = server.client("alice");
    for _ in 0..80 {
        fast.begin(json!({"type": "ping"}));
    }
    assert_eq!(fast.end().code, 4101);
    // Pings and pongs have no reply to refuse with, and are counted all the same.
    for first in [0x89, 0x8a] {
        let mut flood = server.client("carol");
        for _ in 0..80 {
            flood.frame(first, b"");
        }
        assert_eq!(flood.end().code, 4101);
    }
    let server = Options::shards(2).with("--errors-max", "50").start();
    let mut wrong = server.client("alice");
    for _ in 0..49 {
        wrong.refused(json!({"type": "nonsense"}), 104);
    }
    // One that is right starts the row anew.
    wrong.ok(json!({"type": "ping"}));
    for _ in 0..49 {
        wrong.refused(json!({"type": "nonsense"}), 104);
    }
    wrong.begin(json!({"type": "nonsense"}));
    assert_eq!(wrong.end().code, 4007);
}

#[test]
fn subscriptions_and_connections_have_bounds() {
    let server = Options::shards(1).with("--subscriptions-max", "3").with("--shard-connections-max", "5").start();
    let mut alice = server.client("alice");
    for number in 0..3 {
        alice.join(&format!("room-{number}"));
    }
    alice.ok(json!({"type": "room:create", "room": "room-3", "kind": "public"}));
    let refused = alice.refused(json!({"type": "room:subscribe", "room": "room-3"}), 106);
    assert_eq!(refused["error"], "limit_exceeded");
    alice.ok(json!({"type": "room:unsubscribe", "room": "room-0"}));
    alice.ok(json!({"type": "room:subscribe", "room": "room-3"}));
    // The same again is no further one.
    alice.ok(json!({"type": "room:subscribe", "room": "room-3"}));
    let mut others: Vec<Client> = (0..4).map(|number| server.client(&format!("user-{number}"))).collect();
    let mut sixth = Client::upgrade(server.public, &Connect::new("late")).unwrap();
    assert_eq!(sixth.end().code, 4100);
    others.pop().unwrap().close();
    server.wait_for_stat("sessions", |open| open == 4);
    assert_eq!(server.client("late").hello["user"], "late");
}

#[test]
fn silence_is_noticed() {
    let server = Options::shards(2).with("--heartbeat-ms", "1000").start();
    let mut lively = server.client("alice");
    let mut silent = Client::upgrade(server.public, &Connect::new("bob")).unwrap();
    assert_eq!(lively.hello["heartbeat_ms"], 1_000);
    let began = Instant::now();
    // Does not read, so does not answer pings either.
    while began.elapsed() < Duration::from_millis(3_500) {
        match lively.hear(Duration::from_millis(100)) {
            Heard::Nothing => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(lively.pings >= 2, "{}", lively.pings);
    assert_eq!(silent.end().code, 4104);
    assert_eq!(server.stat("heartbeats_missed"), 1);
    lively.ok(json!({"type": "ping"}));
}
