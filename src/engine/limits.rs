//! Every bound of a shard in one place, and the token buckets that hold rates.
//!
//! `Limits` is plain data: `config.rs` fills it, engines and gateways obey it. Relations between
//! bounds that must hold for the whole to work are checked by [`Limits::check`] at start.

use super::inbox::Bounds;
use crate::protocol::ids::UnixMillis;
pub use crate::protocol::parse::{
    BODY_BYTES_MAX, DATA_BYTES_MAX, ITEM_TTL_MS_MAX, JSON_DEPTH_MAX, META_BYTES_MAX, NAME_BYTES_MAX,
};

/// Bounds and times of one process. Per connection, per user or per shard, as each says.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Largest frame from a client, bytes.
    pub message_bytes_max: u32,
    /// Memberships a user may have.
    pub rooms_max: u32,
    /// Subscriptions a connection may have.
    pub subscriptions_max: u32,
    /// Connections a user may have.
    pub user_connections_max: u32,
    /// Connections a shard may have.
    pub shard_connections_max: u32,
    /// How long a `client_id` is remembered, ms.
    pub dedupe_window_ms: u32,
    /// Entries a resume replays at most; more is `recovered:false`.
    pub resume_events_max: u32,
    /// JSON bytes a resume replays at most; more is `recovered:false`.
    pub resume_bytes_max: u32,
    /// `hello` is filled up with spaces to as many bytes: see [`Limits::FULL_SEGMENT_BYTES`]. 0: never.
    pub hello_bytes_min: u32,
    /// Interval of pings, ms. Two intervals without a byte close the connection.
    pub heartbeat_ms: u32,
    /// Appends a shard may have unanswered; more is `busy`.
    pub appends_max: u32,
    /// Reads a shard may have unanswered; more is `busy`.
    pub reads_max: u32,
    /// Rates are enforced.
    pub rates_on: bool,
    /// Commands a connection may send: per second, and at once.
    pub connection_rate: Rate,
    /// Messages, events and changes of members of a user over all connections: per second, and at once.
    pub user_rate: Rate,
    /// Bad commands (of any kind) in a row that close a connection.
    pub errors_max: u32,
    /// A public room that does not exist is created by joining it.
    pub auto_create: bool,
    /// Bytes of recent batches that a shard keeps for resumes.
    pub recent_bytes_max: usize,
    /// How long a shard keeps a batch for resumes, ms.
    pub recent_ttl_ms: u32,
    /// Rooms that a shard compares with the store each second; 0: none.
    pub consistency_rooms_per_s: u32,
    /// How long a room or user without connections stays loaded, ms.
    pub idle_unload_ms: u32,
    /// `read:advanced` waits so long for a later one of the same user and room, ms.
    pub read_coalesce_ms: u32,
    /// Members of a room above which nobody but the user's own devices is told how far a user has read.
    pub receipts_room_max: u32,
    /// Without activity for so long a device is away, ms.
    pub idle_after_ms: u32,
    /// A device that is gone still counts as present for so long, ms.
    pub grace_ms: u32,
    /// Changes of presence are gathered for so long, ms.
    pub presence_tick_ms: u32,
    /// Interval at which shards compare their views of presence, ms.
    pub presence_refresh_ms: u32,
    /// Members of a room above which its watchers get counts only.
    pub presence_room_max: u32,
    /// How long transitions of presence are kept, days; 0: none are.
    pub presence_history_days: u32,
    /// Outbox bytes past which low events are conflated and dropped.
    pub outbox_low_bytes_max: u32,
    /// Outbox bytes past which messages are dropped for a `gap`.
    pub outbox_normal_bytes_max: u32,
    /// Outbox bytes past which the connection is closed (4102).
    pub outbox_bytes_max: u32,
    /// Bytes of the process that may wait for sockets which do not take them, split evenly among
    /// the shards; past it the largest outboxes climb their ladders early.
    pub outbox_total_bytes_max: u64,
    /// Low events, joins and leaves wait so long for others to travel with, ms; 0: not at all.
    pub batch_delay_ms: u32,
    /// Time without progress on a full socket after which the connection is closed (4102), ms.
    pub stall_ms: u32,
    /// Time for the HTTP upgrade, ms.
    pub handshake_ms: u32,
    /// Bytes of the HTTP request head.
    pub handshake_bytes_max: u32,
    /// Header lines of the HTTP request.
    pub handshake_headers_max: u32,
    /// Unparsed bytes kept for a parked connection; past it the socket is not read.
    pub backlog_bytes_max: u32,
    /// What may wait in a user's inbox.
    pub inbox: Bounds,
}

