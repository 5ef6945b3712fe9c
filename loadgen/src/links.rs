//! The sockets of one thread over one ring: connecting in turn, receives that stay armed, one send a
//! connection and turn, letting go. Knows nothing of what the bytes say.
//!
//! A turn of the owner: [`Links::wait`]; [`Links::next`] until nothing is left; [`Links::in_line`] and
//! [`Links::connect`]; [`Links::take_dirty`] and [`Links::send`] for each. A slot is the owner's number
//! of a connection; what was begun on an earlier socket of the slot is never told.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use antiphon::shard::ring::{BufferId, Completion, Ended, Key, Ring, RingConfig, SendError, send_slices};
use antiphon::shard::socket;

/// What came on a connection.
#[derive(Debug)]
pub enum Came {
    /// The connection stands, or the errno why not.
    Connected(Result<(), i32>),
    /// Bytes: to be read by [`Links::bytes`] and given back by [`Links::release`].
    Bytes(Received),
    /// It is over: 0, or the errno negated.
    Ended(i64),
}

/// Bytes in one of the ring's buffers.
#[derive(Debug)]
pub struct Received {
    buffer: BufferId,
    len: usize,
}

#[derive(Default)]
struct Link {
    fd: Option<OwnedFd>,
    generation: u32,
    /// Bytes of the owner's output that the socket has taken.
    sent: usize,
    /// Counted by [`Links::making`].
    is_making: bool,
    /// Waits for the socket to take more.
    is_polling: bool,
    /// Listed to be flushed.
    is_dirty: bool,
    /// A receive is in flight.
    is_armed: bool,
    /// Does not read at the moment.
    is_stalled: bool,
}

/// All sockets of one thread.
pub struct Links {
    ring: Ring,
    links: Vec<Link>,
    dirty: Vec<u32>,
    /// Slots that are to connect.
    queue: VecDeque<u32>,
    making: u32,
    /// Connections that may be in the making at a time.
    pub making_max: u32,
    /// Let go; the ring may still hold a queued operation on the number until its next wait.
    grave: Vec<OwnedFd>,
}

/// Output buffers above this are given back when empty.
const KEEP_BYTES: usize = 4_096;

impl Links {
    /// So many slots, none of them connected. To be made and used in one thread.
    ///
    /// # Errors
    /// The ring's.
    pub fn new(slots: usize, making_max: u32) -> io::Result<Self> {
        let buffers = slots.next_power_of_two().clamp(64, 1_024) as u16;
        Ok(Self {
            ring: Ring::new(RingConfig { entries: 1_024, buffers, buffer_bytes: 4_096 })?,
            links: (0..slots).map(|_| Link::default()).collect(),
            dirty: Vec::new(),
            queue: VecDeque::new(),
            making: 0,
            making_max,
            grave: Vec::new(),
        })
    }

    // --------------------------------------------------------------------------------------------
    // What comes

    /// Sleeps until something comes, at most for `pause`; not at all while something is to be done.
    ///
    /// # Errors
    /// The ring's: nothing can go on without it.
    pub fn wait(&mut self, pause: Duration) -> io::Result<()> {
        let is_idle = self.dirty.is_empty() && self.grave.is_empty();
        self.ring.wait(Some(if is_idle { pause } else { Duration::ZERO }))?;
        self.grave.clear();
        Ok(())
    }

    /// What has come, and to which slot.
    #[inline]
    pub fn next(&mut self) -> Option<(u32, Came)> {
        while let Some(completion) = self.ring.next() {
            let came = match completion {
                Completion::Received { key, buffer, len, armed } => match self.slot_of(key) {
                    Some(slot) => {
                        self.links[slot as usize].is_armed = armed;
                        Some((slot, Came::Bytes(Received { buffer, len })))
                    }
                    None => {
                        self.ring.release(buffer);
                        None
                    }
                },
                Completion::ReceiveEnded { key, reason } => self.slot_of(key).and_then(|slot| {
                    self.links[slot as usize].is_armed = false;
                    match reason {
                        Ended::NoBuffers | Ended::Cancelled => {
                            self.arm(slot);
                            None
                        }
                        Ended::Eof => Some((slot, Came::Ended(0))),
                        Ended::Error(errno) => Some((slot, Came::Ended(-i64::from(errno)))),
                    }
                }),
                Completion::Writable { key, .. } => {
                    if let Some(slot) = self.slot_of(key) {
                        self.links[slot as usize].is_polling = false;
                        self.mark_dirty(slot);
                    }
                    None
                }
                Completion::Connected { key, result } => self.slot_of(key).map(|slot| (slot, Came::Connected(result))),
                Completion::Accepted(_)
                | Completion::AcceptFailed(_)
                | Completion::Cancelled { .. }
                | Completion::DoorbellRung => None,
            };
            if came.is_some() {
                return came;
            }
        }
        None
    }

    /// What was received.
    #[inline]
    pub fn bytes(&self, received: &Received) -> &[u8] {
        self.ring.buffer(&received.buffer, received.len)
    }

    /// Gives the buffer back.
    #[inline]
    pub fn release(&mut self, received: Received) {
        self.ring.release(received.buffer);
    }

