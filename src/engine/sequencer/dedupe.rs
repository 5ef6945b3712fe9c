//! "Sent once": which `(author, client_id)` pairs are known, and where their first entry stands.
//!
//! Holds a 128-bit hash of each pair and a queue in order of arrival; never the texts. Entries leave
//! when their window is over, or early when the bound is reached (counted). What a batch adds is
//! tentative until [`Dedupe::settle`], so that a failed commit can take it back.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use ahash::RandomState;

use crate::protocol::ids::{RoomKey, Seq, UnixMillis};

/// Hash of an `(author, client_id)` pair. Two independent 64-bit halves, keyed per process: a peer
/// who does not know the keys cannot make two pairs collide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PairHash {
    low: u64,
    high: u64,
}

impl std::hash::Hash for PairHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

/// The first entry of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First {
    pub room: RoomKey,
    pub seq: Seq,
    pub ts: UnixMillis,
}

/// The keys are hashes already.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        debug_assert!(false, "only PairHash is hashed here");
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[derive(Debug)]
pub(super) struct Dedupe {
    window_ms: u64,
    entries_max: usize,
    hashers: (RandomState, RandomState),
    /// Pair → its place in the queue, counted from the first entry ever queued.
    places: std::collections::HashMap<PairHash, u64, BuildHasherDefault<PassThrough>>,
    queue: VecDeque<(PairHash, First)>,
    /// How many have left the front of the queue.
    popped: u64,
    tentative: usize,
    evicted_early: u64,
}

impl Dedupe {
    pub fn new(window_ms: u32, entries_max: usize, seed: u64) -> Self {
        let state = |salt: u64| RandomState::with_seeds(seed, seed.rotate_left(17) ^ salt, !seed, salt);
        Self {
            window_ms: u64::from(window_ms),
            entries_max,
            hashers: (state(0x9e37_79b9_7f4a_7c15), state(0xc2b2_ae3d_27d4_eb4f)),
            places: Default::default(),
            queue: VecDeque::new(),
            popped: 0,
            tentative: 0,
            evicted_early: 0,
        }
    }

    pub fn is_on(&self) -> bool {
        self.window_ms > 0 && self.entries_max > 0
    }

    pub fn hash(&self, author: &str, client_id: &str) -> PairHash {
        let pair = (author, client_id);
        PairHash { low: self.hashers.0.hash_one(pair), high: self.hashers.1.hash_one(pair) }
    }

    /// The first entry of this pair, when it is known and its window is not over.
    pub fn find(&self, hash: PairHash, now: UnixMillis) -> Option<First> {
        let place = *self.places.get(&hash)?;
        let (_, first) = self.queue[(place - self.popped) as usize];
        (now < first.ts.saturating_add(self.window_ms)).then_some(first)
    }

    /// Adds a pair tentatively. The caller has asked [`Dedupe::find`] and let go what is over.
    pub fn add(&mut self, hash: PairHash, first: First) {
        self.places.insert(hash, self.popped + self.queue.len() as u64);
        self.queue.push_back((hash, first));
        self.tentative += 1;
    }

    /// What was added stands. Lets go the oldest past the bound.
    pub fn settle(&mut self) {
        self.tentative = 0;
        while self.queue.len() > self.entries_max {
            self.pop();
            self.evicted_early += 1;
        }
    }

    /// Takes back what was added since the last [`Dedupe::settle`].
    pub fn take_back(&mut self) {
        for _ in 0..std::mem::take(&mut self.tentative) {
            if let Some((hash, _)) = self.queue.pop_back() {
                self.places.remove(&hash);
            }
        }
    }

    /// Lets go what is over at `now`. To be called before a batch is decided.
    pub fn expire(&mut self, now: UnixMillis) {
        debug_assert_eq!(self.tentative, 0);
        while let Some((_, first)) = self.queue.front() {
            if now < first.ts.saturating_add(self.window_ms) {
                break;
            }
            self.pop();
        }
    }

    /// Puts an older pair in front, as the log is read backwards at start. The newest entry of a
    /// pair wins. False when there is no room for it or anything older.
    pub fn add_older(&mut self, hash: PairHash, first: First) -> bool {
        if self.queue.len() >= self.entries_max {
            return false;
        }
        // Looked up once: a million of these are read before the server is ready.
        if let Entry::Vacant(place) = self.places.entry(hash) {
            // Places count from the first entry ever; going backwards they count down from here.
            self.popped -= 1;
            place.insert(self.popped);
            self.queue.push_front((hash, first));
        }
        true
    }

