//! Presence of this shard's own users: devices come, go, idle and choose; `presence:set`, `activity`.

use super::super::auth::Want;
use super::super::cx::Cx;
use super::super::event::{Class, ConnKey, Frames, MeshMessage, Output, PresenceCount};
use super::super::presence::mail::Mail;
use super::super::presence::{Cause, DevicePresence, Ghost, Passed, merge};
use super::super::session::{Session, State};
use super::super::shard::Shard;
use super::super::timers::Timer;
use super::super::users::UserIdx;
use super::batch::conflation_key;
use crate::protocol::command::{Activity, CommandId, Status};
use crate::protocol::encode::{field_integer, field_string, string};
use crate::protocol::error::{CloseCode, Refusal};
use crate::protocol::ids::{DeviceId, RoomKey};
use bytes::Bytes;
use std::sync::Arc;

/// An activity of one user in one room is passed on once in so long, ms.
pub(super) const PASSED_MS: u64 = 1_000;

/// Set in the conflation keys of activities, so that they differ from those of read cursors.
const ACTIVITY_KEY: u64 = 1 << 63;

impl Shard {
    /// Something happened on this device of the user: they are to be looked at at the next tick.
    pub(super) fn note_presence(&mut self, user: UserIdx, cause: Cause, device: DeviceId) {
        self.mark_presence(user, false);
        if let Some(dirty) = self.presence.dirty.get_mut(&user) {
            dirty.noted = Some((cause, device));
        }
    }

    /// The user is to be looked at at the next tick.
    pub(super) fn mark_presence(&mut self, user: UserIdx, is_forced: bool) {
        if self.presence.dirty.is_empty() {
            self.timers.set(self.cx.now + u64::from(self.cx.limits.presence_tick_ms), Timer::PresenceTick);
        }
        self.presence.dirty.entry(user).or_default().is_forced |= is_forced;
    }

