//! The `id` of a frame that is JSON by its grammar and yet not read: half a surrogate pair in a body (what cutting a text in
//! the middle of an emoji leaves), a number out of range, too deep. Its sender waits for a reply all the same.

use super::ID_CHARS_MAX;
use crate::protocol::command::CommandId;

/// The one `id` of the frame's own object, if it can be told: a 64-bit integer, or a string without escapes.
#[cold]
pub(super) fn command_id(text: &[u8]) -> Option<CommandId> {
    let mut found = None;
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let end = string_end(text, at)?;
                let is_name = text[end..].trim_ascii_start().first() == Some(&b':');
                if depth == 1 && is_name && &text[at..end] == b"\"id\"" {
                    if found.is_some() {
                        return None;
                    }
                    found = Some(value(text[end..].trim_ascii_start()[1..].trim_ascii_start())?);
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    // Cut off, it is no JSON at all.
    found.filter(|_| depth == 0)
}

/// Where the string that begins at `start` is over, behind its closing quote.
fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn value(text: &[u8]) -> Option<CommandId> {
    if text.first() == Some(&b'"') {
        let inner = std::str::from_utf8(&text[1..string_end(text, 0)? - 1]).ok()?;
        let is_plain = !inner.contains('\\') && !inner.contains(char::is_control);
        return (is_plain && inner.chars().count() <= ID_CHARS_MAX).then(|| CommandId::Text(inner.into()));
    }
    let end = text.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-')).unwrap_or(text.len());
    let is_over = text.get(end).is_none_or(|byte| matches!(byte, b',' | b'}') || byte.is_ascii_whitespace());
    let digits = std::str::from_utf8(&text[..end]).ok().filter(|_| is_over)?;
    digits.parse().ok().map(CommandId::Number)
}

#[cfg(test)]
mod tests {
    use super::super::Parser;
    use super::*;

    #[test]
    fn the_id_of_an_unreadable_frame_is_found_where_there_is_one() {
        let number = Some(CommandId::Number(77));
        let cases: [(&str, Option<CommandId>); 14] = [
            (r#"{"type":"message:send","id":77,"body":"cut \ud83d"}"#, number.clone()),
            (r#"{"body":"\ud83d","id" : 77 }"#, number.clone()),
            (r#"{"body":"\ud83d","id":-9223372036854775808}"#, Some(CommandId::Number(i64::MIN))),
            (r#"{"body":"\ud83d","id":"über-7"}"#, Some(CommandId::Text("über-7".into()))),
            (r#"{"meta":{"n":99999999999999999999999},"id":77}"#, number.clone()),
            (r#"{"id":77,"meta":{"a":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}}"#, number),
            (r#"{"body":"\ud83d \"id\":5","meta":{"id":6}}"#, None),
            (r#"{"id":1,"body":"\ud83d","id":2}"#, None),
            (r#"{"id":1.5,"body":"\ud83d"}"#, None),
            (r#"{"id":9223372036854775808,"body":"\ud83d"}"#, None),
            (r#"{"id":"a\u0041","body":"\ud83d"}"#, None),
            (r#"{"id":null,"body":"\ud83d"}"#, None),
            (r#"["id",77,"\ud83d"]"#, None),
            (r#"{"id":77,"body":"\ud83d""#, None),
        ];
        for (text, id) in cases {
            let bad = Parser::new(4_096).parse(text.as_bytes()).unwrap_err();
            assert_eq!((bad.id, bad.refusal.code.number()), (id, 107), "{text}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let text = br#"{"id":"a\\","b":["\ud83d",{"id":-}],"id":12}"#;
        for start in 0..text.len() {
            for end in start..=text.len() {
                let _ = command_id(&text[start..end]);
            }
        }
    }
}
