//! `slow`: some readers stop reading for a while. The others must not notice; the slow ones must get
//! everything in the end: late, or from the history after a `gap`, or by coming back after a 4102.
//!
//! The same load runs without them first, as long as the stall lasts: what is compared is the others'
//! delivery, so the slow ones' own is never recorded. With `--control` the server's ladder is held
//! against what the tool saw of it.

use super::{Findings, base};
use crate::cli::{Cast, SlowArgs};
use crate::control::Metrics;
use crate::measure::Latency;
use crate::plan::{Plan, Stall};
use crate::run::Outcome;
use crate::watch::Seen;

/// Small enough for the server to notice soon.
const RECEIVE_BUFFER: i32 = 4_096;

/// `--duration` is what comes before and after the stall, half each; before it at least as long as it.
pub fn plan(args: &SlowArgs, cast: &Cast) -> Result<Plan, String> {
    if !(0.1..=50.0).contains(&args.percent) || cast.rooms_of < 2 {
        return Err("--percent must be 0.1 to 50, and --rooms-of at least 2".to_owned());
    }
    if args.stall <= 0.0 || args.ratio_max < 1.0 {
        return Err("--stall must be above 0 seconds, --ratio-max at least 1".to_owned());
    }
    let after_s = args.common.duration / 2.0;
    let from_s = after_s.max(args.stall);
    super::one_rate("slow", cast)?;
    let candidates = cast.clients - cast.clients.div_ceil(cast.rooms_of);
    let slow = stopped(args).min(candidates);
    let stall = Stall { from_s, to_s: from_s + args.stall, slow, candidates, receive_buffer: RECEIVE_BUFFER };
    let duration_s = stall.to_s + after_s;
    Ok(Plan { stall: Some(stall), duration_s, ..base("slow", &args.common, cast) })
}

/// How many readers stop: at least one.
fn stopped(args: &SlowArgs) -> u32 {
    (f64::from(args.clients) * args.percent / 100.0).ceil() as u32
}

/// Reads the outcome.
pub fn findings(args: &SlowArgs, outcome: &Outcome, seen: &Seen) -> Findings {
    let mut findings = Findings::default();
    compare(args, outcome, &mut findings);
    let tally = &outcome.tally;
    findings.figure("stopped", f64::from(stopped(args)), "readers");
    findings.figure("missed_and_told", tally.missed as f64, "entries left out with a word, of slow readers");
    findings.figure("missed_and_refetched", tally.refetched as f64, "entries read from the history");
    findings.figure("resumed", tally.resumed_entries as f64, "entries that resumes brought");
    findings.figure("gap_events", tally.gaps as f64, "");
    findings.figure("cut", tally.closes_expected as f64, "slow readers closed");
    if tally.refetched != tally.missed {
        findings.failures.push(format!(
            "{} entries were left out and {} of them read from the history: the slow ones end with a hole",
            tally.missed, tally.refetched
        ));
    }
    if tally.excused > tally.missed {
        let others = tally.excused - tally.missed;
        findings
            .failures
            .push(format!("{others} entries were left out for readers that read: too much for this machine?"));
    }
    if let Some((first, last)) = &seen.metrics {
        let ladder = Ladder::between(first, last);
        findings.failures.extend(ladder.disagreements(tally.gaps, tally.closes.values().sum(), tally.excused));
        for (name, count, unit) in [
            ("ladder_1_merged", ladder.merged, "low frames"),
            ("ladder_2_dropped_low", ladder.dropped_low, "low frames"),
            ("ladder_3_dropped", ladder.dropped_normal, "normal frames"),
            ("ladder_3_gaps", ladder.gaps, "gap events that stood in for them"),
            ("ladder_4_closed", ladder.closed, "connections (4102, or 4104 where the kernel held all)"),
            ("ladder_budget", ladder.shed, "times the budget for all was exceeded"),
        ] {
            findings.figure(name, count as f64, unit);
        }
    } else {
        findings.notes.push("give --control to have the server's ladder counters checked".to_owned());
    }
    hold_memory(args, seen, &mut findings);
    findings
}

