//! Byte sequences that RFC 6455 forbids, and those it allows but few clients send: each ends in the
//! expected messages and close code, whether it comes in one piece or byte by byte.

// Helpers of tests may fail loudly, too.
#![allow(clippy::unwrap_used)]

use antiphon::protocol::client::masked_frame;
use antiphon::protocol::error::CloseCode;
use antiphon::protocol::websocket::{Codec, Incoming};

const MAX: u32 = 1_000;
const MASK: [u8; 4] = [0xa5, 0x5a, 0x0f, 0xf0];

/// A masked frame; `first` is FIN, reserved bits and opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    masked_frame(&mut out, first, MASK, payload);
    out
}

fn text(body: &str) -> Vec<u8> {
    frame(0x81, body.as_bytes())
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(0x88, &[&code.to_be_bytes()[..], reason].concat())
}

/// What a codec made of a stream: messages as text, a fail as its code; then the replies.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Outcome {
    said: Vec<String>,
    replies: Vec<u8>,
}

fn run(bytes: &[u8], pieces: impl Fn(usize) -> usize) -> Outcome {
    let mut codec = Codec::new(MAX);
    let (mut said, mut replies, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(pieces(rest.len()).clamp(1, rest.len()));
        rest = tail;
        let mut input = piece;
        loop {
            match codec.read(&mut input, &mut scratch, &mut replies) {
                Ok(Some(Incoming::Text(text))) => said.push(format!("text {text}")),
                Ok(Some(Incoming::Ping)) => said.push("ping".into()),
                Ok(Some(Incoming::Pong)) => said.push("pong".into()),
                Ok(Some(Incoming::Close { code, reason })) => said.push(format!("close {code:?} {reason}")),
                Ok(None) => break,
                Err(fail) => {
                    assert!(!codec.is_reading());
                    said.push(fail.code.number().to_string());
                }
            }
        }
        assert!(input.is_empty());
    }
    Outcome { said, replies }
}

/// The same outcome however the bytes are cut.
fn outcome(bytes: &[u8]) -> Outcome {
    let whole = run(bytes, |have| have);
    for size in [1, 2, 3, 7, 13, 14, 15, 64] {
        assert_eq!(run(bytes, |_| size), whole, "in pieces of {size}");
    }
    for cut in 1..bytes.len().min(64) {
        let total = bytes.len();
        assert_eq!(run(bytes, |have| if have == total { cut } else { have }), whole, "cut at {cut}");
    }
    whole
}

#[track_caller]
fn expect(bytes: &[u8], said: &[&str]) {
    assert_eq!(outcome(bytes).said, said);
}

