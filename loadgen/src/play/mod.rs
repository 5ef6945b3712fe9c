//! Scripted scenarios: each a script of what happens to one [`Stage`] of connections, with what it
//! must come to. One thread, one user a connection; what is common to all of them is here.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use glommio::{LocalExecutorBuilder, Placement};

use crate::cli::Common;
use crate::measure::{Meters, Schedule};
use crate::plan::{Plan, Setup, Traffic};
use crate::proc::{self, Sample};
use crate::report::{self, Figure, Report};
use crate::run::{Outcome, ServerUse, add_trouble, read_server};
use crate::sampler::Sampler;
use crate::stage::{Play, Stage};
use crate::stages;
use crate::tally::Tally;
use crate::world::{World, WorldSpec};

#[cfg(test)]
mod fake;
pub mod herd;
pub mod inbox;
pub mod mixed;
pub mod presence;
mod roster;

/// What a script comes to, beside what is measured of every one. It is filled as the script goes on, so that one that
/// is ended early tells what it has; what needs the end is judged at the end.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What was asked for, in one line.
    pub asked: String,
    /// Numbers, by name and unit.
    pub figures: Vec<Figure>,
    /// For the reader.
    pub notes: Vec<String>,
    /// Promises that did not hold.
    pub failures: Vec<String>,
    /// What was counted and checked.
    pub tally: Tally,
    /// The messages that were sent at a rate, if any were.
    pub messages: Option<Messages>,
}

/// Messages of a script: when, how many a second, how long they took.
#[derive(Debug)]
pub struct Messages {
    /// When they were meant to be sent.
    pub schedule: Schedule,
    /// How many.
    pub rate: Rate,
    /// Their latencies.
    pub meters: Meters,
}

/// How fast messages were meant to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Messages a second.
    pub per_second: f64,
    /// For how long they were sent before measuring began, seconds.
    pub warmup_s: f64,
}

impl Verdict {
    /// Adds a number.
    pub fn figure(&mut self, name: &'static str, value: f64, unit: &'static str) {
        self.figures.push(Figure::new(name, value, unit));
    }

    /// Adds a note.
    pub fn note(&mut self, note: impl Display) {
        self.notes.push(note.to_string());
    }

    /// A broken promise, if `count` is above zero.
    pub fn forbid(&mut self, count: u64, what: &str) {
        if count > 0 {
            self.failures.push(format!("{count} {what}"));
        }
    }
}

/// A script's stage, and the clock of what it measures.
pub struct Theatre {
    /// The connections.
    pub stage: Stage,
    /// Figures over time: a script that lasts ticks it.
    pub sampler: Sampler,
    server_pid: Option<u32>,
    /// Where the server's metrics are.
    metrics: Option<String>,
    /// What they were when measuring began.
    metrics_before: String,
    start: Edge,
    ready: Option<Edge>,
    window: [Option<Edge>; 2],
    /// What could not be read while it ran.
    trouble: Vec<String>,
    progress: bool,
}

#[derive(Debug, Clone)]
struct Edge {
    at: Instant,
    /// The same, since the run began.
    at_ns: u64,
    /// Connections that are open.
    open: u32,
    server: Option<Sample>,
    tool: Sample,
}

impl Theatre {
    fn edge(&mut self) -> Result<Edge, String> {
        edge(&self.stage, self.server_pid, &mut self.trouble)
    }

    /// The server's metrics; empty where they were not asked for, or do not come.
    fn scrape(&mut self) -> String {
        let scraped = self.metrics.as_deref().map(stages::scrape).transpose();
        scraped.map_err(|error| add_trouble(&mut self.trouble, error)).ok().flatten().unwrap_or_default()
    }

