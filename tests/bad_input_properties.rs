//! Any bytes at all, and any cutting of them: no panic, one answer. And what two JSON readers that
//! share no code make of the same text.

#![allow(clippy::unwrap_used)]

use antiphon::gateway::token::{Rules, Verifier};
use antiphon::protocol::client::{ServerFrames, masked_frame, read_response};
use antiphon::protocol::command::Command;
use antiphon::protocol::parse::Parser;
use antiphon::protocol::upgrade::{HeadLimits, Origins, read_head};
use antiphon::protocol::websocket::Codec;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

/// JSON-like texts: mostly well-formed, with the tokens that parsers trip over.
fn json_soup() -> impl Strategy<Value = Vec<u8>> {
    let tokens: Vec<&[u8]> = vec![
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\"",
        b"\\",
        b"null",
        b"true",
        b"1",
        b"-",
        b"1e5",
        b"0.5",
        b"\"type\"",
        b"\"ping\"",
        b"\"message:send\"",
        b"\"room\"",
        b"\"body\"",
        b"\"id\"",
        b"\"meta\"",
        b"\"\\ud83d\\ude00\"",
        b"\"\\ud800\"",
        b"\\u0000",
        b" ",
        b"\n",
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xe2\x80\xa8",
        b"18446744073709551615",
    ];
    vec(proptest::sample::select(tokens), 0..60).prop_map(|tokens| tokens.concat())
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Few digits: serde_json reads long ones an ulp off. `doubles_keep_every_bit` has those.
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        "\\PC{0,12}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(8, 48, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((any::<String>(), inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A stream of frames, most of them allowed, some mangled.
fn frame_soup() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        6 => Just(0x81u8), 3 => Just(0x01), 3 => Just(0x80), 2 => Just(0x00), 2 => Just(0x89), 1 => Just(0x8a), 1 => Just(0x88),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        4 => "[a-zé😀]{0,40}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..200),
        1 => Just(b"\x03\xe8bye".to_vec()),
    ];
    let frame = (first, payload, any::<[u8; 4]>(), 0u8..20).prop_map(|(first, payload, mask, mangle)| {
        let mut out = Vec::new();
        masked_frame(&mut out, first, mask, &payload);
        if mangle == 0 {
            let at = out.len() / 2;
            out[at] ^= 0xff;
        }
        out
    });
    vec(frame, 0..12).prop_map(|frames| frames.concat())
}