fn compare(args: &SlowArgs, outcome: &Outcome, findings: &mut Findings) {
    let [without, with, ..] = outcome.meters.delivery.as_slice() else { return };
    let (without, with) = (Latency::of(without), Latency::of(with));
    if without.count == 0 || with.count == 0 {
        return findings.failures.push("nothing was delivered without or with the slow readers".to_owned());
    }
    let ratio = with.p99_ms / without.p99_ms.max(0.001);
    findings.figure("others_p99_without", without.p99_ms, "ms");
    findings.figure("others_p99_with", with.p99_ms, "ms");
    findings.figure("others_p99_ratio", ratio, "");
    findings.figure("others_p50_ratio", with.p50_ms / without.p50_ms.max(0.001), "");
    if ratio > args.ratio_max {
        findings.failures.push(format!(
            "slow readers hurt the others: p99 {:.2} → {:.2} ms, {ratio:.2} of it without them",
            without.p99_ms, with.p99_ms
        ));
    }
}

fn hold_memory(args: &SlowArgs, seen: &Seen, findings: &mut Findings) {
    let held = seen.sights.iter().map(|sight| sight.held_bytes).max().unwrap_or(0);
    if seen.metrics.is_some() {
        findings.figure("held_for_slow_ones", held as f64, "B at most");
        if held > args.budget {
            findings.failures.push(format!("{held} B waited for slow readers, the budget is {}", args.budget));
        }
    }
    let rss = || seen.sights.iter().map(|sight| sight.rss_bytes).filter(|rss| *rss > 0);
    if let (Some(least), Some(most)) = (rss().min(), rss().max()) {
        findings.figure("rss_growth", (most - least) as f64, "B, connecting included");
    }
}

/// What the server says of its slow consumers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ladder {
    merged: u64,
    dropped_low: u64,
    dropped_normal: u64,
    gaps: u64,
    closed: u64,
    shed: u64,
}

impl Ladder {
    fn between(first: &Metrics, last: &Metrics) -> Self {
        let grown = |name| last.grown(first, name);
        Self {
            merged: grown("slow_conflated"),
            dropped_low: grown("slow_dropped_low"),
            dropped_normal: grown("slow_dropped_normal"),
            gaps: grown("gaps"),
            // Who reads nothing answers no ping either: what the kernel holds for them decides which comes first.
            closed: grown("slow_closed") + grown("heartbeats_missed"),
            shed: grown("outbox_shed"),
        }
    }

