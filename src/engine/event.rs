//! The closed lists of all that can happen: what comes into an engine, what goes out of it, and
//! what travels between the shards, the persistence core and the readers.
//!
//! ```text
//!  Input ──► Shard ──► Output                       one shard's engine
//!            Append ──► persistence core ──► StoreEvent (CommittedBatch to EVERY shard, in order)
//!            ReadRequest ──► reader threads ──► ReadReply
//!            MeshMessage  shard ⇄ shard, may be lost
//! ```
//! Nothing here does anything: these are values, `Send`, without sockets, channels or clocks.

mod class;
mod outputs;
mod reading;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

pub use super::audience::{Audience, Viewer};
pub use class::Class;
pub use outputs::Outputs;
pub use reading::{DELETED_MAX, DELIVERED_MAX, HistoryEntry, Membership, Page, Query, ReadReply, ReadRequest, RoomRow};

use super::consistency::Witness;
use super::dead::{DeadAct, DeadFilter, DeadLetter, LetterId};
use super::inbox::{InboxChange, ItemId, NewItem};
use super::presence::history::{Analytics, News};
use super::stages::Stamps;
use super::tally::Tally;
use crate::protocol::encode::{EventKind, frame_header_len};
use crate::protocol::error::Refusal;
use crate::protocol::ids::{
    DeviceId, Epoch, Position, Priority, Role, RoomKey, RoomKind, RoomName, Seq, UnixMillis, UserId,
};

/// Which shard of this process, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// A connection of one shard: a slot that is reused, and the generation that tells its users apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnKey {
    /// Index into the shard's dense tables.
    pub slot: u32,
    /// Goes up by one each time the slot is given out.
    pub generation: u32,
}

/// Names a question that a shard asked (an append, a read), unique within the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

// ------------------------------------------------------------------------------------------------
// To the persistence core

/// One thing to be made durable: not yet numbered, not yet decided.
#[derive(Debug, Clone)]
pub struct Append {
    /// Who gets the [`Outcome`].
    pub shard: ShardId,
    /// Echoed in the [`Outcome`].
    pub token: Token,
    /// The log position the shard had applied when it checked permissions. An entry whose author
    /// lost the right at a later position is refused by the core, so that the check holds at the
    /// entry's own place in the order.
    pub seen: Position,
    /// What to append.
    pub entry: Entry,
}

/// What an [`Append`] asks for. The core decides about rooms and roles, since it alone sees them
/// in log order; shards have checked what the token allows.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A message into a room that exists.
    Message(NewMessage),
    /// A message whose author may not write there, perhaps no more: acknowledged when it repeats one
    /// that stands, else refused with `permission_denied`. Never an entry of the log.
    Repeat {
        /// Where it was sent.
        room: RoomKey,
        /// Who sent it.
        author: UserId,
        /// By what it is known.
        client_id: Box<str>,
    },
    /// A new room. Refused with `conflict` when the name is taken.
    CreateRoom {
        /// Its name.
        room: RoomName,
        /// Who may come in.
        kind: RoomKind,
        /// For people.
        title: Option<Box<str>>,
        /// Becomes owner (a `room:joined` entry with seq 1).
        creator: UserId,
        /// Become members (one `room:joined` entry each, after the creator's).
        members: Vec<UserId>,
    },
    /// `user` becomes a member. No entry, and no refusal, when they are one already.
    Join {
        /// The room.
        room: RoomName,
        /// Who joins.
        user: UserId,
        /// Create it, public, when there is none (the joiner becomes owner); else `unknown_room`.
        auto_create: bool,
    },
    /// `user`'s membership ends. Refused with `not_found` when there is none.
    Leave {
        /// The room.
        room: RoomName,
        /// Who leaves.
        user: UserId,
    },
    /// `by` changes `user`'s membership. The core checks both roles.
    Manage {
        /// The room.
        room: RoomName,
        /// Who does it.
        by: UserId,
        /// May act in every room, whatever their role (the `admin` claim, the admin API).
        by_admin: bool,
        /// Whom it is done to.
        user: UserId,
        /// What is done.
        act: crate::protocol::command::Manage,
    },
    /// `user` has read `room` up to `seq`. Moves forward only; capped at the room's head.
    Read {
        /// The room.
        room: RoomKey,
        /// The reader.
        user: UserId,
        /// Up to and with this entry.
        seq: Seq,
    },
    /// `user`'s `device` has `room` up to `seq`. Moves forward only; at least what is read, capped at
    /// the room's head.
    Delivered {
        /// The room.
        room: RoomKey,
        /// Whose device.
        user: UserId,
        /// Which device.
        device: DeviceId,
        /// Up to and with this entry.
        seq: Seq,
    },
    /// A message is edited or deleted, or a reaction comes or goes. The core decides whose version wins.
    Amend(Box<Amend>),
    /// Tokens lose their validity, durably.
    Revoke(Revocation),
    /// An item for a user's inbox. A sender (`from`) must share a room with the user, unless
    /// `by_admin`. The outcome's `seq` is the item's number; refused with `inbox_full`.
    Notify {
        /// What is queued.
        item: NewItem,
        /// No shared room is needed.
        by_admin: bool,
    },
    /// Items of `user` are done with. The outcome's `seq` is how many of them were waiting.
    InboxAck {
        /// Whose.
        user: UserId,
        /// Which; those that do not wait are no matter.
        items: Box<[ItemId]>,
    },
    /// Items of `user` were sent once more.
    InboxTried {
        /// Whose.
        user: UserId,
        /// Which.
        items: Box<[ItemId]>,
    },
    /// Items of `user` become dead letters.
    InboxDead {
        /// Whose.
        user: UserId,
        /// Which.
        items: Box<[ItemId]>,
    },
    /// What a shard has to tell of its users' presence. Kept once, however often it is told.
    PresenceNews(Arc<News>),
    /// Dead letters are replayed or thrown away.
    Dead(DeadAct),
    /// A room was found not to be the same everywhere. The core counts its last entries again and puts
    /// right what is wrong (the outcome's `value` is then 1), or refuses with `conflict` and from then on
    /// every write to the room.
    Mend {
        /// The room.
        room: RoomKey,
        /// How the shard remembers it.
        witness: Witness,
    },
}

