//! The client's half of the wire, light: for the load generator and the tests.
//!
//! Writes the upgrade request and masked frames; checks the 101 response; walks the frames that the
//! server sent, in place and without copying. Strict where this server's promise is strict: its
//! frames are unmasked, whole, and of the shortest length form, and its messages are UTF-8.
//!
//! It refuses to hold state or buffers: the caller keeps the bytes and drops what was consumed.

use std::io::Write as _;
use std::ops::Range;

use tungstenite::handshake::derive_accept_key;

use super::upgrade::SUBPROTOCOL;
use super::websocket::mask_in_place;

/// What to ask for when connecting.
#[derive(Debug, Clone, Copy)]
pub struct ClientRequest<'a> {
    /// For the `Host` header.
    pub host: &'a str,
    /// Path and query, such as `/ws?device=phone`.
    pub target: &'a str,
    /// Value of `Sec-WebSocket-Key`: 16 bytes in base64 (see [`client_key`]).
    pub key: &'a str,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<&'a str>,
    /// Sent as `Origin`.
    pub origin: Option<&'a str>,
}

/// A fresh `Sec-WebSocket-Key`.
pub fn client_key() -> String {
    tungstenite::handshake::client::generate_key()
}

/// Appends an upgrade request that offers [`SUBPROTOCOL`].
pub fn write_request(out: &mut Vec<u8>, request: &ClientRequest<'_>) {
    let ClientRequest { host, target, key, token, origin } = request;
    let mut write = |line: std::fmt::Arguments<'_>| out.write_fmt(line).expect("writing to memory");
    write(format_args!("GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"));
    write(format_args!("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"));
    write(format_args!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"));
    if let Some(token) = token {
        write(format_args!("Authorization: Bearer {token}\r\n"));
    }
    if let Some(origin) = origin {
        write(format_args!("Origin: {origin}\r\n"));
    }
    write(format_args!("\r\n"));
}

/// Why an answer is not the upgrade that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotUpgraded {
    /// Another status than 101.
    Status(u16),
    /// Not an HTTP/1.1 response, or longer than it may be.
    Malformed(&'static str),
}

/// Longest response head that is waited for, bytes.
const RESPONSE_BYTES_MAX: usize = 8 * 1024;

/// Checks the server's answer to a request with `key`. Returns the length of its head once it is
/// there: what follows are frames.
///
/// # Errors
/// [`NotUpgraded`] for any other answer (RFC 6455 section 4.1, the client's requirements).
pub fn read_response(bytes: &[u8], key: &str) -> Result<Option<usize>, NotUpgraded> {
    let mut lines = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut lines);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < RESPONSE_BYTES_MAX => return Ok(None),
        _ => return Err(NotUpgraded::Malformed("not an HTTP response")),
    };
    if response.code != Some(101) {
        return Err(NotUpgraded::Status(response.code.unwrap_or(0)));
    }
    let header = |name: &str| {
        let mut found = response.headers.iter().filter(|line| line.name.eq_ignore_ascii_case(name));
        found.next().filter(|_| found.next().is_none()).map(|line| line.value)
    };
    if !header("Upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket")) {
        return Err(NotUpgraded::Malformed("Upgrade is not websocket"));
    }
    if !header("Connection").is_some_and(|value| value.eq_ignore_ascii_case(b"Upgrade")) {
        return Err(NotUpgraded::Malformed("Connection is not Upgrade"));
    }
    if header("Sec-WebSocket-Accept") != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(NotUpgraded::Malformed("Sec-WebSocket-Accept is not the key's"));
    }
    if header("Sec-WebSocket-Protocol") != Some(SUBPROTOCOL.as_bytes()) {
        return Err(NotUpgraded::Malformed("another subprotocol was selected"));
    }
    Ok(Some(length))
}

/// Appends one masked text frame. The mask need not be random here: no proxy is to be fooled.
pub fn frame_text(out: &mut Vec<u8>, mask: [u8; 4], json: &[u8]) {
    masked_frame(out, 0x81, mask, json);
}

