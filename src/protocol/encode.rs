//! What the server says, written straight into bytes: no intermediate trees, no copies of copies.
//!
//! JSON functions append one object to `out`; [`frame_text`] wraps what they wrote into a WebSocket
//! text frame, so that a frame is encoded once and sent to everybody as it is.

use std::io::Write as _;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::command::CommandId;
use super::error::Refusal;
use super::ids::{RoomName, Seq, UnixMillis};

/// Kinds of log entry. Each is an event on the wire, and a small number in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// `message:created`
    MessageCreated = 1,
    /// `message:updated`
    MessageUpdated = 2,
    /// `message:deleted`
    MessageDeleted = 3,
    /// `room:joined`
    RoomJoined = 4,
    /// `room:left`
    RoomLeft = 5,
    /// `room:role_changed`
    RoomRoleChanged = 6,
    /// `room:kicked`
    RoomKicked = 7,
    /// `reaction:added`
    ReactionAdded = 8,
    /// `reaction:removed`
    ReactionRemoved = 9,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::MessageCreated,
        Self::MessageUpdated,
        Self::MessageDeleted,
        Self::RoomJoined,
        Self::RoomLeft,
        Self::RoomRoleChanged,
        Self::RoomKicked,
        Self::ReactionAdded,
        Self::ReactionRemoved,
    ];

    /// The `type` on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessageCreated => "message:created",
            Self::MessageUpdated => "message:updated",
            Self::MessageDeleted => "message:deleted",
            Self::ReactionAdded => "reaction:added",
            Self::ReactionRemoved => "reaction:removed",
            Self::RoomJoined => "room:joined",
            Self::RoomLeft => "room:left",
            Self::RoomRoleChanged => "room:role_changed",
            Self::RoomKicked => "room:kicked",
        }
    }

    /// The kind with this number in the store.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// One log entry as the store keeps it, ready to be written as an event.
#[derive(Debug, Clone, Copy)]
pub struct LoggedEvent<'a> {
    /// What happened.
    pub kind: EventKind,
    /// The room's name as a JSON string, quotes included (see [`json_string`]).
    pub room_json: &'a str,
    /// Number within the room.
    pub seq: Seq,
    /// When it was numbered.
    pub ts: UnixMillis,
    /// Who wrote it; empty for membership events.
    pub author: &'a str,
    /// The author's own id for it.
    pub client_id: Option<&'a str>,
    /// The rest of the object's fields as JSON, without braces; may be empty.
    pub fields: &'a str,
}

impl LoggedEvent<'_> {
    /// Appends the event as one JSON object.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(self.kind.as_str().as_bytes());
        out.extend_from_slice(b"\",\"room\":");
        out.extend_from_slice(self.room_json.as_bytes());
        out.extend_from_slice(b",\"seq\":");
        integer(out, self.seq);
        out.extend_from_slice(b",\"ts\":");
        integer(out, self.ts);
        if !self.author.is_empty() {
            out.extend_from_slice(b",\"author\":\"");
            out.extend_from_slice(self.author.as_bytes());
            out.push(b'"');
        }
        if let Some(client_id) = self.client_id {
            out.extend_from_slice(b",\"client_id\":");
            string(out, client_id);
        }
        if !self.fields.is_empty() {
            out.push(b',');
            out.extend_from_slice(self.fields.as_bytes());
        }
        out.push(b'}');
    }
}

/// Appends the stand-in for an entry that this reader may not see, so that its seqs stay dense.
pub fn hidden_event(out: &mut Vec<u8>, room_json: &str, seq: Seq, ts: UnixMillis) {
    out.extend_from_slice(b"{\"type\":\"message:hidden\",\"room\":");
    out.extend_from_slice(room_json.as_bytes());
    out.extend_from_slice(b",\"seq\":");
    integer(out, seq);
    out.extend_from_slice(b",\"ts\":");
    integer(out, ts);
    out.push(b'}');
}

/// Appends the stand-in for the entries `first..=last` that a subscription's filter hides; `ts` is the
/// last one's. For a single entry it is [`hidden_event`].
pub fn hidden_events(out: &mut Vec<u8>, room_json: &str, first: Seq, last: Seq, ts: UnixMillis) {
    hidden_event(out, room_json, last, ts);
    if first < last {
        out.pop();
        field_integer(out, "from", first);
        out.push(b'}');
    }
}

/// Bytes that are looked at together.
const PLAIN_BYTES: usize = 16;

/// True when none of these is escaped, nor may be the first of some that are. Without a branch, so that it compiles to a
/// few vector instructions.
fn is_plain(chunk: &[u8; PLAIN_BYTES]) -> bool {
    let is_special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte == 0xe2);
    !chunk.iter().fold(false, |any, byte| any | is_special(*byte))
}