/// A message, as its author's shard hands it over.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// Where to.
    pub room: RoomKey,
    /// Who wrote it.
    pub author: UserId,
    /// May write where they are no member (the `admin` claim, or the admin API).
    pub by_admin: bool,
    /// The author's own id for it, the key of "sent once".
    pub client_id: Option<Box<str>>,
    /// The rest of the event's fields as JSON without braces: `"body":…[,"thread":…],"trace":"…"`.
    pub fields: Box<str>,
    /// Root of the thread it belongs to (repeated inside `fields`), for the store's index.
    pub thread: Option<Seq>,
    /// Who may see it, when not everybody in the room.
    pub audience: Option<Arc<Audience>>,
    /// Lane.
    pub priority: Priority,
    /// Who is mentioned (repeated inside `fields`): members of the room among them get an inbox item.
    pub mentions: Box<[UserId]>,
    /// The author has read the room up to this message: their read cursor moves with it.
    pub reads: bool,
}

/// A change to a message that stands in the log, as its author's shard hands it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amend {
    /// The room.
    pub room: RoomKey,
    /// Seq of the message.
    pub target: Seq,
    /// Who does it.
    pub by: UserId,
    /// May change any message (the `admin` claim).
    pub by_admin: bool,
    /// What is done.
    pub act: AmendAct,
}

/// What is done to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AmendAct {
    /// A new body.
    Edit {
        /// The body as a JSON string, quotes included.
        body_json: Box<str>,
        /// The version that was edited. Another one stands: refused with `conflict`.
        version: Option<u64>,
    },
    /// A tombstone.
    Delete,
    /// A reaction of `by` comes. No entry when it is there.
    React(Box<str>),
    /// A reaction of `by` goes. No entry when it is not there.
    Unreact(Box<str>),
}

/// Tokens that are no longer valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocation {
    /// The token with this `jti` claim.
    Jti(Box<str>),
    /// The same, of a token that expires then and need not be remembered for longer.
    JtiUntil(Box<str>, UnixMillis),
    /// Every token of this user whose `iat` claim is missing or at or before this second.
    UserBefore(UserId, u64),
}

// ------------------------------------------------------------------------------------------------
// From the persistence core

/// What the persistence core tells every shard, in one order.
#[derive(Debug, Clone)]
pub enum StoreEvent {
    /// A transaction ended: entries (if it committed) and everybody's outcomes.
    Batch(Arc<CommittedBatch>),
    /// The store stopped (`true`) or resumed (`false`) taking writes.
    Degraded(bool),
}

