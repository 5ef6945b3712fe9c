//! Presence between shards: changes go out once a tick, views are compared, watchers are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::cx::Cx;
use super::super::event::{Class, ConnKey, Frames, MeshMessage, Output, ShardId};
use super::super::presence::mail::{Card, Counts, Entry, Interest, Mail};
use super::super::presence::watch::{WatchedRoom, Watching, add_counts, add_entry};
use super::super::presence::{Digest, Dirty};
use super::super::session::State;
use super::super::shard::Shard;
use super::super::shard_of;
use super::super::timers::Timer;
use super::super::users::{User, UserIdx};
use crate::protocol::command::Status;
use crate::protocol::encode::field_string;
use crate::protocol::ids::{Role, RoomKey, UserId};

/// Counts of large rooms are told at most once in so long, ms.
const COUNTS_MS: u64 = 1_000;
/// JSON bytes of one `presence:changed`, about.
const EVENT_BYTES: usize = 16 * 1024;

impl Shard {
    /// To one shard, this one included.
    pub(super) fn post(&mut self, to: ShardId, mail: Mail) {
        if to == self.cx.shard {
            return self.on_presence_mail(to, mail);
        }
        let mail = Arc::new(mail);
        self.cx.out.list.push(Output::MeshTo(to, MeshMessage::Presence { from: self.cx.shard, mail }));
    }

    pub(super) fn on_presence_mail(&mut self, from: ShardId, mail: Mail) {
        match mail {
            Mail::Watch { interest, is_all, gather } => self.on_watch(from, interest, is_all, gather),
            Mail::Unwatch(interest) => {
                let Some(known) = self.presence.interest_of(from) else { return };
                for user in &interest.users {
                    known.users.remove(user);
                }
                for room in interest.rooms.keys() {
                    known.rooms.remove(room);
                }
            }
            Mail::Cards { entries, counts, is_all, clock, gather } => {
                self.on_cards(from, entries, &counts, is_all.then_some(clock));
                if gather > 0 {
                    self.on_part(gather, Vec::new());
                }
            }
            Mail::Probe { interest, held } => self.on_probe(from, interest, held),
            Mail::AskInterest => self.tell_interest(from),
            Mail::Get { users, is_brief, gather } => {
                self.look_at_asked(users.iter());
                let people = self.people(users, is_brief);
                self.post(from, Mail::Got { gather, people });
            }
            Mail::Got { gather, people } => self.on_part(gather, people),
            Mail::Activity { room, frame, key } => self.say_activity(room, frame, key),
        }
    }

    // --------------------------------------------------------------------------------------------
    // As owner

    fn on_watch(&mut self, from: ShardId, interest: Interest, is_all: bool, gather: u64) {
        self.look_at_asked(interest.users.iter());
        let Some(known) = self.presence.interest_of(from) else { return };
        if is_all {
            known.clone_from(&interest);
        } else {
            known.users.extend(interest.users.iter().cloned());
            known.rooms.extend(&interest.rooms);
        }
        if gather > 0 || !interest.is_empty() {
            self.send_snapshot(from, &interest, is_all, gather);
        }
    }

    fn send_snapshot(&mut self, to: ShardId, of: &Interest, is_all: bool, gather: u64) {
        // What the receiver holds at this version or later was sent after this snapshot.
        self.presence.clock += u64::from(is_all);
        let clock = self.presence.clock;
        let (entries, counts) = self.snapshot(to, of);
        self.post(to, Mail::Cards { entries, counts, is_all, clock, gather });
    }

    /// What `to` is to know of the users in `of`.
    fn snapshot(&self, to: ShardId, of: &Interest) -> (Vec<Entry>, Vec<(RoomKey, Counts)>) {
        let Some(known) = self.presence.interest.get(usize::from(to.0)) else { return Default::default() };
        let mut entries = Vec::new();
        for name in &of.users {
            let user = self.users.find(name.as_str()).map(|idx| self.users.get(idx));
            match user.filter(|user| user.presence.shown != Status::Offline) {
                Some(user) => entries.push(Entry { card: self.card(user), rooms: rooms_for(user, known) }),
                None => entries.extend(self.presence.departed.get(name.as_str()).map(|card| Entry {
                    card: card.clone(),
                    rooms: user.map_or_else(Box::default, |user| rooms_for(user, known)),
                })),
            }
        }
        if of.rooms.values().any(|is_counted| !is_counted) {
            let detailed = of.rooms.iter().filter(|(_, is_counted)| !**is_counted);
            let mut members: Vec<UserIdx> = detailed.flat_map(|(room, _)| self.members_here(*room)).copied().collect();
            members.sort_unstable();
            members.dedup();
            let users = members.into_iter().map(|idx| self.users.get(idx));
            for user in users.filter(|user| user.presence.shown != Status::Offline) {
                let rooms = rooms_for(user, known);
                if rooms.iter().any(|room| of.rooms.contains_key(room)) && !of.users.contains(&user.name) {
                    entries.push(Entry { card: self.card(user), rooms });
                }
            }
        }
        let counted: BTreeSet<RoomKey> =
            of.rooms.iter().filter(|(_, counted)| **counted).map(|(key, _)| *key).collect();
        (entries, self.count_rooms(&counted).into_iter().collect())
    }

