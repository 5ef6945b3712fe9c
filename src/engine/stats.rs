//! What a shard counts: plain numbers that its engine, its driver and its outboxes increment.
//!
//! One [`Stats`] belongs to one shard and is touched by its thread alone, so nothing here is atomic.
//! Who wants to see it gets a clone. Each field says what one step of it means; the same sentence is
//! the help text of the metric that carries it, so a field cannot exist without being visible.
//! Counters only grow; gauges go both ways and are set when a snapshot is taken.

use serde::{Serialize, Serializer};

use super::stages::StageTimes;
use crate::protocol::command::Command;
use crate::protocol::error::{CloseCode, ErrorCode};
use crate::protocol::ids::Priority;

/// Whether a number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes both ways.
    Gauge,
}

/// One number of a [`Stats`], with what it is called and means.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The field's name; the metric is `antiphon_<name>`.
    pub name: &'static str,
    /// What one step means.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// The value.
    pub value: u64,
}

macro_rules! readings {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $help:literal])+ $kind:ident $field:ident;)* } and { $($rest:tt)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        pub struct $name {
            $($(#[doc = $help])+ pub $field: u64,)*
            $($rest)*
        }

        impl $name {
            /// Every plain number, in the order of the fields.
            pub fn readings(&self) -> impl Iterator<Item = Reading> {
                [$(Reading {
                    name: stringify!($field),
                    help: concat!($($help),+).trim_ascii(),
                    kind: Kind::$kind,
                    value: self.$field,
                },)*].into_iter()
            }
        }
    };
}

readings!(
    /// The numbers of one shard.
    Stats {
        /// Sockets that the shard owns now, upgraded or not.
        Gauge connections;
        /// Sessions that have had their hello and not ended.
        Gauge sessions;
        /// Users whose memberships are in memory.
        Gauge users_loaded;
        /// Rooms that are in memory.
        Gauge rooms_loaded;
        /// Rooms whose entries in the store do not add up, as this shard knows: they take no writes.
        Gauge rooms_diverged;
        /// Room subscriptions of all connections.
        Gauge subscriptions;
        /// Bytes that wait in outboxes to be sent.
        Gauge outbox_bytes;
        /// Those of them whose socket does not take any more; bounded by outbox_total_bytes_max.
        Gauge outbox_bytes_held;
        /// Outboxes that wait for a socket to become writable.
        Gauge outboxes_blocked;
        /// Bytes of recent batches that are kept for resumes.
        Gauge recent_bytes;
        /// Appends that the store has not answered.
        Gauge appends_pending;
        /// Reads that the store has not answered.
        Gauge reads_pending;
        /// Users and rooms whose presence connections watch.
        Gauge presence_watches;
        /// Users whose presence is kept here for local watchers.
        Gauge presence_cards;
        /// Transitions of presence that wait for the store.
        Gauge presence_unwritten;

        /// Connections that were accepted.
        Counter accepted;
        /// Calls of accept that failed (out of descriptors, say); the shard backs off each time.
        Counter accept_errors;
        /// Connections that were closed at once, with a 503: the shard had as many sockets as it may have.
        Counter turned_away;
        /// Upgrades that were refused: not HTTP, bad header, wrong origin, too slow, too large.
        Counter handshakes_refused;
        /// Tokens that were refused at connect or refresh.
        Counter tokens_refused;
        /// Upgraded sockets that moved to another shard, their user's.
        Counter handoffs_out;
        /// Upgraded sockets that came from another shard.
        Counter handoffs_in;
        /// Sessions that began.
        Counter sessions_opened;

        /// Pings to clients.
        Counter pings;
        /// WebSocket frames that were read.
        Counter frames_in;
        /// WebSocket frames that were sent.
        Counter frames_out;
        /// … of the critical lane: replies, and critical events.
        Counter frames_out_critical;
        /// … of the normal lane.
        Counter frames_out_normal;
        /// … of the low lane.
        Counter frames_out_low;
        /// Bytes that were read from sockets.
        Counter bytes_in;
        /// Bytes that were sent to sockets.
        Counter bytes_out;
        /// Calls of send; frames_out divided by it is how well frames are gathered.
        Counter sends;
        /// Sends that the socket took only in part or not at all.
        Counter sends_short;

        /// Messages that were handed to the store.
        Counter messages_submitted;
        /// Messages that were acknowledged, after their commit.
        Counter acks;
        /// Acknowledged messages whose client_id was known: nothing was stored or delivered again.
        Counter duplicates;
        /// Messages that were edited or deleted by this shard's clients.
        Counter edits;
        /// Edits that lost against another one (116).
        Counter edit_conflicts;
        /// Reactions that were added or removed by this shard's clients, those without effect included.
        Counter reactions;
        /// Log entries times connections: what fan-out put into outboxes.
        Counter deliveries;
        /// Committed runs that had at least one local subscriber.
        Counter fanouts;
        /// Connections that those runs went to.
        Counter fanout_recipients;
        /// Entries that a reader may not see and got a stand-in for.
        Counter hidden;
        /// Entries that the filter of a subscription hid behind a stand-in.
        Counter filtered;
        /// Critical messages and ephemeral events from this shard's clients.
        Counter events_in_critical;
        /// Normal ones.
        Counter events_in_normal;
        /// Low ones.
        Counter events_in_low;
        /// Critical events times connections that listened.
        Counter considered_critical;
        /// Normal events times connections that listened; memberships are normal.
        Counter considered_normal;
        /// Low events times connections that listened.
        Counter considered_low;
        /// Critical events that audience or filter hid from one of those connections.
        Counter withheld_critical;
        /// Normal events that audience or filter hid likewise.
        Counter withheld_normal;
        /// Low events that audience or filter hid likewise.
        Counter withheld_low;
        /// Ephemeral events from this shard's clients.
        Counter ephemeral_in;
        /// Ephemeral events times connections they went to.
        Counter ephemeral_out;
        /// Changes of what others see of a user of this shard.
        Counter presence_changes;
        /// Changes of presence times shards that were told.
        Counter presence_told;
        /// Changes of presence times connections that were told.
        Counter presence_events;
        /// Views of another shard's users that had to be sent anew since something was lost.
        Counter presence_refreshes;
        /// Questions of presence that were answered without some shard's part.
        Counter presence_partial;
        /// Transitions of presence that the store has kept.
        Counter transitions_recorded;
        /// Transitions of presence that were given up because the store took none for too long.
        Counter transitions_dropped;
        /// Activities that were passed on to a room.
        Counter activities_passed;
        /// Activities that came too soon after another of the same user and room: they waited, or went nowhere.
        Counter activities_held;

        /// Low-lane frames that a later one with the same key replaced (ladder step 1).
        Counter slow_conflated;
        /// Low-lane frames that were dropped (ladder step 2).
        Counter slow_dropped_low;
        /// Normal-lane frames that were dropped (ladder step 3).
        Counter slow_dropped_normal;
        /// Gap events that stood in for dropped log entries.
        Counter gaps;
        /// Connections closed with 4102 (ladder step 4).
        Counter slow_closed;

        /// Times that waiting bytes exceeded the shard's share of outbox_total_bytes_max.
        Counter outbox_shed;
        /// Arrays of events that were composed for clients with batch=1.
        Counter arrays;
        /// Events in those arrays.
        Counter array_events;
        /// Bytes of frames of such clients before arrays were composed.
        Counter array_bytes_before;
        /// The same bytes after.
        Counter array_bytes_after;

        /// Resumes that replayed everything after the cursor.
        Counter resumes_recovered;
        /// Resumes that were told recovered:false.
        Counter resumes_unrecovered;
        /// Entries that resumes replayed from memory.
        Counter resume_events_memory;
        /// Entries that resumes replayed from the store.
        Counter resume_events_store;

        /// Inbox items times connections they were sent to.
        Counter inbox_sent;
        /// Inbox items that were sent again because no device acknowledged them in time.
        Counter inbox_retries;
        /// Inbox items that were acknowledged, read, or heard by listening to their room.
        Counter inbox_acked;
        /// Those among them that were never sent, because a device listened to their room.
        Counter inbox_heard;
        /// Inbox items whose time was over before they were acknowledged, seen by a shard.
        Counter inbox_expired;
        /// Inbox items that became dead letters after the last attempt.
        Counter inbox_dead;
        /// Dead letters that the admin API replayed with success through this shard.
        Counter dead_replayed;
        /// Dead letters that the admin API threw away through this shard.
        Counter dead_purged;

        /// Rooms that the background check compared with the store.
        Counter rooms_checked;
        /// Rooms that it found to differ and that were reloaded or put right.
        Counter rooms_repaired;

        /// Commands that were refused for their rate.
        Counter rate_limited;
        /// Commands that were refused because a bounded queue was full.
        Counter busy;
        /// Commands that were refused for want of a right.
        Counter denied;
        /// Connections that were closed because nothing arrived for two heartbeat intervals.
        Counter heartbeats_missed;
        /// Sessions that were closed because their token was revoked.
        Counter revoked;

        /// Messages to other shards.
        Counter mesh_sent;
        /// Messages from other shards.
        Counter mesh_received;
        /// Messages to other shards that found a full queue and were dropped.
        Counter mesh_dropped;
        /// Committed batches that were applied.
        Counter batches;
        /// Log entries in them.
        Counter batch_entries;

        /// Turns of the driver's loop.
        Counter turns;
        /// Turns that ended asleep.
        Counter sleeps;
        /// Receives that found no provided buffer and were armed again.
        Counter ring_enobufs;
        /// Completions whose connection was gone by then.
        Counter ring_stale;
    } and {
        /// Time from another thread's wake-up call to the shard's next turn, in the last 30 to 60 s.
        pub wake_latency: LatencySummary,
        /// Length of a turn, in the last 30 to 60 s.
        pub turn_time: LatencySummary,
        /// Where the time of messages goes.
        pub stages: StageTimes,
        /// Error replies by code.
        pub errors: ErrorCounts,
        /// Closes by the server, by code.
        pub closes: CloseCounts,
        /// Commands by type.
        pub commands: CommandCounts,
    }
);

impl Stats {
    /// An event came from one of this shard's clients.
    pub fn count_event_in(&mut self, priority: Priority) {
        match priority {
            Priority::Critical => self.events_in_critical += 1,
            Priority::Normal => self.events_in_normal += 1,
            Priority::Low => self.events_in_low += 1,
        }
    }

    /// `considered` events times connections that listened, of which `withheld` were hidden.
    pub fn count_fanout(&mut self, priority: Priority, considered: u64, withheld: u64) {
        let (total, hidden) = match priority {
            Priority::Critical => (&mut self.considered_critical, &mut self.withheld_critical),
            Priority::Normal => (&mut self.considered_normal, &mut self.withheld_normal),
            Priority::Low => (&mut self.considered_low, &mut self.withheld_low),
        };
        *total += considered;
        *hidden += withheld;
    }
}

/// A latency histogram in four numbers, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LatencySummary {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl<C: hdrhistogram::Counter> From<&hdrhistogram::Histogram<C>> for LatencySummary {
    fn from(histogram: &hdrhistogram::Histogram<C>) -> Self {
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.50),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

const ERRORS_FROM: u16 = 100;
const ERRORS: usize = 18;

/// How often each error code was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorCounts([u64; ERRORS]);

impl ErrorCounts {
    /// Counts one reply with `code`.
    pub fn count(&mut self, code: ErrorCode) {
        self.0[Self::index(code)] += 1;
    }

    /// Replies with `code` so far.
    pub fn get(&self, code: ErrorCode) -> u64 {
        self.0[Self::index(code)]
    }

    /// Every code's name and count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ErrorCode::ALL.iter().map(|code| (code.name(), self.get(*code)))
    }

    const fn index(code: ErrorCode) -> usize {
        (code.number() - ERRORS_FROM) as usize
    }
}

