//! One connection, step by step, without any socket: these bytes give exactly this.

use super::*;
use crate::measure::Window;
use crate::roll::first_id;
use crate::world::tests::world;
use antiphon::protocol::encode::frame_text;
use std::net::{Ipv4Addr, SocketAddrV4};

struct Bench {
    world: World,
    client: Client,
    ledgers: Vec<Ledger>,
    roll: Roll,
    tally: Tally,
    meters: Meters,
    rng: Rng,
    filler: Filler,
    schedule: Schedule,
    now_ns: u64,
}

impl Bench {
    fn new() -> Self {
        let world = world(4, 2, 1, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9));
        Self {
            client: Client::new(&world, 2, 0),
            world,
            ledgers: vec![Ledger::new(16)],
            roll: Roll::new(0),
            tally: Tally::default(),
            meters: Meters::new(1),
            rng: Rng::new(1),
            filler: Filler::new(32),
            schedule: Schedule {
                from_ns: 0,
                to_ns: 1_000_000_000,
                windows: vec![Window { name: "whole", from_ns: 0, to_ns: 1_000_000_000 }],
            },
            now_ns: 10_000_000,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Vec<News> {
        let mut news = Vec::new();
        let mut shared = Shared {
            world: &self.world,
            schedule: &self.schedule,
            ledgers: &mut self.ledgers,
            roll: &mut self.roll,
            tally: &mut self.tally,
            meters: &mut self.meters,
            rng: &mut self.rng,
            filler: &self.filler,
            news: &mut news,
            now_ns: self.now_ns,
        };
        self.client.on_bytes(bytes, &mut shared);
        news
    }

    fn text(&mut self, json: &str) -> Vec<News> {
        let mut frame = Vec::new();
        frame_text(&mut frame, |out| out.extend_from_slice(json.as_bytes()));
        self.bytes(&frame)
    }

    /// Takes what the client wrote, as unmasked JSON.
    fn said(&mut self) -> String {
        let out = std::mem::take(&mut self.client.out);
        let at = if out[1] & 0x7f == 126 { 4 } else { 2 };
        let mask = &out[at..at + 4];
        let plain = out[at + 4..].iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
        String::from_utf8(plain).unwrap()
    }

    fn upgraded() -> Self {
        let mut bench = Self::new();
        bench.client.start(&bench.world);
        bench.client.out.clear();
        assert_eq!(bench.bytes(response("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=").as_bytes()), []);
        assert_eq!(bench.text(r#"{"type":"hello","epoch":"e1","rooms":[]}"#), [News::Greeted]);
        bench
    }

    fn live() -> Self {
        let mut bench = Self::upgraded();
        bench.client.enter_room(&mut bench.rng, false);
        bench.client.out.clear();
        assert_eq!(bench.text(r#"{"type":"ok","id":1,"epoch":"e1","seq":7,"recovered":true}"#), [News::Live]);
        bench
    }

    /// The thread's message of that number.
    fn sends(&mut self, number: u64, sent_ns: u64) -> Message {
        let message = Message { client: first_id(0) + number, sent_ns };
        self.roll.add(message, 0, 2);
        message
    }

    fn room(&self) -> String {
        self.world.room_name(1)
    }

    fn event(&self, seq: u64, message: Message) -> String {
        let body = format!("{:016x}{}", message.sent_ns, String::from_utf8_lossy(self.filler.of(message.client)));
        let (room, client, author) = (self.room(), message.client, self.world.user_name(2));
        format!(
            r#"{{"type":"message:created","room":"{room}","seq":{seq},"ts":1,"author":"{author}","client_id":"{client:016x}","body":"{body}","trace":"t"}}"#
        )
    }
}

fn response(accept: &str) -> String {
    format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nSec-Websocket-Accept: {accept}\r\n\r\n")
}

#[test]
fn the_request_carries_what_the_protocol_asks() {
    let mut bench = Bench::new();
    bench.client.start(&bench.world);
    let request = String::from_utf8(bench.client.out.clone()).unwrap();
    assert!(request.starts_with("GET /ws?device=load HTTP/1.1\r\nHost: 127.0.0.1:9\r\n"));
    assert!(request.ends_with("\r\n\r\n"));
    for line in [
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: antiphon.v1",
        "Authorization: Bearer ey",
    ] {
        assert!(request.contains(&format!("\r\n{line}")), "{line}");
    }
}

#[test]
fn handshakes_go_through_in_any_pieces_or_fail() {
    let mut bench = Bench::new();
    bench.client.start(&bench.world);
    for byte in response("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=").as_bytes() {
        assert_eq!(bench.bytes(&[*byte]), []);
    }
    assert_eq!(bench.client.stage, Stage::Hello);
    let long = "x".repeat(9_000);
    for bad in [response("wrong").as_str(), "HTTP/1.1 403 Forbidden\r\n\r\n", &long] {
        let mut bench = Bench::new();
        bench.client.start(&bench.world);
        assert_eq!(bench.bytes(bad.as_bytes()), [News::Closed(0)]);
        assert_eq!(bench.tally.malformed, 1);
    }
}

#[test]
fn a_room_is_made_entered_and_returned_to() {
    let mut bench = Bench::upgraded();
    bench.client.create_room(&bench.world, &mut bench.rng);
    let (room, other) = (bench.room(), bench.world.user_name(3));
    assert_eq!(
        bench.said(),
        format!(r#"{{"type":"room:create","kind":"public","room":"{room}","members":["{other}"],"id":1}}"#)
    );
    assert_eq!(bench.text(r#"{"type":"ok","id":1,"seq":2}"#), [News::Created]);
    bench.client.enter_room(&mut bench.rng, false);
    assert_eq!(bench.said(), format!(r#"{{"type":"room:subscribe","room":"{room}","id":2}}"#));
    assert_eq!(bench.text(r#"{"type":"ok","id":2,"epoch":"e1","seq":2}"#), [News::Live]);
    assert_eq!((bench.client.stage, bench.client.next_seq()), (Stage::Live, 3));
    assert_eq!(bench.client.end().count(), 0);
    bench.client.stage = Stage::Ready;
    bench.client.enter_room(&mut bench.rng, false);
    let want = format!(r#"{{"type":"room:subscribe","room":"{room}","since":{{"epoch":"e1","seq":2}},"id":3}}"#);
    assert_eq!(bench.said(), want);
}

#[test]
fn events_of_a_resume_count_inside_the_reply_and_behind_it() {
    for inside in [true, false] {
        let mut bench = Bench::live();
        bench.client.end().for_each(drop);
        bench.client.stage = Stage::Ready;
        bench.client.enter_room(&mut bench.rng, false);
        let events = [8, 9].map(|seq| {
            let message = bench.sends(seq - 8, 5);
            bench.event(seq, message)
        });
        let carried = if inside { format!("[{}]", events.join(",")) } else { "2".to_owned() };
        let ok = format!(r#"{{"type":"ok","id":2,"epoch":"e1","seq":9,"recovered":true,"events":{carried}}}"#);
        assert_eq!(bench.text(&ok), [News::Live]);
        if !inside {
            events.iter().for_each(|event| assert_eq!(bench.text(event), []));
        }
        assert_eq!((bench.client.next_seq(), bench.tally.delivered, bench.tally.resumed_entries), (10, 2, 2));
        assert_eq!(bench.meters.delivery[0].len(), 0, "what a resume brings is not a latency");
        assert_eq!(bench.tally.failures(), [""; 0]);
    }
}

#[test]
fn a_message_is_sent_acked_delivered_and_timed() {
    let mut bench = Bench::live();
    let message = bench.sends(0, 3_000_000);
    bench.client.send(message, &bench.filler, &mut bench.rng);
    let said: serde_json::Value = serde_json::from_str(&bench.said()).unwrap();
    assert_eq!((&said["type"], &said["client_id"]), (&"message:send".into(), &"0000010000000000".into()));
    assert_eq!(said["body"].as_str().unwrap().len(), 32);
    assert_eq!(bench.client.unanswered(), 1);
    let event = bench.event(8, message);
    assert_eq!(bench.text(&event), []);
    assert_eq!(bench.text(r#"{"type":"ok","id":2,"room":"r","seq":8,"ts":1,"duplicate":false}"#), [News::Acked]);
    assert_eq!((bench.tally.acked, bench.tally.delivered, bench.client.unanswered()), (1, 1, 0));
    assert!((6_990_000..=7_010_000).contains(&bench.meters.ack[0].max()));
    assert!((6_990_000..=7_010_000).contains(&bench.meters.delivery[0].max()));
    assert_eq!(bench.tally.failures(), [""; 0]);
    assert_eq!(bench.text(r#"{"type":"ok","id":2,"seq":8}"#), [], "a second reply answers nothing");
    assert_eq!(bench.tally.malformed, 1);
}

#[test]
fn refusals_are_told_apart() {
    let mut bench = Bench::live();
    let message = Message { client: 1, sent_ns: 1 };
    bench.client.send(message, &bench.filler, &mut bench.rng);
    let busy = r#"{"type":"error","id":2,"code":113,"error":"busy","message":"","temporary":true,"retry_after_ms":50}"#;
    assert_eq!(bench.text(busy), [News::TryAgain(message, 50_000_000)]);
    bench.client.send(message, &bench.filler, &mut bench.rng);
    let denied = r#"{"type":"error","id":3,"code":103,"error":"permission_denied","message":"","temporary":false}"#;
    assert_eq!(bench.text(denied), [News::Refused]);
    assert_eq!(bench.tally.errors, [(103, 1), (113, 1)].into());
    bench.client.send(message, &bench.filler, &mut bench.rng);
    assert_eq!(bench.client.end().collect::<Vec<_>>(), [message]);
}

#[test]
fn control_frames_are_served() {
    let mut bench = Bench::live();
    bench.client.out.clear();
    assert_eq!(bench.bytes(&[0x89, 2, b'h', b'b']), []);
    assert_eq!((bench.client.out[0], bench.client.out.len(), bench.tally.pings), (0x8a, 8, 1));
    assert_eq!(bench.said(), "hb");
    assert_eq!(bench.bytes(&[0x88, 2, 0x10, 0x06]), [News::Closed(4102)]);
    assert_eq!(bench.bytes(&[0x88, 0]), [News::Closed(0)]);
}

#[test]
fn strangers_events_and_bad_frames_are_malformed() {
    let mut bench = Bench::live();
    bench.text(r#"{"type":"message:created","room":"somebody else's","seq":8}"#);
    bench.text("not json");
    bench.text(r#"{"no":"type"}"#);
    assert_eq!(bench.tally.malformed, 3);
    assert_eq!(bench.bytes(&[0xff, 0xff]), [News::Closed(0)]);
    bench.text(r#"{"type":"read:advanced","room":"r","user":"u","read":3}"#);
    bench.text(r#"{"type":"degraded","on":false,"what":[]}"#);
    assert_eq!((bench.tally.malformed, bench.client.next_seq()), (4, 8));
}

#[test]
fn numbers_of_other_entries_count_too() {
    let mut bench = Bench::live();
    let room = bench.room();
    for (seq, kind) in [(8, "room:joined"), (9, "message:hidden"), (10, "room:left")] {
        bench.text(&format!(r#"{{"type":"{kind}","room":"{room}","seq":{seq},"ts":1}}"#));
    }
    assert_eq!((bench.client.next_seq(), bench.tally.other_events, bench.tally.lost), (11, 3, 0));
    bench.text(r#"{"type":"gap","room":"another's","last":10,"head":15}"#);
    assert_eq!((bench.client.next_seq(), bench.tally.gaps, bench.tally.malformed), (11, 0, 1));
    bench.text(&format!(r#"{{"type":"gap","room":"{room}","last":10,"head":15}}"#));
    assert_eq!((bench.client.next_seq(), bench.tally.excused, bench.tally.wrong_gaps), (16, 5, 0));
}

#[test]
fn the_books_of_the_sender_are_believed_and_no_one_else() {
    let mut bench = Bench::live();
    let message = bench.sends(0, 3_000_000);
    let later = Message { sent_ns: 9_000_000, ..message };
    let lie = bench.event(8, later);
    bench.text(&lie);
    assert_eq!((bench.tally.wrong_bodies, bench.tally.delivered), (1, 1));
    assert!(bench.meters.delivery[0].max() >= 6_990_000, "the time that was sent, not the time that came");
    let (again, unsent, strange) =
        (bench.event(9, message), bench.event(10, Message { client: message.client + 1, sent_ns: 1 }), bench.room());
    bench.text(&again);
    bench.text(&unsent);
    bench.text(&format!(r#"{{"type":"message:created","room":"{strange}","seq":11,"author":"x","body":"invented"}}"#));
    let of_no_thread = bench.event(12, Message { client: first_id(1), sent_ns: 1 });
    bench.text(&of_no_thread);
    assert_eq!((bench.tally.stored_again, bench.tally.invented, bench.tally.delivered), (1, 3, 1));
    assert_eq!(bench.client.next_seq(), 13);
}

#[test]
fn a_dialect_that_names_events_beside_the_object_is_verified_too() {
    let mut bench = Bench::live();
    bench.client.dialect = Dialect::SocketIo;
    let message = bench.sends(0, 4_000_000);
    let event = bench.event(8, message).replacen(r#""type":"message:created","#, "", 1);
    bench.text(&format!(r#"42["message:created",{event}]"#));
    assert_eq!((bench.tally.delivered, bench.tally.wrong_bodies, bench.tally.invented), (1, 0, 0));
    let twice = bench.event(9, message).replacen(r#""type":"message:created","#, "", 1);
    bench.text(&format!(r#"42["message:created",{twice}]"#));
    assert_eq!((bench.tally.delivered, bench.tally.stored_again), (1, 1));
}
