//! `message:edit`, `message:delete`, `reaction:add`, `reaction:remove`: checked here as far as the
//! token and the head tell; who may, and whose version wins, is the persistence core's to decide.

use super::super::auth::Want;
use super::super::event::{Amend, AmendAct, Committed, ConnKey, Entry};
use super::super::shard::Shard;
use super::{Call, Waiting};
use crate::protocol::command::CommandId;
use crate::protocol::encode::{field_integer, field_string, json_string};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{RoomName, Seq};

impl Shard {
    pub(super) fn on_message_edit(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        target: (&str, Seq),
        body: &str,
        version: Option<u64>,
    ) -> Result<(), Refusal> {
        self.amend(conn, id, target, || AmendAct::Edit { body_json: json_string(body).into(), version })
    }

    pub(super) fn on_message_delete(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        target: (&str, Seq),
    ) -> Result<(), Refusal> {
        self.amend(conn, id, target, || AmendAct::Delete)
    }

    pub(super) fn on_reaction(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        target: (&str, Seq),
        emoji: &str,
        is_added: bool,
    ) -> Result<(), Refusal> {
        self.amend(conn, id, target, || {
            if is_added { AmendAct::React(emoji.into()) } else { AmendAct::Unreact(emoji.into()) }
        })
    }

    fn amend(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        (room, target): (&str, Seq),
        act: impl FnOnce() -> AmendAct,
    ) -> Result<(), Refusal> {
        let Some(idx) = self.find_room(conn, room, Want::Write)? else { return Ok(()) };
        self.check_right(conn, idx, Want::Write)?;
        let room = self.rooms.get(idx);
        if target > room.head {
            return Err(Refusal::new(ErrorCode::NotFound, "seq names no message"));
        }
        let (key, name) = (room.key, room.name.clone());
        self.pay_for_append(conn)?;
        let Some(session) = self.sessions.get(conn) else { return Ok(()) };
        let by = self.users.get(session.user).name.clone();
        let act = act();
        let is_reaction = matches!(act, AmendAct::React(_) | AmendAct::Unreact(_));
        let amend = Amend { room: key, target, by, by_admin: session.rights.admin, act };
        let call = Call { conn, id: id.cloned() };
        let token = self.pending.insert(Waiting::Amend { call, room: name, is_reaction });
        self.cx.append(token, Entry::Amend(Box::new(amend)));
        Ok(())
    }

    pub(super) fn on_amended(
        &mut self,
        call: &Call,
        room: &RoomName,
        is_reaction: bool,
        result: &Result<Committed, Refusal>,
    ) {
        let committed = match result {
            Ok(committed) => committed,
            Err(refusal) => {
                self.cx.stats.edit_conflicts += u64::from(refusal.code == ErrorCode::Conflict);
                return self.refuse_outcome(call, refusal);
            }
        };
        match is_reaction {
            true => self.cx.stats.reactions += 1,
            false => self.cx.stats.edits += 1,
        }
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_string(out, "room", room.as_str());
            field_integer(out, "seq", committed.seq);
            field_integer(out, if is_reaction { "count" } else { "version" }, committed.value);
        });
    }
}