/// A token bucket's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second, at least 1.
    pub per_second: u32,
    /// Tokens when full, at least 1.
    pub burst: u32,
}

// A command carries a body or data beside its other fields; the smallest frame limit must hold it.
const _: () = assert!(BODY_BYTES_MAX + META_BYTES_MAX < Limits::MESSAGE_BYTES_FLOOR as usize);
const _: () = assert!(DATA_BYTES_MAX < BODY_BYTES_MAX);

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 16 * 1024,
            rooms_max: 256,
            subscriptions_max: 256,
            user_connections_max: 32,
            shard_connections_max: 1_000_000,
            dedupe_window_ms: 600_000,
            resume_events_max: 500,
            resume_bytes_max: 1024 * 1024,
            hello_bytes_min: Self::FULL_SEGMENT_BYTES,
            heartbeat_ms: 25_000,
            appends_max: 16_384,
            reads_max: 16_384,
            rates_on: true,
            connection_rate: Rate { per_second: 200, burst: 400 },
            user_rate: Rate { per_second: 100, burst: 200 },
            errors_max: 256,
            auto_create: true,
            recent_bytes_max: 16 * 1024 * 1024,
            recent_ttl_ms: 120_000,
            consistency_rooms_per_s: 4,
            idle_unload_ms: 60_000,
            read_coalesce_ms: 200,
            receipts_room_max: 100,
            idle_after_ms: 300_000,
            grace_ms: 10_000,
            presence_tick_ms: 100,
            presence_refresh_ms: 5_000,
            presence_room_max: 1_000,
            presence_history_days: 30,
            outbox_low_bytes_max: 256 * 1024,
            outbox_normal_bytes_max: 2 * 1024 * 1024,
            outbox_bytes_max: 4 * 1024 * 1024,
            outbox_total_bytes_max: 512 * 1024 * 1024,
            batch_delay_ms: 50,
            stall_ms: 10_000,
            handshake_ms: 10_000,
            handshake_bytes_max: 16 * 1024,
            handshake_headers_max: 64,
            backlog_bytes_max: 64 * 1024,
            inbox: Bounds::default(),
        }
    }
}

impl Limits {
    /// Lowest `message_bytes_max`: a full body with its metadata must fit.
    pub const MESSAGE_BYTES_FLOOR: u32 = 12 * 1024;

    /// What fills a segment on Ethernet, bytes. A receiver acknowledges at once when more than a full segment is unread
    /// (RFC 9293 section 3.8.6.3), and Linux takes for full what was the largest so far, 536 B at first: two small events
    /// reach that, and each acknowledgement is work for the sender.
    pub const FULL_SEGMENT_BYTES: u32 = 1_460;

