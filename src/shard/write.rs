//! From the engine to the outboxes, and the end of a connection.

use super::conn::{Conn, Phase};
use super::driver::{Deadline, Driver, SPARE_OUTBOXES_MAX};
use super::flush::{FlushQueue, is_large};
use super::mail::Letter;
use crate::engine::event::{Class, ConnKey, Frames, Input, Output, Outputs};
use crate::gateway::outbox::Pushed;
use crate::protocol::command::CommandId;
use crate::protocol::encode;
use crate::protocol::error::CloseCode;
use crate::protocol::ids::{Seq, UnixMillis};
use crate::protocol::websocket::ping_frame;

/// How long a closing connection may take to send its last bytes and to answer the close, ms.
const CLOSING_MS: UnixMillis = 3_000;

impl Driver {
    /// Does what the engine asks for, until it asks for nothing more.
    pub(super) fn perform(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.engine.drain_outputs(&mut outputs);
        let mut list = std::mem::take(&mut outputs.list);
        for output in list.drain(..) {
            self.perform_one(output, &outputs);
        }
        outputs.list = list;
        outputs.clear();
        self.outputs = outputs;
    }

    fn perform_one(&mut self, output: Output, outputs: &Outputs) {
        match output {
            Output::Send { conn, class, frames } => self.push(conn, class, &frames, &outputs.bytes),
            Output::Fanout { targets, class, frames } => {
                for conn in &outputs.targets[targets.start as usize..targets.end as usize] {
                    self.push(*conn, class, &frames, &outputs.bytes);
                }
            }
            Output::Ping(conn) => {
                let mut frame = Vec::with_capacity(2);
                ping_frame(&mut frame);
                self.push_bytes(conn, &frame, FlushQueue::mark_ping);
            }
            Output::Close { conn, code, reason } => {
                self.push_close(conn, code, &reason);
                self.begin_closing(conn);
            }
            Output::Park { conn, again } => self.park(conn, again),
            Output::Unpark(conn) => self.unpark(conn),
            Output::VerifyToken { conn, token, jwt } => {
                let result =
                    self.verifier.verify(&jwt, self.clock.time_of_day(self.now)).map_err(|error| error.refusal());
                self.engine.handle(Input::TokenVerified(conn, token, result), self.now);
                self.perform_nested();
            }
            Output::Append(append) => self.appends.push(append),
            Output::Read(request) => self.questions.push(request),
            Output::Mesh(message) => {
                for (number, peer) in self.peers.iter().enumerate() {
                    if number == usize::from(self.id.0) {
                        continue;
                    }
                    let stats = self.engine.stats_mut();
                    match peer.post(Letter::Mesh(message.clone())) {
                        Ok(()) => stats.mesh_sent += 1,
                        Err(_) => stats.mesh_dropped += 1,
                    }
                }
            }
            Output::MeshTo(to, message) => {
                let stats = self.engine.stats_mut();
                match self.peers.get(usize::from(to.0)).map(|peer| peer.post(Letter::Mesh(message))) {
                    Some(Ok(())) => stats.mesh_sent += 1,
                    _ => stats.mesh_dropped += 1,
                }
            }
            Output::AdminReply(token, result) => {
                if let Some(answer) = self.admin_waiting.remove(&token) {
                    answer(result);
                }
            }
            Output::StatsReply { conn, id, fields } => {
                self.reply_stats(conn, &id, &outputs.bytes[fields.start as usize..fields.end as usize]);
            }
            Output::Note(note) => super::notes::log(self.id, &note),
        }
    }

    /// Outputs of an input that an output led to. One level deep: these lead to no further input.
    fn perform_nested(&mut self) {
        let mut outputs = Outputs::default();
        self.engine.drain_outputs(&mut outputs);
        for output in std::mem::take(&mut outputs.list) {
            self.perform_one(output, &outputs);
        }
    }

    fn reply_stats(&mut self, key: ConnKey, id: &CommandId, fields: &[u8]) {
        let Some(conn) = self.conns.get(key) else { return };
        let (bytes, step) = conn.outbox.as_ref().map_or((0, 0), |outbox| (outbox.bytes(), outbox.step(&self.ladder)));
        let slow = conn.slow.as_deref().copied().unwrap_or_default();
        let mut frame = Vec::with_capacity(256);
        encode::frame_text(&mut frame, |out| {
            encode::ok(out, id, |out| {
                out.extend_from_slice(fields);
                encode::field_integer(out, "outbox_bytes", bytes as u64);
                encode::field_integer(out, "outbox_bytes_max", self.ladder.bytes_max as u64);
                encode::field_integer(out, "ladder_step", u64::from(step));
                encode::field_integer(out, "conflated", slow.conflated);
                encode::field_integer(out, "dropped_low", slow.dropped_low);
                encode::field_integer(out, "dropped_normal", slow.dropped_normal);
                encode::field_integer(out, "shard_connections", self.conns.len() as u64);
            });
        });
        self.push_critical(key, &frame);
    }

