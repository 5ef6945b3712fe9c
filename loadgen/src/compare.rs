//! `compare`: two sides, each one report or several of the same work; medians, spread, and whether the
//! difference is more than the noise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use crate::figures::{self, FIGURES, Kind};
use crate::report::{Report, thousands};

/// Reads a saved report.
///
/// # Errors
/// One sentence that names the file.
pub fn load(path: &PathBuf) -> Result<Report, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{} is no report of this tool: {error}", path.display()))
}

/// Lowest, median, highest.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
    /// How many there are.
    count: usize,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let (a, b) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { low, median: (a + b) / 2.0, high, count: values.len() })
    }
}

/// The comparison as a table.
///
/// # Errors
/// The two sides did not do the same work.
pub fn compare(a: &[Report], b: &[Report]) -> Result<String, String> {
    let first = a.first().ok_or("there is nothing to compare")?;
    let first_work = work(first);
    if let Some(other) = a.iter().chain(b).map(work).find(|other| *other != first_work) {
        let of =
            |works: &BTreeMap<String, String>, name: &String| works.get(name).cloned().unwrap_or("nothing".to_owned());
        let names = first_work.keys().chain(other.keys());
        let differing = names.filter(|name| first_work.get(*name) != other.get(*name));
        let differing: BTreeSet<String> =
            differing.map(|name| format!("{name} {} and {}", of(&first_work, name), of(&other, name))).collect();
        return Err(format!("not the same work: {}", differing.into_iter().collect::<Vec<_>>().join("; ")));
    }
    let mut runs = BTreeSet::new();
    if let Some(twice) = a.iter().chain(b).find(|report| !runs.insert(&report.run)) {
        return Err(format!("run {} is given twice: the same run again says nothing about the noise", twice.run));
    }
    let s = &first.settings;
    let mut out = format!("{}: {} clients in rooms of {}, {}\n\n", first.scenario, s.clients, s.rooms_of, s.traffic);
    write_table(&mut out, a, b).expect("writing to memory");
    Ok(out)
}

/// Everything that shapes the work of a run, by name.
fn work(report: &Report) -> BTreeMap<String, String> {
    let s = &report.settings;
    let mut work = s.work.clone();
    work.extend([
        ("scenario".to_owned(), report.scenario.clone()),
        ("clients".to_owned(), s.clients.to_string()),
        ("rooms of".to_owned(), s.rooms_of.to_string()),
        ("traffic".to_owned(), s.traffic.clone()),
        ("body bytes".to_owned(), s.body_bytes.to_string()),
    ]);
    work
}

fn write_table(out: &mut String, a: &[Report], b: &[Report]) -> std::fmt::Result {
    let sides = (format!("A ({} runs)", a.len()), format!("B ({} runs)", b.len()));
    writeln!(out, "{:<38} {:>26} {:>26} {:>8}  {:<17} verdict", "figure", sides.0, sides.1, "B / A", "ratios")?;
    let times = ["p50", "p99", "p99.9", "ack.p50", "ack.p99", "connect.p50", "connect.p99"];
    let times = times.map(|name| (name, name, Kind::Time));
    let own = figures::OF_SCENARIOS.map(|name| (name, name, Kind::Own));
    for (name, what, kind) in FIGURES.into_iter().chain(times).chain(own) {
        let values = |side: &[Report]| Spread::of(side.iter().filter_map(|r| figures::read(r, name)).collect());
        let (Some(of_a), Some(of_b)) = (values(a), values(b)) else { continue };
        if kind == Kind::Fault {
            if of_a.high > 0.0 || of_b.high > 0.0 {
                writeln!(out, "{what:<38} {:>26} {:>26}  highest of each side", of_a.high, of_b.high)?;
            }
            continue;
        }
        let what = if kind == Kind::Time { format!("{what}, ms") } else { what.to_owned() };
        write!(out, "{what:<38} {:>26} {:>26}", cell(of_a), cell(of_b))?;
        let ratios = match of_a.low > 0.0 && of_b.low > 0.0 {
            true => {
                let range = format!("{:.3}–{:.3}", of_b.low / of_a.high, of_b.high / of_a.low);
                format!("{:>8.3}  {range:<17}", of_b.median / of_a.median)
            }
            false => format!("{:>8}  {:<17}", "–", "–"),
        };
        writeln!(out, " {ratios} {}", verdict(kind, of_a, of_b))?;
    }
    Ok(())
}

/// What it says that every run of B is above, or below, every run of A.
fn verdict(kind: Kind, a: Spread, b: Spread) -> &'static str {
    let more_is_better = kind == Kind::Rate;
    match (b.low > a.high, b.high < a.low) {
        _ if a.count.min(b.count) < 3 => "too few runs to tell (3 a side)",
        // Which way is better, only the reader knows.
        (true, _) if kind == Kind::Own => "higher",
        (_, true) if kind == Kind::Own => "lower",
        (is_more, is_less) if is_more || is_less => {
            if is_more == more_is_better {
                "better"
            } else {
                "worse"
            }
        }
        _ => "within the noise",
    }
}