/// Appends `text` as a JSON string with its quotes (RFC 8259 section 7).
///
/// U+2028 and U+2029 are escaped too, since they end a line in JavaScript source.
pub fn string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    let (mut from, mut start) = (0, 0);
    while start < bytes.len() {
        // Most texts have nothing to escape; that is seen many bytes at a time.
        if bytes[start..].first_chunk().is_some_and(is_plain) {
            start += PLAIN_BYTES;
            continue;
        }
        let end = bytes.len().min(start + PLAIN_BYTES);
        for at in start..end {
            let escape = match bytes[at] {
                b'"' => b"\\\"".as_slice(),
                b'\\' => b"\\\\",
                b'\n' => b"\\n",
                b'\r' => b"\\r",
                b'\t' => b"\\t",
                byte @ 0..=0x1f => {
                    out.extend_from_slice(&bytes[from..at]);
                    out.extend_from_slice(b"\\u00");
                    out.push(HEX[usize::from(byte >> 4)]);
                    out.push(HEX[usize::from(byte & 15)]);
                    from = at + 1;
                    continue;
                }
                // E2 80 A8 and E2 80 A9 are U+2028 and U+2029.
                0xe2 if bytes[at..].starts_with(&[0xe2, 0x80, 0xa8]) => b"\\u2028",
                0xe2 if bytes[at..].starts_with(&[0xe2, 0x80, 0xa9]) => b"\\u2029",
                _ => continue,
            };
            out.extend_from_slice(&bytes[from..at]);
            out.extend_from_slice(escape);
            from = at + if bytes[at] == 0xe2 { 3 } else { 1 };
        }
        start = end;
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
}

/// A room's name as a JSON string, for [`LoggedEvent::room_json`].
pub fn room_json(room: &RoomName) -> Box<str> {
    json_string(room.as_str()).into_boxed_str()
}

/// `text` as a JSON string with its quotes.
pub fn json_string(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    string(&mut out, text);
    String::from_utf8(out).expect("escaping keeps UTF-8")
}

/// Appends a decimal integer.
pub fn integer(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn id(out: &mut Vec<u8>, id: &CommandId) {
    match id {
        CommandId::Number(number) => write!(out, "{number}").expect("writing to memory"),
        CommandId::Text(text) => string(out, text),
    }
}

/// Appends `{"type":"ok","id":…` and what `fields` adds (each with a leading comma) and `}`.
pub fn ok(out: &mut Vec<u8>, command_id: &CommandId, fields: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"{\"type\":\"ok\",\"id\":");
    id(out, command_id);
    fields(out);
    out.push(b'}');
}

/// Appends an `error` reply, or an error event when the command had no id.
pub fn error(out: &mut Vec<u8>, command_id: Option<&CommandId>, refusal: &Refusal) {
    out.extend_from_slice(b"{\"type\":\"error\"");
    if let Some(command_id) = command_id {
        out.extend_from_slice(b",\"id\":");
        id(out, command_id);
    }
    out.extend_from_slice(b",\"code\":");
    integer(out, u64::from(refusal.code.number()));
    out.extend_from_slice(b",\"error\":\"");
    out.extend_from_slice(refusal.code.name().as_bytes());
    out.extend_from_slice(b"\",\"message\":");
    string(out, &refusal.message);
    out.extend_from_slice(b",\"temporary\":");
    out.extend_from_slice(if refusal.code.is_temporary() { b"true" } else { b"false" });
    out.extend_from_slice(b",\"retry_after_ms\":");
    integer(out, u64::from(refusal.retry_after_ms));
    if let Some(current) = refusal.current {
        out.extend_from_slice(b",\"current\":");
        integer(out, current);
    }
    out.push(b'}');
}

/// Appends `,"key":number`.
pub fn field_integer(out: &mut Vec<u8>, key: &str, value: u64) {
    field_raw(out, key, b"");
    integer(out, value);
}

/// Appends `,"key":"text"`, escaped.
pub fn field_string(out: &mut Vec<u8>, key: &str, value: &str) {
    field_raw(out, key, b"");
    string(out, value);
}

/// Appends `,"key":` and `json` as it is.
pub fn field_raw(out: &mut Vec<u8>, key: &str, json: &[u8]) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
    out.extend_from_slice(json);
}

/// Longest header of a frame from the server (RFC 6455 section 5.2: unmasked, 64-bit length).
pub const FRAME_HEADER_BYTES_MAX: usize = 10;

/// Bytes of the header in front of an unmasked payload of `payload_bytes`.
pub const fn frame_header_len(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    }
}

