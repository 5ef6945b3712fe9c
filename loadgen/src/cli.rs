//! What can be asked of the tool: raw arguments in, a checked [`Request`] out.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, Parser, Subcommand};

use crate::body::BODY_BYTES_MIN;
use crate::dialect::Dialect;
use crate::plan::Traffic;
use crate::play::herd::HerdArgs;
use crate::play::inbox::InboxArgs;
use crate::play::mixed::MixedArgs;
use crate::play::presence::PresenceArgs;

mod output;
mod rate;

use output::check_writable;
pub use output::{CompareArgs, Output, ReportArgs};
use rate::Rate;

/// Drives an Antiphon server with many WebSocket clients, and checks every single delivery.
#[derive(Debug, Parser)]
#[command(name = "antiphon-load", version, after_help = EXAMPLES, max_term_width = 100, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A run, or what is done with the report of one.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // There is one of it in a process.
pub enum Command {
    #[command(flatten)]
    Run(Scenario),
    /// Show a saved report again: as text, as a page (--html), against --assert
    Report(ReportArgs),
    /// Compare saved reports: ratio of medians with spread
    #[command(long_flag = "compare")]
    Compare(CompareArgs),
}

/// Arguments that say who measures and whom, and nothing of the work.
const NOT_THE_WORK: [&str; 7] = ["url", "dialect", "allow_remote", "threads", "source_addresses", "seed", "progress"];

/// The arguments that shape the work of a scenario, with what they were. Those without a default (`--rate`, say) are
/// told by the report's `traffic` and `body_bytes`.
pub fn work(matches: &ArgMatches) -> BTreeMap<String, String> {
    let mut command = Cli::command();
    command.build();
    let Some((name, matches)) = matches.subcommand() else { return BTreeMap::new() };
    let arguments = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let shaping = arguments.filter(|argument| {
        !argument.get_default_values().is_empty() && !NOT_THE_WORK.contains(&argument.get_id().as_str())
    });
    let told = |argument: &clap::Arg| {
        let values = matches.try_get_raw(argument.get_id().as_str()).ok().flatten()?;
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        Some((format!("--{}", argument.get_long()?), values.join(",")))
    };
    shaping.filter_map(told).collect()
}

/// Refuses what was given and would do nothing.
///
/// # Errors
/// One sentence that names the flag.
pub fn check_useful(matches: &ArgMatches) -> Result<(), String> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let is_given = |flag: &str| {
        matches.try_contains_id(flag).is_ok() && matches.value_source(flag) == Some(ValueSource::CommandLine)
    };
    // These end when everything is done.
    let has_its_own_end = ["connect", "presence", "inbox", "herd"].contains(&name);
    let is_script = ["presence", "inbox", "herd", "mixed", "soak"].contains(&name);
    for (flag, is_useless) in [("duration", has_its_own_end), ("warmup", has_its_own_end), ("hgrm", is_script)] {
        if is_useless && is_given(flag) {
            return Err(format!("--{flag} has no meaning in {name}"));
        }
    }
    Ok(())
}

