//! Smart broadcasting over real sockets: filters, arrays, low events that wait for company, critical
//! entries, and the budget for clients that do not read.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::text_frame;
use crate::support::{Client, Connect, Heard, Options, PATIENCE};

with_1_2_4_shards!(a_filter_hides_without_a_gap, batching_clients_get_arrays);

/// The seqs that an entry tells of: more than one for a stand-in of neighbours.
fn seqs(entry: &Value) -> std::ops::RangeInclusive<u64> {
    let last = entry["seq"].as_u64().unwrap();
    entry["from"].as_u64().unwrap_or(last)..=last
}

fn a_filter_hides_without_a_gap(shards: u16) {
    let server = Options::shards(shards).start();
    let mut writer = server.client("writer");
    let mut picky = server.client("picky");
    writer.join("news");
    let filter = json!({"any": [{"field": "lang", "in": ["de", "en"]}, {"field": "level", "gt": 8}]});
    let joined = picky.ok(json!({"type": "room:join", "room": "news", "filter": filter}));
    let start = joined["seq"].as_u64().unwrap();
    let metas = [json!({"lang": "de"}), json!({"lang": "fr"}), json!({"level": 3}), json!({"lang": "fr", "level": 9})];
    for (number, meta) in metas.iter().cycle().take(40).enumerate() {
        let body = format!("m{number}");
        writer.ok(json!({"type": "message:send", "room": "news", "body": body, "meta": meta}));
    }
    let head = start + 40;
    let check = |entries: &[Value]| {
        let told: Vec<u64> = entries.iter().flat_map(seqs).collect();
        assert_eq!(told, (start + 1..=head).collect::<Vec<_>>(), "dense, with stand-ins");
        let seen: Vec<&str> = entries.iter().filter_map(|entry| entry["body"].as_str()).collect();
        let due: Vec<String> = (0..40).filter(|n| matches!(n % 4, 0 | 3)).map(|n| format!("m{n}")).collect();
        assert_eq!(seen, due);
    };
    check(&picky.entries_until("news", head));
    // The same by a resume, and history shows all.
    let since = json!({"epoch": joined["epoch"], "seq": start});
    let again = picky.ok(json!({"type": "room:subscribe", "room": "news", "since": since, "filter": filter}));
    assert_eq!(again["recovered"], true);
    check(again["events"].as_array().unwrap());
    let page = picky.ok(json!({"type": "message:history", "room": "news", "after": start, "limit": 100}));
    assert_eq!(page["events"].as_array().unwrap().len(), 40);
    assert!(page["events"].as_array().unwrap().iter().all(|event| event["type"] == "message:created"));
    let bad = json!({"type": "room:subscribe", "room": "news", "filter": {"field": "lang", "regex": "."}});
    picky.refused(bad, 107);
    assert_eq!(server.stat("filtered"), 20);
}

fn batching_clients_get_arrays(shards: u16) {
    let server = Options::shards(shards).start();
    let mut writer = server.client("writer");
    writer.join("busy");
    let mut client = Client::open(server.public, Connect::new("batcher").query("batch", "1"));
    let mut seq = client.join("busy")["seq"].as_u64().unwrap();
    let (mut arrays, mut singles) = (0, 0);
    // Pipelined, so that commits and turns hold more than one.
    for _ in 0..20 {
        let ids: Vec<i64> = (0..50)
            .map(|n| writer.begin(json!({"type": "message:send", "room": "busy", "body": format!("{n}")})))
            .collect();
        for id in ids {
            writer.reply(id);
        }
        let ping = client.begin(json!({"type": "ping"}));
        let (mut left, mut has_pong) = (50, false);
        while left > 0 || !has_pong {
            let events = match client.hear(PATIENCE) {
                Heard::Json(Value::Array(events)) => {
                    assert!((2..=64).contains(&events.len()), "{}", events.len());
                    arrays += 1;
                    events
                }
                Heard::Json(value) if value["id"] == ping => {
                    has_pong = true;
                    continue;
                }
                Heard::Json(value) => {
                    singles += 1;
                    vec![value]
                }
                other => panic!("{other:?} after {seq}"),
            };
            for event in events {
                assert!(event.get("id").is_none(), "replies travel alone: {event}");
                assert_eq!((&event["type"], &event["seq"]), (&json!("message:created"), &json!(seq + 1)));
                seq += 1;
                left -= 1;
            }
        }
    }
    assert!(arrays > 0, "{singles} single frames and no array");
    assert_eq!(server.stat("arrays"), arrays);
    assert!(server.stat("array_bytes_after") > 0);
}

