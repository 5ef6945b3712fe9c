//! What a run showed, for people as text and for programs as JSON. The numbers are the same.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::figures;
use crate::hgrm;
use crate::measure::Latency;
use crate::plan::{Plan, Traffic};
use crate::proc::Spent;
use crate::run::Outcome;
use crate::sampler::{self, Timeline};
use crate::stages::Stage;
use crate::world::World;

/// A driver thread that worked, or waited for a core to work on, for more of the time was the limit of the run.
const TOOL_LIMIT: f64 = 0.95;
/// A tool that is this late with one in a hundred messages does not keep the rate asked for, ms.
const TOOL_LATE_MS: f64 = 5.0;

/// The whole report. What has no default must stand in a saved one, or it is none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Name of the scenario.
    pub scenario: String,
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
    #[serde(default)]
    pub figures: Vec<Figure>,
    /// Figures over time.
    #[serde(default)]
    pub timeline: Timeline,
    /// Where the server says that time goes; empty when it was not asked or does not say.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// What only this scenario shows.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Counts of everything that was checked.
    pub checked: Checked,
    /// Broken promises in words.
    pub failures: Vec<String>,
    /// True when nothing was broken; once false, it stays so.
    pub passed: bool,
}

/// A number of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is, for programs.
    pub name: Cow<'static, str>,
    /// The number.
    pub value: f64,
    /// What it counts.
    pub unit: Cow<'static, str>,
}

/// What was asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// How the server was spoken to.
    #[serde(default)]
    pub dialect: String,
    /// Every other argument that shapes the work, as given or by default: runs are compared only where they agree.
    #[serde(default)]
    pub work: BTreeMap<String, String>,
}

/// Connecting.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Connect {
    /// From the first to the last.
    pub seconds: f64,
    /// Connections a second.
    pub per_second: f64,
    /// From the start of each to its `hello` (scenario `connect`: to the `ok` of its join).
    pub latency: Latency,
}

/// Messages.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// Latencies by part of the time; of open loops from the intended time of sending.
    pub windows: Vec<WindowReport>,
}

/// Latencies of one part of the time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct WindowReport {
    /// "whole", or "before", "during", "after" what happens in the scenario.
    pub name: String,
    /// When it began and ended, seconds of measuring.
    #[serde(default)]
    pub from_s: f64,
    /// See [`WindowReport::from_s`].
    #[serde(default)]
    pub to_s: f64,
    /// The rate asked for, when there was one.
    pub asked_per_second: Option<f64>,
    /// Acknowledgements that came in this time, a second.
    #[serde(default)]
    pub acked_per_second: f64,
    /// Cores of the server in use, on average.
    pub server_cores: Option<f64>,
    /// To the `ok`.
    pub ack: Latency,
    /// To the delivery.
    pub delivery: Latency,
    /// Percentiles of `ack` for plots: share, ms.
    #[serde(default)]
    pub ack_curve: Vec<(f64, f64)>,
    /// Those of `delivery`.
    #[serde(default)]
    pub delivery_curve: Vec<(f64, f64)>,
}

/// The server's process; what could not be read is not there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// CPU seconds in the measuring window.
    pub cpu_s: Option<f64>,
    /// … in user mode (in ticks of 10 ms).
    pub cpu_user_s: Option<f64>,
    /// … in the kernel.
    pub cpu_system_s: Option<f64>,
    /// CPU seconds for a million deliveries.
    pub cpu_s_per_million_deliveries: Option<f64>,
    /// CPU seconds by thread name.
    pub threads: Vec<(String, f64)>,
    /// CPU seconds while connecting.
    pub connect_cpu_s: Option<f64>,
    /// CPU microseconds a connection, connecting.
    pub connect_cpu_us_each: Option<f64>,
    /// Resident bytes before the first connection.
    pub rss_start: Option<u64>,
    /// With everybody in their rooms, before traffic.
    pub rss_ready: Option<u64>,
    /// At the end of measuring.
    pub rss_end: Option<u64>,
    /// Resident bytes that each connection added, before traffic.
    pub rss_per_connection: Option<f64>,
    /// The same at the end of measuring.
    pub rss_per_connection_end: Option<f64>,
}

/// This tool.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tool {
    /// CPU seconds in the same time.
    pub cpu_s: f64,
    /// The share of the time in which its busiest driver thread worked.
    pub driver_load: f64,
    /// The share in which that thread waited for a core; `None` where the kernel does not tell.
    #[serde(default)]
    pub driver_wait: Option<f64>,
    /// At a rate: how late the tool itself was in sending.
    #[serde(default)]
    pub late: Latency,
    /// The tool, not the server, set the pace: its figures are lower bounds.
    pub was_the_limit: bool,
    /// Why, when it was.
    pub limit: Option<String>,
}

