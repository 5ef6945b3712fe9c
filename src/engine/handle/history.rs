//! `message:history`: a page of a room's entries, read by the reader threads.

use super::super::auth::Want;
use super::super::event::{ConnKey, HistoryEntry, Output, Query};
use super::super::shard::Shard;
use super::subscribe::{append_stored, viewer};
use super::{Call, Waiting};
use crate::protocol::command::{CommandId, HistoryFrom};
use crate::protocol::encode::{field_raw, json_string};
use crate::protocol::error::Refusal;
use crate::protocol::ids::{RoomKey, RoomName, Seq};

impl Shard {
    pub(super) fn on_message_history(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        from: HistoryFrom,
        thread: Option<Seq>,
        limit: u32,
    ) -> Result<(), Refusal> {
        let Some(idx) = self.find_room(conn, room, Want::Read)? else { return Ok(()) };
        self.check_right(conn, idx, Want::Read)?;
        self.cx.may_read()?;
        let room = self.rooms.get(idx);
        // The reader may be ahead of this shard. What lies beyond the head was not yet there when the
        // right was checked, and may stand behind a kick that this shard has not seen.
        let end = room.head + 1;
        let (after, before, newest) = match from {
            HistoryFrom::Newest => (0, end, true),
            HistoryFrom::Before(seq) => (0, seq.min(end), true),
            HistoryFrom::After(seq) => (seq, end, false),
        };
        let bytes_max = self.cx.limits.resume_bytes_max;
        let query = Query::History { room: room.key, after, before, newest, thread, current: true, limit, bytes_max };
        let waiting = Waiting::History { call: Call { conn, id: id.cloned() }, room: room.name.clone() };
        let token = self.pending.insert(waiting);
        self.cx.out.list.push(Output::Park { conn, again: false });
        self.cx.read(token, query);
        Ok(())
    }

    pub(super) fn on_history_page(
        &mut self,
        call: &Call,
        room: &RoomName,
        page: &[u8],
        entries: &[HistoryEntry],
        more: bool,
    ) {
        self.cx.out.list.push(Output::Unpark(call.conn));
        let Some(session) = self.sessions.get(call.conn) else { return };
        // A room that was unloaded meanwhile has nobody with a role here.
        let key = self.rooms.find(room.as_str()).map_or(RoomKey(0), |idx| self.rooms.get(idx).key);
        let reader = viewer(&self.users, session, key);
        let room_json = json_string(room.as_str());
        let mut events = Vec::with_capacity(page.len() + entries.len());
        for entry in entries {
            append_stored(&mut events, &room_json, &reader, page, entry);
        }
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_raw(out, "events", b"[");
            out.extend_from_slice(&events);
            out.push(b']');
            field_raw(out, "more", if more { b"true" } else { b"false" });
        });
    }
}
