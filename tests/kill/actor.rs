//! A client that never gives up: sends at a rate, keeps what it saw and what was acknowledged, and
//! comes back with its cursors, sending again whatever was not acknowledged.
//!
//! It judges on the spot what only it can see: a hole that nobody told it of, another epoch, a cursor
//! ahead of the log (something it was shown is gone). The rest is the checker's.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ROOMS;
use super::support::client::text_frame;
use super::support::{Client, Connect, Heard, PATIENCE, Server};

/// Messages that may be under way, each writer.
const OPEN_MAX: usize = 256;

/// What the actors share.
pub struct World {
    address: Mutex<SocketAddr>,
    joined: AtomicUsize,
    settled: AtomicUsize,
    actors: AtomicUsize,
    acked: AtomicU64,
    /// An actor has seen a promise broken.
    has_failed: AtomicBool,
    is_settling: AtomicBool,
    /// Last seq of each room, once nothing is sent any more.
    heads: Mutex<Option<[u64; ROOMS.len()]>>,
}

impl World {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address: Mutex::new(address),
            joined: AtomicUsize::new(0),
            settled: AtomicUsize::new(0),
            actors: AtomicUsize::new(0),
            acked: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
            is_settling: AtomicBool::new(false),
            heads: Mutex::new(None),
        }
    }

    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// The server came back elsewhere.
    pub fn move_to(&self, address: SocketAddr) {
        *self.address.lock().unwrap() = address;
    }

    pub fn wait_until_all_joined(&self, actors: usize) {
        self.actors.store(actors, Ordering::Relaxed);
        wait("everybody to join", || self.joined.load(Ordering::Relaxed) == actors);
    }

    /// Lets the actors finish what they have under way, and see everything.
    pub fn settle(&self, server: &Server) {
        self.is_settling.store(true, Ordering::Relaxed);
        let is_settled = || self.settled.load(Ordering::Relaxed) == self.actors.load(Ordering::Relaxed);
        // Who has failed will say so when it is joined.
        wait("the last acks", || is_settled() || self.has_failed.load(Ordering::Relaxed));
        let mut observer = server.client("observer");
        let rooms: Vec<Value> = ROOMS.iter().map(|room| json!({"room": room, "seq": 0})).collect();
        let checked = observer.ok(json!({"type": "sync:check", "rooms": rooms}));
        let heads = std::array::from_fn(|room| checked["rooms"][room]["seq"].as_u64().unwrap());
        *self.heads.lock().unwrap() = Some(heads);
    }
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What identifies an event to the letter.
pub fn print_of(event: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.to_string().hash(&mut hasher);
    hasher.finish()
}

/// The `client_id` of an actor's message.
pub fn client_id(actor: usize, message: u64) -> String {
    format!("{actor}-{message}")
}

/// Where an actor's message goes.
pub fn room_of(actor: usize, message: u64) -> usize {
    (message as usize + actor) % ROOMS.len()
}

/// One room, as one actor has it.
#[derive(Default)]
pub struct Seen {
    /// Everything up to and with this seq was before its time.
    pub from: u64,
    /// Prints of what followed, without a hole.
    pub prints: Vec<u64>,
    /// Being loaded up to this seq; what comes live meanwhile waits.
    loading: Option<u64>,
    early: BTreeMap<u64, u64>,
}

impl Seen {
    pub fn last(&self) -> u64 {
        self.from + self.prints.len() as u64
    }
}

/// A client over all its connections.
pub struct Actor {
    pub number: usize,
    interval: Option<Duration>,
    due: Instant,
    epoch: Option<String>,
    pub rooms: [Seen; ROOMS.len()],
    has_joined: bool,
    has_settled: bool,
    /// Messages sent so far; the next one's number.
    pub sent: u64,
    open: VecDeque<u64>,
    /// Message number and seq.
    pub acked: Vec<(u64, u64)>,
    pub duplicates: u64,
    /// Resumes that were whole, and those that were told to load history.
    pub resumed: u64,
    pub told: u64,
}

/// The connection is over.
struct Gone;

/// Tells the others when its actor panics.
struct Witness<'a>(&'a World);

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.has_failed.store(true, Ordering::Relaxed);
        }
    }
}

