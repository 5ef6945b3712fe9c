//! The whole process: who is started, in which order, and how it all stops.
//!
//! ```text
//!  main thread      starts everything, then waits for a signal
//!  antiphon-shard-N one pinned executor each (shard::driver)
//!  antiphon-store   the persistence core, its readers and its checkpointer (store)
//!  antiphon-control admin API, metrics, health (control)
//! ```
//! Stop (SIGTERM, SIGINT): no longer ready → shards stop accepting and send `goaway` with spread
//! retry times → what is under way is committed and acknowledged → everybody is closed with 4200 →
//! the store flushes → exit 0. A second signal, or the bound `drain_ms`, cuts it short.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::sync::oneshot;

use crate::cli::serve::{Started, announce};
use crate::config::secrets::{KeyMaterial, make_data_dir};
use crate::config::{Config, Durability};
use crate::control::ports::{AdminResult, Answer, Cluster, Ready};
use crate::control::{self, in_words};
use crate::engine::event::{AdminAct, Genesis, ShardId};
use crate::engine::stats::{LatencySummary, Stats, StoreStats};
use crate::exit::{Exit, StartError};
use crate::gateway::token::{Rules, Verifier};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::upgrade::Origins;
use crate::shard::cores;
use crate::shard::driver::{Driver, Setup};
use crate::shard::mail::{Inbox, Letter, Port, mailbox};
use crate::shard::probe::probe;
use crate::shard::ring::RingConfig;
use crate::shard::socket;
use crate::store::{LogListener, OpenError, Origin, RunningLog, SqliteLog, StoreConfig};

/// Time after CloseAll for close frames to be sent and answered.
const CLOSE_WAIT: Duration = Duration::from_millis(500);
/// What an executor's own rings get; only its start and end use them.
const EXECUTOR_IO_BYTES: usize = 64 * 1024;
const EXECUTOR_RING_DEPTH: usize = 8;
/// How often the drain looks whether everybody has gone.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Runs the server until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting, as one sentence with its exit code.
pub fn run(config: Config) -> Result<Exit, StartError> {
    let kernel = probe().map_err(|why| StartError::new(Exit::Environment, why))?;
    tracing::info!(%kernel, shards = config.server.shards, "starting");
    // Signals that come while starting wait in here.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])
        .map_err(|err| StartError::new(Exit::Environment, format!("signals cannot be caught: {err}")))?;
    let control_listener = control::bind(config.server.control_listen)?;
    let (listen, listeners) = bind(&config)?;
    make_data_dir(&config.server.data_dir)?;
    let key = config.auth.key.load()?;
    let admin = config.admin.load()?;
    let verifier = Arc::new(verifier(&config, &key.value)?);
    let origins = Arc::new(origins(&config, listen)?);

    let (log, origin) = SqliteLog::open(&store_config(&config)).map_err(store_error)?;
    tracing::info!(
        epoch = origin.epoch.as_str(),
        position = origin.position,
        client_ids = origin.dedupe_entries,
        presence_lost = origin.presence_lost,
        took_ms = origin.took.as_millis() as u64,
        "log open"
    );
    let mailboxes = (0..config.server.shards)
        .map(|_| mailbox())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|err| StartError::new(Exit::Environment, format!("out of descriptors: {err}")))?;
    let (ports, inboxes): (Vec<Port>, Vec<Inbox>) = mailboxes.into_iter().unzip();
    let ears = ports.iter().map(|port| Box::new(port.clone()) as Box<dyn LogListener>).collect();
    let running = log.start(ears).map_err(store_error)?;

    let is_ready = Arc::new(AtomicBool::new(false));
    let shards = Shards { config: &config, ports: &ports, origin: &origin, log: running.log(), is_ready: &is_ready };
    let threads = shards.start(inboxes, listeners, &verifier, &origins)?;
    let cluster = Arc::new(Process {
        ports: ports.clone(),
        log: running.log(),
        origin_position: origin.position,
        is_ready: is_ready.clone(),
        is_draining: AtomicBool::new(false),
    });
    let control = control::spawn(control_listener, admin.value, cluster.clone())?;
    is_ready.store(true, Ordering::Relaxed);
    announce(&Started {
        config: &config,
        listen,
        control: control.address(),
        key_is_new: key.is_new,
        admin_is_new: admin.is_new,
    });

    let signal = signals.forever().next();
    tracing::info!(signal, "stopping");
    cluster.is_draining.store(true, Ordering::Relaxed);
    is_ready.store(false, Ordering::Relaxed);
    drain(&config, &ports, &mut signals);
    finish(&ports, threads, running);
    drop(control);
    tracing::info!("stopped");
    Ok(Exit::Ok)
}

