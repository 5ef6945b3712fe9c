//! What the persistence core committed: fan-out, membership, cursors, acks.
//!
//! Order within a batch: entries first (so that an ack never comes before the author's own copy is
//! queued and a new member's subscription starts after the join), then reads, revocations, acks.

use std::ops::Range;
use std::sync::Arc;

use super::super::cx::Cx;
use super::super::event::{
    AdminAnswer, Class, Committed, CommittedBatch, ConnKey, Frames, LogEntry, MembershipChange, Note, Outcome, Output,
    ReadAdvance, RoomRun, StoreEvent,
};
use super::super::rooms::RoomIdx;
use super::super::session::State;
use super::super::shard::Shard;
use super::super::stages::{Stamps, Timing};
use super::super::stats::Stats;
use super::super::sync::{self, RecentRun};
use super::super::timers::Timer;
use super::load::row_before;
use super::subscribe::viewer;
use super::{Call, Waiting};
use crate::protocol::encode::{self, field_integer, field_raw, field_string, string};
use crate::protocol::error::{CloseCode, ErrorCode, Refusal};
use crate::protocol::ids::{DeviceId, Position, RoomName, Seq};

impl Shard {
    pub(in crate::engine) fn on_store(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Batch(batch) => self.on_batch(&batch),
            StoreEvent::Degraded(is_on) => self.on_degraded(is_on),
        }
    }

    fn on_degraded(&mut self, is_on: bool) {
        self.cx.degraded = is_on;
        // Whoever is still loading is told after their `hello`, which is the first frame.
        let conns: Vec<ConnKey> = self.sessions.iter().filter(|s| s.state != State::Loading).map(|s| s.conn).collect();
        self.say_degraded(conns, is_on);
    }

    pub(super) fn say_degraded(&mut self, conns: Vec<ConnKey>, is_on: bool) {
        let span = self.cx.scratch(|out| {
            out.extend_from_slice(b"{\"type\":\"degraded\",\"on\":");
            out.extend_from_slice(if is_on { b"true" } else { b"false" });
            out.extend_from_slice(b",\"what\":[\"store\"]}");
        });
        self.cx.fanout(conns, Class::Critical, Frames::Scratch(span));
    }

    fn on_batch(&mut self, batch: &Arc<CommittedBatch>) {
        if batch.last >= batch.first && !batch.runs.is_empty() {
            debug_assert_eq!(batch.first, self.cx.position + 1, "batches are contiguous");
            self.cx.position = batch.last;
            self.cx.stats.batches += 1;
            self.cx.stats.batch_entries += batch.last - batch.first + 1;
            // Kept first: a room that this batch brings in is caught up from what is kept.
            self.recent.push(batch.clone(), self.cx.now);
            for run in 0..batch.runs.len() {
                self.on_run(batch, run as u32);
            }
            if self.recent.bytes() > self.cx.limits.recent_bytes_max {
                self.recent.trim(&mut self.rooms, self.cx.limits.recent_bytes_max, 0);
            }
        }
        self.cx.position = self.cx.position.max(batch.last);
        self.note_deleted(batch);
        batch.reads.iter().for_each(|read| self.on_read_advance(read));
        if !batch.inbox.is_empty() {
            self.on_inbox_changes(&batch.inbox);
        }
        batch.revocations.iter().for_each(|revocation| self.on_revocation(revocation));
        if let Some(outcomes) = batch.outcomes.get(usize::from(self.cx.shard.0)) {
            outcomes.iter().for_each(|outcome| self.on_outcome(outcome, &batch.stamps));
        }
    }

    fn on_run(&mut self, batch: &Arc<CommittedBatch>, at: u32) {
        let run = &batch.runs[at as usize];
        let loaded = self.rooms.find_key(run.room);
        if loaded.is_none() {
            self.rooms.remove_absent(&run.name);
        }
        let live = loaded.filter(|idx| self.apply_run(*idx, batch, at));
        if live.is_some_and(|idx| !self.rooms.get(idx).subscribers.is_empty()) {
            self.cx.stats.fanouts += 1;
        }
        // An entry goes to those who listen at its place in the order: whoever is shut out by an
        // entry gets that one, and none of those behind it.
        let mut sent = 0;
        for (upto, entry) in (1..).zip(&run.entries) {
            let Some(change) = entry.change.as_deref() else { continue };
            if let Some(idx) = live.filter(|_| ends_membership(change)) {
                self.fan_out(idx, batch, run, sent..upto);
                sent = upto;
                self.unsubscribe_user(change.user.as_str(), idx);
            }
            let is_news = self.is_news(change, entry.position);
            if let Some(idx) = loaded.filter(|_| live.is_none() && is_news && ends_membership(change)) {
                self.cut_off(change.user.as_str(), idx);
            }
            if is_news {
                self.apply_change(batch, run, entry.seq, change);
            }
        }
        if let Some(idx) = live {
            self.fan_out(idx, batch, run, sent..run.entries.len());
        }
    }

    /// True when the change is of a loaded user, and later than what was loaded.
    fn is_news(&self, change: &MembershipChange, position: Position) -> bool {
        let user = self.users.find(change.user.as_str()).map(|idx| self.users.get(idx));
        user.is_some_and(|user| user.loaded_at().is_some_and(|at| position > at))
    }

    /// Brings a loaded room up by one run. False when what loaded the room had seen it already.
    pub(super) fn apply_run(&mut self, idx: RoomIdx, batch: &Arc<CommittedBatch>, at: u32) -> bool {
        let run = &batch.runs[at as usize];
        let room = self.rooms.get_mut(idx);
        if batch.last <= room.loaded_at || run.last_seq() <= room.head {
            return false;
        }
        // The page that loaded the room may have seen a part of this batch's entries, never of a
        // transaction: a batch is one transaction.
        debug_assert_eq!(run.entries.first().map(|entry| entry.seq), Some(room.head + 1), "seqs are dense");
        room.head = run.last_seq();
        room.members = run.members;
        room.tally = run.tally;
        room.recent.push_back(RecentRun { first: run.entries[0].seq, batch: batch.clone(), run: at });
        true
    }

    /// Tombstones count no longer as unread. Also for rooms that were loaded ahead of this batch: the page
    /// of a user may be older than their room.
    pub(super) fn note_deleted(&mut self, batch: &CommittedBatch) {
        for (key, seq) in &batch.deleted {
            if let Some(room) = self.rooms.get_key_mut(*key) {
                room.note_deleted(*seq);
            }
        }
    }

    /// Sends a part of a run to those who listen.
    fn fan_out(&mut self, idx: RoomIdx, batch: &Arc<CommittedBatch>, run: &RoomRun, part: Range<usize>) {
        let room = self.rooms.get(idx);
        if !room.filters.is_empty() {
            self.fan_out_filtered(idx, batch, run, part.clone());
        }
        let room = self.rooms.get(idx);
        let subscribers = room.plain_subscribers();
        if subscribers.is_empty() {
            return;
        }
        let part = &run.entries[part];
        for stretch in sync::stretches(part) {
            let entries = &part[stretch];
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else { continue };
            let class = Class::of_log(run.room, entries);
            let frames = Frames::Batch(batch.clone(), first.span.start..last.span.end);
            self.cx.stats.deliveries += (subscribers.len() * entries.len()) as u64;
            let Some(restricted) = &first.restricted else {
                count_considered(&mut self.cx.stats, entries, subscribers.len());
                self.cx.fanout(subscribers.iter().copied(), class, frames);
                continue;
            };
            let admits = |conn: &ConnKey| {
                self.sessions.get(*conn).is_some_and(|session| {
                    let viewer = viewer(&self.users, session, run.room);
                    restricted.audience.admits(&viewer, restricted.author.as_str())
                })
            };
            let (seeing, blind): (Vec<ConnKey>, Vec<ConnKey>) = subscribers.iter().copied().partition(admits);
            self.cx.stats.hidden += blind.len() as u64;
            self.cx.stats.count_fanout(first.priority, subscribers.len() as u64, blind.len() as u64);
            self.cx.fanout(seeing, class, frames);
            let json = room.json();
            let span = self.cx.scratch(|out| encode::hidden_event(out, &json, first.seq, first.ts));
            let class = Class::Log { room: run.room, first: first.seq, last: first.seq, is_patient: false };
            self.cx.fanout(blind, class, Frames::Scratch(span));
        }
    }

    /// A loaded user's standing changes. `batch` is among the kept ones.
    pub(super) fn apply_change(&mut self, batch: &CommittedBatch, run: &RoomRun, seq: Seq, change: &MembershipChange) {
        let Some(user) = self.users.find(change.user.as_str()) else { return };
        let idx = match self.rooms.find_key(run.room) {
            // A membership keeps its room loaded; a ban does not.
            None if !ends_membership(change) => Some(self.add_room(row_before(run), batch.first - 1)),
            idx => idx,
        };
        let difference = self.users.get_mut(user).set_role(run.room, change.role, (seq, change.counted));
        if let Some(idx) = idx {
            let room = self.rooms.get_mut(idx);
            if difference != 0 {
                room.note_member(user, difference > 0);
            }
            room.touch(self.cx.now);
        }
        self.note_membership(user, run.room, ends_membership(change));
        if let Some(idx) = idx.filter(|_| ends_membership(change)) {
            self.unsubscribe_user(change.user.as_str(), idx);
        }
    }

    fn unsubscribe_user(&mut self, user: &str, idx: RoomIdx) {
        let Some(user) = self.users.find(user) else { return };
        for conn in self.users.get(user).conns.clone() {
            self.unsubscribe(conn, idx);
        }
    }

    /// The room was loaded ahead of this shard, with the entry that shuts the user out, and they came in
    /// before the shard knew: they are past that entry and would not hear it. Their connections come back,
    /// and are refused.
    fn cut_off(&mut self, user: &str, idx: RoomIdx) {
        let Some(user) = self.users.find(user) else { return };
        for conn in self.users.get(user).conns.clone() {
            if self.sessions.get(conn).is_some_and(|session| session.subscriptions.contains(&idx)) {
                self.end(conn, Some((CloseCode::Gap, "a room was lost while it was entered".into())));
            }
        }
    }

    fn on_read_advance(&mut self, read: &ReadAdvance) {
        if let Some(user) = self.users.find(read.user.as_str()) {
            self.users.get_mut(user).advance(read);
            if read.device.is_none() {
                self.clear_read(user, read.room, read.seq);
            }
        }
        let Some(room) = self.rooms.find_key(read.room) else { return };
        if self.rooms.get(room).subscribers.is_empty() {
            return;
        }
        if self.reads_due.is_empty() {
            self.timers.set(self.cx.now + u64::from(self.cx.limits.read_coalesce_ms), Timer::FlushReads);
        }
        self.reads_due.insert((read.room, read.user.clone(), read.device.clone()), read.seq);
    }

    /// Tells listeners how far others have read: the latest of each, in the low lane. In a large room, where each
    /// of many would be told of each, only the user's own devices.
    pub(super) fn flush_reads(&mut self) {
        let mut due: Vec<_> = self.reads_due.drain().collect();
        due.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for ((key, user, device), seq) in due {
            let Some(idx) = self.rooms.find_key(key) else { continue };
            let room = self.rooms.get(idx);
            let own: Vec<ConnKey>;
            let listeners = if room.members <= self.cx.limits.receipts_room_max {
                &room.subscribers
            } else {
                own = self.listening_devices(user.as_str(), idx);
                &own
            };
            if listeners.is_empty() {
                continue;
            }
            let frame = Cx::frame(|out| {
                out.extend_from_slice(match &device {
                    None => b"{\"type\":\"read:advanced\",\"room\":",
                    Some(_) => b"{\"type\":\"delivered:advanced\",\"room\":",
                });
                string(out, room.name.as_str());
                field_string(out, "user", user.as_str());
                match &device {
                    None => field_integer(out, "read", seq),
                    Some(device) => {
                        field_string(out, "device", device.as_str());
                        field_integer(out, "delivered", seq);
                    }
                }
                out.push(b'}');
            });
            let class = Class::Low { key: conflation_key(key.0, user.as_str(), device.as_ref().map(DeviceId::as_str)) };
            self.cx.fanout(listeners.iter().copied(), class, Frames::Owned(frame));
        }
    }

    /// The user's connections that listen to a room.
    fn listening_devices(&self, user: &str, idx: RoomIdx) -> Vec<ConnKey> {
        let conns = self.users.find(user).map_or(&[][..], |user| &self.users.get(user).conns);
        let listens = |conn: &ConnKey| self.sessions.get(*conn).is_some_and(|session| session.is_subscribed(idx));
        conns.iter().copied().filter(listens).collect()
    }

    fn on_outcome(&mut self, outcome: &Outcome, stamps: &Stamps) {
        let Some(waiting) = self.pending.take(outcome.token) else { return };
        self.cx.appends -= 1;
        if outcome.result.is_ok() {
            self.forgive(waiting.conn());
        }
        match (waiting, &outcome.result) {
            (Waiting::Ack { call, room, trace, asked_us }, Ok(committed)) => {
                let timing = asked_us.map(|asked_us| Timing::new(asked_us, stamps, self.cx.clock_us));
                self.acknowledge(&call, &room, trace, committed, timing);
            }
            (Waiting::Join { call, room, since, filter }, Ok(_)) => {
                self.on_joined(call, &room, since, filter);
            }
            (Waiting::Membership { call, room }, Ok(committed)) => {
                // Who leaves hears nothing more of the room after this.
                let head = self.rooms.find(room.as_str()).map_or(committed.seq, |idx| self.rooms.get(idx).head);
                self.cx.ok_in_place(call.conn, call.id.as_ref(), (committed.room, head), |out| {
                    field_string(out, "room", room.as_str());
                    field_integer(out, "seq", committed.seq);
                });
                self.cx.out.list.push(Output::Unpark(call.conn));
            }
            (Waiting::ReadMark { call, room }, Ok(committed)) => {
                self.cx.ok(call.conn, call.id.as_ref(), |out| {
                    field_string(out, "room", room.as_str());
                    field_integer(out, "seq", committed.seq);
                });
            }
            (Waiting::Amend { call, room, is_reaction }, result) => {
                self.on_amended(&call, &room, is_reaction, result);
            }
            (Waiting::AdminPublish { token, room }, Ok(committed)) => {
                self.admin_reply(token, Ok(AdminAnswer::Published { room, committed: *committed }));
            }
            (Waiting::Notify { call }, Ok(committed)) => {
                self.cx.ok(call.conn, call.id.as_ref(), |out| field_integer(out, "item", committed.seq));
            }
            (Waiting::InboxAck { call, user, items }, Ok(committed)) => {
                self.on_acked(&call, &user, &items, committed.seq);
            }
            (Waiting::PresenceNews, result) => self.on_news_answered(result.as_ref().err()),
            (Waiting::InboxTakeAway { user, items, .. }, Err(_)) => self.on_not_taken_away(&user, &items),
            (Waiting::InboxTakeAway { user, items, was_sent: true }, Ok(_)) => self.say_gone(&user, &items, None),
            (Waiting::InboxUpkeep | Waiting::InboxTakeAway { .. }, _) => {}
            (Waiting::Mend { room, witness, reload }, result) => self.on_mended(room, witness, reload, result),
            (Waiting::AdminNotify { token }, Ok(committed)) => {
                self.admin_reply(token, Ok(AdminAnswer::Notified(committed.seq)));
            }
            (Waiting::AdminDead { token, is_replay }, Ok(committed)) => self.on_dead(token, is_replay, *committed),
            (Waiting::AdminRevoke { token }, Ok(_)) => self.admin_reply(token, Ok(AdminAnswer::Revoked)),
            (
                Waiting::AdminPublish { token, .. }
                | Waiting::AdminRevoke { token }
                | Waiting::AdminNotify { token }
                | Waiting::AdminDead { token, .. },
                Err(refusal),
            ) => {
                self.admin_reply(token, Err(refusal.clone()));
            }
            (Waiting::Join { call, .. } | Waiting::Membership { call, .. }, Err(refusal)) => {
                self.refuse_outcome(&call, refusal);
                self.cx.out.list.push(Output::Unpark(call.conn));
            }
            (
                Waiting::Ack { call, .. }
                | Waiting::ReadMark { call, .. }
                | Waiting::Notify { call }
                | Waiting::InboxAck { call, .. },
                Err(refusal),
            ) => {
                self.refuse_outcome(&call, refusal);
            }
            (
                Waiting::User(_)
                | Waiting::Room(_)
                | Waiting::Resume(_)
                | Waiting::History { .. }
                | Waiting::Members { .. }
                | Waiting::Rooms { .. }
                | Waiting::PresenceHistory { .. }
                | Waiting::AdminAnalytics { .. }
                | Waiting::Check { .. }
                | Waiting::AdminDeadLetters { .. }
                | Waiting::Audit { .. }
                | Waiting::Reload { .. }
                | Waiting::Refresh { .. },
                _,
            ) => debug_assert!(false, "an outcome answers an append"),
        }
    }

    fn acknowledge(&mut self, call: &Call, room: &RoomName, trace: u64, committed: &Committed, timing: Option<Timing>) {
        self.cx.stats.acks += 1;
        self.cx.stats.duplicates += u64::from(committed.duplicate);
        if self.cx.notes_messages {
            self.cx.note(Note::Committed { trace, room: committed.room, seq: committed.seq });
        }
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_string(out, "room", room.as_str());
            field_integer(out, "seq", committed.seq);
            field_integer(out, "ts", committed.ts);
            field_raw(out, "duplicate", if committed.duplicate { b"true" } else { b"false" });
            out.extend_from_slice(b",\"trace\":\"");
            super::message::write_trace(out, trace);
            out.push(b'"');
            if let Some(timing) = timing {
                super::message::write_timing(out, &timing);
            }
        });
    }

    pub(super) fn refuse_outcome(&mut self, call: &Call, refusal: &Refusal) {
        if refusal.code == ErrorCode::Busy {
            self.cx.stats.busy += 1;
        }
        self.refuse_call(call, refusal);
    }
}

/// Counts entries that went to every listener. One priority is the rule.
fn count_considered(stats: &mut Stats, entries: &[LogEntry], listeners: usize) {
    for alike in entries.chunk_by(|a, b| a.priority == b.priority) {
        stats.count_fanout(alike[0].priority, (alike.len() * listeners) as u64, 0);
    }
}

/// True when the user of this change is no member afterwards.
fn ends_membership(change: &MembershipChange) -> bool {
    change.role.is_none_or(|role| !role.is_member())
}

/// Key under which a waiting low event is replaced by a later one; never 0.
pub(super) fn conflation_key(room: u64, user: &str, device: Option<&str>) -> u64 {
    ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one((room, user, device)) | 1
}
