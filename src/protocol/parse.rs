//! Bytes of a text message to a [`Request`]: the only maker of commands.
//!
//! A [`Parser`] owns the memory that parsing needs and lends it to the request, so that a message
//! in steady state costs no allocation but the boxed command itself. Order of checks: size, then
//! nesting and syntax (simd-json), then keys, then `id`, then `type`, then the command's fields.
//!
//! Rules that JSON leaves open, and how they are settled here:
//! - A name that appears twice in one object, anywhere in the frame, is refused (RFC 8259 section 4
//!   leaves it open; two parsers that disagree about which one counts are a hole).
//! - `null` is a value like any other and therefore of the wrong type: leave an optional field out.
//! - Integers are written without fraction and exponent: `1.0`, `1e0` and `"1"` are not integers.
//! - An integer outside −2⁶³ … 2⁶⁴−1, or a number outside the range of a double, is refused anywhere.
//! - Unknown fields are ignored. Texts may hold any character, also U+0000 and U+2028 (escaped).
//!
//! It refuses to look at rooms, rights or rates: that is the engine's. Messages of refusals name
//! fields and bounds, never what the peer sent.

mod command;
mod fields;
mod filter;
mod json;
mod salvage;

use std::borrow::Cow;

use simd_json::{Buffers, Tape};

use super::command::{CommandId, Request};
use super::error::{ErrorCode, Refusal};
pub(crate) use fields::{Object, Value};

/// Nesting of a client's JSON: the frame's own object is the first level.
pub const JSON_DEPTH_MAX: usize = 16;
/// Body of a message, bytes.
pub const BODY_BYTES_MAX: usize = 8 * 1024;
/// `data` of an event, bytes of JSON as written anew.
pub const DATA_BYTES_MAX: usize = 4 * 1024;
/// `name` of an event or inbox item, bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest life of an inbox item, ms: 30 days.
pub const ITEM_TTL_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// `meta` of a message, bytes of JSON as written anew.
pub const META_BYTES_MAX: usize = 1024;
/// `id` of a command given as a text, characters.
pub const ID_CHARS_MAX: usize = 64;
/// A JWT, bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Text memory that survives between frames; a larger frame's is given back afterwards.
const SCRATCH_KEEP_BYTES: usize = 64 * 1024;

/// A frame that is no command. The connection lives on; the refusal is the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFrame {
    /// The command's id, when it could be read.
    pub id: Option<CommandId>,
    /// Why: [`ErrorCode::BadRequest`], [`ErrorCode::UnknownType`], or
    /// [`ErrorCode::LimitExceeded`] for a frame over the size bound.
    pub refusal: Refusal,
}

/// Parses frames one at a time, in memory that is reused.
pub struct Parser {
    document: Document,
    frame_bytes_max: usize,
}

impl Parser {
    /// A parser for frames of at most `frame_bytes_max` bytes.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { document: Document::new(), frame_bytes_max }
    }

    /// Reads one text message. The request borrows this parser until it has been handled.
    ///
    /// # Errors
    /// [`BadFrame`] for whatever is not a well-formed command; never panics, whatever the bytes.
    pub fn parse<'s>(&'s mut self, text: &[u8]) -> Result<Request<'s>, BadFrame> {
        if text.len() > self.frame_bytes_max {
            let message = format!("a frame has at most {} bytes", self.frame_bytes_max);
            return Err(BadFrame { id: None, refusal: Refusal::new(ErrorCode::LimitExceeded, message) });
        }
        let without_id = |refusal| BadFrame { id: None, refusal };
        self.document
            .read(text, |root| {
                let object = root.object().ok_or_else(|| without_id(bad("a frame is one JSON object")))?;
                let id = object.command_id().map_err(without_id)?;
                match root.unique_names().and_then(|()| command::read(object)) {
                    Ok(command) => Ok(Request { id, command }),
                    Err(refusal) => Err(BadFrame { id, refusal }),
                }
            })
            .unwrap_or_else(|fault| {
                // JSON all the same, by its grammar, except for a syntax fault: who sent it waits for an answer.
                let id = if fault == JsonFault::Syntax { None } else { salvage::command_id(text) };
                Err(BadFrame { id, refusal: bad(fault.message()) })
            })
    }
}

/// Why a text is not JSON that this server reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JsonFault {
    Syntax,
    Depth,
    Utf8,
    Number,
}

impl JsonFault {
    /// One sentence without anything of the text.
    pub(crate) const fn message(self) -> &'static str {
        match self {
            Self::Syntax => "a frame is one JSON object (RFC 8259)",
            Self::Depth => "nested deeper than 16",
            Self::Utf8 => "not UTF-8, or half a surrogate pair",
            Self::Number => "a number that JSON does not know, or out of range",
        }
    }
}