/// Appends one unfragmented, unmasked text frame whose payload `write_json` appends.
///
/// Returns where its payload starts in `out`.
pub fn frame_text(out: &mut Vec<u8>, write_json: impl FnOnce(&mut Vec<u8>)) -> usize {
    // The header's length depends on the payload's: leave the usual room and move when it differs.
    const USUAL: usize = 4;
    let start = out.len();
    out.resize(start + USUAL, 0);
    write_json(out);
    let payload_bytes = out.len() - start - USUAL;
    let header_bytes = frame_header_len(payload_bytes);
    if header_bytes < USUAL {
        out.copy_within(start + USUAL.., start + header_bytes);
        out.truncate(start + header_bytes + payload_bytes);
    } else if header_bytes > USUAL {
        out.resize(start + header_bytes + payload_bytes, 0);
        out.copy_within(start + USUAL..start + USUAL + payload_bytes, start + header_bytes);
    }
    let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    let mut slot = &mut out[start..start + header_bytes];
    header.format(payload_bytes as u64, &mut slot).expect("the slot has the header's length");
    start + header_bytes
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorCode;
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_escape_what_json_and_logs_need() {
        let cases = [
            ("", r#""""#),
            ("plain", r#""plain""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("\n\r\t\u{0}\u{1b}", r#""\n\r\t\u0000\u001b""#),
            ("a\u{2028}b\u{2029}", r#""a\u2028b\u2029""#),
            ("größe…", r#""größe…""#),
        ];
        for (raw, json) in cases {
            assert_eq!(text(|out| string(out, raw)), json);
            assert_eq!(serde_json::from_str::<String>(json).unwrap(), raw);
            // Wherever it lies in what is looked at together.
            for (before, after) in (0..2 * PLAIN_BYTES).flat_map(|before| [(before, 0), (before, 2 * PLAIN_BYTES)]) {
                let (before, after) = ("<".repeat(before), ">".repeat(after));
                let expected = format!("\"{before}{}{after}\"", &json[1..json.len() - 1]);
                assert_eq!(text(|out| string(out, &format!("{before}{raw}{after}"))), expected);
            }
        }
    }

    #[test]
    fn integers_are_decimal() {
        for value in [0, 9, 10, 1_234_567_890, u64::MAX] {
            assert_eq!(text(|out| integer(out, value)), value.to_string());
        }
    }

    #[test]
    fn an_event_is_the_row_in_protocol_order() {
        let event = LoggedEvent {
            kind: EventKind::MessageCreated,
            room_json: "\"general\"",
            seq: 41,
            ts: 1_700_000_000_000,
            author: "alice",
            client_id: Some("c\"1"),
            fields: r#""body":"hi","trace":"00ff""#,
        };
        assert_eq!(
            text(|out| event.write_json(out)),
            r#"{"type":"message:created","room":"general","seq":41,"ts":1700000000000,"author":"alice","client_id":"c\"1","body":"hi","trace":"00ff"}"#
        );
        let left =
            LoggedEvent { kind: EventKind::RoomLeft, author: "", client_id: None, fields: r#""user":"bob""#, ..event };
        assert_eq!(
            text(|out| left.write_json(out)),
            r#"{"type":"room:left","room":"general","seq":41,"ts":1700000000000,"user":"bob"}"#
        );
    }

    #[test]
    fn replies_name_the_id_and_the_code() {
        assert_eq!(text(|out| ok(out, &CommandId::Number(-7), |_| {})), r#"{"type":"ok","id":-7}"#);
        let id = CommandId::Text("x".into());
        assert_eq!(
            text(|out| ok(out, &id, |out| field_string(out, "room", "a"))),
            r#"{"type":"ok","id":"x","room":"a"}"#
        );
        let refusal = Refusal::new(ErrorCode::Busy, "full").retry_after(40);
        assert_eq!(
            text(|out| error(out, None, &refusal)),
            r#"{"type":"error","code":113,"error":"busy","message":"full","temporary":true,"retry_after_ms":40}"#
        );
    }

    #[test]
    fn frames_have_the_shortest_header() {
        for len in [0usize, 1, 125, 126, 65_535, 65_536, 70_000] {
            let mut out = b"before".to_vec();
            let start = frame_text(&mut out, |out| out.extend(std::iter::repeat_n(b'x', len)));
            assert_eq!(start, 6 + frame_header_len(len), "{len}");
            assert_eq!(out.len(), start + len);
            assert_eq!(out[6], 0x81);
            assert!(out[start..].iter().all(|b| *b == b'x'));
            let mut cursor = std::io::Cursor::new(&out[6..]);
            let (header, parsed) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert!(header.is_final && header.mask.is_none());
            assert_eq!(parsed, len as u64);
        }
    }
}
