//! Times and their histograms. Pure: the clock is a parameter.
//!
//! A message belongs to the window in which it was *meant* to be sent, whenever its ack or its
//! deliveries come, so that a server's stall lengthens latencies and removes none from the books.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Times since the run began, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// What it is called in the report.
    pub name: &'static str,
    /// Inclusive.
    pub from_ns: u64,
    /// Exclusive.
    pub to_ns: u64,
}

impl Window {
    /// True when the time lies within.
    pub fn contains(&self, ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&ns)
    }
}

/// When what is measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Start of measuring, ns.
    pub from_ns: u64,
    /// End of measuring and of sending, ns.
    pub to_ns: u64,
    /// Parts of it that are reported apart; latencies outside every window are not recorded.
    pub windows: Vec<Window>,
}

impl Schedule {
    /// One window of `seconds` from `from_ns` on.
    pub fn whole(from_ns: u64, seconds: f64) -> Self {
        let to_ns = from_ns + crate::plan::ns(seconds);
        Self { from_ns, to_ns, windows: vec![Window { name: "whole", from_ns, to_ns }] }
    }

    /// It ends now.
    pub fn cut(&mut self, now_ns: u64) {
        self.to_ns = self.to_ns.min(now_ns);
        for window in &mut self.windows {
            window.from_ns = window.from_ns.min(now_ns);
            window.to_ns = window.to_ns.min(now_ns);
        }
    }

    /// True within the measuring window.
    pub fn is_measuring(&self, ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&ns)
    }

    fn window_of(&self, ns: u64) -> Option<usize> {
        self.windows.iter().position(|window| window.contains(ns))
    }
}

/// Latencies of one thread (or, added up, of all).
#[derive(Debug, Clone)]
pub struct Meters {
    /// From the intended time of sending to the `ok`, a histogram a window, ns.
    pub ack: Vec<Histogram<u64>>,
    /// From the intended time of sending to the delivery, likewise.
    pub delivery: Vec<Histogram<u64>>,
    /// Acknowledgements that came within each window, whenever their messages were meant to be sent: what the server
    /// did in that time.
    pub acked: Vec<u64>,
    /// From the start of connecting to the last reply of the set-up, ns.
    pub connect: Histogram<u64>,
    /// From the moment of returning to the reply of the resume, ns.
    pub back: Histogram<u64>,
    /// How late this tool itself was, at a rate: from the intended time of sending to the sending, ns.
    pub late: Histogram<u64>,
}

/// 1 µs to 2 min with three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 120_000_000_000, 3).expect("constant bounds that hdrhistogram takes")
}

impl Meters {
    /// Empty, for so many windows.
    pub fn new(windows: usize) -> Self {
        let many = || (0..windows).map(|_| histogram()).collect::<Vec<_>>();
        Self {
            ack: many(),
            delivery: many(),
            acked: vec![0; windows],
            connect: histogram(),
            back: histogram(),
            late: histogram(),
        }
    }

    /// An `ok` to a message meant for `sent_ns`.
    pub fn record_ack(&mut self, schedule: &Schedule, sent_ns: u64, now_ns: u64) {
        if let Some(hist) = schedule.window_of(sent_ns).and_then(|at| self.ack.get_mut(at)) {
            hist.saturating_record(now_ns.saturating_sub(sent_ns));
        }
        if let Some(count) = schedule.window_of(now_ns).and_then(|at| self.acked.get_mut(at)) {
            *count += 1;
        }
    }

    /// A delivery of a message meant for `sent_ns`.
    pub fn record_delivery(&mut self, schedule: &Schedule, sent_ns: u64, now_ns: u64) {
        if let Some(hist) = schedule.window_of(sent_ns).and_then(|at| self.delivery.get_mut(at)) {
            hist.saturating_record(now_ns.saturating_sub(sent_ns));
        }
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        let pairs = self.ack.iter_mut().zip(&other.ack).chain(self.delivery.iter_mut().zip(&other.delivery));
        self.acked.iter_mut().zip(&other.acked).for_each(|(sum, more)| *sum += more);
        let single =
            [(&mut self.connect, &other.connect), (&mut self.back, &other.back), (&mut self.late, &other.late)];
        for (sum, more) in pairs.chain(single) {
            sum.add(more).expect("all histograms have the same bounds");
        }
    }
}

/// A histogram in a few numbers, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Mean.
    pub mean_ms: f64,
    /// Half are faster.
    pub p50_ms: f64,
    /// Nine of ten.
    pub p90_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// 999 of 1,000.
    pub p999_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(hist: &Histogram<u64>) -> Self {
        let ms = |ns: f64| (ns / 1e3).round() / 1e3;
        let at = |q| ms(hist.value_at_quantile(q) as f64);
        Self {
            count: hist.len(),
            mean_ms: ms(hist.mean()),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(hist.max() as f64),
        }
    }
}