/// One committed transaction: what every shard applies, encoded once.
///
/// Entries of one room lie together, in seq order, in `bytes`, so that a subscriber of the room can
/// be sent one slice. `first..=last` are the positions of the entries; batches are contiguous.
/// A batch without entries has `last == first - 1`.
#[derive(Debug, Default)]
pub struct CommittedBatch {
    /// Position of the first entry.
    pub first: Position,
    /// Position of the last entry.
    pub last: Position,
    /// WebSocket text frames, one an entry (see [`LogEntry::span`]).
    pub bytes: Bytes,
    /// One for each room that has entries here, ascending by key.
    pub runs: Vec<RoomRun>,
    /// Cursors that moved: the latest for each room, user and device.
    pub reads: Vec<ReadAdvance>,
    /// Messages that became tombstones.
    pub deleted: Vec<(RoomKey, Seq)>,
    /// Tokens revoked by this batch.
    pub revocations: Vec<Revocation>,
    /// Changes of users' inboxes, in the order in which they were decided.
    pub inbox: Vec<InboxChange>,
    /// Answers to appends, by shard (indexed by `ShardId`), in the order of the appends.
    pub outcomes: Vec<Vec<Outcome>>,
    /// When all this happened.
    pub stamps: Stamps,
}

/// The entries of one room in one batch.
#[derive(Debug)]
pub struct RoomRun {
    /// The room.
    pub room: RoomKey,
    /// Its name, for shards that see it for the first time.
    pub name: RoomName,
    /// Its kind, likewise.
    pub kind: RoomKind,
    /// Members after this batch.
    pub members: u32,
    /// What the room's entries come to after this batch.
    pub tally: Tally,
    /// The entries, ascending by seq, dense.
    pub entries: Vec<LogEntry>,
}

impl RoomRun {
    /// Where all the entries' frames lie in [`CommittedBatch::bytes`].
    pub fn span(&self) -> Range<u32> {
        let start = self.entries.first().map_or(0, |entry| entry.span.start);
        let end = self.entries.last().map_or(start, |entry| entry.span.end);
        start..end
    }

    /// What the room's entries came to before the run.
    pub fn tally_before(&self) -> Tally {
        self.tally_at(0).unwrap_or(self.tally)
    }

    /// What the room's entries come to at `seq`, an entry of the run or the one before; for 0 at the one
    /// before.
    pub fn tally_at(&self, seq: Seq) -> Option<Tally> {
        let first = self.entries.first()?.seq;
        let seq = if seq == 0 { first - 1 } else { seq };
        if seq + 1 < first || seq > self.last_seq() {
            return None;
        }
        let mut tally = self.tally;
        let behind = self.entries.iter().rev().take_while(|entry| entry.seq > seq);
        behind.for_each(|entry| tally.take_back(entry.seq, entry.ts, entry.kind));
        Some(tally)
    }

    /// The last seq of the run.
    pub fn last_seq(&self) -> Seq {
        self.entries.last().map_or(0, |entry| entry.seq)
    }
}

/// One committed entry.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// Number within the room.
    pub seq: Seq,
    /// Number within the log.
    pub position: Position,
    /// When it was numbered.
    pub ts: UnixMillis,
    /// What it is.
    pub kind: EventKind,
    /// Lane.
    pub priority: Priority,
    /// Its frame in [`CommittedBatch::bytes`], header included.
    pub span: Range<u32>,
    /// Set when not everybody may see it.
    pub restricted: Option<Box<Restricted>>,
    /// Set when it changes a membership.
    pub change: Option<Box<MembershipChange>>,
}

impl LogEntry {
    /// True when it may not be dropped for a gap.
    pub fn is_critical(&self) -> bool {
        self.priority == Priority::Critical
    }

    /// The JSON object within the frame, header left out.
    pub fn json_span(&self) -> Range<usize> {
        let (start, end) = (self.span.start as usize, self.span.end as usize);
        // A frame of n bytes has the header of its payload; the two are fixed by n.
        let header = match end - start {
            0..=127 => frame_header_len(0),
            128..=65_539 => frame_header_len(126),
            _ => frame_header_len(65_536),
        };
        start + header..end
    }
}

