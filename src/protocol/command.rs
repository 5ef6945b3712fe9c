//! What a client may say: the closed list of commands, borrowed from the parsed frame.
//!
//! A [`Command`] has passed every check that needs no state: names are valid, numbers are in
//! range, texts are within their bounds. `parse` (see [`super::parse`]) is the only maker.

use std::sync::Arc;

use super::audience::RoleSet;
use super::filter::Filter;
use super::ids::{Priority, Role, RoomKind, Seq, UnixMillis};

/// The `id` that a client gives a command and finds again in its reply.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CommandId {
    /// An integer.
    Number(i64),
    /// A text of at most 64 characters.
    Text(Box<str>),
}

/// One frame from a client: a command, and the id to answer to (none: no `ok` is sent).
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// Echoed in the reply.
    pub id: Option<CommandId>,
    /// What is asked.
    pub command: Command<'a>,
}

/// A point in one room's history, as a client keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor<'a> {
    /// Which history.
    pub epoch: &'a str,
    /// The last seq the client has.
    pub seq: Seq,
}

/// `notify`
#[derive(Debug, Clone, PartialEq)]
pub struct Notify<'a> {
    /// Whose inbox; a valid user id.
    pub user: &'a str,
    /// 1–64 bytes.
    pub name: &'a str,
    /// JSON text, at most 4 KiB, written anew from what was parsed.
    pub data: String,
    /// Order of delivery.
    pub priority: Priority,
    /// 1 ms–30 days; none: the server's default.
    pub ttl_ms: Option<u64>,
}

/// Every command of protocol version 1 that is built.
#[derive(Debug, Clone, PartialEq)]
pub enum Command<'a> {
    /// `ping`
    Ping,
    /// `auth:refresh`: a new token of the same user.
    AuthRefresh {
        /// The JWT. Never logged.
        token: &'a str,
    },
    /// `room:create`
    RoomCreate {
        /// Name of the new room.
        room: &'a str,
        /// Who may come in.
        kind: RoomKind,
        /// First members beside the creator; valid user ids, at most 1,000.
        members: Vec<&'a str>,
        /// At most 128 bytes.
        title: Option<&'a str>,
    },
    /// `room:join`: become a member, and subscribe this connection.
    RoomJoin {
        /// The room.
        room: &'a str,
        /// Where to resume.
        since: Option<Cursor<'a>>,
        /// What the subscription wants to see; none: everything.
        filter: Option<Arc<Filter>>,
    },
    /// `room:subscribe`: this connection only.
    RoomSubscribe {
        /// The room.
        room: &'a str,
        /// Where to resume.
        since: Option<Cursor<'a>>,
        /// What the subscription wants to see; none: everything.
        filter: Option<Arc<Filter>>,
    },
    /// `room:unsubscribe`: this connection only.
    RoomUnsubscribe {
        /// The room.
        room: &'a str,
    },
    /// `room:leave`: end the membership.
    RoomLeave {
        /// The room.
        room: &'a str,
    },
    /// `room:invite`, `room:kick`, `room:ban`, `room:role`.
    RoomManage {
        /// The room.
        room: &'a str,
        /// The user it is done to; a valid user id.
        user: &'a str,
        /// What is done.
        act: Manage,
    },
    /// `room:members`
    RoomMembers {
        /// The room.
        room: &'a str,
        /// Continue after this user.
        after: Option<&'a str>,
        /// 1–1,000, default 100.
        limit: u32,
    },
    /// `room:list`
    RoomList {
        /// Only rooms of this kind.
        kind: Option<RoomKind>,
        /// Continue after this room.
        after: Option<&'a str>,
        /// 1–1,000, default 100.
        limit: u32,
    },
    /// `message:send`
    MessageSend(Box<MessageSend<'a>>),
    /// `message:history`
    MessageHistory {
        /// The room.
        room: &'a str,
        /// Which end to read from.
        from: HistoryFrom,
        /// Only the thread with this root.
        thread: Option<Seq>,
        /// 1–100, default 50.
        limit: u32,
    },
    /// `message:read`: everything up to `seq` is read.
    MessageRead {
        /// The room.
        room: &'a str,
        /// At least 1.
        seq: Seq,
    },
    /// `message:delivered`: everything up to `seq` is on this device.
    MessageDelivered {
        /// The room.
        room: &'a str,
        /// At least 1.
        seq: Seq,
    },
    /// `message:edit`
    MessageEdit {
        /// The room.
        room: &'a str,
        /// The message.
        seq: Seq,
        /// 1 byte to 8 KiB.
        body: &'a str,
        /// The version that the client changes; none: whatever stands.
        version: Option<u64>,
    },
    /// `message:delete`
    MessageDelete {
        /// The room.
        room: &'a str,
        /// The message.
        seq: Seq,
    },
    /// `reaction:add`, `reaction:remove`
    Reaction {
        /// The room.
        room: &'a str,
        /// The message.
        seq: Seq,
        /// 1–32 bytes without control characters.
        emoji: &'a str,
        /// True: added; false: removed.
        is_added: bool,
    },
    /// `event:send`: ephemeral broadcast.
    EventSend {
        /// The room.
        room: &'a str,
        /// 1–64 bytes.
        name: &'a str,
        /// JSON text, at most 4 KiB, written anew from what was parsed.
        data: String,
        /// Lane.
        priority: Priority,
        /// Only for who has one of these roles; empty: for all.
        only_roles: RoleSet,
        /// Only for devices of these classes, at most 16; empty: for all.
        only_devices: Vec<&'a str>,
    },
    /// `notify`: an item for a user's inbox.
    Notify(Box<Notify<'a>>),
    /// `inbox:ack`: these need not be sent any more.
    InboxAck {
        /// 1–1,000 numbers of items.
        items: Vec<u64>,
    },
    /// `inbox:list`
    InboxList {
        /// Continue after this item; 0: from the first.
        after: u64,
        /// 1–100, default 50.
        limit: u32,
    },
    /// `sync:check`
    SyncCheck {
        /// Rooms and what the client has of each; at most 256, of which 32 with a hash.
        rooms: Vec<RoomCheck<'a>>,
    },
    /// `stats`
    Stats,
    /// `presence:set`: of this device.
    PresenceSet {
        /// `offline` hides every device of the user.
        status: Status,
        /// At most 128 characters; empty clears it.
        custom: Option<&'a str>,
    },
    /// `presence:subscribe`
    PresenceSubscribe(PresenceOf<'a>),
    /// `presence:unsubscribe`
    PresenceUnsubscribe(PresenceOf<'a>),
    /// `presence:get`
    PresenceGet {
        /// Valid user ids, 1 to 1,000.
        users: Vec<&'a str>,
    },
    /// `presence:history`
    PresenceHistory {
        /// A valid user id.
        user: &'a str,
        /// The first moment, ms; 0: as far back as is kept.
        from: UnixMillis,
        /// The moment after the last, ms; none: now.
        to: Option<UnixMillis>,
        /// 1–500, default 100.
        limit: u32,
    },
    /// `activity`
    Activity {
        /// Where; none: only the device's own activity is noted.
        room: Option<&'a str>,
        /// What.
        kind: Activity,
    },
}

/// What a client has of a room, to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomCheck<'a> {
    /// The room.
    pub room: &'a str,
    /// Last seq; 0: nothing.
    pub seq: Seq,
    /// The rolling hash of the entries up to there, if the client has one.
    pub hash: Option<u64>,
    /// It wants the server's.
    pub wants_hash: bool,
}

/// Whose presence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceOf<'a> {
    /// Of these; valid user ids, 1 to 1,000.
    Users(Vec<&'a str>),
    /// Of the members of a room.
    Room(&'a str),
}

/// How present a device or a user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Here.
    Online,
    /// Connected, and not at hand.
    Away,
    /// Here, and not to be disturbed.
    Busy,
    /// Not connected, or hidden.
    Offline,
}

impl Status {
    /// The status of that name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Online, Self::Away, Self::Busy, Self::Offline].into_iter().find(|status| status.as_str() == text)
    }

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Away => "away",
            Self::Busy => "busy",
            Self::Offline => "offline",
        }
    }
}

