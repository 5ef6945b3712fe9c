//! Views into the parsed JSON, and the typed getters whose refusals name field and bound.
//!
//! A tape lists an object as its header, then key, value, key, value …; a value is one node or a
//! header with everything below it. Nothing here indexes: a tape that did not keep its own rules
//! would read as "not there", not as a panic.

use simd_json::{Node, StaticNode};

use super::super::command::{CommandId, Cursor};
use super::super::error::Refusal;
use super::super::ids::{BadName, RoomName, Seq, UserId};
use super::{ID_CHARS_MAX, bad, json};

/// Objects of up to so many names are checked for doubles by comparing each pair.
const PAIRWISE_NAMES_MAX: usize = 16;

/// Seqs are kept as signed 64-bit integers by the store.
pub(super) const SEQ_MAX: u64 = i64::MAX as u64;

/// Longest epoch that is worth comparing, bytes.
const EPOCH_BYTES_MAX: usize = 64;

/// One JSON value: its own node and all below it.
#[derive(Clone, Copy)]
pub(crate) struct Value<'t, 's> {
    nodes: &'t [Node<'s>],
}

/// One JSON object, without its header.
#[derive(Clone, Copy)]
pub(crate) struct Object<'t, 's> {
    entries: &'t [Node<'s>],
    /// A bit for each name: most fields that a command may have are not there, and need not be looked for.
    names: u64,
}

/// The bit of a name; some names share one.
const fn name_bit(name: &str) -> u64 {
    let name = name.as_bytes();
    let (first, last) = if let [first, .., last] = name { (*first, *last) } else { (0, 0) };
    1 << ((first as usize + 5 * last as usize + 2 * name.len()) % 64)
}

/// How long a text may be.
#[derive(Clone, Copy)]
pub(crate) enum Length {
    Bytes(usize, usize),
    Chars(usize, usize),
}