/// The audience of one entry.
#[derive(Debug, Clone)]
pub struct Restricted {
    /// Who wrote it.
    pub author: UserId,
    /// Who may see it.
    pub audience: Arc<Audience>,
}

/// What an entry does to a membership: the role `user` has from now on (none: not a member).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipChange {
    /// Whose.
    pub user: UserId,
    /// The new role.
    pub role: Option<Role>,
    /// Messages of the room up to the entry: where a new member's read cursor begins.
    pub counted: u64,
}

/// A cursor that moved: of a user (read), or of one of their devices (delivered).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAdvance {
    /// The room.
    pub room: RoomKey,
    /// The reader.
    pub user: UserId,
    /// The device that has the entries; none: the user has read them.
    pub device: Option<DeviceId>,
    /// Everything up to and with this seq is read, or on the device.
    pub seq: Seq,
    /// Messages of the room up to `seq`; 0 for a device.
    pub counted: u64,
}

/// The answer to one [`Append`].
#[derive(Debug, Clone)]
pub struct Outcome {
    /// As in the append.
    pub token: Token,
    /// Committed, or why not.
    pub result: Result<Committed, Refusal>,
}

/// An append that stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The room (0 for entries without one).
    pub room: RoomKey,
    /// Its seq; for a join that changed nothing, the room's head; for `Read`, the cursor; for
    /// `Notify`, the item; for the other inbox entries, how many items there were.
    pub seq: Seq,
    /// When it was numbered (the first time, for a duplicate).
    pub ts: UnixMillis,
    /// The `client_id` was known: this is the first entry's number.
    pub duplicate: bool,
    /// For [`Entry::Amend`]: the message's version, or how many have the reaction. Else 0.
    pub value: u64,
}

// ------------------------------------------------------------------------------------------------
// Shard to shard

/// What shards tell each other: nothing that must not be lost.
#[derive(Debug, Clone)]
pub enum MeshMessage {
    /// An ephemeral event for the subscribers of a room.
    Ephemeral {
        /// The room.
        room: RoomKey,
        /// A WebSocket text frame.
        frame: Bytes,
        /// Lane.
        priority: Priority,
        /// Who may see it, when not everybody.
        restricted: Option<Arc<Restricted>>,
    },
    /// About presence.
    Presence {
        /// Who says it.
        from: ShardId,
        /// What.
        mail: Arc<crate::engine::presence::mail::Mail>,
    },
}

// ------------------------------------------------------------------------------------------------
// Into and out of a shard's engine

/// What a `rooms` claim grants: patterns (`*` at the end matches a prefix) and "may write".
pub type RoomGrants = Arc<[(Box<str>, bool)]>;

/// What the token of a connection says, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// `sub`
    pub user: UserId,
    /// `exp`, in milliseconds.
    pub expires_at: UnixMillis,
    /// `iat`, in seconds.
    pub issued_at: Option<u64>,
    /// `jti`
    pub jti: Option<Box<str>>,
    /// `admin`
    pub admin: bool,
    /// `rooms`: pattern and "may write"; none: every public room and every room of theirs.
    pub rooms: Option<RoomGrants>,
}

/// A connection whose upgrade succeeded, on its user's own shard.
#[derive(Debug, Clone)]
pub struct Opening {
    /// What the token says.
    pub claims: Claims,
    /// Which device.
    pub device: DeviceId,
    /// The client asked for arrays of events (`batch=1`).
    pub batch: bool,
}

/// Everything that can come into an engine.
#[derive(Debug)]
pub enum Input<'a> {
    /// A connection is open. Its `hello` follows when the user is loaded.
    Opened(ConnKey, Opening),
    /// A well-formed frame.
    Frame(ConnKey, &'a crate::protocol::command::Request<'a>),
    /// A frame that is not a command.
    BadFrame(ConnKey, Option<crate::protocol::command::CommandId>, Refusal),
    /// A WebSocket ping, answered already, or a pong: it counts against the command rate, since looking at it costs.
    Control(ConnKey),
    /// The answer to [`Output::VerifyToken`].
    TokenVerified(ConnKey, Token, Result<Claims, Refusal>),
    /// The connection is gone.
    Closed(ConnKey),
    /// The outbox of a connection dropped events of these rooms (last seq that was sent in each),
    /// or low events, and has room again.
    OutboxDrained(ConnKey, Vec<(RoomKey, Seq)>),
    /// From the persistence core.
    Store(StoreEvent),
    /// From a reader thread.
    Read(ReadReply),
    /// From another shard.
    Mesh(MeshMessage),
    /// From the admin API.
    Admin(AdminRequest),
    /// A deadline may be due.
    Tick,
    /// Begin to drain: `goaway` to everybody with retry times spread over this many milliseconds.
    Drain {
        /// Upper bound of the retry times.
        spread_ms: u32,
    },
    /// End the drain: close everybody with 4200.
    CloseAll,
}

