//! `antiphon-load`: many verified WebSocket clients over few threads.
//!
//! Reading order: [`cli`] (what can be asked), [`scenario`] (what it means), [`plan`] (as data),
//! [`world`] (who takes part), [`run`] (the main thread), [`conductor`] (keeping step), [`driver`]
//! (a thread's part, over its [`links`]), [`client`] (one connection), [`traffic`] (who sends when), [`frame`] and
//! [`scan`] (bytes), [`body`] (what is sent), [`verify`], [`roll`] and [`mod@audit`] (what was promised), [`tally`] (the books),
//! [`measure`], [`sampler`], [`stages`] and [`mod@proc`] (numbers), [`watch`] and [`control`] (the server from outside), [`report`] and what is
//! made of it: [`figures`] by name, [`assert`](mod@assert), [`compare`], [`hgrm`], [`html`]. Scripted scenarios: [`play`], on a [`stage`].
//! [`interrupt`] ends a run early. [`dialect`] is how other servers are spoken to.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use antiphon::cli::process;
use antiphon::shard::probe;
use clap::{CommandFactory, FromArgMatches};

use crate::cli::{Cast, Cli, Command, Common, Output, Scenario};
use crate::report::Report;
use crate::run::RunOptions;
use crate::watch::Watch;
use crate::world::{World, WorldSpec};

mod assert;
mod audit;
mod body;
mod cli;
mod client;
mod compare;
mod conductor;
mod control;
mod dialect;
mod driver;
#[cfg(test)]
mod fake;
mod figures;
mod frame;
mod hgrm;
mod html;
mod interrupt;
mod links;
mod measure;
mod plan;
mod play;
mod proc;
mod report;
mod roll;
mod run;
mod sampler;
mod scan;
mod scenario;
mod stage;
mod stages;
mod tally;
mod traffic;
mod verify;
mod watch;
mod world;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let result = match Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()).command {
        Command::Run(scenario) => {
            cli::check_useful(&matches).and_then(|()| run_scenario(&scenario)).and_then(|(mut report, written)| {
                let common = scenario.common();
                report.settings.work = cli::work(&matches);
                // The text first: no other file that fails takes it away.
                let passed = tell(&mut report, common.json.as_deref(), &common.output);
                written.and(passed)
            })
        }
        Command::Report(args) => args
            .output
            .check()
            .and_then(|()| compare::load(&args.file))
            .and_then(|mut report| tell(&mut report, None, &args.output)),
        Command::Compare(args) => {
            let load = |paths: &[_]| paths.iter().map(compare::load).collect::<Result<Vec<_>, _>>();
            load(&args.a.0).and_then(|a| compare::compare(&a, &load(&args.b.0)?)).map(|table| {
                print!("{table}");
                true
            })
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("antiphon-load: {error}");
            ExitCode::from(2)
        }
    }
}

/// The report, and whether the files that are not made of it could be written.
fn run_scenario(scenario: &Scenario) -> Result<(Report, Result<(), String>), String> {
    let common = scenario.common();
    common.check()?;
    let cast = scenario.cast()?;
    probe::probe()?;
    check_open_files(cast.clients)?;
    common.dialect.check(scenario.name())?;
    interrupt::listen()?;
    let warning = stranger(common)?;
    let (mut report, written) = perform(scenario, &cast)?;
    report.notes.extend(warning);
    Ok((report, written))
}

/// A warning where the process that is measured is not the one that is spoken to.
fn stranger(common: &Common) -> Result<Option<String>, String> {
    let target = common.target()?.address;
    let is_here = target.ip().is_loopback();
    Ok(common.server_pid.filter(|pid| is_here && !proc::listens(*pid, target)).map(|pid| {
        format!(
            "WARNING: process {pid} (--server-pid) does not listen on {target}: CPU time and memory may be another's"
        )
    }))
}

