//! A shard has found that a room is not the same everywhere: the core counts the room's last entries
//! again, in its own turn, and puts right what can be: the head row and its own memory. What cannot be
//! is closed to writes until a later look finds it well.

use super::{Facts, HeadRow, Stop, Turn, Verdict, refuse};
use crate::engine::consistency::{Audit, Broken, Finding, Witness, judge};
use crate::engine::event::Committed;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::RoomKey;

/// How long a room is closed that the store has met a wrong entry of, ms: as often as diverged rooms are looked at.
const CLOSED_MS: u64 = 5_000;

impl<F: Facts> Turn<'_, F> {
    /// The outcome's `seq` is the room's head, its `value` 1 when something was wrong here. Refused with
    /// `conflict` when the entries do not add up.
    pub(super) fn mend(&mut self, key: RoomKey, witness: Witness) -> Verdict<F::Error> {
        if self.draft.rows.iter().any(|row| row.room == key) || self.draft.mended.iter().any(|row| row.room == key) {
            return Err(refuse(ErrorCode::Busy, "the room moves in this batch"));
        }
        let own = self.core.rooms.get(&key).map(|room| Witness { seq: room.head, tally: room.tally });
        if own.is_none() && !self.load(key)? {
            return Err(refuse(ErrorCode::UnknownRoom, "there is no such room"));
        }
        let audit = self.facts.audit(key, witness.seq).map_err(Stop::Facts)?;
        let audit = match verdict(audit, witness, own) {
            Ok(audit) if audit.is_head => audit,
            Ok(_) => return Err(refuse(ErrorCode::Busy, "the room has moved on")),
            Err(broken) => {
                self.core.diverged.insert(key, u64::MAX);
                return Err(Stop::Refused(Refusal::new(ErrorCode::Conflict, broken.to_string())));
            }
        };
        let (seq, position) = audit.last;
        let stands = Witness { seq, tally: audit.counted };
        let was_wrong = audit.noted != Some(audit.counted) || own.is_some_and(|own| own != stands);
        let room = self.core.rooms.get_mut(&key).expect("the room was loaded above");
        if (room.head, room.tally) != (seq, audit.counted) {
            (room.head, room.tally, room.recent) = (seq, audit.counted, Default::default());
        }
        // Written although it may be right: the writer's own memory of it is renewed with it. Once this stands the room
        // is open.
        self.draft.mended.push(HeadRow { room: key, seq, position, tally: audit.counted });
        Ok(Committed { room: key, seq, ts: self.now, duplicate: false, value: u64::from(was_wrong) })
    }

    /// # Errors
    /// `degraded` for a room whose entries do not add up.
    pub(super) fn check_whole(&self, key: RoomKey) -> Result<(), Stop<F::Error>> {
        if self.core.diverged.get(&key).is_none_or(|until| self.core.steady >= *until) {
            return Ok(());
        }
        let message = "the room's log does not add up; it takes no writes until an operator has looked";
        Err(Stop::Refused(Refusal::new(ErrorCode::Degraded, message).retry_after(30_000)))
    }
}

impl super::Sequencer {
    /// The store has met an entry of this room that is not where it should be. The room takes no writes for a while; the
    /// shards' checks find out what it is, and whoever writes after that does too.
    pub fn close_room(&mut self, room: RoomKey) {
        let until = self.diverged.entry(room).or_default();
        *until = (*until).max(self.steady + CLOSED_MS);
    }
}

/// Whether the entries stand: by the shard's memory or by the core's own. Entries that one of the two
/// has seen must be there.
fn verdict(audit: Result<Audit, Broken>, witness: Witness, own: Option<Witness>) -> Result<Audit, Broken> {
    let found = audit?;
    let (last, _) = found.last;
    if let Some(own) = own.filter(|own| found.is_head && own.seq > last) {
        return Err(Broken { seq: own.seq, what: "entries are missing at the end" });
    }
    let is_ours = own == Some(Witness { seq: last, tally: found.counted });
    match judge(&audit, witness.tally) {
        Finding::Rows(_) if is_ours && found.is_head => Ok(found),
        Finding::Rows(broken) => Err(broken),
        Finding::Well | Finding::Memory | Finding::Head => Ok(found),
    }
}
