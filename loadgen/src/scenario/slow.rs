//! `slow`: some readers stop reading for a while. The others must not notice; the slow ones must get
//! everything, a `gap`, or be closed with 4102.

use super::{Findings, base};
use crate::cli::{Cast, SlowArgs};
use crate::measure::Latency;
use crate::plan::{Plan, Stall};
use crate::run::Outcome;

/// Small enough for the server to notice soon.
const RECEIVE_BUFFER: i32 = 4_096;

/// Deliveries to the others may get slower by this factor (PROMISES.md: slow readers) …
const SLOWER_MAX: f64 = 1.2;
/// … or by so much in all: below it the difference is the machine's own noise.
const NOISE_MS: f64 = 25.0;

/// The stall comes after a part of the time, so that there is a before and an after to compare.
pub fn plan(args: &SlowArgs, cast: &Cast) -> Result<Plan, String> {
    if !(0.1..=50.0).contains(&args.percent) || cast.rooms_of < 2 {
        return Err("--percent must be 0.1 to 50, and --rooms-of at least 2".to_owned());
    }
    if args.stall <= 0.0 {
        return Err("--stall must be above 0 seconds".to_owned());
    }
    // `--duration` is what comes before and after the stall, half each.
    let from_s = args.common.duration / 2.0;
    let one_in = (100.0 / args.percent).round() as u32;
    let stall = Stall { from_s, to_s: from_s + args.stall, one_in, receive_buffer: RECEIVE_BUFFER };
    let duration_s = args.common.duration + args.stall;
    Ok(Plan { stall: Some(stall), duration_s, ..base("slow", &args.common, cast) })
}

/// Reads the outcome.
pub fn findings(outcome: &Outcome) -> Findings {
    let mut findings = Findings::default();
    let tally = &outcome.tally;
    findings.notes.push(format!(
        "slow readers: {} gap events for {} entries, {} closed with 4102; the rest got everything late",
        tally.gaps, tally.excused, tally.closes_expected
    ));
    if let [before, during, ..] = outcome.meters.delivery.as_slice() {
        let (before, during) = (Latency::of(before).p99_ms, Latency::of(during).p99_ms);
        findings
            .notes
            .push(format!("the others' delivery p99: {before:.2} ms before, {during:.2} ms during the stall"));
        if during > before * SLOWER_MAX && during - before > NOISE_MS {
            findings.failures.push(format!("slow readers hurt the others: p99 {before:.2} → {during:.2} ms"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;
    use crate::tally::Tally;

    #[test]
    fn others_must_not_notice() {
        let failures = |before_ms: u64, during_ms: u64| {
            let mut outcome = outcome(Tally::default(), 3);
            outcome.meters.delivery[0].record(before_ms * 1_000_000).unwrap();
            outcome.meters.delivery[1].record(during_ms * 1_000_000).unwrap();
            findings(&outcome).failures.len()
        };
        assert_eq!((failures(10, 11), failures(1, 24), failures(500, 590), failures(50, 80)), (0, 0, 0, 1));
    }
}
