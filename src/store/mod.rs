//! The persistence core: one writer thread, a few reader threads, one checkpoint thread, one SQLite
//! database. Everything durable goes through here, in one order.
//!
//! ```text
//!  submit ──► bounded inbox ──► writer ──► sequencer ──► one transaction ──► COMMIT ──► every listener
//!  read   ──► bounded queue ──► readers (query_only, own connections) ─────────────► one listener
//! ```
//! The seam is [`RoomLog`] and [`LogListener`]: another log (another database, several machines) can
//! stand behind it. The store refuses to know what a shard is beyond "someone who listens", never
//! blocks who submits, and never tells anybody of an entry before its commit returned.
//!
//! Reading order: [`schema`] (the file), `recovery` (what a start settles), `writer` (the turn), `isolate` (one
//! transaction, and what is done when an entry spoils it), `transaction`, `facts`, `query`, `history`, `checkpoint`,
//! `pause` (readers stand aside for it), `vfs` (how the log's pages get to the file), [`breaker`], [`window`], [`inspect`].

mod audit;
pub mod breaker;
mod checkpoint;
mod columns;
mod dead;
mod edits;
mod facts;
pub mod fault;
mod heads;
mod history;
mod inbox;
pub mod inspect;
mod intake;
mod isolate;
mod open;
mod pause;
mod presence;
mod query;
mod reader;
mod recovery;
mod rest;
mod running;
pub mod schema;
pub mod stats;
mod tallies;
mod thread;
mod transaction;
mod upkeep;
mod vfs;
pub mod window;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

pub use breaker::BreakerConfig;
pub use open::{OpenError, OpenLog, Origin};
pub use running::{RunningLog, SqliteLog};
pub use stats::StoreStats;

use crate::engine::event::{Append, ReadReply, ReadRequest, StoreEvent};
use crate::engine::sequencer::SequencerConfig;

/// An ordered, durable log of rooms, as shards see it. Answers arrive at the shard's [`LogListener`].
pub trait RoomLog: Send + Sync {
    /// Hands appends over. Never blocks.
    ///
    /// # Errors
    /// Busy, or stopped: the appends come back untouched and nothing was done.
    fn submit(&self, appends: Vec<Append>) -> Result<(), Vec<Append>>;

    /// A shard that was behind ([`LogListener::is_behind`]) is so no more, and has handed over what came to it
    /// meanwhile.
    fn on_caught_up(&self) {}

    /// Asks one shard's questions, which one reader answers from one snapshot: what is quickly answered is
    /// to be asked together, and what takes its time alone. Never blocks.
    ///
    /// # Errors
    /// Busy, or stopped: the questions come back and will not be answered.
    fn read(&self, requests: Vec<ReadRequest>) -> Result<(), Vec<ReadRequest>>;
}

/// A shard's ear. Called from the store's threads.
pub trait LogListener: Send + Sync {
    /// The next event of the log, the same in the same order for every listener. May block for a
    /// moment when the shard's inbox is full: the log waits for its slowest shard.
    fn on_store(&self, event: StoreEvent);

    /// The answers to questions that this shard asked together.
    fn on_read(&self, replies: Vec<ReadReply>);

    /// True while it has not yet sent out all that it was told: while that is so of every shard, another batch could
    /// only wait.
    fn is_behind(&self) -> bool {
        false
    }
}

/// What "committed" means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The disk has said so (`synchronous=FULL`).
    #[default]
    Full,
    /// The operating system has it: survives the end of the process, not a power cut
    /// (`synchronous=NORMAL`). Logged loudly at every start.
    Relaxed,
}

/// Called once with one sentence when the store cannot go on: an fsync failed, or the database is
/// corrupt. It is expected to end the process.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// Everything a store is told.
#[derive(Clone)]
pub struct StoreConfig {
    /// The data directory; made when it is not there.
    pub dir: PathBuf,
    /// What "committed" means.
    pub durability: Durability,
    /// Longest time to gather appends before a commit, µs; 0: never wait.
    pub commit_window_us: u32,
    /// Appends in one transaction, about.
    pub batch_appends_max: usize,
    /// Lists of appends that may wait for the writer.
    pub inbox_max: usize,
    /// Reader threads, at least 1.
    pub readers: usize,
    /// Lists of questions that may wait for the readers.
    pub reads_waiting_max: usize,
    /// Core that the writer is pinned to.
    pub core: Option<usize>,
    /// Bytes of write-ahead log past which it is copied into the database and starts over.
    pub wal_bytes: u64,
    /// How long transitions of presence are kept, days; 0: none are wanted, and those that are there go.
    pub presence_days: u32,
    /// When writes stop being tried.
    pub breaker: BreakerConfig,
    /// Dead letters that are kept; past it the oldest go.
    pub dead_letters_max: u32,
    /// The sequencer's bounds. Its seed should be random.
    pub sequencer: SequencerConfig,
    /// Ends the process.
    pub fatal: FatalHook,
}

impl StoreConfig {
    /// Defaults for a data directory. The fatal hook ends the process with code 1.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            durability: Durability::Full,
            commit_window_us: 2_000,
            batch_appends_max: 4_096,
            inbox_max: 1_024,
            readers: 2,
            reads_waiting_max: 16_384,
            core: None,
            wal_bytes: 16 * 1_024 * 1_024,
            presence_days: 30,
            breaker: BreakerConfig::default(),
            dead_letters_max: 10_000,
            sequencer: SequencerConfig::default(),
            fatal: Arc::new(|_| std::process::exit(1)),
        }
    }
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreConfig")
            .field("dir", &self.dir)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

/// True for errors after which nobody knows what is on the disk: a failed fsync (the kernel may have
/// dropped the pages and will report success the next time), or a damaged database.
fn is_fatal(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    let rusqlite::Error::SqliteFailure(error, _) = error else { return false };
    let primary = error.extended_code & 0xff;
    matches!(error.extended_code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
        || matches!(primary, ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB)
}

/// Runs a statement without parameters or rows, from the connection's cache of statements.
fn run(conn: &rusqlite::Connection, sql: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.raw_execute().map(|_| ())
}
