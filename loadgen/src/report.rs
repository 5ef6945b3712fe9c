//! What a run showed, for people as text and for programs as JSON. The numbers are the same.

use std::fmt::Write;

use serde::Serialize;

use crate::measure::Latency;
use crate::plan::{Plan, Traffic};
use crate::proc::Spent;
use crate::run::Outcome;
use crate::world::World;

/// A driver thread busier than this was the limit of the run.
const TOOL_LIMIT: f64 = 0.95;
/// Sends later than this (p99), and than this part of the delivery's p99, are the tool's fault.
const LAG_MS: f64 = 1.0;
const LAG_SHARE: f64 = 0.25;

/// The whole report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// Name of the run: part of its users' and rooms' names.
    pub run: String,
    /// What was asked for.
    pub settings: Settings,
    /// Connecting.
    pub connect: Connect,
    /// Messages, when there were any.
    pub traffic: Option<TrafficReport>,
    /// The server's process, when `--server-pid` was given.
    pub server: Option<Server>,
    /// This tool.
    pub tool: Tool,
    /// Numbers that only this scenario has.
    pub figures: Vec<Figure>,
    /// What only this scenario shows.
    pub notes: Vec<String>,
    /// Counts of everything that was checked.
    pub checked: Checked,
    /// Broken promises in words; empty: all held.
    pub failures: Vec<String>,
    /// True when nothing was broken.
    pub passed: bool,
}

/// A number of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What it is, for programs.
    pub name: &'static str,
    /// The number.
    pub value: f64,
    /// What it counts.
    pub unit: &'static str,
}

/// What was asked for.
#[derive(Debug, Serialize)]
pub struct Settings {
    /// Connections.
    pub clients: u32,
    /// Members of a room.
    pub rooms_of: u32,
    /// Rooms.
    pub rooms: u32,
    /// "no messages", "closed loop, 4 in flight a room", "open loop, 2000 messages/s".
    pub traffic: String,
    /// Bytes of a message's body.
    pub body_bytes: usize,
    /// Seconds of traffic before measuring.
    pub warmup_s: f64,
    /// Seconds of measuring.
    pub duration_s: f64,
    /// Driver threads.
    pub threads: u32,
}

/// Connecting.
#[derive(Debug, Serialize)]
pub struct Connect {
    /// From the first to the last.
    pub seconds: f64,
    /// Connections a second.
    pub per_second: f64,
    /// From the start of each to its `hello` (scenario `connect`: to the `ok` of its join).
    pub latency: Latency,
}

/// Messages.
#[derive(Debug, Serialize)]
pub struct TrafficReport {
    /// Seconds measured.
    pub seconds: f64,
    /// Messages acknowledged in that time.
    pub acked: u64,
    /// … a second.
    pub acked_per_second: f64,
    /// Messages delivered in that time.
    pub delivered: u64,
    /// … a second.
    pub delivered_per_second: f64,
    /// Latencies by part of the time, from the intended time of sending.
    pub windows: Vec<WindowReport>,
}

/// Latencies of one part of the time.
#[derive(Debug, Serialize)]
pub struct WindowReport {
    /// "whole", or "before", "during", "after" what happens in the scenario.
    pub name: &'static str,
    /// To the `ok`.
    pub ack: Latency,
    /// To the delivery.
    pub delivery: Latency,
}

/// The server's process.
#[derive(Debug, Serialize)]
pub struct Server {
    /// CPU seconds in the measuring window.
    pub cpu_s: f64,
    /// … in user mode (in ticks of 10 ms).
    pub cpu_user_s: f64,
    /// … in the kernel.
    pub cpu_system_s: f64,
    /// CPU seconds for a million deliveries.
    pub cpu_s_per_million_deliveries: Option<f64>,
    /// CPU seconds by thread name.
    pub threads: Vec<(String, f64)>,
    /// CPU seconds while connecting.
    pub connect_cpu_s: f64,
    /// CPU microseconds a connection, connecting.
    pub connect_cpu_us_each: f64,
    /// Resident bytes before the first connection.
    pub rss_start: u64,
    /// With everybody in their rooms, before traffic.
    pub rss_ready: u64,
    /// At the end of measuring.
    pub rss_end: u64,
    /// Resident bytes that each connection added, before traffic.
    pub rss_per_connection: f64,
    /// The same at the end of measuring.
    pub rss_per_connection_end: f64,
}

