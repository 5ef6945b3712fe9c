//! How many sockets a shard may have: so many that the store and the control listener keep their descriptors. Else a
//! crowd of clients would take the last one, and nobody could ask the server what is wrong.

/// What the process keeps for itself: standard streams, the database, signals, and operators' connections.
const KEPT: u64 = 64;
/// The same for each shard: its listener, its bell, its rings.
const KEPT_A_SHARD: u64 = 8;
/// The same for each reader of the database.
const KEPT_A_READER: u64 = 2;
/// Sockets of a shard below which there is no use in starting.
const SOCKETS_MIN: u64 = 16;
/// Sockets that a shard may have beyond its sessions: those that are being upgraded.
const UPGRADING_MAX: u64 = 4_096;

/// What a shard may have at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Sockets.
    pub sockets: u64,
    /// Of them, sessions.
    pub sessions: u64,
}

/// Open files without which the server does not start.
pub fn needed(shards: u16, readers: usize) -> u64 {
    kept(shards, readers) + SOCKETS_MIN * u64::from(shards)
}

/// Each shard's share of `open_files`; none when they are too few. `sessions_max` is what was asked for.
pub fn share(open_files: u64, shards: u16, readers: usize, sessions_max: u32) -> Option<Share> {
    let most = open_files.saturating_sub(kept(shards, readers)) / u64::from(shards.max(1));
    // Who comes past the last session is told so in a close code, which takes a socket.
    let upgrading = UPGRADING_MAX.min(most / 16);
    let sessions = u64::from(sessions_max).min(most - upgrading);
    (most >= SOCKETS_MIN).then(|| Share { sockets: most.min(sessions + UPGRADING_MAX), sessions })
}

fn kept(shards: u16, readers: usize) -> u64 {
    KEPT + KEPT_A_SHARD * u64::from(shards) + KEPT_A_READER * readers as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_leaves_what_others_need() {
        assert_eq!(share(u64::MAX, 2, 2, 1_000), Some(Share { sockets: 5_096, sessions: 1_000 }));
        assert_eq!(share(1_024, 2, 2, 1_000_000), Some(Share { sockets: 470, sessions: 441 }));
        assert_eq!(share(1_048_576, 4, 2, 1_000_000), Some(Share { sockets: 262_119, sessions: 258_023 }));
        for (shards, readers) in [(1, 1), (2, 2), (64, 64)] {
            let needed = needed(shards, readers);
            assert_eq!(share(needed - 1, shards, readers, 100), None);
            assert_eq!(share(needed, shards, readers, 100), Some(Share { sockets: 16, sessions: 15 }));
            let share = share(needed + 1_000, shards, readers, u32::MAX).unwrap();
            assert!(share.sockets * u64::from(shards) + kept(shards, readers) <= needed + 1_000);
        }
        assert_eq!(share(3, 1, 1, 100), None);
    }
}
