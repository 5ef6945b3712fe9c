//! The sockets of scripted scenarios (see [`crate::play`]): one thread, one ring, and a script that is
//! told what every connection hears. Connects, upgrades, frames, answers pings, counts bytes; knows
//! nothing of rooms, users' promises, or what a frame says.
//!
//! To be driven over and over by [`Stage::turn`] (or [`Stage::until`]): it sleeps until something
//! comes, hands the script each [`Event`], and sends what the script has said in one send a connection.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use antiphon::engine::rng::Rng;
use antiphon::shard::socket;

use crate::client::{is_upgraded, push_upgrade};
use crate::dialect::Dialect;
use crate::frame::{FrameReader, Opcode, push_masked};
use crate::interrupt;
use crate::links::{Came, Links};
use crate::world::World;

/// What a connection hears.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// `hello`, the first frame: the connection can be used.
    Hello(&'a [u8]),
    /// Any later text frame.
    Text(&'a [u8]),
    /// It is over, and not by our doing: close code, 0 without one, errno negated.
    Ended(i64),
}

/// A script: acts on what comes, through the stage.
pub trait Play {
    /// The connection in `slot` heard something.
    fn on(&mut self, stage: &mut Stage, slot: u32, event: Event<'_>);

    /// When it has something to do next, whatever comes until then, ns; `None`: it only answers.
    fn next_due_ns(&self) -> Option<u64> {
        None
    }
}

/// What passed over all sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// Frames received, pings apart.
    pub frames_in: u64,
    /// Bytes received, handshakes included.
    pub bytes_in: u64,
    /// Commands sent.
    pub frames_out: u64,
    /// Pings answered.
    pub pings: u64,
    /// Connections that had their `hello`.
    pub greeted: u64,
    /// What the protocol does not allow.
    pub malformed: u64,
}

impl Books {
    /// What passed since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            frames_in: self.frames_in - earlier.frames_in,
            bytes_in: self.bytes_in - earlier.bytes_in,
            frames_out: self.frames_out - earlier.frames_out,
            pings: self.pings - earlier.pings,
            greeted: self.greeted - earlier.greeted,
            malformed: self.malformed - earlier.malformed,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum State {
    #[default]
    Closed,
    Connecting,
    Upgrading,
    Greeting,
    Open,
}

/// What a connection has come to.
#[derive(Default)]
struct Actor {
    state: State,
    started_ns: u64,
    reader: FrameReader,
    /// The response's head as far as it has come.
    head: Vec<u8>,
    out: Vec<u8>,
    /// Its user may do everything (claim `admin`).
    is_admin: bool,
}

/// All connections of a play; a slot is a user's number.
pub struct Stage {
    /// Names, tokens, clock.
    pub world: Arc<World>,
    /// The time of what is being handled.
    pub now_ns: u64,
    /// Every random choice.
    pub rng: Rng,
    /// What passed.
    pub books: Books,
    /// An interruption ends what it waits for, as a failure.
    pub heeds_interrupt: bool,
    /// Until everybody is there: the first connection that ends, ends the play.
    pub is_setting_up: bool,
    /// Why it did.
    set_back: Option<String>,
    /// From the start of connecting to `hello`, ns.
    pub connect: hdrhistogram::Histogram<u64>,
    links: Links,
    actors: Vec<Actor>,
    scratch: Vec<u8>,
}

/// Longest response head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Connections that may be in the making at a time, unless a script says otherwise.
const MAKING_MAX: u32 = 64;

impl Stage {
    /// A stage of `slots` connections, none of them made. To be made and used in one thread.
    ///
    /// # Errors
    /// The ring's.
    pub fn new(world: Arc<World>, slots: u32) -> io::Result<Self> {
        Ok(Self {
            now_ns: world.now_ns(),
            rng: Rng::new(world.seed),
            books: Books::default(),
            heeds_interrupt: true,
            is_setting_up: false,
            set_back: None,
            connect: crate::measure::histogram(),
            links: Links::new(slots as usize, MAKING_MAX)?,
            actors: (0..slots).map(|_| Actor::default()).collect(),
            scratch: Vec::new(),
            world,
        })
    }

    // --------------------------------------------------------------------------------------------
    // What a script does

    /// Connects when its turn comes (see [`Stage::make_at_once`]).
    pub fn open(&mut self, slot: u32) {
        self.links.enqueue(slot);
    }

    /// So many connections may be in the making at a time.
    pub fn make_at_once(&mut self, connections: u32) {
        self.links.making_max = connections;
    }

    /// The same with the claim `admin` in its token.
    pub fn open_admin(&mut self, slot: u32) {
        self.actors[slot as usize].is_admin = true;
        self.links.enqueue(slot);
    }

    /// True between `hello` and the end.
    pub fn is_open(&self, slot: u32) -> bool {
        self.actors[slot as usize].state == State::Open
    }

    /// Connections that are open.
    pub fn open_count(&self) -> u32 {
        self.actors.iter().filter(|actor| actor.state == State::Open).count() as u32
    }

    /// When the connection was begun, ns.
    pub fn started_ns(&self, slot: u32) -> u64 {
        self.actors[slot as usize].started_ns
    }

    /// Connections that wait for their turn or are in the making.
    pub fn pending(&self) -> usize {
        self.links.pending()
    }

    /// Says one command. Nothing happens on a connection that is not open.
    pub fn say(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let actor = &mut self.actors[slot as usize];
        if actor.state != State::Open {
            return;
        }
        self.books.frames_out += 1;
        push_masked(&mut actor.out, Opcode::Text, self.rng.next_u64() as u32, write);
        self.links.mark_dirty(slot);
    }

    /// Ends a connection with a reset: as a broken network does. No event follows.
    pub fn cut(&mut self, slot: u32) {
        self.links.cut(slot);
        let is_admin = self.actors[slot as usize].is_admin;
        self.actors[slot as usize] = Actor { is_admin, ..Actor::default() };
    }

    /// One round: what has come, what is to connect, what is to be sent.
    ///
    /// # Errors
    /// The ring's: nothing can go on without it.
    pub fn turn<P: Play>(&mut self, play: &mut P, pause: Duration) -> io::Result<()> {
        self.links.wait(pause)?;
        self.now_ns = self.world.now_ns();
        while let Some((slot, came)) = self.links.next() {
            self.on(play, slot, came);
        }
        while let Some(slot) = self.links.in_line() {
            self.connect(play, slot);
        }
        let dirty = self.links.take_dirty();
        for slot in &dirty {
            if let Err(code) = self.links.send(*slot, &mut self.actors[*slot as usize].out) {
                self.end(play, *slot, code);
            }
        }
        self.links.sent_all(dirty);
        Ok(())
    }

    /// Turns until `done`, at most for `limit_s` seconds.
    ///
    /// # Errors
    /// The ring's, or that `what` took longer than that, or was interrupted.
    pub fn until<P: Play>(
        &mut self,
        play: &mut P,
        limit_s: f64,
        what: &str,
        mut done: impl FnMut(&mut P, &mut Self) -> bool,
    ) -> Result<(), String> {
        let end_ns = self.world.now_ns() + crate::plan::ns(limit_s);
        loop {
            if let Some(reason) = self.set_back.take() {
                return Err(reason);
            }
            if done(play, self) {
                return Ok(());
            }
            if self.heeds_interrupt && interrupt::is_asked() {
                return Err(format!("interrupted during {what}"));
            }
            if self.now_ns > end_ns {
                return Err(format!("{what} was not done within {limit_s:.0} s"));
            }
            let pause = pause(play.next_due_ns(), self.world.now_ns());
            self.turn(play, pause).map_err(|error| format!("the ring failed: {error}"))?;
        }
    }

    /// Turns for `seconds`.
    ///
    /// # Errors
    /// The ring's.
    pub fn pass<P: Play>(&mut self, play: &mut P, seconds: f64) -> Result<(), String> {
        let end_ns = self.world.now_ns() + crate::plan::ns(seconds);
        self.until(play, seconds + 60.0, "a pause", |_, stage| stage.now_ns >= end_ns)
    }

    // --------------------------------------------------------------------------------------------
    // Sockets

    fn connect<P: Play>(&mut self, play: &mut P, slot: u32) {
        let actor = &mut self.actors[slot as usize];
        if actor.state != State::Closed {
            return;
        }
        actor.state = State::Connecting;
        actor.started_ns = self.now_ns;
        match socket::client(self.world.source_of(slot)) {
            Ok(socket) => self.links.connect(slot, socket, self.world.target),
            Err(error) => self.end(play, slot, -i64::from(error.raw_os_error().unwrap_or(0))),
        }
    }

    /// The server, or the network, ended it.
    fn end<P: Play>(&mut self, play: &mut P, slot: u32, code: i64) {
        let state = self.actors[slot as usize].state;
        if state != State::Closed {
            if self.is_setting_up {
                let (user, target) = (self.world.user_name(slot), self.world.target);
                let reason = || match i32::try_from(-code) {
                    Ok(errno @ 1..) if state == State::Connecting => cannot_connect(target, errno),
                    _ => ended_early(&user, &format!("{state:?}"), code),
                };
                self.set_back.get_or_insert_with(reason);
            }
            self.cut(slot);
            play.on(self, slot, Event::Ended(code));
        }
    }

    fn on<P: Play>(&mut self, play: &mut P, slot: u32, came: Came) {
        match came {
            Came::Bytes(received) => {
                let mut bytes = std::mem::take(&mut self.scratch);
                bytes.clear();
                bytes.extend_from_slice(self.links.bytes(&received));
                self.links.release(received);
                self.on_bytes(play, slot, &bytes);
                self.links.arm(slot);
                self.scratch = bytes;
            }
            Came::Connected(Ok(())) => self.upgrade(slot),
            Came::Connected(Err(errno)) => self.end(play, slot, -i64::from(errno)),
            Came::Ended(code) => self.end(play, slot, code),
        }
    }

    fn upgrade(&mut self, slot: u32) {
        let actor = &mut self.actors[slot as usize];
        let token = if actor.is_admin { self.world.admin_token(slot) } else { self.world.token(slot) };
        push_upgrade(&mut actor.out, &self.world, Dialect::Antiphon.query(), Some(&token));
        actor.state = State::Upgrading;
        self.links.arm(slot);
        self.links.mark_dirty(slot);
    }

    // --------------------------------------------------------------------------------------------
    // What comes

    fn on_bytes<P: Play>(&mut self, play: &mut P, slot: u32, bytes: &[u8]) {
        self.now_ns = self.world.now_ns();
        self.books.bytes_in += bytes.len() as u64;
        let actor = &mut self.actors[slot as usize];
        if actor.state != State::Upgrading {
            return self.on_frames(play, slot, bytes);
        }
        actor.head.extend_from_slice(bytes);
        match actor.head.windows(4).position(|four| four == b"\r\n\r\n") {
            Some(end) if is_upgraded(&actor.head[..end]) => {
                let head = std::mem::take(&mut actor.head);
                actor.state = State::Greeting;
                self.on_frames(play, slot, &head[end + 4..]);
            }
            None if actor.head.len() <= HEAD_BYTES_MAX => {}
            _ => self.end(play, slot, 0),
        }
    }

    fn on_frames<P: Play>(&mut self, play: &mut P, slot: u32, bytes: &[u8]) {
        let at = slot as usize;
        let generation = self.links.generation(slot);
        // The reader lends payloads while everything else may change.
        let mut reader = std::mem::take(&mut self.actors[at].reader);
        let result = reader.feed(bytes, |opcode, payload| {
            if self.links.generation(slot) == generation {
                self.on_frame(play, slot, opcode, payload);
            }
        });
        if self.links.generation(slot) == generation {
            self.actors[at].reader = reader;
            if result.is_err() {
                self.books.malformed += 1;
                self.end(play, slot, 0);
            }
        }
    }

    fn on_frame<P: Play>(&mut self, play: &mut P, slot: u32, opcode: Opcode, payload: &[u8]) {
        match opcode {
            Opcode::Text => {
                self.books.frames_in += 1;
                let actor = &mut self.actors[slot as usize];
                if actor.state != State::Greeting {
                    return play.on(self, slot, Event::Text(payload));
                }
                actor.state = State::Open;
                let took_ns = self.now_ns - actor.started_ns;
                self.connect.saturating_record(took_ns);
                self.links.made(slot);
                self.books.greeted += 1;
                play.on(self, slot, Event::Hello(payload));
            }
            Opcode::Ping => {
                self.books.pings += 1;
                let mask = self.rng.next_u64() as u32;
                push_masked(&mut self.actors[slot as usize].out, Opcode::Pong, mask, |o| o.extend_from_slice(payload));
                self.links.mark_dirty(slot);
            }
            Opcode::Pong => {}
            Opcode::Close => {
                let code = payload.first_chunk().map_or(0, |two| i64::from(u16::from_be_bytes(*two)));
                self.end(play, slot, code);
            }
            Opcode::Binary => self.books.malformed += 1,
        }
    }
}

/// How long a script may sleep: no longer than until it has something to do.
fn pause(due_ns: Option<u64>, now_ns: u64) -> Duration {
    const LONGEST: Duration = Duration::from_millis(2);
    due_ns.map_or(LONGEST, |due_ns| Duration::from_nanos(due_ns.saturating_sub(now_ns)).min(LONGEST))
}

/// Why nothing could be begun: nobody is there.
pub fn cannot_connect(target: SocketAddrV4, errno: i32) -> String {
    format!("cannot connect to {target}: {}", io::Error::from_raw_os_error(errno))
}

/// Why nothing could be begun: the server ended a connection of the set-up.
pub fn ended_early(user: &str, stage: &str, code: i64) -> String {
    /// The token does not hold (docs/WEBSOCKET_API.md).
    const NO_TOKEN: i64 = 4001;
    let hint = if code == NO_TOKEN {
        ": it does not accept the tokens of this tool; is --secret-file (or --secret, ANTIPHON_JWT_SECRET) its secret?"
    } else {
        ""
    };
    format!("the server ended {user}'s connection in stage {stage} with code {code}{hint}")
}

#[cfg(test)]
mod tests;
