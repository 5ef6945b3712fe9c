//! `event:send`: live subscribers only, no seq, not stored, at most once.

use super::super::auth::Want;
use super::super::cx::Cx;
use super::super::event::{Class, ConnKey, Frames, MeshMessage, Output};
use super::super::shard::Shard;
use crate::protocol::command::CommandId;
use crate::protocol::encode::{field_integer, field_raw, field_string, string};
use crate::protocol::error::Refusal;
use crate::protocol::ids::{Priority, RoomKey};
use bytes::Bytes;
use std::sync::Arc;

impl Shard {
    pub(super) fn on_event_send(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        name: &str,
        data: &str,
        priority: Priority,
    ) -> Result<(), Refusal> {
        let Some(idx) = self.find_room(conn, room, Want::Write)? else { return Ok(()) };
        self.check_right(conn, idx, Want::Write)?;
        self.take_user_token(conn)?;
        let author = self.user_of(conn)?;
        let key = self.rooms.get(idx).key;
        let now = self.cx.now;
        let frame = Cx::frame(|out| {
            out.extend_from_slice(b"{\"type\":\"event\",\"room\":");
            string(out, room);
            field_string(out, "author", author.as_str());
            field_string(out, "name", name);
            field_raw(out, "data", data.as_bytes());
            field_integer(out, "ts", now);
            out.push(b'}');
        });
        self.cx.stats.ephemeral_in += 1;
        self.cx.stats.count_event_in(priority);
        self.broadcast(key, frame.clone(), priority);
        if self.cx.shards > 1 {
            self.cx.out.list.push(Output::Mesh(MeshMessage::Ephemeral { room: key, frame, priority }));
        }
        self.cx.ok(conn, id, |_| {});
        Ok(())
    }

    pub(in crate::engine) fn on_mesh(&mut self, message: MeshMessage) {
        match message {
            MeshMessage::Ephemeral { room, frame, priority } => self.broadcast(room, frame, priority),
            MeshMessage::Presence { from, mail } => {
                self.on_presence_mail(from, Arc::unwrap_or_clone(mail));
            }
        }
    }

    fn broadcast(&mut self, room: RoomKey, frame: Bytes, priority: Priority) {
        let Some(idx) = self.rooms.find_key(room) else { return };
        let subscribers = &self.rooms.get(idx).subscribers;
        let class = match priority {
            Priority::Critical => Class::Critical,
            Priority::Normal => Class::Normal,
            Priority::Low => Class::Low { key: 0 },
        };
        self.cx.stats.ephemeral_out += subscribers.len() as u64;
        self.cx.stats.count_fanout(priority, subscribers.len() as u64, 0);
        self.cx.fanout(subscribers.iter().copied(), class, Frames::Owned(frame));
    }
}
