//! Edits, deletions, reactions and delivered cursors, by editors whose users live on different shards.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Server};

with_1_2_4_shards!(
    an_edit_reaches_everybody_and_history_shows_it,
    of_two_racing_editors_one_wins,
    reactions_are_counted_over_shards,
    devices_say_what_they_have,
);

fn two(server: &Server) -> (Client, Client) {
    let (mut alice, mut bob) = (server.client("alice"), server.client("bob"));
    alice.join("general");
    bob.join("general");
    (alice, bob)
}

fn without_ts(mut event: Value) -> Value {
    let ts = event.as_object_mut().unwrap().remove("ts");
    assert!(ts.is_some_and(|ts| ts.is_u64()), "{event}");
    event
}

fn an_edit_reaches_everybody_and_history_shows_it(shards: u16) {
    let mut server = Server::shards(shards);
    let (mut alice, mut bob) = two(&server);
    let target = alice.send("general", "one")["seq"].clone();
    assert_eq!(target, 3);
    let edited = alice.ok(json!({"type": "message:edit", "room": "general", "seq": 3, "body": "two", "version": 1}));
    assert_eq!((&edited["seq"], &edited["version"]), (&json!(4), &json!(2)));
    let due = json!({"type": "message:updated", "room": "general", "seq": 4, "author": "alice", "target": 3,
        "version": 2, "body": "two"});
    for client in [&mut alice, &mut bob] {
        assert_eq!(without_ts(client.event("message:updated")), due);
    }
    bob.refused(json!({"type": "message:edit", "room": "general", "seq": 3, "body": "mine"}), 103);
    alice.ok(json!({"type": "message:delete", "room": "general", "seq": 3}));
    let due =
        json!({"type": "message:deleted", "room": "general", "seq": 5, "author": "alice", "target": 3, "version": 3});
    assert_eq!(without_ts(bob.event("message:deleted")), due);
    alice.refused(json!({"type": "message:delete", "room": "general", "seq": 3}), 110);
    let second = alice.send("general", "kept");
    alice.ok(json!({"type": "message:edit", "room": "general", "seq": second["seq"], "body": "kept and changed"}));
    // The same after a restart: it is in the database.
    for _ in 0..2 {
        let mut reader = server.client("carol");
        let page = reader.ok(json!({"type": "message:history", "room": "general", "after": 2}));
        let events = page["events"].as_array().unwrap();
        let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let due = ["message:created", "message:updated", "message:deleted", "message:created", "message:updated"];
        assert_eq!(types, due);
        assert_eq!(
            (&events[0]["deleted"], &events[0]["version"], &events[0]["body"]),
            (&json!(true), &json!(3), &Value::Null)
        );
        assert!(events[0]["edited_ts"].as_u64() >= events[0]["ts"].as_u64());
        assert_eq!(events[1]["body"], Value::Null, "an overtaken step has no body");
        assert_eq!((&events[3]["body"], &events[3]["version"]), (&json!("kept and changed"), &json!(2)));
        assert_eq!(events[4]["body"], "kept and changed");
        drop(reader);
        server.kill();
        server.restart();
    }
}

fn of_two_racing_editors_one_wins(shards: u16) {
    const ROUNDS: u64 = 30;
    let server = Server::shards(shards);
    let (mut alice, mut bob) = two(&server);
    alice.ok(json!({"type": "room:role", "room": "general", "user": "bob", "role": "moderator"}));
    let seq = alice.send("general", "first")["seq"].clone();
    let mut stands = String::new();
    for version in 1..=ROUNDS {
        let edit = |who: &str| {
            json!({"type": "message:edit", "room": "general", "seq": seq, "body": format!("{who} {version}"),
                "version": version})
        };
        let (first, second) = (alice.begin(edit("alice")), bob.begin(edit("bob")));
        let answers = [("alice", alice.reply(first)), ("bob", bob.reply(second))];
        let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, answer)| answer["type"] == "ok");
        assert_eq!((won.len(), lost.len()), (1, 1), "{answers:?}");
        assert_eq!(won[0].1["version"], version + 1);
        assert_eq!((&lost[0].1["code"], &lost[0].1["current"]), (&json!(116), &json!(version + 1)));
        stands = format!("{} {version}", won[0].0);
    }
    let page = bob.ok(json!({"type": "message:history", "room": "general", "after": 3, "limit": 2}));
    let message = page["events"].as_array().unwrap().iter().find(|event| event["seq"] == seq).unwrap().clone();
    assert_eq!((&message["body"], &message["version"]), (&json!(stands), &json!(ROUNDS + 1)));
    // Each saw each winner once, in order.
    for client in [&mut alice, &mut bob] {
        for version in 2..=ROUNDS + 1 {
            assert_eq!(client.event("message:updated")["version"], version);
        }
        client.hears_no("message:updated", Duration::from_millis(100));
    }
}

fn reactions_are_counted_over_shards(shards: u16) {
    let server = Server::shards(shards);
    let (mut alice, mut bob) = two(&server);
    let seq = alice.send("general", "one")["seq"].clone();
    let react = |verb: &str| json!({"type": verb, "room": "general", "seq": seq, "emoji": "👍"});
    assert_eq!(alice.ok(react("reaction:add"))["count"], 1);
    assert_eq!(bob.ok(react("reaction:add"))["count"], 2);
    assert_eq!(bob.ok(react("reaction:add"))["count"], 2);
    assert_eq!(alice.ok(react("reaction:remove"))["count"], 1);
    let counts = |events: [Value; 3]| events.map(|event| (event["author"].clone(), event["count"].clone()));
    let heard = [bob.event("reaction:added"), bob.event("reaction:added"), bob.event("reaction:removed")];
    assert_eq!(counts(heard), [("alice", 1), ("bob", 2), ("alice", 1)].map(|(who, count)| (json!(who), json!(count))));
    let page = bob.ok(json!({"type": "message:history", "room": "general", "after": 2, "limit": 1}));
    assert_eq!(page["events"][0]["reactions"], json!({"👍": 1}));
    assert_eq!(page["events"][0]["version"], Value::Null, "a reaction is no version");
}

fn devices_say_what_they_have(shards: u16) {
    let server = Server::shards(shards);
    let (mut alice, mut bob) = two(&server);
    alice.send("general", "one");
    assert_eq!(bob.ok(json!({"type": "message:delivered", "room": "general", "seq": 99}))["seq"], 3);
    let told = alice.event("delivered:advanced");
    assert_eq!((&told["room"], &told["user"], &told["delivered"]), (&json!("general"), &json!("bob"), &json!(3)));
    assert!(told["device"].is_string());
    alice.ok(json!({"type": "message:read", "room": "general", "seq": 2}));
    assert_eq!(
        alice.ok(json!({"type": "message:delivered", "room": "general", "seq": 1}))["seq"],
        2,
        "read is delivered"
    );
}
