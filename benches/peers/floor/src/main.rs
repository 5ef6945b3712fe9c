//! The floor: the least that a server can do that speaks the dialect `plain` of antiphon-load. One thread
//! on epoll accepts, upgrades, finds the room of each command, and copies bytes to the room's sockets.
//! No users, no JSON beyond finding the room, no limits, no judging of who is silent. What is left is what the machine
//! itself costs for as many sends; a server goes below it only by gathering more into each send.
//!
//! Everybody is pinged every 25 s, in sweeps of 4 s as uWebSockets does: the fewer, the cheaper.
//!
//! One turn: read what came, then (with `--durable FILE`) append and sync all of it at once, then send
//! each connection everything that waits for it in one call.
//!
//! Prints `listening <port>` once it does.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

mod handshake;

/// Events of one turn.
const EVENTS_MAX: usize = 1024;
/// Bytes of one read.
const READ_BYTES: usize = 256 * 1024;
/// Between two pings of a connection.
const HEARTBEAT: Duration = Duration::from_secs(25);
/// Between two sweeps, each of which pings as many as have to be.
const SWEEP: Duration = Duration::from_secs(4);
/// The listener's number among the events; connections have their place in `Floor::connections`.
const LISTENER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    is_upgraded: bool,
    /// The beginning of what has not come whole.
    partial: Vec<u8>,
    /// What waits to be sent.
    out: Vec<u8>,
    rooms: Vec<usize>,
}

#[derive(Default)]
struct Room {
    head: u64,
    members: Vec<usize>,
    /// The frames of this turn.
    turn: Vec<u8>,
}

struct Floor {
    epoll: rustix::fd::OwnedFd,
    listener: TcpListener,
    file: Option<File>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Places that this turn freed: events of this turn may still name them.
    freed: Vec<usize>,
    names: HashMap<Box<[u8]>, usize>,
    rooms: Vec<Room>,
    /// Rooms with frames of this turn.
    spoken: Vec<usize>,
    /// Connections that have something to send, some of them more than once.
    waiting: Vec<usize>,
    /// Empty buffers, so that an idle connection holds none.
    spare: Vec<Vec<u8>>,
    next_sweep: Instant,
    /// Who is pinged next.
    next_pinged: usize,
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--durable"), Some(path)) => Some(File::options().create(true).append(true).open(path)?),
        _ => return Err(io::Error::other("usage: antiphon-peer-floor [--durable FILE]")),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    println!("listening {}", listener.local_addr()?.port());
    Floor {
        epoll,
        listener,
        file,
        connections: Vec::new(),
        free: Vec::new(),
        freed: Vec::new(),
        names: HashMap::new(),
        rooms: Vec::new(),
        spoken: Vec::new(),
        waiting: Vec::new(),
        spare: Vec::new(),
        next_sweep: Instant::now() + SWEEP,
        next_pinged: 0,
    }
    .run()
}

