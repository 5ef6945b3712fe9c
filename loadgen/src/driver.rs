//! One thread of the tool: its clients' sockets, met in turns over one ring, without a task for any
//! of them. It carries out its part of the [`Plan`], in step with the other threads (see
//! [`crate::conductor`]); what clients say and check is in [`crate::client`].
//!
//! One turn: sleep in the ring until something comes or is due; take all completions; go on to the
//! next phase when told; do what the plan has for now; send what is due; one send per dirty client.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use antiphon::engine::rng::Rng;
use antiphon::shard::socket;

use self::drain::{Drain, drain};
use crate::body::Filler;
use crate::client::{Client, News, Shared, Stage};
use crate::conductor::{Conductor, Phase};
use crate::dialect::Dialect;
use crate::links::{Came, Links, Received};
use crate::measure::{Meters, Schedule};
use crate::plan::{Plan, Setup, ns};
use crate::roll::Roll;
use crate::stage::ended_early;
use crate::tally::{RoomEnd, Tally};
use crate::traffic::Sending;
use crate::verify::Ledger;
use crate::world::World;

/// What a thread knows at the end.
pub struct ThreadEnd {
    /// Counts.
    pub tally: Tally,
    /// Latencies.
    pub meters: Meters,
    /// Where its rooms stand.
    pub rooms: Vec<RoomEnd>,
    /// When its part of the connecting was done, ns.
    pub connected_ns: u64,
}

/// How far the plan's one event (an absence or a stall) has come.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Act {
    Before,
    During,
    After,
}

/// One thread's state.
pub struct Driver {
    world: Arc<World>,
    plan: Arc<Plan>,
    conductor: Arc<Conductor>,
    thread: u32,
    links: Links,
    clients: Vec<Client>,
    /// Rooms with members here, and each one's ledger.
    rooms: Vec<u32>,
    ledgers: Vec<Ledger>,
    roll: Roll,
    /// What [`ThreadEnd`] tells of the rooms.
    stock: Vec<RoomEnd>,
    tally: Tally,
    meters: Meters,
    rng: Rng,
    filler: Filler,
    news: Vec<News>,
    schedule: Schedule,
    sending: Option<Sending>,
    /// Slots that are to enter their room, and how many are at it.
    entrants: VecDeque<u32>,
    entering: u32,
    creating: u32,
    phase: Phase,
    phase_since_ns: u64,
    has_arrived: bool,
    act: Act,
    back_ns: u64,
    connected_ns: u64,
    /// When anything came but refusals for the time being.
    last_news_ns: u64,
    now_ns: u64,
}

/// Negated, as closes are counted.
const ECONNRESET: i64 = -104;

/// Entries that all ledgers of a thread remember together, and each at least and at most.
const LEDGER_ENTRIES: usize = 1 << 18;
const LEDGER_ENTRIES_MIN: usize = 64;
const LEDGER_ENTRIES_MAX: usize = 8_192;

impl Driver {
    /// Makes a thread's clients and its ring. Nothing is connected.
    ///
    /// # Errors
    /// The ring's.
    pub fn new(world: Arc<World>, plan: Arc<Plan>, conductor: Arc<Conductor>, thread: u32) -> io::Result<Self> {
        let mut rooms: Vec<u32> = Vec::new();
        let mut clients = Vec::new();
        for user in (0..world.clients).filter(|user| world.thread_of(*user) == thread) {
            let room = world.room_of(user);
            if rooms.last() != Some(&room) {
                rooms.push(room);
            }
            let mut client = Client::new(&world, user, rooms.len() as u32 - 1);
            client.is_slow = plan.is_slow(user, world.rooms_of);
            clients.push(client);
        }
        let each = (LEDGER_ENTRIES / rooms.len().max(1)).clamp(LEDGER_ENTRIES_MIN, LEDGER_ENTRIES_MAX);
        let mut links = Links::new(clients.len(), plan.connecting)?;
        (0..clients.len() as u32).for_each(|slot| links.enqueue(slot));
        Ok(Self {
            ledgers: rooms.iter().map(|_| Ledger::new(each)).collect(),
            roll: Roll::new(thread),
            meters: Meters::new(plan.windows()),
            rng: Rng::new(world.seed ^ u64::from(thread) << 32),
            filler: Filler::new(plan.body_bytes),
            phase_since_ns: world.now_ns(),
            now_ns: world.now_ns(),
            tally: Tally::default(),
            news: Vec::new(),
            stock: Vec::new(),
            schedule: Schedule::default(),
            sending: None,
            entrants: VecDeque::new(),
            entering: 0,
            creating: 0,
            phase: Phase::Ready,
            has_arrived: false,
            act: Act::Before,
            back_ns: 0,
            connected_ns: 0,
            last_news_ns: 0,
            world,
            plan,
            conductor,
            thread,
            links,
            clients,
            rooms,
        })
    }

