//! When to stop trying to write: a circuit breaker, pure.
//!
//! ```text
//!            K failures in a row             time over            probe succeeded
//!   Closed ─────────────────────► Open(until) ────────► (probe) ─────────────────► Closed
//!      ▲ a success resets               ▲                  │ failed: twice as long
//!      └────────────────                └──────────────────┘
//! ```
//! While it is open, appends are refused without touching the disk.

/// The shape of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failed commits in a row that open it, at least 1.
    pub failures_max: u32,
    /// Time until the first probe, ms; it doubles with each probe that fails.
    pub probe_min_ms: u64,
    /// Longest time between probes, ms.
    pub probe_max_ms: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures_max: 3, probe_min_ms: 250, probe_max_ms: 5_000 }
    }
}

/// Counts failures and says what may be tried. Times are any clock's milliseconds.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { probe_at_ms: u64, wait_ms: u64 },
}

/// What may be tried now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Write.
    Pass,
    /// Refuse; trying makes sense after so many milliseconds.
    Refuse {
        /// At least 1.
        retry_after_ms: u64,
    },
    /// Refuse, and try a probe.
    Probe,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, state: State::Closed { failures: 0 } }
    }

    /// What may be tried at `now_ms`.
    pub fn gate(&self, now_ms: u64) -> Gate {
        match self.state {
            State::Closed { .. } => Gate::Pass,
            State::Open { probe_at_ms, .. } if now_ms >= probe_at_ms => Gate::Probe,
            State::Open { probe_at_ms, .. } => Gate::Refuse { retry_after_ms: probe_at_ms - now_ms },
        }
    }

    /// True while writes are refused.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// A commit or probe succeeded. True when this closed the breaker.
    pub fn on_success(&mut self) -> bool {
        let was_open = self.is_open();
        self.state = State::Closed { failures: 0 };
        was_open
    }

    /// A commit or probe failed. True when this opened the breaker.
    pub fn on_failure(&mut self, now_ms: u64) -> bool {
        let (wait_ms, opened) = match self.state {
            State::Closed { failures } if failures + 1 < self.config.failures_max => {
                self.state = State::Closed { failures: failures + 1 };
                return false;
            }
            State::Closed { .. } => (self.config.probe_min_ms, true),
            State::Open { wait_ms, .. } => ((wait_ms * 2).min(self.config.probe_max_ms), false),
        };
        self.state = State::Open { probe_at_ms: now_ms + wait_ms, wait_ms };
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BreakerConfig = BreakerConfig { failures_max: 3, probe_min_ms: 100, probe_max_ms: 250 };

    #[test]
    fn failures_in_a_row_open_it_and_a_success_resets_the_count() {
        let mut breaker = Breaker::new(CONFIG);
        assert!(!breaker.on_failure(0) && !breaker.on_failure(0));
        assert!(!breaker.on_success());
        assert!(!breaker.on_failure(0) && !breaker.on_failure(0));
        assert_eq!(breaker.gate(0), Gate::Pass);
        assert!(breaker.on_failure(10));
        assert_eq!(breaker.gate(10), Gate::Refuse { retry_after_ms: 100 });
        assert_eq!(breaker.gate(109), Gate::Refuse { retry_after_ms: 1 });
        assert_eq!(breaker.gate(110), Gate::Probe);
    }

    #[test]
    fn probes_come_further_apart_until_one_succeeds() {
        let mut breaker = Breaker::new(CONFIG);
        for _ in 0..3 {
            breaker.on_failure(0);
        }
        assert!(!breaker.on_failure(100));
        assert_eq!(breaker.gate(100), Gate::Refuse { retry_after_ms: 200 });
        breaker.on_failure(300);
        assert_eq!(breaker.gate(300), Gate::Refuse { retry_after_ms: 250 });
        assert!(breaker.on_success() && !breaker.is_open());
        assert_eq!(breaker.gate(300), Gate::Pass);
    }
}
