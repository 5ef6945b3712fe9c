//! `connect`: how fast connections are made, authenticated and joined, and what each costs.

use super::{Findings, base};
use crate::cli::{Cast, ConnectArgs};
use crate::plan::{Plan, Setup};
use crate::run::Outcome;

/// Everybody joins by themselves, as soon as they are greeted. Nothing is measured afterwards.
pub fn plan(args: &ConnectArgs, cast: &Cast) -> Plan {
    Plan {
        setup: Setup::JoinEach,
        connecting: args.in_flight,
        warmup_s: 0.0,
        duration_s: 0.1,
        ..base("connect", &args.common, cast)
    }
}

/// CPU time that its division into user and kernel is told for.
const TICKS_MIN_S: f64 = 0.2;

/// Reads the outcome.
pub fn findings(outcome: &Outcome) -> Findings {
    let mut findings = Findings::default();
    findings.notes.push("each: TCP, upgrade, token, hello and a durable room:join".to_owned());
    if let Some(connect) = outcome.server.as_ref().and_then(|server| server.connect.as_ref()) {
        // Both are counted in ticks of 10 ms: few of them say nothing.
        let (user, kernel) = (connect.user_s, connect.system_s);
        if user + kernel >= TICKS_MIN_S {
            let share = kernel / (user + kernel) * 100.0;
            findings.notes.push(format!("{share:.0} % of the server's CPU time while connecting was the kernel's"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;
    use crate::proc::Spent;
    use crate::run::ServerUse;
    use crate::tally::Tally;

    #[test]
    fn the_kernels_share_is_told() {
        let mut outcome = outcome(Tally::default(), 1);
        assert_eq!(findings(&outcome).notes.len(), 1);
        let connect = Spent { user_s: 3.0, system_s: 1.0, ..Spent::default() };
        outcome.server = Some(ServerUse { connect: Some(connect), ..ServerUse::default() });
        assert!(findings(&outcome).notes[1].starts_with("25 %"));
    }
}
