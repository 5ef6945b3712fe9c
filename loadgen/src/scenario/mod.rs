//! The scenarios: each turns its arguments into a [`Plan`], and reads from the outcome what only it
//! can show.

use crate::cli::{Cast, Common, Scenario};
use crate::plan::{Plan, Setup, Traffic};
use crate::report::Figure;
use crate::run::Outcome;
use crate::tally::Tally;
use crate::watch::Seen;

mod chat;
mod connect;
mod idle;
mod resume;
mod slow;

/// What a scenario found beside the tally: numbers, notes for the reader, and broken promises.
#[derive(Debug, Default, PartialEq)]
pub struct Findings {
    /// Numbers that only this scenario has.
    pub figures: Vec<Figure>,
    /// For the reader.
    pub notes: Vec<String>,
    /// Promises that did not hold.
    pub failures: Vec<String>,
}

impl Findings {
    fn figure(&mut self, name: &'static str, value: f64, unit: &'static str) {
        self.figures.push(Figure::new(name, value, unit));
    }
}

/// Makes the plan.
///
/// # Errors
/// One sentence that names the flag.
pub fn plan(scenario: &Scenario, cast: &Cast) -> Result<Plan, String> {
    match scenario {
        Scenario::Connect(args) => Ok(connect::plan(args, cast)),
        Scenario::Idle(_) => Ok(base("idle", scenario.common(), cast)),
        Scenario::Chat(_) => Ok(base("chat", scenario.common(), cast)),
        Scenario::Fanout(_) => Ok(base("fanout", scenario.common(), cast)),
        Scenario::Echo(_) => Ok(base("echo", scenario.common(), cast)),
        Scenario::Resume(args) => resume::plan(args, cast),
        Scenario::Slow(args) => slow::plan(args, cast),
        _ => Err("a scripted scenario has no plan".to_owned()),
    }
}

/// Reads the outcome.
pub fn findings(scenario: &Scenario, cast: &Cast, outcome: &Outcome, seen: &Seen) -> Findings {
    match scenario {
        Scenario::Connect(_) => connect::findings(outcome),
        Scenario::Idle(args) => idle::findings(args, outcome),
        Scenario::Chat(_) | Scenario::Fanout(_) | Scenario::Echo(_) => chat::findings(outcome),
        Scenario::Resume(_) => resume::findings(cast, outcome),
        Scenario::Slow(args) => slow::findings(args, outcome, seen),
        // Scripted ones judge themselves.
        _ => Findings::default(),
    }
}

/// Refuses a staircase where something else happens in the course of the run.
fn one_rate(name: &str, cast: &Cast) -> Result<(), String> {
    match cast.traffic {
        Traffic::Steps { .. } => Err(format!("--rate FROM..TO has parts of its own: {name} needs one rate")),
        _ => Ok(()),
    }
}

/// What a `gap` excuses is lost all the same where nobody is meant to be slow.
fn excused(tally: &Tally) -> Option<String> {
    (tally.excused > 0).then(|| format!("{} deliveries were missed and excused by gap events", tally.excused))
}

/// A plan without any event.
fn base(name: &'static str, common: &Common, cast: &Cast) -> Plan {
    Plan {
        scenario: name,
        setup: Setup::CreateThenSubscribe,
        traffic: cast.traffic,
        first_member_sends: false,
        body_bytes: cast.body_bytes,
        connecting: 64,
        warmup_s: common.warmup,
        duration_s: common.duration,
        absence: None,
        stall: None,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::measure::{Meters, Schedule};
    use crate::proc::Spent;

    /// An outcome with these counts and nothing else.
    pub fn outcome(tally: Tally, windows: usize) -> Outcome {
        Outcome {
            tally,
            meters: Meters::new(windows),
            schedule: Schedule::default(),
            connected: 1,
            connect_s: 1.0,
            connected_end: 1,
            measured_s: 1.0,
            server: None,
            tool: Spent::default(),
            tool_s: 1.0,
            polled_s: None,
            timeline: Default::default(),
            stages: Vec::new(),
            is_cut_short: false,
            trouble: Vec::new(),
        }
    }
}
