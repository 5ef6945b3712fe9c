//! RFC 6455 and JSON from a peer that does not keep to them; and from one that keeps to the letter.

use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::text_frame;
use crate::support::{Client, Heard, Options, Server};

const TEXT: u8 = 0x81;

#[test]
fn every_broken_frame_has_its_close_code() {
    let server = Server::shards(2);
    type Act = fn(&mut Client);
    let cases: [(&str, u16, Act); 17] = [
        ("an oversized message", 1009, |c| c.frame(TEXT, &vec![b'x'; 16 * 1024 + 1])),
        ("only the header of one", 1009, |c| c.raw(&[TEXT, 0xfe, 0xff, 0xff, 1, 2, 3, 4])),
        ("a length of 2^63", 1009, |c| {
            c.raw(&[TEXT, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4])
        }),
        ("fragments that add up", 1009, |c| {
            c.frame(0x01, &[b'x'; 10_000]);
            c.frame(0x80, &[b'x'; 10_000]);
        }),
        ("binary", 1003, |c| c.frame(0x82, b"{}")),
        ("text that is not UTF-8", 1007, |c| c.frame(TEXT, b"{\"type\":\"\xc3\x28\"}")),
        ("half a character", 1007, |c| c.frame(TEXT, b"\xe2\x82")),
        ("unmasked", 1002, |c| c.raw(b"\x81\x02{}")),
        ("a reserved bit", 1002, |c| c.frame(0xc1, b"{}")),
        ("an unknown opcode", 1002, |c| c.frame(0x83, b"{}")),
        ("an unknown control opcode", 1002, |c| c.frame(0x8b, b"")),
        ("a continuation of nothing", 1002, |c| c.frame(0x80, b"{}")),
        ("text within fragments", 1002, |c| {
            c.frame(0x01, b"{");
            c.frame(TEXT, b"{}");
        }),
        ("a long ping", 1002, |c| c.frame(0x89, &[0; 126])),
        ("a ping in fragments", 1002, |c| c.frame(0x09, b"")),
        ("a close of one byte", 1002, |c| c.frame(0x88, &[3])),
        ("a close with a code that is none", 1002, |c| c.frame(0x88, &1005u16.to_be_bytes())),
    ];
    for (number, (what, code, act)) in cases.into_iter().enumerate() {
        let mut client = server.device("alice", &format!("d{number}"));
        act(&mut client);
        assert_eq!(client.end().code, code, "{what}");
    }
    server.wait_for_stat("connections", |open| open == 0);
    assert_eq!(server.client("alice").ok(json!({"type": "ping"}))["type"], "ok");
}

#[test]
fn a_large_message_hears_why_it_was_refused() {
    let server = Server::shards(2);
    let mut client = server.client("alice");
    let mut frame = Vec::new();
    antiphon::protocol::client::masked_frame(&mut frame, TEXT, [1, 2, 3, 4], &vec![b'x'; 8 << 20]);
    // Refused at its header, while the client is still writing: the answer must survive that.
    client.stream.write_all(&frame).unwrap();
    assert_eq!(client.end().code, 1009);
}

#[test]
fn what_the_rfc_allows_is_taken() {
    let server = Server::shards(2);
    let mut alice = server.client("alice");
    // A message in fragments, with a ping between them.
    alice.frame(0x01, b"{\"type\":");
    alice.frame(0x89, b"now");
    alice.frame(0x00, b"\"ping\",");
    alice.frame(0x00, b"");
    alice.frame(0x80, b"\"id\":\"pieces\"}");
    assert_eq!(alice.wait(|value| value["id"] == "pieces", "the reply")["type"], "ok");
    // A character cut by a fragment's border.
    let euro = "{\"type\":\"ping\",\"id\":\"€\"}".as_bytes();
    alice.frame(0x01, &euro[..23]);
    alice.frame(0x80, &euro[23..]);
    assert_eq!(alice.wait(|value| value["id"] == "€", "the reply")["type"], "ok");
    // An empty pong nobody asked for, and white space around the JSON.
    alice.frame(0x8a, b"");
    alice.frame(TEXT, b" \r\n\t{ \"type\" : \"ping\" , \"id\" : 7 } \n");
    assert_eq!(alice.reply(7)["type"], "ok");
    // Every length form.
    for len in [100, 125, 126, 127, 8_000] {
        let ack = alice.ok(json!({"type": "ping", "pad": "x".repeat(len)}));
        assert_eq!(ack["type"], "ok");
    }
    assert_eq!(alice.close().code, 1000);
}

