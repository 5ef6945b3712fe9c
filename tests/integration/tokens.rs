//! Who is let in, how the token may come, and what happens when it ends.

use std::time::{Duration, Instant};

use antiphon::gateway::token::{NewToken, mint};
use antiphon::protocol::ids::UserId;
use serde_json::json;

use crate::support::{Client, Connect, Options, Server, now_ms, token, token_for_rooms, token_with};

fn subprotocol(client: &Client) -> Option<&str> {
    client.head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "))
}

#[test]
fn a_token_comes_by_header_subprotocol_or_query() {
    let server = Server::shards(2);
    let jwt = token("alice");
    let offers = [
        (Connect::with_token(&jwt), Some("antiphon.v1")),
        (
            Connect::anonymous().header("Sec-WebSocket-Protocol", &format!("antiphon.v1, bearer.{jwt}")),
            Some("antiphon.v1"),
        ),
        (
            Connect::anonymous().header("Sec-WebSocket-Protocol", &format!("bearer.{jwt}, antiphon.v1")),
            Some("antiphon.v1"),
        ),
        (Connect::anonymous().header("Sec-WebSocket-Protocol", &format!("bearer.{jwt}")), None),
        (Connect::anonymous().query("access_token", &jwt), Some("antiphon.v1")),
        (Connect::with_token(&jwt).query("access_token", &jwt), Some("antiphon.v1")),
        (Connect::anonymous().query("access_token", &jwt).header("Sec-WebSocket-Protocol", "chat"), None),
    ];
    for (number, (offer, selected)) in offers.into_iter().enumerate() {
        let client = Client::open(server.public, offer.device(&format!("d{number}")));
        assert_eq!(client.hello["user"], "alice", "offer {number}");
        assert_eq!(subprotocol(&client), selected, "offer {number}");
    }
}

#[test]
fn a_refused_token_is_told_after_the_upgrade() {
    let server = Server::shards(2);
    let alice = UserId::parse("alice").unwrap();
    let (now, hour) = (now_ms(), 3_600_000);
    let mut forged = token("alice");
    let last = forged.pop().unwrap();
    forged.push(if last == 'A' { 'Q' } else { 'A' });
    let foreign = mint(b"another secret of at least 32 bytes!", &NewToken::new(&alice, now, now + hour)).unwrap();
    let late = mint(crate::support::SECRET.as_bytes(), &NewToken::new(&alice, now - 2 * hour, now - hour)).unwrap();
    let early = token_with("alice", |new| new.issued_at = now + hour);
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6OTk5OTk5OTk5OX0.";
    let audience = token_with("alice", |new| new.audience = Some("somebody-else"));
    let huge = format!("{}.{}.{}", "a".repeat(4000), "b".repeat(4000), "c".repeat(400));
    for jwt in [forged.as_str(), &foreign, &late, &early, unsigned, &audience, &huge, "abc", "a.b.c", ".."] {
        let mut client = Client::upgrade(server.public, &Connect::with_token(jwt)).unwrap();
        let end = client.end();
        assert_eq!(end.code, 4001, "{jwt}: {end:?}");
        assert!(!end.reason.is_empty() && !end.reason.contains("eyJ"), "{end:?}");
    }
    let mut none = Client::upgrade(server.public, &Connect::anonymous()).unwrap();
    assert_eq!(none.end().code, 4001);
    let two = Connect::new("alice").query("access_token", &token("bob"));
    assert_eq!(Client::upgrade(server.public, &two).unwrap().end().code, 4001);
    let version = Connect::new("alice").header("Sec-WebSocket-Protocol", "antiphon.v2");
    assert_eq!(Client::upgrade(server.public, &version).unwrap().end().code, 4006);
    assert_eq!(server.stat("tokens_refused"), 13);
    assert_eq!(server.stat("sessions_opened"), 0);
    // Nothing of a token is in the log.
    let log = server.log();
    assert!(!log.contains("eyJ") && !log.contains(crate::support::SECRET), "{log}");
}

#[test]
fn origins_are_exact() {
    let server = Options::shards(1).with("--origins", "https://good.example,http://localhost:3000").start();
    let upgrade = |origin: &str| Client::upgrade(server.public, &Connect::new("alice").header("Origin", origin));
    for good in ["https://good.example", "http://localhost:3000"] {
        let mut client = upgrade(good).unwrap_or_else(|answer| panic!("{good}: {answer:?}"));
        assert_eq!(client.event("hello")["user"], "alice");
    }
    for bad in [
        "null",
        "",
        "https://good.example.evil",
        "https://evil.good.example",
        "http://good.example",
        "https://good.example:444",
        "https://good.example/",
        "https://good.examplE.",
        "file://",
        "*",
        "http://localhost",
        "http://localhost:30000",
        "https://good.example,http://localhost:3000",
        "http://127.0.0.1:3000",
        "https://user@good.example",
    ] {
        let answer = upgrade(bad).err().flatten().unwrap_or_else(|| panic!("{bad:?} was let in"));
        assert_eq!(answer.status, 403, "{bad:?}: {answer:?}");
    }
    // Programs send none.
    server.client("bob");
    // Without a list, pages of this host's own port.
    let server = Server::shards(1);
    let port = server.public.port();
    let upgrade = |origin: String| Client::upgrade(server.public, &Connect::new("alice").header("Origin", &origin));
    assert!(upgrade(format!("http://127.0.0.1:{port}")).is_ok());
    assert!(upgrade("https://good.example".into()).is_err());
}