/// One JSON text at a time, parsed in memory that is reused.
pub(crate) struct Document {
    text: Vec<u8>,
    buffers: Buffers,
    /// Empty between calls; kept for its memory.
    tape: Tape<'static>,
}

impl Document {
    pub(crate) fn new() -> Self {
        Self { text: Vec::new(), buffers: Buffers::with_max_depth(4 * 1024, JSON_DEPTH_MAX), tape: Tape(Vec::new()) }
    }

    /// Parses `text` and hands its root to `read`, whose result may borrow the strings.
    pub(crate) fn read<'s, T>(
        &'s mut self,
        text: &[u8],
        read: impl FnOnce(Value<'_, 's>) -> T,
    ) -> Result<T, JsonFault> {
        if self.text.capacity() > SCRATCH_KEEP_BYTES {
            *self = Self::new();
        }
        let Self { text: copy, buffers, tape: kept } = self;
        copy.clear();
        // One copy: simd-json unescapes strings in place and reads past the end.
        copy.reserve(text.len() + simd_json::INPUT_PADDING);
        copy.extend_from_slice(text);
        copy.resize(text.len() + simd_json::INPUT_PADDING, b' ');
        let mut tape: Tape<'s> = std::mem::replace(kept, Tape(Vec::new())).reset();
        let parsed = simd_json::fill_tape_padded(copy, text.len(), buffers, &mut tape);
        let result = match parsed {
            Ok(()) => Value::root(&tape.0).map(read).ok_or(JsonFault::Syntax),
            Err(error) => Err(fault(&error)),
        };
        *kept = tape.reset();
        result
    }
}

#[cold]
fn fault(error: &simd_json::Error) -> JsonFault {
    use simd_json::ErrorType as E;
    match error.error() {
        E::DepthLimitExceeded => JsonFault::Depth,
        E::InvalidUtf8 | E::InvalidUnicodeCodepoint | E::InvalidUnicodeEscape => JsonFault::Utf8,
        E::InvalidNumber => JsonFault::Number,
        _ => JsonFault::Syntax,
    }
}

/// The refusal for a frame that is not what a command takes.
#[cold]
fn bad(message: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}

#[cfg(test)]
mod tests {
    use super::super::command::{Command, HistoryFrom};
    use super::super::ids::Priority;
    use super::*;

    fn refusal(text: &str) -> (Option<CommandId>, u16, String) {
        let bad = Parser::new(16 * 1024).parse(text.as_bytes()).unwrap_err();
        (bad.id, bad.refusal.code.number(), bad.refusal.message.into_owned())
    }

