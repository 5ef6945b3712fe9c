//! `compare`: two sides, each one report or several of the same work; medians, spread, and whether the
//! difference is more than the noise.

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
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let (a, b) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { low, median: (a + b) / 2.0, high })
    }
}

/// The comparison as a table.
///
/// # Errors
/// The two sides did not do the same work.
pub fn compare(a: &[Report], b: &[Report]) -> Result<String, String> {
    let work = |report: &Report| {
        let s = &report.settings;
        (report.scenario.clone(), s.clients, s.rooms_of, s.traffic.clone(), s.body_bytes)
    };
    let first = a.first().map(work).ok_or("there is nothing to compare")?;
    if let Some(other) = a.iter().chain(b).map(work).find(|other| *other != first) {
        return Err(format!("not the same work: {first:?} and {other:?}"));
    }
    let mut out = format!("{}: {} clients in rooms of {}, {}\n\n", first.0, first.1, first.2, first.3);
    write_table(&mut out, a, b).expect("writing to memory");
    Ok(out)
}

fn write_table(out: &mut String, a: &[Report], b: &[Report]) -> std::fmt::Result {
    let sides = (format!("A ({} runs)", a.len()), format!("B ({} runs)", b.len()));
    writeln!(out, "{:<38} {:>26} {:>26} {:>8}  {:<17} verdict", "figure", sides.0, sides.1, "B / A", "ratios")?;
    let times = ["p50", "p99", "p99.9", "ack.p50", "ack.p99", "connect.p50", "connect.p99"];
    let times = times.map(|name| (name, name, Kind::Time));
    for (name, what, kind) in FIGURES.into_iter().chain(times) {
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
        let ratio = of_b.median / of_a.median;
        let (low, high) = (of_b.low / of_a.high, of_b.high / of_a.low);
        let range = format!("{low:.3}–{high:.3}");
        match ratio.is_finite() && high.is_finite() {
            true => writeln!(out, " {ratio:>8.3}  {range:<17} {}", verdict(kind, low, high, a.len().min(b.len())))?,
            false => writeln!(out)?,
        }
    }
    Ok(())
}

/// What the ratios of any run of B to any run of A say.
fn verdict(kind: Kind, low: f64, high: f64, runs: usize) -> &'static str {
    let more_is_better = kind == Kind::Rate;
    match (low > 1.0, high < 1.0) {
        _ if runs < 3 => "too few runs to tell (3 a side)",
        (true, _) => {
            if more_is_better {
                "better"
            } else {
                "worse"
            }
        }
        (_, true) => {
            if more_is_better {
                "worse"
            } else {
                "better"
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
        let with = |cost: &f64| {
            let mut report = sample();
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
        assert_eq!(verdict(Kind::Rate, 1.1, 1.2, 3), "better", "of rates more is better");
    }

    #[test]
    fn only_the_same_work_is_compared() {
        let mut other = sample();
        other.settings.clients += 1;
        assert!(compare(&[sample()], &[other]).unwrap_err().contains("not the same work"));
        assert!(load(&"/nonexistent/a.json".into()).unwrap_err().contains("a.json"));
    }
}
