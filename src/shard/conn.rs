//! The sockets of one shard, dense by slot: what each is, what it waits for, what it has pending.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::engine::blocks::Blocks;
use crate::engine::event::ConnKey;
use crate::gateway::outbox::Outbox;
use crate::protocol::ids::UnixMillis;
use crate::protocol::websocket::Codec;

use super::ring::Key;

/// What a socket is at the moment.
#[derive(Debug)]
pub enum Phase {
    /// Its HTTP request is being read, one receive at a time.
    Upgrading(Box<Head>),
    /// A session of the engine's.
    Open,
    /// Its last bytes are being sent; then it is closed.
    Closing,
}

/// An HTTP request so far.
#[derive(Debug, Default)]
pub struct Head {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How far the end of the head has been looked for.
    pub scanned: usize,
}

/// Bytes that a parked connection sent meanwhile.
#[derive(Debug, Default)]
pub struct Backlog {
    /// The frame to be handed in again first.
    pub again: Option<Vec<u8>>,
    /// Then these bytes.
    pub bytes: Vec<u8>,
}

/// What a connection lost by reading too slowly, step by step of the ladder.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slow {
    /// Low frames that a later one replaced.
    pub conflated: u64,
    /// Low frames that were dropped.
    pub dropped_low: u64,
    /// Normal frames that were dropped.
    pub dropped_normal: u64,
}

/// One socket.
pub struct Conn {
    /// Its name.
    pub key: ConnKey,
    /// The socket. Not to be closed while the ring may not know yet what it was asked to do with it:
    /// see `Conns::remove`.
    pub fd: OwnedFd,
    /// What it is.
    pub phase: Phase,
    /// WebSocket state.
    pub codec: Codec,
    /// Lent while something waits to be sent.
    pub outbox: Option<Box<Outbox>>,
    /// Set while parked, and after until it is used up.
    pub backlog: Option<Box<Backlog>>,
    /// The engine wants no frames for now.
    pub is_parked: bool,
    /// A receive is in flight.
    pub is_receiving: bool,
    /// The socket took less than was offered; a poll is in flight.
    pub is_blocked: bool,
    /// A stall deadline is set.
    pub is_stall_watched: bool,
    /// The client asked for arrays of events.
    pub is_batching: bool,
    /// In the list of those whose low events wait for company.
    pub is_delayed: bool,
    /// Which of the entries in the flush queue is its own; 0: it has nothing to be flushed.
    pub flush_mark: u32,
    /// What its slowness has cost it so far; none: nothing.
    pub slow: Option<Box<Slow>>,
    /// When bytes last went out, or the socket blocked.
    pub progress_at: UnixMillis,
}

impl Conn {
    /// True when no frame of it is to be looked at: the engine has parked it, or it has not read more
    /// than `waits_max` bytes of what it was sent. Who asks for much and reads slowly is asked to
    /// wait, not cut off: what comes of it can only be more to read.
    pub fn is_held(&self, waits_max: usize) -> bool {
        self.is_parked || self.outbox.as_ref().is_some_and(|outbox| outbox.bytes() > waits_max)
    }

    /// True when it is to be flushed.
    pub fn is_dirty(&self) -> bool {
        self.flush_mark != 0
    }

    /// The socket's number.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The ring's name for a connection.
pub fn ring_key(key: ConnKey) -> Key {
    Key::new(key.slot, key.generation)
}

/// The connection that the ring names.
pub fn conn_key(key: Key) -> ConnKey {
    ConnKey { slot: key.slot(), generation: key.generation() }
}

struct Slot {
    generation: u32,
    conn: Option<Conn>,
}

/// All sockets of a shard.
#[derive(Default)]
pub struct Conns {
    slots: Blocks<Slot>,
    free: Vec<u32>,
    count: usize,
    /// Sockets that are over, kept until the ring has been entered once more: a descriptor's number
    /// must not be given out again while an operation that names it waits to be submitted.
    graveyard: Vec<OwnedFd>,
}

// 15,000 idle connections must cost little: a change here is a change of memory for each of them.
const _: () = assert!(size_of::<Conn>() <= 112);

impl Conns {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Every connection.
    pub fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.slots.iter().filter_map(|slot| slot.conn.as_ref())
    }

    /// The connection of that name, unless it is gone.
    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut Conn> {
        self.slots.get_mut(key.slot)?.conn.as_mut().filter(|conn| conn.key == key)
    }

    /// The connection of that name, unless it is gone.
    pub fn get(&self, key: ConnKey) -> Option<&Conn> {
        self.slots.get(key.slot)?.conn.as_ref().filter(|conn| conn.key == key)
    }

    /// Puts a socket into a free slot.
    pub fn insert(&mut self, fd: OwnedFd, phase: Phase, message_bytes_max: u32, now: UnixMillis) -> ConnKey {
        let slot = self.free.pop().unwrap_or_else(|| self.slots.push(Slot { generation: 0, conn: None }));
        let entry = self.slots.get_mut(slot).expect("a slot that was added stays");
        entry.generation = entry.generation.wrapping_add(1);
        let key = ConnKey { slot, generation: entry.generation };
        entry.conn = Some(Conn {
            key,
            fd,
            phase,
            codec: Codec::new(message_bytes_max),
            outbox: None,
            backlog: None,
            is_parked: false,
            is_receiving: false,
            is_blocked: false,
            is_stall_watched: false,
            is_batching: false,
            is_delayed: false,
            flush_mark: 0,
            slow: None,
            progress_at: now,
        });
        self.count += 1;
        key
    }

    /// Takes a connection out, to be handed over. Nothing may be in flight on its socket.
    pub fn take(&mut self, key: ConnKey) -> Option<Conn> {
        let conn = self.slots.get_mut(key.slot)?.conn.take_if(|conn| conn.key == key)?;
        self.free.push(key.slot);
        self.count -= 1;
        Some(conn)
    }

    /// Ends a connection: shuts its socket down now, and closes it after the ring's next call.
    /// Returns its outbox.
    pub fn remove(&mut self, key: ConnKey) -> Option<Box<Outbox>> {
        let conn = self.take(key)?;
        super::socket::shutdown(conn.raw_fd());
        self.graveyard.push(conn.fd);
        conn.outbox
    }

    /// Closes a descriptor after the ring's next call.
    pub fn bury_later(&mut self, fd: OwnedFd) {
        self.graveyard.push(fd);
    }

    /// The ring has been entered: closed sockets may be closed for good.
    pub fn bury(&mut self) {
        self.graveyard.clear();
    }
}
