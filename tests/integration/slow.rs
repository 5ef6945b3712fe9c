//! A client that stops reading while its room is hot: it hurts only itself.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Connect, Heard, Options, Server};

fn small_outboxes() -> Options {
    Options::shards(2)
        .with("--outbox-low-bytes-max", "65536")
        .with("--outbox-normal-bytes-max", "262144")
        .with("--resume-bytes-max", "262144")
        .with("--outbox-bytes-max", "524288")
}

/// Sends about `bytes` into the room, ack by ack. Returns the head and the slowest ack.
fn heat(writer: &mut Client, bytes: usize) -> (u64, Duration) {
    let body = "x".repeat(8_000);
    let (mut head, mut slowest) = (0, Duration::ZERO);
    for _ in 0..bytes / body.len() / 4 {
        let began = Instant::now();
        let ids: Vec<i64> =
            (0..4).map(|_| writer.begin(json!({"type": "message:send", "room": "hot", "body": body}))).collect();
        for id in ids {
            head = writer.reply(id)["seq"].as_u64().unwrap();
        }
        slowest = slowest.max(began.elapsed());
        // The writer is a member and reads its own messages.
        while let Heard::Json(_) = writer.hear(Duration::from_millis(1)) {}
    }
    (head, slowest)
}

#[test]
fn who_does_not_read_is_cut_and_nobody_else_notices() {
    let server = small_outboxes().with("--stall-ms", "1500").start();
    let mut writer = server.client("writer");
    writer.join("hot");
    let mut stalled: Vec<Client> = (0..6).map(|number| server.client(&format!("stalled-{number}"))).collect();
    stalled.iter_mut().for_each(|client| {
        client.join("hot");
    });
    let address = server.public;
    let reader = std::thread::spawn(move || {
        let mut client = Client::open(address, Connect::new("reader"));
        let joined = client.join("hot");
        let mut seq = joined["seq"].as_u64().unwrap();
        let mut stop = false;
        while !stop {
            let event = client.event("message:created");
            assert_eq!(event["seq"], seq + 1, "a reader that reads misses nothing");
            seq += 1;
            stop = event["body"] == "stop";
        }
    });
    server.wait_for_stat("subscriptions", |count| count == 8);
    let before = server.resident_bytes();
    // More than kernel buffers and outboxes hold.
    let (_, slowest) = heat(&mut writer, 16 << 20);
    let grown = server.resident_bytes().saturating_sub(before);
    writer.send("hot", "stop");
    reader.join().unwrap();
    assert!(slowest < Duration::from_secs(2), "an ack took {slowest:?}");
    // 8 outboxes of at most 512 KiB, what the recent cache keeps, and the batches under way.
    assert!(grown < 64 << 20, "grew by {grown}");
    server.wait_for_stat("slow_closed", |count| count == 6);
    for client in &mut stalled {
        // What was in the kernel's buffers comes first; nothing in it is torn.
        let mut seq = 0;
        let end = loop {
            match client.hear(Duration::from_secs(10)) {
                Heard::Json(value) if value["type"] == "message:created" => {
                    let next = value["seq"].as_u64().unwrap();
                    assert!(seq == 0 || next == seq + 1, "{seq} then {next}");
                    seq = next;
                }
                Heard::Json(_) => {}
                Heard::End(end) => break end,
                Heard::Nothing => panic!("neither messages nor an end"),
            }
        };
        assert!(end.code == 4102 || end.code == 1006, "{end:?}");
    }
    server.wait_for_stat("connections", |count| count == 1);
    assert!(server.stat("outbox_bytes") < 1 << 20);
}

#[test]
fn who_reads_again_in_time_is_told_of_the_gap() {
    let server = small_outboxes().with("--stall-ms", "60000").start();
    let mut writer = server.client("writer");
    let mut slow = server.client("slow");
    writer.join("hot");
    let mut seen = slow.join("hot")["seq"].as_u64().unwrap();
    // Of another shard's user too, so that both ways of fan-out are met.
    let mut other = server.client("other-slow");
    let mut other_seen = other.join("hot")["seq"].as_u64().unwrap();
    heat(&mut writer, 16 << 20);
    for (client, seen) in [(&mut slow, &mut seen), (&mut other, &mut other_seen)] {
        let gap = read_to_gap(client, seen);
        assert_eq!((&gap["room"], &gap["last"]), (&json!("hot"), &json!(*seen)), "{gap}");
        let head = gap["head"].as_u64().unwrap();
        assert!(head > *seen, "{gap}");
        // The difference is in the history, and after the gap everything is live again.
        while *seen < head {
            let page = client.ok(json!({"type": "message:history", "room": "hot", "after": *seen, "limit": 50}));
            for event in page["events"].as_array().unwrap() {
                assert_eq!(event["seq"], *seen + 1);
                *seen += 1;
            }
        }
    }
    let last = writer.send("hot", "after all")["seq"].as_u64().unwrap();
    for client in [&mut slow, &mut other] {
        let live = client.entries_until("hot", last);
        assert_eq!(live.last().map(|entry| &entry["body"]), Some(&json!("after all")));
        // What came between the gap and its closing by history is without a hole too.
        assert!(live.windows(2).all(|pair| pair[1]["seq"].as_u64() == pair[0]["seq"].as_u64().map(|seq| seq + 1)));
    }
    assert!(server.stat("gaps") >= 2);
    assert!(server.stat("slow_dropped_normal") > 0);
    assert_eq!(server.stat("slow_closed"), 0);
}

