//! The turn: how a shard meets its sockets.
//!
//! One pinned executor runs one [`Driver`], which owns the ring, the sockets and the engine. There
//! is no task per connection and no lock: each turn does what is ready, in this order, and sleeps
//! only when nothing was.
//!
//! 1. harvest the ring's completions: accepts, bytes, writability   (`accept.rs`, `read.rs`)
//! 2. apply what the persistence core committed, within a budget
//! 3. read the mail (sockets, mesh, read replies, admin), within a budget
//! 4. go on with connections that were unparked
//! 5. due deadlines, the engine's and the sockets' own
//! 6. hand all new appends to the persistence core in one push, say that the last turn's batches are sent, and
//!    hand questions to its readers
//! 7. flush dirty outboxes with one send each, until something comes (`flush.rs`)
//! 8. sleep in the ring until a completion, the bell, or the next deadline
//!
//! The thread blocks inside its own ring rather than in the executor's reactor: the driver is the
//! executor's only task, and a sleep that also goes through a second ring costs three more system
//! calls for each wake-up and rules out deferred task running (see `ARCHITECTURE.md`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock::Clock;
use super::conn::{Conns, conn_key, ring_key};
use super::flush::FlushQueue;
use super::mail::{Answer, Inbox, Letter, Port};
use super::ring::{Completion, Ring, RingConfig};
use super::stages::Stages;
use crate::clock::{now_us, unix_ms};
use crate::engine::event::{
    AdminAnswer, AdminRequest, Append, ConnKey, Genesis, Input, Outputs, Query, ReadReply, ReadRequest, ShardId,
    StoreEvent, Token,
};
use crate::engine::limits::Limits;
use crate::engine::shard::Shard;
use crate::engine::timers::Timers;
use crate::gateway::outbox::{Ladder, Outbox};
use crate::gateway::token::Verifier;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::UnixMillis;
use crate::protocol::parse::Parser;
use crate::protocol::upgrade::Origins;
use crate::store::RoomLog;

/// Store events applied in one turn at most, so that sockets get their turn too.
const LOG_BUDGET: usize = 64;
/// Letters read in one turn at most.
const MAIL_BUDGET: usize = 1_024;
/// Completions harvested in one turn at most.
const RING_BUDGET: usize = 4_096;
/// Users that one reader is asked for in one go at most: more would save little, and each may have a full
/// inbox.
const USERS_TOGETHER_MAX: usize = 32;
/// When appends that the store did not take are offered again.
const RESUBMIT_AFTER: Duration = Duration::from_millis(1);
/// Outboxes kept for the next connections that need one.
pub(super) const SPARE_OUTBOXES_MAX: usize = 256;

/// What a driver needs to start.
pub struct Setup {
    /// What the engine starts from.
    pub genesis: Genesis,
    /// Every bound.
    pub limits: Arc<Limits>,
    /// Judges tokens.
    pub verifier: Arc<Verifier>,
    /// Origins that browsers may come from.
    pub origins: Arc<Origins>,
    /// Sizes of the ring.
    pub ring: RingConfig,
    /// How long to look for work before sleeping, µs.
    pub spin_us: u32,
    /// This shard's listener, bound already.
    pub listener: std::os::fd::OwnedFd,
    /// Sockets that this shard may have at once.
    pub sockets_max: usize,
    /// What others send here.
    pub inbox: Inbox,
    /// Every shard's port, by number.
    pub peers: Vec<Port>,
    /// The persistence core and its readers.
    pub log: Arc<dyn RoomLog>,
    /// True while clients should be sent here: for `/health/ready`.
    pub is_ready: Arc<std::sync::atomic::AtomicBool>,
}

/// What a socket may be waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    /// The HTTP request must be complete.
    Handshake(ConnKey),
    /// A blocked socket must have taken something.
    Stall(ConnKey),
    /// The peer must have closed.
    Closing(ConnKey),
    /// Accept again after an error.
    Accept,
    /// What is patient has waited long enough for company.
    Delayed,
}

