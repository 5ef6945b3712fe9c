//! The sockets of scripted scenarios (see [`crate::play`]): one thread, one ring, and a script that is
//! told what every connection hears. Connects, upgrades, frames, answers pings, counts bytes; knows
//! nothing of rooms, users' promises, or what a frame says.
//!
//! To be driven over and over by [`Stage::turn`] (or [`Stage::until`]): it sleeps until something
//! comes, hands the script each [`Event`], and sends what the script has said in one send a connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use antiphon::engine::rng::Rng;
use antiphon::shard::ring::{Completion, Ended, Key, Ring, RingConfig, SendError, send_slices};
use antiphon::shard::socket;

use crate::client::{is_upgraded, push_upgrade};
use crate::dialect::Dialect;
use crate::frame::{FrameReader, Opcode, push_masked};
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

#[derive(Default)]
struct Link {
    fd: Option<OwnedFd>,
    generation: u32,
    state: State,
    started_ns: u64,
    reader: FrameReader,
    /// The response's head as far as it has come.
    head: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    is_polling: bool,
    is_dirty: bool,
    is_armed: bool,
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
    /// From the start of connecting to `hello`, ns.
    pub connect: hdrhistogram::Histogram<u64>,
    /// Connections that may be in the making at a time.
    pub making_max: u32,
    making: u32,
    queue: VecDeque<u32>,
    ring: Ring,
    links: Vec<Link>,
    dirty: Vec<u32>,
    /// Closed by us; the ring may still hold a queued operation on the number until its next wait.
    grave: Vec<OwnedFd>,
    scratch: Vec<u8>,
}

/// Longest response head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Output buffers above this are given back when empty.
const KEEP_BYTES: usize = 4_096;

impl Stage {
    /// A stage of `slots` connections, none of them made. To be made and used in one thread.
    ///
    /// # Errors
    /// The ring's.
    pub fn new(world: Arc<World>, slots: u32) -> io::Result<Self> {
        let buffers = slots.next_power_of_two().clamp(64, 1_024) as u16;
        Ok(Self {
            now_ns: world.now_ns(),
            rng: Rng::new(world.seed),
            books: Books::default(),
            connect: crate::measure::histogram(),
            making_max: 64,
            making: 0,
            queue: VecDeque::new(),
            ring: Ring::new(RingConfig { entries: 1_024, buffers, buffer_bytes: 4_096 })?,
            links: (0..slots).map(|_| Link::default()).collect(),
            dirty: Vec::new(),
            grave: Vec::new(),
            scratch: Vec::new(),
            world,
        })
    }

    // --------------------------------------------------------------------------------------------
    // What a script does

    /// Connects when its turn comes (see [`Stage::making_max`]).
    pub fn open(&mut self, slot: u32) {
        self.queue.push_back(slot);
    }

    /// The same with the claim `admin` in its token.
    pub fn open_admin(&mut self, slot: u32) {
        self.links[slot as usize].is_admin = true;
        self.queue.push_back(slot);
    }

    /// True between `hello` and the end.
    pub fn is_open(&self, slot: u32) -> bool {
        self.links[slot as usize].state == State::Open
    }

    /// When the connection was begun, ns.
    pub fn started_ns(&self, slot: u32) -> u64 {
        self.links[slot as usize].started_ns
    }

    /// Connections that wait for their turn or are in the making.
    pub fn pending(&self) -> usize {
        self.queue.len() + self.making as usize
    }

    /// Says one command. Nothing happens on a connection that is not open.
    pub fn say(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let link = &mut self.links[slot as usize];
        if link.state != State::Open {
            return;
        }
        self.books.frames_out += 1;
        push_masked(&mut link.out, Opcode::Text, self.rng.next_u64() as u32, write);
        self.mark_dirty(slot);
    }

    /// Ends a connection with a reset: as a broken network does. No event follows.
    pub fn cut(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        self.making -= u32::from((State::Connecting..=State::Greeting).contains(&link.state));
        if let Some(fd) = link.fd.take() {
            // Where it fails the connection is gone already.
            let _ = socket::reset_on_close(&fd);
            // Operations in flight hold the socket, and end by this.
            socket::shutdown(fd.as_raw_fd());
            self.grave.push(fd);
        }
        let (generation, is_dirty, is_admin) = (link.generation.wrapping_add(1), link.is_dirty, link.is_admin);
        *link = Link { generation, is_dirty, is_admin, ..Link::default() };
    }

