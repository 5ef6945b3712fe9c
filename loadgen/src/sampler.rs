//! Figures over time: what the threads have counted and what the server's process has used, every
//! half second or so. The main thread's loops call [`Sampler::tick`] often; it decides when a sample
//! is due. A long run has its samples further apart, so that their number stays bounded.

use serde::{Deserialize, Serialize};

use crate::conductor::Phase;
use crate::proc::{self, Spent};

/// All samples of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeline {
    /// In the order of time; counts add up from the start of the run.
    pub points: Vec<Point>,
}

/// One sample.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    /// Seconds since measuring began; before it: negative.
    pub t_s: f64,
    /// Connections in their rooms.
    pub ready: u64,
    /// Messages acknowledged.
    pub acked: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Promises found broken.
    pub broken: u64,
    /// CPU seconds of the server, from the first sample on.
    pub server_cpu_s: Option<f64>,
    /// Resident bytes of the server.
    pub server_rss: Option<u64>,
    /// CPU seconds of this tool's driver threads, from the first sample on.
    pub tool_cpu_s: f64,
}

/// Samples at least this far apart, seconds.
const INTERVAL_S: f64 = 0.5;
/// About so many samples of a run at most.
const POINTS_MAX: f64 = 600.0;

/// Takes samples when they are due.
#[derive(Debug)]
pub struct Sampler {
    interval_ns: u64,
    due_ns: u64,
    server_pid: Option<u32>,
    first: Option<(Option<proc::Sample>, proc::Sample)>,
    /// With times since the run began.
    points: Vec<(u64, Point)>,
}

impl Sampler {
    /// For a run of about so many seconds.
    pub fn new(expected_s: f64, server_pid: Option<u32>) -> Self {
        let interval_s = INTERVAL_S.max(expected_s / POINTS_MAX);
        Self { interval_ns: (interval_s * 1e9) as u64, due_ns: 0, server_pid, first: None, points: Vec::new() }
    }

    /// Takes a sample if one is due. A process that cannot be read leaves its part out. `totals`
    /// are counts from the start of the run: connections in their rooms, sent, acknowledged, delivered, broken.
    pub fn tick(&mut self, now_ns: u64, totals: impl FnOnce() -> [u64; 5]) {
        if now_ns >= self.due_ns {
            self.take(now_ns, totals);
        }
    }

    /// Takes a sample, due or not: at the edges of what is measured.
    pub fn take(&mut self, now_ns: u64, totals: impl FnOnce() -> [u64; 5]) {
        self.due_ns = now_ns + self.interval_ns;
        let server = self.server_pid.and_then(|pid| proc::sample(pid).ok());
        let Ok(tool) = proc::sample(std::process::id()) else { return };
        let (server_first, tool_first) = self.first.get_or_insert_with(|| (server.clone(), tool.clone()));
        let used = server.as_ref().zip(server_first.as_ref()).map(|(now, first)| proc::spent(first, now).total_s);
        let [ready, _, acked, delivered, broken] = totals();
        let point = Point {
            t_s: 0.0,
            ready,
            acked,
            delivered,
            broken,
            server_cpu_s: used,
            server_rss: server.map(|sample| sample.rss_bytes),
            tool_cpu_s: drivers_s(&proc::spent(tool_first, &tool)),
        };
        self.points.push((now_ns, point));
    }

    /// All samples, with times relative to the start of measuring.
    pub fn timeline(self, from_ns: u64) -> Timeline {
        let seconds = |at_ns: u64| (at_ns as f64 - from_ns as f64) / 1e9;
        Timeline { points: self.points.into_iter().map(|(at, point)| Point { t_s: seconds(at), ..point }).collect() }
    }
}

/// CPU seconds of this tool's driver threads.
pub fn drivers_s(spent: &Spent) -> f64 {
    spent.threads.iter().filter(|(name, _)| is_driver(name)).map(|(_, s)| s).fold(0.0, |sum, s| sum + s)
}

/// True for the name of a driver thread: the executor numbers them.
pub fn is_driver(name: &str) -> bool {
    name.starts_with("load-")
}

impl Timeline {
    /// The server's CPU seconds up to a time, between two samples in proportion; `None` outside them.
    pub fn server_cpu_at(&self, t_s: f64) -> Option<f64> {
        let pair = self.points.windows(2).find(|pair| (pair[0].t_s..=pair[1].t_s).contains(&t_s))?;
        let (a, b) = (pair[0].server_cpu_s?, pair[1].server_cpu_s?);
        Some(a + (b - a) * (t_s - pair[0].t_s) / (pair[1].t_s - pair[0].t_s).max(1e-9))
    }

    /// What changed a second between each two samples: the middle's time, and the rate of `count`.
    pub fn rates(&self, count: impl Fn(&Point) -> Option<f64>) -> Vec<(f64, f64)> {
        let between = |pair: &[Point]| {
            let seconds = pair[1].t_s - pair[0].t_s;
            let change = count(&pair[1])? - count(&pair[0])?;
            (seconds > 0.0).then(|| ((pair[0].t_s + pair[1].t_s) / 2.0, change / seconds))
        };
        self.points.windows(2).filter_map(between).collect()
    }
}

/// True while something is to be seen over time.
pub fn is_timed(phase: Phase) -> bool {
    phase <= Phase::Drain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_at_their_interval_and_have_measurings_time() {
        let mut sampler = Sampler::new(1.0, Some(std::process::id()));
        for at_ms in (0..2_000).step_by(100) {
            sampler.tick(at_ms * 1_000_000, || [at_ms, 0, 0, 0, 0]);
        }
        sampler.take(1_600_000_000, || [1_500, 0, 0, 0, 0]);
        let points = sampler.timeline(1_000_000_000).points;
        let times: Vec<f64> = points.iter().map(|p| p.t_s).collect();
        assert_eq!(times, [-1.0, -0.5, 0.0, 0.5, 0.6]);
        assert_eq!(points[3].ready, 1_500);
        assert!(points.iter().all(|p| p.server_rss.is_some_and(|rss| rss > 0) && p.server_cpu_s.is_some()));
        assert!(Sampler::new(6_000.0, None).interval_ns == 10_000_000_000);
    }

    #[test]
    fn rates_lie_between_two_samples() {
        let point = |t_s, acked, cpu| Point { t_s, acked, server_cpu_s: Some(cpu), ..Point::default() };
        let timeline = Timeline { points: vec![point(0.0, 0, 0.0), point(1.0, 100, 0.5), point(3.0, 500, 0.7)] };
        assert_eq!(timeline.rates(|p| Some(p.acked as f64)), [(0.5, 100.0), (2.0, 200.0)]);
        assert_eq!(timeline.server_cpu_at(2.0).map(|s| (s * 100.0).round()), Some(60.0));
        assert_eq!(timeline.server_cpu_at(5.0), None);
    }
}
