//! The control API over real sockets, before a cluster made of closures.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::ports::{AdminResult, Answer, Ready};
use super::*;
use crate::engine::event::{AdminAct, AdminAnswer, Committed, PresenceCount, Revocation, ShardId};
use crate::engine::shard_of;
use crate::engine::stages::Stage;
use crate::engine::stats::{Stats, StoreStats};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{RoomKey, UserId};

const TOKEN: &str = "a-token-for-the-tests-only";

/// Answers by a script, and remembers what it was asked.
struct Fake {
    shards: u16,
    ready: Ready,
    /// Shards that never answer.
    hung: Vec<u16>,
    asked: Mutex<Vec<(ShardId, AdminAct)>>,
    /// Kept, so that a hung question stays open.
    open: Mutex<Vec<oneshot::Sender<AdminResult>>>,
    open_stats: Mutex<Vec<oneshot::Sender<Stats>>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            shards: 2,
            ready: Ready { accepting: true, store: true, draining: false },
            hung: Vec::new(),
            asked: Mutex::default(),
            open: Mutex::default(),
            open_stats: Mutex::default(),
        }
    }
}

impl Cluster for Fake {
    fn shards(&self) -> u16 {
        self.shards
    }

    fn admin(&self, shard: ShardId, act: AdminAct) -> Answer<AdminResult> {
        let (answer, later) = oneshot::channel();
        self.asked.lock().unwrap().push((shard, act.clone()));
        if self.hung.contains(&shard.0) {
            self.open.lock().unwrap().push(answer);
            return later;
        }
        let result = match act {
            AdminAct::Publish { room, .. } if room.as_str() == "none" => {
                Err(Refusal::new(ErrorCode::UnknownRoom, "no such room"))
            }
            AdminAct::Publish { room, .. } if room.as_str() == "full" => {
                Err(Refusal::new(ErrorCode::Busy, "too much").retry_after(1_500))
            }
            AdminAct::Publish { room, client_id, .. } => {
                let duplicate = client_id.as_deref() == Some("again");
                let committed = Committed { room: RoomKey(1), seq: 41, ts: 1_700_000_000_000, duplicate, value: 0 };
                Ok(AdminAnswer::Published { room, committed })
            }
            AdminAct::Disconnect { .. } => Ok(AdminAnswer::Disconnected(3)),
            AdminAct::Revoke(_) => Ok(AdminAnswer::Revoked),
            AdminAct::Presence => Ok(AdminAnswer::Presence(PresenceCount { online: 2, ..PresenceCount::default() })),
            AdminAct::Notify(item) if item.user.as_str() == "full" => Err(Refusal::new(ErrorCode::InboxFull, "full")),
            AdminAct::Notify(_) => Ok(AdminAnswer::Notified(9)),
            AdminAct::PresenceDevices => {
                Ok(AdminAnswer::PresenceDevices(std::collections::BTreeMap::from([("phone".into(), 2)])))
            }
            AdminAct::PresenceAnalytics { .. } => Ok(AdminAnswer::PresenceAnalytics(Box::default())),
            AdminAct::Dead(_) => {
                Ok(AdminAnswer::Dead(Committed { room: RoomKey(0), seq: 4, ts: 1, duplicate: false, value: 0 }))
            }
            AdminAct::DeadLetters { .. } => Ok(AdminAnswer::DeadLetters { letters: Vec::new(), more: false }),
        };
        let _ = answer.send(result);
        later
    }

    fn shard_stats(&self, shard: ShardId) -> Answer<Stats> {
        let (answer, later) = oneshot::channel();
        if self.hung.contains(&shard.0) {
            self.open_stats.lock().unwrap().push(answer);
            return later;
        }
        let mut stats = Stats { connections: 10 + u64::from(shard.0), acks: 5, ..Stats::default() };
        stats.errors.count(ErrorCode::Busy);
        for us in [90, 700, 3_000_000] {
            stats.stages.get_mut(Stage::Commit).count(us);
        }
        stats.stages.get_mut(Stage::Commit).recent.p99_us = 640;
        let _ = answer.send(stats);
        later
    }

    fn store_stats(&self) -> StoreStats {
        StoreStats { position: 1234, batches: 7, ..StoreStats::default() }
    }

