//! A log in maps: the simulation's and the tests' stand-in for the database.
//!
//! Holds what a store holds, applies a [`Decided`] as one transaction, and answers [`Facts`]. It
//! keeps everything for ever and is durable in nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use super::{Decided, Facts, LogEnd, Reacted, Target};
use crate::engine::consistency::{Audit, Broken};
use crate::engine::dead::{DeadChange, DeadFilter, DeadKind, DeadLetter, LetterId, NOT_ACKNOWLEDGED, item_payload};
use crate::engine::edits::MessageState;
use crate::engine::event::{Audience, Revocation, RoomRow};
use crate::engine::inbox::{Head, InboxChange, Item, ItemId, Removal};
use crate::engine::presence::kept::KeptPresence;
use crate::engine::tally::Tally;
use crate::protocol::encode::EventKind;
use crate::protocol::ids::{DeviceId, Position, Priority, Role, RoomKey, RoomName, Seq, UnixMillis, UserId};

/// One row of the log, as kept.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Number within the log.
    pub position: Position,
    /// The room.
    pub room: RoomKey,
    /// Number within the room.
    pub seq: Seq,
    /// When it was numbered.
    pub ts: UnixMillis,
    /// What it is.
    pub kind: EventKind,
    /// Lane.
    pub priority: Priority,
    /// Who wrote it.
    pub author: Option<UserId>,
    /// The author's own id for it.
    pub client_id: Option<Box<str>>,
    /// Root of its thread.
    pub thread: Option<Seq>,
    /// Who may see it.
    pub audience: Option<Arc<Audience>>,
    /// The rest of the event's fields.
    pub fields: Box<str>,
}

/// Everything a store keeps, in memory.
#[derive(Debug, Default, Clone)]
pub struct MemoryLog {
    /// The log; position 1 first.
    pub rows: Vec<Stored>,
    /// Rooms by key; heads and counts as they stand.
    pub rooms: BTreeMap<RoomKey, RoomRow>,
    /// Keys by name.
    pub names: BTreeMap<RoomName, RoomKey>,
    /// Roles, bans included.
    pub roles: BTreeMap<(RoomKey, UserId), Role>,
    /// Read cursors, and the messages up to each.
    pub cursors: BTreeMap<(RoomKey, UserId), (Seq, u64)>,
    /// Delivered cursors, where they were ahead of the read cursor.
    pub delivered: BTreeMap<(RoomKey, UserId, DeviceId), Seq>,
    /// Messages that were edited, deleted or reacted to.
    pub states: BTreeMap<(RoomKey, Seq), MessageState>,
    /// Who reacted to what how.
    pub reactions: BTreeSet<(RoomKey, Seq, Box<str>, UserId)>,
    /// Revocations in order.
    pub revocations: Vec<Revocation>,
    /// What waits in inboxes.
    pub inbox: BTreeMap<ItemId, Item>,
    /// Items that died, as they were.
    pub dead: BTreeMap<ItemId, Item>,
    /// Dead letters.
    pub letters: BTreeMap<LetterId, DeadLetter>,
    /// The highest number of a letter so far.
    pub last_letter: LetterId,
    /// The highest number of an item so far.
    pub last_item: ItemId,
    /// What is kept of presence.
    pub presence: KeptPresence,
}

