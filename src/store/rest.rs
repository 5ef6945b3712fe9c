//! The sleep of a thread that looks now and then whether there is something to do, and not at all while nobody writes.
//!
//! No wake-up is lost: writes are counted under the lock under which the sleeper looks at their number.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Shared by one sleeper and those who wake it.
#[derive(Debug, Default)]
pub(super) struct Rest {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    writes: u64,
    /// Asleep until somebody writes.
    is_resting: bool,
    is_over: bool,
}

impl Rest {
    /// The sleeper: `false` when it is to end, and otherwise after `at_most`.
    pub fn nap(&self, at_most: Duration) -> bool {
        let nap = self.changed.wait_timeout_while(self.state(), at_most, |state| !state.is_over);
        !nap.expect(UNPOISONED).0.is_over
    }

    /// How often [`Rest::disturb`] was called.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// The sleeper: the same, but until there are more writes than it has `seen`.
    pub fn sleep(&self, seen: u64) -> bool {
        let mut state = self.state();
        state.is_resting = state.writes == seen;
        let sleep = self.changed.wait_while(state, |state| state.is_resting && !state.is_over);
        !sleep.expect(UNPOISONED).is_over
    }

    /// Something was written.
    pub fn disturb(&self) {
        let mut state = self.state();
        state.writes += 1;
        if std::mem::take(&mut state.is_resting) {
            self.changed.notify_one();
        }
    }

    /// The sleeper is to end.
    pub fn end(&self) {
        self.state().is_over = true;
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(UNPOISONED)
    }
}

const UNPOISONED: &str = "nothing panics while it is locked";

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::time::Instant;

    /// Longer than anything takes that is woken.
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn no_disturbance_is_slept_over() {
        const ROUNDS: u64 = 20_000;
        let (rest, seen) = (Rest::default(), AtomicU64::new(0));
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    // As many steps of the sleeper as there are to meet it at.
                    (0..round % 50).for_each(|_| std::hint::spin_loop());
                    rest.disturb();
                    while seen.load(SeqCst) < round && began.elapsed() < LONG {
                        std::thread::yield_now();
                    }
                }
                rest.end();
            });
            while rest.sleep(seen.load(SeqCst)) {
                seen.store(rest.writes(), SeqCst);
            }
        });
        assert_eq!(seen.into_inner(), ROUNDS, "a disturbance was slept over");
    }

    #[test]
    fn an_end_is_seen_before_and_during_a_sleep() {
        let rest = Rest::default();
        assert!(rest.nap(Duration::from_millis(1)));
        rest.disturb();
        assert!(rest.sleep(0), "there was a write");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                rest.end();
            });
            let began = Instant::now();
            while rest.nap(LONG) {}
            assert!(began.elapsed() < LONG);
        });
        assert!(!rest.nap(LONG) && !rest.sleep(1));
    }
}
