//! One monotonic clock for all threads of the process, in whole microseconds: what one thread stamps,
//! another can subtract. It is for measuring; beside it the time of day, and a clock that began with it.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::protocol::ids::UnixMillis;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Microseconds since the first call in this process, plus one: 0 is never a reading, so that it can
/// stand for "not known".
pub fn now_us() -> u64 {
    1 + ORIGIN.elapsed().as_micros() as u64
}

/// The time of day, milliseconds since 1970. It may be set at any moment.
pub fn unix_ms() -> UnixMillis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The time of day as it stood at the start, going on at its own pace: nobody sets it.
#[derive(Debug, Clone, Copy)]
pub struct SteadyClock {
    start_ms: UnixMillis,
    start_us: u64,
}

impl SteadyClock {
    /// Shows the time of day now.
    pub fn start() -> Self {
        Self::starting(now_us(), unix_ms())
    }

    /// Shows `start_ms` when the process's clock shows `start_us`.
    pub fn starting(start_us: u64, start_ms: UnixMillis) -> Self {
        Self { start_ms, start_us }
    }

    /// What it shows when the process's clock shows `us`, milliseconds.
    pub fn at(self, us: u64) -> UnixMillis {
        self.start_ms + us.saturating_sub(self.start_us) / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::now_us;

    #[test]
    fn readings_of_all_threads_are_on_one_line() {
        let before = now_us();
        let between = std::thread::spawn(now_us).join().unwrap();
        let after = now_us();
        assert!(before > 0 && before <= between && between <= after, "{before} {between} {after}");
    }
}
