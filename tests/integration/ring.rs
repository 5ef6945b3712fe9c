//! The network ring under odd conditions: few buffers, slots used again and again, long pipelines,
//! shards that sleep.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::text_frame;
use crate::support::{Client, Connect, Heard, Options, Server};

#[test]
fn connections_that_come_and_go_disturb_nobody() {
    let server = Server::shards(4);
    let mut writer = server.client("writer");
    writer.join("room");
    let address = server.public;
    let is_over = Arc::new(AtomicBool::new(false));
    let cycles = Arc::new(AtomicU64::new(0));
    let crowd: Vec<_> = (0..6)
        .map(|number| {
            let (is_over, cycles) = (is_over.clone(), cycles.clone());
            std::thread::spawn(move || {
                let mut cycle = 0u64;
                while !is_over.load(Ordering::Relaxed) {
                    cycle += 1;
                    cycles.fetch_add(1, Ordering::Relaxed);
                    let user = format!("guest-{number}-{}", cycle % 5);
                    let mut guest = Client::open(address, Connect::new(&user));
                    guest.begin(json!({"type": "room:join", "room": "room"}));
                    match cycle % 4 {
                        // In the middle of everything, without a word.
                        0 => {}
                        1 => {
                            let _ = guest.stream.write_all(&[0x81]);
                        }
                        2 => {
                            guest.send("room", "hello");
                        }
                        _ => {
                            guest.send("room", "goodbye");
                            guest.close();
                        }
                    }
                }
            })
        })
        .collect();
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(3) {
        sent = writer.send("room", "steady")["seq"].as_u64().unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    crowd.into_iter().for_each(|guest| guest.join().unwrap());
    let seen: Vec<u64> = writer.entries_until("room", sent).iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "the steady one missed nothing");
    assert!(cycles.load(Ordering::Relaxed) > 100, "{}", cycles.load(Ordering::Relaxed));
    // Nothing of the guests is left.
    for gauge in ["connections", "sessions", "subscriptions"] {
        server.wait_for_stat(gauge, |count| count == 1);
    }
    server.wait_for_stat("outbox_bytes", |count| count == 0);
    let fds = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let idle = Server::shards(4);
    let idle_fds = std::fs::read_dir(format!("/proc/{}/fd", idle.pid())).unwrap().count();
    // One more for the steady one, and a few that SQLite opens when it is first used.
    assert!(fds <= idle_fds + 8, "{fds} descriptors, {idle_fds} when idle");
}

#[test]
fn few_and_small_buffers_are_enough() {
    let server = Options::shards(2)
        .with("--ring-buffers", "16")
        .with("--ring-buffer-bytes", "512")
        .with("--ring-entries", "16")
        .start();
    const CLIENTS: usize = 60;
    const EACH: usize = 20;
    let mut clients: Vec<Client> = (0..CLIENTS).map(|number| server.client(&format!("user-{number}"))).collect();
    for client in &mut clients {
        client.join("room");
    }
    let body = "x".repeat(700);
    let frames: Vec<u8> = (0..EACH)
        .flat_map(|number| text_frame(&json!({"type": "message:send", "id": number, "room": "room", "body": body})))
        .collect();
    // All write at once, far more than the buffers hold, before anybody reads.
    for client in &mut clients {
        client.raw(&frames);
    }
    let head = (CLIENTS + CLIENTS * EACH) as u64;
    for client in &mut clients {
        for number in 0..EACH {
            assert_eq!(client.reply(number as i64)["type"], "ok");
        }
        let entries = client.entries_until("room", head);
        assert!(entries.windows(2).all(|pair| pair[1]["seq"].as_u64() == pair[0]["seq"].as_u64().map(|seq| seq + 1)));
    }
    assert!(server.stat("ring_enobufs") > 0, "the buffers never ran out");
}

