//! JSON that no command is made of: each text ends in an error code with a message that names the
//! field, none in a panic, and what passes through keeps its value.

// Helpers of tests may fail loudly, too.
#![allow(clippy::unwrap_used)]

use antiphon::protocol::command::{Command, CommandId};
use antiphon::protocol::parse::{BadFrame, Parser};

const FRAME_BYTES_MAX: usize = 16 * 1024;

fn refusal(text: &[u8]) -> BadFrame {
    match Parser::new(FRAME_BYTES_MAX).parse(text) {
        Ok(request) => panic!("accepted: {} as {request:?}", String::from_utf8_lossy(text)),
        Err(bad) => bad,
    }
}

fn code(text: &[u8]) -> u16 {
    refusal(text).refusal.code.number()
}

#[test]
fn texts_that_are_not_a_command() {
    let rows: &[&[u8]] = &[
        b"",
        b" ",
        b"\0",
        b"{",
        b"}",
        b"{}",
        b"[]",
        b"null",
        b"true",
        b"1",
        b"-",
        b"\"ping\"",
        b"ping",
        b"{\"type\"}",
        b"{\"type\":}",
        b"{\"type\":\"ping\",}",
        b"{,\"type\":\"ping\"}",
        b"{\"type\":\"ping\"",
        b"{\"type\":\"ping\"}}",
        b"{\"type\":\"ping\"}{}",
        b"{\"type\":\"ping\"} x",
        b"{\"type\":\"ping\"}\0",
        b"\0{\"type\":\"ping\"}",
        b"{'type':'ping'}",
        b"{type:\"ping\"}",
        b"{\"type\":\"ping\"/**/}",
        b"{\"type\":\"ping\" \"x\":1}",
        b"{\"type\":\"ping\",\"x\":01}",
        b"{\"type\":\"ping\",\"x\":+1}",
        b"{\"type\":\"ping\",\"x\":.5}",
        b"{\"type\":\"ping\",\"x\":5.}",
        b"{\"type\":\"ping\",\"x\":1e}",
        b"{\"type\":\"ping\",\"x\":0x10}",
        b"{\"type\":\"ping\",\"x\":NaN}",
        b"{\"type\":\"ping\",\"x\":Infinity}",
        b"{\"type\":\"ping\",\"x\":-Infinity}",
        b"{\"type\":\"ping\",\"x\":1e999}",
        b"{\"type\":\"ping\",\"x\":-1e999}",
        b"{\"type\":\"ping\",\"x\":18446744073709551616}",
        b"{\"type\":\"ping\",\"x\":-9223372036854775809}",
        b"{\"type\":\"ping\",\"x\":tru}",
        b"{\"type\":\"ping\",\"x\":True}",
        b"{\"type\":\"ping\",\"x\":nulll}",
        b"{\"type\":\"ping\",\"x\":[1,]}",
        b"{\"type\":\"ping\",\"x\":[1 2]}",
        b"{\"type\":\"ping\",\"x\":[}",
        b"{\"type\":\"ping\",\"x\":(1)}",
        b"{1:\"ping\"}",
        // Strings: raw control characters, unknown escapes, half surrogates, broken UTF-8.
        b"{\"type\":\"ping\",\"x\":\"a\nb\"}",
        b"{\"type\":\"ping\",\"x\":\"a\0b\"}",
        b"{\"type\":\"ping\",\"x\":\"a\tb\"}",
        b"{\"type\":\"ping\",\"x\":\"\\x41\"}",
        b"{\"type\":\"ping\",\"x\":\"\\u12\"}",
        b"{\"type\":\"ping\",\"x\":\"\\u12g4\"}",
        b"{\"type\":\"ping\",\"x\":\"\\ud800\"}",
        b"{\"type\":\"ping\",\"x\":\"\\udc00\"}",
        b"{\"type\":\"ping\",\"x\":\"\\ud800\\ud800\"}",
        b"{\"type\":\"ping\",\"x\":\"\\ud800x\"}",
        b"{\"type\":\"ping\",\"x\":\"\\udc00\\ud800\"}",
        b"{\"type\":\"ping\",\"\\ud800\":1}",
        b"{\"type\":\"ping\",\"x\":\"\\",
        b"{\"type\":\"ping\",\"x\":\"\xff\"}",
        b"{\"type\":\"ping\",\"x\":\"\xc0\xaf\"}",
        b"{\"type\":\"ping\",\"x\":\"\xed\xa0\x80\"}",
        b"{\"type\":\"ping\",\"x\":\"\xf4\x90\x80\x80\"}",
        b"{\"type\":\"ping\",\"x\":\"\xe2\x82\"}",
        // Byte order marks.
        b"\xef\xbb\xbf{\"type\":\"ping\"}",
        b"\xff\xfe{\0}\0",
        b"{\0\"\0t\0",
        // Names given twice.
        b"{\"type\":\"ping\",\"type\":\"ping\"}",
        b"{\"type\":\"ping\",\"\\u0074ype\":\"stats\"}",
        b"{\"type\":\"ping\",\"a\":{\"b\":1,\"b\":2}}",
        b"{\"type\":\"ping\",\"a\":[[{\"b\":1,\"b\":2}]]}",
        // `type` of the wrong type.
        b"{\"id\":1}",
        b"{\"Type\":\"ping\"}",
        b"{\"type\":null}",
        b"{\"type\":1}",
        b"{\"type\":[\"ping\"]}",
        b"{\"type\":{\"ping\":1}}",
    ];
    for row in rows {
        assert_eq!(code(row), 107, "{:?}", String::from_utf8_lossy(row));
    }
}