fn cell(spread: Spread) -> String {
    let number = |n: f64| if n >= 1_000.0 { thousands(n.round() as u64) } else { format!("{n:.2}") };
    match spread.low == spread.high {
        true => number(spread.median),
        false => format!("{} ({}–{})", number(spread.median), number(spread.low), number(spread.high)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    fn runs(costs: &[f64]) -> Vec<Report> {
        static RUNS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let with = |cost: &f64| {
            let mut report = sample();
            report.run = RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
            report.figures = vec![crate::report::Figure::new("all_back", *cost, "s")];
            report.server.as_mut().unwrap().cpu_s_per_million_deliveries = Some(*cost);
            report
        };
        costs.iter().map(with).collect()
    }

    fn line(a: &[f64], b: &[f64]) -> String {
        let table = compare(&runs(a), &runs(b)).unwrap();
        table.lines().find(|line| line.contains("per million")).unwrap().to_owned()
    }

    #[test]
    fn medians_ratios_and_noise() {
        let apart = line(&[2.0, 4.0, 3.0], &[1.4, 1.5, 1.6]);
        assert!(apart.contains("3.00 (2.00–4.00)") && apart.contains("1.50 (1.40–1.60)"), "{apart}");
        assert!(apart.contains(" 0.500 ") && apart.contains("0.350–0.800") && apart.ends_with(" better"), "{apart}");
        assert!(line(&[1.0, 1.1, 1.2], &[2.0, 2.1, 2.2]).ends_with(" worse"));
        assert!(line(&[1.0, 2.0, 3.0], &[2.5, 2.6, 2.7]).ends_with("within the noise"));
        assert!(line(&[1.0], &[2.0]).ends_with("too few runs to tell (3 a side)"));
        assert_eq!(Spread::of(vec![1.0, 3.0]).unwrap().median, 2.0);
        let (less, more) = (Spread::of(vec![1.0, 1.1, 1.2]).unwrap(), Spread::of(vec![1.3, 1.4, 1.5]).unwrap());
        assert_eq!(verdict(Kind::Rate, less, more), "better", "of rates more is better");
        assert_eq!(verdict(Kind::Rate, more, less), "worse");
        let own = compare(&runs(&[1.0, 1.1, 1.2]), &runs(&[2.0, 2.1, 2.2])).unwrap();
        assert!(own.lines().any(|line| line.starts_with("all_back") && line.ends_with(" higher")), "{own}");
    }

    #[test]
    fn what_has_no_ratio_is_judged_all_the_same() {
        let from_nothing = line(&[0.0, 0.0, 0.0], &[1.0, 1.1, 1.2]);
        assert!(from_nothing.contains(" –  ") && from_nothing.ends_with(" worse"), "{from_nothing}");
        assert!(line(&[1.0, 1.1, 1.2], &[0.0, 0.0, 0.5]).ends_with(" better"));
        let slopes = compare(&runs(&[-3.0, -2.0, -1.0]), &runs(&[1.0, 2.0, 3.0])).unwrap();
        assert!(slopes.lines().any(|line| line.starts_with("all_back") && line.ends_with(" higher")), "{slopes}");
        assert!(line(&[0.0, 0.0, 0.0], &[0.0, 0.0, 0.0]).ends_with("within the noise"));
    }

    #[test]
    fn runs_without_the_figure_are_no_runs_of_it() {
        let mut b = runs(&[2.0, 2.1, 2.2]);
        b[0].server.as_mut().unwrap().cpu_s_per_million_deliveries = None;
        let table = compare(&runs(&[1.0, 1.1, 1.2]), &b).unwrap();
        let line = table.lines().find(|line| line.contains("per million")).unwrap();
        assert!(line.ends_with("too few runs to tell (3 a side)"), "{line}");
    }

    #[test]
    fn only_the_same_work_is_compared() {
        let mut other = sample();
        other.settings.clients += 1;
        assert!(compare(&[sample()], &[other]).unwrap_err().contains("not the same work: clients 100 and 101"));
        let mut longer = sample();
        longer.settings.work.insert("--duration".to_owned(), "60".to_owned());
        let refused = compare(&[sample()], &[longer]).unwrap_err();
        assert!(refused.contains("--duration nothing and 60"), "{refused}");
        let again = compare(&[sample()], &[sample()]).unwrap_err();
        assert!(again.contains("run abc123 is given twice"), "{again}");
        assert!(load(&"/nonexistent/a.json".into()).unwrap_err().contains("a.json"));
    }
}
