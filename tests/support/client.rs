//! A blocking WebSocket client, for tests: says commands, waits for replies and events.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use antiphon::protocol::client::{
    NotUpgraded, ServerFrameKind, ServerFrames, client_key, close_code, frame_close, frame_pong, frame_text,
    masked_frame, read_response,
};
use serde_json::{Value, json};

use super::http::{self, Answer};
use super::{PATIENCE, token};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What an upgrade request looks like.
pub struct Connect {
    target: String,
    headers: Vec<(String, String)>,
}

impl Connect {
    /// As `user`, the token in the header.
    pub fn new(user: &str) -> Self {
        Self::anonymous().header("Authorization", &format!("Bearer {}", token(user)))
    }

    /// With `jwt` in the header.
    pub fn with_token(jwt: &str) -> Self {
        Self::anonymous().header("Authorization", &format!("Bearer {jwt}"))
    }

    /// Without a token.
    pub fn anonymous() -> Self {
        Self { target: "/ws".into(), headers: vec![("Sec-WebSocket-Protocol".into(), "antiphon.v1".into())] }
    }

    pub fn device(self, device: &str) -> Self {
        self.query("device", device)
    }

    pub fn query(mut self, name: &str, value: &str) -> Self {
        let mark = if self.target.contains('?') { '&' } else { '?' };
        self.target.push_str(&format!("{mark}{name}={value}"));
        self
    }

    /// Sets a header, in place of one of the same name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The request's bytes.
    pub fn request(&self, address: SocketAddr, key: &str) -> Vec<u8> {
        let mut head = format!(
            "GET {} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n",
            self.target
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// How a connection ended: code and reason of the close frame, 1006 without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub code: u16,
    pub reason: String,
}

/// What came.
#[derive(Debug)]
pub enum Heard {
    Json(Value),
    End(End),
    Nothing,
}

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    bytes: Vec<u8>,
    waiting: VecDeque<Value>,
    end: Option<End>,
    next_id: i64,
    /// The first frame from the server, when one was waited for.
    pub hello: Value,
    /// Pings that were answered.
    pub pings: u32,
    /// Head of the HTTP answer.
    pub head: String,
}

impl Client {
    /// Connects and waits for `hello`.
    pub fn open(address: SocketAddr, connect: Connect) -> Self {
        let mut client = Self::upgrade(address, &connect).unwrap_or_else(|answer| panic!("not upgraded: {answer:?}"));
        match client.hear(PATIENCE) {
            Heard::Json(hello) if hello["type"] == "hello" => client.hello = hello,
            other => panic!("no hello, but {other:?}"),
        }
        client
    }

    /// Connects and waits for `hello`, where the server may die at any moment.
    pub fn try_open(address: SocketAddr, connect: &Connect) -> Option<Self> {
        let mut client = Self::upgrade(address, connect).ok()?;
        match client.hear(PATIENCE) {
            Heard::Json(hello) if hello["type"] == "hello" => client.hello = hello,
            Heard::End(_) => return None,
            other => panic!("no hello, but {other:?}"),
        }
        Some(client)
    }

    /// Connects, and waits for the 101 only.
    pub fn upgrade(address: SocketAddr, connect: &Connect) -> Result<Self, Option<Answer>> {
        let key = client_key();
        let mut stream = http::try_connect(address).map_err(|_| None)?;
        stream.write_all(&connect.request(address, &key)).map_err(|_| None)?;
        Self::finish_upgrade(stream, &key)
    }

    /// Reads the answer to a request that was sent with `key`.
    pub fn finish_upgrade(mut stream: TcpStream, key: &str) -> Result<Self, Option<Answer>> {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        let length = loop {
            // The subprotocol is the test's own business: check the rest of the answer as if it were there.
            match read_response(&bytes, key) {
                Ok(Some(length)) => break length,
                Ok(None) => {}
                Err(NotUpgraded::Malformed("another subprotocol was selected")) => {
                    break bytes.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
                }
                Err(_) => {
                    let _ = stream.read_to_end(&mut bytes);
                    return Err(Answer::parse(&bytes));
                }
            }
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return Err(Answer::parse(&bytes)),
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            }
        };
        let rest = bytes.split_off(length);
        let head = String::from_utf8(bytes).unwrap();
        let hello = Value::Null;
        Ok(Self { stream, bytes: rest, waiting: VecDeque::new(), end: None, next_id: 0, hello, pings: 0, head })
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends a frame of any kind.
    pub fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut out = Vec::with_capacity(payload.len() + 14);
        masked_frame(&mut out, first, MASK, payload);
        self.raw(&out);
    }

    /// Sends a command as it is.
    pub fn say(&mut self, command: &Value) {
        let frame = text_frame(command);
        self.raw(&frame);
    }

    /// Sends a command under a new id, which is returned.
    pub fn begin(&mut self, mut command: Value) -> i64 {
        self.next_id += 1;
        command["id"] = self.next_id.into();
        self.say(&command);
        self.next_id
    }

    /// Waits for the reply to a command.
    pub fn reply(&mut self, id: i64) -> Value {
        self.wait(|value| value["id"] == id, &format!("the reply to {id}"))
    }

    /// Says a command and waits for its reply.
    pub fn ask(&mut self, command: Value) -> Value {
        let id = self.begin(command);
        self.reply(id)
    }

    /// Says a command that must succeed.
    pub fn ok(&mut self, command: Value) -> Value {
        let reply = self.ask(command.clone());
        assert_eq!(reply["type"], "ok", "{command} was answered {reply}");
        reply
    }

