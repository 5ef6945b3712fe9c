//! Opening a log: take the directory, make what stands in it durable, bring the schema up to date, rebuild the
//! dedupe window, say where the log ends. No thread runs yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::schema::{self, DirLock};
use super::{Durability, LogListener, RunningLog, StoreConfig, facts, recovery};
use crate::clock::{SteadyClock, unix_ms};
use crate::engine::event::Revocation;
use crate::engine::sequencer::{CLOCK_SLACK_MS, Sequencer};
use crate::protocol::ids::{Epoch, Position, RoomKey, Seq, UnixMillis};

/// Why a log cannot be opened. Each is one sentence for the person who started the server.
#[derive(Debug)]
pub enum OpenError {
    /// The directory or its lock file cannot be made or read.
    Dir {
        /// The data directory.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Another process has it.
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The file is a database of another program.
    NotOurs,
    /// The file was written by a newer program.
    NewerSchema {
        /// Its version.
        found: u32,
        /// The newest that this program knows.
        known: u32,
    },
    /// SQLite did not accept the settings that make commits durable.
    NotDurable {
        /// `journal_mode` as read back.
        mode: String,
        /// `synchronous` as read back.
        synchronous: i64,
    },
    /// The system gave no random bytes for the epoch.
    Random(String),
    /// A thread could not be made.
    Thread(std::io::Error),
    /// SQLite, or the disk.
    Sqlite(rusqlite::Error),
}

impl OpenError {
    /// The sentence, with the file that it is about where it does not name one.
    pub fn about(&self, dir: &Path) -> String {
        match self {
            Self::Dir { .. } | Self::Locked { .. } | Self::Random(_) | Self::Thread(_) => self.to_string(),
            _ => format!("{}: {self}", schema::database_path(dir).display()),
        }
    }

    /// Whether it may be over by itself, so that another try is worth the while.
    pub fn is_temporary(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory};
        use std::io::ErrorKind::{OutOfMemory as NoMemory, QuotaExceeded, StorageFull, WouldBlock};
        match self {
            Self::Dir { error, .. } | Self::Thread(error) => {
                matches!(error.kind(), StorageFull | QuotaExceeded | NoMemory | WouldBlock)
            }
            Self::Sqlite(error) => {
                matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | DiskFull | OutOfMemory))
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dir { path, error } => write!(f, "the data directory {} cannot be used: {error}", path.display()),
            Self::Locked { path } => {
                write!(f, "the data directory {} is in use by another antiphon process", path.display())
            }
            Self::NotOurs => write!(f, "{} was not made by antiphon", schema::DATABASE_FILE),
            Self::NewerSchema { found, known } => write!(
                f,
                "the database has schema version {found} and this antiphon knows up to {known}: use a newer antiphon"
            ),
            Self::NotDurable { mode, synchronous } => write!(
                f,
                "SQLite runs with journal_mode={mode} and synchronous={synchronous}, which would lose acknowledged messages"
            ),
            Self::Random(error) => write!(f, "no random bytes from the system: {error}"),
            Self::Thread(error) => write!(f, "a thread of the store cannot be started: {error}"),
            Self::Sqlite(error) => write!(f, "the database cannot be opened: {error}"),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Where a log stands when it is opened: what every shard is told at its birth.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Which history.
    pub epoch: Epoch,
    /// Position of the last entry; the first batch begins right after it.
    pub position: Position,
    /// Revocations that stand.
    pub revocations: Vec<Revocation>,
    /// Users who were present when the process before was lost.
    pub presence_lost: u64,
    /// Pairs in the rebuilt dedupe window.
    pub dedupe_entries: usize,
    /// Time that opening took.
    pub took: Duration,
}

/// A log that is open and not running: this process owns the directory.
pub struct OpenLog {
    pub(super) config: StoreConfig,
    pub(super) conn: Connection,
    pub(super) sequencer: Sequencer,
    pub(super) steady: SteadyClock,
    pub(super) lock: DirLock,
}

impl OpenLog {
    /// Opens the log in `config.dir`, new or old.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &StoreConfig) -> Result<(Self, Origin), OpenError> {
        let began = Instant::now();
        let lock = schema::lock_dir(&config.dir)?;
        let conn = schema::open_writer(&config.dir)?;
        let epoch = recovery::epoch(&conn, config.durability, &recovery::boot_id())?;
        if config.durability == Durability::Relaxed {
            tracing::warn!("store: durability=relaxed: acknowledged messages may be lost in a power cut");
            schema::relax(&conn)?;
        }
        let end = facts::log_end(&conn)?;
        // A clock may be ahead at one start. What it alone says is over is not forgotten for good.
        facts::forget_revocations(&conn, unix_ms().min(end.ts))?;
        let mut sequencer = Sequencer::new(config.sequencer.clone(), end);
        let steady = SteadyClock::start();
        rebuild_dedupe(&conn, &mut sequencer, config.sequencer.dedupe_window_ms, steady.at(0))?;
        let presence_lost = super::presence::settle(&conn, unix_ms(), end.ts)?;
        let origin = Origin {
            epoch,
            presence_lost,
            position: end.position,
            revocations: facts::revocations(&conn)?,
            dedupe_entries: sequencer.dedupe_len(),
            took: began.elapsed(),
        };
        Ok((Self { config: config.clone(), conn, sequencer, steady, lock }, origin))
    }

