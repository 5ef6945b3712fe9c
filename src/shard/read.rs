//! From bytes to the engine: WebSocket messages, commands, parking.

use super::conn::{Backlog, Phase, ring_key};
use super::driver::Driver;
use super::ring::Ended;
use crate::engine::event::{ConnKey, Input};
use crate::protocol::parse::BadFrame;
use crate::protocol::websocket::Incoming;

impl Driver {
    pub(super) fn on_received(&mut self, key: ConnKey, bytes: &[u8], is_armed: bool) {
        let Some(conn) = self.conns.get_mut(key) else {
            self.engine.stats_mut().ring_stale += 1;
            return;
        };
        conn.is_receiving = is_armed;
        self.engine.stats_mut().bytes_in += bytes.len() as u64;
        match conn.phase {
            Phase::Upgrading(_) => self.on_head_bytes(key, bytes),
            Phase::Open => {
                self.engine.note_heard(key, self.now);
                self.on_frames_bytes(key, bytes);
                if !is_armed {
                    self.receive_unless_full(key);
                }
            }
            Phase::Closing => self.on_closing_bytes(key, bytes),
        }
    }

    pub(super) fn on_receive_ended(&mut self, key: ConnKey, reason: Ended) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.is_receiving = false;
        match reason {
            Ended::NoBuffers => {
                self.engine.stats_mut().ring_enobufs += 1;
                match conn.phase {
                    Phase::Upgrading(_) => self.on_head_bytes(key, &[]),
                    Phase::Open | Phase::Closing => self.receive_unless_full(key),
                }
            }
            // Only a backlog that is full cancels a receive; using it up arms it again.
            Ended::Cancelled => self.receive_unless_full(key),
            Ended::Eof | Ended::Error(_) => self.on_peer_gone(key),
        }
    }

    /// The peer is gone: nothing more can be sent, nothing will come.
    fn on_peer_gone(&mut self, key: ConnKey) {
        if self.conns.get(key).is_some_and(|conn| matches!(conn.phase, Phase::Open)) {
            self.handle(Input::Closed(key));
        }
        self.drop_conn(key);
    }

    /// Bytes of an open connection: to the engine, or to the backlog while it is parked.
    pub(super) fn on_frames_bytes(&mut self, key: ConnKey, bytes: &[u8]) {
        if self.reads_no_more {
            return;
        }
        let waits_max = self.ladder.normal_bytes_max;
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_held(waits_max) || conn.backlog.is_some() {
            let backlog = conn.backlog.get_or_insert_default();
            backlog.bytes.extend_from_slice(bytes);
            if backlog.bytes.len() > self.limits.backlog_bytes_max as usize && conn.is_receiving {
                // No more until it is used up: TCP holds the sender back.
                self.ring.cancel_receive(ring_key(key));
            }
            return;
        }
        let left = self.feed(key, bytes);
        if left < bytes.len() {
            let rest = &bytes[bytes.len() - left..];
            self.keep(key, rest);
        }
    }

    /// Keeps bytes for later, when the connection was parked, or had too much to read, in the middle of them.
    fn keep(&mut self, key: ConnKey, rest: &[u8]) {
        if let Some(conn) = self.conns.get_mut(key)
            && matches!(conn.phase, Phase::Open)
            && !rest.is_empty()
        {
            conn.backlog.get_or_insert_default().bytes.extend_from_slice(rest);
        }
    }

    /// Feeds bytes until they are used up, the connection is held, or it is over.
    /// Returns how many are left.
    fn feed(&mut self, key: ConnKey, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        let mut text = std::mem::take(&mut self.text);
        let mut replies = Vec::new();
        while let Some(conn) = self.conns.get_mut(key) {
            if conn.is_held(self.ladder.normal_bytes_max) || !matches!(conn.phase, Phase::Open) {
                break;
            }
            let incoming = conn.codec.read(&mut rest, &mut text, &mut replies);
            let is_goodbye = matches!(incoming, Ok(Some(Incoming::Close { .. })));
            if is_goodbye {
                // The replies are the echo. Who says goodbye wants nothing more.
                self.drop_waiting(key);
                self.push_last(key, &replies);
            } else if !replies.is_empty() {
                self.push_critical(key, &replies);
            }
            replies.clear();
            match incoming {
                Ok(None) => break,
                Ok(Some(Incoming::Text(message))) => {
                    self.engine.stats_mut().frames_in += 1;
                    self.on_text(key, message);
                }
                Ok(Some(Incoming::Ping | Incoming::Pong)) => {
                    self.engine.stats_mut().frames_in += 1;
                    self.handle(Input::Control(key));
                }
                Ok(Some(Incoming::Close { .. })) => {
                    self.engine.note_goodbye(key);
                    self.handle(Input::Closed(key));
                    self.begin_closing(key);
                }
                Err(fail) => {
                    tracing::debug!(shard = self.id.0, conn = key.slot, code = fail.code.number(), "{}", fail.reason);
                    self.engine.stats_mut().closes.count(fail.code);
                    self.handle(Input::Closed(key));
                    self.drop_waiting(key);
                    self.push_close(key, fail.code, fail.reason);
                    self.begin_closing(key);
                }
            }
        }
        self.text = text;
        rest.len()
    }

    fn on_text(&mut self, key: ConnKey, message: &str) {
        // The parser lends its memory to the request, so it is taken out for the call.
        let Some(mut parser) = self.parser.take() else { return };
        match parser.parse(message.as_bytes()) {
            Ok(request) => self.handle(Input::Frame(key, &request)),
            Err(BadFrame { id, refusal }) => self.handle(Input::BadFrame(key, id, refusal)),
        }
        self.parser = Some(parser);
        if let Some(conn) = self.conns.get_mut(key)
            && conn.is_parked
            && let Some(backlog) = &mut conn.backlog
            && backlog.again.as_ref().is_some_and(Vec::is_empty)
        {
            backlog.again = Some(message.as_bytes().to_vec());
        }
    }

    /// The engine parks a connection; `again`: the frame at hand is wanted once more.
    pub(super) fn park(&mut self, key: ConnKey, again: bool) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.is_parked = true;
            if again {
                // An empty text marks the place that `on_text` fills.
                conn.backlog.get_or_insert_default().again = Some(Vec::new());
            }
        }
    }

    pub(super) fn unpark(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.is_parked = false;
            if conn.backlog.is_some() {
                self.unparked.push(key);
            }
        }
    }

    /// Some of what waited for a connection has gone: its own frames may be looked at again.
    pub(super) fn go_on_if_read(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get(key)
            && conn.backlog.is_some()
            && !conn.is_held(self.ladder.normal_bytes_max)
        {
            self.unparked.push(key);
        }
    }

    pub(super) fn go_on_unparked(&mut self) -> bool {
        let mut is_busy = false;
        // Going on may park and unpark again at once: take what is there, and what comes while at it.
        while let Some(key) = self.unparked.pop() {
            is_busy = true;
            self.use_up_backlog(key);
        }
        is_busy
    }

    fn use_up_backlog(&mut self, key: ConnKey) {
        if self.reads_no_more {
            return;
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_held(self.ladder.normal_bytes_max) || !matches!(conn.phase, Phase::Open) {
            return;
        }
        let Some(backlog) = conn.backlog.take() else { return };
        let Backlog { again, bytes } = *backlog;
        if let Some(message) = again.as_ref().and_then(|again| std::str::from_utf8(again).ok()) {
            self.on_text(key, message);
        }
        let left = self.feed(key, &bytes);
        self.keep(key, &bytes[bytes.len() - left..]);
        self.receive_unless_full(key);
    }

    fn receive_unless_full(&mut self, key: ConnKey) {
        let limit = self.limits.backlog_bytes_max as usize;
        if let Some(conn) = self.conns.get(key)
            && conn.backlog.as_ref().is_none_or(|backlog| backlog.bytes.len() <= limit)
        {
            self.receive(key);
        }
    }
}
