//! How long to gather appends before a commit: the adaptive commit window, pure.
//!
//! Why wait at all: a commit costs one fsync, a wake-up of every shard and, dearest, one send for
//! each connection that hears of it, whatever it holds. Eight messages that are committed together
//! leave in one send where they would have left in eight.
//!
//! The rule, in order; the first that holds decides:
//! 1. **All are here:** commit now. When a batch is committed, everything in flight is either in it
//!    or waits already. Senders that wait for their acks (a closed loop) cannot have more than that
//!    on its way, so once as many have come again, nothing is left to wait for. A lone sender pays
//!    no wait, however fast it is.
//! 2. **Quiet** (fewer than two appends come in a window): commit now. Waiting would bring nobody.
//! 3. Otherwise wait until all are here or the window is over, but begin no later than a window and a half after the
//!    batch before: what it took to commit and send that one was a wait already, and where it takes most of the time
//!    a full window more would only lengthen every turn.
//!
//! And then, if not all are here and **every shard is still busy sending earlier batches**, wait for the first of them to
//! be nearly done: nobody would get this batch any sooner, and one that is committed then holds more. When that alone took
//! a window, sends are what the machine is short of. Then those who were just answered are given one more window to come
//! again: else they split into groups that are committed in turn, at a commit and an answer each.

/// Appends that must be likely to come within a window for it to open.
const PAYS_FROM: f64 = 2.0;
/// What may lie between the beginnings of two batches, in halves of a window.
const SPACING_HALVES: u64 = 3;
/// How fast the measured rate forgets, microseconds.
const MEMORY_US: f64 = 20_000.0;
/// How long busy shards are waited for at most, in windows.
const HOLD_WINDOWS: u64 = 10;

/// What to do before a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Commit.
    No,
    /// Wait for more appends, until as many are at hand or the time is over.
    Appends { enough: usize, us: u64 },
    /// Wait until a shard has caught up, as many are at hand, or the time is over.
    Shards { enough: usize, us: u64 },
}

/// Decides whether to wait before each commit. Times are microseconds from any fixed start.
#[derive(Debug)]
pub struct CommitWindow {
    window_us: u64,
    /// Appends of late, each worth less as it ages: `recent / MEMORY_US` is the rate.
    recent: f64,
    counted_us: u64,
    /// Appends that were in flight when the last batch was committed.
    in_flight: usize,
    /// When the wait at hand ends.
    until_us: u64,
    /// When the last batch was begun.
    begun_us: u64,
    /// When busy shards are no longer waited for.
    hold_until_us: u64,
    /// Since when they are waited for.
    held_since_us: Option<u64>,
}

impl CommitWindow {
    /// A window of `window_us` microseconds at most; 0: never wait.
    pub fn new(window_us: u32) -> Self {
        Self {
            window_us: window_us.into(),
            recent: 0.0,
            counted_us: 0,
            in_flight: 0,
            until_us: 0,
            begun_us: 0,
            hold_until_us: 0,
            held_since_us: None,
        }
    }

    /// The first append of a batch is at hand.
    pub fn open(&mut self, now_us: u64) {
        self.until_us = (now_us + self.window_us).min(self.begun_us + self.window_us * SPACING_HALVES / 2);
        self.hold_until_us = now_us + self.window_us * HOLD_WINDOWS;
        self.held_since_us = None;
    }

    /// What to do now that `waiting` appends are at hand and all shards, or not all, are behind.
    pub fn next(&mut self, waiting: usize, are_all_behind: bool, now_us: u64) -> Wait {
        if waiting >= self.in_flight {
            return self.commit(now_us);
        }
        let us = self.gather_us(now_us);
        if us > 0 {
            return Wait::Appends { enough: self.in_flight, us };
        }
        if are_all_behind && now_us < self.hold_until_us {
            self.held_since_us.get_or_insert(now_us);
            return Wait::Shards { enough: self.in_flight, us: self.hold_until_us - now_us };
        }
        // Once for a batch.
        self.hold_until_us = 0;
        match self.held_since_us.take() {
            Some(since_us) if now_us - since_us >= self.window_us => {
                self.until_us = now_us + self.window_us;
                self.next(waiting, false, now_us)
            }
            _ => self.commit(now_us),
        }
    }

    fn commit(&mut self, now_us: u64) -> Wait {
        self.begun_us = now_us;
        Wait::No
    }

    /// Microseconds for which more appends are to be waited for.
    fn gather_us(&self, now_us: u64) -> u64 {
        let expected = self.recent_at(now_us) / MEMORY_US * self.window_us as f64;
        if expected < PAYS_FROM { 0 } else { self.until_us.saturating_sub(now_us) }
    }

    /// A batch of `appends` is committed, and `waiting` more came meanwhile.
    pub fn on_committed(&mut self, appends: usize, waiting: usize, now_us: u64) {
        self.recent = self.recent_at(now_us) + appends as f64;
        self.counted_us = now_us;
        self.in_flight = appends + waiting;
    }

