//! The logic of a shard, pure: no socket, disk, thread, async, clock or randomness of its own.
//!
//! Reading order: [`event`] (what can come in and go out), [`shard`] (the three calls), `handle/`
//! (what happens on each input), then the parts.

pub mod audience;
pub mod auth;
pub mod blocks;
pub mod consistency;
mod cx;
pub mod dead;
pub mod edits;
pub mod event;
mod handle;
pub mod heartbeat;
pub mod inbox;
pub mod limits;
pub mod pending;
pub mod presence;
pub mod rng;
pub mod rooms;
pub mod sequencer;
pub mod session;
pub mod shard;
pub mod stages;
pub mod stats;
mod sweep;
pub mod sync;
pub mod tally;
pub mod timers;
pub mod users;

use crate::protocol::ids::UserId;
use event::ShardId;

/// The shard that owns `user`: where all of the user's connections, limits and cursors live.
///
/// A fixed hash (64-bit FNV-1a, then the finalizer of MurmurHash3) modulo `shards`, so that every
/// thread, the admin API and a test agree without asking each other. It is not keyed: user ids come
/// from signed tokens, so a client cannot choose one to crowd a shard.
///
/// `shards` is at least 1; 0 counts as 1.
pub fn shard_of(user: &UserId, shards: u16) -> ShardId {
    let mut hash = user
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    // FNV alone leaves patterns in the low bits of ids that differ in one digit.
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    ShardId((hash % u64::from(shards.max(1))) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_spread_evenly_over_shards() {
        for pattern in ["user-", "u", "load-000000", ""] {
            for shards in [2u16, 3, 4, 7, 16] {
                let mut counts = vec![0u32; usize::from(shards)];
                for number in 0..20_000 {
                    let user = UserId::parse(&format!("{pattern}{number}")).unwrap();
                    counts[usize::from(shard_of(&user, shards).0)] += 1;
                }
                let even = 20_000 / u32::from(shards);
                for count in counts {
                    assert!(count.abs_diff(even) * 10 <= even, "{pattern:?} over {shards}: {count}, not {even}");
                }
            }
        }
    }

    #[test]
    fn the_hash_is_fixed() {
        // Pinned: the admin API and rolling upgrades rely on it.
        let owner = |name: &str| shard_of(&UserId::parse(name).unwrap(), 1000).0;
        assert_eq!([owner("alice"), owner("bob"), owner("a@b.example")], [236, 952, 377]);
        assert_eq!(shard_of(&UserId::parse("alice").unwrap(), 0), ShardId(0));
    }
}
