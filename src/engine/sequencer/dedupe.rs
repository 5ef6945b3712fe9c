//! "Sent once": which `(author, client_id)` pairs are known, and where their first entry stands.
//!
//! Holds a 128-bit hash of each pair and a queue in order of arrival; never the texts. Entries leave
//! when their window is over, or early when the bound is reached (counted). What a batch adds is
//! tentative until [`Dedupe::settle`], so that a failed commit can take it back.
//!
//! The window is counted by a steady clock: when the wall clock is set forward, nothing is forgotten. The queue is in
//! the order of that clock, so that one note serves all pairs of a batch.

mod queue;
mod table;

use std::collections::VecDeque;

use ahash::RandomState;
use queue::Queue;
use table::{Table, Tag};

use crate::protocol::ids::{RoomKey, Seq, UnixMillis};

/// Hash of an `(author, client_id)` pair. Two independent 64-bit halves, keyed per process: a peer
/// who does not know the keys cannot make two pairs collide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PairHash {
    low: u64,
    high: u64,
}

impl PairHash {
    /// Which table the pair is in.
    fn table(self) -> usize {
        self.high as usize % TABLES
    }

    /// What it is known by there.
    fn tag(self) -> Tag {
        Tag::of(self.low)
    }
}

/// The first entry of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First {
    pub room: RoomKey,
    pub seq: Seq,
    pub ts: UnixMillis,
}

/// Tables that the pairs are spread over. One that has become too small is built anew in the middle of a batch: better a
/// 64th of the pairs than all of them.
const TABLES: usize = 64;

/// Pairs that are let go together.
const TOGETHER: usize = 64;

/// Most pairs that can be told apart by their places.
const ENTRIES_MAX: usize = u32::MAX as usize / 2;

/// A place in the queue, counted from the first entry ever queued, modulo 2³²: fewer than that are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(u32);

impl Place {
    /// Its index in a queue that begins with `front`.
    fn after(self, front: Self) -> usize {
        self.0.wrapping_sub(front.0) as usize
    }

    /// The place so many further on.
    fn plus(self, count: usize) -> Self {
        Self(self.0.wrapping_add(count as u32))
    }
}

#[derive(Debug)]
pub(super) struct Dedupe {
    window_ms: u64,
    entries_max: usize,
    hashers: (RandomState, RandomState),
    /// Where each pair stands in the queue. The whole hash is there, and looked at once a table has a candidate.
    places: [Table; TABLES],
    queue: Queue<(PairHash, First)>,
    /// The place of the front of the queue.
    front: Place,
    /// From when on the pairs of the queue are kept, by the steady clock, and how many of them: together all of it.
    since: VecDeque<(UnixMillis, usize)>,
    tentative: usize,
    evicted_early: u64,
}

