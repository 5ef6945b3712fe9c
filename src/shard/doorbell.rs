//! Waking a thread that sleeps in its ring, at no cost while it is awake.
//!
//! A thread that others push to (a shard, with its log and mesh inboxes) owns one [`Doorbell`];
//! producers share it by `Arc`. The bell carries no data: the queues do.
//!
//! The protocol, and why no wake-up is lost:
//! ```text
//!  producer                               consumer
//!  P1  push to the queue                  C1  prepare_sleep()   asleep := true
//!  P2  ring(): if asleep, then            C2  look at every queue again;
//!      asleep := false, write the fd          something there? awake() and serve it
//!                                         C3  ring.wait()       returns when the fd was written
//!                                         C4  awake()           asleep := false
//! ```
//! A sequentially consistent fence lies between P1 and P2 and between C1 and C2. So either the
//! consumer's look (C2) comes after the push and finds it, or the producer's look (P2) comes after
//! C1 and finds `asleep`. It cannot be neither. When several producers see `asleep`, the one that
//! swaps it writes. A bell rung between C2 and C3 makes the wait return at once, since the value
//! stays in the eventfd until the ring has read it; one rung between C3 and C4 costs one idle turn.
//!
//! The tests fail when C2 is left out, when it comes before C1, and when P2 does not write. They do
//! not fail without the fences: on x86 the queue's own locked instructions order the two sides. That
//! part rests on the argument above.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// One consumer's bell. See the module's header for the order of calls.
#[derive(Debug)]
pub struct Doorbell {
    /// Blocking on purpose: the ring's read of it must wait for a value, not fail with EAGAIN.
    event: OwnedFd,
    asleep: AtomicBool,
    made: Instant,
    /// When the bell was last rung, in nanoseconds after `made`; 0: not since it was last asked.
    rung_ns: AtomicU64,
}