impl Actor {
    pub fn new(number: usize, rate_per_s: f64) -> Self {
        Self {
            number,
            interval: (rate_per_s > 0.0).then(|| Duration::from_secs_f64(1.0 / rate_per_s)),
            due: Instant::now(),
            epoch: None,
            rooms: Default::default(),
            has_joined: false,
            has_settled: false,
            sent: 0,
            open: VecDeque::new(),
            acked: Vec::new(),
            duplicates: 0,
            resumed: 0,
            told: 0,
        }
    }

    pub fn user(number: usize) -> String {
        format!("actor-{number}")
    }

    pub fn run(mut self, world: &World) -> Self {
        let _witness = Witness(world);
        let connect = Connect::new(&Self::user(self.number));
        for life in 0u64.. {
            // Not all at once: who comes late has missed more, now and then more than is replayed.
            std::thread::sleep(Duration::from_millis(life.min(1) * ((self.number as u64 * 97 + life * 53) % 400)));
            let address = *world.address.lock().unwrap();
            let Some(mut client) = Client::try_open(address, &connect) else {
                continue;
            };
            if self.live(&mut client, world).is_ok() {
                break;
            }
        }
        self
    }

    /// One connection's life. `Ok`: everything is done.
    fn live(&mut self, client: &mut Client, world: &World) -> Result<(), Gone> {
        let epoch = client.hello["epoch"].as_str().unwrap().to_owned();
        assert_eq!(*self.epoch.get_or_insert_with(|| epoch.clone()), epoch, "the epoch changed");
        for room in 0..ROOMS.len() {
            self.come_back(client, world, room)?;
        }
        if !std::mem::replace(&mut self.has_joined, true) {
            world.joined.fetch_add(1, Ordering::Relaxed);
            wait("everybody to join", || world.actors.load(Ordering::Relaxed) == world.joined.load(Ordering::Relaxed));
        }
        self.send_again(client)?;
        self.due = Instant::now();
        loop {
            if !world.is_settling.load(Ordering::Relaxed) {
                self.send_due(client)?;
            } else if self.open.is_empty() && !std::mem::replace(&mut self.has_settled, true) {
                world.settled.fetch_add(1, Ordering::Relaxed);
            }
            if world.has_failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            if let Some(heads) = *world.heads.lock().unwrap()
                && self.rooms.iter().zip(heads).all(|(seen, head)| seen.last() >= head)
            {
                return Ok(());
            }
            self.listen(client, world, Duration::from_millis(2))?;
        }
    }

    fn say(&mut self, client: &mut Client, command: &Value) -> Result<(), Gone> {
        client.stream.write_all(&text_frame(command)).map_err(|_| Gone)
    }

    /// Subscribes to a room, from the cursor if there is one, and loads what the resume did not bring.
    fn come_back(&mut self, client: &mut Client, world: &World, room: usize) -> Result<(), Gone> {
        let is_first = !self.has_joined && self.rooms[room].last() == 0;
        let mut command = json!({"type": "room:subscribe", "id": format!("room-{room}"), "room": ROOMS[room]});
        if is_first {
            command["type"] = "room:join".into();
        } else {
            command["since"] = json!({"epoch": self.epoch, "seq": self.rooms[room].last()});
        }
        self.say(client, &command)?;
        let reply = self.reply(client, world, command["id"].as_str().unwrap())?;
        assert_eq!(reply["type"], "ok", "{} came back to {reply}", self.number);
        let head = reply["seq"].as_u64().unwrap();
        if is_first {
            self.rooms[room].from = head;
        } else if reply["recovered"] == true {
            self.resumed += 1;
            for event in reply["events"].as_array().unwrap() {
                self.see(room, event);
            }
            assert_eq!(self.rooms[room].last(), head, "a resume that says it is whole is not");
        } else {
            self.told += 1;
            self.load(client, world, room, head)?;
        }
        Ok(())
    }

