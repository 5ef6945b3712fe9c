//! The engine of one shard: owns its parts, takes inputs, gives outputs. No logic of its own.
//!
//! Three calls drive it, always by one thread:
//! - **in:** [`Shard::handle`] with the time, [`Shard::note_heard`] for bytes of any
//!   kind, [`Shard::note_clock`] for whoever wants times;
//! - **out:** [`Shard::drain_outputs`] after each `handle` (or after several);
//! - **questions:** [`Shard::next_deadline`], [`Shard::stats`].
//!
//! What happens on each input is in `handle/`, one file a topic, written as methods of `Shard`.

use std::collections::HashMap;
use std::sync::Arc;

use super::auth::Revoked;
use super::consistency::Consistency;
use super::cx::Cx;
use super::event::{AdminAnswer, ConnKey, Genesis, Input, Output, Outputs, Token};
use super::handle::Waiting;
use super::handle::presence_gather::Gathers;
use super::heartbeat::Heartbeat;
use super::limits::Limits;
use super::pending::Pending;
use super::presence::Presence;
use super::rng::Rng;
use super::rooms::Rooms;
use super::session::Sessions;
use super::stats::Stats;
use super::sync::Recent;
use super::timers::{Timer, Timers};
use super::users::{Users, Waiter};
use crate::protocol::error::Refusal;
use crate::protocol::ids::{DeviceId, RoomKey, RoomName, Seq, UnixMillis, UserId};

/// One shard's state and rules.
#[derive(Debug)]
pub struct Shard {
    pub(super) cx: Cx,
    pub(super) sessions: Sessions,
    pub(super) users: Users,
    pub(super) rooms: Rooms,
    pub(super) recent: Recent,
    pub(super) pending: Pending<Waiting>,
    pub(super) timers: Timers<Timer>,
    pub(super) heartbeat: Heartbeat,
    pub(super) revoked: Revoked,
    /// Who waits for a room to be loaded.
    pub(super) loading: HashMap<RoomName, Vec<Waiter>, ahash::RandomState>,
    /// Read cursors that moved and are to be told, the latest of each.
    pub(super) reads_due: HashMap<(RoomKey, UserId, Option<DeviceId>), Seq, ahash::RandomState>,
    /// Where the `meta` of the entries at hand lie; kept for its memory.
    pub(super) filter_metas: Vec<Option<std::ops::Range<usize>>>,
    /// Where the background check is in its rounds.
    pub(super) consistency: Consistency,
    pub(super) presence: Presence,
    /// Questions of presence that other shards have a part of.
    pub(super) gathers: Gathers,
    /// `Some` once the drain has begun: the upper bound of retry times, ms.
    pub(super) draining: Option<u32>,
}

impl Shard {
    /// An engine without connections, at the log position of `genesis`.
    pub fn new(genesis: Genesis, limits: Arc<Limits>, now: UnixMillis) -> Self {
        let mut revoked = Revoked::default();
        genesis.revocations.iter().for_each(|revocation| revoked.add(revocation));
        let mut timers = Timers::default();
        timers.set(now + super::handle::SWEEP_MS, Timer::Sweep);
        if limits.consistency_rooms_per_s > 0 {
            timers.set(now + super::handle::consistency::ROUND_MS, Timer::Consistency);
        }
        let mut rng = Rng::new(genesis.seed);
        let heartbeat = Heartbeat::new(limits.heartbeat_ms, &mut rng);
        Self {
            cx: Cx {
                shard: genesis.shard,
                shards: genesis.shards,
                epoch: genesis.epoch,
                limits,
                now,
                day_ahead_ms: 0,
                clock_us: 0,
                position: genesis.position,
                notes_messages: genesis.notes_messages,
                degraded: false,
                stats: Stats::default(),
                rng,
                out: Outputs::default(),
                appends: 0,
                reads: 0,
            },
            sessions: Sessions::default(),
            users: Users::default(),
            rooms: Rooms::default(),
            recent: Recent::default(),
            pending: Pending::default(),
            timers,
            heartbeat,
            revoked,
            loading: HashMap::default(),
            reads_due: HashMap::default(),
            filter_metas: Vec::new(),
            consistency: Consistency::default(),
            presence: Presence::new(genesis.shard, genesis.shards, genesis.seed, now),
            gathers: Gathers::default(),
            draining: None,
        }
    }

