//! Presence over real sockets: who is here, on which devices, and who hears of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Options, Server};

with_1_2_4_shards!(two_devices_are_one_user, a_room_is_watched, typing_reaches_the_room, a_reconnect_is_no_news,);

fn server(shards: u16, grace_ms: &str) -> Server {
    Options::shards(shards).with("--grace-ms", grace_ms).start()
}

/// Waits for a `presence:changed` that says this of the user.
fn hears(client: &mut crate::support::Client, user: &str, status: &str) -> Value {
    let says = |card: &Value| card["user"] == user && card["status"] == status;
    let fits = |event: &Value| {
        event["type"] == "presence:changed" && event["presence"].as_array().is_some_and(|cards| cards.iter().any(says))
    };
    let event = client.wait(fits, &format!("{user} {status}"));
    event["presence"].as_array().unwrap().iter().find(|card| says(card)).unwrap().clone()
}

fn two_devices_are_one_user(shards: u16) {
    let server = server(shards, "0");
    // Enough watchers that some live on another shard than bob.
    let mut watchers: Vec<_> = (0..6).map(|number| server.client(&format!("watcher-{number}"))).collect();
    for watcher in &mut watchers {
        let ok = watcher.ok(json!({"type": "presence:subscribe", "users": ["bob", "nobody"]}));
        assert_eq!(
            ok["presence"],
            json!([{"user": "bob", "status": "offline"}, {"user": "nobody", "status": "offline"}])
        );
    }
    let mut phone = server.device("bob", "phone");
    let mut laptop = server.device("bob", "laptop");
    watchers.iter_mut().for_each(|watcher| {
        hears(watcher, "bob", "online");
    });
    let set = phone.ok(json!({"type": "presence:set", "status": "busy", "custom": "in a meeting"}));
    assert_eq!((&set["status"], &set["shown"]), (&json!("busy"), &json!("busy")));
    laptop.ok(json!({"type": "activity", "kind": "typing"}));
    for watcher in &mut watchers {
        assert_eq!(hears(watcher, "bob", "busy")["custom"], "in a meeting");
        let person = watcher.ok(json!({"type": "presence:get", "users": ["bob"]}))["presence"][0].clone();
        assert_eq!((&person["status"], &person["custom"]), (&json!("busy"), &json!("in a meeting")));
        let mut devices: Vec<Value> = person["devices"].as_array().unwrap().clone();
        devices.sort_by_key(|device| device["device"].to_string());
        assert_eq!(
            devices,
            [
                json!({"device": "laptop", "status": "online", "activity": "typing"}),
                json!({"device": "phone", "status": "busy", "activity": "active"}),
            ]
        );
        assert!(person["last_activity"].as_u64().unwrap() > 1_600_000_000_000);
    }
    let (status, numbers) = server.admin("GET", "/admin/presence", "");
    assert_eq!(status, 200);
    assert_eq!(
        numbers,
        json!({"present": 7, "status": {"online": 6, "away": 0, "busy": 1, "invisible": 0},
               "devices": {"1": 6, "2": 1, "3": 0, "more": 0}})
    );
    // The last one out turns off the light.
    phone.close();
    watchers.iter_mut().for_each(|watcher| {
        hears(watcher, "bob", "online");
    });
    laptop.close();
    for watcher in &mut watchers {
        assert_eq!(hears(watcher, "bob", "offline")["cause"], "clean");
        watcher.ok(json!({"type": "presence:unsubscribe", "users": ["bob"]}));
    }
    let _phone = server.device("bob", "phone");
    watchers[0].hears_no("presence:changed", Duration::from_millis(400));
}

fn a_room_is_watched(shards: u16) {
    let server = server(shards, "0");
    let mut alice = server.client("alice");
    alice.join("room");
    alice.ok(json!({"type": "presence:subscribe", "room": "room"}));
    let mut others: Vec<_> = (0..5).map(|number| server.client(&format!("member-{number}"))).collect();
    for (number, other) in others.iter_mut().enumerate() {
        other.join("room");
        hears(&mut alice, &format!("member-{number}"), "online");
    }
    others[3].ok(json!({"type": "presence:set", "status": "away"}));
    assert_eq!(hears(&mut alice, "member-3", "away").get("custom"), None);
    let members = alice.ok(json!({"type": "room:members", "room": "room"}))["members"].clone();
    let status = |user: &str| {
        members.as_array().unwrap().iter().find(|member| member["user"] == user).unwrap()["status"].clone()
    };
    assert_eq!([status("alice"), status("member-0"), status("member-3")], ["online", "online", "away"]);
    // Only whoever may read a room may watch it.
    alice.ok(json!({"type": "room:create", "room": "den", "kind": "private"}));
    others[0].refused(json!({"type": "presence:subscribe", "room": "den"}), 103);
    others[0].refused(json!({"type": "presence:subscribe", "room": "nowhere"}), 102);
    others[0].refused(json!({"type": "activity", "room": "den", "kind": "typing"}), 103);
    others.pop().unwrap().close();
    hears(&mut alice, "member-4", "offline");
}

fn typing_reaches_the_room(shards: u16) {
    let server = server(shards, "10000");
    let mut alice = server.client("alice");
    alice.join("room");
    let mut others: Vec<_> = (0..4).map(|number| server.client(&format!("member-{number}"))).collect();
    others.iter_mut().for_each(|other| {
        other.join("room");
    });
    for _ in 0..3 {
        alice.ok(json!({"type": "activity", "room": "room", "kind": "typing"}));
    }
    for other in &mut others {
        let event = other.event("activity");
        assert_eq!(
            (&event["room"], &event["user"], &event["kind"]),
            (&json!("room"), &json!("alice"), &json!("typing"))
        );
        other.hears_no("activity", Duration::from_millis(100));
    }
}

fn a_reconnect_is_no_news(shards: u16) {
    let server = server(shards, "10000");
    let mut alice = server.client("alice");
    let bob = server.client("bob");
    let ok = alice.ok(json!({"type": "presence:subscribe", "users": ["bob"]}));
    assert_eq!(ok["presence"][0]["status"], "online");
    bob.close();
    let _bob = server.client("bob");
    alice.hears_no("presence:changed", Duration::from_millis(700));
}