/// Counts of everything that was checked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// Messages that came under a second number.
    #[serde(default)]
    pub stored_again: u64,
    /// Messages that nobody sent.
    #[serde(default)]
    pub invented: u64,
    /// Messages acknowledged that nobody got.
    #[serde(default)]
    pub acked_only: u64,
    /// Refusals for the time being, and messages that were never accepted.
    #[serde(default)]
    pub put_off: u64,
    /// See [`Checked::put_off`].
    #[serde(default)]
    pub never_accepted: u64,
    /// Answers and deliveries that were still coming when the run ended.
    #[serde(default)]
    pub overdue: u64,
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
    let seconds = if outcome.is_cut_short { outcome.measured_s } else { plan.duration_s }.max(1e-3);
    let traffic = (plan.traffic != Traffic::None).then(|| TrafficReport {
        seconds: outcome.measured_s,
        acked: tally.acked_in_window,
        acked_per_second: tally.acked_in_window as f64 / seconds,
        delivered: tally.delivered_in_window,
        delivered_per_second: tally.delivered_in_window as f64 / seconds,
        windows: outcome.schedule.windows.iter().enumerate().map(|(at, _)| window_report(plan, outcome, at)).collect(),
    });
    Report {
        scenario: plan.scenario.to_owned(),
        run: world.run.clone(),
        settings: settings(world, plan),
        connect: Connect {
            seconds: outcome.connect_s,
            per_second: f64::from(outcome.connected) / outcome.connect_s.max(1e-9),
            latency: Latency::of(&outcome.meters.connect),
        },
        traffic,
        server: server(outcome),
        tool: tool(outcome),
        figures: Vec::new(),
        timeline: outcome.timeline.clone(),
        stages: outcome.stages.clone(),
        notes,
        checked: checked(outcome),
        passed: failures.is_empty(),
        failures,
    }
}

/// The figures of one part of the time.
fn window_report(plan: &Plan, outcome: &Outcome, at: usize) -> WindowReport {
    let (window, from_ns) = (outcome.schedule.windows[at], outcome.schedule.from_ns);
    let (ack, delivery) = (&outcome.meters.ack[at], &outcome.meters.delivery[at]);
    let second = |ns: u64| ns.saturating_sub(from_ns) as f64 / 1e9;
    let (from_s, to_s) = (second(window.from_ns), second(window.to_ns));
    let middle = (from_s + to_s) / 2.0;
    let cpu_s = |t_s| outcome.timeline.server_cpu_at(t_s);
    WindowReport {
        name: window.name.to_owned(),
        from_s,
        to_s,
        asked_per_second: plan.traffic.rates(plan.duration_s).iter().find(|(to, _)| *to > middle).map(|(_, r)| *r),
        acked_per_second: outcome.meters.acked[at] as f64 / (to_s - from_s).max(1e-9),
        server_cores: cpu_s(to_s).zip(cpu_s(from_s)).map(|(end, start)| (end - start) / (to_s - from_s).max(1e-9)),
        ack: Latency::of(ack),
        delivery: Latency::of(delivery),
        ack_curve: hgrm::curve(ack),
        delivery_curve: hgrm::curve(delivery),
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
            Traffic::Steps { from, to, steps } => format!("open loop, {from} to {to} messages/s in {steps} steps"),
        },
        body_bytes: plan.body_bytes,
        warmup_s: plan.warmup_s,
        duration_s: plan.duration_s,
        threads: world.threads,
        dialect: world.dialect.name().to_owned(),
        work: BTreeMap::new(),
    }
}

fn server(outcome: &Outcome) -> Option<Server> {
    let used = outcome.server.as_ref()?;
    let (window, connect) = (used.window.as_ref(), used.connect.as_ref());
    let delivered = outcome.tally.delivered_in_window;
    // Of those that were there: a script may have places that nobody takes.
    let each = |rss: Option<u64>, there: u32| Some((rss? as f64 - used.rss_start? as f64) / f64::from(there.max(1)));
    Some(Server {
        cpu_s: window.map(|w| w.total_s),
        cpu_user_s: window.map(|w| w.user_s),
        cpu_system_s: window.map(|w| w.system_s),
        cpu_s_per_million_deliveries: window.filter(|_| delivered > 0).map(|w| w.total_s * 1e6 / delivered as f64),
        threads: window.map(|w| w.threads.clone()).unwrap_or_default(),
        connect_cpu_s: connect.map(|c| c.total_s),
        connect_cpu_us_each: connect.map(|c| c.total_s * 1e6 / f64::from(outcome.connected.max(1))),
        rss_start: used.rss_start,
        rss_ready: used.rss_ready,
        rss_end: used.rss_end,
        rss_per_connection: each(used.rss_ready, outcome.connected),
        rss_per_connection_end: each(used.rss_end, outcome.connected_end),
    })
}

