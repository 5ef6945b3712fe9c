//! Subscribing and resuming: everything after the cursor, in order, then live; or nothing, and a
//! word that says so. Never a part, never silent.
//!
//! The replay travels inside the `ok`, and the connection becomes a subscriber in the same step, so
//! no live event can come before the replay or between its entries.

use std::sync::Arc;

use super::super::auth::Want;
use super::super::event::{Class, ConnKey, HistoryEntry, Output, Query, Restricted, Viewer};
use super::super::rooms::RoomIdx;
use super::super::session::Session;
use super::super::shard::Shard;
use super::super::sync;
use super::super::users::Users;
use super::filter::Hidden;
use super::membership::put_out;
use super::{Call, OwnedCursor, Resume, Waiting};
use crate::protocol::command::{CommandId, Cursor};
use crate::protocol::encode::{self, field_integer, field_raw, field_string, string};
use crate::protocol::error::{CloseCode, ErrorCode, Refusal};
use crate::protocol::filter::Filter;
use crate::protocol::ids::{Epoch, RoomKey, Seq};

/// What a resume came to.
enum Replay {
    /// No cursor, or one that cannot be honoured: the client loads history.
    None,
    /// Every entry after the cursor.
    Whole { json: Vec<u8> },
}

/// Whether a subscribe command has had its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has, or needs none.
    Given,
    /// It comes with a page from the store; the connection stays parked until then.
    Later,
}

impl Shard {
    pub(super) fn on_room_subscribe(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
        since: Option<Cursor<'_>>,
        filter: Option<&Arc<Filter>>,
    ) -> Result<(), Refusal> {
        let Some(idx) = self.find_room(conn, room, Want::Read)? else { return Ok(()) };
        let since = since.map(|cursor| OwnedCursor { epoch: Epoch::new(cursor.epoch), seq: cursor.seq });
        if self.subscribe(Call { conn, id: id.cloned() }, idx, since, filter.cloned(), false)? == Answer::Later {
            self.cx.out.list.push(Output::Park { conn, again: false });
        }
        Ok(())
    }

    /// Subscribes, or begins to. Parks nobody: the caller knows whether the connection is parked.
    /// A join (`is_join`) is of a member, and is refused should they be put out while the store is read.
    ///
    /// # Errors
    /// No right, too many subscriptions, a cursor ahead of the log, or too busy to read.
    pub(super) fn subscribe(
        &mut self,
        call: Call,
        idx: RoomIdx,
        since: Option<OwnedCursor>,
        filter: Option<Arc<Filter>>,
        is_join: bool,
    ) -> Result<Answer, Refusal> {
        self.check_right(call.conn, idx, Want::Read)?;
        let Some(session) = self.sessions.get(call.conn) else { return Ok(Answer::Given) };
        if !session.is_subscribed(idx) {
            self.check_subscriptions_max(call.conn)?;
        }
        let head = self.rooms.get(idx).head;
        let Some(cursor) = since.filter(|cursor| cursor.epoch == self.cx.epoch) else {
            return Ok(self.listen(&call, idx, filter, &Replay::None));
        };
        if cursor.seq > head {
            return Err(cursor_is_ahead());
        }
        if head - cursor.seq > Seq::from(self.cx.limits.resume_events_max) {
            return Ok(self.listen(&call, idx, filter, &Replay::None));
        }
        let room = self.rooms.get(idx).key;
        let upto = cursor.seq;
        let resume = Resume { call, room, upto, json: Vec::new(), events: 0, filter, hidden: None, is_join };
        self.go_on_resuming(resume)
    }