    /// One round: what has come, what is to connect, what is to be sent.
    ///
    /// # Errors
    /// The ring's: nothing can go on without it.
    pub fn turn<P: Play>(&mut self, play: &mut P, pause: Duration) -> io::Result<()> {
        let pause = if self.dirty.is_empty() { pause } else { Duration::ZERO };
        self.ring.wait(Some(pause))?;
        self.grave.clear();
        self.now_ns = self.world.now_ns();
        while let Some(completion) = self.ring.next() {
            self.on_completion(play, completion);
        }
        while self.making < self.making_max {
            let Some(slot) = self.queue.pop_front() else { break };
            self.connect(play, slot);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            self.links[slot as usize].is_dirty = false;
            self.flush(play, slot);
        }
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
        Ok(())
    }

    /// Turns until `done`, at most for `limit_s` seconds.
    ///
    /// # Errors
    /// The ring's, or that `what` took longer than that.
    pub fn until<P: Play>(
        &mut self,
        play: &mut P,
        limit_s: f64,
        what: &str,
        mut done: impl FnMut(&mut P, &mut Self) -> bool,
    ) -> Result<(), String> {
        let end_ns = self.world.now_ns() + crate::plan::ns(limit_s);
        while !done(play, self) {
            if self.now_ns > end_ns {
                return Err(format!("{what} was not done within {limit_s:.0} s"));
            }
            self.turn(play, Duration::from_millis(2)).map_err(|error| format!("the ring failed: {error}"))?;
        }
        Ok(())
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
        if self.links[slot as usize].state != State::Closed {
            return;
        }
        self.making += 1;
        let link = &mut self.links[slot as usize];
        link.state = State::Connecting;
        link.started_ns = self.now_ns;
        match socket::client(self.world.source_of(slot)) {
            Ok(socket) => {
                self.ring.connect(socket.as_raw_fd(), Key::new(slot, link.generation), self.world.target);
                link.fd = Some(socket);
            }
            Err(error) => self.end(play, slot, -i64::from(error.raw_os_error().unwrap_or(0))),
        }
    }

    fn slot_of(&self, key: Key) -> Option<u32> {
        let link = self.links.get(key.slot() as usize)?;
        (link.fd.is_some() && link.generation == key.generation()).then_some(key.slot())
    }

    fn arm(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        if let Some(fd) = link.fd.as_ref().filter(|_| !link.is_armed) {
            self.ring.receive_multi(fd.as_raw_fd(), Key::new(slot, link.generation));
            link.is_armed = true;
        }
    }

    fn mark_dirty(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        if !link.is_dirty && !link.is_polling {
            link.is_dirty = true;
            self.dirty.push(slot);
        }
    }

    fn flush<P: Play>(&mut self, play: &mut P, slot: u32) {
        let link = &mut self.links[slot as usize];
        let Some(fd) = link.fd.as_ref().map(AsRawFd::as_raw_fd) else { return };
        while link.sent < link.out.len() {
            match send_slices(fd, &[IoSlice::new(&link.out[link.sent..])]) {
                Ok(sent) => link.sent += sent,
                Err(SendError::WouldBlock) => {
                    link.is_polling = true;
                    return self.ring.poll_writable(fd, Key::new(slot, link.generation));
                }
                Err(SendError::Gone(errno)) => return self.end(play, slot, -i64::from(errno)),
            }
        }
        link.sent = 0;
        link.out.clear();
        if link.out.capacity() > KEEP_BYTES {
            link.out = Vec::new();
        }
    }

    /// The server, or the network, ended it.
    fn end<P: Play>(&mut self, play: &mut P, slot: u32, code: i64) {
        if self.links[slot as usize].state != State::Closed {
            self.cut(slot);
            play.on(self, slot, Event::Ended(code));
        }
    }

