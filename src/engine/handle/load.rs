//! Loading rooms and users from the store, and unloading what nobody needs.
//!
//! A page is a snapshot at a log position. The shard may already have applied later batches, which
//! it ignored for what was not loaded then: they are taken from the recent batches. Or the page is
//! ahead of the shard: what it has seen is then skipped when it comes. A room that is loaded ahead
//! can be read up to its head by someone whom an entry in between bans from it; to hold the room back
//! until the shard has caught up could hold it for long, since a batch in doubt is published late. They
//! are cut off when that entry comes (`batch.rs`).

use std::sync::Arc;

use super::super::event::{
    CommittedBatch, ConnKey, Input, Membership, Output, Page, Query, ReadReply, RoomRow, RoomRun,
};
use super::super::inbox::Item;
use super::super::rooms::RoomIdx;
use super::super::shard::Shard;
use super::super::sync;
use super::super::users::{Loading, Standing, UserIdx, Waiter};
use super::Waiting;
use crate::protocol::error::{CloseCode, ErrorCode, Refusal};
use crate::protocol::ids::{DeviceId, Position, Role, RoomKey, RoomName, Seq, UnixMillis};

impl Shard {
    /// Starts loading a room, or joins those who wait for it. Without a waiter it is only there sooner.
    ///
    /// # Errors
    /// `busy`.
    pub(super) fn load_room(&mut self, name: RoomName, waiter: Option<Waiter>) -> Result<(), Refusal> {
        if let Some(waiters) = self.loading.get_mut(&name) {
            waiters.extend(waiter);
            return Ok(());
        }
        self.cx.may_read()?;
        self.loading.insert(name.clone(), waiter.into_iter().collect());
        self.ask_room(name);
        Ok(())
    }

    fn ask_room(&mut self, name: RoomName) {
        let token = self.pending.insert(Waiting::Room(name.clone()));
        self.cx.read(token, Query::Room(name));
    }

    pub(in crate::engine) fn on_read_reply(&mut self, reply: ReadReply) {
        let Some(waiting) = self.pending.take(reply.token) else { return };
        self.cx.reads -= 1;
        if reply.result.is_ok() {
            self.forgive(waiting.conn());
        }
        match (waiting, reply.result) {
            (Waiting::User(user), Ok(Page::User { at, memberships, bans, inbox, delivered })) => {
                self.on_user_page(user, at, memberships, &bans, inbox, &delivered);
            }
            (Waiting::User(user), _) => self.on_user_failed(user),
            (Waiting::Room(name), Ok(Page::Room { at, room })) => self.on_room_page(name, at, room),
            (Waiting::Room(name), result) => self.on_room_failed(&name, as_refusal(result)),
            (Waiting::Resume(resume), Ok(Page::History { json, entries, more })) => {
                self.on_resume_page(resume, &json, &entries, more);
            }
            (Waiting::History { call, room }, Ok(Page::History { json, entries, more })) => {
                self.on_history_page(&call, &room, &json, &entries, more);
            }
            (Waiting::Members { call }, Ok(Page::Members { members, more })) => {
                self.on_members_page(call, members, more);
            }
            (Waiting::AdminDeadLetters { token }, result) => self.on_dead_letters(token, result),
            (Waiting::Audit { room, witness }, result) => self.on_audit(room, witness, result),
            (Waiting::Reload { room, what }, result) => self.on_reload(room, what, result),
            (Waiting::Rooms { call }, Ok(Page::Rooms { rooms, more })) => self.on_rooms_page(&call, &rooms, more),
            (Waiting::PresenceHistory { call }, Ok(Page::PresenceHistory(history))) => {
                self.on_presence_history_page(&call, &history);
            }
            (Waiting::AdminAnalytics { token }, Ok(Page::PresenceAnalytics(analytics))) => {
                self.on_analytics(token, Ok(analytics));
            }
            (Waiting::AdminAnalytics { token }, result) => self.on_analytics(token, Err(as_refusal(result))),
            (Waiting::Check { call, checks }, Ok(Page::Tallies(tallies))) => {
                self.on_tallies(&call, checks, &tallies);
            }
            (
                Waiting::Resume(super::Resume { call, .. })
                | Waiting::History { call, .. }
                | Waiting::Members { call }
                | Waiting::Rooms { call }
                | Waiting::PresenceHistory { call }
                | Waiting::Check { call, .. },
                result,
            ) => {
                self.refuse_call(&call, &as_refusal(result));
                self.cx.out.list.push(Output::Unpark(call.conn));
            }
            (
                Waiting::Ack { .. }
                | Waiting::Join { .. }
                | Waiting::Membership { .. }
                | Waiting::ReadMark { .. }
                | Waiting::Amend { .. }
                | Waiting::AdminPublish { .. }
                | Waiting::AdminRevoke { .. }
                | Waiting::AdminNotify { .. }
                | Waiting::AdminDead { .. }
                | Waiting::Notify { .. }
                | Waiting::InboxAck { .. }
                | Waiting::InboxTakeAway { .. }
                | Waiting::InboxUpkeep
                | Waiting::PresenceNews
                | Waiting::Mend { .. }
                | Waiting::Refresh { .. },
                _,
            ) => debug_assert!(false, "a read reply answers a read"),
        }
    }

