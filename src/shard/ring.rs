//! One thread's network I/O: an io_uring whose completions are a closed enum.
//!
//! Holds the kernel's ring and the memory lent to it. Refuses to own sockets (but for freshly
//! accepted ones, which it hands out), to know connections, and to decide anything: it re-arms
//! nothing but its own watch of the doorbell. To be driven in this order, over and over:
//!
//! 1. ask: [`Ring::accept_multi`], [`Ring::receive_multi`], [`Ring::poll_writable`] …: queued, no
//!    system call until the queue is full
//! 2. [`Ring::submit`] (do not wait) or [`Ring::wait`] (sleep until something happens)
//! 3. [`Ring::next`] until `None`; each [`BufferId`] goes back with [`Ring::release`]
//!
//! Three rules for callers:
//! - **A descriptor given to the ring stays open until the next `submit` or `wait`**, since only
//!   then the kernel takes its own reference. From then on its operations keep the *socket* alive even
//!   when the descriptor is closed: [`socket::shutdown`](super::socket::shutdown) it first, or cancel.
//! - Completions name their operation by [`Key`]. One that belongs to an earlier user of the slot
//!   still arrives: compare generations, and release its buffer all the same.
//! - Every operation ends exactly once: see each [`Completion`].
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::types::{self, CancelBuilder, SubmitArgs};
use io_uring::{IoUring, cqueue, opcode, squeue};

pub use super::buffers::BufferId;
use super::buffers::Buffers;
use super::doorbell::Doorbell;
pub use super::socket::{SendError, send_slices};
use super::socket::{sockaddr_in, socklen};

/// Sizes of a ring, fixed at its creation.
#[derive(Debug, Clone, Copy)]
pub struct RingConfig {
    /// Operations that can be queued before a system call becomes necessary: 1–32,768.
    pub entries: u32,
    /// Receive buffers at most: a power of two up to 32,768. The ring begins with few and adds more
    /// as they are missed: when all are in use, receives end with [`Ended::NoBuffers`].
    pub buffers: u16,
    /// Bytes of each receive buffer.
    pub buffer_bytes: u32,
}

/// How the kernel runs a ring's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskRun {
    /// Only inside the ring's own calls (IORING_SETUP_DEFER_TASKRUN): nothing interrupts the thread,
    /// and completions arrive in bulk.
    Deferred,
    /// At any transition to the kernel (IORING_SETUP_COOP_TASKRUN).
    Cooperative,
}

/// The caller's name for the target of an operation: `slot << 32 | generation`. The four highest
/// bits must be zero (slot < 2^28): the ring keeps the kind of operation there. One operation of
/// a kind may be in flight for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u64);

impl Key {
    /// A key of its two parts. `slot` must be below 2^28.
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self((slot as u64) << 32 | generation as u64)
    }

    /// Index into the caller's table.
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Tells the slot's users apart.
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
}

/// Why a receive is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The peer sends no more.
    Eof,
    /// The connection failed with this errno.
    Error(i32),
    /// All provided buffers were in use. Nothing is lost: release some, then arm again.
    NoBuffers,
    /// By [`Ring::cancel_receive`].
    Cancelled,
}

/// Something that happened.
#[derive(Debug)]
pub enum Completion {
    /// A new connection: non-blocking, closed on exec. The accept goes on.
    Accepted(OwnedFd),
    /// The accept is over and must be armed again to go on: an errno, ECANCELED after
    /// [`Ring::cancel_accept`], or 0 when the kernel ended it without an error.
    AcceptFailed(i32),
    /// Bytes arrived, at least one.
    Received {
        /// As given when the receive was armed.
        key: Key,
        /// Holds the bytes; must be released.
        buffer: BufferId,
        /// Number of bytes.
        len: usize,
        /// The multishot receive goes on. When false it is over, no [`Completion::ReceiveEnded`]
        /// follows, and the caller may arm again.
        armed: bool,
    },
    /// A receive is over without more bytes.
    ReceiveEnded {
        /// As given when the receive was armed.
        key: Key,
        /// Why.
        reason: Ended,
    },
    /// The socket takes bytes again, or failed (a send tells which).
    Writable {
        /// As given to [`Ring::poll_writable`].
        key: Key,
        /// The poll itself failed: ECANCELED after [`Ring::cancel_writable`].
        error: Option<i32>,
    },
    /// A connect is over.
    Connected {
        /// As given to [`Ring::connect`].
        key: Key,
        /// Connected, or the errno.
        result: Result<(), i32>,
    },
    /// The kernel has looked for the receive named in [`Ring::cancel_receive`], and found it or not.
    /// A receive that was found ends with its own completion, before or after this one.
    Cancelled {
        /// The receive's key.
        key: Key,
    },
    /// Somebody rang the watched doorbell while this thread slept (or was about to).
    DoorbellRung,
}

