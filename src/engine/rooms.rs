//! The rooms that somebody on this shard cares for: heads, local subscribers, recent entries.
//!
//! A room has no home: every shard with an interest keeps its own copy, fed by the same log. It is
//! loaded at the first interest and unloaded some time after the last one ended.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::event::{ConnKey, DELETED_MAX, RoomRow};
use super::sweep::Sweep;
use super::sync::RecentRun;
use super::tally::Tally;
use super::users::{Standing, UserIdx};
use crate::protocol::encode;
use crate::protocol::filter::Filter;
use crate::protocol::ids::{Position, RoomKey, RoomKind, RoomName, Seq, UnixMillis};

/// Index of a loaded room within the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomIdx(pub u32);

/// How many names of rooms that do not exist are remembered.
const ABSENT_MAX: usize = 4_096;

/// One room, as this shard knows it.
#[derive(Debug)]
pub struct Room {
    /// The store's number.
    pub key: RoomKey,
    /// Its name.
    pub name: RoomName,
    /// Who may come in.
    pub kind: RoomKind,
    /// Last seq applied here.
    pub head: Seq,
    /// Number of members.
    pub members: u32,
    /// What the entries up to the head come to.
    pub tally: Tally,
    /// Tombstones, ascending: the newest [`DELETED_MAX`] behind the read cursors of loaded users.
    pub deleted: Vec<Seq>,
    /// Entries at or before this position are already in `head` and `members`.
    pub loaded_at: Position,
    /// Connections that listen: first those who want everything, then those with a filter.
    pub subscribers: Vec<ConnKey>,
    /// The filters of the last subscribers, in their order. Mostly empty.
    pub filters: Vec<Arc<Filter>>,
    /// Loaded users who are members here, ascending: see [`Room::note_member`].
    pub standings: Vec<UserIdx>,
    /// Where recent entries are, ascending.
    pub recent: VecDeque<RecentRun>,
    /// Since when nobody is interested.
    pub idle_since: UnixMillis,
}

impl Room {
    fn new(row: RoomRow, loaded_at: Position, now: UnixMillis) -> Self {
        Self {
            key: row.key,
            name: row.name,
            kind: row.kind,
            head: row.head,
            members: row.members,
            tally: row.tally,
            deleted: Vec::new(),
            loaded_at,
            subscribers: Vec::new(),
            filters: Vec::new(),
            standings: Vec::new(),
            recent: VecDeque::new(),
            idle_since: now,
        }
    }

    /// Its name as a JSON string.
    pub fn json(&self) -> Box<str> {
        encode::room_json(&self.name)
    }

    /// A message became a tombstone.
    pub fn note_deleted(&mut self, seq: Seq) {
        if let Err(at) = self.deleted.binary_search(&seq) {
            self.deleted.insert(at, seq);
            if self.deleted.len() > DELETED_MAX {
                self.deleted.remove(0);
            }
        }
    }

    /// A loaded user is a member now, or no more; also one who is unloaded is none, since another may get their index.
    pub fn note_member(&mut self, user: UserIdx, is_member: bool) {
        match (self.standings.binary_search(&user), is_member) {
            (Err(at), true) => self.standings.insert(at, user),
            (Ok(at), false) => {
                self.standings.remove(at);
            }
            (Ok(_), true) | (Err(_), false) => {}
        }
    }

    /// Messages behind a user's read cursor. Tombstones do not count.
    pub fn unread(&self, standing: &Standing) -> u64 {
        let behind = self.deleted.len() - self.deleted.partition_point(|seq| *seq <= standing.read);
        self.tally.messages.saturating_sub(standing.counted).saturating_sub(behind as u64)
    }

    /// True when nothing needs it loaded.
    pub fn is_idle(&self) -> bool {
        self.subscribers.is_empty() && self.standings.is_empty()
    }

    /// Those who want everything: they are sent whole runs as they are.
    pub fn plain_subscribers(&self) -> &[ConnKey] {
        &self.subscribers[..self.subscribers.len() - self.filters.len()]
    }

    /// Those with a filter, and theirs.
    pub fn filtering_subscribers(&self) -> impl Iterator<Item = (ConnKey, &Arc<Filter>)> {
        let plain = self.plain_subscribers().len();
        self.subscribers[plain..].iter().copied().zip(&self.filters)
    }

    /// The filter of a listener, if it has one.
    pub fn filter_of(&self, conn: ConnKey) -> Option<&Arc<Filter>> {
        self.filtering_subscribers().find(|(other, _)| *other == conn).map(|(_, filter)| filter)
    }

    /// Adds a listener that is not one yet.
    pub fn subscribe(&mut self, conn: ConnKey, filter: Option<Arc<Filter>>) {
        debug_assert!(!self.subscribers.contains(&conn), "the session's list says whether it listens");
        if let Some(filter) = filter {
            self.subscribers.push(conn);
            self.filters.push(filter);
        } else {
            let plain = self.plain_subscribers().len();
            self.subscribers.insert(plain, conn);
        }
    }

