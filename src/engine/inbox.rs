//! The offline queue of one user, as two views of the same rows, both without clock, disk or socket:
//!
//! - [`Held`] is the persistence core's: what waits and how large it is. It decides what is taken in,
//!   what goes when the queue is full, and what an acknowledgement removes. Bounds are kept here alone.
//! - [`Inbox`] is the owner's shard's: the items themselves, when each is sent again, and when to give up.
//!
//! ```text
//!  Entry::Notify ──► core (Held) ──► row + InboxChange::Added ──► shard (Inbox) ──► inbox:item
//!  inbox:ack, read, retry, dead ◄── Entry::Inbox… ──► core ──► InboxChange::Removed ──► gone on every device
//! ```
//! Overflow rule: expired items go first; then the oldest item of the lowest priority makes room, as
//! long as it is no more urgent than the new one; else the new one is refused (`inbox_full`).
//!
//! An item is sent at once to every device, and to each device that connects later. What is not
//! acknowledged is sent again after 1 s, 2 s, 4 s … 5 min (up to a quarter longer, so that a crowd's
//! retries spread), while the user is connected; after [`ATTEMPTS_MAX`] such attempts it is dead.

mod delivery;
mod held;

pub use delivery::{Due, Inbox, Sending};
pub use held::{Full, Head, Held};

use std::sync::Arc;

use crate::protocol::ids::{Priority, RoomKey, Seq, UnixMillis, UserId};

/// Number of an item, given by the persistence core, ascending over all users, never reused.
pub type ItemId = u64;

/// Items in one `inbox:item` event.
pub const EVENT_ITEMS_MAX: usize = 50;
/// Bytes of names and data in one `inbox:item` event, at least one item.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;
/// How often an item is sent to somebody who does not acknowledge it.
pub const ATTEMPTS_MAX: u32 = 10;
/// First wait for an acknowledgement, ms.
pub const RETRY_FIRST_MS: u64 = 1_000;
/// Longest wait for an acknowledgement, ms.
pub const RETRY_LAST_MS: u64 = 300_000;

const _: () = assert!(RETRY_FIRST_MS < RETRY_LAST_MS);

/// Bounds of everybody's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Items of a user.
    pub items_max: u32,
    /// Bytes of a user's items: names and data.
    pub bytes_max: u32,
    /// Life of an item that names none, ms.
    pub ttl_ms: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { items_max: 1_000, bytes_max: 1024 * 1024, ttl_ms: 7 * 24 * 3_600_000 }
    }
}

/// An item that is to be queued.
#[derive(Debug, Clone)]
pub struct NewItem {
    /// Whose inbox.
    pub user: UserId,
    /// What kind of thing, ≤ 64 bytes.
    pub name: Arc<str>,
    /// JSON text, ≤ 4 KiB.
    pub data: Arc<str>,
    /// Order of delivery.
    pub priority: Priority,
    /// Life, ms; none: the configured one.
    pub ttl_ms: Option<u64>,
    /// Which user sent it; none: the server itself, or the admin API.
    pub from: Option<UserId>,
    /// The log entry it is about: it goes away when the user reads up to there.
    pub covers: Option<(RoomKey, Seq)>,
}

/// An item that stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its number.
    pub id: ItemId,
    /// Whose.
    pub user: UserId,
    /// What kind of thing.
    pub name: Arc<str>,
    /// JSON text.
    pub data: Arc<str>,
    /// Order of delivery.
    pub priority: Priority,
    /// When it was queued.
    pub ts: UnixMillis,
    /// From when on it is not delivered.
    pub expires_ts: UnixMillis,
    /// Retries that are on record.
    pub attempts: u32,
    /// Which user sent it.
    pub from: Option<UserId>,
    /// The log entry it is about.
    pub covers: Option<(RoomKey, Seq)>,
}

impl Item {
    /// What it counts against the bound of bytes.
    pub fn bytes(&self) -> u32 {
        bytes(&self.name, &self.data)
    }

    /// What the core keeps of it in memory.
    pub fn head(&self) -> Head {
        Head { id: self.id, priority: self.priority, bytes: self.bytes(), expires_ts: self.expires_ts }
    }
}

/// What an item of this name and data counts against the bound of bytes.
pub fn bytes(name: &str, data: &str) -> u32 {
    u32::try_from(name.len() + data.len()).unwrap_or(u32::MAX)
}

/// Why items left a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Acknowledged by a device, or what they were about was read or delivered otherwise.
    Acked,
    /// A more urgent or later item needed the room.
    Evicted,
    /// Their time was over.
    Expired,
    /// Sent too often without an acknowledgement: they are dead letters now.
    Dead,
}

/// One change of a user's queue, as the core decided it.
#[derive(Debug, Clone)]
pub enum InboxChange {
    /// A new item.
    Added(Arc<Item>),
    /// Items are gone.
    Removed {
        /// Whose.
        user: UserId,
        /// Which; all of them were there.
        items: Box<[ItemId]>,
        /// Why.
        why: Removal,
    },
    /// Items were sent once more. Nobody need be told.
    Tried {
        /// Whose.
        user: UserId,
        /// Which.
        items: Box<[ItemId]>,
    },
}

impl InboxChange {
    /// Whose queue changes.
    pub fn user(&self) -> &UserId {
        match self {
            Self::Added(item) => &item.user,
            Self::Removed { user, .. } | Self::Tried { user, .. } => user,
        }
    }
}
