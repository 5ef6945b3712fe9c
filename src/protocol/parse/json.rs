//! A parsed value as JSON text again: for `data` and `meta`, which pass through to other clients.
//!
//! Written anew from the tape, so that what is passed on is well-formed, without white space, and
//! escaped by our own rules; every number keeps its value. No tree in between.

use std::io::Write as _;

use simd_json::{Node, StaticNode};

use super::super::encode;
use super::Value;

/// The value as JSON text; nothing for a tape that breaks its own rules.
pub(super) fn write(value: Value<'_, '_>) -> Option<String> {
    let mut out = Vec::with_capacity(64);
    let mut rest = value.nodes();
    next(&mut rest, &mut out)?;
    String::from_utf8(out).ok()
}

/// Writes the value at the front of `rest` and moves past it. Recursion is as deep as the JSON is
/// nested, which the parser has bounded.
fn next(rest: &mut &[Node<'_>], out: &mut Vec<u8>) -> Option<()> {
    let (node, tail) = rest.split_first()?;
    *rest = tail;
    match node {
        Node::String(text) => encode::string(out, text),
        Node::Static(scalar) => write_scalar(scalar, out),
        Node::Array { len, .. } => {
            out.push(b'[');
            for index in 0..*len {
                if index > 0 {
                    out.push(b',');
                }
                next(rest, out)?;
            }
            out.push(b']');
        }
        Node::Object { len, .. } => {
            out.push(b'{');
            for index in 0..*len {
                if index > 0 {
                    out.push(b',');
                }
                let (Node::String(name), tail) = rest.split_first()? else { return None };
                *rest = tail;
                encode::string(out, name);
                out.push(b':');
                next(rest, out)?;
            }
            out.push(b'}');
        }
    }
    Some(())
}

fn write_scalar(scalar: &StaticNode, out: &mut Vec<u8>) {
    let written = match scalar {
        StaticNode::Null => out.write_all(b"null"),
        StaticNode::Bool(true) => out.write_all(b"true"),
        StaticNode::Bool(false) => out.write_all(b"false"),
        StaticNode::U64(number) => write!(out, "{number}"),
        StaticNode::I64(number) => write!(out, "{number}"),
        // Debug writes the shortest text that reads back as the same double, always with a point or
        // an exponent, and is JSON for every finite number; the parser refuses others.
        StaticNode::F64(number) => write!(out, "{number:?}"),
    };
    written.expect("writing to memory");
}
