//! Keeps the threads of a run in step: phases that all enter together, the schedule of the traffic,
//! and counters for the progress line. Shared by reference between the main thread and the drivers;
//! nothing here is touched per message.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::measure::Schedule;

/// Steps of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// The threads stand ready: nothing is connected while the start is measured.
    Ready = 0,
    /// Connect, upgrade, hello (and join, where each joins by itself).
    Connect = 1,
    /// Make the rooms.
    Create = 2,
    /// Subscribe.
    Subscribe = 3,
    /// Warm-up, then measuring.
    Traffic = 4,
    /// Nothing is sent any more; what is on its way arrives.
    Drain = 5,
    /// Say goodbye.
    Close = 6,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 7] =
        [Self::Ready, Self::Connect, Self::Create, Self::Subscribe, Self::Traffic, Self::Drain, Self::Close];

    fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Close)
    }
}

/// One thread's counters, written once a turn.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Connections in their room (or greeted, before there are rooms).
    pub ready: AtomicU32,
    /// Messages sent.
    pub sent: AtomicU64,
    /// Messages acknowledged.
    pub acked: AtomicU64,
    /// Messages delivered.
    pub delivered: AtomicU64,
    /// Broken promises so far.
    pub broken: AtomicU64,
}

/// The one of a run.
#[derive(Debug)]
pub struct Conductor {
    phase: AtomicU8,
    arrived: [AtomicU32; Phase::ALL.len()],
    give_up: AtomicBool,
    /// Why, in one sentence: the first thread's word.
    reason: OnceLock<String>,
    schedule: OnceLock<Schedule>,
    /// One a thread.
    pub gauges: Vec<Gauges>,
}

impl Conductor {
    /// For so many threads.
    pub fn new(threads: u32) -> Self {
        Self {
            phase: AtomicU8::new(0),
            arrived: Default::default(),
            give_up: AtomicBool::new(false),
            reason: OnceLock::new(),
            schedule: OnceLock::new(),
            gauges: (0..threads).map(|_| Gauges::default()).collect(),
        }
    }

    /// The phase in force.
    pub fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Ordering::Acquire))
    }

    /// A thread has done its part of the phase.
    pub fn arrive(&self, phase: Phase) {
        self.arrived[phase as usize].fetch_add(1, Ordering::AcqRel);
    }

    /// The times of the traffic; set before [`Phase::Traffic`] begins.
    pub fn schedule(&self) -> Option<&Schedule> {
        self.schedule.get()
    }

    /// True when the run cannot go on: threads end at once.
    pub fn has_given_up(&self) -> bool {
        self.give_up.load(Ordering::Relaxed)
    }

    /// Ends the run for a reason, in one sentence.
    pub fn give_up(&self, reason: impl Into<String>) {
        // A later reason mostly follows from the first.
        let _ = self.reason.set(reason.into());
        self.give_up.store(true, Ordering::Relaxed);
    }

    /// Why the run was given up.
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Main thread: sets the times of the traffic.
    pub fn plan_traffic(&self, schedule: Schedule) {
        self.schedule.set(schedule).expect("a run has one traffic phase");
    }

    /// Main thread: begins a phase.
    pub fn begin(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Main thread: waits until every thread has done its part, calling `tick` every few milliseconds.
    /// Returns false when `limit` is over or the run was given up.
    pub fn wait_for(&self, phase: Phase, limit: Duration, mut tick: impl FnMut()) -> bool {
        let end = Instant::now() + limit;
        let threads = self.gauges.len() as u32;
        while self.arrived[phase as usize].load(Ordering::Acquire) < threads {
            if Instant::now() >= end || self.has_given_up() {
                return false;
            }
            tick();
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Sums over all threads: ready, sent, acked, delivered, broken.
    pub fn totals(&self) -> [u64; 5] {
        let mut totals = [0; 5];
        for g in &self.gauges {
            let numbers = [
                u64::from(g.ready.load(Ordering::Relaxed)),
                g.sent.load(Ordering::Relaxed),
                g.acked.load(Ordering::Relaxed),
                g.delivered.load(Ordering::Relaxed),
                g.broken.load(Ordering::Relaxed),
            ];
            totals.iter_mut().zip(numbers).for_each(|(sum, more)| *sum += more);
        }
        totals
    }
}
