//! When the writer looks for rows that are too old: a slice at a time, between batches.

use std::time::{Duration, Instant};

/// Between two looks when there was nothing left to do.
const REST: Duration = Duration::from_secs(60);
/// Between two slices when there is more.
const PAUSE: Duration = Duration::from_millis(20);
/// So late a slice is done although batches wait.
const OVERDUE: Duration = Duration::from_secs(5);
/// The same when the last one was full: 4,000 rows a second, or a busy store would fall behind for good.
const OVERDUE_FULL: Duration = Duration::from_millis(100);

/// The writer's clock for it.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// How long transitions of presence are kept.
    pub days: u32,
    /// Where the look at users goes on.
    pub cursor: String,
    due: Instant,
    overdue: Duration,
}

impl Upkeep {
    pub fn new(days: u32, now: Instant) -> Self {
        // The start has other things to do.
        Self { days, cursor: String::new(), due: now + OVERDUE, overdue: OVERDUE }
    }

    /// How long the writer may sleep.
    pub fn wait(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// True when a slice is due.
    pub fn is_due(&self, now: Instant, is_idle: bool) -> bool {
        now >= if is_idle { self.due } else { self.due + self.overdue }
    }

    /// A slice was done; `is_full`: there may be more.
    pub fn set(&mut self, now: Instant, is_full: bool) {
        let (pause, overdue) = if is_full { (PAUSE, OVERDUE_FULL) } else { (REST, OVERDUE) };
        (self.due, self.overdue) = (now + pause, overdue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_due_in_idle_time_and_late_under_load() {
        let start = Instant::now();
        let mut upkeep = Upkeep::new(30, start);
        assert_eq!(upkeep.wait(start), OVERDUE);
        let due = start + OVERDUE;
        assert!(!upkeep.is_due(due - PAUSE, true) && upkeep.is_due(due, true));
        assert!(!upkeep.is_due(due, false) && upkeep.is_due(due + OVERDUE, false));
        upkeep.set(due, true);
        assert_eq!(upkeep.wait(due), PAUSE);
        let full = due + PAUSE + OVERDUE_FULL;
        assert!(!upkeep.is_due(full - PAUSE, false) && upkeep.is_due(full, false), "there is more");
        upkeep.set(due, false);
        assert_eq!((upkeep.wait(due), upkeep.wait(due + REST * 2)), (REST, Duration::ZERO));
    }
}
