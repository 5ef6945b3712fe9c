//! `idle`: quiet connections, each in one room. What each costs in memory, and all in CPU time.

use super::Findings;
use crate::cli::IdleArgs;
use crate::run::Outcome;

/// Reads the outcome.
pub fn findings(args: &IdleArgs, outcome: &Outcome) -> Findings {
    let mut findings = Findings::default();
    let pings = outcome.tally.pings;
    match outcome.server.as_ref().map(|server| &server.window) {
        Some(None) => {}
        Some(Some(window)) => {
            let share = window.total_s / outcome.measured_s.max(1e-9) * 100.0;
            findings.notes.push(format!(
                "holding {} connections took {share:.2} % of a core; {pings} pings were answered in the whole run",
                args.clients
            ));
        }
        None => findings.notes.push("give --server-pid to see memory and CPU time of each connection".to_owned()),
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;
    use crate::cli::{Cli, Scenario};
    use crate::proc::Spent;
    use crate::run::ServerUse;
    use crate::tally::Tally;

    #[test]
    fn the_share_of_a_core_is_told() {
        let Scenario::Idle(args) = Cli::scenario_of(["antiphon-load", "idle", "--secret", "s"]) else {
            panic!("idle was asked for")
        };
        let mut outcome = outcome(Tally { pings: 7, ..Tally::default() }, 1);
        assert!(findings(&args, &outcome).notes[0].contains("--server-pid"));
        let window = Spent { total_s: 0.02, ..Spent::default() };
        outcome.server = Some(ServerUse { window: Some(window), ..ServerUse::default() });
        let note = &findings(&args, &outcome).notes[0];
        assert!(note.contains("2.00 % of a core") && note.contains("7 pings"), "{note}");
    }
}