/// The same without a look at who is measured.
fn perform(scenario: &Scenario, cast: &Cast) -> Result<(Report, Result<(), String>), String> {
    let common = scenario.common();
    let scripted = match scenario {
        Scenario::Presence(args) => Some(play::presence::run(args)),
        Scenario::Inbox(args) => Some(play::inbox::run(args)),
        Scenario::Herd(args) => Some(play::herd::run(args)),
        Scenario::Mixed(args) => Some(play::mixed::run(args, false)),
        Scenario::Soak(args) => Some(play::mixed::run(args, true)),
        _ => None,
    };
    if let Some(report) = scripted {
        return Ok((report?, Ok(())));
    }
    let plan = Arc::new(scenario::plan(scenario, cast)?);
    let target = common.target()?;
    let salt = common.seed ^ u64::from(std::process::id());
    let sources = common.sources(&target, cast.clients, salt)?;
    let world = Arc::new(World::new(WorldSpec {
        clients: cast.clients,
        rooms_of: cast.rooms_of,
        threads: common.threads.min(cast.clients),
        target: target.address,
        host: target.host,
        path: target.path,
        sources,
        seed: common.seed,
        dialect: common.dialect,
        busy_poll: common.busy_poll,
        secret: common.secret()?,
    }));
    let options = RunOptions {
        cores: common.pin.clone(),
        server_pid: common.server_pid,
        progress: common.progress,
        metrics: common.control.clone(),
    };
    let control = common.control.as_deref().map(control::address).transpose()?;
    let watch = Watch::start(common.server_pid, control, Duration::from_secs(1));
    let outcome = run::run(&world, &plan, &options);
    let seen = watch.stop();
    let outcome = outcome?;
    let written = common
        .hgrm
        .as_deref()
        .map_or(Ok(()), |prefix| hgrm::write(prefix, &outcome.schedule, &outcome.meters).map(drop));
    let findings = scenario::findings(scenario, cast, &outcome, &seen);
    let mut failures = outcome.tally.failures();
    failures.extend(findings.failures);
    for what in outcome.trouble.iter().cloned().chain(seen.trouble) {
        run::add_trouble(&mut failures, what);
    }
    let mut report = report::report(&world, &plan, &outcome, findings.notes, failures);
    report.figures = findings.figures;
    Ok((report, written))
}

/// Descriptors beside the clients': rings, eventfds, standard streams, /proc.
const OTHER_FILES: u64 = 200;

fn check_open_files(clients: u32) -> Result<(), String> {
    let limit = process::raise_open_files().map_err(|error| format!("cannot raise the open-file limit: {error}"))?.soft;
    let needed = u64::from(clients) + OTHER_FILES;
    if limit < needed {
        return Err(format!(
            "{clients} clients need {needed} open files and this shell allows {limit}: raise the hard limit (ulimit -Hn), \
             or run with --clients {}",
            limit.saturating_sub(OTHER_FILES)
        ));
    }
    Ok(())
}

/// Checks the assertions, and writes the report wherever it is wanted. Returns true when all is well.
fn tell(report: &mut Report, json: Option<&str>, output: &Output) -> Result<bool, String> {
    report.failures.extend(output.asserts.iter().filter_map(|assertion| assertion.failure(report)).collect::<Vec<_>>());
    report.passed &= report.failures.is_empty();
    let text = || serde_json::to_string_pretty(report).map_err(|error| format!("cannot write the report: {error}"));
    match json {
        Some("-") => println!("{}", text()?),
        _ => print!("{}", report.text()),
    }
    let save = |file: &str| std::fs::write(file, text()? + "\n").map_err(|error| format!("--json {file}: {error}"));
    let saved = json.filter(|file| *file != "-").map_or(Ok(()), save);
    let page = output.html.as_deref().map_or(Ok(()), |file| {
        std::fs::write(file, html::page(report)).map_err(|error| format!("--html {}: {error}", file.display()))
    });
    saved.and(page).map(|()| report.passed)
}
