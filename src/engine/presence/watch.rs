//! The watcher's side: who here watches whom, and the cards that were sent for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::event::{ConnKey, ShardId};
use super::super::shard_of;
use super::mail::{Card, Counts, Entry, Interest, write_open};
use super::{Cause, Digest};
use crate::protocol::command::Status;
use crate::protocol::encode::{field_integer, field_raw, integer};
use crate::protocol::ids::{RoomKey, RoomName, UserId};

/// Users a connection may watch.
pub const WATCHED_USERS_MAX: usize = 1_000;
/// Rooms whose presence a connection may watch.
pub const WATCHED_ROOMS_MAX: usize = 16;

/// What one connection watches.
#[derive(Debug, Default)]
pub struct Watches {
    /// Up to [`WATCHED_USERS_MAX`].
    pub users: BTreeSet<UserId>,
    /// In no order.
    pub rooms: Vec<RoomKey>,
}

/// A room whose presence is watched here.
#[derive(Debug)]
pub struct WatchedRoom {
    /// Its name.
    pub name: RoomName,
    /// Who watches.
    pub conns: BTreeSet<ConnKey>,
    /// It is too large for more than counts.
    pub is_counted: bool,
    /// Each shard's part of the counts.
    pub counts: Vec<Counts>,
}

impl WatchedRoom {
    /// All shards together.
    pub fn total(&self) -> Counts {
        self.counts.iter().fold([0; 3], |sum, part| std::array::from_fn(|at| sum[at] + part[at]))
    }
}

/// A card that is held here.
#[derive(Debug)]
struct Held {
    entry: Entry,
    owner: ShardId,
}

/// What a received entry means for the watchers here.
#[derive(Debug, Default)]
pub struct News {
    /// Whoever watches the user is to be told.
    pub is_for_user: bool,
    /// Watchers of these rooms are to be told.
    pub rooms: Vec<RoomKey>,
    /// Watchers of these rooms are to be told that the user is not there any more: a member no longer.
    pub left: Vec<RoomKey>,
}

/// All that is watched on one shard.
#[derive(Debug)]
pub struct Watching {
    shards: u16,
    /// Views are being compared: a timer is set.
    pub is_probing: bool,
    /// By connection; most have nothing here.
    pub conns: HashMap<ConnKey, Watches, ahash::RandomState>,
    /// By user, who watches. A set, since colleagues who watch the same thousand may drop all at once.
    pub users: HashMap<UserId, BTreeSet<ConnKey>, ahash::RandomState>,
    /// By room.
    pub rooms: BTreeMap<RoomKey, WatchedRoom>,
    cards: HashMap<UserId, Held, ahash::RandomState>,
}

impl Watching {
    /// Nothing is watched.
    pub fn new(shards: u16) -> Self {
        Self {
            shards,
            is_probing: false,
            conns: HashMap::default(),
            users: HashMap::default(),
            rooms: BTreeMap::new(),
            cards: HashMap::default(),
        }
    }

    /// How many cards are held.
    pub fn cards(&self) -> usize {
        self.cards.len()
    }

    /// Connections times what they watch.
    pub fn watches(&self) -> usize {
        self.conns.values().map(|watches| watches.users.len() + watches.rooms.len()).sum()
    }

    /// Adds a watcher of a user. True when the shard did not watch them before.
    pub fn watch_user(&mut self, conn: ConnKey, user: &UserId) -> bool {
        let watches = self.conns.entry(conn).or_default();
        if !watches.users.insert(user.clone()) {
            return false;
        }
        let conns = self.users.entry(user.clone()).or_default();
        conns.insert(conn);
        conns.len() == 1
    }

    /// Adds a watcher of a room. True when the shard did not watch it before.
    pub fn watch_room(&mut self, conn: ConnKey, key: RoomKey, name: &RoomName, is_counted: bool) -> bool {
        let watches = self.conns.entry(conn).or_default();
        if watches.rooms.contains(&key) {
            return false;
        }
        watches.rooms.push(key);
        let counts = vec![[0; 3]; usize::from(self.shards.max(1))];
        let new = || WatchedRoom { name: name.clone(), conns: BTreeSet::new(), is_counted, counts };
        let room = self.rooms.entry(key).or_insert_with(new);
        room.conns.insert(conn);
        room.conns.len() == 1
    }

