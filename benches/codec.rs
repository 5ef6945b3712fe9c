//! What the protocol costs a message and a connection: parsing, framing, encoding, tokens.
#![allow(clippy::unwrap_used)]

mod common;

use std::hint::black_box;

use antiphon::gateway::token::{NewToken, Rules, Verifier, mint};
use antiphon::protocol::client::{ClientRequest, frame_text, masked_frame, write_request};
use antiphon::protocol::command::CommandId;
use antiphon::protocol::encode;
use antiphon::protocol::ids::UserId;
use antiphon::protocol::parse::Parser;
use antiphon::protocol::upgrade::{HeadLimits, Origins, read_head};
use antiphon::protocol::websocket::Codec;
use jsonwebtoken::{Algorithm, EncodingKey, Header};

use common::{Bench, event, fields, message};

const NOW: u64 = 1_800_000_000_000;

fn main() {
    common::main("codec", &[parse, websocket, encode, tokens, upgrade]);
}

fn parse(bench: &mut Bench) {
    let mut parser = Parser::new(16 * 1024);
    for (name, text) in [
        ("parse ping", r#"{"type":"ping","id":1}"#.to_owned()),
        ("parse message:send of 128 B", message("room-17", 128)),
        ("parse message:send of 8000 B", message("room-17", 8_000)),
    ] {
        bench.run(name, || parser.parse(black_box(text.as_bytes())).is_ok());
    }
}

fn websocket(bench: &mut Bench) {
    let (mut text, mut replies) = (Vec::new(), Vec::new());
    let mut codec = Codec::new(16 * 1024);
    let mut read = |mut bytes: &[u8]| codec.read(&mut bytes, &mut text, &mut replies).is_ok();
    for body in [128, 8_000] {
        let mut frame = Vec::new();
        frame_text(&mut frame, [1, 2, 3, 4], message("room-17", body).as_bytes());
        let (head, tail) = frame.split_at(frame.len() / 2);
        bench.run(&format!("read frame of {body} B, whole"), || read(black_box(&frame)));
        bench.run(&format!("read frame of {body} B, in two"), || read(black_box(head)) & read(black_box(tail)));
    }
    let mut pong = Vec::new();
    masked_frame(&mut pong, 0x8a, [1, 2, 3, 4], b"");
    bench.run("read pong", || read(black_box(&pong)));
}

fn encode(bench: &mut Bench) {
    let mut out = Vec::new();
    for body in [128, 8_000] {
        let fields = fields(body);
        let event = event(&fields);
        bench.run(&format!("encode message:created of {body} B"), || {
            out.clear();
            encode::frame_text(&mut out, |out| black_box(&event).write_json(out))
        });
    }
    let id = CommandId::Number(123);
    bench.run("encode ok", || {
        out.clear();
        encode::frame_text(&mut out, |out| {
            encode::ok(out, black_box(&id), |out| encode::field_integer(out, "seq", 123_456));
        })
    });
}

fn tokens(bench: &mut Bench) {
    let user = UserId::parse("alice").unwrap();
    let secret = [7u8; 32];
    let token = NewToken::new(&user, NOW, NOW + 60_000);
    let jwt = mint(&secret, &token).unwrap();
    bench.run("mint HS256", || mint(&secret, black_box(&token)).is_ok());
    let verifier = Verifier::from_secret(&secret, Rules::default()).unwrap();
    bench.run("verify HS256", || verifier.verify(black_box(&jwt), NOW).is_ok());
    let rsa = EncodingKey::from_rsa_pem(include_bytes!("../tests/keys/rsa.pem")).unwrap();
    let p256 = EncodingKey::from_ec_pem(include_bytes!("../tests/keys/p256.pem")).unwrap();
    let ed25519 = EncodingKey::from_ed_pem(include_bytes!("../tests/keys/ed25519.pem")).unwrap();
    for (name, algorithm, private, public) in [
        ("verify RS256", Algorithm::RS256, rsa, include_str!("../tests/keys/rsa.pub.pem")),
        ("verify ES256", Algorithm::ES256, p256, include_str!("../tests/keys/p256.pub.pem")),
        ("verify EdDSA", Algorithm::EdDSA, ed25519, include_str!("../tests/keys/ed25519.pub.pem")),
    ] {
        let claims = serde_json::json!({"sub": "alice", "exp": NOW / 1_000 + 60});
        let jwt = jsonwebtoken::encode(&Header::new(algorithm), &claims, &private).unwrap();
        let verifier = Verifier::from_pem(public, Rules::default()).unwrap();
        assert!(verifier.verify(&jwt, NOW).is_ok());
        bench.run(name, || verifier.verify(black_box(&jwt), NOW).is_ok());
    }
}

fn upgrade(bench: &mut Bench) {
    let user = UserId::parse("alice").unwrap();
    let jwt = mint(&[7u8; 32], &NewToken::new(&user, NOW, NOW + 60_000)).unwrap();
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
    bench.run("read upgrade request", || read_head(black_box(&head), &mut 0, limits, &origins).is_ok());
}
