//! The control listener: admin API, metrics, health.

use serde_json::{Value, json};

use crate::support::{Server, http};

#[test]
fn publishing_reaches_listeners_once() {
    for shards in [1, 2, 4] {
        let mut server = Server::shards(shards);
        let mut alice = server.client("alice");
        alice.join("news desk/ü");
        let path = "/admin/rooms/news%20desk%2F%C3%BC/messages";
        let body = r#"{"author": "newsroom", "body": "extra!", "meta": {"k": 1}, "priority": "critical"}"#;
        let key = [("Idempotency-Key", "k-1")];
        let first = server.admin_with("POST", path, &key, body);
        assert_eq!(first.status, 200, "{first:?}");
        let event = alice.event("message:created");
        assert_eq!(
            event,
            json!({"type": "message:created", "room": "news desk/ü", "seq": 2, "ts": first.json()["ts"], "author": "newsroom",
                   "client_id": "k-1", "body": "extra!", "meta": {"k": 1}, "priority": "critical", "trace": event["trace"]})
        );
        assert_eq!((&first.json()["seq"], &first.json()["duplicate"]), (&json!(2), &json!(false)));
        let again = server.admin_with("POST", path, &key, body).json();
        assert_eq!((&again["seq"], &again["duplicate"]), (&json!(2), &json!(true)));
        server.kill();
        server.restart();
        let again = server.admin_with("POST", path, &key, body).json();
        assert_eq!((&again["seq"], &again["duplicate"]), (&json!(2), &json!(true)), "after a kill, {shards} shards");
        let (status, plain) = server.admin("POST", path, r#"{"body": "without a key"}"#);
        assert_eq!((status, &plain["seq"]), (200, &json!(3)));
    }
}

#[test]
fn bad_requests_are_told_apart() {
    let server = Server::shards(2);
    server.client("alice").join("room");
    let cases = [
        ("POST", "/admin/rooms/nowhere/messages", r#"{"body": "x"}"#, 404),
        ("POST", "/admin/rooms/room/messages", r#"{"body": ""}"#, 400),
        ("POST", "/admin/rooms/room/messages", r#"{"body": 1}"#, 400),
        ("POST", "/admin/rooms/room/messages", r#"{"text": "x"}"#, 400),
        ("POST", "/admin/rooms/room/messages", "{", 400),
        ("POST", "/admin/rooms/a%0Ab/messages", r#"{"body": "x"}"#, 400),
        ("POST", "/admin/rooms/room/messages", r#"{"body": "x", "author": "a b"}"#, 400),
        ("GET", "/admin/rooms/room/messages", "", 405),
        ("GET", "/admin/nothing", "", 404),
        ("POST", "/admin/tokens/revoke", "{}", 400),
        ("POST", "/admin/tokens/revoke", r#"{"jti": "a", "user": "b"}"#, 400),
        ("POST", "/admin/users/a%20b/disconnect", "", 400),
    ];
    for (method, path, body, status) in cases {
        let (found, answer) = server.admin(method, path, body);
        assert_eq!(found, status, "{method} {path} {body}: {answer}");
        assert_eq!(answer["type"], "error", "{answer}");
    }
    let long = format!(r#"{{"body": "{}"}}"#, "x".repeat(100_000));
    assert!(matches!(server.admin("POST", "/admin/rooms/room/messages", &long).0, 400 | 413));
    for path in ["/admin/stats", "/admin/nothing"] {
        for headers in [&[][..], &[("Authorization", "Bearer wrong")], &[("Authorization", "Basic eDp5")]] {
            let answer = http::request(server.control, "GET", path, headers, "");
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{path}");
        }
    }
}

#[test]
fn a_user_is_disconnected_everywhere() {
    let server = Server::shards(4);
    for user in ["alice", "bob", "carol", "dave"] {
        let mut devices: Vec<_> = (0..3).map(|number| server.device(user, &format!("d{number}"))).collect();
        let (status, answer) =
            server.admin("POST", &format!("/admin/users/{user}/disconnect"), r#"{"reason": "house rules"}"#);
        assert_eq!((status, answer), (200, json!({"disconnected": 3})));
        for device in &mut devices {
            let end = device.end();
            assert_eq!((end.code, end.reason.as_str()), (4003, "house rules"));
        }
        // Not shut out: coming back is allowed.
        server.client(user).ok(json!({"type": "ping"}));
    }
    let (status, answer) = server.admin("POST", "/admin/users/nobody/disconnect", "");
    assert_eq!((status, answer), (200, json!({"disconnected": 0})));
}

#[test]
fn metrics_are_in_the_text_format() {
    let server = Server::shards(2);
    let mut alice = server.client("alice");
    alice.join("room");
    alice.send("room", "x");
    alice.refused(json!({"type": "nonsense"}), 104);
    // Both shards have applied both batches.
    server.wait_for_stat("batch_entries", |count| count == 4);
    let answer = http::get(server.control, "/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").is_some_and(|kind| kind.contains("text")), "{:?}", answer.headers);
    assert!(answer.body.ends_with("# EOF\n"));
    let mut values: Vec<(&str, f64)> = Vec::new();
    let mut typed = std::collections::HashSet::new();
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            if words.next() == Some("TYPE") {
                assert!(typed.insert(words.next().unwrap()), "declared twice: {line}");
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let bare = name.split('{').next().unwrap();
        assert!(bare.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line}");
        let family = ["_total", "_sum", "_count", "_bucket"].iter().find_map(|suffix| bare.strip_suffix(suffix));
        assert!(typed.contains(family.unwrap_or(bare)), "no type before {line}");
        values.push((name, value.parse().unwrap_or_else(|_| panic!("{line}"))));
    }
    let sum =
        |prefix: &str| -> f64 { values.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, v)| v).sum() };
    assert_eq!(sum("antiphon_sessions{"), 1.0);
    assert_eq!(sum("antiphon_acks_total{"), 1.0);
    assert_eq!(sum("antiphon_batches_total{shard=\"0\""), 2.0, "the join's and the message's, each once");
    assert_eq!(sum("antiphon_batches_total{shard=\"1\""), 2.0);
    assert_eq!(
        sum("antiphon_errors_total{shard=\"0\",code=\"unknown_type\"}")
            + sum("antiphon_errors_total{shard=\"1\",code=\"unknown_type\"}"),
        1.0
    );
    assert_eq!(sum("antiphon_shard_up"), 2.0);
    assert_eq!(sum("antiphon_ready"), 1.0);
    assert!(sum("process_resident_memory_bytes") > 1e6);
}

#[test]
fn stats_and_health_tell_how_it_is() {
    let server = Server::shards(2);
    let (status, stats) = server.admin("GET", "/admin/stats", "");
    assert_eq!(status, 200);
    assert_eq!((&stats["ready"], &stats["draining"]), (&json!(true), &json!(false)));
    assert_eq!(stats["shards"].as_array().map(Vec::len), Some(2));
    assert!(stats["shards"].as_array().unwrap().iter().all(|shard| shard["answered"] == true));
    let ready: Value = http::get(server.control, "/health/ready").json();
    assert_eq!((&ready["status"], &ready["store"]), (&json!("ready"), &json!(true)));
    assert_eq!(http::get(server.control, "/health/live").status, 200);
    assert_eq!(http::get(server.control, "/").status, 200);
}