impl<'t, 's> Value<'t, 's> {
    /// The root of a whole tape.
    pub(super) fn root(tape: &'t [Node<'s>]) -> Option<Self> {
        Some(split_value(tape)?.0)
    }

    pub(super) fn nodes(self) -> &'t [Node<'s>] {
        self.nodes
    }

    pub(crate) fn object(self) -> Option<Object<'t, 's>> {
        match self.nodes.split_first()? {
            (Node::Object { .. }, entries) => Some(Object::new(entries)),
            _ => None,
        }
    }

    /// The elements, with their number.
    pub(crate) fn array(self) -> Option<(usize, impl Iterator<Item = Value<'t, 's>>)> {
        let (Node::Array { len, .. }, mut rest) = self.nodes.split_first()? else { return None };
        let elements = std::iter::from_fn(move || {
            let (value, tail) = split_value(rest)?;
            rest = tail;
            Some(value)
        });
        Some((*len, elements))
    }

    pub(crate) fn text(self) -> Option<&'s str> {
        match self.nodes.first()? {
            Node::String(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn bool(self) -> Option<bool> {
        match self.nodes.first()? {
            Node::Static(StaticNode::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// Any number, as a double.
    pub(crate) fn number(self) -> Option<f64> {
        match self.nodes.first()? {
            Node::Static(StaticNode::F64(value)) => Some(*value),
            // Rounding is wanted: the caller asks for a magnitude.
            Node::Static(StaticNode::U64(value)) => Some(*value as f64),
            Node::Static(StaticNode::I64(value)) => Some(*value as f64),
            _ => None,
        }
    }

    fn unsigned(self) -> Option<u64> {
        match self.nodes.first()? {
            Node::Static(StaticNode::U64(value)) => Some(*value),
            Node::Static(StaticNode::I64(value)) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Refuses a name that appears twice in one object, here or anywhere below.
    pub(crate) fn unique_names(self) -> Result<(), Refusal> {
        let mut rest = self.nodes;
        while let Some((node, below)) = rest.split_first() {
            if let Node::Object { len: len @ 2.., count } = node
                && let Some(entries) = below.get(..*count)
                && let object = Object::new(entries)
                // As many bits as names: all differ.
                && object.names.count_ones() as usize != *len
                && has_double(object.fields().map(|(name, _)| name))
            {
                return Err(bad("a name appears twice in one object"));
            }
            rest = below;
        }
        Ok(())
    }
}

/// The first value of a run of values, and what follows it.
fn split_value<'t, 's>(nodes: &'t [Node<'s>]) -> Option<(Value<'t, 's>, &'t [Node<'s>])> {
    let count = match nodes.first()? {
        Node::Object { count, .. } | Node::Array { count, .. } => count + 1,
        Node::String(_) | Node::Static(_) => 1,
    };
    let (nodes, rest) = nodes.split_at_checked(count)?;
    Some((Value { nodes }, rest))
}

fn has_double<'s>(names: impl Iterator<Item = &'s str>) -> bool {
    let mut few = [""; PAIRWISE_NAMES_MAX];
    let mut seen = 0;
    let mut names = names.fuse();
    for (slot, name) in few.iter_mut().zip(&mut names) {
        *slot = name;
        seen += 1;
    }
    let few = few.split_at(seen).0;
    let Some(next) = names.next() else {
        return few.iter().enumerate().any(|(at, name)| few.iter().take(at).any(|earlier| earlier == name));
    };
    // Comparing pairs would let one frame of thousands of names take milliseconds.
    let mut many: Vec<&str> = few.iter().copied().chain([next]).chain(names).collect();
    many.sort_unstable();
    many.windows(2).any(|pair| matches!(pair, [a, b] if a == b))
}

impl<'t, 's> Object<'t, 's> {
    fn new(entries: &'t [Node<'s>]) -> Self {
        let mut object = Self { entries, names: 0 };
        object.names = object.fields().fold(0, |names, (name, _)| names | name_bit(name));
        object
    }

    /// Name and value of each field, in the order of the text.
    pub(crate) fn fields(self) -> impl Iterator<Item = (&'s str, Value<'t, 's>)> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            let (Node::String(name), tail) = rest.split_first()? else { return None };
            let (value, tail) = split_value(tail)?;
            rest = tail;
            Some((*name, value))
        })
    }

    /// The field of that name, if it is there.
    pub(crate) fn find(self, field: &str) -> Option<Value<'t, 's>> {
        if self.names & name_bit(field) == 0 {
            return None;
        }
        self.fields().find(|(name, _)| *name == field).map(|(_, value)| value)
    }

    /// True or false; false when it is left out.
    pub(crate) fn flag(self, field: &'static str) -> Result<bool, Refusal> {
        let Some(value) = self.find(field) else { return Ok(false) };
        value.bool().ok_or_else(|| bad(format!("{field} must be true or false")))
    }

    /// A text of a bounded length.
    pub(crate) fn text(self, field: &'static str, length: Length) -> Result<Option<&'s str>, Refusal> {
        let Some(value) = self.find(field) else { return Ok(None) };
        let fits = |text: &&str| match length {
            Length::Bytes(min, max) => (min..=max).contains(&text.len()),
            // A character has at least one byte, so a long text need not be counted through.
            Length::Chars(min, max) => text.len() <= max * 4 && (min..=max).contains(&text.chars().count()),
        };
        value.text().filter(fits).map(Some).ok_or_else(|| {
            let (min, max, unit) = match length {
                Length::Bytes(min, max) => (min, max, "bytes"),
                Length::Chars(min, max) => (min, max, "characters"),
            };
            bad(format!("{field} must be a string of {min} to {max} {unit}"))
        })
    }

    /// A name that keeps the rule of its kind.
    pub(crate) fn name(
        self,
        field: &'static str,
        is_valid: fn(&str) -> bool,
        rule: BadName,
    ) -> Result<Option<&'s str>, Refusal> {
        let Some(value) = self.find(field) else { return Ok(None) };
        let name = value.text().filter(|text| is_valid(text));
        name.map(Some).ok_or_else(|| bad(format!("{field} must be a string: {rule}")))
    }

    /// `room`, which must be there.
    pub(crate) fn room(self) -> Result<&'s str, Refusal> {
        required("room", self.name("room", RoomName::is_valid, RoomName::bad())?)
    }

    /// A user's name.
    pub(crate) fn user(self, field: &'static str) -> Result<Option<&'s str>, Refusal> {
        self.name(field, UserId::is_valid, UserId::bad())
    }

    /// One of a closed list of words.
    pub(crate) fn word<T>(
        self,
        field: &'static str,
        parse: fn(&str) -> Option<T>,
        words: &'static str,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.find(field) else { return Ok(None) };
        value.text().and_then(parse).map(Some).ok_or_else(|| bad(format!("{field} must be one of {words}")))
    }

    /// An integer within bounds, both included.
    pub(crate) fn integer(self, field: &'static str, min: u64, max: u64) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.find(field) else { return Ok(None) };
        let integer = value.unsigned().filter(|integer| (min..=max).contains(integer));
        integer.map(Some).ok_or_else(|| bad(format!("{field} must be an integer from {min} to {max}")))
    }

    /// A list of 1 to `max` integers within bounds, both included; it must be there.
    pub(crate) fn integers(self, field: &'static str, max: usize, low: u64, high: u64) -> Result<Vec<u64>, Refusal> {
        let refuse = || bad(format!("{field} must be an array of 1 to {max} integers from {low} to {high}"));
        let (len, elements) =
            required(field, self.find(field))?.array().filter(|(len, _)| (1..=max).contains(len)).ok_or_else(refuse)?;
        let mut integers = Vec::with_capacity(len);
        for element in elements {
            let integer = element.unsigned().filter(|integer| (low..=high).contains(integer));
            integers.push(integer.ok_or_else(refuse)?);
        }
        Ok(integers)
    }

    /// A seq of at least `min`.
    pub(crate) fn seq(self, field: &'static str, min: Seq) -> Result<Option<Seq>, Refusal> {
        self.integer(field, min, SEQ_MAX)
    }

    /// How many are wanted: `1..=max`.
    pub(crate) fn limit(self, max: u32, default: u32) -> Result<u32, Refusal> {
        let limit = self.integer("limit", 1, u64::from(max))?;
        Ok(limit.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(default))
    }

    /// A list of at most `max` texts that all pass `check`; not there is empty.
    pub(crate) fn texts(
        self,
        field: &'static str,
        max: usize,
        check: impl Fn(&str) -> bool,
        rule: &'static str,
    ) -> Result<Vec<&'s str>, Refusal> {
        let Some(value) = self.find(field) else { return Ok(Vec::new()) };
        let refuse = || bad(format!("{field} must be an array of at most {max} strings, each {rule}"));
        let (len, elements) = value.array().filter(|(len, _)| *len <= max).ok_or_else(refuse)?;
        let mut texts = Vec::with_capacity(len);
        for element in elements {
            texts.push(element.text().filter(|text| check(text)).ok_or_else(refuse)?);
        }
        Ok(texts)
    }

    /// A list of at most `max` users.
    pub(crate) fn users(self, field: &'static str, max: usize) -> Result<Vec<&'s str>, Refusal> {
        self.texts(field, max, UserId::is_valid, UserId::bad().rule)
    }

    /// `since`: where to resume.
    pub(crate) fn since(self) -> Result<Option<Cursor<'s>>, Refusal> {
        let Some(value) = self.find("since") else { return Ok(None) };
        let since = value.object().ok_or_else(|| bad("since must be an object with epoch and seq"))?;
        let epoch = required("epoch", since.text("epoch", Length::Bytes(1, EPOCH_BYTES_MAX))?)?;
        let seq = required("seq", since.seq("seq", 0)?)?;
        Ok(Some(Cursor { epoch, seq }))
    }

    /// Any JSON, written anew; at most `max` bytes of it.
    pub(crate) fn json(self, field: &'static str, max: usize) -> Result<Option<String>, Refusal> {
        let Some(value) = self.find(field) else { return Ok(None) };
        let written = json::write(value);
        let fits = written.filter(|json| json.len() <= max);
        fits.map(Some).ok_or_else(|| bad(format!("{field} must have at most {max} bytes of JSON")))
    }

    /// `id`, when there is one that can be echoed.
    pub(super) fn command_id(self) -> Result<Option<CommandId>, Refusal> {
        let mut ids = self.fields().filter(|(name, _)| *name == "id").map(|(_, value)| value);
        let Some(value) = ids.next() else { return Ok(None) };
        if ids.next().is_some() {
            return Err(bad("id appears twice"));
        }
        let id = match value.nodes.first() {
            Some(Node::String(text)) => (text.len() <= ID_CHARS_MAX * 4 && text.chars().count() <= ID_CHARS_MAX)
                .then(|| CommandId::Text((*text).into())),
            Some(Node::Static(StaticNode::I64(number))) => Some(CommandId::Number(*number)),
            Some(Node::Static(StaticNode::U64(number))) => i64::try_from(*number).ok().map(CommandId::Number),
            _ => None,
        };
        id.map(Some).ok_or_else(|| bad("id must be a string of at most 64 characters or a 64-bit integer"))
    }
}

/// The value of a field that must be there.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Refusal> {
    value.ok_or_else(|| bad(format!("{field} is missing")))
}