    /// Everybody is there: what follows is no longer connecting.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn is_ready(&mut self) -> Result<(), String> {
        self.stage.is_setting_up = false;
        self.ready = Some(self.edge()?);
        Ok(())
    }

    /// What is to be measured begins.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn measure(&mut self) -> Result<(), String> {
        self.metrics_before = self.scrape();
        self.window[0] = Some(self.edge()?);
        Ok(())
    }

    /// It is over.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn measured(&mut self) -> Result<(), String> {
        self.window[1] = Some(self.edge()?);
        Ok(())
    }

    /// The server's CPU seconds between [`Theatre::measure`] and [`Theatre::measured`].
    pub fn server_cpu_s(&self) -> Option<f64> {
        let [Some(from), Some(to)] = &self.window else { return None };
        Some(proc::spent(from.server.as_ref()?, to.server.as_ref()?).total_s)
    }

    /// The server's CPU seconds until [`Theatre::is_ready`].
    pub fn connect_cpu_s(&self) -> Option<f64> {
        Some(proc::spent(self.start.server.as_ref()?, self.ready.as_ref()?.server.as_ref()?).total_s)
    }

    /// A line on stderr about what is going on.
    pub fn say(&self, what: impl Display) {
        if self.progress {
            eprintln!("{:>7.1} s  {what}", self.start.at.elapsed().as_secs_f64());
        }
    }

    /// The end: what the script counted, and what was measured around it.
    fn outcome(mut self, tally: Tally, messages: Option<Messages>) -> Outcome {
        // Only now: a scrape in the middle would hold up what is on its way.
        let after = self.scrape();
        let stages = stages::stages(&self.metrics_before, &after);
        let ready = self.ready.unwrap_or_else(|| self.start.clone());
        let [from, to] = self.window;
        let from = from.unwrap_or_else(|| ready.clone());
        let to = to.unwrap_or_else(|| from.clone());
        let of = |edge: &'_ Edge| edge.server.clone();
        let server = of(&self.start).map(|start| {
            let [ready, from, to] = [of(&ready), of(&from), of(&to)];
            ServerUse::of(Some(&start), ready.as_ref(), [from.as_ref(), to.as_ref()])
        });
        let measured_s = (to.at - from.at).as_secs_f64();
        let books = &self.stage.books;
        let tally = Tally {
            frames: books.frames_in,
            bytes: books.bytes_in,
            pings: books.pings,
            malformed: tally.malformed + books.malformed,
            ..tally
        };
        let (schedule, meters) = messages.map(|messages| (messages.schedule, messages.meters)).unzip();
        let mut meters = meters.unwrap_or_else(|| Meters::new(0));
        meters.connect = self.stage.connect;
        Outcome {
            tally,
            meters,
            schedule: schedule.unwrap_or_default(),
            connected: ready.open,
            connect_s: (ready.at - self.start.at).as_secs_f64(),
            connected_end: to.open,
            measured_s,
            server,
            tool: proc::spent(&from.tool, &to.tool),
            tool_s: measured_s,
            polled_s: None,
            timeline: self.sampler.timeline(from.at_ns),
            stages,
            is_cut_short: false,
            trouble: self.trouble,
        }
    }
}

fn edge(stage: &Stage, server_pid: Option<u32>, trouble: &mut Vec<String>) -> Result<Edge, String> {
    let server = read_server(server_pid, trouble);
    let told = |error| format!("cannot read this tool's own /proc entry: {error}");
    let tool = proc::sample(std::process::id()).map_err(told)?;
    let (at, at_ns, open) = (Instant::now(), stage.world.now_ns(), stage.open_count());
    Ok(Edge { at, at_ns, open, server, tool })
}

/// Who a play needs.
#[derive(Debug, Clone, Copy)]
pub struct Crew {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// Connections.
    pub users: u32,
    /// Places for more that may come.
    pub spare: u32,
    /// Members of a room.
    pub rooms_of: u32,
    /// Rooms.
    pub rooms: u32,
}

/// Makes a stage, lets `script` run on it in a thread of its own, and reports what it came to.
///
/// # Errors
/// One sentence why it could not be carried out. Broken promises are in the report.
pub fn perform<S>(common: &Common, crew: Crew, script: S) -> Result<Report, String>
where
    S: FnOnce(&mut Theatre, &mut Verdict) -> Result<(), String> + Send + 'static,
{
    if common.threads != 1 {
        return Err(format!("{} is driven by one thread: leave --threads out", crew.scenario));
    }
    let target = common.target()?;
    let world = Arc::new(World::new(WorldSpec {
        clients: crew.users + crew.spare,
        rooms_of: crew.rooms_of,
        threads: 1,
        sources: common.sources(&target, crew.users + crew.spare, common.seed ^ u64::from(std::process::id()))?,
        target: target.address,
        host: target.host,
        path: target.path,
        dialect: common.dialect,
        // A script's stage sleeps: what it measures is not the cost of waking it.
        busy_poll: false,
        seed: common.seed,
        secret: common.secret()?,
    }));
    let placement = common.pin.first().map_or(Placement::Unbound, |core| Placement::Fixed(*core));
    let asked = Asked {
        server_pid: common.server_pid,
        metrics: common.control.clone(),
        seconds: common.duration,
        progress: common.progress,
    };
    let (tell, told) = mpsc::channel();
    let here = world.clone();
    let thread = LocalExecutorBuilder::new(placement).name("load").io_memory(64 * 1024).ring_depth(8);
    let handle = thread
        .spawn(move || async move {
            let result = act(&here, asked, script);
            // The receiver waits until the thread is over.
            let _ = tell.send(result);
        })
        .map_err(|error| format!("cannot start the driver thread: {error}"))?;
    // A panic of the script is told by the channel's end.
    let _ = handle.join();
    let (verdict, rate, outcome) = told.recv().map_err(|_| "the driver thread failed".to_owned())??;
    Ok(put_together(&world, crew, verdict, rate, &outcome))
}

