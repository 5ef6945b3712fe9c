//! When each connection is pinged: once in an interval, in one of its *sweeps*.
//!
//! A connection's sweep follows from its slot, and neighbours share one. Whoever is pinged has mostly been still for a
//! whole interval, so that all that is known of them is cold, here and in the kernel: neighbours' lies close together.

use super::rng::Rng;
use crate::protocol::ids::UnixMillis;

/// Sweeps in an interval...
const SWEEPS: u32 = 25;
/// ... this far apart at most, ms: a core that sleeps between two of them wakes with cold caches, which costs more than
/// the pings of a tenth of a second.
const STEP_MS: u32 = 1_000;
/// So many neighbours by slot are pinged in one sweep.
const NEIGHBOURS: u32 = 64;

/// The sweeps of one shard.
#[derive(Debug)]
pub struct Heartbeat {
    /// Between two sweeps, ms.
    step_ms: UnixMillis,
    /// How many there are in an interval.
    sweeps: u64,
    /// The one of the first neighbours. Random: shards need not ping at the same time.
    first: u64,
}

impl Heartbeat {
    /// Sweeps for an interval of `heartbeat_ms`, at least 1, rounded up to whole steps.
    pub fn new(heartbeat_ms: u32, rng: &mut Rng) -> Self {
        let step_ms = (heartbeat_ms / SWEEPS).clamp(1, STEP_MS);
        let sweeps = heartbeat_ms.div_ceil(step_ms).max(1);
        Self { step_ms: step_ms.into(), sweeps: sweeps.into(), first: rng.below(sweeps).into() }
    }

    /// The first sweep at `at` or later in which `slot` is pinged.
    pub fn next(&self, slot: u32, at: UnixMillis) -> UnixMillis {
        let number = at.div_ceil(self.step_ms);
        let own = self.first + u64::from(slot / NEIGHBOURS);
        (number + (own % self.sweeps + self.sweeps - number % self.sweeps) % self.sweeps) * self.step_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_pinged_once_in_an_interval_and_each_sweep_pings_as_many() {
        for heartbeat_ms in [1, 20, 333, 25_000, 30_100, 60_000] {
            let heartbeat = Heartbeat::new(heartbeat_ms, &mut Rng::new(heartbeat_ms.into()));
            let interval = heartbeat.sweeps * heartbeat.step_ms;
            assert!((0..heartbeat.step_ms).contains(&(interval - u64::from(heartbeat_ms))));
            let mut sweeps = std::collections::BTreeMap::<_, u32>::new();
            for slot in 0..NEIGHBOURS * 120 {
                let at = heartbeat.next(slot, 1_000_003);
                assert!((1_000_003..1_000_003 + interval).contains(&at), "{heartbeat_ms}: {at}");
                assert_eq!((heartbeat.next(slot, at), heartbeat.next(slot, at + 1)), (at, at + interval));
                *sweeps.entry(at).or_default() += 1;
            }
            let (least, most) = (sweeps.values().min().unwrap(), sweeps.values().max().unwrap());
            assert_eq!(sweeps.len() as u64, heartbeat.sweeps);
            assert!(most - least <= NEIGHBOURS, "{heartbeat_ms}: {least} to {most}");
        }
    }
}
