//! What happens to dead letters: a replay is decided as the entry it was, and takes the letter away
//! in the same transaction; a purge takes away without a look.

use super::{Facts, Stop, Turn, Verdict, refuse};
use crate::engine::dead::{Again, DeadAct, DeadChange, DeadFilter, LetterId};
use crate::engine::event::Committed;
use crate::protocol::error::ErrorCode;
use crate::protocol::ids::{Position, RoomKey};

impl<F: Facts> Turn<'_, F> {
    /// The outcome's `seq` is what the entry's own would be, or how many letters were thrown away.
    pub(super) fn dead(&mut self, act: DeadAct) -> Verdict<F::Error> {
        match act {
            DeadAct::Replay(id) => self.replay(id),
            DeadAct::Purge(filter) => {
                let count = self.facts.dead_count(&filter).map_err(Stop::Facts)?;
                if count > 0 {
                    self.draft.dead.push(DeadChange::Purged(filter));
                }
                Ok(Committed { room: RoomKey(0), seq: count, ts: self.now, duplicate: false, value: 0 })
            }
        }
    }

    fn replay(&mut self, id: LetterId) -> Verdict<F::Error> {
        let gone = || refuse(ErrorCode::NotFound, "there is no such dead letter");
        let letter = self.facts.dead_letter(id).map_err(Stop::Facts)?.ok_or_else(gone)?;
        let is_gone = |change: &DeadChange| match change {
            DeadChange::Replayed(other) => *other == id,
            DeadChange::Purged(filter) => DeadFilter::fits(filter, &letter),
        };
        if self.draft.dead.iter().any(is_gone) {
            return Err(gone());
        }
        let committed = match letter.again() {
            Some(Again::Item(item)) => self.notify(item, true)?,
            Some(Again::Message(room, mut message)) => {
                let unknown = || refuse(ErrorCode::UnknownRoom, "there is no such room");
                message.room = self.find(&room)?.ok_or_else(unknown)?;
                // Whether the author may still write there is looked up: nobody checked lately.
                let client_id = message.client_id.as_deref();
                let pair = client_id.and_then(|client_id| self.core.pair_of(&message.author, client_id));
                self.message(message, pair, Position::MIN)?
            }
            None => return Err(refuse(ErrorCode::NotAvailable, "this letter cannot be replayed, only thrown away")),
        };
        self.draft.dead.push(DeadChange::Replayed(id));
        Ok(committed)
    }
}
