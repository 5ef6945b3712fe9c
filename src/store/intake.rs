//! The queue to the writer, and when it is woken.
//!
//! A writer that gathers appends for a commit has no use for each of them, and waking it for each costs
//! both sides more than the append. So it says how many it waits for, and whoever brings the last of
//! them wakes it; else its own clock does.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::Thread;
use std::time::Duration;

use crate::engine::event::Append;

/// What the writer is told.
#[derive(Debug)]
pub(super) enum ToWriter {
    Appends(Vec<Append>),
    /// Finish what waits, then end.
    Stop,
}

/// Nothing is enough: no producer wakes the writer.
const NEVER: usize = usize::MAX;

#[derive(Debug)]
struct Count {
    /// Appends in the queue. Counted before they are pushed, so it may be too high for a moment and is
    /// never too low.
    waiting: AtomicUsize,
    /// As many wake the writer.
    enough: AtomicUsize,
    /// The writer waits for a shard.
    is_held: AtomicBool,
    writer: OnceLock<Thread>,
}

/// The shards' end.
#[derive(Debug)]
pub(super) struct Submitter {
    queue: flume::Sender<ToWriter>,
    count: Arc<Count>,
}

/// The writer's end. One thread only.
#[derive(Debug)]
pub(super) struct Intake {
    queue: flume::Receiver<ToWriter>,
    count: Arc<Count>,
}

/// A queue of at most `lists_max` lists of appends.
pub(super) fn intake(lists_max: usize) -> (Submitter, Intake) {
    let (tx, rx) = flume::bounded(lists_max);
    let count = Count {
        waiting: AtomicUsize::new(0),
        enough: AtomicUsize::new(NEVER),
        is_held: AtomicBool::new(false),
        writer: OnceLock::new(),
    };
    let count = Arc::new(count);
    (Submitter { queue: tx, count: count.clone() }, Intake { queue: rx, count })
}

impl Submitter {
    /// Never blocks.
    ///
    /// # Errors
    /// The appends, when the queue is full or the writer has ended.
    pub fn submit(&self, appends: Vec<Append>) -> Result<(), Vec<Append>> {
        let count = appends.len();
        let waiting = self.count.waiting.fetch_add(count, SeqCst) + count;
        if let Err(error) = self.queue.try_send(ToWriter::Appends(appends)) {
            self.count.waiting.fetch_sub(count, SeqCst);
            return Err(match error.into_inner() {
                ToWriter::Appends(appends) => appends,
                ToWriter::Stop => Vec::new(),
            });
        }
        if waiting >= self.count.enough.load(SeqCst) {
            self.count.wake();
        }
        Ok(())
    }

    /// Tells the writer to finish, waiting for a place in a full queue.
    pub fn stop(&self) {
        // An error means that it has ended already.
        let _ = self.queue.send(ToWriter::Stop);
        self.count.wake();
    }

    /// The same without waiting: a full queue is not told.
    pub fn try_stop(&self) {
        let _ = self.queue.try_send(ToWriter::Stop);
        self.count.wake();
    }

    /// Ends a wait of [`Intake::hold_while`].
    pub fn release(&self) {
        if self.count.is_held.load(SeqCst) {
            self.count.wake();
        }
    }

    /// Lists that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

impl Count {
    fn wake(&self) {
        self.enough.store(NEVER, SeqCst);
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }
}

impl Intake {
    /// The next message, waited for until there is one or `timeout` is over.
    ///
    /// # Errors
    /// flume's: the time is over, or nobody can send any more.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<ToWriter, flume::RecvTimeoutError> {
        self.queue.recv_timeout(timeout).inspect(|message| self.took(message))
    }

    /// The next message, if there is one.
    pub fn try_recv(&self) -> Result<ToWriter, flume::TryRecvError> {
        self.queue.try_recv().inspect(|message| self.took(message))
    }

    /// Sleeps until `enough` appends wait, a stop, or `timeout`; it may return early.
    pub fn wait_for(&self, enough: usize, timeout: Duration) {
        self.park_while(enough, timeout, || true);
    }

    /// The same, but a [`Submitter::release`] ends it too, and it does not begin when there is no need: that is asked
    /// after releasers can see that somebody waits.
    pub fn hold_while(&self, enough: usize, timeout: Duration, is_needed: impl Fn() -> bool) {
        self.count.is_held.store(true, SeqCst);
        self.park_while(enough, timeout, is_needed);
        self.count.is_held.store(false, SeqCst);
    }