const EXAMPLES: &str = "\
EXAMPLES
  The server's secret comes from ANTIPHON_JWT_SECRET, --secret-file or --secret.

  antiphon-load chat --clients 2000 --rooms-of 10 --in-flight 4 --duration 30
  antiphon-load chat --clients 2000 --rate 2000 --server-pid $(pidof antiphon)
  antiphon-load fanout --clients 1000 --in-flight 8 --json report.json
  antiphon-load resume --clients 2000 --away 3
  antiphon-load idle --clients 15000 --duration 60 --server-pid $(pidof antiphon)
  antiphon-load presence --users 10000 --grace-ms 1000 --server-pid $(pidof antiphon)
  antiphon-load inbox --users 1000 --items 1000
  antiphon-load herd --clients 10000
  antiphon-load mixed --users 1000 --rate 500 --duration 60
  antiphon-load soak --duration 3600 --server-pid $(pidof antiphon) --control http://127.0.0.1:8081

  antiphon-load chat --rate 1000..20000 --steps 10 --duration 60 --html report.html --hgrm latency
  antiphon-load chat --rate 2000 --assert 'p99<20ms,ack.p50<=5ms,rate>=1900,lost=0,tool-limit=0'
  antiphon-load report report.json --html report.html
  antiphon-load compare a1.json,a2.json,a3.json b1.json,b2.json,b3.json
  antiphon-load chat --dialect socket-io --url ws://127.0.0.1:3000

  An assertion is FIGURE OP VALUE, with < <= > >= = != and a unit (us ms s; k M; KB MB). Figures:
    p50 p90 p99 p99.9 mean max    latency of deliveries; ack.p99, connect.p99; p99@after of a part of the time,
                                  \"p99@'step 3'<20ms\" where its name has a space (without @: the worst part)
    rate deliveries connects      a second
    cpu cpu-connect rss           CPU s a million deliveries, CPU us and bytes a connection (--server-pid)
    lost doubled out-of-order differing gaps excused errors closed broken    counts
    tool tool-limit               load of this tool's threads (1: a core each); 1 when it was the limit

Rate limits are the server's own: start it with `--rate-limits off` to measure more than they allow.
Ctrl-C ends a run early and tells what it has measured (twice: ends it at once).
The exit code is 0 when every promise and assertion held, 1 when one did not, 2 when the run could not be made.";

#[cfg(test)]
impl Cli {
    /// The scenario of a command line that asks for one.
    pub fn scenario_of(args: impl IntoIterator<Item: Into<std::ffi::OsString> + Clone>) -> Scenario {
        match Self::parse_from(args).command {
            Command::Run(scenario) => scenario,
            other => panic!("{other:?} is no scenario"),
        }
    }
}

/// The scenarios.
#[derive(Debug, Subcommand)]
pub enum Scenario {
    /// Connect, authenticate, join: how many a second, and what each costs
    Connect(ConnectArgs),
    /// Hold many quiet connections: memory of each, and what heartbeats cost
    Idle(IdleArgs),
    /// Rooms in which everybody talks: throughput (closed loop) or latency (at a rate)
    Chat(ChatArgs),
    /// One room that everybody is in
    Fanout(FanoutArgs),
    /// Everybody drops at once, and returns with a cursor while messages go on
    Resume(ResumeArgs),
    /// Some readers stop reading: do the others notice?
    Slow(SlowArgs),
    /// One user a room, one message on its way: the durable round trip
    Echo(EchoArgs),
    /// A storm: everybody in one room drops and returns, half of them watch
    Presence(PresenceArgs),
    /// Fill many inboxes at full speed, then everybody connects, receives and acknowledges
    Inbox(InboxArgs),
    /// Everybody drops and returns at once, while new users keep coming
    Herd(HerdArgs),
    /// A day in a chat: typing, reads, sends, reactions, comings and goings
    Mixed(MixedArgs),
    /// The same for long: does the server stay as it is?
    Soak(MixedArgs),
}

