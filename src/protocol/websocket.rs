//! Bytes to messages (RFC 6455), over memory: one [`Codec`] a connection, no socket, no waiting.
//!
//! Feed what arrived to [`Codec::read`] until it returns nothing; send what it put into `replies`
//! (pongs, the echo of a close) before other frames. A [`Fail`] ends reading: answer it with
//! [`Codec::close`] and close the socket.
//!
//! Two ways through. A whole, unfragmented text frame (nearly all of them) is unmasked straight out
//! of the received bytes. Everything else (control frames, fragments, frames cut by the end of a
//! read) goes through tungstenite's `WebSocketContext`, which is made when it is needed and dropped
//! at the next boundary between messages: an idle connection owns no buffer at all, and none keeps
//! the memory of its largest message. To make that safe the codec hands the context exactly one
//! frame at a time, so that a boundary is known to be one; it reads frame headers ahead for it, and
//! refuses on the header what RFC 6455 forbids, before the payload has arrived.
//!
//! It refuses to send data frames: those are encoded once, for everybody (see `encode`).

use std::io::{self, Cursor, Read, Write};

use tungstenite::error::Error as WsError;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Message, Utf8Bytes};

use super::error::CloseCode;

/// Longest header of a frame from a client (RFC 6455 section 5.2: masked, 64-bit length).
const HEADER_BYTES_MAX: usize = 14;
/// Fragments of one message. A fragment may be empty, so that bytes alone bound nothing.
const FRAGMENTS_MAX: u16 = 1_024;
/// Longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// Longest reason of a close frame: a control payload less the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// What a client said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A ping. Its pong is in `replies`.
    Ping,
    /// A pong, asked for or not.
    Pong,
    /// The client closes. The echo is in `replies`; nothing is read after it.
    Close {
        /// The code, when one was given (1002 when the one given may not be sent).
        code: Option<u16>,
        /// The reason; a peer's text, at most 123 bytes.
        reason: Utf8Bytes,
    },
}

/// Why a connection cannot go on: the client broke RFC 6455 or a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fail {
    /// For the close frame: 1002, 1003, 1007 or 1009.
    pub code: CloseCode,
    /// For the close frame and the log. Holds nothing of the peer's.
    pub reason: &'static str,
}

impl Fail {
    #[cold]
    const fn new(code: CloseCode, reason: &'static str) -> Self {
        Self { code, reason }
    }
}

/// How the frame that is being read changes "a fragmented message is open" once it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Keep,
    Open,
    Finish,
}

/// The WebSocket state of one connection, server side.
pub struct Codec {
    /// Made for what needs it; holds part of a frame, or of a message, or is dropped.
    context: Option<Box<WebSocketContext>>,
    message_bytes_max: u32,
    /// Payload bytes still to come of the frame in `context`.
    rest: u32,
    head: [u8; HEADER_BYTES_MAX],
    head_len: u8,
    at_end: AtEnd,
    /// Fragments of a message that `context` holds.
    fragments: u16,
    is_reading: bool,
    is_close_sent: bool,
}

/// A frame header that passed every check.
struct Header {
    opcode: OpCode,
    is_final: bool,
    mask: [u8; 4],
    payload_bytes: u32,
}

impl Codec {
    /// A codec right after the upgrade. Messages and frames have at most `message_bytes_max` bytes.
    pub fn new(message_bytes_max: u32) -> Self {
        Self {
            context: None,
            message_bytes_max,
            rest: 0,
            head: [0; HEADER_BYTES_MAX],
            head_len: 0,
            at_end: AtEnd::Keep,
            fragments: 0,
            is_reading: true,
            is_close_sent: false,
        }
    }

    /// True until the client closed or failed: after that, `read` discards.
    pub fn is_reading(&self) -> bool {
        self.is_reading
    }

    /// True when a close frame has gone out, ours or the echo of the client's: send nothing more.
    pub fn is_close_sent(&self) -> bool {
        self.is_close_sent
    }

    /// True when both sides have closed, or ours has after a failure: close the socket.
    pub fn is_finished(&self) -> bool {
        self.is_close_sent && !self.is_reading
    }