/// The intended times of an open loop: a fixed interval (or one after the other), whatever the
/// server does.
#[derive(Debug, Clone)]
pub struct Pacer {
    start_ns: u64,
    per_second: f64,
    given: u64,
    /// What follows: from when, and how many a second; the last one first.
    later: Vec<(u64, f64)>,
}

impl Pacer {
    /// `per_second` sends a second, the first at `start_ns`.
    pub fn new(start_ns: u64, per_second: f64) -> Self {
        Self { start_ns, per_second, given: 0, later: Vec::new() }
    }

    /// Another rate from a time on; called in the order of the times.
    pub fn and_then(mut self, from_ns: u64, per_second: f64) -> Self {
        self.later.insert(0, (from_ns, per_second));
        self
    }

    /// When the next send is meant to be.
    pub fn next_ns(&self) -> u64 {
        let next = self.start_ns + (self.given as f64 * 1e9 / self.per_second) as u64;
        self.later.last().map_or(next, |(from_ns, _)| next.min(*from_ns))
    }

    /// The intended time of a send that is due, oldest first.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        let next = self.next_ns();
        if next > now_ns {
            return None;
        }
        // A new rate begins with a send of its own.
        if let Some((_, per_second)) = self.later.pop_if(|(from_ns, _)| *from_ns == next) {
            (self.start_ns, self.per_second, self.given) = (next, per_second, 0);
        }
        self.given += 1;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> Schedule {
        let window = |name, from_ns, to_ns| Window { name, from_ns, to_ns };
        Schedule { from_ns: 1_000, to_ns: 9_000, windows: vec![window("a", 1_000, 5_000), window("b", 6_000, 9_000)] }
    }

    #[test]
    fn a_message_belongs_to_the_window_it_was_meant_for() {
        let mut meters = Meters::new(2);
        let schedule = schedule();
        for (sent, now) in
            [(999, 2_000), (1_000, 20_000_000), (4_999, 9_999), (5_500, 6_500), (8_999, 50_000), (9_000, 9_001)]
        {
            meters.record_delivery(&schedule, sent, now);
            meters.record_ack(&schedule, sent, now);
        }
        assert_eq!((meters.delivery[0].len(), meters.delivery[1].len()), (2, 1));
        assert_eq!((meters.ack[0].len(), &meters.acked), (2, &vec![1, 1]), "an ack is the server's work when it comes");
        assert!(meters.delivery[0].max() >= 19_990_000, "an answer after the end still counts, at its full length");
        assert!(schedule.is_measuring(8_999) && !schedule.is_measuring(9_000));
        let mut cut = schedule.clone();
        cut.cut(5_500);
        assert_eq!((cut.to_ns, cut.windows[0], cut.windows[1].from_ns), (5_500, schedule.windows[0], 5_500));
    }

    #[test]
    fn an_open_loop_owes_what_it_could_not_send() {
        let mut pacer = Pacer::new(100, 1_000.0);
        assert_eq!(pacer.due(99), None);
        assert_eq!(pacer.due(100), Some(100));
        assert_eq!(pacer.due(100), None);
        // A stall of 3 ms: the three sends keep their intended times, so their latency shows it.
        let owed: Vec<u64> = std::iter::from_fn(|| pacer.due(3_000_100)).collect();
        assert_eq!(owed, [1_000_100, 2_000_100, 3_000_100]);
        let mut exact = Pacer::new(0, 3.0);
        let times: Vec<u64> = (0..7).map(|_| exact.due(u64::MAX).unwrap()).collect();
        assert_eq!(times[6], 2_000_000_000, "no drift");
    }

    #[test]
    fn a_staircase_keeps_each_steps_rate() {
        let mut pacer = Pacer::new(0, 10.0).and_then(1_000_000_000, 100.0).and_then(2_000_000_000, 1.0);
        let times: Vec<u64> = std::iter::from_fn(|| pacer.due(4_500_000_000)).collect();
        let within = |from: u64, to: u64| times.iter().filter(|t| (from..to).contains(&(**t / 1_000_000))).count();
        assert_eq!((within(0, 1_000), within(1_000, 2_000), within(2_000, 5_000)), (10, 100, 3));
        assert!(times.is_sorted());
    }

    #[test]
    fn a_latency_is_read_in_milliseconds() {
        let mut meters = Meters::new(1);
        for n in 1..=1_000 {
            meters.connect.record(n * 1_000_000).unwrap();
        }
        let latency = Latency::of(&meters.connect);
        assert_eq!(latency.count, 1_000);
        for (got, want) in
            [(latency.p50_ms, 500.0), (latency.p99_ms, 990.0), (latency.max_ms, 1_000.0), (latency.mean_ms, 500.5)]
        {
            assert!((got - want).abs() < want * 0.002, "{got} for {want}");
        }
        let mut sum = Meters::new(1);
        sum.add(&meters);
        sum.add(&meters);
        assert_eq!(sum.connect.len(), 2_000);
    }
}
