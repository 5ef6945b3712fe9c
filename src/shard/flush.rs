//! From outboxes to sockets: who is flushed, in which order, and when a flush lets something else come first.
//!
//! Sends are what a busy shard spends its time on: a message to a room of 1,000 is 10 ms of them. So a flush does
//! not insist on getting to its end. Every few sends it looks whether something came, and if so leaves the
//! rest to the turns after it: what was said meanwhile is read and committed while the others are still being
//! sent to, and joins what waits for those whose turn is yet to come. The same send then carries more, and nobody's
//! acknowledgement waits for a large room.
//!
//! Pings go in sweeps (see `engine/handle/session.rs`) and after everything else, or a second's worth of them would keep
//! messages waiting.
//!
//! Nobody waits for long either: what has been in the queue for [`FLUSH_AGE_MAX_US`] is sent before anything
//! new is looked at, which also bounds what can pile up meanwhile, as does [`LARGE_BYTES`].

use std::collections::VecDeque;
use std::io::IoSlice;

use super::conn::{Conn, Phase, ring_key};
use super::driver::{Deadline, Driver};
use super::ring::{SendError, send_slices};
use crate::engine::event::{ConnKey, Input};

/// Sends between two looks at what came: 50 to 80 µs of them. Of 4, 8 and 16, 8 was the cheapest for a room of 100 with one
/// message in flight and for a room of 1,000 with eight.
const SENDS_BETWEEN_LOOKS: usize = 8;
/// Pings that count for one of them: each is soon answered, and to read the answers eight at a time cost a twentieth of all
/// heartbeats.
const PINGS_FOR_A_SEND: usize = 4;
/// What has waited longer is sent before anything new is looked at, microseconds.
const FLUSH_AGE_MAX_US: u64 = 20_000;
/// The same for pings: their peers have another heartbeat's time to answer.
const PING_AGE_MAX_US: u64 = 500_000;
/// An outbox that grows past this is flushed in the turn at hand, bytes.
const LARGE_BYTES: usize = 64 * 1024;
/// With fewer connections to be flushed, a shard can do something with another batch.
const NEARLY_DONE: usize = 200;
/// Slices offered to one send.
const SLICES: usize = 64;
/// In a mark: nothing waits but a ping.
const PING: u32 = 1 << 31;

/// Connections with something to be sent, oldest first.
#[derive(Debug, Default)]
pub(super) struct FlushQueue {
    waiting: VecDeque<Entry>,
    /// Those with nothing but a ping.
    pings: VecDeque<Entry>,
    /// To be flushed in the turn at hand.
    urgent: VecDeque<ConnKey>,
    /// When that turn began.
    now_us: u64,
    last_mark: u32,
}

/// A connection that became dirty. Its own no longer when it was flushed as urgent since, or has more than a ping now: the
/// marks differ.
#[derive(Debug, Clone, Copy)]
struct Entry {
    key: ConnKey,
    mark: u32,
    since_us: u64,
}

impl FlushQueue {
    /// A turn begins.
    pub fn begin_turn(&mut self, now_us: u64) {
        self.now_us = now_us;
    }

    /// Queues a connection behind the others, unless it is queued already.
    pub fn mark(&mut self, conn: &mut Conn) {
        if conn.is_dirty() && conn.flush_mark & PING == 0 {
            return;
        }
        conn.flush_mark = self.next_mark();
        self.waiting.push_back(Entry { key: conn.key, mark: conn.flush_mark, since_us: self.now_us });
    }

    /// Queues a connection that has got a ping behind all others, unless it is queued already.
    pub fn mark_ping(&mut self, conn: &mut Conn) {
        if !conn.is_dirty() {
            conn.flush_mark = self.next_mark() | PING;
            self.pings.push_back(Entry { key: conn.key, mark: conn.flush_mark, since_us: self.now_us });
        }
    }

    /// Queues a connection for the turn at hand: it has a reply, or much.
    pub fn mark_urgent(&mut self, conn: &mut Conn) {
        if !conn.is_dirty() {
            conn.flush_mark = self.next_mark();
        }
        self.urgent.push_back(conn.key);
    }

    fn next_mark(&mut self) -> u32 {
        self.last_mark = if self.last_mark + 1 < PING { self.last_mark + 1 } else { 1 };
        self.last_mark
    }