/// Reads messages without a hole until the gap.
fn read_to_gap(client: &mut Client, seen: &mut u64) -> Value {
    loop {
        let value = match client.hear(crate::support::PATIENCE) {
            Heard::Json(value) => value,
            other => panic!("no gap, but {other:?} after {seen}"),
        };
        if value["type"] == "gap" {
            return value;
        }
        if value["room"] == "hot" && value["seq"].is_u64() {
            assert_eq!(value["seq"], *seen + 1, "a silent hole");
            *seen += 1;
        }
    }
}

#[test]
fn many_questions_and_no_reading_is_bounded_too() {
    let server = small_outboxes().with("--stall-ms", "1500").start();
    let mut writer = server.client("writer");
    writer.join("hot");
    heat(&mut writer, 2 << 20);
    let mut greedy = server.client("greedy");
    let before = server.resident_bytes();
    let ask =
        crate::support::client::text_frame(&json!({"type": "message:history", "id": 1, "room": "hot", "limit": 100}));
    // Asks until the server no longer takes it: pages of 262 KB pile up on its side, up to the bound.
    greedy.stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    for _ in 0..20_000 {
        if std::io::Write::write_all(&mut greedy.stream, &ask).is_err() {
            break;
        }
    }
    server.wait_for_stat("slow_closed", |count| count == 1);
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 48 << 20, "grew by {grown}");
    writer.send("hot", "unharmed");
    let end = loop {
        match greedy.hear(Duration::from_secs(15)) {
            Heard::Json(_) => {}
            Heard::End(end) => break end,
            Heard::Nothing => panic!("not cut"),
        }
    };
    assert!(end.code == 4102 || end.code == 1006, "{end:?}");
    writer.send("hot", "still");
}

#[test]
fn defaults_hold_a_burst() {
    // A reader that pauses for a moment within the default bounds misses nothing.
    let server = Server::shards(2);
    let mut writer = server.client("writer");
    let mut reader = server.client("reader");
    writer.join("hot");
    let joined = reader.join("hot")["seq"].as_u64().unwrap();
    let (head, _) = heat(&mut writer, 2 << 20);
    let seen: Vec<u64> = reader.entries_until("hot", head).iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert_eq!(seen, (joined + 1..=head).collect::<Vec<_>>());
}

#[test]
fn a_burst_of_a_few_harms_no_reader_that_reads() {
    // Committed in one or two batches and applied in one turn: more than the outbox may hold, and less than that
    // together with what the kernel takes at once.
    for priority in ["normal", "critical"] {
        let server = small_outboxes().start();
        let mut writers: Vec<Client> = (0..4).map(|number| server.client(&format!("writer-{number}"))).collect();
        for writer in &mut writers {
            writer.join("hot");
            writer.ok(json!({"type": "room:unsubscribe", "room": "hot"}));
        }
        let mut reader = server.client("reader");
        let joined = reader.join("hot")["seq"].as_u64().unwrap();
        let message = json!({"type": "message:send", "room": "hot", "body": "x".repeat(8_000), "priority": priority});
        let burst = crate::support::client::text_frame(&message).repeat(13);
        for writer in &mut writers {
            writer.raw(&burst);
        }
        let head = joined + 4 * 13;
        let seen: Vec<u64> = reader.entries_until("hot", head).iter().map(|e| e["seq"].as_u64().unwrap()).collect();
        assert_eq!(seen, (joined + 1..=head).collect::<Vec<_>>(), "{priority}");
        assert_eq!((server.stat("gaps"), server.stat("slow_closed")), (0, 0));
    }
}

