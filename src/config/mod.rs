//! Raw text into [`Config`], once. Nothing later sees a flag, a variable or a file of settings.
//!
//! Flags go before variables (`ANTIPHON_*`), variables before `config.toml`, and that before the
//! defaults. [`knobs`] is the table of all settings, [`value`] their syntax, [`secrets`] the keys
//! that live in files; here they become the values that the parts of the server are built from.
//! Loading reads files and writes none.

pub mod knobs;
pub mod secrets;
pub mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use crate::engine::inbox::Bounds;
use crate::engine::limits::{Limits, Rate};
use crate::exit::StartError;
use crate::protocol::upgrade::Origins;
use knobs::File;
pub use knobs::{Flags, Settings};
pub use secrets::{AdminSource, KeySource};
pub use value::{Durability, LogFormat, Secret};

/// The file that is read when no `--config` is given and it exists.
pub const DEFAULT_FILE: &str = "config.toml";

/// Everything the server is told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen and keep data.
    pub server: ServerConfig,
    /// Who may connect.
    pub auth: AuthConfig,
    /// Where the admin token comes from.
    pub admin: AdminSource,
    /// How to store.
    pub store: StoreConfig,
    /// Every bound of a shard.
    pub limits: Limits,
    /// The network ring.
    pub ring: RingConfig,
    /// The log.
    pub log: LogConfig,
    /// Settings as they were given, for `--print-config`.
    pub settings: Settings,
}

/// Where to listen and keep data.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Clients. Port 0: any.
    pub listen: SocketAddr,
    /// Operators. Port 0: any.
    pub control_listen: SocketAddr,
    /// Number of shards, resolved, at least 1.
    pub shards: u16,
    /// Pin shards to cores.
    pub pin: bool,
    /// Folder of the database and the generated secrets.
    pub data_dir: PathBuf,
    /// TCP congestion control of client sockets; none: the host's.
    pub tcp_congestion: Option<String>,
    /// Bound of a graceful stop.
    pub drain: Duration,
    /// Spread of the retry times in `goaway`, ms.
    pub goaway_spread_ms: u32,
}

/// Who may connect.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Where the key comes from.
    pub key: KeySource,
    /// Required `iss`.
    pub issuer: Option<String>,
    /// Required `aud`.
    pub audience: Option<String>,
    /// Clock difference allowed, seconds.
    pub leeway_s: u32,
    /// The values of an `Origin` header that are let in, all well formed; empty: pages of the
    /// server's own port.
    pub origins: Vec<String>,
}

/// How to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// When an append counts as stored.
    pub durability: Durability,
    /// Longest wait for more appends before a commit; ten times as long while every shard is still sending.
    pub commit_window: Duration,
    /// Most appends of one commit.
    pub commit_batch_max: usize,
    /// Threads that read.
    pub reader_threads: usize,
    /// Most client_ids remembered.
    pub dedupe_entries_max: usize,
    /// Most dead letters kept.
    pub dead_letters_max: u32,
}

/// The network ring of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingConfig {
    /// Operations queued before a system call becomes necessary, a power of two.
    pub entries: u32,
    /// Receive buffers, a power of two.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: u32,
    /// How long to look for work before sleeping.
    pub spin: Duration,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// What a line looks like.
    pub format: LogFormat,
    /// Filter directives, valid.
    pub level: String,
}

impl Config {
    /// Reads the config file (if any), lays flags and variables over it and checks the whole.
    ///
    /// # Errors
    /// One sentence that names the file and line, or the knob, that is wrong.
    pub fn load(flags: &Flags) -> Result<Self, StartError> {
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        let settings = Settings::merge(flags, file).map_err(StartError::usage)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(settings, cores).map_err(StartError::usage)
    }