// The table of codes must fit the array: checked when compiled.
const _: () = {
    let mut at = 0;
    while at < ErrorCode::ALL.len() {
        assert!(ErrorCounts::index(ErrorCode::ALL[at]) < ERRORS);
        at += 1;
    }
};

const CLOSES: usize = CloseCode::ALL.len();

/// How often the server closed with each code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloseCounts([u64; CLOSES]);

impl CloseCounts {
    /// Counts one close with `code`.
    pub fn count(&mut self, code: CloseCode) {
        if let Some(at) = CloseCode::ALL.iter().position(|other| *other == code) {
            self.0[at] += 1;
        }
    }

    /// Closes with `code` so far.
    pub fn get(&self, code: CloseCode) -> u64 {
        CloseCode::ALL.iter().position(|other| *other == code).map_or(0, |at| self.0[at])
    }

    /// Every code's name and count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CloseCode::ALL.iter().zip(self.0).map(|(code, count)| (code.name(), count))
    }
}

macro_rules! command_table {
    ($($slot:ident: $pattern:pat => $name:literal,)*) => {
        const COMMANDS: &[&str] = &[$($name),*];

        #[derive(Clone, Copy)]
        enum Slot { $($slot),* }

        const fn slot(command: &Command<'_>) -> Slot {
            match command { $($pattern => Slot::$slot,)* }
        }
    };
}