/// What a stage is told beside its script.
struct Asked {
    server_pid: Option<u32>,
    metrics: Option<String>,
    seconds: f64,
    progress: bool,
}

fn act<S>(world: &Arc<World>, asked: Asked, script: S) -> Result<(Verdict, Option<Rate>, Outcome), String>
where
    S: FnOnce(&mut Theatre, &mut Verdict) -> Result<(), String>,
{
    let mut stage = Stage::new(world.clone(), world.clients).map_err(|error| format!("no ring: {error}"))?;
    stage.is_setting_up = true;
    let Asked { server_pid, metrics, seconds, progress } = asked;
    let mut trouble = Vec::new();
    let start = edge(&stage, server_pid, &mut trouble)?;
    let sampler = Sampler::new(seconds, server_pid);
    let mut theatre = Theatre {
        stage,
        sampler,
        server_pid,
        metrics,
        metrics_before: String::new(),
        start,
        ready: None,
        window: [None, None],
        trouble,
        progress,
    };
    // What cannot be read now was asked for wrongly; what cannot be read later is a finding.
    theatre.scrape();
    if let Some(wrong) = theatre.trouble.pop() {
        return Err(wrong);
    }
    // Only now: how long the scrape took is no time of connecting.
    theatre.start = theatre.edge()?;
    let mut verdict = Verdict::default();
    match script(&mut theatre, &mut verdict) {
        Ok(()) => {}
        // Once everybody was there, what has been measured is told whatever came between.
        Err(error) if theatre.ready.is_some() => verdict.failures.insert(0, error),
        Err(error) => return Err(error),
    }
    verdict.forbid(theatre.stage.books.malformed, "frames the protocol does not allow");
    for slot in 0..world.clients {
        theatre.stage.cut(slot);
    }
    let tally = std::mem::take(&mut verdict.tally);
    let messages = verdict.messages.take();
    let rate = messages.as_ref().map(|messages| messages.rate);
    let mut outcome = theatre.outcome(tally, messages);
    for what in outcome.trouble.drain(..) {
        add_trouble(&mut verdict.failures, what);
    }
    Ok((verdict, rate, outcome))
}

fn put_together(world: &World, crew: Crew, verdict: Verdict, rate: Option<Rate>, outcome: &Outcome) -> Report {
    let plan = Plan {
        scenario: crew.scenario,
        setup: Setup::CreateThenSubscribe,
        traffic: rate.map_or(Traffic::None, |rate| Traffic::Open { per_second: rate.per_second }),
        first_member_sends: false,
        body_bytes: 0,
        connecting: 64,
        warmup_s: rate.map_or(0.0, |rate| rate.warmup_s),
        duration_s: outcome.measured_s,
        absence: None,
        stall: None,
    };
    let mut report = report::report(world, &plan, outcome, verdict.notes, verdict.failures);
    report.settings.traffic = verdict.asked;
    if let Some(server) = &mut report.server {
        // What a script does beside messages is not in their number.
        server.cpu_s_per_million_deliveries = None;
    }
    (report.settings.clients, report.settings.rooms) = (crew.users, crew.rooms);
    report.figures = verdict.figures;
    report
}

/// Opens the slots and waits until all of them are greeted.
///
/// # Errors
/// The ring's, or that it took too long.
pub fn assemble<P: Play>(
    stage: &mut Stage,
    play: &mut P,
    slots: impl Iterator<Item = u32> + Clone,
) -> Result<(), String> {
    slots.clone().for_each(|slot| stage.open(slot));
    let limit_s = 60.0 + slots.clone().count() as f64 / 1_000.0;
    stage.until(play, limit_s, "connecting", |_, stage| {
        stage.pending() == 0 && slots.clone().all(|slot| stage.is_open(slot))
    })
}

/// Appends a member with a text that needs no escapes.
pub fn text(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(format!(",\"{name}\":\"{value}\"").as_bytes());
}

/// Appends the beginning of a command: its type and its number.
pub fn command(out: &mut Vec<u8>, kind: &str, id: u64) {
    out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"id\":{id}").as_bytes());
}