#[test]
fn unknown_types_have_their_own_code_and_echo_the_id() {
    let built_later = ["message:search"];
    for name in built_later.into_iter().chain(["", "PING", "ping ", " ping", "ping\\u0000", "hello", "\\u001b[31m"]) {
        let bad = refusal(format!(r#"{{"id":"q","type":"{name}","room":7}}"#).as_bytes());
        assert_eq!((bad.refusal.code.number(), bad.id), (104, Some(CommandId::Text("q".into()))), "{name}");
        assert_eq!(bad.refusal.message, "no command of that type");
    }
}

#[test]
fn depth_and_size_have_an_end() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for levels in [16, 17, 1_000, 100_000] {
            let text = format!("{{\"type\":\"ping\",\"x\":{}1{}}}", open.repeat(levels), close.repeat(levels));
            let bad = Parser::new(10_000_000).parse(text.as_bytes()).unwrap_err();
            assert_eq!(bad.refusal.code.number(), 107);
            assert_eq!(bad.refusal.message, "nested deeper than 16");
            // Unbalanced, it must end as well.
            let text = open.repeat(levels);
            assert_eq!(Parser::new(10_000_000).parse(text.as_bytes()).unwrap_err().refusal.code.number(), 107);
        }
    }
    let text = format!(r#"{{"type":"ping","x":"{}"}}"#, "a".repeat(FRAME_BYTES_MAX));
    assert_eq!(code(text.as_bytes()), 106);
}

#[test]
fn a_text_cut_anywhere_is_refused() {
    let text = r#"{"type":"message:send","id":"i","room":"größe","body":"a\u0000\ud83d\ude00 b","mentions":["bob"],"meta":{"a":[1.5e3,true,null]}}"#;
    assert!(Parser::new(FRAME_BYTES_MAX).parse(text.as_bytes()).is_ok());
    let mut parser = Parser::new(FRAME_BYTES_MAX);
    for cut in 0..text.len() {
        let bad = parser.parse(&text.as_bytes()[..cut]).unwrap_err();
        assert_eq!((bad.refusal.code.number(), bad.id), (107, None), "{cut}");
    }
}

/// A field of a command: name, a good value, whether it must be there, and values out of bounds.
struct Field(&'static str, &'static str, bool, Vec<String>);

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

/// Values that are wrong for every field, by type alone, unless the good one is of that type.
const BY_TYPE: [&str; 9] = ["null", "true", "1.0", "1e0", "-1", "7", "\"\"", "[]", "{}"];

fn is_same_type(good: &str, other: &str) -> bool {
    let kind = |json: &str| json.as_bytes()[0];
    match kind(good) {
        b'"' | b'[' | b'{' => kind(good) == kind(other),
        _ => matches!(other, "7"),
    }
}

fn commands() -> Vec<(&'static str, Vec<Field>)> {
    let user = |name| Field(name, r#""bob""#, true, bad_users());
    let room = || Field("room", r#""general""#, true, bad_rooms());
    let since = || Field("since", r#"{"epoch":"e","seq":3}"#, false, bad_since());
    let seq = |name, must, zero: bool| Field(name, "5", must, bad_numbers(if zero { &["-1"] } else { &["0"] }));
    let priority = || Field("priority", r#""low""#, false, words(&["LOW", "urgent", ""]));
    let limit = |max: &'static [&'static str]| Field("limit", "10", false, bad_numbers(max));
    let list = |name, max: usize| Field(name, r#"["bob","eve"]"#, false, bad_lists(max));
    let role = |must, bad: &[&str]| Field("role", r#""moderator""#, must, words(bad));
    let kind = |must| Field("kind", r#""private""#, must, words(&["Public", "secret", ""]));
    vec![
        ("auth:refresh", vec![Field("token", r#""a.b.c""#, true, words(&["", &"x".repeat(8193)]))]),
        (
            "room:create",
            vec![
                room(),
                kind(true),
                list("members", 1_000),
                Field("title", r#""T""#, false, words(&[&"x".repeat(129), &"é".repeat(65)])),
            ],
        ),
        ("room:join", vec![room(), since()]),
        ("room:subscribe", vec![room(), since()]),
        ("room:unsubscribe", vec![room()]),
        ("room:leave", vec![room()]),
        ("room:invite", vec![room(), user("user"), role(false, &["owner", "banned", "Member", ""])]),
        ("room:kick", vec![room(), user("user")]),
        ("room:ban", vec![room(), user("user")]),
        ("room:role", vec![room(), user("user"), role(true, &["banned", "admin", ""])]),
        ("room:members", vec![room(), Field("after", r#""bob""#, false, bad_users()), limit(&["0", "1001"])]),
        ("room:list", vec![kind(false), Field("after", r#""general""#, false, bad_rooms()), limit(&["0", "1001"])]),
        (
            "message:send",
            vec![
                room(),
                Field("body", r#""hi""#, true, words(&["", &"x".repeat(8193), &"é".repeat(4097)])),
                Field("client_id", r#""c""#, false, words(&["", &"x".repeat(65), &"é".repeat(65), &"😀".repeat(65)])),
                seq("thread", false, false),
                seq("reply_to", false, false),
                list("mentions", 64),
                Field("attachments", r#"["f1"]"#, false, bad_attachments()),
                priority(),
                list("exclude", 64),
                list("only", 64),
                Field("meta", r#"{"a":1}"#, false, vec![format!(r#"{{"a":{}}}"#, quoted(&"x".repeat(1020)))]),
            ],
        ),
        (
            "message:history",
            vec![room(), seq("before", false, false), seq("thread", false, false), limit(&["0", "101"])],
        ),
        ("message:history", vec![room(), seq("after", false, true), seq("thread", false, false)]),
        ("message:read", vec![room(), seq("seq", true, false)]),
        (
            "event:send",
            vec![room(), Field("name", r#""wave""#, true, words(&["", &"x".repeat(65), &"é".repeat(33)])), priority()],
        ),
        (
            "sync:check",
            vec![Field("rooms", r#"[{"room":"general","seq":0,"hash":"00ff00ff00ff00ff"}]"#, true, bad_sync())],
        ),
    ]
}

fn words(bad: &[&str]) -> Vec<String> {
    bad.iter().map(|word| quoted(word)).collect()
}

fn bad_numbers(bounds: &[&str]) -> Vec<String> {
    let always = ["9223372036854775808", "18446744073709551615", "-9223372036854775808", "5.5", "1e1", "\"5\""];
    bounds.iter().chain(&always).map(|number| (*number).to_owned()).collect()
}

fn bad_users() -> Vec<String> {
    words(&["", "a b", "é", "a/b", "a\n", "a\0", "bob\u{202e}", &"x".repeat(65)])
}

fn bad_rooms() -> Vec<String> {
    let bad = [
        "",
        " ",
        " a",
        "a ",
        "a*",
        "*",
        "a\nb",
        "a\u{1b}[31m",
        "a\0b",
        "\u{202e}a",
        "a\u{2028}b",
        "a\u{200f}",
        "\u{85}",
    ];
    bad.iter().map(|name| quoted(name)).chain(words(&[&"x".repeat(129), &"é".repeat(65)])).collect()
}

fn bad_lists(max: usize) -> Vec<String> {
    let many = vec!["\"bob\""; max + 1].join(",");
    let rows = [r#"[1]"#, r#"[null]"#, r#"["bob",""]"#, r#"["a b"]"#, r#"[["bob"]]"#, r#"{"0":"bob"}"#, r#""bob""#];
    rows.iter().map(|row| (*row).to_owned()).chain([format!("[{many}]")]).collect()
}

fn bad_attachments() -> Vec<String> {
    let long = quoted(&"é".repeat(129));
    let many = vec!["\"f\""; 17].join(",");
    vec!["[1]".into(), r#"[""]"#.into(), format!("[{long}]"), format!("[{many}]")]
}

fn bad_since() -> Vec<String> {
    let long = quoted(&"e".repeat(65));
    let rows = [
        r#"{}"#.into(),
        r#"{"epoch":"e"}"#.into(),
        r#"{"seq":1}"#.into(),
        r#"{"epoch":1,"seq":1}"#.into(),
        r#"{"epoch":"","seq":1}"#.into(),
        format!(r#"{{"epoch":{long},"seq":1}}"#),
        r#"{"epoch":"e","seq":-1}"#.into(),
        r#"{"epoch":"e","seq":1.0}"#.into(),
        r#"{"epoch":"e","seq":"1"}"#.into(),
        r#"{"epoch":"e","seq":9223372036854775808}"#.into(),
        r#"["e",1]"#.into(),
    ];
    rows.into()
}

fn bad_sync() -> Vec<String> {
    let many = vec![r#"{"room":"r","seq":1}"#; 257].join(",");
    let rows = [
        r#"[1]"#,
        r#"[{}]"#,
        r#"[{"room":"r"}]"#,
        r#"[{"seq":1}]"#,
        r#"[{"room":"r","seq":-1}]"#,
        r#"[["r",1]]"#,
        r#"[{"room":"a*","seq":1}]"#,
        r#"[{"room":"r","seq":1,"hash":1}]"#,
        r#"[{"room":"r","seq":1,"hash":"00ff"}]"#,
        r#"[{"room":"r","seq":1,"hash":"00ff00ff00ff00fg"}]"#,
    ];
    rows.iter().map(|row| (*row).to_owned()).chain([format!("[{many}]")]).collect()
}

/// The frame with each field at its good value, but for one that is replaced or left out.
fn frame(name: &str, fields: &[Field], change: Option<(&str, Option<&str>)>) -> String {
    let mut text = format!(r#"{{"id":7,"type":"{name}""#);
    if name == "event:send" && !matches!(change, Some(("data", _))) {
        text.push_str(r#","data":null"#);
    }
    for Field(field, good, ..) in fields {
        match change {
            Some((changed, None)) if changed == *field => {}
            Some((changed, Some(value))) if changed == *field => text.push_str(&format!(r#","{field}":{value}"#)),
            _ => text.push_str(&format!(r#","{field}":{good}"#)),
        }
    }
    text + "}"
}

#[test]
fn every_field_of_every_command() {
    let mut parser = Parser::new(64 * 1024);
    let mut rows = 0;
    for (name, fields) in commands() {
        let whole = frame(name, &fields, None);
        assert!(parser.parse(whole.as_bytes()).is_ok(), "{whole}");
        for Field(field, good, must, out_of_bounds) in &fields {
            let without = frame(name, &fields, Some((field, None)));
            match parser.parse(without.as_bytes()) {
                Ok(_) => assert!(!must, "{without}"),
                Err(bad) => {
                    assert!(*must, "{without}: {}", bad.refusal);
                    assert_eq!(bad.refusal.message, format!("{field} is missing"), "{without}");
                }
            }
            let by_type = BY_TYPE.into_iter().filter(|other| !is_same_type(good, other)).map(str::to_owned);
            for value in by_type.chain(out_of_bounds.iter().cloned()) {
                rows += 1;
                let text = frame(name, &fields, Some((field, Some(&value))));
                let bad = match parser.parse(text.as_bytes()) {
                    Ok(request) => panic!("accepted {text} as {request:?}"),
                    Err(bad) => bad,
                };
                assert_eq!((bad.refusal.code.number(), bad.id), (107, Some(CommandId::Number(7))), "{text}");
                let named = bad.refusal.message.starts_with(field)
                    || matches!(*field, "since") && bad.refusal.message.starts_with(['e', 's'])
                    || matches!(*field, "rooms") && bad.refusal.message.starts_with(['r', 's', 'h']);
                assert!(named, "{field}: {} for {text}", bad.refusal.message);
                assert!(bad.refusal.message.len() <= 160, "{}", bad.refusal.message);
            }
        }
    }
    assert!(rows > 500, "{rows}");
}

#[test]
fn event_data_is_any_json_but_must_be_there() {
    let bad = refusal(br#"{"type":"event:send","room":"r","name":"n"}"#);
    assert_eq!((bad.refusal.code.number(), &*bad.refusal.message), (107, "data is missing"));
    let text = format!(r#"{{"type":"event:send","room":"r","name":"n","data":{}}}"#, quoted(&"x".repeat(4095)));
    assert_eq!(refusal(text.as_bytes()).refusal.message, "data must have at most 4096 bytes of JSON");
    let text = format!(r#"{{"type":"event:send","room":"r","name":"n","data":{}}}"#, quoted(&"x".repeat(4094)));
    assert!(Parser::new(FRAME_BYTES_MAX).parse(text.as_bytes()).is_ok());
}

#[test]
fn bounds_are_reached_but_not_passed() {
    let mut parser = Parser::new(FRAME_BYTES_MAX);
    for body in ["\0", "\u{2028}", "\u{202e}", " ", "\u{1b}[31m", &"x".repeat(8192), &"é".repeat(4096)] {
        let text = format!(r#"{{"type":"message:send","room":"r","body":{}}}"#, quoted(body));
        let Ok(Command::MessageSend(send)) = parser.parse(text.as_bytes()).map(|r| r.command) else {
            panic!("{body:?}")
        };
        assert_eq!(send.body, body);
    }
    for id in ["x".repeat(64), "😀".repeat(64), "\u{2028}\n".into(), String::new()] {
        let text = format!(r#"{{"type":"ping","id":{}}}"#, quoted(&id));
        assert_eq!(parser.parse(text.as_bytes()).unwrap().id, Some(CommandId::Text(id.into())));
    }
    for id in [i64::MIN, -1, 0, i64::MAX] {
        let text = format!(r#"{{"type":"ping","id":{id}}}"#);
        assert_eq!(parser.parse(text.as_bytes()).unwrap().id, Some(CommandId::Number(id)));
    }
    let meta = format!(r#"{{"a":{}}}"#, quoted(&"x".repeat(1024 - 8)));
    let text = format!(r#"{{"type":"message:send","room":"r","body":"b","meta":{meta}}}"#);
    let Ok(Command::MessageSend(send)) = parser.parse(text.as_bytes()).map(|r| r.command) else { panic!() };
    assert_eq!(send.meta.as_deref(), Some(meta.as_str()));
}

#[test]
fn json_that_passes_through_keeps_its_value() {
    let rows = [
        ("null", "null"),
        (" [ 1 , 2 ] ", "[1,2]"),
        ("{ }", "{}"),
        ("[]", "[]"),
        (r#"{"a":{"b":[{"c":[]}]},"d":false}"#, r#"{"a":{"b":[{"c":[]}]},"d":false}"#),
        ("18446744073709551615", "18446744073709551615"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9007199254740993", "9007199254740993"),
        ("0.1", "0.1"),
        ("1.0", "1.0"),
        ("-0.0", "-0.0"),
        ("-0", "0"),
        ("1e2", "100.0"),
        ("1E+2", "100.0"),
        ("1e300", "1e300"),
        ("5e-324", "5e-324"),
        ("1e-999", "0.0"),
        ("1.7976931348623157e308", "1.7976931348623157e308"),
        ("123456789.123456789", "123456789.12345679"),
        (r#""\u0041\/\b\f\n\r\t\"\\""#, r#""A/\u0008\u000c\n\r\t\"\\""#),
        (r#""\u2028\u2029\u0000""#, r#""\u2028\u2029\u0000""#),
        (r#""\ud83d\ude00é""#, r#""😀é""#),
        (r#"{"\u0000":1,"":2}"#, r#"{"\u0000":1,"":2}"#),
    ];
    let mut parser = Parser::new(FRAME_BYTES_MAX);
    for (given, written) in rows {
        let text = format!(r#"{{"type":"event:send","room":"r","name":"n","data":{given}}}"#);
        match parser.parse(text.as_bytes()).map(|request| request.command) {
            Ok(Command::EventSend { data, .. }) => assert_eq!(data, written, "{given}"),
            other => panic!("{given}: {other:?}"),
        }
    }
}

#[test]
fn thousands_of_names_take_no_longer_than_they_should() {
    // 8,000 names: comparing each with each would be 32 million comparisons a frame.
    let names: String = (0..8_000).map(|n| format!(r#""{n:x}":0,"#)).collect();
    let text = format!(r#"{{{names}"type":"ping"}}"#);
    let mut parser = Parser::new(1 << 20);
    let start = std::time::Instant::now();
    for _ in 0..20 {
        assert!(parser.parse(text.as_bytes()).is_ok());
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    let double = format!(r#"{{{names}"type":"ping","7f":1}}"#);
    assert!(parser.parse(double.as_bytes()).is_err());
}
