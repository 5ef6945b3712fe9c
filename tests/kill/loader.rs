//! Fills the store through the front door: many messages with `client_id`s, so that a restart has the
//! dedupe window to rebuild as well.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use antiphon::protocol::client::{ServerFrameKind, ServerFrames};
use serde_json::json;

use super::support::client::text_frame;
use super::support::{Client, Connect};

const LOADERS: u64 = 4;
/// Messages under way, each loader.
const BLOCK: u64 = 512;

/// What was stored.
pub struct Loaded {
    pub messages: u64,
    /// Rooms and how many messages each got.
    pub rooms: Vec<(String, u64)>,
}

/// Stores `messages` messages. The loaders do not listen, so nothing is fanned out.
pub fn load(address: SocketAddr, messages: u64) -> Loaded {
    let threads: Vec<_> = (0..LOADERS)
        .map(|number| {
            let share = messages / LOADERS;
            std::thread::spawn(move || {
                let room = format!("archive-{number}");
                let mut client = Client::open(address, Connect::new(&format!("loader-{number}")));
                client.ok(json!({"type": "room:create", "room": room, "kind": "public"}));
                fill(client, &room, share);
                (room, share)
            })
        })
        .collect();
    let rooms: Vec<(String, u64)> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    Loaded { messages: rooms.iter().map(|(_, share)| share).sum(), rooms }
}

fn fill(mut client: Client, room: &str, share: u64) {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut sent = 0;
    while sent < share {
        let block = BLOCK.min(share - sent);
        let mut frames = Vec::new();
        for number in sent..sent + block {
            frames.extend(text_frame(&json!({
                "type": "message:send", "id": number, "room": room, "client_id": format!("load-{number}"),
                "body": format!("stored message {number}, about as long as people write to each other"),
            })));
        }
        client.stream.write_all(&frames).unwrap();
        sent += block;
        let mut acked = 0;
        while acked < block {
            let count = client.stream.read(&mut chunk).unwrap();
            assert!(count > 0, "the server closed");
            bytes.extend_from_slice(&chunk[..count]);
            let mut frames = ServerFrames::new(&bytes);
            for frame in frames.by_ref() {
                let frame = frame.unwrap();
                if frame.kind == ServerFrameKind::Text {
                    let text = &bytes[frame.payload];
                    assert!(text.starts_with(b"{\"type\":\"ok\""), "{}", String::from_utf8_lossy(text));
                    acked += 1;
                }
            }
            let consumed = frames.consumed();
            bytes.drain(..consumed);
        }
    }
}
