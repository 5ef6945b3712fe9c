//! The whole system on one thread with a virtual clock: shards with the real engine, the store, the
//! mesh, the links and the clients, driven by one queue of events. One seed, one run.

use std::collections::BTreeMap;
use std::sync::Arc;

use antiphon::engine::event::{Claims, ConnKey, Input, MeshMessage, Output, Outputs, ReadReply, ReadRequest, Token};
use antiphon::engine::event::{Class, Frames, StoreEvent};
use antiphon::engine::inbox::ItemId;
use antiphon::engine::limits::Limits;
use antiphon::engine::shard::Shard;
use antiphon::gateway::outbox::{Ladder, Pushed};
use antiphon::protocol::encode;
use antiphon::protocol::error::{CloseCode, ErrorCode, Refusal};
use antiphon::protocol::ids::UserId;
use antiphon::protocol::parse::Parser;

use crate::checker::{Checker, text};
use crate::client::{Asked, Client};
use crate::link::{Link, Phase};
use crate::plan::{Dice, Plan};
use crate::store::Store;
use crate::trace;

/// When runs begin: some day of 2020, so that no time is near 0.
pub const DAWN: u64 = 1_600_000_000_000;
const CLOSING_MS: u64 = 3_000;
pub const OK: &[u8] = b"{\"type\":\"ok\"";

/// What is to happen at some time. `u32`: the incarnation of the server it belongs to.
pub enum Event {
    Wake(usize),
    Open(usize, Claims),
    Up(usize, String),
    GoOn(usize),
    Flush(usize),
    Read(usize),
    Pong(usize),
    Stall(usize),
    PeerGone(usize),
    Drop(usize),
    StoreTurn(u32),
    StoreDone(u32),
    Log(u32, usize),
    Snapshot(u32, ReadRequest),
    Answer(u32, usize, ReadReply),
    Mesh(u32, usize, MeshMessage),
    Verified(u32, usize, ConnKey, Token, Result<Claims, Refusal>),
    Tick(u32, usize),
    Second,
    CloseAll(u32),
    Restart(u32),
    Recover(u32),
}

/// One shard of the present incarnation.
pub struct ShardSim {
    pub engine: Shard,
    log: std::collections::VecDeque<StoreEvent>,
    log_at: u64,
    /// Last position of the log that was given to the engine.
    pub applied: u64,
    tick_at: u64,
    /// Generation of each slot; the links that hold them.
    pub slots: Vec<(u32, Option<usize>)>,
}