/// This tool.
#[derive(Debug, Serialize)]
pub struct Tool {
    /// CPU seconds in the same time.
    pub cpu_s: f64,
    /// The share of a core that its busiest driver threads took, on average over them.
    pub driver_load: f64,
    /// How late messages of an open loop left, 99th percentile, ms: it is part of every latency above.
    pub send_lag_p99_ms: f64,
    /// The tool, not the server, set the pace: its figures are bounds of what the server can do.
    pub was_the_limit: bool,
    /// How that is known.
    pub limit: Option<String>,
}

/// Counts of everything that was checked.
#[derive(Debug, Default, Serialize)]
pub struct Checked {
    /// Deliveries of messages in the whole run.
    pub delivered: u64,
    /// Other entries with a number.
    pub other_events: u64,
    /// Frames, and how many of them a full JSON parser took.
    pub frames: u64,
    /// See [`Checked::frames`].
    pub frames_parsed_in_full: u64,
    /// Sent, retries included.
    pub sent: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Missing without a word.
    pub lost: u64,
    /// Delivered again.
    pub doubled: u64,
    /// Delivered after a later one.
    pub out_of_order: u64,
    /// Not the same for everybody.
    pub differing: u64,
    /// Content too old to be compared.
    pub unchecked: u64,
    /// `gap` events.
    pub gaps: u64,
    /// Numbers that the server said it would skip.
    pub excused: u64,
    /// Resumes recovered from the cursor.
    pub recovered: u64,
    /// Resumes that were not.
    pub not_recovered: u64,
    /// Entries that resumes brought.
    pub resumed_entries: u64,
    /// Pings answered.
    pub pings: u64,
    /// `error` replies by code.
    pub errors: Vec<(u64, u64)>,
    /// Connections that ended unasked, by close code.
    pub closes: Vec<(i64, u64)>,
}

/// Puts the report together. `failures` are those of the tally and of the scenario.
pub fn report(world: &World, plan: &Plan, outcome: &Outcome, notes: Vec<String>, failures: Vec<String>) -> Report {
    let tally = &outcome.tally;
    let traffic = (plan.traffic != Traffic::None).then(|| TrafficReport {
        seconds: outcome.measured_s,
        acked: tally.acked_in_window,
        acked_per_second: tally.acked_in_window as f64 / plan.duration_s,
        delivered: tally.delivered_in_window,
        delivered_per_second: tally.delivered_in_window as f64 / plan.duration_s,
        windows: outcome
            .schedule
            .windows
            .iter()
            .zip(outcome.meters.ack.iter().zip(&outcome.meters.delivery))
            .map(|(window, (ack, delivery))| WindowReport {
                name: window.name,
                ack: Latency::of(ack),
                delivery: Latency::of(delivery),
            })
            .collect(),
    });
    Report {
        scenario: plan.scenario,
        run: world.run.clone(),
        settings: settings(world, plan),
        connect: Connect {
            seconds: outcome.connect_s,
            per_second: f64::from(world.clients) / outcome.connect_s,
            latency: Latency::of(&outcome.meters.connect),
        },
        traffic,
        server: server(world, outcome),
        tool: tool(world, outcome),
        figures: Vec::new(),
        notes,
        checked: checked(outcome),
        passed: failures.is_empty(),
        failures,
    }
}

fn settings(world: &World, plan: &Plan) -> Settings {
    Settings {
        clients: world.clients,
        rooms_of: world.rooms_of,
        rooms: world.rooms(),
        traffic: match plan.traffic {
            Traffic::None => "no messages".to_owned(),
            Traffic::Closed { in_flight } => format!("closed loop, {in_flight} in flight a room"),
            Traffic::Open { per_second } => format!("open loop, {per_second} messages/s"),
        },
        body_bytes: plan.body_bytes,
        warmup_s: plan.warmup_s,
        duration_s: plan.duration_s,
        threads: world.threads,
    }
}

