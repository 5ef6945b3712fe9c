//! One connection's life as the tool plays it: handshake, hello, room, messages. Pure: bytes in,
//! bytes out, time a parameter; sockets are the driver's.
//!
//! ```text
//!  Closed ─ start ─► Handshake ─ 101 ─► Hello ─ hello ─► Ready ─ subscribe ─► Subscribing ─ ok ─► Live
//!     ▲                                                                                            │
//!     └────────────────────────── close frame, end of stream, end() ◄──────────────────────────────┘
//! ```
//! Every delivery is checked here (see [`crate::verify`] and [`crate::audit`]); one frame in 64 also goes through a full
//! JSON parser. What the driver has to act on comes out as [`News`].

use std::collections::VecDeque;

use antiphon::engine::rng::Rng;
use serde::de::IgnoredAny;
use tungstenite::handshake::derive_accept_key;

use crate::audit::Audit;
use crate::body::Filler;
use crate::dialect::{self, Dialect, Packet};
use crate::frame::{FrameReader, Opcode, push_masked};
use crate::measure::{Meters, Schedule};
use crate::roll::Roll;
use crate::scan::{self, Head};
use crate::tally::{Tally, count_step};
use crate::verify::{Cursor, Ledger, Seq, Step};
use crate::world::World;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// No connection.
    Closed,
    /// The request is on its way.
    Handshake,
    /// Upgraded; `hello` has not come.
    Hello,
    /// Greeted, in no room.
    Ready,
    /// Asked for the room.
    Subscribing,
    /// In the room.
    Live,
}

/// What the driver has to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// `hello` came.
    Greeted,
    /// The room this client was to create stands.
    Created,
    /// The connection is in its room.
    Live,
    /// A message was acknowledged.
    Acked,
    /// A message was refused for now: send it again after so long.
    TryAgain(Message, u64),
    /// A message was refused for good.
    Refused,
    /// The connection is over: close code, or 0 without one.
    Closed(i64),
}

/// A message on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The tool's id of it, never 0; travels as `client_id`.
    pub client: u64,
    /// When it was meant to be sent, ns; travels in the body.
    pub sent_ns: u64,
}

/// What a reply is awaited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Create,
    Enter {
        resumes: bool,
    },
    Send(Message),
    /// A page of history, for what a `gap` left out.
    History,
    /// Whether the connection still stands.
    Probe,
}

/// What all clients of a thread share.
pub struct Shared<'a> {
    /// Names and clock.
    pub world: &'a World,
    /// What is measured when.
    pub schedule: &'a Schedule,
    /// One for each room that has members in this thread.
    pub ledgers: &'a mut [Ledger],
    /// What the thread sent.
    pub roll: &'a mut Roll,
    /// Counts.
    pub tally: &'a mut Tally,
    /// Latencies.
    pub meters: &'a mut Meters,
    /// Masks.
    pub rng: &'a mut Rng,
    /// Fillers of bodies.
    pub filler: &'a Filler,
    /// What happened.
    pub news: &'a mut Vec<News>,
    /// The time of what is being handled.
    pub now_ns: u64,
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    /// Which user.
    pub user: u32,
    /// Which ledger of the thread.
    pub local_room: u32,
    /// Where it stands.
    pub stage: Stage,
    /// Bytes to be sent.
    pub out: Vec<u8>,
    /// When connecting began, ns.
    pub started_ns: u64,
    /// Its latencies are not recorded, and 4102 is an expected end: a slow reader.
    pub is_slow: bool,
    dialect: Dialect,
    room: Box<[u8]>,
    reader: FrameReader,
    /// The response's head as far as it has come.
    response: Vec<u8>,
    asked: VecDeque<(u64, Asked)>,
    next_id: u64,
    cursor: Cursor,
    epoch: Box<[u8]>,
    /// Deliveries up to here are a resume's, not live ones.
    resumed_until: Seq,
    /// What a slow reader was told that it missed, and has not read from the history: first and last.
    missed: VecDeque<(Seq, Seq)>,
    /// A page of history is asked for.
    is_filling: bool,
}

/// A fixed key makes fixed answers: computed once.
const HANDSHAKE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// Longest response head.
const RESPONSE_BYTES_MAX: usize = 8 * 1024;
/// One in so many frames is parsed in full.
const SAMPLE_EVERY: u64 = 64;

impl Client {
    /// A client that is not connected.
    pub fn new(world: &World, user: u32, local_room: u32) -> Self {
        Self {
            user,
            local_room,
            stage: Stage::Closed,
            out: Vec::new(),
            started_ns: 0,
            is_slow: false,
            dialect: world.dialect,
            room: world.room_name(world.room_of(user)).into_bytes().into_boxed_slice(),
            reader: FrameReader::default(),
            response: Vec::new(),
            asked: VecDeque::new(),
            next_id: 1,
            cursor: Cursor::default(),
            epoch: Box::default(),
            resumed_until: 0,
            missed: VecDeque::new(),
            is_filling: false,
        }
    }

