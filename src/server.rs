//! The whole process: who is started, in which order, and how it all stops.
//!
//! ```text
//!  main thread      starts everything, then waits for a signal
//!  antiphon-signals hears them (stop)
//!  antiphon-shard-N one pinned executor each (shard::driver)
//!  antiphon-store   the persistence core, its readers and its checkpointer (store)
//!  antiphon-control admin API, metrics, health (control)
//! ```
//! Start: ports are taken → the control thread answers, not ready → the store is opened → shards start, and listen.
//! Stop (SIGTERM, SIGINT, SIGHUP): no longer ready → shards stop accepting and send `goaway` with spread
//! retry times → everybody may leave, for `drain_ms` at most → nothing more is read, and what is under way is committed and
//! acknowledged → everybody is closed with 4200 → the store flushes → exit 0. A second signal cuts it short.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

use crate::cli::serve::{Started, announce};
use crate::config::secrets::{KeyMaterial, is_open_to_others, make_data_dir};
use crate::config::{Config, Durability};
use crate::control::{self, in_words};
use crate::engine::event::{Genesis, ShardId};
use crate::exit::{Exit, StartError};
use crate::gateway::token::{Rules, Verifier};
use crate::protocol::upgrade::Origins;
use crate::shard::cores;
use crate::shard::driver::{Driver, Setup};
use crate::shard::mail::{Inbox, Port, mailbox};
use crate::shard::probe::probe;
use crate::shard::ring::RingConfig;
use crate::shard::socket;
use crate::store::{LogListener, OpenError, Origin, SqliteLog, StoreConfig};
use process::Process;
use stop::Signals;

pub mod descriptors;
mod process;
mod stop;

/// What an executor's own rings get; only its start and end use them.
const EXECUTOR_IO_BYTES: usize = 64 * 1024;
const EXECUTOR_RING_DEPTH: usize = 8;
/// Runs the server until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting, as one sentence with its exit code.
pub fn run(mut config: Config) -> Result<Exit, StartError> {
    let kernel = probe().map_err(|why| StartError::new(Exit::Environment, why))?;
    tracing::info!(%kernel, shards = config.server.shards, "starting");
    let sockets_max = bound_connections(&mut config)?;
    let signals = Signals::catch()?;
    let control_listener = control::bind(config.server.control_listen)?;
    let (listen, listeners) = bind(&config)?;
    make_data_dir(&config.server.data_dir)?;
    if is_open_to_others(&config.server.data_dir) {
        let folder = config.server.data_dir.display();
        tracing::warn!(%folder, "other users may look into the data folder; its mode should be 0700");
    }
    let key = config.auth.key.load()?;
    let admin = config.admin.load()?;
    let verifier = Arc::new(verifier(&config, &key.value)?);
    let origins = Arc::new(origins(&config, listen)?);
    let process = Arc::new(Process::new(config.server.shards));
    let control = control::spawn(control_listener, admin.value, process.clone())?;

    let store_failed = |error: OpenError| store_error(&error, &config);
    let (log, origin) = SqliteLog::open(&store_config(&config)).map_err(store_failed)?;
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
    let running = log.start(ears).map_err(store_failed)?;

    process.runs(ports.clone(), running.log(), origin.position);
    let shards = Shards {
        config: &config,
        sockets_max,
        ports: &ports,
        origin: &origin,
        log: running.log(),
        is_ready: &process.is_ready,
    };
    let threads = shards.start(inboxes, listeners, &verifier, &origins)?;
    signals.started();
    process.accepts();
    announce(&Started {
        config: &config,
        listen,
        control: control.address(),
        key_is_new: key.is_new,
        admin_is_new: admin.is_new,
    });

    let signal = signals.wait();
    tracing::info!(signal, "stopping");
    process.drains();
    stop::drain(&config, &ports, &signals);
    stop::finish(&ports, threads, running);
    drop(control);
    tracing::info!("stopped");
    Ok(Exit::Ok)
}

/// Lowers the connections of a shard to what the descriptors allow. Gives the sockets that a shard may have.
fn bound_connections(config: &mut Config) -> Result<usize, StartError> {
    // Who cannot ask is not bound.
    let open_files = crate::cli::process::open_files().map_or(u64::MAX, |limit| limit.soft);
    let (shards, readers) = (config.server.shards, config.store.reader_threads);
    let sessions_max = config.limits.shard_connections_max;
    let share = descriptors::share(open_files, shards, readers, sessions_max).ok_or_else(|| {
        let needed = descriptors::needed(shards, readers);
        let advice = "raise it: ulimit -Hn, LimitNOFILE= in systemd, --ulimit nofile= in Docker";
        StartError::new(
            Exit::Environment,
            format!("{open_files} open files are less than the {needed} needed; {advice}"),
        )
    })?;
    if share.sessions < u64::from(sessions_max) {
        config.limits.shard_connections_max = share.sessions as u32;
        tracing::info!(open_files, a_shard = share.sessions, "open files bound the connections");
    }
    Ok(usize::try_from(share.sockets).unwrap_or(usize::MAX))
}

/// Takes the port for one listener a shard. They listen when their shards run: until then who connects is refused at
/// once, instead of waiting for a server that may have a database to bring up to date.
fn bind(config: &Config) -> Result<(SocketAddr, Vec<OwnedFd>), StartError> {
    let address = config.server.listen;
    let failed = |err: std::io::Error| StartError::new(Exit::Port, format!("{address}: {}", in_words(&err)));
    // SO_REUSEPORT would let a second server of the same user share the port unseen: a plain bind
    // finds out.
    drop(TcpListener::bind(address).map_err(failed)?);
    let congestion = config.server.tcp_congestion.as_deref();
    let first = socket::take(address, congestion).map_err(|err| match (congestion, err.raw_os_error()) {
        // Not there, or not for everybody: `bind` itself says EACCES where a port may not be used.
        (Some(name), Some(libc::ENOENT | libc::EPERM)) => StartError::usage(format!(
            "server.tcp_congestion: {name:?} cannot be used here; \
             /proc/sys/net/ipv4/tcp_allowed_congestion_control lists what can"
        )),
        _ => failed(err),
    })?;
    let bound = socket::bound_address(&first).map_err(failed)?;
    let mut listeners = vec![first];
    for _ in 1..config.server.shards {
        listeners.push(socket::take(bound, congestion).map_err(failed)?);
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

fn store_error(error: &OpenError, config: &Config) -> StartError {
    let exit = if error.is_temporary() { Exit::NotNow } else { Exit::DataDir };
    StartError::new(exit, error.about(&config.server.data_dir))
}

/// What starting the shards takes.
struct Shards<'a> {
    config: &'a Config,
    sockets_max: usize,
    ports: &'a [Port],
    origin: &'a Origin,
    log: Arc<SqliteLog>,
    is_ready: &'a Arc<std::sync::atomic::AtomicBool>,
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
                sockets_max: self.sockets_max,
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
        if let Err(err) = socket::listen_on(&setup.listener) {
            let _ = started.send(Err(StartError::new(Exit::Port, format!("shard {number}: {}", in_words(&err)))));
            return Ok(());
        }
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