/// All that a codec says and replies to `bytes`, cut at `cuts`.
fn run(bytes: &[u8], cuts: &[usize]) -> (Vec<String>, Vec<u8>, bool) {
    let mut codec = Codec::new(150);
    let (mut said, mut replies, mut text) = (Vec::new(), Vec::new(), Vec::new());
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    for piece in cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]) {
        let mut input = piece;
        loop {
            match codec.read(&mut input, &mut text, &mut replies) {
                Ok(Some(incoming)) => said.push(format!("{incoming:?}")),
                Ok(None) => break,
                Err(fail) => said.push(format!("{fail:?}")),
            }
        }
        assert!(input.is_empty());
    }
    (said, replies, codec.is_reading())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_parser_survives_any_bytes(bytes in prop_oneof![vec(any::<u8>(), 0..300), json_soup()]) {
        let mut parser = Parser::new(4096);
        let accepted = parser.parse(&bytes).is_ok();
        if accepted {
            // What we take is JSON for others as well.
            prop_assert!(serde_json::from_slice::<Value>(&bytes).is_ok());
        }
        let again = parser.parse(br#"{"type":"ping"}"#).is_ok();
        prop_assert!(again, "the next frame is not parsed");
    }

    #[test]
    fn one_changed_byte_never_passes_as_something_else(at in 0usize..200, byte in any::<u8>()) {
        let text = r#"{"type":"message:send","id":"i-1","room":"größe","body":"a\u0000\ud83d\ude00 b","thread":12,"mentions":["bob","eve"],"meta":{"a":[1.5e3,true,null]}}"#;
        let mut bytes = text.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if Parser::new(4096).parse(&bytes).is_ok() {
            let read: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&read["type"], "message:send");
        }
    }

    #[test]
    fn json_passes_through_unchanged(value in any_json()) {
        let text = format!(r#"{{"type":"event:send","room":"r","name":"n","data":{value}}}"#);
        let mut parser = Parser::new(1 << 20);
        match parser.parse(text.as_bytes()) {
            Ok(request) => {
                let Command::EventSend { data, .. } = request.command else { panic!("another command") };
                let read: Value = serde_json::from_str(&data).unwrap();
                prop_assert_eq!(&read, &serde_json::from_str::<Value>(&value.to_string()).unwrap());
            }
            // The only excuse is size, with every character escaped.
            Err(bad) => prop_assert!(bad.refusal.message.contains("4096") && text.len() > 600, "{}", bad.refusal),
        }
    }

    #[test]
    fn doubles_keep_every_bit(bits in any::<u64>()) {
        let double = f64::from_bits(bits);
        prop_assume!(double.is_finite());
        // Written as an integer, a large one is out of range by rule.
        let plain = Some(format!("{double}")).filter(|text| text.contains('.') && text.len() < 900);
        for given in [format!("{double:e}"), format!("{double:?}")].into_iter().chain(plain) {
            let text = format!(r#"{{"type":"event:send","room":"r","name":"n","data":[{given}]}}"#);
            let mut parser = Parser::new(4096);
            let Command::EventSend { data, .. } = parser.parse(text.as_bytes()).unwrap().command else { panic!() };
            let read: f64 = data.trim_matches(['[', ']']).parse().unwrap();
            prop_assert!(read == double, "{given} became {data}");
        }
    }

    #[test]
    fn the_codec_says_the_same_however_it_is_cut(
        bytes in prop_oneof![frame_soup(), vec(any::<u8>(), 0..200)],
        cuts in vec(any::<usize>(), 0..12),
    ) {
        let whole = run(&bytes, &[]);
        prop_assert_eq!(run(&bytes, &cuts), whole.clone());
        let each: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(run(&bytes, &each), whole);
    }

    #[test]
    fn heads_and_answers_survive_any_bytes(
        bytes in vec(any::<u8>(), 0..300),
        line in "[A-Z]{1,4} /[ -~]{0,30} HTTP/1\\.[01]\r\n([A-Za-z-]{1,12}:[ -~\t]{0,20}\r\n){0,6}\r\n",
        cut in any::<usize>(),
    ) {
        let limits = HeadLimits { bytes_max: 256, headers_max: 8 };
        let origins = Origins::local(1);
        let _ = read_response(&bytes, "AAAAAAAAAAAAAAAAAAAAAA==");
        for head in [&bytes[..], line.as_bytes()] {
            let whole = read_head(head, &mut 0, limits, &origins);
            // In two steps it is judged as in one.
            let mut scanned = 0;
            let first = read_head(&head[..cut % (head.len() + 1)], &mut scanned, limits, &origins);
            match first {
                Ok(None) => prop_assert_eq!(read_head(head, &mut scanned, limits, &origins), whole),
                settled => prop_assert_eq!(settled, whole),
            }
        }
    }

    #[test]
    fn the_client_survives_any_bytes(bytes in vec(any::<u8>(), 0..300)) {
        let mut frames = ServerFrames::new(&bytes);
        let mut last = 0;
        for frame in frames.by_ref().flatten() {
            prop_assert!(frame.payload.start >= last + 2 && frame.payload.end <= bytes.len());
            last = frame.payload.end;
        }
        prop_assert_eq!(frames.consumed(), last);
    }

    #[test]
    fn no_text_is_a_token(text in prop_oneof!["\\PC{0,80}", "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,43}"]) {
        let verifier = Verifier::from_secret(&[7; 32], Rules::default()).unwrap();
        prop_assert!(verifier.verify(&text, 0).is_err());
    }
}
