//! What a report says, what of it is saved, and what is read back.

use super::*;

/// A good run with round figures.
pub fn sample() -> Report {
    let latency =
        Latency { count: 1_000, mean_ms: 4.5, p50_ms: 4.0, p90_ms: 8.0, p99_ms: 12.5, p999_ms: 30.0, max_ms: 42.0 };
    let curve = vec![(0.0, 1.0), (0.5, 4.0), (0.9, 8.0), (0.99, 12.5), (0.999, 30.0), (1.0, 42.0)];
    let window = WindowReport {
        name: "whole".to_owned(),
        to_s: 10.0,
        acked_per_second: 1_500.0,
        ack: latency,
        delivery: latency,
        ack_curve: curve.clone(),
        delivery_curve: curve,
        ..WindowReport::default()
    };
    Report {
        scenario: "chat".to_owned(),
        run: "abc123".to_owned(),
        settings: Settings {
            clients: 100,
            rooms_of: 10,
            rooms: 10,
            traffic: "closed loop, 4 in flight a room".to_owned(),
            dialect: "antiphon".to_owned(),
            ..Settings::default()
        },
        connect: Connect { seconds: 0.5, per_second: 200.0, latency },
        traffic: Some(TrafficReport {
            seconds: 10.0,
            acked: 15_000,
            acked_per_second: 1_500.0,
            delivered: 150_000,
            delivered_per_second: 15_000.0,
            windows: vec![window],
        }),
        server: Some(Server {
            cpu_s: Some(5.0),
            cpu_s_per_million_deliveries: Some(2.5),
            connect_cpu_us_each: Some(50.0),
            rss_per_connection: Some(2_048.0),
            ..Server::default()
        }),
        passed: true,
        ..Report::default()
    }
}

#[test]
fn numbers_are_grouped() {
    for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(thousands(number), text);
    }
}

#[test]
fn a_busy_or_a_late_tool_is_the_limit() {
    assert_eq!((limit(0.5, Some(0.1), 0.9), limit(0.5, None, 0.9)), (None, None));
    assert!(limit(0.5, Some(0.0), 6.0).unwrap().contains("6.0 ms or more late"));
    assert!(limit(0.97, None, 0.0).unwrap().contains("97 %"));
    // Another process has half of its core.
    let starved = limit(0.48, Some(0.5), 0.0).unwrap();
    assert!(starved.contains("waited for a core for 50 %; give it a core of its own"), "{starved}");
}

#[test]
fn the_busiest_thread_counts_and_not_their_average() {
    let threads = vec![("load-1".to_owned(), 9.0), ("load-2".to_owned(), 1.0), ("antiphon-load".to_owned(), 9.9)];
    let waits = [("load-1".to_owned(), 0.2), ("load-2".to_owned(), 8.5)].into();
    let spent = Spent { threads, waits, ..Spent::default() };
    assert_eq!(busiest(&spent, None), (1.0, Some(8.5)));
    assert_eq!(busiest(&spent, Some(4.0)), (4.0, Some(8.5)), "it polls: its CPU time says nothing");
    assert_eq!(busiest(&Spent { waits: [].into(), ..spent }, None), (9.0, None));
    assert_eq!(busiest(&Spent::default(), None), (0.0, None));
    let mut report = sample();
    assert!(report.text().contains("does not tell whether it waited"), "{}", report.text());
    report.tool.driver_wait = Some(0.25);
    assert!(report.text().contains("waited for a core for 25 %"));
}

#[test]
fn only_driver_threads_count_for_the_tools_load() {
    let threads = vec![("load-1".to_owned(), 1.9), ("load-2".to_owned(), 1.9), ("antiphon-load".to_owned(), 5.0)];
    let spent = Spent { threads, ..Spent::default() };
    assert!((sampler::drivers_s(&spent) - 3.8).abs() < 1e-9);
}

#[test]
fn a_server_that_refuses_is_not_said_to_do_more() {
    let mut report = sample();
    report.tool.limit = Some("busy".to_owned());
    assert!(report.text().contains("THE TOOL WAS THE LIMIT, the server can do more: busy"));
    report.checked.errors = vec![(113, 4)];
    assert!(!report.text().contains("can do more:") && report.text().contains("the server refused messages"));
}

#[test]
fn a_saved_report_reads_back_and_nothing_else_does() {
    let saved = serde_json::to_string(&sample()).unwrap();
    let back: Report = serde_json::from_str(&saved).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), saved);
    assert_eq!(back.text(), sample().text());
    let read = |change: fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut value = serde_json::to_value(sample()).unwrap();
        change(value.as_object_mut().unwrap());
        serde_json::from_value::<Report>(value)
    };
    // Older ones have no plots.
    assert!(read(|report| drop((report.remove("timeline"), report.remove("stages")))).is_ok());
    for strange in ["{}", r#"{"scenario":"chat","passed":true}"#, "[]", r#"{"name":"a package","version":"1"}"#] {
        assert!(serde_json::from_str::<Report>(strange).is_err(), "{strange}");
    }
    assert!(read(|report| drop(report.remove("passed"))).is_err());
    assert!(read(|report| drop(report["checked"].as_object_mut().unwrap().remove("lost"))).is_err());
    let failed = read(|report| drop(report.insert("passed".to_owned(), false.into()))).unwrap();
    assert!(failed.text().contains("FAILED") && !failed.text().contains("PASSED"));
}

#[test]
fn a_good_verdict_says_what_could_not_be_compared() {
    let mut report = sample();
    assert!(report.text().ends_with("every promise held\n"));
    report.checked.unchecked = 1_234;
    assert!(report.text().ends_with("; 1,234 deliveries came too late to be compared with what others saw\n"));
}

#[test]
fn what_could_not_be_read_is_null() {
    let mut report = sample();
    report.server = Some(Server { rss_start: Some(1), ..Server::default() });
    let value = serde_json::to_value(&report).unwrap();
    assert!(value["server"]["cpu_s"].is_null() && value["server"]["rss_end"].is_null());
    assert!(report.text().contains("? CPU s"), "{}", report.text());
}
