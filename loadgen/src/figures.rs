//! The figures of a report by name: what `--assert` checks and `compare` compares.

use crate::measure::Latency;
use crate::report::Report;

/// What a figure is counted in, and which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Milliseconds; less is better.
    Time,
    /// A cost; less is better.
    Cost,
    /// A second; more is better.
    Rate,
    /// A count of what should not be.
    Fault,
    /// A number that only one scenario has, in its own unit.
    Own,
}

/// Figures with a fixed name: name, what it is for people, kind.
pub const FIGURES: [(&str, &str, Kind); 17] = [
    ("cpu", "server CPU s per million deliveries", Kind::Cost),
    ("rate", "messages acknowledged a second", Kind::Rate),
    ("deliveries", "deliveries a second", Kind::Rate),
    ("connects", "connections a second", Kind::Rate),
    ("cpu-connect", "server CPU µs a connection", Kind::Cost),
    ("rss", "server RSS bytes a connection", Kind::Cost),
    ("tool", "load of the tool's threads", Kind::Cost),
    ("tool-limit", "the tool was the limit", Kind::Fault),
    ("lost", "deliveries lost", Kind::Fault),
    ("doubled", "deliveries doubled", Kind::Fault),
    ("out-of-order", "deliveries out of order", Kind::Fault),
    ("differing", "deliveries not the same for everybody", Kind::Fault),
    ("gaps", "gap events", Kind::Fault),
    ("errors", "error replies", Kind::Fault),
    ("closed", "connections closed unasked", Kind::Fault),
    ("broken", "promises broken, in kinds", Kind::Fault),
    ("excused", "entries the server said it would skip", Kind::Fault),
];

/// Numbers that only some scenario has.
pub const OF_SCENARIOS: [&str; 62] = [
    "acked",
    "all_back",
    "all_bytes",
    "back_p50",
    "back_p99",
    "cards_received",
    "changes",
    "cpu_per_change",
    "cut",
    "delivered_per_second",
    "departures_told",
    "enqueued",
    "enqueued_per_second",
    "event_bytes",
    "events_against_naive",
    "events_received",
    "events_without_seq",
    "failed_tries",
    "fds_growth",
    "gap_events",
    "held_for_slow_ones",
    "inbox_acks",
    "inbox_items",
    "ladder_1_merged",
    "ladder_2_dropped_low",
    "ladder_3_dropped",
    "ladder_3_gaps",
    "ladder_4_closed",
    "ladder_budget",
    "missed_and_refetched",
    "missed_and_told",
    "naive_notifications",
    "newcomers_before",
    "newcomers_before_p50",
    "newcomers_before_p99",
    "newcomers_during",
    "newcomers_during_p50",
    "newcomers_during_p99",
    "notify_refused",
    "others_p50_ratio",
    "others_p99_ratio",
    "others_p99_with",
    "others_p99_without",
    "put_off",
    "repeats",
    "resumed",
    "resumed_entries",
    "rss_growth",
    "rss_slope",
    "server_cpu",
    "server_cpu_first_coming",
    "server_cpu_per_item",
    "server_cpu_per_return",
    "server_cpu_per_thing",
    "stopped",
    "threads_growth",
    "time_to_truth",
    "tool_lag_p99",
    "wake_p99",
    "wake_p99_worst",
    "whole_inbox_max",
    "whole_inbox_p50",
];

/// Names of quantiles.
const QUANTILES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "mean", "max"];
/// Names of latencies.
const LATENCIES: [&str; 3] = ["delivery", "ack", "connect"];

/// A figure's kind, if there is one of that name.
pub fn kind(name: &str) -> Option<Kind> {
    let fixed = FIGURES.iter().find(|(known, ..)| *known == name).map(|(.., kind)| *kind);
    let (latency, quantile, part) = parts(name);
    // Connecting is no part of what is measured in parts.
    let is_time =
        LATENCIES.contains(&latency) && QUANTILES.contains(&quantile) && (latency != "connect" || part.is_none());
    fixed.or(is_time.then_some(Kind::Time)).or(OF_SCENARIOS.contains(&name).then_some(Kind::Own))
}

