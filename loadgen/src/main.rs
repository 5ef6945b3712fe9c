//! `antiphon-load`: many verified WebSocket clients over few threads.
//!
//! Reading order: [`cli`] (what can be asked), [`scenario`] (what it means), [`plan`] (as data),
//! [`world`] (who takes part), [`run`] (the main thread), [`conductor`] (keeping step), [`driver`]
//! (a thread's sockets), [`client`] (one connection), [`traffic`] (who sends when), [`frame`] and
//! [`scan`] (bytes), [`body`] (what is sent), [`verify`] (what was promised), [`tally`] (the books),
//! [`measure`], [`sampler`], [`stages`] and [`mod@proc`] (numbers), [`report`] and what is made of it:
//! [`figures`] by name, [`assert`](mod@assert), [`compare`], [`hgrm`], [`html`]. [`dialect`] is how other servers are spoken to.

use std::process::ExitCode;
use std::sync::Arc;

use antiphon::cli::process;
use antiphon::shard::probe;
use clap::Parser;

use crate::cli::{Cli, Command, Output, Scenario};
use crate::report::Report;
use crate::run::RunOptions;
use crate::world::{World, WorldSpec};

mod assert;
mod body;
mod cli;
mod client;
mod compare;
mod conductor;
mod dialect;
mod driver;
#[cfg(test)]
mod fake;
mod figures;
mod frame;
mod hgrm;
mod html;
mod measure;
mod plan;
mod proc;
mod report;
mod run;
mod sampler;
mod scan;
mod scenario;
mod stages;
mod tally;
mod traffic;
mod verify;
mod world;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(scenario) => run_scenario(&scenario).and_then(|mut report| {
            let common = scenario.common();
            tell(&mut report, common.json.as_deref(), &common.output)
        }),
        Command::Report(args) => compare::load(&args.file).and_then(|mut report| tell(&mut report, None, &args.output)),
        Command::Compare(args) => {
            let load = |paths: &[_]| paths.iter().map(compare::load).collect::<Result<Vec<_>, _>>();
            load(&args.a).and_then(|a| compare::compare(&a, &load(&args.b)?)).map(|table| {
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

fn run_scenario(scenario: &Scenario) -> Result<Report, String> {
    let common = scenario.common();
    common.check()?;
    let cast = scenario.cast()?;
    let plan = Arc::new(scenario::plan(scenario, &cast)?);
    common.dialect.check(plan.scenario)?;
    let target = common.target()?;
    probe::probe()?;
    check_open_files(cast.clients)?;
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
        secret: common.secret()?,
    }));
    let options = RunOptions {
        cores: common.pin.clone(),
        server_pid: common.server_pid,
        progress: common.progress,
        metrics: common.metrics.clone(),
    };
    let outcome = run::run(&world, &plan, &options)?;
    if let Some(prefix) = &common.hgrm {
        hgrm::write(prefix, &outcome.schedule, &outcome.meters)?;
    }
    let findings = scenario::findings(scenario, &cast, &outcome);
    let mut failures = outcome.tally.failures();
    failures.extend(findings.failures);
    Ok(report::report(&world, &plan, &outcome, findings.notes, failures))
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
    report.passed = report.failures.is_empty();
    let text = || serde_json::to_string_pretty(report).map_err(|error| format!("cannot write the report: {error}"));
    if let Some(file) = json.filter(|file| *file != "-") {
        std::fs::write(file, text()? + "\n").map_err(|error| format!("--json {file}: {error}"))?;
    }
    if let Some(file) = &output.html {
        std::fs::write(file, html::page(report)).map_err(|error| format!("--html {}: {error}", file.display()))?;
    }
    match json {
        Some("-") => println!("{}", text()?),
        _ => print!("{}", report.text()),
    }
    Ok(report.passed)
}