/// Appends a masked pong that answers a ping with `payload`, at most 125 bytes.
pub fn frame_pong(out: &mut Vec<u8>, mask: [u8; 4], payload: &[u8]) {
    masked_frame(out, 0x8a, mask, payload);
}

/// Appends a masked close frame without a reason.
pub fn frame_close(out: &mut Vec<u8>, mask: [u8; 4], code: u16) {
    masked_frame(out, 0x88, mask, &code.to_be_bytes());
}

/// Appends one masked frame with the shortest length form (RFC 6455 section 5.2). `first` is the
/// first byte as it is: FIN, reserved bits and opcode.
pub fn masked_frame(out: &mut Vec<u8>, first: u8, mask: [u8; 4], payload: &[u8]) {
    out.push(first);
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        medium @ 126..=65_535 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(payload) = out.get_mut(start..) {
        mask_in_place(payload, mask);
    }
}

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFrame {
    /// What it is.
    pub kind: ServerFrameKind,
    /// Where its payload stands in the buffer.
    pub payload: Range<usize>,
}

/// The kinds of frame that this server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerFrameKind {
    /// A text message; its payload is UTF-8 (not checked here).
    Text,
    /// A ping, to be answered by [`frame_pong`].
    Ping,
    /// A pong.
    Pong,
    /// A close; see [`close_code`].
    Close,
}

/// The server broke RFC 6455, or its promise to send whole frames in their shortest form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadServerFrame(pub &'static str);

/// Walks the whole frames at the front of a buffer; a frame that is cut off ends the walk.
#[derive(Debug)]
pub struct ServerFrames<'a> {
    bytes: &'a [u8],
    at: usize,
    is_bad: bool,
}

impl<'a> ServerFrames<'a> {
    /// The frames in `bytes`, which begin at a frame's start.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, is_bad: false }
    }

    /// How many bytes the frames so far have: drop them, and keep the rest for the next time.
    pub const fn consumed(&self) -> usize {
        self.at
    }

    fn read(&self) -> Result<Option<ServerFrame>, BadServerFrame> {
        let Some([first, second, rest @ ..]) = self.bytes.get(self.at..) else { return Ok(None) };
        let kind = match first {
            0x81 => ServerFrameKind::Text,
            0x88 => ServerFrameKind::Close,
            0x89 => ServerFrameKind::Ping,
            0x8a => ServerFrameKind::Pong,
            _ => return Err(BadServerFrame("a fragment, a reserved bit, binary, or an unknown opcode")),
        };
        let (header, length, shortest) = match (*second, rest) {
            (0x80.., _) => return Err(BadServerFrame("a masked frame")),
            (126, [a, b, ..]) => (4, u64::from(u16::from_be_bytes([*a, *b])), 126),
            (127, [a, b, c, d, e, f, g, h, ..]) => (10, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 65_536),
            (126 | 127, _) => return Ok(None),
            (short, _) => (2, u64::from(short), 0),
        };
        if length < shortest {
            return Err(BadServerFrame("a length that is not in its shortest form"));
        }
        if kind != ServerFrameKind::Text && length > 125 {
            return Err(BadServerFrame("a control frame of more than 125 bytes"));
        }
        let start = self.at + header;
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        let end = end.ok_or(BadServerFrame("a length beyond all memory"))?;
        Ok((end <= self.bytes.len()).then_some(ServerFrame { kind, payload: start..end }))
    }
}

impl Iterator for ServerFrames<'_> {
    type Item = Result<ServerFrame, BadServerFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_bad {
            return None;
        }
        match self.read() {
            Ok(frame) => {
                let frame = frame?;
                self.at = frame.payload.end;
                Some(Ok(frame))
            }
            Err(bad) => {
                self.is_bad = true;
                Some(Err(bad))
            }
        }
    }
}