    /// What is shown of a user, as it was last told.
    fn card(&self, user: &User) -> Arc<Card> {
        let presence = &user.presence;
        let is_offline = presence.shown == Status::Offline;
        Arc::new(Card {
            user: user.name.clone(),
            status: presence.shown,
            custom: presence.custom().filter(|_| !is_offline).map(Box::from),
            version: presence.version,
            seen_at: presence.seen_at,
            cause: is_offline.then_some(presence.cause),
        })
    }

    /// Looks at everybody with whom something happened, and tells whoever is interested.
    pub(super) fn on_presence_tick(&mut self) {
        let mut dirty: Vec<(UserIdx, Dirty)> = self.presence.dirty.drain().collect();
        dirty.sort_unstable_by_key(|(user, _)| *user);
        let mut parts: BTreeMap<ShardId, Vec<Entry>> = BTreeMap::new();
        for (user, dirty) in dirty {
            if self.users.at(user).is_some() {
                self.look_at(user, &dirty, &mut parts);
            }
        }
        self.send_parts(parts);
    }

    /// Looks now at those of these users with whom something happened: an answer about them is due.
    fn look_at_asked<'a>(&mut self, users: impl Iterator<Item = &'a UserId>) {
        let mut parts: BTreeMap<ShardId, Vec<Entry>> = BTreeMap::new();
        for user in users {
            if self.presence.dirty.is_empty() {
                break;
            }
            let Some(idx) = self.users.find(user.as_str()) else { continue };
            if let Some(dirty) = self.presence.dirty.remove(&idx) {
                self.look_at(idx, &dirty, &mut parts);
            }
        }
        self.send_parts(parts);
    }

    fn send_parts(&mut self, parts: BTreeMap<ShardId, Vec<Entry>>) {
        let clock = self.presence.clock;
        for (shard, entries) in parts {
            self.cx.stats.presence_told += entries.len() as u64;
            self.post(shard, Mail::Cards { entries, counts: Vec::new(), is_all: false, clock, gather: 0 });
        }
    }

    fn look_at(&mut self, idx: UserIdx, dirty: &Dirty, parts: &mut BTreeMap<ShardId, Vec<Entry>>) {
        let status = self.merged(idx);
        if self.open_conns(idx).is_empty() && self.users.get(idx).presence.ghosts().is_empty() {
            // Custom status goes with the last device: it is not to depend on how long a user stays in memory.
            self.users.get_mut(idx).presence.more = None;
        }
        let user = self.users.get(idx);
        let before = user.presence.shown;
        if status == before && (!dirty.is_forced || status == Status::Offline) {
            return;
        }
        let open = user.conns.iter().filter_map(|conn| self.sessions.get(*conn)).filter(|s| s.state != State::Loading);
        let active_at = open.map(|session| session.presence.active_at).max();
        self.presence.clock += 1;
        self.cx.stats.presence_changes += 1;
        if status != before {
            self.record_change(idx, status, dirty.noted.as_ref());
        }
        let presence = &mut self.users.get_mut(idx).presence;
        presence.version = self.presence.clock;
        presence.shown = status;
        // Who hides was last seen when they hid.
        presence.seen_at = match (status, active_at) {
            (Status::Offline, Some(_)) => self.cx.now,
            (_, active_at) => presence.seen_at.max(active_at.unwrap_or(0)),
        };
        let user = self.users.get(idx);
        let card = self.card(user);
        for (shard, interest) in (0..).map(ShardId).zip(&self.presence.interest) {
            if interest.is_empty() {
                continue;
            }
            let rooms = rooms_for(user, interest);
            let has_left = dirty.left.iter().any(|room| interest.rooms.contains_key(room));
            if !rooms.is_empty() || has_left || interest.users.contains(&user.name) {
                parts.entry(shard).or_default().push(Entry { card: card.clone(), rooms });
            }
        }
        if status != before {
            let members = user.standings.iter().filter(|standing| standing.role.is_member());
            let counted: Vec<RoomKey> = members.map(|standing| standing.room).collect();
            counted.into_iter().for_each(|room| self.note_counts(room));
        }
        if status == Status::Offline {
            self.presence.departed.add(card);
        } else if before == Status::Offline {
            self.presence.departed.remove(&card.user);
        }
    }

    /// The counts of a room may have changed.
    pub(super) fn note_counts(&mut self, room: RoomKey) {
        if self.presence.interest.iter().any(|interest| interest.rooms.get(&room) == Some(&true)) {
            if self.presence.counts_due.is_empty() {
                self.timers.set(self.cx.now + COUNTS_MS, Timer::PresenceCounts);
            }
            self.presence.counts_due.insert(room);
        }
    }

    pub(super) fn on_presence_counts(&mut self) {
        let due = std::mem::take(&mut self.presence.counts_due);
        let counts = self.count_rooms(&due);
        let clock = self.presence.clock;
        for shard in (0..self.cx.shards).map(ShardId) {
            let Some(interest) = self.presence.interest_of(shard) else { continue };
            let is_wanted = |(room, _): &(&RoomKey, &Counts)| interest.rooms.get(room) == Some(&true);
            let counts: Vec<_> = counts.iter().filter(is_wanted).map(|(room, counts)| (*room, *counts)).collect();
            if !counts.is_empty() {
                self.post(shard, Mail::Cards { entries: Vec::new(), counts, is_all: false, clock, gather: 0 });
            }
        }
    }

    /// This shard's users who are members of a room, ascending.
    fn members_here(&self, room: RoomKey) -> &[UserIdx] {
        let members = self.rooms.find_key(room).map_or(&[][..], |idx| &self.rooms.get(idx).standings);
        debug_assert!(
            self.users
                .indices()
                .into_iter()
                .filter(|idx| self.users.get(*idx).role(room).is_some_and(Role::is_member))
                .eq(members.iter().copied()),
            "a room lists the loaded users who have it among their memberships"
        );
        members
    }

    /// Present members of these rooms among this shard's users.
    fn count_rooms(&self, rooms: &BTreeSet<RoomKey>) -> BTreeMap<RoomKey, Counts> {
        let count = |room: &RoomKey| {
            let mut counts: Counts = [0; 3];
            for user in self.members_here(*room) {
                match self.users.get(*user).presence.shown {
                    Status::Online => counts[0] += 1,
                    Status::Away => counts[1] += 1,
                    Status::Busy => counts[2] += 1,
                    Status::Offline => {}
                }
            }
            (*room, counts)
        };
        rooms.iter().map(count).collect()
    }

    fn on_probe(&mut self, from: ShardId, interest: u64, held: u64) {
        let Some(known) = self.presence.interest_of(from) else { return };
        if known.digest() != interest {
            self.cx.stats.presence_refreshes += 1;
            return self.post(from, Mail::AskInterest);
        }
        let known = known.clone();
        let (entries, counts) = self.snapshot(from, &known);
        let mut digest = Digest::default();
        let visible = entries.iter().filter(|entry| entry.card.status != Status::Offline);
        visible.for_each(|entry| add_entry(&mut digest, entry));
        counts.iter().for_each(|(room, counts)| add_counts(&mut digest, *room, *counts));
        if digest.0 != held {
            self.cx.stats.presence_refreshes += 1;
            self.send_snapshot(from, &known, true, 0);
        }
    }

    // --------------------------------------------------------------------------------------------
    // As watcher

    /// Called before a watch is added: with the first one, views begin to be compared.
    pub(super) fn begin_watching(&mut self) {
        if !std::mem::replace(&mut self.presence.watching.is_probing, true) {
            self.timers.set(self.cx.now + u64::from(self.cx.limits.presence_refresh_ms), Timer::PresenceProbe);
        }
    }

    pub(super) fn on_presence_probe(&mut self) {
        if self.presence.watching.conns.is_empty() {
            self.presence.watching.is_probing = false;
            return;
        }
        self.timers.set(self.cx.now + u64::from(self.cx.limits.presence_refresh_ms), Timer::PresenceProbe);
        let has_switched = self.switch_modes();
        for shard in (0..self.cx.shards).map(ShardId) {
            if has_switched {
                self.tell_interest(shard);
                continue;
            }
            let interest = self.presence.watching.interest(shard);
            if shard != self.cx.shard && !interest.is_empty() {
                let held = self.presence.watching.digest(shard);
                self.post(shard, Mail::Probe { interest: interest.digest(), held });
            }
        }
    }

    /// Rooms that have grown past the bound for details, or shrunk below it.
    fn switch_modes(&mut self) -> bool {
        let max = self.cx.limits.presence_room_max;
        let mut switched = Vec::new();
        for (key, watched) in &mut self.presence.watching.rooms {
            let Some(idx) = self.rooms.find_key(*key) else { continue };
            let is_counted = self.rooms.get(idx).members > max;
            if is_counted != watched.is_counted {
                watched.is_counted = is_counted;
                watched.counts.fill([0; 3]);
                switched.push(*key);
            }
        }
        // Who watched in the other way begins anew, from nothing.
        for key in &switched {
            self.presence.watching.drop_room_cards(*key);
            self.say_room_anew(*key);
        }
        !switched.is_empty()
    }

    fn tell_interest(&mut self, owner: ShardId) {
        let interest = self.presence.watching.interest(owner);
        self.post(owner, Mail::Watch { interest, is_all: true, gather: 0 });
    }

    fn on_cards(&mut self, owner: ShardId, entries: Vec<Entry>, counts: &[(RoomKey, Counts)], all: Option<u64>) {
        if self.presence.watching.conns.is_empty() {
            // The word that nobody watches any more was lost.
            if owner != self.cx.shard && !entries.is_empty() {
                self.tell_interest(owner);
            }
            return;
        }
        let mut news = News::default();
        if let Some(clock) = all {
            let named: BTreeSet<UserId> = entries.iter().map(|entry| entry.card.user.clone()).collect();
            for entry in self.presence.watching.missing(owner, clock, &|user| named.contains(user)) {
                self.take(owner, entry, &mut news);
            }
        }
        entries.into_iter().for_each(|entry| self.take(owner, entry, &mut news));
        for (key, counts) in counts {
            let Some(room) = self.presence.watching.rooms.get_mut(key) else { continue };
            if let Some(part) = room.counts.get_mut(usize::from(owner.0))
                && part != counts
            {
                *part = *counts;
                news.counted.insert(*key);
            }
        }
        self.tell(&news);
    }

    fn take(&mut self, owner: ShardId, entry: Entry, news: &mut News) {
        debug_assert_eq!(shard_of(&entry.card.user, self.cx.shards), owner, "an owner speaks of its own users");
        let card = entry.card.clone();
        let told = self.presence.watching.apply(owner, entry);
        for room in told.left {
            // Told in detail when the room was not counted yet; the count says it now.
            if self.presence.watching.rooms.get(&room).is_some_and(|room| room.is_counted) {
                continue;
            }
            let gone = Card { status: Status::Offline, custom: None, cause: None, ..(*card).clone() };
            news.rooms.entry(room).or_default().push(Arc::new(gone));
        }
        if !told.is_for_user && told.rooms.is_empty() {
            return;
        }
        if told.is_for_user {
            let conns = self.presence.watching.users.get(&card.user).into_iter().flatten();
            for conn in conns.copied() {
                if !self.gathers.expects_user(conn, &card.user) {
                    news.conns.entry(conn).or_default().push(card.clone());
                }
            }
        }
        for room in told.rooms {
            news.rooms.entry(room).or_default().push(card.clone());
        }
    }

    /// Tells local watchers: one event for each room, and one for each connection that watches users.
    fn tell(&mut self, news: &News) {
        let class = Class::Low { key: 0 };
        for (conn, cards) in &news.conns {
            for part in chunks(cards) {
                self.cx.stats.presence_events += part.len() as u64;
                self.cx.send(*conn, class, |out| write_changed(out, None, part));
            }
        }
        for (key, cards) in &news.rooms {
            let Some(room) = self.presence.watching.rooms.get(key) else { continue };
            for part in chunks(cards) {
                self.cx.stats.presence_events += (part.len() * room.conns.len()) as u64;
                let conns = room.conns.iter().copied().filter(|conn| !self.gathers.expects_room(*conn, *key));
                let frame = Cx::frame(|out| write_changed(out, Some(room.name.as_str()), part));
                self.cx.fanout(conns, class, Frames::Owned(frame));
            }
        }
        for key in &news.counted {
            let watching = &self.presence.watching;
            let Some(room) = watching.rooms.get(key) else { continue };
            self.cx.stats.presence_events += room.conns.len() as u64;
            let frame = Cx::frame(|out| {
                out.extend_from_slice(b"{\"type\":\"presence:changed\"");
                field_string(out, "room", room.name.as_str());
                out.extend_from_slice(b",\"presence\":[]");
                watching.write_counts(out, *key);
                out.push(b'}');
            });
            let conns = room.conns.iter().copied().filter(|conn| !self.gathers.expects_room(*conn, *key));
            self.cx.fanout(conns, class, Frames::Owned(frame));
        }
    }

    /// What all who watch a room are to know of it, whole, past the lane that may lose something: written once.
    fn say_room_anew(&mut self, key: RoomKey) {
        let Some(room) = self.presence.watching.rooms.get(&key) else { return };
        let frame = Cx::frame(|out| write_whole(out, &self.presence.watching, key, room));
        self.cx.fanout(room.conns.iter().copied(), Class::Critical, Frames::Owned(frame));
    }

    /// Tells a connection that lost low events all that it watches, whole, past the lane that lost them.
    pub(super) fn say_watched(&mut self, conn: ConnKey) {
        let watching = &self.presence.watching;
        let Some(watches) = watching.conns.get(&conn) else { return };
        if !watches.users.is_empty() {
            self.cx.send(conn, Class::Critical, |out| {
                out.extend_from_slice(b"{\"type\":\"presence:changed\",\"presence\":[");
                watching.write_users(out, &watches.users);
                out.extend_from_slice(b"]}");
            });
        }
        for key in &watches.rooms {
            let Some(room) = watching.rooms.get(key) else { continue };
            self.cx.send(conn, Class::Critical, |out| write_whole(out, watching, *key, room));
        }
    }

    pub(super) fn unwatch_users<'a>(&mut self, conn: ConnKey, users: impl Iterator<Item = &'a UserId>) {
        let mut parts: BTreeMap<ShardId, Interest> = BTreeMap::new();
        for user in users {
            if self.presence.watching.unwatch_user(conn, user) {
                parts.entry(shard_of(user, self.cx.shards)).or_default().users.insert(user.clone());
            }
        }
        parts.into_iter().for_each(|(shard, interest)| self.post(shard, Mail::Unwatch(interest)));
    }

    pub(super) fn unwatch_room(&mut self, conn: ConnKey, key: RoomKey) {
        if self.presence.watching.unwatch_room(conn, key) {
            for shard in (0..self.cx.shards).map(ShardId) {
                let rooms = BTreeMap::from([(key, false)]);
                self.post(shard, Mail::Unwatch(Interest { rooms, ..Interest::default() }));
            }
        }
    }
}