    /// Runs to the end of the last phase, or until the run is given up.
    ///
    /// # Errors
    /// The ring's: nothing can go on without it.
    pub fn run(mut self) -> io::Result<ThreadEnd> {
        while !(self.phase == Phase::Close && self.has_arrived || self.conductor.has_given_up()) {
            let is_polling = self.world.busy_poll && self.phase == Phase::Traffic;
            // A wait that does not sleep is work: the kernel's part of receiving is done in it.
            let (begun_ns, sent) = (self.world.now_ns(), self.tally.sent);
            self.links.wait(if is_polling { Duration::ZERO } else { self.pause() })?;
            self.now_ns = self.world.now_ns();
            let mut is_busy = false;
            while let Some((slot, came)) = self.links.next() {
                is_busy = true;
                self.on(slot, came);
            }
            self.follow_phase();
            self.play();
            self.connect_more();
            self.enter_more();
            self.send_due();
            self.flush();
            if is_polling && (is_busy || self.tally.sent > sent) && self.schedule.is_measuring(begun_ns) {
                self.tally.busy_ns += self.world.now_ns() - begun_ns;
            }
            self.publish();
        }
        Ok(ThreadEnd { tally: self.tally, meters: self.meters, rooms: self.stock, connected_ns: self.connected_ns })
    }

    /// How long to sleep if nothing comes.
    fn pause(&self) -> Duration {
        const LONGEST: Duration = Duration::from_millis(5);
        // Connecting begins when it is told to, not milliseconds later.
        const AT_THE_START: Duration = Duration::from_micros(100);
        if self.phase == Phase::Ready {
            return AT_THE_START;
        }
        let due = self.sending.as_ref().and_then(Sending::next_ns).filter(|_| self.phase <= Phase::Drain);
        due.map_or(LONGEST, |due| Duration::from_nanos(due.saturating_sub(self.world.now_ns())).min(LONGEST))
    }

    // --------------------------------------------------------------------------------------------
    // What comes

    fn on(&mut self, slot: u32, came: Came) {
        match came {
            Came::Bytes(received) => self.on_received(slot, received),
            Came::Connected(Ok(())) => {
                self.clients[slot as usize].start(&self.world);
                self.links.arm(slot);
                self.mark_dirty(slot);
            }
            Came::Connected(Err(errno)) => self.on_connect_failure(slot, &io::Error::from_raw_os_error(errno)),
            Came::Ended(code) => self.on_closed(slot, code),
        }
    }

    fn on_received(&mut self, slot: u32, received: Received) {
        self.now_ns = self.world.now_ns();
        let (frames, put_off) = (self.tally.frames, self.tally.put_off);
        let mut shared = Shared {
            world: &self.world,
            schedule: &self.schedule,
            ledgers: &mut self.ledgers,
            roll: &mut self.roll,
            tally: &mut self.tally,
            meters: &mut self.meters,
            rng: &mut self.rng,
            filler: &self.filler,
            news: &mut self.news,
            now_ns: self.now_ns,
        };
        self.clients[slot as usize].on_bytes(self.links.bytes(&received), &mut shared);
        if self.tally.frames - frames > self.tally.put_off - put_off {
            self.last_news_ns = self.now_ns;
        }
        self.links.release(received);
        self.links.arm(slot);
        if !self.news.is_empty() {
            let mut news = std::mem::take(&mut self.news);
            news.drain(..).for_each(|news| self.on_news(slot, news));
            self.news = news;
        }
        self.mark_dirty(slot);
    }