    fn on_completion<P: Play>(&mut self, play: &mut P, completion: Completion) {
        match completion {
            Completion::Received { key, buffer, len, armed } => {
                let mut bytes = std::mem::take(&mut self.scratch);
                bytes.clear();
                bytes.extend_from_slice(self.ring.buffer(&buffer, len));
                self.ring.release(buffer);
                if let Some(slot) = self.slot_of(key) {
                    self.links[slot as usize].is_armed = armed;
                    self.on_bytes(play, slot, &bytes);
                    if self.slot_of(key).is_some() {
                        self.arm(slot);
                    }
                }
                self.scratch = bytes;
            }
            Completion::ReceiveEnded { key, reason } => {
                let Some(slot) = self.slot_of(key) else { return };
                self.links[slot as usize].is_armed = false;
                match reason {
                    Ended::NoBuffers | Ended::Cancelled => self.arm(slot),
                    Ended::Eof => self.end(play, slot, 0),
                    Ended::Error(errno) => self.end(play, slot, -i64::from(errno)),
                }
            }
            Completion::Writable { key, .. } => {
                if let Some(slot) = self.slot_of(key) {
                    self.links[slot as usize].is_polling = false;
                    self.mark_dirty(slot);
                }
            }
            Completion::Connected { key, result } => {
                let Some(slot) = self.slot_of(key) else { return };
                match result {
                    Ok(()) => self.upgrade(slot),
                    Err(errno) => self.end(play, slot, -i64::from(errno)),
                }
            }
            Completion::Accepted(_)
            | Completion::AcceptFailed(_)
            | Completion::Cancelled { .. }
            | Completion::DoorbellRung => {}
        }
    }

    fn upgrade(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        let token = if link.is_admin { self.world.admin_token(slot) } else { self.world.token(slot) };
        push_upgrade(&mut link.out, &self.world, Dialect::Antiphon.query(), Some(&token));
        link.state = State::Upgrading;
        self.arm(slot);
        self.mark_dirty(slot);
    }

    // --------------------------------------------------------------------------------------------
    // What comes

    fn on_bytes<P: Play>(&mut self, play: &mut P, slot: u32, bytes: &[u8]) {
        self.now_ns = self.world.now_ns();
        self.books.bytes_in += bytes.len() as u64;
        let link = &mut self.links[slot as usize];
        if link.state != State::Upgrading {
            return self.on_frames(play, slot, bytes);
        }
        link.head.extend_from_slice(bytes);
        match link.head.windows(4).position(|four| four == b"\r\n\r\n") {
            Some(end) if is_upgraded(&link.head[..end]) => {
                let head = std::mem::take(&mut link.head);
                link.state = State::Greeting;
                self.on_frames(play, slot, &head[end + 4..]);
            }
            None if link.head.len() <= HEAD_BYTES_MAX => {}
            _ => self.end(play, slot, 0),
        }
    }

    fn on_frames<P: Play>(&mut self, play: &mut P, slot: u32, bytes: &[u8]) {
        let at = slot as usize;
        let generation = self.links[at].generation;
        // The reader lends payloads while everything else may change.
        let mut reader = std::mem::take(&mut self.links[at].reader);
        let result = reader.feed(bytes, |opcode, payload| {
            if self.links[at].generation == generation {
                self.on_frame(play, slot, opcode, payload);
            }
        });
        if self.links[at].generation == generation {
            self.links[at].reader = reader;
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
                let link = &mut self.links[slot as usize];
                if link.state != State::Greeting {
                    return play.on(self, slot, Event::Text(payload));
                }
                link.state = State::Open;
                let took_ns = self.now_ns - link.started_ns;
                self.connect.saturating_record(took_ns);
                self.making -= 1;
                self.books.greeted += 1;
                play.on(self, slot, Event::Hello(payload));
            }
            Opcode::Ping => {
                self.books.pings += 1;
                let mask = self.rng.next_u64() as u32;
                push_masked(&mut self.links[slot as usize].out, Opcode::Pong, mask, |o| o.extend_from_slice(payload));
                self.mark_dirty(slot);
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

#[cfg(test)]
mod tests;
