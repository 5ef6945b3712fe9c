//! The persistence core in virtual time: commits that take a while, fail, or end in doubt.

use std::collections::VecDeque;
use std::sync::Arc;

use antiphon::engine::event::{Append, CommittedBatch, StoreEvent};
use antiphon::engine::sequencer::Decided;

use crate::checker::Checker;
use crate::log::TestLog;
use crate::plan::{Dice, Plan};

/// What will become of the batch that is being committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Commits,
    /// The error is reported, nothing was written.
    Fails,
    /// The error is reported, all was written.
    Lands,
}

pub struct Store {
    pub log: TestLog,
    queue: VecDeque<Append>,
    current: Option<(Decided, Fate)>,
    /// Told as failed; looked at again before the next batch. With `true` it stands in the log.
    held: Option<(CommittedBatch, bool)>,
    is_degraded: bool,
}

impl Store {
    pub fn new(plan: &Plan) -> Self {
        Self {
            log: TestLog::new(plan.sequencer.clone()),
            queue: VecDeque::new(),
            current: None,
            held: None,
            is_degraded: false,
        }
    }

    pub fn push(&mut self, append: Append) {
        self.queue.push_back(append);
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.current.is_none() && self.held.is_none()
    }

    pub fn is_committing(&self) -> bool {
        self.current.is_some()
    }

    /// Stops or resumes taking writes.
    pub fn degrade(&mut self, is_on: bool) -> Vec<StoreEvent> {
        if std::mem::replace(&mut self.is_degraded, is_on) == is_on {
            return Vec::new();
        }
        vec![StoreEvent::Degraded(is_on)]
    }

    pub fn is_degraded(&self) -> bool {
        self.is_degraded
    }

    /// Begins a batch with what waits. Tells what is to be published before, and whether a commit
    /// is now under way.
    pub fn begin(&mut self, plan: &Plan, dice: &mut Dice, now: u64) -> (Vec<StoreEvent>, bool) {
        let mut told = Vec::new();
        if self.current.is_some() {
            return (told, false);
        }
        if self.is_degraded {
            if !self.queue.is_empty() {
                told.push(StoreEvent::Batch(self.log.refuse(self.queue.drain(..).collect())));
            }
            return (told, false);
        }
        if let Some((held, stands)) = self.held.take()
            && stands
        {
            self.log.adopt(&held);
            told.push(StoreEvent::Batch(Arc::new(held)));
        }
        if self.queue.is_empty() {
            return (told, false);
        }
        let count = dice.between(1, plan.batch_max).min(self.queue.len() as u64) as usize;
        let decided = self.log.decide(self.queue.drain(..count).collect(), now);
        let fate = match () {
            () if dice.chance(plan.commit_fails) => Fate::Fails,
            () if dice.chance(plan.commit_unknown) => Fate::Lands,
            () => Fate::Commits,
        };
        self.current = Some((decided, fate));
        (told, true)
    }

    /// The commit under way ends.
    pub fn end(&mut self, checker: &mut Checker) -> Option<StoreEvent> {
        let (decided, fate) = self.current.take()?;
        let (first, last) = (decided.first, decided.last());
        let changes: Vec<_> = decided.rows.iter().map(|row| row.change.clone()).collect();
        if fate != Fate::Fails {
            checker.inboxes.on_changes(&decided.inbox);
        }
        let batch = match fate {
            Fate::Commits => self.log.commit(decided),
            Fate::Fails | Fate::Lands => {
                let lands = fate == Fate::Lands;
                let failed = self.log.fail(decided, lands);
                self.held = Some((failed.held, lands));
                Arc::new(failed.refused)
            }
        };
        if fate != Fate::Fails && last >= first {
            checker.on_rows(&self.log, changes);
        }
        Some(StoreEvent::Batch(batch))
    }

    /// The process dies and a new one opens the log: what was not committed is gone; a commit that
    /// was under way may have made it or not.
    pub fn crash(&mut self, checker: &mut Checker, dice: &mut Dice, now: u64) {
        self.queue.clear();
        self.held = None;
        self.is_degraded = false;
        if let Some((decided, fate)) = self.current.take()
            && fate != Fate::Fails
            && dice.chance(500)
        {
            let changes: Vec<_> = decided.rows.iter().map(|row| row.change.clone()).collect();
            self.log.kept.apply(&decided);
            checker.inboxes.on_changes(&decided.inbox);
            checker.on_rows(&self.log, changes);
        }
        self.log.reopen(now);
    }
}
