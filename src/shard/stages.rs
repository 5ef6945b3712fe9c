//! What a shard measures of itself: how long its turns take, how long it takes to wake, and where the
//! time of messages goes, stage by stage.
//!
//! The clock is read a few times a turn and never for a message or a recipient. What happened in the
//! persistence core stands in the batch ([`Stamps`]). Driven by the driver in the order of its turn:
//! `begin` → `on_harvested` → `on_batch` … → `on_applied` → `on_submitted` → `before_flush` → `end`.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use crate::clock::now_us;
use crate::engine::stages::{Stage, StageTimes, Stamps};
use crate::engine::stats::{LatencySummary, Stats};

/// How long one of the two halves of what is called "of late" is filled: a reading covers the last
/// one to two of these.
const HALF_US: u64 = 30_000_000;
/// Longest time that is told apart: a minute.
const LONGEST_US: u64 = 60_000_000;

/// One shard's measurements.
pub(super) struct Stages {
    turns: Recent,
    wakes: Recent,
    recent: [Recent; Stage::ALL.len()],
    times: StageTimes,
    /// Lists of appends that the core has and has not answered: it answers them in this order.
    submitted: VecDeque<Submitted>,
    /// Since when appends wait that the core did not take.
    untaken: Option<(u64, u64)>,
    /// Turns with batches that are being sent out, oldest first.
    sending: VecDeque<Sending>,
    /// When the turns began whose appends were answered in those and in this one, in order.
    answered: VecDeque<u64>,
    /// Of the turn at hand: its begin, the end of its harvest, whether a batch was applied, and the lists of appends
    /// that were answered.
    began_us: u64,
    received_us: u64,
    has_applied: bool,
    lists_answered: usize,
    half_ends_us: u64,
}

/// A turn whose batches are being sent out.
struct Sending {
    turn_us: u64,
    flushing_us: u64,
    lists_answered: usize,
}

struct Submitted {
    began_us: u64,
    received_us: u64,
    appends: usize,
}

impl Stages {
    pub fn new() -> Self {
        Self {
            turns: Recent::new(),
            wakes: Recent::new(),
            recent: std::array::from_fn(|_| Recent::new()),
            times: StageTimes::default(),
            submitted: VecDeque::new(),
            untaken: None,
            sending: VecDeque::new(),
            answered: VecDeque::new(),
            began_us: 0,
            received_us: 0,
            has_applied: false,
            lists_answered: 0,
            half_ends_us: now_us() + HALF_US,
        }
    }

    /// A turn begins.
    pub fn begin(&mut self, now_us: u64) {
        self.began_us = now_us;
        self.received_us = now_us;
        self.has_applied = false;
        self.lists_answered = 0;
        if now_us >= self.half_ends_us {
            self.turn_over(now_us);
        }
    }

    /// The second half becomes the first. After a long sleep both are over.
    #[cold]
    fn turn_over(&mut self, now_us: u64) {
        let times = if now_us >= self.half_ends_us + HALF_US { 2 } else { 1 };
        for recent in self.recent.iter_mut().chain([&mut self.turns, &mut self.wakes]) {
            (0..times).for_each(|_| recent.turn_over());
        }
        self.half_ends_us = now_us + HALF_US;
    }

    /// Completions were harvested; `has_frames`: clients said something. Returns the time.
    pub fn on_harvested(&mut self, has_frames: bool) -> u64 {
        self.received_us = now_us();
        if has_frames {
            self.record(Stage::Receive, self.received_us - self.began_us);
        }
        self.received_us
    }

    /// A batch is about to be applied that answers so many appends of this shard.
    pub fn on_batch(&mut self, stamps: &Stamps, answers: usize) {
        self.has_applied = true;
        let is_known = stamps.are_known();
        if is_known {
            self.record(Stage::FanoutQueue, self.received_us.saturating_sub(stamps.published_us));
        }
        if is_known && answers > 0 {
            self.record(Stage::Commit, stamps.committed_us.saturating_sub(stamps.began_us));
            self.record(Stage::Encode, stamps.published_us.saturating_sub(stamps.committed_us));
        }
        let mut left = answers;
        while left > 0
            && let Some(list) = self.submitted.front_mut()
        {
            let part = list.appends.min(left);
            list.appends -= part;
            left -= part;
            let (began_us, received_us) = (list.began_us, list.received_us);
            if list.appends == 0 {
                self.submitted.pop_front();
            }
            if is_known {
                self.record(Stage::CommitQueue, stamps.taken_us.saturating_sub(received_us));
                self.record(Stage::Gather, stamps.began_us.saturating_sub(stamps.taken_us.max(received_us)));
                self.answered.push_back(began_us);
                self.lists_answered += 1;
            }
        }
    }