/// A request of the admin API, routed to the shard of the user (or author).
#[derive(Debug, Clone)]
pub struct AdminRequest {
    /// Echoed in [`Output::AdminReply`].
    pub token: Token,
    /// What is asked.
    pub act: AdminAct,
}

/// What the admin API may ask of a shard.
#[derive(Debug, Clone)]
pub enum AdminAct {
    /// Publish a message. The room must exist.
    Publish {
        /// The room.
        room: RoomName,
        /// Author as shown.
        author: UserId,
        /// `Idempotency-Key`.
        client_id: Option<Box<str>>,
        /// The text, ≤ 8 KiB.
        body: Box<str>,
        /// JSON object text, ≤ 1 KiB.
        meta: Option<Box<str>>,
        /// Lane.
        priority: Priority,
    },
    /// Close every connection of a user (4003 with `reason`).
    Disconnect {
        /// Whose.
        user: UserId,
        /// Shown to the client, ≤ 100 bytes.
        reason: Box<str>,
    },
    /// Revoke tokens, durably, everywhere.
    Revoke(Revocation),
    /// How many of this shard's users are present.
    Presence,
    /// How many devices of each class are connected here.
    PresenceDevices,
    /// Numbers of the last so many hours, and of days and months, from the store.
    PresenceAnalytics {
        /// How many.
        hours: u32,
    },
    /// Put an item into a user's inbox.
    Notify(Box<NewItem>),
    /// Replay dead letters, or throw them away. Any shard will do.
    Dead(DeadAct),
    /// Dead letters with a number above `after`, oldest first, at most `limit`. Any shard will do.
    DeadLetters {
        /// Which.
        filter: DeadFilter,
        /// Exclusive lower bound.
        after: LetterId,
        /// At most so many.
        limit: u32,
    },
}

/// The answer to an [`AdminRequest`].
#[derive(Debug, Clone)]
pub enum AdminAnswer {
    /// Published.
    Published {
        /// The room, as asked.
        room: RoomName,
        /// Where it stands.
        committed: Committed,
    },
    /// So many connections were closed.
    Disconnected(u32),
    /// The revocation is committed.
    Revoked,
    /// The item of this number waits.
    Notified(ItemId),
    /// The letter was replayed, or so many (`seq`) were thrown away.
    Dead(Committed),
    /// A page of dead letters.
    DeadLetters {
        /// Ascending by number.
        letters: Vec<DeadLetter>,
        /// There is more.
        more: bool,
    },
    /// Who is present, in numbers.
    Presence(PresenceCount),
    /// Connected devices by class.
    PresenceDevices(std::collections::BTreeMap<Box<str>, u64>),
    /// What the store knows of presence, in numbers.
    PresenceAnalytics(Box<Analytics>),
}

/// How many users are present, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PresenceCount {
    /// Shown as online.
    pub online: u64,
    /// Shown as away.
    pub away: u64,
    /// Shown as busy.
    pub busy: u64,
    /// Connected, and shown as offline by their own wish.
    pub invisible: u64,
    /// Users with one device, two, three, and more.
    pub devices: [u64; 4],
}

/// Frames to be sent as they are.
#[derive(Debug, Clone)]
pub enum Frames {
    /// Small frames written this turn into [`Outputs::bytes`]: the outbox copies them.
    Scratch(Range<u32>),
    /// Frames of their own, shared by whoever sends them.
    Owned(Bytes),
    /// A run of entries of a committed batch, shared likewise.
    Batch(Arc<CommittedBatch>, Range<u32>),
}

impl Frames {
    /// The bytes to send; `scratch` is [`Outputs::bytes`].
    pub fn as_slice<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Scratch(span) => &scratch[span.start as usize..span.end as usize],
            Self::Owned(bytes) => bytes,
            Self::Batch(batch, span) => &batch.bytes[span.start as usize..span.end as usize],
        }
    }
}

