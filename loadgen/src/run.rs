//! One run from the main thread's side: starts the drivers, leads them through the phases, samples
//! processes at exactly the edges of what is measured, and puts the threads' ends together.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use glommio::{LocalExecutorBuilder, Placement};

use crate::conductor::{Conductor, Phase};
use crate::driver::drain::DRAIN_MAX_S;
use crate::driver::{Driver, ThreadEnd};
use crate::interrupt;
use crate::measure::{Meters, Schedule};
use crate::plan::{Plan, Setup, Traffic};
use crate::proc::{self, Sample, Spent};
use crate::sampler::{self, Sampler, Timeline};
use crate::stages::{self, Stage};
use crate::tally::{Tally, reconcile};
use crate::world::World;

/// How to run, beside what.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Cores for the threads in turn; empty: the kernel's choice.
    pub cores: Vec<usize>,
    /// The server's process, to be measured.
    pub server_pid: Option<u32>,
    /// A line a second on stderr.
    pub progress: bool,
    /// Where the server's metrics are.
    pub metrics: Option<String>,
}

/// What was measured of the server; what could not be read is not there.
#[derive(Debug, Clone, Default)]
pub struct ServerUse {
    /// While connecting.
    pub connect: Option<Spent>,
    /// Within the measuring window.
    pub window: Option<Spent>,
    /// Resident bytes before the first connection.
    pub rss_start: Option<u64>,
    /// With everybody in their rooms, before traffic.
    pub rss_ready: Option<u64>,
    /// At the end of measuring.
    pub rss_end: Option<u64>,
}

impl ServerUse {
    /// From what was read before connecting, then, with everybody there, and at both edges of measuring.
    pub fn of(start: Option<&Sample>, ready: Option<&Sample>, window: [Option<&Sample>; 2]) -> Self {
        let rss = |sample: Option<&Sample>| sample.map(|sample| sample.rss_bytes);
        let between = |from: Option<&Sample>, to: Option<&Sample>| Some(proc::spent(from?, to?));
        Self {
            connect: between(start, ready),
            window: between(window[0], window[1]),
            rss_start: rss(start),
            rss_ready: rss(ready),
            rss_end: rss(window[1]),
        }
    }
}

/// Everything a run yields.
#[derive(Debug)]
pub struct Outcome {
    /// Counts of all threads, reconciled.
    pub tally: Tally,
    /// Latencies of all threads.
    pub meters: Meters,
    /// The times that were measured.
    pub schedule: Schedule,
    /// Connections that were ready then.
    pub connected: u32,
    /// Seconds from the first connect to the last connection ready.
    pub connect_s: f64,
    /// Connections at the end of measuring.
    pub connected_end: u32,
    /// Seconds between the samples around the measuring window.
    pub measured_s: f64,
    /// The server's CPU time and memory.
    pub server: Option<ServerUse>,
    /// This tool's CPU time within the measuring window (while connecting, when there is none).
    pub tool: Spent,
    /// The same time span, seconds.
    pub tool_s: f64,
    /// Seconds of it in which the busiest driver had something to do; `None` where it slept when it had not.
    pub polled_s: Option<f64>,
    /// Figures over time.
    pub timeline: Timeline,
    /// Where the server says that time goes.
    pub stages: Vec<Stage>,
    /// It was ended before its time.
    pub is_cut_short: bool,
    /// What went wrong beside the promises: the server's process is gone, say.
    pub trouble: Vec<String>,
}

/// Time for connecting: this, and a millisecond a client.
const SETUP_LIMIT: Duration = Duration::from_secs(60);

/// Why a run that was ended too early has nothing to tell.
const INTERRUPTED: &str = "interrupted before anything was measured";

/// Runs the plan.
///
/// # Errors
/// One sentence why it could not be carried out. Broken promises are not errors: see
/// [`Tally::failures`].
pub fn run(world: &Arc<World>, plan: &Arc<Plan>, options: &RunOptions) -> Result<Outcome, String> {
    let conductor = Arc::new(Conductor::new(world.threads));
    let handles: Vec<_> = (0..world.threads)
        .map(|thread| {
            let (world, plan, conductor) = (world.clone(), plan.clone(), conductor.clone());
            let placement = match options.cores.as_slice() {
                [] => Placement::Unbound,
                cores => Placement::Fixed(cores[thread as usize % cores.len()]),
            };
            LocalExecutorBuilder::new(placement)
                .name("load")
                // The executor's own rings do no I/O here.
                .io_memory(64 * 1024)
                .ring_depth(8)
                .spawn(move || async move {
                    let result = Driver::new(world, plan, conductor.clone(), thread).and_then(Driver::run);
                    result.map_err(|error| conductor.give_up(format!("a driver's ring failed: {error}"))).ok()
                })
                .map_err(|error| format!("cannot start a driver thread: {error}"))
        })
        .collect::<Result<_, _>>()?;
    let expected_s = plan.warmup_s + plan.duration_s;
    let mut lead = Lead {
        world,
        plan,
        options,
        conductor: &conductor,
        progress: Progress::new(options.progress),
        sampler: Sampler::new(expected_s, options.server_pid),
        trouble: Vec::new(),
    };
    let led = lead.lead();
    let (sampler, trouble) = (lead.sampler, lead.trouble);
    if led.is_none() {
        conductor.give_up("the run ended early");
    }
    let ends: Vec<ThreadEnd> = handles.into_iter().filter_map(|handle| handle.join().ok().flatten()).collect();
    match led {
        Some(led) if ends.len() == world.threads as usize => {
            Ok(put_together(world, plan, led, sampler, &ends, trouble))
        }
        _ => Err(conductor.reason().unwrap_or("a driver thread failed").to_owned()),
    }
}

