//! The sleep of a thread that looks now and then whether there is something to do, and not at all while nobody writes.
//!
//! Nobody's wake-up is lost: the sleeper says that it rests and then asks whether it may, who disturbs it writes first
//! and then looks whether it rests, and both in one order that all threads agree on. A token that is left over from
//! an earlier wake-up costs one look too many.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::thread::Thread;
use std::time::Duration;

/// Shared by one sleeper and those who wake it.
#[derive(Debug, Default)]
pub(super) struct Rest {
    is_resting: AtomicBool,
    is_over: AtomicBool,
    sleeper: OnceLock<Thread>,
}

impl Rest {
    /// The sleeper: `false` when it is to end, and otherwise after `at_most`, or earlier.
    pub fn nap(&self, at_most: Duration) -> bool {
        self.sleep_unless_over(|| std::thread::park_timeout(at_most))
    }

    /// The sleeper: the same, but until [`Rest::disturb`]. Not at all unless `is_quiet`.
    pub fn sleep(&self, is_quiet: impl Fn() -> bool) -> bool {
        self.is_resting.store(true, SeqCst);
        fence(SeqCst);
        let goes_on = self.sleep_unless_over(|| {
            if is_quiet() {
                std::thread::park();
            }
        });
        self.is_resting.store(false, Relaxed);
        goes_on
    }

    fn sleep_unless_over(&self, sleep: impl Fn()) -> bool {
        self.sleeper.get_or_init(std::thread::current);
        // Not before the sleeper is known: whoever ends this either finds it, or is seen here.
        fence(SeqCst);
        if !self.is_over.load(SeqCst) {
            sleep();
        }
        !self.is_over.load(SeqCst)
    }

    /// There is something to look at, and `is_quiet` no longer holds. One load while nobody sleeps.
    pub fn disturb(&self) {
        fence(SeqCst);
        if self.is_resting.load(Relaxed) && self.is_resting.swap(false, SeqCst) {
            self.wake();
        }
    }

    /// The sleeper is to end.
    pub fn end(&self) {
        self.is_over.store(true, SeqCst);
        fence(SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Some(sleeper) = self.sleeper.get() {
            sleeper.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    /// Longer than anything takes that is woken.
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn no_disturbance_is_slept_over() {
        const ROUNDS: u64 = 20_000;
        let (rest, written, seen) = (Rest::default(), AtomicU64::new(0), AtomicU64::new(0));
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    // As many steps of the sleeper as there are to meet it at.
                    (0..round % 50).for_each(|_| std::hint::spin_loop());
                    written.store(round, SeqCst);
                    rest.disturb();
                    while seen.load(SeqCst) < round && began.elapsed() < LONG {
                        std::thread::yield_now();
                    }
                }
                rest.end();
            });
            while rest.sleep(|| written.load(SeqCst) == seen.load(SeqCst)) {
                seen.store(written.load(SeqCst), SeqCst);
            }
        });
        assert_eq!(seen.into_inner(), ROUNDS, "a disturbance was slept over");
    }

    #[test]
    fn an_end_is_seen_before_and_during_a_sleep() {
        let rest = Rest::default();
        assert!(rest.nap(Duration::from_millis(1)));
        assert!(rest.sleep(|| false), "nothing is quiet");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                rest.end();
            });
            let began = Instant::now();
            while rest.nap(LONG) {}
            assert!(began.elapsed() < LONG);
        });
        assert!(!rest.nap(LONG) && !rest.sleep(|| true));
    }
}