    /// Ends a watch of a user. True when nobody here watches them any more.
    pub fn unwatch_user(&mut self, conn: ConnKey, user: &UserId) -> bool {
        let Some(watches) = self.conns.get_mut(&conn) else { return false };
        if !watches.users.remove(user) {
            return false;
        }
        self.drop_empty(conn);
        let Some(conns) = self.users.get_mut(user) else { return false };
        conns.remove(&conn);
        if !conns.is_empty() {
            return false;
        }
        self.users.remove(user);
        self.drop_card_if_unwanted(user);
        true
    }

    /// Ends a watch of a room. True when nobody here watches it any more.
    pub fn unwatch_room(&mut self, conn: ConnKey, key: RoomKey) -> bool {
        let Some(watches) = self.conns.get_mut(&conn) else { return false };
        let Some(at) = watches.rooms.iter().position(|other| *other == key) else { return false };
        watches.rooms.swap_remove(at);
        self.drop_empty(conn);
        let Some(room) = self.rooms.get_mut(&key) else { return false };
        room.conns.remove(&conn);
        if !room.conns.is_empty() {
            return false;
        }
        self.rooms.remove(&key);
        self.drop_room_cards(key);
        true
    }

    fn drop_empty(&mut self, conn: ConnKey) {
        if self.conns.get(&conn).is_some_and(|watches| watches.users.is_empty() && watches.rooms.is_empty()) {
            self.conns.remove(&conn);
        }
    }

    /// Cards are no longer held for this room.
    pub fn drop_room_cards(&mut self, key: RoomKey) {
        let users = &self.users;
        self.cards.retain(|user, held| {
            if held.entry.rooms.contains(&key) {
                held.entry.rooms = held.entry.rooms.iter().copied().filter(|room| *room != key).collect();
            }
            !held.entry.rooms.is_empty() || users.contains_key(user)
        });
    }

    fn drop_card_if_unwanted(&mut self, user: &UserId) {
        if self.cards.get(user).is_some_and(|held| held.entry.rooms.is_empty()) && !self.users.contains_key(user) {
            self.cards.remove(user);
        }
    }

    /// What is wanted of `owner`.
    pub fn interest(&self, owner: ShardId) -> Interest {
        let theirs = |user: &&UserId| shard_of(user, self.shards) == owner;
        Interest {
            users: self.users.keys().filter(theirs).cloned().collect(),
            rooms: self.rooms.iter().map(|(key, room)| (*key, room.is_counted)).collect(),
        }
    }

    /// To compare what is held of `owner`'s users with what the owner knows.
    pub fn digest(&self, owner: ShardId) -> u64 {
        let mut digest = Digest::default();
        let theirs = self.cards.values().filter(|held| held.owner == owner);
        for Held { entry, .. } in theirs.filter(|held| held.entry.card.status != Status::Offline) {
            add_entry(&mut digest, entry);
        }
        for (key, room) in self.rooms.iter().filter(|(_, room)| room.is_counted) {
            add_counts(&mut digest, *key, room.counts.get(usize::from(owner.0)).copied().unwrap_or_default());
        }
        digest.0
    }

