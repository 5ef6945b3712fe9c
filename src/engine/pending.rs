//! Questions that are under way (appends, reads), by the token that their answer will carry.
//!
//! A slab: a token is a slot and the number of its use, so that an answer that comes twice, or to a
//! slot that was given out again, finds nothing.

use super::event::Token;

/// What waits for an answer, by token.
#[derive(Debug)]
pub struct Pending<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Pending<T> {
    /// Keeps `what` until its answer comes.
    pub fn insert(&mut self, what: T) -> Token {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.0 = entry.0.wrapping_add(1);
        entry.1 = Some(what);
        Token((u64::from(entry.0) << 32) | u64::from(slot))
    }

    /// Takes what waited for this answer.
    pub fn take(&mut self, token: Token) -> Option<T> {
        let (slot, uses) = (token.0 as u32, (token.0 >> 32) as u32);
        let entry = self.slots.get_mut(slot as usize).filter(|entry| entry.0 == uses)?;
        let what = entry.1.take()?;
        self.free.push(slot);
        Some(what)
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let mut pending = Pending::default();
        let a = pending.insert("a");
        let b = pending.insert("b");
        assert_eq!(pending.take(a), Some("a"));
        assert_eq!(pending.take(a), None);
        let c = pending.insert("c");
        assert_ne!(a, c);
        assert_eq!(pending.take(a), None, "the slot was given out again");
        assert_eq!((pending.take(c), pending.take(b)), (Some("c"), Some("b")));
        assert_eq!(pending.count(), 0);
    }
}
