//! What shards ask of the reader threads, and what those answer: values, like everything in
//! [`event`](super). Every question is answered once, always.

use std::ops::Range;

use super::{Restricted, ShardId, Token};
use crate::engine::auth::Names;
use crate::engine::consistency::{Audit, Broken};
use crate::engine::dead::{DeadFilter, DeadLetter, LetterId};
use crate::engine::inbox::Item;
use crate::engine::presence::history::{Analytics, Ask, History};
use crate::engine::tally::Tally;
use crate::protocol::error::Refusal;
use crate::protocol::ids::{DeviceId, Position, Role, RoomKey, RoomKind, RoomName, Seq, UnixMillis, UserId};

/// A question to the reader threads. Answered once, always.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// Who gets the [`ReadReply`].
    pub shard: ShardId,
    /// Echoed in the reply.
    pub token: Token,
    /// The question.
    pub query: Query,
}

/// What a shard may ask of the store.
#[derive(Debug, Clone)]
pub enum Query {
    /// A user's memberships, bans and read cursors.
    User(UserId),
    /// A room by name.
    Room(RoomName),
    /// Entries `after < seq < before`, at most `limit` and at most `bytes_max` of JSON: the oldest
    /// ones, or the newest ones when `newest`. Always returned ascending.
    History {
        /// The room.
        room: RoomKey,
        /// Exclusive lower bound.
        after: Seq,
        /// Exclusive upper bound (`u64::MAX`: none).
        before: Seq,
        /// Take from the upper end.
        newest: bool,
        /// Only the messages of this thread (its root included).
        thread: Option<Seq>,
        /// Messages as they stand now, with reactions; else each entry as it was logged.
        current: bool,
        /// At most so many entries.
        limit: u32,
        /// At most so many bytes of JSON, but at least one entry.
        bytes_max: u32,
    },
    /// Members of a room by name, ascending, those after `after`.
    Members {
        /// The room.
        room: RoomKey,
        /// Exclusive lower bound.
        after: Option<UserId>,
        /// At most so many.
        limit: u32,
    },
    /// What was seen of a user's presence.
    PresenceHistory(Ask),
    /// Presence in numbers: the last so many hours, the last days and months.
    PresenceAnalytics {
        /// The present moment.
        now: UnixMillis,
        /// How many hours.
        hours: u32,
    },
    /// Dead letters by number, ascending, those after `after`.
    DeadLetters {
        /// Which.
        filter: DeadFilter,
        /// Exclusive lower bound.
        after: LetterId,
        /// At most so many.
        limit: u32,
    },
    /// Rooms by name, ascending: public ones and those `user` is a member of.
    Rooms {
        /// Whose view.
        user: UserId,
        /// Which of them: ascending, each name once.
        within: Vec<Names>,
        /// Only this kind.
        kind: Option<RoomKind>,
        /// Exclusive lower bound.
        after: Option<RoomName>,
        /// At most so many.
        limit: u32,
    },
    /// What the entries of rooms come to at some seq each.
    Tallies(Vec<(RoomKey, Seq)>),
    /// The stretch of a room's entries around `seq`, counted again.
    Audit {
        /// The room.
        room: RoomKey,
        /// The entry.
        seq: Seq,
    },
}

/// The answer to one [`ReadRequest`].
#[derive(Debug)]
pub struct ReadReply {
    /// As in the request.
    pub token: Token,
    /// The page, or why there is none.
    pub result: Result<Page, Refusal>,
}

/// What the store said. `at` is the log position of the snapshot that was read: a shard skips
/// entries up to it for what it loaded here.
#[derive(Debug)]
pub enum Page {
    /// For [`Query::User`].
    User {
        /// Snapshot position.
        at: Position,
        /// One for each room the user is in.
        memberships: Vec<Membership>,
        /// The rooms they are banned from, ascending: the numbers only, since anybody can ban anybody from any
        /// number of rooms.
        bans: Vec<RoomKey>,
        /// What waits in their inbox, in no order.
        inbox: Vec<Item>,
        /// What their devices have beyond what is read; at most [`DELIVERED_MAX`].
        delivered: Vec<(RoomKey, DeviceId, Seq)>,
    },
    /// For [`Query::Room`].
    Room {
        /// Snapshot position.
        at: Position,
        /// None when there is no such room.
        room: Option<RoomRow>,
    },
    /// For [`Query::History`].
    History {
        /// JSON objects, one an entry, back to back.
        json: Vec<u8>,
        /// The entries, ascending by seq.
        entries: Vec<HistoryEntry>,
        /// There is more beyond `limit` or `bytes_max`.
        more: bool,
    },
    /// For [`Query::Members`].
    Members {
        /// User and role, ascending by user.
        members: Vec<(UserId, Role)>,
        /// There is more.
        more: bool,
    },
    /// For [`Query::PresenceHistory`].
    PresenceHistory(History),
    /// For [`Query::PresenceAnalytics`].
    PresenceAnalytics(Box<Analytics>),
    /// For [`Query::DeadLetters`].
    DeadLetters {
        /// Ascending by number.
        letters: Vec<DeadLetter>,
        /// There is more.
        more: bool,
    },
    /// For [`Query::Rooms`].
    Rooms {
        /// Ascending by name, with the asker's role where they have one.
        rooms: Vec<(RoomRow, Option<Role>)>,
        /// There is more.
        more: bool,
    },
    /// For [`Query::Tallies`], in its order; none: no such entry.
    Tallies(Vec<Option<Tally>>),
    /// For [`Query::Audit`]: the stretch, or how it does not add up.
    Audit(Result<Audit, Broken>),
}

/// Tombstones of a room that are known one by one when unread messages are counted: the newest ones.
pub const DELETED_MAX: usize = 1_024;

/// Delivered cursors of a user that are read at once, those of the newest rooms, and that are kept in memory.
pub const DELIVERED_MAX: u32 = 1_024;

/// One user's membership of one room.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The room as it stood at the snapshot.
    pub room: RoomRow,
    /// The user's role.
    pub role: Role,
    /// The user's read cursor; 0: nothing.
    pub read: Seq,
    /// Messages of the room up to the read cursor.
    pub counted: u64,
    /// Tombstones behind the read cursor, ascending; the newest [`DELETED_MAX`].
    pub deleted: Vec<Seq>,
}

/// One room as it stood at a snapshot.
#[derive(Debug, Clone)]
pub struct RoomRow {
    /// Its number.
    pub key: RoomKey,
    /// Its name.
    pub name: RoomName,
    /// Who may come in.
    pub kind: RoomKind,
    /// For people.
    pub title: Option<Box<str>>,
    /// Last seq; 0: none.
    pub head: Seq,
    /// Number of members.
    pub members: u32,
    /// What its entries come to.
    pub tally: Tally,
}

/// One entry of a history page.
#[derive(Debug, Clone)]
pub struct HistoryEntry {
    /// Number within the room.
    pub seq: Seq,
    /// When it was numbered.
    pub ts: UnixMillis,
    /// Its object in the page's `json`.
    pub span: Range<u32>,
    /// Set when not everybody may see it.
    pub restricted: Option<Box<Restricted>>,
}