    #[test]
    fn a_message_with_every_field_is_read() {
        let mut parser = Parser::new(16 * 1024);
        let request = parser
            .parse(
                br#"{"type":"message:send","id":7,"room":"general","body":"hi \u0000\u2028 \ud83d\ude00","client_id":"c1",
                "thread":1,"reply_to":2,"mentions":["bob"],"attachments":["f1"],"priority":"low","exclude":["eve"],
                "only":["bob","carol"],"meta":{"a":[1,-2,1.5e300,true,null,"\u2028"]},"timing":true,"later":{}}"#,
            )
            .unwrap();
        assert_eq!(request.id, Some(CommandId::Number(7)));
        let Command::MessageSend(send) = request.command else { panic!("another command") };
        assert_eq!((send.room, send.body, send.client_id), ("general", "hi \0\u{2028} 😀", Some("c1")));
        assert_eq!((send.thread, send.reply_to, send.priority), (Some(1), Some(2), Priority::Low));
        assert_eq!((&send.mentions[..], &send.attachments[..]), (&["bob"][..], &["f1"][..]));
        assert_eq!((&send.exclude[..], &send.only[..]), (&["eve"][..], &["bob", "carol"][..]));
        assert_eq!(send.meta.as_deref(), Some(r#"{"a":[1,-2,1.5e300,true,null,"\u2028"]}"#));
        assert!(send.timing);
    }

    #[test]
    fn a_flag_is_true_or_false() {
        for (value, is_on) in [("true", true), ("false", false)] {
            let text = format!(r#"{{"type":"message:send","room":"r","body":"x","timing":{value}}}"#);
            let mut parser = Parser::new(1024);
            let Command::MessageSend(send) = parser.parse(text.as_bytes()).unwrap().command else { panic!() };
            assert_eq!(send.timing, is_on);
        }
        for value in ["1", "null", "\"true\"", "{}"] {
            let text = format!(r#"{{"type":"message:send","id":1,"room":"r","body":"x","timing":{value}}}"#);
            assert_eq!(refusal(&text), (Some(CommandId::Number(1)), 107, "timing must be true or false".into()));
        }
    }

    #[test]
    fn memory_is_reused_without_mixing_frames() {
        let mut parser = Parser::new(1024 * 1024);
        for round in 0..50 {
            let body = "x".repeat(1 + round * 150);
            let text = format!(r#"{{"type":"message:send","room":"r{round}","body":"{body}"}}"#);
            let Command::MessageSend(send) = parser.parse(text.as_bytes()).unwrap().command else { panic!() };
            assert_eq!((send.room, send.body), (format!("r{round}").as_str(), body.as_str()));
            assert!(parser.parse(b"{\"type\":").is_err());
        }
        let huge = format!(r#"{{"type":"ping","pad":"{}"}}"#, "y".repeat(200_000));
        assert!(parser.parse(huge.as_bytes()).is_ok());
        assert!(parser.parse(br#"{"type":"ping"}"#).is_ok());
        assert!(parser.document.text.capacity() <= SCRATCH_KEEP_BYTES);
    }

    #[test]
    fn the_id_is_echoed_whenever_it_can_be() {
        let seven = Some(CommandId::Number(7));
        assert_eq!(refusal(r#"{"id":7,"type":"no:such"}"#), (seven.clone(), 104, "no command of that type".into()));
        assert_eq!(refusal(r#"{"type":"room:join","id":7}"#), (seven.clone(), 107, "room is missing".into()));
        assert_eq!(refusal(r#"{"id":7}"#), (seven, 107, "type is missing".into()));
        for id in ["null", "1.0", "true", "[]", "{}", "9223372036854775808", &format!("{:?}", "é".repeat(65))] {
            let (echoed, code, message) = refusal(&format!(r#"{{"id":{id},"type":"ping"}}"#));
            assert_eq!((echoed, code), (None, 107), "{id}");
            assert!(message.starts_with("id must be"), "{message}");
        }
        assert_eq!(refusal(r#"{"id":1,"id":1,"type":"ping"}"#), (None, 107, "id appears twice".into()));
    }

    #[test]
    fn size_and_depth_have_their_own_words() {
        let (id, code, message) = refusal(&format!(r#"{{"id":1,"pad":"{}"}}"#, "x".repeat(16 * 1024)));
        assert_eq!((id, code, message.as_str()), (None, 106, "a frame has at most 16384 bytes"));
        // The frame's own object is level 1.
        let nested =
            |levels: usize| format!(r#"{{"type":"ping","x":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(Parser::new(16 * 1024).parse(nested(JSON_DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(refusal(&nested(JSON_DEPTH_MAX + 1)).2, "nested deeper than 16");
    }

    #[test]
    fn history_names_one_end() {
        let mut parser = Parser::new(1024);
        let from = |parser: &mut Parser, fields: &str| {
            let text = format!(r#"{{"type":"message:history","room":"r"{fields}}}"#);
            match parser.parse(text.as_bytes()).map(|r| r.command) {
                Ok(Command::MessageHistory { from, limit, .. }) => Ok((from, limit)),
                Ok(_) => panic!("another command"),
                Err(bad) => Err(bad.refusal.message.into_owned()),
            }
        };
        assert_eq!(from(&mut parser, ""), Ok((HistoryFrom::Newest, 50)));
        assert_eq!(from(&mut parser, r#","before":5,"limit":100"#), Ok((HistoryFrom::Before(5), 100)));
        assert_eq!(from(&mut parser, r#","after":0"#), Ok((HistoryFrom::After(0), 50)));
        assert!(from(&mut parser, r#","after":0,"before":9"#).unwrap_err().contains("exclude"));
        assert!(from(&mut parser, r#","limit":101"#).unwrap_err().contains("limit must be an integer from 1 to 100"));
    }

    #[test]
    fn names_may_not_appear_twice_anywhere() {
        let many: String = (0..40).map(|n| format!(r#""k{n}":0,"#)).collect();
        for text in [
            r#"{"type":"ping","type":"ping"}"#.to_owned(),
            r#"{"type":"ping","x":1,"x":1}"#.to_owned(),
            r#"{"type":"ping","x":[0,{"a":{"b":1,"\u0062":2}}]}"#.to_owned(),
            format!(r#"{{{many}"type":"ping","k3":1}}"#),
        ] {
            assert_eq!(refusal(&text).1, 107, "{text}");
        }
        let fine = format!(r#"{{{many}"type":"ping","x":{{"type":1}},"y":{{"type":1}}}}"#);
        assert!(Parser::new(4096).parse(fine.as_bytes()).is_ok());
    }
}