#[test]
fn a_session_ends_with_its_token() {
    let server = Server::shards(2);
    let brief = || token_with("alice", |new| new.expires_at = now_ms() + 2_000);
    let mut client = Client::open(server.public, Connect::with_token(&brief()));
    let mut renewed = Client::open(server.public, Connect::with_token(&brief()).device("renewed"));
    let expires = client.hello["token_expires_ts"].as_u64().unwrap();
    let long = token("alice");
    let reply = renewed.ok(json!({"type": "auth:refresh", "token": long}));
    assert!(reply["token_expires_ts"].as_u64().unwrap() > expires + 3_000_000, "{reply}");
    assert_eq!(client.end().code, 4201);
    let late_ms = now_ms().saturating_sub(expires);
    assert!(late_ms < 1_500, "ended {late_ms} ms late");
    assert_eq!(renewed.ok(json!({"type": "ping"}))["type"], "ok");
}

#[test]
fn a_refresh_is_judged_as_a_connect_is() {
    let server = Server::shards(2);
    let mut alice = server.client("alice");
    let mut refused = |jwt: &str, code: u16| alice.refused(json!({"type": "auth:refresh", "token": jwt}), code);
    refused(&token("bob"), 101);
    refused("a.b.c", 101);
    refused("", 107);
    refused(&token_with("alice", |new| new.expires_at = now_ms() - 60_000), 109);
    alice.refused(json!({"type": "auth:refresh"}), 107);
    // A narrower token takes subscriptions away.
    alice.join("news");
    alice.join("work");
    let jwt = token_for_rooms("alice", &[("work", true), ("read-*", false)]);
    alice.ok(json!({"type": "auth:refresh", "token": jwt}));
    let mut bob = server.client("bob");
    bob.join("news");
    bob.join("work");
    bob.join("read-1");
    bob.send("news", "unheard");
    bob.send("work", "heard");
    assert_eq!(alice.event("message:created")["body"], "heard");
    alice.hears_no("message:created", Duration::from_millis(100));
    alice.refused(json!({"type": "message:send", "room": "news", "body": "x"}), 103);
    alice.refused(json!({"type": "message:history", "room": "news"}), 103);
    alice.refused(json!({"type": "message:send", "room": "read-1", "body": "x"}), 103);
    alice.ok(json!({"type": "message:history", "room": "read-1"}));
    alice.refused(json!({"type": "room:create", "room": "other", "kind": "public"}), 103);
    alice.send("work", "y");
    // Pages of what the token covers: none of them is empty, or names another room in `next`.
    let list = |alice: &mut Client, after: &str| alice.ok(json!({"type": "room:list", "limit": 1, "after": after}));
    let page = list(&mut alice, "a");
    assert_eq!((&page["rooms"][0]["room"], &page["next"]), (&json!("read-1"), &json!("read-1")));
    let page = list(&mut alice, "read-1");
    assert_eq!((&page["rooms"][0]["room"], page.get("next")), (&json!("work"), None));
}

#[test]
fn a_revoked_token_ends_its_sessions_and_stays_revoked() {
    let mut server = Server::shards(4);
    let jwt = token_with("alice", |new| new.jti = Some("token-1"));
    let other = token_with("alice", |new| new.jti = Some("token-2"));
    let mut revoked = Client::open(server.public, Connect::with_token(&jwt));
    let mut kept = Client::open(server.public, Connect::with_token(&other).device("kept"));
    let mut carols: Vec<Client> = (0..3).map(|n| server.device("carol", &format!("d{n}"))).collect();
    let began = Instant::now();
    let (status, answer) = server.admin("POST", "/admin/tokens/revoke", r#"{"jti": "token-1"}"#);
    assert_eq!((status, answer), (200, json!({"revoked": true})));
    assert_eq!(revoked.end().code, 4001);
    assert_eq!(server.admin("POST", "/admin/tokens/revoke", r#"{"user": "carol"}"#).0, 200);
    for carol in &mut carols {
        assert_eq!(carol.end().code, 4001);
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    kept.ok(json!({"type": "ping"}));
    kept.refused(json!({"type": "auth:refresh", "token": jwt}), 101);
    let refused =
        |server: &Server, jwt: &str| Client::upgrade(server.public, &Connect::with_token(jwt)).unwrap().end().code;
    let old = token_with("carol", |new| new.issued_at = now_ms() - 10_000);
    assert_eq!((refused(&server, &jwt), refused(&server, &old)), (4001, 4001));
    server.stop_and_restart();
    assert_eq!((refused(&server, &jwt), refused(&server, &old)), (4001, 4001));
    server.kill();
    server.restart();
    assert_eq!((refused(&server, &jwt), refused(&server, &old)), (4001, 4001));
    assert_eq!(Client::open(server.public, Connect::with_token(&other)).hello["user"], "alice");
    // Tokens from after the revocation count again.
    let new = token_with("carol", |new| new.issued_at = now_ms() + 2_000);
    assert_eq!(Client::open(server.public, Connect::with_token(&new)).hello["user"], "carol");
}
