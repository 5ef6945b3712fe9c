//! Rooms and who is in them: every change is decided by the persistence core.
//!
//! The connection is parked until the outcome is there, so that a client may send the next command
//! at once and find it handled in the new standing.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::auth::Want;
use super::super::event::{ConnKey, Entry, Output, Query, RoomRow};
use super::super::rooms::RoomIdx;
use super::super::shard::Shard;
use super::presence_gather::Sought;
use super::subscribe::{Answer, cursor_is_ahead};
use super::{Call, OwnedCursor, Waiting};
use crate::protocol::command::{CommandId, Cursor, Manage, Status};
use crate::protocol::encode::{field_integer, field_raw, field_string, string};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::filter::Filter;
use crate::protocol::ids::{Epoch, Role, RoomKind, RoomName, Seq, UserId};

/// Members of a new room that cost as much as one message. A room of 1,000 has to be affordable at once.
const MEMBERS_PER_TOKEN: u32 = 10;

impl Shard {
    pub(super) fn on_room_create(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        kind: RoomKind,
        members: &[&str],
        title: Option<&str>,
    ) -> Result<(), Refusal> {
        self.check_covers(conn, room, Want::Write)?;
        let creator = self.user_of(conn)?;
        let mut others = Vec::with_capacity(members.len());
        for name in members.iter().filter(|name| **name != creator.as_str()) {
            others.push(UserId::parse(name)?);
        }
        others.sort_unstable();
        others.dedup();
        let room = RoomName::parse(room)?;
        let tokens = 1 + others.len() as u32 / MEMBERS_PER_TOKEN;
        let title = title.map(Box::from);
        let entry = Entry::CreateRoom { room: room.clone(), kind, title, creator, members: others };
        self.change_membership(conn, id, room, entry, tokens)
    }

    pub(super) fn on_room_join(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        since: Option<Cursor<'_>>,
        filter: Option<&Arc<Filter>>,
    ) -> Result<(), Refusal> {
        self.check_covers(conn, room, Want::Read)?;
        let user = self.user_of(conn)?;
        let call = Call { conn, id: id.cloned() };
        let since = since.map(|cursor| OwnedCursor { epoch: Epoch::new(cursor.epoch), seq: cursor.seq });
        if let Some(idx) = self.rooms.find(room).filter(|idx| self.is_member(conn, *idx)) {
            if self.subscribe(call, idx, since, filter.cloned(), true)? == Answer::Later {
                self.cx.out.list.push(Output::Park { conn, again: false });
            }
            return Ok(());
        }
        // Now and not after the commit: a join that is refused must not have made a member.
        self.check_subscriptions_max(conn)?;
        if let Some(cursor) = since.as_ref().filter(|cursor| cursor.epoch == self.cx.epoch && cursor.seq > 0) {
            let head = match self.find_room(conn, room, Want::Read) {
                // Whoever may not come in is told so, and not where the room stands.
                Ok(Some(idx)) => self.check_right(conn, idx, Want::Read).map_or(Seq::MAX, |_| self.rooms.get(idx).head),
                Ok(None) => return Ok(()),
                Err(refusal) if refusal.code == ErrorCode::UnknownRoom => 0,
                Err(refusal) => return Err(refusal),
            };
            if cursor.seq > head {
                return Err(cursor_is_ahead());
            }
        }
        self.cx.may_append()?;
        let auto_create = self.cx.limits.auto_create && self.check_covers(conn, room, Want::Write).is_ok();
        let room = RoomName::parse(room)?;
        self.take_user_tokens(conn, 1, "too many changes of members")?;
        let entry = Entry::Join { room: room.clone(), user, auto_create };
        let token = self.pending.insert(Waiting::Join { call, room, since, filter: filter.cloned() });
        self.cx.out.list.push(Output::Park { conn, again: false });
        self.cx.append(token, entry);
        Ok(())
    }

    /// The join is committed and applied: now listen.
    pub(super) fn on_joined(
        &mut self,
        call: Call,
        room: &RoomName,
        since: Option<OwnedCursor>,
        filter: Option<Arc<Filter>>,
    ) {
        let conn = call.conn;
        let id = call.id.clone();
        let result = match self.rooms.find(room.as_str()) {
            // A later entry of the same batch put them out again.
            Some(idx) if !self.is_member(conn, idx) => Err(put_out()),
            Some(idx) => self.subscribe(call, idx, since, filter, true),
            // The user was a member already by the store, and is not loaded with it here: only a
            // session that ended meanwhile leaves that.
            None => Err(Refusal::new(ErrorCode::Internal, "the room is not loaded").retry_after(100)),
        };
        if let Err(refusal) = &result {
            self.refuse(conn, id.as_ref(), refusal);
        }
        if !matches!(result, Ok(Answer::Later)) {
            self.cx.out.list.push(Output::Unpark(conn));
        }
    }

    pub(super) fn on_room_leave(&mut self, conn: ConnKey, id: Option<&CommandId>, room: &str) -> Result<(), Refusal> {
        self.check_covers(conn, room, Want::Read)?;
        let user = self.user_of(conn)?;
        let room = RoomName::parse(room)?;
        let entry = Entry::Leave { room: room.clone(), user };
        self.change_membership(conn, id, room, entry, 1)
    }