    /// Takes bytes from `input` up to the next message; nothing when `input` is used up.
    ///
    /// A text is unmasked into `text`, whose content is replaced. Frames that must be answered are
    /// answered by appending to `replies`. Once our close has been sent, only the client's close is
    /// still returned.
    ///
    /// # Errors
    /// [`Fail`], once; nothing is read after it.
    pub fn read<'a>(
        &mut self,
        input: &mut &[u8],
        text: &'a mut Vec<u8>,
        replies: &mut Vec<u8>,
    ) -> Result<Option<Incoming<'a>>, Fail> {
        let result = self.next(input, text, replies);
        match result {
            Ok(None) => Ok(None),
            Ok(Some(Step::Text)) => match std::str::from_utf8(text) {
                Ok(text) => Ok(Some(Incoming::Text(text))),
                Err(_) => Err(self.fail(NOT_UTF8)),
            },
            Ok(Some(Step::Other(incoming))) => Ok(Some(incoming)),
            Err(fail) => Err(self.fail(fail)),
        }
    }

    fn fail(&mut self, fail: Fail) -> Fail {
        self.is_reading = false;
        self.context = None;
        fail
    }

    fn next(&mut self, input: &mut &[u8], text: &mut Vec<u8>, replies: &mut Vec<u8>) -> Result<Option<Step>, Fail> {
        loop {
            if !self.is_reading {
                *input = &[];
                return Ok(None);
            }
            if self.rest > 0 {
                let wanted = usize::try_from(self.rest).unwrap_or(usize::MAX).min(input.len());
                let (chunk, tail) = input.split_at(wanted);
                *input = tail;
                if chunk.is_empty() {
                    return Ok(None);
                }
                // `chunk` is no longer than `rest`.
                self.rest -= chunk.len() as u32;
                if let Some(step) = self.feed(chunk, text, replies)? {
                    return Ok(Some(step));
                }
                continue;
            }
            let Some(header) = self.read_header(input)? else { return Ok(None) };
            let is_whole_text = header.opcode == OpCode::Data(Data::Text) && header.is_final;
            if is_whole_text && let Some((payload, tail)) = input.split_at_checked(header.payload_bytes as usize) {
                *input = tail;
                self.head_len = 0;
                if self.is_close_sent {
                    continue;
                }
                unmask_into(text, payload, header.mask);
                return Ok(Some(Step::Text));
            }
            self.at_end = match header.opcode {
                OpCode::Control(_) => AtEnd::Keep,
                OpCode::Data(_) if header.is_final => AtEnd::Finish,
                OpCode::Data(_) => AtEnd::Open,
            };
            self.rest = header.payload_bytes;
            let (head, head_len) = (self.head, usize::from(self.head_len));
            self.head_len = 0;
            if let Some(step) = self.feed(head.split_at(head_len).0, text, replies)? {
                return Ok(Some(step));
            }
        }
    }

    /// Gathers a header in `head`, and checks it once it is whole.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<Header>, Fail> {
        loop {
            let have = usize::from(self.head_len);
            let wanted = if have < 2 { 2 } else { header_bytes(self.head[1]) };
            if have == wanted {
                break;
            }
            let (more, tail) = input.split_at((wanted - have).min(input.len()));
            if more.is_empty() {
                return Ok(None);
            }
            for (slot, byte) in self.head.iter_mut().skip(have).zip(more) {
                *slot = *byte;
            }
            // A header has at most 14 bytes.
            self.head_len += more.len() as u8;
            *input = tail;
        }
        let head = self.head.split_at(usize::from(self.head_len)).0;
        self.check_header(head).map(Some)
    }

    fn check_header(&self, head: &[u8]) -> Result<Header, Fail> {
        let protocol = |reason| Err(Fail::new(CloseCode::Protocol, reason));
        let Ok(Some((header, payload_bytes))) = FrameHeader::parse(&mut Cursor::new(head)) else {
            return protocol("an opcode that RFC 6455 does not define");
        };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return protocol("a reserved bit is set and no extension was agreed");
        }
        let Some(mask) = header.mask else { return protocol("a frame from a client is masked") };
        if header.len(payload_bytes) != head.len() {
            return protocol("a length is written in its shortest form");
        }
        match header.opcode {
            OpCode::Control(_) if !header.is_final => return protocol("a control frame is not fragmented"),
            OpCode::Control(_) if payload_bytes > CONTROL_BYTES_MAX as u64 => {
                return protocol("a control frame has at most 125 bytes");
            }
            OpCode::Data(Data::Continue) if self.fragments == 0 => {
                return protocol("nothing to continue");
            }
            OpCode::Data(Data::Continue) if self.fragments >= FRAGMENTS_MAX => {
                return Err(Fail::new(CloseCode::TooBig, "a message has at most 1024 fragments"));
            }
            OpCode::Data(Data::Text | Data::Binary) if self.fragments > 0 => {
                return protocol("a fragmented message is not finished");
            }
            OpCode::Data(Data::Binary) => {
                return Err(Fail::new(CloseCode::Unsupported, "this protocol is text only"));
            }
            _ => {}
        }
        let fitting = u32::try_from(payload_bytes).ok().filter(|bytes| *bytes <= self.message_bytes_max);
        let Some(payload_bytes) = fitting else { return Err(TOO_BIG) };
        Ok(Header { opcode: header.opcode, is_final: header.is_final, mask, payload_bytes })
    }

    /// Gives the context bytes of the current frame; `rest` says how many are still to come.
    fn feed(&mut self, chunk: &[u8], text: &mut Vec<u8>, replies: &mut Vec<u8>) -> Result<Option<Step>, Fail> {
        let max = self.message_bytes_max;
        let mut context = self.context.take().unwrap_or_else(|| new_context(max));
        // After our close nothing is answered any more.
        let mut nowhere = Vec::new();
        let replies = if self.is_close_sent { &mut nowhere } else { replies };
        let mut stream = Memory { input: chunk, output: replies };
        let message = match context.read(&mut stream) {
            Ok(message) => Some(message),
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(fail_of(&error)),
        };
        if message.is_some() {
            match context.flush(&mut stream) {
                Ok(()) | Err(WsError::ConnectionClosed) => {}
                Err(error) => return Err(fail_of(&error)),
            }
        }
        if self.rest == 0 {
            self.fragments = match self.at_end {
                AtEnd::Keep => self.fragments,
                AtEnd::Open => self.fragments + 1,
                AtEnd::Finish => 0,
            };
        }
        if self.rest > 0 || self.fragments > 0 {
            self.context = Some(context);
        }
        Ok(message.and_then(|message| self.on_message(message, text)))
    }

    fn on_message(&mut self, message: Message, text: &mut Vec<u8>) -> Option<Step> {
        let incoming = match message {
            Message::Close(frame) => {
                self.is_reading = false;
                self.is_close_sent = true;
                self.context = None;
                let code = frame.as_ref().map(|frame| u16::from(frame.code));
                Incoming::Close { code, reason: frame.map(|frame| frame.reason).unwrap_or_default() }
            }
            _ if self.is_close_sent => return None,
            Message::Text(message) => {
                text.clear();
                text.extend_from_slice(message.as_bytes());
                return Some(Step::Text);
            }
            Message::Ping(_) => Incoming::Ping,
            Message::Pong(_) => Incoming::Pong,
            // Binary is refused on its header, and a raw frame is never read.
            Message::Binary(_) | Message::Frame(_) => return None,
        };
        Some(Step::Other(incoming))
    }

    /// Appends a close frame to `out`, unless one has been sent already. `reason` is cut to fit.
    pub fn close(&mut self, out: &mut Vec<u8>, code: CloseCode, reason: &str) {
        if !self.is_close_sent {
            self.is_close_sent = true;
            close_frame(out, code, reason);
        }
    }
}

