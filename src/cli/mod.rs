//! The commands: `serve`, `token`, `check`, `inspect`.
//!
//! A command reads its flags, loads the configuration as every other command does, and either does
//! its work or ends in one sentence and an exit code (see [`crate::exit`]). Standard output carries
//! what was asked for; the log and the errors go to standard error.

pub mod check;
mod inspect;
pub mod process;
pub mod serve;
mod token;

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Flags;
use crate::exit::{Exit, StartError};

/// `antiphon`
#[derive(Debug, Parser)]
#[command(
    name = "antiphon",
    version,
    about = "A WebSocket server for chat: one order per room, stored before acknowledged, resumed after any disconnect.",
    after_help = "Exit codes: 0 done, 1 failed while running, 2 wrong flag or setting, 3 the machine does not allow it, \
                  4 port taken, 5 data folder not usable, 6 not usable just now: disk full, or database locked.",
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(Box<serve::Serve>),
    /// Make a token for a user, with the server's own secret
    Token(token::Token),
    /// Say whether this machine can run the server well, and what to do where it cannot
    Check(check::Check),
    /// Show what a data folder holds: rooms, positions, integrity
    Inspect(inspect::Inspect),
}

/// Runs a command.
///
/// # Errors
/// One sentence and the exit code.
pub fn run(cli: Cli) -> Result<Exit, StartError> {
    // Also those that SQLite makes.
    process::keep_files_private();
    match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Token(token) => token.run(),
        Command::Check(check) => check.run(),
        Command::Inspect(inspect) => inspect.run(),
    }
}

/// What the small commands share with `serve`. Everything else they take from the variables and the
/// config file, so that they see the same data folder and key as the server.
#[derive(Debug, Args)]
struct Shared {
    /// TOML file with settings [default: config.toml, if there]
    #[arg(long, env = "ANTIPHON_CONFIG", hide_env = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Folder of the database and the generated secrets [default: ./data]
    #[arg(long, env = "ANTIPHON_DATA_DIR", hide_env = true, value_name = "PATH")]
    data_dir: Option<PathBuf>,
}

impl Shared {
    /// All flags of `serve` as the variables have them, with these over them.
    fn flags(&self) -> Flags {
        #[derive(Parser)]
        struct Variables {
            #[command(flatten)]
            flags: Flags,
        }

        let mut flags = Variables::try_parse_from(["antiphon"]).unwrap_or_else(|err| err.exit()).flags;
        if self.config.is_some() {
            flags.config.clone_from(&self.config);
        }
        if let Some(path) = &self.data_dir {
            flags.server.data_dir = Some(crate::config::value::FilePath(path.clone()));
        }
        flags
    }
}

/// Writes to standard output. A reader that went away (`antiphon inspect | head`) is no failure.
fn print(text: &str) -> Result<(), StartError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => {
            Err(StartError::new(Exit::Failure, format!("standard output cannot be written: {err}")))
        }
        _ => Ok(()),
    }
}