/// What every scenario takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Where the server listens
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080", help_heading = "Server")]
    pub url: String,
    /// The HS256 secret that the server checks tokens with
    #[arg(long, value_name = "TEXT", env = "ANTIPHON_JWT_SECRET", hide_env_values = true, help_heading = "Server")]
    pub secret: Option<String>,
    /// A file with that secret, such as <data dir>/dev-secret
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub secret_file: Option<PathBuf>,
    /// Measure this process: CPU time by thread, and memory
    #[arg(long, value_name = "PID", help_heading = "Server")]
    pub server_pid: Option<u32>,
    /// Its control listener, for its counters and the time spent in each stage, such as http://127.0.0.1:8081
    #[arg(long, value_name = "URL", help_heading = "Server")]
    pub control: Option<String>,
    /// What the server speaks; the others than antiphon know connect, idle, chat, fanout and echo
    #[arg(long, value_enum, default_value_t, help_heading = "Server")]
    pub dialect: Dialect,
    /// Allow a server that is not on this machine
    #[arg(long, help_heading = "Server")]
    pub allow_remote: bool,

    /// Seconds of traffic before measuring
    #[arg(long, value_name = "S", default_value_t = 2.0, help_heading = "Time")]
    pub warmup: f64,
    /// Seconds of measuring
    #[arg(long, value_name = "S", default_value_t = 10.0, help_heading = "Time")]
    pub duration: f64,

    /// Threads that drive the clients
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "This tool")]
    pub threads: u32,
    /// Cores for these threads, such as 1 or 2,3
    #[arg(long, value_name = "CORES", value_delimiter = ',', help_heading = "This tool")]
    pub pin: Vec<usize>,
    /// Poll without sleeping, for cores of its own: the server then pays for no wake-ups of this tool,
    /// which on a virtual machine can be a third of a send
    #[arg(long, help_heading = "This tool")]
    pub busy_poll: bool,
    /// Addresses to connect from: auto, none, or a list within 127.0.0.0/8
    #[arg(long, value_name = "LIST", default_value = "auto", help_heading = "This tool")]
    pub source_addresses: String,
    /// Start of every random choice
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "This tool")]
    pub seed: u64,
    /// A line a second on stderr
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, help_heading = "This tool")]
    pub progress: bool,
    /// Write the report as JSON to this file (-: to stdout, instead of the text)
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub json: Option<String>,
    /// Write each latency's percentiles to FILE-<which>-<window>.hgrm, for HdrHistogram's plotter
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub hgrm: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

/// How messages are sent.
#[derive(Debug, Args)]
pub struct Load {
    /// Closed loop: messages of each room on their way at any time
    #[arg(long, value_name = "K", help_heading = "Messages")]
    pub in_flight: Option<u32>,
    /// Open loop: messages a second in all, whatever the server does, or FROM..TO in steps; latency counts
    /// from the intended time (of a closed loop: from the sending)
    #[arg(long, value_name = "R", conflicts_with = "in_flight", help_heading = "Messages")]
    pub rate: Option<Rate>,
    /// Equal steps of --rate FROM..TO within --duration, each with its own figures (2 to 50) [default: 10]
    #[arg(long, value_name = "N", requires = "rate", help_heading = "Messages")]
    pub steps: Option<u32>,
    /// Bytes of a message's body (16 to 8192) [default: 64; slow: 1024]
    #[arg(long, value_name = "B", help_heading = "Messages")]
    pub body_bytes: Option<usize>,
}

impl Load {
    fn traffic(&self, otherwise: Traffic) -> Result<Traffic, String> {
        match (self.in_flight, self.rate) {
            (Some(0), _) => Err("--in-flight must be at least 1".to_owned()),
            (Some(in_flight), _) => Ok(Traffic::Closed { in_flight }),
            (None, Some(rate)) => rate.traffic(self.steps),
            (None, None) => Ok(otherwise),
        }
    }
}

/// `connect`
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// Connections to make
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub clients: u32,
    /// Members of each room they join
    #[arg(long, value_name = "M", default_value_t = 10)]
    pub rooms_of: u32,
    /// Connections in the making at any time, for each thread
    #[arg(long, value_name = "K", default_value_t = 64)]
    pub in_flight: u32,
    #[command(flatten)]
    pub common: Common,
}

/// `idle`
#[derive(Debug, Args)]
pub struct IdleArgs {
    /// Connections to hold
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub clients: u32,
    /// Members of each room; every connection is in one
    #[arg(long, value_name = "M", default_value_t = 10)]
    pub rooms_of: u32,
    #[command(flatten)]
    pub common: Common,
}

/// `chat`
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Connections, each a user of its own
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub clients: u32,
    /// Members of each room
    #[arg(long, value_name = "M", default_value_t = 10)]
    pub rooms_of: u32,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub common: Common,
}