impl Floor {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            events.clear();
            let wait = self.next_sweep.saturating_duration_since(Instant::now());
            let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    place => self.read(place as usize, event.flags, &mut buffer),
                }
            }
            self.commit()?;
            self.fan_out();
            if Instant::now() >= self.next_sweep {
                self.ping();
            }
            self.send();
            self.free.append(&mut self.freed);
        }
    }

    /// Takes all who wait at the door.
    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let place = self.free.pop().unwrap_or(self.connections.len());
            if place == self.connections.len() {
                self.connections.push(None);
            }
            // Edge-triggered: one registration for the connection's life, told of room to write only when
            // there was none.
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&self.epoll, &stream, EventData::new_u64(place as u64), flags)?;
            self.connections[place] = Some(Connection {
                stream,
                is_upgraded: false,
                partial: Vec::new(),
                out: Vec::new(),
                rooms: Vec::new(),
            });
        }
    }

    /// Reads all that came and obeys it.
    fn read(&mut self, place: usize, flags: EventFlags, buffer: &mut [u8]) {
        // Taken out of its place, so that a command may change the rest.
        let Some(mut connection) = self.connections[place].take() else { return };
        let mut is_open = true;
        while is_open {
            match connection.stream.read(buffer) {
                Ok(0) => is_open = false,
                Ok(count) => {
                    is_open = self.take(place, &mut connection, &mut buffer[..count]);
                    // A short read has emptied the socket, unless its end waits behind it.
                    if count < buffer.len() && !flags.intersects(EventFlags::RDHUP) {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => is_open = false,
            }
        }
        if is_open {
            if !connection.out.is_empty() {
                self.waiting.push(place);
            }
            self.connections[place] = Some(connection);
        } else {
            self.forget(place, &connection);
        }
    }

    /// False when the connection is over.
    fn take(&mut self, place: usize, connection: &mut Connection, bytes: &mut [u8]) -> bool {
        if connection.partial.is_empty() {
            let Some(used) = self.obey_all(place, connection, bytes) else { return false };
            connection.partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut all = mem::take(&mut connection.partial);
            all.extend_from_slice(bytes);
            let Some(used) = self.obey_all(place, connection, &mut all) else { return false };
            all.drain(..used);
            connection.partial = all;
        }
        true
    }

    /// Obeys whole frames; returns how many bytes they were.
    fn obey_all(&mut self, place: usize, connection: &mut Connection, bytes: &mut [u8]) -> Option<usize> {
        let mut used = 0;
        if !connection.is_upgraded {
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Some(0) };
            handshake::answer(&bytes[..end], &mut connection.out)?;
            connection.is_upgraded = true;
            used = end + 4;
        }
        while let Some((opcode, payload, total)) = frame(&mut bytes[used..])? {
            match opcode {
                1 => self.obey(place, connection, payload)?,
                9 => push_frame(&mut connection.out, 10, &[payload]),
                10 => {}
                _ => return None,
            }
            used += total;
        }
        Some(used)
    }

    /// Relies on how antiphon-load writes a command: `type` first, `id` last, and between them what goes to
    /// the room as it stands.
    fn obey(&mut self, place: usize, connection: &mut Connection, command: &[u8]) -> Option<()> {
        let id_at = command.iter().rposition(|byte| *byte == b',')?;
        let id = command[id_at..].strip_prefix(b",\"id\":")?.strip_suffix(b"}")?;
        let (is_message, shared) = match command[..id_at].strip_prefix(b"{\"type\":\"message:send\",") {
            Some(shared) => (true, shared),
            None => (false, command[..id_at].strip_prefix(b"{\"type\":\"room:subscribe\",")?),
        };
        let name = shared.strip_prefix(b"\"room\":\"")?;
        let name = &name[..name.iter().position(|byte| *byte == b'"')?];
        let number = self.room(name);
        let room = &mut self.rooms[number];
        if is_message {
            room.head += 1;
            if room.turn.is_empty() {
                self.spoken.push(number);
            }
        } else if !connection.rooms.contains(&number) {
            connection.rooms.push(number);
            room.members.push(place);
        }
        let mut digits = [0; 20];
        let seq = decimal(room.head, &mut digits);
        if is_message {
            push_frame(&mut room.turn, 1, &[b"{\"type\":\"message:created\",\"seq\":", seq, b",", shared, b"}"]);
        }
        if connection.out.capacity() == 0 {
            connection.out = self.spare.pop().unwrap_or_default();
        }
        let epoch: &[u8] = if is_message { b"}" } else { b",\"epoch\":\"peer\"}" };
        push_frame(&mut connection.out, 1, &[b"{\"type\":\"ok\",\"id\":", id, b",\"seq\":", seq, epoch]);
        Some(())
    }

    fn room(&mut self, name: &[u8]) -> usize {
        if let Some(number) = self.names.get(name) {
            return *number;
        }
        self.names.insert(name.into(), self.rooms.len());
        self.rooms.push(Room::default());
        self.rooms.len() - 1
    }

    /// Nobody sees what is not on disk.
    fn commit(&mut self) -> io::Result<()> {
        let Some(file) = self.file.as_mut().filter(|_| !self.spoken.is_empty()) else { return Ok(()) };
        let mut all = self.spare.pop().unwrap_or_default();
        for room in &self.spoken {
            all.extend_from_slice(&self.rooms[*room].turn);
        }
        file.write_all(&all)?;
        all.clear();
        self.spare.push(all);
        file.sync_data()
    }

    /// Copies what each room said to its members.
    fn fan_out(&mut self) {
        for number in self.spoken.drain(..) {
            let room = &mut self.rooms[number];
            for place in &room.members {
                let Some(connection) = &mut self.connections[*place] else { continue };
                if connection.out.is_empty() {
                    self.waiting.push(*place);
                    if connection.out.capacity() == 0 {
                        connection.out = self.spare.pop().unwrap_or_default();
                    }
                }
                connection.out.extend_from_slice(&room.turn);
            }
            room.turn.clear();
        }
    }

    /// Asks a part of the connections whether they are there.
    fn ping(&mut self) {
        self.next_sweep += SWEEP;
        let part = self.connections.len() as u64 * SWEEP.as_secs() / HEARTBEAT.as_secs() + 1;
        for _ in 0..part.min(self.connections.len() as u64) {
            let place = self.next_pinged % self.connections.len();
            self.next_pinged = place + 1;
            let Some(connection) = self.connections[place].as_mut().filter(|c| c.is_upgraded) else { continue };
            if connection.out.capacity() == 0 {
                connection.out = self.spare.pop().unwrap_or_default();
            }
            push_frame(&mut connection.out, 9, &[]);
            self.waiting.push(place);
        }
    }

    /// One call for each connection that something waits for.
    fn send(&mut self) {
        for at in 0..self.waiting.len() {
            let place = self.waiting[at];
            let Some(connection) = self.connections[place].as_mut().filter(|c| !c.out.is_empty()) else { continue };
            match connection.stream.write(&connection.out) {
                Ok(count) if count == connection.out.len() => {
                    let mut out = mem::take(&mut connection.out);
                    out.clear();
                    self.spare.push(out);
                }
                // The rest goes when the socket has room again, which wakes us.
                Ok(count) => drop(connection.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    if let Some(connection) = self.connections[place].take() {
                        self.forget(place, &connection);
                    }
                }
            }
        }
        self.waiting.clear();
    }

    /// The connection, taken out of its place, is gone.
    fn forget(&mut self, place: usize, connection: &Connection) {
        for room in &connection.rooms {
            self.rooms[*room].members.retain(|member| *member != place);
        }
        self.freed.push(place);
    }
}