/// Code and reason of a close frame's payload, when it has them.
pub fn close_code(payload: &[u8]) -> Option<(u16, &str)> {
    let (code, reason) = payload.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*code), std::str::from_utf8(reason).ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use super::super::error::CloseCode;
    use super::super::upgrade::{HeadLimits, Origins, Route, Subprotocol, TokenOffer, read_head};
    use super::super::websocket::{Codec, Incoming, close_frame, ping_frame};
    use super::*;

    #[test]
    fn both_halves_of_the_handshake_agree() {
        let key = client_key();
        let mut sent = Vec::new();
        let request = ClientRequest {
            host: "127.0.0.1:1",
            target: "/ws?device=d-1&batch=1",
            key: &key,
            token: Some("a.b.c"),
            origin: Some("http://localhost:1"),
        };
        write_request(&mut sent, &request);
        sent.extend_from_slice(b"first frames");
        let limits = HeadLimits { bytes_max: 1024, headers_max: 16 };
        let route = read_head(&sent, &mut 0, limits, &Origins::local(1)).unwrap();
        let Some((Route::WebSocket(upgrade), consumed)) = route else { panic!("{route:?}") };
        assert_eq!(&sent[consumed..], b"first frames");
        assert_eq!((upgrade.device.as_str(), upgrade.batch), ("d-1", true));
        assert_eq!((&upgrade.token, upgrade.subprotocol), (&TokenOffer::One("a.b.c".into()), Subprotocol::V1));
        let mut answer = Vec::new();
        upgrade.write_response(&mut answer);
        for cut in 0..answer.len() {
            assert_eq!(read_response(&answer[..cut], &key), Ok(None), "{cut}");
        }
        assert_eq!(read_response(&answer, &key), Ok(Some(answer.len())));
        assert!(matches!(read_response(&answer, "AAAAAAAAAAAAAAAAAAAAAA=="), Err(NotUpgraded::Malformed(_))));
    }

    #[test]
    fn the_server_reads_what_the_client_writes() {
        for len in [0, 1, 7, 8, 125, 126, 4000, 65_535, 65_536] {
            let json = "j".repeat(len);
            let mut bytes = Vec::new();
            frame_text(&mut bytes, [1, 2, 3, 4], json.as_bytes());
            let (mut text, mut replies) = (Vec::new(), Vec::new());
            let read = Codec::new(1 << 20).read(&mut &bytes[..], &mut text, &mut replies).unwrap();
            assert_eq!(read, Some(Incoming::Text(&json)));
        }
    }

    #[test]
    fn the_client_reads_what_the_server_writes() {
        let mut bytes = Vec::new();
        for len in [0, 125, 126, 65_535, 65_536] {
            encode::frame_text(&mut bytes, |out| out.resize(out.len() + len, b'j'));
        }
        ping_frame(&mut bytes);
        close_frame(&mut bytes, CloseCode::Draining, "soon");
        let whole: Vec<ServerFrame> = ServerFrames::new(&bytes).map(Result::unwrap).collect();
        let lens: Vec<usize> = whole.iter().map(|frame| frame.payload.len()).collect();
        assert_eq!(lens, [0, 125, 126, 65_535, 65_536, 0, 6]);
        assert_eq!(whole[5].kind, ServerFrameKind::Ping);
        assert_eq!(close_code(&bytes[whole[6].payload.clone()]), Some((4200, "soon")));
        // A frame that is cut off anywhere waits.
        let tail = &bytes[bytes.len() - 8..];
        for cut in 0..tail.len() {
            let mut frames = ServerFrames::new(&tail[..cut]);
            assert_eq!((frames.next(), frames.consumed()), (None, 0));
        }
    }

    #[test]
    fn frames_that_this_server_never_sends_are_told() {
        let bad: [&[u8]; 8] = [
            &[0x01, 0],
            &[0x80, 0],
            &[0xc1, 0],
            &[0x82, 0],
            &[0x81, 0x80, 0, 0, 0, 0],
            &[0x81, 126, 0, 125],
            &[0x81, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            &[0x89, 126, 0, 126],
        ];
        for bytes in bad {
            let mut frames = ServerFrames::new(bytes);
            assert!(matches!(frames.next(), Some(Err(_))), "{bytes:?}");
            assert_eq!(frames.next(), None);
        }
        let mut endless = ServerFrames::new(&[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert!(matches!(endless.next(), Some(Err(_))));
    }
}
