//! What the protocol layer costs a message and a connection: `cargo bench --bench protocol`.
//!
//! Prints the best of several rounds, ns a call, since the best is what other load on the machine
//! disturbs least.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use antiphon::gateway::token::{NewToken, Rules, Verifier, mint};
use antiphon::protocol::client::{ClientRequest, frame_text, masked_frame, write_request};
use antiphon::protocol::ids::UserId;
use antiphon::protocol::parse::Parser;
use antiphon::protocol::upgrade::{HeadLimits, Origins, read_head};
use antiphon::protocol::websocket::Codec;
use jsonwebtoken::{Algorithm, EncodingKey, Header};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: u32 = 10;
const NOW: u64 = 1_800_000_000_000;

fn measure(name: &str, calls: u32, mut call: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(calls));
    }
    println!("{name:<40} {best:>9.0} ns");
}

fn message(body_bytes: usize) -> String {
    let body = "x".repeat(body_bytes);
    format!(r#"{{"type":"message:send","id":123,"room":"room-17","body":"{body}","client_id":"c-000123"}}"#)
}

fn parser() {
    let mut parser = Parser::new(16 * 1024);
    for (name, text) in [
        ("parse ping", r#"{"type":"ping","id":1}"#.to_owned()),
        ("parse message:send, 128 B body", message(128)),
        ("parse message:send, 8,000 B body", message(8_000)),
    ] {
        measure(name, 100_000, || {
            black_box(parser.parse(black_box(text.as_bytes())).is_ok());
        });
    }
}

fn codec() {
    let (mut text, mut replies) = (Vec::new(), Vec::new());
    let mut codec = Codec::new(16 * 1024);
    for body in [128, 8_000] {
        let mut frame = Vec::new();
        frame_text(&mut frame, [1, 2, 3, 4], message(body).as_bytes());
        let (head, tail) = frame.split_at(frame.len() / 2);
        measure(&format!("frame of {} B, whole", frame.len()), 100_000, || {
            black_box(codec.read(&mut black_box(&frame[..]), &mut text, &mut replies).is_ok());
        });
        measure(&format!("frame of {} B, cut in two", frame.len()), 20_000, || {
            black_box(codec.read(&mut black_box(head), &mut text, &mut replies).is_ok());
            black_box(codec.read(&mut black_box(tail), &mut text, &mut replies).is_ok());
        });
    }
    let mut pong = Vec::new();
    masked_frame(&mut pong, 0x8a, [1, 2, 3, 4], b"");
    measure("pong", 100_000, || {
        black_box(codec.read(&mut black_box(&pong[..]), &mut text, &mut replies).is_ok());
    });
}

fn connect() {
    let user = UserId::parse("alice").unwrap();
    let secret = [7u8; 32];
    let token = NewToken::new(&user, NOW, NOW + 60_000);
    let jwt = mint(&secret, &token).unwrap();
    measure("mint HS256", 20_000, || {
        black_box(mint(&secret, &token).is_ok());
    });
    let verifier = Verifier::from_secret(&secret, Rules::default()).unwrap();
    measure("verify HS256", 20_000, || {
        black_box(verifier.verify(black_box(&jwt), NOW).is_ok());
    });
    let rsa = EncodingKey::from_rsa_pem(include_bytes!("../tests/keys/rsa.pem")).unwrap();
    let p256 = EncodingKey::from_ec_pem(include_bytes!("../tests/keys/p256.pem")).unwrap();
    let ed25519 = EncodingKey::from_ed_pem(include_bytes!("../tests/keys/ed25519.pem")).unwrap();
    for (name, algorithm, private, public) in [
        ("verify RS256, 2048 bits", Algorithm::RS256, rsa, include_str!("../tests/keys/rsa.pub.pem")),
        ("verify ES256", Algorithm::ES256, p256, include_str!("../tests/keys/p256.pub.pem")),
        ("verify EdDSA", Algorithm::EdDSA, ed25519, include_str!("../tests/keys/ed25519.pub.pem")),
    ] {
        let claims = serde_json::json!({"sub": "alice", "exp": NOW / 1_000 + 60});
        let jwt = jsonwebtoken::encode(&Header::new(algorithm), &claims, &private).unwrap();
        let verifier = Verifier::from_pem(public, Rules::default()).unwrap();
        assert!(verifier.verify(&jwt, NOW).is_ok());
        measure(name, 1_000, || {
            black_box(verifier.verify(black_box(&jwt), NOW).is_ok());
        });
    }
    let mut head = Vec::new();
    let request = ClientRequest {
        host: "127.0.0.1:8080",
        target: "/ws?device=phone",
        key: "dGhlIHNhbXBsZSBub25jZQ==",
        token: Some(&jwt),
        origin: None,
    };
    write_request(&mut head, &request);
    let limits = HeadLimits { bytes_max: 16 * 1024, headers_max: 64 };
    let origins = Origins::local(8080);
    measure("upgrade request", 50_000, || {
        black_box(read_head(black_box(&head), &mut 0, limits, &origins).is_ok());
    });
}

fn main() {
    parser();
    codec();
    connect();
}