/// Binds one listener a shard, all to the same port.
fn bind(config: &Config) -> Result<(SocketAddr, Vec<OwnedFd>), StartError> {
    let address = config.server.listen;
    let failed = |err: std::io::Error| StartError::new(Exit::Port, format!("{address}: {}", in_words(&err)));
    // SO_REUSEPORT would let a second server of the same user share the port unseen: a plain bind
    // finds out.
    drop(TcpListener::bind(address).map_err(failed)?);
    let congestion = config.server.tcp_congestion.as_deref();
    let first = socket::listen(address, congestion).map_err(failed)?;
    let bound = socket::bound_address(&first).map_err(failed)?;
    let mut listeners = vec![first];
    for _ in 1..config.server.shards {
        listeners.push(socket::listen(bound, congestion).map_err(failed)?);
    }
    Ok((bound, listeners))
}

fn verifier(config: &Config, key: &KeyMaterial) -> Result<Verifier, StartError> {
    let rules = Rules {
        issuer: config.auth.issuer.clone(),
        audience: config.auth.audience.iter().cloned().collect(),
        leeway_ms: config.auth.leeway_s.saturating_mul(1_000),
    };
    let verifier = match key {
        KeyMaterial::Hs256(secret) => Verifier::from_secret(secret.reveal().as_bytes(), rules),
        KeyMaterial::PublicKeyPem(pem) => Verifier::from_pem(pem, rules),
        KeyMaterial::Jwks(json) => Verifier::from_jwks(json, rules),
    };
    verifier.map_err(|err| StartError::usage(format!("{}: {err}", config.auth.key.describe())))
}

/// The configured origins; without any, pages of this host's own port.
fn origins(config: &Config, listen: SocketAddr) -> Result<Origins, StartError> {
    if config.auth.origins.is_empty() {
        return Ok(Origins::local(listen.port()));
    }
    Origins::parse(config.auth.origins.iter().map(String::as_str)).map_err(StartError::usage)
}

fn store_config(config: &Config) -> StoreConfig {
    let mut store = StoreConfig::new(&config.server.data_dir);
    store.durability = match config.store.durability {
        Durability::Full => crate::store::Durability::Full,
        Durability::Relaxed => crate::store::Durability::Relaxed,
    };
    store.commit_window_us = config.store.commit_window.as_micros() as u32;
    store.batch_appends_max = config.store.commit_batch_max;
    store.readers = config.store.reader_threads;
    // A shard keeps its own count of what is unanswered; each push is at least one of those.
    store.inbox_max = config.limits.appends_max as usize * usize::from(config.server.shards);
    store.reads_waiting_max = config.limits.reads_max as usize * usize::from(config.server.shards);
    store.core = config.server.pin.then(|| cores::nth(&cores::allowed(), usize::from(config.server.shards)));
    store.dead_letters_max = config.store.dead_letters_max;
    store.sequencer.shards = config.server.shards;
    store.sequencer.dedupe_window_ms = config.limits.dedupe_window_ms;
    store.sequencer.dedupe_entries_max = config.store.dedupe_entries_max;
    store.sequencer.rooms_max = config.limits.rooms_max;
    store.sequencer.inbox = config.limits.inbox;
    store.sequencer.seed = random_seed();
    store.presence_days = config.limits.presence_history_days;
    store.fatal = Arc::new(fatal);
    store
}

/// Something happened after which the process must not go on: say it, and end at once. Whatever was
/// acknowledged is on the disk; nothing else was promised.
fn fatal(why: &str) {
    tracing::error!("{why}");
    crate::logging::flush();
    eprintln!("antiphon: {why}");
    std::process::exit(i32::from(Exit::Failure as u8));
}

fn random_seed() -> u64 {
    let mut seed = [0; 8];
    // Without the system's randomness the clock must do: seeds only keep phases and ids apart.
    if getrandom::fill(&mut seed).is_err() {
        return std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    }
    u64::from_ne_bytes(seed)
}

fn store_error(error: OpenError) -> StartError {
    StartError::new(Exit::DataDir, error.to_string())
}

/// What starting the shards takes.
struct Shards<'a> {
    config: &'a Config,
    ports: &'a [Port],
    origin: &'a Origin,
    log: Arc<SqliteLog>,
    is_ready: &'a Arc<AtomicBool>,
}