/// One shard's thread.
pub struct Driver {
    pub(super) id: ShardId,
    pub(super) ring: Ring,
    pub(super) engine: Shard,
    pub(super) conns: Conns,
    pub(super) limits: Arc<Limits>,
    pub(super) ladder: Ladder,
    pub(super) verifier: Arc<Verifier>,
    pub(super) origins: Arc<Origins>,
    pub(super) parser: Option<Parser>,
    pub(super) listener: Option<std::os::fd::OwnedFd>,
    pub(super) sockets_max: usize,
    /// When it was last said that there was no room.
    pub(super) turned_away_at: UnixMillis,
    pub(super) inbox: Inbox,
    pub(super) peers: Vec<Port>,
    pub(super) log: Arc<dyn RoomLog>,
    pub(super) is_ready: Arc<std::sync::atomic::AtomicBool>,
    pub(super) now: UnixMillis,
    pub(super) clock: Clock,
    spin: Duration,
    pub(super) deadlines: Timers<Deadline>,
    /// Reused from turn to turn.
    pub(super) outputs: Outputs,
    /// New appends of this turn.
    pub(super) appends: Vec<Append>,
    /// New questions of this turn.
    pub(super) questions: Vec<ReadRequest>,
    /// Connections to be flushed.
    pub(super) to_flush: FlushQueue,
    /// Connections with nothing but what is patient, which wait for company until [`Deadline::Delayed`].
    pub(super) delayed: Vec<ConnKey>,
    /// Bytes that wait for sockets which do not take them.
    pub(super) held_bytes: usize,
    /// This shard's share of the budget for them.
    pub(super) held_bytes_max: usize,
    /// Connections that may go on.
    pub(super) unparked: Vec<ConnKey>,
    /// Connections that were ended in the middle of something; the engine is told after it.
    pub(super) ended: Vec<ConnKey>,
    #[allow(clippy::vec_box)] // Connections hold a pointer, not 144 bytes, for an outbox.
    pub(super) spare_outboxes: Vec<Box<Outbox>>,
    /// Bytes of the completion at hand, and the text of the message at hand.
    pub(super) input: Vec<u8>,
    pub(super) text: Vec<u8>,
    pub(super) admin_waiting: HashMap<Token, Answer<Result<AdminAnswer, Refusal>>, ahash::RandomState>,
    admin_tokens: u64,
    stages: Stages,
    /// Events of the log that were applied in this turn, and before it, that are not yet sent out.
    applied: usize,
    unsent: usize,
    /// Frames are no longer looked at: everybody is about to be closed.
    pub(super) reads_no_more: bool,
    is_stopped: bool,
}

impl Driver {
    /// Sets up the ring and starts to accept.
    ///
    /// # Errors
    /// The ring's: see [`Ring::new`].
    pub fn new(setup: Setup) -> std::io::Result<Self> {
        let began_us = now_us();
        let clock = Clock::new(began_us, unix_ms());
        let now = clock.at(began_us);
        let held_bytes_max = held_bytes_max(&setup.limits, setup.genesis.shards);
        let mut ring = Ring::new(setup.ring)?;
        ring.watch_doorbell(&setup.inbox.bell);
        ring.accept_multi(std::os::fd::AsRawFd::as_raw_fd(&setup.listener));
        Ok(Self {
            id: setup.genesis.shard,
            ring,
            engine: Shard::new(setup.genesis, setup.limits.clone(), now),
            conns: Conns::default(),
            ladder: Ladder::of(&setup.limits),
            parser: Some(Parser::new(setup.limits.message_bytes_max as usize)),
            limits: setup.limits,
            verifier: setup.verifier,
            origins: setup.origins,
            listener: Some(setup.listener),
            sockets_max: setup.sockets_max,
            turned_away_at: 0,
            inbox: setup.inbox,
            peers: setup.peers,
            log: setup.log,
            is_ready: setup.is_ready,
            now,
            clock,
            spin: Duration::from_micros(u64::from(setup.spin_us)),
            deadlines: Timers::default(),
            outputs: Outputs::default(),
            appends: Vec::new(),
            questions: Vec::new(),
            to_flush: FlushQueue::default(),
            delayed: Vec::new(),
            held_bytes: 0,
            held_bytes_max,
            unparked: Vec::new(),
            ended: Vec::new(),
            spare_outboxes: Vec::new(),
            input: Vec::new(),
            text: Vec::new(),
            admin_waiting: HashMap::default(),
            admin_tokens: 0,
            stages: Stages::new(),
            applied: 0,
            unsent: 0,
            reads_no_more: false,
            is_stopped: false,
        })
    }

    /// Turns until told to stop.
    ///
    /// # Errors
    /// The ring's: the shard cannot go on.
    pub fn run(mut self) -> std::io::Result<()> {
        while !self.is_stopped {
            let is_busy = self.turn()?;
            if !is_busy {
                self.sleep()?;
            }
        }
        self.flush_all();
        Ok(())
    }

