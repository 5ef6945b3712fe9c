//! A JSON broadcast server on tokio and tokio-tungstenite, as most services in Rust are built: one
//! runtime thread, a task and a queue for each connection, a frame encoded once for all members. It
//! stores nothing and knows no users. It speaks the dialect `plain` of antiphon-load.
//!
//! Prints `listening <port>` once it does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// What the tool sends.
#[derive(Deserialize)]
struct Command<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: u64,
    room: &'a str,
    #[serde(default)]
    client_id: &'a str,
    #[serde(default)]
    body: &'a str,
}

#[derive(Default)]
struct Room {
    head: u64,
    members: HashMap<u64, UnboundedSender<Message>>,
}

type Rooms = Rc<RefCell<HashMap<String, Room>>>;

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let listener: TcpListener = socket.listen(4_096)?;
        println!("listening {}", listener.local_addr()?.port());
        let rooms = Rooms::default();
        for number in 0.. {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let rooms = rooms.clone();
            spawn_local(async move {
                serve(number, stream, &rooms).await;
                rooms.borrow_mut().values_mut().for_each(|room| drop(room.members.remove(&number)));
            });
        }
        Ok(())
    })
}

/// One connection, to its end; a peer that breaks the rules just ends it.
async fn serve(number: u64, stream: TcpStream, rooms: &Rooms) {
    let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let (mut sink, mut stream) = socket.split();
    let (queue, mut queued) = unbounded_channel::<Message>();
    let writer = spawn_local(async move {
        while let Some(first) = queued.recv().await {
            // All that waits goes out with one flush.
            let mut next = Some(first);
            while let Some(message) = next {
                if sink.feed(message).await.is_err() {
                    return;
                }
                next = queued.try_recv().ok();
            }
            if sink.flush().await.is_err() {
                return;
            }
        }
    });
    while let Some(Ok(message)) = stream.next().await {
        let Message::Text(text) = message else { continue };
        let Ok(command) = serde_json::from_str::<Command<'_>>(&text) else { break };
        obey(number, &command, &queue, &mut rooms.borrow_mut());
    }
    writer.abort();
}

fn obey(number: u64, command: &Command<'_>, queue: &UnboundedSender<Message>, rooms: &mut HashMap<String, Room>) {
    let room = rooms.entry(command.room.to_owned()).or_default();
    // The receiver of a queue ends with its connection, and nobody misses what it did not get.
    match command.kind {
        "room:subscribe" => {
            room.members.insert(number, queue.clone());
            let ok = serde_json::json!({"type": "ok", "id": command.id, "seq": room.head, "epoch": "peer"});
            let _ = queue.send(Message::text(ok.to_string()));
        }
        "message:send" => {
            room.head += 1;
            let ok = serde_json::json!({"type": "ok", "id": command.id, "seq": room.head});
            let _ = queue.send(Message::text(ok.to_string()));
            let ts = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
            let event = serde_json::json!({
                "type": "message:created", "room": command.room, "seq": room.head, "ts": ts, "author": "peer",
                "client_id": command.client_id, "body": command.body,
            });
            let frame = Utf8Bytes::from(event.to_string());
            for member in room.members.values() {
                let _ = member.send(Message::Text(frame.clone()));
            }
        }
        _ => {}
    }
}