/// What a device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activity {
    /// In use.
    Active,
    /// Not in use.
    Idle,
    /// Reading.
    Reading,
    /// Typing; holds for ten seconds.
    Typing,
}

impl Activity {
    /// The activity of that name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Idle, Self::Reading, Self::Typing].into_iter().find(|kind| kind.as_str() == text)
    }

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Idle => "idle",
            Self::Reading => "reading",
            Self::Typing => "typing",
        }
    }
}

/// What is done to another user's membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manage {
    /// Make them a member (or what `role` says, never owner).
    Invite(Role),
    /// End their membership.
    Kick,
    /// End their membership and keep them out.
    Ban,
    /// Change their role; `member` also lifts a ban.
    Role(Role),
}

/// `message:send`, in full.
#[derive(Debug, Clone, PartialEq)]
pub struct MessageSend<'a> {
    /// The room.
    pub room: &'a str,
    /// 1 byte to 8 KiB.
    pub body: &'a str,
    /// 1–64 characters; the key of "sent once".
    pub client_id: Option<&'a str>,
    /// Root of the thread.
    pub thread: Option<Seq>,
    /// The message answered.
    pub reply_to: Option<Seq>,
    /// Valid user ids, at most 64.
    pub mentions: Vec<&'a str>,
    /// File ids of 1–128 characters, at most 16.
    pub attachments: Vec<&'a str>,
    /// Lane.
    pub priority: Priority,
    /// Hidden from these; valid user ids, at most 64.
    pub exclude: Vec<&'a str>,
    /// Hidden from everyone but these (and the author); valid user ids, at most 64.
    pub only: Vec<&'a str>,
    /// Hidden from everyone in the room without one of these roles (but the author); empty: shown to all.
    pub only_roles: RoleSet,
    /// Hidden from devices of other classes (but the author's); at most 16; empty: shown to all.
    pub only_devices: Vec<&'a str>,
    /// JSON object text, at most 1 KiB, written anew from what was parsed.
    pub meta: Option<String>,
    /// The author has read the room up to this message.
    pub read: bool,
    /// The `ok` is to say where the time went.
    pub timing: bool,
}

/// Which part of a room's history is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryFrom {
    /// The newest entries.
    Newest,
    /// The newest entries with a lower seq.
    Before(Seq),
    /// The oldest entries with a higher seq.
    After(Seq),
}
