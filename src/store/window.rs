//! How long to gather appends before a commit: the adaptive commit window, pure.
//!
//! The rule, in order:
//! 1. Quiet (recent batches hold about one append): commit at once. A lone message pays no wait.
//! 2. Much is waiting already (`target` appends): commit at once. The commit is well shared.
//! 3. Otherwise wait the window, **if waiting pays**: when the last waits did not bring at least a
//!    third more appends (a closed loop whose senders all wait for us), the next 1, 2, 4 … 64 batches
//!    are not waited for.
//!
//! Why wait at all: a commit costs one fsync, a wake-up of every shard, and a send per connection,
//! whatever it holds. While a commit runs, appends gather by themselves; the window adds to that
//! where commits are faster than messages are frequent.

/// Gathers at most this many appends by waiting.
const TARGET: usize = 256;
/// Batches below this mean are "about one append".
const QUIET_BELOW: f32 = 2.0;
/// Most batches that are skipped after a wait that did not pay.
const PENALTY_MAX: u32 = 64;
/// Weight of the newest batch in the mean.
const WEIGHT: f32 = 0.25;

/// Decides how long to wait before each commit.
#[derive(Debug)]
pub struct CommitWindow {
    window_us: u32,
    mean_rows: f32,
    /// How many batches the next wait that does not pay costs.
    penalty: u32,
    /// Batches still not to be waited for.
    skips: u32,
}

impl CommitWindow {
    /// A window of `window_us` microseconds at most; 0: never wait.
    pub fn new(window_us: u32) -> Self {
        Self { window_us, mean_rows: 0.0, penalty: 1, skips: 0 }
    }

    /// Microseconds to wait now that `waiting` appends are at hand; 0: commit at once.
    pub fn wait_us(&mut self, waiting: usize) -> u32 {
        if self.window_us == 0 || self.mean_rows < QUIET_BELOW || waiting >= TARGET {
            return 0;
        }
        if self.skips > 0 {
            self.skips -= 1;
            return 0;
        }
        self.window_us
    }

    /// A wait is over: `before` appends were at hand when it began, `after` when it ended.
    pub fn on_waited(&mut self, before: usize, after: usize) {
        if after.saturating_sub(before) * 3 >= before {
            self.penalty = 1;
        } else {
            self.skips = self.penalty;
            self.penalty = (self.penalty * 2).min(PENALTY_MAX);
        }
    }

    /// A batch of `rows` appends goes to the disk.
    pub fn on_batch(&mut self, rows: usize) {
        self.mean_rows += (rows as f32 - self.mean_rows) * WEIGHT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_traffic_never_waits() {
        let mut window = CommitWindow::new(500);
        for _ in 0..100 {
            assert_eq!(window.wait_us(1), 0);
            window.on_batch(1);
        }
    }

    #[test]
    fn load_opens_the_window_and_quiet_closes_it() {
        let mut window = CommitWindow::new(500);
        for _ in 0..5 {
            window.on_batch(4);
        }
        assert_eq!(window.wait_us(3), 500);
        assert_eq!(window.wait_us(TARGET), 0, "enough is waiting");
        for _ in 0..8 {
            window.on_batch(1);
        }
        assert_eq!(window.wait_us(1), 0);
    }

    #[test]
    fn waits_that_do_not_pay_become_rare() {
        let mut window = CommitWindow::new(500);
        window.on_batch(100);
        let mut waits = 0;
        for _ in 0..1_000 {
            if window.wait_us(40) > 0 {
                waits += 1;
                window.on_waited(40, 41);
            }
        }
        assert!((10..30).contains(&waits), "{waits}");
        // One that pays brings the window back.
        while window.wait_us(40) == 0 {}
        window.on_waited(40, 60);
        assert_eq!((window.wait_us(40), window.wait_us(40)), (500, 500));
    }

    #[test]
    fn a_window_of_zero_is_off() {
        let mut window = CommitWindow::new(0);
        window.on_batch(100);
        assert_eq!(window.wait_us(3), 0);
    }
}