/// What waits is sent `batch_delay_ms` after the first of it: news of the joins at a test's beginning would take along
/// what comes on a busy machine a second later.
fn let_old_news_go(batch_delay: Duration) {
    std::thread::sleep(batch_delay + Duration::from_millis(100));
}

#[test]
fn low_events_wait_for_company() {
    // A ping would take along what waits: one in 25 s, at a random time, is one in a dozen runs.
    let server = Options::shards(1).with("--batch-delay-ms", "2000").with("--heartbeat-ms", "600000").start();
    let mut writer = server.client("writer");
    let mut reader = server.client("reader");
    writer.join("room");
    reader.join("room");
    let_old_news_go(Duration::from_millis(2_000));
    let low = |writer: &mut Client, name: &str| {
        writer.ok(json!({"type": "event:send", "room": "room", "name": name, "data": 1, "priority": "low"}))
    };
    let began = Instant::now();
    low(&mut writer, "first");
    low(&mut writer, "second");
    assert_eq!(reader.event("event")["name"], "first");
    assert_eq!(reader.event("event")["name"], "second");
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(1_500), "came alone, after {waited:?}");
    // A message takes them along, and goes first.
    let began = Instant::now();
    low(&mut writer, "third");
    writer.send("room", "now");
    let heard: Vec<Value> = (0..2)
        .map(|_| reader.wait(|value| value.get("id").is_none() && value["type"] != "room:joined", "both"))
        .collect();
    assert!(began.elapsed() < Duration::from_millis(1_500), "it waited alone");
    let kinds: Vec<&str> = heard.iter().map(|value| value["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message:created", "event"]);
    assert_eq!((server.stat("events_in_low"), server.stat("events_in_normal")), (3, 1));
}

#[test]
fn news_of_joins_waits_for_company_and_keeps_its_place() {
    let server = Options::shards(1).with("--batch-delay-ms", "2000").with("--heartbeat-ms", "600000").start();
    let mut reader = server.client("reader");
    reader.join("room");
    let_old_news_go(Duration::from_millis(2_000));
    let began = Instant::now();
    let mut first = server.client("first");
    let mut second = server.client("second");
    first.join("room");
    second.join("room");
    assert!(began.elapsed() < Duration::from_millis(1_500), "who joins waits for nobody");
    let is_join = |value: &Value, user: &str| value["type"] == "room:joined" && value["user"] == user;
    reader.wait(|value| is_join(value, "first"), "the first");
    reader.wait(|value| is_join(value, "second"), "the second");
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(1_500), "came alone, after {waited:?}");
    // A message takes it along, behind it as in the room's order.
    let began = Instant::now();
    let mut third = server.client("third");
    third.join("room");
    third.send("room", "hello");
    let heard = [(); 2].map(|()| reader.wait(|value| value.get("id").is_none(), "both"));
    assert!(is_join(&heard[0], "third"), "{heard:?}");
    assert_eq!(heard[1]["type"], "message:created");
    assert!(began.elapsed() < Duration::from_millis(1_500), "it waited alone");
}

/// Sends about `bytes` into the room, acknowledged.
fn heat(writer: &mut Client, room: &str, bytes: usize) {
    let body = "x".repeat(8_000);
    for _ in 0..bytes / body.len() {
        writer.send(room, &body);
        while let Heard::Json(_) = writer.hear(Duration::from_millis(1)) {}
    }
}

#[test]
fn critical_entries_come_through_a_gap() {
    let server = Options::shards(1)
        .with("--outbox-low-bytes-max", "65536")
        .with("--outbox-normal-bytes-max", "262144")
        .with("--stall-ms", "60000")
        .start();
    let mut writer = server.client("writer");
    let mut slow = server.client("slow");
    writer.join("hot");
    let mut seen = slow.join("hot")["seq"].as_u64().unwrap();
    heat(&mut writer, "hot", 12 << 20);
    let send = |writer: &mut Client, body: &str| {
        let sent = json!({"type": "message:send", "room": "hot", "body": body, "priority": "critical"});
        writer.ok(sent)["seq"].as_u64().unwrap()
    };
    let alarms = [send(&mut writer, "alarm 1"), send(&mut writer, "alarm 2")];
    writer.send("hot", &"x".repeat(8_000));
    let last = send(&mut writer, "alarm 3");
    // Now it reads: every seq is shown or lies in a gap that was told before.
    let mut alarms_seen = Vec::new();
    while seen < last {
        let Heard::Json(value) = slow.hear(PATIENCE) else { panic!("the end came after {seen}") };
        if value["type"] == "gap" {
            assert_eq!(value["last"], seen, "{value}");
            seen = value["head"].as_u64().unwrap();
        } else if value["room"] == "hot" {
            assert_eq!(value["seq"], seen + 1, "a silent hole: {}", value["type"]);
            seen += 1;
            if value["priority"] == "critical" {
                alarms_seen.push(seen);
            }
        }
    }
    assert_eq!(alarms_seen, [alarms[0], alarms[1], last]);
    let stats = slow.ok(json!({"type": "stats"}));
    assert!(stats["dropped_normal"].as_u64().unwrap() > 0, "{stats}");
    assert_eq!((server.stat("gaps"), server.stat("slow_closed")), (2, 0));
}

