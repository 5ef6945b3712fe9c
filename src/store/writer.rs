//! The persistence core's thread: takes what waits, decides it (the sequencer), writes it in one
//! transaction, and tells every shard. It owns the only connection that writes.
//!
//! A turn, in order:
//! 1. wait for appends  2. gather more, if the commit window says so  3. breaker open: refuse
//! 4. was the last failed batch committed after all? publish it first  5. begin, decide, write, commit
//!    (see `isolate`)
//! 6. one `Arc<CommittedBatch>` to every listener  7. help with the checkpoint when asked

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::breaker::{Breaker, Gate};
use super::checkpoint::{checkpoint, start_over};
use super::facts::{SqlFacts, is_revoked, log_end};
use super::fault::Faults;
use super::heads::Heads;
use super::intake::{Intake, ToWriter};
use super::rest::Rest;
use super::schema::DirLock;
use super::stats::Counters;
use super::upkeep::Upkeep;
use super::window::{CommitWindow, Wait};
use super::{FatalHook, LogListener, is_fatal, presence, recovery};
use crate::clock::{SteadyClock, now_us, unix_ms};
use crate::engine::event::{Append, CommittedBatch, StoreEvent};
use crate::engine::sequencer::{Facts as _, LogEnd, Sequencer};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::RoomKey;

/// Bytes that a probe writes: as much as a batch of some size needs.
const PROBE_BYTES: u32 = 64 * 1_024;
/// How long a batch stays in doubt when nobody appends.
const SETTLE_AFTER: Duration = Duration::from_millis(250);

/// What the writer is made of.
pub(super) struct Writer {
    pub conn: Connection,
    pub sequencer: Sequencer,
    pub steady: SteadyClock,
    pub heads: Heads,
    pub inbox: Intake,
    pub listeners: Arc<[Box<dyn LogListener>]>,
    pub window: CommitWindow,
    pub breaker: Breaker,
    pub batch_appends_max: usize,
    pub counters: Arc<Counters>,
    pub faults: Arc<Faults>,
    /// The checkpoint thread asks for help.
    pub help: Arc<AtomicBool>,
    /// Its sleep while nobody writes.
    pub rest: Arc<Rest>,
    /// The owner was dropped without a stop: end at once, as in a crash.
    pub abandoned: Arc<AtomicBool>,
    pub fatal: FatalHook,
    /// When the appends at hand were turned to, µs of the process's clock.
    pub taken_us: u64,
    /// A batch whose commit failed and which may stand in the log all the same.
    pub held: Option<CommittedBatch>,
    /// Appends that are at hand, in the order they came.
    pub lists: Vec<Vec<Append>>,
    /// When old rows are looked for.
    pub upkeep: Upkeep,
    /// Dead letters that are kept.
    pub dead_letters_max: u32,
    /// Until then batches are copied whatever their size (see `isolate`); the writer's own clock.
    pub careful_until_ms: u64,
    /// Told to stop: what waits is still committed.
    pub is_stopping: bool,
    /// Held as long as this thread may write.
    pub _lock: DirLock,
}

/// How a wait for appends ended.
enum Wake {
    Appends,
    /// Nobody wants anything, and old rows may be looked for.
    Idle,
    /// Nobody appends, and a batch is in doubt.
    Settle,
    Probe,
    End,
}

