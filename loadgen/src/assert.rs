//! `--assert`: what must hold of a run's figures, for scripts and CI.
//!
//! ```text
//! list      = assertion *("," assertion)
//! assertion = figure op value
//! figure    = a name of `figures.rs`: rate, lost, p99, ack.p99, p99@after, …
//! op        = "<" | "<=" | ">" | ">=" | "=" | "!="
//! value     = number [unit]     us ms s (of times, which are in ms); k M; KB MB
//! ```

use std::str::FromStr;

use crate::figures::{self, Kind};
use crate::report::Report;

/// One assertion.
#[derive(Debug, Clone, PartialEq)]
pub struct Assertion {
    text: String,
    figure: String,
    op: &'static str,
    value: f64,
}

/// Longer ones first, so that `<=` is not read as `<`.
const OPS: [&str; 6] = ["<=", ">=", "!=", "<", ">", "="];

impl FromStr for Assertion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let at = text.find(['<', '>', '=', '!']).ok_or("an assertion is FIGURE OP VALUE, such as p99<20ms")?;
        let (figure, rest) = (text[..at].trim_end(), &text[at..]);
        let op = OPS.into_iter().find(|op| rest.starts_with(op)).ok_or("operators are < <= > >= = !=")?;
        let kind = figures::kind(figure).ok_or_else(|| format!("there is no figure {figure}; see --help"))?;
        let value = value(rest[op.len()..].trim(), kind)?;
        Ok(Self { text: text.to_owned(), figure: figure.to_owned(), op, value })
    }
}

fn value(text: &str, kind: Kind) -> Result<f64, String> {
    let end = text.find(|c: char| c.is_ascii_alphabetic() || c == 'µ').unwrap_or(text.len());
    let (number, unit) = (text[..end].trim_end(), &text[end..]);
    let factor = match (kind, unit) {
        (_, "") | (Kind::Time, "ms") => 1.0,
        (Kind::Time, "us" | "µs") => 1e-3,
        (Kind::Time, "s") => 1e3,
        (Kind::Rate | Kind::Cost | Kind::Fault | Kind::Own, "k") => 1e3,
        (Kind::Rate | Kind::Cost | Kind::Fault | Kind::Own, "M") => 1e6,
        (Kind::Cost, "KB") => 1024.0,
        (Kind::Cost, "MB") => 1_048_576.0,
        _ => return Err(format!("{unit} is no unit of this figure")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text} is no number"))?;
    if number.is_finite() { Ok(number * factor) } else { Err(format!("{text} is no number")) }
}

impl Assertion {
    /// What is wrong, in a sentence; `None` when it holds.
    pub fn failure(&self, report: &Report) -> Option<String> {
        let Some(found) = figures::read(report, &self.figure) else {
            return Some(format!("--assert {}: this run has no {}", self.text, self.figure));
        };
        let holds = match self.op {
            "<" => found < self.value,
            "<=" => found <= self.value,
            ">" => found > self.value,
            ">=" => found >= self.value,
            "=" => found == self.value,
            _ => found != self.value,
        };
        let unit = if figures::kind(&self.figure) == Some(Kind::Time) { " ms" } else { "" };
        (!holds).then(|| format!("--assert {}: it is {}{unit}", self.text, (found * 1e3).round() / 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    fn assertion(text: &str) -> Result<Assertion, String> {
        text.parse()
    }

    #[test]
    fn what_holds_is_silent_and_what_does_not_says_what_it_is() {
        let report = sample();
        for holds in [
            "p99<20ms",
            "p99 <= 12.5",
            "p99=12.5ms",
            "p99>0.012s",
            "p99!=1us",
            "lost=0",
            "rate>=1k",
            "rate<2k",
            "rss<=3KB",
            "connect.p50<1s",
            "tool-limit=0",
            "p99@whole<20ms",
            "p99@'whole'<20ms",
            "p99@\"whole\"<20ms",
        ] {
            assert_eq!(assertion(holds).unwrap().failure(&report), None, "{holds}");
        }
        let failure = |text: &str| assertion(text).unwrap().failure(&report);
        assert_eq!(failure("p99<10ms").unwrap(), "--assert p99<10ms: it is 12.5 ms");
        assert_eq!(
            failure("whole_inbox_p50<100").unwrap(),
            "--assert whole_inbox_p50<100: this run has no whole_inbox_p50"
        );
        assert_eq!(failure("doubled>0").unwrap(), "--assert doubled>0: it is 0");
        assert_eq!(failure("p99@after<1s").unwrap(), "--assert p99@after<1s: this run has no p99@after");
    }

    #[test]
    fn nonsense_is_refused_before_the_run() {
        for (text, words) in [
            ("p99", "FIGURE OP VALUE"),
            ("p98<1", "no figure p98"),
            ("connect.p99@nosuchpart<10s", "no figure connect"),
            ("whole_inbox_p50<1s", "no unit"),
            ("p99<x", "no unit"),
            ("p99<", "no number"),
            ("lost=0ms", "no unit"),
            ("rate>1KB", "no unit"),
            ("p99!20", "operators"),
            ("p99<1e999", "no"),
        ] {
            assert!(assertion(text).unwrap_err().contains(words), "{text}: {:?}", assertion(text));
        }
    }
}