    /// Where the server's account and what the tool saw do not add up. A gap may be told to a
    /// connection that is closed before it reads it, and a dropped frame may hold several entries.
    fn disagreements(&self, gaps: u64, cut: u64, missed: u64) -> Vec<String> {
        let mut all = Vec::new();
        let mut claim = |holds: bool, what: String| {
            if !holds {
                all.push(format!("the ladder does not add up: {what}"));
            }
        };
        claim(self.closed == cut, format!("{} closed by the server, {cut} cut readers seen", self.closed));
        claim(self.gaps >= gaps, format!("{} gaps told by the server, {gaps} heard", self.gaps));
        if cut == 0 {
            claim(self.gaps == gaps, format!("{} gaps told by the server, {gaps} heard", self.gaps));
            claim(
                self.dropped_normal <= missed,
                format!("{} frames dropped, {missed} entries missed", self.dropped_normal),
            );
        }
        claim((self.dropped_normal > 0) >= (gaps > 0), "gaps without a dropped frame".to_owned());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::outcome;
    use super::*;
    use crate::cli::{Cli, Scenario};
    use crate::tally::Tally;

    fn args(more: &[&str]) -> (SlowArgs, Cast) {
        let all = ["antiphon-load", "slow", "--secret", "s"].iter().chain(more).copied();
        let scenario = Cli::scenario_of(all);
        let cast = scenario.cast().unwrap();
        let Scenario::Slow(args) = scenario else { panic!("slow was asked for") };
        (args, cast)
    }

    #[test]
    fn the_run_without_them_is_as_long_as_the_one_with_them() {
        let (slow, cast) = args(&["--stall", "60", "--duration", "10", "--percent", "1"]);
        let plan = plan(&slow, &cast).unwrap();
        let stall = plan.stall.unwrap();
        assert_eq!((stall.from_s, stall.to_s, plan.duration_s, stall.slow), (60.0, 120.0, 125.0, 2));
        let (slow, cast) = args(&["--stall", "2", "--duration", "10"]);
        assert_eq!(super::plan(&slow, &cast).unwrap().duration_s, 12.0);
    }

    #[test]
    fn as_many_stop_as_were_asked_for() {
        let stopping = |more: &[&str]| {
            let (slow, cast) = args(more);
            let plan = plan(&slow, &cast).unwrap();
            let count = (0..cast.clients).filter(|user| plan.is_slow(*user, cast.rooms_of)).count();
            assert_eq!(count as u32, stopped(&slow));
            count
        };
        assert_eq!(stopping(&["--clients", "10", "--rooms-of", "5", "--percent", "5"]), 1);
        assert_eq!(stopping(&["--clients", "100", "--rooms-of", "10", "--percent", "40"]), 40);
        assert_eq!(stopping(&[]), 10);
        let (stairs, cast) = args(&["--rate", "50..100"]);
        assert!(plan(&stairs, &cast).unwrap_err().contains("FROM..TO"));
    }

    #[test]
    fn others_must_not_notice() {
        let failures = |before_us: u64, during_us: u64| {
            let mut outcome = outcome(Tally::default(), 3);
            outcome.meters.delivery[0].record(before_us * 1_000).unwrap();
            outcome.meters.delivery[1].record(during_us * 1_000).unwrap();
            findings(&args(&[]).0, &outcome, &Seen::default()).failures.len()
        };
        assert_eq!(
            (failures(10_000, 11_000), failures(500, 590), failures(500, 620), failures(50_000, 80_000)),
            (0, 0, 1, 1)
        );
    }

    #[test]
    fn a_hole_that_was_not_filled_is_a_failure() {
        let failures = |missed, refetched| {
            let mut outcome = outcome(Tally { excused: 9, missed, refetched, ..Tally::default() }, 3);
            outcome.meters.delivery.iter_mut().for_each(|hist| hist.record(1_000_000).unwrap());
            findings(&args(&[]).0, &outcome, &Seen::default()).failures.len()
        };
        assert_eq!((failures(9, 9), failures(9, 8), failures(8, 8)), (0, 1, 1));
    }

    #[test]
    fn the_ladder_must_explain_what_was_missed() {
        let ladder = |dropped_normal, gaps, closed| Ladder { dropped_normal, gaps, closed, ..Ladder::default() };
        let wrong = |ladder: Ladder, gaps, cut, missed| ladder.disagreements(gaps, cut, missed).len();
        assert_eq!(wrong(ladder(0, 0, 0), 0, 0, 0), 0);
        assert_eq!(wrong(ladder(40, 3, 0), 3, 0, 90), 0);
        assert_eq!(wrong(ladder(40, 4, 2), 3, 2, 90), 0, "a gap that nobody lived to read");
        assert_eq!(wrong(ladder(40, 4, 0), 3, 0, 90), 1);
        assert_eq!(wrong(ladder(40, 2, 1), 3, 1, 90), 1);
        assert_eq!(wrong(ladder(0, 3, 0), 3, 0, 90), 1);
        assert_eq!(wrong(ladder(99, 3, 0), 3, 0, 90), 1);
        assert_eq!(wrong(ladder(40, 3, 1), 3, 0, 90), 1);
    }
}