type ShardThread = ExecutorJoinHandle<()>;

impl Shards<'_> {
    /// Starts one executor a shard, and waits until each one accepts.
    fn start(
        &self,
        inboxes: Vec<Inbox>,
        listeners: Vec<OwnedFd>,
        verifier: &Arc<Verifier>,
        origins: &Arc<Origins>,
    ) -> Result<Vec<ShardThread>, StartError> {
        let limits = Arc::new(self.config.limits.clone());
        let cores = cores::allowed();
        let mut threads = Vec::with_capacity(inboxes.len());
        let mut reports = Vec::with_capacity(inboxes.len());
        for ((number, inbox), listener) in (0..).zip(inboxes).zip(listeners) {
            let setup = Setup {
                genesis: self.genesis(ShardId(number)),
                limits: limits.clone(),
                verifier: verifier.clone(),
                origins: origins.clone(),
                ring: RingConfig {
                    entries: self.config.ring.entries,
                    buffers: self.config.ring.buffers,
                    buffer_bytes: self.config.ring.buffer_bytes,
                },
                spin_us: self.config.ring.spin.as_micros() as u32,
                listener,
                inbox,
                peers: self.ports.to_vec(),
                log: self.log.clone(),
                is_ready: self.is_ready.clone(),
            };
            let placement = match self.config.server.pin {
                true => Placement::Fixed(cores::nth(&cores, usize::from(number))),
                false => Placement::Unbound,
            };
            let (started, report) = flume::bounded(1);
            let thread = LocalExecutorBuilder::new(placement)
                .name(&format!("antiphon-shard-{number}"))
                // The shard has a ring of its own: the executor's needs next to no memory.
                .io_memory(EXECUTOR_IO_BYTES)
                .ring_depth(EXECUTOR_RING_DEPTH)
                .spawn(move || async move { run_shard(number, setup, &started) })
                .map_err(|err| did_not_start(number, &err))?;
            threads.push(thread);
            reports.push(report);
        }
        for (number, report) in (0..).zip(reports) {
            match report.recv() {
                Ok(report) => report?,
                // An executor that cannot be made ends its thread, and only the thread's own result says why.
                Err(_) => {
                    let ended = threads.swap_remove(usize::from(number)).join();
                    let why = ended.err().map_or_else(|| "it ended".to_owned(), |err| err.to_string());
                    return Err(did_not_start(number, &why));
                }
            }
        }
        Ok(threads)
    }

    fn genesis(&self, shard: ShardId) -> Genesis {
        Genesis {
            shard,
            shards: self.config.server.shards,
            seed: random_seed(),
            epoch: self.origin.epoch.clone(),
            position: self.origin.position,
            revocations: self.origin.revocations.clone(),
            notes_messages: tracing::enabled!(tracing::Level::TRACE),
        }
    }
}

/// Mostly it is locked memory or descriptors that are missing.
fn did_not_start(number: u16, why: &dyn std::fmt::Display) -> StartError {
    let advice = "`antiphon check` says what the machine lacks";
    StartError::new(Exit::Environment, format!("shard {number} did not start: {why}; {advice}"))
}

/// The body of a shard's thread. A shard that fails takes the process with it: its users have no
/// other home.
fn run_shard(number: u16, setup: Setup, started: &flume::Sender<Result<(), StartError>>) {
    let body = std::panic::AssertUnwindSafe(|| {
        let driver = match Driver::new(setup) {
            Ok(driver) => driver,
            Err(err) => {
                let _ = started.send(Err(did_not_start(number, &format!("no network ring: {err}"))));
                return Ok(());
            }
        };
        let _ = started.send(Ok(()));
        driver.run()
    });
    match std::panic::catch_unwind(body) {
        Ok(Ok(())) => {}
        Ok(Err(err)) => fatal(&format!("shard {number} cannot go on: {err}")),
        Err(_) => fatal(&format!("shard {number} panicked")),
    }
}

