//! What the entries of a room come to, from the first to some seq: how many are messages, and a
//! rolling hash by which two parties that saw the same entries know that they did.
//!
//! The hash takes in what everybody sees of every entry, shown or stood in for: the room's name, `seq`
//! and `ts`. A client computes it from what it was told (`docs/WEBSOCKET_API.md` has the steps and an
//! example). It tells accidents from order; it does not stop anybody who wants to deceive.
//!
//! Both can be rolled back entry by entry, so that a tally at a later seq gives those before it. Pure:
//! nothing here knows where tallies are kept.

use crate::protocol::encode::EventKind;
use crate::protocol::ids::{Seq, UnixMillis};

/// The multiplier: odd, so that a step can be taken back.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTOR_INVERSE: u64 = inverse(FACTOR);

/// FNV-1a, 64 bits: where a room's hash starts.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// A room's entries up to some seq, in sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many of them are messages (`message:created`).
    pub messages: u64,
    /// The rolling hash.
    pub hash: u64,
}

impl Tally {
    /// Of a room of this name without entries.
    pub fn start(room: &str) -> Self {
        let hash = room.bytes().fold(FNV_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
        Self { messages: 0, hash }
    }

    /// Takes in the next entry.
    #[inline]
    pub fn add(&mut self, seq: Seq, ts: UnixMillis, kind: EventKind) {
        self.hash = step(step(self.hash, seq), ts);
        self.messages += u64::from(kind == EventKind::MessageCreated);
    }

    /// Undoes [`Tally::add`] of the last entry.
    #[inline]
    pub fn take_back(&mut self, seq: Seq, ts: UnixMillis, kind: EventKind) {
        self.hash = step_back(step_back(self.hash, ts), seq);
        self.messages = self.messages.wrapping_sub(u64::from(kind == EventKind::MessageCreated));
    }
}

fn step(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(FACTOR);
    mixed ^ (mixed >> 32)
}

fn step_back(hash: u64, value: u64) -> u64 {
    (hash ^ (hash >> 32)).wrapping_mul(FACTOR_INVERSE) ^ value
}

/// The inverse of an odd number modulo 2^64: each round of Newton's method doubles the bits that hold.
const fn inverse(odd: u64) -> u64 {
    let (mut found, mut round) = (odd, 0);
    while round < 6 {
        found = found.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(found)));
        round += 1;
    }
    found
}

/// A hash as clients see it: 16 lower-case hexadecimal digits.
pub fn hash_text(hash: u64) -> String {
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of `docs/WEBSOCKET_API.md`.
    #[test]
    fn the_worked_example_holds() {
        let mut tally = Tally::start("general");
        assert_eq!(hash_text(tally.hash), EXAMPLE[0]);
        tally.add(1, 1_795_560_095_000, EventKind::RoomJoined);
        assert_eq!(hash_text(tally.hash), EXAMPLE[1]);
        tally.add(2, 1_795_560_096_000, EventKind::MessageCreated);
        assert_eq!((hash_text(tally.hash).as_str(), tally.messages), (EXAMPLE[2], 1));
    }

    const EXAMPLE: [&str; 3] = ["9e275796a0d9a90b", "ba844d6bb9f5c1d0", "7dc646ff1c7b0121"];

    #[test]
    fn whatever_was_added_can_be_taken_back() {
        let start = Tally::start("größe");
        let mut tally = start;
        let kinds = EventKind::ALL;
        let entry = |seq: Seq| (seq, 1_795_560_000_000 + seq * 37, kinds[seq as usize % kinds.len()]);
        let mut seen = vec![start];
        for (seq, ts, kind) in (1..=500).map(entry) {
            tally.add(seq, ts, kind);
            assert!(!seen.contains(&tally), "a hash came twice");
            seen.push(tally);
        }
        for (seq, ts, kind) in (1..=500).rev().map(entry) {
            assert_eq!(tally, seen[seq as usize]);
            tally.take_back(seq, ts, kind);
        }
        assert_eq!(tally, start);
    }

    #[test]
    fn order_time_and_room_matter() {
        let of = |room: &str, entries: &[(Seq, UnixMillis)]| {
            let mut tally = Tally::start(room);
            entries.iter().for_each(|(seq, ts)| tally.add(*seq, *ts, EventKind::MessageCreated));
            tally.hash
        };
        let hash = of("a", &[(1, 10), (2, 20)]);
        for other in [
            of("b", &[(1, 10), (2, 20)]),
            of("a", &[(2, 20), (1, 10)]),
            of("a", &[(1, 10), (2, 21)]),
            of("a", &[(1, 10)]),
        ] {
            assert_ne!(hash, other);
        }
    }
}