impl MemoryLog {
    /// Writes a decided batch, all of it.
    ///
    /// # Panics
    /// When the batch does not go on where the log ends, in position or in any room's seq.
    pub fn apply(&mut self, decided: &Decided) {
        for room in &decided.rooms {
            assert!(self.names.insert(room.name.clone(), room.key).is_none(), "a room's name is given once");
            self.rooms.insert(
                room.key,
                RoomRow { head: 0, members: 0, tally: Tally::start(room.name.as_str()), ..room.clone() },
            );
        }
        for mended in &decided.mended {
            let room = self.rooms.get_mut(&mended.room).expect("heads are of rooms that exist");
            (room.head, room.tally) = (mended.seq, mended.tally);
        }
        for (row, position) in decided.rows.iter().zip(decided.first..) {
            assert_eq!(position, self.rows.len() as Position + 1, "positions are dense");
            let room = self.rooms.get_mut(&row.room).expect("rows stand in rooms that exist");
            assert_eq!(row.seq, room.head + 1, "seqs are dense");
            room.head = row.seq;
            room.tally.add(row.seq, decided.ts, row.kind);
            self.rows.push(Stored {
                position,
                room: row.room,
                seq: row.seq,
                ts: decided.ts,
                kind: row.kind,
                priority: row.priority,
                author: row.author.clone(),
                client_id: row.client_id.clone(),
                thread: row.thread,
                audience: row.audience.clone(),
                fields: row.fields.clone(),
            });
        }
        for member in &decided.members {
            let pair = (member.room, member.user.clone());
            match (member.role, member.begun) {
                (Some(role), Some(begun)) => {
                    self.check_counted(member.room, begun.seq, begun.counted);
                    self.cursors.insert(pair.clone(), (begun.seq, begun.counted));
                    self.roles.insert(pair, role);
                }
                (Some(role), None) => drop(self.roles.insert(pair, role)),
                (None, _) => {
                    self.cursors.remove(&pair);
                    self.roles.remove(&pair);
                }
            }
        }
        for (key, members) in &decided.counts {
            self.rooms.get_mut(key).expect("counts are of rooms that exist").members = *members;
        }
        for cursor in &decided.cursors {
            let (room, user) = (cursor.room, cursor.user.clone());
            match cursor.device.clone() {
                None => {
                    self.check_counted(room, cursor.seq, cursor.counted);
                    // Who left by the same batch has none.
                    if self.roles.contains_key(&(room, user.clone())) {
                        let read = self.cursors.entry((room, user)).or_default();
                        *read = (*read).max((cursor.seq, cursor.counted));
                    }
                    let behind = (room, &cursor.user);
                    self.delivered.retain(|(of, user, _), seq| (*of, user) != behind || *seq > cursor.seq);
                }
                Some(device) => {
                    self.delivered.insert((room, user, device), cursor.seq);
                }
            }
        }
        for member in decided.members.iter().filter(|member| !member.role.is_some_and(Role::is_member)) {
            self.delivered.retain(|(room, user, _), _| (*room, user) != (member.room, &member.user));
        }
        for row in &decided.states {
            self.states.insert((row.room, row.target), row.state.clone());
        }
        for row in &decided.reactions {
            let key = (row.room, row.target, row.emoji.clone(), row.user.clone());
            let is_change = if row.is_added { self.reactions.insert(key) } else { self.reactions.remove(&key) };
            assert!(is_change, "a reaction comes once and goes once");
            let count = self.reacted_by(row.room, row.target, &row.emoji).count();
            assert_eq!(row.count as usize, count, "reactions are counted");
        }
        self.revocations.extend(decided.revocations.iter().cloned());
        decided.presence.iter().for_each(|news| self.presence.apply(news));
        decided.inbox.iter().for_each(|change| self.apply_inbox(change, decided.ts));
        for change in &decided.dead {
            match change {
                DeadChange::Replayed(id) => assert!(self.letters.remove(id).is_some(), "a letter is replayed once"),
                DeadChange::Purged(filter) => self.letters.retain(|_, letter| !filter.fits(letter)),
            }
        }
    }

    fn bury(&mut self, item: &Item, now: UnixMillis) {
        self.last_letter += 1;
        let letter = DeadLetter {
            id: self.last_letter,
            kind: DeadKind::Inbox,
            user: Some(item.user.clone()),
            reason: NOT_ACKNOWLEDGED.into(),
            attempts: item.attempts + 1,
            first_ts: item.ts,
            last_ts: now,
            payload: item_payload(&item.name, &item.data, item.priority, item.from.as_ref().map(UserId::as_str)),
        };
        self.letters.insert(letter.id, letter);
    }

    fn apply_inbox(&mut self, change: &InboxChange, now: UnixMillis) {
        match change {
            InboxChange::Added(item) => {
                assert!(item.id > self.last_item, "numbers of items ascend");
                self.last_item = item.id;
                self.inbox.insert(item.id, (**item).clone());
            }
            InboxChange::Removed { user, items, why } => {
                for id in items {
                    let item = self.inbox.remove(id).expect("only what waits is removed");
                    assert_eq!(item.user, *user, "a user's items are their own");
                    if *why == Removal::Dead {
                        self.bury(&item, now);
                        self.dead.insert(*id, item);
                    }
                }
            }
            InboxChange::Tried { items, .. } => {
                for id in items {
                    self.inbox.get_mut(id).expect("only what waits is tried").attempts += 1;
                }
            }
        }
    }