    /// All of the turn's batches were applied.
    pub fn on_applied(&mut self) {
        if self.has_applied {
            self.record(Stage::Fanout, now_us() - self.received_us);
        }
    }

    /// The turn's appends were handed to the core.
    pub fn on_submitted(&mut self, appends: usize) {
        let (began_us, received_us) = self.untaken.take().unwrap_or((self.began_us, self.received_us));
        self.submitted.push_back(Submitted { began_us, received_us, appends });
    }

    /// The core did not take the appends; they wait for the next turn.
    pub fn on_not_taken(&mut self) {
        self.untaken.get_or_insert((self.began_us, self.received_us));
    }

    /// Outboxes are about to be sent.
    pub fn before_flush(&mut self) {
        if self.has_applied {
            let (turn_us, lists_answered) = (self.began_us, self.lists_answered);
            self.sending.push_back(Sending { turn_us, flushing_us: now_us(), lists_answered });
        }
    }

    /// The turn is over, and there was something to do in it. What became ready to be sent in turns that began before
    /// `oldest_us` has been sent (none: everything).
    pub fn end(&mut self, oldest_us: Option<u64>) {
        let now_us = now_us();
        self.turns.record(now_us - self.began_us);
        while let Some(sent) = self.sending.front()
            && oldest_us.is_none_or(|oldest| sent.turn_us < oldest)
        {
            let Sending { flushing_us, lists_answered, .. } = *sent;
            self.sending.pop_front();
            self.record(Stage::Flush, now_us - flushing_us);
            for _ in 0..lists_answered {
                let began_us = self.answered.pop_front().unwrap_or(now_us);
                self.record(Stage::Total, now_us - began_us);
            }
        }
    }

    /// Somebody woke this shard so many microseconds ago.
    pub fn on_woken(&mut self, us: u64) {
        self.wakes.record(us);
    }

    /// Writes what was measured into a shard's numbers.
    pub fn write(&self, stats: &mut Stats) {
        stats.turn_time = self.turns.summary();
        stats.wake_latency = self.wakes.summary();
        stats.stages = self.times.clone();
        for (stage, recent) in Stage::ALL.into_iter().zip(&self.recent) {
            stats.stages.get_mut(stage).recent = recent.summary();
        }
    }

    fn record(&mut self, stage: Stage, us: u64) {
        self.recent[stage as usize].record(us);
        self.times.get_mut(stage).count(us);
    }
}

/// Times of late, in two halves, so that whoever reads them takes nothing from another reader. Small
/// (6 % of resolution): there are many of them, and they should stay in the cache.
struct Recent {
    first: Histogram<u32>,
    second: Histogram<u32>,
}

impl Recent {
    fn new() -> Self {
        let half = || Histogram::new_with_bounds(1, LONGEST_US, 1).expect("bounds are valid");
        Self { first: half(), second: half() }
    }

    fn record(&mut self, us: u64) {
        self.second.saturating_record(us);
    }

    fn turn_over(&mut self) {
        std::mem::swap(&mut self.first, &mut self.second);
        self.second.reset();
    }