enum Step {
    /// In the caller's `text`.
    Text,
    Other(Incoming<'static>),
}

const NOT_UTF8: Fail = Fail { code: CloseCode::InvalidUtf8, reason: "a text is not UTF-8" };
const TOO_BIG: Fail = Fail { code: CloseCode::TooBig, reason: "a message is over message_bytes_max" };

fn new_context(message_bytes_max: u32) -> Box<WebSocketContext> {
    let max = Some(message_bytes_max as usize);
    let config =
        WebSocketConfig::default().read_buffer_size(0).write_buffer_size(0).max_message_size(max).max_frame_size(max);
    Box::new(WebSocketContext::new(Role::Server, Some(config)))
}

/// Bytes of a header whose second byte is `second` (RFC 6455 section 5.2).
const fn header_bytes(second: u8) -> usize {
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + if second & 0x80 == 0 { 0 } else { 4 }
}

#[cold]
fn fail_of(error: &WsError) -> Fail {
    match error {
        WsError::Capacity(_) => TOO_BIG,
        WsError::Utf8(_) => NOT_UTF8,
        _ => Fail::new(CloseCode::Protocol, "not as RFC 6455 has it"),
    }
}

/// Replaces `out` by `payload` with its mask taken off (RFC 6455 section 5.3).
fn unmask_into(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    out.clear();
    out.extend_from_slice(payload);
    mask_in_place(out, mask);
}

/// Masks or unmasks `bytes`, which begin at the start of a payload.
pub(super) fn mask_in_place(bytes: &mut [u8], mask: [u8; 4]) {
    let word = u64::from(u32::from_ne_bytes(mask)) * 0x1_0000_0001;
    let (words, tail) = bytes.as_chunks_mut::<8>();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends an empty ping.
pub fn ping_frame(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x89, 0]);
}