/// Everything that an engine can ask for.
#[derive(Debug)]
pub enum Output {
    /// Send to one connection.
    Send {
        /// To whom.
        conn: ConnKey,
        /// What it is.
        class: Class,
        /// What to send.
        frames: Frames,
    },
    /// Send the same to many: `targets` indexes [`Outputs::targets`].
    Fanout {
        /// To whom.
        targets: Range<u32>,
        /// What it is.
        class: Class,
        /// What to send.
        frames: Frames,
    },
    /// Send a WebSocket ping.
    Ping(ConnKey),
    /// Close with this code and reason, after what waits in the critical lane. The engine has
    /// already forgotten the connection; no [`Input::Closed`] is due.
    Close {
        /// Whom.
        conn: ConnKey,
        /// Why, for the program.
        code: crate::protocol::error::CloseCode,
        /// Why, for the person; ≤ 120 bytes.
        reason: std::borrow::Cow<'static, str>,
    },
    /// Give the connection no further frames until [`Output::Unpark`]. With `again`, the frame that
    /// is being handled is to be handed in again first.
    Park {
        /// Whom.
        conn: ConnKey,
        /// Keep the current frame.
        again: bool,
    },
    /// Go on with the connection's frames.
    Unpark(ConnKey),
    /// Check a token (`auth:refresh`).
    VerifyToken {
        /// Whose.
        conn: ConnKey,
        /// Echoed in [`Input::TokenVerified`].
        token: Token,
        /// The JWT.
        jwt: Box<str>,
    },
    /// To the persistence core.
    Append(Append),
    /// To a reader thread.
    Read(ReadRequest),
    /// To every other shard.
    Mesh(MeshMessage),
    /// To one other shard.
    MeshTo(ShardId, MeshMessage),
    /// To the admin API.
    AdminReply(Token, Result<AdminAnswer, Refusal>),
    /// Answer `stats`: the driver adds what only it knows (outbox, ladder) to these fields.
    StatsReply {
        /// Whom.
        conn: ConnKey,
        /// The command's id.
        id: crate::protocol::command::CommandId,
        /// In [`Outputs::bytes`]: JSON fields, each with a leading comma.
        fields: Range<u32>,
    },
    /// A line for the log.
    Note(Note),
}

/// What an engine wants logged: one line an event.
#[derive(Debug, Clone)]
pub enum Note {
    /// A session began.
    SessionOpened {
        /// Connection.
        conn: ConnKey,
        /// Session id.
        session: u64,
        /// User.
        user: UserId,
        /// Device.
        device: DeviceId,
    },
    /// A session ended.
    SessionClosed {
        /// Connection.
        conn: ConnKey,
        /// Session id.
        session: u64,
        /// User.
        user: UserId,
        /// Close code, when the server closed.
        code: Option<crate::protocol::error::CloseCode>,
    },
    /// A command was refused for want of a right.
    Denied {
        /// Connection.
        conn: ConnKey,
        /// User.
        user: UserId,
        /// What was refused.
        what: &'static str,
    },
    /// A message was committed (TRACE).
    Committed {
        /// Trace id.
        trace: u64,
        /// Room.
        room: RoomKey,
        /// Seq.
        seq: Seq,
    },
    /// A room was not the same everywhere, and is again.
    Repaired {
        /// Room.
        room: RoomKey,
        /// What was wrong.
        what: &'static str,
    },
    /// The entries of a room do not add up (ERROR): it takes no writes.
    Diverged {
        /// Room.
        room: RoomKey,
        /// How.
        reason: Box<str>,
    },
    /// A room that had diverged adds up again.
    WellAgain {
        /// Room.
        room: RoomKey,
    },
}

/// What the server as a whole tells an engine at its construction.
#[derive(Debug, Clone)]
pub struct Genesis {
    /// Which shard.
    pub shard: ShardId,
    /// How many there are.
    pub shards: u16,
    /// Seed of every random choice.
    pub seed: u64,
    /// Epoch of the log.
    pub epoch: Epoch,
    /// Last position of the log when the engine starts; the first batch begins right after it.
    pub position: Position,
    /// Revocations that stand.
    pub revocations: Vec<Revocation>,
    /// Ask for [`Note::Committed`] for each message.
    pub notes_messages: bool,
}