    /// What the entries of a room up to and with `seq` come to, recomputed.
    pub fn tally(&self, room: RoomKey, seq: Seq) -> Option<Tally> {
        let row = self.rooms.get(&room).filter(|row| seq <= row.head)?;
        let mut tally = Tally::start(row.name.as_str());
        let entries = self.rows.iter().filter(|row| row.room == room && row.seq <= seq);
        entries.for_each(|row| tally.add(row.seq, row.ts, row.kind));
        Some(tally)
    }

    fn check_counted(&self, room: RoomKey, seq: Seq, counted: u64) {
        let tally = self.tally(room, seq).expect("cursors stand at entries");
        assert_eq!(tally.messages, counted, "a cursor counts the messages before it");
    }

    /// All the entries of a room as one stretch, counted again.
    ///
    /// # Errors
    /// They are not dense.
    pub fn audit(&self, key: RoomKey, seq: Seq) -> Result<Audit, Broken> {
        let room = self.rooms.get(&key).ok_or(Broken { seq: 0, what: "the room is missing" })?;
        let (mut counted, mut last) = (Tally::start(room.name.as_str()), (0, 0));
        let mut here = (seq == 0).then_some(counted);
        for row in self.rows.iter().filter(|row| row.room == key) {
            if row.seq != last.0 + 1 {
                return Err(Broken { seq: last.0 + 1, what: "an entry is missing" });
            }
            last = (row.seq, row.position);
            counted.add(row.seq, row.ts, row.kind);
            if row.seq == seq {
                here = Some(counted);
            }
        }
        let noted = (room.head == last.0).then_some(room.tally);
        Ok(Audit { is_head: true, noted, last, counted, here })
    }

    /// Tombstones of a room behind `seq`.
    pub fn deleted_after(&self, room: RoomKey, seq: Seq) -> Vec<Seq> {
        let behind = self.states.range((room, seq + 1)..(RoomKey(room.0 + 1), 0));
        behind.filter(|(_, state)| state.deleted).map(|((_, seq), _)| *seq).collect()
    }

    /// Who reacted to a message with `emoji`.
    fn reacted_by(&self, room: RoomKey, seq: Seq, emoji: &str) -> impl Iterator<Item = &UserId> {
        self.reactions_to(room, seq).filter(move |(with, _)| *with == emoji).map(|(_, user)| user)
    }

    fn reactions_to(&self, room: RoomKey, seq: Seq) -> impl Iterator<Item = (&str, &UserId)> {
        let theirs = self.reactions.iter().filter(move |(r, s, ..)| (*r, *s) == (room, seq));
        theirs.map(|(_, _, emoji, user)| (&**emoji, user))
    }

    /// The reactions to a message and how many have each, ascending by the bytes of the emoji.
    pub fn reaction_counts(&self, room: RoomKey, seq: Seq) -> Vec<(Box<str>, u32)> {
        let mut counts: Vec<(Box<str>, u32)> = Vec::new();
        for (emoji, _) in self.reactions_to(room, seq) {
            match counts.last_mut() {
                Some((last, count)) if **last == *emoji => *count += 1,
                _ => counts.push((emoji.into(), 1)),
            }
        }
        counts
    }

    /// Where the log ends, for a sequencer that takes it over.
    pub fn end(&self) -> LogEnd {
        LogEnd {
            position: self.rows.len() as Position,
            room_key: self.rooms.keys().next_back().map_or(0, |key| key.0),
            ts: self.rows.last().map_or(0, |row| row.ts),
            item: self.last_item,
        }
    }
}

impl Facts for MemoryLog {
    type Error = Infallible;

    fn room_by_key(&mut self, room: RoomKey) -> Result<Option<RoomRow>, Infallible> {
        Ok(self.rooms.get(&room).cloned())
    }

    fn room_by_name(&mut self, name: &RoomName) -> Result<Option<RoomRow>, Infallible> {
        Ok(self.names.get(name).and_then(|key| self.rooms.get(key)).cloned())
    }