    fn ready(&self) -> Ready {
        self.ready
    }
}

struct Running {
    cluster: Arc<Fake>,
    control: Control,
}

impl Running {
    fn start(fake: Fake) -> Self {
        let cluster = Arc::new(fake);
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let context = Context {
            cluster: Arc::clone(&cluster) as Arc<dyn Cluster>,
            token: Arc::new(Secret::new(TOKEN)),
            started: Instant::now(),
            answer_wait: Duration::from_millis(200),
        };
        // As `spawn` does, with a shorter wait.
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().unwrap();
        let thread = std::thread::spawn(move || runtime.block_on(serve(listener, api(context), stopped)).unwrap());
        Self { cluster, control: Control { address, stop: Some(stop), thread: Some(thread) } }
    }

    fn raw(&self, request: &str) -> Reply {
        let mut stream = TcpStream::connect(self.control.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The server may answer and close before it has read all of a body that is too large.
        let _ = stream.write_all(request.as_bytes());
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no reply: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let length = body.len();
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        ))
    }

    fn admin(&self, method: &str, path: &str, body: &str) -> Reply {
        self.send(method, path, &format!("Authorization: Bearer {TOKEN}\r\n"), body)
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    /// The status, and the error's code and name.
    fn failure(&self) -> (u16, u64, String) {
        let json = self.json();
        assert_eq!(json["type"], "error");
        assert!(json["message"].as_str().is_some_and(|m| !m.is_empty()) && json["temporary"].is_boolean());
        assert!(json["retry_after_ms"].is_u64());
        (self.status, json["code"].as_u64().unwrap(), json["error"].as_str().unwrap().to_owned())
    }
}

#[test]
fn health_is_open_and_honest() {
    let up = Running::start(Fake::default());
    assert_eq!(up.send("GET", "/health/live", "", "").json(), json!({"status": "live"}));
    assert_eq!(up.send("GET", "/health/ready", "", "").status, 200);
    let draining = Ready { accepting: true, store: false, draining: true };
    let down = Running::start(Fake { ready: draining, ..Fake::default() });
    let reply = down.send("GET", "/health/ready", "", "");
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["draining"], true);
    assert_eq!(down.send("GET", "/health/live", "", "").status, 200);
}

#[test]
fn nothing_below_admin_answers_without_the_token() {
    let up = Running::start(Fake::default());
    for path in ["/admin/stats", "/admin/tokens/revoke", "/admin/nothing", "/admin"] {
        for headers in [
            "",
            "Authorization: Bearer wrong\r\n",
            "Authorization: Bearer\r\n",
            "Authorization: Basic YTpi\r\n",
            "Authorization: Bearer a-token-for-the-tests-onlx\r\n",
            "Authorization: Bearer a-token-for-the-tests-only-and-more\r\n",
        ] {
            let reply = up.send("GET", path, headers, "");
            assert_eq!(reply.failure(), (401, 101, "unauthorized".to_owned()), "{path} {headers:?}");
            assert!(reply.head.contains("www-authenticate: bearer"), "{reply:?}");
        }
    }
    assert!(up.cluster.asked.lock().unwrap().is_empty());
    assert_eq!(up.admin("GET", "/admin/stats", "").status, 200);
    let lower = format!("authorization: bearer {TOKEN}\r\n");
    assert_eq!(up.send("GET", "/admin/stats", &lower, "").status, 200);
}

#[test]
fn wrong_paths_and_methods_are_errors_in_the_same_shape() {
    let up = Running::start(Fake::default());
    assert_eq!(up.send("GET", "/nothing", "", "").failure(), (404, 110, "not_found".to_owned()));
    assert_eq!(up.admin("GET", "/admin/nothing", "").failure().0, 404);
    assert_eq!(up.send("POST", "/metrics", "", "").failure(), (405, 107, "bad_request".to_owned()));
    let reply = up.admin("DELETE", "/admin/tokens/revoke", "");
    assert_eq!(reply.failure().0, 405);
    assert!(reply.head.contains("allow: post"), "{reply:?}");
}