/// The first frame, if it is whole, unmasked where it lies: its opcode, its payload, and how long it is with its
/// header. An error, `None`, when it is longer than anybody sends or in pieces.
fn frame(bytes: &mut [u8]) -> Option<Option<(u8, &mut [u8], usize)>> {
    let [first, second, ..] = *bytes else { return Some(None) };
    let (start, len) = match (first & 0x80 != 0, second ^ 0x80) {
        (true, len @ 0..126) => (6, usize::from(len)),
        (true, 126) => match *bytes {
            [_, _, high, low, ..] => (8, usize::from(u16::from_be_bytes([high, low]))),
            _ => return Some(None),
        },
        _ => return None,
    };
    if bytes.len() < start + len {
        return Some(None);
    }
    let (head, rest) = bytes.split_at_mut(start);
    let (payload, mask) = (&mut rest[..len], &head[start - 4..]);
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Some(Some((first & 0x0f, payload, start + len)))
}

/// Appends a frame whose payload is these parts.
fn push_frame(out: &mut Vec<u8>, opcode: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.push(0x80 | opcode);
    match u16::try_from(len) {
        Ok(short @ 0..126) => out.push(short as u8),
        // No frame that was taken has a longer length, and what is put around it is short.
        long => {
            out.push(126);
            out.extend_from_slice(&long.unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// The number's digits, at the end of the buffer.
fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}