    /// Entries that the server said it left out and that were not read from the history.
    pub fn missing(&self) -> u64 {
        self.missed.iter().map(|(first, last)| last + 1 - first).sum()
    }

    /// The number expected next; 0 before the first subscription.
    pub fn next_seq(&self) -> Seq {
        self.cursor.next()
    }

    /// Replies that are awaited.
    pub fn unanswered(&self) -> usize {
        self.asked.len()
    }

    /// True when it was in its room before and has a cursor to return with.
    pub fn has_cursor(&self) -> bool {
        !self.epoch.is_empty()
    }

    // --------------------------------------------------------------------------------------------
    // What the tool does

    /// Writes the upgrade request; the connection stands.
    pub fn start(&mut self, world: &World) {
        self.stage = Stage::Handshake;
        self.reader = FrameReader::default();
        self.out.clear();
        match self.dialect {
            Dialect::Antiphon => {
                push_upgrade(&mut self.out, world, self.dialect.query(), Some(&world.token(self.user)))
            }
            Dialect::Plain | Dialect::SocketIo => push_upgrade(&mut self.out, world, self.dialect.query(), None),
        }
    }

    /// Asks for the room to be made, with as many of its members as a frame takes. The others use
    /// it as a public room.
    pub fn create_room(&mut self, world: &World, rng: &mut Rng) {
        /// Well below the lowest `message_bytes_max`.
        const MEMBERS_BYTES_MAX: usize = 9 * 1024;
        /// `members` of one `room:create`.
        const MEMBERS_MAX: usize = 1_000;
        let mut members = String::new();
        for user in world.members(world.room_of(self.user)).filter(|user| *user != self.user).take(MEMBERS_MAX) {
            let separator = if members.is_empty() { "" } else { "," };
            members.push_str(&format!("{separator}\"{}\"", world.user_name(user)));
            if members.len() > MEMBERS_BYTES_MAX {
                break;
            }
        }
        self.command(rng, Asked::Create, |out, room| {
            out.extend_from_slice(b"\"type\":\"room:create\",\"kind\":\"public\",\"room\":\"");
            out.extend_from_slice(room);
            out.extend_from_slice(b"\",\"members\":[");
            out.extend_from_slice(members.as_bytes());
            out.push(b']');
        });
    }

    /// Enters the room: by `room:join`, or by `room:subscribe`; with the cursor when there is one.
    pub fn enter_room(&mut self, rng: &mut Rng, join: bool) {
        self.stage = Stage::Subscribing;
        let resumes = self.has_cursor();
        let join = join && self.dialect == Dialect::Antiphon;
        let (epoch, last) = (self.epoch.clone(), self.cursor.last());
        self.command(rng, Asked::Enter { resumes }, |out, room| {
            let kind: &[u8] = if join { b"room:join" } else { b"room:subscribe" };
            for part in [b"\"type\":\"", kind, b"\",\"room\":\"", room, b"\""] {
                out.extend_from_slice(part);
            }
            if resumes {
                out.extend_from_slice(b",\"since\":{\"epoch\":\"");
                out.extend_from_slice(&epoch);
                out.extend_from_slice(format!("\",\"seq\":{last}}}").as_bytes());
            }
        });
    }

    /// Sends a message.
    pub fn send(&mut self, message: Message, filler: &Filler, rng: &mut Rng) {
        self.command(rng, Asked::Send(message), |out, room| {
            out.extend_from_slice(b"\"type\":\"message:send\",\"room\":\"");
            out.extend_from_slice(room);
            out.extend_from_slice(b"\",\"client_id\":\"");
            scan::push_hex16(out, message.client);
            out.extend_from_slice(b"\",\"body\":\"");
            scan::push_hex16(out, message.sent_ns);
            out.extend_from_slice(filler.of(message.client));
            out.push(b'"');
        });
    }

    /// Says goodbye: close 1000.
    pub fn close(&mut self, rng: &mut Rng) {
        if matches!(self.stage, Stage::Hello | Stage::Ready | Stage::Subscribing | Stage::Live) {
            push_masked(&mut self.out, Opcode::Close, rng.next_u64() as u32, |o| {
                o.extend_from_slice(&1000_u16.to_be_bytes())
            });
        }
    }

