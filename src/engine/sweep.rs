//! Looking through a large table a part at a time.
//!
//! Whoever looks at each of 15,000 users at once touches as many cold cache lines, and everybody waits meanwhile.

use std::ops::Range;

/// All are looked at in so many goes...
const PARTS: usize = 12;
/// ... or in fewer: so many places at once cost nothing worth saving.
const PART_MIN: usize = 1_024;

/// Where the next part begins.
#[derive(Debug, Default)]
pub struct Sweep {
    next: usize,
}

impl Sweep {
    /// The places to look at now, of `len` in all. After [`PARTS`] calls and one, each has had its turn.
    pub fn next(&mut self, len: usize) -> Range<usize> {
        let start = if self.next < len { self.next } else { 0 };
        self.next = len.min(start + PART_MIN.max(len.div_ceil(PARTS)));
        start..self.next
    }

    /// The places of the part whose turn it is that hold what is wanted.
    pub fn find<T>(&mut self, slots: &[Option<Box<T>>], is_wanted: impl Fn(&T) -> bool) -> Vec<u32> {
        let part = self.next(slots.len());
        part.filter(|at| slots[*at].as_deref().is_some_and(&is_wanted)).map(|at| at as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_turn() {
        for len in [0, 1, PART_MIN, PART_MIN + 1, 15_000, 1_000_003] {
            let (mut sweep, mut turns) = (Sweep::default(), vec![0; len]);
            // Wherever it stands: a table that has become shorter, too.
            for longer in [len, len * 2] {
                sweep.next(longer);
            }
            for _ in 0..=PARTS {
                let part = sweep.next(len);
                assert!(part.len() <= PART_MIN.max(len / PARTS + 1), "{part:?}");
                part.for_each(|at| turns[at] += 1);
            }
            assert!(turns.iter().all(|turns| *turns > 0), "of {len}");
        }
    }
}