#[test]
fn stats_name_a_shard_that_does_not_answer() {
    let up = Running::start(Fake { hung: vec![1], ..Fake::default() });
    let stats = up.admin("GET", "/admin/stats", "").json();
    assert_eq!(stats["shards"][0]["connections"], 10);
    assert_eq!(stats["shards"][0]["errors"], json!({"busy": 1}));
    assert_eq!(stats["shards"][0]["stages"]["commit"]["total_count"], 3);
    assert_eq!(stats["shards"][0]["stages"]["commit"]["p99_us"], 640);
    assert_eq!(stats["shards"][1], json!({"shard": 1, "answered": false}));
    assert_eq!(stats["store"]["position"], 1234);
    let metrics = up.send("GET", "/metrics", "", "").body;
    assert!(metrics.contains("antiphon_shard_up{shard=\"1\"} 0"), "{metrics}");
}

#[test]
fn metrics_hold_every_number() {
    let up = Running::start(Fake::default());
    let reply = up.send("GET", "/metrics", "", "");
    assert!(reply.head.contains("content-type: application/openmetrics-text"), "{}", reply.head);
    for line in [
        "# TYPE antiphon_connections gauge",
        "antiphon_connections{shard=\"1\"} 11",
        "antiphon_acks_total{shard=\"0\"} 5",
        "antiphon_errors_total{shard=\"0\",code=\"busy\"} 1",
        "antiphon_errors_total{shard=\"0\",code=\"conflict\"} 0",
        "antiphon_commands_total{shard=\"1\",type=\"message:send\"} 0",
        "antiphon_wake_latency_us{shard=\"0\",quantile=\"0.99\"} 0",
        "# TYPE antiphon_stage_us gauge",
        "antiphon_stage_us{stage=\"commit\",shard=\"0\",quantile=\"0.99\"} 640",
        "antiphon_stage_us{stage=\"fanout_queue\",shard=\"1\",quantile=\"1\"} 0",
        "# TYPE antiphon_stage_seconds histogram",
        "antiphon_stage_seconds_sum{stage=\"commit\",shard=\"1\"} 3.00079",
        "antiphon_stage_seconds_count{stage=\"commit\",shard=\"1\"} 3",
        "antiphon_stage_seconds_bucket{le=\"0.0001\",stage=\"commit\",shard=\"1\"} 1",
        "antiphon_stage_seconds_bucket{le=\"0.001\",stage=\"commit\",shard=\"1\"} 2",
        "antiphon_stage_seconds_bucket{le=\"+Inf\",stage=\"commit\",shard=\"1\"} 3",
        "antiphon_stage_seconds_count{stage=\"total\",shard=\"1\"} 0",
        "antiphon_store_position 1234",
        "antiphon_store_batches_total 7",
        "antiphon_ready 1",
        "# EOF",
    ] {
        assert!(reply.body.lines().any(|have| have == line), "{line} is missing in:\n{}", reply.body);
    }
    for reading in Stats::default().readings() {
        assert!(reply.body.contains(&format!("# HELP antiphon_{} ", reading.name)), "{}", reading.name);
    }
    for reading in StoreStats::default().readings() {
        assert!(reply.body.contains(&format!("# HELP antiphon_store_{} ", reading.name)), "{}", reading.name);
    }
    assert!(!reply.body.contains(".."), "a doubled full stop");
}

