//! The process as the control thread sees it, also before there is anything to ask: the store may take its time to
//! open, and whoever started the server wants to know that it lives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::oneshot;

use crate::control::ports::{AdminResult, Answer, Cluster, Ready};
use crate::engine::event::{AdminAct, ShardId};
use crate::engine::stats::{LatencySummary, Stats, StoreStats};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::shard::mail::{Letter, Port};
use crate::store::SqliteLog;

/// The process from the moment that its ports are taken.
pub(super) struct Process {
    shards: u16,
    running: OnceLock<Running>,
    pub(super) is_ready: Arc<AtomicBool>,
    is_draining: AtomicBool,
}

/// What there is to ask once the store is open.
struct Running {
    ports: Vec<Port>,
    log: Arc<SqliteLog>,
    origin_position: u64,
}

impl Process {
    /// One that is starting.
    pub(super) fn new(shards: u16) -> Self {
        Self { shards, running: OnceLock::new(), is_ready: Arc::default(), is_draining: AtomicBool::new(false) }
    }

    /// The log runs, and letters reach the shards.
    pub(super) fn runs(&self, ports: Vec<Port>, log: Arc<SqliteLog>, origin_position: u64) {
        let first = self.running.set(Running { ports, log, origin_position });
        debug_assert!(first.is_ok(), "a process starts once");
    }

    /// Clients may come.
    pub(super) fn accepts(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
    }

    /// Clients should go elsewhere.
    pub(super) fn drains(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.is_ready.store(false, Ordering::Relaxed);
    }

    fn port(&self, shard: ShardId) -> Option<&Port> {
        self.running.get()?.ports.get(usize::from(shard.0))
    }
}

fn busy(why: &'static str, retry_after_ms: u32) -> AdminResult {
    Err(Refusal::new(ErrorCode::Busy, why).retry_after(retry_after_ms))
}

impl Cluster for Process {
    fn shards(&self) -> u16 {
        self.shards
    }

    fn admin(&self, shard: ShardId, act: AdminAct) -> Answer<AdminResult> {
        let (answer, receiver) = oneshot::channel();
        let Some(port) = self.port(shard) else {
            let _ = answer.send(busy("the server is starting", 1_000));
            return receiver;
        };
        let letter = Letter::Admin(
            act,
            Box::new(move |result| {
                let _ = answer.send(result);
            }),
        );
        if let Err(Letter::Admin(_, answer)) = port.post(letter) {
            answer(busy("the shard's queue is full", 200));
        }
        receiver
    }

    fn shard_stats(&self, shard: ShardId) -> Answer<Stats> {
        let (answer, receiver) = oneshot::channel();
        let letter = Letter::Stats(Box::new(move |stats| {
            let _ = answer.send(*stats);
        }));
        if let Some(port) = self.port(shard) {
            // A letter that comes back is dropped, which the receiver sees.
            let _ = port.post(letter);
        }
        receiver
    }

    fn store_stats(&self) -> StoreStats {
        let Some(Running { log, origin_position, .. }) = self.running.get() else { return StoreStats::default() };
        let stats = log.stats();
        StoreStats {
            position: origin_position + stats.rows,
            degraded: u64::from(stats.degraded),
            inbox_len: stats.inbox_len,
            reads_waiting: stats.reads_waiting,
            dedupe_entries: stats.dedupe_entries,
            wal_bytes: stats.wal_bytes,
            batches: stats.batches,
            rows: stats.rows,
            bytes: stats.bytes,
            appends: stats.appends,
            duplicates: stats.duplicates,
            refused: stats.refused,
            failures: stats.failures,
            adopted: stats.adopted,
            inbox_full: stats.inbox_full,
            dedupe_evicted: stats.dedupe_evicted,
            items_refused: stats.items_refused,
            items_evicted: stats.items_evicted,
            items_expired: stats.items_expired,
            transitions_written: stats.transitions_written,
            transitions_pruned: stats.transitions_pruned,
            poisoned: stats.poisoned,
            dead_letters_dropped: stats.letters_dropped,
            dead_letters: stats.letters,
            reads: stats.reads,
            read_errors: stats.read_errors,
            checkpoints: stats.checkpoints,
            commit_time: LatencySummary::from(&stats.commit_us),
            read_time: LatencySummary::from(&stats.read_us),
        }
    }

    fn ready(&self) -> Ready {
        Ready {
            accepting: self.is_ready.load(Ordering::Relaxed),
            store: self.running.get().is_some_and(|running| !running.log.stats().degraded),
            draining: self.is_draining.load(Ordering::Relaxed),
        }
    }
}