    /// Whether the connection may listen to one more room.
    ///
    /// # Errors
    /// `limit_exceeded`.
    pub(super) fn check_subscriptions_max(&self, conn: ConnKey) -> Result<(), Refusal> {
        let held = self.sessions.get(conn).map_or(0, |session| session.subscriptions.len());
        if held < self.cx.limits.subscriptions_max as usize {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::LimitExceeded, "subscriptions_max is reached"))
    }

    /// Takes what the recent entries have; asks the store for what they do not reach.
    fn go_on_resuming(&mut self, mut resume: Resume) -> Result<Answer, Refusal> {
        let Some(idx) = self.rooms.find_key(resume.room) else {
            return Err(Refusal::new(ErrorCode::Busy, "the room was unloaded meanwhile").retry_after(100));
        };
        let Some(session) = self.sessions.get(resume.call.conn) else { return Ok(Answer::Given) };
        // Checked each time around: a busy room could run ahead of the pages for ever.
        if self.is_too_much(&resume) {
            return Ok(self.listen(&resume.call, idx, resume.filter, &Replay::None));
        }
        let room = self.rooms.get(idx);
        let reader = viewer(&self.users, session, resume.room);
        let Some(entries) = sync::recent_after(room, resume.upto) else {
            return self.ask_for_entries(resume, room.head);
        };
        let room_json = room.json();
        let mut from_cache = 0;
        for (batch, entry) in entries {
            let json = &batch.bytes[entry.json_span()];
            let mark = Hidden { first: entry.seq, last: entry.seq, ts: entry.ts };
            resume.append(&room_json, json, admits(entry.restricted.as_deref(), &reader), mark);
            resume.upto = entry.seq;
            resume.events += 1;
            from_cache += 1;
        }
        self.cx.stats.resume_events_memory += from_cache;
        debug_assert_eq!(resume.upto, room.head, "recent entries reach the head");
        resume.tell_hidden(&room_json);
        let replay = if self.is_too_much(&resume) { Replay::None } else { Replay::Whole { json: resume.json } };
        Ok(self.listen(&resume.call, idx, resume.filter, &replay))
    }

    fn is_too_much(&self, resume: &Resume) -> bool {
        resume.events > self.cx.limits.resume_events_max || resume.json.len() > self.cx.limits.resume_bytes_max as usize
    }

    fn ask_for_entries(&mut self, resume: Resume, head: Seq) -> Result<Answer, Refusal> {
        self.cx.may_read()?;
        let query = Query::History {
            room: resume.room,
            after: resume.upto,
            before: head + 1,
            newest: false,
            thread: None,
            current: false,
            limit: self.cx.limits.resume_events_max,
            bytes_max: self.cx.limits.resume_bytes_max,
        };
        let token = self.pending.insert(Waiting::Resume(resume));
        self.cx.read(token, query);
        Ok(Answer::Later)
    }

    pub(super) fn on_resume_page(&mut self, mut resume: Resume, json: &[u8], entries: &[HistoryEntry], more: bool) {
        let conn = resume.call.conn;
        let call = Call { conn, id: resume.call.id.clone() };
        let result = match (self.rooms.find_key(resume.room), self.sessions.get(conn)) {
            (Some(idx), Some(_)) if resume.is_join && !self.is_member(conn, idx) => Err(put_out()),
            (Some(idx), Some(session)) => {
                let reader = viewer(&self.users, session, resume.room);
                let room_json = self.rooms.get(idx).json();
                for entry in entries {
                    let json = &json[entry.span.start as usize..entry.span.end as usize];
                    let mark = Hidden { first: entry.seq, last: entry.seq, ts: entry.ts };
                    resume.append(&room_json, json, admits(entry.restricted.as_deref(), &reader), mark);
                    resume.upto = entry.seq;
                    resume.events += 1;
                }
                self.cx.stats.resume_events_store += entries.len() as u64;
                // An empty page for entries that the room's head says exist would be asked for ever.
                if more || entries.is_empty() {
                    Ok(self.listen(&resume.call, idx, resume.filter, &Replay::None))
                } else {
                    self.go_on_resuming(resume)
                }
            }
            (None, _) => Err(Refusal::new(ErrorCode::Busy, "the room was unloaded meanwhile").retry_after(100)),
            (_, None) => Err(Refusal::new(ErrorCode::Unauthorized, "the session is over")),
        };
        if let Err(refusal) = &result {
            self.refuse_call(&call, refusal);
        }
        if !matches!(result, Ok(Answer::Later)) {
            self.cx.out.list.push(Output::Unpark(conn));
        }
    }

    /// Makes the connection a subscriber and answers.
    fn listen(&mut self, call: &Call, idx: RoomIdx, filter: Option<Arc<Filter>>, replay: &Replay) -> Answer {
        // The right may have ended while entries were read from the store.
        let role = match self.check_right(call.conn, idx, Want::Read) {
            Ok(role) => role,
            Err(refusal) => {
                self.refuse_call(call, &refusal);
                return Answer::Given;
            }
        };
        let Some(session) = self.sessions.get_mut(call.conn) else { return Answer::Given };
        let room = self.rooms.get_mut(idx);
        if !session.is_subscribed(idx) {
            session.subscriptions.reserve_exact(1);
            session.subscriptions.push(idx);
            room.subscribe(call.conn, filter);
            self.cx.stats.subscriptions += 1;
        } else if filter.is_some() || room.filter_of(call.conn).is_some() {
            // The last word counts: with another filter, or without one.
            room.unsubscribe(call.conn, self.cx.now);
            room.subscribe(call.conn, filter);
        }
        let room = self.rooms.get(idx);
        let (recovered, events): (bool, &[u8]) = match replay {
            Replay::None => (false, b""),
            Replay::Whole { json } => (true, json),
        };
        self.cx.stats.resumes_recovered += u64::from(recovered);
        self.cx.stats.resumes_unrecovered += u64::from(!recovered);
        let epoch = self.cx.epoch.clone();
        self.cx.ok_in_place(call.conn, call.id.as_ref(), (room.key, room.head), |out| {
            field_string(out, "room", room.name.as_str());
            field_string(out, "epoch", epoch.as_str());
            field_integer(out, "seq", room.head);
            match role {
                Some(role) => field_string(out, "role", role.as_str()),
                None => field_raw(out, "role", b"null"),
            }
            field_integer(out, "members", u64::from(room.members));
            field_raw(out, "recovered", if recovered { b"true" } else { b"false" });
            field_raw(out, "events", b"[");
            out.extend_from_slice(events);
            out.push(b']');
        });
        Answer::Given
    }

    pub(super) fn on_room_unsubscribe(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        room: &str,
    ) -> Result<(), Refusal> {
        match self.rooms.find(room) {
            Some(idx) => {
                self.unsubscribe(conn, idx);
                let room = self.rooms.get(idx);
                self.cx.ok_in_place(conn, id, (room.key, room.head), |_| {});
            }
            None => self.cx.ok(conn, id, |_| {}),
        }
        Ok(())
    }

    /// Stops listening, if the connection does.
    pub(super) fn unsubscribe(&mut self, conn: ConnKey, idx: RoomIdx) {
        let Some(session) = self.sessions.get_mut(conn) else { return };
        if let Some(at) = session.subscriptions.iter().position(|i| *i == idx) {
            session.subscriptions.swap_remove(at);
            self.rooms.get_mut(idx).unsubscribe(conn, self.cx.now);
            self.cx.stats.subscriptions -= 1;
        }
    }

    /// A slow connection has room again: tell it what it missed, room by room.
    pub(in crate::engine) fn on_outbox_drained(&mut self, conn: ConnKey, gaps: &[(RoomKey, Seq)]) {
        if self.sessions.get(conn).is_none() {
            return;
        }
        for (key, last) in gaps {
            let Some(idx) = self.rooms.find_key(*key) else {
                // Nobody here listens to it any more, so the entry that shut this connection out was
                // among what was dropped; the room's name is gone as well.
                return self.end(conn, Some((CloseCode::Gap, "events were lost; come back and resume".into())));
            };
            // Who no longer listens is told as well: they may have missed the very entry that shut
            // them out, and nothing else would make them ask.
            let room = self.rooms.get(idx);
            let head = room.head;
            self.cx.stats.gaps += 1;
            // In the messages' own lane: what was queued before the gap must arrive before it.
            let class = Class::Log { room: *key, first: *last + 1, last: head, is_patient: false };
            self.cx.send(conn, class, |out| write_gap(out, room.name.as_str(), *last, head));
        }
        // After the gaps: the whole of a large view may leave no room for messages.
        self.say_watched(conn);
    }

    /// Appends the frame of a `gap` event that ends at `head`, for an outbox that needs it in the
    /// middle of its entries. False when the room is not loaded.
    pub fn write_gap(&mut self, frame: &mut Vec<u8>, room: RoomKey, last: Seq, head: Seq) -> bool {
        let Some(idx) = self.rooms.find_key(room) else { return false };
        let name = self.rooms.get(idx).name.as_str();
        encode::frame_text(frame, |out| write_gap(out, name, last, head));
        self.cx.stats.gaps += 1;
        true
    }
}