    pub(super) fn on_room_manage(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        user: &str,
        act: Manage,
    ) -> Result<(), Refusal> {
        self.check_covers(conn, room, Want::Write)?;
        let by = self.user_of(conn)?;
        let by_admin = self.sessions.get(conn).is_some_and(|session| session.rights.admin);
        let room = RoomName::parse(room)?;
        let user = UserId::parse(user)?;
        let entry = Entry::Manage { room: room.clone(), by, by_admin, user, act };
        self.change_membership(conn, id, room, entry, 1)
    }

    fn change_membership(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: RoomName,
        entry: Entry,
        tokens: u32,
    ) -> Result<(), Refusal> {
        self.cx.may_append()?;
        self.take_user_tokens(conn, tokens, "too many changes of members")?;
        let call = Call { conn, id: id.cloned() };
        let token = self.pending.insert(Waiting::Membership { call, room });
        self.cx.out.list.push(Output::Park { conn, again: false });
        self.cx.append(token, entry);
        Ok(())
    }

    pub(super) fn on_room_members(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(), Refusal> {
        let Some(idx) = self.find_room(conn, room, Want::Read)? else { return Ok(()) };
        self.check_right(conn, idx, Want::Read)?;
        self.cx.may_read()?;
        let after = after.map(UserId::parse).transpose()?;
        let room = self.rooms.get(idx).key;
        let token = self.pending.insert(Waiting::Members { call: Call { conn, id: id.cloned() } });
        self.cx.out.list.push(Output::Park { conn, again: false });
        self.cx.read(token, Query::Members { room, after, limit });
        Ok(())
    }

    /// The page is there; how present its users are is asked of their shards.
    pub(super) fn on_members_page(&mut self, call: Call, members: Vec<(UserId, Role)>, more: bool) {
        let users: Vec<UserId> = members.iter().map(|(user, _)| user.clone()).collect();
        self.gather_people(call, &users, Sought::Members { members, more, found: HashMap::default() });
    }

    pub(super) fn say_members(
        &mut self,
        call: &Call,
        members: &[(UserId, Role)],
        more: bool,
        status: impl Fn(&UserId) -> Status,
    ) {
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_raw(out, "members", b"[");
            for (at, (user, role)) in members.iter().enumerate() {
                out.extend_from_slice(if at == 0 { b"{\"user\":" } else { b",{\"user\":" });
                string(out, user.as_str());
                field_string(out, "role", role.as_str());
                field_string(out, "status", status(user).as_str());
                out.push(b'}');
            }
            out.push(b']');
            if let (true, Some((last, _))) = (more, members.last()) {
                field_string(out, "next", last.as_str());
            }
        });
        self.cx.out.list.push(Output::Unpark(call.conn));
    }

    pub(super) fn on_room_list(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        kind: Option<RoomKind>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(), Refusal> {
        self.cx.may_read()?;
        let user = self.user_of(conn)?;
        let within = self.sessions.get(conn).map_or_else(Vec::new, |session| session.rights.names());
        let after = after.map(RoomName::parse).transpose()?;
        let token = self.pending.insert(Waiting::Rooms { call: Call { conn, id: id.cloned() } });
        self.cx.out.list.push(Output::Park { conn, again: false });
        self.cx.read(token, Query::Rooms { user, within, kind, after, limit });
        Ok(())
    }

    pub(super) fn on_rooms_page(&mut self, call: &Call, rooms: &[(RoomRow, Option<Role>)], more: bool) {
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_raw(out, "rooms", b"[");
            for (at, (row, role)) in rooms.iter().enumerate() {
                out.extend_from_slice(if at == 0 { b"{\"room\":" } else { b",{\"room\":" });
                string(out, row.name.as_str());
                field_string(out, "kind", row.kind.as_str());
                if let Some(title) = &row.title {
                    field_string(out, "title", title);
                }
                field_integer(out, "seq", row.head);
                field_integer(out, "members", u64::from(row.members));
                if let Some(role) = role {
                    field_string(out, "role", role.as_str());
                }
                out.push(b'}');
            }
            out.push(b']');
            if let (true, Some((last, _))) = (more, rooms.last()) {
                field_string(out, "next", last.name.as_str());
            }
        });
        self.cx.out.list.push(Output::Unpark(call.conn));
    }

    pub(super) fn is_member(&self, conn: ConnKey, idx: RoomIdx) -> bool {
        let Some(session) = self.sessions.get(conn) else { return false };
        self.users.get(session.user).role(self.rooms.get(idx).key).is_some_and(Role::is_member)
    }

    fn check_covers(&self, conn: ConnKey, room: &str, want: Want) -> Result<(), Refusal> {
        match self.sessions.get(conn) {
            Some(session) if session.rights.covers(room, want) => Ok(()),
            _ => Err(Refusal::new(ErrorCode::PermissionDenied, "the token does not cover this room")),
        }
    }

    pub(super) fn user_of(&self, conn: ConnKey) -> Result<UserId, Refusal> {
        let session = self.sessions.get(conn);
        let user = session.map(|session| self.users.get(session.user).name.clone());
        user.ok_or_else(|| Refusal::new(ErrorCode::Unauthorized, "the session is over"))
    }
}

/// Somebody put them out while they came in: a join leaves nobody listening who is no member.
pub(super) fn put_out() -> Refusal {
    Refusal::new(ErrorCode::PermissionDenied, "you were put out of this room at once")
}