    /// The connection is gone; the cursor stays. Returns the messages that were not answered.
    pub fn end(&mut self) -> impl Iterator<Item = Message> + use<> {
        self.stage = Stage::Closed;
        self.is_filling = false;
        self.out = Vec::new();
        self.response = Vec::new();
        self.reader = FrameReader::default();
        std::mem::take(&mut self.asked).into_iter().filter_map(|(_, asked)| match asked {
            Asked::Send(message) => Some(message),
            Asked::Create | Asked::Enter { .. } | Asked::History | Asked::Probe => None,
        })
    }

    fn command(&mut self, rng: &mut Rng, asked: Asked, write: impl FnOnce(&mut Vec<u8>, &[u8])) {
        let id = self.next_id;
        self.next_id += 1;
        self.asked.push_back((id, asked));
        let room = &self.room;
        if self.dialect == Dialect::SocketIo {
            let mut members = Vec::with_capacity(256);
            write(&mut members, room);
            push_masked(&mut self.out, Opcode::Text, rng.next_u64() as u32, |out| {
                dialect::push_event(out, id, &members)
            });
            return;
        }
        push_masked(&mut self.out, Opcode::Text, rng.next_u64() as u32, |out| {
            out.push(b'{');
            write(out, room);
            out.extend_from_slice(b",\"id\":");
            antiphon::protocol::encode::integer(out, id);
            out.push(b'}');
        });
    }

    // --------------------------------------------------------------------------------------------
    // What the server says

    /// Takes received bytes.
    pub fn on_bytes(&mut self, bytes: &[u8], shared: &mut Shared<'_>) {
        shared.tally.bytes += bytes.len() as u64;
        match self.stage {
            Stage::Closed => {}
            Stage::Handshake => self.on_response(bytes, shared),
            _ => self.on_frames(bytes, shared),
        }
    }

    fn on_response(&mut self, bytes: &[u8], shared: &mut Shared<'_>) {
        self.response.extend_from_slice(bytes);
        let Some(end) = self.response.windows(4).position(|four| four == b"\r\n\r\n") else {
            if self.response.len() > RESPONSE_BYTES_MAX {
                self.fail(shared);
            }
            return;
        };
        let response = std::mem::take(&mut self.response);
        if !is_upgraded(&response[..end]) {
            self.fail(shared);
            return;
        }
        self.stage = Stage::Hello;
        if self.dialect == Dialect::Plain {
            self.greeted(shared);
        }
        self.on_frames(&response[end + 4..], shared);
    }

    fn on_frames(&mut self, bytes: &[u8], shared: &mut Shared<'_>) {
        // The reader lends payloads while the rest of the client changes.
        let mut reader = std::mem::take(&mut self.reader);
        let result = reader.feed(bytes, |opcode, payload| match opcode {
            Opcode::Text => self.on_text(payload, shared),
            Opcode::Ping => {
                shared.tally.pings += 1;
                push_masked(&mut self.out, Opcode::Pong, shared.rng.next_u64() as u32, |o| {
                    o.extend_from_slice(payload)
                });
            }
            Opcode::Pong => {}
            Opcode::Close => {
                let code = payload.first_chunk().map_or(0, |two| i64::from(u16::from_be_bytes(*two)));
                shared.news.push(News::Closed(code));
            }
            Opcode::Binary => shared.tally.malformed += 1,
        });
        self.reader = reader;
        if result.is_err() {
            self.fail(shared);
        }
    }

    fn fail(&mut self, shared: &mut Shared<'_>) {
        shared.tally.malformed += 1;
        shared.news.push(News::Closed(0));
    }

    fn on_text(&mut self, payload: &[u8], shared: &mut Shared<'_>) {
        shared.tally.frames += 1;
        if self.dialect == Dialect::SocketIo {
            self.on_packet(payload, shared);
        } else {
            self.on_object(Head::default(), payload, shared);
        }
    }

    /// A frame of Socket.IO.
    fn on_packet(&mut self, payload: &[u8], shared: &mut Shared<'_>) {
        let mut say = |words: &[u8], rng: &mut Rng| {
            push_masked(&mut self.out, Opcode::Text, rng.next_u64() as u32, |out| out.extend_from_slice(words));
        };
        match dialect::packet(payload) {
            Some(Packet::Open) => say(dialect::ENTER, shared.rng),
            Some(Packet::Ping) => {
                shared.tally.pings += 1;
                say(dialect::PONG, shared.rng);
            }
            Some(Packet::Connected) if self.stage == Stage::Hello => self.greeted(shared),
            Some(Packet::Event { name, object }) => {
                self.on_object(Head { kind: name, ..Head::default() }, object, shared);
            }
            Some(Packet::Ack { id, object }) => {
                self.on_object(Head { id: Some(id), ..Head::default() }, object, shared)
            }
            Some(Packet::Close) => shared.news.push(News::Closed(0)),
            Some(Packet::Connected) | None => shared.tally.malformed += 1,
        }
    }

