//! Memory lent to the kernel: the ring of provided buffers that receives are filled from.
//!
//! Holds the mapping, the kernel's ring of free buffers, and the ids of those in our hands. Refuses
//! to know about sockets or completions. A buffer is the kernel's until a completion names it, and
//! ours until [`Buffers::release`]; a [`BufferId`] exists only in the second state and is consumed by
//! the return to the first, so that no slice of a buffer can be alive while the kernel writes to it.
//!
//! The kernel takes free buffers in turn, so all that are offered are touched, however few are in
//! use at once. So few are offered at first, and twice as many after a receive found none: the memory
//! of the others is never made.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// Buffers that are offered before anybody misses one.
const OFFERED_AT_FIRST: u16 = 128;

/// A filled buffer that the caller holds. Give it back with `Ring::release`, to the ring it came
/// from; one that is dropped is lost to that ring until the ring ends.
#[derive(Debug, PartialEq, Eq)]
pub struct BufferId {
    index: u16,
    // An id names a buffer of one ring, and a ring stays on its thread.
    confined: PhantomData<*const ()>,
}

/// The provided buffers of one ring.
pub(super) struct Buffers {
    /// First the kernel's ring of `count` entries, then, from `data_at`, the buffers themselves.
    map: Mapping,
    data_at: usize,
    count: u16,
    bytes: u32,
    /// Buffers that are in use by now: those with a lower index.
    offered: u16,
    /// Some of those that were added last have been used, so that a shortage is one of all.
    is_last_part_used: bool,
    /// Our copy of the tail that the kernel reads.
    tail: u16,
}

impl Buffers {
    /// Maps memory for `count` buffers (a power of two, at most 32,768) of `bytes` each. The first
    /// of them are offered to the kernel once the ring at [`Buffers::ring_address`] is registered.
    ///
    /// # Errors
    /// `InvalidInput` for a count or size that cannot be; `mmap`'s own errors.
    pub fn new(count: u16, bytes: u32) -> io::Result<Self> {
        if !count.is_power_of_two() || count > 32_768 || bytes == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the number of receive buffers must be a power of two up to 32768, their size at least 1 byte",
            ));
        }
        let page = 4096;
        let data_at = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(page);
        let map = Mapping::new(data_at + usize::from(count) * bytes as usize)?;
        let mut buffers = Self { map, data_at, count, bytes, offered: 0, is_last_part_used: false, tail: 0 };
        buffers.offer_up_to(count.min(OFFERED_AT_FIRST));
        Ok(buffers)
    }

    /// Where the kernel's ring lies; page-aligned, mapped as long as `self` lives.
    pub fn ring_address(&self) -> u64 {
        self.map.start.as_ptr() as u64
    }

    /// A receive has found no free buffer: offers twice as many, if there are more and those added
    /// last have been used. (Many receives find none at once: one answer is enough for all.)
    pub fn on_shortage(&mut self) {
        if self.is_last_part_used && self.offered < self.count {
            self.offer_up_to(self.offered * 2);
        }
    }

    fn offer_up_to(&mut self, offered: u16) {
        (self.offered..offered).for_each(|index| self.offer(index));
        self.offered = offered;
        self.is_last_part_used = false;
        self.publish();
    }

    /// How many buffers are in use by now.
    #[cfg(test)]
    pub fn offered(&self) -> u16 {
        self.offered
    }

    /// Number of buffers.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Takes over a buffer that a completion named.
    pub fn take(&mut self, index: u16) -> BufferId {
        debug_assert!(index < self.offered);
        self.is_last_part_used |= index >= self.offered / 2;
        BufferId { index, confined: PhantomData }
    }

    /// The first `len` bytes of a buffer, at most its size.
    pub fn slice(&self, id: &BufferId, len: usize) -> &[u8] {
        let index = usize::from(id.index % self.count);
        let len = len.min(self.bytes as usize);
        // SAFETY: the range lies in the mapping, which is initialised (zeroed by mmap), and the
        // kernel does not write to a buffer whose id exists (see the module's header).
        unsafe {
            std::slice::from_raw_parts(self.map.start.as_ptr().add(self.data_at + index * self.bytes as usize), len)
        }
    }

    /// Gives a buffer back to the kernel.
    pub fn release(&mut self, id: BufferId) {
        self.offer(id.index % self.count);
        self.publish();
    }

    /// Writes the entry of one free buffer behind the tail.
    fn offer(&mut self, index: u16) {
        let slot = usize::from(self.tail & (self.count - 1));
        let data = self.ring_address() + (self.data_at + usize::from(index) * self.bytes as usize) as u64;
        // SAFETY: `slot < count`, so the entry lies in the mapping's first part; the kernel reads
        // entries only before the published tail, and at most `count` buffers are ever offered.
        let entry = unsafe { &mut *self.map.start.as_ptr().cast::<BufRingEntry>().add(slot) };
        entry.set_addr(data);
        entry.set_len(self.bytes);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes the entries up to our tail visible to the kernel.
    fn publish(&self) {
        // SAFETY: the ring starts at the mapping's page-aligned start and holds at least one entry,
        // whose reserved half-word is the tail shared with the kernel: an aligned u16 that both
        // sides access atomically.
        let tail = unsafe { &*BufRingEntry::tail(self.map.start.as_ptr().cast()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Private anonymous memory, unmapped on drop.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap without MAP_FIXED never maps page zero");
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and no slice of it outlives the borrow of `Buffers`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
