//! Sessions: opening, `hello`, heartbeat, token expiry and renewal, drain, end.

use std::borrow::Cow;

use super::super::auth::Want;
use super::super::event::{Claims, Class, ConnKey, Note, Opening, Output, Query, Revocation, Token};
use super::super::presence::Cause;
use super::super::rooms::RoomIdx;
use super::super::session::{Session, State, Step};
use super::super::shard::Shard;
use super::super::timers::Timer;
use super::super::users::UserIdx;
use super::{Call, SWEEP_MS, Waiting};
use crate::protocol::command::CommandId;
use crate::protocol::encode::{field_integer, field_raw, field_string, integer, string};
use crate::protocol::error::{CloseCode, ErrorCode, Refusal};
use crate::protocol::ids::{RoomKey, UnixMillis, UserId};

/// Sessions' deadlines fall on multiples of this, ms.
const TIMER_STEP_MS: UnixMillis = 100;
/// Timers that are served in one go at most, so that a sweep keeps nobody waiting.
const TIMERS_BUDGET: usize = 256;

/// Why the server ends a connection: code, and a sentence for people.
type Ending = (CloseCode, Cow<'static, str>);

impl Shard {
    pub(in crate::engine) fn on_opened(&mut self, conn: ConnKey, opening: Opening) {
        if let Err(ending) = self.admit(conn, opening) {
            self.close(conn, ending);
        }
    }

    fn admit(&mut self, conn: ConnKey, opening: Opening) -> Result<(), Ending> {
        let claims = &opening.claims;
        if self.draining.is_some() {
            return Err((CloseCode::Draining, "the server is being stopped".into()));
        }
        if self.revoked.covers(&claims.user, claims.issued_at, claims.jti.as_deref()) {
            return Err((CloseCode::InvalidToken, "the token was revoked".into()));
        }
        if self.sessions.count() >= self.cx.limits.shard_connections_max as usize {
            return Err((CloseCode::OverCapacity, "too many connections".into()));
        }
        let known = self.users.find(claims.user.as_str());
        if let Some(user) = known {
            self.replace_device(user, &opening);
            if self.users.get(user).conns.len() >= self.cx.limits.user_connections_max as usize {
                return Err((CloseCode::ConnectionLimit, "too many connections of this user".into()));
            }
        }
        let user = match known {
            Some(user) => user,
            None => self.load_user(claims.user.clone()).map_err(|_| (CloseCode::OverCapacity, "too busy".into()))?,
        };
        self.begin(conn, opening, user);
        Ok(())
    }

    /// The same device again: the newer connection wins.
    fn replace_device(&mut self, user: UserIdx, opening: &Opening) {
        let same = |conn: &&ConnKey| self.sessions.get(**conn).is_some_and(|s| s.device == opening.device);
        if let Some(old) = self.users.get(user).conns.iter().find(same).copied() {
            self.end(old, Some((CloseCode::Replaced, "the same device connected again".into())));
        }
    }

    fn begin(&mut self, conn: ConnKey, opening: Opening, user: UserIdx) {
        let id = self.cx.rng.next_u64();
        let mut session = Session::new(conn, opening, user, id, self.cx.now);
        session.ping_at = self.heartbeat.next(conn.slot, self.cx.now + 1);
        self.cx.note(Note::SessionOpened {
            conn,
            session: id,
            user: self.users.get(user).name.clone(),
            device: session.device.clone(),
        });
        let conns = &mut self.users.get_mut(user).conns;
        conns.reserve_exact(1);
        conns.push(conn);
        self.sessions.insert(session);
        self.arm(conn);
        self.cx.stats.sessions_opened += 1;
        self.cx.out.list.push(Output::Park { conn, again: false });
        if self.users.get(user).loaded_at().is_some() {
            self.welcome(conn);
        }
    }

    fn load_user(&mut self, name: UserId) -> Result<UserIdx, Refusal> {
        self.cx.may_read()?;
        let user = self.users.add(name.clone());
        let token = self.pending.insert(Waiting::User(user));
        self.cx.read(token, Query::User(name));
        Ok(user)
    }

    /// The user is known: `hello`, and the connection may speak.
    pub(super) fn welcome(&mut self, conn: ConnKey) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let Some(next) = session.state.on(Step::Loaded) else { return };
        session.state = next;
        let user = session.user;
        let waiting = self.waiting_count(user);
        let Some(session) = self.sessions.get(conn) else { return };
        let user = self.users.get(user);
        let delivered = user.delivered_to(&session.device);
        let (cx, rooms) = (&mut self.cx, &self.rooms);
        let (epoch, limits, ts) = (cx.epoch.clone(), cx.limits.clone(), cx.time_of_day());
        cx.send(conn, Class::Critical, |out| {
            let start = out.len();
            out.extend_from_slice(b"{\"type\":\"hello\"");
            field_string(out, "session", &format!("{:016x}", session.id));
            field_string(out, "user", user.name.as_str());
            field_string(out, "device", session.device.as_str());
            field_string(out, "epoch", epoch.as_str());
            field_integer(out, "ts", ts);
            field_integer(out, "heartbeat_ms", u64::from(limits.heartbeat_ms));
            field_integer(out, "token_expires_ts", session.expires_at);
            field_raw(out, "rooms", b"[");
            let mut is_first = true;
            for standing in user.standings.iter().filter(|s| s.role.is_member()) {
                let Some(room) = rooms.find_key(standing.room).map(|idx| rooms.get(idx)) else { continue };
                if !session.rights.covers(room.name.as_str(), Want::Read) {
                    continue;
                }
                out.extend_from_slice(if is_first { b"{\"room\":" } else { b",{\"room\":" });
                is_first = false;
                string(out, room.name.as_str());
                field_integer(out, "seq", room.head);
                field_integer(out, "read", standing.read);
                field_integer(out, "delivered", standing.read.max(delivered.get(&standing.room).copied().unwrap_or(0)));
                field_integer(out, "unread", room.unread(standing));
                field_string(out, "role", standing.role.as_str());
                out.push(b'}');
            }
            out.push(b']');
            limits_object(out, &limits);
            field_integer(out, "inbox", waiting);
            out.push(b'}');
            // Spaces behind the object: JSON still.
            let filled = out.len().max(start + limits.hello_bytes_min as usize);
            out.resize(filled, b' ');
        });
        self.cx.out.list.push(Output::Unpark(conn));
        self.presence_came(conn);
        if self.cx.degraded {
            self.say_degraded(vec![conn], true);
        }
        if let Some(spread_ms) = self.draining {
            self.say_goaway(conn, spread_ms);
        }
        self.greet_with_inbox(conn);
    }

    /// Ends a session: the server's doing when there is an ending, else the peer's.
    pub(in crate::engine) fn end(&mut self, conn: ConnKey, ending: Option<Ending>) {
        let Some(session) = self.sessions.remove(conn) else { return };
        for idx in &session.subscriptions {
            self.rooms.get_mut(*idx).unsubscribe(conn, self.cx.now);
        }
        self.cx.stats.subscriptions -= session.subscriptions.len() as u64;
        let user = self.users.get_mut(session.user);
        user.conns.retain(|c| *c != conn);
        if user.conns.is_empty() {
            user.idle_since = self.cx.now;
        }
        let user_name = user.name.clone();
        self.presence_went(&session, ending.as_ref().map(|(code, _)| *code));
        let note = Note::SessionClosed {
            conn,
            session: session.id,
            user: user_name,
            code: ending.as_ref().map(|(code, _)| *code),
        };
        self.cx.note(note);
        if let Some(ending) = ending {
            self.close(conn, ending);
        }
    }

    fn close(&mut self, conn: ConnKey, (code, reason): Ending) {
        self.cx.stats.closes.count(code);
        self.cx.out.list.push(Output::Close { conn, code, reason });
    }

    /// Sets the session's next deadline, unless the one that is set comes first.
    pub(super) fn arm(&mut self, conn: ConnKey) {
        let silence_ms = 2 * u64::from(self.cx.limits.heartbeat_ms);
        let Some(session) = self.sessions.get_mut(conn) else { return };
        // Whoever answers pings is heard again before the last of the three is ever due. Rounded up,
        // so that a thousand sessions share a wake-up instead of causing one each.
        let expires_at = self.cx.deadline(session.expires_at);
        let mut due = session.ping_at.min(expires_at).min(session.heard_at + silence_ms);
        if !session.presence.is_idle {
            due = due.min(session.presence.active_at + u64::from(self.cx.limits.idle_after_ms));
        }
        let due = due.next_multiple_of(TIMER_STEP_MS);
        if session.timer_at <= self.cx.now || due < session.timer_at {
            session.timer_at = due;
            self.timers.set(due, Timer::Session(conn));
        }
    }

    pub(in crate::engine) fn on_tick(&mut self) {
        for _ in 0..TIMERS_BUDGET {
            let Some((due, timer)) = self.timers.next_due(self.cx.now) else { return };
            match timer {
                Timer::Session(conn) => self.on_session_timer(conn, due),
                Timer::FlushReads => self.flush_reads(),
                Timer::Grace(user) => self.on_grace_over(user),
                Timer::PresenceTick => self.on_presence_tick(),
                Timer::PresenceCounts => self.on_presence_counts(),
                Timer::PresenceProbe => self.on_presence_probe(),
                Timer::Activity(user, room) => self.on_activity_timer(user, room),
                Timer::PresenceRecord => self.on_record_timer(),
                Timer::Gather(gather) => self.on_gather_late(gather),
                Timer::Inbox(user) => self.on_inbox_timer(user, due),
                Timer::Consistency => self.on_consistency_timer(),
                Timer::Sweep => {
                    self.sweep();
                    self.timers.set(self.cx.now + SWEEP_MS, Timer::Sweep);
                }
            }
        }
    }

    fn on_session_timer(&mut self, conn: ConnKey, due: UnixMillis) {
        let now = self.cx.now;
        let heartbeat_ms = u64::from(self.cx.limits.heartbeat_ms);
        let Some(session) = self.sessions.get_mut(conn).filter(|session| session.timer_at == due) else { return };
        if session.ping_at + heartbeat_ms / 2 <= now {
            // This process stood still, and not the peer: whoever was asked nothing is not silent.
            session.heard_at = now;
        }
        if self.cx.deadline(session.expires_at) <= now {
            return self.end(conn, Some((CloseCode::TokenExpired, "the token has expired".into())));
        }
        if session.heard_at + 2 * heartbeat_ms <= now {
            self.cx.stats.heartbeats_missed += 1;
            return self.end(conn, Some((CloseCode::NoHeartbeat, "nothing arrived for two heartbeats".into())));
        }
        let idle_at = session.presence.active_at + u64::from(self.cx.limits.idle_after_ms);
        if !session.presence.is_idle && idle_at <= now {
            session.presence.is_idle = true;
            let (user, device) = (session.user, session.device.clone());
            self.note_presence(user, Cause::Idle, device);
        }
        let Some(session) = self.sessions.get_mut(conn) else { return };
        if session.ping_at <= now {
            // Not twice at once after a pause.
            session.ping_at = self.heartbeat.next(conn.slot, now + heartbeat_ms.div_ceil(2));
            self.cx.stats.pings += 1;
            self.cx.out.list.push(Output::Ping(conn));
        }
        self.arm(conn);
    }

    pub(super) fn on_auth_refresh(&mut self, conn: ConnKey, id: Option<&CommandId>, jwt: &str) -> Result<(), Refusal> {
        let token = self.pending.insert(Waiting::Refresh { call: Call { conn, id: id.cloned() } });
        self.cx.out.list.push(Output::Park { conn, again: false });
        self.cx.out.list.push(Output::VerifyToken { conn, token, jwt: jwt.into() });
        Ok(())
    }

    pub(in crate::engine) fn on_token_verified(
        &mut self,
        conn: ConnKey,
        token: Token,
        result: Result<Claims, Refusal>,
    ) {
        let Some(Waiting::Refresh { call }) = self.pending.take(token) else { return };
        let answer = result.and_then(|claims| self.renew(conn, claims));
        match answer {
            Ok(expires_at) => {
                self.forgive(Some(conn));
                self.cx.ok(conn, call.id.as_ref(), |out| field_integer(out, "token_expires_ts", expires_at));
            }
            Err(refusal) => self.refuse_call(&call, &refusal),
        }
        self.cx.out.list.push(Output::Unpark(conn));
    }

    fn renew(&mut self, conn: ConnKey, claims: Claims) -> Result<UnixMillis, Refusal> {
        let is_revoked = self.revoked.covers(&claims.user, claims.issued_at, claims.jti.as_deref());
        let Some(session) = self.sessions.get_mut(conn) else {
            return Err(Refusal::new(ErrorCode::Unauthorized, "the session is over"));
        };
        if is_revoked {
            return Err(Refusal::new(ErrorCode::Unauthorized, "the token was revoked"));
        }
        if claims.user != self.users.get(session.user).name {
            return Err(Refusal::new(ErrorCode::Unauthorized, "the token is another user's"));
        }
        let expires_at = claims.expires_at;
        session.renew(claims);
        self.drop_unreadable(conn);
        self.arm(conn);
        Ok(expires_at)
    }

    /// A new token may allow less: rooms that it does not allow to read are no longer listened to or watched.
    fn drop_unreadable(&mut self, conn: ConnKey) {
        let Some(session) = self.sessions.get(conn) else { return };
        let may = |idx: RoomIdx| self.check_right(conn, idx, Want::Read).is_ok();
        let unheard: Vec<RoomIdx> = session.subscriptions.iter().copied().filter(|idx| !may(*idx)).collect();
        let watched = self.presence.watching.conns.get(&conn).map_or(&[][..], |watches| &watches.rooms);
        let is_lost = |key: &RoomKey| !self.rooms.find_key(*key).is_some_and(may);
        let unseen: Vec<RoomKey> = watched.iter().copied().filter(is_lost).collect();
        unheard.into_iter().for_each(|idx| self.unsubscribe(conn, idx));
        unseen.into_iter().for_each(|key| self.unwatch_room(conn, key));
    }

    /// Tokens were revoked: their sessions end.
    pub(super) fn on_revocation(&mut self, revocation: &Revocation) {
        self.revoked.add(revocation);
        if let Revocation::UserBefore(user, _) = revocation {
            // First, so that the last word on why they went is that they were put out.
            if let Some(user) = self.users.find(user.as_str()) {
                self.lay_ghosts(user, |_| true);
            }
        }
        let is_hit = |session: &Session| match revocation {
            Revocation::Jti(jti) | Revocation::JtiUntil(jti, _) => session.jti.as_ref() == Some(jti),
            Revocation::UserBefore(user, second) => {
                self.users.get(session.user).name == *user && session.issued_at <= *second
            }
        };
        let hit: Vec<ConnKey> = self.sessions.iter().filter(|s| is_hit(s)).map(|s| s.conn).collect();
        for conn in hit {
            self.cx.stats.revoked += 1;
            self.end(conn, Some((CloseCode::InvalidToken, "the token was revoked".into())));
        }
    }

    pub(in crate::engine) fn on_drain(&mut self, spread_ms: u32) {
        self.draining = Some(spread_ms);
        let conns: Vec<ConnKey> = self.sessions.iter().map(|s| s.conn).collect();
        for conn in conns {
            self.say_goaway(conn, spread_ms);
        }
    }

    fn say_goaway(&mut self, conn: ConnKey, spread_ms: u32) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let Some(next) = session.state.on(Step::Drain) else { return };
        session.state = next;
        let retry_ms = u64::from(self.cx.rng.below(spread_ms));
        self.cx.send(conn, Class::Critical, |out| {
            out.extend_from_slice(b"{\"type\":\"goaway\",\"reason\":\"draining\",\"retry_after_ms\":");
            integer(out, retry_ms);
            out.push(b'}');
        });
    }

    pub(in crate::engine) fn on_close_all(&mut self) {
        let conns: Vec<ConnKey> = self.sessions.iter().map(|s| s.conn).collect();
        for conn in conns {
            self.end(conn, Some((CloseCode::Draining, "the server is being stopped".into())));
        }
        self.record_the_end();
    }

    /// True when `conn` has had its `hello`.
    pub(super) fn is_open(&self, conn: ConnKey) -> bool {
        self.sessions.get(conn).is_some_and(|session| session.state != State::Loading)
    }
}

fn limits_object(out: &mut Vec<u8>, limits: &super::super::limits::Limits) {
    use super::super::limits::{BODY_BYTES_MAX, DATA_BYTES_MAX, META_BYTES_MAX};
    field_raw(out, "limits", b"{\"message_bytes_max\":");
    integer(out, u64::from(limits.message_bytes_max));
    field_integer(out, "body_bytes_max", BODY_BYTES_MAX as u64);
    field_integer(out, "data_bytes_max", DATA_BYTES_MAX as u64);
    field_integer(out, "meta_bytes_max", META_BYTES_MAX as u64);
    field_integer(out, "rooms_max", u64::from(limits.rooms_max));
    field_integer(out, "subscriptions_max", u64::from(limits.subscriptions_max));
    field_integer(out, "dedupe_window_ms", u64::from(limits.dedupe_window_ms));
    field_integer(out, "resume_events_max", u64::from(limits.resume_events_max));
    field_integer(out, "resume_bytes_max", u64::from(limits.resume_bytes_max));
    if limits.rates_on {
        field_integer(out, "commands_per_second", u64::from(limits.connection_rate.per_second));
        field_integer(out, "messages_per_second", u64::from(limits.user_rate.per_second));
    }
    out.push(b'}');
}