    /// Goes on receiving, unless a receive is in flight or there is nothing to receive from.
    #[inline]
    pub fn arm(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        if let Some(fd) = link.fd.as_ref().filter(|_| !link.is_armed && !link.is_stalled) {
            self.ring.receive_multi(fd.as_raw_fd(), Key::new(slot, link.generation));
            link.is_armed = true;
        }
    }

    /// Stops reading: the socket's buffers fill.
    pub fn stall(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        link.is_stalled = true;
        if link.is_armed {
            self.ring.cancel_receive(Key::new(slot, link.generation));
        }
    }

    /// Reads again.
    pub fn resume(&mut self, slot: u32) {
        self.links[slot as usize].is_stalled = false;
        self.arm(slot);
    }

    /// The slot that a completion means, unless the connection is an earlier one.
    #[inline]
    fn slot_of(&self, key: Key) -> Option<u32> {
        let link = self.links.get(key.slot() as usize)?;
        (link.fd.is_some() && link.generation == key.generation()).then_some(key.slot())
    }

    // --------------------------------------------------------------------------------------------
    // Coming and going

    /// Puts a slot at the end of those that are to connect.
    pub fn enqueue(&mut self, slot: u32) {
        self.queue.push_back(slot);
    }

    /// The next slot whose turn it is to connect.
    pub fn in_line(&mut self) -> Option<u32> {
        if self.making < self.making_max { self.queue.pop_front() } else { None }
    }

    /// Begins to connect: [`Came::Connected`] follows.
    pub fn connect(&mut self, slot: u32, socket: OwnedFd, target: SocketAddrV4) {
        let link = &mut self.links[slot as usize];
        self.ring.connect(socket.as_raw_fd(), Key::new(slot, link.generation), target);
        link.fd = Some(socket);
        link.is_making = true;
        self.making += 1;
    }

    /// The connection can be used: another one may be begun.
    pub fn made(&mut self, slot: u32) {
        self.making -= u32::from(std::mem::take(&mut self.links[slot as usize].is_making));
    }

    /// Connections that are in the making.
    pub fn making(&self) -> u32 {
        self.making
    }

    /// Connections that wait for their turn or are in the making.
    pub fn pending(&self) -> usize {
        self.queue.len() + self.making as usize
    }

    /// Tells the sockets of a slot apart: another number for each.
    pub fn generation(&self, slot: u32) -> u32 {
        self.links[slot as usize].generation
    }

    /// True from [`Links::connect`] to [`Links::cut`].
    pub fn has_socket(&self, slot: u32) -> bool {
        self.links[slot as usize].fd.is_some()
    }

    /// True when no slot has a socket.
    pub fn is_empty(&self) -> bool {
        self.links.iter().all(|link| link.fd.is_none())
    }

    /// Ends a connection with a reset: as a broken network does. Nothing more is told of it.
    pub fn cut(&mut self, slot: u32) {
        self.made(slot);
        let link = &mut self.links[slot as usize];
        if let Some(fd) = link.fd.take() {
            // Where it fails the connection is gone already.
            let _ = socket::reset_on_close(&fd);
            // Operations in flight hold the socket, and end by this.
            socket::shutdown(fd.as_raw_fd());
            self.grave.push(fd);
        }
        *link = Link { generation: link.generation.wrapping_add(1), is_dirty: link.is_dirty, ..Link::default() };
    }

    // --------------------------------------------------------------------------------------------
    // What is to be sent

    /// The owner has bytes for the connection.
    #[inline]
    pub fn mark_dirty(&mut self, slot: u32) {
        let link = &mut self.links[slot as usize];
        if !link.is_dirty && !link.is_polling && link.fd.is_some() {
            link.is_dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Slots that have something to send; to be given back by [`Links::sent_all`].
    pub fn take_dirty(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.dirty)
    }

    /// Keeps the list's memory, unless something new is on the list.
    pub fn sent_all(&mut self, mut dirty: Vec<u32>) {
        if self.dirty.is_empty() {
            dirty.clear();
            self.dirty = dirty;
        }
    }

    /// Sends what the socket takes; the rest goes when it takes more.
    ///
    /// # Errors
    /// The connection is over: the errno negated.
    pub fn send(&mut self, slot: u32, out: &mut Vec<u8>) -> Result<(), i64> {
        let link = &mut self.links[slot as usize];
        link.is_dirty = false;
        let Some(fd) = link.fd.as_ref().map(AsRawFd::as_raw_fd) else { return Ok(()) };
        while link.sent < out.len() {
            match send_slices(fd, &[IoSlice::new(&out[link.sent..])]) {
                Ok(sent) => link.sent += sent,
                Err(SendError::WouldBlock) => {
                    link.is_polling = true;
                    self.ring.poll_writable(fd, Key::new(slot, link.generation));
                    return Ok(());
                }
                Err(SendError::Gone(errno)) => return Err(-i64::from(errno)),
            }
        }
        link.sent = 0;
        out.clear();
        if out.capacity() > KEEP_BYTES {
            *out = Vec::new();
        }
        Ok(())
    }
}
