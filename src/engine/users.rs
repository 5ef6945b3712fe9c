//! The users with a connection on this shard: their connections, memberships and rates.
//!
//! A user is read from the store when the first connection comes, kept up to date by the log from
//! then on, and unloaded some time after the last connection went.

use std::collections::HashMap;

use hashbrown::HashTable;

use super::event::{AdminRequest, ConnKey, DELIVERED_MAX, ReadAdvance};
use super::inbox::Inbox;
use super::limits::Bucket;
use super::presence::UserPresence;
use super::sweep::Sweep;
use crate::protocol::ids::{DeviceId, Position, Role, RoomKey, Seq, UnixMillis, UserId};

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
    /// Messages of the room up to there.
    pub counted: u64,
}

/// What the devices of a user have beyond what the user has read: the last [`DELIVERED_MAX`] that moved.
#[derive(Debug, Default)]
pub struct Delivered {
    /// One for each room and device; what moved last is last.
    list: Vec<(RoomKey, DeviceId, Seq)>,
}

/// What is known of a user's memberships.
#[derive(Debug)]
pub enum Loading {
    /// They are being read. These cursors moved meanwhile: read marks have no position, so that the page
    /// cannot say whether it has them.
    Reading(Vec<ReadAdvance>),
    /// They are those at this log position or later.
    Loaded(Position),
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
    /// Whether they have been read from the store.
    pub loading: Loading,
    /// Delivered cursors that are ahead of the read cursor; none: there are none.
    pub delivered: Option<Box<Delivered>>,
    /// Their message rate.
    pub bucket: Bucket,
    /// Since when they have no connection.
    pub idle_since: UnixMillis,
    /// What others see of them.
    pub presence: UserPresence,
    /// What waits for them; none: nothing.
    pub inbox: Option<Box<Inbox>>,
}

// Thousands of users are loaded, most of them idle: a change here is one of memory for each.
const _: () = assert!(size_of::<User>() <= 160);

impl User {
    /// The memberships are those at this log position or later; none: still being read.
    pub fn loaded_at(&self) -> Option<Position> {
        match self.loading {
            Loading::Reading(_) => None,
            Loading::Loaded(at) => Some(at),
        }
    }

    /// Their standing in `room`.
    pub fn standing(&self, room: RoomKey) -> Option<&Standing> {
        let at = self.standings.binary_search_by_key(&room, |s| s.room).ok()?;
        self.standings.get(at)
    }

    /// Their role in `room`.
    pub fn role(&self, room: RoomKey) -> Option<Role> {
        self.standing(room).map(|s| s.role)
    }

    /// Sets or ends their standing in `room`; a new member has read up to `begin` (a seq, and the
    /// messages up to it). Tells how the number of their memberships changed (-1, 0, 1).
    pub fn set_role(&mut self, room: RoomKey, role: Option<Role>, begin: (Seq, u64)) -> i32 {
        let (read, counted) = begin;
        let is_member = |role: Option<Role>| i32::from(role.is_some_and(Role::is_member));
        let difference = is_member(role) - is_member(self.role(room));
        match (self.standings.binary_search_by_key(&room, |s| s.room), role) {
            (Ok(at), Some(role)) => {
                let standing = &mut self.standings[at];
                if role.is_member() && !standing.role.is_member() && read > standing.read {
                    (standing.read, standing.counted) = (read, counted);
                }
                standing.role = role;
            }
            (Ok(at), None) => {
                self.standings.remove(at);
                self.forget_delivered(|(of, ..)| *of == room);
            }
            (Err(at), Some(role)) => {
                self.standings.reserve_exact(1);
                self.standings.insert(at, Standing { room, role, read, counted });
            }
            (Err(_), None) => {}
        }
        difference
    }

