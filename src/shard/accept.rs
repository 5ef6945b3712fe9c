//! From a new socket to a session: accept, HTTP request, token, hand-over to the user's shard.
//!
//! The request is read one receive at a time, so that nothing is in flight on the socket when it is
//! handed over. A refused token still completes the upgrade, since a browser cannot read an HTTP
//! status here; the close code tells it.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use super::conn::{Conn, Head, Phase};
use super::driver::{Deadline, Driver};
use super::mail::{Handoff, Letter};
use super::socket::{send_slices, shutdown_write};
use crate::engine::event::{ConnKey, Input, Opening};
use crate::protocol::error::CloseCode;
use crate::protocol::upgrade::{
    HeadLimits, Refused, Route, Subprotocol, TokenOffer, UpgradeRequest, read_head, write_health,
};

/// How long accepting rests after an error (out of descriptors, say), ms.
const ACCEPT_BACKOFF_MS: u64 = 100;
/// Those that find no room are logged at most so often, ms.
const TURNED_AWAY_EVERY_MS: u64 = 10_000;

/// What to do with a socket whose request is complete.
enum Verdict {
    /// Send these bytes, then close.
    Answer(Vec<u8>),
    /// Let it in.
    Admit(Box<Admission>),
}

struct Admission {
    opening: Opening,
    response: Vec<u8>,
    /// Length of the request; what follows are the first frames.
    request_bytes: usize,
}

impl Driver {
    pub(super) fn on_accepted(&mut self, fd: OwnedFd) {
        self.engine.stats_mut().accepted += 1;
        if self.conns.len() >= self.sockets_max {
            return self.turn_away(&fd);
        }
        let phase = Phase::Upgrading(Box::default());
        let key = self.conns.insert(fd, phase, self.limits.message_bytes_max, self.now);
        self.deadlines.set(self.now + u64::from(self.limits.handshake_ms), Deadline::Handshake(key));
        self.receive_head(key);
    }

    /// There is no room. It is said in a status, as far as the socket takes it at once; whoever drops it closes it.
    fn turn_away(&mut self, fd: &OwnedFd) {
        self.engine.stats_mut().turned_away += 1;
        if self.now >= self.turned_away_at + TURNED_AWAY_EVERY_MS {
            self.turned_away_at = self.now;
            tracing::warn!(shard = self.id.0, sockets = self.conns.len(), "no room for more connections; turned away");
        }
        let mut response = Vec::with_capacity(256);
        Refused::Unavailable.write_response(&mut response);
        let _ = send_slices(fd.as_raw_fd(), &[IoSlice::new(&response)]);
        shutdown_write(fd.as_raw_fd());
    }

    pub(super) fn on_accept_failed(&mut self, errno: i32) {
        if self.listener.is_none() {
            return;
        }
        if errno == 0 {
            return self.accept_again();
        }
        self.engine.stats_mut().accept_errors += 1;
        tracing::warn!(
            shard = self.id.0,
            error = %std::io::Error::from_raw_os_error(errno),
            "accept failed; trying again in {ACCEPT_BACKOFF_MS} ms"
        );
        self.deadlines.set(self.now + ACCEPT_BACKOFF_MS, Deadline::Accept);
    }

    pub(super) fn accept_again(&mut self) {
        if let Some(listener) = &self.listener {
            self.ring.accept_multi(listener.as_raw_fd());
        }
    }

    pub(super) fn stop_accepting(&mut self) {
        if let Some(listener) = self.listener.take() {
            self.ring.cancel_accept();
            // The listener closes once the ring has taken the cancellation.
            self.conns.bury_later(listener);
        }
    }

