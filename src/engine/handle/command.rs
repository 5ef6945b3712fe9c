//! Commands: rate, dispatch, refusal. Each topic's file has the handlers.

use super::super::auth::Want;
use super::super::event::{ConnKey, Note, Output};
use super::super::rooms::RoomIdx;
use super::super::sequencer::NOT_ALLOWED;
use super::super::shard::Shard;
use super::super::users::Waiter;
use super::Call;
use super::ephemeral::Ephemeral;
use super::message::narrowed;
use crate::protocol::command::{Command, CommandId, Request};
use crate::protocol::encode::field_integer;
use crate::protocol::error::{CloseCode, ErrorCode, Refusal};
use crate::protocol::ids::{Role, RoomName};

/// True when a person does this, not their program by itself: it ends idleness.
fn is_use(command: &Command<'_>) -> bool {
    match command {
        Command::MessageSend(_)
        | Command::MessageRead { .. }
        | Command::MessageHistory { .. }
        | Command::EventSend { .. }
        | Command::RoomCreate { .. }
        | Command::RoomJoin { .. }
        | Command::RoomLeave { .. }
        | Command::RoomManage { .. }
        | Command::MessageEdit { .. }
        | Command::MessageDelete { .. }
        | Command::Reaction { .. }
        | Command::Notify(_)
        | Command::PresenceSet { .. } => true,
        // `activity` says itself what it is.
        _ => false,
    }
}

impl Shard {
    pub(in crate::engine) fn on_frame(&mut self, conn: ConnKey, request: &Request<'_>) {
        let id = request.id.as_ref();
        let waiting = self.pending.count();
        let result = match self.take_command_token(conn) {
            Ok(true) => self.on_command(conn, id, &request.command),
            Ok(false) => return,
            Err(refusal) => Err(refusal),
        };
        match result {
            // A command that waits for an answer has not succeeded yet.
            Ok(())
                if self.pending.count() > waiting || matches!(self.cx.out.list.last(), Some(Output::Park { .. })) => {}
            Ok(()) => self.forgive(Some(conn)),
            Err(refusal) => self.refuse(conn, id, &refusal),
        }
    }

    /// A command of this connection succeeded: its row of errors is over.
    pub(super) fn forgive(&mut self, conn: Option<ConnKey>) {
        if let Some(session) = conn.and_then(|conn| self.sessions.get_mut(conn)) {
            session.errors = 0;
        }
    }

    pub(in crate::engine) fn on_bad_frame(&mut self, conn: ConnKey, id: Option<&CommandId>, refusal: Refusal) {
        match self.take_command_token(conn) {
            Ok(true) => self.refuse(conn, id, &refusal),
            Ok(false) => {}
            Err(too_fast) => self.refuse(conn, id, &too_fast),
        }
    }

    /// There is no reply to refuse with: whoever floods is closed in the end.
    pub(in crate::engine) fn on_control_frame(&mut self, conn: ConnKey) {
        if self.take_command_token(conn).is_err()
            && let Some(session) = self.sessions.get_mut(conn)
        {
            session.errors += 1;
            if session.errors >= self.cx.limits.errors_max {
                self.end(conn, Some((CloseCode::RateLimited, "kept sending past the rate limit".into())));
            }
        }
    }

    /// Counts a frame. `false`: there is no such open session.
    fn take_command_token(&mut self, conn: ConnKey) -> Result<bool, Refusal> {
        if !self.is_open(conn) {
            return Ok(false);
        }
        let Some(session) = self.sessions.get_mut(conn) else { return Ok(false) };
        if let Some(loaded) = session.replay.take() {
            return loaded.map(|()| true);
        }
        if self.cx.limits.rates_on
            && let Err(wait_ms) = session.bucket.take(1, self.cx.limits.connection_rate, self.cx.now)
        {
            self.cx.stats.rate_limited += 1;
            return Err(Refusal::new(ErrorCode::RateLimited, "too many commands").retry_after(wait_ms));
        }
        Ok(true)
    }

