//! HTTP requests that are no upgrade, or not one that may pass; and the Origin list.

// Helpers of tests may fail loudly, too.
#![allow(clippy::unwrap_used)]

use antiphon::protocol::upgrade::{
    HeadLimits, Origins, Refused, Route, Subprotocol, TokenOffer, UpgradeRequest, read_head, write_health,
};

const LIMITS: HeadLimits = HeadLimits { bytes_max: 2048, headers_max: 16 };
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn origins() -> Origins {
    Origins::parse(["https://good.com", "http://127.0.0.1:8080"]).unwrap()
}

/// What becomes of a head: its route's name or its status.
fn outcome(head: &[u8]) -> String {
    match read_head(head, &mut 0, LIMITS, &origins()) {
        Ok(None) => "more".to_owned(),
        Ok(Some((Route::HealthLive, _))) => "live".to_owned(),
        Ok(Some((Route::HealthReady, _))) => "ready".to_owned(),
        Ok(Some((Route::WebSocket(_), _))) => "101".to_owned(),
        Err(refused) => refused.status().to_string(),
    }
}

/// The usual upgrade with its lines replaced: a change to `Name` replaces that line (or drops it,
/// when empty), any other text is added as it is.
fn upgrade_with(start: &str, changes: &[(&str, &str)], added: &str) -> Vec<u8> {
    let usual = [
        ("Host", "127.0.0.1:8080"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ];
    let mut head = format!("{start}\r\n");
    for (name, value) in usual {
        let value = changes.iter().find(|(changed, _)| *changed == name).map_or(value, |(_, value)| value);
        if !value.is_empty() {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str(added);
    head.push_str("\r\n");
    head.into_bytes()
}

fn usual() -> Vec<u8> {
    upgrade_with("GET /ws HTTP/1.1", &[], "")
}

#[test]
fn request_lines() {
    let rows = [
        ("GET /ws HTTP/1.1", "101"),
        ("GET /ws? HTTP/1.1", "101"),
        ("GET /ws?device=a&x=%zz HTTP/1.1", "101"),
        ("GET /ws?device=a HTTP/1.0", "400"),
        ("GET /ws HTTP/2.0", "400"),
        ("GET /ws HTTP/1.2", "400"),
        ("GET /ws HTTP/0.9", "400"),
        ("GET /ws http/1.1", "400"),
        ("GET /ws", "400"),
        ("GET  /ws HTTP/1.1", "400"),
        ("GET /ws HTTP/1.1 ", "400"),
        ("GET /w s HTTP/1.1", "400"),
        ("get /ws HTTP/1.1", "400"),
        (" GET /ws HTTP/1.1", "400"),
        ("PRI * HTTP/2.0", "400"),
        ("POST /ws HTTP/1.1", "405"),
        ("HEAD /ws HTTP/1.1", "405"),
        ("OPTIONS /ws HTTP/1.1", "405"),
        ("CONNECT 127.0.0.1:8080 HTTP/1.1", "404"),
        ("GET / HTTP/1.1", "404"),
        ("GET /ws/ HTTP/1.1", "404"),
        ("GET /WS HTTP/1.1", "404"),
        ("GET //ws HTTP/1.1", "404"),
        ("GET /%77s HTTP/1.1", "404"),
        ("GET /ws#x HTTP/1.1", "404"),
        ("GET /a/../ws HTTP/1.1", "404"),
        ("GET http://127.0.0.1/ws HTTP/1.1", "404"),
        ("GET * HTTP/1.1", "404"),
        ("POST /elsewhere HTTP/1.1", "404"),
        ("GET /health/live HTTP/1.1", "live"),
        ("GET /health/live?x HTTP/1.0", "live"),
        ("GET /health/ready HTTP/1.1", "ready"),
        ("POST /health/ready HTTP/1.1", "405"),
        ("GET /health HTTP/1.1", "404"),
        ("GET /ws?device= HTTP/1.1", "400"),
        ("GET /ws?device HTTP/1.1", "400"),
        ("GET /ws?device=a&device=b HTTP/1.1", "400"),
        ("GET /ws?device=a%20b HTTP/1.1", "400"),
        ("GET /ws?device=a%0a HTTP/1.1", "400"),
        ("GET /ws?device=a%1b%5b31m HTTP/1.1", "400"),
        ("GET /ws?device=%E2%80%A8 HTTP/1.1", "400"),
        ("GET /ws?device=%ff HTTP/1.1", "400"),
        ("GET /ws?device=% HTTP/1.1", "400"),
        ("GET /ws?device=%4 HTTP/1.1", "400"),
        ("GET /ws?device=%+1 HTTP/1.1", "400"),
        ("GET /ws?device=a@b HTTP/1.1", "400"),
        ("GET /ws?device=%61.b_c-D9 HTTP/1.1", "101"),
        ("GET /ws?batch=1 HTTP/1.1", "101"),
        ("GET /ws?batch=0 HTTP/1.1", "101"),
        ("GET /ws?batch=yes HTTP/1.1", "400"),
        ("GET /ws?batch=1&batch=1 HTTP/1.1", "400"),
        ("GET /ws?access_token=%zz HTTP/1.1", "400"),
    ];
    for (line, expected) in rows {
        assert_eq!(outcome(&upgrade_with(line, &[], "")), expected, "{line}");
    }
    let long = format!("GET /ws?device={} HTTP/1.1", "d".repeat(65));
    assert_eq!(outcome(&upgrade_with(&long, &[], "")), "400");
}

#[test]
fn header_lines() {
    /// Lines changed, lines added, what becomes of it.
    type Row = (&'static [(&'static str, &'static str)], &'static str, &'static str);
    let rows: &[Row] = &[
        (&[], "", "101"),
        (&[("Host", "")], "", "400"),
        (&[("Host", " ")], "", "400"),
        (&[("Host", "a b")], "", "400"),
        (&[("Host", "a/b")], "", "400"),
        (&[("Host", "a,b")], "", "400"),
        (&[("Host", "user@a")], "", "400"),
        (&[("Host", "[::1]:8080")], "", "101"),
        (&[], "Host: 127.0.0.1:8080\r\n", "400"),
        (&[], "host: evil\r\n", "400"),
        (&[("Upgrade", "")], "", "426"),
        (&[("Upgrade", "h2c")], "", "426"),
        (&[("Upgrade", "WebSocket")], "", "101"),
        (&[("Upgrade", "h2c, websocket")], "", "101"),
        (&[("Upgrade", "websockets")], "", "426"),
        (&[("Upgrade", "websocket/13")], "", "426"),
        (&[], "Upgrade: websocket\r\n", "400"),
        (&[("Connection", "")], "", "426"),
        (&[("Connection", "keep-alive")], "", "426"),
        (&[("Connection", "keep-alive, UPGRADE")], "", "101"),
        (&[("Connection", "keep-alive")], "Connection: upgrade\r\n", "101"),
        (&[("Connection", "upgraded")], "", "426"),
        (&[("Connection", "close")], "", "426"),
        (&[("Sec-WebSocket-Version", "")], "", "426"),
        (&[("Sec-WebSocket-Version", "8")], "", "426"),
        (&[("Sec-WebSocket-Version", "14")], "", "426"),
        (&[("Sec-WebSocket-Version", "13, 8")], "", "426"),
        (&[("Sec-WebSocket-Version", "013")], "", "426"),
        (&[], "Sec-WebSocket-Version: 13\r\n", "400"),
        (&[("Sec-WebSocket-Key", "")], "", "400"),
        (&[("Sec-WebSocket-Key", "short")], "", "400"),
        (&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ")], "", "400"),
        (&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=")], "", "400"),
        (&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZWQ=")], "", "400"),
        (&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25j!Q==")], "", "400"),
        (&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25j-Q==")], "", "400"),
        (&[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==x")], "", "400"),
        (&[], "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", "400"),
        (&[], "Origin: https://good.com\r\n", "101"),
        (&[], "Origin: https://evil.com\r\n", "403"),
        (&[], "Origin: https://good.com\r\nOrigin: https://good.com\r\n", "400"),
        (&[], "Authorization: Bearer a.b.c\r\n", "101"),
        (&[], "Authorization: Bearer a.b.c\r\nAuthorization: Bearer a.b.c\r\n", "400"),
        (&[], "Sec-WebSocket-Protocol: antiphon.v1, b/c\r\n", "400"),
        (&[], "Sec-WebSocket-Protocol: antiphon v1\r\n", "400"),
        (&[], "Sec-WebSocket-Protocol: ,,\r\n", "101"),
        (&[], "Sec-WebSocket-Extensions: permessage-deflate\r\n", "101"),
        (&[], "X-Unknown: \u{fc}\r\n", "101"),
        // Smuggling: bodies, folded lines, odd white space, two lengths.
        (&[], "Content-Length: 0\r\n", "101"),
        (&[], "Content-Length: 1\r\n", "400"),
        (&[], "Content-Length: +0\r\n", "400"),
        (&[], "Content-Length: 00\r\n", "400"),
        (&[], "Content-Length: 0, 0\r\n", "400"),
        (&[], "Content-Length: 0\r\nContent-Length: 0\r\n", "400"),
        (&[], "Content-Length: -1\r\n", "400"),
        (&[], "Transfer-Encoding: chunked\r\n", "400"),
        (&[], "transfer-encoding: identity\r\n", "400"),
        (&[], "Transfer-Encoding : chunked\r\n", "400"),
        (&[], "Transfer-Encoding:\r\n chunked\r\n", "400"),
        (&[], "X-Fold: a\r\n b\r\n", "400"),
        (&[], "X-Fold: a\r\n\tb\r\n", "400"),
        (&[], "X Space: a\r\n", "400"),
        (&[], "NoColon\r\n", "400"),
        (&[], ": empty\r\n", "400"),
        (&[], "X-Bare: a\nX-Second: b\r\n", "400"),
        (&[], "X-Bare: a\rX-Second: b\r\n", "400"),
        (&[], "X-Nul: a\0b\r\n", "400"),
        (&[], "X-Ansi: \u{1b}[31m\r\n", "400"),
        (&[], "X-Del: \u{7f}\r\n", "400"),
        (&[], "Upgr\u{fc}de: x\r\n", "400"),
    ];
    for (changes, added, expected) in rows {
        assert_eq!(outcome(&upgrade_with("GET /ws HTTP/1.1", changes, added)), *expected, "{changes:?} {added:?}");
    }
}

#[test]
fn heads_that_are_no_http() {
    let rows: &[&[u8]] = &[
        b"\x16\x03\x01\x02\x00\x01",
        b"\0",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"{\"type\":\"ping\"}",
        b"\x81\x85\x00\x00\x00\x00",
        b"GET /ws HTTP/1.1\n\n",
        b"GET /ws HTTP/1.1\r\nHost: a\n\r\n",
        b"GET /ws HTTP/1.1\r\r\n",
        b"GET /ws\x1b HTTP/1.1\r\n",
        b"GET /ws\0 HTTP/1.1\r\n",
        b"PUT",
        b"SSH-2.0-OpenSSH_9.0\r\n",
    ];
    for row in rows {
        let expected: &[&str] = if row.starts_with(b"PUT") || row.starts_with(b"SSH") { &["more"] } else { &["400"] };
        assert!(expected.contains(&&*outcome(row)), "{:?}: {}", String::from_utf8_lossy(row), outcome(row));
    }
}

#[test]
fn bytes_and_lines_are_bounded() {
    let lines = |count: usize| "X-Pad: y\r\n".repeat(count);
    assert_eq!(outcome(&upgrade_with("GET /ws HTTP/1.1", &[], &lines(LIMITS.headers_max - 5))), "101");
    assert_eq!(outcome(&upgrade_with("GET /ws HTTP/1.1", &[], &lines(LIMITS.headers_max - 4))), "431");
    let base = usual().len() + "X-Pad: \r\n".len();
    let padded = |total: usize| {
        let line = format!("X-Pad: {}\r\n", "y".repeat(total - base));
        upgrade_with("GET /ws HTTP/1.1", &[], &line)
    };
    assert_eq!(outcome(&padded(LIMITS.bytes_max)), "101");
    assert_eq!(outcome(&padded(LIMITS.bytes_max + 1)), "431");
    // A head without an end is told as soon as it is too long, not when it ends.
    let endless = [b"GET /".as_slice(), &b"a".repeat(LIMITS.bytes_max)].concat();
    assert_eq!(outcome(&endless[..LIMITS.bytes_max - 1]), "more");
    assert_eq!(outcome(&endless[..LIMITS.bytes_max]), "431");
}

#[test]
fn a_head_may_come_byte_by_byte_and_leaves_what_follows() {
    let mut bytes = usual();
    let head = bytes.len();
    bytes.extend_from_slice(b"\x81\x80mask");
    let mut scanned = 0;
    for have in 0..head {
        assert_eq!(read_head(&bytes[..have], &mut scanned, LIMITS, &origins()), Ok(None), "{have}");
        assert_eq!(scanned, have);
    }
    for have in head..=bytes.len() {
        let (_, consumed) = read_head(&bytes[..have], &mut scanned, LIMITS, &origins()).unwrap().unwrap();
        assert_eq!(consumed, head);
    }
}

fn accepted(start: &str, added: &str, check: impl FnOnce(UpgradeRequest<'_>, String)) {
    let head = upgrade_with(start, &[], added);
    match read_head(&head, &mut 0, LIMITS, &origins()) {
        Ok(Some((Route::WebSocket(upgrade), _))) => {
            let mut out = Vec::new();
            upgrade.write_response(&mut out);
            check(upgrade, String::from_utf8(out).unwrap());
        }
        other => panic!("{start} {added:?}: {other:?}"),
    }
}

#[test]
fn tokens_come_three_ways_and_must_agree() {
    let one = |token: &'static str| TokenOffer::One(token.into());
    let rows = [
        ("", "", TokenOffer::Missing),
        ("", "Authorization: Bearer a.b.c\r\n", one("a.b.c")),
        ("", "Authorization: bEARER   a.b.c \r\n", one("a.b.c")),
        ("", "Authorization: Bearer\r\n", one("")),
        ("", "Authorization: Basic dXNlcjpwYXNz\r\n", TokenOffer::Missing),
        ("?access_token=a.b.c", "Authorization: Basic dXNlcjpwYXNz\r\n", one("a.b.c")),
        ("?access_token=a%2Eb.c", "", one("a.b.c")),
        ("?access_token=a+b", "", one("a+b")),
        ("?access_token=", "", one("")),
        ("", "Sec-WebSocket-Protocol: antiphon.v1, bearer.a.b.c\r\n", one("a.b.c")),
        ("", "Sec-WebSocket-Protocol: bearer.a.b.c\r\nSec-WebSocket-Protocol: antiphon.v1\r\n", one("a.b.c")),
        ("?access_token=a.b.c", "Authorization: Bearer a.b.c\r\n", one("a.b.c")),
        ("?access_token=a.b.d", "Authorization: Bearer a.b.c\r\n", TokenOffer::Conflict),
        ("?access_token=a&access_token=b&access_token=a", "", TokenOffer::Conflict),
        ("", "Sec-WebSocket-Protocol: bearer.a, bearer.b\r\n", TokenOffer::Conflict),
    ];
    for (query, added, expected) in rows {
        accepted(&format!("GET /ws{query} HTTP/1.1"), added, |upgrade, answer| {
            assert!(upgrade.token == expected, "{query} {added:?}");
            assert!(!answer.contains("bearer"), "{answer}");
            assert!(!format!("{upgrade:?}").contains("a.b.c"), "a token shows in Debug");
        });
    }
}

#[test]
fn subprotocols_are_negotiated() {
    let rows = [
        ("", Subprotocol::Unnamed, ""),
        ("antiphon.v1", Subprotocol::V1, "antiphon.v1"),
        ("bearer.a.b.c, antiphon.v1", Subprotocol::V1, "antiphon.v1"),
        ("antiphon.v2, antiphon.v1", Subprotocol::V1, "antiphon.v1"),
        ("antiphon.v1, antiphon.v2", Subprotocol::V1, "antiphon.v1"),
        ("bearer.a.b.c", Subprotocol::Unnamed, ""),
        ("chat, superchat", Subprotocol::Unnamed, ""),
        ("Antiphon.v1", Subprotocol::Unnamed, ""),
        ("antiphon.v2", Subprotocol::Unsupported("antiphon.v2"), "antiphon.v2"),
        ("chat, antiphon.v3, antiphon.v2", Subprotocol::Unsupported("antiphon.v3"), "antiphon.v3"),
    ];
    for (offered, expected, echoed) in rows {
        let line = if offered.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {offered}\r\n") };
        accepted("GET /ws HTTP/1.1", &line, |upgrade, answer| {
            assert_eq!(upgrade.subprotocol, expected, "{offered}");
            let mut selected = answer.lines().filter_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "));
            assert_eq!(selected.next().unwrap_or(""), echoed);
            // The example of RFC 6455 section 1.3.
            assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
            assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"));
        });
    }
}

#[test]
fn devices_and_batches_are_read() {
    for (query, device, batch) in [
        ("", "default", false),
        ("?device=p-1", "p-1", false),
        ("?batch=1&device=a%2Eb", "a.b", true),
        ("?batch=0", "default", false),
    ] {
        accepted(&format!("GET /ws{query} HTTP/1.1"), "", |upgrade, _| {
            assert_eq!((upgrade.device.as_str(), upgrade.batch), (device, batch));
        });
    }
}

#[test]
fn refusals_are_whole_responses() {
    let all = [
        Refused::BadRequest("why"),
        Refused::Forbidden,
        Refused::NotFound,
        Refused::MethodNotAllowed,
        Refused::UpgradeRequired,
        Refused::HeadTooLarge,
        Refused::Unavailable,
    ];
    let written = all.iter().map(|refused| {
        let mut out = Vec::new();
        refused.write_response(&mut out);
        (refused.status(), out)
    });
    let mut live = Vec::new();
    write_health(&mut live, true);
    let mut ready = Vec::new();
    write_health(&mut ready, false);
    for (status, out) in written.chain([(200, live), (503, ready)]) {
        let mut lines = [httparse::EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut lines);
        let head = response.parse(&out).unwrap().unwrap();
        assert_eq!(response.code, Some(status));
        let header = |name: &str| {
            let found = response.headers.iter().find(|line| line.name == name);
            found.map(|line| std::str::from_utf8(line.value).unwrap())
        };
        assert_eq!(header("Content-Length").unwrap().parse::<usize>().unwrap(), out.len() - head);
        assert!(header("Connection").unwrap().starts_with("close"));
        assert!(serde_json::from_slice::<serde_json::Value>(&out[head..]).unwrap().is_object());
        assert_eq!(header("Sec-WebSocket-Version"), (status == 426).then_some("13"));
        assert_eq!(header("Upgrade"), (status == 426).then_some("websocket"));
        assert_eq!(header("Allow"), (status == 405).then_some("GET"));
    }
}

#[test]
fn only_origins_of_the_list_pass() {
    let refused = [
        "null",
        "NULL",
        "",
        "*",
        "https://good.com/",
        "https://good.com:443",
        "https://good.com:8443",
        "http://good.com",
        "HTTPS://good.com",
        "https://GOOD.com",
        "https://Good.Com",
        "https://good.com.evil",
        "https://good.com.",
        "https://evil-good.com",
        "https://evilgood.com",
        "https://sub.good.com",
        "https://good.co",
        "https://good.comm",
        "https://good.com@evil.com",
        "https://evil.com/https://good.com",
        "https://evil.com?https://good.com",
        "https://evil.com#https://good.com",
        "https://good.com%00.evil",
        "https://good.com%2eevil",
        "https://good.com evil",
        "https://good.com,https://evil.com",
        "https://evil.com,https://good.com",
        "https://good.com https://evil.com",
        "https:good.com",
        "https:/good.com",
        "https:///good.com",
        "//good.com",
        "good.com",
        "https://",
        "https://good.com\\.evil",
        "file://",
        "chrome-extension://good.com",
        "ws://good.com",
        "wss://good.com",
        "http://127.0.0.1",
        "http://127.0.0.1:80",
        "http://127.0.0.1:8081",
        "http://127.0.0.1:08080",
        "https://127.0.0.1:8080",
        "http://127.0.0.2:8080",
        "http://localhost:8080",
        "http://0.0.0.0:8080",
        "http://[::1]:8080",
        "http://2130706433:8080",
        "http://127.1:8080",
        "https://g\u{f6}\u{f6}d.com",
        "https://xn--gd-via.com",
        "https://good\u{3002}com",
        "https://good.com\u{a0}",
    ];
    let list = origins();
    for origin in refused {
        assert!(!list.allows(origin.as_bytes()), "{origin}");
        let head = upgrade_with("GET /ws HTTP/1.1", &[], &format!("Origin: {origin}\r\n"));
        assert_eq!(outcome(&head), "403", "{origin}");
    }
    assert!(!list.allows(b"https://good.com\xff"));
    for origin in ["https://good.com", "http://127.0.0.1:8080"] {
        let head = upgrade_with("GET /ws HTTP/1.1", &[], &format!("Origin:   {origin} \t\r\n"));
        assert_eq!(outcome(&head), "101", "{origin}");
    }
    // No browser, no Origin: the list does not speak of it.
    assert_eq!(outcome(&usual()), "101");
}

#[test]
fn origin_lists_say_what_can_never_match() {
    for good in ["https://a.example", "http://localhost:3000", "http://[::1]:8080", "http://[::1]", "app://local"] {
        assert!(Origins::parse([good]).unwrap().allows(good.as_bytes()), "{good}");
    }
    for bad in [
        "",
        "null",
        "a.example",
        "https://A.example",
        "https://a.example/",
        "https://a.example/x",
        "https://*.example",
        "https://a.example:443",
        "http://a.example:80",
        "https://a.example:0443",
        "https://a.example:99999",
        "https://a.example:",
        "https://",
        "://a",
        "https://a b",
        "https://ä.example",
        "HTTPS://a.example",
    ] {
        assert!(Origins::parse([bad]).is_err(), "{bad}");
    }
    assert!(!Origins::parse([]).unwrap().allows(b"https://good.com"));
    let any = Origins::parse(["*"]).unwrap();
    assert!(any.allows(b"https://evil.com") && any.allows(b"null"));
    let local = Origins::local(8080);
    assert!(local.allows(b"http://127.0.0.1:8080") && local.allows(b"http://localhost:8080"));
    assert!(!local.allows(b"http://localhost:8081") && !local.allows(b"https://localhost:8080"));
}