    fn receive_head(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.is_receiving = true;
            self.ring.receive_once(conn.raw_fd(), super::conn::ring_key(key));
        }
    }

    /// More bytes of a request.
    pub(super) fn on_head_bytes(&mut self, key: ConnKey, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Upgrading(head) = &mut conn.phase else { return };
        head.bytes.extend_from_slice(bytes);
        let mut head = std::mem::take(head);
        let limits = HeadLimits {
            bytes_max: self.limits.handshake_bytes_max as usize,
            headers_max: self.limits.handshake_headers_max as usize,
        };
        let verdict = match read_head(&head.bytes, &mut head.scanned, limits, &self.origins) {
            Ok(None) => {
                conn.phase = Phase::Upgrading(head);
                return self.receive_head(key);
            }
            Ok(Some((Route::WebSocket(request), length))) => self.judge(&request, length),
            Ok(Some((Route::HealthLive, _))) => answer(|out| write_health(out, true)),
            Ok(Some((Route::HealthReady, _))) => answer(|out| write_health(out, self.is_ready.load(Ordering::Relaxed))),
            Err(refused) => self.refuse_request(refused),
        };
        match verdict {
            Verdict::Answer(bytes) => self.answer_and_close(key, &bytes),
            Verdict::Admit(admission) => self.hand_over(key, *admission, &head),
        }
    }

    fn refuse_request(&mut self, refused: Refused) -> Verdict {
        self.engine.stats_mut().handshakes_refused += 1;
        answer(|out| refused.write_response(out))
    }

    /// A valid upgrade: does its token hold?
    fn judge(&mut self, request: &UpgradeRequest<'_>, request_bytes: usize) -> Verdict {
        if self.listener.is_none() {
            return self.refuse_request(Refused::Unavailable);
        }
        let mut response = Vec::with_capacity(256);
        request.write_response(&mut response);
        let mut refuse = |code: CloseCode, reason: &str| {
            self.engine.stats_mut().tokens_refused += 1;
            self.engine.stats_mut().closes.count(code);
            tracing::debug!(shard = self.id.0, code = code.number(), reason, "connection refused");
            crate::protocol::websocket::close_frame(&mut response, code, reason);
            Verdict::Answer(std::mem::take(&mut response))
        };
        if matches!(request.subprotocol, Subprotocol::Unsupported(_)) {
            return refuse(CloseCode::UnsupportedVersion, "this server speaks antiphon.v1");
        }
        let jwt = match &request.token {
            TokenOffer::One(jwt) => jwt,
            TokenOffer::Missing => return refuse(CloseCode::InvalidToken, "a token is required"),
            TokenOffer::Conflict => return refuse(CloseCode::InvalidToken, "several tokens that differ"),
        };
        let claims = match self.verifier.verify(jwt, self.clock.time_of_day(self.now)) {
            Ok(claims) => claims,
            Err(error) => return refuse(error.close_code(), &error.to_string()),
        };
        let opening = Opening { claims, device: request.device.clone(), batch: request.batch };
        Verdict::Admit(Box::new(Admission { opening, response, request_bytes }))
    }

    fn hand_over(&mut self, key: ConnKey, admission: Admission, head: &Head) {
        let Some(Conn { fd, .. }) = self.conns.take(key) else { return };
        let Admission { opening, response, request_bytes } = admission;
        let owner = crate::engine::shard_of(&opening.claims.user, self.peers.len() as u16);
        let leftover = head.bytes.get(request_bytes..).unwrap_or_default().to_vec();
        let handoff = Box::new(Handoff { fd, opening, response, leftover });
        if owner == self.id {
            return self.install(*handoff);
        }
        self.engine.stats_mut().handoffs_out += 1;
        if self.peers[usize::from(owner.0)].post(Letter::Handoff(handoff)).is_err() {
            // The letter came back and is dropped here, which closes the socket.
            self.engine.stats_mut().mesh_dropped += 1;
        }
    }

    /// A socket of a user of this shard: from here on it is the engine's.
    pub(super) fn install(&mut self, handoff: Handoff) {
        let Handoff { fd, opening, response, leftover } = handoff;
        if self.conns.len() >= self.sockets_max {
            return self.turn_away(&fd);
        }
        // The slot that is given out next may be one whose end the engine does not know yet.
        self.settle();
        let key = self.conns.insert(fd, Phase::Open, self.limits.message_bytes_max, self.now);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.is_batching = opening.batch;
        }
        self.push_answer(key, &response);
        self.receive(key);
        self.handle(Input::Opened(key, opening));
        if !leftover.is_empty() {
            self.on_frames_bytes(key, &leftover);
        }
    }

    fn answer_and_close(&mut self, key: ConnKey, bytes: &[u8]) {
        self.push_critical(key, bytes);
        self.begin_closing(key);
    }

    pub(super) fn on_handshake_late(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get(key)
            && matches!(conn.phase, Phase::Upgrading(_))
        {
            self.engine.stats_mut().handshakes_refused += 1;
            self.drop_conn(key);
        }
    }
}

fn answer(write: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    let mut bytes = Vec::with_capacity(256);
    write(&mut bytes);
    Verdict::Answer(bytes)
}
