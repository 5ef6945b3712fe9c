//! What is kept of presence: changes are gathered and handed to the store, `presence:history` and the
//! operator's numbers are read from it.

use std::collections::BTreeMap;

use super::super::event::{AdminAnswer, ConnKey, Entry, Output, Query, Token};
use super::super::presence::Cause;
use super::super::presence::history::{Ask, DAY_MS, History, Kept, Transition, add_to_class, device_class};
use super::super::session::State;
use super::super::shard::Shard;
use super::super::timers::Timer;
use super::super::users::UserIdx;
use super::{Call, Waiting};
use crate::protocol::command::{CommandId, Status};
use crate::protocol::encode::{field_integer, field_raw, field_string, integer};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{DeviceId, UnixMillis};

/// News that the store did not take are told again after so long, ms, and up to as much more.
const AGAIN_MS: u32 = 1_000;

impl Shard {
    fn is_recording(&self) -> bool {
        self.cx.limits.presence_history_days > 0
    }

    /// What others see of a user changes: `noted` is what happened last.
    pub(super) fn record_change(&mut self, idx: UserIdx, status: Status, noted: Option<&(Cause, DeviceId)>) {
        let user = self.users.get_mut(idx);
        let was = user.presence.shown;
        let cause = Cause::of_change(was, status, noted.map(|(cause, _)| *cause), user.presence.cause);
        if status == Status::Offline {
            user.presence.cause = cause;
        }
        // Two of the same moment would be one in the store.
        let ts = self.cx.time_of_day().max(user.presence.since + 1);
        let was_ms = if was == Status::Offline { 0 } else { ts - user.presence.since };
        user.presence.since = ts;
        let transition = Transition {
            user: user.name.clone(),
            ts,
            status,
            cause,
            device: noted.map(|(_, device)| device.clone()),
            was,
            was_ms,
        };
        if self.is_recording() {
            self.cx.stats.transitions_dropped += self.presence.recorder.record(transition);
            self.arm_recorder(0);
        }
    }

    /// A device's session has ended. It may be the only news: of a user who hides.
    pub(super) fn record_session(&mut self, device: &DeviceId, length_ms: u64) {
        self.presence.recorder.end_session(device, length_ms);
        self.arm_recorder(u64::from(self.cx.limits.presence_tick_ms));
    }

    pub(super) fn arm_recorder(&mut self, after_ms: u64) {
        if !std::mem::replace(&mut self.presence.recorder.is_armed, true) {
            self.timers.set(self.cx.now + after_ms, Timer::PresenceRecord);
        }
    }

    pub(super) fn on_record_timer(&mut self) {
        self.presence.recorder.is_armed = false;
        self.tell_store();
    }

    /// Hands over what was gathered, when the store takes writes and has answered the last.
    pub(super) fn tell_store(&mut self) {
        if !self.is_recording() {
            return;
        }
        if self.cx.degraded || self.cx.appends >= self.cx.limits.appends_max {
            if self.presence.recorder.unwritten() > 0 {
                let wait_ms = AGAIN_MS + self.cx.rng.below(AGAIN_MS);
                self.arm_recorder(u64::from(wait_ms));
            }
            return;
        }
        if let Some(news) = self.presence.recorder.next(self.cx.now, self.cx.time_of_day()) {
            let token = self.pending.insert(Waiting::PresenceNews);
            self.cx.append(token, Entry::PresenceNews(news));
        }
    }

    /// The store has answered.
    pub(super) fn on_news_answered(&mut self, refusal: Option<&Refusal>) {
        // What the database will never take lies among the dead letters.
        let is_poison = refusal.is_some_and(|refusal| refusal.code == ErrorCode::NotAvailable);
        let is_done = refusal.is_none() || is_poison;
        let count = self.presence.recorder.on_answer(is_done);
        if is_poison {
            self.cx.stats.transitions_dropped += count;
        } else {
            self.cx.stats.transitions_recorded += count;
        }
        if is_done {
            // What came meanwhile goes at once, so that a stop need not wait for a deadline.
            self.tell_store();
        } else {
            let wait_ms = AGAIN_MS + self.cx.rng.below(AGAIN_MS);
            self.arm_recorder(u64::from(wait_ms));
        }
    }