    /// Reads the history from the cursor to `head`.
    fn load(&mut self, client: &mut Client, world: &World, room: usize, head: u64) -> Result<(), Gone> {
        assert!(head >= self.rooms[room].last(), "what was shown is gone: head {head}");
        self.rooms[room].loading = Some(head);
        let mut page =
            json!({"type": "message:history", "id": format!("page-{room}"), "room": ROOMS[room], "limit": 100});
        while self.rooms[room].last() < head {
            page["after"] = self.rooms[room].last().into();
            self.say(client, &page)?;
            let reply = self.reply(client, world, page["id"].as_str().unwrap())?;
            assert_eq!(reply["type"], "ok", "{reply}");
            let events = reply["events"].as_array().unwrap();
            assert!(!events.is_empty(), "an empty page before the head");
            let seen = &mut self.rooms[room];
            // What lies beyond the head comes live as well.
            for event in events.iter().take_while(|event| event["seq"].as_u64().is_some_and(|seq| seq <= head)) {
                assert_eq!(event["seq"], seen.last() + 1, "a hole in the history");
                seen.prints.push(print_of(event));
            }
        }
        let seen = &mut self.rooms[room];
        seen.loading = None;
        for (seq, print) in std::mem::take(&mut seen.early) {
            assert_eq!(seq, seen.last() + 1, "a hole behind the history");
            seen.prints.push(print);
        }
        Ok(())
    }

    /// A log entry, live or replayed.
    fn see(&mut self, room: usize, event: &Value) {
        let seq = event["seq"].as_u64().unwrap();
        let seen = &mut self.rooms[room];
        if seen.loading.is_some_and(|head| seq > head) {
            seen.early.insert(seq, print_of(event));
            return;
        }
        assert_eq!(seq, seen.last() + 1, "a silent hole in {} for actor {}", ROOMS[room], self.number);
        seen.prints.push(print_of(event));
    }

    /// Everything that was not acknowledged, in the old order.
    fn send_again(&mut self, client: &mut Client) -> Result<(), Gone> {
        let mut frames = Vec::new();
        for message in &self.open {
            frames.extend(self.frame(*message));
        }
        client.stream.write_all(&frames).map_err(|_| Gone)
    }

    fn frame(&self, message: u64) -> Vec<u8> {
        let room = ROOMS[room_of(self.number, message)];
        let client_id = client_id(self.number, message);
        let body = format!("message {message} of actor {}, as long as people's messages are", self.number);
        text_frame(&json!({"type": "message:send", "id": message, "room": room, "body": body, "client_id": client_id}))
    }

    fn send_due(&mut self, client: &mut Client) -> Result<(), Gone> {
        let Some(interval) = self.interval else { return Ok(()) };
        let mut frames = Vec::new();
        while self.due <= Instant::now() && self.open.len() < OPEN_MAX {
            self.due += interval;
            frames.extend(self.frame(self.sent));
            self.open.push_back(self.sent);
            self.sent += 1;
        }
        client.stream.write_all(&frames).map_err(|_| Gone)
    }

    /// Waits for one reply, taking in whatever else comes.
    fn reply(&mut self, client: &mut Client, world: &World, id: &str) -> Result<Value, Gone> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            match client.hear(PATIENCE) {
                Heard::Json(value) if value["id"] == id => return Ok(value),
                Heard::Json(value) => self.take(client, world, &value)?,
                Heard::End(_) => return Err(Gone),
                Heard::Nothing => break,
            }
        }
        panic!("no reply to {id}");
    }

    /// Takes in what has come.
    fn listen(&mut self, client: &mut Client, world: &World, wait: Duration) -> Result<(), Gone> {
        let until = Instant::now() + wait;
        loop {
            match client.hear(until.saturating_duration_since(Instant::now())) {
                Heard::Json(value) => self.take(client, world, &value)?,
                Heard::End(end) => {
                    assert_eq!(end.code, 1006, "the server ended it: {end:?}");
                    return Err(Gone);
                }
                Heard::Nothing => return Ok(()),
            }
        }
    }

    fn take(&mut self, client: &mut Client, world: &World, value: &Value) -> Result<(), Gone> {
        let room = || ROOMS.iter().position(|room| value["room"] == *room);
        match value["type"].as_str().unwrap() {
            "ok" => {
                let message = value["id"].as_u64().unwrap();
                // Acks come in the order of the messages.
                assert_eq!(self.open.pop_front(), Some(message), "actor {}", self.number);
                self.acked.push((message, value["seq"].as_u64().unwrap()));
                self.duplicates += u64::from(value["duplicate"] == true);
                world.acked.fetch_add(1, Ordering::Relaxed);
            }
            "error" => panic!("actor {} was refused: {value}", self.number),
            "gap" => {
                let room = room().unwrap();
                self.told += 1;
                self.load(client, world, room, value["head"].as_u64().unwrap())?;
            }
            _ if value["seq"].is_u64() => {
                let room = room().unwrap();
                self.see(room, value);
            }
            _ => {}
        }
        Ok(())
    }
}
