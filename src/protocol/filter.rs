//! Filters on the `meta` of messages: what a subscription wants to see of a room.
//!
//! A [`Filter`] is compiled once, from a command (see `parse/filter.rs`, its only maker), into one
//! flat list in prefix order, and judges events as they are on the wire: a small scanner walks the
//! JSON text and compares in place, so that judging allocates nothing and keeps nothing.
//!
//! What it decides: a test holds when the `meta` of the message has the field, with a value of the
//! test's own type, that compares as asked. There is no conversion between types, and numbers
//! compare as doubles. A message without `meta` has no fields. Only `message:created` is judged:
//! memberships and whatever else a room's log holds pass every filter, since clients need them to
//! keep their picture of the room.
//!
//! It refuses to look at rights: a filter hides what its reader may see, it never shows more.

use std::cmp::Ordering;
use std::ops::Range;

/// Groups (`all`, `any`, `not`) within each other.
pub const FILTER_DEPTH_MAX: usize = 4;
/// Tests of one filter.
pub const FILTER_TERMS_MAX: usize = 32;
/// Values of all tests of one filter together.
pub const FILTER_VALUES_MAX: usize = 128;
/// Bytes of all texts of one filter together, field names included.
pub const FILTER_BYTES_MAX: usize = 2 * 1024;

/// What a subscription wants to see.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// Prefix order: a group stands before its parts and says where they end. Never empty.
    pub(super) nodes: Box<[Node]>,
}

/// One step of a filter. `end` is the index after the group's last part.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Every part holds.
    All { end: u16 },
    /// At least one part holds.
    Any { end: u16 },
    /// The one part does not hold.
    Not { end: u16 },
    /// The field compares as asked.
    Test { field: Box<str>, test: Test },
}

/// How a field is compared.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Test {
    /// It is there, whatever its value (`true`), or it is not.
    Exists(bool),
    /// It is one of these; `eq` is a list of one.
    In(Box<[Scalar]>),
    /// It is a text that begins so.
    Prefix(Box<str>),
    /// It is a number greater (`true`: or equal) than this.
    Above(f64, bool),
    /// It is a number less (`true`: or equal) than this.
    Below(f64, bool),
}

/// A value to compare with.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Text(Box<str>),
    Number(f64),
    Bool(bool),
}

impl Filter {
    /// True when the subscription wants this event, given as its JSON object.
    pub fn admits(&self, event: &[u8]) -> bool {
        judged_meta(event).is_none_or(|meta| self.admits_meta(&event[meta]))
    }

    /// True when the subscription wants a message with this `meta` (empty when it has none), for those
    /// who found it once with [`judged_meta`] and judge it for many subscriptions.
    pub fn admits_meta(&self, meta: &[u8]) -> bool {
        self.holds(0, meta).0
    }

    /// Whether the node at `at` holds, and the index after it. Recursion is as deep as
    /// [`FILTER_DEPTH_MAX`].
    fn holds(&self, at: usize, meta: &[u8]) -> (bool, usize) {
        let (end, stop_at) = match &self.nodes[at] {
            Node::Test { field, test } => return (test.holds(field_of(meta, field)), at + 1),
            Node::Not { end } => return (!self.holds(at + 1, meta).0, usize::from(*end)),
            Node::All { end } => (usize::from(*end), false),
            Node::Any { end } => (usize::from(*end), true),
        };
        let mut part = at + 1;
        while part < end {
            let (holds, next) = self.holds(part, meta);
            if holds == stop_at {
                return (stop_at, end);
            }
            part = next;
        }
        (!stop_at, end)
    }
}

impl Test {
    fn holds(&self, value: Option<&[u8]>) -> bool {
        let Some(value) = value else { return *self == Self::Exists(false) };
        match self {
            Self::Exists(wanted) => *wanted,
            Self::In(list) => list.iter().any(|scalar| scalar.is(value)),
            Self::Prefix(prefix) => text_of(value).is_some_and(|text| compare(text, prefix) != Likeness::Different),
            Self::Above(bound, or_equal) => number_of(value).is_some_and(|n| n > *bound || (*or_equal && n == *bound)),
            Self::Below(bound, or_equal) => number_of(value).is_some_and(|n| n < *bound || (*or_equal && n == *bound)),
        }
    }
}

impl Scalar {
    fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Text(wanted) => text_of(value).is_some_and(|text| compare(text, wanted) == Likeness::Same),
            Self::Number(wanted) => {
                number_of(value).is_some_and(|number| number.partial_cmp(wanted) == Some(Ordering::Equal))
            }
            Self::Bool(wanted) => value == if *wanted { &b"true"[..] } else { b"false" },
        }
    }
}

/// Where the `meta` lies by which an event is judged: an empty range for a message without one, `None`
/// for an event that passes every filter.
pub fn judged_meta(event: &[u8]) -> Option<Range<usize>> {
    // Events are of our own making: `type` comes first (see `LoggedEvent::write_json`).
    if !event.starts_with(b"{\"type\":\"message:created\",") {
        return None;
    }
    Some(find(event, "meta").unwrap_or(0..0))
}

/// The raw value of a field of a JSON object without white space, as the server writes them.
fn field_of<'j>(object: &'j [u8], name: &str) -> Option<&'j [u8]> {
    find(object, name).map(|span| &object[span])
}