    /// A session has had its `hello`: its device is there, as it was when it is back within its grace.
    pub(super) fn presence_came(&mut self, conn: ConnKey) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let presence = &mut self.users.get_mut(session.user).presence;
        match presence.end_ghosts(|ghost| ghost.device == session.device) {
            // That a connection is back is nothing that a person did.
            Some(ghost) => session.presence = DevicePresence { said_goodbye: false, ..ghost.presence },
            None => session.presence.active_at = self.cx.now,
        }
        let (user, device) = (session.user, session.device.clone());
        self.note_presence(user, Cause::Connect, device);
        self.arm(conn);
    }

    /// A session is over. Its device still counts for a while, unless the server put it out.
    pub(super) fn presence_went(&mut self, session: &Session, code: Option<CloseCode>) {
        self.unwatch_all(session.conn);
        if session.state == State::Loading {
            return;
        }
        let cause = match code {
            None if session.presence.said_goodbye => Cause::Clean,
            Some(
                CloseCode::InvalidToken
                | CloseCode::Forbidden
                | CloseCode::ConnectionLimit
                | CloseCode::TooManyErrors
                | CloseCode::RateLimited,
            ) => Cause::Kicked,
            Some(CloseCode::Replaced) => Cause::Replaced,
            Some(CloseCode::TokenExpired) => Cause::Expired,
            Some(CloseCode::Draining) => Cause::Drain,
            // It was asked to go.
            None if session.state == State::Draining => Cause::Drain,
            _ => Cause::Timeout,
        };
        let now = self.cx.now;
        let grace_ms = u64::from(self.cx.limits.grace_ms);
        let presence = &mut self.users.get_mut(session.user).presence;
        presence.cause = cause;
        presence.seen_at = now;
        if cause != Cause::Kicked && grace_ms > 0 {
            let device = session.device.clone();
            let ghost = Ghost { device, presence: session.presence, cause, until: now + grace_ms };
            presence.end_ghosts(|other| other.device == ghost.device);
            presence.more.get_or_insert_default().ghosts.push(ghost);
            self.timers.set(now + grace_ms, Timer::Grace(session.user));
        } else {
            self.record_session(&session.device, now.saturating_sub(session.presence.began));
        }
        self.note_presence(session.user, cause, session.device.clone());
    }

    pub(super) fn on_grace_over(&mut self, user: UserIdx) {
        if self.users.at(user).is_none() {
            return;
        }
        let now = self.cx.now;
        // Perhaps another user by now; then there is nothing that has ended.
        self.lay_ghosts(user, |ghost| ghost.until <= now);
    }

    /// These devices count no longer.
    pub(super) fn lay_ghosts(&mut self, user: UserIdx, is_over: impl Fn(&Ghost) -> bool) {
        let grace_ms = u64::from(self.cx.limits.grace_ms);
        let presence = &mut self.users.get_mut(user).presence;
        for ghost in presence.ghosts().iter().filter(|ghost| is_over(ghost)) {
            let went_at = ghost.until.saturating_sub(grace_ms);
            self.presence.recorder.end_session(&ghost.device, went_at.saturating_sub(ghost.presence.began));
        }
        if let Some(last) = presence.end_ghosts(is_over) {
            self.arm_recorder(u64::from(self.cx.limits.presence_tick_ms));
            self.note_presence(user, last.cause, last.device);
        }
    }

    /// A person did something on this connection.
    pub(super) fn note_use(&mut self, conn: ConnKey) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        session.presence.active_at = self.cx.now;
        session.presence.activity = Activity::Active;
        if std::mem::replace(&mut session.presence.is_idle, false) {
            let (user, device) = (session.user, session.device.clone());
            self.note_presence(user, Cause::Active, device);
            self.arm(conn);
        }
    }

    /// What a user's devices come to right now.
    pub(super) fn merged(&self, user: UserIdx) -> Status {
        let user = self.users.get(user);
        let sessions = user.conns.iter().filter_map(|conn| self.sessions.get(*conn));
        let devices = sessions.filter(|session| session.state != State::Loading).map(|s| s.presence.device());
        merge(devices.chain(user.presence.ghosts().iter().map(|ghost| ghost.presence.device())))
    }

    pub(super) fn on_presence_set(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        status: Status,
        custom: Option<&str>,
    ) -> Result<(), Refusal> {
        let Some(session) = self.sessions.get_mut(conn) else { return Ok(()) };
        session.presence.chosen = status;
        let (user, device) = (session.user, session.device.clone());
        let presence = &mut self.users.get_mut(user).presence;
        let is_news = custom.is_some_and(|custom| presence.custom().unwrap_or_default() != custom);
        if is_news {
            presence.more.get_or_insert_default().custom = custom.unwrap_or_default().into();
            // Takes the box away when nothing is left in it.
            presence.end_ghosts(|_| false);
        }
        self.mark_presence(user, is_news);
        self.note_presence(user, Cause::Set, device);
        let shown = self.merged(user);
        self.cx.ok(conn, id, |out| {
            field_string(out, "status", status.as_str());
            field_string(out, "shown", shown.as_str());
        });
        Ok(())
    }

    pub(super) fn on_activity(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: Option<&str>,
        kind: Activity,
    ) -> Result<(), Refusal> {
        let place = match room {
            Some(room) => {
                let want = if kind == Activity::Typing { Want::Write } else { Want::Read };
                let Some(idx) = self.find_room(conn, room, want)? else { return Ok(()) };
                self.check_right(conn, idx, want)?;
                Some((room, self.rooms.get(idx).key))
            }
            None => None,
        };
        self.note_activity(conn, kind);
        if let Some((room, key)) = place {
            self.pass_on(conn, room, key, kind);
        }
        self.cx.ok(conn, id, |_| {});
        Ok(())
    }

    fn note_activity(&mut self, conn: ConnKey, kind: Activity) {
        let now = self.cx.now;
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let before = session.presence;
        session.presence = DevicePresence { activity: kind, is_idle: kind == Activity::Idle, ..before };
        if kind != Activity::Idle {
            session.presence.active_at = now;
        }
        if session.presence.is_idle != before.is_idle {
            let (user, device) = (session.user, session.device.clone());
            self.note_presence(user, if before.is_idle { Cause::Active } else { Cause::Idle }, device);
            self.arm(conn);
        }
    }

    /// Tells a room, unless it may not know of the user. When it was told something of them a moment
    /// ago, the latest waits for its time, if it is anything else.
    fn pass_on(&mut self, conn: ConnKey, room: &str, key: RoomKey, kind: Activity) {
        let Some(user) = self.sessions.get(conn).map(|session| session.user) else { return };
        let now = self.cx.now;
        if self.merged(user) == Status::Offline {
            self.cx.stats.activities_held += 1;
            return;
        }
        if let Some(passed) = self.presence.passed.get_mut(&(user, key))
            && now < passed.at + PASSED_MS
        {
            self.cx.stats.activities_held += 1;
            let held = (kind != passed.kind).then_some((conn, kind));
            if passed.held.is_none() && held.is_some() {
                self.timers.set(passed.at + PASSED_MS, Timer::Activity(user, key));
            }
            passed.held = held;
            return;
        }
        self.presence.passed.insert((user, key), Passed { at: now, kind, held: None });
        self.cx.stats.activities_passed += 1;
        let (name, ts) = (self.users.get(user).name.clone(), self.cx.time_of_day());
        let frame = Cx::frame(|out| {
            out.extend_from_slice(b"{\"type\":\"activity\",\"room\":");
            string(out, room);
            field_string(out, "user", name.as_str());
            field_string(out, "kind", kind.as_str());
            field_integer(out, "ts", ts);
            out.push(b'}');
        });
        let conflation = conflation_key(key.0 | ACTIVITY_KEY, name.as_str(), None);
        self.say_activity(key, frame.clone(), conflation);
        if self.cx.shards > 1 {
            let mail = Arc::new(Mail::Activity { room: key, frame, key: conflation });
            self.cx.out.list.push(Output::Mesh(MeshMessage::Presence { from: self.cx.shard, mail }));
        }
    }

    /// An activity has waited long enough, if it is still true and allowed.
    pub(super) fn on_activity_timer(&mut self, user: UserIdx, key: RoomKey) {
        let now = self.cx.now;
        let due = self.presence.passed.get_mut(&(user, key)).filter(|passed| passed.at + PASSED_MS <= now);
        let Some((conn, kind)) = due.and_then(|passed| passed.held.take()) else { return };
        let Some(room) = self.rooms.find_key(key) else { return };
        let is_theirs = self.sessions.get(conn).is_some_and(|session| session.user == user);
        let want = if kind == Activity::Typing { Want::Write } else { Want::Read };
        if is_theirs && self.check_right(conn, room, want).is_ok() {
            let name = self.rooms.get(room).name.clone();
            self.pass_on(conn, name.as_str(), key, kind);
        }
    }

    pub(super) fn say_activity(&mut self, room: RoomKey, frame: Bytes, key: u64) {
        let Some(idx) = self.rooms.find_key(room) else { return };
        let subscribers = &self.rooms.get(idx).subscribers;
        self.cx.fanout(subscribers.iter().copied(), Class::Low { key }, Frames::Owned(frame));
    }

    /// A loaded user's standing in a room began, changed or ended.
    pub(super) fn note_membership(&mut self, user: UserIdx, room: RoomKey, is_end: bool) {
        if self.presence.is_room_watched(room) && self.users.get(user).presence.shown != Status::Offline {
            self.mark_presence(user, true);
            if is_end && let Some(dirty) = self.presence.dirty.get_mut(&user) {
                dirty.left.push(room);
            }
            self.note_counts(room);
        }
        if is_end {
            for conn in self.users.get(user).conns.clone() {
                self.unwatch_room(conn, room);
            }
        }
    }

    /// Numbers for the admin API.
    pub(super) fn count_presence(&self) -> PresenceCount {
        let mut count = PresenceCount::default();
        for user in self.users.iter() {
            match user.presence.shown {
                Status::Online => count.online += 1,
                Status::Away => count.away += 1,
                Status::Busy => count.busy += 1,
                Status::Offline => count.invisible += u64::from(!user.conns.is_empty()),
            }
            if let Some(last) = user.conns.len().checked_sub(1) {
                count.devices[last.min(3)] += 1;
            }
        }
        count
    }
}
