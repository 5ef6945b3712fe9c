//! Reads the few fields of a frame that the tool looks at, without building a tree.
//!
//! A pull parser over the members of one JSON object, in any order, that stops as soon as its user
//! has what it wants. It trusts structure only as far as it reads; a sample of all frames goes
//! through a full parser besides (see `client.rs`). Strings are given raw, as they stand between
//! their quotes: names and ids made by this tool need no escapes, and a name with one is not ours.

/// The value of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Between the quotes, escapes left as they are.
    Text(&'a [u8]),
    /// A non-negative integer that fits.
    Number(u64),
    /// Anything else, as it stands: objects, arrays, literals, other numbers.
    Raw(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The text, if it is one.
    pub fn text(self) -> Option<&'a [u8]> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The number, if it is one.
    pub fn number(self) -> Option<u64> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }
}

/// What is not JSON, or not an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The members of one object, one at a time.
#[derive(Debug)]
pub struct Members<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Members<'a> {
    /// Starts at the opening brace.
    pub fn of(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut members = Self { bytes, at: 0 };
        members.skip_space();
        if members.peek() != Some(b'{') {
            return Err(Malformed);
        }
        members.at += 1;
        Ok(members)
    }

    /// The next key and value; `None` after the closing brace.
    pub fn next(&mut self) -> Result<Option<(&'a [u8], Value<'a>)>, Malformed> {
        self.skip_space();
        match self.peek() {
            Some(b'}') => return Ok(None),
            Some(b',') => {
                self.at += 1;
                self.skip_space();
            }
            _ => {}
        }
        let key = self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(Malformed);
        }
        self.at += 1;
        self.skip_space();
        let value = match self.peek() {
            Some(b'"') => Value::Text(self.string()?),
            Some(b'{' | b'[') => Value::Raw(self.nested()?),
            Some(_) => self.bare()?,
            None => return Err(Malformed),
        };
        Ok(Some((key, value)))
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        if self.peek() != Some(b'"') {
            return Err(Malformed);
        }
        let start = self.at + 1;
        let mut at = start;
        loop {
            match self.bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => at += 2,
                Some(_) => at += 1,
                None => return Err(Malformed),
            }
        }
        self.at = at + 1;
        Ok(&self.bytes[start..at])
    }

    fn nested(&mut self) -> Result<&'a [u8], Malformed> {
        let start = self.at;
        let mut depth = 0_u32;
        loop {
            match self.peek().ok_or(Malformed)? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(&self.bytes[start..self.at]);
            }
        }
    }

    fn bare(&mut self) -> Result<Value<'a>, Malformed> {
        let start = self.at;
        let mut number = Some(0_u64);
        while let Some(byte) = self.peek() {
            match byte {
                b'0'..=b'9' => {
                    number = number.and_then(|n| n.checked_mul(10)?.checked_add(u64::from(byte - b'0')));
                }
                b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r' => break,
                _ => number = None,
            }
            self.at += 1;
        }
        let raw = &self.bytes[start..self.at];
        if raw.is_empty() {
            return Err(Malformed);
        }
        Ok(number.map_or(Value::Raw(raw), Value::Number))
    }
}

/// What every frame is looked at for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// `type`
    pub kind: &'a [u8],
    /// `room`
    pub room: Option<&'a [u8]>,
    /// `seq`
    pub seq: Option<u64>,
    /// `id`: ours are integers.
    pub id: Option<u64>,
}

/// Reads just as far as needed to know the type and, for an event of a room, its room and seq; for
/// a reply, its id.
pub fn head(bytes: &[u8]) -> Result<Head<'_>, Malformed> {
    head_from(Head::default(), bytes)
}

/// The same, where the type or the id is known from the frame around the object.
pub fn head_from<'a>(mut head: Head<'a>, bytes: &'a [u8]) -> Result<Head<'a>, Malformed> {
    let mut members = Members::of(bytes)?;
    while let Some((key, value)) = members.next()? {
        match key {
            b"type" => head.kind = value.text().ok_or(Malformed)?,
            b"room" => head.room = value.text(),
            b"seq" => head.seq = value.number(),
            b"id" => head.id = value.number(),
            _ => continue,
        }
        let is_reply = matches!(head.kind, b"ok" | b"error");
        let is_done = if is_reply { head.id.is_some() } else { head.room.is_some() && head.seq.is_some() };
        if is_done && !head.kind.is_empty() {
            break;
        }
    }
    if head.kind.is_empty() { Err(Malformed) } else { Ok(head) }
}