pub struct World {
    pub now: u64,
    pub count: u64,
    pub queue: BTreeMap<(u64, u64), Event>,
    pub dice: Dice,
    pub plan: Plan,
    pub limits: Arc<Limits>,
    pub ladder: Ladder,
    pub incarnation: u32,
    pub shards: Vec<ShardSim>,
    pub links: Vec<Link>,
    pub clients: Vec<Client>,
    /// The link that each client uses.
    pub uses: Vec<Option<usize>>,
    pub issued_at: Vec<u64>,
    pub store: Store,
    pub checker: Checker,
    pub tokens: Vec<Claims>,
    pub parser: Option<Parser>,
    pub outputs: Outputs,
    /// Connections that were closed while the engine could not be told.
    pub ended: Vec<(usize, ConnKey)>,
    pub heals: bool,
    pub last_words: bool,
    pub is_final: bool,
    pub admin_asked: std::collections::BTreeSet<Token>,
    /// Acknowledgements that were answered while an input is handled: by which link, of what.
    pub acked_now: Vec<(usize, Vec<ItemId>)>,
    pub steps: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(&mut dice);
        trace!("{plan:?}");
        let clients: Vec<Client> = (0..plan.clients as usize)
            .map(|number| {
                let user = number as u64 % plan.users;
                Client::new(number, UserId::parse(&format!("u{user}")).unwrap(), seed.is_multiple_of(4) && user == 0)
            })
            .collect();
        let mut world = Self {
            now: DAWN,
            count: 0,
            queue: BTreeMap::new(),
            limits: Arc::new(plan.limits.clone()),
            ladder: Ladder::of(&plan.limits),
            incarnation: 0,
            shards: Vec::new(),
            links: Vec::new(),
            uses: vec![None; clients.len()],
            issued_at: vec![DAWN / 1_000; clients.len()],
            store: Store::new(&plan),
            checker: Checker::default(),
            tokens: Vec::new(),
            parser: Some(Parser::new(16 * 1024)),
            outputs: Outputs::default(),
            ended: Vec::new(),
            heals: false,
            last_words: false,
            is_final: false,
            admin_asked: Default::default(),
            acked_now: Vec::new(),
            steps: 0,
            clients,
            dice,
            plan,
        };
        world.start_server();
        for client in 0..world.clients.len() {
            let at = world.dice.below(200);
            world.after(at, Event::Wake(client));
        }
        world.after(1_000, Event::Second);
        world
    }

    pub fn start_server(&mut self) {
        let applied = self.store.log.kept.end().position;
        self.shards = (0..self.plan.shards)
            .map(|shard| {
                let seed = self.dice.bits();
                let engine = Shard::new(self.store.log.genesis(shard, seed), self.limits.clone(), self.now);
                ShardSim { engine, log: Default::default(), log_at: 0, applied, tick_at: u64::MAX, slots: Vec::new() }
            })
            .collect();
        for shard in 0..self.shards.len() {
            self.set_tick(shard);
        }
    }

    pub fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms, event);
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.queue.insert((at.max(self.now), self.count), event);
    }

    /// Runs until `until`.
    pub fn run(&mut self, until: u64) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.steps += 1;
            assert!(self.steps < 2_000_000, "a run without end");
            self.step(event);
        }
        self.now = until;
    }

    fn step(&mut self, event: Event) {
        let alive = self.incarnation;
        match event {
            Event::Wake(client) => self.wake(client),
            Event::Open(link, claims) => self.opened(link, claims),
            Event::Up(link, frame) => self.on_frame(link, frame),
            Event::GoOn(link) => self.go_on(link),
            Event::Flush(link) => self.flush(link),
            Event::Read(link) => self.client_reads(link),
            Event::Pong(link) => self.note_heard(link),
            Event::Stall(link) => self.on_stall(link),
            Event::PeerGone(link) => self.on_peer_gone(link),
            Event::Drop(link) => self.kill(link),
            Event::StoreTurn(of) if of == alive => self.store_turn(),
            Event::StoreDone(of) if of == alive => {
                if let Some(event) = self.store.end(&mut self.checker) {
                    self.publish(event);
                }
                self.after(0, Event::StoreTurn(alive));
            }
            Event::Log(of, shard) if of == alive => {
                if let Some(event) = self.shards[shard].log.pop_front() {
                    if let StoreEvent::Batch(batch) = &event {
                        let sim = &mut self.shards[shard];
                        sim.applied = sim.applied.max(batch.last);
                    }
                    self.handle(shard, Input::Store(event));
                }
            }
            Event::Snapshot(of, request) if of == alive => self.snapshot(request),
            Event::Answer(of, shard, reply) if of == alive => self.handle(shard, Input::Read(reply)),
            Event::Mesh(of, shard, message) if of == alive => self.handle(shard, Input::Mesh(message)),
            Event::Verified(of, shard, conn, token, result) if of == alive => {
                self.handle(shard, Input::TokenVerified(conn, token, result));
            }
            Event::Tick(of, shard) if of == alive && self.shards[shard].tick_at <= self.now => {
                self.shards[shard].tick_at = u64::MAX;
                self.handle(shard, Input::Tick);
            }
            Event::Second => self.each_second(),
            Event::CloseAll(of) if of == alive => {
                (0..self.shards.len()).for_each(|shard| self.handle(shard, Input::CloseAll));
                self.after(200, Event::Restart(alive));
            }
            Event::Restart(of) if of == alive => self.crash(),
            Event::Recover(of) if of == alive => self.degrade(false),
            _ => {}
        }
    }

    // --------------------------------------------------------------------------------------------
    // The engine and what it asks for

    pub fn handle(&mut self, shard: usize, input: Input<'_>) {
        if self.shards.is_empty() {
            return;
        }
        let engine = &mut self.shards[shard].engine;
        engine.handle(input, self.now);
        let mut outputs = std::mem::take(&mut self.outputs);
        engine.drain_outputs(&mut outputs);
        for output in std::mem::take(&mut outputs.list) {
            self.perform(shard, output, &outputs);
        }
        outputs.clear();
        self.outputs = outputs;
        self.set_tick(shard);
        self.check_cancelled();
        while let Some((shard, conn)) = self.ended.pop() {
            self.handle(shard, Input::Closed(conn));
        }
    }

    pub fn set_tick(&mut self, shard: usize) {
        let sim = &mut self.shards[shard];
        if let Some(at) = sim.engine.next_deadline()
            && at < sim.tick_at
        {
            sim.tick_at = at;
            self.at(at, Event::Tick(self.incarnation, shard));
        }
    }

    pub fn link_of(&self, shard: usize, conn: ConnKey) -> Option<usize> {
        let (generation, link) = self.shards[shard].slots.get(conn.slot as usize)?;
        link.filter(|_| *generation == conn.generation)
    }

    pub fn perform(&mut self, shard: usize, output: Output, outputs: &Outputs) {
        let alive = self.incarnation;
        match output {
            Output::Send { conn, class, frames } => self.push(shard, conn, class, &frames, outputs),
            Output::Fanout { targets, class, frames } => {
                if let Class::Log { room, last, .. } | Class::CriticalLog { room, last, .. } = class {
                    let head = self.store.log.kept.rooms[&room].head;
                    assert!(last <= head, "P1: fanned out before its commit: {room:?} {last}");
                }
                for conn in &outputs.targets[targets.start as usize..targets.end as usize] {
                    self.push(shard, *conn, class, &frames, outputs);
                }
            }
            Output::Ping(conn) => {
                let ladder = self.ladder;
                self.with_link(shard, conn, |link| {
                    link.outbox.push_critical(&[0x89, 0], &ladder);
                });
            }
            Output::Close { conn, code, .. } => self.close(shard, conn, code),
            Output::Park { conn, again } => {
                self.with_link(shard, conn, |link| {
                    assert!(!link.is_parked, "a connection is parked twice");
                    link.is_parked = true;
                    if again {
                        link.again = Some(String::new());
                    }
                });
            }
            Output::Unpark(conn) => {
                if let Some(link) = self.link_of(shard, conn) {
                    let it = &mut self.links[link];
                    assert!(it.is_parked || it.phase != Phase::Open, "a connection is unparked that was not parked");
                    it.is_parked = false;
                    let ms = self.dice.below(2);
                    self.after(ms, Event::GoOn(link));
                }
            }
            Output::VerifyToken { conn, token, jwt } => {
                let refused = || Refusal::new(ErrorCode::Unauthorized, "no such token");
                let claims = jwt.parse().ok().and_then(|at: usize| self.tokens.get(at).cloned()).ok_or_else(refused);
                let ms = self.dice.below(3);
                self.after(ms, Event::Verified(alive, shard, conn, token, claims));
            }
            Output::Append(append) => {
                self.store.push(append);
                self.after(0, Event::StoreTurn(alive));
            }
            Output::Read(request) => {
                let ms = self.dice.below(self.plan.read_ms + 1);
                self.after(ms, Event::Snapshot(alive, request));
            }
            Output::Mesh(message) => {
                for other in (0..self.shards.len()).filter(|other| *other != shard) {
                    if !self.dice.chance(self.plan.mesh_lost) {
                        let ms = self.dice.below(20);
                        self.after(ms, Event::Mesh(alive, other, message.clone()));
                    }
                }
            }
            Output::MeshTo(to, message) => {
                if !self.dice.chance(self.plan.mesh_lost) {
                    let ms = self.dice.below(20);
                    self.after(ms, Event::Mesh(alive, usize::from(to.0), message));
                }
            }
            Output::AdminReply(token, _) => assert!(self.admin_asked.remove(&token), "an admin answer too many"),
            Output::StatsReply { conn, id, fields } => {
                let mut frame = Vec::new();
                let fields = &outputs.bytes[fields.start as usize..fields.end as usize];
                encode::frame_text(&mut frame, |out| encode::ok(out, &id, |out| out.extend_from_slice(fields)));
                self.push(shard, conn, Class::Critical, &Frames::Owned(frame.into()), outputs);
            }
            Output::Note(_) => {}
        }
    }

    fn with_link(&mut self, shard: usize, conn: ConnKey, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.link_of(shard, conn) {
            change(&mut self.links[link]);
            self.dirty(link);
        }
    }

    pub fn dirty(&mut self, link: usize) {
        if !std::mem::replace(&mut self.links[link].is_dirty, true) {
            let ms = self.dice.below(2);
            self.after(ms, Event::Flush(link));
        }
    }

    pub fn push(&mut self, shard: usize, conn: ConnKey, class: Class, frames: &Frames, outputs: &Outputs) {
        let Some(link) = self.link_of(shard, conn) else { return };
        let it = &mut self.links[link];
        if it.phase != Phase::Open {
            return;
        }
        let frame = frames.as_slice(&outputs.bytes);
        self.note_made(link, frame);
        let it = &mut self.links[link];
        let payload = &frame[2..];
        if payload.windows(OK.len()).take(9).any(|start| start == OK) {
            it.oks.push_back(it.fed_at);
        }
        let mut pushed = it.outbox.push(class, frames, &outputs.bytes, &self.ladder);
        if let (Pushed::BehindGap(last), Some((room, head))) = (pushed, class.gap_ends_at()) {
            // As the driver does it: the gap first, then the entry or reply behind it.
            let mut gap = Vec::new();
            assert!(self.shards[shard].engine.write_gap(&mut gap, room, last, head), "a frame of no room");
            it.outbox.close_gap(room, gap.into());
            pushed = it.outbox.push(class, frames, &outputs.bytes, &self.ladder);
        }
        let client = it.client;
        trace!("  -> {client} {class:?} {pushed:?} {}", text(frames.as_slice(&outputs.bytes)));
        self.dirty(link);
        if pushed == Pushed::Overflow {
            self.close_slow(link);
            self.ended.push((shard, conn));
        }
    }

    /// A frame is made for a link: what it says of inboxes is held against the truth.
    fn note_made(&mut self, link: usize, frame: &[u8]) {
        let json = &frame[if frame[1] == 126 { 4 } else { 2 }..];
        let starts = |start: &[u8]| json.starts_with(start);
        let is_hello = starts(b"{\"type\":\"hello\"");
        let is_acked = starts(OK) && json.windows(9).any(|part| part == b",\"acked\":");
        if !is_hello && !is_acked && !starts(b"{\"type\":\"inbox:") {
            return;
        }
        let client = self.links[link].client;
        let user = self.clients[client].user.clone();
        // Items may be followed by other frames of the same kind, never within one push.
        let value: serde_json::Value = serde_json::from_slice(json).expect("one frame");
        match value["type"].as_str() {
            Some("hello") => {
                self.links[link].is_greeted = true;
                if self.is_final {
                    let (due, may) = self.checker.inboxes.waiting(&user, &self.store.log.kept, self.now);
                    let told = value["inbox"].as_u64().unwrap() as usize;
                    assert!((due.len()..=may.len()).contains(&told), "{told} items wait for {user}: {due:?} {may:?}");
                }
            }
            Some("inbox:item") => self.checker.inboxes.check_sent(&user, &value),
            Some("inbox:acked") => {
                let items = value["items"].as_array().unwrap().iter().filter_map(serde_json::Value::as_u64);
                self.links[link].cancelled.extend(items);
            }
            _ => {
                let asked = value["id"].as_u64().and_then(|id| self.clients[client].asked.get(&id));
                // A client that has left is answered all the same; what it asked for is forgotten.
                if let (Some(Asked::AckItems { items }), true) = (asked, self.uses[client] == Some(link)) {
                    self.checker.inboxes.on_confirmed(&user, items);
                    if value["acked"] != 0 {
                        self.acked_now.push((link, items.clone()));
                    }
                }
            }
        }
    }

    /// Whoever acknowledges on one device does so for the others: they are told in the same breath.
    fn check_cancelled(&mut self) {
        for (by, items) in std::mem::take(&mut self.acked_now) {
            let user = &self.clients[self.links[by].client].user;
            for (number, link) in self.links.iter().enumerate() {
                let is_other = number != by && link.phase == Phase::Open && link.is_greeted;
                if is_other
                    && self.clients[link.client].user == *user
                    && self.link_of(link.shard, link.key) == Some(number)
                {
                    assert!(items.iter().all(|item| link.cancelled.contains(item)), "a device is not told of an ack");
                }
            }
        }
        for link in self.uses.iter().flatten() {
            self.links[*link].cancelled.clear();
        }
    }

    pub fn close_slow(&mut self, link: usize) {
        self.links[link].close(CloseCode::SlowConsumer.number(), true);
        self.dirty(link);
        self.after(CLOSING_MS, Event::Drop(link));
    }

    pub fn close(&mut self, shard: usize, conn: ConnKey, code: CloseCode) {
        let Some(link) = self.link_of(shard, conn) else { return };
        trace!("  -> {} close {code}", self.links[link].client);
        self.links[link].close(code.number(), false);
        self.dirty(link);
        self.after(CLOSING_MS, Event::Drop(link));
    }

    // --------------------------------------------------------------------------------------------
    // Store

    fn store_turn(&mut self) {
        let (told, is_committing) = self.store.begin(&self.plan, &mut self.dice, self.now);
        told.into_iter().for_each(|event| self.publish(event));
        if is_committing {
            let ms = self.dice.below(self.plan.commit_ms + 1);
            self.after(ms, Event::StoreDone(self.incarnation));
        }
    }

    pub fn publish(&mut self, event: StoreEvent) {
        trace!("store: {}", describe(&event));
        for shard in 0..self.shards.len() {
            let at = (self.now + self.dice.below(self.plan.log_ms + 1)).max(self.shards[shard].log_at);
            self.shards[shard].log_at = at;
            self.shards[shard].log.push_back(event.clone());
            self.at(at, Event::Log(self.incarnation, shard));
        }
    }

    pub fn snapshot(&mut self, request: ReadRequest) {
        let result = if self.dice.chance(self.plan.read_fails) {
            Err(Refusal::new(ErrorCode::Degraded, "the store cannot be read").retry_after(500))
        } else {
            Ok(self.store.log.answer(&request.query))
        };
        trace!("reader: {:?} {}", request, result.is_ok());
        let reply = ReadReply { token: request.token, result };
        let ms = self.dice.below(self.plan.read_ms + 1);
        self.after(ms, Event::Answer(self.incarnation, usize::from(request.shard.0), reply));
    }

    /// The process dies; a new one comes up after a while.
    pub fn crash(&mut self) {
        trace!("crash");
        self.incarnation += 1;
        self.admin_asked.clear();
        for link in 0..self.links.len() {
            self.kill(link);
        }
        self.shards.clear();
        self.store.crash(&mut self.checker, &mut self.dice, self.now);
        self.start_server();
    }
}

fn describe(event: &StoreEvent) -> String {
    match event {
        StoreEvent::Degraded(is_on) => format!("degraded {is_on}"),
        StoreEvent::Batch(batch) => {
            let runs: Vec<_> = batch.runs.iter().map(|run| (run.name.as_str(), run.last_seq())).collect();
            format!("{}..={} {runs:?} reads {:?} outcomes {:?}", batch.first, batch.last, batch.reads, batch.outcomes)
        }
    }
}
