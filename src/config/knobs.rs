//! The table of knobs: every setting once, with its flag, its variable, its default and its range.
//!
//! From one row come the flag and its help, the key in `config.toml`, the variable, the default and
//! the range check, so that none of them can be forgotten or disagree. A row is syntax and range
//! only; what the values mean together is decided in [`super::Config`].

use std::net::SocketAddr;

use serde::Deserialize;

use super::value::{Durability, FilePath, LogFormat, Origins, Secret, ShardCount, Switch, Value};

/// One row of the table, with its effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knob {
    /// Section in `config.toml`.
    pub section: &'static str,
    /// Key in the section.
    pub name: &'static str,
    /// Flag, without `--`.
    pub flag: &'static str,
    /// Environment variable.
    pub env: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Lowest and highest value of a number.
    pub range: Option<(u64, u64)>,
    /// Effective value as TOML; none when it is a secret that is set.
    pub toml: Option<String>,
    /// The value for the range check.
    number: Option<u64>,
}

impl Knob {
    /// # Errors
    /// One sentence when the number is out of its range.
    fn check(&self) -> Result<(), String> {
        match (self.number, self.range) {
            (Some(number), Some((low, high))) if !(low..=high).contains(&number) => Err(format!(
                "{}.{} (--{}, {}) is {number}, but it must be from {low} to {high}",
                self.section, self.name, self.flag, self.env
            )),
            _ => Ok(()),
        }
    }
}

/// One line, for `-h`.
fn short_help(help: &str, default: &str) -> String {
    format!("{} [{}]", help.trim_ascii(), shown(default))
}

/// Two lines, for `--help`.
fn long_help(help: &str, default: &str, range: &str, env: &str) -> String {
    format!("{}\n[default: {}{range}; env: {env}]", help.trim_ascii(), shown(default))
}

fn shown(default: &str) -> &str {
    if default.is_empty() { "none" } else { default }
}