    /// Moves a cursor of theirs forward, now or once they are read.
    pub fn advance(&mut self, to: &ReadAdvance) {
        if let Loading::Reading(early) = &mut self.loading {
            return early.push(to.clone());
        }
        let Ok(at) = self.standings.binary_search_by_key(&to.room, |s| s.room) else { return };
        let standing = &mut self.standings[at];
        match &to.device {
            None if to.seq > standing.read => {
                (standing.read, standing.counted) = (to.seq, to.counted);
                self.forget_delivered(|(room, _, seq)| *room == to.room && *seq <= to.seq);
            }
            Some(device) if to.seq > standing.read => self.deliver(to.room, device, to.seq),
            _ => {}
        }
    }

    /// A device has the room up to `seq`, which is beyond what is read.
    pub fn deliver(&mut self, room: RoomKey, device: &DeviceId, seq: Seq) {
        let list = &mut self.delivered.get_or_insert_default().list;
        let known = list.iter().position(|(in_room, of, _)| *in_room == room && of == device);
        let before = known.map_or(0, |at| list.remove(at).2);
        if list.len() >= DELIVERED_MAX as usize {
            list.remove(0);
        }
        list.push((room, device.clone(), seq.max(before)));
    }

    /// What a device has beyond what is read, by room.
    pub fn delivered_to(&self, device: &DeviceId) -> HashMap<RoomKey, Seq, ahash::RandomState> {
        let list = self.delivered.as_deref().map_or(&[][..], |delivered| &delivered.list);
        list.iter().filter(|(_, of, _)| of == device).map(|(room, _, seq)| (*room, *seq)).collect()
    }