    fn on_news(&mut self, slot: u32, news: News) {
        let at = slot as usize;
        let room = self.clients[at].local_room;
        match news {
            News::Greeted => self.on_greeted(slot),
            News::Created => self.creating -= 1,
            News::Live => {
                self.entering -= 1;
                let client = &self.clients[at];
                if self.act == Act::After && client.started_ns >= self.back_ns {
                    self.meters.back.saturating_record(self.now_ns.saturating_sub(self.back_ns));
                } else if self.plan.setup == Setup::JoinEach {
                    self.meters.connect.saturating_record(self.now_ns - client.started_ns);
                }
            }
            News::Acked => self.on_done(room),
            News::TryAgain(message, after_ns) => {
                if let Some(sending) = &mut self.sending {
                    sending.put_off(slot, message, self.now_ns, after_ns);
                }
            }
            News::Refused => self.tally.refused += 1,
            News::Closed(code) => self.on_closed(slot, code),
        }
    }

    fn on_greeted(&mut self, slot: u32) {
        self.links.made(slot);
        if self.clients[slot as usize].has_cursor() || self.plan.setup == Setup::JoinEach {
            self.entrants.push_back(slot);
        } else {
            let started_ns = self.clients[slot as usize].started_ns;
            self.meters.connect.saturating_record(self.now_ns - started_ns);
        }
    }

    fn on_done(&mut self, local_room: u32) {
        if let Some(sending) = &mut self.sending
            && self.now_ns < self.schedule.to_ns
        {
            sending.on_done(local_room);
        }
    }

    /// The server, or the network, ended a connection.
    fn on_closed(&mut self, slot: u32, code: i64) {
        if !self.links.has_socket(slot) {
            return;
        }
        let stage = self.clients[slot as usize].stage;
        if self.phase < Phase::Close {
            *self.tally.closes.entry(code).or_default() += 1;
            // With its buffers full, a slow reader may get no close frame: only the end, or a reset.
            let is_expected = self.clients[slot as usize].is_slow && matches!(code, 4102 | 0 | ECONNRESET);
            self.tally.closes_expected += u64::from(is_expected);
            if self.phase < Phase::Traffic {
                let user = self.world.user_name(self.clients[slot as usize].user);
                let said = self.tally.errors.keys().map(u64::to_string).collect::<Vec<_>>().join(", ");
                let said = if said.is_empty() { String::new() } else { format!("; error codes so far: {said}") };
                self.conductor.give_up(ended_early(&user, &format!("{stage:?}"), code) + &said);
            }
        }
        self.drop_link(slot);
        self.entering -= u32::from(stage == Stage::Subscribing);
        // A slow reader that was cut comes back, as a client should.
        if self.clients[slot as usize].is_slow && self.act == Act::After && self.phase <= Phase::Drain {
            self.links.enqueue(slot);
        }
    }

    fn on_connect_failure(&mut self, slot: u32, error: &io::Error) {
        self.tally.connect_failures += 1;
        self.drop_link(slot);
        // Once there are figures, they are worth more than an early end.
        if self.phase < Phase::Traffic {
            self.conductor.give_up(format!("cannot connect to {}: {error}", self.world.target));
        }
    }

    // --------------------------------------------------------------------------------------------
    // Phases

    fn follow_phase(&mut self) {
        let wanted = self.conductor.phase();
        if wanted > self.phase {
            self.phase = wanted;
            self.phase_since_ns = self.now_ns;
            self.has_arrived = false;
            match wanted {
                Phase::Ready | Phase::Connect => {}
                Phase::Create => self.create_rooms(),
                Phase::Subscribe => self.entrants.extend(0..self.clients.len() as u32),
                Phase::Traffic => self.begin_traffic(),
                Phase::Drain => self.end_traffic(),
                Phase::Close => {
                    self.take_stock();
                    for slot in 0..self.clients.len() as u32 {
                        self.clients[slot as usize].close(&mut self.rng);
                        self.mark_dirty(slot);
                    }
                }
            }
        }
        if !self.has_arrived && self.is_phase_done() {
            self.has_arrived = true;
            if self.phase == Phase::Connect {
                self.connected_ns = self.now_ns;
            }
            self.conductor.arrive(self.phase);
        }
    }

    fn is_phase_done(&mut self) -> bool {
        let since_ns = self.now_ns - self.phase_since_ns;
        match self.phase {
            Phase::Ready => true,
            Phase::Connect => self.links.pending() == 0 && self.entrants.is_empty() && self.entering == 0,
            Phase::Create => self.creating == 0,
            Phase::Subscribe => self.entrants.is_empty() && self.entering == 0,
            Phase::Traffic => self.now_ns >= self.schedule.to_ns,
            Phase::Drain => self.is_drained(since_ns),
            Phase::Close => self.links.is_empty() || since_ns > ns(1.0),
        }
    }

