//! `antiphon-load`: many verified WebSocket clients over few threads.
//!
//! Reading order: [`cli`] (what can be asked), [`scenario`] (what it means), [`plan`] (as data),
//! [`world`] (who takes part), [`run`] (the main thread), [`conductor`] (keeping step), [`driver`]
//! (a thread's sockets), [`client`] (one connection), [`traffic`] (who sends when), [`frame`] and
//! [`scan`] (bytes), [`body`] (what is sent), [`verify`] (what was promised), [`tally`] (the books),
//! [`measure`] and [`mod@proc`] (numbers), [`watch`] and [`control`] (the server from outside), [`report`]. Scripted scenarios: [`play`], on a [`stage`].

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use antiphon::cli::process;
use antiphon::shard::probe;
use clap::Parser;

use crate::cli::{Cli, Scenario};
use crate::report::Report;
use crate::run::RunOptions;
use crate::watch::Watch;
use crate::world::{World, WorldSpec};

mod body;
mod cli;
mod client;
mod conductor;
mod control;
mod driver;
#[cfg(test)]
mod fake;
mod frame;
mod measure;
mod plan;
mod play;
mod proc;
mod report;
mod run;
mod scan;
mod scenario;
mod stage;
mod tally;
mod traffic;
mod verify;
mod watch;
mod world;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run_scenario(&cli.scenario).and_then(|report| tell(&cli.scenario, &report).map(|()| report.passed)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("antiphon-load: {error}");
            ExitCode::from(2)
        }
    }
}

fn run_scenario(scenario: &Scenario) -> Result<Report, String> {
    let common = scenario.common();
    common.check()?;
    let cast = scenario.cast()?;
    probe::probe()?;
    check_open_files(cast.clients)?;
    match scenario {
        Scenario::Presence(args) => return play::presence::run(args),
        Scenario::Inbox(args) => return play::inbox::run(args),
        Scenario::Herd(args) => return play::herd::run(args),
        Scenario::Mixed(args) => return play::mixed::run(args, false),
        Scenario::Soak(args) => return play::mixed::run(args, true),
        _ => {}
    }
    let plan = Arc::new(scenario::plan(scenario, &cast)?);
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
        secret: common.secret()?,
    }));
    let options = RunOptions { cores: common.pin.clone(), server_pid: common.server_pid, progress: common.progress };
    let control = common.control.as_deref().map(control::address).transpose()?;
    let watch = Watch::start(common.server_pid, control, Duration::from_secs(1));
    let outcome = run::run(&world, &plan, &options);
    let seen = watch.stop();
    let outcome = outcome?;
    let findings = scenario::findings(scenario, &cast, &outcome, &seen);
    let mut failures = outcome.tally.failures();
    failures.extend(findings.failures);
    failures.extend(seen.trouble);
    let mut report = report::report(&world, &plan, &outcome, findings.notes, failures);
    report.figures = findings.figures;
    Ok(report)
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

fn tell(scenario: &Scenario, report: &Report) -> Result<(), String> {
    let json = || serde_json::to_string_pretty(report).map_err(|error| format!("cannot write the report: {error}"));
    match scenario.common().json.as_deref() {
        Some("-") => println!("{}", json()?),
        Some(file) => {
            std::fs::write(file, json()? + "\n").map_err(|error| format!("--json {file}: {error}"))?;
            print!("{}", report.text());
        }
        None => print!("{}", report.text()),
    }
    Ok(())
}
