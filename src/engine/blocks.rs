//! A table by number that grows in blocks. In one piece it would be copied whenever it grows, into memory that is new each
//! time, or leave half of itself unused; and with each place in memory of its own, neighbours would be strangers.

/// Places of one block.
const BLOCK: usize = 1_024;

/// Numbered places, from 0. It never shrinks.
#[derive(Debug)]
pub struct Blocks<T> {
    /// All full but the last.
    blocks: Vec<Vec<T>>,
}

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Self { blocks: Vec::new() }
    }
}

impl<T> Blocks<T> {
    /// How many places there are.
    pub fn count(&self) -> usize {
        self.blocks.last().map_or(0, |last| (self.blocks.len() - 1) * BLOCK + last.len())
    }

    /// What is at this place, if there is one.
    pub fn get(&self, at: u32) -> Option<&T> {
        let (block, place) = place_of(at);
        self.blocks.get(block)?.get(place)
    }

    /// Likewise, to change it.
    pub fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        let (block, place) = place_of(at);
        self.blocks.get_mut(block)?.get_mut(place)
    }

    /// A place behind all others: its number.
    pub fn push(&mut self, value: T) -> u32 {
        let at = self.count() as u32;
        if self.blocks.last().is_none_or(|last| last.len() == BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        self.blocks.last_mut().expect("one was added where there was none").push(value);
        at
    }

    /// What is at all places, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().flatten()
    }
}

/// The block of a place, and where in there.
fn place_of(at: u32) -> (usize, usize) {
    (at as usize / BLOCK, at as usize % BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_keep_their_numbers_over_the_ends_of_blocks() {
        let mut blocks = Blocks::default();
        assert_eq!((blocks.count(), blocks.get(0)), (0, None));
        let count = 2 * BLOCK as u32 + 1;
        assert!((0..count).all(|number| blocks.push(number) == number));
        assert_eq!(blocks.count(), count as usize);
        assert!((0..count).all(|at| blocks.get(at) == Some(&at)) && blocks.get(count).is_none());
        *blocks.get_mut(BLOCK as u32).unwrap() = 7;
        assert_eq!(blocks.iter().skip(BLOCK - 1).take(3).collect::<Vec<_>>(), [&1_023, &7, &1_025]);
    }
}