    fn summary(&self) -> LatencySummary {
        let mut both = self.first.clone();
        both.add(&self.second).expect("both halves have the same bounds");
        LatencySummary::from(&both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(stages: &Stages) -> Stats {
        let mut stats = Stats::default();
        stages.write(&mut stats);
        stats
    }

    fn count(stages: &Stages, stage: Stage) -> u64 {
        written(stages).stages.get(stage).total_count
    }

    fn stamps(now_us: u64) -> Stamps {
        Stamps { taken_us: now_us, began_us: now_us + 5, committed_us: now_us + 20, published_us: now_us + 30 }
    }

    /// A turn in which so many appends are submitted, and a batch that answers so many is applied.
    fn turn(stages: &mut Stages, appends: usize, batch: Option<(Stamps, usize)>) {
        stages.begin(now_us());
        stages.on_harvested(appends > 0);
        if let Some((stamps, answers)) = batch {
            stages.on_batch(&stamps, answers);
        }
        stages.on_applied();
        if appends > 0 {
            stages.on_submitted(appends);
        }
        stages.before_flush();
        stages.end(None);
    }

    #[test]
    fn each_list_is_measured_once_when_its_batch_comes() {
        let mut stages = Stages::new();
        for appends in [3, 1, 2] {
            turn(&mut stages, appends, None);
        }
        assert_eq!((count(&stages, Stage::Receive), count(&stages, Stage::Fanout)), (3, 0));
        turn(&mut stages, 0, Some((stamps(now_us()), 4)));
        assert_eq!((count(&stages, Stage::CommitQueue), count(&stages, Stage::Total)), (2, 2), "two lists of three");
        assert_eq!((stages.submitted.len(), count(&stages, Stage::Commit)), (1, 1));
        turn(&mut stages, 0, Some((stamps(now_us()), 2)));
        turn(&mut stages, 0, Some((stamps(now_us()), 0)));
        let stats = written(&stages);
        for (stage, due) in Stage::ALL.into_iter().zip([3, 3, 3, 2, 2, 3, 3, 3, 3]) {
            let time = stats.stages.get(stage);
            assert_eq!((time.total_count, time.recent.count), (due, due), "{stage:?}");
        }
        assert_eq!((stats.turn_time.count, stages.submitted.len()), (6, 0));
        let commit = stats.stages.get(Stage::Commit);
        assert_eq!((commit.sum_us, commit.buckets[1], commit.recent.max_us), (30, 2, 15));
        assert_eq!(stats.stages.get(Stage::Encode).sum_us, 20);
    }

    #[test]
    fn a_batch_is_sent_when_nothing_of_its_turn_waits_any_more() {
        let mut stages = Stages::new();
        turn(&mut stages, 1, None);
        let began_us = now_us();
        stages.begin(began_us);
        stages.on_harvested(false);
        stages.on_batch(&stamps(began_us), 1);
        stages.on_applied();
        stages.before_flush();
        stages.end(Some(began_us));
        assert_eq!((count(&stages, Stage::Flush), count(&stages, Stage::Total)), (0, 0), "some of it waits");
        turn(&mut stages, 1, None);
        assert_eq!((count(&stages, Stage::Flush), count(&stages, Stage::Total)), (1, 1));
        assert!(stages.sending.is_empty() && stages.answered.is_empty());
    }

    #[test]
    fn a_refused_batch_answers_its_list_and_measures_nothing() {
        let mut stages = Stages::new();
        turn(&mut stages, 2, None);
        turn(&mut stages, 1, Some((Stamps::default(), 2)));
        assert_eq!((count(&stages, Stage::Total), count(&stages, Stage::FanoutQueue)), (0, 0));
        assert_eq!(stages.submitted.len(), 1);
        turn(&mut stages, 0, Some((stamps(now_us()), 1)));
        assert_eq!((count(&stages, Stage::Total), stages.submitted.len()), (1, 0));
    }

    #[test]
    fn appends_that_were_not_taken_count_from_their_first_turn() {
        let mut stages = Stages::new();
        stages.begin(1);
        stages.on_not_taken();
        stages.begin(now_us());
        stages.on_not_taken();
        stages.on_submitted(1);
        assert_eq!(stages.submitted[0].began_us, 1);
        stages.on_submitted(1);
        assert_eq!(stages.submitted[1].began_us, stages.began_us);
    }

    #[test]
    fn what_is_of_late_passes_and_what_was_counted_stays() {
        let mut stages = Stages::new();
        let began_us = stages.half_ends_us;
        stages.record(Stage::Flush, 500);
        stages.begin(began_us);
        assert_eq!(written(&stages).stages.get(Stage::Flush).recent.count, 1, "the other half");
        stages.record(Stage::Flush, 700);
        let again = written(&stages).stages.get(Stage::Flush).recent;
        assert_eq!((again.count, again, written(&stages).stages.get(Stage::Flush).recent), (2, again, again));
        stages.begin(began_us + HALF_US);
        assert_eq!(written(&stages).stages.get(Stage::Flush).recent.count, 1);
        stages.begin(began_us + 10 * HALF_US);
        let flush = *written(&stages).stages.get(Stage::Flush);
        assert_eq!((flush.recent.count, flush.total_count, flush.sum_us), (0, 2, 1_200));
    }
}
