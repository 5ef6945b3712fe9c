//! A long queue in pieces: it grows by one piece at a time, where one buffer would be copied whole whenever it is full,
//! which for a million pairs is 40 MB in the middle of a batch.

use std::collections::VecDeque;

/// Items of a piece.
const PIECE: usize = 4_096;

/// A double-ended queue that never moves what is in it.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// All full but the first and the last; none empty.
    pieces: VecDeque<VecDeque<T>>,
    len: usize,
    /// The piece that became empty last, for the next that is needed.
    spare: Option<VecDeque<T>>,
}

impl<T> Queue<T> {
    pub fn new() -> Self {
        Self { pieces: VecDeque::new(), len: 0, spare: None }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The item at `index`, counted from the front.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn at(&self, index: usize) -> &T {
        let first = &self.pieces[0];
        match index.checked_sub(first.len()) {
            None => &first[index],
            Some(behind) => &self.pieces[1 + behind / PIECE][behind % PIECE],
        }
    }

    pub fn push_back(&mut self, item: T) {
        if self.pieces.back().is_none_or(|last| last.len() == PIECE) {
            let piece = self.piece();
            self.pieces.push_back(piece);
        }
        if let Some(last) = self.pieces.back_mut() {
            last.push_back(item);
            self.len += 1;
        }
    }

    pub fn push_front(&mut self, item: T) {
        if self.pieces.front().is_none_or(|first| first.len() == PIECE) {
            let piece = self.piece();
            self.pieces.push_front(piece);
        }
        if let Some(first) = self.pieces.front_mut() {
            first.push_front(item);
            self.len += 1;
        }
    }

    pub fn pop_back(&mut self) -> Option<T> {
        let last = self.pieces.back_mut()?;
        let item = last.pop_back();
        if last.is_empty() {
            self.spare = self.pieces.pop_back();
        }
        self.len -= 1;
        item
    }

    pub fn pop_front(&mut self) -> Option<T> {
        let first = self.pieces.front_mut()?;
        let item = first.pop_front();
        if first.is_empty() {
            self.spare = self.pieces.pop_front();
        }
        self.len -= 1;
        item
    }

    fn piece(&mut self) -> VecDeque<T> {
        self.spare.take().unwrap_or_else(|| VecDeque::with_capacity(PIECE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_a_deque(steps in proptest::collection::vec((0u8..4, 1usize..6_000), 1..12)) {
            let (mut queue, mut model) = (Queue::new(), VecDeque::new());
            let mut next = 0u32;
            for (step, times) in steps {
                for _ in 0..times {
                    next += 1;
                    match step {
                        0 => { queue.push_back(next); model.push_back(next); }
                        1 => { queue.push_front(next); model.push_front(next); }
                        2 => prop_assert_eq!(queue.pop_back(), model.pop_back()),
                        _ => prop_assert_eq!(queue.pop_front(), model.pop_front()),
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                for (index, item) in model.iter().enumerate() {
                    prop_assert_eq!(queue.at(index), item);
                }
                let pieces = queue.pieces.len();
                for (index, piece) in queue.pieces.iter().enumerate() {
                    prop_assert!(!piece.is_empty() && piece.capacity() == PIECE);
                    prop_assert!(index == 0 || index == pieces - 1 || piece.len() == PIECE);
                }
            }
        }
    }
}
