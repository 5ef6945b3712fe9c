//! What happens on each input, one file a topic, as methods of [`Shard`](super::shard::Shard).

mod admin;
mod batch;
mod command;
pub(super) mod consistency;
mod dead;
mod edits;
mod ephemeral;
mod filter;
mod history;
mod inbox;
mod load;
mod membership;
mod message;
mod presence;
pub(super) mod presence_gather;
mod presence_history;
mod presence_mesh;
mod session;
mod subscribe;
mod sync_check;

use std::sync::Arc;

use super::consistency::Witness;
use super::event::{ConnKey, Token};
use super::inbox::ItemId;
use super::users::UserIdx;
use crate::protocol::command::CommandId;
use crate::protocol::filter::Filter;
use crate::protocol::ids::{Epoch, RoomKey, RoomName, Seq, UserId};

/// How often idle rooms and users and old batches are looked for, ms.
pub(super) const SWEEP_MS: u64 = 5_000;

/// What an answer (of the core, a reader, the token verifier) will be about.
#[derive(Debug)]
pub enum Waiting {
    /// A message's commit; with the turn's clock when its times are to be told.
    Ack { call: Call, room: RoomName, trace: u64, asked_us: Option<u64> },
    /// A join's commit; the connection is parked.
    Join { call: Call, room: RoomName, since: Option<OwnedCursor>, filter: Option<Arc<Filter>> },
    /// The commit of a create, leave, invite, kick, ban or role; the connection is parked.
    Membership { call: Call, room: RoomName },
    /// An edit's, a deletion's or a reaction's commit.
    Amend { call: Call, room: RoomName, is_reaction: bool },
    /// A read cursor's commit.
    ReadMark { call: Call, room: RoomName },
    /// The admin API's message.
    AdminPublish { token: Token, room: RoomName },
    /// The admin API's revocation.
    AdminRevoke { token: Token },
    /// An item for somebody's inbox.
    Notify { call: Call },
    /// The same for the admin API.
    AdminNotify { token: Token },
    /// A replay or purge of dead letters.
    AdminDead { token: Token, is_replay: bool },
    /// A page of dead letters.
    AdminDeadLetters { token: Token },
    /// An acknowledgement of inbox items.
    InboxAck { call: Call, user: UserId, items: Box<[ItemId]> },
    /// Items that were read, or heard otherwise; nobody waits.
    InboxTakeAway { user: UserId, items: Box<[ItemId]>, was_sent: bool },
    /// Attempts, dead letters and what needs no answer; nobody waits.
    InboxUpkeep,
    /// What is to be kept of presence; nobody waits.
    PresenceNews,
    /// A page of transitions; the connection is parked.
    PresenceHistory { call: Call },
    /// Presence in numbers, for the admin API.
    AdminAnalytics { token: Token },
    /// A user's memberships.
    User(UserIdx),
    /// A room; waiters are in `Shard::loading`.
    Room(RoomName),
    /// Entries for a resume; the connection is parked.
    Resume(Resume),
    /// A page of history; the connection is parked.
    History { call: Call, room: RoomName },
    /// A page of members; the connection is parked.
    Members { call: Call },
    /// A page of rooms; the connection is parked.
    Rooms { call: Call },
    /// What rooms come to at some seqs; the connection is parked.
    Check { call: Call, checks: Vec<sync_check::Check> },
    /// A stretch of a room's entries; nobody waits.
    Audit { room: RoomKey, witness: Witness },
    /// A room whose memory was wrong; nobody waits.
    Reload { room: RoomKey, what: &'static str },
    /// The core looks at a room; nobody waits.
    Mend { room: RoomKey, witness: Witness, reload: Option<&'static str> },
    /// A new token; the connection is parked.
    Refresh { call: Call },
}

impl Waiting {
    /// The connection whose command waits.
    fn conn(&self) -> Option<ConnKey> {
        match self {
            Self::Ack { call, .. }
            | Self::Join { call, .. }
            | Self::Membership { call, .. }
            | Self::ReadMark { call, .. }
            | Self::Amend { call, .. }
            | Self::Resume(Resume { call, .. })
            | Self::History { call, .. }
            | Self::Members { call }
            | Self::PresenceHistory { call }
            | Self::Rooms { call }
            | Self::Check { call, .. }
            | Self::Notify { call }
            | Self::InboxAck { call, .. }
            | Self::Refresh { call } => Some(call.conn),
            Self::AdminPublish { .. }
            | Self::AdminRevoke { .. }
            | Self::AdminNotify { .. }
            | Self::AdminAnalytics { .. }
            | Self::AdminDead { .. }
            | Self::AdminDeadLetters { .. }
            | Self::InboxTakeAway { .. }
            | Self::InboxUpkeep
            | Self::PresenceNews
            | Self::Audit { .. }
            | Self::Reload { .. }
            | Self::Mend { .. }
            | Self::User(_)
            | Self::Room(_) => None,
        }
    }
}

/// Whom to answer.
#[derive(Debug)]
pub struct Call {
    pub conn: ConnKey,
    pub id: Option<CommandId>,
}

/// A cursor that outlives its frame.
#[derive(Debug, Clone)]
pub struct OwnedCursor {
    pub epoch: Epoch,
    pub seq: Seq,
}

/// A resume that is being filled from the store.
#[derive(Debug)]
pub struct Resume {
    pub call: Call,
    pub room: RoomKey,
    /// Last seq that `json` reaches; at first the client's cursor.
    pub upto: Seq,
    /// Events so far, comma-separated objects.
    pub json: Vec<u8>,
    /// How many log entries they stand for.
    pub events: u32,
    /// What the subscription wants to see.
    pub filter: Option<Arc<Filter>>,
    /// Entries at the end that the filter hides and that `json` does not tell of yet.
    pub hidden: Option<filter::Hidden>,
    /// Part of a join: for members only, whatever the room's kind.
    pub is_join: bool,
}
