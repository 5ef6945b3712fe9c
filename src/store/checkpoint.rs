//! The checkpoint thread: keeps the write-ahead log short without standing in the commit path.
//!
//! - The log is past its bound: copy it into the database (PASSIVE: waits for nobody). Under constant
//!   writes that never catches up with the last frames, and the file would grow for ever. So when the
//!   rest is as short as it gets, the writer is asked to copy it between two batches, and the log starts over.
//! - It did not start over: somebody still read from it when the next batch was written. Readers who take turns would
//!   have it grow for ever. So they stand aside (see `pause`) until all is copied; whoever begins to read then reads
//!   the database alone and is in nobody's way. A connection of another process may still be: there is another try
//!   every quarter of a second.
//! - Nobody wrote for a while: copy the rest, and sleep until somebody does. The next write starts the log over.
//!
//! The file keeps its length, which is what makes commits cheap: a sync after a write past the file's
//! end must also write where the new blocks are, and takes a third longer than one after a write into
//! blocks that are there (120 against 165 µs of CPU, 0.30 against 0.42 ms on ext4). It is removed at an orderly
//! stop.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::FatalHook;
use super::pause::Pause;
use super::rest::Rest;
use super::stats::Counters;

/// How often the length of the log is looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// The same while it grows.
const INTERVAL_BUSY: Duration = Duration::from_millis(20);
/// Looks without a commit between them after which the rest is copied.
const IDLE_LOOKS: u32 = 8;
/// A rest that the writer may copy: about a millisecond's work.
const SHORT_BYTES: u64 = 512 * 1_024;
/// Of a long log it may be this part: where writes outrun a copy and its syncs no rest is ever shorter than what is
/// written meanwhile, and a little longer wait is better than a log without a bound.
const SHORT_PART: u64 = 32;
/// Copies in a row, each of what was written during the one before it, to get to a short rest.
const COPIES_MAX: u32 = 4;
/// Longest wait for readers to finish what they are at.
const READERS_WAIT: Duration = Duration::from_millis(250);
/// Longest that they then stand aside for the writer, which may be within a batch.
const WRITER_WAIT: Duration = Duration::from_millis(100);
/// How often the writer's answer is looked for meanwhile.
const WRITER_LOOK: Duration = Duration::from_micros(500);

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

    /// Where the last frame ends in the file, which begins with a header of 32 bytes.
    pub fn end(self) -> u64 {
        32 + self.bytes()
    }

    /// Bytes that stand only in the log.
    fn waiting_bytes(self) -> u64 {
        self.frames.saturating_sub(self.copied) * super::schema::PAGE_BYTES
    }

    /// So little waits that the writer may copy it.
    fn is_nearly_copied(self) -> bool {
        self.waiting_bytes() <= SHORT_BYTES.max(self.bytes() / SHORT_PART)
    }
}

/// Runs `PRAGMA wal_checkpoint(mode)`.
pub(super) fn checkpoint(conn: &Connection, mode: &str) -> rusqlite::Result<Wal> {
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (frames, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(Wal { frames: frames.max(0) as u64, copied: copied.max(0) as u64 })
    })
}

/// Copies all into the database, syncs it, and cuts the log to nothing. Waits for readers as long as the connection
/// waits for anybody; false: some were still there, and as much was copied as they allow.
pub(super) fn start_over(conn: &Connection) -> rusqlite::Result<bool> {
    let is_busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    Ok(is_busy == 0)
}

/// Nice value of the thread: a copy takes some ten milliseconds of a core that a shard or the writer
/// may share, and nobody waits for it. It still gets a tenth of a core that is full.
const NICE: i32 = 10;

/// What makes a log start over that is too long.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing now: it is short, or it is copied and starts over with the next write, or too much waits.
    Nothing,
    /// The writer copies the rest between two batches.
    AskWriter,
    /// The same while readers stand aside.
    PauseReaders,
}

/// `asked`: the writer was asked since the log was last short.
fn next(wal: Wal, bytes_max: u64, asked: bool) -> Next {
    if wal.bytes() < bytes_max || wal.waiting_bytes() == 0 || !wal.is_nearly_copied() {
        Next::Nothing
    } else if asked {
        Next::PauseReaders
    } else {
        Next::AskWriter
    }
}

/// The thread's own.
pub(super) struct Checkpointer {
    conn: Connection,
    /// Bytes past which the log is copied.
    bytes_max: u64,
    rest: Arc<Rest>,
    /// Set: the writer is to copy the rest. It takes this back when it has.
    help: Arc<AtomicBool>,
    pause: Arc<Pause>,
    counters: Arc<Counters>,
    fatal: FatalHook,
    /// The writer was asked since the log was last short.
    asked: bool,
    /// Frames in the log at the last pause since then.
    paused_at: u64,
}

