//! Coming back with a cursor; sending again with the same `client_id`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Options, Server};

with_1_2_4_shards!(
    a_short_cut_is_closed_from_memory,
    a_restart_is_closed_from_the_store,
    cursors_that_cannot_be_honoured,
    resuming_while_the_room_is_hot,
    sent_again_is_stored_once,
    sent_twice_at_once_is_stored_once,
);

fn cursor(client: &Client, seq: u64) -> Value {
    json!({"epoch": client.hello["epoch"], "seq": seq})
}

fn resume(client: &mut Client, room: &str, seq: u64) -> Value {
    let since = cursor(client, seq);
    client.ok(json!({"type": "room:subscribe", "room": room, "since": since}))
}

fn seqs(events: &Value) -> Vec<u64> {
    events.as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

fn a_short_cut_is_closed_from_memory(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    alice.join("room");
    bob.join("room");
    alice.send("room", "seen");
    assert_eq!(bob.event("message:created")["seq"], 3);
    drop(bob);
    let mut expected = Vec::new();
    for number in 0..20 {
        alice.send("room", &format!("missed {number}"));
        expected.push(alice.event("message:created"));
    }
    expected.drain(..1);
    let mut bob = server.client("bob");
    assert_eq!(bob.hello["rooms"][0]["seq"], 23);
    let resumed = resume(&mut bob, "room", 3);
    assert_eq!((&resumed["recovered"], &resumed["seq"]), (&json!(true), &json!(23)));
    assert_eq!(seqs(&resumed["events"]), (4..=23).collect::<Vec<_>>());
    // Live from here on, without a hole or a double.
    alice.send("room", "live");
    assert_eq!(bob.event("message:created")["seq"], 24);
    // At the head: recovered, with nothing.
    let resumed = resume(&mut bob, "room", 24);
    assert_eq!((&resumed["recovered"], &resumed["events"]), (&json!(true), &json!([])));
    // By joining too.
    let since = cursor(&bob, 20);
    let joined = bob.ok(json!({"type": "room:join", "room": "room", "since": since}));
    assert_eq!(seqs(&joined["events"]), [21, 22, 23, 24]);
    assert!(server.stat("resume_events_memory") >= 20, "from memory");
    alice.send("room", "once");
    assert_eq!(bob.event("message:created")["seq"], 25);
    bob.hears_no("message:created", Duration::from_millis(100));
}

fn a_restart_is_closed_from_the_store(shards: u16) {
    let mut server = Server::shards(shards);
    let mut alice = server.client("alice");
    alice.join("room");
    let epoch = alice.hello["epoch"].clone();
    for number in 0..30 {
        alice.begin(json!({"type": "message:send", "room": "room", "body": format!("m {number}")}));
    }
    let before = alice.entries_until("room", 31);
    for end in ["graceful", "kill"] {
        if end == "graceful" {
            server.stop_and_restart()
        } else {
            server.kill();
            server.restart();
        }
        let mut alice = server.client("alice");
        assert_eq!(alice.hello["epoch"], epoch, "after a {end}");
        assert_eq!(alice.hello["rooms"][0]["seq"], 31);
        let resumed = resume(&mut alice, "room", 1);
        assert_eq!(resumed["recovered"], true);
        assert_eq!(resumed["events"].as_array().unwrap(), &before, "the same to the letter after a {end}");
        let mut bob = server.client("bob");
        let resumed = resume(&mut bob, "room", 28);
        assert_eq!(seqs(&resumed["events"]), [29, 30, 31]);
    }
    assert!(server.stat("resume_events_store") >= 33, "from the store");
    // Partly from the store, partly from memory.
    let mut alice = server.client("alice");
    alice.send("room", "new");
    let resumed = resume(&mut server.client("carol"), "room", 30);
    assert_eq!(seqs(&resumed["events"]), [31, 32]);
}

fn cursors_that_cannot_be_honoured(shards: u16) {
    let server = Options::shards(shards).with("--resume-events-max", "20").start();
    let mut alice = server.client("alice");
    alice.join("room");
    for _ in 0..30 {
        alice.begin(json!({"type": "message:send", "room": "room", "body": "x"}));
    }
    alice.entries_until("room", 31);
    let mut bob = server.client("bob");
    let mut subscribe = |since: Value| bob.ask(json!({"type": "room:subscribe", "room": "room", "since": since}));
    let epoch = alice.hello["epoch"].clone();
    for since in [json!({"epoch": "0000000000000000", "seq": 31}), json!({"epoch": epoch, "seq": 10})] {
        let reply = subscribe(since);
        assert_eq!((&reply["recovered"], &reply["seq"], &reply["events"]), (&json!(false), &json!(31), &json!([])));
        assert_eq!(reply["epoch"], epoch);
    }
    assert_eq!(seqs(&subscribe(json!({"epoch": epoch, "seq": 11}))["events"]), (12..=31).collect::<Vec<_>>());
    // Of another epoch even a seq beyond the head is only unrecoverable, not wrong.
    assert_eq!(subscribe(json!({"epoch": "other", "seq": 99}))["recovered"], false);
    let ahead = subscribe(json!({"epoch": epoch, "seq": 32}));
    assert_eq!((&ahead["code"], &ahead["error"]), (&json!(112), &json!("unrecoverable_cursor")));
    for wrong in [
        json!(5),
        json!({"seq": 1}),
        json!({"epoch": epoch}),
        json!({"epoch": epoch, "seq": -1}),
        json!({"epoch": 1, "seq": 1}),
        json!({"epoch": epoch, "seq": 1.5}),
        json!(null),
    ] {
        assert_eq!(subscribe(wrong.clone())["code"], 107, "{wrong}");
    }
    bob.refused(json!({"type": "room:subscribe", "room": "nowhere", "since": {"epoch": epoch, "seq": 0}}), 102);
    // The connection listens all the same.
    alice.send("room", "live");
    assert_eq!(bob.event("message:created")["seq"], 32);
}

fn resuming_while_the_room_is_hot(shards: u16) {
    const MESSAGES: u64 = 400;
    let server = Options::shards(shards).with("--recent-bytes-max", "20000").start();
    let mut writer = server.client("writer");
    writer.join("room");
    let address = server.public;
    let reader = std::thread::spawn(move || {
        let mut seen: u64 = 1;
        let mut rounds = 0;
        while seen < MESSAGES + 1 {
            rounds += 1;
            let mut client = Client::open(address, crate::support::Connect::new("reader"));
            let resumed = resume(&mut client, "room", seen);
            assert_eq!(resumed["recovered"], true, "{resumed}");
            for event in resumed["events"].as_array().unwrap() {
                assert_eq!(event["seq"], seen + 1);
                seen += 1;
            }
            // A few live ones, then the line is cut again.
            while seen < MESSAGES + 1 {
                let event = client.event("message:created");
                assert_eq!(event["seq"], seen + 1);
                seen += 1;
                if seen.is_multiple_of(7) {
                    break;
                }
            }
        }
        rounds
    });
    for number in 0..MESSAGES {
        writer.begin(json!({"type": "message:send", "room": "room", "body": format!("{number} {}", "x".repeat(200))}));
        if number % 10 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(reader.join().unwrap() >= 1);
}

fn sent_again_is_stored_once(shards: u16) {
    let mut server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    alice.join("room");
    bob.join("room");
    let command = json!({"type": "message:send", "room": "room", "body": "once", "client_id": "c-1"});
    let first = alice.ok(command.clone());
    assert_eq!((&first["duplicate"], &first["seq"]), (&json!(false), &json!(3)));
    let again = alice.ok(command.clone());
    assert_eq!((&again["duplicate"], &again["seq"]), (&json!(true), &json!(3)));
    assert_eq!(bob.event("message:created")["client_id"], "c-1");
    bob.hears_no("message:created", Duration::from_millis(100));
    // The id is the author's own: another author's is another.
    assert_eq!(bob.ok(command.clone())["duplicate"], false);
    // On another device, after a drop, after a restart, after a kill.
    assert_eq!(server.device("alice", "two").ok(command.clone())["duplicate"], true);
    server.stop_and_restart();
    assert_eq!(server.client("alice").ok(command.clone())["seq"], 3);
    server.kill();
    server.restart();
    let mut alice = server.client("alice");
    let again = alice.ok(command);
    assert_eq!((&again["duplicate"], &again["seq"]), (&json!(true), &json!(3)));
    // Without a client_id everything is new.
    let (one, two) = (alice.send("room", "x"), alice.send("room", "x"));
    assert_eq!((&one["seq"], &two["seq"]), (&json!(5), &json!(6)));
    assert_eq!(server.stat("duplicates"), 1, "since this start");
}

fn sent_twice_at_once_is_stored_once(shards: u16) {
    let server = Server::shards(shards);
    let mut devices: Vec<Client> = (0..4).map(|number| server.device("alice", &format!("d{number}"))).collect();
    for device in &mut devices {
        device.join("room");
    }
    let begun: Vec<Vec<i64>> = (0..50)
        .map(|number| {
            let command =
                json!({"type": "message:send", "room": "room", "body": "x", "client_id": format!("c{number}")});
            devices.iter_mut().map(|device| device.begin(command.clone())).collect()
        })
        .collect();
    for ids in begun {
        let acks: Vec<Value> = devices.iter_mut().zip(ids).map(|(device, id)| device.reply(id)).collect();
        assert!(acks.iter().all(|ack| ack["seq"] == acks[0]["seq"]), "{acks:?}");
        assert_eq!(acks.iter().filter(|ack| ack["duplicate"] == false).count(), 1, "{acks:?}");
    }
    for device in &mut devices {
        assert_eq!(device.entries_until("room", 51).len(), 50);
    }
    let head = devices[0].ok(json!({"type": "sync:check", "rooms": [{"room": "room", "seq": 51}]}));
    assert_eq!(head["rooms"][0]["state"], "ok");
}