/// What an event carries that must be the same for everybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Content<'a> {
    /// `type`
    pub kind: &'a [u8],
    /// `seq`
    pub seq: u64,
    /// `author`, or `user` for membership events.
    pub who: &'a [u8],
    /// `client_id`
    pub client_id: Option<&'a [u8]>,
    /// `body`
    pub body: &'a [u8],
}

/// Reads all of an event's content.
pub fn content(bytes: &[u8]) -> Result<Content<'_>, Malformed> {
    let mut content = Content::default();
    let mut members = Members::of(bytes)?;
    while let Some((key, value)) = members.next()? {
        match (key, value) {
            (b"type", Value::Text(text)) => content.kind = text,
            (b"seq", Value::Number(seq)) => content.seq = seq,
            (b"author" | b"user", Value::Text(text)) => content.who = text,
            (b"client_id", Value::Text(text)) => content.client_id = Some(text),
            (b"body", Value::Text(text)) => content.body = text,
            _ => {}
        }
    }
    Ok(content)
}

/// What a reply, or an event about the connection, may carry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reply<'a> {
    /// `seq`
    pub seq: Option<u64>,
    /// `code` of an error.
    pub code: Option<u64>,
    /// `retry_after_ms`
    pub retry_after_ms: Option<u64>,
    /// `temporary`
    pub temporary: bool,
    /// `duplicate`
    pub duplicate: bool,
    /// `epoch`
    pub epoch: Option<&'a [u8]>,
    /// `recovered`
    pub recovered: Option<bool>,
    /// `events`, when it is an array.
    pub events: Option<&'a [u8]>,
    /// `events`, when it is a count.
    pub events_count: Option<u64>,
    /// `last` of a gap.
    pub last: Option<u64>,
    /// `head` of a gap.
    pub head: Option<u64>,
}

/// Reads all of a reply.
pub fn reply(bytes: &[u8]) -> Result<Reply<'_>, Malformed> {
    let mut reply = Reply::default();
    let mut members = Members::of(bytes)?;
    while let Some((key, value)) = members.next()? {
        match (key, value) {
            (b"seq", Value::Number(n)) => reply.seq = Some(n),
            (b"code", Value::Number(n)) => reply.code = Some(n),
            (b"retry_after_ms", Value::Number(n)) => reply.retry_after_ms = Some(n),
            (b"last", Value::Number(n)) => reply.last = Some(n),
            (b"head", Value::Number(n)) => reply.head = Some(n),
            (b"events", Value::Number(n)) => reply.events_count = Some(n),
            (b"events", Value::Raw(raw)) => reply.events = Some(raw),
            (b"epoch", Value::Text(text)) => reply.epoch = Some(text),
            (b"temporary", Value::Raw(raw)) => reply.temporary = raw == b"true",
            (b"duplicate", Value::Raw(raw)) => reply.duplicate = raw == b"true",
            (b"recovered", Value::Raw(raw)) => reply.recovered = Some(raw == b"true"),
            _ => {}
        }
    }
    Ok(reply)
}

/// Calls `each` with every object of a JSON array.
pub fn each_object<'a>(array: &'a [u8], mut each: impl FnMut(&'a [u8])) -> Result<(), Malformed> {
    let mut walk = Members { bytes: array, at: 0 };
    walk.skip_space();
    if walk.peek() != Some(b'[') {
        return Err(Malformed);
    }
    walk.at += 1;
    loop {
        walk.skip_space();
        match walk.peek() {
            Some(b']') => return Ok(()),
            Some(b',') => walk.at += 1,
            Some(b'{') => each(walk.nested()?),
            _ => return Err(Malformed),
        }
    }
}