impl Checkpointer {
    pub fn open(
        dir: &Path,
        bytes_max: u64,
        rest: Arc<Rest>,
        (help, pause): (Arc<AtomicBool>, Arc<Pause>),
        counters: Arc<Counters>,
        fatal: FatalHook,
    ) -> rusqlite::Result<Self> {
        let conn = super::schema::open_checkpointer(dir)?;
        Ok(Self { conn, bytes_max, rest, help, pause, counters, fatal, asked: false, paused_at: u64::MAX })
    }

    /// Looks after the log until told to stop.
    pub fn run(mut self) {
        if let Err(error) = super::thread::lower_priority(NICE) {
            tracing::warn!(%error, "store: the checkpoint thread competes with the others");
        }
        let (mut seen, mut idle_looks, mut interval) = (0, 0u32, INTERVAL);
        while self.rest(idle_looks, interval, seen) {
            let writes = self.rest.writes();
            idle_looks = if writes == seen { idle_looks.saturating_add(1) } else { 0 };
            if idle_looks > IDLE_LOOKS {
                continue;
            }
            seen = writes;
            match self.look(idle_looks == IDLE_LOOKS) {
                Ok(is_urgent) if is_urgent && idle_looks == 0 => interval = INTERVAL_BUSY,
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

    /// False when it is time to end.
    fn rest(&self, idle_looks: u32, interval: Duration, seen: u64) -> bool {
        if idle_looks > IDLE_LOOKS {
            // All is copied: until somebody writes.
            self.rest.sleep(seen)
        } else {
            self.rest.nap(interval)
        }
    }

    /// True when the next look should come soon.
    fn look(&mut self, is_idle: bool) -> rusqlite::Result<bool> {
        let mut wal = checkpoint(&self.conn, "NOOP")?;
        let is_long = wal.bytes() >= self.bytes_max;
        if !is_long {
            (self.asked, self.paused_at) = (false, u64::MAX);
        }
        let mut is_urgent = is_long || wal.waiting_bytes() >= self.bytes_max / 2;
        // A writer that was asked does it next, unless there is no next.
        let is_due = is_idle || (is_long && !self.help.load(Acquire));
        if is_due && wal.waiting_bytes() > 0 {
            wal = self.copy()?;
            Counters::add(&self.counters.checkpoints, 1);
            match next(wal, self.bytes_max, self.asked) {
                Next::Nothing => {}
                Next::AskWriter => {
                    self.asked = true;
                    self.help.store(true, Release);
                }
                Next::PauseReaders => {
                    // The last pause was in vain: another process reads.
                    is_urgent = wal.frames < self.paused_at;
                    self.paused_at = wal.frames;
                    self.copy_without_readers()?;
                }
            }
        }
        self.counters.wal_bytes.store(wal.bytes(), Relaxed);
        Ok(is_urgent)
    }

    fn copy(&self) -> rusqlite::Result<Wal> {
        let mut wal = Wal { frames: 0, copied: 0 };
        for _ in 0..COPIES_MAX {
            checkpoint(&self.conn, "PASSIVE")?;
            // Batches were committed meanwhile.
            wal = checkpoint(&self.conn, "NOOP")?;
            if wal.is_nearly_copied() {
                break;
            }
        }
        Ok(wal)
    }

    /// Gives up when a reader, or the writer, takes too long.
    fn copy_without_readers(&self) -> rusqlite::Result<()> {
        let Some(_paused) = self.pause.begin(READERS_WAIT) else { return Ok(()) };
        let wal = self.copy()?;
        if wal.waiting_bytes() == 0 || !wal.is_nearly_copied() {
            return Ok(());
        }
        self.help.store(true, Release);
        let until = Instant::now() + WRITER_WAIT;
        while self.help.load(Acquire) && Instant::now() < until {
            std::thread::sleep(WRITER_LOOK);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: u64 = 16 * 1_024 * 1_024;

    fn wal(frames: u64, waiting: u64) -> Wal {
        Wal { frames, copied: frames - waiting }
    }

    #[test]
    fn the_writer_is_asked_for_a_short_rest_only() {
        let long = BYTES_MAX / super::super::schema::PAGE_BYTES;
        assert_eq!(next(wal(long / 2, 10), BYTES_MAX, false), Next::Nothing, "it is not too long");
        assert_eq!(next(wal(long, 128), BYTES_MAX, false), Next::AskWriter);
        assert_eq!(next(wal(long, 140), BYTES_MAX, false), Next::Nothing, "copies did not catch up");
        assert_eq!(next(wal(30_000, 10_000), BYTES_MAX, false), Next::Nothing);
        assert_eq!(next(wal(30_000, 900), BYTES_MAX, false), Next::AskWriter, "a long log is worth a longer wait");
    }

    #[test]
    fn readers_are_paused_when_the_log_did_not_start_over() {
        assert_eq!(next(wal(5_000, 0), BYTES_MAX, true), Next::Nothing, "the next write may start it over");
        assert_eq!(next(wal(5_000, 1), BYTES_MAX, true), Next::PauseReaders, "a write did not");
        assert_eq!(next(wal(5_000, 1_000), BYTES_MAX, true), Next::Nothing, "too much waits");
    }
}