/// Whom to tell what.
#[derive(Default)]
struct News {
    conns: BTreeMap<ConnKey, Vec<Arc<Card>>>,
    rooms: BTreeMap<RoomKey, Vec<Arc<Card>>>,
    counted: BTreeSet<RoomKey>,
}

/// The rooms of a user that are watched in detail.
fn rooms_for(user: &User, interest: &Interest) -> Box<[RoomKey]> {
    if interest.rooms.is_empty() {
        return Box::default();
    }
    let standings = user.standings.iter().filter(|standing| standing.role.is_member());
    standings.map(|standing| standing.room).filter(|room| interest.rooms.get(room) == Some(&false)).collect()
}

/// Cards in parts that make events of a bounded size.
fn chunks(cards: &[Arc<Card>]) -> impl Iterator<Item = &[Arc<Card>]> {
    // A card has at most 64 bytes of name, 128 characters of custom status and 120 bytes around them.
    cards.chunks(EVENT_BYTES / 256)
}

/// A room as one knows it who knows nothing of it yet.
fn write_whole(out: &mut Vec<u8>, watching: &Watching, key: RoomKey, room: &WatchedRoom) {
    out.extend_from_slice(b"{\"type\":\"presence:changed\"");
    field_string(out, "room", room.name.as_str());
    out.extend_from_slice(b",\"whole\":true,\"presence\":[");
    watching.write_members(out, key);
    out.push(b']');
    watching.write_counts(out, key);
    out.push(b'}');
}

fn write_changed(out: &mut Vec<u8>, room: Option<&str>, cards: &[Arc<Card>]) {
    out.extend_from_slice(b"{\"type\":\"presence:changed\"");
    if let Some(room) = room {
        field_string(out, "room", room);
    }
    out.extend_from_slice(b",\"presence\":[");
    for (at, card) in cards.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"" } else { b"," });
        card.write_open(out);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}
