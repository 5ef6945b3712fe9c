//! Faults on order: lets a test make the next commits fail, before or after they are durable, or
//! give the database no more pages. Costs one relaxed load a batch; nothing in the server sets it.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::Relaxed};

/// Shared between a test and the writer.
#[derive(Debug, Default)]
pub struct Faults {
    /// How many commits are to fail as if the disk had refused them.
    before_commit: AtomicU32,
    /// How many commits are to be reported as failed although they are durable.
    after_commit: AtomicU32,
    /// SQLite's extended error code of these failures; 0: `SQLITE_IOERR_WRITE`.
    code: AtomicU32,
    /// Pages the database may have; 0: nothing ordered; -1: as many as it likes.
    pages_max: AtomicI64,
}

impl Faults {
    /// The next `count` commits fail and leave nothing.
    pub fn fail_before_commit(&self, count: u32) {
        self.before_commit.store(count, Relaxed);
    }

    /// The next `count` commits succeed and are reported as failed.
    pub fn fail_after_commit(&self, count: u32) {
        self.after_commit.store(count, Relaxed);
    }

    /// Failures carry this extended SQLite code.
    pub fn use_code(&self, code: u32) {
        self.code.store(code, Relaxed);
    }

    /// From the next batch on the database has at most `pages` pages (none: no bound), as on a full disk.
    pub fn bound_pages(&self, pages: Option<u32>) {
        self.pages_max.store(pages.map_or(-1, i64::from), Relaxed);
    }

    pub(super) fn ordered_pages(&self) -> Option<i64> {
        match self.pages_max.load(Relaxed) {
            0 => None,
            pages => {
                self.pages_max.store(0, Relaxed);
                Some(if pages < 0 { 0xffff_fffe } else { pages })
            }
        }
    }

    pub(super) fn before_commit(&self) -> rusqlite::Result<()> {
        self.strike(&self.before_commit)
    }

    pub(super) fn after_commit(&self) -> rusqlite::Result<()> {
        self.strike(&self.after_commit)
    }

    fn strike(&self, counter: &AtomicU32) -> rusqlite::Result<()> {
        let left = counter.load(Relaxed);
        if left == 0 {
            return Ok(());
        }
        counter.store(left - 1, Relaxed);
        let code = match self.code.load(Relaxed) {
            0 => rusqlite::ffi::SQLITE_IOERR_WRITE,
            code => code as i32,
        };
        Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some("ordered by a test".to_owned())))
    }
}