    /// Who is next, all that is urgent apart.
    fn pop(&mut self) -> Option<Entry> {
        let is_late = |ping: &Entry| ping.since_us + PING_AGE_MAX_US <= self.now_us;
        if self.waiting.is_empty() || self.pings.front().is_some_and(is_late) {
            self.pings.pop_front()
        } else {
            self.waiting.pop_front()
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.pings.is_empty() && self.urgent.is_empty()
    }

    /// When the turn began whose connections are being flushed; none: nothing waits.
    pub fn oldest_us(&self) -> Option<u64> {
        self.waiting.front().map(|entry| entry.since_us)
    }

    /// True when the oldest may wait a little longer.
    fn may_wait(&self) -> bool {
        self.oldest_us().is_none_or(|since_us| since_us + FLUSH_AGE_MAX_US > self.now_us)
    }

    /// True when little is left to be sent.
    pub fn is_nearly_done(&self) -> bool {
        self.waiting.len() < NEARLY_DONE
    }
}

/// True for an outbox that has just become too large to wait.
pub(super) fn is_large(before: usize, bytes: usize) -> bool {
    before < LARGE_BYTES && bytes >= LARGE_BYTES
}

impl Driver {
    /// One send for each dirty outbox. Those with replies go first: while the others are sent, their
    /// owners say what they have to say next. True when there was, or is, something to flush.
    pub(super) fn flush(&mut self) -> bool {
        self.shed();
        let was_idle = self.to_flush.is_empty();
        while let Some(key) = self.to_flush.urgent.pop_front() {
            self.flush_one(key);
        }
        let mut since_look = 0;
        while let Some(entry) = self.to_flush.pop() {
            if self.conns.get(entry.key).is_none_or(|conn| conn.flush_mark != entry.mark) {
                continue;
            }
            self.flush_one(entry.key);
            since_look += if entry.mark & PING == 0 { PINGS_FOR_A_SEND } else { 1 };
            if since_look >= SENDS_BETWEEN_LOOKS * PINGS_FOR_A_SEND {
                since_look = 0;
                if self.to_flush.may_wait() && self.has_news() {
                    break;
                }
            }
        }
        self.settle();
        // Flushing may make some dirty once more: gaps are told, slow ones closed.
        !was_idle || !self.to_flush.is_empty()
    }

    /// Sends all that waits, whatever else there is to do.
    pub(super) fn flush_all(&mut self) {
        while self.flush() {}
    }

    /// Tells the engine of connections that ended while it could not be told.
    pub(super) fn settle(&mut self) {
        while let Some(key) = self.ended.pop() {
            self.engine.handle(Input::Closed(key), self.now);
            self.perform();
        }
    }

    fn flush_one(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.is_dirty()) else { return };
        conn.flush_mark = 0;
        if self.send_waiting(key) {
            self.after_flush(key);
        }
    }

    /// Offers the socket all that waits. False when it did not take all, or is gone.
    pub(super) fn send_waiting(&mut self, key: ConnKey) -> bool {
        let Some(conn) = self.conns.get_mut(key) else { return false };
        if conn.is_blocked {
            // What waits is counted as held until the socket takes bytes again.
            return false;
        }
        let fd = conn.raw_fd();
        let Some(outbox) = conn.outbox.as_mut() else { return true };
        if conn.is_batching {
            let composed = outbox.compose();
            let stats = self.engine.stats_mut();
            stats.arrays += composed.arrays;
            stats.array_events += composed.events;
            stats.array_bytes_before += composed.bytes_before;
            stats.array_bytes_after += composed.bytes_after;
        }
        while outbox.bytes() > 0 {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = outbox.slices(&mut slices);
            let offered: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
            let stats = self.engine.stats_mut();
            stats.sends += 1;
            match send_slices(fd, &slices[..filled]) {
                Ok(sent) => {
                    stats.bytes_out += sent as u64;
                    stats.sends_short += u64::from(sent < offered);
                    outbox.advance(sent);
                    conn.progress_at = self.now;
                    if sent < offered {
                        self.block(key);
                        self.go_on_if_read(key);
                        return false;
                    }
                }
                Err(SendError::WouldBlock) => {
                    stats.sends_short += 1;
                    self.block(key);
                    return false;
                }
                Err(SendError::Gone(_)) => {
                    // The receive in flight reports the end too; whoever comes first ends it.
                    if matches!(conn.phase, Phase::Open) {
                        self.ended.push(key);
                    }
                    self.drop_conn(key);
                    return false;
                }
            }
        }
        true
    }

    /// Everything that waited has gone.
    fn after_flush(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Some(mut outbox) = conn.outbox.take() {
            if matches!(conn.phase, Phase::Open)
                && let Some(gaps) = outbox.take_gaps(&self.ladder)
            {
                self.give_back(outbox);
                self.engine.handle(Input::OutboxDrained(key, gaps), self.now);
                self.perform();
                return self.go_on_if_read(key);
            }
            self.give_back(outbox);
        }
        self.go_on_if_read(key);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if matches!(conn.phase, Phase::Closing) {
            if conn.codec.is_finished() || !conn.codec.is_close_sent() {
                // The last word was the echo of the peer's close, a close after a failure, or an HTTP
                // answer. To close now, with bytes of the peer unread or under way, would reset the
                // connection and could take that word with it (RFC 9112 section 9.6): the peer's end,
                // or the deadline, comes first.
                super::socket::shutdown_write(conn.raw_fd());
            }
            if !conn.is_receiving {
                self.receive(key);
            }
        }
    }

