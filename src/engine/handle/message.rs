//! `message:send`, `message:read` and `message:delivered`: checked here, numbered by the persistence core.

use std::sync::Arc;

use super::super::audience::Narrow;
use super::super::auth::Want;
use super::super::event::{Audience, ConnKey, Entry, NewMessage};
use super::super::rooms::RoomIdx;
use super::super::shard::Shard;
use super::super::stages::Timing;
use super::{Call, Waiting};
use crate::protocol::audience::RoleSet;
use crate::protocol::command::{CommandId, MessageSend};
use crate::protocol::encode::{field_integer, field_raw, field_string, integer, string};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{DeviceId, Priority, RoomKey, Seq, UserId};

impl Shard {
    pub(super) fn on_message_send(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        message: &MessageSend<'_>,
    ) -> Result<(), Refusal> {
        let Some(idx) = self.find_room(conn, message.room, Want::Write)? else { return Ok(()) };
        if let Err(refusal) = self.check_right(conn, idx, Want::Write) {
            return self.repeat_or(conn, id, idx, message, refusal);
        }
        self.check_references(idx, message)?;
        self.pay_for_append(conn)?;
        let Some(session) = self.sessions.get(conn) else { return Ok(()) };
        let author = self.users.get(session.user).name.clone();
        let room = self.rooms.get(idx);
        let trace = self.cx.rng.next_u64();
        let entry = NewMessage {
            room: room.key,
            author,
            by_admin: session.rights.admin,
            client_id: message.client_id.map(Box::from),
            fields: fields(message, trace),
            thread: message.thread,
            audience: audience(message)?,
            priority: message.priority,
            mentions: users(&message.mentions)?,
            reads: message.read,
        };
        self.cx.stats.count_event_in(message.priority);
        self.await_ack(Call { conn, id: id.cloned() }, idx, message, trace, Entry::Message(entry));
        Ok(())
    }

    /// Hands what was sent to the core; the answer is a message's.
    fn await_ack(&mut self, call: Call, idx: RoomIdx, message: &MessageSend<'_>, trace: u64, entry: Entry) {
        let room = self.rooms.get(idx).name.clone();
        let asked_us = message.timing.then_some(self.cx.clock_us);
        let token = self.pending.insert(Waiting::Ack { call, room, trace, asked_us });
        self.cx.stats.messages_submitted += 1;
        self.cx.append(token, entry);
    }

    /// For an author who may not write here: whether this repeats a message from before they lost the right
    /// is the core's to say. Without a `client_id` it repeats nothing.
    fn repeat_or(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        idx: RoomIdx,
        message: &MessageSend<'_>,
        refusal: Refusal,
    ) -> Result<(), Refusal> {
        let client_id = message.client_id.filter(|_| self.cx.limits.dedupe_window_ms > 0);
        let Some(client_id) = client_id.map(Box::from) else { return Err(refusal) };
        self.pay_for_append(conn)?;
        let author = self.user_of(conn)?;
        let entry = Entry::Repeat { room: self.rooms.get(idx).key, author, client_id };
        let trace = self.cx.rng.next_u64();
        self.await_ack(Call { conn, id: id.cloned() }, idx, message, trace, entry);
        Ok(())
    }

    /// `thread` and `reply_to` must name entries that exist.
    fn check_references(&self, idx: RoomIdx, message: &MessageSend<'_>) -> Result<(), Refusal> {
        let head = self.rooms.get(idx).head;
        let is_known = |seq: Option<Seq>| seq.is_none_or(|seq| seq <= head);
        if !is_known(message.thread) || !is_known(message.reply_to) {
            return Err(Refusal::new(ErrorCode::NotFound, "thread or reply_to names no entry of this room"));
        }
        Ok(())
    }

    pub(super) fn on_message_read(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        seq: Seq,
    ) -> Result<(), Refusal> {
        self.move_cursor(conn, id, room, |room, user, _| Entry::Read { room, user, seq })
    }

    pub(super) fn on_message_delivered(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        seq: Seq,
    ) -> Result<(), Refusal> {
        self.move_cursor(conn, id, room, |room, user, device| Entry::Delivered {
            room,
            user,
            device: device.clone(),
            seq,
        })
    }