#[test]
fn the_budget_sheds_the_largest_first() {
    let server = Options::shards(1).with("--outbox-total-bytes-max", "8388608").with("--stall-ms", "60000").start();
    let mut writer = server.client("writer");
    writer.join("hot");
    writer.join("calm");
    let mut calm = server.client("calm");
    calm.join("calm");
    let mut slow: Vec<Client> = (0..12).map(|number| server.client(&format!("slow-{number}"))).collect();
    let starts: Vec<u64> = slow.iter_mut().map(|client| client.join("hot")["seq"].as_u64().unwrap()).collect();
    // Each alone stays within its bounds (2 MiB of messages); together they would hold 24 MiB.
    heat(&mut writer, "hot", 12 << 20);
    assert!(server.stat("outbox_shed") > 0);
    assert!(server.stat("outbox_bytes_held") <= 8 << 20, "{}", server.stat("outbox_bytes_held"));
    assert_eq!(server.stat("slow_closed"), 0, "messages go before connections do");
    writer.send("calm", "unharmed");
    calm.event("message:created");
    // Who reads again is told exactly what is missing, and the budget is free again.
    let last = writer.send("hot", "end")["seq"].as_u64().unwrap();
    for (client, start) in slow.iter_mut().zip(starts) {
        let mut seen = start;
        while seen < last {
            let Heard::Json(value) = client.hear(PATIENCE) else { panic!("the end came after {seen}") };
            if value["type"] == "gap" {
                assert_eq!(value["last"], seen, "{value}");
                seen = value["head"].as_u64().unwrap();
            } else if value["room"] == "hot" {
                assert_eq!(value["seq"], seen + 1, "a silent hole");
                seen += 1;
            }
        }
    }
    server.wait_for_stat("outbox_bytes_held", |held| held == 0);
    let dropped: u64 =
        slow.iter_mut().map(|c| c.ok(json!({"type": "stats"}))["dropped_normal"].as_u64().unwrap()).sum();
    assert_eq!(dropped, server.stat("slow_dropped_normal"), "the ladder's counters add up");
}

/// What blocked sockets hold is counted once and counted down to nothing, also when a socket refuses bytes in a turn that
/// has more for it, and takes some before the turn is over.
#[test]
fn the_budget_forgets_what_is_gone() {
    let server = Options::shards(1).start();
    let mut writer = server.client("writer");
    let epoch = writer.join("hot")["epoch"].clone();
    heat(&mut writer, "hot", 900 << 10);
    let many: Vec<String> = (0..500).map(|number| format!("user-{number}")).collect();
    let resume = json!({"type": "room:subscribe", "id": 1, "room": "hot", "since": {"epoch": epoch, "seq": 2}});
    let low = json!({"type": "event:send", "room": "hot", "name": "n", "data": 1, "priority": "low"});
    let slowly = json!({"type": "presence:get", "users": many});
    let last = json!({"type": "ping", "id": 2});
    let commands = [&resume, &resume, &resume, &resume, &resume, &low, &slowly, &slowly, &slowly, &slowly, &last];
    let segment: Vec<u8> = commands.into_iter().flat_map(text_frame).collect();
    for round in 0..40 {
        // A small window: the socket refuses what comes first, and takes more while that is read.
        let socket = OwnedFd::from(TcpStream::connect(server.public).unwrap());
        antiphon::shard::socket::set_receive_buffer(&socket, 16 << 10).unwrap();
        let mut stream = TcpStream::from(socket);
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        stream.write_all(&Connect::new(&format!("reader-{round}")).request(server.public, key)).unwrap();
        let mut reader = Client::finish_upgrade(stream, key).unwrap();
        reader.raw(&segment);
        reader.reply(2);
        reader.close();
    }
    assert!(server.stat("sends_short") > 0, "nothing was ever blocked");
    server.wait_for_stat("connections", |connections| connections == 1);
    assert_eq!(server.stat("outbox_bytes_held"), 0);
}
