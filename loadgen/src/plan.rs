//! What a run does, as data: a scenario makes a [`Plan`], the drivers carry it out.

use crate::measure::{Schedule, Window};

/// How clients get into their rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Everybody connects, then each room is created by its first member, then everybody subscribes.
    /// No `room:joined` is fanned out to a filling room, which would cost the square of its size.
    CreateThenSubscribe,
    /// Each client joins as soon as it is greeted; the first one in creates the room.
    JoinEach,
}

/// Who sends when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Traffic {
    /// Nobody.
    None,
    /// So many messages of each room on their way at any time.
    Closed {
        /// At least 1.
        in_flight: u32,
    },
    /// At a fixed rate over all rooms, whatever the server does.
    Open {
        /// Messages a second.
        per_second: f64,
    },
    /// The same in equal steps of time, each with its own rate; warm-up has the first one's.
    Steps {
        /// Messages a second in the first step.
        from: f64,
        /// In the last one.
        to: f64,
        /// At least 2, at most [`STEPS_MAX`].
        steps: u32,
    },
}

/// Most steps of a run.
pub const STEPS_MAX: usize = 50;

/// Names of the steps' windows.
const STEP_NAMES: [&str; STEPS_MAX] = [
    "step 1", "step 2", "step 3", "step 4", "step 5", "step 6", "step 7", "step 8", "step 9", "step 10", "step 11",
    "step 12", "step 13", "step 14", "step 15", "step 16", "step 17", "step 18", "step 19", "step 20", "step 21",
    "step 22", "step 23", "step 24", "step 25", "step 26", "step 27", "step 28", "step 29", "step 30", "step 31",
    "step 32", "step 33", "step 34", "step 35", "step 36", "step 37", "step 38", "step 39", "step 40", "step 41",
    "step 42", "step 43", "step 44", "step 45", "step 46", "step 47", "step 48", "step 49", "step 50",
];

impl Traffic {
    /// The intended rate by time: until when (seconds of measuring), and how many messages a second.
    /// Empty for traffic without a rate of its own.
    pub fn rates(self, duration_s: f64) -> Vec<(f64, f64)> {
        match self {
            Self::None | Self::Closed { .. } => Vec::new(),
            Self::Open { per_second } => vec![(duration_s, per_second)],
            Self::Steps { from, to, steps } => {
                let rate = |step: u32| from + (to - from) * f64::from(step) / f64::from(steps - 1);
                let until = |step: u32| duration_s * f64::from(step + 1) / f64::from(steps);
                (0..steps).map(|step| (until(step), rate(step))).collect()
            }
        }
    }
}

/// Times are relative to the start of measuring, seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// How clients get into their rooms.
    pub setup: Setup,
    /// Who sends when.
    pub traffic: Traffic,
    /// Only the first member of each room sends.
    pub first_member_sends: bool,
    /// Bytes of a message's body.
    pub body_bytes: usize,
    /// Connections that a thread has in the making at any time.
    pub connecting: u32,
    /// Seconds of traffic before measuring.
    pub warmup_s: f64,
    /// Seconds of measuring.
    pub duration_s: f64,
    /// Everybody but the senders drops at once, and returns.
    pub absence: Option<Absence>,
    /// Some readers stop reading for a while.
    pub stall: Option<Stall>,
}

/// When sockets are dropped, and when they return.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Absence {
    /// Drop.
    pub from_s: f64,
    /// Return.
    pub to_s: f64,
}

/// When some readers do not read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stall {
    /// Stop reading.
    pub from_s: f64,
    /// Go on reading.
    pub to_s: f64,
    /// So many readers are slow, spread evenly over the candidates: all but each room's first member.
    pub slow: u32,
    /// How many candidates there are.
    pub candidates: u32,
    /// Receive buffer of the slow ones, bytes (SO_RCVBUF).
    pub receive_buffer: i32,
}