    fn greeted(&mut self, shared: &mut Shared<'_>) {
        self.stage = Stage::Ready;
        shared.news.push(News::Greeted);
    }

    /// One object of the protocol; `known` is what the frame around it told.
    fn on_object<'a>(&mut self, known: Head<'a>, payload: &'a [u8], shared: &mut Shared<'_>) {
        if shared.tally.frames.is_multiple_of(SAMPLE_EVERY) {
            shared.tally.sampled += 1;
            if serde_json::from_slice::<IgnoredAny>(payload).is_err() {
                shared.tally.malformed += 1;
                return;
            }
        }
        let Ok(head) = scan::head_from(known, payload) else {
            shared.tally.malformed += 1;
            return;
        };
        match head.kind {
            b"ok" => self.on_reply(&head, payload, shared),
            b"error" => self.on_error(&head, payload, shared),
            b"hello" => self.on_hello(payload, shared),
            b"gap" => self.on_gap(&head, payload, shared),
            _ if head.seq.is_some() && head.room.is_some() => self.on_entry(&head, payload, shared),
            _ => {}
        }
    }

    fn on_hello(&mut self, payload: &[u8], shared: &mut Shared<'_>) {
        let Ok(reply) = scan::reply(payload) else { return self.fail(shared) };
        if self.stage != Stage::Hello || reply.epoch.is_none() {
            return self.fail(shared);
        }
        self.greeted(shared);
    }

    fn on_gap(&mut self, head: &Head<'_>, payload: &[u8], shared: &mut Shared<'_>) {
        if head.room != Some(&*self.room) {
            shared.tally.malformed += 1;
            return;
        }
        shared.tally.gaps += 1;
        match scan::reply(payload) {
            Ok(scan::Reply { last: Some(last), head: Some(head), .. }) => {
                shared.tally.wrong_gaps += u64::from(last != self.cursor.last());
                self.excuse(head, shared);
            }
            _ => shared.tally.malformed += 1,
        }
    }

    /// A log entry of the room: a message, or anything else with a number.
    fn on_entry(&mut self, head: &Head<'_>, payload: &[u8], shared: &mut Shared<'_>) {
        let (Some(seq), Some(room)) = (head.seq, head.room) else { return };
        if *room != *self.room {
            shared.tally.malformed += 1;
            return;
        }
        if self.next_seq() == 0 {
            // Before the first `ok` of a subscription nothing is promised.
            return;
        }
        let step = self.cursor.advance(seq);
        if let Step::Excused(missing) = step {
            self.note_missed(seq - missing, seq - 1, shared);
        }
        count_step(shared.tally, step);
        let is_message = head.kind == b"message:created";
        let sent_ns = self.compare(seq, is_message, payload, shared);
        if !is_message {
            shared.tally.other_events += 1;
            return;
        }
        if sent_ns == 0 {
            // None of this tool's: counted when it was first seen, and no delivery.
            return;
        }
        shared.tally.delivered += 1;
        shared.tally.delivered_in_window += u64::from(shared.schedule.is_measuring(shared.now_ns));
        if self.stage == Stage::Live && seq > self.resumed_until && !self.is_slow {
            shared.meters.record_delivery(shared.schedule, sent_ns, shared.now_ns);
        }
    }

    /// Holds the entry against all books; returns when it was meant to be sent (0: it is no message of this tool).
    fn compare(&self, seq: Seq, is_message: bool, payload: &[u8], shared: &mut Shared<'_>) -> u64 {
        let mut audit = Audit {
            world: shared.world,
            ledger: &mut shared.ledgers[self.local_room as usize],
            roll: shared.roll,
            filler: shared.filler,
            tally: shared.tally,
        };
        audit.entry(self.user, self.local_room, seq, is_message, payload)
    }
}

/// Appends the upgrade request.
pub fn push_upgrade(out: &mut Vec<u8>, world: &World, query: &str, token: Option<&str>) {
    let (path, host) = (&world.path, &world.host);
    let who = token.map(|token| format!("Sec-WebSocket-Protocol: antiphon.v1\r\nAuthorization: Bearer {token}\r\n"));
    let request = format!(
        "GET {path}{query} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {HANDSHAKE_KEY}\r\n{}\r\n",
        who.unwrap_or_default(),
    );
    out.extend_from_slice(request.as_bytes());
}

/// True when the response's head completes the upgrade.
pub fn is_upgraded(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head);
    let accept = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-accept").then_some(value.trim())
    });
    head.starts_with("HTTP/1.1 101") && accept == Some(expected_accept())
}

fn expected_accept() -> &'static str {
    static ACCEPT: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| derive_accept_key(HANDSHAKE_KEY.as_bytes()));
    &ACCEPT
}

mod history;
mod replies;

#[cfg(test)]
mod tests;