command_table! {
    Ping: Command::Ping => "ping",
    AuthRefresh: Command::AuthRefresh { .. } => "auth:refresh",
    RoomCreate: Command::RoomCreate { .. } => "room:create",
    RoomJoin: Command::RoomJoin { .. } => "room:join",
    RoomSubscribe: Command::RoomSubscribe { .. } => "room:subscribe",
    RoomUnsubscribe: Command::RoomUnsubscribe { .. } => "room:unsubscribe",
    RoomLeave: Command::RoomLeave { .. } => "room:leave",
    RoomManage: Command::RoomManage { .. } => "room:manage",
    RoomMembers: Command::RoomMembers { .. } => "room:members",
    RoomList: Command::RoomList { .. } => "room:list",
    MessageSend: Command::MessageSend(_) => "message:send",
    MessageHistory: Command::MessageHistory { .. } => "message:history",
    MessageRead: Command::MessageRead { .. } => "message:read",
    MessageDelivered: Command::MessageDelivered { .. } => "message:delivered",
    MessageEdit: Command::MessageEdit { .. } => "message:edit",
    MessageDelete: Command::MessageDelete { .. } => "message:delete",
    Reaction: Command::Reaction { .. } => "reaction",
    EventSend: Command::EventSend { .. } => "event:send",
    Notify: Command::Notify(_) => "notify",
    InboxAck: Command::InboxAck { .. } => "inbox:ack",
    InboxList: Command::InboxList { .. } => "inbox:list",
    SyncCheck: Command::SyncCheck { .. } => "sync:check",
    Stats: Command::Stats => "stats",
    PresenceSet: Command::PresenceSet { .. } => "presence:set",
    PresenceSubscribe: Command::PresenceSubscribe(_) => "presence:subscribe",
    PresenceUnsubscribe: Command::PresenceUnsubscribe(_) => "presence:unsubscribe",
    PresenceGet: Command::PresenceGet { .. } => "presence:get",
    PresenceHistory: Command::PresenceHistory { .. } => "presence:history",
    Activity: Command::Activity { .. } => "activity",
}

