//! Where the time of a message goes: in its `ok`, in the admin API's numbers, in the metrics.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{Server, http};

const PARTS: [&str; 4] = ["queue_us", "gather_us", "commit_us", "fanout_us"];

#[test]
fn the_ok_tells_the_time_to_who_asks() {
    for shards in [1, 2] {
        let server = Server::shards(shards);
        let (mut alice, mut bob) = (server.client("alice"), server.client("bob"));
        alice.join("general");
        bob.join("general");
        for round in 0..10 {
            let began = Instant::now();
            let ok = alice.ok(json!({"type": "message:send", "room": "general", "body": "hi", "client_id": format!("c{round}"), "timing": true}));
            let took_us = began.elapsed().as_micros() as u64;
            let timing = ok["timing"].as_object().unwrap_or_else(|| panic!("{ok}"));
            let part = |name: &str| timing[name].as_u64().unwrap();
            assert_eq!(PARTS.iter().map(|name| part(name)).sum::<u64>(), part("total_us"), "{ok}");
            assert!(part("total_us") <= took_us && part("commit_us") > 0, "{ok} within {took_us} µs");
            assert_eq!(timing.len(), 5);
            let event = bob.event("message:created");
            assert!(event.get("timing").is_none(), "nobody else's business: {event}");
        }
        assert!(alice.send("general", "no question").get("timing").is_none());
        let again = json!({"type": "message:send", "room": "general", "body": "hi", "client_id": "c0", "timing": true});
        let again = alice.ok(again);
        assert_eq!((&again["duplicate"], again["timing"]["total_us"].is_u64()), (&json!(true), true), "{again}");
        alice.refused(json!({"type": "message:send", "room": "general", "body": "hi", "timing": "yes"}), 107);
        let history = bob.ok(json!({"type": "message:history", "room": "general"}));
        assert!(!history.to_string().contains("timing"), "{history}");
    }
}

/// One sample of a metric.
fn sample(text: &str, name: &str, labels: &str) -> f64 {
    let start = format!("{name}{{{labels}}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("{start} is missing in:\n{text}")).parse().unwrap()
}

#[test]
fn stages_are_counted_add_up_and_are_not_taken_by_who_reads_them() {
    const SENDS: u64 = 40;
    let server = Server::shards(1);
    let mut alice = server.client("alice");
    alice.join("general");
    for _ in 0..SENDS {
        alice.send("general", "hi");
    }
    // What the server writes by itself, of presence, now and then, may fall between two readings: then once more.
    let commits = |stats: &Value| stats["shards"][0]["stages"]["commit"]["total_count"].as_u64().unwrap();
    let (stats, first, second) = loop {
        let (_, before) = server.admin("GET", "/admin/stats", "");
        let first = http::get(server.control, "/metrics").body;
        let second = http::get(server.control, "/metrics").body;
        let (_, after) = server.admin("GET", "/admin/stats", "");
        if commits(&before) == commits(&after) {
            break (before, first, second);
        }
    };
    let stages = &stats["shards"][0]["stages"];
    let number =
        |stage: &str, key: &str| stages[stage][key].as_u64().unwrap_or_else(|| panic!("{stage} {key} in {stages}"));
    for stage in ["receive", "commit_queue", "gather", "commit", "encode", "fanout_queue", "fanout", "flush", "total"] {
        assert!(number(stage, "total_count") > SENDS, "{stage}: the join, and each message: {stages}");
        assert!(
            number(stage, "p50_us") <= number(stage, "p99_us") && number(stage, "p99_us") <= number(stage, "max_us")
        );
    }
    let way = ["commit_queue", "gather", "commit", "encode", "fanout_queue", "fanout", "flush"];
    let sum: u64 = way.iter().map(|stage| number(stage, "sum_us")).sum();
    let total = number("total", "sum_us");
    assert!(sum <= total && sum >= total / 2, "one message at a time: {sum} of {total} in {stages}");

    for text in [&first, &second] {
        let count = sample(text, "antiphon_stage_seconds_count", r#"stage="commit",shard="0""#);
        assert_eq!(count, number("commit", "total_count") as f64);
        let all = sample(text, "antiphon_stage_seconds_bucket", r#"le="+Inf",stage="commit",shard="0""#);
        assert_eq!(all, count);
        let sum = sample(text, "antiphon_stage_seconds_sum", r#"stage="commit",shard="0""#);
        assert!((sum - number("commit", "sum_us") as f64 / 1e6).abs() < 1e-9);
        let p99 = sample(text, "antiphon_stage_us", r#"stage="commit",shard="0",quantile="0.99""#);
        assert!(p99 > 0.0);
    }
    let turn = |stats: &Value| stats["shards"][0]["turn_time"]["count"].as_u64().unwrap();
    let (_, later) = server.admin("GET", "/admin/stats", "");
    assert!(turn(&later) >= turn(&stats), "a reading takes nothing away");
}
