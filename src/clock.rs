//! One monotonic clock for all threads of the process, in whole microseconds: what one thread stamps,
//! another can subtract. It is for measuring; the time of day comes from elsewhere.

use std::sync::LazyLock;
use std::time::Instant;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Microseconds since the first call in this process, plus one: 0 is never a reading, so that it can
/// stand for "not known".
pub fn now_us() -> u64 {
    1 + ORIGIN.elapsed().as_micros() as u64
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