fn server(world: &World, outcome: &Outcome) -> Option<Server> {
    let used = outcome.server.as_ref()?;
    let clients = f64::from(world.clients);
    let delivered = outcome.tally.delivered_in_window;
    let each = |rss: u64| (rss as f64 - used.rss_start as f64) / clients;
    Some(Server {
        cpu_s: used.window.total_s,
        cpu_user_s: used.window.user_s,
        cpu_system_s: used.window.system_s,
        cpu_s_per_million_deliveries: (delivered > 0).then(|| used.window.total_s * 1e6 / delivered as f64),
        threads: used.window.threads.clone(),
        connect_cpu_s: used.connect.total_s,
        connect_cpu_us_each: used.connect.total_s * 1e6 / clients,
        rss_start: used.rss_start,
        rss_ready: used.rss_ready,
        rss_end: used.rss_end,
        rss_per_connection: each(used.rss_ready),
        rss_per_connection_end: each(used.rss_end),
    })
}

fn tool(world: &World, outcome: &Outcome) -> Tool {
    let driver_load = driver_load(&outcome.tool, outcome.tool_s, world.threads);
    let lag = Latency::of(&outcome.meters.lag).p99_ms;
    let slowest = outcome.meters.delivery.iter().map(|hist| Latency::of(hist).p99_ms).fold(0.0, f64::max);
    let limit = limit(driver_load, lag, slowest);
    let cpu_s = outcome.tool.total_s;
    Tool { cpu_s, driver_load, send_lag_p99_ms: lag, was_the_limit: limit.is_some(), limit }
}

/// Why the tool was the limit, if it was: its threads were busy, or late with a good part of what the
/// server is charged with.
fn limit(driver_load: f64, lag_p99_ms: f64, delivery_p99_ms: f64) -> Option<String> {
    if driver_load > TOOL_LIMIT {
        return Some(format!("its threads were busy {:.0} % of the time", driver_load * 100.0));
    }
    let is_late = lag_p99_ms > LAG_MS && lag_p99_ms > delivery_p99_ms * LAG_SHARE;
    is_late
        .then(|| format!("its sends left {lag_p99_ms:.1} ms late (p99), of a delivery p99 of {delivery_p99_ms:.1} ms"))
}

fn driver_load(spent: &Spent, seconds: f64, threads: u32) -> f64 {
    let drivers: f64 = spent.threads.iter().filter(|(name, _)| name.starts_with("load-")).map(|(_, s)| s).sum();
    drivers / seconds.max(1e-9) / f64::from(threads.max(1))
}

fn checked(outcome: &Outcome) -> Checked {
    let tally = &outcome.tally;
    Checked {
        delivered: tally.delivered,
        other_events: tally.other_events,
        frames: tally.frames,
        frames_parsed_in_full: tally.sampled,
        sent: tally.sent,
        acked: tally.acked,
        lost: tally.lost,
        doubled: tally.doubled,
        out_of_order: tally.out_of_order,
        differing: tally.differing,
        unchecked: tally.unchecked,
        gaps: tally.gaps,
        excused: tally.excused,
        recovered: tally.recovered,
        not_recovered: tally.not_recovered,
        resumed_entries: tally.resumed_entries,
        pings: tally.pings,
        errors: tally.errors.iter().map(|(code, n)| (*code, *n)).collect(),
        closes: tally.closes.iter().map(|(code, n)| (*code, *n)).collect(),
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out).expect("writing to memory");
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let s = &self.settings;
        writeln!(out, "\n{}  run {}", self.scenario, self.run)?;
        writeln!(
            out,
            "  asked      {} clients in {} rooms of {}, {}",
            thousands(u64::from(s.clients)),
            s.rooms,
            s.rooms_of,
            s.traffic
        )?;
        writeln!(
            out,
            "             bodies of {} B, {} s warm-up, {} s measured, {} driver thread(s)",
            s.body_bytes, s.warmup_s, s.duration_s, s.threads
        )?;
        let c = &self.connect;
        writeln!(out, "  connected  in {:.2} s: {:.0}/s; each {}", c.seconds, c.per_second, quantiles(&c.latency))?;
        if let Some(t) = &self.traffic {
            writeln!(out, "  acked      {} messages: {}/s", thousands(t.acked), thousands(t.acked_per_second as u64))?;
            writeln!(
                out,
                "  delivered  {} messages: {}/s",
                thousands(t.delivered),
                thousands(t.delivered_per_second as u64)
            )?;
            for w in &t.windows {
                writeln!(out, "  {:<9}  ack       {}", w.name, quantiles(&w.ack))?;
                writeln!(out, "             delivery  {}", quantiles(&w.delivery))?;
            }
        }
        if let Some(server) = &self.server {
            server.write_text(out)?;
        }
        let limit = self.tool.limit.as_ref().map_or(String::new(), |why| format!(": THE TOOL WAS THE LIMIT, {why}"));
        writeln!(
            out,
            "  this tool  {:.2} CPU s, driver threads at {:.0} %, sends {:.2} ms late (p99){limit}",
            self.tool.cpu_s,
            self.tool.driver_load * 100.0,
            self.tool.send_lag_p99_ms
        )?;
        for figure in &self.figures {
            writeln!(out, "  figure     {:<28} {} {}", figure.name, figure.number(), figure.unit)?;
        }
        for note in &self.notes {
            writeln!(out, "  note       {note}")?;
        }
        self.checked.write_text(out)?;
        match self.failures.as_slice() {
            [] => writeln!(out, "  PASSED     every promise held"),
            failures => failures.iter().try_for_each(|failure| writeln!(out, "  FAILED     {failure}")),
        }
    }
}

