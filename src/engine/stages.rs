//! Where the time of a message goes: the stations it passes, as names and numbers. What they cover is
//! told in `docs/OPERATIONS.md`; the clock is read elsewhere, once a turn and once a batch.

use serde::{Serialize, Serializer};

use super::stats::LatencySummary;

/// When a batch passed the stations of the persistence core: microseconds of the process's monotonic
/// clock. All 0: not known, since nothing was tried (refused) or since there is no such clock (tests).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamps {
    /// The core turned to its oldest append.
    pub taken_us: u64,
    /// It stopped gathering, and the transaction began.
    pub began_us: u64,
    /// COMMIT returned.
    pub committed_us: u64,
    /// Encoded, it went to the shards.
    pub published_us: u64,
}

impl Stamps {
    /// Whether there are any.
    pub fn are_known(&self) -> bool {
        self.committed_us != 0
    }
}

/// The times of one command, for its `ok`. They follow each other without a gap: their sum is the
/// time from `asked_us` to `applied_us`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    /// Read, checked, handed over, and waiting for the core.
    pub queue_us: u64,
    /// At hand in the core, which gathered more.
    pub gather_us: u64,
    /// In the transaction, the disk's sync included.
    pub commit_us: u64,
    /// Encoded, and waiting for its shard to take it up.
    pub fanout_us: u64,
}

impl Timing {
    /// Of a command that the shard read in the turn of `asked_us` and answers in that of `applied_us`.
    pub fn new(asked_us: u64, stamps: &Stamps, applied_us: u64) -> Self {
        // An append may come while the core gathers already, and clocks of tests stand still.
        let taken_us = stamps.taken_us.max(asked_us);
        let began_us = stamps.began_us.max(taken_us);
        let committed_us = stamps.committed_us.max(began_us);
        Self {
            queue_us: taken_us - asked_us,
            gather_us: began_us - taken_us,
            commit_us: committed_us - began_us,
            fanout_us: applied_us.saturating_sub(committed_us),
        }
    }

    /// All of them.
    pub fn total_us(&self) -> u64 {
        self.queue_us + self.gather_us + self.commit_us + self.fanout_us
    }
}

/// A station on the way of a message through the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Bytes are read, parsed, checked.
    Receive,
    /// Waits for the core.
    CommitQueue,
    /// The core gathers more.
    Gather,
    /// The transaction.
    Commit,
    /// Frames are encoded.
    Encode,
    /// Waits for a shard.
    FanoutQueue,
    /// Frames go to outboxes.
    Fanout,
    /// All that waits for it is sent.
    Flush,
    /// All of it.
    Total,
}

impl Stage {
    /// All, in the order in which a message passes them.
    pub const ALL: [Self; 9] = [
        Self::Receive,
        Self::CommitQueue,
        Self::Gather,
        Self::Commit,
        Self::Encode,
        Self::FanoutQueue,
        Self::Fanout,
        Self::Flush,
        Self::Total,
    ];

    /// As in the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::CommitQueue => "commit_queue",
            Self::Gather => "gather",
            Self::Commit => "commit",
            Self::Encode => "encode",
            Self::FanoutQueue => "fanout_queue",
            Self::Fanout => "fanout",
            Self::Flush => "flush",
            Self::Total => "total",
        }
    }
}

/// Upper bounds of the buckets, closest where a message on a healthy disk is.
pub const BUCKETS_US: [u64; 20] = [
    10, 25, 50, 100, 250, 500, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 7_500, 10_000, 15_000, 25_000, 50_000,
    100_000, 250_000, 1_000_000,
];

/// The times of one stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StageTime {
    /// Of late.
    #[serde(flatten)]
    pub recent: LatencySummary,
    /// Microseconds since start, all together.
    pub sum_us: u64,
    /// How many since start.
    pub total_count: u64,
    /// How many of these were within each of [`BUCKETS_US`] and in none before; the rest was longer.
    #[serde(skip)]
    pub buckets: [u64; BUCKETS_US.len()],
}

impl StageTime {
    /// Counts one, but for what is of late.
    pub fn count(&mut self, us: u64) {
        self.sum_us += us;
        self.total_count += 1;
        if let Some(bucket) = self.buckets.get_mut(BUCKETS_US.partition_point(|bound| *bound < us)) {
            *bucket += 1;
        }
    }
}

/// The times of every stage of one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageTimes([StageTime; Stage::ALL.len()]);

impl StageTimes {
    /// One stage's.
    pub fn get(&self, stage: Stage) -> &StageTime {
        &self.0[stage as usize]
    }

    /// One stage's, to be added to.
    pub fn get_mut(&mut self, stage: Stage) -> &mut StageTime {
        &mut self.0[stage as usize]
    }

    /// Every stage, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &StageTime)> {
        Stage::ALL.iter().map(|stage| (stage.name(), self.get(*stage)))
    }
}

impl Serialize for StageTimes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_each_other_without_a_gap() {
        let stamps = Stamps { taken_us: 150, began_us: 180, committed_us: 900, published_us: 910 };
        let timing = Timing::new(100, &stamps, 1_000);
        assert_eq!(timing, Timing { queue_us: 50, gather_us: 30, commit_us: 720, fanout_us: 100 });
        assert_eq!(timing.total_us(), 900);
        let late = Timing::new(170, &stamps, 1_000);
        assert_eq!(
            (late.queue_us, late.gather_us, late.total_us()),
            (0, 10, 830),
            "it came while others were gathered"
        );
        assert_eq!(Timing::new(7, &Stamps::default(), 9).total_us(), 2);
        assert_eq!(Timing::new(0, &Stamps::default(), 0), Timing::default());
    }

    #[test]
    fn every_stage_has_its_place_and_name() {
        let mut times = StageTimes::default();
        for (at, stage) in (1..).zip(Stage::ALL) {
            (0..at).for_each(|_| times.get_mut(stage).count(1));
        }
        let counts: Vec<u64> = times.iter().map(|(_, time)| time.total_count).collect();
        assert_eq!(counts, (1..=9).collect::<Vec<u64>>());
        let json = serde_json::to_value(&times).unwrap();
        assert_eq!(json["commit_queue"]["total_count"], 2);
        assert_eq!(
            json["total"],
            serde_json::json!({"count": 0, "p50_us": 0, "p99_us": 0, "max_us": 0, "sum_us": 9, "total_count": 9})
        );
    }

    #[test]
    fn buckets_hold_what_is_within_their_bound() {
        let mut time = StageTime::default();
        for us in [0, 10, 11, 1_000_000, 1_000_001] {
            time.count(us);
        }
        assert_eq!((time.buckets[0], time.buckets[1], time.buckets.last()), (2, 1, Some(&1)));
        assert_eq!(time.buckets.iter().sum::<u64>(), 4, "one was longer than all bounds");
        assert_eq!((time.total_count, time.sum_us), (5, 2_000_022));
        assert!(BUCKETS_US.is_sorted());
    }
}
