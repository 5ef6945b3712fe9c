//! `sync:check`: where each room stands, beside what the client has of it. A client that asks for it
//! learns the server's hash at its own seq, from the recent entries, or from the store where those do not
//! reach back; and whether both saw the same entries, if it gives its own.

use super::super::auth::Want;
use super::super::event::{ConnKey, Output, Query};
use super::super::rooms::Room;
use super::super::shard::Shard;
use super::super::sync;
use super::super::tally::{Tally, hash_text};
use super::super::users::Waiter;
use super::{Call, Waiting};
use crate::protocol::command::{CommandId, RoomCheck};
use crate::protocol::encode::{field_integer, field_raw, field_string, string};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{RoomKey, RoomName, Seq};

/// Rooms that a check loads at once: a part of the reads that a shard may have waiting.
const LOADS_MAX: usize = 32;

/// One room of a check.
#[derive(Debug)]
pub struct Check {
    name: RoomName,
    /// What the client has.
    seq: Seq,
    hash: Option<u64>,
    wants_hash: bool,
    /// The room and its head; none: there is no such room, or none that the client may read.
    room: Option<(RoomKey, Seq)>,
    /// Where the server stood at `seq`, once that is known.
    tally: Option<Tally>,
}

impl Check {
    /// The store has to be asked about it.
    fn is_open(&self) -> bool {
        let reaches = self.room.is_some_and(|(_, head)| self.seq <= head);
        self.wants_hash && reaches && self.tally.is_none()
    }

    fn state(&self) -> &'static str {
        let is_other = self.hash.zip(self.tally).is_some_and(|(theirs, ours)| theirs != ours.hash);
        match self.room {
            None => "unknown",
            Some((_, head)) if self.seq > head || is_other => "diverged",
            Some((_, head)) if self.seq < head => "behind",
            Some(_) => "ok",
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"room\":");
        string(out, self.name.as_str());
        field_integer(out, "seq", self.room.map_or(0, |(_, head)| head));
        field_string(out, "state", self.state());
        if let Some(tally) = self.tally {
            field_string(out, "hash", &hash_text(tally.hash));
        }
        out.push(b'}');
    }
}

impl Shard {
    pub(super) fn on_sync_check(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        asked: &[RoomCheck<'_>],
    ) -> Result<(), Refusal> {
        if self.load_asked(conn, asked)? {
            return Ok(());
        }
        let mut checks = Vec::with_capacity(asked.len());
        for RoomCheck { room: name, seq, hash, wants_hash } in asked {
            let room = match self.find_room(conn, name, Want::Read) {
                Ok(Some(idx)) => self.check_right(conn, idx, Want::Read).ok().map(|_| self.rooms.get(idx)),
                Ok(None) => return Ok(()),
                Err(refusal) if matches!(refusal.code, ErrorCode::UnknownRoom | ErrorCode::PermissionDenied) => None,
                Err(refusal) => return Err(refusal),
            };
            let name = RoomName::parse(name)?;
            let (hash, wants_hash) = (*hash, *wants_hash);
            let tally = room.filter(|_| wants_hash).and_then(|room| known_tally(room, *seq));
            let room = room.map(|room| (room.key, room.head));
            checks.push(Check { name, seq: *seq, hash, wants_hash, room, tally });
        }
        let open: Vec<(RoomKey, Seq)> = checks
            .iter()
            .filter(|check| check.is_open())
            .filter_map(|check| Some((check.room?.0, check.seq)))
            .collect();
        let call = Call { conn, id: id.cloned() };
        if open.is_empty() {
            self.answer_check(&call, &checks);
            return Ok(());
        }
        self.cx.may_read()?;
        let token = self.pending.insert(Waiting::Check { call, checks });
        self.cx.out.list.push(Output::Park { conn, again: false });
        self.cx.read(token, Query::Tallies(open));
        Ok(())
    }

    /// Loads those that are not there, many together, since the command is handled anew once they are. True when
    /// there were any: the connection is parked for the last of them.
    fn load_asked(&mut self, conn: ConnKey, asked: &[RoomCheck<'_>]) -> Result<bool, Refusal> {
        let Some(session) = self.sessions.get(conn) else { return Ok(false) };
        let is_missing = |name: &&str| {
            session.rights.covers(name, Want::Read) && self.rooms.find(name).is_none() && !self.rooms.is_absent(name)
        };
        let reads_left = self.cx.limits.reads_max.saturating_sub(self.cx.reads) as usize;
        let missing = asked.iter().map(|check| check.room).filter(is_missing).take(reads_left.clamp(1, LOADS_MAX));
        let mut missing: Vec<RoomName> = missing.map(RoomName::parse).collect::<Result<_, _>>()?;
        let Some(last) = missing.pop() else { return Ok(false) };
        for name in missing {
            self.load_room(name, None)?;
        }
        self.load_room(last, Some(Waiter::Conn(conn)))?;
        self.cx.out.list.push(Output::Park { conn, again: true });
        Ok(true)
    }

    pub(super) fn on_tallies(&mut self, call: &Call, mut checks: Vec<Check>, tallies: &[Option<Tally>]) {
        let open = checks.iter_mut().filter(|check| check.is_open());
        for (check, tally) in open.zip(tallies) {
            check.tally = *tally;
        }
        self.answer_check(call, &checks);
        self.cx.out.list.push(Output::Unpark(call.conn));
    }

    fn answer_check(&mut self, call: &Call, checks: &[Check]) {
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_raw(out, "rooms", b"[");
            for (at, check) in checks.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                check.write(out);
            }
            out.push(b']');
        });
    }
}

/// What a room's entries up to `seq` come to, if the shard can tell by itself.
fn known_tally(room: &Room, seq: Seq) -> Option<Tally> {
    match seq {
        0 => Some(Tally::start(room.name.as_str())),
        seq if seq == room.head => Some(room.tally),
        seq => sync::recent_tally(room, seq),
    }
}