#[test]
fn bytes_may_come_one_by_one_or_all_at_once() {
    let server = Server::shards(2);
    let mut alice = server.client("alice");
    alice.join("room");
    let frame = text_frame(&json!({"type": "message:send", "id": "slow", "room": "room", "body": "bit by bit"}));
    for byte in &frame {
        alice.stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(alice.wait(|value| value["id"] == "slow", "the ack")["seq"], 2);
    let mut bytes = Vec::new();
    for number in 0..500 {
        bytes.extend(text_frame(&json!({"type": "message:send", "id": number, "room": "room", "body": "b"})));
    }
    // The write ends in the middle of a frame.
    let (first, rest) = bytes.split_at(bytes.len() - 30);
    alice.raw(first);
    std::thread::sleep(Duration::from_millis(50));
    alice.raw(rest);
    for number in 0..500 {
        assert_eq!(alice.reply(number)["seq"], number + 3);
    }
    let seen: Vec<u64> = alice.entries_until("room", 502).iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert_eq!(seen, (2..=502).collect::<Vec<_>>());
}

#[test]
fn json_that_is_no_command_is_an_error_and_no_more() {
    let server = Options::shards(2).with("--errors-max", "100000").start();
    let mut alice = server.client("alice");
    let deep = format!("{{\"type\":\"ping\",\"id\":1,\"x\":{}{}}}", "[".repeat(8_000), "]".repeat(8_000 - 30));
    let texts: Vec<&[u8]> = vec![
        b"",
        b" ",
        b"null",
        b"5",
        b"\"ping\"",
        b"[]",
        b"[{\"type\":\"ping\"}]",
        b"{",
        b"{}",
        b"{\"type\":5}",
        b"{\"type\":\"ping\",}",
        b"{\"type\":\"ping\"} {}",
        b"{'type':'ping'}",
        b"\xef\xbb\xbf{\"type\":\"ping\"}",
        b"{\"type\":\"ping\",\"type\":\"ping\"}",
        b"{\"type\":\"ping\",\"x\":1e999}",
        b"{\"type\":\"ping\",\"x\":01}",
        b"{\"type\":\"ping\",\"x\":\"\\ud800\"}",
        b"{\"type\":\"ping\",\"x\":\"a\x00b\"}",
        b"{\"type\":\"ping\",\"x\":NaN}",
        b"{\"type\":\"ping\",\"id\":1.5}",
        b"{\"type\":\"ping\",\"id\":{}}",
        b"{\"type\":\"ping\",\"id\":null}",
        deep.as_bytes(),
    ];
    let count = texts.len();
    for text in texts {
        alice.frame(TEXT, text);
        let reply = match alice.hear(crate::support::PATIENCE) {
            Heard::Json(value) => value,
            other => panic!("{:?} got {other:?}", String::from_utf8_lossy(text)),
        };
        assert_eq!((&reply["type"], &reply["code"]), (&json!("error"), &json!(107)), "{reply} for {text:?}");
        assert_eq!((&reply["temporary"], &reply["retry_after_ms"]), (&json!(false), &json!(0)));
    }
    let command = "{\"type\":\"message:send\",\"id\":\"cut\",\"room\":\"r\",\"body\":\"\\u00e4\u{1F600}\"}";
    for cut in 1..command.len() {
        if !command.is_char_boundary(cut) {
            continue;
        }
        alice.frame(TEXT, &command.as_bytes()[..cut]);
        assert_eq!(alice.event("error")["code"], 107, "cut at {cut}");
    }
    // An error names the id whenever it can be read.
    let named: Value = alice.ask(json!({"type": "message:send", "room": 5, "body": "x"}));
    assert_eq!(
        (&named["type"], &named["code"], &named["error"]),
        (&json!("error"), &json!(107), &json!("bad_request"))
    );
    alice.refused(json!({"type": "nonsense"}), 104);
    alice.frame(TEXT, b"{\"type\":\"nonsense\"}");
    let unnamed = alice.event("error");
    assert_eq!((unnamed.get("id"), &unnamed["code"]), (None, &json!(104)));
    // A command without id gets no ok.
    alice.frame(TEXT, b"{\"type\":\"room:join\",\"room\":\"quiet\"}");
    assert_eq!(alice.ok(json!({"type": "ping"}))["type"], "ok");
    alice.hears_no("ok", Duration::from_millis(100));
    assert!(server.stat("frames_in") > count as u64);
}