    fn recent_at(&self, now_us: u64) -> f64 {
        let age_us = now_us.saturating_sub(self.counted_us) as f64;
        self.recent * (-age_us / MEMORY_US).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW_US: u32 = 2_000;
    /// What a commit takes.
    const COMMIT_US: u64 = 800;

    /// Batches of `appends` each, `every_us` apart, with `waiting` more at each commit.
    fn after(batches: u64, appends: usize, waiting: usize, every_us: u64) -> (CommitWindow, u64) {
        let mut window = CommitWindow::new(WINDOW_US);
        for batch in 1..=batches {
            window.on_committed(appends, waiting, batch * every_us);
        }
        let now_us = batches * every_us;
        window.begun_us = now_us - COMMIT_US;
        window.open(now_us);
        (window, now_us)
    }

    /// Microseconds to wait for appends, with a shard that is free; 0: commit.
    fn wait_us(window: &mut CommitWindow, waiting: usize, now_us: u64) -> u64 {
        match window.next(waiting, false, now_us) {
            Wait::Appends { us, .. } => us,
            Wait::No => 0,
            Wait::Shards { .. } => panic!("a shard is free"),
        }
    }

    #[test]
    fn rare_appends_are_not_waited_for() {
        let (mut window, now_us) = after(1_000, 2, 1, 10_000);
        assert_eq!(wait_us(&mut window, 1, now_us), 0);
    }

    #[test]
    fn frequent_appends_are_waited_for_until_the_window_is_over() {
        let (mut window, now_us) = after(100, 4, 1, 2_000);
        assert_eq!(wait_us(&mut window, 1, now_us), 2_000);
        assert_eq!(wait_us(&mut window, 3, now_us + 1_500), 500);
        assert_eq!(wait_us(&mut window, 3, now_us + 2_000), 0);
    }

    #[test]
    fn time_spent_on_the_batch_before_is_not_waited_for_again() {
        let (mut window, now_us) = after(100, 8, 2, 2_000);
        window.open(now_us);
        assert_eq!(wait_us(&mut window, 9, now_us + 2_000), 0);
        window.on_committed(9, 3, now_us + 2_800);
        window.open(now_us + 3_600);
        assert_eq!(wait_us(&mut window, 4, now_us + 3_600), 1_400, "3,000 after the batch before was begun");
        assert_eq!(wait_us(&mut window, 6, now_us + 5_000), 0);
        window.on_committed(6, 7, now_us + 8_100);
        window.open(now_us + 8_100);
        assert_eq!(wait_us(&mut window, 7, now_us + 8_100), 0, "that took longer by itself");
    }

    #[test]
    fn a_lone_sender_in_a_hurry_pays_no_wait() {
        let (mut window, now_us) = after(10_000, 1, 0, 500);
        assert_eq!(wait_us(&mut window, 1, now_us), 0);
    }

    #[test]
    fn a_closed_loop_is_complete_when_all_in_flight_have_come_again() {
        let (mut window, now_us) = after(1_000, 4, 4, 1_000);
        assert!(wait_us(&mut window, 4, now_us) > 0, "two groups in turn are joined");
        assert_eq!(wait_us(&mut window, 8, now_us + 300), 0);
    }

    #[test]
    fn a_pause_closes_the_window() {
        let (mut window, now_us) = after(1_000, 8, 8, 1_000);
        assert!(wait_us(&mut window, 1, now_us) > 0);
        assert_eq!(wait_us(&mut window, 1, now_us + 100_000), 0);
    }

    #[test]
    fn a_window_of_zero_is_off() {
        let mut window = CommitWindow::new(0);
        window.on_committed(100, 100, 10);
        window.open(10);
        assert_eq!(wait_us(&mut window, 3, 10), 0);
    }

    #[test]
    fn shards_that_are_all_behind_are_waited_for_a_while() {
        let (mut window, now_us) = after(1_000, 100, 100, 5_000);
        assert_eq!(window.next(100, true, now_us + 2_000), Wait::Shards { enough: 200, us: 18_000 });
        assert_eq!(window.next(120, true, now_us + 19_000), Wait::Shards { enough: 200, us: 1_000 });
        assert_eq!(window.next(120, true, now_us + 20_000), Wait::Appends { enough: 200, us: 2_000 });
        assert_eq!(window.next(130, true, now_us + 22_000), Wait::No, "no longer");
    }

    #[test]
    fn busy_shards_are_not_waited_for_when_nobody_else_can_come() {
        let (mut window, now_us) = after(1_000, 8, 0, 5_000);
        assert_eq!(window.next(8, true, now_us), Wait::No);
        let (mut window, now_us) = after(1_000, 100, 100, 5_000);
        assert_eq!(window.next(199, true, now_us + 2_000), Wait::Shards { enough: 200, us: 18_000 });
        assert_eq!(window.next(200, true, now_us + 2_500), Wait::No);
    }

    #[test]
    fn after_a_long_hold_those_who_were_answered_may_come_again_once() {
        let (mut window, now_us) = after(1_000, 100, 200, 5_000);
        window.next(100, true, now_us + 2_000);
        let freed_us = now_us + 5_000;
        assert_eq!(window.next(150, false, freed_us), Wait::Appends { enough: 300, us: 2_000 });
        assert_eq!(window.next(200, true, freed_us + 2_000), Wait::No, "however busy they are by then");
    }

    #[test]
    fn a_short_hold_is_no_reason_to_wait_more() {
        let (mut window, now_us) = after(1_000, 8, 4, 5_000);
        assert_eq!(window.next(10, true, now_us + 2_000), Wait::Shards { enough: 12, us: 18_000 });
        assert_eq!(window.next(11, false, now_us + 3_000), Wait::No);
    }
}