    /// Takes an entry, and says whom it concerns. Older than what is held: nobody.
    pub fn apply(&mut self, owner: ShardId, mut entry: Entry) -> News {
        // The owner may not know yet which rooms are watched no longer, and will not say who leaves them.
        let is_wanted = |room: &RoomKey| self.rooms.get(room).is_some_and(|room| !room.is_counted);
        if !entry.rooms.iter().all(is_wanted) {
            entry.rooms = entry.rooms.iter().copied().filter(is_wanted).collect();
        }
        let user = entry.card.user.clone();
        let is_watched = self.users.contains_key(&user);
        let old = self.cards.get(&user);
        if old.is_some_and(|held| {
            let (is, new) = (held.entry.card.version, entry.card.version);
            // A room that is newly watched comes with a card that is known already, and so does a user
            // whom a snapshot left out that had crossed with the word that they are watched.
            let is_equal = held.entry.rooms == entry.rooms && held.entry.card.is_same(&entry.card);
            is > new || is == new && is_equal
        }) {
            return News::default();
        }
        // What was never told is offline, as far as anybody here knows.
        let is_changed = match old {
            Some(held) => !held.entry.card.is_same(&entry.card),
            None => entry.card.status != Status::Offline,
        };
        let is_told = |room: &RoomKey| old.is_some_and(|held| held.entry.rooms.contains(room));
        let rooms = entry.rooms.iter().filter(|room| is_changed || !is_told(room)).copied().collect();
        let is_left = |room: &&RoomKey| !entry.rooms.contains(room) && self.rooms.contains_key(room);
        let seen = old.filter(|held| held.entry.card.status != Status::Offline);
        let left = seen.map_or_else(Vec::new, |held| held.entry.rooms.iter().filter(is_left).copied().collect());
        if is_watched || !entry.rooms.is_empty() {
            self.cards.insert(user, Held { entry, owner });
        } else {
            self.cards.remove(&user);
        }
        News { is_for_user: is_changed && is_watched, rooms, left }
    }

    /// A whole snapshot of `owner` at `clock` named only `named`: the visible others went unseen.
    pub fn missing(&self, owner: ShardId, clock: u64, named: &dyn Fn(&UserId) -> bool) -> Vec<Entry> {
        let is_lost = |held: &&Held| {
            let card = &held.entry.card;
            held.owner == owner && card.version < clock && card.status != Status::Offline && !named(&card.user)
        };
        let offline = |held: &Held| {
            let old = &held.entry.card;
            let card = Card { status: Status::Offline, custom: None, cause: Some(Cause::Timeout), ..(**old).clone() };
            Entry { card: Arc::new(card), rooms: held.entry.rooms.clone() }
        };
        self.cards.values().filter(is_lost).map(offline).collect()
    }

    /// What is known of a user.
    pub fn card(&self, user: &str) -> Option<&Arc<Card>> {
        self.cards.get(user).map(|held| &held.entry.card)
    }

    /// The visible members of a watched room, by name.
    pub fn members(&self, room: RoomKey) -> Vec<Arc<Card>> {
        let is_in = |held: &&Held| held.entry.card.status != Status::Offline && held.entry.rooms.contains(&room);
        let mut cards: Vec<_> = self.cards.values().filter(is_in).map(|held| held.entry.card.clone()).collect();
        cards.sort_unstable_by(|a, b| a.user.cmp(&b.user));
        cards
    }
}

impl Watching {
    /// Appends what is known of each of these, offline when nothing is, separated by commas.
    pub fn write_users<'a>(&self, out: &mut Vec<u8>, users: impl IntoIterator<Item = &'a UserId>) {
        for (at, user) in users.into_iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"" } else { b"," });
            match self.card(user.as_str()) {
                Some(card) => card.write_open(out),
                None => write_open(out, user, Status::Offline, None),
            }
            out.push(b'}');
        }
    }

    /// Appends the visible members of a watched room, separated by commas.
    pub fn write_members(&self, out: &mut Vec<u8>, room: RoomKey) {
        for (at, card) in self.members(room).iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"" } else { b"," });
            card.write_open(out);
            out.push(b'}');
        }
    }

    /// Appends `,"counts":{…}` for a room that is only counted.
    pub fn write_counts(&self, out: &mut Vec<u8>, room: RoomKey) {
        let Some(room) = self.rooms.get(&room).filter(|room| room.is_counted) else { return };
        let [online, away, busy] = room.total();
        field_raw(out, "counts", b"{\"online\":");
        integer(out, u64::from(online));
        field_integer(out, "away", u64::from(away));
        field_integer(out, "busy", u64::from(busy));
        out.push(b'}');
    }
}

/// Adds a visible card to a digest.
pub fn add_entry(digest: &mut Digest, entry: &Entry) {
    digest.add((entry.card.user.as_str(), entry.card.version, &entry.rooms));
}

/// Adds one shard's part of a room's counts to a digest.
pub fn add_counts(digest: &mut Digest, room: RoomKey, counts: Counts) {
    digest.add((room, counts));
}