impl Dedupe {
    pub fn new(window_ms: u32, entries_max: usize, seed: u64) -> Self {
        let state = |salt: u64| RandomState::with_seeds(seed, seed.rotate_left(17) ^ salt, !seed, salt);
        Self {
            window_ms: u64::from(window_ms),
            entries_max: entries_max.min(ENTRIES_MAX),
            hashers: (state(0x9e37_79b9_7f4a_7c15), state(0xc2b2_ae3d_27d4_eb4f)),
            places: std::array::from_fn(|_| Table::default()),
            queue: Queue::new(),
            front: Place(0),
            since: VecDeque::new(),
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

    /// The first entry of this pair, when it is known. The caller has let go what is over.
    pub fn find(&self, hash: PairHash) -> Option<First> {
        let is_same = |place: Place| self.queue.at(place.after(self.front)).0 == hash;
        let place = self.places[hash.table()].find(hash.tag(), is_same)?;
        Some(self.queue.at(place.after(self.front)).1)
    }

    /// Brings what will be looked at for these pairs into the cache, all at once: of a million hardly any is in the cache,
    /// and one after the other they would be waited for one by one.
    pub fn fetch(&self, hashes: impl Iterator<Item = PairHash>) {
        let peeked = hashes.map(|hash| self.places[hash.table()].peek(hash.tag()));
        std::hint::black_box(peeked.fold(0, |all, one| all ^ one));
    }

    /// Adds a pair tentatively. The caller has let go what is over at `now` and asked [`Dedupe::find`].
    pub fn add(&mut self, hash: PairHash, first: First, now: UnixMillis) {
        debug_assert!(self.find(hash).is_none(), "a pair is added once");
        let place = self.front.plus(self.queue.len());
        self.places[hash.table()].add(hash.tag(), place);
        self.queue.push_back((hash, first));
        match self.since.back_mut() {
            Some((since, count)) if *since >= now => *count += 1,
            _ => self.since.push_back((now, 1)),
        }
        self.tentative += 1;
    }

    /// What was added stands. Lets go the oldest past the bound.
    pub fn settle(&mut self) {
        self.tentative = 0;
        let excess = self.queue.len().saturating_sub(self.entries_max);
        self.let_go(excess);
        self.evicted_early += excess as u64;
    }

    /// Takes back what was added since the last [`Dedupe::settle`].
    pub fn take_back(&mut self) {
        for _ in 0..std::mem::take(&mut self.tentative) {
            if let Some((hash, _)) = self.queue.pop_back() {
                self.forget(hash, self.front.plus(self.queue.len()));
                if let Some((_, count)) = self.since.back_mut() {
                    *count -= 1;
                    if *count == 0 {
                        self.since.pop_back();
                    }
                }
            }
        }
    }

    /// Lets go what is over at `now`. To be called before a batch is decided.
    pub fn expire(&mut self, now: UnixMillis) {
        debug_assert_eq!(self.tentative, 0);
        let is_over = |since: UnixMillis| now >= since.saturating_add(self.window_ms);
        let over = self.since.iter().take_while(|(since, _)| is_over(*since)).map(|(_, count)| count).sum();
        self.let_go(over);
    }

    /// Puts an older pair in front, as the log is read backwards at start. The newest entry of a
    /// pair wins. False when there is no room for it or anything older.
    pub fn add_older(&mut self, hash: PairHash, first: First, since: UnixMillis) -> bool {
        if self.queue.len() >= self.entries_max {
            return false;
        }
        if self.find(hash).is_none() {
            let before = Place(self.front.0.wrapping_sub(1));
            self.places[hash.table()].add(hash.tag(), before);
            self.queue.push_front((hash, first));
            self.front = before;
            match self.since.front_mut() {
                Some((newer, count)) if *newer <= since => *count += 1,
                _ => self.since.push_front((since, 1)),
            }
        }
        true
    }

    /// Takes a pair out of the table.
    fn forget(&mut self, hash: PairHash, place: Place) {
        self.places[hash.table()].remove(hash.tag(), place);
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn evicted_early(&self) -> u64 {
        self.evicted_early
    }

    /// Lets go the oldest.
    fn let_go(&mut self, mut count: usize) {
        while count > 0 {
            let together = count.min(TOGETHER);
            self.fetch((0..together).map(|index| self.queue.at(index).0));
            (0..together).for_each(|_| self.pop());
            count -= together;
        }
    }

    fn pop(&mut self) {
        if let Some((hash, _)) = self.queue.pop_front() {
            self.forget(hash, self.front);
            self.front = self.front.plus(1);
            if let Some((_, count)) = self.since.front_mut() {
                *count -= 1;
                if *count == 0 {
                    self.since.pop_front();
                }
            }
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
        assert_eq!(dedupe.find(hash), None);
        dedupe.add(hash, first(1, 7), 1_000);
        dedupe.settle();
        dedupe.expire(1_099);
        assert_eq!(dedupe.find(hash), Some(first(1, 7)));
        dedupe.expire(1_100);
        assert_eq!((dedupe.find(hash), dedupe.len(), dedupe.since.len()), (None, 0, 0));
        // Not the same pair, although the texts joined are the same.
        assert_ne!(dedupe.hash("ab", "c"), dedupe.hash("a", "bc"));
    }

    #[test]
    fn the_bound_lets_the_oldest_go_and_counts() {
        let mut dedupe = Dedupe::new(1_000, 2, 7);
        let hashes: Vec<_> = (0..3).map(|n| dedupe.hash("alice", &n.to_string())).collect();
        for (n, hash) in hashes.iter().enumerate() {
            dedupe.add(*hash, first(n as u64 + 1, 5), 5);
        }
        assert_eq!(dedupe.find(hashes[0]), Some(first(1, 5)), "nothing leaves while a batch is open");
        dedupe.settle();
        assert_eq!((dedupe.len(), dedupe.evicted_early()), (2, 1));
        assert_eq!(dedupe.find(hashes[0]), None);
        assert_eq!(dedupe.find(hashes[1]), Some(first(2, 5)));
    }

    #[test]
    fn a_failed_batch_is_taken_back_whole() {
        let mut dedupe = Dedupe::new(1_000, 10, 7);
        let hashes: Vec<_> = (0..4).map(|n| dedupe.hash("alice", &n.to_string())).collect();
        dedupe.add(hashes[0], first(1, 5), 5);
        dedupe.settle();
        for (hash, now) in [(1, 5), (2, 6), (3, 6)] {
            dedupe.add(hashes[hash], first(2, now), now);
        }
        dedupe.take_back();
        let known: Vec<_> = hashes.iter().map(|hash| dedupe.find(*hash)).collect();
        assert_eq!(known, [Some(first(1, 5)), None, None, None]);
        assert_eq!((dedupe.len(), &dedupe.since), (1, &[(5, 1)].into()));
    }

    #[test]
    fn places_go_on_past_their_largest_number() {
        let mut dedupe = Dedupe::new(1_000, 4, 7);
        dedupe.front = Place(u32::MAX - 5);
        let hashes: Vec<_> = (0..100).map(|n| dedupe.hash("alice", &n.to_string())).collect();
        for (n, hash) in (0..).zip(&hashes) {
            dedupe.add(*hash, first(n, n), n);
            dedupe.settle();
            let oldest = n.saturating_sub(3);
            assert!((oldest..=n).all(|n| dedupe.find(hashes[n as usize]) == Some(first(n, n))));
            assert!((0..oldest).all(|n| dedupe.find(hashes[n as usize]).is_none()));
        }
    }

    #[test]
    fn it_is_rebuilt_backwards_and_goes_on_forwards() {
        let mut dedupe = Dedupe::new(1_000, 3, 7);
        let hashes: Vec<_> = (0..4).map(|n| dedupe.hash("alice", &n.to_string())).collect();
        assert!(dedupe.add_older(hashes[3], first(3, 30), 30));
        assert!(dedupe.add_older(hashes[3], first(1, 10), 10), "an older entry of a known pair is skipped");
        assert!(dedupe.add_older(hashes[2], first(2, 20), 20));
        assert_eq!(dedupe.find(hashes[3]), Some(first(3, 30)));
        dedupe.add(hashes[0], first(4, 40), 40);
        dedupe.settle();
        assert!(!dedupe.add_older(hashes[1], first(1, 1), 1));
        for (n, expected) in [(0, Some(first(4, 40))), (2, Some(first(2, 20))), (3, Some(first(3, 30))), (1, None)] {
            assert_eq!(dedupe.find(hashes[n]), expected);
        }
        dedupe.expire(1_020);
        assert_eq!((dedupe.len(), dedupe.find(hashes[3])), (2, Some(first(3, 30))));
    }

    #[test]
    fn an_older_pair_from_a_clock_that_was_ahead_leaves_with_the_newer_ones() {
        let mut dedupe = Dedupe::new(1_000, 9, 7);
        let hashes: Vec<_> = (0..2).map(|n| dedupe.hash("alice", &n.to_string())).collect();
        assert!(dedupe.add_older(hashes[1], first(2, 20), 20) && dedupe.add_older(hashes[0], first(1, 900), 900));
        dedupe.expire(1_019);
        assert_eq!((dedupe.len(), dedupe.find(hashes[0])), (2, Some(first(1, 900))));
        dedupe.expire(1_020);
        assert_eq!((dedupe.len(), dedupe.since.len()), (0, 0));
    }
}
