//! `resume`: all readers drop at once while the first member of each room goes on sending, and
//! return at once with their cursors. Every gap must be closed from the cursor.

use super::{Findings, base};
use crate::cli::{Cast, ResumeArgs};
use crate::measure::Latency;
use crate::plan::{Absence, Plan};
use crate::run::Outcome;

/// The drop comes after a third of the time.
pub fn plan(args: &ResumeArgs, cast: &Cast) -> Result<Plan, String> {
    if cast.rooms_of < 2 {
        return Err("--rooms-of must be at least 2: one sends, the others drop".to_owned());
    }
    super::one_rate("resume", cast)?;
    let duration_s = args.common.duration;
    let from_s = duration_s / 3.0;
    if !(0.0..duration_s - from_s).contains(&args.away) {
        return Err(format!("--away must leave time to return: below {:.1} s of these", duration_s - from_s));
    }
    let absence = Some(Absence { from_s, to_s: from_s + args.away });
    Ok(Plan { first_member_sends: true, absence, ..base("resume", &args.common, cast) })
}

/// Reads the outcome.
pub fn findings(cast: &Cast, outcome: &Outcome) -> Findings {
    let tally = &outcome.tally;
    let mut findings = Findings::default();
    let rooms = u64::from(cast.clients.div_ceil(cast.rooms_of));
    let dropped = u64::from(cast.clients) - rooms;
    let back = Latency::of(&outcome.meters.back);
    findings.notes.push(format!(
        "{} of {dropped} closed their gap from the cursor ({} entries), {} were told to load history instead",
        tally.recovered, tally.resumed_entries, tally.not_recovered
    ));
    if back.count > 0 {
        findings.notes.push(format!(
            "back in their rooms after p50 {:.1}, p99 {:.1}, at most {:.1} ms",
            back.p50_ms, back.p99_ms, back.max_ms
        ));
    }
    if tally.recovered + tally.not_recovered < dropped {
        let missing = dropped - tally.recovered - tally.not_recovered;
        findings.failures.push(format!("{missing} connections did not resume"));
    }
    if tally.not_recovered > 0 {
        findings.failures.push(format!("{} gaps were not closed from the cursor", tally.not_recovered));
    } else {
        findings.failures.extend(super::excused(tally));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;
    use crate::cli::{Cli, Scenario};
    use crate::tally::Tally;

    fn args(more: &[&str]) -> (ResumeArgs, Cast) {
        let all = ["antiphon-load", "resume", "--secret", "s"].iter().chain(more).copied();
        let scenario = Cli::scenario_of(all);
        let cast = scenario.cast().unwrap();
        let Scenario::Resume(args) = scenario else { panic!("resume was asked for") };
        (args, cast)
    }

    #[test]
    fn the_drop_leaves_time_before_and_after() {
        let (resume, cast) = args(&["--duration", "9", "--away", "2"]);
        let plan = plan(&resume, &cast).unwrap();
        assert_eq!(plan.absence, Some(Absence { from_s: 3.0, to_s: 5.0 }));
        assert!(plan.first_member_sends);
        let (too_long, cast) = args(&["--duration", "3", "--away", "2"]);
        assert!(super::plan(&too_long, &cast).unwrap_err().contains("--away"));
        let (stairs, cast) = args(&["--rate", "50..100"]);
        assert!(super::plan(&stairs, &cast).unwrap_err().contains("FROM..TO"));
        let (alone, cast) = args(&["--rooms-of", "1"]);
        assert!(super::plan(&alone, &cast).unwrap_err().contains("--rooms-of"));
    }

    #[test]
    fn every_absentee_must_resume_from_the_cursor() {
        let (_, cast) = args(&["--clients", "20", "--rooms-of", "10"]);
        let count = |recovered, not_recovered| {
            let tally = Tally { recovered, not_recovered, ..Tally::default() };
            findings(&cast, &outcome(tally, 3)).failures.len()
        };
        let nobody = findings(&cast, &outcome(Tally::default(), 3));
        assert!(!nobody.notes.iter().any(|note| note.contains("back in their rooms")), "{:?}", nobody.notes);
        assert_eq!((count(18, 0), count(17, 0), count(17, 1), count(0, 0)), (0, 1, 1, 1));
    }
}
