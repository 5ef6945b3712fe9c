//! HdrHistogram's percentile text, as its plotters read it: value (ms), percentile, count so far, and
//! 1/(1-percentile), then the closing lines.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;

use crate::measure::{Meters, Schedule};

/// Lines for each halving of the distance to 100 %, as in HdrHistogram's own tools.
const TICKS_PER_HALF: u32 = 5;

/// A histogram of nanoseconds as text.
pub fn text(hist: &Histogram<u64>) -> String {
    let ms = |ns: f64| ns / 1e6;
    let mut out = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut so_far = 0;
    for step in hist.iter_quantiles(TICKS_PER_HALF) {
        so_far += step.count_since_last_iteration();
        let (value, quantile) = (ms(step.value_iterated_to() as f64), step.quantile_iterated_to());
        let line = format_args!("{value:12.3} {quantile:2.12} {so_far:10}");
        let written = match quantile < 1.0 {
            true => writeln!(out, "{line} {:14.2}", 1.0 / (1.0 - quantile)),
            false => writeln!(out, "{line}"),
        };
        written.expect("writing to memory");
    }
    let (mean, deviation, max) = (ms(hist.mean()), ms(hist.stdev()), ms(hist.max() as f64));
    let sub_buckets = 2_u64.pow(u32::from(hist.sigfig()) * 10 / 3 + 1);
    let buckets = (hist.high() / sub_buckets).max(1).ilog2() + 2;
    let closing = format!(
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]\n\
         #[Max     = {max:12.3}, Total count    = {:12}]\n\
         #[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]\n",
        hist.len()
    );
    out + &closing
}

/// The same as pairs for a plot: percentile from 0 to 1, and value in ms; few enough to be saved.
pub fn curve(hist: &Histogram<u64>) -> Vec<(f64, f64)> {
    let ms = |ns: u64| (ns as f64 / 1e3).round() / 1e3;
    let all = hist.iter_quantiles(3).map(|step| (step.quantile_iterated_to(), ms(step.value_iterated_to())));
    // Beyond one in the count there is only the slowest, again and again.
    let finest = 1.0 - 0.5 / hist.len().max(1) as f64;
    all.filter(|(quantile, _)| *quantile < finest || *quantile >= 1.0).collect()
}

/// Writes one file for each latency that has anything in it, and returns their names.
///
/// # Errors
/// A file could not be written.
pub fn write(prefix: &Path, schedule: &Schedule, meters: &Meters) -> Result<Vec<PathBuf>, String> {
    let single = [("connect", "whole", &meters.connect), ("back", "whole", &meters.back)];
    let named = |which, hists: &'_ [Histogram<u64>]| {
        let windows = schedule.windows.iter().map(|window| window.name);
        windows.zip(hists.to_vec()).map(|(window, hist)| (which, window, hist)).collect::<Vec<_>>()
    };
    let mut all = named("delivery", &meters.delivery);
    all.extend(named("ack", &meters.ack));
    all.extend(single.map(|(which, window, hist)| (which, window, hist.clone())));
    let mut written = Vec::new();
    for (which, window, hist) in all.into_iter().filter(|(.., hist)| !hist.is_empty()) {
        let file = file(prefix, which, window);
        std::fs::write(&file, text(&hist)).map_err(|error| format!("--hgrm {}: {error}", file.display()))?;
        written.push(file);
    }
    Ok(written)
}

/// The file of one latency in one part of the time.
pub fn file(prefix: &Path, which: &str, window: &str) -> PathBuf {
    let mut file = prefix.as_os_str().to_owned();
    file.push(format!("-{which}-{}.hgrm", window.replace(' ', "-")));
    file.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    fn meters() -> Meters {
        let mut meters = Meters::new(1);
        (1..=1_000_u64).for_each(|n| meters.delivery[0].record(n * 1_000_000).unwrap());
        meters
    }

    #[test]
    fn the_text_is_what_plotters_read() {
        let text = text(&meters().delivery[0]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert_eq!(lines[1], "");
        let fields = |line: &str| line.split_ascii_whitespace().map(|f| f.parse::<f64>().unwrap()).collect::<Vec<_>>();
        let rows: Vec<Vec<f64>> = lines[2..].iter().filter(|l| !l.starts_with('#')).map(|l| fields(l)).collect();
        assert!(rows.len() > 20 && rows[..rows.len() - 1].iter().all(|row| row.len() == 4), "{text}");
        let last = rows.last().unwrap();
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 1_000.0));
        assert!(rows.windows(2).all(|two| two[0][0] <= two[1][0] && two[0][1] <= two[1][1] && two[0][2] <= two[1][2]));
        let half = rows.iter().find(|row| row[1] == 0.5).unwrap();
        assert!((half[0] - 500.0).abs() < 1.0 && half[2] == 500.0 && half[3] == 2.0, "{half:?}");
        assert!(lines[lines.len() - 3].starts_with("#[Mean    =      500."), "{text}");
        assert!(lines[lines.len() - 1].contains("SubBuckets     =         2048]"), "{text}");
    }

    #[test]
    fn curves_are_short_and_end_with_the_slowest() {
        let curve = curve(&meters().delivery[0]);
        assert!((10..60).contains(&curve.len()), "{}", curve.len());
        assert!(curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
        let (quantile, slowest) = *curve.last().unwrap();
        assert!(quantile == 1.0 && (slowest - 1_000.0).abs() < 2.0);
    }

    #[test]
    fn files_are_named_after_what_they_hold() {
        let folder = std::env::temp_dir().join(format!("antiphon-load-hgrm-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let written = write(&folder.join("a"), &plan().schedule(0), &meters()).unwrap();
        assert_eq!(written, [folder.join("a-delivery-whole.hgrm")], "empty ones are left out");
        assert!(std::fs::read_to_string(&written[0]).unwrap().contains("TotalCount"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(write(&folder.join("a"), &plan().schedule(0), &meters()).unwrap_err().contains("--hgrm"));
    }
}
