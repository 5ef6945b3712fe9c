//! Inboxes over real sockets: delivery, acknowledgement on one of two devices, overflow, expiry, the
//! admin API, and kill -9 in the middle of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Connect, Heard, Options, Server, token_with};

with_1_2_4_shards!(an_item_reaches_both_devices_and_an_ack_cancels_it, feeds_wait_for_who_is_away);

/// The items that come, in order, until there are `count`.
fn items(client: &mut Client, count: usize) -> Vec<Value> {
    let mut all = Vec::new();
    while all.len() < count {
        let event = client.event("inbox:item");
        let items = event["items"].as_array().unwrap();
        assert!((1..=50).contains(&items.len()));
        all.extend(items.iter().cloned());
    }
    all
}

fn an_item_reaches_both_devices_and_an_ack_cancels_it(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut phone = server.device("bob", "phone");
    assert_eq!(phone.hello["inbox"], 0);
    alice.refused(json!({"type": "notify", "user": "bob", "name": "poke", "data": 1}), 103);
    alice.join("lounge");
    phone.join("lounge");
    let item = alice.ok(json!({"type": "notify", "user": "bob", "name": "poke", "data": {"n": [1]}}))["item"].clone();
    let mut tablet = server.device("bob", "tablet");
    assert_eq!(tablet.hello["inbox"], 1);
    for device in [&mut phone, &mut tablet] {
        let got = items(device, 1).remove(0);
        assert_eq!(
            (&got["item"], &got["name"], &got["data"], &got["priority"], &got["from"], &got["attempt"]),
            (&item, &json!("poke"), &json!({"n": [1]}), &json!("normal"), &json!("alice"), &json!(1))
        );
        assert!(got["expires_ts"].as_u64() > got["ts"].as_u64());
    }
    // Nobody said a word: after a second it comes again, to both.
    for device in [&mut phone, &mut tablet] {
        assert_eq!(items(device, 1)[0]["attempt"], 2);
    }
    assert_eq!(tablet.ok(json!({"type": "inbox:ack", "items": [item]}))["acked"], 1);
    assert_eq!(phone.event("inbox:acked")["items"], json!([item]));
    assert_eq!(phone.ok(json!({"type": "inbox:ack", "items": [item]}))["acked"], 0);
    for device in [&mut phone, &mut tablet] {
        device.hears_no("inbox:item", Duration::from_millis(2_700));
        assert_eq!(device.ok(json!({"type": "inbox:list"}))["items"], json!([]));
    }
    assert_eq!(server.device("bob", "third").hello["inbox"], 0);
    assert_eq!(server.stat("inbox_acked"), 1);
}

fn feeds_wait_for_who_is_away(shards: u16) {
    let mut server = Server::shards(shards);
    let mut alice = server.client("alice");
    alice.ok(json!({"type": "room:create", "room": "dm", "kind": "direct", "members": ["bob"]}));
    alice.ok(json!({"type": "room:create", "room": "den", "kind": "private", "members": ["bob"]}));
    for number in 0..3 {
        alice.send("dm", &format!("m{number}"));
    }
    alice.send("den", "nobody in particular");
    alice.ok(json!({"type": "message:send", "room": "den", "body": "you!", "mentions": ["bob", "eve"]}));
    alice.ok(json!({"type": "room:invite", "room": "den", "user": "carol"}));
    server.kill();
    server.restart();
    let mut bob = server.client("bob");
    assert_eq!(bob.hello["inbox"], 4);
    let got: Vec<(Value, Value, Value)> = items(&mut bob, 4)
        .into_iter()
        .map(|item| (item["name"].clone(), item["data"]["room"].clone(), item["data"]["seq"].clone()))
        .collect();
    let due = |name: &str, room: &str, seq: u64| (json!(name), json!(room), json!(seq));
    assert_eq!(got, [due("direct", "dm", 3), due("direct", "dm", 4), due("direct", "dm", 5), due("mention", "den", 4)]);
    // Reading a room clears what it covers.
    bob.ok(json!({"type": "message:read", "room": "dm", "seq": 4}));
    server.wait_for_stat("inbox_acked", |acked| acked == 2);
    assert_eq!(bob.ok(json!({"type": "inbox:list"}))["items"].as_array().unwrap().len(), 2);
    // Who listens needs no item.
    bob.ok(json!({"type": "room:subscribe", "room": "dm"}));
    let mut alice = server.client("alice");
    alice.send("dm", "live");
    bob.event("message:created");
    server.wait_for_stat("inbox_heard", |heard| heard == 1);
    assert_eq!(server.client("carol").hello["inbox"], 1);
    assert_eq!(server.client("eve").hello["inbox"], 0);
}

#[test]
fn a_full_inbox_keeps_what_is_urgent_and_time_empties_it() {
    let server = Options::shards(2).with("--inbox-items-max", "3").start();
    let root = token_with("root", |new| new.admin = true);
    let mut root = Client::open(server.public, Connect::with_token(&root));
    let mut notify = |priority: &str, ttl_ms: u64| {
        root.ask(json!({"type": "notify", "user": "zoe", "name": priority, "data": null, "priority": priority,
                        "ttl_ms": ttl_ms}))
    };
    for priority in ["low", "low", "critical", "normal", "critical"] {
        assert_eq!(notify(priority, 60_000)["type"], "ok", "{priority}");
    }
    let refused = notify("low", 60_000);
    assert_eq!((&refused["code"], &refused["temporary"]), (&json!(115), &json!(false)));
    assert_eq!(notify("critical", 300)["type"], "ok", "the normal one goes for it");
    assert_eq!(notify("normal", 60_000)["code"], 115);
    let until = Instant::now() + Duration::from_millis(400);
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    let mut zoe = server.client("zoe");
    assert_eq!(zoe.hello["inbox"], 2, "one has expired");
    let names: Vec<Value> = items(&mut zoe, 2).into_iter().map(|item| item["name"].clone()).collect();
    assert_eq!(names, ["critical", "critical"]);
    let (_, stats) = server.admin("GET", "/admin/stats", "");
    assert_eq!((&stats["store"]["items_refused"], &stats["store"]["items_evicted"]), (&json!(2), &json!(3)), "{stats}");
}

