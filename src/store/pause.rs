//! Readers stand aside for a moment, so that the write-ahead log can start over: it cannot while anybody reads from it,
//! and readers that take turns leave no such moment by themselves.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Shared by the readers and who pauses them. A reader passes it once for each list of questions.
#[derive(Debug, Default)]
pub(super) struct Pause {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_on: bool,
    /// Snapshots that are open.
    reading: u32,
}

/// Held by a reader while it has a snapshot.
#[derive(Debug)]
pub(super) struct Reading<'a>(&'a Pause);

/// No reader has a snapshot, and none gets one, until this goes.
#[derive(Debug)]
pub(super) struct Paused<'a>(&'a Pause);

impl Pause {
    /// Waits for the end of a pause.
    pub fn read(&self) -> Reading<'_> {
        let mut state = self.changed.wait_while(self.state(), |state| state.is_on).expect(UNPOISONED);
        state.reading += 1;
        Reading(self)
    }

    /// Lets nobody begin to read and waits for those who do, at most so long. `None`: somebody takes longer, and
    /// the pause is over. One caller at a time.
    pub fn begin(&self, at_most: Duration) -> Option<Paused<'_>> {
        let mut state = self.state();
        debug_assert!(!state.is_on, "one caller at a time");
        state.is_on = true;
        let paused = Paused(self);
        let (state, _) = self.changed.wait_timeout_while(state, at_most, |state| state.reading > 0).expect(UNPOISONED);
        let is_quiet = state.reading == 0;
        // The end of a pause that failed takes the lock too.
        drop(state);
        is_quiet.then_some(paused)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(UNPOISONED)
    }
}

const UNPOISONED: &str = "nothing panics while it is locked";

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.reading -= 1;
        if state.is_on {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.state().is_on = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_pause_waits_for_those_who_read_and_holds_off_those_who_come() {
        let pause = Pause::default();
        let reading = pause.read();
        assert!(pause.begin(Duration::from_millis(1)).is_none(), "somebody reads");
        drop(pause.read());
        drop(reading);
        let paused = pause.begin(LONG).unwrap();
        let passed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _reading = pause.read();
                passed.store(true, SeqCst);
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!passed.load(SeqCst));
            drop(paused);
        });
        assert!(passed.load(SeqCst));
    }

    #[test]
    fn readers_without_a_rest_are_paused_all_the_same() {
        let (pause, reading, over) = (Pause::default(), AtomicU32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(SeqCst) {
                        let _reading = pause.read();
                        reading.fetch_add(1, SeqCst);
                        std::thread::sleep(Duration::from_millis(1));
                        reading.fetch_sub(1, SeqCst);
                    }
                });
            }
            for _ in 0..50 {
                let _paused = pause.begin(LONG).unwrap();
                assert_eq!(reading.load(SeqCst), 0);
            }
            over.store(true, SeqCst);
        });
    }
}
