//! How long to gather appends before a commit: the adaptive commit window, pure.
//!
//! Why wait at all: a commit costs one fsync, a wake-up of every shard and, dearest, one send for
//! each connection that hears of it, whatever it holds. Eight messages that are committed together
//! leave in one send where they would have left in eight.
//!
//! The rule, in order; the first that holds decides:
//! 1. **Enough waits** (`target` appends): commit now. The commit is well shared.
//! 2. **All are here:** commit now. When a batch is committed, everything in flight is either in it
//!    or waits already. Senders that wait for their acks (a closed loop) cannot have more than that
//!    on its way, so once as many have come again, nothing is left to wait for. A lone sender pays
//!    no wait, however fast it is.
//! 3. **Quiet** (fewer than two appends come in a window): commit now. Waiting would bring nobody.
//! 4. Otherwise wait until enough are here or the window is over.

/// Gathers at most this many appends by waiting.
const TARGET: usize = 256;
/// Appends that must be likely to come within a window for it to open.
const PAYS_FROM: f64 = 2.0;
/// How fast the measured rate forgets, microseconds.
const MEMORY_US: f64 = 20_000.0;

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
}

impl CommitWindow {
    /// A window of `window_us` microseconds at most; 0: never wait.
    pub fn new(window_us: u32) -> Self {
        Self { window_us: window_us.into(), recent: 0.0, counted_us: 0, in_flight: 0, until_us: 0 }
    }

    /// The first append of a batch is at hand.
    pub fn open(&mut self, now_us: u64) {
        self.until_us = now_us + self.window_us;
    }

    /// As many appends are not waited past, whatever the time.
    pub fn enough(&self) -> usize {
        TARGET.min(self.in_flight)
    }

    /// Microseconds to wait for [`enough`](Self::enough) now that `waiting` are at hand; 0: commit.
    pub fn wait_us(&self, waiting: usize, now_us: u64) -> u64 {
        let expected = self.recent_at(now_us) / MEMORY_US * self.window_us as f64;
        if waiting >= self.enough() || expected < PAYS_FROM {
            return 0;
        }
        self.until_us.saturating_sub(now_us)
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

    /// Batches of `appends` each, `every_us` apart, with `waiting` more at each commit.
    fn after(batches: u64, appends: usize, waiting: usize, every_us: u64) -> (CommitWindow, u64) {
        let mut window = CommitWindow::new(WINDOW_US);
        for batch in 1..=batches {
            window.on_committed(appends, waiting, batch * every_us);
        }
        let now_us = batches * every_us;
        window.open(now_us);
        (window, now_us)
    }

    #[test]
    fn rare_appends_are_not_waited_for() {
        let (window, now_us) = after(1_000, 2, 1, 10_000);
        assert_eq!(window.wait_us(1, now_us), 0);
    }

    #[test]
    fn frequent_appends_are_waited_for_until_the_window_is_over() {
        let (window, now_us) = after(100, 4, 1, 2_000);
        assert_eq!(window.wait_us(1, now_us), 2_000);
        assert_eq!(window.wait_us(3, now_us + 1_500), 500);
        assert_eq!(window.wait_us(3, now_us + 2_000), 0);
        assert_eq!(window.wait_us(TARGET, now_us), 0, "enough waits");
    }

    #[test]
    fn a_lone_sender_in_a_hurry_pays_no_wait() {
        let (window, now_us) = after(10_000, 1, 0, 500);
        assert_eq!(window.wait_us(1, now_us), 0);
    }

    #[test]
    fn a_closed_loop_is_complete_when_all_in_flight_have_come_again() {
        let (window, now_us) = after(1_000, 4, 4, 1_000);
        assert!(window.wait_us(4, now_us) > 0, "two groups in turn are joined");
        assert_eq!(window.wait_us(8, now_us + 300), 0);
    }

    #[test]
    fn a_pause_closes_the_window() {
        let (window, now_us) = after(1_000, 8, 8, 1_000);
        assert!(window.wait_us(1, now_us) > 0);
        assert_eq!(window.wait_us(1, now_us + 100_000), 0);
    }

    #[test]
    fn a_window_of_zero_is_off() {
        let mut window = CommitWindow::new(0);
        window.on_committed(100, 100, 10);
        window.open(10);
        assert_eq!(window.wait_us(3, 10), 0);
    }
}