/// Nanoseconds of a time in seconds.
pub fn ns(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

impl Plan {
    /// The times of a run whose traffic starts at `start_ns`.
    pub fn schedule(&self, start_ns: u64) -> Schedule {
        let from_ns = start_ns + ns(self.warmup_s);
        let to_ns = from_ns + ns(self.duration_s);
        let window =
            |name, from_s: f64, to_s: f64| Window { name, from_ns: from_ns + ns(from_s), to_ns: from_ns + ns(to_s) };
        let split = self.absence.map(|a| (a.from_s, a.to_s)).or(self.stall.map(|s| (s.from_s, s.to_s)));
        let steps = self.traffic.rates(self.duration_s);
        let windows = match split {
            None if steps.len() > 1 => {
                let starts = std::iter::once(0.0).chain(steps.iter().map(|(until, _)| *until));
                let named = STEP_NAMES.iter().zip(starts.zip(&steps));
                named.map(|(name, (from_s, (to_s, _)))| window(name, from_s, *to_s)).collect()
            }
            None => vec![window("whole", 0.0, self.duration_s)],
            Some((from_s, to_s)) => {
                vec![
                    window("before", 0.0, from_s),
                    window("during", from_s, to_s),
                    window("after", to_s, self.duration_s),
                ]
            }
        };
        Schedule { from_ns, to_ns, windows }
    }

    /// Number of [`Plan::schedule`]'s windows.
    pub fn windows(&self) -> usize {
        let has_event = self.absence.is_some() || self.stall.is_some();
        if has_event { 3 } else { self.traffic.rates(self.duration_s).len().max(1) }
    }

    /// True when this user's reader is one of the slow ones.
    pub fn is_slow(&self, user: u32, rooms_of: u32) -> bool {
        self.stall.filter(|_| !user.is_multiple_of(rooms_of)).is_some_and(|stall| {
            // The candidates before this one, and the slow ones among so many.
            let before = u64::from(user - user / rooms_of - 1);
            let slow = |count: u64| count * u64::from(stall.slow) / u64::from(stall.candidates.max(1));
            slow(before + 1) > slow(before)
        })
    }

    /// True when this user sends.
    pub fn is_sender(&self, user: u32, rooms_of: u32) -> bool {
        !self.first_member_sends || user.is_multiple_of(rooms_of)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A plan for tests: closed loop, one in flight.
    pub fn plan() -> Plan {
        Plan {
            scenario: "test",
            setup: Setup::CreateThenSubscribe,
            traffic: Traffic::Closed { in_flight: 1 },
            first_member_sends: false,
            body_bytes: 64,
            connecting: 32,
            warmup_s: 0.1,
            duration_s: 0.5,
            absence: None,
            stall: None,
        }
    }

    #[test]
    fn windows_follow_what_happens() {
        let whole = plan().schedule(1_000);
        assert_eq!((whole.from_ns, whole.to_ns), (100_001_000, 600_001_000));
        assert_eq!(whole.windows.len(), plan().windows());
        let resume = Plan { absence: Some(Absence { from_s: 0.1, to_s: 0.3 }), ..plan() };
        let schedule = resume.schedule(0);
        let names: Vec<&str> = schedule.windows.iter().map(|w| w.name).collect();
        assert_eq!(names, ["before", "during", "after"]);
        assert_eq!(schedule.windows[1].from_ns, 200_000_000);
        assert!(schedule.windows.windows(2).all(|pair| pair[0].to_ns == pair[1].from_ns));
        assert_eq!(schedule.windows.len(), resume.windows());
        let stairs = Plan { traffic: Traffic::Steps { from: 10.0, to: 50.0, steps: 5 }, ..plan() };
        let schedule = stairs.schedule(0);
        assert_eq!((schedule.windows.len(), stairs.windows(), schedule.windows[4].name), (5, 5, "step 5"));
        assert_eq!((schedule.windows[4].to_ns, schedule.windows[1].from_ns), (schedule.to_ns, 200_000_000));
        assert_eq!(stairs.traffic.rates(0.5)[1], (0.2, 20.0));
    }

    #[test]
    fn slow_readers_are_never_a_rooms_first_member() {
        let stall = Stall { from_s: 0.1, to_s: 0.2, slow: 8, candidates: 36, receive_buffer: 4_096 };
        let slow = Plan { stall: Some(stall), ..plan() };
        let users: Vec<u32> = (0..40).filter(|u| slow.is_slow(*u, 10)).collect();
        assert_eq!(users, [5, 9, 15, 19, 25, 29, 35, 39]);
        for count in 1..=36 {
            let slow = Plan { stall: Some(Stall { slow: count, ..stall }), ..plan() };
            assert_eq!((0..40).filter(|u| slow.is_slow(*u, 10)).count() as u32, count);
        }
        assert!((0..40).all(|u| slow.is_sender(u, 10)));
        let first = Plan { first_member_sends: true, ..plan() };
        assert_eq!((0..40).filter(|u| first.is_sender(*u, 10)).count(), 4);
    }
}