    /// Everything asked is answered and everything known is delivered, or nothing comes any more, or not in time.
    fn is_drained(&mut self, since_ns: u64) -> bool {
        let quiet_ns = self.now_ns - self.last_news_ns.max(self.phase_since_ns);
        let is_put_off = self.sending.as_ref().is_some_and(|sending| sending.put_off_count() > 0);
        let is_behind = |client: &Client| {
            let high = self.ledgers[client.local_room as usize].high();
            let is_live = client.stage == Stage::Live;
            is_live && client.next_seq() <= high || client.unanswered() > 0 || client.is_slow && !is_live
        };
        let drain = drain(since_ns, quiet_ns, is_put_off, || self.clients.iter().any(is_behind));
        self.tally.is_overdue = drain == Drain::Overdue;
        drain != Drain::GoesOn
    }

    fn create_rooms(&mut self) {
        // Elsewhere a room is there as soon as somebody is in it.
        if self.world.dialect != Dialect::Antiphon {
            return;
        }
        for slot in 0..self.clients.len() {
            if self.clients[slot].user.is_multiple_of(self.world.rooms_of) {
                self.clients[slot].create_room(&self.world, &mut self.rng);
                self.creating += 1;
                self.mark_dirty(slot as u32);
            }
        }
    }

    fn begin_traffic(&mut self) {
        self.schedule = self.conductor.schedule().cloned().unwrap_or_default();
        let mut senders: Vec<Vec<u32>> = self.rooms.iter().map(|_| Vec::new()).collect();
        for (slot, client) in self.clients.iter().enumerate() {
            if !client.is_slow && self.plan.is_sender(client.user, self.world.rooms_of) {
                senders[client.local_room as usize].push(slot as u32);
            }
        }
        let is_split = self.world.rooms() < self.world.threads;
        let (thread, threads) = (self.thread, self.world.threads);
        // A room that several threads share is kept in flight by all of them together, or by the one
        // that has its only sender.
        let in_flight_here = |_: u32, all: u32| {
            if is_split && !self.plan.first_member_sends {
                all / threads + u32::from(thread < all % threads)
            } else {
                all
            }
        };
        let local: usize = senders.iter().map(Vec::len).sum();
        let all = if self.plan.first_member_sends { self.world.rooms() } else { self.world.clients };
        let share = if self.plan.stall.is_some() { 1.0 / f64::from(threads) } else { local as f64 / f64::from(all) };
        let rng = Rng::new(self.rng.next_u64());
        let (traffic, schedule) = (self.plan.traffic, &self.schedule);
        let sending = Sending::new(traffic, thread, senders, share, (self.now_ns, schedule), in_flight_here, rng);
        self.sending = Some(sending);
    }

    /// Nothing new is sent, even when the time is not over.
    fn end_traffic(&mut self) {
        // What a late turn still owes of its time goes out first.
        self.send_due();
        if let Some(sending) = &mut self.sending {
            sending.stop();
        }
        self.schedule.cut(self.now_ns);
    }

    // --------------------------------------------------------------------------------------------
    // What is due

    fn enter_more(&mut self) {
        while self.entering < self.links.making_max.saturating_mul(4) {
            let Some(slot) = self.entrants.pop_front() else { return };
            let client = &mut self.clients[slot as usize];
            if client.stage == Stage::Ready {
                // Whoever has been in the room subscribes again, from the cursor.
                let joins = self.plan.setup == Setup::JoinEach && !client.has_cursor();
                client.enter_room(&mut self.rng, joins);
                self.entering += 1;
                self.mark_dirty(slot);
            }
        }
    }

    fn send_due(&mut self) {
        if !matches!(self.phase, Phase::Traffic | Phase::Drain) {
            return;
        }
        let Some(mut sending) = self.sending.take() else { return };
        let now_ns = self.world.now_ns();
        while let Some((slot, message)) = sending.again(now_ns) {
            // Whose connection is gone cannot: the roll has it as put off, to the end.
            if self.clients[slot as usize].stage == Stage::Live {
                self.roll.on_again(message.client);
                self.send(slot, message);
            }
        }
        // What was due at a rate before the end is sent, however late this turn comes.
        if now_ns < self.schedule.to_ns || sending.is_paced() {
            let due_ns = now_ns.min(self.schedule.to_ns.saturating_sub(1));
            while let Some((slot, message)) = sending.next(due_ns, |s| self.clients[s as usize].stage == Stage::Live) {
                let client = &self.clients[slot as usize];
                self.roll.add(message, client.local_room, client.user);
                if sending.is_paced() && self.schedule.is_measuring(message.sent_ns) {
                    self.meters.late.saturating_record(now_ns - message.sent_ns);
                }
                self.send(slot, message);
            }
        }
        self.sending = Some(sending);
    }

