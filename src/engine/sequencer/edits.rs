//! Edits, deletions and reactions: who may, and whose version wins.
//!
//! - A message is edited and deleted by its author, by moderators and owners of its room, and by
//!   administrators. Whoever may write in the room and may see the message may react to it.
//! - An edit that names a version wins only if that version stands; the loser learns which one does.
//! - A deletion leaves a tombstone: nothing changes it any more, and it is "not found".
//! - A reaction that is there already, or not there to be removed, leaves no entry.
//! - The entry of a change has the audience of its message.

use std::sync::Arc;

use ahash::AHashMap;

use super::{Facts, Reacted, ReactionRow, Row, StateRow, Stop, Target, Turn, Verdict, refuse};
use crate::engine::edits::{REACTION_KINDS_MAX, reaction_fields, step_fields};
use crate::engine::event::{Amend, AmendAct, Audience, Committed, Viewer};
use crate::protocol::encode::EventKind;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{Position, Priority, Role, RoomKey, Seq, UserId};

/// What the batch has touched so far, on top of the facts.
#[derive(Default)]
pub(super) struct Edits {
    targets: AHashMap<(RoomKey, Seq), Target>,
    counts: AHashMap<(RoomKey, Seq, Box<str>), u32>,
    theirs: AHashMap<(RoomKey, Seq, Box<str>, UserId), bool>,
    kinds: AHashMap<(RoomKey, Seq), u32>,
}