/// Sixteen lower-case hexadecimal digits as a number.
pub fn hex16(text: &[u8]) -> Option<u64> {
    let digits = text.get(..16)?;
    digits.iter().try_fold(0_u64, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// Appends sixteen lower-case hexadecimal digits.
pub fn push_hex16(out: &mut Vec<u8>, value: u64) {
    out.extend((0..16).rev().map(|nibble| b"0123456789abcdef"[(value >> (nibble * 4) & 15) as usize]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_found_in_any_order_and_reading_stops_early() {
        let usual = br#"{"type":"message:created","room":"r1","seq":42,"ts":1,"#;
        let head = super::head(usual).unwrap();
        assert_eq!(head, Head { kind: b"message:created", room: Some(b"r1"), seq: Some(42), id: None });
        let other = br#" { "seq" : 7 , "meta":{"a":["}",{"type":"x"}]}, "room":"a\"b", "type":"room:joined" } "#;
        let head = super::head(other).unwrap();
        assert_eq!((head.kind, head.room, head.seq), (&b"room:joined"[..], Some(&b"a\\\"b"[..]), Some(7)));
        let ok = br#"{"type":"ok","id":12,"room":"r","seq":9}"#;
        assert_eq!(super::head(ok).unwrap().id, Some(12));
    }

    #[test]
    fn what_is_no_object_is_malformed() {
        for bad in ["", "[]", "{", "{}", "{\"type\"", "{\"type\":", "{\"type\":\"a", "{\"type\":7}", "{type:1}", "null"]
        {
            assert_eq!(head(bad.as_bytes()), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn every_truncation_is_malformed_or_already_enough() {
        let whole = br#"{"type":"error","id":3,"code":113,"temporary":true,"retry_after_ms":50,"x":[1,{"y":"z"}]}"#;
        for end in 0..whole.len() {
            let cut = &whole[..end];
            assert_eq!(reply(cut), Err(Malformed), "{end}");
        }
        let all = reply(whole).unwrap();
        assert_eq!((all.code, all.temporary, all.retry_after_ms), (Some(113), true, Some(50)));
    }

    #[test]
    fn content_and_replies_are_read_whole() {
        let event = br#"{"type":"message:created","room":"r","seq":5,"ts":1,"author":"u","client_id":"00ff","body":"b \"q\" ","trace":"t"}"#;
        let content = content(event).unwrap();
        assert_eq!(content.client_id, Some(&b"00ff"[..]));
        assert_eq!((content.seq, content.who, content.body), (5, &b"u"[..], &b"b \\\"q\\\" "[..]));
        let join = br#"{"type":"ok","id":1,"epoch":"e1","seq":10,"role":"member","members":3,"recovered":true,"events":[{"a":1},{"b":"]}"}]}"#;
        let reply = reply(join).unwrap();
        assert_eq!((reply.epoch, reply.seq, reply.recovered), (Some(&b"e1"[..]), Some(10), Some(true)));
        let mut objects = Vec::new();
        each_object(reply.events.unwrap(), |o| objects.push(o.to_vec())).unwrap();
        assert_eq!(objects, [br#"{"a":1}"#.to_vec(), br#"{"b":"]}"}"#.to_vec()]);
        assert_eq!(each_object(b"[1]", |_| ()), Err(Malformed));
        assert_eq!(super::reply(br#"{"events":4}"#).unwrap().events_count, Some(4));
    }

    #[test]
    fn numbers_that_do_not_fit_are_raw() {
        let mut members =
            Members::of(br#"{"a":18446744073709551615,"b":18446744073709551616,"c":-1,"d":1.5,"e":null}"#).unwrap();
        let values: Vec<Value<'_>> = std::iter::from_fn(|| members.next().unwrap().map(|(_, v)| v)).collect();
        assert_eq!(
            values,
            [
                Value::Number(u64::MAX),
                Value::Raw(b"18446744073709551616"),
                Value::Raw(b"-1"),
                Value::Raw(b"1.5"),
                Value::Raw(b"null")
            ]
        );
    }

    #[test]
    fn hex_round_trips() {
        for value in [0, 1, 0xdead_beef, u64::MAX] {
            let mut out = Vec::new();
            push_hex16(&mut out, value);
            assert_eq!(hex16(&out), Some(value));
        }
        assert_eq!(hex16(b"0123"), None);
        assert_eq!(hex16(b"000000000000000G"), None);
    }
}
