//! The users with a connection on this shard: their connections, memberships and rates.
//!
//! A user is read from the store when the first connection comes, kept up to date by the log from
//! then on, and unloaded some time after the last connection went.

use std::collections::HashMap;

use super::event::{AdminRequest, ConnKey};
use super::inbox::Inbox;
use super::limits::Bucket;
use super::presence::UserPresence;
use crate::protocol::ids::{Position, Role, RoomKey, Seq, UnixMillis, UserId};

/// Index of a loaded user within the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserIdx(pub u32);

/// A user's standing in one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which room.
    pub room: RoomKey,
    /// What they are there.
    pub role: Role,
    /// How far they have read.
    pub read: Seq,
}

/// One user.
#[derive(Debug)]
pub struct User {
    /// Who.
    pub name: UserId,
    /// Their connections on this shard, which are all they have.
    pub conns: Vec<ConnKey>,
    /// Ascending by room.
    pub standings: Vec<Standing>,
    /// The memberships are those at this log position or later; none: still being read.
    pub loaded_at: Option<Position>,
    /// Cursors that moved while the user was being read. Read marks have no position, so that the
    /// page cannot say whether it has them.
    pub early_reads: Vec<(RoomKey, Seq)>,
    /// Their message rate.
    pub bucket: Bucket,
    /// Since when they have no connection.
    pub idle_since: UnixMillis,
    /// What others see of them.
    pub presence: UserPresence,
    /// What waits for them; none: nothing.
    pub inbox: Option<Box<Inbox>>,
}

impl User {
    /// Their standing in `room`.
    pub fn standing(&self, room: RoomKey) -> Option<&Standing> {
        let at = self.standings.binary_search_by_key(&room, |s| s.room).ok()?;
        self.standings.get(at)
    }

    /// Their role in `room`.
    pub fn role(&self, room: RoomKey) -> Option<Role> {
        self.standing(room).map(|s| s.role)
    }

    /// Sets or ends their standing in `room`. Tells how the number of standings changed (-1, 0, 1).
    pub fn set_role(&mut self, room: RoomKey, role: Option<Role>) -> i32 {
        match (self.standings.binary_search_by_key(&room, |s| s.room), role) {
            (Ok(at), Some(role)) => {
                self.standings[at].role = role;
                0
            }
            (Ok(at), None) => {
                self.standings.remove(at);
                -1
            }
            (Err(at), Some(role)) => {
                self.standings.reserve_exact(1);
                self.standings.insert(at, Standing { room, role, read: 0 });
                1
            }
            (Err(_), None) => 0,
        }
    }

    /// Moves their read cursor in `room` forward, now or once they are read.
    pub fn advance_read(&mut self, room: RoomKey, seq: Seq) {
        if self.loaded_at.is_none() {
            return self.early_reads.push((room, seq));
        }
        if let Ok(at) = self.standings.binary_search_by_key(&room, |s| s.room) {
            let read = &mut self.standings[at].read;
            *read = (*read).max(seq);
        }
    }

    /// True when nothing needs them loaded.
    pub fn is_idle(&self) -> bool {
        self.conns.is_empty() && self.presence.is_gone()
    }
}

/// The users of one shard.
#[derive(Debug, Default)]
pub struct Users {
    slots: Vec<Option<Box<User>>>,
    free: Vec<UserIdx>,
    by_name: HashMap<UserId, UserIdx, ahash::RandomState>,
}

impl Users {
    /// How many are loaded.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// The user of that name, if loaded (or being loaded).
    pub fn find(&self, name: &str) -> Option<UserIdx> {
        self.by_name.get(name).copied()
    }

    /// A loaded user. The index came from `find` or `add` and the user has not been removed since.
    pub fn get(&self, idx: UserIdx) -> &User {
        self.slots[idx.0 as usize].as_deref().expect("a session or waiter keeps its user loaded")
    }

    /// Likewise, to change them.
    pub fn get_mut(&mut self, idx: UserIdx) -> &mut User {
        self.slots[idx.0 as usize].as_deref_mut().expect("a session or waiter keeps its user loaded")
    }