    /// The server stops, and everybody's connections have ended: nobody is present any more, whatever
    /// their grace.
    pub(super) fn record_the_end(&mut self) {
        for user in self.users.indices() {
            self.lay_ghosts(user, |_| true);
        }
        self.on_presence_tick();
        self.tell_store();
    }

    // --------------------------------------------------------------------------------------------
    // Questions

    /// Anybody may ask about any user, as they may watch them: what is told is what watchers saw.
    pub(super) fn on_presence_history(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        user: &str,
        (from, to): (UnixMillis, Option<UnixMillis>),
        limit: u32,
    ) -> Result<(), Refusal> {
        if !self.is_recording() {
            return Err(Refusal::new(ErrorCode::NotAvailable, "presence history is switched off here"));
        }
        self.cx.may_read()?;
        let user = crate::protocol::ids::UserId::parse(user)?;
        let now = self.cx.time_of_day();
        let oldest = now.saturating_sub(u64::from(self.cx.limits.presence_history_days) * DAY_MS);
        let to = to.unwrap_or(u64::MAX).min(now);
        let ask = Ask { user, from: from.max(oldest).min(to), to, limit };
        let token = self.pending.insert(Waiting::PresenceHistory { call: Call { conn, id: id.cloned() } });
        self.cx.out.list.push(Output::Park { conn, again: false });
        self.cx.read(token, Query::PresenceHistory(ask));
        Ok(())
    }

    pub(super) fn on_presence_history_page(&mut self, call: &Call, history: &History) {
        self.cx.out.list.push(Output::Unpark(call.conn));
        let summary = &history.summary;
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_raw(out, "transitions", b"[");
            for (at, transition) in history.transitions.iter().enumerate() {
                out.extend_from_slice(if at == 0 { b"{" } else { b",{" });
                write_transition(out, transition);
                out.push(b'}');
            }
            out.push(b']');
            if let Some(next) = history.next {
                field_integer(out, "next", next);
            }
            out.extend_from_slice(b",\"summary\":{\"online_ms\":");
            integer(out, summary.online_ms);
            field_integer(out, "sessions", summary.sessions);
            if let Some(seen) = summary.first_seen {
                field_integer(out, "first_seen", seen);
            }
            if let Some(seen) = summary.last_seen {
                field_integer(out, "last_seen", seen);
            }
            if summary.is_partial {
                field_raw(out, "partial", b"true");
            }
            out.push(b'}');
        });
    }

    /// Connected devices of this shard's users, by class.
    pub(super) fn count_devices(&self) -> BTreeMap<Box<str>, u64> {
        let mut classes: BTreeMap<Box<str>, u64> = BTreeMap::new();
        for session in self.sessions.iter().filter(|session| session.state != State::Loading) {
            add_to_class(&mut classes, device_class(&session.device), |count| *count += 1);
        }
        classes
    }

    pub(super) fn ask_analytics(&mut self, token: Token, hours: u32) -> Result<(), Refusal> {
        self.cx.may_read()?;
        let waiting = self.pending.insert(Waiting::AdminAnalytics { token });
        self.cx.read(waiting, Query::PresenceAnalytics { now: self.cx.time_of_day(), hours });
        Ok(())
    }

    pub(super) fn on_analytics(
        &mut self,
        token: Token,
        result: Result<Box<super::super::presence::history::Analytics>, Refusal>,
    ) {
        self.admin_reply(token, result.map(AdminAnswer::PresenceAnalytics));
    }
}

fn write_transition(out: &mut Vec<u8>, transition: &Kept) {
    out.extend_from_slice(b"\"ts\":");
    integer(out, transition.ts);
    field_string(out, "status", transition.status.as_str());
    if let Some(device) = &transition.device {
        field_string(out, "device", device.as_str());
    }
    field_string(out, "cause", transition.cause.as_str());
    if let Some(lost_ts) = transition.lost_ts {
        field_integer(out, "lost_ts", lost_ts);
    }
}