    fn send(&mut self, slot: u32, message: crate::client::Message) {
        self.tally.sent += 1;
        self.clients[slot as usize].send(message, &self.filler, &mut self.rng);
        self.mark_dirty(slot);
    }

    // --------------------------------------------------------------------------------------------
    // Sockets

    fn connect_more(&mut self) {
        while self.phase > Phase::Ready
            && let Some(slot) = self.links.in_line()
        {
            if let Err(error) = self.connect(slot) {
                return self.on_connect_failure(slot, &error);
            }
        }
    }

    fn connect(&mut self, slot: u32) -> io::Result<()> {
        let client = &mut self.clients[slot as usize];
        let socket = socket::client(self.world.source_of(client.user))?;
        if let Some(stall) = self.plan.stall.filter(|_| client.is_slow) {
            socket::set_receive_buffer(&socket, stall.receive_buffer)?;
        }
        client.started_ns = self.now_ns;
        self.links.connect(slot, socket, self.world.target);
        Ok(())
    }

    fn mark_dirty(&mut self, slot: u32) {
        if !self.clients[slot as usize].out.is_empty() {
            self.links.mark_dirty(slot);
        }
    }

    fn flush(&mut self) {
        let dirty = self.links.take_dirty();
        for slot in &dirty {
            if let Err(code) = self.links.send(*slot, &mut self.clients[*slot as usize].out) {
                self.on_closed(*slot, code);
            }
        }
        self.links.sent_all(dirty);
    }

    /// Ends a connection from our side, at once.
    fn drop_link(&mut self, slot: u32) {
        self.links.cut(slot);
        // Nobody will answer these: their room owes others instead.
        let room = self.clients[slot as usize].local_room;
        let cut: Vec<u64> = self.clients[slot as usize].end().map(|message| message.client).collect();
        for client in cut {
            self.roll.on_cut(client);
            self.on_done(room);
        }
    }

    // --------------------------------------------------------------------------------------------
    // What is told

    fn publish(&self) {
        let gauges = &self.conductor.gauges[self.thread as usize];
        let ready = match self.phase {
            Phase::Ready | Phase::Connect => self.meters.connect.len() as u32,
            _ => self.clients.len() as u32 - self.links.making() - self.entering,
        };
        gauges.ready.store(ready, Ordering::Relaxed);
        gauges.sent.store(self.tally.sent, Ordering::Relaxed);
        gauges.acked.store(self.tally.acked, Ordering::Relaxed);
        gauges.delivered.store(self.tally.delivered, Ordering::Relaxed);
        gauges.broken.store(self.tally.broken(), Ordering::Relaxed);
    }

    /// The state of all rooms, while the connections still stand.
    fn take_stock(&mut self) {
        let ends = self.rooms.iter().zip(&self.ledgers).map(|(room, ledger)| RoomEnd {
            room: *room,
            high: ledger.high(),
            digest: ledger.digest(),
            next: BTreeMap::new(),
        });
        self.stock = ends.collect();
        let open = self.roll.open();
        let asked: u64 = self.clients.iter().map(|client| client.unanswered() as u64).sum();
        let missing: u64 = self.clients.iter().map(Client::missing).sum();
        self.tally.unanswered += open.cut;
        self.tally.never_accepted += self.sending.as_ref().map_or(0, Sending::unsent);
        if self.tally.is_overdue {
            self.tally.overdue += open.acked_only + open.put_off + asked + missing;
        } else {
            self.tally.acked_only += open.acked_only;
            self.tally.never_accepted += open.put_off;
            self.tally.unanswered += asked;
            self.tally.lost += missing;
        }
        for client in &self.clients {
            if client.stage == Stage::Live {
                *self.stock[client.local_room as usize].next.entry(client.next_seq()).or_default() += 1;
            } else {
                self.tally.absent += 1;
            }
        }
    }
}

pub mod drain;
mod play;
