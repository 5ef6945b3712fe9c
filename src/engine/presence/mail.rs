//! What shards tell each other about presence, and in what form they keep what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::{Cause, Digest};
use crate::protocol::command::Status;
use crate::protocol::encode::{field_integer, field_string, string};
use crate::protocol::ids::{RoomKey, UnixMillis, UserId};

/// What is shown of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Whose.
    pub user: UserId,
    /// Merged over their devices.
    pub status: Status,
    /// Their own words, ≤ 128 characters.
    pub custom: Option<Box<str>>,
    /// Grows with each change at the user's shard, and over restarts.
    pub version: u64,
    /// Last activity, or when they went.
    pub seen_at: UnixMillis,
    /// Why they are offline.
    pub cause: Option<Cause>,
}

impl Card {
    /// True when somebody who looks sees the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.status == other.status && self.custom == other.custom
    }

    /// Appends it as a JSON object without its closing brace.
    pub fn write_open(&self, out: &mut Vec<u8>) {
        write_open(out, &self.user, self.status, self.custom.as_deref());
        field_integer(out, "version", self.version);
        if self.seen_at > 0 {
            field_integer(out, "last_seen", self.seen_at);
        }
        if let Some(cause) = self.cause.filter(|_| self.status == Status::Offline) {
            field_string(out, "cause", cause.as_str());
        }
    }
}

/// Appends the beginning of a presence object: user, status, custom status.
pub fn write_open(out: &mut Vec<u8>, user: &UserId, status: Status, custom: Option<&str>) {
    out.extend_from_slice(b"{\"user\":");
    string(out, user.as_str());
    field_string(out, "status", status.as_str());
    if let Some(custom) = custom {
        field_string(out, "custom", custom);
    }
}

/// A card, and the watched rooms whose member its user is.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What is shown.
    pub card: Arc<Card>,
    /// Ascending; only rooms that the receiving shard watches in detail.
    pub rooms: Box<[RoomKey]>,
}

/// Online, away and busy members.
pub type Counts = [u32; 3];

/// What a shard wants to hear of another one's users.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// These.
    pub users: BTreeSet<UserId>,
    /// The members of these; `true`: only how many.
    pub rooms: BTreeMap<RoomKey, bool>,
}

impl Interest {
    /// True when nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.rooms.is_empty()
    }

    /// To compare two copies of it.
    pub fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        self.users.iter().for_each(|user| digest.add(user.as_str()));
        self.rooms.iter().for_each(|room| digest.add(room));
        digest.0
    }
}

/// What one shard tells another about presence.
#[derive(Debug, Clone)]
pub enum Mail {
    /// "My shard watches these too"; answered by [`Mail::Cards`].
    Watch {
        /// What is new, or all of it.
        interest: Interest,
        /// It is all: forget what was wanted before.
        is_all: bool,
        /// Echoed in the answer; 0: nobody waits.
        gather: u64,
    },
    /// "My shard does not watch these any more."
    Unwatch(Interest),
    /// Changes, or a snapshot.
    Cards {
        /// Users, each once.
        entries: Vec<Entry>,
        /// Of rooms that are only counted: the sender's part.
        counts: Vec<(RoomKey, Counts)>,
        /// It is all that the receiver's interest covers: what is not here is offline.
        is_all: bool,
        /// The sender's version at that moment.
        clock: u64,
        /// As in [`Mail::Watch`].
        gather: u64,
    },
    /// "This is what I want and what I have": digests.
    Probe {
        /// Of the interest.
        interest: u64,
        /// Of the visible cards and the counts.
        held: u64,
    },
    /// "Your interest is not what I know of it: tell me all."
    AskInterest,
    /// `presence:get`, the part of one shard.
    Get {
        /// Whom.
        users: Vec<UserId>,
        /// Only who is not offline, and only their status.
        is_brief: bool,
        /// Echoed in the answer.
        gather: u64,
    },
    /// Its answer: those who are not offline or were seen before.
    Got {
        /// As in [`Mail::Get`].
        gather: u64,
        /// Status, and the whole object as JSON.
        people: Vec<(UserId, Status, Box<str>)>,
    },
    /// An activity in a room.
    Activity {
        /// The room.
        room: RoomKey,
        /// A WebSocket text frame.
        frame: Bytes,
        /// Under which a later one replaces it.
        key: u64,
    },
}