    fn block(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !std::mem::replace(&mut conn.is_blocked, true)
            && let Some(outbox) = conn.outbox.as_mut()
        {
            outbox.let_go_of_batches();
            self.held_bytes += outbox.bytes();
        }
        conn.progress_at = conn.progress_at.max(self.now.saturating_sub(u64::from(self.limits.stall_ms)));
        let at = self.now + u64::from(self.limits.stall_ms);
        if !std::mem::replace(&mut conn.is_stall_watched, true) {
            conn.progress_at = self.now;
            self.deadlines.set(at, Deadline::Stall(key));
        }
        self.ring.poll_writable(conn.raw_fd(), ring_key(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::conn::Conns;

    fn conns(count: usize) -> (Conns, Vec<ConnKey>) {
        let mut conns = Conns::default();
        let socket = || std::fs::File::open("/dev/null").unwrap().into();
        let keys = (0..count).map(|_| conns.insert(socket(), Phase::Open, 1_024, 0)).collect();
        (conns, keys)
    }

    /// What a flush would send to, in order, `urgent` ones apart.
    fn drain(queue: &mut FlushQueue, conns: &mut Conns) -> (Vec<ConnKey>, Vec<ConnKey>) {
        let take = |conn: Option<&mut Conn>, mark: Option<u32>| {
            let conn = conn.filter(|conn| conn.is_dirty() && mark.is_none_or(|mark| mark == conn.flush_mark))?;
            conn.flush_mark = 0;
            Some(conn.key)
        };
        let urgent = queue.urgent.drain(..).filter_map(|key| take(conns.get_mut(key), None)).collect();
        let rest = std::iter::from_fn(|| queue.pop());
        let rest = rest.filter_map(|entry| take(conns.get_mut(entry.key), Some(entry.mark)));
        (urgent, rest.collect())
    }

    #[test]
    fn each_is_flushed_once_and_the_oldest_first() {
        let (mut conns, keys) = conns(3);
        let mut queue = FlushQueue::default();
        for at in [2, 0, 2, 1, 0] {
            queue.mark(conns.get_mut(keys[at]).unwrap());
        }
        queue.mark_urgent(conns.get_mut(keys[0]).unwrap());
        queue.mark_urgent(conns.get_mut(keys[0]).unwrap());
        assert_eq!(drain(&mut queue, &mut conns), (vec![keys[0]], vec![keys[2], keys[1]]));
        assert!(queue.is_empty());
    }

    #[test]
    fn who_was_flushed_early_waits_at_a_new_place() {
        let (mut conns, keys) = conns(2);
        let mut queue = FlushQueue::default();
        queue.mark(conns.get_mut(keys[0]).unwrap());
        queue.mark_urgent(conns.get_mut(keys[0]).unwrap());
        let key = queue.urgent.pop_front().unwrap();
        conns.get_mut(key).unwrap().flush_mark = 0;
        queue.mark(conns.get_mut(keys[1]).unwrap());
        queue.mark(conns.get_mut(keys[0]).unwrap());
        assert_eq!(drain(&mut queue, &mut conns).1, [keys[1], keys[0]]);
    }

    #[test]
    fn pings_go_last_unless_something_comes_or_they_are_late() {
        let (mut conns, keys) = conns(4);
        let mut queue = FlushQueue::default();
        for key in &keys[..3] {
            queue.mark_ping(conns.get_mut(*key).unwrap());
        }
        queue.mark(conns.get_mut(keys[3]).unwrap());
        queue.mark_ping(conns.get_mut(keys[3]).unwrap());
        // A message for one that has a ping: both go where the message goes.
        queue.mark(conns.get_mut(keys[1]).unwrap());
        assert!(!queue.is_empty());
        assert_eq!(drain(&mut queue, &mut conns).1, [keys[3], keys[1], keys[0], keys[2]]);
        assert!(queue.is_empty());

        queue.mark_ping(conns.get_mut(keys[0]).unwrap());
        queue.begin_turn(PING_AGE_MAX_US);
        queue.mark(conns.get_mut(keys[1]).unwrap());
        assert_eq!(drain(&mut queue, &mut conns).1, [keys[0], keys[1]]);
    }

    #[test]
    fn only_the_young_may_wait() {
        let (mut conns, keys) = conns(1);
        let mut queue = FlushQueue::default();
        queue.begin_turn(1_000);
        assert_eq!((queue.oldest_us(), queue.may_wait()), (None, true));
        queue.mark(conns.get_mut(keys[0]).unwrap());
        queue.begin_turn(999 + FLUSH_AGE_MAX_US);
        assert_eq!((queue.oldest_us(), queue.may_wait()), (Some(1_000), true));
        queue.begin_turn(1_000 + FLUSH_AGE_MAX_US);
        assert!(!queue.may_wait());
    }

    #[test]
    fn marks_never_say_that_there_is_nothing() {
        let mut queue = FlushQueue { last_mark: PING - 2, ..FlushQueue::default() };
        assert_eq!([(); 3].map(|()| queue.next_mark()), [PING - 1, 1, 2], "nor that it is a ping");
    }

    #[test]
    fn an_outbox_becomes_large_once() {
        assert!(!is_large(0, LARGE_BYTES - 1) && is_large(LARGE_BYTES - 1, LARGE_BYTES));
        assert!(!is_large(LARGE_BYTES, LARGE_BYTES + 1));
    }
}