    fn on_user_page(
        &mut self,
        user: UserIdx,
        at: Position,
        memberships: Vec<Membership>,
        bans: &[RoomKey],
        inbox: Vec<Item>,
        delivered: &[(RoomKey, DeviceId, Seq)],
    ) {
        if !self.recent.covers_after(at, self.cx.position) {
            // So much was committed since the snapshot that part of it is gone: look again.
            let token = self.pending.insert(Waiting::User(user));
            let name = self.users.get(user).name.clone();
            return self.cx.read(token, Query::User(name));
        }
        let mut standings = Vec::with_capacity(memberships.len() + bans.len());
        standings.extend(bans.iter().map(|room| Standing { room: *room, role: Role::Banned, read: 0, counted: 0 }));
        for Membership { room: row, role, read, counted, deleted } in memberships {
            standings.push(Standing { room: row.key, role, read, counted });
            let idx = match self.rooms.find_key(row.key) {
                Some(idx) => idx,
                None => self.add_room(row, at),
            };
            let room = self.rooms.get_mut(idx);
            room.note_member(user, true);
            deleted.into_iter().for_each(|seq| room.note_deleted(seq));
        }
        standings.sort_unstable_by_key(|s| s.room);
        let loaded = self.users.get_mut(user);
        loaded.standings = standings;
        let before = std::mem::replace(&mut loaded.loading, Loading::Loaded(at));
        // The newest rooms come first, and are to be the last to be forgotten.
        delivered.iter().rev().for_each(|(room, device, seq)| loaded.deliver(*room, device, *seq));
        self.catch_up_user(user, at);
        if let Loading::Reading(early) = before {
            let loaded = self.users.get_mut(user);
            early.iter().for_each(|read| loaded.advance(read));
        }
        self.fill_inbox(user, inbox);
        for conn in self.users.get(user).conns.clone() {
            self.welcome(conn);
        }
    }

    /// Membership changes that were applied here while the user was being read.
    fn catch_up_user(&mut self, user: UserIdx, at: Position) {
        let name = self.users.get(user).name.clone();
        let later: Vec<Arc<CommittedBatch>> = self.recent.after(at).cloned().collect();
        for batch in &later {
            self.note_deleted(batch);
            for run in &batch.runs {
                for entry in run.entries.iter().filter(|entry| entry.position > at) {
                    if let Some(change) = entry.change.as_deref().filter(|change| change.user == name) {
                        self.apply_change(batch, run, entry.seq, change);
                    }
                }
            }
        }
    }

    fn on_user_failed(&mut self, user: UserIdx) {
        for conn in self.users.get(user).conns.clone() {
            self.end(conn, Some((CloseCode::OverCapacity, "the user could not be read; come back".into())));
        }
        self.users.remove(user);
    }

    fn on_room_page(&mut self, name: RoomName, at: Position, row: Option<RoomRow>) {
        if !self.recent.covers_after(at, self.cx.position) {
            return self.ask_room(name);
        }
        if self.rooms.find(name.as_str()).is_none() {
            match row.or_else(|| self.created_after(&name, at)) {
                Some(row) => {
                    self.add_room(row, at);
                }
                None => self.rooms.add_absent(name.clone()),
            }
        }
        for waiter in self.loading.remove(&name).unwrap_or_default() {
            self.go_on(waiter);
        }
    }

