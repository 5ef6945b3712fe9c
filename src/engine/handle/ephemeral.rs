//! `event:send`: live subscribers only, no seq, not stored, at most once.
//!
//! A critical event is never dropped and goes before everything else, so only who moderates the room
//! (or an admin token) may send one. Who is not in an event's audience hears nothing: there is no seq
//! that a stand-in would have to fill.

use std::sync::Arc;

use bytes::Bytes;

use super::super::auth::Want;
use super::super::cx::Cx;
use super::super::event::{Audience, Class, ConnKey, Frames, MeshMessage, Output, Restricted};
use super::super::shard::Shard;
use super::subscribe::{admits, viewer};
use crate::protocol::command::CommandId;
use crate::protocol::encode::{field_integer, field_raw, field_string, string};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{Priority, Role, RoomKey};

/// What is said.
pub(super) struct Ephemeral<'a> {
    pub room: &'a str,
    pub name: &'a str,
    /// JSON text.
    pub data: &'a str,
    pub priority: Priority,
    pub audience: Option<Audience>,
}

impl Shard {
    pub(super) fn on_event_send(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        event: Ephemeral<'_>,
    ) -> Result<(), Refusal> {
        let Ephemeral { room, name, data, priority, audience } = event;
        let Some(idx) = self.find_room(conn, room, Want::Write)? else { return Ok(()) };
        let role = self.check_right(conn, idx, Want::Write)?;
        let is_admin = self.sessions.get(conn).is_some_and(|session| session.rights.admin);
        if priority == Priority::Critical && !is_admin && role.is_none_or(|role| role < Role::Moderator) {
            return Err(Refusal::new(ErrorCode::PermissionDenied, "only moderators send critical events"));
        }
        self.take_user_token(conn)?;
        let author = self.user_of(conn)?;
        let key = self.rooms.get(idx).key;
        let ts = self.cx.time_of_day();
        let frame = Cx::frame(|out| {
            out.extend_from_slice(b"{\"type\":\"event\",\"room\":");
            string(out, room);
            field_string(out, "author", author.as_str());
            field_string(out, "name", name);
            field_raw(out, "data", data.as_bytes());
            field_integer(out, "ts", ts);
            out.push(b'}');
        });
        self.cx.stats.ephemeral_in += 1;
        self.cx.stats.count_event_in(priority);
        let restricted = audience.map(|audience| Arc::new(Restricted { author, audience: Arc::new(audience) }));
        self.broadcast(key, frame.clone(), priority, restricted.as_deref());
        if self.cx.shards > 1 {
            self.cx.out.list.push(Output::Mesh(MeshMessage::Ephemeral { room: key, frame, priority, restricted }));
        }
        self.cx.ok(conn, id, |_| {});
        Ok(())
    }

    pub(in crate::engine) fn on_mesh(&mut self, message: MeshMessage) {
        match message {
            MeshMessage::Ephemeral { room, frame, priority, restricted } => {
                self.broadcast(room, frame, priority, restricted.as_deref());
            }
            MeshMessage::Presence { from, mail } => {
                self.on_presence_mail(from, Arc::unwrap_or_clone(mail));
            }
        }
    }

    fn broadcast(&mut self, room: RoomKey, frame: Bytes, priority: Priority, restricted: Option<&Restricted>) {
        let Some(idx) = self.rooms.find_key(room) else { return };
        let subscribers = &self.rooms.get(idx).subscribers;
        let class = match priority {
            Priority::Critical => Class::Critical,
            Priority::Normal => Class::Normal,
            Priority::Low => Class::Low { key: 0 },
        };
        let considered = subscribers.len() as u64;
        if restricted.is_none() {
            self.cx.stats.ephemeral_out += considered;
            self.cx.stats.count_fanout(priority, considered, 0);
            return self.cx.fanout(subscribers.iter().copied(), class, Frames::Owned(frame));
        }
        let sees = |conn: &ConnKey| {
            let session = self.sessions.get(*conn);
            session.is_some_and(|session| admits(restricted, &viewer(&self.users, session, room)))
        };
        let before = self.cx.stats.fanout_recipients;
        self.cx.fanout(subscribers.iter().copied().filter(sees), class, Frames::Owned(frame));
        let seen = self.cx.stats.fanout_recipients - before;
        self.cx.stats.ephemeral_out += seen;
        self.cx.stats.count_fanout(priority, considered, considered - seen);
    }
}
