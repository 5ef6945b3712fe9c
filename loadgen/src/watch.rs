//! Looks at the server from outside while a scenario runs: once a second its memory, descriptors and
//! threads from `/proc`, and, where the control listener is known, what waits and how fast it wakes.

use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::control::Metrics;
use crate::proc;

/// One look.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sight {
    /// Seconds after the first one.
    pub at_s: f64,
    /// Resident bytes; 0 without `--server-pid`.
    pub rss_bytes: u64,
    /// Open descriptors; likewise.
    pub fds: u64,
    /// Threads; likewise.
    pub threads: u64,
    /// Bytes that wait for clients that do not read; 0 without `--control`.
    pub held_bytes: u64,
    /// 99th percentile of the time from a shard's wake-up call to its turn in the last 30 to 60 s, the
    /// worst shard's, microseconds; likewise.
    pub wake_p99_us: u64,
}

/// Everything that was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// In the order of time.
    pub sights: Vec<Sight>,
    /// The server's counters at the start and at the end.
    pub metrics: Option<(Metrics, Metrics)>,
    /// Why something could not be seen.
    pub trouble: Option<String>,
}

/// A running look-out.
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    /// Starts looking once every `every`.
    pub fn start(pid: Option<u32>, control: Option<SocketAddr>, every: Duration) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            let mut seen = Seen::default();
            loop {
                match look(pid, control, start) {
                    Ok((sight, metrics)) => {
                        seen.sights.push(sight);
                        seen.metrics = match (seen.metrics.take(), metrics) {
                            (Some((first, _)), Some(last)) => Some((first, last)),
                            (None, Some(first)) => Some((first.clone(), first)),
                            (before, None) => before,
                        };
                    }
                    Err(error) => seen.trouble = Some(error),
                }
                // The last look comes after the word to stop.
                match stopped.recv_timeout(every) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) => return last_look(seen, pid, control, start),
                    Err(RecvTimeoutError::Disconnected) => return seen,
                }
            }
        });
        Self { stop, thread }
    }

    /// Stops, after a last look.
    pub fn stop(self) -> Seen {
        // A thread that has ended says so by its result.
        let _ = self.stop.send(());
        self.thread
            .join()
            .unwrap_or_else(|_| Seen { trouble: Some("the look-out failed".to_owned()), ..Seen::default() })
    }
}

fn last_look(mut seen: Seen, pid: Option<u32>, control: Option<SocketAddr>, start: Instant) -> Seen {
    match look(pid, control, start) {
        Ok((sight, metrics)) => {
            seen.sights.push(sight);
            if let (Some((_, last)), Some(metrics)) = (&mut seen.metrics, metrics) {
                *last = metrics;
            }
        }
        Err(error) => seen.trouble = Some(error),
    }
    seen
}

fn look(pid: Option<u32>, control: Option<SocketAddr>, start: Instant) -> Result<(Sight, Option<Metrics>), String> {
    let mut sight = Sight { at_s: start.elapsed().as_secs_f64(), ..Sight::default() };
    if let Some(pid) = pid {
        let told = |error| proc::gone(pid, &error);
        let sample = proc::sample(pid).map_err(told)?;
        sight.rss_bytes = sample.rss_bytes;
        sight.threads = sample.threads.len() as u64;
        sight.fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(told)?.count() as u64;
    }
    let metrics = control.map(Metrics::fetch).transpose()?;
    if let Some(metrics) = &metrics {
        sight.held_bytes = metrics.sum("antiphon_outbox_bytes_held");
        sight.wake_p99_us = metrics.highest("antiphon_wake_latency_us", "quantile=\"0.99\"");
    }
    Ok((sight, metrics))
}

/// The slope of a line through the points by least squares, in `y` a second; 0 for fewer than two.
pub fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let count = points.clone().count() as f64;
    let (mean_x, mean_y) = points.clone().fold((0.0, 0.0), |(x, y), (a, b)| (x + a / count, y + b / count));
    let (over, under) = points.fold((0.0, 0.0), |(over, under), (x, y)| {
        (over + (x - mean_x) * (y - mean_y), under + (x - mean_x) * (x - mean_x))
    });
    if under > 0.0 { over / under } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_until_the_watch_stops() {
        let watch = Watch::start(Some(std::process::id()), None, Duration::from_millis(20));
        std::thread::sleep(Duration::from_millis(120));
        let seen = watch.stop();
        assert!(seen.sights.len() >= 3 && seen.trouble.is_none(), "{seen:?}");
        assert!(seen.sights.iter().all(|sight| sight.rss_bytes > 0 && sight.fds > 2 && sight.threads > 0));
        assert!(seen.sights.windows(2).all(|pair| pair[0].at_s < pair[1].at_s) && seen.metrics.is_none());
        let nobody = Watch::start(Some(u32::MAX), None, Duration::from_secs(9)).stop();
        assert!(nobody.trouble.unwrap().contains("--server-pid") && nobody.sights.is_empty());
    }

    #[test]
    fn a_slope_is_that_of_the_line() {
        let line = |rise: f64| slope((0..10).map(move |n| (f64::from(n), 7.0 + rise * f64::from(n))));
        assert!((line(3.0) - 3.0).abs() < 1e-9 && line(0.0).abs() < 1e-9);
        assert_eq!(slope([(1.0, 5.0)].into_iter()), 0.0);
    }
}