    /// The user at that place, if there is one: perhaps not the one that was meant.
    pub fn at(&self, idx: UserIdx) -> Option<&User> {
        self.slots.get(idx.0 as usize)?.as_deref()
    }

    /// Every user.
    pub fn iter(&self) -> impl Iterator<Item = &User> {
        self.slots.iter().filter_map(|user| user.as_deref())
    }

    /// The index of every user.
    pub fn indices(&self) -> Vec<UserIdx> {
        (0..).map(UserIdx).zip(&self.slots).filter(|(_, user)| user.is_some()).map(|(idx, _)| idx).collect()
    }

    /// The user of that index, if there is one still.
    pub fn find_idx_mut(&mut self, idx: UserIdx) -> Option<&mut User> {
        self.slots.get_mut(idx.0 as usize)?.as_deref_mut()
    }

    /// Adds a user that is yet to be read.
    pub fn add(&mut self, name: UserId) -> UserIdx {
        let user = User {
            name: name.clone(),
            conns: Vec::new(),
            standings: Vec::new(),
            loaded_at: None,
            early_reads: Vec::new(),
            bucket: Bucket::default(),
            idle_since: 0,
            presence: UserPresence::default(),
            inbox: None,
        };
        let idx = match self.free.pop() {
            Some(idx) => {
                self.slots[idx.0 as usize] = Some(Box::new(user));
                idx
            }
            None => {
                self.slots.push(Some(Box::new(user)));
                UserIdx((self.slots.len() - 1) as u32)
            }
        };
        self.by_name.insert(name, idx);
        idx
    }

    /// Forgets a user.
    pub fn remove(&mut self, idx: UserIdx) -> Option<Box<User>> {
        let user = self.slots[idx.0 as usize].take()?;
        self.by_name.remove(&user.name);
        self.free.push(idx);
        Some(user)
    }

    /// Those without a connection since before `before`, and not being read.
    pub fn idle_since(&self, before: UnixMillis) -> Vec<UserIdx> {
        let is_idle = |user: &User| user.is_idle() && user.loaded_at.is_some() && user.idle_since < before;
        (0..).map(UserIdx).zip(&self.slots).filter(|(_, u)| u.as_deref().is_some_and(is_idle)).map(|(i, _)| i).collect()
    }
}

/// Who waits for something to be loaded.
#[derive(Debug)]
pub enum Waiter {
    /// A parked connection.
    Conn(ConnKey),
    /// A request of the admin API, to be handled again.
    Admin(AdminRequest),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standings_stay_sorted_and_reads_only_advance() {
        let mut users = Users::default();
        let idx = users.add(UserId::parse("alice").unwrap());
        let user = users.get_mut(idx);
        user.loaded_at = Some(0);
        for room in [5, 1, 9] {
            assert_eq!(user.set_role(RoomKey(room), Some(Role::Member)), 1);
        }
        assert_eq!(user.set_role(RoomKey(5), Some(Role::Owner)), 0);
        assert_eq!(user.set_role(RoomKey(1), None), -1);
        assert_eq!(user.set_role(RoomKey(2), None), 0);
        assert_eq!(user.role(RoomKey(5)), Some(Role::Owner));
        assert_eq!(user.role(RoomKey(1)), None);
        user.advance_read(RoomKey(5), 7);
        user.advance_read(RoomKey(5), 3);
        assert_eq!(user.standing(RoomKey(5)).map(|s| s.read), Some(7));
        assert!(user.standings.is_sorted_by_key(|s| s.room));
    }

    #[test]
    fn a_slot_is_given_out_again() {
        let mut users = Users::default();
        let alice = users.add(UserId::parse("alice").unwrap());
        users.get_mut(alice).loaded_at = Some(0);
        users.get_mut(alice).idle_since = 10;
        assert_eq!(users.idle_since(10), []);
        assert_eq!(users.idle_since(11), [alice]);
        users.remove(alice);
        assert_eq!(users.find("alice"), None);
        assert_eq!(users.add(UserId::parse("bob").unwrap()), alice);
        assert_eq!(users.count(), 1);
    }
}
