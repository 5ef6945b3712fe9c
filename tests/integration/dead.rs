//! Dead letters over the admin API: what could not be applied is listed, replayed and thrown away.

use serde_json::{Value, json};

use crate::support::{Server, http};

fn meddle(server: &Server, sql: &str) {
    rusqlite::Connection::open(server.data_dir().join("antiphon.db")).unwrap().execute_batch(sql).unwrap();
}

const POISON: &str = "CREATE TRIGGER poison BEFORE INSERT ON log WHEN new.fields LIKE '%poison%'
    BEGIN SELECT RAISE(ABORT, 'no such body'); END";

fn listed(server: &Server, query: &str) -> Vec<Value> {
    let (status, answer) = server.admin("GET", &format!("/admin/dead-letters{query}"), "");
    assert_eq!(status, 200, "{answer}");
    answer["letters"].as_array().unwrap().clone()
}

#[test]
fn a_poison_message_is_put_aside_listed_mended_and_replayed() {
    let mut server = Server::shards(2);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    alice.join("room");
    bob.join("room");
    meddle(&server, POISON);
    let sends = ["fine", "poison", "also fine"]
        .map(|body| alice.begin(json!({"type": "message:send", "room": "room", "body": body, "client_id": body})));
    let replies = sends.map(|id| alice.reply(id));
    assert_eq!((&replies[0]["seq"], &replies[2]["seq"]), (&json!(3), &json!(4)));
    assert_eq!((&replies[1]["code"], &replies[1]["temporary"]), (&json!(108), &json!(false)), "{:?}", replies[1]);
    server.kill();
    server.restart();
    let letters = listed(&server, "?kind=entry&user=alice");
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((&letter["kind"], &letter["user"], &letter["attempts"]), (&json!("entry"), &json!("alice"), &json!(2)));
    assert!(letter["reason"].as_str().unwrap().contains("no such body"));
    assert_eq!(letter["payload"]["fields"]["body"], "poison");
    let path = format!("/admin/dead-letters/{}/replay", letter["id"]);
    assert_eq!(server.admin("POST", &path, "").0, 501, "it is as it was");
    assert_eq!(listed(&server, "")[0]["attempts"], 3);
    meddle(&server, "DROP TRIGGER poison");
    let mut bob = server.client("bob");
    bob.ok(json!({"type": "room:subscribe", "room": "room"}));
    let (status, answer) = server.admin("POST", &path, "");
    assert_eq!((status, &answer["seq"]), (200, &json!(5)), "{answer}");
    let event = bob.event("message:created");
    assert_eq!((&event["author"], &event["body"], &event["seq"]), (&json!("alice"), &json!("poison"), &json!(5)));
    assert_eq!(server.admin("POST", &path, "").0, 404, "it is applied once");
    assert!(listed(&server, "").is_empty());
}

#[test]
fn letters_are_paged_filtered_replayed_and_purged_in_bulk() {
    let server = Server::shards(2);
    let mut alice = server.client("alice");
    alice.join("room");
    alice.send("room", "well");
    let last = alice.event("message:created")["seq"].clone();
    meddle(&server, POISON);
    for number in 0..7 {
        alice.refused(json!({"type": "message:send", "room": "room", "body": format!("poison {number}")}), 108);
    }
    // What cannot be replayed: a cursor.
    meddle(&server, "CREATE TRIGGER stuck BEFORE UPDATE OF read ON members BEGIN SELECT RAISE(ABORT, 'stuck'); END");
    alice.refused(json!({"type": "message:read", "room": "room", "seq": last}), 108);
    let (_, page) = server.admin("GET", "/admin/dead-letters?limit=3", "");
    assert_eq!((page["letters"].as_array().unwrap().len(), &page["next"]), (3, &json!(3)));
    assert_eq!(listed(&server, "?after=3&limit=500").len(), 5);
    assert!(listed(&server, "?kind=inbox").is_empty() && listed(&server, "?user=bob").is_empty());
    assert!(listed(&server, "?before_ms=1").is_empty());
    for bad in ["?kind=x", "?limit=0", "?limit=501", "?user=a%20b", "?nonsense=1", "?after=x"] {
        assert_eq!(server.admin("GET", &format!("/admin/dead-letters{bad}"), "").0, 400, "{bad}");
    }
    for (method, path) in [("POST", "/admin/dead-letters/replay"), ("DELETE", "/admin/dead-letters")] {
        assert_eq!(server.admin(method, path, "").0, 400, "all of them must be said");
    }
    let bare = http::request(server.control, "GET", "/admin/dead-letters", &[], "");
    assert_eq!(bare.status, 401);
    let (_, stats) = server.admin("GET", "/admin/stats", "");
    assert_eq!((&stats["store"]["dead_letters"], &stats["store"]["poisoned"]), (&json!(8), &json!(8)));
    meddle(&server, "DROP TRIGGER poison");
    assert_eq!(server.admin("DELETE", "/admin/dead-letters/1", "").1, json!({"purged": 1}));
    assert_eq!(server.admin("DELETE", "/admin/dead-letters/1", "").1, json!({"purged": 0}));
    let (_, done) = server.admin("POST", "/admin/dead-letters/replay?kind=entry", "");
    assert_eq!((&done["replayed"], &done["failed"][0]["code"], &done["next"]), (&json!(6), &json!(108), &Value::Null));
    let bodies: Vec<Value> = (0..6).map(|_| alice.event("message:created")["body"].clone()).collect();
    assert_eq!(bodies, (1..7).map(|number| json!(format!("poison {number}"))).collect::<Vec<_>>(), "oldest first");
    assert_eq!(server.admin("DELETE", "/admin/dead-letters?all=true", "").1, json!({"purged": 1}));
    assert_eq!((server.stat("dead_replayed"), server.stat("dead_purged")), (6, 2));
}
