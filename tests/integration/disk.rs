//! A disk that takes no more: no false ack, reading goes on, and afterwards everything that was
//! acknowledged is there.

use std::collections::HashMap;

use serde_json::json;

use crate::support::{Options, http};

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    // Files may not grow past 3 MB: writing fails as on a full disk, but for this process alone.
    let mut server = Options::shards(2).file_kib(3_000).start();
    let mut alice = server.client("alice");
    alice.join("room");
    let mut acked = HashMap::new();
    let mut refused = 0;
    let body = "x".repeat(8_000);
    for number in 0..2_000 {
        let id = format!("c{number}");
        let reply = alice.ask(json!({"type": "message:send", "room": "room", "body": body, "client_id": id}));
        if reply["type"] == "ok" {
            assert_eq!(refused, 0, "none before, one after: {reply}");
            acked.insert(id, reply["seq"].as_u64().unwrap());
            continue;
        }
        assert!(matches!(reply["code"].as_u64(), Some(100 | 113 | 117)), "{reply}");
        assert_eq!(reply["temporary"], true);
        refused += 1;
        if refused == 20 {
            break;
        }
    }
    assert!(acked.len() > 50 && refused == 20, "{} acked, {refused} refused", acked.len());
    // Everybody is told, reading goes on, and the operator sees it.
    let degraded = alice.event("degraded");
    assert_eq!(degraded, json!({"type": "degraded", "on": true, "what": ["store"]}));
    let history = alice.ok(json!({"type": "message:history", "room": "room", "after": 0, "limit": 10}));
    assert_eq!(history["events"].as_array().map(Vec::len), Some(10));
    let mut bob = server.client("bob");
    assert_eq!(bob.event("degraded")["on"], true);
    // Not a reason to send clients elsewhere, but said.
    let ready = http::get(server.control, "/health/ready");
    assert_eq!((ready.status, &ready.json()["store"]), (200, &json!(false)));
    assert!(http::get(server.control, "/metrics").body.contains("antiphon_store_degraded 1\n"));
    assert!(server.is_running());
    // With room again, after a kill: what was acknowledged is there, what was refused may be sent again.
    server.kill();
    server.options_mut().file_kib_off();
    server.restart();
    let mut alice = server.client("alice");
    for (id, seq) in &acked {
        let again = alice.ok(json!({"type": "message:send", "room": "room", "body": body, "client_id": id}));
        assert_eq!((&again["seq"], &again["duplicate"]), (&json!(seq), &json!(true)), "{id}");
    }
    let retried = alice
        .ok(json!({"type": "message:send", "room": "room", "body": body, "client_id": format!("c{}", acked.len())}));
    assert!(retried["seq"].as_u64().unwrap() > acked.len() as u64);
}