macro_rules! section {
    (
        $(#[doc = $doc:literal])+
        $section:ident $heading:literal $settings:ident $flags:ident $file:ident {
            $(
                $(#[doc = $help:literal])+
                $name:ident: $type:ty = $default:literal $(in $low:literal to $high:literal)?,
                $flag:literal $env:literal $([$($arg:tt)*])?;
            )*
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $settings { $($(#[doc = $help])+ pub $name: $type,)* }

        #[doc = concat!("Flags and variables of `[", stringify!($section), "]`.")]
        #[derive(Debug, Clone, Default, clap::Args)]
        #[command(next_help_heading = $heading)]
        pub struct $flags {
            $(
                #[arg(
                    long = $flag,
                    env = $env,
                    hide_env = true,
                    value_name = <$type as Value>::PLACEHOLDER,
                    help = short_help(concat!($($help),+), $default),
                    long_help = long_help(concat!($($help),+), $default, concat!($("; ", $low, " to ", $high)?), $env),
                    $($($arg)*)?
                )]
                $(#[doc = $help])+
                pub $name: Option<$type>,
            )*
        }

        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $file { $($name: Option<$type>,)* }

        impl Default for $settings {
            fn default() -> Self {
                Self { $($name: $default.parse().expect("every default is checked by a test"),)* }
            }
        }

        impl $settings {
            /// Flags over file over defaults.
            fn merge(flags: &$flags, file: $file) -> Self {
                let default = Self::default();
                Self { $($name: flags.$name.clone().or(file.$name).unwrap_or(default.$name),)* }
            }

            /// The rows of the section.
            fn knobs(&self) -> impl Iterator<Item = Knob> {
                #[allow(unused_mut, unused_assignments)]
                [$(Knob {
                    section: stringify!($section),
                    name: stringify!($name),
                    flag: $flag,
                    env: $env,
                    help: concat!($($help),+).trim_ascii(),
                    range: { let mut range = None; $(range = Some(($low, $high));)? range },
                    toml: self.$name.toml(),
                    number: self.$name.number(),
                },)*].into_iter()
            }
        }
    };
}

section! {
    /// Where the process listens and keeps its data.
    server "Server" Server ServerFlags ServerFile {
        /// Where clients connect; port 0 takes a free one
        listen: SocketAddr = "127.0.0.1:8080", "listen" "ANTIPHON_LISTEN";
        /// Where operators connect: metrics, health, admin API
        control_listen: SocketAddr = "127.0.0.1:8081", "control-listen" "ANTIPHON_CONTROL_LISTEN";
        /// Threads that serve clients; auto is one a core, less one from four cores on
        shards: ShardCount = "auto", "shards" "ANTIPHON_SHARDS";
        /// Keep each shard on a core of its own (when there are enough)
        pin: Switch = "on", "pin" "ANTIPHON_PIN" [num_args = 0..=1, default_missing_value = "on"];
        /// Folder of the database and the generated secrets
        data_dir: FilePath = "./data", "data-dir" "ANTIPHON_DATA_DIR";
        /// TCP congestion control of client sockets, such as cubic; empty: the host's
        tcp_congestion: String = "", "tcp-congestion" "ANTIPHON_TCP_CONGESTION" [hide_short_help = true];
        /// How long a graceful stop may take, milliseconds
        drain_ms: u32 = "10000" in 0 to 600000, "drain-ms" "ANTIPHON_DRAIN_MS";
        /// Clients told to go away come back spread over so many milliseconds
        goaway_spread_ms: u32 = "5000" in 0 to 600000, "goaway-spread-ms" "ANTIPHON_GOAWAY_SPREAD_MS";
    }
}

section! {
    /// Who may connect. At most one of the four keys is set; none: a development secret is made.
    auth "Tokens" Auth AuthFlags AuthFile {
        /// HS256 secret, at least 32 bytes (seen by `ps` as a flag: prefer the variable or the file)
        jwt_secret: Secret = "", "jwt-secret" "ANTIPHON_JWT_SECRET";
        /// File that holds the HS256 secret
        jwt_secret_file: FilePath = "", "jwt-secret-file" "ANTIPHON_JWT_SECRET_FILE";
        /// PEM file of a public key; its kind fixes the algorithm: RS256, ES256, ES384 or EdDSA
        jwt_public_key_file: FilePath = "", "jwt-public-key-file" "ANTIPHON_JWT_PUBLIC_KEY_FILE";
        /// JWKS file of public keys, chosen by `kid`
        jwks_file: FilePath = "", "jwks-file" "ANTIPHON_JWKS_FILE";
        /// Required `iss` claim; empty: not checked
        issuer: String = "", "issuer" "ANTIPHON_ISSUER";
        /// Required `aud` claim; empty: not checked
        audience: String = "", "audience" "ANTIPHON_AUDIENCE";
        /// Clock difference allowed in `exp` and `nbf`, seconds
        leeway_s: u32 = "5" in 0 to 300, "leeway-s" "ANTIPHON_LEEWAY_S";
        /// Origins whose pages may connect, as browsers send them, or *; none: those of the own port
        origins: Origins = "", "origins" "ANTIPHON_ORIGINS";
    }
}

section! {
    /// Who may use the admin API. Neither set: a token is made in the data folder.
    admin "Admin API" Admin AdminFlags AdminFile {
        /// Bearer token of the admin API, at least 16 bytes (prefer the variable or the file)
        token: Secret = "", "admin-token" "ANTIPHON_ADMIN_TOKEN";
        /// File that holds the admin token
        token_file: FilePath = "", "admin-token-file" "ANTIPHON_ADMIN_TOKEN_FILE";
    }
}

section! {
    /// How messages are made durable.
    store "Store" Store StoreFlags StoreFile {
        /// full: acknowledged after fsync; relaxed: a power cut may lose the last moments
        durability: Durability = "full", "durability" "ANTIPHON_DURABILITY";
        /// Longest wait for more appends before a commit, microseconds; ten times as long while every shard is still sending
        commit_window_us: u32 = "2000" in 0 to 100000, "commit-window-us" "ANTIPHON_COMMIT_WINDOW_US" [hide_short_help = true];
        /// Most appends of one commit
        commit_batch_max: u32 = "4096" in 1 to 65536, "commit-batch-max" "ANTIPHON_COMMIT_BATCH_MAX" [hide_short_help = true];
        /// Threads that read history
        reader_threads: u16 = "2" in 1 to 64, "reader-threads" "ANTIPHON_READER_THREADS" [hide_short_help = true];
        /// Most client_ids remembered; past it the oldest are forgotten early
        dedupe_entries_max: u32 = "1000000" in 1000 to 100000000, "dedupe-entries-max" "ANTIPHON_DEDUPE_ENTRIES_MAX" [hide_short_help = true];
        /// Dead letters that are kept; past it the oldest go
        dead_letters_max: u32 = "10000" in 0 to 100000, "dead-letters-max" "ANTIPHON_DEAD_LETTERS_MAX" [hide_short_help = true];
    }
}

section! {
    /// Bounds of what one client, user or shard may use.
    limits "Limits" LimitSettings LimitFlags LimitFile {
        /// Enforce the rates below (off: for benchmarks)
        rates: Switch = "on", "rate-limits" "ANTIPHON_RATE_LIMITS";
        /// Commands a connection may send, per second
        connection_rate_per_s: u32 = "200" in 1 to 1000000, "connection-rate-per-s" "ANTIPHON_CONNECTION_RATE_PER_S" [hide_short_help = true];
        /// Commands a connection may send at once
        connection_burst: u32 = "400" in 1 to 1000000, "connection-burst" "ANTIPHON_CONNECTION_BURST" [hide_short_help = true];
        /// Messages and events a user may send over all connections, per second
        user_rate_per_s: u32 = "100" in 1 to 1000000, "user-rate-per-s" "ANTIPHON_USER_RATE_PER_S" [hide_short_help = true];
        /// Messages and events a user may send at once
        user_burst: u32 = "200" in 1 to 1000000, "user-burst" "ANTIPHON_USER_BURST" [hide_short_help = true];
        /// Bad commands in a row that close a connection (4007)
        errors_max: u32 = "256" in 1 to 1000000, "errors-max" "ANTIPHON_ERRORS_MAX" [hide_short_help = true];
        /// Largest frame from a client, bytes
        message_bytes_max: u32 = "16384" in 12288 to 1048576, "message-bytes-max" "ANTIPHON_MESSAGE_BYTES_MAX" [hide_short_help = true];
        /// Joining a public room that does not exist creates it
        auto_create: Switch = "on", "auto-create" "ANTIPHON_AUTO_CREATE" [hide_short_help = true];
        /// Rooms a user may be a member of
        rooms_max: u32 = "256" in 1 to 100000, "rooms-max" "ANTIPHON_ROOMS_MAX" [hide_short_help = true];
        /// Rooms a connection may be subscribed to
        subscriptions_max: u32 = "256" in 1 to 100000, "subscriptions-max" "ANTIPHON_SUBSCRIPTIONS_MAX" [hide_short_help = true];
        /// Connections a user may have (4005)
        user_connections_max: u32 = "32" in 1 to 100000, "user-connections-max" "ANTIPHON_USER_CONNECTIONS_MAX" [hide_short_help = true];
        /// Connections a shard may have (4100)
        shard_connections_max: u32 = "1000000" in 1 to 10000000, "shard-connections-max" "ANTIPHON_SHARD_CONNECTIONS_MAX" [hide_short_help = true];
        /// How long a client_id is remembered, milliseconds
        dedupe_window_ms: u32 = "600000" in 1000 to 86400000, "dedupe-window-ms" "ANTIPHON_DEDUPE_WINDOW_MS" [hide_short_help = true];
        /// Most entries a resume replays; past it recovered:false
        resume_events_max: u32 = "500" in 1 to 10000, "resume-events-max" "ANTIPHON_RESUME_EVENTS_MAX" [hide_short_help = true];
        /// Most bytes a resume replays; past it recovered:false
        resume_bytes_max: u32 = "1048576" in 16384 to 67108864, "resume-bytes-max" "ANTIPHON_RESUME_BYTES_MAX" [hide_short_help = true];
        /// Items that may wait in a user's inbox
        inbox_items_max: u32 = "1000" in 1 to 10000, "inbox-items-max" "ANTIPHON_INBOX_ITEMS_MAX" [hide_short_help = true];
        /// Bytes of names and data that may wait in a user's inbox
        inbox_bytes_max: u32 = "1048576" in 4160 to 16777216, "inbox-bytes-max" "ANTIPHON_INBOX_BYTES_MAX" [hide_short_help = true];
        /// Life of an inbox item that names none, milliseconds
        inbox_ttl_ms: u32 = "604800000" in 1000 to 2592000000, "inbox-ttl-ms" "ANTIPHON_INBOX_TTL_MS" [hide_short_help = true];
        /// hello is filled up to as many bytes, so that clients see a full segment; 0: never
        hello_bytes_min: u32 = "1460" in 0 to 8192, "hello-bytes-min" "ANTIPHON_HELLO_BYTES_MIN" [hide_short_help = true];
        /// Between pings, milliseconds; two intervals without a byte close (4104)
        heartbeat_ms: u32 = "25000" in 1000 to 600000, "heartbeat-ms" "ANTIPHON_HEARTBEAT_MS" [hide_short_help = true];
        /// Appends of a shard that the store may owe an answer; past it busy
        appends_max: u32 = "16384" in 1 to 1000000, "appends-max" "ANTIPHON_APPENDS_MAX" [hide_short_help = true];
        /// Reads of a shard that the store may owe an answer; past it busy
        reads_max: u32 = "16384" in 1 to 1000000, "reads-max" "ANTIPHON_READS_MAX" [hide_short_help = true];
        /// Recent entries a shard keeps in memory for resumes, bytes
        recent_bytes_max: u64 = "16777216" in 0 to 17179869184, "recent-bytes-max" "ANTIPHON_RECENT_BYTES_MAX" [hide_short_help = true];
        /// How long a shard keeps them, milliseconds
        recent_ttl_ms: u32 = "120000" in 0 to 86400000, "recent-ttl-ms" "ANTIPHON_RECENT_TTL_MS" [hide_short_help = true];
        /// Rooms each shard compares with the store a second, in the background; 0 = none
        consistency_rooms_per_s: u32 = "4" in 0 to 1000, "consistency-rooms-per-s" "ANTIPHON_CONSISTENCY_ROOMS_PER_S" [hide_short_help = true];
        /// Rooms and users without connections leave memory after, milliseconds; where there are thousands, up to a minute later
        idle_unload_ms: u32 = "60000" in 0 to 86400000, "idle-unload-ms" "ANTIPHON_IDLE_UNLOAD_MS" [hide_short_help = true];
        /// read:advanced waits for a later one, milliseconds
        read_coalesce_ms: u32 = "200" in 0 to 60000, "read-coalesce-ms" "ANTIPHON_READ_COALESCE_MS" [hide_short_help = true];
        /// Members of a room above which only a user's own devices hear how far the user has read
        receipts_room_max: u32 = "100" in 0 to 10000, "receipts-room-max" "ANTIPHON_RECEIPTS_ROOM_MAX" [hide_short_help = true];
        /// Without activity for so long a device counts as away, milliseconds
        idle_after_ms: u32 = "300000" in 1000 to 86400000, "idle-after-ms" "ANTIPHON_IDLE_AFTER_MS" [hide_short_help = true];
        /// A device that lost its connection still counts as present for so long, milliseconds
        grace_ms: u32 = "10000" in 0 to 600000, "grace-ms" "ANTIPHON_GRACE_MS" [hide_short_help = true];
        /// Changes of presence are gathered for so long, milliseconds
        presence_tick_ms: u32 = "100" in 10 to 60000, "presence-tick-ms" "ANTIPHON_PRESENCE_TICK_MS" [hide_short_help = true];
        /// Shards compare their views of presence at this interval, milliseconds
        presence_refresh_ms: u32 = "5000" in 500 to 600000, "presence-refresh-ms" "ANTIPHON_PRESENCE_REFRESH_MS" [hide_short_help = true];
        /// Members of a room above which watchers of its presence get counts only
        presence_room_max: u32 = "1000" in 0 to 10000, "presence-room-max" "ANTIPHON_PRESENCE_ROOM_MAX" [hide_short_help = true];
        /// Changes of presence are kept for so many days; 0 keeps none
        presence_history_days: u32 = "30" in 0 to 365, "presence-history-days" "ANTIPHON_PRESENCE_HISTORY_DAYS" [hide_short_help = true];
        /// Waiting bytes of a connection past which low events are merged and dropped
        outbox_low_bytes_max: u32 = "262144" in 4096 to 1073741824, "outbox-low-bytes-max" "ANTIPHON_OUTBOX_LOW_BYTES_MAX" [hide_short_help = true];
        /// Waiting bytes of a connection past which messages are dropped for a gap event
        outbox_normal_bytes_max: u32 = "2097152" in 4096 to 1073741824, "outbox-normal-bytes-max" "ANTIPHON_OUTBOX_NORMAL_BYTES_MAX" [hide_short_help = true];
        /// Waiting bytes of a connection past which it is closed (4102)
        outbox_bytes_max: u32 = "4194304" in 4096 to 2147483648, "outbox-bytes-max" "ANTIPHON_OUTBOX_BYTES_MAX" [hide_short_help = true];
        /// Bytes of the whole process that may wait for clients that do not read; past it the largest outboxes shed first
        outbox_total_bytes_max: u64 = "536870912" in 4096 to 1099511627776, "outbox-total-bytes-max" "ANTIPHON_OUTBOX_TOTAL_BYTES_MAX" [hide_short_help = true];
        /// Low-priority events, joins and leaves wait so long for others to travel with, milliseconds
        batch_delay_ms: u32 = "50" in 0 to 10000, "batch-delay-ms" "ANTIPHON_BATCH_DELAY_MS" [hide_short_help = true];
        /// A full socket without progress is closed (4102) after, milliseconds
        stall_ms: u32 = "10000" in 100 to 600000, "stall-ms" "ANTIPHON_STALL_MS" [hide_short_help = true];
        /// Time for the HTTP upgrade, milliseconds
        handshake_ms: u32 = "10000" in 100 to 600000, "handshake-ms" "ANTIPHON_HANDSHAKE_MS" [hide_short_help = true];
        /// Size of the HTTP request head, bytes
        handshake_bytes_max: u32 = "16384" in 1024 to 1048576, "handshake-bytes-max" "ANTIPHON_HANDSHAKE_BYTES_MAX" [hide_short_help = true];
        /// Header lines of the HTTP request
        handshake_headers_max: u32 = "64" in 8 to 128, "handshake-headers-max" "ANTIPHON_HANDSHAKE_HEADERS_MAX" [hide_short_help = true];
        /// Unparsed bytes of a parked connection past which its socket is not read
        backlog_bytes_max: u32 = "65536" in 12288 to 16777216, "backlog-bytes-max" "ANTIPHON_BACKLOG_BYTES_MAX" [hide_short_help = true];
    }
}

section! {
    /// How a shard meets its sockets.
    ring "Network ring" RingSettings RingFlags RingFile {
        /// Operations queued before a system call becomes necessary; a power of two
        entries: u32 = "1024" in 16 to 32768, "ring-entries" "ANTIPHON_RING_ENTRIES" [hide_short_help = true];
        /// Receive buffers of a shard, at most; a power of two
        buffers: u32 = "1024" in 16 to 32768, "ring-buffers" "ANTIPHON_RING_BUFFERS" [hide_short_help = true];
        /// Size of a receive buffer, bytes
        buffer_bytes: u32 = "2048" in 512 to 65536, "ring-buffer-bytes" "ANTIPHON_RING_BUFFER_BYTES" [hide_short_help = true];
        /// Look for work so long before sleeping, microseconds; lower latency for CPU time
        spin_us: u32 = "0" in 0 to 10000, "spin-us" "ANTIPHON_SPIN_US" [hide_short_help = true];
    }
}

section! {
    /// What is logged, on standard error.
    log "Log" LogSettings LogFlags LogFile {
        /// One line an event, for people or for programs
        format: LogFormat = "text", "log-format" "ANTIPHON_LOG_FORMAT";
        /// error, warn, info, debug, trace, or by module: info,antiphon::shard=debug
        level: String = "info", "log-level" "ANTIPHON_LOG_LEVEL";
    }
}

/// Every flag and variable of every section.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// The config file.
    #[arg(
        long,
        env = "ANTIPHON_CONFIG",
        hide_env = true,
        value_name = "PATH",
        help = "TOML file with settings [config.toml, if there]",
        long_help = "TOML file with settings; flags and variables go before it\n[default: config.toml, if there; env: ANTIPHON_CONFIG]"
    )]
    pub config: Option<std::path::PathBuf>,
    /// `[server]`
    #[command(flatten)]
    pub server: ServerFlags,
    /// `[auth]`
    #[command(flatten)]
    pub auth: AuthFlags,
    /// `[admin]`
    #[command(flatten)]
    pub admin: AdminFlags,
    /// `[store]`
    #[command(flatten)]
    pub store: StoreFlags,
    /// `[limits]`
    #[command(flatten)]
    pub limits: LimitFlags,
    /// `[ring]`
    #[command(flatten)]
    pub ring: RingFlags,
    /// `[log]`
    #[command(flatten)]
    pub log: LogFlags,
}

/// A `config.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    server: ServerFile,
    auth: AuthFile,
    admin: AdminFile,
    store: StoreFile,
    limits: LimitFile,
    ring: RingFile,
    log: LogFile,
}

/// Every knob's effective value: checked for syntax and range, not yet for sense.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[auth]`
    pub auth: Auth,
    /// `[admin]`
    pub admin: Admin,
    /// `[store]`
    pub store: Store,
    /// `[limits]`
    pub limits: LimitSettings,
    /// `[ring]`
    pub ring: RingSettings,
    /// `[log]`
    pub log: LogSettings,
}