    fn on_command(&mut self, conn: ConnKey, id: Option<&CommandId>, command: &Command<'_>) -> Result<(), Refusal> {
        self.cx.stats.commands.count(command);
        if is_use(command) {
            self.note_use(conn);
        }
        match command {
            Command::Ping => {
                let ts = self.cx.time_of_day();
                self.cx.ok(conn, id, |out| field_integer(out, "ts", ts));
                Ok(())
            }
            Command::AuthRefresh { token } => self.on_auth_refresh(conn, id, token),
            Command::RoomCreate { room, kind, members, title } => {
                self.on_room_create(conn, id, room, *kind, members, *title)
            }
            Command::RoomJoin { room, since, filter } => self.on_room_join(conn, id, room, *since, filter.as_ref()),
            Command::RoomSubscribe { room, since, filter } => {
                self.on_room_subscribe(conn, id, room, *since, filter.as_ref())
            }
            Command::RoomUnsubscribe { room } => self.on_room_unsubscribe(conn, id, room),
            Command::RoomLeave { room } => self.on_room_leave(conn, id, room),
            Command::RoomManage { room, user, act } => self.on_room_manage(conn, id, room, user, *act),
            Command::RoomMembers { room, after, limit } => self.on_room_members(conn, id, room, *after, *limit),
            Command::RoomList { kind, after, limit } => self.on_room_list(conn, id, *kind, *after, *limit),
            Command::MessageSend(message) => self.on_message_send(conn, id, message),
            Command::MessageHistory { room, from, thread, limit } => {
                self.on_message_history(conn, id, room, *from, *thread, *limit)
            }
            Command::MessageRead { room, seq } => self.on_message_read(conn, id, room, *seq),
            Command::MessageDelivered { room, seq } => self.on_message_delivered(conn, id, room, *seq),
            Command::MessageEdit { room, seq, body, version } => {
                self.on_message_edit(conn, id, (room, *seq), body, *version)
            }
            Command::MessageDelete { room, seq } => self.on_message_delete(conn, id, (room, *seq)),
            Command::Reaction { room, seq, emoji, is_added } => {
                self.on_reaction(conn, id, (room, *seq), emoji, *is_added)
            }
            Command::EventSend { room, name, data, priority, only_roles, only_devices } => {
                let audience = narrowed(None, *only_roles, only_devices);
                let event = Ephemeral { room, name, data, priority: *priority, audience };
                self.on_event_send(conn, id, event)
            }
            Command::Notify(notify) => self.on_notify(conn, id, notify),
            Command::InboxAck { items } => self.on_inbox_ack(conn, id, items),
            Command::InboxList { after, limit } => self.on_inbox_list(conn, id, *after, *limit),
            Command::SyncCheck { rooms } => self.on_sync_check(conn, id, rooms),
            Command::Stats => self.on_stats(conn, id),
            Command::PresenceSet { status, custom } => self.on_presence_set(conn, id, *status, *custom),
            Command::PresenceSubscribe(of) => self.on_presence_subscribe(conn, id, of),
            Command::PresenceUnsubscribe(of) => self.on_presence_unsubscribe(conn, id, of),
            Command::PresenceGet { users } => self.on_presence_get(conn, id, users),
            Command::PresenceHistory { user, from, to, limit } => {
                self.on_presence_history(conn, id, user, (*from, *to), *limit)
            }
            Command::Activity { room, kind } => self.on_activity(conn, id, *room, *kind),
        }
    }