/// Why a batch has no commit.
pub(super) enum Trouble {
    Sql(rusqlite::Error),
    /// The log is not what this process wrote.
    Foreign(String),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl Writer {
    /// Works until stopped. What was accepted before the stop is committed first.
    pub fn run(mut self) {
        self.count_letters();
        loop {
            let wake = self.wait();
            self.bound_pages();
            match wake {
                Wake::Appends => self.turn(),
                Wake::Idle => {}
                Wake::Settle => self.settle(),
                Wake::Probe => self.probe(),
                Wake::End => break,
            }
            self.help_checkpoint();
            self.look_after(matches!(wake, Wake::Idle));
        }
        if !self.abandoned.load(Relaxed) {
            self.end_in_order();
        }
    }

    fn end_in_order(&self) {
        match recovery::end_in_order(&self.conn).and_then(|()| start_over(&self.conn)) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("store: a reader kept the log from being copied; it is replayed at the next start")
            }
            Err(error) => {
                tracing::warn!(%error, "store: the last checkpoint failed; the log is replayed at the next start")
            }
        }
    }

    fn wait(&mut self) -> Wake {
        loop {
            if self.abandoned.load(Relaxed) {
                return Wake::End;
            }
            if !self.lists.is_empty() {
                self.gather();
                return Wake::Appends;
            }
            let message = match self.breaker.gate(now_ms()) {
                _ if self.is_stopping => self.inbox.try_recv().map_err(|_| flume::RecvTimeoutError::Disconnected),
                // Its readers wait for what may stand: they are not to wait for somebody's next word.
                Gate::Pass if self.held.is_some() => self.inbox.recv_timeout(SETTLE_AFTER),
                Gate::Pass => self.inbox.recv_timeout(self.upkeep.wait(Instant::now())),
                Gate::Probe => return Wake::Probe,
                Gate::Refuse { retry_after_ms } => self.inbox.recv_timeout(Duration::from_millis(retry_after_ms)),
            };
            match message {
                Ok(ToWriter::Appends(list)) => self.lists.push(list),
                Ok(ToWriter::Stop) => self.is_stopping = true,
                Err(flume::RecvTimeoutError::Timeout) if self.breaker.is_open() => {}
                Err(flume::RecvTimeoutError::Timeout) if self.held.is_some() => return Wake::Settle,
                Err(flume::RecvTimeoutError::Timeout) => return Wake::Idle,
                Err(flume::RecvTimeoutError::Disconnected) => return Wake::End,
            }
        }
    }

    /// Takes what waits, up to the bound, and more while the window says that waiting pays.
    fn gather(&mut self) {
        self.taken_us = now_us();
        self.window.open(self.taken_us);
        loop {
            let count = self.drain();
            if self.is_stopping || count >= self.batch_appends_max || self.breaker.is_open() {
                return;
            }
            match self.window.next(count, self.are_all_behind(), now_us()) {
                Wait::No => return,
                Wait::Appends { enough, us } => {
                    let more = enough.min(self.batch_appends_max) - count;
                    self.inbox.wait_for(more, Duration::from_micros(us));
                }
                Wait::Shards { enough, us } => {
                    let more = enough.min(self.batch_appends_max) - count;
                    self.inbox.hold_while(more, Duration::from_micros(us), || self.are_all_behind());
                }
            }
        }
    }

    fn are_all_behind(&self) -> bool {
        self.listeners.iter().all(|shard| shard.is_behind())
    }

    /// Takes what is in the inbox, up to the bound. How many appends are at hand then.
    pub(super) fn drain(&mut self) -> usize {
        let mut count: usize = self.lists.iter().map(Vec::len).sum();
        while count < self.batch_appends_max {
            match self.inbox.try_recv() {
                Ok(ToWriter::Appends(list)) => {
                    count += list.len();
                    self.lists.push(list);
                }
                Ok(ToWriter::Stop) => self.is_stopping = true,
                Err(_) => break,
            }
        }
        count
    }

    fn turn(&mut self) {
        let lists = std::mem::take(&mut self.lists);
        let count: usize = lists.iter().map(Vec::len).sum();
        self.counters.batch_appends.record(count as u64);
        Counters::add(&self.counters.appends, count as u64);
        if let Gate::Refuse { .. } | Gate::Probe = self.breaker.gate(now_ms()) {
            let refused = self.sequencer.refuse(lists.into_iter().flatten(), &self.closed_refusal());
            self.publish_refused(refused, count);
        } else if let Err(trouble) = self.settle_held() {
            let refused = self.sequencer.refuse(lists.into_iter().flatten(), &unknown_outcome());
            self.publish_refused(refused, count);
            self.on_trouble(trouble);
        } else {
            self.commit_turn(lists, count);
        }
    }

    pub(super) fn execute(&self, sql: &'static str) -> rusqlite::Result<()> {
        super::run(&self.conn, sql)
    }

    /// Ends the transaction, if SQLite has not done so by itself. False when it could not be ended.
    pub(super) fn roll_back(&self) -> bool {
        if !self.conn.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            tracing::warn!(%error, "store: a rollback failed");
            return false;
        }
        true
    }

    /// Finds out what became of the batch whose commit failed. It must be known before the next one
    /// is numbered: a batch that stands in the log is published, so that positions stay contiguous.
    fn settle_held(&mut self) -> Result<(), Trouble> {
        let Some(held) = &self.held else { return Ok(()) };
        if !self.roll_back() {
            // What is read now would be what was to be undone.
            return Err(Trouble::Foreign("store: a transaction that failed cannot be ended".to_owned()));
        }
        let end = log_end(&self.conn)?;
        let known = self.sequencer.position();
        let has_entries = held.last >= held.first;
        let stands = if has_entries { end.position == held.last } else { self.stands(held)? };
        if end.position != if has_entries && stands { held.last } else { known } {
            let text = format!("store: the log ends at {} where {known} or {} was written", end.position, held.last);
            return Err(Trouble::Foreign(text));
        }
        if stands {
            self.adopt(end)?;
        }
        if let Some(held) = self.held.take()
            && stands
        {
            Counters::add(&self.counters.adopted, 1);
            self.count_commit(held.last + 1 - held.first, held.bytes.len() as u64);
            tracing::warn!(first = held.first, last = held.last, "store: a failed batch stands in the log");
            self.publish(held);
        }
        Ok(())
    }

    /// The same without anybody waiting for it.
    fn settle(&mut self) {
        if let Err(trouble) = self.settle_held() {
            self.on_trouble(trouble);
        }
    }

    /// True when a batch without entries is in the database.
    fn stands(&self, held: &CommittedBatch) -> rusqlite::Result<bool> {
        for revocation in &held.revocations {
            if !is_revoked(&self.conn, revocation)? {
                return Ok(false);
            }
        }
        for read in &held.reads {
            let mut facts = SqlFacts(&self.conn);
            let stands = match &read.device {
                None => facts.read_cursor(read.room, &read.user)?,
                Some(device) => facts.delivered_cursor(read.room, &read.user, device)?,
            };
            if stands < read.seq {
                return Ok(false);
            }
        }
        super::inbox::stands(&self.conn, &held.inbox)
    }

    fn adopt(&mut self, end: LogEnd) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare_cached(
            "SELECT author, client_id, room, seq, ts FROM log
             WHERE position > ?1 AND author IS NOT NULL AND client_id IS NOT NULL ORDER BY position",
        )?;
        let rows = statement.query_map([super::columns::signed(self.sequencer.position())], |row| {
            let integer = super::columns::integer;
            let (author, client_id): (String, String) = (row.get(0)?, row.get(1)?);
            Ok((author, client_id, RoomKey(integer(row, 2)?), integer(row, 3)?, integer(row, 4)?))
        })?;
        let rows: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
        let messages = rows.iter().map(|(author, id, room, seq, ts)| (author.as_str(), id.as_str(), *room, *seq, *ts));
        self.sequencer.adopt(end, messages);
        Ok(())
    }

    fn probe(&mut self) {
        let probed = self.execute("BEGIN IMMEDIATE").and_then(|()| self.write_probe());
        match probed {
            Ok(()) => {
                if self.breaker.on_success() {
                    self.set_degraded(false);
                }
            }
            Err(error) => {
                self.roll_back();
                self.on_trouble(error.into());
            }
        }
    }

    /// A row of its own, so that it needs new pages; the pages are given back afterwards.
    fn write_probe(&self) -> rusqlite::Result<()> {
        self.conn.execute("INSERT INTO probe (filler) VALUES (zeroblob(?1))", [PROBE_BYTES])?;
        self.faults.before_commit()?;
        self.execute("COMMIT")?;
        self.conn.execute("DELETE FROM probe", [])?;
        Ok(())
    }

    pub(super) fn on_trouble(&mut self, trouble: Trouble) {
        Counters::add(&self.counters.failures, 1);
        let error = match trouble {
            Trouble::Sql(error) if is_fatal(&error) => {
                let text = format!("store: the disk or the database failed in a way that cannot be recovered: {error}");
                return self.end_process(&text);
            }
            Trouble::Foreign(text) => return self.end_process(&text),
            Trouble::Sql(error) => error,
        };
        tracing::error!(%error, "store: a write failed; its outcome is unknown");
        if self.breaker.on_failure(now_ms()) {
            tracing::error!("store: too many failed writes in a row; writes are refused until a probe succeeds");
            self.set_degraded(true);
        }
    }

    /// What stands on the disk is no longer known: say so once, and ask for the end of the process.
    /// Should the hook return, nothing is written any more.
    fn end_process(&mut self, text: &str) {
        tracing::error!("{text}");
        self.abandoned.store(true, Relaxed);
        self.set_degraded(true);
        (self.fatal)(text);
    }

    fn set_degraded(&self, on: bool) {
        if !on {
            tracing::info!("store: writes are taken again");
        }
        self.counters.degraded.store(on, Relaxed);
        for listener in &*self.listeners {
            listener.on_store(StoreEvent::Degraded(on));
        }
    }

    pub(super) fn publish(&self, batch: CommittedBatch) {
        let batch = Arc::new(batch);
        for listener in &*self.listeners {
            listener.on_store(StoreEvent::Batch(batch.clone()));
        }
    }

    pub(super) fn publish_refused(&self, batch: CommittedBatch, count: usize) {
        Counters::add(&self.counters.refused, count as u64);
        self.publish(batch);
    }

    pub(super) fn count_commit(&self, rows: u64, bytes: u64) {
        let counters = &self.counters;
        Counters::add(&counters.batches, 1);
        Counters::add(&counters.rows, rows);
        Counters::add(&counters.bytes, bytes);
        counters.dedupe_entries.store(self.sequencer.dedupe_len() as u64, Relaxed);
        counters.dedupe_evicted.store(self.sequencer.dedupe_evicted_early(), Relaxed);
        self.rest.disturb();
    }

    /// Deletes a slice of what is too old, when that is due: at once while nobody wants anything, some
    /// seconds late under load.
    fn look_after(&mut self, is_idle: bool) {
        let now = Instant::now();
        if !self.upkeep.is_due(now, is_idle) {
            return;
        }
        if self.breaker.is_open() || self.held.is_some() {
            // The store has other worries.
            return self.upkeep.set(now, false);
        }
        let (days, changes) = (self.upkeep.days, self.conn.total_changes());
        match presence::prune(&self.conn, unix_ms(), days, &mut self.upkeep.cursor) {
            Ok(pruned) => {
                Counters::add(&self.counters.transitions_pruned, pruned.transitions);
                self.upkeep.set(now, pruned.is_full);
                if self.conn.total_changes() > changes {
                    self.rest.disturb();
                }
            }
            Err(error) => {
                self.roll_back();
                self.upkeep.set(now, false);
                self.on_trouble(error.into());
            }
        }
    }

    fn help_checkpoint(&mut self) {
        if !self.help.load(Acquire) {
            return;
        }
        match checkpoint(&self.conn, "PASSIVE") {
            Ok(_) => Counters::add(&self.counters.checkpoints, 1),
            Err(error) if is_fatal(&error) => self.on_trouble(error.into()),
            Err(error) => tracing::warn!(%error, "store: a checkpoint failed"),
        }
        self.help.store(false, Release);
    }

    /// Does what a test has ordered.
    fn bound_pages(&self) {
        if let Some(pages) = self.faults.ordered_pages()
            && let Err(error) = self.conn.pragma_update(None, "max_page_count", pages)
        {
            tracing::warn!(%error, "store: the bound of pages that a test ordered could not be set");
        }
    }

    fn closed_refusal(&self) -> Refusal {
        let retry_after_ms = match self.breaker.gate(now_ms()) {
            Gate::Refuse { retry_after_ms } => retry_after_ms,
            Gate::Probe | Gate::Pass => 1,
        };
        Refusal::new(ErrorCode::Degraded, "the store takes no writes at the moment")
            .retry_after(u32::try_from(retry_after_ms).unwrap_or(u32::MAX).max(1))
    }
}

/// The breaker's clock.
pub(super) fn now_ms() -> u64 {
    now_us() / 1_000
}

pub(super) fn unknown_outcome() -> Refusal {
    Refusal::new(ErrorCode::Degraded, "the write failed and may or may not stand; retry with the same client_id")
        .retry_after(500)
}
