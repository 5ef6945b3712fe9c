//! `antiphon serve`: configuration, log, then the server. And what is printed once it is ready.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::Args;

use super::process;
use crate::config::{AdminSource, Config, Flags, KeySource, unknown_variables};
use crate::exit::{Exit, StartError};
use crate::{logging, server};

const EXAMPLES: &str = "\
Examples:
  antiphon serve
      on 127.0.0.1:8080, data in ./data, with a development secret that is made there
  antiphon serve --listen 0.0.0.0:8080 --jwks-file keys.json --origins https://chat.example
      behind a proxy that ends TLS
  antiphon serve --listen 127.0.0.1:0 --control-listen 127.0.0.1:0
      on free ports, which are printed
  antiphon serve --shards 1 --rate-limits off
      for a benchmark of one core
  antiphon serve --print-config > printed.toml
      write down what is in force; to another file than config.toml, which the shell
      would empty before it is read

A flag goes before its variable (--listen, ANTIPHON_LISTEN), a variable before the config file,
the file before the default. SIGTERM, SIGINT and SIGHUP stop gracefully: clients are told when
to come back, and everything acknowledged is stored.";

/// Flags of `serve`.
#[derive(Debug, Args)]
#[command(
    after_help = "In brackets: the default. --help shows every setting, with its variable and range, and examples.",
    after_long_help = EXAMPLES
)]
pub struct Serve {
    /// Print the settings in force as TOML, without secrets, and exit
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    flags: Flags,
}

impl Serve {
    /// # Errors
    /// Whatever keeps the server from starting, or ended it.
    pub(super) fn run(&self) -> Result<Exit, StartError> {
        let config = Config::load(&self.flags)?;
        if self.print_config {
            super::print(&config.settings.to_toml())?;
            return Ok(Exit::Ok);
        }
        // Before there is another thread.
        process::return_free_pages_early();
        let _log = logging::init(&config.log)?;
        for name in unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
            tracing::warn!(name, "this variable is no setting of ours; it is ignored");
        }
        process::disable_huge_pages();
        process::ignore_file_size_signal();
        if let Err(err) = process::raise_open_files() {
            tracing::warn!(%err, "the number of open files could not be raised");
        }
        server::run(config)
    }
}

/// What a started server has to say.
#[derive(Debug, Clone, Copy)]
pub struct Started<'a> {
    /// What it was told.
    pub config: &'a Config,
    /// Where clients connect, with the port that was chosen.
    pub listen: SocketAddr,
    /// Where operators connect, with the port that was chosen.
    pub control: SocketAddr,
    /// The development secret was made just now.
    pub key_is_new: bool,
    /// The admin token was made just now.
    pub admin_is_new: bool,
}

/// Prints that the server is ready, and how to connect. Called once, when it accepts connections.
///
/// The first three lines are for programs as well: `antiphon ready`, `listen`, `control`.
pub fn announce(started: &Started<'_>) {
    // Nobody may be reading; the server runs all the same.
    let _ = super::print(&announcement(started));
}

fn announcement(started: &Started<'_>) -> String {
    let Started { config, listen, control, .. } = started;
    let made = |is_new: bool| if is_new { ", made just now" } else { "" };
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{args}");
    };
    line(format_args!(
        "antiphon ready: version {}, pid {}, {} shard{}",
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        config.server.shards,
        if config.server.shards == 1 { "" } else { "s" },
    ));
    line(format_args!("  listen   ws://{}/ws", reachable(*listen)));
    line(format_args!("  control  http://{}/", reachable(*control)));
    line(format_args!("  data     {}", config.server.data_dir.display()));
    line(format_args!("  key      {}{}", config.auth.key.describe(), made(started.key_is_new)));
    if !matches!(config.admin, AdminSource::Token(_)) {
        line(format_args!("  admin    token {}{}", config.admin.describe(), made(started.admin_is_new)));
    }
    if matches!(config.auth.key, KeySource::Development(_)) {
        let data_dir = config.server.data_dir.display();
        line(format_args!("  try      antiphon token --user alice --data-dir {data_dir}   # a token to connect with"));
    }
    text
}

/// An address to connect to: "any address" is this machine.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn the_announcement_says_where_and_shows_no_secret() {
        let mut settings = Settings::default();
        let config = Config::new(settings.clone(), 2).unwrap();
        let started = Started {
            config: &config,
            listen: "0.0.0.0:4001".parse().unwrap(),
            control: "[::]:4002".parse().unwrap(),
            key_is_new: true,
            admin_is_new: false,
        };
        let text = announcement(&started);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("antiphon ready: version 0") && lines[0].ends_with("2 shards"), "{text}");
        assert_eq!(lines[1], "  listen   ws://127.0.0.1:4001/ws");
        assert_eq!(lines[2], "  control  http://[::1]:4002/");
        assert!(text.contains("dev-secret, made just now") && text.contains("admin-token\n"), "{text}");
        settings.auth.jwt_secret = crate::config::Secret::new("q".repeat(40));
        settings.admin.token = crate::config::Secret::new("z".repeat(40));
        let config = Config::new(settings, 1).unwrap();
        let text = announcement(&Started { config: &config, ..started });
        assert!(!text.contains("qqq") && !text.contains("zzz") && !text.contains("try "), "{text}");
    }
}
