//! A tiny chat server for tests of the tool: correct unless told to commit one fault. It lives in
//! threads and memory, knows just the frames that the tool sends, and stores nothing.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use antiphon::protocol::encode::frame_text;
use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::handshake::server::{Request, Response};

/// What the tokens of tests are signed with.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Who asks for the upgrade; nobody without a token.
pub fn user_of(request: &Request) -> String {
    let Some(bearer) = request.headers().get("authorization") else { return String::new() };
    let token = bearer.to_str().unwrap().trim_start_matches("Bearer ");
    let key = jsonwebtoken::DecodingKey::from_secret(SECRET.as_bytes());
    let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap().claims;
    claims["sub"].as_str().unwrap().to_owned()
}

/// What goes wrong, once each unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// One receiver misses one message.
    Drop,
    /// One receiver gets one message twice.
    Double,
    /// One receiver gets two messages in the wrong order.
    Swap,
    /// One receiver gets another body than the others.
    Forge,
    /// Everybody gets a body that was not sent.
    ForgeForAll,
    /// One ack names the number before.
    WrongAck,
    /// One ack never comes.
    NoAck,
    /// One receiver misses a message and is told by `gap`.
    ToldGap,
    /// One receiver misses a message and is told by a `gap` that lies about `last`.
    WrongGap,
    /// Every tenth message is refused with 113 at first.
    Busy,
    /// One message is refused for good.
    Refuse,
    /// One connection is closed with 4103.
    Close,
    /// Resumes are not recovered.
    Forgetful,
    /// A resume leaves out its first entry.
    SilentResume,
    /// One frame is not JSON.
    Garbage,
    /// From the tenth message on everything is refused with 113.
    BusyForGood,
    /// One message is stored under two numbers.
    StoreTwice,
    /// One message is made up.
    Invent,
    /// One message is acknowledged with an old number, and not stored.
    AckOnly,
    /// One message comes with another time in its body, to everybody.
    OtherTime,
    /// One receiver misses a message and is told by a `gap` of another room.
    StrangeGap,
    /// One message comes under another author's name, to everybody.
    OtherAuthor,
    /// One message comes as if it were another room's, to everybody.
    OtherRoom,
}

/// The message of a room at which the fault is committed.
const FAULT_AT: u64 = 40;

#[derive(Default)]
struct Room {
    log: Vec<String>,
    subscribers: Vec<(u64, Arc<Mutex<TcpStream>>)>,
    held: Option<String>,
}

struct House {
    fault: Fault,
    /// Says `hello`.
    greets: bool,
    rooms: Mutex<HashMap<String, Room>>,
}

/// A running fake server. Its threads end with their connections.
pub struct Fake {
    /// Where it listens.
    pub address: SocketAddrV4,
}

impl Fake {
    /// Starts one on a free port of loopback.
    pub fn start(fault: Fault) -> Self {
        Self::start_as(fault, true)
    }

    /// Starts one that speaks the plain dialect.
    pub fn start_plain(fault: Fault) -> Self {
        Self::start_as(fault, false)
    }

    fn start_as(fault: Fault, greets: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("bound to IPv4") };
        let house = Arc::new(House { fault, greets, rooms: Mutex::default() });
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (Ok(stream), house) = (stream, house.clone()) else { return };
                // A connection that ends in any way just ends its thread.
                std::thread::spawn(move || house.serve(number as u64, stream));
            }
        });
        Self { address }
    }
}

fn send(to: &Mutex<TcpStream>, text: &str) {
    let mut frame = Vec::new();
    frame_text(&mut frame, |out| out.extend_from_slice(text.as_bytes()));
    // The receiver may be gone, which its own thread will see.
    let _ = to.lock().unwrap().write_all(&frame);
}

impl House {
    fn serve(&self, number: u64, stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let out = Arc::new(Mutex::new(stream.try_clone().ok()?));
        let mut user = String::new();
        // The refusal is large, and never made.
        #[allow(clippy::result_large_err)]
        let accept = |request: &Request, response: Response| {
            user = user_of(request);
            Ok(response)
        };
        let mut socket = tungstenite::accept_hdr(stream, accept).ok()?;
        if self.greets {
            send(&out, &json!({"type":"hello","epoch":"e1","rooms":[]}).to_string());
        }
        while let Ok(Message::Text(text)) = socket.read() {
            let command: Value = serde_json::from_str(&text).unwrap();
            self.obey((number, &user), &command, &out);
        }
        let _ = out.lock().unwrap().shutdown(Shutdown::Both);
        self.rooms.lock().unwrap().values_mut().for_each(|room| room.subscribers.retain(|(n, _)| *n != number));
        None
    }

    fn obey(&self, (number, user): (u64, &str), command: &Value, out: &Arc<Mutex<TcpStream>>) {
        let id = &command["id"];
        let mut rooms = self.rooms.lock().unwrap();
        // Commands that name no room are about none.
        let room = rooms.entry(command["room"].as_str().unwrap_or_default().to_owned()).or_default();
        match command["type"].as_str().unwrap() {
            "room:create" => send(out, &json!({"type":"ok","id":id,"seq":0}).to_string()),
            "room:join" | "room:subscribe" => self.enter(room, number, command, out),
            "room:leave" => {
                room.subscribers.retain(|(other, _)| *other != number);
                send(out, &json!({"type":"ok","id":id}).to_string());
            }
            "message:send" => self.post(room, user, command, out),
            // It keeps no inboxes: nobody may be notified.
            "notify" => send(out, &json!({"type":"error","id":id,"code":103,"temporary":false}).to_string()),
            // Nobody is told of it.
            "ping" | "activity" | "message:read" | "message:delivered" | "message:edit" | "message:history"
            | "reaction:add" | "presence:set" | "presence:get" => {
                send(out, &json!({"type":"ok","id":id,"ts":1}).to_string());
            }
            other => panic!("the tool does not send {other}"),
        }
    }