    /// One turn. True when there was something to do.
    fn turn(&mut self) -> std::io::Result<bool> {
        let began_us = now_us();
        self.now = self.clock.at(began_us);
        if let Some(ahead_ms) = self.clock.look(began_us, self.id) {
            self.engine.note_time_of_day(ahead_ms);
        }
        self.stages.begin(began_us);
        self.to_flush.begin_turn(began_us);
        self.engine.note_clock(began_us);
        self.ring.submit()?;
        self.conns.bury();
        let mut is_busy = self.harvest();
        is_busy |= self.apply_log();
        is_busy |= self.read_mail();
        is_busy |= self.go_on_unparked();
        is_busy |= self.serve_deadlines();
        self.submit_appends();
        self.tell_caught_up();
        self.ask_readers();
        self.stages.before_flush();
        is_busy |= self.flush();
        if is_busy {
            self.stages.end(self.to_flush.oldest_us());
            self.engine.stats_mut().turns += 1;
        }
        Ok(is_busy)
    }

    fn harvest(&mut self) -> bool {
        let mut harvested = 0;
        let frames_before = self.engine.stats_mut().frames_in;
        while harvested < RING_BUDGET
            && let Some(completion) = self.ring.next()
        {
            harvested += 1;
            self.on_completion(completion);
        }
        if harvested > 0 {
            let has_frames = self.engine.stats_mut().frames_in > frames_before;
            self.engine.note_clock(self.stages.on_harvested(has_frames));
        }
        harvested > 0
    }

    fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted(fd) => self.on_accepted(fd),
            Completion::AcceptFailed(errno) => self.on_accept_failed(errno),
            Completion::Received { key, buffer, len, armed } => {
                let mut input = std::mem::take(&mut self.input);
                input.clear();
                input.extend_from_slice(self.ring.buffer(&buffer, len));
                self.ring.release(buffer);
                self.on_received(conn_key(key), &input, armed);
                self.input = input;
            }
            Completion::ReceiveEnded { key, reason } => self.on_receive_ended(conn_key(key), reason),
            Completion::Writable { key, .. } => self.on_writable(conn_key(key)),
            Completion::DoorbellRung => {
                if let Some(time) = self.inbox.bell.take_wake_time() {
                    self.stages.on_woken(time.as_micros() as u64);
                }
            }
            Completion::Cancelled { .. } | Completion::Connected { .. } => {}
        }
    }

    fn apply_log(&mut self) -> bool {
        let mut applied = 0;
        while applied < LOG_BUDGET
            && let Ok(event) = self.inbox.log.try_recv()
        {
            applied += 1;
            if let StoreEvent::Batch(batch) = &event {
                let answers = batch.outcomes.get(usize::from(self.id.0)).map_or(0, Vec::len);
                self.stages.on_batch(&batch.stamps, answers);
            }
            self.handle(Input::Store(event));
        }
        self.stages.on_applied();
        self.applied = applied;
        applied > 0
    }

    fn read_mail(&mut self) -> bool {
        let mut read = 0;
        while read < MAIL_BUDGET
            && let Ok(letter) = self.inbox.mail.try_recv()
        {
            read += 1;
            self.on_letter(letter);
        }
        read > 0
    }

    fn on_letter(&mut self, letter: Letter) {
        match letter {
            Letter::Handoff(handoff) => {
                self.engine.stats_mut().handoffs_in += 1;
                self.install(*handoff);
            }
            Letter::Mesh(message) => {
                self.engine.stats_mut().mesh_received += 1;
                self.handle(Input::Mesh(message));
            }
            Letter::Read(reply) => self.handle(Input::Read(reply)),
            Letter::Admin(act, answer) => {
                self.admin_tokens += 1;
                let token = Token(self.admin_tokens);
                self.admin_waiting.insert(token, answer);
                self.handle(Input::Admin(AdminRequest { token, act }));
            }
            Letter::Stats(answer) => answer(Box::new(self.stats())),
            Letter::Drain { spread_ms } => {
                self.stop_accepting();
                self.handle(Input::Drain { spread_ms });
            }
            Letter::ReadNoMore => self.reads_no_more = true,
            Letter::CloseAll => self.handle(Input::CloseAll),
            Letter::Stop => self.is_stopped = true,
        }
    }

    fn serve_deadlines(&mut self) -> bool {
        let mut is_busy = false;
        if self.engine.next_deadline().is_some_and(|at| at <= self.now) {
            self.handle(Input::Tick);
            is_busy = true;
        }
        while let Some((_, deadline)) = self.deadlines.next_due(self.now) {
            is_busy = true;
            match deadline {
                Deadline::Handshake(key) => self.on_handshake_late(key),
                Deadline::Stall(key) => self.on_stall_check(key),
                Deadline::Closing(key) => self.drop_conn(key),
                Deadline::Accept => self.accept_again(),
                Deadline::Delayed => self.send_delayed(),
            }
        }
        is_busy
    }

    /// Says that what was applied before this turn has been sent out, all but a little. After the appends that came
    /// meanwhile: the store may be waiting for just this to commit them together.
    fn tell_caught_up(&mut self) {
        if self.unsent > 0 && self.to_flush.is_nearly_done() && self.inbox.on_done(std::mem::take(&mut self.unsent)) {
            self.log.on_caught_up();
        }
        self.unsent += self.applied;
    }

    fn submit_appends(&mut self) {
        if self.appends.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.appends);
        let appends = batch.len();
        if let Err(batch) = self.log.submit(batch) {
            // The engine keeps its own count below the store's bound, so this is a store that has
            // stopped; the appends stay and are offered again.
            self.appends = batch;
            self.stages.on_not_taken();
        } else {
            self.stages.on_submitted(appends);
        }
    }

    /// Users come in herds, and each is soon read: together. What may take its time goes alone.
    fn ask_readers(&mut self) {
        let mut herd = Vec::new();
        for question in std::mem::take(&mut self.questions) {
            if !matches!(question.query, Query::User(_)) {
                self.ask(vec![question]);
                continue;
            }
            herd.push(question);
            if herd.len() == USERS_TOGETHER_MAX {
                self.ask(std::mem::take(&mut herd));
            }
        }
        self.ask(herd);
    }

    fn ask(&mut self, questions: Vec<ReadRequest>) {
        for ReadRequest { token, .. } in self.log.read(questions).err().unwrap_or_default() {
            let refusal = Refusal::new(ErrorCode::Busy, "the store has too many reads waiting").retry_after(200);
            self.handle(Input::Read(ReadReply { token, result: Err(refusal) }));
        }
    }

    /// Hands one input to the engine and does what it asks for.
    pub(super) fn handle(&mut self, input: Input<'_>) {
        self.engine.handle(input, self.now);
        self.perform();
        self.settle();
    }

    fn sleep(&mut self) -> std::io::Result<()> {
        if self.spin() {
            return Ok(());
        }
        self.inbox.bell.prepare_sleep();
        if !self.inbox.log.is_empty() || !self.inbox.mail.is_empty() || !self.unparked.is_empty() {
            self.inbox.bell.awake();
            return Ok(());
        }
        self.engine.stats_mut().sleeps += 1;
        let mut timeout = self.next_deadline().map(|at| Duration::from_millis(at.saturating_sub(self.now)));
        if !self.appends.is_empty() || !self.questions.is_empty() {
            timeout = Some(RESUBMIT_AFTER);
        }
        let result = self.ring.wait(timeout);
        self.inbox.bell.awake();
        result
    }

    /// Looks for work for a little while. True when there is some.
    fn spin(&mut self) -> bool {
        if self.spin.is_zero() {
            return false;
        }
        let began = Instant::now();
        while began.elapsed() < self.spin {
            if self.has_news() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// True when something came that the next turn would find.
    pub(super) fn has_news(&mut self) -> bool {
        self.ring.has_completions() || !self.inbox.log.is_empty() || !self.inbox.mail.is_empty()
    }

    fn next_deadline(&self) -> Option<UnixMillis> {
        let (engine, sockets) = (self.engine.next_deadline(), self.deadlines.next_deadline());
        engine.into_iter().chain(sockets).min()
    }

    fn stats(&mut self) -> crate::engine::stats::Stats {
        let mut stats = self.engine.stats().clone();
        stats.connections = self.conns.len() as u64;
        let outboxes = || self.conns.iter().filter_map(|conn| conn.outbox.as_deref());
        stats.outbox_bytes = outboxes().map(|outbox| outbox.bytes() as u64).sum();
        stats.outboxes_blocked = self.conns.iter().filter(|conn| conn.is_blocked).count() as u64;
        stats.outbox_bytes_held = self.held_bytes as u64;
        let held = || self.conns.iter().filter(|conn| conn.is_blocked).filter_map(|conn| conn.outbox.as_deref());
        debug_assert_eq!(held().map(Outbox::bytes).sum::<usize>(), self.held_bytes, "what blocked sockets hold");
        self.stages.write(&mut stats);
        stats
    }

    /// Asks the ring for more bytes of an open connection.
    pub(super) fn receive(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && !conn.is_receiving
        {
            conn.is_receiving = true;
            self.ring.receive_multi(conn.raw_fd(), ring_key(key));
        }
    }
}

fn held_bytes_max(limits: &Limits, shards: u16) -> usize {
    let share = limits.outbox_total_bytes_max / u64::from(shards.max(1));
    usize::try_from(share).unwrap_or(usize::MAX)
}