fn tool(outcome: &Outcome) -> Tool {
    let (busy_s, waited_s) = busiest(&outcome.tool, outcome.polled_s);
    let share = |seconds: f64| seconds / outcome.tool_s.max(1e-9);
    let (driver_load, driver_wait) = (share(busy_s), waited_s.map(share));
    let late = Latency::of(&outcome.meters.late);
    let limit = limit(driver_load, driver_wait, late.p99_ms);
    Tool { cpu_s: outcome.tool.total_s, driver_load, driver_wait, late, was_the_limit: limit.is_some(), limit }
}

/// The driver thread that had most to do: seconds in which it did it, and in which it waited for a CPU (`None` where
/// the kernel does not tell). A polling one always uses its core: what counts is when it had something to do.
fn busiest(spent: &Spent, polled_s: Option<f64>) -> (f64, Option<f64>) {
    let drivers = || spent.threads.iter().filter(|(name, _)| sampler::is_driver(name));
    let wait = |name: &str| spent.waits.get(name).copied();
    if let Some(polled_s) = polled_s {
        return (polled_s, drivers().filter_map(|(name, _)| wait(name)).reduce(f64::max));
    }
    let all = drivers().map(|(name, busy_s)| (*busy_s, wait(name)));
    let sum = |(busy_s, waited_s): &(f64, Option<f64>)| busy_s + waited_s.unwrap_or(0.0);
    all.max_by(|a, b| sum(a).total_cmp(&sum(b))).unwrap_or((0.0, None))
}

/// Why the tool was the limit, if it was.
fn limit(load: f64, wait: Option<f64>, late_p99_ms: f64) -> Option<String> {
    let (busy, waited) = (load * 100.0, wait.unwrap_or(0.0) * 100.0);
    let need = if waited > 5.0 { "; give it a core of its own" } else { "" };
    let thread = match wait {
        Some(_) => format!(
            "its busiest thread worked for {busy:.0} % of the time and waited for a core for {waited:.0} %{need}"
        ),
        None => format!("its busiest thread worked for {busy:.0} % of the time"),
    };
    if busy + waited > TOOL_LIMIT * 100.0 {
        Some(thread)
    } else if late_p99_ms > TOOL_LATE_MS {
        Some(format!("it sent 1 message in 100 {late_p99_ms:.1} ms or more late ({thread})"))
    } else {
        None
    }
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
        stored_again: tally.stored_again,
        invented: tally.invented,
        acked_only: tally.acked_only,
        put_off: tally.put_off,
        never_accepted: tally.never_accepted,
        overdue: tally.overdue,
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
            "             {}{} s warm-up, {} s measured, {} driver thread(s)",
            s.bodies(),
            tenths(s.warmup_s),
            tenths(s.duration_s),
            s.threads
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
                if t.windows.len() > 1 {
                    w.write_rate(out)?;
                }
                writeln!(out, "  {:<9}  ack       {}", w.name, quantiles(&w.ack))?;
                writeln!(out, "             delivery  {}", quantiles(&w.delivery))?;
            }
        }
        if let Some(server) = &self.server {
            server.write_text(out)?;
        }
        writeln!(out, "  this tool  {:.2} CPU s; {}", self.tool.cpu_s, self.tool.driver_words())?;
        if let Some(limit) = &self.tool.limit {
            writeln!(out, "             {}: {limit}", self.limit_words())?;
        }
        for stage in &self.stages {
            let ms = |ms: Option<f64>| ms.map_or("–".to_owned(), |ms| format!("{ms:.3}"));
            writeln!(out, "  stage      {:<12} p50 {}  p99 {} ms", stage.name, ms(stage.p50_ms), ms(stage.p99_ms))?;
        }
        for figure in &self.figures {
            writeln!(out, "  figure     {:<28} {} {}", figure.name, figure.number(), figure.unit)?;
        }
        for note in &self.notes {
            writeln!(out, "  note       {note}")?;
        }
        self.checked.write_text(out)?;
        match self.failures.as_slice() {
            [] if self.passed => writeln!(out, "  PASSED     every promise held{}", self.checked.reservation()),
            [] => writeln!(out, "  FAILED     (the report does not say why)"),
            failures => failures.iter().try_for_each(|failure| writeln!(out, "  FAILED     {failure}")),
        }
    }

    /// What it means that the tool was the limit. A server that refuses has a limit of its own.
    pub fn limit_words(&self) -> &'static str {
        if self.checked.errors.is_empty() && self.checked.closes.is_empty() {
            "THE TOOL WAS THE LIMIT, the server can do more"
        } else {
            "the tool was at its limit, and the server refused messages or closed connections"
        }
    }

    /// The report of a run with closed loops has latencies from the sending itself.
    pub fn latency_from(&self) -> &'static str {
        if self.settings.traffic.starts_with("closed loop") {
            "from the time of sending (a closed loop sends when an answer comes, so a stall lengthens few)"
        } else {
            "from the time at which a message should have been sent"
        }
    }
}