    /// Puts frames into a connection's outbox, lending it one if need be.
    fn push(&mut self, key: ConnKey, class: Class, frames: &Frames, scratch: &[u8]) {
        self.make_room(key, class, frames.as_slice(scratch).len());
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !matches!(conn.phase, Phase::Open) {
            return;
        }
        let spare = &mut self.spare_outboxes;
        let outbox = conn.outbox.get_or_insert_with(|| spare.pop().unwrap_or_default());
        let before = outbox.bytes();
        let pushed = outbox.push(class, frames, scratch, &self.ladder);
        if conn.is_blocked {
            outbox.let_go_of_last_batch();
            self.held_bytes = self.held_bytes + outbox.bytes() - before;
        } else if matches!(class, Class::Critical | Class::Reply { .. }) || is_large(before, outbox.bytes()) {
            self.to_flush.mark_urgent(conn);
        } else if self.limits.batch_delay_ms > 0 && class.is_patient() && !conn.is_dirty() {
            return self.delay(key, class, pushed);
        } else {
            self.to_flush.mark(conn);
        }
        self.count_pushed(key, class, pushed);
        match pushed {
            Pushed::BehindGap(last) => self.push_after_gap(key, last, class, frames, scratch),
            Pushed::Overflow => self.close_slow(key, "too much was waiting to be read"),
            Pushed::Queued | Pushed::Conflated | Pushed::DroppedLow | Pushed::DroppedNormal => {}
        }
    }

    /// Sends what waits when the ladder would be climbed otherwise, and the socket was not offered it yet: much in one turn
    /// is no sign of a slow reader.
    fn make_room(&mut self, key: ConnKey, class: Class, len: usize) {
        if let Some(conn) = self.conns.get_mut(key)
            && !conn.is_blocked
            && conn.outbox.as_ref().is_some_and(|outbox| outbox.is_too_full(class, len, &self.ladder))
        {
            self.send_waiting(key);
        }
    }

    /// A critical entry of a room in a gap, or a reply: the gap, which ends right before it, is told first.
    fn push_after_gap(&mut self, key: ConnKey, last: Seq, class: Class, frames: &Frames, scratch: &[u8]) {
        let Some((room, head)) = class.gap_ends_at() else { return };
        let mut gap = Vec::with_capacity(128);
        if !self.engine.write_gap(&mut gap, room, last, head) {
            return self.close_slow(key, "events were lost");
        }
        if let Some(conn) = self.conns.get_mut(key)
            && let Some(outbox) = conn.outbox.as_mut()
        {
            let before = outbox.bytes();
            outbox.close_gap(room, gap.into());
            if conn.is_blocked {
                self.held_bytes = self.held_bytes + outbox.bytes() - before;
            }
            self.push(key, class, frames, scratch);
        }
    }

    /// Puts the HTTP answer before everything else on a new connection. It goes with what comes next, which is
    /// `hello` or a close: a send is the dearest part of making a connection.
    pub(super) fn push_answer(&mut self, key: ConnKey, answer: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let spare = &mut self.spare_outboxes;
        conn.outbox.get_or_insert_with(|| spare.pop().unwrap_or_default()).push_answer(answer);
    }

    /// Puts bytes into the critical lane of a connection in any phase.
    pub(super) fn push_critical(&mut self, key: ConnKey, bytes: &[u8]) {
        self.push_bytes(key, bytes, FlushQueue::mark);
    }

    /// The same, queued to be flushed as `mark` does.
    fn push_bytes(&mut self, key: ConnKey, bytes: &[u8], mark: fn(&mut FlushQueue, &mut Conn)) {
        self.make_room(key, Class::Critical, bytes.len());
        let Some(conn) = self.conns.get_mut(key) else { return };
        let spare = &mut self.spare_outboxes;
        let outbox = conn.outbox.get_or_insert_with(|| spare.pop().unwrap_or_default());
        let before = outbox.bytes();
        let is_overflow = outbox.push_critical(bytes, &self.ladder) == Pushed::Overflow;
        let is_open = matches!(conn.phase, Phase::Open);
        if conn.is_blocked {
            self.held_bytes = self.held_bytes + outbox.bytes() - before;
        } else {
            mark(&mut self.to_flush, conn);
        }
        if is_overflow && is_open {
            self.close_slow(key, "too much was waiting to be read");
        }
    }

