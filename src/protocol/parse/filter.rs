//! `filter` of a subscription to a [`Filter`]: a closed grammar, every bound checked here.
//!
//! ```text
//! filter = {"all": [filter, …]} | {"any": [filter, …]} | {"not": filter} | test
//! test   = {"field": text, OP: value}
//! OP     = eq | in | prefix | gt | gte | lt | lte | exists
//! ```
//! Nothing else is accepted: a misspelt operator that were ignored would show or hide at random.

use super::super::error::Refusal;
use super::super::filter::{
    FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_TERMS_MAX, FILTER_VALUES_MAX, Filter, Node, Scalar, Test,
};
use super::{Value, bad};

const FIELD_BYTES_MAX: usize = 64;

/// Reads a whole filter.
///
/// # Errors
/// [`ErrorCode::BadRequest`](super::super::error::ErrorCode::BadRequest) that names the rule.
pub(super) fn read(value: Value<'_, '_>) -> Result<Filter, Refusal> {
    let mut growing = Growing { nodes: Vec::new(), terms: 0, values: 0, bytes: 0 };
    growing.add(value, 0)?;
    Ok(Filter { nodes: growing.nodes.into_boxed_slice() })
}

struct Growing {
    nodes: Vec<Node>,
    terms: usize,
    values: usize,
    bytes: usize,
}

impl Growing {
    fn add(&mut self, value: Value<'_, '_>, depth: usize) -> Result<(), Refusal> {
        let shape = || bad("filter must be an object with all, any or not, or with field and one operator");
        let object = value.object().ok_or_else(shape)?;
        let mut fields = object.fields();
        match (fields.next(), fields.next(), fields.next()) {
            (Some((name @ ("all" | "any" | "not"), parts)), None, None) => self.add_group(name, parts, depth),
            (Some(("field", field)), Some((operator, operand)), None)
            | (Some((operator, operand)), Some(("field", field)), None) => self.add_test(field, operator, operand),
            _ => Err(shape()),
        }
    }

    fn add_group(&mut self, name: &str, parts: Value<'_, '_>, depth: usize) -> Result<(), Refusal> {
        if depth >= FILTER_DEPTH_MAX {
            return Err(bad(format!("filter is nested deeper than {FILTER_DEPTH_MAX}")));
        }
        let at = self.nodes.len();
        // Its end is known once its parts are in.
        self.nodes.push(Node::Not { end: 0 });
        if name == "not" {
            self.add(parts, depth + 1)?;
        } else {
            let (_, parts) = parts
                .array()
                .filter(|(len, _)| *len > 0)
                .ok_or_else(|| bad("all and any of a filter must be arrays of at least one filter"))?;
            for part in parts {
                self.add(part, depth + 1)?;
            }
        }
        // At most 32 tests, each below at most 4 groups of its own: far from the end of u16.
        let end = self.nodes.len() as u16;
        self.nodes[at] = match name {
            "all" => Node::All { end },
            "any" => Node::Any { end },
            _ => Node::Not { end },
        };
        Ok(())
    }

    fn add_test(&mut self, field: Value<'_, '_>, operator: &str, operand: Value<'_, '_>) -> Result<(), Refusal> {
        self.terms += 1;
        if self.terms > FILTER_TERMS_MAX {
            return Err(bad(format!("filter has more than {FILTER_TERMS_MAX} tests")));
        }
        let field = field.text().filter(|name| (1..=FIELD_BYTES_MAX).contains(&name.len()));
        let field =
            field.ok_or_else(|| bad(format!("field of a filter must be a string of 1 to {FIELD_BYTES_MAX} bytes")))?;
        let field = self.text(field)?;
        let number = || operand.number().ok_or_else(|| bad("gt, gte, lt and lte of a filter take a number"));
        let test = match operator {
            "eq" => Test::In(Box::new([self.scalar(operand)?])),
            "in" => {
                let (_, list) = operand.array().ok_or_else(|| bad("in of a filter takes an array"))?;
                Test::In(list.map(|value| self.scalar(value)).collect::<Result<_, _>>()?)
            }
            "prefix" => {
                let prefix = operand.text().ok_or_else(|| bad("prefix of a filter takes a string"))?;
                Test::Prefix(self.text(prefix)?)
            }
            "gt" => Test::Above(number()?, false),
            "gte" => Test::Above(number()?, true),
            "lt" => Test::Below(number()?, false),
            "lte" => Test::Below(number()?, true),
            "exists" => Test::Exists(operand.bool().ok_or_else(|| bad("exists of a filter takes true or false"))?),
            _ => return Err(bad("operator of a filter must be one of eq, in, prefix, gt, gte, lt, lte, exists")),
        };
        self.nodes.push(Node::Test { field, test });
        Ok(())
    }

    fn scalar(&mut self, value: Value<'_, '_>) -> Result<Scalar, Refusal> {
        self.values += 1;
        if self.values > FILTER_VALUES_MAX {
            return Err(bad(format!("filter has more than {FILTER_VALUES_MAX} values")));
        }
        if let Some(text) = value.text() {
            return Ok(Scalar::Text(self.text(text)?));
        }
        let plain = value.bool().map(Scalar::Bool).or_else(|| value.number().map(Scalar::Number));
        plain.ok_or_else(|| bad("eq and in of a filter take strings, numbers, true and false"))
    }

    fn text(&mut self, text: &str) -> Result<Box<str>, Refusal> {
        self.bytes += text.len();
        if self.bytes > FILTER_BYTES_MAX {
            return Err(bad(format!("filter has more than {FILTER_BYTES_MAX} bytes of texts")));
        }
        Ok(text.into())
    }
}