/// Appends a close frame. `reason` is cut at a character's end to the 123 bytes that fit.
pub fn close_frame(out: &mut Vec<u8>, code: CloseCode, reason: &str) {
    let mut end = reason.len().min(CLOSE_REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = reason.get(..end).unwrap_or_default();
    // At most 125, so the length is one byte.
    out.extend_from_slice(&[0x88, 2 + reason.len() as u8]);
    out.extend_from_slice(&code.number().to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// A stream over memory: what has not arrived would block, what is written is kept.
struct Memory<'a> {
    input: &'a [u8],
    output: &'a mut Vec<u8>,
}

impl Read for Memory<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Memory<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            len @ 0..=125 => out.push(0x80 | len as u8),
            len @ 126..=65_535 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&MASK);
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
        out
    }

    /// Everything that a codec said to `bytes`, fed in pieces of `step`.
    fn run(codec: &mut Codec, bytes: &[u8], step: usize) -> (Vec<String>, Vec<u8>) {
        let (mut said, mut replies, mut text) = (Vec::new(), Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            let mut input = piece;
            loop {
                match codec.read(&mut input, &mut text, &mut replies) {
                    Ok(Some(incoming)) => said.push(format!("{incoming:?}")),
                    Ok(None) => break,
                    Err(fail) => said.push(format!("{}", fail.code.number())),
                }
            }
            assert!(input.is_empty());
        }
        (said, replies)
    }

    #[test]
    fn a_codec_is_small_and_owns_nothing_between_messages() {
        assert!(size_of::<Codec>() <= 48, "{}", size_of::<Codec>());
        let mut codec = Codec::new(1024);
        let bytes = [frame(0x81, b"one"), frame(0x89, b"p"), frame(0x01, b"tw"), frame(0x80, b"o")].concat();
        let (said, replies) = run(&mut codec, &bytes, 1);
        assert_eq!(said, [r#"Text("one")"#, "Ping", r#"Text("two")"#]);
        assert_eq!(replies, [0x8a, 1, b'p']);
        assert!(codec.context.is_none() && (codec.head_len, codec.rest, codec.fragments) == (0, 0, 0));
    }

    #[test]
    fn masks_are_taken_off_at_every_length() {
        for len in 0..70 {
            let payload: Vec<u8> = (0..len).map(|n| b'a' + (n % 26)).collect();
            let (said, _) = run(&mut Codec::new(1024), &frame(0x81, &payload), usize::MAX);
            assert_eq!(said, [format!("Text({:?})", String::from_utf8(payload).unwrap())]);
        }
    }

    #[test]
    fn a_close_is_echoed_once_and_ends_reading() {
        let mut codec = Codec::new(1024);
        let close = frame(0x88, &[&1001u16.to_be_bytes()[..], b"bye"].concat());
        let (said, replies) = run(&mut codec, &[close.clone(), frame(0x81, b"late")].concat(), usize::MAX);
        assert_eq!(said, [r#"Close { code: Some(1001), reason: Utf8Bytes(b"bye") }"#]);
        assert_eq!(replies, [&[0x88, 5, 0x03, 0xe9][..], b"bye"].concat());
        assert!(codec.is_finished());
        let mut out = Vec::new();
        codec.close(&mut out, CloseCode::Normal, "");
        assert!(out.is_empty());
    }

    #[test]
    fn after_our_close_only_the_echo_counts() {
        let mut codec = Codec::new(1024);
        let mut out = Vec::new();
        codec.close(&mut out, CloseCode::Draining, "soon");
        assert_eq!(out, [&[0x88, 6, 0x10, 0x68][..], b"soon"].concat());
        assert!(codec.is_close_sent() && codec.is_reading());
        let bytes =
            [frame(0x81, b"x"), frame(0x01, b"y"), frame(0x89, b"p"), frame(0x80, b"z"), frame(0x88, &[0x10, 0x68])];
        let (said, replies) = run(&mut codec, &bytes.concat(), 1);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("Close"), "{said:?}");
        assert!(replies.is_empty() && codec.is_finished());
    }

    #[test]
    fn reasons_are_cut_between_characters() {
        let mut out = Vec::new();
        close_frame(&mut out, CloseCode::Protocol, &"é".repeat(100));
        assert_eq!((out[1], out.len()), (2 + 122, 2 + 2 + 122));
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }
}
