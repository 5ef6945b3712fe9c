//! Flags, configuration, run, exit code.

use std::process::ExitCode;

use antiphon::cli::{self, Cli};
use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(err) => {
            eprintln!("antiphon: {err}");
            err.exit.into()
        }
    }
}
