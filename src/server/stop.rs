//! How the server stops: the signals that ask for it, the drain, and the end of the threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flume::Receiver;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::ShardThread;
use crate::cli::process;
use crate::config::Config;
use crate::engine::stats::Stats;
use crate::exit::{Exit, StartError};
use crate::shard::mail::{Letter, Port};
use crate::store::RunningLog;

/// Time after the last frame was read for what is under way to be stored and answered.
const SETTLE_WAIT: Duration = Duration::from_secs(2);
/// Longest that the drain waits for a shard's numbers before it looks at the time and the signals again.
const STATS_WAIT: Duration = Duration::from_millis(250);
/// Time after CloseAll for close frames to be sent and answered.
const CLOSE_WAIT: Duration = Duration::from_millis(500);
/// How often the drain looks whether everybody has gone.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// The signals that ask the process to stop.
pub(super) struct Signals {
    came: Receiver<i32>,
    is_starting: Arc<AtomicBool>,
}

impl Signals {
    /// Catches them from now on. Until [`Signals::started`] one ends the process at once: nothing was acknowledged,
    /// and the store can be left at any point.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn catch() -> Result<Self, StartError> {
        let failed =
            |err: std::io::Error| StartError::new(Exit::Environment, format!("signals cannot be caught: {err}"));
        // Who starts a server with `nohup` has SIGHUP ignored, and means it.
        let hang_up = (!process::is_ignored(SIGHUP)).then_some(SIGHUP);
        let mut signals =
            signal_hook::iterator::Signals::new([SIGTERM, SIGINT].into_iter().chain(hang_up)).map_err(failed)?;
        let is_starting = Arc::new(AtomicBool::new(true));
        let (sender, came) = flume::unbounded();
        let watched = is_starting.clone();
        let watch = move || {
            for signal in signals.forever() {
                if watched.load(Ordering::Relaxed) {
                    tracing::info!(signal, "stopped while starting");
                    crate::logging::flush();
                    std::process::exit(i32::from(Exit::Ok as u8));
                }
                let _ = sender.send(signal);
            }
        };
        std::thread::Builder::new().name("antiphon-signals".to_owned()).spawn(watch).map_err(failed)?;
        Ok(Self { came, is_starting })
    }

    /// From here on there is somebody to say goodbye to.
    pub(super) fn started(&self) {
        self.is_starting.store(false, Ordering::Relaxed);
    }

    /// Waits for one.
    pub(super) fn wait(&self) -> Option<i32> {
        self.came.recv().ok()
    }

    /// Whether a further one came.
    fn came_again(&self) -> bool {
        self.came.try_recv().is_ok()
    }
}

/// Sends everybody away, and waits until they have gone or the time is over.
pub(super) fn drain(config: &Config, ports: &[Port], signals: &Signals) {
    let until = Instant::now() + config.server.drain;
    let spread_ms = config.server.goaway_spread_ms;
    post_all(ports, || Letter::Drain { spread_ms });
    let has_gone = |stats: &Stats| stats.sessions + stats.appends_pending == 0;
    while Instant::now() < until && !signals.came_again() && !all_shards(ports, until, has_gone) {
        std::thread::sleep(DRAIN_POLL);
    }
    // Who is told 4200 has had an answer to what was stored: what is under way ends before its session does.
    post_all(ports, || Letter::ReadNoMore);
    wait_for_all(ports, SETTLE_WAIT, |stats| stats.appends_pending + stats.reads_pending == 0);
    post_all(ports, || Letter::CloseAll);
    // What is to be kept of the end of everybody's presence is among the appends.
    wait_for_all(ports, CLOSE_WAIT, |stats| stats.connections + stats.appends_pending == 0);
}

fn post_all(ports: &[Port], letter: impl Fn() -> Letter) {
    for port in ports {
        port.post_waiting(letter());
    }
}

fn wait_for_all(ports: &[Port], wait: Duration, is_done: impl Fn(&Stats) -> bool) {
    let until = Instant::now() + wait;
    while !all_shards(ports, until, &is_done) && Instant::now() < until {
        std::thread::sleep(DRAIN_POLL);
    }
}

/// Whether `is_done` says so of every shard's numbers. A shard that does not answer is in a long turn, and not done.
fn all_shards(ports: &[Port], until: Instant, is_done: impl Fn(&Stats) -> bool) -> bool {
    let until = until.min(Instant::now() + STATS_WAIT);
    let (answer, answers) = flume::bounded(ports.len());
    let ask = |port: &Port| {
        let answer = answer.clone();
        port.post(Letter::Stats(Box::new(move |stats| {
            let _ = answer.send(stats);
        })))
    };
    ports.iter().all(|port| ask(port).is_ok())
        && ports.iter().all(|_| answers.recv_deadline(until).is_ok_and(|stats: Box<Stats>| is_done(&stats)))
}

/// The store first, while the shards still listen; then the shards.
pub(super) fn finish(ports: &[Port], threads: Vec<ShardThread>, running: RunningLog) {
    running.stop();
    for port in ports {
        port.post_waiting(Letter::Stop);
    }
    for thread in threads {
        if let Err(err) = thread.join() {
            tracing::error!(%err, "a shard did not end well");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::mail::mailbox;

    #[test]
    fn a_shard_that_does_not_answer_is_not_done() {
        let ((one, inbox), (two, hung)) = (mailbox().unwrap(), mailbox().unwrap());
        let shard = std::thread::spawn(move || {
            while let Ok(Letter::Stats(answer)) = inbox.mail.recv() {
                answer(Box::default());
            }
        });
        let soon = || Instant::now() + Duration::from_secs(60);
        let ports = [one, two];
        assert!(!all_shards(&ports, soon(), |_| true), "one of them is in a long turn");
        assert!(all_shards(&ports[..1], soon(), |stats| stats.sessions == 0));
        assert!(!all_shards(&ports[..1], soon(), |stats| stats.sessions > 0));
        drop(hung);
        drop(ports);
        shard.join().unwrap();
    }
}