    fn park_while(&self, enough: usize, timeout: Duration, is_needed: impl Fn() -> bool) {
        self.count.writer.get_or_init(std::thread::current);
        // Either this sees what a producer counted, or the producer sees what is enough: both are
        // sequentially consistent, each side writes before it reads.
        self.count.enough.store(enough, SeqCst);
        if self.count.waiting.load(SeqCst) < enough && is_needed() {
            std::thread::park_timeout(timeout);
        }
        self.count.enough.store(NEVER, SeqCst);
    }

    fn took(&self, message: &ToWriter) {
        if let ToWriter::Appends(appends) = message {
            self.count.waiting.fetch_sub(appends.len(), SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::{Entry, Revocation, ShardId, Token};
    use std::time::Instant;

    /// Longer than anything takes that is woken.
    const LONG: Duration = Duration::from_secs(20);

    fn appends(count: usize) -> Vec<Append> {
        let entry = Entry::Revoke(Revocation::Jti("t".into()));
        vec![Append { shard: ShardId(0), token: Token(1), seen: 0, entry }; count]
    }

    /// Takes all that waits: how many appends, and whether there was a stop.
    fn take(intake: &Intake) -> (usize, bool) {
        let messages = std::iter::from_fn(|| intake.try_recv().ok());
        messages.fold((0, false), |(count, stop), message| match message {
            ToWriter::Appends(appends) => (count + appends.len(), stop),
            ToWriter::Stop => (count, true),
        })
    }

    #[test]
    fn less_than_enough_wakes_nobody() {
        let (submitter, intake) = intake(8);
        submitter.submit(appends(2)).unwrap();
        let (began, wait) = (Instant::now(), Duration::from_millis(20));
        // Not a scoped thread: its end would unpark this one.
        let producer = std::thread::spawn(move || {
            submitter.submit(appends(1)).unwrap();
            submitter
        });
        intake.wait_for(4, wait);
        assert!(began.elapsed() >= wait, "woken after {:?}", began.elapsed());
        let _submitter = producer.join().unwrap();
        assert_eq!(take(&intake), (3, false));
    }

    #[test]
    fn enough_is_not_slept_over() {
        let (submitter, intake) = intake(4);
        let began = Instant::now();
        std::thread::scope(|scope| {
            // As many rounds as it takes to meet the writer at each of its steps.
            let producer = scope.spawn(|| {
                for round in 0..20_000 {
                    while submitter.submit(appends(1 + round % 3)).is_err() {
                        std::hint::spin_loop();
                    }
                    (0..round % 50).for_each(|_| std::hint::spin_loop());
                }
            });
            let mut left: usize = (0..20_000).map(|round| 1 + round % 3).sum();
            while left > 0 {
                intake.wait_for(3.min(left), LONG);
                left -= take(&intake).0;
            }
            producer.join().unwrap();
        });
        assert!(began.elapsed() < LONG, "a wake-up was lost");
    }

    #[test]
    fn a_stop_wakes_and_a_full_queue_gives_back() {
        let (submitter, intake) = intake(2);
        submitter.submit(appends(1)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| submitter.stop());
            let began = Instant::now();
            // The stop comes with the appends before it, or behind them.
            while !take(&intake).1 {
                intake.wait_for(9, LONG);
                assert!(began.elapsed() < LONG, "a stop did not wake");
            }
        });
        (0..2).for_each(|_| submitter.submit(appends(1)).unwrap());
        assert_eq!(submitter.submit(appends(3)).map_err(|back| back.len()), Err(3));
        assert_eq!(take(&intake), (2, false));
        intake.wait_for(1, Duration::from_millis(1));
        assert_eq!(intake.count.waiting.load(SeqCst), 0, "what was given back is not counted");
    }

    #[test]
    fn a_need_that_ends_is_not_slept_over() {
        let (submitter, intake) = intake(1);
        let is_needed = std::sync::atomic::AtomicBool::new(true);
        let round = AtomicUsize::new(0);
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..20_000 {
                    while round.load(SeqCst) <= n {
                        std::thread::yield_now();
                    }
                    (0..n % 50).for_each(|_| std::hint::spin_loop());
                    is_needed.store(false, SeqCst);
                    submitter.release();
                }
            });
            for n in 0..20_000 {
                is_needed.store(true, SeqCst);
                round.store(n + 1, SeqCst);
                while is_needed.load(SeqCst) {
                    intake.hold_while(9, LONG, || is_needed.load(SeqCst));
                }
            }
        });
        assert!(began.elapsed() < LONG, "a wake-up was lost");
    }
}
