//! How a message stands after edits, and how history shows it. Pure; shared by the store and by the
//! tests' log, so that both say the same.
//!
//! The log keeps each step for ever. What stands now is kept beside it ([`MessageState`], reactions),
//! and history writes it over the first step: `message:created` has the current body.

use crate::protocol::encode::{EventKind, field_integer, field_raw, integer, string};
use crate::protocol::ids::{Seq, UnixMillis};

/// Most different reactions to one message; who reacts with a known one is not bounded by it.
pub const REACTION_KINDS_MAX: u32 = 64;

/// How a message stands. The default is that of a message that nobody touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageState {
    /// 1 at first, one more with each edit and with the deletion.
    pub version: u64,
    /// Only a tombstone is left. Nothing changes any more.
    pub deleted: bool,
    /// When it got this version; 0 for version 1.
    pub edited_ts: UnixMillis,
    /// The body that stands, as a JSON string with its quotes; none: the first one, or deleted.
    pub body_json: Option<Box<str>>,
}

impl Default for MessageState {
    fn default() -> Self {
        Self { version: 1, deleted: false, edited_ts: 0, body_json: None }
    }
}

/// Fields of `message:updated` (with a body) and `message:deleted`, as the log keeps them.
pub(in crate::engine) fn step_fields(target: Seq, version: u64, body_json: Option<&str>) -> Box<str> {
    let mut out = b"\"target\":".to_vec();
    integer(&mut out, target);
    field_integer(&mut out, "version", version);
    if let Some(body_json) = body_json {
        field_raw(&mut out, "body", body_json.as_bytes());
    }
    text(out).into_boxed_str()
}

/// Fields of `reaction:added` and `reaction:removed`.
pub(in crate::engine) fn reaction_fields(target: Seq, emoji: &str, count: u32) -> Box<str> {
    let mut out = b"\"target\":".to_vec();
    integer(&mut out, target);
    field_raw(&mut out, "emoji", b"");
    string(&mut out, emoji);
    field_integer(&mut out, "count", u64::from(count));
    text(out).into_boxed_str()
}

/// The message that an entry is about when history shows it: itself, or the target of an edit.
pub fn subject(kind: EventKind, seq: Seq, fields: &str) -> Option<Seq> {
    match kind {
        EventKind::MessageCreated => Some(seq),
        EventKind::MessageUpdated => Some(target_and_version(fields)?.0),
        _ => None,
    }
}

/// The fields of an entry as history shows them, given how its [`subject`] stands.
///
/// `message:created` has the body that stands, and `version`, `edited_ts` and `reactions` where there
/// are any; a tombstone has `"deleted":true` and neither body nor anything else that its author wrote.
/// `message:updated` keeps its body only while that is the one that stands.
pub fn current_fields(
    kind: EventKind,
    fields: &str,
    thread: Option<Seq>,
    state: &MessageState,
    reactions: &[(Box<str>, u32)],
) -> String {
    match kind {
        EventKind::MessageCreated if state.deleted => tombstone(thread, state),
        EventKind::MessageCreated => created(fields, state, reactions),
        EventKind::MessageUpdated => match target_and_version(fields) {
            Some((target, version)) if state.deleted || version != state.version => {
                step_fields(target, version, None).into()
            }
            _ => fields.to_owned(),
        },
        _ => fields.to_owned(),
    }
}

fn tombstone(thread: Option<Seq>, state: &MessageState) -> String {
    let mut out = b"\"deleted\":true".to_vec();
    if let Some(thread) = thread {
        field_integer(&mut out, "thread", thread);
    }
    field_integer(&mut out, "version", state.version);
    field_integer(&mut out, "edited_ts", state.edited_ts);
    text(out)
}

fn created(fields: &str, state: &MessageState, reactions: &[(Box<str>, u32)]) -> String {
    let mut out = Vec::with_capacity(fields.len() + 64);
    match (&state.body_json, after_body(fields)) {
        (Some(body_json), Some(rest)) => {
            out.extend_from_slice(b"\"body\":");
            out.extend_from_slice(body_json.as_bytes());
            out.extend_from_slice(rest.as_bytes());
        }
        _ => out.extend_from_slice(fields.as_bytes()),
    }
    if state.version > 1 {
        field_integer(&mut out, "version", state.version);
        field_integer(&mut out, "edited_ts", state.edited_ts);
    }
    for (at, (emoji, count)) in reactions.iter().enumerate() {
        if at == 0 {
            field_raw(&mut out, "reactions", b"{");
        } else {
            out.push(b',');
        }
        string(&mut out, emoji);
        out.push(b':');
        integer(&mut out, u64::from(*count));
    }
    if !reactions.is_empty() {
        out.push(b'}');
    }
    text(out)
}

/// What follows the body in a message's fields, which begin with it.
fn after_body(fields: &str) -> Option<&str> {
    let body = fields.strip_prefix("\"body\":\"")?;
    let mut is_escaped = false;
    let end = body.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })?;
    body.get(end + 1..)
}

fn target_and_version(fields: &str) -> Option<(Seq, u64)> {
    let (target, rest) = fields.strip_prefix("\"target\":")?.split_once(",\"version\":")?;
    let version = rest.split_once(',').map_or(rest, |(version, _)| version);
    Some((target.parse().ok()?, version.parse().ok()?))
}

fn text(out: Vec<u8>) -> String {
    String::from_utf8(out).expect("made of texts and escapes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &str = r#""body":"a \"b\\","thread":3,"meta":{"body":"x"},"trace":"00""#;

    fn state(version: u64, body_json: Option<&str>, deleted: bool) -> MessageState {
        MessageState { version, deleted, edited_ts: 77, body_json: body_json.map(Box::from) }
    }

    #[test]
    fn untouched_is_as_logged_and_reactions_follow() {
        let shown = |reactions: &[(Box<str>, u32)]| {
            current_fields(EventKind::MessageCreated, FIELDS, Some(3), &MessageState::default(), reactions)
        };
        assert_eq!(shown(&[]), FIELDS);
        let reactions = [("\"".into(), 2), ("👍".into(), 1)];
        assert_eq!(shown(&reactions), format!("{FIELDS},\"reactions\":{{\"\\\"\":2,\"👍\":1}}"));
    }

    #[test]
    fn an_edit_replaces_the_body_alone() {
        let shown = current_fields(EventKind::MessageCreated, FIELDS, Some(3), &state(2, Some("\"new\""), false), &[]);
        let due = r#""body":"new","thread":3,"meta":{"body":"x"},"trace":"00","version":2,"edited_ts":77"#;
        assert_eq!(shown, due);
    }

    #[test]
    fn a_tombstone_keeps_nothing_that_was_written() {
        let shown =
            |fields: &str, kind| current_fields(kind, fields, Some(3), &state(3, None, true), &[("x".into(), 1)]);
        let due = r#""deleted":true,"thread":3,"version":3,"edited_ts":77"#;
        assert_eq!(shown(FIELDS, EventKind::MessageCreated), due);
        let edit = step_fields(9, 2, Some("\"new\""));
        assert_eq!(shown(&edit, EventKind::MessageUpdated), r#""target":9,"version":2"#);
    }

    #[test]
    fn an_edit_that_was_overtaken_loses_its_body() {
        let edit = step_fields(9, 2, Some("\"new\""));
        assert_eq!(subject(EventKind::MessageUpdated, 12, &edit), Some(9));
        let shown = |version| current_fields(EventKind::MessageUpdated, &edit, None, &state(version, None, false), &[]);
        assert_eq!(shown(2), &*edit);
        assert_eq!(shown(3), r#""target":9,"version":2"#);
    }
}