#[test]
fn a_long_pipeline_is_held_back_and_answered_whole() {
    let server = Server::shards(2);
    let mut client = server.client("alice");
    client.join("room");
    // Commands that wait for the store and commands that do not, in one stream of about 1 MB: more than a
    // parked connection may keep.
    const COUNT: i64 = 6_000;
    let pad = "p".repeat(100);
    let bytes: Vec<u8> = (0..COUNT)
        .flat_map(|number| {
            let mut command = match number % 4 {
                0 => json!({"type": "message:history", "room": "room", "limit": 1}),
                1 => json!({"type": "message:send", "room": "room", "body": "x"}),
                2 => json!({"type": "room:members", "room": "room"}),
                _ => json!({"type": "ping"}),
            };
            command["id"] = number.into();
            command["pad"] = pad.as_str().into();
            text_frame(&command)
        })
        .collect();
    assert!(bytes.len() > 800_000, "{}", bytes.len());
    let mut stream = client.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || stream.write_all(&bytes).unwrap());
    let mut answered = vec![false; COUNT as usize];
    let mut last_send = 0;
    while !answered.iter().all(|done| *done) {
        match client.hear(crate::support::PATIENCE) {
            Heard::Json(value) if value["id"].is_i64() => {
                let id = value["id"].as_i64().unwrap();
                assert_eq!(value["type"], "ok", "{value}");
                assert!(!std::mem::replace(&mut answered[id as usize], true), "{id} was answered twice");
                if id % 4 == 1 {
                    assert!(id > last_send, "acks keep their order");
                    last_send = id;
                }
            }
            Heard::Json(_) => {}
            other => panic!("{other:?} with {} answers missing", answered.iter().filter(|done| !**done).count()),
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_sleeping_shard_wakes_at_once() {
    let server = Server::shards(4);
    // Users of several shards, and nothing else going on: every hop crosses threads that sleep.
    let mut clients: Vec<Client> =
        ["alice", "bob", "carol", "dave", "erin", "frank"].iter().map(|user| server.client(user)).collect();
    for client in &mut clients {
        client.join("room");
    }
    let mut took: Vec<Duration> = Vec::new();
    for round in 0..120 {
        let (from, to) = (round % 6, (round * 5 + 1) % 6);
        let body = format!("round {round}");
        let began = Instant::now();
        clients[from].begin(json!({"type": "message:send", "room": "room", "body": body}));
        clients[to].wait(|value| value["body"] == *body, "the message");
        took.push(began.elapsed());
        let began = Instant::now();
        clients[from].begin(json!({"type": "event:send", "room": "room", "name": body, "data": 1}));
        clients[to].wait(|value| value["name"] == *body, "the event");
        took.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(3));
    }
    took.sort_unstable();
    // A lost wake-up shows as a wait for the next timer, up to a second.
    let late = took.iter().filter(|took| **took > Duration::from_millis(400)).count();
    assert!(late <= 2, "{late} of {} were late, the longest {:?}", took.len(), took.last());
    assert!(took[took.len() / 2] < Duration::from_millis(50), "median {:?}", took[took.len() / 2]);
}

#[test]
fn floods_of_pings_and_half_messages_stay_bounded() {
    let server = Options::shards(2).with("--stall-ms", "1500").start();
    let mut quiet = server.client("quiet");
    let before = server.resident_bytes();
    // Pings that nobody reads the answers of.
    let mut flood = Vec::new();
    for _ in 0..1_000 {
        antiphon::protocol::client::masked_frame(&mut flood, 0x89, [1, 2, 3, 4], &[7; 125]);
    }
    let mut pinger = server.client("pinger");
    pinger.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    for _ in 0..400 {
        // Fails once the server has cut it.
        if pinger.stream.write_all(&flood).is_err() {
            break;
        }
    }
    server.wait_for_stat("slow_closed", |count| count == 1);
    // First fragments of messages that never end.
    let mut halves: Vec<Client> = (0..200).map(|number| server.client(&format!("half-{number}"))).collect();
    for half in &mut halves {
        half.frame(0x01, &[b'x'; 12_000]);
        half.frame(0x00, &[b'x'; 4_000]);
    }
    quiet.ok(json!({"type": "ping"}));
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 48 << 20, "grew by {grown}");
    for half in &mut halves {
        half.frame(0x00, &[b'x'; 4_000]);
        assert_eq!(half.end().code, 1009);
    }
    quiet.ok(json!({"type": "ping"}));
    server.wait_for_stat("connections", |count| count == 1);
}

#[test]
fn a_peer_that_ignores_its_end_is_dropped() {
    let server = Server::shards(2);
    let first = Client::upgrade(server.public, &Connect::new("alice")).unwrap();
    server.wait_for_stat("sessions", |count| count == 1);
    // Replaced, but it neither reads nor closes.
    let mut second = server.client("alice");
    let began = Instant::now();
    server.wait_for_stat("connections", |count| count == 1);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    second.ok(json!({"type": "ping"}));
    drop(first);
}

#[test]
fn other_addresses_and_many_rooms() {
    let server = Options::shards(2).with("--listen", "[::1]:0").with("--rooms-max", "300").start();
    assert!(server.public.is_ipv6());
    let mut alice = Client::open(server.public, Connect::new("alice").query("batch", "1"));
    let names: Vec<String> = (0..300).map(|number| format!("{number:03} {}", "é".repeat(60))).collect();
    for name in &names {
        alice.begin(json!({"type": "room:create", "room": name, "kind": "private"}));
    }
    for id in 1..=300 {
        assert_eq!(alice.reply(id)["type"], "ok");
    }
    let again = Client::open(server.public, Connect::new("alice").device("two"));
    let mut listed: Vec<&str> =
        again.hello["rooms"].as_array().unwrap().iter().map(|room| room["room"].as_str().unwrap()).collect();
    listed.sort_unstable();
    assert_eq!(listed, names);
    alice.refused(json!({"type": "room:create", "room": "one more", "kind": "private"}), 106);
}
