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
    let tally = &outcome.tally;
    if tally.put_off > 0 {
        let ending = match tally.never_accepted {
            0 => "all of them were accepted in the end".to_owned(),
            never => format!("{never} messages were never accepted"),
        };
        findings.notes.push(format!("the server put messages off {} times, and {ending}", tally.put_off));
    }
    findings.failures.extend(super::excused(tally));
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
        assert_eq!(findings(&outcome(some.clone(), 1)), Findings::default());
        let notes =
            |never_accepted| findings(&outcome(Tally { put_off: 9, never_accepted, ..some.clone() }, 1)).notes.join("");
        assert!(notes(0).ends_with("9 times, and all of them were accepted in the end"), "{}", notes(0));
        assert!(notes(4).ends_with("9 times, and 4 messages were never accepted"), "{}", notes(4));
    }

    #[test]
    fn nobody_was_meant_to_be_slow() {
        let some = Tally { acked_in_window: 1, delivered_in_window: 1, gaps: 1, excused: 7, ..Tally::default() };
        let failures = findings(&outcome(some, 1)).failures;
        assert_eq!(failures, ["7 deliveries were missed and excused by gap events"]);
    }
}