    /// Prepares for [`Dedupe::add_older`] on an empty window.
    pub fn begin_rebuild(&mut self) {
        debug_assert!(self.queue.is_empty());
        self.popped = u64::MAX / 2;
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn evicted_early(&self) -> u64 {
        self.evicted_early
    }

    fn pop(&mut self) {
        if let Some((hash, _)) = self.queue.pop_front() {
            // An expired pair may have been added anew; its place is then a later one.
            if self.places.get(&hash) == Some(&self.popped) {
                self.places.remove(&hash);
            }
            self.popped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seq: Seq, ts: UnixMillis) -> First {
        First { room: RoomKey(1), seq, ts }
    }

    #[test]
    fn a_pair_is_known_within_its_window_only() {
        let mut dedupe = Dedupe::new(100, 10, 7);
        let hash = dedupe.hash("alice", "1");
        assert_eq!(dedupe.find(hash, 0), None);
        dedupe.add(hash, first(1, 1_000));
        dedupe.settle();
        assert_eq!(dedupe.find(hash, 1_099), Some(first(1, 1_000)));
        assert_eq!(dedupe.find(hash, 1_100), None);
        dedupe.expire(1_100);
        assert_eq!(dedupe.len(), 0);
        // Not the same pair, although the texts joined are the same.
        assert_ne!(dedupe.hash("ab", "c"), dedupe.hash("a", "bc"));
    }

    #[test]
    fn the_bound_lets_the_oldest_go_and_counts() {
        let mut dedupe = Dedupe::new(1_000, 2, 7);
        let hashes: Vec<_> = (0..3).map(|n| dedupe.hash("alice", &n.to_string())).collect();
        for (n, hash) in hashes.iter().enumerate() {
            dedupe.add(*hash, first(n as u64 + 1, 5));
        }
        assert_eq!(dedupe.find(hashes[0], 6), Some(first(1, 5)), "nothing leaves while a batch is open");
        dedupe.settle();
        assert_eq!((dedupe.len(), dedupe.evicted_early()), (2, 1));
        assert_eq!(dedupe.find(hashes[0], 6), None);
        assert_eq!(dedupe.find(hashes[1], 6), Some(first(2, 5)));
    }

    #[test]
    fn a_failed_batch_is_taken_back_whole() {
        let mut dedupe = Dedupe::new(1_000, 10, 7);
        let (a, b) = (dedupe.hash("alice", "a"), dedupe.hash("alice", "b"));
        dedupe.add(a, first(1, 5));
        dedupe.settle();
        dedupe.add(b, first(2, 6));
        dedupe.take_back();
        assert_eq!(dedupe.find(a, 7), Some(first(1, 5)));
        assert_eq!(dedupe.find(b, 7), None);
        assert_eq!(dedupe.len(), 1);
    }

    #[test]
    fn it_is_rebuilt_backwards_and_goes_on_forwards() {
        let mut dedupe = Dedupe::new(1_000, 3, 7);
        dedupe.begin_rebuild();
        let hashes: Vec<_> = (0..4).map(|n| dedupe.hash("alice", &n.to_string())).collect();
        assert!(dedupe.add_older(hashes[3], first(3, 30)));
        assert!(dedupe.add_older(hashes[3], first(1, 10)), "an older entry of a known pair is skipped");
        assert!(dedupe.add_older(hashes[2], first(2, 20)));
        assert_eq!(dedupe.find(hashes[3], 31), Some(first(3, 30)));
        dedupe.add(hashes[0], first(4, 40));
        dedupe.settle();
        assert!(!dedupe.add_older(hashes[1], first(1, 1)));
        for (n, expected) in [(0, Some(first(4, 40))), (2, Some(first(2, 20))), (3, Some(first(3, 30))), (1, None)] {
            assert_eq!(dedupe.find(hashes[n], 41), expected);
        }
        dedupe.expire(1_020);
        assert_eq!((dedupe.len(), dedupe.find(hashes[3], 1_021)), (2, Some(first(3, 30))));
    }
}