/// What the main thread measured.
struct Led {
    schedule: Schedule,
    connect_start_ns: u64,
    connect: [Edge; 2],
    ready: Edge,
    window: [Edge; 2],
    stages: Vec<Stage>,
    is_cut_short: bool,
}

/// Samples at one moment.
#[derive(Clone)]
struct Edge {
    at: Instant,
    server: Option<Sample>,
    tool: Sample,
}

struct Lead<'a> {
    world: &'a World,
    plan: &'a Plan,
    options: &'a RunOptions,
    conductor: &'a Conductor,
    progress: Progress,
    sampler: Sampler,
    trouble: Vec<String>,
}

impl Lead<'_> {
    fn lead(&mut self) -> Option<Led> {
        self.phase(Phase::Ready, SETUP_LIMIT)?;
        // What cannot be read now was asked for wrongly; what cannot be read later is a finding.
        self.metrics();
        let connect_start = self.edge()?;
        if let Some(wrong) = self.trouble.pop() {
            self.conductor.give_up(wrong);
            return None;
        }
        let connect_start_ns = self.world.now_ns();
        let limit = SETUP_LIMIT + Duration::from_millis(u64::from(self.world.clients));
        self.phase(Phase::Connect, limit)?;
        let connect_end = self.edge()?;
        if self.plan.setup == Setup::CreateThenSubscribe {
            self.phase(Phase::Create, limit)?;
            self.phase(Phase::Subscribe, limit)?;
        }
        // Let the server settle, and the counts of CPU time with it.
        std::thread::sleep(Duration::from_millis(if self.plan.traffic == Traffic::None { 500 } else { 50 }));
        let ready = self.edge()?;
        let mut schedule = self.plan.schedule(self.world.now_ns());
        self.conductor.plan_traffic(schedule.clone());
        self.conductor.begin(Phase::Traffic);
        let window_start = self.edge_at(schedule.from_ns)?;
        let metrics_before = self.metrics();
        if self.world.now_ns() < schedule.from_ns {
            self.conductor.give_up(INTERRUPTED);
            return None;
        }
        let window_end = self.edge_at(schedule.to_ns)?;
        let now_ns = self.world.now_ns();
        let is_cut_short = now_ns < schedule.to_ns;
        let stages = stages::stages(&metrics_before, &self.metrics());
        if is_cut_short {
            let measured_s = (now_ns - schedule.from_ns) as f64 / 1e9;
            schedule.cut(now_ns);
            self.trouble.push(format!("interrupted: the figures are of {measured_s:.1} s"));
        } else {
            self.phase(Phase::Traffic, Duration::from_secs(10))?;
        }
        self.phase(Phase::Drain, Duration::from_secs_f64(DRAIN_MAX_S + 30.0))?;
        self.phase(Phase::Close, Duration::from_secs(30))?;
        self.progress.end();
        Some(Led {
            schedule,
            connect_start_ns,
            connect: [connect_start, connect_end],
            ready,
            is_cut_short,
            window: [window_start, window_end],
            stages,
        })
    }

    /// Begins a phase and waits until all threads have done their part.
    fn phase(&mut self, phase: Phase, limit: Duration) -> Option<()> {
        self.conductor.begin(phase);
        let (conductor, progress, scenario) = (self.conductor, &mut self.progress, self.plan.scenario);
        let (sampler, world) = (&mut self.sampler, self.world);
        let done = conductor.wait_for(phase, limit, || {
            if phase < Phase::Traffic && interrupt::is_asked() {
                conductor.give_up(INTERRUPTED);
            }
            progress.tick(scenario, phase, conductor);
            if sampler::is_timed(phase) {
                sampler.tick(world.now_ns(), || conductor.totals());
            }
        });
        if !done {
            let [ready, ..] = conductor.totals();
            conductor.give_up(format!(
                "{phase:?} was not done within {} s: {ready} of {} clients are ready",
                limit.as_secs(),
                self.world.clients
            ));
        }
        done.then_some(())
    }

    /// Sleeps until a time of the run, or an interruption, then samples.
    fn edge_at(&mut self, at_ns: u64) -> Option<Edge> {
        loop {
            let left = Duration::from_nanos(at_ns.saturating_sub(self.world.now_ns()));
            if left.is_zero() || interrupt::is_asked() {
                // Parts of the time end here as well.
                self.sampler.take(self.world.now_ns(), || self.conductor.totals());
                return self.edge();
            }
            if self.conductor.has_given_up() {
                return None;
            }
            self.progress.tick(self.plan.scenario, Phase::Traffic, self.conductor);
            self.sampler.tick(self.world.now_ns(), || self.conductor.totals());
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// The server's metrics; nothing when they were not asked for, or do not come.
    fn metrics(&mut self) -> String {
        let scraped = self.options.metrics.as_deref().map(stages::scrape).transpose();
        scraped.map_err(|error| add_trouble(&mut self.trouble, error)).ok().flatten().unwrap_or_default()
    }

    fn edge(&mut self) -> Option<Edge> {
        let give_up = |error: std::io::Error| {
            self.conductor.give_up(format!("cannot read this tool's own /proc entry: {error}"));
        };
        let tool = proc::sample(std::process::id()).map_err(give_up).ok()?;
        let server = read_server(self.options.server_pid, &mut self.trouble);
        Some(Edge { at: Instant::now(), server, tool })
    }
}

/// The server's process, if it is asked for and there.
pub fn read_server(pid: Option<u32>, trouble: &mut Vec<String>) -> Option<Sample> {
    let pid = pid?;
    proc::sample(pid).map_err(|error| add_trouble(trouble, proc::gone(pid, &error))).ok()
}

/// Says each thing once.
pub fn add_trouble(trouble: &mut Vec<String>, what: String) {
    if !trouble.contains(&what) {
        trouble.push(what);
    }
}

fn put_together(
    world: &World,
    plan: &Plan,
    led: Led,
    sampler: Sampler,
    ends: &[ThreadEnd],
    trouble: Vec<String>,
) -> Outcome {
    let mut tally = Tally::default();
    let mut meters = Meters::new(plan.windows());
    let mut rooms = Vec::new();
    for end in ends {
        tally.add(&end.tally);
        meters.add(&end.meters);
        rooms.extend_from_slice(&end.rooms);
    }
    reconcile(&rooms, &mut tally);
    let connected_ns = ends.iter().map(|end| end.connected_ns).max().unwrap_or(0);
    let [start, connected] = [0, 1].map(|at| led.connect[at].server.as_ref());
    // Memory is read once the server has settled, CPU time as soon as all are there.
    let server = start.map(|_| ServerUse {
        rss_ready: led.ready.server.as_ref().map(|sample| sample.rss_bytes),
        ..ServerUse::of(start, connected, [0, 1].map(|at| led.window[at].server.as_ref()))
    });
    let seconds = |edges: &[Edge; 2]| (edges[1].at - edges[0].at).as_secs_f64();
    // Nobody polls while connecting.
    let is_connecting = plan.setup == Setup::JoinEach;
    let tool_edges = if is_connecting { &led.connect } else { &led.window };
    let polled_s = (world.busy_poll && !is_connecting).then_some(tally.busy_ns as f64 / 1e9);
    Outcome {
        tally,
        meters,
        connected: world.clients,
        connected_end: world.clients,
        connect_s: connected_ns.saturating_sub(led.connect_start_ns) as f64 / 1e9,
        measured_s: seconds(&led.window),
        server,
        tool: proc::spent(&tool_edges[0].tool, &tool_edges[1].tool),
        tool_s: seconds(tool_edges),
        polled_s,
        timeline: sampler.timeline(led.schedule.from_ns),
        stages: led.stages,
        schedule: led.schedule,
        is_cut_short: led.is_cut_short,
        trouble,
    }
}

/// The line that says each second what goes on.
struct Progress {
    is_on: bool,
    start: Instant,
    last: Instant,
    totals: [u64; 5],
}

impl Progress {
    fn new(is_on: bool) -> Self {
        let now = Instant::now();
        Self { is_on, start: now, last: now, totals: [0; 5] }
    }

    fn tick(&mut self, scenario: &str, phase: Phase, conductor: &Conductor) {
        let since = self.last.elapsed();
        if !self.is_on || since < Duration::from_secs(1) {
            return;
        }
        self.last = Instant::now();
        let totals = conductor.totals();
        let rate = |at: usize| ((totals[at] - self.totals[at]) as f64 / since.as_secs_f64()).round();
        // One line rewritten in place where a person looks; lines where a file does.
        let line = format!(
            "{scenario} {:>4} s  {:<9}  ready {:>6}  sent {:>7}/s  acked {:>7}/s  delivered {:>8}/s  broken {}",
            self.start.elapsed().as_secs(),
            format!("{phase:?}").to_lowercase(),
            totals[0],
            rate(1),
            rate(2),
            rate(3),
            totals[4],
        );
        // Nobody is harmed when stderr is closed.
        let _ = writeln!(std::io::stderr(), "{line}");
        self.totals = totals;
    }

    fn end(&mut self) {
        self.is_on = false;
    }
}

#[cfg(test)]
mod tests;
