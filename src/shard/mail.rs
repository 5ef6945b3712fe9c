//! How other threads reach a shard: two queues and a bell.
//!
//! The log queue carries what the persistence core committed, in order, and nothing else: it is
//! bounded, and a shard that falls behind slows the core down rather than lose anything. The mail
//! queue carries the rest. Who pushes rings the bell; a shard that is awake costs them no call.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use flume::{Receiver, Sender, TrySendError};

use super::doorbell::Doorbell;
use crate::engine::event::{AdminAct, AdminAnswer, MeshMessage, Opening, ReadReply, StoreEvent};
use crate::engine::stats::Stats;
use crate::protocol::error::Refusal;
use crate::store::LogListener;

/// Batches that may wait for a shard before the persistence core waits for it.
const LOG_QUEUE_MAX: usize = 1_024;
/// Letters that may wait for a shard. Read replies are bounded by the shard's own questions.
const MAIL_QUEUE_MAX: usize = 65_536;

/// Where the answer to a letter goes.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// A socket in flight from the shard that accepted it to its user's own. Whoever drops it closes it.
pub struct Handoff {
    /// The socket, with nothing in flight on it.
    pub fd: OwnedFd,
    /// Who connected, from what device.
    pub opening: Opening,
    /// The HTTP answer, to be sent before anything else.
    pub response: Vec<u8>,
    /// What the client sent after its request.
    pub leftover: Vec<u8>,
}

/// Whatever is not the log.
pub enum Letter {
    /// A socket for a user of this shard.
    Handoff(Box<Handoff>),
    /// From another shard's engine.
    Mesh(MeshMessage),
    /// From a reader thread.
    Read(ReadReply),
    /// From the admin API.
    Admin(AdminAct, Answer<Result<AdminAnswer, Refusal>>),
    /// Somebody wants the numbers.
    Stats(Answer<Box<Stats>>),
    /// Accept no more, and send everybody away with retry times up to this many milliseconds.
    Drain { spread_ms: u32 },
    /// Read no further frame: what is under way may still be answered.
    ReadNoMore,
    /// Close every session.
    CloseAll,
    /// End the shard's thread.
    Stop,
}

/// The senders' end: one for every thread that has something to say to a shard.
#[derive(Clone)]
pub struct Port {
    log: Sender<StoreEvent>,
    mail: Sender<Letter>,
    bell: Arc<Doorbell>,
    behind: Arc<AtomicUsize>,
}

/// The shard's end.
pub struct Inbox {
    /// What was committed.
    pub log: Receiver<StoreEvent>,
    /// The rest.
    pub mail: Receiver<Letter>,
    /// Rung after each push.
    pub bell: Arc<Doorbell>,
    /// Events of the log that were posted and not yet declared done.
    behind: Arc<AtomicUsize>,
}

/// Makes both ends.
///
/// # Errors
/// Out of file descriptors.
pub fn mailbox() -> std::io::Result<(Port, Inbox)> {
    let (log_in, log) = flume::bounded(LOG_QUEUE_MAX);
    let (mail_in, mail) = flume::bounded(MAIL_QUEUE_MAX);
    let bell = Arc::new(Doorbell::new()?);
    let behind = Arc::new(AtomicUsize::new(0));
    let port = Port { log: log_in, mail: mail_in, bell: bell.clone(), behind: behind.clone() };
    Ok((port, Inbox { log, mail, bell, behind }))
}

impl Inbox {
    /// So many events of the log have been sent out. True when these were all.
    pub fn on_done(&self, events: usize) -> bool {
        self.behind.fetch_sub(events, SeqCst) == events
    }
}

impl Port {
    /// Posts a letter without waiting.
    ///
    /// # Errors
    /// The letter, when the queue is full or the shard is gone.
    pub fn post(&self, letter: Letter) -> Result<(), Letter> {
        self.mail.try_send(letter).map_err(|error| match error {
            TrySendError::Full(letter) | TrySendError::Disconnected(letter) => letter,
        })?;
        self.bell.ring();
        Ok(())
    }

    /// Posts a letter, waiting for room. Not for shards, which must never wait for each other.
    /// False when the shard is gone.
    pub fn post_waiting(&self, letter: Letter) -> bool {
        let is_there = self.mail.send(letter).is_ok();
        self.bell.ring();
        is_there
    }
}

impl LogListener for Port {
    fn on_store(&self, event: StoreEvent) {
        self.behind.fetch_add(1, SeqCst);
        // A shard that is gone has stopped: nobody is left to tell.
        let _ = self.log.send(event);
        self.bell.ring();
    }

    fn on_read(&self, replies: Vec<ReadReply>) {
        for reply in replies {
            // As above.
            let _ = self.mail.send(Letter::Read(reply));
        }
        self.bell.ring();
    }

    fn is_behind(&self) -> bool {
        self.behind.load(SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_behind_until_it_has_sent_all_that_it_was_told() {
        let (port, inbox) = mailbox().unwrap();
        assert!(!port.is_behind());
        (0..3).for_each(|_| port.on_store(StoreEvent::Degraded(true)));
        assert!(port.is_behind());
        assert!(!inbox.on_done(2), "one is left");
        assert!(port.is_behind());
        assert!(inbox.on_done(1));
        assert!(!port.is_behind());
    }
}