/// Kinds of operation, in the four highest bits of `user_data`.
mod kind {
    pub const IGNORED: u64 = 0;
    pub const ACCEPT: u64 = 1 << SHIFT;
    pub const RECEIVE: u64 = 2 << SHIFT;
    pub const WRITABLE: u64 = 3 << SHIFT;
    pub const CONNECT: u64 = 4 << SHIFT;
    pub const DOORBELL: u64 = 5 << SHIFT;
    pub const CANCEL: u64 = 6 << SHIFT;
    pub const SHIFT: u32 = 60;
    pub const MASK: u64 = 0xf << SHIFT;
}

/// The only group of provided buffers in a ring.
const GROUP: u16 = 0;

/// One thread's ring. It cannot leave the thread that made it.
pub struct Ring {
    // Declared, and so dropped, before the memory that the kernel may write to.
    ring: IoUring,
    task_run: TaskRun,
    buffers: Buffers,
    /// Where the read of the doorbell's eventfd goes: a fixed address while the ring lives.
    bell_value: Box<u64>,
    bell: Option<RawFd>,
    /// Operations for which the queue had no place even after a submit.
    waiting: VecDeque<squeue::Entry>,
    /// Addresses of connects not yet submitted; the kernel copies each when it takes the operation.
    #[allow(clippy::vec_box)] // The kernel holds their addresses: they must not move as the list grows.
    addresses: Vec<Box<libc::sockaddr_in>>,
    /// A second completion made from one of the kernel's.
    follow_up: Option<Completion>,
}