    fn role(&mut self, room: RoomKey, user: &UserId) -> Result<Option<Role>, Infallible> {
        Ok(self.roles.get(&(room, user.clone())).copied())
    }

    fn memberships(&mut self, user: &UserId) -> Result<u32, Infallible> {
        let count = self.roles.iter().filter(|((_, member), role)| member == user && role.is_member()).count();
        Ok(count as u32)
    }

    fn owners(&mut self, room: RoomKey) -> Result<u32, Infallible> {
        Ok(self.roles.iter().filter(|((key, _), role)| *key == room && **role == Role::Owner).count() as u32)
    }

    fn read_cursor(&mut self, room: RoomKey, user: &UserId) -> Result<Seq, Infallible> {
        Ok(self.cursors.get(&(room, user.clone())).map_or(0, |(seq, _)| *seq))
    }

    fn tally_at(&mut self, room: RoomKey, seq: Seq) -> Result<Option<Tally>, Infallible> {
        Ok(self.tally(room, seq))
    }

    fn audit(&mut self, room: RoomKey, seq: Seq) -> Result<Result<Audit, Broken>, Infallible> {
        Ok(MemoryLog::audit(self, room, seq))
    }

    fn members(&mut self, room: RoomKey) -> Result<Vec<UserId>, Infallible> {
        let here = self.roles.iter().filter(|((key, _), role)| *key == room && role.is_member());
        Ok(here.map(|((_, user), _)| user.clone()).collect())
    }

    fn shared_rooms(&mut self, one: &UserId, other: &UserId) -> Result<Vec<RoomKey>, Infallible> {
        let is_in =
            |room: RoomKey, user: &UserId| self.roles.get(&(room, user.clone())).is_some_and(|role| role.is_member());
        Ok(self.rooms.keys().copied().filter(|room| is_in(*room, one) && is_in(*room, other)).collect())
    }

    fn inbox(&mut self, user: &UserId) -> Result<Vec<Head>, Infallible> {
        Ok(self.inbox.values().filter(|item| item.user == *user).map(Item::head).collect())
    }

    fn expired_items(&mut self, now: UnixMillis, max: u32) -> Result<Vec<(UserId, ItemId)>, Infallible> {
        let over = self.inbox.values().filter(|item| item.expires_ts <= now);
        Ok(over.take(max as usize).map(|item| (item.user.clone(), item.id)).collect())
    }

    fn delivered_cursor(&mut self, room: RoomKey, user: &UserId, device: &DeviceId) -> Result<Seq, Infallible> {
        let delivered = self.delivered.get(&(room, user.clone(), device.clone())).copied().unwrap_or(0);
        Ok(delivered.max(self.read_cursor(room, user)?))
    }

    fn target(&mut self, room: RoomKey, seq: Seq) -> Result<Option<Target>, Infallible> {
        let row = self.rows.iter().find(|row| (row.room, row.seq) == (room, seq));
        let message = row.filter(|row| row.kind == EventKind::MessageCreated);
        Ok(message.and_then(|row| {
            Some(Target {
                position: row.position,
                author: row.author.clone()?,
                audience: row.audience.clone(),
                state: self.states.get(&(room, seq)).cloned().unwrap_or_default(),
            })
        }))
    }

    fn reacted(&mut self, room: RoomKey, seq: Seq, emoji: &str, user: &UserId) -> Result<Reacted, Infallible> {
        let count = self.reacted_by(room, seq, emoji).count() as u32;
        Ok(Reacted { is_there: self.reacted_by(room, seq, emoji).any(|who| who == user), count })
    }

    fn reaction_kinds(&mut self, room: RoomKey, seq: Seq) -> Result<u32, Infallible> {
        Ok(self.reaction_counts(room, seq).len() as u32)
    }

    fn dead_letter(&mut self, id: LetterId) -> Result<Option<DeadLetter>, Infallible> {
        Ok(self.letters.get(&id).cloned())
    }

    fn dead_count(&mut self, filter: &DeadFilter) -> Result<u64, Infallible> {
        Ok(self.letters.values().filter(|letter| filter.fits(letter)).count() as u64)
    }
}
