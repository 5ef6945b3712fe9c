//! HTTP on the public port: what is no upgrade, what is refused, what takes too long.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use antiphon::protocol::client::client_key;
use serde_json::json;

use crate::support::{Client, Connect, Options, Server, http};

#[test]
fn what_is_no_upgrade_is_answered_as_http() {
    let server = Server::shards(2);
    let get = |path: &str| http::get(server.public, path);
    for path in ["/health/live", "/health/ready"] {
        let answer = get(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        assert_eq!(answer.json()["status"], "ok");
    }
    let answer = get("/ws");
    assert_eq!((answer.status, answer.header("sec-websocket-version")), (426, Some("13")));
    for path in ["/", "/metrics", "/admin/stats", "/ws/", "/ws2", "//ws", "/health", "/health/live/"] {
        assert_eq!(get(path).status, 404, "{path}");
    }
    assert_eq!(http::request(server.public, "POST", "/health/live", &[], "").status, 405);
    let version = Connect::new("alice").request(server.public, &client_key());
    let version = String::from_utf8(version).unwrap().replace("Version: 13", "Version: 8");
    assert_eq!(http::raw(server.public, version.as_bytes()).unwrap().status, 426);
}

#[test]
fn requests_that_are_no_requests() {
    let server = Server::shards(1);
    let good = String::from_utf8(Connect::new("alice").request(server.public, &client_key())).unwrap();
    let cases: Vec<(&str, String, u16)> = vec![
        ("not HTTP", "hello\r\n\r\n".into(), 400),
        ("TLS", "\u{16}\u{3}\u{1}\r\n\r\n".into(), 400),
        ("no Host", good.replacen("Host: ", "X: ", 1), 400),
        ("HTTP/1.0", good.replacen("HTTP/1.1", "HTTP/1.0", 1), 400),
        ("a bare line feed", good.replace("\r\n", "\n"), 400),
        (
            "two keys",
            good.replacen("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUpgrade: websocket", 1),
            400,
        ),
        ("a short key", good.replacen("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: a", 1), 400),
        ("a body", good.replacen("Host:", "Content-Length: 5\r\nHost:", 1), 400),
        ("chunks", good.replacen("Host:", "Transfer-Encoding: chunked\r\nHost:", 1), 400),
        ("a control character", good.replacen("Host:", "X: a\u{1}b\r\nHost:", 1), 400),
        ("a bad device", good.replacen("/ws", "/ws?device=a%20b", 1), 400),
        ("a long device", good.replacen("/ws", &format!("/ws?device={}", "a".repeat(65)), 1), 400),
        ("2,000 headers", good.replacen("Host:", &format!("{}Host:", "X: y\r\n".repeat(2_000)), 1), 431),
        ("100 headers", good.replacen("Host:", &format!("{}Host:", "X: y\r\n".repeat(100)), 1), 431),
        ("one long header", good.replacen("Host:", &format!("X: {}\r\nHost:", "y".repeat(20_000)), 1), 431),
        ("a megabyte", format!("GET /ws HTTP/1.1\r\nX: {}", "y".repeat(1 << 20)), 431),
    ];
    for (what, request, status) in cases {
        match http::raw(server.public, request.as_bytes()) {
            Some(answer) => assert_eq!(answer.status, status, "{what}: {answer:?}"),
            // What was not read may reset the connection before the answer is.
            None => assert!(what == "a megabyte", "{what}: no answer"),
        }
    }
    assert_eq!(server.client("alice").hello["user"], "alice");
    server.wait_for_stat("connections", |open| open == 0);
}

#[test]
fn a_request_may_come_byte_by_byte_but_not_for_ever() {
    let server = Options::shards(2).with("--handshake-ms", "800").start();
    let key = client_key();
    let request = Connect::new("alice").request(server.public, &key);
    let mut stream = http::connect(server.public);
    for byte in &request {
        stream.write_all(&[*byte]).unwrap();
    }
    let mut slow = Client::finish_upgrade(stream, &key).unwrap();
    assert_eq!(slow.event("hello")["user"], "alice");

    // Slowloris: many sockets that trickle, and some that say nothing at all.
    let began = Instant::now();
    let mut sockets: Vec<_> = (0..200).map(|_| http::connect(server.public)).collect();
    for (at, byte) in request.iter().take(12).enumerate() {
        for socket in sockets.iter_mut().skip(20) {
            let _ = socket.write_all(&[*byte]);
        }
        if at % 4 == 0 {
            // Real users are not held up.
            let connected = Instant::now();
            server.device("bob", &format!("d{at}")).ok(json!({"type": "ping"}));
            assert!(connected.elapsed() < Duration::from_secs(1));
        }
    }
    for socket in &mut sockets {
        assert!(matches!(socket.read(&mut [0; 64]), Ok(0) | Err(_)), "it was answered");
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(700) && took < Duration::from_secs(5), "{took:?}");
    assert!(server.stat("handshakes_refused") >= 200);
    // The one that made it lives on.
    assert_eq!(slow.ok(json!({"type": "ping"}))["type"], "ok");
}

#[test]
fn a_peer_that_leaves_half_way_leaves_nothing() {
    let server = Server::shards(4);
    let request = Connect::new("alice").request(server.public, &client_key());
    for cut in (0..=request.len()).step_by(7) {
        let mut stream = http::connect(server.public);
        let _ = stream.write_all(&request[..cut]);
        drop(stream);
    }
    server.wait_for_stat("connections", |open| open == 0);
    server.wait_for_stat("sessions", |open| open == 0);
    assert_eq!(server.client("bob").hello["user"], "bob");
}

#[test]
fn who_sends_nonsense_behind_the_request_is_answered_before_it_is_closed() {
    let server = Server::shards(2);
    for user in ["alice", "bob", "carol", "alice"] {
        let mut request = Connect::new(user).request(server.public, &client_key());
        // A frame of an opcode that does not exist.
        request.extend_from_slice(&[0x83, 0x80, 0, 0, 0, 0]);
        let mut stream = http::connect(server.public);
        stream.write_all(&request).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{user}");
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let is_close = |frame: &[u8]| frame[0] == 0x88 && frame[2..4] == 1002_u16.to_be_bytes();
        assert!(is_close(&answer[head..]), "{user}: {:?}", &answer[head..]);
    }
}

#[test]
fn hello_fills_a_segment_unless_told_not_to() {
    let bytes_of_hello = |server: &Server| {
        let mut stream = http::connect(server.public);
        stream.write_all(&Connect::new("alice").request(server.public, &client_key())).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend_from_slice(&byte);
        }
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header[..2], [0x81, 126], "a text of more than 125 bytes");
        let mut text = vec![0; usize::from(u16::from_be_bytes([header[2], header[3]]))];
        stream.read_exact(&mut text).unwrap();
        let hello: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&hello["type"], &hello["user"]), (&json!("hello"), &json!("alice")));
        text.len()
    };
    assert_eq!(bytes_of_hello(&Server::shards(1)), 1_460);
    let bare = bytes_of_hello(&Options::shards(1).with("--hello-bytes-min", "0").start());
    assert!((300..1_000).contains(&bare), "{bare}");
}
