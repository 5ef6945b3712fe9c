//! Dead letters, as the admin API asks for them: handed on to the core and to the readers. The shard
//! keeps none.

use super::super::dead::{DeadAct, DeadFilter, LetterId};
use super::super::event::{AdminAnswer, Committed, Entry, Page, Query, Token};
use super::super::shard::Shard;
use super::Waiting;
use crate::protocol::error::{ErrorCode, Refusal};

impl Shard {
    pub(super) fn admin_dead(&mut self, token: Token, act: DeadAct) -> Result<(), Refusal> {
        self.cx.may_append()?;
        let is_replay = matches!(act, DeadAct::Replay(_));
        let waiting = self.pending.insert(Waiting::AdminDead { token, is_replay });
        self.cx.append(waiting, Entry::Dead(act));
        Ok(())
    }

    pub(super) fn admin_dead_letters(
        &mut self,
        token: Token,
        filter: &DeadFilter,
        after: LetterId,
        limit: u32,
    ) -> Result<(), Refusal> {
        self.cx.may_read()?;
        let waiting = self.pending.insert(Waiting::AdminDeadLetters { token });
        self.cx.read(waiting, Query::DeadLetters { filter: filter.clone(), after, limit });
        Ok(())
    }

    pub(super) fn on_dead(&mut self, token: Token, is_replay: bool, committed: Committed) {
        if is_replay {
            self.cx.stats.dead_replayed += 1;
        } else {
            self.cx.stats.dead_purged += committed.seq;
        }
        self.admin_reply(token, Ok(AdminAnswer::Dead(committed)));
    }

    pub(super) fn on_dead_letters(&mut self, token: Token, result: Result<Page, Refusal>) {
        let answer = match result {
            Ok(Page::DeadLetters { letters, more }) => Ok(AdminAnswer::DeadLetters { letters, more }),
            Ok(_) => Err(Refusal::new(ErrorCode::Internal, "the store answered another question")),
            Err(refusal) => Err(refusal),
        };
        self.admin_reply(token, answer);
    }
}