    /// Starts the threads. One listener for each shard, in order of their ids.
    ///
    /// # Errors
    /// SQLite's, when a further connection cannot be opened; the system's, when a thread cannot be made.
    pub fn start(self, listeners: Vec<Box<dyn LogListener>>) -> Result<RunningLog, OpenError> {
        RunningLog::start(self, Arc::from(listeners))
    }
}

/// Entries in a row from before the window, past which nobody looks on: a clock that went back for a while leaves such
/// ones in front of others that are in it.
const OVER_MAX: usize = 10_000;

/// Reads the log backwards until the window is over or full.
fn rebuild_dedupe(
    conn: &Connection,
    sequencer: &mut Sequencer,
    window_ms: u32,
    now: UnixMillis,
) -> rusqlite::Result<()> {
    let oldest = now.saturating_sub(u64::from(window_ms)).saturating_sub(CLOCK_SLACK_MS);
    let mut statement = conn.prepare("SELECT ts, room, seq, author, client_id FROM log ORDER BY position DESC")?;
    let mut rows = statement.query([])?;
    // What was written before another entry is kept no longer than that one, and no longer than from now on.
    let mut since = now;
    let (mut over, mut over_count) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let ts = super::columns::integer(row, 0)?;
        if ts >= oldest {
            since = since.min(ts);
            over_count = 0;
            let mut over = std::mem::take(&mut over).into_iter();
            if !over.all(|(author, client_id, room, at): Pair| {
                sequencer.remember_older(&author, &client_id, room, at, since)
            }) {
                return Ok(());
            }
        } else {
            over_count += 1;
            if over_count > OVER_MAX {
                return Ok(());
            }
        }
        let (Some(author), Some(client_id)) = (row.get_ref(3)?.as_str_or_null()?, row.get_ref(4)?.as_str_or_null()?)
        else {
            continue;
        };
        let (room, at) = (RoomKey(super::columns::integer(row, 1)?), (super::columns::integer(row, 2)?, ts));
        if over_count > 0 {
            over.push((author.into(), client_id.into(), room, at));
        } else if !sequencer.remember_older(author, client_id, room, at, since) {
            return Ok(());
        }
    }
    Ok(())
}

/// A pair that is remembered if one before it is.
type Pair = (Box<str>, Box<str>, RoomKey, (Seq, UnixMillis));

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn what_passes_by_itself_is_temporary_and_damage_is_not() {
        let sqlite = |code| OpenError::Sqlite(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_BUSY, ffi::SQLITE_BUSY_RECOVERY] {
            assert!(sqlite(code).is_temporary(), "{code}");
        }
        for code in [ffi::SQLITE_NOTADB, ffi::SQLITE_CORRUPT, ffi::SQLITE_READONLY, ffi::SQLITE_IOERR_FSYNC] {
            assert!(!sqlite(code).is_temporary(), "{code}");
        }
        let at = |errno| OpenError::Dir { path: "d".into(), error: std::io::Error::from_raw_os_error(errno) };
        assert!(at(libc::ENOSPC).is_temporary() && !at(libc::EACCES).is_temporary());
        assert_eq!(OpenError::NotOurs.about(Path::new("d")), "d/antiphon.db: antiphon.db was not made by antiphon");
    }
}