impl Doorbell {
    /// A bell whose consumer is awake.
    ///
    /// # Errors
    /// `eventfd(2)`'s: out of file descriptors or memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { event, asleep: AtomicBool::new(false), made: Instant::now(), rung_ns: AtomicU64::new(0) })
    }

    /// Producers, after a push: wakes the consumer if it sleeps or is about to. Returns true when
    /// it took a system call to do so.
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // The plain load keeps the line shared while the consumer is awake and producers are many.
        let rings = self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::SeqCst);
        if rings {
            self.rung_ns.store(self.now_ns(), Ordering::Relaxed);
            let one = 1_u64.to_ne_bytes();
            // SAFETY: eight readable bytes, as eventfd wants. It cannot block: that takes a value
            // near 2^64, and each sleep of the consumer adds at most one.
            let written = unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
            debug_assert_eq!(written, 8);
        }
        rings
    }

    /// Consumer: from here on producers write the eventfd. Look at every queue after this call and
    /// before sleeping.
    pub fn prepare_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Consumer: awake again, or not going to sleep after all.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Consumer, woken by the bell: how long ago it was rung. `None` when that was told already.
    pub fn take_wake_time(&self) -> Option<Duration> {
        match self.rung_ns.swap(0, Ordering::Relaxed) {
            0 => None,
            rung_ns => Some(Duration::from_nanos(self.now_ns().saturating_sub(rung_ns))),
        }
    }

    fn now_ns(&self) -> u64 {
        // At least 1: 0 stands for "not rung". It lasts for 584 years.
        self.made.elapsed().as_nanos() as u64 | 1
    }

    /// The eventfd, for `Ring::watch_doorbell`.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ring::{Completion, Ring, RingConfig};
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::time::{Duration, Instant};

    /// A wait that lasts so long beside a filled queue was not woken.
    const LOST_AFTER: Duration = Duration::from_secs(2);

    /// A consumer loop as a shard runs it: serve, prepare, look again, wait. Returns the number of
    /// waits that ended by the clock although something was there: lost wake-ups.
    fn consume(bell: &Doorbell, inbox: &flume::Receiver<u64>, mut on_item: impl FnMut(u64) -> bool) -> u64 {
        let mut ring = Ring::new(RingConfig { entries: 8, buffers: 1, buffer_bytes: 64 }).unwrap();
        ring.watch_doorbell(bell);
        let mut lost = 0;
        let mut state = 99;
        loop {
            while let Ok(item) = inbox.try_recv() {
                if !on_item(item) {
                    return lost;
                }
            }
            assert!(!inbox.is_disconnected(), "the other side failed");
            // Pauses at each step of the protocol: without them the steps lie nanoseconds apart, and
            // a protocol that lacks one would pass.
            pause(&mut state);
            bell.prepare_sleep();
            pause(&mut state);
            if !inbox.is_empty() {
                bell.awake();
                continue;
            }
            pause(&mut state);
            let before = Instant::now();
            ring.wait(Some(LOST_AFTER)).unwrap();
            bell.awake();
            let mut rung = false;
            while let Some(completion) = ring.next() {
                rung |= matches!(completion, Completion::DoorbellRung);
            }
            if !rung && before.elapsed() >= LOST_AFTER && !inbox.is_empty() {
                lost += 1;
                assert!(lost < 3, "wake-ups are lost");
            }
        }
    }

    /// Deterministic pauses of 0–60 µs, some of them sleeps and most of them spins.
    fn pause(state: &mut u64) {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let spins = (*state >> 40) % 4_000;
        match (*state >> 33) % 16 {
            0 => std::thread::sleep(Duration::from_micros(spins / 64)),
            1..=7 => (0..spins).for_each(|_| std::hint::spin_loop()),
            _ => {}
        }
    }

    #[test]
    fn no_wake_up_is_lost_in_ping_pong() {
        const ROUNDS: u64 = 20_000;
        let bells = [Arc::new(Doorbell::new().unwrap()), Arc::new(Doorbell::new().unwrap())];
        let (to_a, from_b) = flume::bounded(4);
        let (to_b, from_a) = flume::bounded(4);
        let (bell_a, bell_b) = (bells[0].clone(), bells[1].clone());
        let (bell_a2, bell_b2) = (bells[0].clone(), bells[1].clone());
        let b = std::thread::spawn(move || {
            let mut state = 7;
            consume(&bell_b, &from_a, |n| {
                pause(&mut state);
                to_a.send(n).unwrap();
                bell_a2.ring();
                n < ROUNDS
            })
        });
        to_b.send(1).unwrap();
        bell_b2.ring();
        let mut state = 13;
        let mut expected = 1;
        let lost_a = consume(&bell_a, &from_b, |n| {
            assert_eq!(n, expected);
            expected += 1;
            pause(&mut state);
            if n < ROUNDS {
                to_b.send(n + 1).unwrap();
                bell_b2.ring();
            }
            n < ROUNDS
        });
        assert_eq!((lost_a, b.join().unwrap()), (0, 0));
        assert_eq!(expected, ROUNDS + 1);
    }

    #[test]
    fn many_producers_one_sleeper() {
        const EACH: u64 = 20_000;
        let bell = Arc::new(Doorbell::new().unwrap());
        let (tx, rx) = flume::bounded(64);
        let calls = Arc::new(AtomicU64::new(0));
        let producers: Vec<_> = (0..3)
            .map(|seed| {
                let (bell, tx, calls) = (bell.clone(), tx.clone(), calls.clone());
                std::thread::spawn(move || {
                    let mut state = seed;
                    for n in 0..EACH {
                        if n % 8 == 0 {
                            pause(&mut state);
                        }
                        tx.send(n).unwrap();
                        calls.fetch_add(u64::from(bell.ring()), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut got = 0;
        let lost = consume(&bell, &rx, |_| {
            got += 1;
            got < 3 * EACH
        });
        producers.into_iter().for_each(|p| p.join().unwrap());
        assert_eq!((lost, got), (0, 3 * EACH));
        assert!(calls.load(Ordering::Relaxed) <= 3 * EACH);
    }

    #[test]
    fn an_awake_consumer_costs_no_system_call() {
        let bell = Doorbell::new().unwrap();
        assert!(!bell.ring());
        bell.prepare_sleep();
        assert!(bell.ring());
        assert!(!bell.ring(), "one write wakes; the second producer need not");
        bell.prepare_sleep();
        bell.awake();
        assert!(!bell.ring());
    }
}
