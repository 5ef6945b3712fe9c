//! Hello, one order for everybody, history, read marks, events, sync checks, numbers.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Options, Server, now_ms};

with_1_2_4_shards!(
    hello_says_who_and_what,
    everybody_sees_one_order,
    history_goes_both_ways,
    messages_keep_every_field,
    some_messages_are_not_for_everybody,
    read_marks_are_told_and_kept,
    events_reach_listeners_only,
    sync_check_compares,
    stats_are_this_connections,
    commands_may_be_pipelined,
);

/// Users that the hash spreads over the shards.
pub const USERS: [&str; 8] = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"];

fn seqs(events: &Value) -> Vec<u64> {
    events.as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

fn hello_says_who_and_what(shards: u16) {
    let server = Server::shards(shards);
    let before = now_ms();
    let mut alice = server.device("alice", "phone-1");
    let hello = alice.hello.clone();
    assert_eq!((&hello["user"], &hello["device"]), (&json!("alice"), &json!("phone-1")));
    assert!(hello["session"].as_str().is_some_and(|s| s.len() == 16), "{hello}");
    assert!(hello["epoch"].as_str().is_some_and(|e| !e.is_empty()), "{hello}");
    assert_eq!(hello["heartbeat_ms"], 25_000);
    assert!(hello["ts"].as_u64().unwrap().abs_diff(before) < 5_000, "{hello}");
    let lifetime = hello["token_expires_ts"].as_u64().unwrap() - before;
    assert!((3_590_000..=3_600_000).contains(&lifetime), "{lifetime}");
    assert_eq!(hello["limits"]["message_bytes_max"], 16_384);
    assert_eq!(hello["limits"]["rooms_max"], 256);
    assert_eq!((&hello["rooms"], &hello["inbox"]), (&json!([]), &json!(0)));
    // Rooms of a member are listed, with where they stand.
    alice.join("general");
    alice.send("general", "one");
    alice.ok(json!({"type": "message:read", "room": "general", "seq": 2}));
    let again = server.device("alice", "phone-2");
    assert_eq!(
        again.hello["rooms"],
        json!([{"room": "general", "seq": 2, "read": 2, "delivered": 2, "unread": 0, "role": "owner"}])
    );
    assert_ne!(again.hello["session"], hello["session"]);
    assert_eq!(again.hello["epoch"], hello["epoch"]);
    let pong = alice.ok(json!({"type": "ping"}));
    assert!(pong["ts"].as_u64().unwrap() >= before - 5_000);
    // A device is called "default" when it has no name.
    let unnamed = Client::open(server.public, crate::support::Connect::new("bob"));
    assert_eq!(unnamed.hello["device"], "default");
    alice.close();
}

fn everybody_sees_one_order(shards: u16) {
    const EACH: usize = 25;
    let server = Server::shards(shards);
    let mut clients: Vec<Client> = USERS.iter().map(|user| server.client(user)).collect();
    let joins: Vec<Value> = clients.iter_mut().map(|client| client.join("general")).collect();
    assert_eq!(joins[0]["role"], "owner");
    assert_eq!(joins[7]["role"], "member");
    assert_eq!((&joins[7]["members"], &joins[7]["seq"]), (&json!(8), &json!(8)));
    assert!(joins.iter().all(|join| join["recovered"] == false && join["events"] == json!([])));

    let mut sent = Vec::new();
    for round in 0..EACH {
        for (client, user) in clients.iter_mut().zip(USERS) {
            let body = format!("{user} {round}");
            sent.push(client.begin(json!({"type": "message:send", "room": "general", "body": body})));
        }
    }
    let last = (USERS.len() + USERS.len() * EACH) as u64;
    let mut orders: Vec<Vec<Value>> = Vec::new();
    for (at, client) in clients.iter_mut().enumerate() {
        let entries = client.entries_until("general", last);
        let seen: Vec<u64> = entries.iter().map(|entry| entry["seq"].as_u64().unwrap()).collect();
        // Everything after the own join, which is in its reply's seq; each seq once, in order.
        assert_eq!(seen, (at as u64 + 2..=last).collect::<Vec<_>>(), "what {} saw", USERS[at]);
        // The acks name the same seqs.
        for id in sent.iter().skip(at).step_by(USERS.len()) {
            let ack = client.reply(*id);
            assert_eq!(ack["type"], "ok", "{ack}");
            let seq = ack["seq"].as_u64().unwrap();
            let entry = entries.iter().find(|entry| entry["seq"] == seq).unwrap();
            assert_eq!(
                (&entry["author"], &entry["ts"], &entry["trace"]),
                (&json!(USERS[at]), &ack["ts"], &ack["trace"])
            );
            assert_eq!(ack["duplicate"], false);
        }
        orders.push(entries.into_iter().filter(|entry| entry["type"] == "message:created").collect());
    }
    assert!(orders.iter().all(|order| *order == orders[0]), "all saw the same");
    // Each sender's own order is kept.
    for user in USERS {
        let bodies: Vec<&str> =
            orders[0].iter().filter(|e| e["author"] == user).map(|e| e["body"].as_str().unwrap()).collect();
        assert_eq!(bodies, (0..EACH).map(|round| format!("{user} {round}")).collect::<Vec<_>>());
    }
}

fn history_goes_both_ways(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    alice.join("log");
    for number in 2..=120 {
        alice.begin(json!({"type": "message:send", "room": "log", "body": number.to_string()}));
    }
    alice.entries_until("log", 120);
    let mut bob = server.client("bob");
    let mut history = |command: Value| bob.ok(command);
    let newest = history(json!({"type": "message:history", "room": "log"}));
    assert_eq!((seqs(&newest["events"]), &newest["more"]), ((71..=120).collect(), &json!(true)));
    let most = history(json!({"type": "message:history", "room": "log", "limit": 100}));
    assert_eq!(seqs(&most["events"]), (21..=120).collect::<Vec<_>>());
    let before = history(json!({"type": "message:history", "room": "log", "before": 21, "limit": 15}));
    assert_eq!((seqs(&before["events"]), &before["more"]), ((6..=20).collect(), &json!(true)));
    let first = history(json!({"type": "message:history", "room": "log", "before": 6}));
    assert_eq!((seqs(&first["events"]), &first["more"]), ((1..=5).collect(), &json!(false)));
    let after = history(json!({"type": "message:history", "room": "log", "after": 0, "limit": 3}));
    assert_eq!((seqs(&after["events"]), &after["more"]), (vec![1, 2, 3], &json!(true)));
    let last = history(json!({"type": "message:history", "room": "log", "after": 118}));
    assert_eq!((seqs(&last["events"]), &last["more"]), (vec![119, 120], &json!(false)));
    let none = history(json!({"type": "message:history", "room": "log", "after": 120}));
    assert_eq!((&none["events"], &none["more"]), (&json!([]), &json!(false)));
    let beyond = history(json!({"type": "message:history", "room": "log", "after": 4_000_000_000u64}));
    assert_eq!((&beyond["events"], &beyond["more"]), (&json!([]), &json!(false)));
    // Walking from one end to the other meets every entry once.
    let mut walked = Vec::new();
    let mut before = json!({"type": "message:history", "room": "log", "limit": 17});
    loop {
        let page = history(before.clone());
        let found = seqs(&page["events"]);
        walked.splice(0..0, found.iter().copied());
        if page["more"] == false {
            break;
        }
        before["before"] = found[0].into();
    }
    assert_eq!(walked, (1..=120).collect::<Vec<_>>());
    bob.refused(json!({"type": "message:history", "room": "log", "before": 3, "after": 1}), 107);
    bob.refused(json!({"type": "message:history", "room": "log", "limit": 101}), 107);
    bob.refused(json!({"type": "message:history", "room": "nowhere"}), 102);
}

fn messages_keep_every_field(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    alice.join("größe/日本");
    bob.join("größe/日本");
    let body = "quotes \" and \\ and \u{1} and \u{2028} and 😀 and \u{0}";
    let ack = alice.ok(json!({
        "type": "message:send", "room": "größe/日本", "body": body, "client_id": "c-1", "thread": 1, "reply_to": 2,
        "mentions": ["bob", "carol"], "attachments": ["file-1"], "priority": "critical", "unknown": [1, {"a": null}],
        "meta": {"nested": {"list": [1, 2.5, true, null, "x"]}, "big": 12345678901234567890u64},
    }));
    let expected = json!({
        "type": "message:created", "room": "größe/日本", "seq": 3, "ts": ack["ts"], "author": "alice", "body": body,
        "client_id": "c-1", "thread": 1, "reply_to": 2, "mentions": ["bob", "carol"], "attachments": ["file-1"],
        "priority": "critical", "trace": ack["trace"],
        "meta": {"nested": {"list": [1, 2.5, true, null, "x"]}, "big": 12345678901234567890u64},
    });
    assert_eq!(bob.event("message:created"), expected);
    assert_eq!(alice.event("message:created"), expected);
    let history = bob.ok(json!({"type": "message:history", "room": "größe/日本", "after": 2}));
    assert_eq!(history["events"], json!([expected]));
    let thread = bob.ok(json!({"type": "message:history", "room": "größe/日本", "thread": 1}));
    assert_eq!(thread["events"].as_array().unwrap().last(), Some(&expected));
    let plain = alice.send("größe/日本", "plain");
    let heard = bob.event("message:created");
    assert_eq!(
        heard,
        json!({"type": "message:created", "room": "größe/日本", "seq": 4, "ts": plain["ts"], "author": "alice",
               "body": "plain", "trace": plain["trace"]})
    );
    for wrong in [
        json!({"type": "message:send", "room": "größe/日本"}),
        json!({"type": "message:send", "room": "größe/日本", "body": ""}),
        json!({"type": "message:send", "room": "größe/日本", "body": "x".repeat(8193)}),
        json!({"type": "message:send", "room": "größe/日本", "body": 5}),
        json!({"type": "message:send", "room": "größe/日本", "body": "x", "client_id": "x".repeat(65)}),
        json!({"type": "message:send", "room": "größe/日本", "body": "x", "meta": {"m": "x".repeat(1024)}}),
        json!({"type": "message:send", "room": "größe/日本", "body": "x", "priority": "urgent"}),
        json!({"type": "message:send", "room": "größe/日本", "body": "x", "only": ["bob"], "exclude": ["carol"]}),
        json!({"type": "message:send", "body": "x"}),
    ] {
        alice.refused(wrong, 107);
    }
    alice.refused(json!({"type": "message:send", "room": "größe/日本", "body": "x", "thread": 99}), 110);
    assert_eq!(alice.send("größe/日本", &"x".repeat(8192))["seq"], 5);
}

fn some_messages_are_not_for_everybody(shards: u16) {
    let server = Server::shards(shards);
    let mut clients: Vec<Client> = USERS[..4].iter().map(|user| server.client(user)).collect();
    clients.iter_mut().for_each(|client| {
        client.join("room");
    });
    let [alice, bob, carol, dave] = &mut clients[..] else { panic!() };
    alice.ok(json!({"type": "message:send", "room": "room", "body": "to bob", "only": ["bob"]}));
    alice.ok(json!({"type": "message:send", "room": "room", "body": "not dave", "exclude": ["dave"]}));
    alice.ok(json!({"type": "message:send", "room": "room", "body": "to all"}));
    let kinds = |client: &mut Client| -> Vec<(u64, String)> {
        let entries = client.entries_until("room", 7);
        let late = entries.iter().filter(|entry| entry["seq"].as_u64().unwrap() > 4);
        late.map(|e| (e["seq"].as_u64().unwrap(), e["body"].as_str().unwrap_or("-").to_owned())).collect()
    };
    let row = |bodies: [&str; 3]| (5..8).zip(bodies.map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(kinds(alice), row(["to bob", "not dave", "to all"]));
    assert_eq!(kinds(bob), row(["to bob", "not dave", "to all"]));
    assert_eq!(kinds(carol), row(["-", "not dave", "to all"]));
    assert_eq!(kinds(dave), row(["-", "-", "to all"]));
    // History hides the same.
    let history = dave.ok(json!({"type": "message:history", "room": "room", "after": 4}));
    let bodies: Vec<&Value> = history["events"].as_array().unwrap().iter().map(|event| &event["body"]).collect();
    assert_eq!(bodies, [&Value::Null, &Value::Null, &json!("to all")]);
    assert_eq!(seqs(&history["events"]), [5, 6, 7]);
    assert!(!history.to_string().contains("to bob"));
}

fn read_marks_are_told_and_kept(shards: u16) {
    let mut server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    alice.join("room");
    bob.join("room");
    for number in 0..5 {
        alice.send("room", &number.to_string());
    }
    bob.ok(json!({"type": "message:read", "room": "room", "seq": 4}));
    let told = alice.event("read:advanced");
    assert_eq!((&told["room"], &told["user"], &told["read"]), (&json!("room"), &json!("bob"), &json!(4)));
    // Never back.
    bob.ok(json!({"type": "message:read", "room": "room", "seq": 3}));
    alice.hears_no("read:advanced", Duration::from_millis(400));
    let rooms = |hello: &Value| hello["rooms"].as_array().unwrap()[0]["read"].clone();
    assert_eq!(rooms(&server.device("bob", "two").hello), 4);
    // Several at once are told as the last one. Past the head means the head.
    for seq in [5, 6, 4_000] {
        bob.begin(json!({"type": "message:read", "room": "room", "seq": seq}));
    }
    let mut told = Vec::new();
    while told.last() != Some(&7) {
        told.push(alice.event("read:advanced")["read"].as_u64().unwrap());
    }
    assert!(told.len() < 3 && told.is_sorted(), "coalesced: {told:?}");
    server.stop_and_restart();
    assert_eq!(rooms(&server.client("bob").hello), 7);
    server.client("carol").refused(json!({"type": "message:read", "room": "nowhere", "seq": 1}), 102);
}

fn events_reach_listeners_only(shards: u16) {
    let server = Server::shards(shards);
    let mut clients: Vec<Client> = USERS.iter().map(|user| server.client(user)).collect();
    for client in &mut clients[..6] {
        client.join("room");
    }
    // A listener is enough; a member who does not listen hears nothing.
    clients[6].ok(json!({"type": "room:subscribe", "room": "room"}));
    clients[5].ok(json!({"type": "room:unsubscribe", "room": "room"}));
    let data = json!({"x": [1, 2, 3], "y": "ü"});
    let command = json!({"type": "event:send", "room": "room", "name": "cursor", "data": data});
    clients[0].ok(command);
    for (at, client) in clients.iter_mut().enumerate() {
        if at == 5 || at == 7 {
            client.hears_no("event", Duration::from_millis(150));
        } else {
            let event = client.event("event");
            assert_eq!((&event["room"], &event["author"]), (&json!("room"), &json!("alice")), "{event}");
            assert_eq!((&event["name"], &event["data"]), (&json!("cursor"), &data));
            assert!(event.get("seq").is_none());
        }
    }
    for priority in ["critical", "low"] {
        let command = json!({"type": "event:send", "room": "room", "name": priority, "data": 1, "priority": priority});
        // Only who moderates may send what is never dropped.
        if priority == "critical" {
            clients[3].refused(command.clone(), 103);
        }
        clients[if priority == "critical" { 0 } else { 3 }].ok(command);
        assert_eq!(clients[1].event("event")["name"], priority);
    }
    // Not stored.
    let history = clients[7].ok(json!({"type": "message:history", "room": "room"}));
    assert_eq!(seqs(&history["events"]), [1, 2, 3, 4, 5, 6]);
    let long = json!({"type": "event:send", "room": "room", "name": "n", "data": "x".repeat(4096)});
    clients[0].refused(long, 107);
    clients[0].refused(json!({"type": "event:send", "room": "nowhere", "name": "n", "data": 1}), 102);
    clients[0].refused(json!({"type": "event:send", "room": "room", "name": "n".repeat(65), "data": 1}), 107);
}

fn sync_check_compares(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    alice.join("a");
    alice.join("b");
    alice.send("b", "x");
    let checked = alice.ok(json!({"type": "sync:check", "rooms": [
        {"room": "a", "seq": 1}, {"room": "b", "seq": 1}, {"room": "a", "seq": 5}]}));
    assert_eq!(
        checked["rooms"],
        json!([
            {"room": "a", "seq": 1, "state": "ok"}, {"room": "b", "seq": 2, "state": "behind"},
            {"room": "a", "seq": 1, "state": "diverged"}])
    );
    let mut bob = server.client("bob");
    let checked =
        bob.ok(json!({"type": "sync:check", "rooms": [{"room": "b", "seq": 2}, {"room": "nowhere", "seq": 1}]}));
    assert_eq!(checked["rooms"][0]["state"], "ok", "{checked}");
    bob.refused(json!({"type": "sync:check", "rooms": [{"room": "b"}]}), 107);
    bob.refused(json!({"type": "sync:check"}), 107);
}

fn stats_are_this_connections(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    alice.join("a");
    alice.join("b");
    alice.refused(json!({"type": "message:history", "room": "nowhere"}), 102);
    let stats = alice.ok(json!({"type": "stats"}));
    assert_eq!((&stats["subscriptions"], &stats["ladder_step"]), (&json!(2), &json!(0)), "{stats}");
    assert!(stats["outbox_bytes"].is_u64() && stats["outbox_bytes_max"].is_u64(), "{stats}");
}

fn commands_may_be_pipelined(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    // One write: join, sends, history, read, leave, all before the first answer.
    let mut bytes = Vec::new();
    let mut say = |command: Value| bytes.extend(crate::support::client::text_frame(&command));
    say(json!({"type": "room:join", "id": "join", "room": "p"}));
    for number in 0..20 {
        say(json!({"type": "message:send", "id": number, "room": "p", "body": "x", "client_id": number.to_string()}));
    }
    say(json!({"type": "message:history", "id": "history", "room": "p", "after": 0}));
    say(json!({"type": "room:members", "id": "members", "room": "p"}));
    say(json!({"type": "ping", "id": "ping"}));
    say(json!({"type": "room:leave", "id": "leave", "room": "p"}));
    say(json!({"type": "message:send", "id": "after", "room": "p", "body": "y"}));
    alice.raw(&bytes);
    let reply = |alice: &mut Client, id: Value| alice.wait(|value| value["id"] == id, &id.to_string());
    assert_eq!(reply(&mut alice, json!("join"))["seq"], 1);
    for number in 0..20 {
        assert_eq!(reply(&mut alice, json!(number))["seq"], number + 2);
    }
    assert_eq!(reply(&mut alice, json!("history"))["type"], "ok");
    assert_eq!(
        reply(&mut alice, json!("members"))["members"],
        json!([{"user": "alice", "role": "owner", "status": "online"}])
    );
    assert_eq!(reply(&mut alice, json!("ping"))["type"], "ok");
    assert_eq!(reply(&mut alice, json!("leave"))["type"], "ok");
    // A public room takes messages from whoever may read it.
    assert_eq!(reply(&mut alice, json!("after"))["seq"], 23);
    // The same with the very first bytes: request and commands in one write.
    let key = antiphon::protocol::client::client_key();
    let mut stream = crate::support::http::connect(server.public);
    let mut request = crate::support::Connect::new("bob").request(server.public, &key);
    request.extend(crate::support::client::text_frame(&json!({"type": "room:join", "id": 1, "room": "p"})));
    request.extend(crate::support::client::text_frame(
        &json!({"type": "message:send", "id": 2, "room": "p", "body": "z"}),
    ));
    std::io::Write::write_all(&mut stream, &request).unwrap();
    let mut bob = Client::finish_upgrade(stream, &key).unwrap();
    assert_eq!(bob.event("hello")["user"], "bob");
    assert_eq!(bob.reply(1)["seq"], 24);
    assert_eq!(bob.reply(2)["seq"], 25);
}

#[test]
fn rooms_are_created_by_joining_unless_that_is_off() {
    let server = Options::shards(2).with("--auto-create", "off").start();
    let mut alice = server.client("alice");
    alice.refused(json!({"type": "room:join", "room": "new"}), 102);
    alice.ok(json!({"type": "room:create", "room": "new", "kind": "public"}));
    assert_eq!(server.client("bob").join("new")["role"], "member");
}
