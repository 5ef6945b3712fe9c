//! `chat`, `fanout` and `echo`: traffic, and nothing else happens. A run that moved no message
//! proves nothing, so it fails.

use super::Findings;
use crate::run::Outcome;

/// Reads the outcome.
pub fn findings(outcome: &Outcome) -> Findings {
    let mut findings = Findings::default();
    if outcome.tally.acked_in_window == 0 || outcome.tally.delivered_in_window == 0 {
        findings.failures.push("nothing was acknowledged or delivered within the measuring window".to_owned());
    }
    if !outcome.tally.errors.is_empty() {
        findings.notes.push("the server refused some messages for a while; they were sent again".to_owned());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;
    use crate::tally::Tally;

    #[test]
    fn a_silent_run_fails() {
        assert_eq!(findings(&outcome(Tally::default(), 1)).failures.len(), 1);
        let some = Tally { acked_in_window: 1, delivered_in_window: 1, ..Tally::default() };
        assert_eq!(findings(&outcome(some, 1)), Findings::default());
    }
}