    /// Removes a listener.
    pub fn unsubscribe(&mut self, conn: ConnKey, now: UnixMillis) {
        let plain = self.plain_subscribers().len();
        if let Some(at) = self.subscribers.iter().position(|c| *c == conn) {
            if at < plain {
                self.subscribers.swap(at, plain - 1);
                self.subscribers.remove(plain - 1);
            } else {
                self.subscribers.swap_remove(at);
                self.filters.swap_remove(at - plain);
            }
        }
        self.touch(now);
    }

    /// Notes since when it is idle.
    pub fn touch(&mut self, now: UnixMillis) {
        if self.is_idle() {
            self.idle_since = now;
        }
    }
}

/// The rooms of one shard.
#[derive(Debug, Default)]
pub struct Rooms {
    slots: Vec<Option<Box<Room>>>,
    free: Vec<RoomIdx>,
    by_key: HashMap<RoomKey, RoomIdx, ahash::RandomState>,
    by_name: HashMap<RoomName, RoomIdx, ahash::RandomState>,
    /// Names that are known not to exist; the log tells when one comes to be.
    absent: HashSet<RoomName, ahash::RandomState>,
    sweep: Sweep,
}

impl Rooms {
    /// How many are loaded.
    pub fn count(&self) -> usize {
        self.by_key.len()
    }

    /// The room of that name, if loaded.
    pub fn find(&self, name: &str) -> Option<RoomIdx> {
        self.by_name.get(name).copied()
    }

    /// The room of that number, if loaded.
    pub fn find_key(&self, key: RoomKey) -> Option<RoomIdx> {
        self.by_key.get(&key).copied()
    }

    /// A loaded room. The index came from this table and the room has not been removed since.
    pub fn get(&self, idx: RoomIdx) -> &Room {
        self.slots[idx.0 as usize].as_deref().expect("an interest keeps its room loaded")
    }

    /// Likewise, to change it.
    pub fn get_mut(&mut self, idx: RoomIdx) -> &mut Room {
        self.slots[idx.0 as usize].as_deref_mut().expect("an interest keeps its room loaded")
    }

    /// The room of that index, if it is still that room.
    pub fn get_key_mut(&mut self, key: RoomKey) -> Option<&mut Room> {
        let idx = self.find_key(key)?;
        Some(self.get_mut(idx))
    }

    /// Adds a room as it stood at `loaded_at`.
    pub fn add(&mut self, row: RoomRow, loaded_at: Position, now: UnixMillis) -> RoomIdx {
        self.absent.remove(&row.name);
        let (key, name) = (row.key, row.name.clone());
        let room = Some(Box::new(Room::new(row, loaded_at, now)));
        let idx = match self.free.pop() {
            Some(idx) => {
                self.slots[idx.0 as usize] = room;
                idx
            }
            None => {
                self.slots.push(room);
                RoomIdx((self.slots.len() - 1) as u32)
            }
        };
        self.by_key.insert(key, idx);
        self.by_name.insert(name, idx);
        idx
    }

    /// Forgets a room.
    pub fn remove(&mut self, idx: RoomIdx) {
        if let Some(room) = self.slots[idx.0 as usize].take() {
            self.by_key.remove(&room.key);
            self.by_name.remove(&room.name);
            self.free.push(idx);
        }
    }

    /// Remembers that there is no such room.
    pub fn add_absent(&mut self, name: RoomName) {
        if self.absent.len() >= ABSENT_MAX {
            self.absent.clear();
        }
        self.absent.insert(name);
    }

    /// The log shows that a room of that name exists.
    pub fn remove_absent(&mut self, name: &RoomName) {
        if !self.absent.is_empty() {
            self.absent.remove(name);
        }
    }

    /// True when it is known that there is no such room.
    pub fn is_absent(&self, name: &str) -> bool {
        self.absent.contains(name)
    }

    /// The first loaded room from this index on, going round at the end.
    pub fn at_or_after(&self, idx: RoomIdx) -> Option<RoomIdx> {
        let start = (idx.0 as usize).min(self.slots.len());
        let (before, after) = self.slots.split_at(start);
        let found = after.iter().position(Option::is_some).map(|at| start + at);
        found.or_else(|| before.iter().position(Option::is_some)).map(|at| RoomIdx(at as u32))
    }

    /// Those that nobody has been interested in since before `before`, of the part whose turn it is.
    pub fn idle_since(&mut self, before: UnixMillis) -> Vec<RoomIdx> {
        let is_idle = |room: &Room| room.is_idle() && room.idle_since < before;
        self.sweep.find(&self.slots, is_idle).into_iter().map(RoomIdx).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_once_and_ascending() {
        let name = RoomName::parse("one").unwrap();
        let (key, kind, tally) = (RoomKey(1), RoomKind::Public, Tally::default());
        let mut room = Room::new(RoomRow { key, name, kind, title: None, head: 1, members: 0, tally }, 1, 5);
        for user in [7, 2, 9, 2] {
            room.note_member(UserIdx(user), true);
        }
        assert_eq!(room.standings, [UserIdx(2), UserIdx(7), UserIdx(9)]);
        assert!(!room.is_idle());
        for user in [7, 7, 3] {
            room.note_member(UserIdx(user), false);
        }
        assert_eq!(room.standings, [UserIdx(2), UserIdx(9)]);
        room.note_member(UserIdx(2), false);
        room.note_member(UserIdx(9), false);
        assert!(room.is_idle());
    }
}