    /// Makes sense of `settings` for a machine with `cores` usable cores.
    ///
    /// # Errors
    /// One sentence that names the knobs in conflict.
    pub fn new(settings: Settings, cores: usize) -> Result<Self, String> {
        let server = server_config(&settings, cores)?;
        let limits = limits(&settings);
        limits.check().map_err(|rule| format!("limits.{rule}"))?;
        Ok(Self {
            auth: auth_config(&settings.auth, &server.data_dir)?,
            admin: AdminSource::choose(&settings.admin, &server.data_dir)?,
            store: StoreConfig {
                durability: settings.store.durability,
                commit_window: micros(settings.store.commit_window_us),
                commit_batch_max: settings.store.commit_batch_max as usize,
                reader_threads: usize::from(settings.store.reader_threads),
                dedupe_entries_max: settings.store.dedupe_entries_max as usize,
                dead_letters_max: settings.store.dead_letters_max,
            },
            ring: ring_config(&settings.ring)?,
            log: log_config(&settings.log)?,
            server,
            limits,
            settings,
        })
    }
}

fn server_config(settings: &Settings, cores: usize) -> Result<ServerConfig, String> {
    let server = &settings.server;
    if server.listen == server.control_listen && server.listen.port() != 0 {
        return Err(format!("server.listen and server.control_listen are both {}", server.listen));
    }
    let Some(data_dir) = server.data_dir.get() else {
        return Err("server.data_dir must not be empty".to_owned());
    };
    Ok(ServerConfig {
        listen: server.listen,
        control_listen: server.control_listen,
        shards: server.shards.resolve(cores),
        pin: server.pin.0,
        data_dir: data_dir.to_owned(),
        tcp_congestion: given(&server.tcp_congestion),
        drain: Duration::from_millis(server.drain_ms.into()),
        goaway_spread_ms: server.goaway_spread_ms,
    })
}

fn auth_config(auth: &knobs::Auth, data_dir: &Path) -> Result<AuthConfig, String> {
    Origins::parse(auth.origins.0.iter().map(String::as_str)).map_err(|wrong| format!("auth.origins: {wrong}"))?;
    Ok(AuthConfig {
        key: KeySource::choose(auth, data_dir)?,
        issuer: given(&auth.issuer),
        audience: given(&auth.audience),
        leeway_s: auth.leeway_s,
        origins: auth.origins.0.clone(),
    })
}

fn ring_config(ring: &knobs::RingSettings) -> Result<RingConfig, String> {
    for (name, number) in [("entries", ring.entries), ("buffers", ring.buffers)] {
        if !number.is_power_of_two() {
            return Err(format!("ring.{name} is {number}, but it must be a power of two"));
        }
    }
    Ok(RingConfig {
        entries: ring.entries,
        buffers: u16::try_from(ring.buffers).map_err(|_| "ring.buffers is too large".to_owned())?,
        buffer_bytes: ring.buffer_bytes,
        spin: micros(ring.spin_us),
    })
}

/// A bare word that is no level is refused here: the filter would take `warning` for the name of a module, of which
/// nothing is ever logged, and leave out everything else, errors too.
fn log_config(log: &knobs::LogSettings) -> Result<LogConfig, String> {
    let wrong = |what: &str| {
        format!(
            "log.level: {what:?} is neither a level (error, warn, info, debug, trace, off) nor a filter such as \
             info,antiphon=debug"
        )
    };
    let parts: Vec<&str> = log.level.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(wrong(&log.level));
    }
    let is_directive = |part: &str| part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok();
    if let Some(word) = parts.iter().find(|part| !is_directive(part)) {
        return Err(wrong(word));
    }
    // Without spaces, which the filter would count to the name of the module.
    let level = parts.join(",");
    match EnvFilter::builder().parse(&level) {
        Ok(_) => Ok(LogConfig { format: log.format, level }),
        Err(_) => Err(wrong(&log.level)),
    }
}

/// Empty text stands for "not set".
fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn micros(us: u32) -> Duration {
    Duration::from_micros(us.into())
}