    fn forget_delivered(&mut self, is_over: impl Fn(&(RoomKey, DeviceId, Seq)) -> bool) {
        if let Some(delivered) = &mut self.delivered {
            delivered.list.retain(|entry| !is_over(entry));
            if delivered.list.is_empty() {
                self.delivered = None;
            }
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
    /// By the hash of the name, which stands in the slot.
    by_name: HashTable<UserIdx>,
    hasher: ahash::RandomState,
    sweep: Sweep,
}

impl Users {
    /// How many are loaded.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// The user of that name, if loaded (or being loaded).
    pub fn find(&self, name: &str) -> Option<UserIdx> {
        self.by_name.find(self.hasher.hash_one(name), |idx| name_at(&self.slots, *idx) == name).copied()
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
            name,
            conns: Vec::new(),
            standings: Vec::new(),
            loading: Loading::Reading(Vec::new()),
            delivered: None,
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
        let (slots, hasher) = (&self.slots, &self.hasher);
        let hash_of = |idx: &UserIdx| hasher.hash_one(name_at(slots, *idx));
        self.by_name.insert_unique(hash_of(&idx), idx, hash_of);
        idx
    }

    /// Forgets a user.
    pub fn remove(&mut self, idx: UserIdx) -> Option<Box<User>> {
        let user = self.slots[idx.0 as usize].take()?;
        if let Ok(entry) = self.by_name.find_entry(self.hasher.hash_one(user.name.as_str()), |other| *other == idx) {
            entry.remove();
        }
        self.free.push(idx);
        Some(user)
    }

    /// Those without a connection since before `before`, and not being read, of the part whose turn it is.
    pub fn idle_since(&mut self, before: UnixMillis) -> Vec<UserIdx> {
        let is_idle = |user: &User| user.is_idle() && user.loaded_at().is_some() && user.idle_since < before;
        self.sweep.find(&self.slots, is_idle).into_iter().map(UserIdx).collect()
    }
}

fn name_at(slots: &[Option<Box<User>>], idx: UserIdx) -> &str {
    slots[idx.0 as usize].as_deref().expect("only loaded users are listed by name").name.as_str()
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
        user.loading = Loading::Loaded(0);
        for room in [5, 1, 9] {
            assert_eq!(user.set_role(RoomKey(room), Some(Role::Member), (0, 0)), 1);
        }
        assert_eq!(user.set_role(RoomKey(5), Some(Role::Owner), (9, 9)), 0);
        assert_eq!(user.set_role(RoomKey(1), None, (0, 0)), -1);
        assert_eq!(user.set_role(RoomKey(2), None, (0, 0)), 0);
        assert_eq!(user.role(RoomKey(5)), Some(Role::Owner));
        assert_eq!(user.role(RoomKey(1)), None);
        user.advance(&cursor(5, None, 7));
        user.advance(&cursor(5, None, 3));
        assert_eq!(user.standing(RoomKey(5)).map(|s| (s.read, s.counted)), Some((7, 4)));
        assert!(user.standings.is_sorted_by_key(|s| s.room));
    }

    fn cursor(room: u64, device: Option<&str>, seq: Seq) -> ReadAdvance {
        let device = device.map(|device| DeviceId::parse(device).unwrap());
        ReadAdvance { room: RoomKey(room), user: UserId::parse("alice").unwrap(), device, seq, counted: seq / 2 + 1 }
    }

    #[test]
    fn what_is_read_is_delivered() {
        let mut users = Users::default();
        let idx = users.add(UserId::parse("alice").unwrap());
        let user = users.get_mut(idx);
        user.loading = Loading::Loaded(0);
        user.set_role(RoomKey(1), Some(Role::Member), (2, 1));
        let (phone, laptop) = (DeviceId::parse("phone").unwrap(), DeviceId::parse("laptop").unwrap());
        let delivered = |user: &User, device| {
            let read = user.standing(RoomKey(1)).unwrap().read;
            user.delivered_to(device).get(&RoomKey(1)).map_or(read, |seq| read.max(*seq))
        };
        user.advance(&cursor(1, Some("phone"), 5));
        user.advance(&cursor(1, Some("phone"), 4));
        assert_eq!((delivered(user, &phone), delivered(user, &laptop)), (5, 2));
        user.advance(&cursor(1, None, 4));
        assert_eq!((delivered(user, &phone), delivered(user, &laptop)), (5, 4));
        user.advance(&cursor(1, None, 5));
        assert!(user.delivered.is_none(), "nothing is kept that the read cursor says");
        user.advance(&cursor(1, Some("phone"), 7));
        user.set_role(RoomKey(1), None, (0, 0));
        assert!(user.delivered.is_none());
        assert_eq!(user.set_role(RoomKey(1), Some(Role::Banned), (0, 0)), 0, "a ban is no membership");
        assert_eq!(user.set_role(RoomKey(1), Some(Role::Member), (9, 3)), 1);
        assert_eq!(user.standing(RoomKey(1)).map(|s| (s.read, s.counted)), Some((9, 3)), "a new member begins there");
        assert_eq!(user.set_role(RoomKey(1), Some(Role::Banned), (0, 0)), -1);
    }

    #[test]
    fn what_devices_have_is_bounded_and_what_moved_last_stays() {
        let mut users = Users::default();
        let idx = users.add(UserId::parse("alice").unwrap());
        let user = users.get_mut(idx);
        let device = |number: u32| DeviceId::parse(&format!("d{number}")).unwrap();
        for number in 0..DELIVERED_MAX {
            user.deliver(RoomKey(1), &device(number), 5);
        }
        // Old, and moved again: it stays where a new one comes.
        user.deliver(RoomKey(1), &device(0), 4);
        user.deliver(RoomKey(2), &device(0), 9);
        let of = |number| user.delivered_to(&device(number));
        assert_eq!((of(0).get(&RoomKey(1)), of(0).get(&RoomKey(2))), (Some(&5), Some(&9)));
        assert_eq!((of(1).len(), of(2).len()), (0, 1));
        assert_eq!(user.delivered.as_ref().unwrap().list.len(), DELIVERED_MAX as usize);
    }

    #[test]
    fn a_slot_is_given_out_again() {
        let mut users = Users::default();
        let alice = users.add(UserId::parse("alice").unwrap());
        users.get_mut(alice).loading = Loading::Loaded(0);
        users.get_mut(alice).idle_since = 10;
        assert_eq!(users.idle_since(10), []);
        assert_eq!(users.idle_since(11), [alice]);
        users.remove(alice);
        assert_eq!(users.find("alice"), None);
        assert_eq!(users.add(UserId::parse("bob").unwrap()), alice);
        assert_eq!(users.count(), 1);
    }
}
