//! The reader threads: they take questions from one bounded queue, ask SQLite, and answer. Each
//! question is answered once, always: an error or a panic becomes a refusal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;

use super::stats::Counters;
use super::{LogListener, query};
use crate::engine::event::{Page, Query, ReadReply, ReadRequest};
use crate::protocol::error::{ErrorCode, Refusal};

/// What a reader thread is told.
#[derive(Debug)]
pub(super) enum ToReader {
    Ask(ReadRequest),
    Stop,
}

/// One reader.
pub(super) struct Reader {
    conn: Connection,
    inbox: flume::Receiver<ToReader>,
    listeners: Arc<[Box<dyn LogListener>]>,
    counters: Arc<Counters>,
}

impl Reader {
    pub fn open(
        dir: &Path,
        inbox: flume::Receiver<ToReader>,
        listeners: Arc<[Box<dyn LogListener>]>,
        counters: Arc<Counters>,
    ) -> rusqlite::Result<Self> {
        Ok(Self { conn: super::schema::open_reader(dir)?, inbox, listeners, counters })
    }

    /// Answers until told to stop.
    pub fn run(self) {
        while let Ok(ToReader::Ask(request)) = self.inbox.recv() {
            let ReadRequest { shard, token, query } = request;
            let result = self.answer(&query);
            match self.listeners.get(usize::from(shard.0)) {
                Some(listener) => listener.on_read(ReadReply { token, result }),
                None => tracing::error!(shard = shard.0, "store: a question of a shard that does not exist"),
            }
        }
    }

    fn answer(&self, query: &Query) -> Result<Page, Refusal> {
        let began = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| query::answer(&self.conn, query)));
        self.counters.read_us.record(began.elapsed().as_micros() as u64);
        Counters::add(&self.counters.reads, 1);
        let trouble = match answer {
            Ok(Ok(page)) => return Ok(page),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "panicked".to_owned(),
        };
        Counters::add(&self.counters.read_errors, 1);
        tracing::error!(error = %trouble.escape_default(), "store: a question could not be answered");
        Err(Refusal::new(ErrorCode::Degraded, "the store could not be read").retry_after(1_000))
    }
}
