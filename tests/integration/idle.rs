//! What nobody uses leaves memory, and comes back as it was; and memory that is not there at all.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Connect, Options};

#[test]
fn what_left_memory_comes_back() {
    let server = Options::shards(2).with("--idle-unload-ms", "0").with("--recent-ttl-ms", "0").start();
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    alice.ok(json!({"type": "room:create", "room": "den", "kind": "private", "members": ["bob", "carol"]}));
    for client in [&mut alice, &mut bob] {
        client.ok(json!({"type": "room:subscribe", "room": "den"}));
    }
    alice.send("den", "one");
    assert_eq!(bob.event("message:created")["seq"], 4);
    bob.close();
    // While bob is away and his shard has forgotten him, things happen to him.
    server.wait_for_stat("users_loaded", |count| count == 1);
    alice.ok(json!({"type": "room:role", "room": "den", "user": "bob", "role": "moderator"}));
    alice.ok(json!({"type": "room:kick", "room": "den", "user": "carol"}));
    let mut bob = server.client("bob");
    assert_eq!(
        bob.hello["rooms"],
        json!([{"room": "den", "seq": 6, "read": 2, "delivered": 2, "unread": 1, "role": "moderator"}])
    );
    let since = json!({"epoch": bob.hello["epoch"], "seq": 4});
    let resumed = bob.ok(json!({"type": "room:subscribe", "room": "den", "since": since}));
    let kinds: Vec<&Value> = resumed["events"].as_array().unwrap().iter().map(|event| &event["type"]).collect();
    assert_eq!(kinds, ["room:role_changed", "room:kicked"]);
    server.client("carol").refused(json!({"type": "room:subscribe", "room": "den"}), 103);
    // Everybody gone, everything forgotten.
    alice.close();
    bob.close();
    for gauge in ["users_loaded", "rooms_loaded"] {
        server.wait_for_stat(gauge, |count| count == 0);
    }
    let (status, published) =
        server.admin("POST", "/admin/rooms/den/messages", r#"{"body": "to whom it may concern"}"#);
    assert_eq!((status, &published["seq"]), (200, &json!(7)));
    let mut alice = server.client("alice");
    assert_eq!(alice.hello["rooms"][0]["seq"], 7);
    let history = alice.ok(json!({"type": "message:history", "room": "den", "after": 5}));
    assert_eq!(history["events"].as_array().map(Vec::len), Some(2));
    alice.ok(json!({"type": "room:subscribe", "room": "den"}));
    alice.send("den", "again");
    assert_eq!(alice.event("message:created")["seq"], 8);
}

/// With no recent entries kept, whatever is loaded must come from the store while the log moves on.
#[test]
fn without_recent_entries_everything_still_works() {
    let server = Options::shards(2).with("--recent-bytes-max", "0").with("--idle-unload-ms", "0").start();
    let address = server.public;
    let writer = std::thread::spawn(move || {
        let mut writer = Client::open(address, Connect::new("writer"));
        writer.join("hot");
        let began = Instant::now();
        let mut head = 0;
        while began.elapsed() < Duration::from_millis(2_500) {
            let ids: Vec<i64> =
                (0..4).map(|_| writer.begin(json!({"type": "message:send", "room": "hot", "body": "x"}))).collect();
            for id in ids {
                head = writer.reply(id)["seq"].as_u64().unwrap();
            }
        }
        head
    });
    server.wait_for_stat("messages_submitted", |count| count > 10);
    let mut rounds = 0;
    while !writer.is_finished() {
        rounds += 1;
        let began = Instant::now();
        let mut guest = server.client(&format!("guest-{}", rounds % 7));
        let joined = guest.join("hot");
        let seq = joined["seq"].as_u64().unwrap();
        let history = guest.ok(json!({"type": "message:history", "room": "hot", "limit": 10}));
        assert!(history["events"][0]["seq"].as_u64().unwrap() <= seq + 1_000);
        let since = json!({"epoch": guest.hello["epoch"], "seq": seq.saturating_sub(5)});
        guest.ok(json!({"type": "room:unsubscribe", "room": "hot"}));
        let resumed = guest.ok(json!({"type": "room:subscribe", "room": "hot", "since": since}));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?} for round {rounds}");
        if resumed["recovered"] == true {
            let first = resumed["events"].as_array().and_then(|events| events.first()).map(|event| &event["seq"]);
            assert!(first.is_none_or(|first| *first == seq.saturating_sub(5) + 1), "{first:?} after {seq}");
        }
    }
    assert!(rounds >= 3, "{rounds}");
    let head = writer.join().unwrap();
    let mut last = server.client("last");
    let joined = last.join("hot");
    assert!(joined["seq"].as_u64().unwrap() >= head);
}
