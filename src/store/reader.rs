//! The reader threads: they take lists of questions from one bounded queue, ask SQLite, and answer. A
//! list is answered from one snapshot and in one go, since a snapshot, and waking a shard, cost as much as
//! a small answer. Each question is answered once, always: an error or a panic becomes a refusal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;

use super::LogListener;
use super::pause::Pause;
use super::query::{self, Snapshot};
use super::stats::Counters;
use crate::engine::event::{Page, Query, ReadReply, ReadRequest};
use crate::protocol::error::{ErrorCode, Refusal};

/// What a reader thread is told.
#[derive(Debug)]
pub(super) enum ToReader {
    Ask(Vec<ReadRequest>),
    Stop,
}

/// One reader.
pub(super) struct Reader {
    conn: Connection,
    inbox: flume::Receiver<ToReader>,
    listeners: Arc<[Box<dyn LogListener>]>,
    pause: Arc<Pause>,
    counters: Arc<Counters>,
}

impl Reader {
    pub fn open(
        dir: &Path,
        inbox: flume::Receiver<ToReader>,
        listeners: Arc<[Box<dyn LogListener>]>,
        pause: Arc<Pause>,
        counters: Arc<Counters>,
    ) -> rusqlite::Result<Self> {
        Ok(Self { conn: super::schema::open_reader(dir)?, inbox, listeners, pause, counters })
    }

    /// Answers until told to stop.
    pub fn run(self) {
        while let Ok(ToReader::Ask(requests)) = self.inbox.recv() {
            let Some(shard) = requests.first().map(|request| request.shard) else { continue };
            debug_assert!(requests.iter().all(|request| request.shard == shard), "one shard's questions");
            let replies = self.answer_all(&requests);
            match self.listeners.get(usize::from(shard.0)) {
                Some(listener) => listener.on_read(replies),
                None => tracing::error!(shard = shard.0, "store: a question of a shard that does not exist"),
            }
        }
    }

    fn answer_all(&self, requests: &[ReadRequest]) -> Vec<ReadReply> {
        // Dropped after the snapshot, which comes later.
        let _reading = self.pause.read();
        let snapshot = Snapshot::open(&self.conn);
        let answer = |query: &Query| match &snapshot {
            Ok(snapshot) => self.answer(snapshot, query),
            Err(error) => self.refuse(&error.to_string()),
        };
        requests.iter().map(|request| ReadReply { token: request.token, result: answer(&request.query) }).collect()
    }

    fn answer(&self, snapshot: &Snapshot<'_>, query: &Query) -> Result<Page, Refusal> {
        let began = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| query::answer(snapshot, query)));
        self.counters.read_us.record(began.elapsed().as_micros() as u64);
        Counters::add(&self.counters.reads, 1);
        match answer {
            Ok(Ok(page)) => Ok(page),
            Ok(Err(error)) => self.refuse(&error.to_string()),
            Err(_) => self.refuse("panicked"),
        }
    }

    fn refuse(&self, trouble: &str) -> Result<Page, Refusal> {
        Counters::add(&self.counters.read_errors, 1);
        tracing::error!(error = %trouble.escape_default(), "store: a question could not be answered");
        Err(Refusal::new(ErrorCode::Degraded, "the store could not be read").retry_after(1_000))
    }
}