#[test]
fn a_message_is_published_on_its_authors_shard() {
    let up = Running::start(Fake::default());
    let body = json!({"body": "hi", "author": "carol", "meta": {"k": [1]}, "priority": "critical"}).to_string();
    let reply = up.admin("POST", "/admin/rooms/team%2Fops/messages", &body);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json(), json!({"room": "team/ops", "seq": 41, "ts": 1_700_000_000_000_u64, "duplicate": false}));
    let asked = up.cluster.asked.lock().unwrap();
    let [(shard, AdminAct::Publish { room, author, client_id, body, meta, .. })] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(*shard, shard_of(&UserId::parse("carol").unwrap(), 2));
    assert_eq!((room.as_str(), author.as_str(), &**body, client_id.as_deref()), ("team/ops", "carol", "hi", None));
    assert_eq!(meta.as_deref(), Some(r#"{"k":[1]}"#));
}

#[test]
fn a_replay_is_told_so() {
    let up = Running::start(Fake::default());
    let headers = format!("Authorization: Bearer {TOKEN}\r\nIdempotency-Key: again\r\n");
    let reply = up.send("POST", "/admin/rooms/general/messages", &headers, r#"{"body":"hi"}"#);
    assert_eq!(reply.json()["duplicate"], true);
    assert!(matches!(
        &up.cluster.asked.lock().unwrap()[..],
        [(_, AdminAct::Publish { author, client_id: Some(key), .. })] if author.as_str() == "system" && &**key == "again"
    ));
}

#[test]
fn refusals_of_a_shard_have_their_status() {
    let up = Running::start(Fake::default());
    let publish = |room: &str| up.admin("POST", &format!("/admin/rooms/{room}/messages"), r#"{"body":"hi"}"#);
    assert_eq!(publish("none").failure(), (404, 102, "unknown_room".to_owned()));
    let busy = publish("full");
    assert_eq!(busy.failure(), (503, 113, "busy".to_owned()));
    assert!(busy.head.contains("retry-after: 2"), "{busy:?}");
}

#[test]
fn bad_requests_are_refused_before_a_shard_sees_them() {
    let up = Running::start(Fake::default());
    let deep = format!(r#"{{"body":"x","meta":{{"a":{}1{}}}}}"#, "[".repeat(16), "]".repeat(16));
    let very_deep = format!(r#"{{"body":"x","meta":{{"a":{}}}}}"#, "[".repeat(5_000));
    let wide = json!({"body": "x", "meta": {"a": "y".repeat(1_100)}}).to_string();
    let long = json!({"body": "x".repeat(8 * 1024 + 1)}).to_string();
    let messages = [
        "",
        "{",
        "[]",
        "null",
        "\u{0}",
        r#"{"body":1}"#,
        r#"{"body":""}"#,
        r#"{"body":"x","other":1}"#,
        r#"{"body":"x","author":"a b"}"#,
        r#"{"body":"x","priority":"urgent"}"#,
        r#"{"body":"x","meta":[]}"#,
        r#"{"author":"a"}"#,
        r#"{"body":"\ud800"}"#,
        r#"{"body":"x","meta":{"a":1,"a":2}}"#,
        r#"{"body":"x","meta":{"a":[{"b":1,"b":1}]}}"#,
        r#"{"body":"x","meta":{"a":12345678901234567890123}}"#,
        &deep,
        &very_deep,
        &wide,
        &long,
    ];
    for body in messages {
        let reply = up.admin("POST", "/admin/rooms/general/messages", body);
        assert_eq!(reply.failure(), (400, 107, "bad_request".to_owned()), "{body:.60}");
    }
    for room in ["a%FFb", "a%0Ab", "a%2A", &"x".repeat(129), "%E2%80%AEx", "%20a"] {
        let reply = up.admin("POST", &format!("/admin/rooms/{room}/messages"), r#"{"body":"x"}"#);
        assert_eq!(reply.failure().0, 400, "{room}");
    }
    for path in ["/admin/users/%FF/disconnect", "/admin/users/%FF/notify", "/admin/dead-letters/x/replay"] {
        let reply = up.admin("POST", path, r#"{"name":"n","data":1}"#);
        assert_eq!(reply.failure(), (400, 107, "bad_request".to_owned()), "{path}");
    }
    for data in [r#"{"a":1,"a":2}"#, "[18446744073709551616]"] {
        let reply = up.admin("POST", "/admin/users/bob/notify", &format!(r#"{{"name":"n","data":{data}}}"#));
        assert_eq!(reply.failure(), (400, 107, "bad_request".to_owned()), "{data}");
    }
    // Seconds that were meant for milliseconds are long past.
    for past in [0, 1, 1_795_560_000] {
        let reply = up.admin("POST", "/admin/tokens/revoke", &format!(r#"{{"jti":"a","expires_ts":{past}}}"#));
        assert_eq!(reply.failure(), (400, 107, "bad_request".to_owned()), "{past}");
    }
    for body in ["{}", r#"{"jti":""}"#, r#"{"user":"a b"}"#, r#"{"jti":"a","user":"b"}"#, ""] {
        assert_eq!(up.admin("POST", "/admin/tokens/revoke", body).failure().0, 400, "{body}");
    }
    let long_reason = json!({"reason": "x".repeat(101)}).to_string();
    for body in [r#"{"reason":"a\nb"}"#, long_reason.as_str(), "x"] {
        assert_eq!(up.admin("POST", "/admin/users/bob/disconnect", body).failure().0, 400, "{body}");
    }
    let key = format!("Authorization: Bearer {TOKEN}\r\nIdempotency-Key: {}\r\n", "k".repeat(65));
    assert_eq!(up.send("POST", "/admin/rooms/a/messages", &key, r#"{"body":"x"}"#).failure().0, 400);
    assert!(up.cluster.asked.lock().unwrap().is_empty());
}

#[test]
fn large_bodies_are_turned_away() {
    let up = Running::start(Fake::default());
    let body = json!({"body": "x".repeat(BODY_BYTES_MAX)}).to_string();
    let reply = up.admin("POST", "/admin/rooms/general/messages", &body);
    assert_eq!(reply.failure(), (413, 106, "limit_exceeded".to_owned()));
}

#[test]
fn users_are_disconnected_and_tokens_revoked() {
    let up = Running::start(Fake::default());
    assert_eq!(up.admin("POST", "/admin/users/bob/disconnect", "").json(), json!({"disconnected": 3}));
    assert_eq!(up.admin("POST", "/admin/users/bob/disconnect", r#"{"reason":"bye"}"#).status, 200);
    assert_eq!(up.admin("POST", "/admin/tokens/revoke", r#"{"jti":"j1"}"#).json(), json!({"revoked": true}));
    assert_eq!(up.admin("POST", "/admin/tokens/revoke", r#"{"user":"bob"}"#).status, 200);
    let until = r#"{"jti":"j2","expires_ts":9999999999999}"#;
    assert_eq!(up.admin("POST", "/admin/tokens/revoke", until).status, 200);
    let asked = up.cluster.asked.lock().unwrap();
    let bob = UserId::parse("bob").unwrap();
    assert!(matches!(&asked[1], (shard, AdminAct::Disconnect { user, reason })
        if *shard == shard_of(&bob, 2) && *user == bob && &**reason == "bye"));
    assert!(matches!(&asked[2], (_, AdminAct::Revoke(Revocation::Jti(jti))) if &**jti == "j1"));
    assert!(matches!(&asked[3], (_, AdminAct::Revoke(Revocation::UserBefore(user, at)))
        if *user == bob && *at > 1_700_000_000));
}

#[test]
fn a_hung_shard_is_a_timeout_not_a_hang() {
    let up = Running::start(Fake { hung: vec![0, 1], ..Fake::default() });
    let reply = up.admin("POST", "/admin/users/bob/disconnect", "");
    assert_eq!(reply.failure(), (504, 100, "internal".to_owned()));
    assert_eq!(reply.json()["temporary"], true);
}

#[test]
fn the_page_is_whole_and_asks_nobody_else() {
    let up = Running::start(Fake::default());
    let mut all = String::new();
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let reply = up.send("GET", path, "", "");
        assert_eq!(reply.status, 200);
        assert!(reply.head.contains(&format!("content-type: {kind}")) && reply.head.contains("default-src 'none'"));
        all.push_str(&reply.body);
    }
    assert!(!all.contains("http://") && !all.contains("https://") && !all.contains("innerHTML"));
    // Every number that the page shows exists.
    let stats = up.admin("GET", "/admin/stats", "").json();
    for key in ["connections", "rooms_loaded", "frames_in", "sends", "slow_closed", "turn_time", "outbox_bytes"] {
        assert!(!stats["shards"][0][key].is_null() && all.contains(key), "{key}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let up = Running::start(Fake::default());
    let err = bind(up.control.address()).unwrap_err();
    assert_eq!(err.exit, Exit::Port);
    assert!(err.message.contains("taken") && err.message.contains(&up.control.address().to_string()), "{err}");
}

#[test]
fn stopping_does_not_wait_for_idle_connections() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let control = spawn(listener, Secret::new(TOKEN), Arc::new(Fake::default())).unwrap();
    let mut idle = TcpStream::connect(control.address()).unwrap();
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut some = [0u8; 16];
    assert!(idle.read(&mut some).unwrap() > 0);
    let started = Instant::now();
    drop(control);
    assert!(started.elapsed() < Duration::from_secs(5));
}
