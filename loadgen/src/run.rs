//! One run from the main thread's side: starts the drivers, leads them through the phases, samples
//! processes at exactly the edges of what is measured, and puts the threads' ends together.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use glommio::{LocalExecutorBuilder, Placement};

use crate::conductor::{Conductor, Phase};
use crate::driver::{Driver, ThreadEnd};
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

/// What was measured of the server.
#[derive(Debug, Clone, Default)]
pub struct ServerUse {
    /// While connecting.
    pub connect: Spent,
    /// Within the measuring window.
    pub window: Spent,
    /// Resident bytes before the first connection.
    pub rss_start: u64,
    /// With everybody in their rooms, before traffic.
    pub rss_ready: u64,
    /// At the end of measuring.
    pub rss_end: u64,
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
    /// Figures over time.
    pub timeline: Timeline,
    /// Where the server says that time goes.
    pub stages: Vec<Stage>,
}

/// Time for connecting: this, and a millisecond a client.
const SETUP_LIMIT: Duration = Duration::from_secs(60);

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
    };
    let led = lead.lead();
    let sampler = lead.sampler;
    if led.is_none() {
        conductor.give_up("the run ended early");
    }
    let ends: Vec<ThreadEnd> = handles.into_iter().filter_map(|handle| handle.join().ok().flatten()).collect();
    match led {
        Some(led) if ends.len() == world.threads as usize => Ok(put_together(world, plan, led, sampler, &ends)),
        _ => Err(conductor.reason().unwrap_or("a driver thread failed").to_owned()),
    }
}

/// What the main thread measured.
struct Led {
    schedule: Schedule,
    connect_start_ns: u64,
    connect: [Edge; 2],
    window: [Edge; 2],
    rss_ready: u64,
    stages: Vec<Stage>,
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
}

impl Lead<'_> {
    fn lead(&mut self) -> Option<Led> {
        let connect_start = self.edge()?;
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
        let rss_ready = self.edge()?.server.map_or(0, |sample| sample.rss_bytes);
        let now_ns = self.world.now_ns();
        let schedule = self.plan.schedule(now_ns);
        self.conductor.plan_traffic(schedule.clone());
        self.conductor.begin(Phase::Traffic);
        let window_start = self.edge_at(schedule.from_ns)?;
        let metrics_before = self.metrics()?;
        let window_end = self.edge_at(schedule.to_ns)?;
        let stages = stages::stages(&metrics_before, &self.metrics()?);
        self.phase(Phase::Traffic, Duration::from_secs(10))?;
        self.phase(Phase::Drain, Duration::from_secs(30))?;
        self.phase(Phase::Close, Duration::from_secs(30))?;
        self.progress.end();
        Some(Led {
            schedule,
            connect_start_ns,
            connect: [connect_start, connect_end],
            window: [window_start, window_end],
            rss_ready,
            stages,
        })
    }

    /// Begins a phase and waits until all threads have done their part.
    fn phase(&mut self, phase: Phase, limit: Duration) -> Option<()> {
        self.conductor.begin(phase);
        let (conductor, progress, scenario) = (self.conductor, &mut self.progress, self.plan.scenario);
        let (sampler, world) = (&mut self.sampler, self.world);
        let done = conductor.wait_for(phase, limit, || {
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

    /// Sleeps until a time of the run, then samples.
    fn edge_at(&mut self, at_ns: u64) -> Option<Edge> {
        loop {
            let left = Duration::from_nanos(at_ns.saturating_sub(self.world.now_ns()));
            if left.is_zero() {
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

    /// The server's metrics; nothing when they were not asked for.
    fn metrics(&self) -> Option<String> {
        let scraped = self.options.metrics.as_deref().map(stages::scrape).transpose();
        scraped.map(Option::unwrap_or_default).map_err(|error| self.conductor.give_up(error)).ok()
    }

    fn edge(&self) -> Option<Edge> {
        let give_up = |error: std::io::Error| {
            self.conductor.give_up(format!("cannot read the server's /proc entry (--server-pid): {error}"));
        };
        let server = self.options.server_pid.map(proc::sample).transpose().map_err(give_up).ok()?;
        let tool = proc::sample(std::process::id()).map_err(give_up).ok()?;
        Some(Edge { at: Instant::now(), server, tool })
    }
}

fn put_together(world: &World, plan: &Plan, led: Led, sampler: Sampler, ends: &[ThreadEnd]) -> Outcome {
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
    let between =
        |edges: &[Edge; 2]| edges[0].server.as_ref().zip(edges[1].server.as_ref()).map(|(a, b)| proc::spent(a, b));
    let server = between(&led.window).map(|window| ServerUse {
        connect: between(&led.connect).unwrap_or_default(),
        window,
        rss_start: led.connect[0].server.as_ref().map_or(0, |sample| sample.rss_bytes),
        rss_ready: led.rss_ready,
        rss_end: led.window[1].server.as_ref().map_or(0, |sample| sample.rss_bytes),
    });
    let seconds = |edges: &[Edge; 2]| (edges[1].at - edges[0].at).as_secs_f64();
    let tool_edges = if plan.setup == Setup::JoinEach { &led.connect } else { &led.window };
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
        timeline: sampler.timeline(led.schedule.from_ns),
        stages: led.stages,
        schedule: led.schedule,
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