impl Settings {
    /// Flags over `file` over defaults.
    ///
    /// # Errors
    /// One sentence that names the knob that is out of its range.
    pub(super) fn merge(flags: &Flags, file: File) -> Result<Self, String> {
        let settings = Self {
            server: Server::merge(&flags.server, file.server),
            auth: Auth::merge(&flags.auth, file.auth),
            admin: Admin::merge(&flags.admin, file.admin),
            store: Store::merge(&flags.store, file.store),
            limits: LimitSettings::merge(&flags.limits, file.limits),
            ring: RingSettings::merge(&flags.ring, file.ring),
            log: LogSettings::merge(&flags.log, file.log),
        };
        settings.knobs().iter().try_for_each(Knob::check)?;
        Ok(settings)
    }

    /// The whole table, in the order of `config.toml`.
    pub fn knobs(&self) -> Vec<Knob> {
        self.server
            .knobs()
            .chain(self.auth.knobs())
            .chain(self.admin.knobs())
            .chain(self.store.knobs())
            .chain(self.limits.knobs())
            .chain(self.ring.knobs())
            .chain(self.log.knobs())
            .collect()
    }

    /// The settings as a `config.toml` that can be read back. Secrets are left out and named.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for knob in self.knobs() {
            if knob.section != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                section = knob.section;
                out.push_str(&format!("{gap}[{section}]\n"));
            }
            match knob.toml {
                Some(value) => out.push_str(&format!("{} = {value}\n", knob.name)),
                None => out.push_str(&format!("# {} is set; not shown\n", knob.name)),
            }
        }
        out
    }
}
