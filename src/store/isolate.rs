//! One transaction, and what is done when it fails because of one entry: its neighbours are committed
//! one by one, and the entry that fails by itself, again, becomes a dead letter. Its author is told.
//!
//! An entry is suspected only when the transaction failed before its commit, was rolled back, and the
//! error is about values (a constraint, a type, a size), not about the disk. Writing the letter is the
//! proof that the store works: when that fails too, it is the store's trouble and not the entry's.
//!
//! To commit entries one by one they must still be there, and a transaction uses them up. Small
//! batches are copied in any case; large ones only for a while after a failure of this kind, so that a
//! store under load pays nothing. The first large batch with a poison entry is therefore refused as a
//! whole, and told apart when its authors try again.
//!
//! A room whose entries are not where they should be is no fault of the entry that met it: the room is closed for
//! a while, and the batch is tried again without it.

use std::sync::atomic::Ordering::Relaxed;

use super::dead::{self, NewLetter};
use super::facts::SqlFacts;
use super::heads::broken_chain;
use super::stats::Counters;
use super::transaction;
use super::writer::{Writer, now_ms, unknown_outcome};
use crate::clock::{now_us, unix_ms};
use crate::engine::dead::{DeadAct, DeadFilter, DeadKind, LetterId, REASON_BYTES_MAX, entry_payload, name_of, user_of};
use crate::engine::event::{Append, CommittedBatch, Entry};
use crate::engine::inbox::{InboxChange, Removal};
use crate::engine::sequencer::{Decided, Facts as _, Now};
use crate::engine::stages::Stamps;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::RoomKey;

/// Batches of at most so many appends are always copied.
const COPIED_MAX: usize = 32;
/// How long larger ones are copied too after a poison entry, ms.
const CAREFUL_MS: u64 = 60_000;
/// Damaged rooms that a batch is tried again without; past it, each of its entries by itself.
const CLOSINGS_MAX: u32 = 8;
/// How often an entry was tried when it is put aside: with its neighbours, and alone.
const TRIES: u32 = 2;

/// A transaction that did not commit, as far as is known.
pub(super) struct Failure {
    pub error: rusqlite::Error,
    /// What to tell the shards.
    pub refused: CommittedBatch,
    /// Set when it may stand in the log all the same.
    pub held: Option<CommittedBatch>,
    /// Rolled back before its commit: nothing of it stands.
    is_undone: bool,
    /// It met a damaged room, which is closed now: the next try is refused what it wants there.
    has_closed: bool,
}

impl Failure {
    fn is_poison(&self) -> bool {
        self.is_undone && is_about_values(&self.error)
    }
}