impl<F: Facts> Turn<'_, F> {
    pub(super) fn amend(&mut self, amend: Amend, seen: Position) -> Verdict<F::Error> {
        let Amend { room: key, target: seq, by, by_admin, act } = amend;
        if !self.load(key)? {
            return Err(refuse(ErrorCode::UnknownRoom, "there is no such room"));
        }
        self.check_whole(key)?;
        self.check_may_write(key, &by, by_admin, seen)?;
        let target = self.standing_target(key, seq, &by)?;
        match act {
            AmendAct::Edit { body_json, version } => {
                self.check_may_change(key, &target, &by, by_admin)?;
                if version.is_some_and(|version| version != target.state.version) {
                    return Err(conflict(target.state.version));
                }
                Ok(self.change_message(key, seq, target, by, Some(body_json)))
            }
            AmendAct::Delete => {
                self.check_may_change(key, &target, &by, by_admin)?;
                Ok(self.change_message(key, seq, target, by, None))
            }
            AmendAct::React(emoji) => self.react(key, seq, &target, by, emoji, true),
            AmendAct::Unreact(emoji) => self.react(key, seq, &target, by, emoji, false),
        }
    }

    /// The message, if `by` may see it and it is not deleted.
    fn standing_target(&mut self, key: RoomKey, seq: Seq, by: &UserId) -> Result<Target, Stop<F::Error>> {
        let known = self.changes.edits.targets.get(&(key, seq)).cloned();
        let target = match known {
            Some(target) => Some(target),
            None => self.facts.target(key, seq).map_err(Stop::Facts)?,
        };
        let is_narrow = target.as_ref().is_some_and(|target| target.audience.is_some());
        let viewer = Viewer::anywhere(by.as_str(), if is_narrow { self.role(key, by)? } else { None });
        let sees = |target: &Target| {
            target.audience.as_ref().is_none_or(|audience| audience.admits(&viewer, target.author.as_str()))
        };
        // Who may not see it is not told that it is there.
        let target = target.filter(sees).ok_or_else(|| refuse(ErrorCode::NotFound, "seq names no message"))?;
        if target.state.deleted {
            return Err(refuse(ErrorCode::NotFound, "the message is deleted"));
        }
        Ok(target)
    }

    fn check_may_change(
        &mut self,
        key: RoomKey,
        target: &Target,
        by: &UserId,
        by_admin: bool,
    ) -> Result<(), Stop<F::Error>> {
        if by_admin || target.author == *by || self.role(key, by)?.is_some_and(|role| role >= Role::Moderator) {
            return Ok(());
        }
        Err(refuse(ErrorCode::PermissionDenied, "only its author, moderators and owners change a message"))
    }

    /// A new body, or none: a tombstone.
    fn change_message(
        &mut self,
        key: RoomKey,
        seq: Seq,
        mut target: Target,
        by: UserId,
        body_json: Option<Box<str>>,
    ) -> Committed {
        let state = &mut target.state;
        state.version += 1;
        state.edited_ts = self.now;
        state.deleted = body_json.is_none();
        state.body_json = body_json;
        let (kind, version) = match state.deleted {
            true => (EventKind::MessageDeleted, state.version),
            false => (EventKind::MessageUpdated, state.version),
        };
        let fields = step_fields(seq, version, state.body_json.as_deref());
        let (position, state) = (target.position, state.clone());
        self.draft.states.push(StateRow { room: key, target: seq, position, state });
        let committed = self.push_step(key, kind, by, &target, fields);
        self.changes.edits.targets.insert((key, seq), target);
        Committed { value: version, ..committed }
    }

    fn react(
        &mut self,
        key: RoomKey,
        seq: Seq,
        target: &Target,
        by: UserId,
        emoji: Box<str>,
        is_added: bool,
    ) -> Verdict<F::Error> {
        let Reacted { is_there, count } = self.reacted(key, seq, &emoji, &by)?;
        if is_there == is_added {
            return Ok(Committed { value: u64::from(count), ..self.unchanged(key)? });
        }
        self.count_kinds(key, seq, count, is_added)?;
        let count = if is_added { count + 1 } else { count.saturating_sub(1) };
        let edits = &mut self.changes.edits;
        edits.counts.insert((key, seq, emoji.clone()), count);
        edits.theirs.insert((key, seq, emoji.clone(), by.clone()), is_added);
        if is_added && count == 1 && target.state.version == 1 {
            // History finds a message's reactions by its state; the core finds the message faster.
            let (position, state) = (target.position, target.state.clone());
            self.draft.states.push(StateRow { room: key, target: seq, position, state });
        }
        let fields = reaction_fields(seq, &emoji, count);
        let kind = if is_added { EventKind::ReactionAdded } else { EventKind::ReactionRemoved };
        self.draft.reactions.push(ReactionRow { room: key, target: seq, emoji, user: by.clone(), is_added, count });
        let committed = self.push_step(key, kind, by, target, fields);
        Ok(Committed { value: u64::from(count), ..committed })
    }

    fn reacted(&mut self, key: RoomKey, seq: Seq, emoji: &str, by: &UserId) -> Result<Reacted, Stop<F::Error>> {
        let mut reacted = self.facts.reacted(key, seq, emoji, by).map_err(Stop::Facts)?;
        let edits = &self.changes.edits;
        if !edits.counts.is_empty() {
            if let Some(count) = edits.counts.get(&(key, seq, emoji.into())) {
                reacted.count = *count;
            }
            if let Some(is_there) = edits.theirs.get(&(key, seq, emoji.into(), by.clone())) {
                reacted.is_there = *is_there;
            }
        }
        Ok(reacted)
    }

    /// Keeps count of the different reactions to a message; `before` have this one so far.
    fn count_kinds(&mut self, key: RoomKey, seq: Seq, before: u32, is_added: bool) -> Result<(), Stop<F::Error>> {
        if before > u32::from(!is_added) {
            return Ok(());
        }
        let kinds = match self.changes.edits.kinds.get(&(key, seq)) {
            Some(kinds) => *kinds,
            None => self.facts.reaction_kinds(key, seq).map_err(Stop::Facts)?,
        };
        if is_added && kinds >= REACTION_KINDS_MAX {
            let message = format!("a message has at most {REACTION_KINDS_MAX} different reactions");
            return Err(Stop::Refused(Refusal::new(ErrorCode::LimitExceeded, message)));
        }
        let kinds = if is_added { kinds + 1 } else { kinds.saturating_sub(1) };
        self.changes.edits.kinds.insert((key, seq), kinds);
        Ok(())
    }

    fn push_step(
        &mut self,
        room: RoomKey,
        kind: EventKind,
        by: UserId,
        target: &Target,
        fields: Box<str>,
    ) -> Committed {
        let audience = target.audience.as_ref().map(|audience| inherited(audience, &target.author, &by));
        self.push(Row {
            room,
            seq: 0,
            kind,
            priority: Priority::Normal,
            author: Some(by),
            client_id: None,
            thread: None,
            audience,
            fields,
            change: None,
        })
    }
}

/// The audience of a message for an entry that `by` makes: "only these" means them, the message's
/// author, and whoever changed it.
fn inherited(audience: &Arc<Audience>, author: &UserId, by: &UserId) -> Arc<Audience> {
    if author == by { audience.clone() } else { Arc::new(audience.and(author)) }
}

fn conflict<E>(current: u64) -> Stop<E> {
    let mut refusal = Refusal::new(ErrorCode::Conflict, "another version stands");
    refusal.current = Some(current);
    Stop::Refused(refusal)
}