fn limits(settings: &Settings) -> Limits {
    let l = &settings.limits;
    Limits {
        message_bytes_max: l.message_bytes_max,
        rooms_max: l.rooms_max,
        subscriptions_max: l.subscriptions_max,
        user_connections_max: l.user_connections_max,
        shard_connections_max: l.shard_connections_max,
        dedupe_window_ms: l.dedupe_window_ms,
        resume_events_max: l.resume_events_max,
        resume_bytes_max: l.resume_bytes_max,
        hello_bytes_min: l.hello_bytes_min,
        heartbeat_ms: l.heartbeat_ms,
        appends_max: l.appends_max,
        reads_max: l.reads_max,
        rates_on: l.rates.0,
        connection_rate: Rate { per_second: l.connection_rate_per_s, burst: l.connection_burst },
        user_rate: Rate { per_second: l.user_rate_per_s, burst: l.user_burst },
        errors_max: l.errors_max,
        auto_create: l.auto_create.0,
        recent_bytes_max: usize::try_from(l.recent_bytes_max).unwrap_or(usize::MAX),
        recent_ttl_ms: l.recent_ttl_ms,
        consistency_rooms_per_s: l.consistency_rooms_per_s,
        idle_unload_ms: l.idle_unload_ms,
        read_coalesce_ms: l.read_coalesce_ms,
        receipts_room_max: l.receipts_room_max,
        idle_after_ms: l.idle_after_ms,
        grace_ms: l.grace_ms,
        presence_tick_ms: l.presence_tick_ms,
        presence_refresh_ms: l.presence_refresh_ms,
        presence_room_max: l.presence_room_max,
        presence_history_days: l.presence_history_days,
        outbox_low_bytes_max: l.outbox_low_bytes_max,
        outbox_normal_bytes_max: l.outbox_normal_bytes_max,
        outbox_bytes_max: l.outbox_bytes_max,
        outbox_total_bytes_max: l.outbox_total_bytes_max,
        batch_delay_ms: l.batch_delay_ms,
        stall_ms: l.stall_ms,
        handshake_ms: l.handshake_ms,
        handshake_bytes_max: l.handshake_bytes_max,
        handshake_headers_max: l.handshake_headers_max,
        backlog_bytes_max: l.backlog_bytes_max,
        inbox: Bounds { items_max: l.inbox_items_max, bytes_max: l.inbox_bytes_max, ttl_ms: l.inbox_ttl_ms },
    }
}

/// Reads a config file.
fn read_file(path: &Path) -> Result<File, StartError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|err| StartError::usage(format!("the config file {shown} cannot be read: {err}")))?;
    parse_file(&text).map_err(|(line, what)| StartError::usage(format!("{shown} line {line}: {what}")))
}

/// The settings of a file, or the line and the sentence that is wrong with it.
fn parse_file(text: &str) -> Result<File, (usize, String)> {
    toml::from_str(text).map_err(|err| {
        let at = err.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        (line, explain(err.message()))
    })
}

/// serde's message in one line; an unknown key gets its nearest neighbour instead of a long list.
fn explain(message: &str) -> String {
    let message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let mut ticks = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), ticks.next()) {
        (true, Some(key)) => {
            let nearest = ticks.min_by_key(|known| distance(key, known)).filter(|known| distance(key, known) <= 4);
            let hint = nearest
                .map_or_else(|| "config.toml lists them all".to_owned(), |known| format!("did you mean {known}?"));
            format!("there is no setting {key}; {hint}")
        }
        _ => message,
    }
}

/// Edit distance (Levenshtein) of two short texts.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Variables that look like ours and are not: most likely misspelt. For a warning at start.
pub fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let known = Settings::default().knobs();
    names
        .filter(|name| name.starts_with("ANTIPHON_") && name != "ANTIPHON_CONFIG")
        .filter(|name| !known.iter().any(|knob| knob.env == name))
        .collect()
}

#[cfg(test)]
mod tests;