/// True for errors that another entry need not meet.
pub(super) fn is_about_values(error: &rusqlite::Error) -> bool {
    use rusqlite::{Error, ffi};
    match error {
        Error::SqliteFailure(error, _) => matches!(
            error.extended_code & 0xff,
            ffi::SQLITE_CONSTRAINT | ffi::SQLITE_MISMATCH | ffi::SQLITE_TOOBIG | ffi::SQLITE_RANGE | ffi::SQLITE_ERROR
        ),
        Error::FromSqlConversionFailure(..)
        | Error::IntegralValueOutOfRange(..)
        | Error::Utf8Error(..)
        | Error::InvalidColumnType(..)
        | Error::InvalidColumnName(_)
        | Error::ToSqlConversionFailure(_)
        | Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

impl Writer {
    /// Commits a batch, or finds out why not.
    pub(super) fn commit_turn(&mut self, mut lists: Vec<Vec<Append>>, count: usize) {
        let mut closings = 0;
        loop {
            let is_copied = count <= COPIED_MAX || now_ms() < self.careful_until_ms;
            let copies: Option<Vec<Append>> = is_copied.then(|| lists.iter().flatten().cloned().collect());
            let Err(failure) = self.attempt(lists.into_iter().flatten(), count) else { return };
            if failure.is_poison() {
                self.careful_until_ms = now_ms() + CAREFUL_MS;
                if let Some(appends) = copies {
                    if failure.has_closed && closings < CLOSINGS_MAX {
                        closings += 1;
                        lists = vec![appends];
                        continue;
                    }
                    tracing::warn!(error = %failure.error, count, "store: a batch is committed entry by entry");
                    return self.isolate(appends);
                }
            }
            return self.give_up(*failure, count);
        }
    }

    fn give_up(&mut self, failure: Failure, count: usize) {
        self.held = failure.held;
        self.publish_refused(failure.refused, count);
        self.on_trouble(failure.error.into());
    }

    /// One transaction: begin, decide, write, commit, publish.
    fn attempt(&mut self, appends: impl Iterator<Item = Append>, count: usize) -> Result<(), Box<Failure>> {
        let began_us = now_us();
        if let Err(error) = self.execute("BEGIN IMMEDIATE") {
            let refused = self.sequencer.refuse(appends, &unknown_outcome());
            return Err(Box::new(Failure { error, refused, held: None, is_undone: false, has_closed: false }));
        }
        let now = Now { wall: unix_ms(), steady: self.steady.at(began_us) };
        let decided = match self.sequencer.decide(appends, now, &mut SqlFacts(&self.conn)) {
            Ok(decided) => decided,
            Err((error, refused)) => {
                let is_undone = self.roll_back();
                let has_closed = self.close_broken(&error);
                return Err(Box::new(Failure { error, refused: *refused, held: None, is_undone, has_closed }));
            }
        };
        let written = self.write(&decided);
        let is_begun = matches!(written, Err((_, true)));
        if let Err((error, _)) = written {
            let is_undone = self.roll_back() && !is_begun;
            self.heads.forget();
            let failed = self.sequencer.fail(decided, &unknown_outcome());
            let held = (!is_undone).then_some(failed.held);
            let has_closed = self.close_broken(&error);
            return Err(Box::new(Failure { error, refused: failed.refused, held, is_undone, has_closed }));
        }
        self.on_committed(decided, began_us, count);
        Ok(())
    }

    /// Closes the room whose chain is broken, if that is the error.
    fn close_broken(&mut self, error: &rusqlite::Error) -> bool {
        let Some(broken) = broken_chain(error) else { return false };
        tracing::error!(%broken, "store: a room's entries are not where they should be; it takes no writes for now");
        self.sequencer.close_room(broken.room);
        true
    }

    /// Writes and commits. The error says whether the commit was begun: it may then be durable all the same.
    fn write(&mut self, decided: &Decided) -> Result<(), (rusqlite::Error, bool)> {
        let unbegun = |error| (error, false);
        if decided.is_empty() {
            return self.execute("ROLLBACK").map_err(unbegun);
        }
        transaction::write(&self.conn, &mut self.heads, decided).map_err(unbegun)?;
        if touches_letters(decided) {
            self.bound_letters().map_err(unbegun)?;
        }
        let begun = |error| (error, true);
        self.faults.before_commit().map_err(begun)?;
        self.execute("COMMIT").map_err(begun)?;
        self.faults.after_commit().map_err(begun)
    }

    fn on_committed(&mut self, decided: Decided, began_us: u64, count: usize) {
        let committed_us = now_us();
        let (rows, is_written) = (decided.rows.len() as u64, !decided.is_empty());
        let has_letters = touches_letters(&decided);
        let transitions = decided.presence.iter().map(|news| news.transitions.len() as u64).sum();
        Counters::add(&self.counters.transitions_written, transitions);
        let mut batch = self.sequencer.commit(decided);
        if is_written {
            self.counters.commit_us.record(committed_us - began_us);
            self.count_commit(rows, batch.bytes.len() as u64);
            self.breaker.on_success();
        }
        if has_letters {
            self.count_letters();
        }
        self.counters.duplicates.store(self.sequencer.duplicates(), Relaxed);
        let (refused, evicted, expired) = self.sequencer.inbox_losses();
        self.counters.items_refused.store(refused, Relaxed);
        self.counters.items_evicted.store(evicted, Relaxed);
        self.counters.items_expired.store(expired, Relaxed);
        let waiting = self.drain();
        let published_us = now_us();
        self.window.on_committed(count, waiting, published_us);
        batch.stamps = Stamps { taken_us: self.taken_us, began_us, committed_us, published_us };
        self.publish(batch);
    }

    /// Commits entries one by one. Whoever fails alone is put aside.
    fn isolate(&mut self, appends: Vec<Append>) {
        let mut rest = appends.into_iter();
        while let Some(append) = rest.next() {
            let Err(mut failure) = self.attempt(std::iter::once(append.clone()), 1) else { continue };
            if failure.has_closed {
                match self.attempt(std::iter::once(append.clone()), 1) {
                    Ok(()) => continue,
                    Err(again) => failure = again,
                }
            }
            let trouble = if failure.is_poison() {
                match self.put_aside(append, &failure.error) {
                    Ok(()) => continue,
                    Err(trouble) => trouble,
                }
            } else {
                failure
            };
            let count = rest.len();
            self.give_up(*trouble, 1);
            let refused = self.sequencer.refuse(rest, &unknown_outcome());
            return self.publish_refused(refused, count);
        }
    }

    /// Makes a letter of an entry and tells its author.
    fn put_aside(&mut self, append: Append, error: &rusqlite::Error) -> Result<(), Box<Failure>> {
        let entry = name_of(&append.entry);
        match self.write_letter(&append.entry, &reason_of(error)) {
            Ok(letter) => {
                tracing::error!(%error, entry, letter, "store: an entry cannot be written and was put aside");
                Counters::add(&self.counters.poisoned, 1);
                self.count_letters();
                let text = format!("the store cannot write this; it was put aside as dead letter {letter}");
                let refused = self.sequencer.refuse([append], &Refusal::new(ErrorCode::NotAvailable, text));
                self.publish_refused(refused, 1);
                Ok(())
            }
            Err(error) => {
                self.roll_back();
                let refused = self.sequencer.refuse([append], &unknown_outcome());
                Err(Box::new(Failure { error, refused, held: None, is_undone: true, has_closed: false }))
            }
        }
    }

    fn write_letter(&mut self, entry: &Entry, reason: &str) -> rusqlite::Result<LetterId> {
        self.execute("BEGIN IMMEDIATE")?;
        let now = unix_ms();
        let id = if let Entry::Dead(DeadAct::Replay(id)) = entry {
            dead::failed_again(&self.conn, *id, reason, now)?;
            *id
        } else {
            let room = room_of(entry).map(|key| SqlFacts(&self.conn).room_by_key(key)).transpose()?.flatten();
            let payload = entry_payload(entry, room.as_ref().map(|room| room.name.as_str()));
            let letter = NewLetter {
                kind: DeadKind::Entry,
                user: user_of(entry),
                reason,
                attempts: TRIES,
                first_ts: now,
                last_ts: now,
                payload: &payload,
            };
            let id = dead::insert(&self.conn, &letter)?;
            self.bound_letters()?;
            id
        };
        self.faults.before_commit()?;
        self.execute("COMMIT")?;
        Ok(id)
    }

    fn bound_letters(&self) -> rusqlite::Result<()> {
        let gone = dead::bound(&self.conn, self.dead_letters_max)?;
        Counters::add(&self.counters.letters_dropped, gone as u64);
        Ok(())
    }

    /// Sets the gauge. A count is no reason to fail.
    pub(super) fn count_letters(&self) {
        match dead::count(&self.conn, &DeadFilter::default()) {
            Ok(count) => self.counters.letters.store(count, Relaxed),
            Err(error) => tracing::warn!(%error, "store: the dead letters cannot be counted"),
        }
    }
}

fn touches_letters(decided: &Decided) -> bool {
    let is_death = |change: &InboxChange| matches!(change, InboxChange::Removed { why: Removal::Dead, .. });
    !decided.dead.is_empty() || decided.inbox.iter().any(is_death)
}

fn room_of(entry: &Entry) -> Option<RoomKey> {
    match entry {
        Entry::Message(message) => Some(message.room),
        Entry::Repeat { room, .. } | Entry::Read { room, .. } | Entry::Delivered { room, .. } => Some(*room),
        Entry::Amend(amend) => Some(amend.room),
        _ => None,
    }
}

/// The error in one bounded line. SQLite names tables and columns, never values.
fn reason_of(error: &rusqlite::Error) -> String {
    let mut text = error.to_string().escape_default().to_string();
    text.truncate(REASON_BYTES_MAX);
    text
}