    /// Says a command that must be refused with `code`.
    pub fn refused(&mut self, command: Value, code: u16) -> Value {
        let reply = self.ask(command.clone());
        assert_eq!((&reply["type"], &reply["code"]), (&json!("error"), &json!(code)), "{command} got {reply}");
        reply
    }

    pub fn join(&mut self, room: &str) -> Value {
        self.ok(json!({"type": "room:join", "room": room}))
    }

    pub fn send(&mut self, room: &str, body: &str) -> Value {
        self.ok(json!({"type": "message:send", "room": room, "body": body}))
    }

    /// Waits for the next event of a type.
    pub fn event(&mut self, kind: &str) -> Value {
        self.wait(|value| value["type"] == kind && value.get("id").is_none(), kind)
    }

    /// Waits for a log entry of a room with at least this seq, and returns all of the room's that came.
    pub fn entries_until(&mut self, room: &str, seq: u64) -> Vec<Value> {
        let mut entries: Vec<Value> = Vec::new();
        while entries.last().is_none_or(|entry| entry["seq"].as_u64().unwrap() < seq) {
            let is_entry = |value: &Value| value["room"] == room && value["seq"].is_u64() && value.get("id").is_none();
            entries.push(self.wait(is_entry, &format!("seq {seq} of {room}")));
        }
        entries
    }

    /// Nothing of this type comes for a while.
    pub fn hears_no(&mut self, kind: &str, wait: Duration) {
        let until = Instant::now() + wait;
        while let Heard::Json(value) = self.hear(until.saturating_duration_since(Instant::now())) {
            self.waiting.push_back(value);
            if Instant::now() >= until {
                break;
            }
        }
        let found = self.waiting.iter().find(|value| value["type"] == kind);
        assert!(found.is_none(), "unexpected {found:?}");
    }

    /// Waits for the end of the connection.
    pub fn end(&mut self) -> End {
        self.end_within(PATIENCE)
    }

    pub fn end_within(&mut self, wait: Duration) -> End {
        let until = Instant::now() + wait;
        loop {
            match self.hear(until.saturating_duration_since(Instant::now())) {
                Heard::Json(value) => self.waiting.push_back(value),
                Heard::End(end) => return end,
                Heard::Nothing => panic!("the connection did not end"),
            }
        }
    }

    /// Says goodbye and waits for the echo.
    pub fn close(mut self) -> End {
        let mut out = Vec::new();
        frame_close(&mut out, MASK, 1000);
        self.raw(&out);
        self.end()
    }

    /// The first value that fits, whether it has come or is to come. The others keep their order.
    pub fn wait(&mut self, fits: impl Fn(&Value) -> bool, what: &str) -> Value {
        if let Some(at) = self.waiting.iter().position(&fits) {
            return self.waiting.remove(at).unwrap();
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match self.hear(until.saturating_duration_since(Instant::now())) {
                Heard::Json(value) if fits(&value) => return value,
                Heard::Json(value) => self.waiting.push_back(value),
                Heard::End(end) => panic!("waiting for {what}, the end came: {end:?}; before: {:?}", self.waiting),
                Heard::Nothing => panic!("{what} did not come; came: {:?}", self.waiting),
            }
        }
    }

    /// The next thing off the wire.
    pub fn hear(&mut self, wait: Duration) -> Heard {
        let until = Instant::now() + wait;
        loop {
            if let Some(heard) = self.next_frame() {
                return heard;
            }
            if let Some(end) = &self.end {
                return Heard::End(end.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Nothing;
            }
            self.stream.set_read_timeout(Some(left)).unwrap();
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return self.ended(1006, "end of stream"),
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(err) if matches!(err.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(err) => return self.ended(1006, &err.to_string()),
            }
        }
    }

    /// What comes up to the end of the stream.
    fn read_rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.bytes);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    fn ended(&mut self, code: u16, reason: &str) -> Heard {
        let end = self.end.get_or_insert(End { code, reason: reason.to_owned() });
        Heard::End(end.clone())
    }

    fn next_frame(&mut self) -> Option<Heard> {
        loop {
            let frame = ServerFrames::new(&self.bytes).next()?.unwrap_or_else(|bad| panic!("{bad:?}"));
            let payload = self.bytes[frame.payload.clone()].to_vec();
            self.bytes.drain(..frame.payload.end);
            match frame.kind {
                ServerFrameKind::Text => {
                    let text = std::str::from_utf8(&payload).unwrap();
                    let value = serde_json::from_str(text).unwrap_or_else(|err| panic!("{err}: {text}"));
                    return Some(Heard::Json(value));
                }
                ServerFrameKind::Ping => {
                    self.pings += 1;
                    let mut out = Vec::new();
                    frame_pong(&mut out, MASK, &payload);
                    let _ = self.stream.write_all(&out);
                }
                ServerFrameKind::Pong => {}
                ServerFrameKind::Close => {
                    let (code, reason) = close_code(&payload).unwrap_or((1005, ""));
                    let reason = reason.to_owned();
                    let mut out = Vec::new();
                    frame_close(&mut out, MASK, code);
                    let _ = self.stream.write_all(&out);
                    // RFC 6455 section 5.5.1: nothing follows a close frame.
                    let rest = self.read_rest();
                    assert!(rest.is_empty(), "{} bytes after close {code}", rest.len());
                    return Some(self.ended(code, &reason));
                }
            }
        }
    }
}

/// A command as a masked text frame.
pub fn text_frame(command: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    frame_text(&mut out, MASK, command.to_string().as_bytes());
    out
}