/// A figure of a report; `None` where the run did not yield it.
pub fn read(report: &Report, name: &str) -> Option<f64> {
    let (traffic, server, checked) = (report.traffic.as_ref(), report.server.as_ref(), &report.checked);
    let count = |n: u64| Some(n as f64);
    match name {
        "rate" => traffic.map(|t| t.acked_per_second),
        "deliveries" => traffic.map(|t| t.delivered_per_second),
        "connects" => Some(report.connect.per_second),
        "cpu" => server?.cpu_s_per_million_deliveries,
        "cpu-connect" => server?.connect_cpu_us_each,
        "rss" => server?.rss_per_connection,
        "tool" => Some(report.tool.driver_load),
        "tool-limit" => Some(f64::from(u8::from(report.tool.was_the_limit))),
        "lost" => count(checked.lost),
        "doubled" => count(checked.doubled),
        "out-of-order" => count(checked.out_of_order),
        "differing" => count(checked.differing),
        "gaps" => count(checked.gaps),
        "excused" => count(checked.excused),
        "errors" => count(checked.errors.iter().map(|(_, n)| n).sum()),
        "closed" => count(checked.closes.iter().map(|(_, n)| n).sum()),
        "broken" => count((report.failures.len() as u64).max(u64::from(!report.passed))),
        _ if OF_SCENARIOS.contains(&name) => report.figures.iter().find(|figure| figure.name == name).map(|f| f.value),
        _ => latency(report, name),
    }
}

fn latency(report: &Report, name: &str) -> Option<f64> {
    let (which, quantile, window) = parts(name);
    if which == "connect" {
        return of(&report.connect.latency, quantile);
    }
    let windows = report.traffic.iter().flat_map(|t| &t.windows);
    let wanted = windows.filter(|w| window.is_none_or(|wanted| w.name == wanted));
    // Of several parts the worst counts.
    wanted.filter_map(|w| of(if which == "ack" { &w.ack } else { &w.delivery }, quantile)).reduce(f64::max)
}

/// `[ack.]p99[@window]` as latency, quantile, window.
fn parts(name: &str) -> (&str, &str, Option<&str>) {
    let (name, window) = name.split_once('@').map_or((name, None), |(name, window)| (name, Some(window)));
    let window = window.map(|window| window.trim_matches(['\'', '"']));
    match name.split_once('.').filter(|(which, _)| LATENCIES.contains(which)) {
        Some((which, quantile)) => (which, quantile, window),
        None => ("delivery", name, window),
    }
}

fn of(latency: &Latency, quantile: &str) -> Option<f64> {
    let value = match quantile {
        "p50" => latency.p50_ms,
        "p90" => latency.p90_ms,
        "p99" => latency.p99_ms,
        "p99.9" => latency.p999_ms,
        "mean" => latency.mean_ms,
        "max" => latency.max_ms,
        _ => return None,
    };
    (latency.count > 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn every_name_is_known_and_read() {
        let report = sample();
        for (name, ..) in FIGURES {
            assert!(kind(name).is_some() && read(&report, name).is_some(), "{name}");
        }
        for name in ["p50", "p99.9", "ack.p99", "connect.max", "delivery.mean", "p99@whole", "p99@'whole'"] {
            assert_eq!(kind(name), Some(Kind::Time), "{name}");
            assert!(read(&report, name).is_some(), "{name}");
        }
        for name in ["p98", "ack", "x.p99", "lost@whole", "connect.p99@whole", "no_such_figure", ""] {
            assert_eq!(kind(name), None, "{name}");
        }
        assert_eq!(read(&report, "p99@nowhen"), None);
        let mut report = report;
        assert_eq!((kind("whole_inbox_p50"), read(&report, "whole_inbox_p50")), (Some(Kind::Own), None));
        report.figures.push(crate::report::Figure::new("whole_inbox_p50", 45.5, "ms"));
        assert_eq!(read(&report, "whole_inbox_p50"), Some(45.5));
    }
}