impl Figure {
    fn number(&self) -> String {
        match self.value {
            value if value.fract() == 0.0 && value >= 0.0 => thousands(value as u64),
            value if value.abs() < 0.1 => format!("{value:.6}"),
            value => format!("{value:.2}"),
        }
    }
}

impl Server {
    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        write!(
            out,
            "  server     {:.2} CPU s ({:.2} user, {:.2} kernel)",
            self.cpu_s, self.cpu_user_s, self.cpu_system_s
        )?;
        if let Some(cost) = self.cpu_s_per_million_deliveries {
            write!(out, ": {cost:.2} CPU s per million deliveries")?;
        }
        writeln!(out)?;
        let threads: Vec<String> = self.threads.iter().take(8).map(|(name, s)| format!("{name} {s:.2}")).collect();
        if !threads.is_empty() {
            writeln!(out, "             by thread: {}", threads.join(", "))?;
        }
        writeln!(
            out,
            "             connecting: {:.2} CPU s, {:.0} µs each",
            self.connect_cpu_s, self.connect_cpu_us_each
        )?;
        writeln!(
            out,
            "             RSS {} empty, {} ready ({:.0} B a connection), {} at the end ({:.0} B)",
            mib(self.rss_start),
            mib(self.rss_ready),
            self.rss_per_connection,
            mib(self.rss_end),
            self.rss_per_connection_end
        )
    }
}

impl Checked {
    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "  checked    {} deliveries, {} acks: lost {}, doubled {}, out of order {}, differing {}",
            thousands(self.delivered),
            thousands(self.acked),
            self.lost,
            self.doubled,
            self.out_of_order,
            self.differing
        )?;
        if self.gaps + self.excused + self.recovered + self.not_recovered + self.unchecked > 0 {
            writeln!(
                out,
                "             {} gap events, {} entries excused by the server, {} resumed and {} not, {} too old to compare",
                self.gaps, self.excused, self.recovered, self.not_recovered, self.unchecked
            )?;
        }
        for (code, n) in &self.errors {
            writeln!(out, "             error {code}: {n} times")?;
        }
        for (code, n) in &self.closes {
            writeln!(out, "             closed with {code}: {n} times")?;
        }
        Ok(())
    }
}

fn quantiles(latency: &Latency) -> String {
    if latency.count == 0 {
        return "nothing".to_owned();
    }
    format!(
        "p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2} ms",
        latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms
    )
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// `1234567` as `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn a_busy_or_a_late_tool_is_the_limit() {
        assert_eq!(limit(0.5, 0.9, 1.0), None);
        assert_eq!(limit(0.5, 2.0, 20.0), None);
        assert!(limit(0.5, 6.0, 20.0).unwrap().contains("6.0 ms late"));
        assert!(limit(0.97, 0.0, 20.0).unwrap().contains("97 %"));
    }

    #[test]
    fn only_driver_threads_count_for_the_tools_load() {
        let threads = vec![("load-1".to_owned(), 1.9), ("load-2".to_owned(), 1.9), ("antiphon-load".to_owned(), 5.0)];
        let spent = Spent { threads, ..Spent::default() };
        assert!((driver_load(&spent, 2.0, 2) - 0.95).abs() < 1e-9);
    }
}
