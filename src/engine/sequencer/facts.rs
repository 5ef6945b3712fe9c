//! What the sequencer has to know about the past: point questions, answered at once. SQLite answers
//! them in production, maps in the simulation.

use std::sync::Arc;

use crate::engine::consistency::{Audit, Broken};
use crate::engine::dead::{DeadFilter, DeadLetter, LetterId};
use crate::engine::edits::MessageState;
use crate::engine::event::{Audience, RoomRow};
use crate::engine::inbox::{Head, ItemId};
use crate::engine::tally::Tally;
use crate::protocol::ids::{DeviceId, Position, Role, RoomKey, RoomName, Seq, UnixMillis, UserId};

/// A message that somebody wants to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its place in the log.
    pub position: Position,
    /// Who wrote it.
    pub author: UserId,
    /// Who may see it, when not everybody.
    pub audience: Option<Arc<Audience>>,
    /// How it stands.
    pub state: MessageState,
}

/// What is known about one reaction to one message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reacted {
    /// The user has it there.
    pub is_there: bool,
    /// How many have it there.
    pub count: u32,
}

/// The state of the log before the batch that is being decided.
pub trait Facts {
    /// Why a question could not be answered. The whole batch then fails.
    type Error;

    /// A room by its number, with its head.
    ///
    /// # Errors
    /// The source could not answer.
    fn room_by_key(&mut self, room: RoomKey) -> Result<Option<RoomRow>, Self::Error>;

    /// A room by its name, with its head.
    ///
    /// # Errors
    /// The source could not answer.
    fn room_by_name(&mut self, name: &RoomName) -> Result<Option<RoomRow>, Self::Error>;

    /// What `user` is in `room`; `Some(Banned)` is not a member.
    ///
    /// # Errors
    /// The source could not answer.
    fn role(&mut self, room: RoomKey, user: &UserId) -> Result<Option<Role>, Self::Error>;

    /// In how many rooms `user` is a member (bans do not count).
    ///
    /// # Errors
    /// The source could not answer.
    fn memberships(&mut self, user: &UserId) -> Result<u32, Self::Error>;

    /// How many owners `room` has.
    ///
    /// # Errors
    /// The source could not answer.
    fn owners(&mut self, room: RoomKey) -> Result<u32, Self::Error>;

    /// Up to where `user` has read `room`; 0: nothing.
    ///
    /// # Errors
    /// The source could not answer.
    fn read_cursor(&mut self, room: RoomKey, user: &UserId) -> Result<Seq, Self::Error>;

    /// What the entries of `room` up to and with `seq` come to; none when there is no such entry.
    ///
    /// # Errors
    /// The source could not answer.
    fn tally_at(&mut self, room: RoomKey, seq: Seq) -> Result<Option<Tally>, Self::Error>;

    /// The stretch of a room's entries that `seq` is in, counted again, or how it does not add up.
    ///
    /// # Errors
    /// The source could not answer.
    fn audit(&mut self, room: RoomKey, seq: Seq) -> Result<Result<Audit, Broken>, Self::Error>;

    /// Members of `room` (bans do not count), in no order. Asked of direct rooms only.
    ///
    /// # Errors
    /// The source could not answer.
    fn members(&mut self, room: RoomKey) -> Result<Vec<UserId>, Self::Error>;

    /// Rooms that both are members of.
    ///
    /// # Errors
    /// The source could not answer.
    fn shared_rooms(&mut self, one: &UserId, other: &UserId) -> Result<Vec<RoomKey>, Self::Error>;

    /// What waits in the user's inbox.
    ///
    /// # Errors
    /// The source could not answer.
    fn inbox(&mut self, user: &UserId) -> Result<Vec<Head>, Self::Error>;

    /// Inbox items that have expired by `now`, at most `max`.
    ///
    /// # Errors
    /// The source could not answer.
    fn expired_items(&mut self, now: UnixMillis, max: u32) -> Result<Vec<(UserId, ItemId)>, Self::Error>;

    /// What `device` of `user` has of `room`: what was said to be delivered, or the read cursor where
    /// that is further.
    ///
    /// # Errors
    /// The source could not answer.
    fn delivered_cursor(&mut self, room: RoomKey, user: &UserId, device: &DeviceId) -> Result<Seq, Self::Error>;

    /// The message `seq` of `room`; none when there is no such entry, or it is no message.
    ///
    /// # Errors
    /// The source could not answer.
    fn target(&mut self, room: RoomKey, seq: Seq) -> Result<Option<Target>, Self::Error>;

    /// About one reaction to a message.
    ///
    /// # Errors
    /// The source could not answer.
    fn reacted(&mut self, room: RoomKey, seq: Seq, emoji: &str, user: &UserId) -> Result<Reacted, Self::Error>;

    /// How many different reactions a message has.
    ///
    /// # Errors
    /// The source could not answer.
    fn reaction_kinds(&mut self, room: RoomKey, seq: Seq) -> Result<u32, Self::Error>;

    /// One dead letter.
    ///
    /// # Errors
    /// The source could not answer.
    fn dead_letter(&mut self, id: LetterId) -> Result<Option<DeadLetter>, Self::Error>;

    /// How many dead letters fit.
    ///
    /// # Errors
    /// The source could not answer.
    fn dead_count(&mut self, filter: &DeadFilter) -> Result<u64, Self::Error>;
}