impl Ring {
    /// Sets up a ring with deferred task running, or cooperative where the kernel refuses that. In
    /// three interleaved runs of each the two cost a busy shard the same within the machine's noise;
    /// deferred is chosen because nothing then interrupts a turn.
    ///
    /// # Errors
    /// The kernel's: EPERM or ENOSYS where io_uring is forbidden or missing (see
    /// [`probe`](super::probe::probe) for a sentence about it), ENOMEM, EINVAL for impossible sizes.
    pub fn new(config: RingConfig) -> io::Result<Self> {
        match Self::with_task_run(config, TaskRun::Deferred) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Self::with_task_run(config, TaskRun::Cooperative)
            }
            other => other,
        }
    }

    /// Sets up a ring that runs its work as told.
    ///
    /// # Errors
    /// As [`Ring::new`]; EINVAL where the kernel does not know the mode.
    pub fn with_task_run(config: RingConfig, task_run: TaskRun) -> io::Result<Self> {
        let buffers = Buffers::new(config.buffers, config.buffer_bytes)?;
        let mut builder = IoUring::builder();
        // A completion for every buffer, plus as many of other kinds as can be queued, twice over:
        // past that the kernel keeps an overflow list, which loses nothing but costs.
        let completions = config.entries.max(u32::from(config.buffers)).saturating_mul(4).max(64);
        builder.setup_single_issuer().setup_taskrun_flag().setup_submit_all().setup_clamp();
        builder.setup_cqsize(completions.next_power_of_two());
        match task_run {
            TaskRun::Deferred => builder.setup_defer_taskrun(),
            TaskRun::Cooperative => builder.setup_coop_taskrun(),
        };
        let ring: IoUring = builder.build(config.entries)?;
        // SAFETY: the buffers' mapping lives as long as the ring (`Drop` cancels everything first),
        // starts at a page and has `count` entries.
        unsafe { ring.submitter().register_buf_ring_with_flags(buffers.ring_address(), buffers.count(), GROUP, 0)? };
        Ok(Self {
            ring,
            task_run,
            buffers,
            bell_value: Box::new(0),
            bell: None,
            waiting: VecDeque::new(),
            addresses: Vec::new(),
            follow_up: None,
        })
    }

    /// The mode in force.
    pub fn task_run(&self) -> TaskRun {
        self.task_run
    }

    // --------------------------------------------------------------------------------------------
    // Ask

    /// Accepts connections from `listener` until [`Completion::AcceptFailed`]. One listener a ring.
    pub fn accept_multi(&mut self, listener: RawFd) {
        let entry = opcode::AcceptMulti::new(types::Fd(listener)).flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        self.push(entry.build().user_data(kind::ACCEPT));
    }

    /// Ends the accept: [`Completion::AcceptFailed`] with ECANCELED follows if one was armed.
    pub fn cancel_accept(&mut self) {
        self.push_cancel(kind::ACCEPT, kind::IGNORED);
    }

    /// Receives once, into a provided buffer.
    pub fn receive_once(&mut self, fd: RawFd, key: Key) {
        // Length 0 means the size of the buffer that is picked.
        let entry = opcode::Recv::new(types::Fd(fd), std::ptr::null_mut(), 0).buf_group(GROUP).build();
        self.push(entry.flags(squeue::Flags::BUFFER_SELECT).user_data(named(kind::RECEIVE, key)));
    }

    /// Receives into provided buffers until a completion says that it is over.
    pub fn receive_multi(&mut self, fd: RawFd, key: Key) {
        let entry = opcode::RecvMulti::new(types::Fd(fd), GROUP).build();
        self.push(entry.user_data(named(kind::RECEIVE, key)));
    }

    /// Ends the receive of `key`: [`Completion::Cancelled`] follows, and, if one was in flight, its
    /// own [`Completion::ReceiveEnded`] (or a last `Received` that is not armed).
    pub fn cancel_receive(&mut self, key: Key) {
        self.push_cancel(named(kind::RECEIVE, key), named(kind::CANCEL, key));
    }

    /// Says once when `fd` takes bytes again: [`Completion::Writable`].
    pub fn poll_writable(&mut self, fd: RawFd, key: Key) {
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLOUT as u32).build();
        self.push(entry.user_data(named(kind::WRITABLE, key)));
    }

    /// Ends the poll of `key`: its [`Completion::Writable`] follows with ECANCELED if it was armed.
    pub fn cancel_writable(&mut self, key: Key) {
        self.push_cancel(named(kind::WRITABLE, key), kind::IGNORED);
    }

    /// Connects `fd`: [`Completion::Connected`] follows.
    pub fn connect(&mut self, fd: RawFd, key: Key, addr: SocketAddrV4) {
        let address = Box::new(sockaddr_in(&addr));
        let pointer: *const libc::sockaddr_in = &raw const *address;
        self.addresses.push(address);
        let entry = opcode::Connect::new(types::Fd(fd), pointer.cast(), socklen::<libc::sockaddr_in>()).build();
        self.push(entry.user_data(named(kind::CONNECT, key)));
    }

    /// Wakes this ring whenever `doorbell` is rung, from now on. One doorbell a ring; it must
    /// outlive the ring or its last `wait`.
    pub fn watch_doorbell(&mut self, doorbell: &Doorbell) {
        self.bell = Some(doorbell.raw_fd());
        self.read_bell();
    }

    // --------------------------------------------------------------------------------------------
    // Drive

    /// Hands the queue to the kernel and lets it finish what is ready, without waiting. No system
    /// call when there is neither.
    ///
    /// # Errors
    /// `io_uring_enter(2)`'s, other than those that mean "reap first" or "again".
    pub fn submit(&mut self) -> io::Result<()> {
        self.refill();
        let queue = self.ring.submission();
        if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        // The crate adds GETEVENTS when the kernel says that deferred work or an overflow waits.
        let result = self.ring.submitter().submit();
        self.entered(result)
    }

    /// Hands the queue to the kernel and sleeps until there is at least one completion, or until
    /// `timeout` is over (none: no limit). Signals may end it early.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.follow_up.is_some() || !self.ring.completion().is_empty() || timeout == Some(Duration::ZERO) {
            return self.submit();
        }
        self.refill();
        let result = match timeout {
            None => self.ring.submitter().submit_and_wait(1),
            Some(limit) => {
                let limit = types::Timespec::from(limit);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        self.entered(result)
    }

    /// The next completion that has arrived.
    // Not an Iterator: it lends nothing, and a caller works on the ring between two calls.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Completion> {
        if let Some(completion) = self.follow_up.take() {
            return Some(completion);
        }
        loop {
            let entry = self.ring.completion().next()?;
            if let Some(completion) = self.translate(&entry) {
                return Some(completion);
            }
        }
    }

    /// True when [`Ring::next`] has something, without a system call. With deferred task running
    /// the kernel may have more: only `submit` and `wait` let it out.
    pub fn has_completions(&mut self) -> bool {
        self.follow_up.is_some() || !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// The first `len` bytes of a filled buffer.
    pub fn buffer(&self, id: &BufferId, len: usize) -> &[u8] {
        self.buffers.slice(id, len)
    }

    /// Gives a buffer back to the kernel.
    pub fn release(&mut self, id: BufferId) {
        self.buffers.release(id);
    }

    // --------------------------------------------------------------------------------------------

    fn translate(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
        let key = Key(data & !kind::MASK);
        let errno = (result < 0).then_some(-result);
        match data & kind::MASK {
            kind::ACCEPT => self.on_accept(result, cqueue::more(flags)),
            kind::RECEIVE => Some(self.on_receive(key, result, flags)),
            kind::WRITABLE => Some(Completion::Writable { key, error: errno }),
            kind::CONNECT => Some(Completion::Connected { key, result: errno.map_or(Ok(()), Err) }),
            kind::CANCEL => Some(Completion::Cancelled { key }),
            kind::DOORBELL => {
                // A failed read is not repeated, or a closed bell would make the thread spin.
                if errno.is_none() {
                    self.read_bell();
                }
                errno.is_none().then_some(Completion::DoorbellRung)
            }
            _ => None,
        }
    }

    fn on_accept(&mut self, result: i32, armed: bool) -> Option<Completion> {
        if result < 0 {
            return (!armed).then_some(Completion::AcceptFailed(-result));
        }
        if !armed {
            self.follow_up = Some(Completion::AcceptFailed(0));
        }
        // SAFETY: a successful accept yields a fresh descriptor, named by this completion alone.
        Some(Completion::Accepted(unsafe { OwnedFd::from_raw_fd(result) }))
    }

    fn on_receive(&mut self, key: Key, result: i32, flags: u32) -> Completion {
        let buffer = cqueue::buffer_select(flags).map(|index| self.buffers.take(index));
        match (usize::try_from(result), buffer) {
            (Ok(len @ 1..), Some(buffer)) => Completion::Received { key, buffer, len, armed: cqueue::more(flags) },
            (_, buffer) => {
                if let Some(unused) = buffer {
                    self.buffers.release(unused);
                }
                let reason = match -result {
                    0 => Ended::Eof,
                    libc::ENOBUFS => {
                        self.buffers.on_shortage();
                        Ended::NoBuffers
                    }
                    libc::ECANCELED => Ended::Cancelled,
                    errno => Ended::Error(errno),
                };
                Completion::ReceiveEnded { key, reason }
            }
        }
    }

    fn read_bell(&mut self) {
        let Some(fd) = self.bell else { return };
        // `bell_value` stays where it is while the ring lives. Only one read is ever in flight: it
        // is armed at the start and when the one before it has completed.
        let target: *mut u64 = &raw mut *self.bell_value;
        let entry = opcode::Read::new(types::Fd(fd), target.cast(), 8).build();
        self.push(entry.user_data(kind::DOORBELL));
    }

    fn push_cancel(&mut self, target: u64, own: u64) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target)).build();
        self.push(entry.user_data(own));
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.waiting.is_empty() {
            // SAFETY: what the entry points at lives until the kernel is done with it: buffers and
            // `bell_value` as long as the ring, addresses until submitted.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.waiting.push_back(entry);
        self.refill();
    }

    /// Moves waiting operations into the queue, submitting when it is full, as far as the kernel
    /// takes them. Whatever is left stays for the next time.
    fn refill(&mut self) {
        while let Some(entry) = self.waiting.front() {
            // SAFETY: as in `push`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.waiting.pop_front();
            } else {
                let result = self.ring.submitter().submit();
                // An error here comes again, and is reported, at the caller's own submit.
                if self.entered(result).is_err() || self.ring.submission().is_full() {
                    return;
                }
            }
        }
    }

    /// After entering the kernel: what it took need not be kept, and some errors are none.
    fn entered(&mut self, result: io::Result<usize>) -> io::Result<()> {
        if self.waiting.is_empty() && !self.addresses.is_empty() && self.ring.submission().is_empty() {
            self.addresses.clear();
        }
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The wait was interrupted or over; or completions must be reaped, or memory be
                // freed, before the kernel takes more: the queue keeps what was not taken.
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Closing the ring's descriptor ends its operations only some time later, and until then
        // they may write to our memory. So end them first (ENOENT: there was none).
        let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        // Accepted sockets that nobody took are closed here.
        while self.next().is_some() {}
    }
}

/// `user_data` of an operation of this kind on this key.
fn named(kind: u64, key: Key) -> u64 {
    debug_assert_eq!(key.0 & kind::MASK, 0, "the four highest bits of a key are the ring's");
    kind | (key.0 & !kind::MASK)
}

#[cfg(test)]
mod tests;