    fn enter(&self, room: &mut Room, number: u64, command: &Value, out: &Arc<Mutex<TcpStream>>) {
        let since = command["since"]["seq"].as_u64();
        let recovered = since.is_some() && self.fault != Fault::Forgetful;
        let head = room.log.len() as u64;
        let ok = json!({"type":"ok","id":command["id"],"epoch":"e1","seq":head,"recovered":recovered});
        send(out, &ok.to_string());
        if let Some(since) = since.filter(|_| recovered) {
            let skipped = usize::from(self.fault == Fault::SilentResume);
            room.log.iter().skip(since as usize + skipped).for_each(|event| send(out, event));
        }
        room.subscribers.push((number, out.clone()));
    }

    fn post(&self, room: &mut Room, user: &str, command: &Value, out: &Arc<Mutex<TcpStream>>) {
        let (id, seq) = (&command["id"], room.log.len() as u64 + 1);
        let is_time = seq == FAULT_AT;
        let refusal = |code: u64, temporary: bool| {
            json!({"type":"error","id":id,"code":code,"temporary":temporary,"retry_after_ms":5}).to_string()
        };
        if self.fault == Fault::Busy && id.as_u64().unwrap() % 10 == 9 {
            return send(out, &refusal(113, true));
        }
        if self.fault == Fault::Refuse && is_time && room.held.is_none() {
            room.held = Some(String::new());
            return send(out, &refusal(103, false));
        }
        if self.fault == Fault::BusyForGood && seq >= 10 {
            return send(out, &refusal(113, true));
        }
        if self.fault == Fault::AckOnly && is_time && room.held.is_none() {
            room.held = Some(String::new());
            return send(out, &json!({"type":"ok","id":id,"seq":1,"duplicate":false}).to_string());
        }
        let body = command["body"].as_str().unwrap();
        let event = |body: &str| {
            let (room, client) = (&command["room"], &command["client_id"]);
            json!({"type":"message:created","room":room,"seq":seq,"author":user,"client_id":client,"body":body})
                .to_string()
        };
        let forged = event(&format!("{}!", &body[..body.len() - 1]));
        let honest = match self.fault {
            Fault::ForgeForAll if is_time => forged.clone(),
            Fault::OtherTime if is_time => event(&format!("{:016x}{}", u64::MAX / 2, &body[16..])),
            Fault::OtherAuthor if is_time => event(body).replace(&format!("\"{user}\""), "\"mallory\""),
            Fault::OtherRoom if is_time => event(body).replace(&command["room"].to_string(), "\"load/another/0\""),
            _ => event(body),
        };
        room.log.push(honest.clone());
        let more = match self.fault {
            Fault::StoreTwice if is_time => {
                Some(honest.replace(&format!("\"seq\":{seq}"), &format!("\"seq\":{}", seq + 1)))
            }
            Fault::Invent if is_time => {
                let room = &command["room"];
                Some(json!({"type":"message:created","room":room,"seq":seq + 1,"author":"u","body":"x"}).to_string())
            }
            _ => None,
        };
        room.log.extend(more.clone());
        let acked = if is_time && self.fault == Fault::WrongAck { seq - 1 } else { seq };
        if !(is_time && self.fault == Fault::NoAck) {
            send(out, &json!({"type":"ok","id":id,"seq":acked,"duplicate":false}).to_string());
        }
        let victim = room.subscribers.len() - 1;
        let late = room.held.take().filter(|held| !held.is_empty());
        for at in 0..room.subscribers.len() {
            let to = room.subscribers[at].1.clone();
            if at == victim && is_time {
                self.wrong(room, command["room"].as_str().unwrap(), &to, (&honest, &forged), seq);
            } else {
                send(&to, &honest);
            }
        }
        for (to, more) in room.subscribers.iter().flat_map(|(_, to)| Some(to).zip(more.as_ref())) {
            send(to, more);
        }
        if let Some(late) = late {
            send(&room.subscribers[victim].1, &late);
        }
    }

    /// What the victim gets in place of the event.
    fn wrong(&self, room: &mut Room, name: &str, to: &Arc<Mutex<TcpStream>>, (event, forged): (&str, &str), seq: u64) {
        let gap_of = |room: &str, last: u64| json!({"type":"gap","room":room,"last":last,"head":seq}).to_string();
        let gap = |last: u64| gap_of(name, last);
        match self.fault {
            Fault::Drop => {}
            Fault::Double => {
                send(to, event);
                send(to, event);
            }
            Fault::Swap => room.held = Some(event.to_owned()),
            Fault::Forge => send(to, forged),
            Fault::ToldGap => send(to, &gap(seq - 1)),
            Fault::StrangeGap => send(to, &gap_of("another's", seq - 1)),
            Fault::WrongGap => send(to, &gap(seq - 2)),
            Fault::Garbage => {
                send(to, "[not an object");
                send(to, event);
            }
            Fault::Close => {
                // FIN, with the close code first: 4103.
                let _ = to.lock().unwrap().write_all(&[0x88, 2, 0x10, 0x07]);
                let _ = to.lock().unwrap().shutdown(Shutdown::Both);
            }
            _ => send(to, event),
        }
    }
}