/// `fanout`
#[derive(Debug, Args)]
pub struct FanoutArgs {
    /// Members of the one room
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub clients: u32,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub common: Common,
}

/// `resume`
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Connections; the first of each room stays and sends
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub clients: u32,
    /// Members of each room
    #[arg(long, value_name = "M", default_value_t = 10)]
    pub rooms_of: u32,
    /// Seconds between the drop and the return
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub away: f64,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub common: Common,
}

/// `slow`
#[derive(Debug, Args)]
pub struct SlowArgs {
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub clients: u32,
    /// Members of each room
    #[arg(long, value_name = "M", default_value_t = 20)]
    pub rooms_of: u32,
    /// Readers that stop, in percent
    #[arg(long, value_name = "P", default_value_t = 5.0)]
    pub percent: f64,
    /// Seconds for which they do not read
    #[arg(long, value_name = "S", default_value_t = 15.0)]
    pub stall: f64,
    /// How much the others' delivery p99 may grow: the run fails above this factor
    #[arg(long, value_name = "X", default_value_t = 1.2)]
    pub ratio_max: f64,
    /// The server's `outbox_total_bytes_max`, bytes
    #[arg(long, value_name = "B", default_value_t = 536_870_912)]
    pub budget: u64,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub common: Common,
}

/// `echo`
#[derive(Debug, Args)]
pub struct EchoArgs {
    /// Connections, each alone in its room
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub clients: u32,
    /// Bytes of a message's body (16 to 8192)
    #[arg(long, value_name = "B", default_value_t = 64)]
    pub body_bytes: usize,
    #[command(flatten)]
    pub common: Common,
}

/// Largest body (docs/WEBSOCKET_API.md: `message:send`).
const BODY_BYTES_MAX: usize = 8 * 1024;

/// Who, how many, how: checked.
#[derive(Debug, PartialEq)]
pub struct Cast {
    /// Connections.
    pub clients: u32,
    /// Members of a room.
    pub rooms_of: u32,
    /// How messages are sent.
    pub traffic: Traffic,
    /// Bytes of a body.
    pub body_bytes: usize,
}

impl Scenario {
    /// What every scenario takes.
    pub fn common(&self) -> &Common {
        match self {
            Self::Connect(args) => &args.common,
            Self::Idle(args) => &args.common,
            Self::Chat(args) => &args.common,
            Self::Fanout(args) => &args.common,
            Self::Resume(args) => &args.common,
            Self::Slow(args) => &args.common,
            Self::Echo(args) => &args.common,
            Self::Presence(args) => &args.common,
            Self::Inbox(args) => &args.common,
            Self::Herd(args) => &args.common,
            Self::Mixed(args) | Self::Soak(args) => &args.common,
        }
    }