/// How many commands of each type were handled. Invite, kick, ban and role are `room:manage`,
/// adding and removing a reaction `reaction`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandCounts([u64; COMMANDS.len()]);

impl CommandCounts {
    /// Counts one command.
    pub fn count(&mut self, command: &Command<'_>) {
        self.0[slot(command) as usize] += 1;
    }

    /// Every type and its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        COMMANDS.iter().copied().zip(self.0)
    }

    /// All commands together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

macro_rules! serialize_as_map {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                // Zeroes are left out: a table of what did happen is what a person wants to see.
                serializer.collect_map(self.iter().filter(|(_, count)| *count > 0))
            }
        }
    )*};
}

serialize_as_map!(ErrorCounts, CloseCounts, CommandCounts);

readings!(
    /// The numbers of the persistence core, since start.
    StoreStats {
        /// Last position of the log.
        Gauge position;
        /// 1 while writes are refused.
        Gauge degraded;
        /// Lists of appends that wait for the writer.
        Gauge inbox_len;
        /// Questions that wait for a reader.
        Gauge reads_waiting;
        /// client_ids that are remembered.
        Gauge dedupe_entries;
        /// Bytes of the write-ahead log that are in use.
        Gauge wal_bytes;
        /// Dead letters that are kept.
        Gauge dead_letters;
        /// Transactions that committed.
        Counter batches;
        /// Log rows that were committed.
        Counter rows;
        /// Bytes of frames that were encoded.
        Counter bytes;
        /// Appends that were answered, whatever the answer.
        Counter appends;
        /// Messages whose client_id was known.
        Counter duplicates;
        /// Appends that were refused because the store took no writes or a commit failed.
        Counter refused;
        /// Commits that failed.
        Counter failures;
        /// Failed commits that turned out to stand in the log.
        Counter adopted;
        /// Times that the inbox was full and a shard was told busy.
        Counter inbox_full;
        /// client_ids that were forgotten early because too many were remembered.
        Counter dedupe_evicted;
        /// Inbox items that were refused or left out because the inbox was full.
        Counter items_refused;
        /// Inbox items that were thrown out of a full inbox.
        Counter items_evicted;
        /// Inbox items that were deleted because their time was over.
        Counter items_expired;
        /// Transitions of presence that were written.
        Counter transitions_written;
        /// Transitions of presence that were deleted because they were too old.
        Counter transitions_pruned;
        /// Entries that could not be written and were put aside as dead letters.
        Counter poisoned;
        /// Dead letters that were let go because there were more than dead_letters_max.
        Counter dead_letters_dropped;
        /// Questions that were answered.
        Counter reads;
        /// Questions that were answered with an error.
        Counter read_errors;
        /// Checkpoints of the write-ahead log.
        Counter checkpoints;
    } and {
        /// Duration of a transaction, fsync included.
        pub commit_time: LatencySummary,
        /// Duration of a question, without its wait.
        pub read_time: LatencySummary,
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_named_once_and_explained() {
        let shard: Vec<Reading> = Stats::default().readings().collect();
        let store: Vec<Reading> = StoreStats::default().readings().collect();
        for readings in [&shard, &store] {
            let mut names: Vec<&str> = readings.iter().map(|r| r.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), readings.len());
            assert!(readings.iter().all(|r| r.help.ends_with('.') && !r.help.starts_with(' ')));
        }
        assert!(shard.iter().any(|r| r.name == "gaps" && r.kind == Kind::Counter));
        assert!(shard.iter().any(|r| r.name == "connections" && r.kind == Kind::Gauge));
    }

    #[test]
    fn readings_carry_the_values() {
        let stats = Stats { acks: 7, ..Stats::default() };
        assert_eq!(stats.readings().find(|r| r.name == "acks").map(|r| r.value), Some(7));
        assert_eq!(stats.readings().map(|r| r.value).sum::<u64>(), 7);
    }

    #[test]
    fn codes_and_commands_are_counted_apart() {
        let mut stats = Stats::default();
        stats.errors.count(ErrorCode::Internal);
        stats.errors.count(ErrorCode::Degraded);
        stats.errors.count(ErrorCode::Degraded);
        stats.closes.count(CloseCode::Replaced);
        stats.commands.count(&Command::Ping);
        stats.commands.count(&Command::Stats);
        stats.commands.count(&Command::Stats);
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["errors"], serde_json::json!({"internal": 1, "degraded": 2}));
        assert_eq!(json["closes"], serde_json::json!({"replaced": 1}));
        assert_eq!(json["commands"], serde_json::json!({"ping": 1, "stats": 2}));
        assert_eq!(stats.commands.total(), 3);
        for code in ErrorCode::ALL {
            let mut counts = ErrorCounts::default();
            counts.count(*code);
            assert_eq!(counts.iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>(), [(code.name(), 1)]);
        }
    }
}
