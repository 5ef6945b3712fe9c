//! The background check of rooms over a running server whose database file somebody meddles with.

use serde_json::json;

use crate::support::{Options, Server, http};

fn meddle(server: &Server, sql: &str) {
    let db = rusqlite::Connection::open(server.data_dir().join("antiphon.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(db.execute(sql, []).unwrap(), 1, "{sql}");
}

/// A metric, summed over the shards.
fn metric(server: &Server, name: &str) -> u64 {
    let body = http::get(server.control, "/metrics").body;
    let lines = body.lines().filter(|line| line.starts_with(&format!("{name}{{shard=")));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_room_that_diverges_is_seen_closed_and_opened_again() {
    let server = Options::shards(2).start();
    let mut alice = server.client("alice");
    alice.join("general");
    alice.join("other");
    (0..3).for_each(|n| {
        alice.send("general", &format!("{n}"));
    });
    server.wait_for_stat("rooms_checked", |count| count >= 2);
    assert_eq!((metric(&server, "antiphon_rooms_diverged"), metric(&server, "antiphon_rooms_repaired_total")), (0, 0));

    meddle(&server, "UPDATE heads SET hash = hash + 1 WHERE room = 1");
    server.wait_for_stat("rooms_repaired", |count| count == 1);
    alice.send("general", "on it goes");

    meddle(&server, "UPDATE log SET ts = ts + 1 WHERE room = 1 AND seq = 2");
    server.wait_for_stat("rooms_diverged", |count| count >= 1);
    assert!(metric(&server, "antiphon_rooms_diverged") >= 1);
    let refused = alice.refused(json!({"type": "message:send", "room": "general", "body": "no"}), 117);
    assert!(refused["retry_after_ms"].as_u64().unwrap() > 0, "{refused}");
    alice.send("other", "other rooms go on");
    assert!(server.log().contains("room diverged"), "{}", server.log());

    meddle(&server, "UPDATE log SET ts = ts - 1 WHERE room = 1 AND seq = 2");
    server.wait_for_stat("rooms_diverged", |count| count == 0);
    assert_eq!(metric(&server, "antiphon_rooms_diverged"), 0);
    assert_eq!(alice.send("general", "well again")["seq"], 6);
}