    /// Its name, as on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Idle(_) => "idle",
            Self::Chat(_) => "chat",
            Self::Fanout(_) => "fanout",
            Self::Resume(_) => "resume",
            Self::Slow(_) => "slow",
            Self::Echo(_) => "echo",
            Self::Presence(_) => "presence",
            Self::Inbox(_) => "inbox",
            Self::Herd(_) => "herd",
            Self::Mixed(_) => "mixed",
            Self::Soak(_) => "soak",
        }
    }

    /// Who takes part and how messages are sent.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn cast(&self) -> Result<Cast, String> {
        let closed = |in_flight| Traffic::Closed { in_flight };
        let with_load = |clients, rooms_of, load: &Load, otherwise| {
            let body_bytes = load.body_bytes.unwrap_or(64);
            Ok::<_, String>(Cast { clients, rooms_of, traffic: load.traffic(otherwise)?, body_bytes })
        };
        let quiet = |clients, rooms_of| Cast { clients, rooms_of, traffic: Traffic::None, body_bytes: BODY_BYTES_MIN };
        let cast = match self {
            Self::Connect(a) => quiet(a.clients, a.rooms_of),
            Self::Idle(a) => quiet(a.clients, a.rooms_of),
            Self::Chat(a) => with_load(a.clients, a.rooms_of, &a.load, closed(4))?,
            Self::Fanout(a) => with_load(a.clients, a.clients, &a.load, closed(8))?,
            Self::Resume(a) => with_load(a.clients, a.rooms_of, &a.load, Traffic::Open { per_second: 2_000.0 })?,
            Self::Slow(a) => Cast {
                // Bodies that fill a stalled socket's buffers within seconds.
                body_bytes: a.load.body_bytes.unwrap_or(1_024),
                ..with_load(a.clients, a.rooms_of, &a.load, Traffic::Open { per_second: 2_000.0 })?
            },
            Self::Presence(a) => quiet(a.users, a.users),
            Self::Inbox(a) => quiet(a.users.saturating_add(a.senders), 1),
            Self::Herd(a) => quiet(a.users(), a.rooms_of),
            Self::Mixed(a) | Self::Soak(a) => quiet(a.users, a.rooms_of),
            Self::Echo(a) => Cast { clients: a.clients, rooms_of: 1, traffic: closed(1), body_bytes: a.body_bytes },
        };
        if let Self::Connect(ConnectArgs { in_flight: 0, .. }) = self {
            return Err("--in-flight must be at least 1".to_owned());
        }
        if cast.clients == 0 || cast.clients > 1_000_000 {
            return Err("--clients must be 1 to 1,000,000".to_owned());
        }
        if cast.rooms_of == 0 {
            return Err("--rooms-of must be at least 1".to_owned());
        }
        if !(BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&cast.body_bytes) {
            return Err(format!("--body-bytes must be {BODY_BYTES_MIN} to {BODY_BYTES_MAX}"));
        }
        Ok(Cast { rooms_of: cast.rooms_of.min(cast.clients), ..cast })
    }
}

/// Where to connect to.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The address.
    pub address: SocketAddrV4,
    /// For the `Host` header.
    pub host: String,
    /// Path of the upgrade.
    pub path: String,
}

impl Common {
    /// The server's address.
    ///
    /// # Errors
    /// Not a `ws://` URL, no such host, or not on this machine without `--allow-remote`.
    pub fn target(&self) -> Result<Target, String> {
        let rest = self.url.strip_prefix("ws://").ok_or("--url must begin with ws:// (TLS is a proxy's business)")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let mut found = host.to_socket_addrs().map_err(|error| format!("--url {}: {error}", self.url))?;
        let address = found
            .find_map(|address| if let SocketAddr::V4(v4) = address { Some(v4) } else { None })
            .ok_or_else(|| format!("--url {}: no IPv4 address", self.url))?;
        if !address.ip().is_loopback() && !self.allow_remote {
            return Err(format!("{address} is not on this machine; --allow-remote if you may load it"));
        }
        let path = if path.is_empty() || path == "/" { self.dialect.path() } else { path };
        Ok(Target { address, host, path: path.to_owned() })
    }

    /// The secret.
    ///
    /// # Errors
    /// None was given, or its file cannot be read.
    pub fn secret(&self) -> Result<Vec<u8>, String> {
        match (&self.secret_file, &self.secret) {
            _ if self.dialect != Dialect::Antiphon => Ok(b"none is needed".to_vec()),
            (Some(path), _) => {
                let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
                Ok(text.trim().as_bytes().to_vec())
            }
            (None, Some(secret)) => Ok(secret.as_bytes().to_vec()),
            (None, None) => {
                Err("the server's secret is missing: ANTIPHON_JWT_SECRET, --secret-file or --secret".to_owned())
            }
        }
    }