impl Tool {
    /// What its busiest thread did.
    pub fn driver_words(&self) -> String {
        let wait = match self.driver_wait {
            Some(wait) => format!("waited for a core for {:.0} %", wait * 100.0),
            None => "this kernel does not tell whether it waited for a core".to_owned(),
        };
        format!("its busiest thread worked for {:.0} % of the time, {wait}", self.driver_load * 100.0)
    }
}

impl Settings {
    /// "bodies of 128 B, "; nothing for scripts, whose bodies differ.
    pub fn bodies(&self) -> String {
        if self.body_bytes > 0 { format!("bodies of {} B, ", self.body_bytes) } else { String::new() }
    }
}

/// Seconds with a tenth where there is one.
pub fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

impl Figure {
    /// A number of a scenario. Its name is one of [`figures::OF_SCENARIOS`], so that it can be asserted.
    pub fn new(name: &'static str, value: f64, unit: &'static str) -> Self {
        debug_assert!(figures::OF_SCENARIOS.contains(&name), "{name} cannot be asserted");
        Self { name: name.into(), value, unit: unit.into() }
    }

    /// Its value for people.
    pub fn number(&self) -> String {
        match self.value {
            value if value.fract() == 0.0 && value >= 0.0 => thousands(value as u64),
            value if value.abs() < 0.1 => format!("{value:.6}"),
            value => format!("{value:.2}"),
        }
    }
}

impl WindowReport {
    fn write_rate(&self, out: &mut String) -> std::fmt::Result {
        let asked = self.asked_per_second.map(|rate| format!(" of {rate:.0}/s asked for")).unwrap_or_default();
        let cores = self.server_cores.map(|cores| format!(", server at {cores:.2} cores")).unwrap_or_default();
        let (from, to) = (self.from_s, self.to_s);
        writeln!(out, "  {:<9}  {from:.1}–{to:.1} s: acked {:.0}/s{asked}{cores}", self.name, self.acked_per_second)
    }
}

impl Server {
    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let number = |n: Option<f64>, digits: usize| n.map_or("?".to_owned(), |n| format!("{n:.digits$}"));
        let (all, user, kernel) = (self.cpu_s, self.cpu_user_s, self.cpu_system_s);
        let [all, user, kernel] = [all, user, kernel].map(|s| number(s, 2));
        write!(out, "  server     {all} CPU s ({user} user, {kernel} kernel)")?;
        if let Some(cost) = self.cpu_s_per_million_deliveries {
            write!(out, ": {cost:.2} CPU s per million deliveries")?;
        }
        writeln!(out)?;
        let threads: Vec<String> = self.threads.iter().take(8).map(|(name, s)| format!("{name} {s:.2}")).collect();
        if !threads.is_empty() {
            writeln!(out, "             by thread: {}", threads.join(", "))?;
        }
        let (cpu, each) = (number(self.connect_cpu_s, 2), number(self.connect_cpu_us_each, 0));
        writeln!(out, "             connecting: {cpu} CPU s, {each} µs each")?;
        let [start, ready, end] = [self.rss_start, self.rss_ready, self.rss_end].map(mib);
        let [each, each_end] = [self.rss_per_connection, self.rss_per_connection_end].map(|bytes| number(bytes, 0));
        writeln!(
            out,
            "             RSS {start} empty, {ready} ready ({each} B a connection), {end} at the end ({each_end} B)"
        )
    }
}

impl Checked {
    /// What a good verdict does not cover.
    pub fn reservation(&self) -> String {
        match self.unchecked {
            0 => String::new(),
            late => format!("; {} deliveries came too late to be compared with what others saw", thousands(late)),
        }
    }

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

fn mib(bytes: Option<u64>) -> String {
    bytes.map_or("?".to_owned(), |bytes| format!("{:.1} MiB", bytes as f64 / 1_048_576.0))
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
pub mod tests;