    fn move_cursor(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        entry: impl FnOnce(RoomKey, UserId, &DeviceId) -> Entry,
    ) -> Result<(), Refusal> {
        let Some(idx) = self.find_room(conn, room, Want::Read)? else { return Ok(()) };
        self.check_right(conn, idx, Want::Read)?;
        self.cx.may_append()?;
        let Some(session) = self.sessions.get(conn) else { return Ok(()) };
        let user = self.users.get(session.user).name.clone();
        let room = self.rooms.get(idx);
        let entry = entry(room.key, user, &session.device);
        let call = Call { conn, id: id.cloned() };
        let token = self.pending.insert(Waiting::ReadMark { call, room: room.name.clone() });
        self.cx.append(token, entry);
        Ok(())
    }
}

/// The fields of the event that only the author's shard knows, as the log keeps them.
pub(super) fn fields(message: &MessageSend<'_>, trace: u64) -> Box<str> {
    let mut out = Vec::with_capacity(message.body.len() + 48);
    out.extend_from_slice(b"\"body\":");
    string(&mut out, message.body);
    if let Some(thread) = message.thread {
        field_integer(&mut out, "thread", thread);
    }
    if let Some(reply_to) = message.reply_to {
        field_integer(&mut out, "reply_to", reply_to);
    }
    field_list(&mut out, "mentions", &message.mentions);
    field_list(&mut out, "attachments", &message.attachments);
    if message.priority != Priority::Normal {
        field_string(&mut out, "priority", message.priority.as_str());
    }
    if let Some(meta) = &message.meta {
        field_raw(&mut out, "meta", meta.as_bytes());
    }
    out.extend_from_slice(b",\"trace\":\"");
    write_trace(&mut out, trace);
    out.push(b'"');
    String::from_utf8(out).expect("made of texts and escapes").into_boxed_str()
}

fn field_list(out: &mut Vec<u8>, key: &str, list: &[&str]) {
    if list.is_empty() {
        return;
    }
    field_raw(out, key, b"[");
    for (at, item) in list.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        string(out, item);
    }
    out.push(b']');
}

/// A trace id: 16 lower-case hexadecimal digits.
pub(super) fn write_trace(out: &mut Vec<u8>, trace: u64) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend((0..16).rev().map(|nibble| HEX[(trace >> (4 * nibble)) as usize & 15]));
}

/// Appends `,"timing":{…}`.
pub(super) fn write_timing(out: &mut Vec<u8>, timing: &Timing) {
    out.extend_from_slice(b",\"timing\":{\"queue_us\":");
    integer(out, timing.queue_us);
    field_integer(out, "gather_us", timing.gather_us);
    field_integer(out, "commit_us", timing.commit_us);
    field_integer(out, "fanout_us", timing.fanout_us);
    field_integer(out, "total_us", timing.total_us());
    out.push(b'}');
}

fn users(list: &[&str]) -> Result<Box<[UserId]>, Refusal> {
    list.iter().map(|name| Ok(UserId::parse(name)?)).collect()
}

fn audience(message: &MessageSend<'_>) -> Result<Option<Arc<Audience>>, Refusal> {
    let users = match (message.only.is_empty(), message.exclude.is_empty()) {
        (true, true) => None,
        (true, false) => Some(Audience::Except(users(&message.exclude)?)),
        (false, true) => Some(Audience::Only(users(&message.only)?)),
        (false, false) => {
            return Err(Refusal::new(ErrorCode::BadRequest, "exclude and only shut each other out"));
        }
    };
    Ok(narrowed(users, message.only_roles, &message.only_devices).map(Arc::new))
}

/// An audience of users, narrowed by roles and classes of devices where any are named.
pub(super) fn narrowed(users: Option<Audience>, roles: RoleSet, devices: &[&str]) -> Option<Audience> {
    if roles.is_empty() && devices.is_empty() {
        return users;
    }
    let devices = devices.iter().copied().map(Box::from).collect();
    Some(Audience::Narrow(Box::new(Narrow { users, roles, devices, also: Box::default() })))
}
