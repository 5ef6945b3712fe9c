//! A running log: its threads, the handle that shards submit through, and its orderly end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

use super::breaker::Breaker;
use super::checkpoint::Checkpointer;
use super::fault::Faults;
use super::heads::Heads;
use super::intake::{Submitter, intake};
use super::open::{OpenError, OpenLog, Origin};
use super::pause::Pause;
use super::reader::{Reader, ToReader};
use super::rest::Rest;
use super::stats::{Counters, StoreStats};
use super::upkeep::Upkeep;
use super::window::CommitWindow;
use super::writer::Writer;
use super::{FatalHook, LogListener, RoomLog, StoreConfig, thread};
use crate::engine::event::{Append, ReadRequest};

/// What shards submit to and ask. Cheap to share.
#[derive(Debug)]
pub struct SqliteLog {
    writer: Submitter,
    readers: flume::Sender<ToReader>,
    /// Set by the stop: nothing more is taken.
    is_stopped: AtomicBool,
    counters: Arc<Counters>,
}

impl SqliteLog {
    /// Opens the log in `config.dir`: see [`OpenLog::open`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &StoreConfig) -> Result<(OpenLog, Origin), OpenError> {
        OpenLog::open(config)
    }

    /// The counters as they stand.
    pub fn stats(&self) -> StoreStats {
        self.counters.read(self.writer.len(), self.readers.len())
    }
}

impl RoomLog for SqliteLog {
    fn submit(&self, appends: Vec<Append>) -> Result<(), Vec<Append>> {
        if appends.is_empty() {
            return Ok(());
        }
        if self.is_stopped.load(Relaxed) {
            return Err(appends);
        }
        self.writer.submit(appends).inspect_err(|_| Counters::add(&self.counters.inbox_full, 1))
    }

    fn on_caught_up(&self) {
        self.writer.release();
    }

    fn read(&self, requests: Vec<ReadRequest>) -> Result<(), Vec<ReadRequest>> {
        if requests.is_empty() {
            return Ok(());
        }
        if self.is_stopped.load(Relaxed) {
            return Err(requests);
        }
        self.readers.try_send(ToReader::Ask(requests)).map_err(|error| match error.into_inner() {
            ToReader::Ask(requests) => requests,
            ToReader::Stop => Vec::new(),
        })
    }
}

/// The threads of a log. Dropping it without [`RunningLog::stop`] ends them at once and loses what
/// was submitted and not yet committed, as a crash would.
pub struct RunningLog {
    log: Arc<SqliteLog>,
    writer: Option<JoinHandle<()>>,
    readers: Vec<JoinHandle<()>>,
    checkpointer: Option<JoinHandle<()>>,
    rest: Arc<Rest>,
    abandoned: Arc<AtomicBool>,
    faults: Arc<Faults>,
}

impl RunningLog {
    pub(super) fn start(open: OpenLog, listeners: Arc<[Box<dyn LogListener>]>) -> Result<Self, OpenError> {
        let OpenLog { config, conn, sequencer, steady, lock } = open;
        let (writer_inbox, from_shards) = intake(config.inbox_max.max(1));
        let (reader_inbox, questions) = flume::bounded(config.reads_waiting_max.max(1));
        let counters = Arc::new(Counters::default());
        let (help, abandoned, faults) = (Arc::default(), Arc::default(), Arc::default());
        let (pause, rest) = (Arc::<Pause>::default(), Arc::<Rest>::default());
        let checkpointer = Checkpointer::open(
            &config.dir,
            config.wal_bytes,
            rest.clone(),
            (Arc::clone(&help), pause.clone()),
            counters.clone(),
            config.fatal.clone(),
        )?;
        let log = SqliteLog {
            writer: writer_inbox,
            readers: reader_inbox,
            is_stopped: AtomicBool::new(false),
            counters: counters.clone(),
        };
        let mut running = Self {
            log: Arc::new(log),
            writer: None,
            readers: Vec::new(),
            checkpointer: None,
            rest: rest.clone(),
            abandoned: Arc::clone(&abandoned),
            faults: Arc::clone(&faults),
        };
        for index in 0..config.readers.max(1) {
            let reader =
                Reader::open(&config.dir, questions.clone(), listeners.clone(), pause.clone(), counters.clone())?;
            running.readers.push(spawn(format!("antiphon-read-{index}"), &config.fatal, move || reader.run())?);
        }
        running.checkpointer = Some(spawn("antiphon-ckpt".to_owned(), &config.fatal, move || checkpointer.run())?);
        let writer = Writer {
            conn,
            sequencer,
            steady,
            heads: Heads::default(),
            inbox: from_shards,
            listeners,
            window: CommitWindow::new(config.commit_window_us),
            breaker: Breaker::new(config.breaker),
            batch_appends_max: config.batch_appends_max.max(1),
            counters,
            faults,
            help,
            rest,
            abandoned,
            fatal: config.fatal.clone(),
            taken_us: 0,
            held: None,
            lists: Vec::new(),
            upkeep: Upkeep::new(config.presence_days, Instant::now()),
            dead_letters_max: config.dead_letters_max,
            careful_until_ms: 0,
            is_stopping: false,
            _lock: lock,
        };
        let core = config.core;
        running.writer = Some(spawn("antiphon-store".to_owned(), &config.fatal, move || {
            if let Some(core) = core
                && let Err(error) = thread::pin_to_core(core)
            {
                tracing::warn!(core, %error, "store: the writer could not be pinned");
            }
            writer.run();
        })?);
        Ok(running)
    }

    /// The handle for shards.
    pub fn log(&self) -> Arc<SqliteLog> {
        self.log.clone()
    }

    /// The counters as they stand.
    pub fn stats(&self) -> StoreStats {
        self.log.stats()
    }

    /// Faults on order, for tests.
    #[doc(hidden)]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Takes nothing more, commits and publishes what was taken, checkpoints, ends the threads.
    /// Listeners must still be drained while this runs.
    pub fn stop(mut self) {
        self.log.is_stopped.store(true, Relaxed);
        // The writer copies the log last, which it cannot while another copies or reads.
        self.end_others();
        // A full inbox is drained by the writer.
        self.log.writer.stop();
        end(self.writer.take());
    }

    fn end_others(&mut self) {
        for _ in &self.readers {
            let _ = self.log.readers.send(ToReader::Stop);
        }
        self.rest.end();
        end(self.readers.drain(..).chain(self.checkpointer.take()));
    }
}

impl Drop for RunningLog {
    fn drop(&mut self) {
        if self.writer.is_none() && self.readers.is_empty() {
            return;
        }
        self.log.is_stopped.store(true, Relaxed);
        self.abandoned.store(true, Relaxed);
        self.log.writer.try_stop();
        self.end_others();
        end(self.writer.take());
    }
}

fn end(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        // A thread that panicked has said so already.
        let _ = thread.join();
    }
}

/// A named thread. A panic in it is a fault of the program that the log cannot survive.
fn spawn(name: String, fatal: &FatalHook, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    let (fatal, thread) = (fatal.clone(), name.clone());
    let guarded = move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            fatal(&format!("store: the thread {thread} panicked"));
        }
    };
    std::thread::Builder::new().name(name).spawn(guarded).map_err(OpenError::Thread)
}
