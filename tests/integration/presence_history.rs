//! What is kept of presence, over real sockets and through the end of the process.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Options, PATIENCE, Server, http};

with_1_2_4_shards!(changes_are_kept_and_told, a_killed_server_says_so_once,);

/// Asks until the user's history fits: it is written a moment after the change.
fn history(client: &mut Client, user: &str, fits: impl Fn(&[Value]) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let ok = client.ok(json!({"type": "presence:history", "user": user}));
        if fits(ok["transitions"].as_array().unwrap()) {
            return ok;
        }
        assert!(Instant::now() < until, "not in time: {ok}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn steps(ok: &Value) -> Vec<String> {
    let transitions = ok["transitions"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or("nobody").to_owned();
    transitions.map(|t| [&t["status"], &t["cause"], &t["device"]].map(text).join(" ")).collect()
}

fn changes_are_kept_and_told(shards: u16) {
    let mut server = Options::shards(shards).with("--grace-ms", "0").start();
    let mut watchers: Vec<Client> = (0..4).map(|number| server.client(&format!("watcher-{number}"))).collect();
    let mut bob = server.device("bob", "phone-1");
    history(&mut watchers[0], "bob", |all| all.len() == 1);
    bob.ok(json!({"type": "presence:set", "status": "busy"}));
    history(&mut watchers[0], "bob", |all| all.len() == 2);
    bob.ok(json!({"type": "presence:set", "status": "offline"}));
    history(&mut watchers[0], "bob", |all| all.len() == 3);
    bob.close();
    for watcher in &mut watchers {
        let ok = history(watcher, "bob", |all| all.len() >= 3);
        assert_eq!(steps(&ok), ["online connect phone-1", "busy set phone-1", "offline clean phone-1"]);
        let summary = &ok["summary"];
        let [first, _, last] = ok["transitions"].as_array().unwrap().as_slice() else { panic!("three: {ok}") };
        assert_eq!((&summary["sessions"], &summary["first_seen"]), (&json!(1), &first["ts"]));
        assert_eq!(summary["last_seen"], last["ts"]);
        let length = last["ts"].as_u64().unwrap() - first["ts"].as_u64().unwrap();
        assert_eq!(summary["online_ms"], length);
        let page = watcher.ok(json!({"type": "presence:history", "user": "bob", "limit": 2}));
        assert_eq!(page["next"], last["ts"]);
        let rest = watcher.ok(json!({"type": "presence:history", "user": "bob", "from": page["next"]}));
        assert_eq!(steps(&rest), ["offline clean phone-1"]);
        watcher.refused(json!({"type": "presence:history", "user": "bob", "limit": 1_000}), 107);
    }
    let numbers = analytics(&server, |numbers| {
        numbers["sessions"]["ended"] == 1
            && numbers["hours"].as_array().is_some_and(|hours| hours.iter().any(|h| h["peak"] == 5))
    });
    assert_eq!(numbers["now"]["present"], 4);
    assert_eq!(numbers["now"]["by_device"], json!({"default": 4}));
    assert_eq!(numbers["devices"][0]["class"], "phone");
    assert_eq!(numbers["months"].as_array().unwrap().last().unwrap()["active_users"], 5);
    assert_eq!(server.admin("GET", "/admin/presence/analytics?hours=0", "").0, 400);
    let metrics = http::get(server.control, "/metrics").body;
    assert!(metrics.contains("antiphon_store_transitions_written_total"), "{metrics}");
    assert!(metrics.contains("antiphon_transitions_dropped_total{shard=\"0\"} 0"), "{metrics}");
    // A stop is the end of everybody's presence, and says so itself.
    server.stop_and_restart();
    let mut alice = server.client("alice");
    let ok = history(&mut alice, "watcher-1", |all| all.len() == 2);
    assert_eq!(steps(&ok), ["online connect default", "offline drain default"]);
    assert!(server.log().contains("presence_lost=0"), "{}", server.log());
}

fn analytics(server: &Server, fits: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let (status, numbers) = server.admin("GET", "/admin/presence/analytics?hours=2", "");
        assert_eq!(status, 200, "{numbers}");
        if fits(&numbers) {
            return numbers;
        }
        assert!(Instant::now() < until, "not in time: {numbers}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn a_killed_server_says_so_once(shards: u16) {
    let mut server = Options::shards(shards).with("--grace-ms", "0").start();
    let mut alice = server.client("alice");
    let _users: Vec<Client> = (0..6).map(|number| server.client(&format!("user-{number}"))).collect();
    let gone = server.client("gone");
    for number in 0..6 {
        history(&mut alice, &format!("user-{number}"), |all| all.len() == 1);
    }
    history(&mut alice, "gone", |all| all.len() == 1);
    gone.close();
    history(&mut alice, "gone", |all| all.len() == 2);
    server.kill();
    server.restart();
    server.kill();
    server.restart();
    let mut alice = server.client("alice");
    for number in 0..6 {
        let ok = history(&mut alice, &format!("user-{number}"), |all| all.len() == 2);
        assert_eq!(steps(&ok), ["online connect default", "offline server_restart nobody"]);
        let [came, went] = ok["transitions"].as_array().unwrap().as_slice() else { panic!("two: {ok}") };
        let lost_ts = went["lost_ts"].as_u64().unwrap();
        assert!(came["ts"].as_u64().unwrap() <= lost_ts && lost_ts <= went["ts"].as_u64().unwrap(), "{ok}");
    }
    assert_eq!(steps(&history(&mut alice, "gone", |all| all.len() == 2))[1], "offline clean default");
    // Alice's own coming is told at the next tick.
    history(&mut alice, "alice", |all| all.last().is_some_and(|last| last["status"] == "online"));
    let (_, now) = server.admin("GET", "/admin/presence", "");
    assert_eq!(now["present"], 1, "only who came again is here");
}