fn find(object: &[u8], name: &str) -> Option<Range<usize>> {
    let mut at = 1;
    object.strip_prefix(b"{")?;
    loop {
        let colon = at + value_end(object.get(at..)?)?;
        let key = text_of(&object[at..colon])?;
        object[colon..].strip_prefix(b":")?;
        let end = colon + 1 + value_end(&object[colon + 1..])?;
        if compare(key, name) == Likeness::Same {
            return Some(colon + 1..end);
        }
        object[end..].strip_prefix(b",")?;
        at = end + 1;
    }
}

/// Where the JSON value at the start of `json` ends.
fn value_end(json: &[u8]) -> Option<usize> {
    match json.first()? {
        b'"' => string_end(json),
        b'{' | b'[' => nested_end(json),
        _ => {
            let end = json.iter().position(|byte| matches!(byte, b',' | b'}' | b']')).unwrap_or(json.len());
            (end > 0).then_some(end)
        }
    }
}

fn string_end(json: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += json.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if json[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

fn nested_end(json: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0u32);
    loop {
        match json.get(at)? {
            b'"' => at += string_end(&json[at..])? - 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// What is between the quotes, escapes and all.
fn text_of(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

fn number_of(value: &[u8]) -> Option<f64> {
    // Rust reads more than JSON does ("inf", "nan"): a JSON number begins with a digit or a minus.
    let is_number = value.first().is_some_and(|byte| byte.is_ascii_digit() || *byte == b'-');
    std::str::from_utf8(value).ok().filter(|_| is_number)?.parse().ok()
}

/// How an escaped text stands to a plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Likeness {
    Same,
    /// The escaped one begins with the plain one and goes on.
    Longer,
    Different,
}

fn compare(escaped: &[u8], plain: &str) -> Likeness {
    let (mut escaped, mut plain) = (escaped, plain.as_bytes());
    while let Some(byte) = escaped.first() {
        let mut buffer = [0; 4];
        let (unit, rest): (&[u8], &[u8]) = if *byte == b'\\' {
            let Some((character, used)) = unescape(escaped) else { return Likeness::Different };
            (character.encode_utf8(&mut buffer).as_bytes(), &escaped[used..])
        } else {
            escaped.split_at(1)
        };
        if plain.is_empty() {
            return Likeness::Longer;
        }
        let Some(tail) = plain.strip_prefix(unit) else { return Likeness::Different };
        (escaped, plain) = (rest, tail);
    }
    if plain.is_empty() { Likeness::Same } else { Likeness::Different }
}

/// The character of the escape at the start of `text`, and the escape's length (RFC 8259 section 7).
fn unescape(text: &[u8]) -> Option<(char, usize)> {
    let plain = match text.get(1)? {
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'u' => {
            let high = hex(text.get(2..6)?)?;
            if let Some(character) = char::from_u32(high) {
                return Some((character, 6));
            }
            let low = text.get(6..12)?.strip_prefix(b"\\u").and_then(hex)?;
            let code = 0x1_0000 + ((high.checked_sub(0xd800)? << 10) | low.checked_sub(0xdc00)?);
            return Some((char::from_u32(code)?, 12));
        }
        byte => char::from(*byte),
    };
    Some((plain, 2))
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| Some((value << 4) | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_whatever_lies_around_it() {
        let event = br#"{"type":"message:created","room":"a","seq":1,"body":"\"meta\":{\"x\":1}\\","meta":{"k":"v","deep":{"k":[1,"]}"]},"n":-1.5},"trace":"00"}"#;
        let meta = &event[judged_meta(event).unwrap()];
        assert_eq!(meta, br#"{"k":"v","deep":{"k":[1,"]}"]},"n":-1.5}"#);
        assert_eq!(field_of(meta, "k"), Some(&b"\"v\""[..]));
        assert_eq!(field_of(meta, "deep"), Some(&br#"{"k":[1,"]}"]}"#[..]));
        assert_eq!(field_of(meta, "n").and_then(number_of), Some(-1.5));
        assert_eq!(field_of(meta, "x"), None);
        assert_eq!(judged_meta(br#"{"type":"message:created","body":"x"}"#), Some(0..0));
        assert_eq!(judged_meta(br#"{"type":"room:joined","user":"meta"}"#), None);
        assert_eq!(field_of(b"{}", "k"), None);
    }

    #[test]
    fn texts_compare_through_their_escapes() {
        let cases = [
            (r"", "", Likeness::Same),
            (r"de", "de", Likeness::Same),
            (r"de-AT", "de", Likeness::Longer),
            (r"d", "de", Likeness::Different),
            (r#"a\"b\\c\n\u001b\u2028"#, "a\"b\\c\n\u{1b}\u{2028}", Likeness::Same),
            (r"\ud83d\ude00x", "😀", Likeness::Longer),
            (r"\ud83d", "?", Likeness::Different),
            (r"größe", "größe", Likeness::Same),
        ];
        for (escaped, plain, likeness) in cases {
            assert_eq!(compare(escaped.as_bytes(), plain), likeness, "{escaped} against {plain}");
        }
    }

    #[test]
    fn broken_json_is_no_field_and_no_panic() {
        let whole = br#"{"a":{"b":["\u00"]},"c":"\\"}"#;
        for end in 0..whole.len() {
            assert_eq!(field_of(&whole[..end], "c").filter(|value| value.len() > 4), None);
        }
        for words in [&b"nan"[..], b"inf", b"true", b"null", b"", b"\"1\""] {
            assert_eq!(number_of(words), None);
        }
    }
}