pub(super) fn cursor_is_ahead() -> Refusal {
    Refusal::new(ErrorCode::UnrecoverableCursor, "the cursor is ahead of the room")
}

fn write_gap(out: &mut Vec<u8>, room: &str, last: Seq, head: Seq) {
    out.extend_from_slice(b"{\"type\":\"gap\",\"room\":");
    string(out, room);
    field_integer(out, "last", last);
    field_integer(out, "head", head);
    out.push(b'}');
}

pub(super) fn comma(json: &mut Vec<u8>) {
    if !json.is_empty() {
        json.push(b',');
    }
}

/// The session as a reader of a room, with the role of its user as this shard knows it now.
pub(super) fn viewer<'a>(users: &'a Users, session: &'a Session, room: RoomKey) -> Viewer<'a> {
    let user = users.get(session.user);
    Viewer { user: user.name.as_str(), role: user.role(room), device: Some(session.device.as_str()) }
}

pub(super) fn admits(restricted: Option<&Restricted>, reader: &Viewer<'_>) -> bool {
    restricted.is_none_or(|r| r.audience.admits(reader, r.author.as_str()))
}

/// Appends one entry of a history page, or its stand-in.
pub(super) fn append_stored(
    json: &mut Vec<u8>,
    room_json: &str,
    reader: &Viewer<'_>,
    page: &[u8],
    entry: &HistoryEntry,
) {
    comma(json);
    if admits(entry.restricted.as_deref(), reader) {
        json.extend_from_slice(&page[entry.span.start as usize..entry.span.end as usize]);
    } else {
        encode::hidden_event(json, room_json, entry.seq, entry.ts);
    }
}