    /// Refuses a command, and ends a connection that does nothing but err.
    pub(super) fn refuse(&mut self, conn: ConnKey, id: Option<&CommandId>, refusal: &Refusal) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        let is_theirs = !refusal.code.is_temporary() || refusal.code == ErrorCode::RateLimited;
        session.errors += u32::from(is_theirs);
        let is_too_many = session.errors >= self.cx.limits.errors_max;
        if refusal.code == ErrorCode::PermissionDenied {
            let user = self.users.get(session.user).name.clone();
            self.cx.stats.denied += 1;
            self.cx.note(Note::Denied { conn, user, what: "command" });
        }
        self.cx.refuse(conn, id, refusal);
        if is_too_many {
            let ending = match refusal.code {
                ErrorCode::RateLimited => (CloseCode::RateLimited, "kept sending past the rate limit".into()),
                _ => (CloseCode::TooManyErrors, "too many refused commands in a row".into()),
            };
            self.end(conn, Some(ending));
        }
    }

    /// Refuses a command whose answer came late.
    pub(super) fn refuse_call(&mut self, call: &Call, refusal: &Refusal) {
        self.refuse(call.conn, call.id.as_ref(), refusal);
    }

    /// The loaded room of that name, after a check of what the token covers.
    ///
    /// `None`: it is being loaded; the connection is parked and the frame will come again.
    ///
    /// # Errors
    /// No right by the token, no such room, or too busy to load it.
    pub(super) fn find_room(&mut self, conn: ConnKey, name: &str, want: Want) -> Result<Option<RoomIdx>, Refusal> {
        let covers = self.sessions.get(conn).is_some_and(|session| session.rights.covers(name, want));
        if !covers {
            return Err(Refusal::new(ErrorCode::PermissionDenied, "the token does not cover this room"));
        }
        if let Some(idx) = self.rooms.find(name) {
            return Ok(Some(idx));
        }
        if self.rooms.is_absent(name) {
            return Err(Refusal::new(ErrorCode::UnknownRoom, "there is no such room"));
        }
        let name = RoomName::parse(name)?;
        self.load_room(name, Some(Waiter::Conn(conn)))?;
        self.cx.out.list.push(Output::Park { conn, again: true });
        Ok(None)
    }

    /// The role of the session's user in a room, after a check that they may do this there.
    ///
    /// # Errors
    /// `permission_denied`.
    pub(super) fn check_right(&self, conn: ConnKey, idx: RoomIdx, want: Want) -> Result<Option<Role>, Refusal> {
        let denied = || Refusal::new(ErrorCode::PermissionDenied, NOT_ALLOWED);
        let session = self.sessions.get(conn).ok_or_else(denied)?;
        let room = self.rooms.get(idx);
        let role = self.users.get(session.user).role(room.key);
        if !session.rights.may(room.name.as_str(), room.kind, role, want) {
            return Err(denied());
        }
        Ok(role)
    }

    /// Takes one of the user's message tokens.
    ///
    /// # Errors
    /// `rate_limited`.
    pub(super) fn take_user_token(&mut self, conn: ConnKey) -> Result<(), Refusal> {
        self.take_user_tokens(conn, 1, "too many messages")
    }

    /// The same for what is to be written. What the core does not take for now costs no token: it is to be tried again.
    ///
    /// # Errors
    /// Those of [`Cx::may_append`](super::super::cx::Cx::may_append); `rate_limited`.
    pub(super) fn pay_for_append(&mut self, conn: ConnKey) -> Result<(), Refusal> {
        self.cx.may_append()?;
        self.take_user_token(conn)
    }

    /// Takes as many of them as something costs.
    ///
    /// # Errors
    /// `rate_limited`, with these words.
    pub(super) fn take_user_tokens(&mut self, conn: ConnKey, tokens: u32, words: &'static str) -> Result<(), Refusal> {
        if !self.cx.limits.rates_on {
            return Ok(());
        }
        let Some(session) = self.sessions.get(conn) else { return Ok(()) };
        let user = self.users.get_mut(session.user);
        user.bucket.take(tokens, self.cx.limits.user_rate, self.cx.now).map_err(|wait_ms| {
            self.cx.stats.rate_limited += 1;
            Refusal::new(ErrorCode::RateLimited, words).retry_after(wait_ms)
        })
    }

    fn on_stats(&mut self, conn: ConnKey, id: Option<&CommandId>) -> Result<(), Refusal> {
        let (Some(id), Some(session)) = (id, self.sessions.get(conn)) else { return Ok(()) };
        let start = self.cx.out.bytes.len() as u32;
        field_integer(&mut self.cx.out.bytes, "subscriptions", session.subscriptions.len() as u64);
        field_integer(&mut self.cx.out.bytes, "errors_in_a_row", u64::from(session.errors));
        let fields = start..self.cx.out.bytes.len() as u32;
        self.cx.out.list.push(Output::StatsReply { conn, id: id.clone(), fields });
        Ok(())
    }
}
