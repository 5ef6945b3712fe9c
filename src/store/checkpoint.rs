//! The checkpoint thread: keeps the write-ahead log short without standing in the commit path.
//!
//! - The log is past its soft bound: copy it into the database (PASSIVE: waits for nobody).
//! - It is past its hard bound: under constant writes a passive checkpoint never catches up with the
//!   last frames, and the file would grow for ever. The writer is asked to copy the short rest itself
//!   between two batches, after which the log starts over.
//! - Nobody wrote for a while: copy the rest and cut the file to nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rusqlite::Connection;

use super::FatalHook;
use super::stats::Counters;

/// How often the length of the log is looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// The same while it grows.
const INTERVAL_BUSY: Duration = Duration::from_millis(20);
/// Looks without a commit between them after which the log is cut.
const IDLE_LOOKS: u32 = 8;

/// Bounds of the write-ahead log.
#[derive(Debug, Clone, Copy)]
pub(super) struct WalBounds {
    pub soft_bytes: u64,
    pub hard_bytes: u64,
}

/// The log as SQLite reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wal {
    /// Frames in the log.
    pub frames: u64,
    /// Frames that stand in the database too.
    pub copied: u64,
}

impl Wal {
    fn bytes(self) -> u64 {
        // Each frame is a page and a header of 24 bytes.
        self.frames * (super::schema::PAGE_BYTES + 24)
    }
}

/// Runs `PRAGMA wal_checkpoint(mode)`.
pub(super) fn checkpoint(conn: &Connection, mode: &str) -> rusqlite::Result<Wal> {
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (frames, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(Wal { frames: frames.max(0) as u64, copied: copied.max(0) as u64 })
    })
}

/// The thread's own.
pub(super) struct Checkpointer {
    conn: Connection,
    bounds: WalBounds,
    stop: flume::Receiver<()>,
    /// Set: the writer is to copy the rest.
    help: Arc<AtomicBool>,
    counters: Arc<Counters>,
    fatal: FatalHook,
}

impl Checkpointer {
    pub fn open(
        dir: &Path,
        bounds: WalBounds,
        stop: flume::Receiver<()>,
        help: Arc<AtomicBool>,
        counters: Arc<Counters>,
        fatal: FatalHook,
    ) -> rusqlite::Result<Self> {
        Ok(Self { conn: super::schema::open_checkpointer(dir)?, bounds, stop, help, counters, fatal })
    }

    /// Looks after the log until told to stop (or its owner is gone).
    pub fn run(self) {
        let (mut seen_batches, mut idle_looks, mut interval) = (0, 0u32, INTERVAL);
        while let Err(flume::RecvTimeoutError::Timeout) = self.stop.recv_timeout(interval) {
            let batches = self.counters.batches.load(Relaxed);
            idle_looks = if batches == seen_batches { idle_looks.saturating_add(1) } else { 0 };
            if idle_looks > IDLE_LOOKS {
                continue;
            }
            seen_batches = batches;
            match self.look(idle_looks == IDLE_LOOKS) {
                Ok(wal) if wal.bytes() >= self.bounds.soft_bytes / 2 && idle_looks == 0 => interval = INTERVAL_BUSY,
                Ok(_) => interval = INTERVAL,
                Err(error) if super::is_fatal(&error) => {
                    (self.fatal)(&format!("store: the disk failed a checkpoint: {error}"));
                    return;
                }
                Err(error) => {
                    interval = INTERVAL;
                    tracing::warn!(%error, "store: a checkpoint failed");
                }
            }
        }
    }

    fn look(&self, is_idle: bool) -> rusqlite::Result<Wal> {
        let mut wal = checkpoint(&self.conn, "NOOP")?;
        let waiting = wal.frames - wal.copied.min(wal.frames);
        let due = waiting * super::schema::PAGE_BYTES >= self.bounds.soft_bytes;
        if due || (is_idle && wal.frames > 0) {
            checkpoint(&self.conn, "PASSIVE")?;
            // Batches were committed meanwhile.
            wal = checkpoint(&self.conn, "NOOP")?;
            Counters::add(&self.counters.checkpoints, 1);
            // Asked right after a copy, when the rest is shortest.
            if wal.bytes() >= self.bounds.hard_bytes {
                self.help.store(true, Relaxed);
            }
        }
        if is_idle && wal.frames == wal.copied {
            // Nothing is left to copy, so the lock that this takes is held for a moment only.
            wal = checkpoint(&self.conn, "TRUNCATE")?;
        }
        self.counters.wal_bytes.store(wal.bytes(), Relaxed);
        Ok(wal)
    }
}
