//! What a turn of an engine leaves to be done. Memory is kept from turn to turn, and a storm's given back.

use super::{ConnKey, Output};

/// What [`drain_outputs`](super::shard::Shard::drain_outputs) fills. Cleared and reused, so that a
/// turn allocates nothing.
#[derive(Debug, Default)]
pub struct Outputs {
    /// In the order in which they are to be done.
    pub list: Vec<Output>,
    /// Arena for [`Output::Fanout`].
    pub targets: Vec<ConnKey>,
    /// Arena for [`Frames::Scratch`](super::Frames::Scratch).
    pub bytes: Vec<u8>,
    small_turns: u32,
}

impl Outputs {
    /// Forgets everything, keeps the memory; after many small turns in a row only what such need, so that
    /// a storm leaves none behind.
    pub fn clear(&mut self) {
        let is_small = self.targets.len() <= OUTPUTS_KEPT && self.bytes.len() <= BYTES_KEPT;
        self.small_turns = if is_small { self.small_turns.saturating_add(1) } else { 0 };
        self.list.clear();
        self.targets.clear();
        self.bytes.clear();
        if self.small_turns == SMALL_TURNS {
            self.list.shrink_to(OUTPUTS_KEPT);
            self.targets.shrink_to(OUTPUTS_KEPT);
            self.bytes.shrink_to(BYTES_KEPT);
        }
    }
}

/// Outputs, and targets, of a small turn.
const OUTPUTS_KEPT: usize = 256;
/// Bytes of a small turn.
const BYTES_KEPT: usize = 16 * 1_024;
/// So many small turns in a row end a storm.
const SMALL_TURNS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_storm_goes_after_some_small_turns() {
        let mut outputs = Outputs::default();
        outputs.bytes.resize(1_000_000, 0);
        outputs.clear();
        for _ in 1..SMALL_TURNS {
            outputs.clear();
        }
        assert!(outputs.bytes.capacity() >= 1_000_000, "the next large turn may come");
        outputs.clear();
        assert!(outputs.bytes.capacity() <= BYTES_KEPT);
    }
}