    /// Queues a close frame behind all that waits, once.
    pub(super) fn push_close(&mut self, key: ConnKey, code: CloseCode, reason: &str) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let mut frame = Vec::with_capacity(reason.len() + 4);
        conn.codec.close(&mut frame, code, reason);
        self.push_last(key, &frame);
    }

    /// Queues a close frame, ours or the echo of the peer's.
    pub(super) fn push_last(&mut self, key: ConnKey, frame: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let spare = &mut self.spare_outboxes;
        conn.outbox.get_or_insert_with(|| spare.pop().unwrap_or_default()).push_last(frame);
        if conn.is_blocked {
            self.held_bytes += frame.len();
        } else {
            self.to_flush.mark(conn);
        }
    }

    /// Drops what waits for a peer that is not to get it, all but the rest of a frame that was cut.
    pub(super) fn drop_waiting(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && let Some(outbox) = conn.outbox.as_mut()
        {
            let before = outbox.bytes();
            outbox.keep_only_cut_frame();
            if conn.is_blocked {
                self.held_bytes = self.held_bytes + outbox.bytes() - before;
            }
        }
    }

    /// Ends a connection that does not read (4102): what waits is dropped, all but a cut frame.
    pub(super) fn close_slow(&mut self, key: ConnKey, reason: &str) {
        let stats = self.engine.stats_mut();
        stats.slow_closed += 1;
        stats.closes.count(CloseCode::SlowConsumer);
        tracing::info!(shard = self.id.0, conn = key.slot, reason, "slow consumer closed");
        self.ended.push(key);
        self.drop_waiting(key);
        self.push_close(key, CloseCode::SlowConsumer, reason);
        self.begin_closing(key);
    }

    /// From here on the connection only sends what waits, and waits for the peer's close.
    pub(super) fn begin_closing(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if matches!(conn.phase, Phase::Closing) {
            return;
        }
        conn.phase = Phase::Closing;
        conn.backlog = None;
        self.deadlines.set(self.now + CLOSING_MS, Deadline::Closing(key));
        if !conn.is_blocked {
            self.to_flush.mark(conn);
        }
    }

    /// Bytes of a peer that was told to go: only its close frame matters.
    pub(super) fn on_closing_bytes(&mut self, key: ConnKey, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let (mut rest, mut replies) = (bytes, Vec::new());
        let mut text = Vec::new();
        let was_finished = conn.codec.is_finished();
        while let Ok(Some(_)) = conn.codec.read(&mut rest, &mut text, &mut replies) {}
        // Who answers our close has read it. After that, or after a failure, bytes are only passed over.
        let is_over = !was_finished && conn.codec.is_finished() && conn.outbox.is_none();
        let needs_receive = !conn.is_receiving;
        if is_over {
            self.drop_conn(key);
        } else if needs_receive {
            self.receive(key);
        }
    }

    /// Forgets a connection and closes its socket.
    pub(super) fn drop_conn(&mut self, key: ConnKey) {
        self.let_go(key);
        if let Some(outbox) = self.conns.remove(key) {
            self.give_back(outbox);
        }
    }

    pub(super) fn give_back(&mut self, mut outbox: Box<crate::gateway::outbox::Outbox>) {
        if self.spare_outboxes.len() < SPARE_OUTBOXES_MAX {
            outbox.clear();
            self.spare_outboxes.push(outbox);
        }
    }

    pub(super) fn on_writable(&mut self, key: ConnKey) {
        self.let_go(key);
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.to_flush.mark(conn);
    }

    /// A socket was blocked a while ago: has it taken anything since?
    pub(super) fn on_stall_check(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.is_stall_watched = false;
        if !conn.is_blocked || !matches!(conn.phase, Phase::Open) {
            return;
        }
        let due = conn.progress_at + u64::from(self.limits.stall_ms);
        if due <= self.now {
            return self.close_slow(key, "nothing was read for too long");
        }
        conn.is_stall_watched = true;
        self.deadlines.set(due, Deadline::Stall(key));
    }
}