#[test]
fn the_admin_api_notifies_one_and_many() {
    let server = Server::shards(2);
    let (status, one) = server.admin("POST", "/admin/users/bob/notify", r#"{"name": "n", "data": {"a": 1}}"#);
    assert_eq!((status, &one), (200, &json!({"item": 1})));
    for (path, body) in [
        ("users/b b/notify", r#"{"name": "n", "data": 1}"#),
        ("users/bob/notify", r#"{"name": "", "data": 1}"#),
        ("users/bob/notify", r#"{"name": "n"}"#),
        ("users/bob/notify", r#"{"name": "n", "data": 1, "ttl_ms": 0}"#),
        ("users/bob/notify", r#"{"name": "n", "data": 1, "priority": "high"}"#),
        ("notify", r#"{"users": [], "name": "n", "data": 1}"#),
        ("notify", r#"{"users": ["a b"], "name": "n", "data": 1}"#),
    ] {
        assert_eq!(server.admin("POST", &format!("/admin/{}", path.replace(' ', "%20")), body).0, 400, "{path} {body}");
    }
    let users: Vec<String> = (0..10_000).map(|number| format!("user-{number}")).collect();
    let body = json!({"users": users, "name": "news", "data": "x", "priority": "low"}).to_string();
    let answer = server.admin_with("POST", "/admin/notify", &[], &body);
    assert_eq!(answer.status, 200);
    // The body is chunked; every line of JSON in it is an answer.
    let lines: Vec<Value> = answer
        .body
        .lines()
        .filter_map(|line| serde_json::from_str(line.trim()).ok())
        .filter(Value::is_object)
        .collect();
    let told: BTreeSet<&str> =
        lines.iter().filter(|line| line["item"].is_u64()).map(|line| line["user"].as_str().unwrap()).collect();
    assert_eq!(told.len(), 10_000);
    assert_eq!(server.client("user-9999").hello["inbox"], 1);
}

#[test]
fn kill_9_in_the_middle_loses_nothing_acked_and_redelivers_nothing_acked() {
    let mut server = Server::shards(2);
    const ITEMS: usize = 1_000;
    const ROUNDS: usize = 4;
    for number in 0..ITEMS {
        let body = json!({"name": "n", "data": number}).to_string();
        assert_eq!(server.admin("POST", "/admin/users/bob/notify", &body).0, 200);
    }
    // What a device acknowledged and was told so; what it asked to be acknowledged.
    let (mut acked, mut asked, mut seen) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for round in 0..ROUNDS {
        let mut bob = server.client("bob");
        let waits = bob.hello["inbox"].as_u64().unwrap() as usize;
        assert!(waits <= ITEMS - acked.len(), "acknowledged items are gone");
        let began = Instant::now();
        let got = items(&mut bob, waits);
        println!("round {round}: {waits} items in {:?}", began.elapsed());
        for item in &got {
            let id = item["item"].as_u64().unwrap();
            assert!(!acked.contains(&id), "{id} was acknowledged and came again");
            *seen.entry(id).or_insert(0) += 1;
        }
        let ids: Vec<u64> = got.iter().map(|item| item["item"].as_u64().unwrap()).collect();
        assert!(ids.is_sorted());
        let mut said = Vec::new();
        for some in ids.chunks(10).take(ITEMS / 10 / ROUNDS) {
            asked.extend(some.iter().copied());
            said.push((bob.begin(json!({"type": "inbox:ack", "items": some})), some.to_vec()));
        }
        // Some of the answers are read, and then the power goes.
        let half = said.len() / 2;
        for (id, some) in said.into_iter().take(half) {
            assert_eq!(bob.reply(id)["type"], "ok");
            acked.extend(some);
        }
        server.kill();
        server.restart();
    }
    let mut bob = server.client("bob");
    let left = bob.hello["inbox"].as_u64().unwrap() as usize;
    let rest: BTreeSet<u64> = items(&mut bob, left).iter().map(|item| item["item"].as_u64().unwrap()).collect();
    assert!(rest.is_disjoint(&acked), "nothing acknowledged comes again");
    let all: BTreeSet<u64> = (1..=ITEMS as u64).collect();
    let accounted: BTreeSet<u64> = rest.union(&asked).copied().collect();
    assert_eq!(accounted, all, "nothing is lost that nobody asked to be taken away");
    for some in rest.iter().copied().collect::<Vec<_>>().chunks(500) {
        assert_eq!(bob.ok(json!({"type": "inbox:ack", "items": some}))["acked"], some.len());
    }
    drop(bob);
    let mut bob = server.client("bob");
    assert_eq!(bob.hello["inbox"], 0);
    assert!(matches!(bob.hear(Duration::from_millis(200)), Heard::Nothing));
}