    /// Checks the relations that the parts rely on.
    ///
    /// # Errors
    /// One sentence that names the knobs in conflict.
    pub fn check(&self) -> Result<(), String> {
        let rules: [(bool, &str); 10] = [
            (self.message_bytes_max >= Self::MESSAGE_BYTES_FLOOR, "message_bytes_max must be at least 12288"),
            (self.message_bytes_max <= 1024 * 1024, "message_bytes_max must be at most 1048576"),
            (
                self.outbox_low_bytes_max <= self.outbox_normal_bytes_max,
                "outbox_low_bytes_max must not exceed outbox_normal_bytes_max",
            ),
            (
                u64::from(self.outbox_normal_bytes_max) + u64::from(self.resume_bytes_max)
                    <= u64::from(self.outbox_bytes_max),
                "outbox_bytes_max must hold outbox_normal_bytes_max and one resume (resume_bytes_max)",
            ),
            (
                u64::from(self.outbox_bytes_max) <= self.outbox_total_bytes_max,
                "outbox_total_bytes_max must hold one outbox (outbox_bytes_max)",
            ),
            (
                self.backlog_bytes_max >= self.message_bytes_max,
                "backlog_bytes_max must hold one message (message_bytes_max)",
            ),
            (self.heartbeat_ms >= 1_000, "heartbeat_ms must be at least 1000"),
            (self.appends_max >= 1 && self.reads_max >= 1, "appends_max and reads_max must be at least 1"),
            (
                [self.connection_rate, self.user_rate].iter().all(|r| r.per_second >= 1 && r.burst >= 1),
                "rates and bursts must be at least 1",
            ),
            (
                self.inbox.bytes_max as usize >= DATA_BYTES_MAX + NAME_BYTES_MAX,
                "inbox_bytes_max must hold one item (4160 bytes)",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err((*rule).to_owned()),
            None => Ok(()),
        }
    }
}

/// A token bucket in 8 bytes of state: when it will be full again (GCRA).
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    /// Theoretical arrival time, in microseconds since the epoch: the bucket is full at or after it.
    full_at_us: u64,
}

impl Bucket {
    /// Takes so many tokens. More than the bucket holds are given by a full one, and owed.
    ///
    /// # Errors
    /// Milliseconds until they are there, at least 1.
    pub fn take(&mut self, tokens: u32, rate: Rate, now: UnixMillis) -> Result<(), u32> {
        let interval_us = 1_000_000 / u64::from(rate.per_second.max(1));
        let now_us = now * 1_000;
        let full_at_us = self.full_at_us.max(now_us);
        let depth_us = interval_us * u64::from(rate.burst.max(1));
        let cost_us = interval_us * u64::from(tokens);
        let debt_us = full_at_us - now_us + cost_us.min(depth_us);
        if debt_us > depth_us {
            return Err(u32::try_from((debt_us - depth_us).div_ceil(1_000)).unwrap_or(u32::MAX).max(1));
        }
        self.full_at_us = full_at_us + cost_us;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_agree_with_each_other() {
        assert_eq!(Limits::default().check(), Ok(()));
        let small = Limits { outbox_bytes_max: 1, ..Limits::default() };
        assert!(small.check().unwrap_err().contains("outbox_bytes_max"));
    }

    #[test]
    fn a_bucket_gives_many_at_once_and_is_owed_what_it_does_not_hold() {
        let rate = Rate { per_second: 10, burst: 3 };
        let now = 1_000_000;
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(2, rate, now), Ok(()));
        assert_eq!(bucket.take(2, rate, now), Err(100));
        assert_eq!(bucket.take(1, rate, now), Ok(()));
        // Ten are more than it ever holds: it has to be full, and is empty for as long as they take.
        assert_eq!(bucket.take(10, rate, now + 299), Err(1));
        assert_eq!(bucket.take(10, rate, now + 300), Ok(()));
        assert_eq!(bucket.take(1, rate, now + 300), Err(800));
        assert_eq!(bucket.take(1, rate, now + 1_100), Ok(()));
    }

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let rate = Rate { per_second: 10, burst: 3 };
        let mut bucket = Bucket::default();
        let now = 1_000_000;
        for _ in 0..3 {
            assert_eq!(bucket.take(1, rate, now), Ok(()));
        }
        assert_eq!(bucket.take(1, rate, now), Err(100));
        assert_eq!(bucket.take(1, rate, now + 99), Err(1));
        assert_eq!(bucket.take(1, rate, now + 100), Ok(()));
        assert!(bucket.take(1, rate, now + 100).is_err());
        // A long rest fills it to the burst and no further.
        let given = (0..10).filter(|_| bucket.take(1, rate, now + 60_000).is_ok()).count();
        assert_eq!(given, 3);
    }
}