    /// The room as it was born in a batch that the shard has applied but the snapshot had not seen.
    fn created_after(&self, name: &RoomName, at: Position) -> Option<RoomRow> {
        let run = self.recent.after(at).flat_map(|batch| &batch.runs).find(|run| run.name == *name)?;
        Some(row_before(run))
    }

    fn on_room_failed(&mut self, name: &RoomName, refusal: Refusal) {
        for waiter in self.loading.remove(name).unwrap_or_default() {
            match waiter {
                Waiter::Conn(conn) => self.unpark_for_replay(conn, Err(refusal.clone())),
                Waiter::Admin(request) => self.admin_reply(request.token, Err(refusal.clone())),
            }
        }
    }

    fn go_on(&mut self, waiter: Waiter) {
        match waiter {
            Waiter::Conn(conn) => self.unpark_for_replay(conn, Ok(())),
            Waiter::Admin(request) => {
                let now = self.cx.now;
                self.handle(Input::Admin(request), now);
            }
        }
    }

    fn unpark_for_replay(&mut self, conn: ConnKey, loaded: Result<(), Refusal>) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.replay = Some(Box::new(loaded));
            self.cx.out.list.push(Output::Unpark(conn));
        }
    }

    /// Adds a room as it stood at `at`, and brings it up to the shard's position.
    pub(super) fn add_room(&mut self, row: RoomRow, at: Position) -> RoomIdx {
        let idx = self.rooms.add(row, at, self.cx.now);
        let deletions: Vec<Arc<CommittedBatch>> =
            self.recent.after(at).filter(|batch| !batch.deleted.is_empty()).cloned().collect();
        deletions.iter().for_each(|batch| self.note_deleted(batch));
        self.catch_up_room(idx, at);
        idx
    }

    /// Entries that were applied here after the snapshot at `at`.
    pub(super) fn catch_up_room(&mut self, idx: RoomIdx, at: Position) {
        let key = self.rooms.get(idx).key;
        let later: Vec<(Arc<CommittedBatch>, u32)> =
            self.recent.after(at).filter_map(|batch| Some((batch.clone(), sync::run_of(batch, key)?))).collect();
        for (batch, run) in later {
            self.apply_run(idx, &batch, run);
        }
    }

    /// Unloads what has been idle long enough, and drops old batches.
    pub(super) fn sweep(&mut self) {
        let now = self.cx.now;
        let limits = self.cx.limits.clone();
        self.recent.trim(&mut self.rooms, limits.recent_bytes_max, now.saturating_sub(u64::from(limits.recent_ttl_ms)));
        self.revoked.forget(self.cx.time_of_day());
        let before = now.saturating_sub(u64::from(limits.idle_unload_ms));
        for user in self.users.idle_since(before) {
            let standings = self.users.remove(user).map(|user| user.standings).unwrap_or_default();
            for standing in standings.iter().filter(|standing| standing.role.is_member()) {
                if let Some(room) = self.rooms.get_key_mut(standing.room) {
                    room.note_member(user, false);
                    room.touch(now);
                }
            }
        }
        let is_needed = |at: UnixMillis| at + super::presence::PASSED_MS > now;
        self.presence.passed.retain(|_, passed| is_needed(passed.at) || passed.held.is_some());
        if self.presence.recorder.is_silent(now) {
            self.tell_store();
        }
        for room in self.rooms.idle_since(before) {
            // A watched room must be known to grow past the size up to which it is told in detail.
            if !self.presence.watching.rooms.contains_key(&self.rooms.get(room).key) {
                self.rooms.remove(room);
            }
        }
    }
}

/// The room as it stood right before the first entry of `run`.
pub(super) fn row_before(run: &RoomRun) -> RoomRow {
    RoomRow {
        key: run.room,
        name: run.name.clone(),
        kind: run.kind,
        title: None,
        head: run.entries.first().map_or(0, |entry| entry.seq - 1),
        members: run.members,
        tally: run.tally_before(),
    }
}

fn as_refusal(result: Result<Page, Refusal>) -> Refusal {
    match result {
        Err(refusal) => refusal,
        Ok(_) => Refusal::new(ErrorCode::Internal, "the store answered another question").retry_after(1_000),
    }
}
