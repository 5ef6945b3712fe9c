//! A shard's two times. Deadlines need one that neither leaps nor goes backwards; clients, tokens and the store mean the
//! time of day, which somebody may set, and which a machine that was asleep finds changed.

use crate::clock::{SteadyClock, unix_ms};
use crate::engine::event::ShardId;
use crate::protocol::ids::UnixMillis;

/// How often the two are compared, microseconds.
const COMPARE_US: u64 = 100_000;
/// From how much on a change of the time of day is worth a line in the log, milliseconds.
const LEAP_MS: u64 = 1_000;

/// Milliseconds for deadlines: the time of day at the start plus a monotonic clock. And how far the time of day is
/// ahead of that.
pub(super) struct Clock {
    steady: SteadyClock,
    ahead_ms: i64,
    compared_us: u64,
}

impl Clock {
    /// The two are the same from here on, until the time of day is set.
    pub fn new(now_us: u64, unix_ms: UnixMillis) -> Self {
        Self { steady: SteadyClock::starting(now_us, unix_ms), ahead_ms: 0, compared_us: now_us }
    }

    /// The time for deadlines at a moment of the process's clock.
    pub fn at(&self, now_us: u64) -> UnixMillis {
        self.steady.at(now_us)
    }

    /// The time of day at a time for deadlines.
    pub fn time_of_day(&self, now: UnixMillis) -> UnixMillis {
        now.saturating_add_signed(self.ahead_ms)
    }

    /// Compares the two, when it is time again. How far the time of day is ahead, if they were compared.
    pub fn look(&mut self, now_us: u64, shard: ShardId) -> Option<i64> {
        if now_us.saturating_sub(self.compared_us) < COMPARE_US {
            return None;
        }
        let leap_ms = self.compare(now_us, unix_ms());
        // Once for the process.
        if leap_ms.unsigned_abs() >= LEAP_MS && shard.0 == 0 {
            tracing::warn!(leap_ms, "the time of day was set; tokens and timestamps follow it");
        }
        Some(self.ahead_ms)
    }

    /// By how much the time of day was set since the last comparison.
    fn compare(&mut self, now_us: u64, unix_ms: UnixMillis) -> i64 {
        self.compared_us = now_us;
        let ahead_ms = unix_ms.cast_signed() - self.at(now_us).cast_signed();
        ahead_ms - std::mem::replace(&mut self.ahead_ms, ahead_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_do_not_leap_when_the_time_of_day_is_set() {
        let mut clock = Clock::new(5_000, 1_000_000);
        assert_eq!(clock.look(5_000 + COMPARE_US - 1, ShardId(0)), None);
        assert_eq!(clock.compare(105_000, 1_003_700), 3_600);
        assert_eq!((clock.at(105_000), clock.time_of_day(1_000_100)), (1_000_100, 1_003_700));
        assert_eq!(clock.compare(205_000, 900_200), -103_600);
        assert_eq!((clock.at(205_000), clock.time_of_day(1_000_200)), (1_000_200, 900_200));
        assert_eq!(clock.compare(305_000, 900_300), 0);
    }
}