/// Sends everybody away, and waits until they have gone or the time is over.
fn drain(config: &Config, ports: &[Port], signals: &mut signal_hook::iterator::Signals) {
    let until = Instant::now() + config.server.drain;
    let spread_ms = config.server.goaway_spread_ms;
    for port in ports {
        port.post_waiting(Letter::Drain { spread_ms });
    }
    while Instant::now() < until && signals.pending().next().is_none() {
        let sessions: u64 = ports.iter().filter_map(stats_of).map(|stats| stats.sessions + stats.appends_pending).sum();
        if sessions == 0 {
            break;
        }
        std::thread::sleep(DRAIN_POLL);
    }
    for port in ports {
        port.post_waiting(Letter::CloseAll);
    }
    let until = Instant::now() + CLOSE_WAIT;
    // What is to be kept of the end of everybody's presence is among the appends.
    let is_open = |stats: Box<Stats>| stats.connections > 0 || stats.appends_pending > 0;
    while Instant::now() < until && ports.iter().filter_map(stats_of).any(is_open) {
        std::thread::sleep(DRAIN_POLL);
    }
}

fn stats_of(port: &Port) -> Option<Box<Stats>> {
    let (answer, answered) = flume::bounded(1);
    let letter = Letter::Stats(Box::new(move |stats| {
        let _ = answer.send(stats);
    }));
    port.post(letter).ok()?;
    answered.recv_timeout(Duration::from_secs(1)).ok()
}

/// The store first, while the shards still listen; then the shards.
fn finish(ports: &[Port], threads: Vec<ShardThread>, running: RunningLog) {
    running.stop();
    for port in ports {
        port.post_waiting(Letter::Stop);
    }
    for thread in threads {
        if let Err(err) = thread.join() {
            tracing::error!(%err, "a shard did not end well");
        }
    }
}

/// The running process, as the control thread sees it.
struct Process {
    ports: Vec<Port>,
    log: Arc<SqliteLog>,
    origin_position: u64,
    is_ready: Arc<AtomicBool>,
    is_draining: AtomicBool,
}

impl Process {
    fn port(&self, shard: ShardId) -> Option<&Port> {
        self.ports.get(usize::from(shard.0))
    }
}

impl Cluster for Process {
    fn shards(&self) -> u16 {
        self.ports.len() as u16
    }

    fn admin(&self, shard: ShardId, act: AdminAct) -> Answer<AdminResult> {
        let (answer, receiver) = oneshot::channel();
        let letter = Letter::Admin(
            act,
            Box::new(move |result| {
                let _ = answer.send(result);
            }),
        );
        match self.port(shard).map(|port| port.post(letter)) {
            Some(Ok(())) => receiver,
            Some(Err(Letter::Admin(_, answer))) => {
                answer(Err(Refusal::new(ErrorCode::Busy, "the shard's queue is full").retry_after(200)));
                receiver
            }
            _ => receiver,
        }
    }

    fn shard_stats(&self, shard: ShardId) -> Answer<Stats> {
        let (answer, receiver) = oneshot::channel();
        let letter = Letter::Stats(Box::new(move |stats| {
            let _ = answer.send(*stats);
        }));
        if let Some(port) = self.port(shard) {
            // A letter that comes back is dropped, which the receiver sees.
            let _ = port.post(letter);
        }
        receiver
    }

    fn store_stats(&self) -> StoreStats {
        let stats = self.log.stats();
        StoreStats {
            position: self.origin_position + stats.rows,
            degraded: u64::from(stats.degraded),
            inbox_len: stats.inbox_len,
            reads_waiting: stats.reads_waiting,
            dedupe_entries: stats.dedupe_entries,
            wal_bytes: stats.wal_bytes,
            batches: stats.batches,
            rows: stats.rows,
            bytes: stats.bytes,
            appends: stats.appends,
            duplicates: stats.duplicates,
            refused: stats.refused,
            failures: stats.failures,
            adopted: stats.adopted,
            inbox_full: stats.inbox_full,
            dedupe_evicted: stats.dedupe_evicted,
            items_refused: stats.items_refused,
            items_evicted: stats.items_evicted,
            items_expired: stats.items_expired,
            transitions_written: stats.transitions_written,
            transitions_pruned: stats.transitions_pruned,
            poisoned: stats.poisoned,
            dead_letters_dropped: stats.letters_dropped,
            dead_letters: stats.letters,
            reads: stats.reads,
            read_errors: stats.read_errors,
            checkpoints: stats.checkpoints,
            commit_time: LatencySummary::from(&stats.commit_us),
            read_time: LatencySummary::from(&stats.read_us),
        }
    }

    fn ready(&self) -> Ready {
        Ready {
            accepting: self.is_ready.load(Ordering::Relaxed),
            store: !self.log.stats().degraded,
            draining: self.is_draining.load(Ordering::Relaxed),
        }
    }
}
