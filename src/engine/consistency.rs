//! Whether a room is the same everywhere: in a shard's memory, in the core's, in the store's head row,
//! and in the store's entries, which are what counts.
//!
//! An [`Audit`] is what the store says of one stretch of a room's entries, at most 64 of them between
//! two noted sums; [`judge`] says what is wrong when that and a witness (somebody's memory) differ.
//! Pure: who asks when is in `handle/consistency.rs`, how the store counts in `store/audit.rs`.

use std::collections::BTreeMap;

use super::rooms::Room;
use super::tally::Tally;
use crate::protocol::ids::{Position, RoomKey, Seq, UnixMillis};

/// Cached entries that are counted again in one check: the newest ones.
const CACHED_MAX: usize = 1_024;
/// Rooms that are to be looked at again soon. Past it they wait for their turn.
const AGAIN_MAX: usize = 64;
/// How often the core is asked whether a diverged room is well again, ms.
pub const ASK_AGAIN_MS: u64 = 5_000;
/// A diverged room is logged at most this often, ms.
pub const SAY_AGAIN_MS: u64 = 60_000;

/// Somebody's memory of a room: what its entries come to at a seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// The entry.
    pub seq: Seq,
    /// What the entries come to there.
    pub tally: Tally,
}

/// What the store has of a stretch of a room's entries: from an anchor up to the next one, or to the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// The stretch ends at the room's last entry; else at an anchor.
    pub is_head: bool,
    /// What is noted of its end; none: nothing, or something about another entry.
    pub noted: Option<Tally>,
    /// Its last entry.
    pub last: (Seq, Position),
    /// What the entries come to there, counted again.
    pub counted: Tally,
    /// The same at the seq that was asked about; none: the room ends before it.
    pub here: Option<Tally>,
}

/// Entries that do not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// About where.
    pub seq: Seq,
    /// How.
    pub what: &'static str,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (at seq {})", self.what, self.seq)
    }
}

/// What a comparison came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// All the same.
    Well,
    /// The store adds up, and the witness remembers otherwise.
    Memory,
    /// The entries are as the witness remembers them, and the head row says otherwise.
    Head,
    /// The entries do not add up, or nobody remembers them so.
    Rows(Broken),
}

/// Compares what the store has with a witness. Two that agree are right against the third.
pub fn judge(audit: &Result<Audit, Broken>, witness: Tally) -> Finding {
    let audit = match audit {
        Ok(audit) => audit,
        Err(broken) => return Finding::Rows(*broken),
    };
    let is_noted = audit.noted == Some(audit.counted);
    match audit.here {
        None => Finding::Rows(Broken { seq: audit.last.0 + 1, what: "entries are missing at the end" }),
        Some(here) if is_noted && here == witness => Finding::Well,
        Some(_) if is_noted => Finding::Memory,
        Some(here) if audit.is_head && here == witness => Finding::Head,
        Some(_) => Finding::Rows(Broken { seq: audit.last.0, what: "the entries differ from what is noted of them" }),
    }
}

/// True when the newest recent entries of a room follow each other up to its head and come to what the
/// room remembers.
pub fn is_cache_whole(room: &Room) -> bool {
    let mut count = 0;
    let newest = room.recent.iter().rev().take_while(|recent| {
        let is_wanted = count < CACHED_MAX;
        count += recent.get().entries.len();
        is_wanted
    });
    let start = room.recent.len() - newest.count();
    let Some(first) = room.recent.get(start) else { return true };
    let (mut seq, mut tally) = (first.first.wrapping_sub(1), first.get().tally_before());
    for recent in room.recent.range(start..) {
        let run = recent.get();
        for entry in &run.entries {
            if entry.seq != seq.wrapping_add(1) {
                return false;
            }
            seq = entry.seq;
            tally.add(entry.seq, entry.ts, entry.kind);
        }
        if tally != run.tally {
            return false;
        }
    }
    (seq, tally) == (room.head, room.tally)
}

/// A room whose entries do not add up, as the core has said.
#[derive(Debug, Clone, Copy)]
pub struct Diverged {
    /// How the shard remembered it when it was found.
    pub witness: Witness,
    /// When the core is asked again.
    pub ask_at: UnixMillis,
    /// When it is logged again.
    pub say_at: UnixMillis,
}

/// Where a shard is in its rounds.
#[derive(Debug, Default)]
pub struct Consistency {
    /// Slot of the room that comes next.
    pub next: u32,
    /// Questions of the last round without an answer. The next one waits for them.
    pub in_flight: u32,
    /// Rooms that come before their turn.
    pub again: Vec<RoomKey>,
    /// Rooms that do not add up. Few, or all is lost.
    pub diverged: BTreeMap<RoomKey, Diverged>,
}

impl Consistency {
    /// The room is looked at in the next round.
    pub fn look_again(&mut self, room: RoomKey) {
        if self.again.len() < AGAIN_MAX && !self.again.contains(&room) {
            self.again.push(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_agree_are_right_against_the_third() {
        let (a, b, c) =
            (Tally { messages: 1, hash: 1 }, Tally { messages: 2, hash: 2 }, Tally { messages: 3, hash: 3 });
        let audit = |is_head, noted, counted, here| Ok(Audit { is_head, noted, last: (9, 90), counted, here });
        let differ = Finding::Rows(Broken { seq: 9, what: "the entries differ from what is noted of them" });
        let missing = Finding::Rows(Broken { seq: 10, what: "entries are missing at the end" });
        for (audit, witness, due) in [
            (audit(true, Some(a), a, Some(a)), a, Finding::Well),
            (audit(false, Some(b), b, Some(a)), a, Finding::Well),
            (audit(true, Some(a), a, Some(a)), b, Finding::Memory),
            (audit(true, Some(b), a, Some(a)), a, Finding::Head),
            (audit(true, None, a, Some(a)), a, Finding::Head),
            // An anchor is not put right by itself.
            (audit(false, Some(b), a, Some(a)), a, differ),
            (audit(true, Some(b), a, Some(a)), b, differ),
            (audit(true, Some(b), a, Some(a)), c, differ),
            (audit(true, Some(a), a, None), a, missing),
        ] {
            assert_eq!(judge(&audit, witness), due, "{audit:?} {witness:?}");
        }
        let broken = Broken { seq: 4, what: "gone" };
        assert_eq!(judge(&Err(broken), a), Finding::Rows(broken));
    }
}