    /// The addresses to connect from; empty: the kernel's choice.
    ///
    /// # Errors
    /// Not an address, or not within 127.0.0.0/8.
    pub fn sources(&self, target: &Target, clients: u32, salt: u64) -> Result<Vec<Ipv4Addr>, String> {
        match self.source_addresses.as_str() {
            "none" => Ok(Vec::new()),
            "auto" if target.address.ip().is_loopback() => Ok(crate::world::loopback_sources(clients, salt)),
            "auto" => Ok(Vec::new()),
            list => list.split(',').map(parse_source).collect(),
        }
    }

    /// Times, threads, and files that are to be written.
    ///
    /// # Errors
    /// One sentence that names the flag.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=86_400.0).contains(&self.warmup) || !(0.1..=86_400.0).contains(&self.duration) {
            return Err("--warmup must be 0 to 86400 seconds, --duration 0.1 to 86400".to_owned());
        }
        if self.threads == 0 || self.threads > 256 {
            return Err("--threads must be 1 to 256".to_owned());
        }
        self.output.check()?;
        if let Some(file) = self.json.as_deref().filter(|file| *file != "-") {
            check_writable("--json", Path::new(file))?;
        }
        if let Some(prefix) = &self.hgrm {
            check_writable("--hgrm", &crate::hgrm::file(prefix, "delivery", "whole"))?;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match self.pin.iter().find(|core| **core >= cores.max(1)) {
            Some(core) => Err(format!("--pin {core}: this machine lets us use cores 0 to {}", cores - 1)),
            None => Ok(()),
        }
    }
}