#[test]
fn a_close_comes_after_what_waited() {
    // The reader is far behind within its bounds when the server ends it: it gets what was under way, then the
    // close frame, and nothing after that (the client checks).
    let server = Server::shards(2);
    let mut writer = server.client("writer");
    let mut reader = server.client("reader");
    writer.join("hot");
    let joined = reader.join("hot")["seq"].as_u64().unwrap();
    // More than the kernel's buffers take, so that the outbox holds some.
    let mut head = 0;
    for _ in 0..200 {
        if server.stat("outbox_bytes") > 200_000 {
            break;
        }
        head = heat(&mut writer, 256 << 10).0;
    }
    assert!(server.stat("outbox_bytes") > 100_000, "nothing waits");
    let (_, answer) = server.admin("POST", "/admin/users/reader/disconnect", "");
    assert_eq!(answer["disconnected"], 1);
    let mut seen = joined;
    let end = loop {
        match reader.hear(crate::support::PATIENCE) {
            Heard::Json(value) => {
                assert_eq!(value["seq"], seen + 1);
                seen += 1;
            }
            Heard::End(end) => break end,
            Heard::Nothing => panic!("no end"),
        }
    };
    assert_eq!((end.code, seen), (4003, head));
}

#[test]
fn a_client_that_says_goodbye_hears_nothing_more() {
    let server = Server::shards(2);
    let mut writer = server.client("writer");
    let mut reader = server.client("reader");
    writer.join("hot");
    reader.join("hot");
    for _ in 0..200 {
        if server.stat("outbox_bytes") > 200_000 {
            break;
        }
        heat(&mut writer, 256 << 10);
    }
    // The echo comes behind whole frames; what had not begun is not sent any more. Pongs that cross it must
    // not make the kernel throw away what is still on its way.
    reader.frame(0x88, &1000u16.to_be_bytes());
    let end = loop {
        match reader.hear(crate::support::PATIENCE) {
            Heard::Json(_) => {
                let mut pong = Vec::new();
                antiphon::protocol::client::frame_pong(&mut pong, [1, 2, 3, 4], b"late");
                let _ = std::io::Write::write_all(&mut reader.stream, &pong);
                std::thread::sleep(Duration::from_micros(500));
            }
            Heard::End(end) => break end,
            Heard::Nothing => panic!("no end"),
        }
    };
    assert_eq!(end.code, 1000, "{end:?}");
}

#[test]
fn who_asks_for_much_and_reads_late_is_made_to_wait_and_gets_it_all() {
    let server = small_outboxes().start();
    let mut writer = server.client("writer");
    writer.join("hot");
    for _ in 0..25 {
        writer.send("hot", &"x".repeat(8_000));
    }
    let mut reader = server.client("reader");
    // Each answer is about 200 KB: all of them are many times what an outbox and the kernel hold.
    let ids: Vec<i64> =
        (0..100).map(|_| reader.begin(json!({"type": "message:history", "room": "hot", "limit": 100}))).collect();
    let last = reader.begin(json!({"type": "ping"}));
    std::thread::sleep(Duration::from_millis(700));
    for id in ids {
        let answer = reader.reply(id);
        assert_eq!(answer["events"].as_array().map(Vec::len), Some(26), "{}", answer["type"]);
    }
    assert_eq!(reader.reply(last)["type"], "ok");
    assert_eq!(server.stat("slow_closed"), 0);
}

/// What a reply says of a room comes in its place among the room's events, however much of those waits.
#[test]
fn after_the_ok_of_an_unsubscribe_nothing_of_the_room_follows() {
    let server = Options::shards(1).start();
    let mut writer = server.client("writer");
    writer.join("hot");
    let mut slow = server.client("slow");
    slow.join("hot");
    // More than the kernel takes, less than would be dropped.
    let (head, _) = heat(&mut writer, 7 << 20);
    server.wait_for_stat("outboxes_blocked", |blocked| blocked == 1);
    let left = slow.begin(json!({"type": "room:unsubscribe", "room": "hot"}));
    let back = slow.begin(json!({"type": "room:subscribe", "room": "hot"}));
    let mut seen = 0;
    let (mut is_out, mut is_back) = (false, false);
    while !is_back {
        let Heard::Json(value) = slow.hear(Duration::from_secs(10)) else { panic!("the replies do not come") };
        if value["room"] == "hot" && value["type"] != "ok" {
            assert!(!is_out, "{} comes after the ok", value["type"]);
            seen = value["seq"].as_u64().or(value["head"].as_u64()).unwrap();
        }
        is_out |= value["id"] == left;
        is_back |= value["id"] == back;
    }
    assert_eq!(seen, head, "what was listened for came before");
    let next = writer.send("hot", "next")["seq"].clone();
    assert_eq!(slow.event("message:created")["seq"], next);
}