    /// Takes one input at time `now`, milliseconds. Times must not go backwards, nor leap: see [`Shard::note_time_of_day`].
    pub fn handle(&mut self, input: Input<'_>, now: UnixMillis) {
        self.cx.now = now;
        match input {
            Input::Opened(conn, opening) => self.on_opened(conn, opening),
            Input::Frame(conn, request) => self.on_frame(conn, request),
            Input::BadFrame(conn, id, refusal) => self.on_bad_frame(conn, id.as_ref(), refusal),
            Input::Control(conn) => self.on_control_frame(conn),
            Input::TokenVerified(conn, token, result) => self.on_token_verified(conn, token, result),
            Input::Closed(conn) => self.end(conn, None),
            Input::OutboxDrained(conn, gaps) => self.on_outbox_drained(conn, &gaps),
            Input::Store(event) => self.on_store(event),
            Input::Read(reply) => self.on_read_reply(reply),
            Input::Mesh(message) => self.on_mesh(message),
            Input::Admin(request) => self.on_admin(request),
            Input::Tick => self.on_tick(),
            Input::Drain { spread_ms } => self.on_drain(spread_ms),
            Input::CloseAll => self.on_close_all(),
        }
    }

    /// The monotonic clock, as it stands in this turn: for the `timing` that clients ask for, and
    /// nothing else. Once or twice a turn is enough.
    pub fn note_clock(&mut self, clock_us: u64) {
        self.cx.clock_us = clock_us;
    }

    /// How far the time of day is ahead of the times that come with inputs, milliseconds. It may be set forward and back
    /// at any time. Until this is called the two are the same.
    pub fn note_time_of_day(&mut self, ahead_ms: i64) {
        self.cx.day_ahead_ms = ahead_ms;
    }

    /// Bytes of any kind came from this connection.
    pub fn note_heard(&mut self, conn: ConnKey, now: UnixMillis) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.heard_at = now;
        }
    }

    /// The client of this connection has said goodbye: when it ends, it ends cleanly.
    pub fn note_goodbye(&mut self, conn: ConnKey) {
        if let Some(session) = self.sessions.get_mut(conn) {
            session.presence.said_goodbye = true;
        }
    }

    /// Moves what is to be done into `outputs`, which must be clear, in order.
    pub fn drain_outputs(&mut self, outputs: &mut Outputs) {
        debug_assert!(outputs.list.is_empty() && outputs.targets.is_empty() && outputs.bytes.is_empty());
        std::mem::swap(&mut self.cx.out, outputs);
    }

    /// When [`Input::Tick`] is wanted next, if at all.
    pub fn next_deadline(&self) -> Option<UnixMillis> {
        self.timers.next_deadline()
    }

    /// The counters, with the gauges brought up to date.
    pub fn stats(&mut self) -> &Stats {
        let stats = &mut self.cx.stats;
        stats.sessions = self.sessions.count() as u64;
        stats.users_loaded = self.users.count() as u64;
        stats.rooms_loaded = self.rooms.count() as u64;
        stats.appends_pending = u64::from(self.cx.appends);
        stats.reads_pending = u64::from(self.cx.reads);
        stats.presence_watches = self.presence.watching.watches() as u64;
        stats.presence_cards = self.presence.watching.cards() as u64;
        stats.rooms_diverged = self.consistency.diverged.len() as u64;
        stats.presence_unwritten = self.presence.recorder.unwritten() as u64;
        stats.recent_bytes = self.recent.bytes() as u64;
        stats
    }

    /// The counters, for whoever drives the engine to add its own.
    pub fn stats_mut(&mut self) -> &mut Stats {
        &mut self.cx.stats
    }

    /// True when a token with these claims was revoked.
    pub fn is_revoked(&self, user: &UserId, issued_at: Option<u64>, jti: Option<&str>) -> bool {
        self.revoked.covers(user, issued_at, jti)
    }

    /// Appends and reads that are not answered yet: 0 means that a drain has nothing to wait for.
    pub fn unanswered(&self) -> usize {
        self.pending.count()
    }

    pub(super) fn admin_reply(&mut self, token: Token, result: Result<AdminAnswer, Refusal>) {
        self.cx.out.list.push(Output::AdminReply(token, result));
    }
}