fn parse_source(text: &str) -> Result<Ipv4Addr, String> {
    match text.trim().parse::<Ipv4Addr>() {
        Ok(address) if address.is_loopback() => Ok(address),
        _ => Err(format!("--source-addresses: {text} is not an address within 127.0.0.0/8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Scenario {
        let all = ["antiphon-load"].iter().chain(args).chain(&["--secret", "s"]).copied();
        Cli::scenario_of(all)
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        for word in [
            "connect", "idle", "chat", "fanout", "resume", "slow", "echo", "presence", "inbox", "herd", "mixed",
            "soak", "EXAMPLES",
        ] {
            assert!(help.contains(word), "{word}");
        }
        for (name, ..) in crate::figures::FIGURES {
            assert!(help.split([' ', '\n']).any(|word| word == name), "{name} is not in the help");
        }
    }

    #[test]
    fn scenarios_have_their_own_defaults() {
        let cast = |args: &[&str]| parse(args).cast().unwrap();
        assert_eq!(cast(&["chat"]).traffic, Traffic::Closed { in_flight: 4 });
        assert_eq!(cast(&["chat", "--rate", "500"]).traffic, Traffic::Open { per_second: 500.0 });
        let fanout = cast(&["fanout", "--clients", "300"]);
        assert_eq!((fanout.clients, fanout.rooms_of), (300, 300));
        assert_eq!(cast(&["echo"]).rooms_of, 1);
        assert_eq!(cast(&["idle"]).traffic, Traffic::None);
        assert_eq!(cast(&["inbox"]).clients, 1_008);
        assert_eq!(cast(&["chat", "--clients", "5"]).rooms_of, 5, "no room is larger than the crowd");
    }

    #[test]
    fn nonsense_is_named() {
        for (args, word) in [
            (&["chat", "--clients", "0"][..], "--clients"),
            (&["chat", "--in-flight", "0"], "--in-flight"),
            (&["chat", "--rate", "5", "--steps", "3"], "--steps"),
            (&["chat", "--body-bytes", "15"], "--body-bytes"),
            (&["chat", "--rooms-of", "0"], "--rooms-of"),
        ] {
            assert!(parse(args).cast().unwrap_err().contains(word), "{args:?}");
        }
        for (args, word) in [
            (&["idle", "--duration", "0"][..], "--duration"),
            (&["idle", "--threads", "0"], "--threads"),
            (&["idle", "--pin", "9999"], "--pin"),
            (&["idle", "--json", "/no/such/folder/r.json"], "--json"),
            (&["idle", "--html", "/no/such/folder/r.html"], "--html"),
            (&["idle", "--hgrm", "/no/such/folder/r"], "--hgrm"),
        ] {
            assert!(parse(args).common().check().unwrap_err().contains(word), "{args:?}");
        }
        let both = ["antiphon-load", "chat", "--rate", "1", "--in-flight", "1"];
        assert!(Cli::try_parse_from(both).is_err());
    }

    #[test]
    fn what_shapes_the_work_is_kept() {
        let of = |args: &[&str]| work(&Cli::command().get_matches_from(["antiphon-load"].iter().chain(args)));
        let slow = of(&["slow", "--percent", "7", "--url", "ws://127.0.0.1:9", "--threads", "2", "--secret", "s"]);
        assert_eq!((slow["--percent"].as_str(), slow["--stall"].as_str(), slow["--warmup"].as_str()), ("7", "15", "2"));
        let strange = ["--url", "--threads", "--secret", "--dialect", "--pin", "--progress", "--json"];
        assert!(strange.iter().all(|name| !slow.contains_key(*name)), "{slow:?}");
        assert_ne!(of(&["chat", "--busy-poll"]), of(&["chat"]));
        assert_eq!(of(&["chat", "--in-flight", "4"]), of(&["chat"]), "told by the traffic");
    }

    #[test]
    fn what_would_do_nothing_is_refused() {
        let check =
            |args: &[&str]| check_useful(&Cli::command().get_matches_from(["antiphon-load"].iter().chain(args)));
        for (args, flag) in [
            (["herd", "--duration", "5"], "--duration"),
            (["connect", "--duration", "5"], "--duration"),
            (["inbox", "--warmup", "5"], "--warmup"),
            (["mixed", "--hgrm", "x"], "--hgrm"),
        ] {
            assert!(check(&args).unwrap_err().starts_with(flag), "{args:?}");
        }
        let useful = [
            ["mixed", "--duration", "5"],
            ["chat", "--hgrm", "x"],
            ["herd", "--rate", "5"],
            ["report", "a", "--assert=p99<1"],
        ];
        useful.iter().for_each(|args| assert_eq!(check(args), Ok(()), "{args:?}"));
        assert!(parse(&["connect", "--in-flight", "0"]).cast().unwrap_err().contains("--in-flight"));
    }

    #[test]
    fn compare_takes_two_sides() {
        let parse = |args: &[&str]| Cli::try_parse_from(["antiphon-load", "compare"].iter().chain(args));
        let Command::Compare(sides) = parse(&["a1,a2", "b1"]).unwrap().command else { panic!("compare was asked for") };
        assert_eq!((sides.a.0.len(), sides.b.0.len()), (2, 1));
        assert!(parse(&["a1", "a2", "b1", "b2"]).is_err() && parse(&["a1"]).is_err());
    }

    #[test]
    fn targets_are_local_unless_allowed() {
        let target = |args: &[&str]| parse(args).common().target();
        let usual = target(&["idle"]).unwrap();
        assert_eq!((usual.address.to_string(), usual.path.as_str()), ("127.0.0.1:8080".to_owned(), "/ws"));
        assert_eq!(target(&["idle", "--url", "ws://127.4.4.4:9/x/ws"]).unwrap().path, "/x/ws");
        assert!(target(&["idle", "--url", "ws://10.0.0.1:8080"]).unwrap_err().contains("--allow-remote"));
        assert!(target(&["idle", "--url", "ws://10.0.0.1:8080", "--allow-remote"]).is_ok());
        assert!(target(&["idle", "--url", "wss://127.0.0.1"]).unwrap_err().contains("ws://"));
        let common = parse(&["idle", "--source-addresses", "127.0.0.2,10.0.0.1"]);
        assert!(common.common().sources(&usual, 1, 1).unwrap_err().contains("10.0.0.1"));
    }
}