#[test]
fn frames_that_end_the_connection() {
    let unmasked_text = [0x81, 2, b'h', b'i'];
    let unmasked_ping = [0x89, 0];
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (unmasked_text.into(), "1002"),
        (unmasked_ping.into(), "1002"),
        ([0x88, 0].into(), "1002"),
        // Reserved bits.
        (frame(0xc1, b"x"), "1002"),
        (frame(0xa1, b"x"), "1002"),
        (frame(0x91, b"x"), "1002"),
        (frame(0xf1, b"x"), "1002"),
        (frame(0xc9, b"x"), "1002"),
        (frame(0xc8, b""), "1002"),
        // Reserved opcodes.
        (frame(0x83, b"x"), "1002"),
        (frame(0x84, b"x"), "1002"),
        (frame(0x85, b"x"), "1002"),
        (frame(0x86, b"x"), "1002"),
        (frame(0x87, b"x"), "1002"),
        (frame(0x8b, b""), "1002"),
        (frame(0x8c, b""), "1002"),
        (frame(0x8d, b""), "1002"),
        (frame(0x8e, b""), "1002"),
        (frame(0x8f, b""), "1002"),
        (frame(0x03, b"x"), "1002"),
        // Control frames: fragmented, too long.
        (frame(0x09, b"x"), "1002"),
        (frame(0x0a, b"x"), "1002"),
        (frame(0x08, b""), "1002"),
        (frame(0x89, &[b'x'; 126]), "1002"),
        (frame(0x8a, &[b'x'; 126]), "1002"),
        (frame(0x88, &[b'x'; 126]), "1002"),
        (frame(0x89, &[b'x'; 2_000]), "1002"),
        // Close payloads.
        (frame(0x88, b"\x03"), "1002"),
        (close(1000, b"\xff\xfe"), "1007"),
        // Continuations.
        (frame(0x80, b"x"), "1002"),
        (frame(0x00, b"x"), "1002"),
        ([frame(0x01, b"a"), text("b")].concat(), "1002"),
        ([frame(0x01, b"a"), frame(0x01, b"b")].concat(), "1002"),
        ([frame(0x01, b"a"), frame(0x82, b"b")].concat(), "1002"),
        // Binary.
        (frame(0x82, b"x"), "1003"),
        (frame(0x82, b""), "1003"),
        (frame(0x02, b"x"), "1003"),
        // Lengths that are not in their shortest form.
        ([0x81, 0x80 | 126, 0, 5, 0, 0, 0, 0].into(), "1002"),
        ([0x81, 0x80 | 126, 0, 125, 0, 0, 0, 0].into(), "1002"),
        ([0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0].into(), "1002"),
        ([0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0].into(), "1002"),
        // Too big: told on the header.
        ([0x81, 0x80 | 126, 0x03, 0xe9, 0, 0, 0, 0].into(), "1009"),
        ([0x81, 0x80 | 127, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0].into(), "1009"),
        ([0x81, 0x80 | 127, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0].into(), "1009"),
        ([0x81, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(), "1009"),
        ([0x81, 0x80 | 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0].into(), "1009"),
        ([frame(0x01, &[b'a'; 600]), frame(0x80, &[b'b'; 401])].concat(), "1009"),
        ([frame(0x01, &[b'a'; 600]), frame(0x00, &[b'b'; 400]), frame(0x80, b"c")].concat(), "1009"),
        // Fragments without end, and without bytes.
        ([frame(0x01, b"a"), frame(0x00, b"").repeat(1_023), frame(0x80, b"")].concat(), "1009"),
        // Not UTF-8.
        (frame(0x81, b"\xff"), "1007"),
        (frame(0x81, b"\xc0\xaf"), "1007"),
        (frame(0x81, b"\xed\xa0\x80"), "1007"),
        (frame(0x81, b"\xf4\x90\x80\x80"), "1007"),
        (frame(0x81, b"caf\xc3"), "1007"),
        ([frame(0x01, b"caf\xc3"), frame(0x80, b"x")].concat(), "1007"),
        ([frame(0x01, b"caf\xc3"), frame(0x80, b"")].concat(), "1007"),
        // Told at the end of the fragment, not of the message.
        ([frame(0x01, b"\xff"), frame(0x00, b"more")].concat(), "1007"),
        // A client that speaks HTTP or TLS after the upgrade.
        (b"GET /ws HTTP/1.1\r\n\r\n".to_vec(), "1002"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01".to_vec(), "1002"),
    ];
    assert!(rows.len() >= 55);
    for (bytes, code) in rows {
        let Outcome { said, replies } = outcome(&bytes);
        assert_eq!(said, [code], "{bytes:02x?}");
        assert!(replies.is_empty());
        // What follows a fail is never read, what came before it counts.
        expect(&[text("before"), bytes.clone(), text("after")].concat(), &["text before", code]);
    }
}

#[test]
fn closes_are_answered_in_kind() {
    let rows: [(Vec<u8>, &str, Vec<u8>); 10] = [
        (frame(0x88, b""), "close None ", vec![0x88, 0]),
        (close(1000, b""), "close Some(1000) ", vec![0x88, 2, 0x03, 0xe8]),
        (close(1001, b"bye"), "close Some(1001) bye", [&[0x88, 5, 0x03, 0xe9][..], b"bye"].concat()),
        (close(3000, b""), "close Some(3000) ", vec![0x88, 2, 0x0b, 0xb8]),
        (close(4999, b""), "close Some(4999) ", vec![0x88, 2, 0x13, 0x87]),
        // Codes that may not be sent are answered with 1002 (RFC 6455 section 7.4).
        (close(0, b""), "close Some(1002)", vec![0x03, 0xea]),
        (close(999, b""), "close Some(1002)", vec![0x03, 0xea]),
        (close(1005, b""), "close Some(1002)", vec![0x03, 0xea]),
        (close(2000, b""), "close Some(1002)", vec![0x03, 0xea]),
        (close(5000, b""), "close Some(1002)", vec![0x03, 0xea]),
    ];
    for (bytes, said, reply) in rows {
        let seen = outcome(&[bytes.clone(), text("late"), frame(0x88, b"")].concat());
        assert_eq!(seen.said.len(), 1, "{seen:?}");
        assert!(seen.said[0].starts_with(said), "{seen:?}");
        if reply.len() == 2 && reply[0] == 0x03 {
            assert_eq!((seen.replies[0], &seen.replies[2..4]), (0x88, &reply[..]));
        } else {
            assert_eq!(seen.replies, reply);
        }
    }
}

#[test]
fn what_is_allowed_is_understood() {
    expect(&text(""), &["text "]);
    expect(&text(&"x".repeat(1_000)), &[&format!("text {}", "x".repeat(1_000))]);
    expect(&frame(0x81, "größe 😀\0".as_bytes()), &["text größe 😀\0"]);
    expect(&[frame(0x01, b""), frame(0x00, b""), frame(0x80, b"")].concat(), &["text "]);
    expect(&[frame(0x01, b"a"), frame(0x00, b"b"), frame(0x80, b"c"), text("d")].concat(), &["text abc", "text d"]);
    // A character cut by a fragment's end.
    expect(&[frame(0x01, b"\xf0\x9f"), frame(0x00, b"\x98"), frame(0x80, b"\x80")].concat(), &["text 😀"]);
    // Control frames between fragments.
    let seen = outcome(
        &[frame(0x01, b"a"), frame(0x89, b"one"), frame(0x00, b"b"), frame(0x8a, b""), frame(0x80, b"c")].concat(),
    );
    assert_eq!(seen.said, ["ping", "pong", "text abc"]);
    assert_eq!(seen.replies, b"\x8a\x03one");
    let longest = frame(0x89, &[7; 125]);
    assert_eq!(outcome(&longest).replies, [&[0x8a, 125][..], &[7; 125]].concat());
    // As many fragments as there may be.
    expect(&[frame(0x01, b"a"), frame(0x00, b"").repeat(1_022), frame(0x80, b"b")].concat(), &["text ab"]);
    // A mask of zeros is a mask.
    expect(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'], &["text hi"]);
    let many: Vec<u8> = (0..200).flat_map(|n| if n % 3 == 0 { frame(0x89, &[n]) } else { text("t") }).collect();
    let seen = outcome(&many);
    assert_eq!((seen.said.len(), seen.replies.len()), (200, 67 * 3));
}

#[test]
fn a_stream_cut_anywhere_says_nothing_more() {
    let bytes = [frame(0x01, "grö".as_bytes()), frame(0x89, b"p"), frame(0x80, "ße".as_bytes()), text("end")].concat();
    let whole = outcome(&bytes).said;
    assert_eq!(whole, ["ping", "text größe", "text end"]);
    for cut in 0..bytes.len() {
        let said = outcome(&bytes[..cut]).said;
        assert!(said.len() < whole.len() && whole.starts_with(&said), "{cut}: {said:?}");
    }
}

#[test]
fn a_fail_can_still_be_told() {
    let mut codec = Codec::new(MAX);
    let (mut scratch, mut replies) = (Vec::new(), Vec::new());
    let fail = codec.read(&mut &frame(0x82, b"x")[..], &mut scratch, &mut replies).unwrap_err();
    assert_eq!(fail.code, CloseCode::Unsupported);
    let mut out = Vec::new();
    codec.close(&mut out, fail.code, fail.reason);
    assert_eq!(&out[..4], [0x88, 2 + fail.reason.len() as u8, 0x03, 0xeb]);
    assert!(codec.is_finished());
    codec.close(&mut out, CloseCode::Normal, "again");
    assert_eq!(out.len(), 4 + fail.reason.len());
}
