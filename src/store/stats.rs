//! What the store counts, and how it is read: atomics that its threads add to, once per batch or
//! question, and that anybody may read at any time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use hdrhistogram::Histogram;

/// A reading of the store's counters. All count from the start of the process.
#[derive(Debug, Clone)]
pub struct StoreStats {
    /// Transactions committed.
    pub batches: u64,
    /// Log rows committed.
    pub rows: u64,
    /// Bytes of frames encoded.
    pub bytes: u64,
    /// Appends answered, whatever the answer.
    pub appends: u64,
    /// Messages answered with an earlier entry.
    pub duplicates: u64,
    /// Appends refused because the store took no writes or a commit failed.
    pub refused: u64,
    /// Commits that failed.
    pub failures: u64,
    /// Failed batches that turned out to stand in the log.
    pub adopted: u64,
    /// Time of a transaction from its begin to the end of its commit, µs.
    pub commit_us: Histogram<u64>,
    /// Appends in a batch.
    pub batch_appends: Histogram<u64>,
    /// Lists of appends that wait in the writer's inbox.
    pub inbox_len: u64,
    /// Times that the inbox was full.
    pub inbox_full: u64,
    /// Pairs in the dedupe window.
    pub dedupe_entries: u64,
    /// Pairs that left the dedupe window early because it was full.
    pub dedupe_evicted: u64,
    /// Inbox items refused or left out because the inbox was full.
    pub items_refused: u64,
    /// Inbox items thrown out of a full inbox.
    pub items_evicted: u64,
    /// Inbox items deleted because their time was over.
    pub items_expired: u64,
    /// Transitions of presence written.
    pub transitions_written: u64,
    /// Transitions of presence deleted because they were too old.
    pub transitions_pruned: u64,
    /// Entries that could not be written and were put aside.
    pub poisoned: u64,
    /// Dead letters that were let go because there were too many.
    pub letters_dropped: u64,
    /// Dead letters that are kept.
    pub letters: u64,
    /// Questions answered.
    pub reads: u64,
    /// Questions answered with an error.
    pub read_errors: u64,
    /// Questions that wait.
    pub reads_waiting: u64,
    /// Time to answer a question, µs, without its time in the queue.
    pub read_us: Histogram<u64>,
    /// Bytes of the write-ahead log that are in use.
    pub wal_bytes: u64,
    /// Checkpoints done.
    pub checkpoints: u64,
    /// The store takes no writes.
    pub degraded: bool,
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub batches: AtomicU64,
    pub rows: AtomicU64,
    pub bytes: AtomicU64,
    pub appends: AtomicU64,
    pub duplicates: AtomicU64,
    pub refused: AtomicU64,
    pub failures: AtomicU64,
    pub adopted: AtomicU64,
    pub commit_us: Buckets,
    pub batch_appends: Buckets,
    pub inbox_full: AtomicU64,
    pub dedupe_entries: AtomicU64,
    pub dedupe_evicted: AtomicU64,
    pub items_refused: AtomicU64,
    pub items_evicted: AtomicU64,
    pub items_expired: AtomicU64,
    pub transitions_written: AtomicU64,
    pub transitions_pruned: AtomicU64,
    pub poisoned: AtomicU64,
    pub letters_dropped: AtomicU64,
    pub letters: AtomicU64,
    pub reads: AtomicU64,
    pub read_errors: AtomicU64,
    pub read_us: Buckets,
    pub wal_bytes: AtomicU64,
    pub checkpoints: AtomicU64,
    pub degraded: AtomicBool,
}

impl Counters {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    pub fn read(&self, inbox_len: usize, reads_waiting: usize) -> StoreStats {
        StoreStats {
            batches: self.batches.load(Relaxed),
            rows: self.rows.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            appends: self.appends.load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            refused: self.refused.load(Relaxed),
            failures: self.failures.load(Relaxed),
            adopted: self.adopted.load(Relaxed),
            commit_us: self.commit_us.histogram(),
            batch_appends: self.batch_appends.histogram(),
            inbox_len: inbox_len as u64,
            inbox_full: self.inbox_full.load(Relaxed),
            dedupe_entries: self.dedupe_entries.load(Relaxed),
            dedupe_evicted: self.dedupe_evicted.load(Relaxed),
            items_refused: self.items_refused.load(Relaxed),
            items_evicted: self.items_evicted.load(Relaxed),
            items_expired: self.items_expired.load(Relaxed),
            transitions_written: self.transitions_written.load(Relaxed),
            transitions_pruned: self.transitions_pruned.load(Relaxed),
            poisoned: self.poisoned.load(Relaxed),
            letters_dropped: self.letters_dropped.load(Relaxed),
            letters: self.letters.load(Relaxed),
            reads: self.reads.load(Relaxed),
            read_errors: self.read_errors.load(Relaxed),
            reads_waiting: reads_waiting as u64,
            read_us: self.read_us.histogram(),
            wal_bytes: self.wal_bytes.load(Relaxed),
            checkpoints: self.checkpoints.load(Relaxed),
            degraded: self.degraded.load(Relaxed),
        }
    }
}

/// Sixteen buckets for each power of two: 6 % of resolution.
const SUB_BITS: u32 = 4;
/// Values up to 2^36 (19 hours in µs) are told apart.
const BUCKETS: usize = (36 << SUB_BITS) as usize;

/// A histogram that is added to without a lock.
#[derive(Debug)]
pub(super) struct Buckets(Box<[AtomicU64]>);

impl Default for Buckets {
    fn default() -> Self {
        Self(std::iter::repeat_with(AtomicU64::default).take(BUCKETS).collect())
    }
}

impl Buckets {
    pub fn record(&self, value: u64) {
        self.0[Self::index(value)].fetch_add(1, Relaxed);
    }

    fn index(value: u64) -> usize {
        let base = 1u64 << SUB_BITS;
        if value < base {
            return value as usize;
        }
        let power = value.ilog2() - SUB_BITS;
        let index = ((power as usize + 1) << SUB_BITS) + ((value >> power) - base) as usize;
        index.min(BUCKETS - 1)
    }

    /// The highest value of a bucket.
    fn value(index: usize) -> u64 {
        let (power, rest) = (index >> SUB_BITS, (index & ((1 << SUB_BITS) - 1)) as u64);
        if power == 0 {
            return rest;
        }
        (((1 << SUB_BITS) + rest + 1) << (power - 1)) - 1
    }

    fn histogram(&self) -> Histogram<u64> {
        let mut out = Histogram::new_with_max(1 << 37, 2).expect("two digits are within what a histogram can do");
        for (index, count) in self.0.iter().enumerate() {
            match count.load(Relaxed) {
                0 => {}
                count => out.saturating_record_n(Self::value(index), count),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_precise() {
        for value in (0..5_000).chain([1 << 20, (1 << 30) + 12_345]) {
            let top = Buckets::value(Buckets::index(value));
            assert!(top >= value && top - value <= value / 16, "{value} {top}");
        }
        assert_eq!(Buckets::index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_reading_has_what_was_recorded() {
        let buckets = Buckets::default();
        for value in 1..=100 {
            buckets.record(value * 10);
        }
        let histogram = buckets.histogram();
        assert_eq!(histogram.len(), 100);
        assert!((480..=540).contains(&histogram.value_at_quantile(0.5)), "{}", histogram.value_at_quantile(0.5));
    }
}
