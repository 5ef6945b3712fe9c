//! Questions of presence that several shards have a part of: `presence:subscribe`, `presence:get` and
//! the statuses in `room:members`. Answered once every part is there, or after a short while with
//! what is there, since what shards tell each other may be lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::auth::Want;
use super::super::event::{ConnKey, ShardId};
use super::super::presence::mail::{Interest, Mail, write_open};
use super::super::presence::unique;
use super::super::presence::watch::{WATCHED_ROOMS_MAX, WATCHED_USERS_MAX};
use super::super::session::State;
use super::super::shard::Shard;
use super::super::shard_of;
use super::super::timers::Timer;
use super::super::users::User;
use super::Call;
use crate::protocol::command::{CommandId, PresenceOf, Status};
use crate::protocol::encode::{field_integer, field_raw, field_string, string};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{Role, RoomKey, UserId};

/// How long an answer waits for the parts of other shards, ms.
const GATHER_MS: u64 = 250;

/// What is asked.
#[derive(Debug)]
pub enum Sought {
    /// Cards of these, which this connection watches from now on.
    Users(Vec<UserId>),
    /// The members of a room, which this connection watches from now on.
    Room(RoomKey),
    /// `presence:get`.
    People { asked: Vec<UserId>, found: HashMap<UserId, Box<str>, ahash::RandomState> },
    /// `room:members`; the connection is parked.
    Members { members: Vec<(UserId, Role)>, more: bool, found: HashMap<UserId, Status, ahash::RandomState> },
}

impl Sought {
    /// True for snapshots, which begin a watch.
    fn is_watch(&self) -> bool {
        matches!(self, Self::Users(_) | Self::Room(_))
    }
}

/// A snapshot that a connection waits for: what is in it they are told by the answer, and by no event before.
#[derive(Debug)]
struct Snapshot {
    gather: u64,
    room: Option<RoomKey>,
    /// Ascending.
    users: Box<[UserId]>,
}

#[derive(Debug)]
struct Gather {
    call: Call,
    /// Parts that are missing.
    left: usize,
    what: Sought,
}

/// All questions that wait.
#[derive(Debug, Default)]
pub struct Gathers {
    last: u64,
    waiting: HashMap<u64, Gather, ahash::RandomState>,
    /// Those of them that are snapshots.
    snapshots: BTreeSet<u64>,
    /// Snapshots whose own parts are there, while parts are missing that somebody asked for before: who
    /// watches what others watch already asks nobody again.
    behind: Vec<(u64, Call, Sought)>,
    /// Who waits for which snapshots.
    expected: HashMap<ConnKey, Vec<Snapshot>, ahash::RandomState>,
}

impl Gathers {
    /// True when the answer to come tells this connection of the room.
    pub(super) fn expects_room(&self, conn: ConnKey, key: RoomKey) -> bool {
        self.expected.get(&conn).is_some_and(|all| all.iter().any(|snapshot| snapshot.room == Some(key)))
    }

    /// True when the answer to come tells this connection of the user.
    pub(super) fn expects_user(&self, conn: ConnKey, user: &UserId) -> bool {
        self.expected
            .get(&conn)
            .is_some_and(|all| all.iter().any(|snapshot| snapshot.users.binary_search(user).is_ok()))
    }

    fn expect(&mut self, gather: u64, conn: ConnKey, what: &Sought) {
        let (room, mut users): (_, Box<[UserId]>) = match what {
            Sought::Room(key) => (Some(*key), Box::default()),
            Sought::Users(users) => (None, users.as_slice().into()),
            Sought::People { .. } | Sought::Members { .. } => return,
        };
        users.sort_unstable();
        self.snapshots.insert(gather);
        self.expected.entry(conn).or_default().push(Snapshot { gather, room, users });
    }

    fn forget(&mut self, gather: u64, conn: ConnKey) {
        if let Some(all) = self.expected.get_mut(&conn) {
            all.retain(|snapshot| snapshot.gather != gather);
            if all.is_empty() {
                self.expected.remove(&conn);
            }
        }
    }
}

impl Shard {
    pub(super) fn on_presence_subscribe(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        of: &PresenceOf<'_>,
    ) -> Result<(), Refusal> {
        let call = Call { conn, id: id.cloned() };
        match of {
            PresenceOf::Users(users) => self.watch_users(call, unique(users)),
            PresenceOf::Room(room) => self.watch_room(call, room),
        }
    }

    fn watch_users(&mut self, call: Call, users: Vec<UserId>) -> Result<(), Refusal> {
        let watches = self.presence.watching.conns.get(&call.conn);
        let held = watches.map_or(0, |watches| watches.users.len());
        let is_new = |user: &&UserId| watches.is_none_or(|watches| !watches.users.contains(*user));
        if held + users.iter().filter(is_new).count() > WATCHED_USERS_MAX {
            return Err(Refusal::new(ErrorCode::LimitExceeded, "a connection watches at most 1000 users"));
        }
        self.begin_watching();
        let mut parts: BTreeMap<ShardId, Interest> = BTreeMap::new();
        for user in &users {
            if self.presence.watching.watch_user(call.conn, user) {
                let owner = shard_of(user, self.cx.shards);
                parts.entry(owner).or_default().users.insert(user.clone());
            }
        }
        self.gather_watch(call, Sought::Users(users), parts);
        Ok(())
    }

    fn watch_room(&mut self, call: Call, room: &str) -> Result<(), Refusal> {
        let Some(idx) = self.find_room(call.conn, room, Want::Read)? else { return Ok(()) };
        self.check_right(call.conn, idx, Want::Read)?;
        let room = self.rooms.get(idx);
        let (key, name) = (room.key, room.name.clone());
        let is_counted = room.members > self.cx.limits.presence_room_max;
        let watches = self.presence.watching.conns.get(&call.conn);
        if watches.is_some_and(|w| !w.rooms.contains(&key) && w.rooms.len() >= WATCHED_ROOMS_MAX) {
            return Err(Refusal::new(ErrorCode::LimitExceeded, "a connection watches at most 16 rooms"));
        }
        // Every shard is asked for the members that it has.
        self.take_user_tokens(call.conn, 1, "too many watches of rooms")?;
        self.begin_watching();
        let mut parts = BTreeMap::new();
        if self.presence.watching.watch_room(call.conn, key, &name, is_counted) {
            for shard in 0..self.cx.shards {
                let rooms = BTreeMap::from([(key, is_counted)]);
                parts.insert(ShardId(shard), Interest { rooms, ..Interest::default() });
            }
        }
        self.gather_watch(call, Sought::Room(key), parts);
        Ok(())
    }

    pub(super) fn on_presence_unsubscribe(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        of: &PresenceOf<'_>,
    ) -> Result<(), Refusal> {
        match of {
            PresenceOf::Users(users) => self.unwatch_users(conn, unique(users).iter()),
            PresenceOf::Room(room) => {
                // A watched room stays loaded.
                if let Some(idx) = self.rooms.find(room) {
                    self.unwatch_room(conn, self.rooms.get(idx).key);
                }
            }
        }
        self.cx.ok(conn, id, |_| {});
        Ok(())
    }

    pub(super) fn on_presence_get(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        users: &[&str],
    ) -> Result<(), Refusal> {
        let asked = unique(users);
        let call = Call { conn, id: id.cloned() };
        self.gather_people(call, &asked.clone(), Sought::People { asked, found: HashMap::default() });
        Ok(())
    }

    fn gather_watch(&mut self, call: Call, what: Sought, parts: BTreeMap<ShardId, Interest>) {
        let mail = |interest| move |gather| Mail::Watch { interest, is_all: false, gather };
        let parts = parts.into_iter().map(|(shard, interest)| (shard, mail(interest))).collect();
        self.gather(call, what, parts);
    }

    pub(super) fn gather_people(&mut self, call: Call, users: &[UserId], what: Sought) {
        let is_brief = matches!(what, Sought::Members { .. });
        let mut parts: BTreeMap<ShardId, Vec<UserId>> = BTreeMap::new();
        for user in users {
            parts.entry(shard_of(user, self.cx.shards)).or_default().push(user.clone());
        }
        let mail = |users| move |gather| Mail::Get { users, is_brief, gather };
        let parts = parts.into_iter().map(|(shard, users)| (shard, mail(users))).collect();
        self.gather(call, what, parts);
    }

    fn gather<F: FnOnce(u64) -> Mail>(&mut self, call: Call, what: Sought, parts: Vec<(ShardId, F)>) {
        self.gathers.last += 1;
        let gather = self.gathers.last;
        self.gathers.expect(gather, call.conn, &what);
        self.gathers.waiting.insert(gather, Gather { call, left: parts.len(), what });
        if parts.is_empty() {
            return self.on_gathered(gather);
        }
        for (shard, mail) in parts {
            self.post(shard, mail(gather));
        }
        if self.gathers.waiting.contains_key(&gather) {
            self.timers.set(self.cx.now + GATHER_MS, Timer::Gather(gather));
        }
    }

    /// One part more is there.
    pub(super) fn on_part(&mut self, gather: u64, people: Vec<(UserId, Status, Box<str>)>) {
        let Some(waiting) = self.gathers.waiting.get_mut(&gather) else { return };
        match &mut waiting.what {
            Sought::People { found, .. } => found.extend(people.into_iter().map(|(user, _, json)| (user, json))),
            Sought::Members { found, .. } => found.extend(people.into_iter().map(|(user, status, _)| (user, status))),
            Sought::Users(_) | Sought::Room(_) => {}
        }
        waiting.left = waiting.left.saturating_sub(1);
        if waiting.left == 0 {
            self.on_gathered(gather);
        }
    }

    pub(super) fn on_gather_late(&mut self, gather: u64) {
        if self.gathers.waiting.contains_key(&gather) {
            self.cx.stats.presence_partial += 1;
            self.on_gathered(gather);
        }
    }

    fn on_gathered(&mut self, gather: u64) {
        let Some(Gather { call, what, .. }) = self.gathers.waiting.remove(&gather) else { return };
        if !what.is_watch() {
            return self.answer_gather(&call, what);
        }
        self.gathers.snapshots.remove(&gather);
        self.gathers.behind.push((gather, call, what));
        let oldest = self.gathers.snapshots.first().copied().unwrap_or(u64::MAX);
        let mut ready: Vec<_> = self.gathers.behind.extract_if(.., |(gather, ..)| *gather < oldest).collect();
        ready.sort_unstable_by_key(|(gather, ..)| *gather);
        for (gather, call, what) in ready {
            self.gathers.forget(gather, call.conn);
            self.answer_gather(&call, what);
        }
    }

    fn answer_gather(&mut self, call: &Call, what: Sought) {
        if self.sessions.get(call.conn).is_none() {
            return;
        }
        match what {
            Sought::Users(users) => self.say_users(call, &users),
            Sought::Room(key) => self.say_room(call, key),
            Sought::People { asked, found } => self.cx.ok(call.conn, call.id.as_ref(), |out| {
                field_raw(out, "presence", b"[");
                for (at, user) in asked.iter().enumerate() {
                    out.extend_from_slice(if at == 0 { b"" } else { b"," });
                    match found.get(user) {
                        Some(json) => out.extend_from_slice(json.as_bytes()),
                        None => {
                            write_open(out, user, Status::Offline, None);
                            out.extend_from_slice(b",\"devices\":[]}");
                        }
                    }
                }
                out.push(b']');
            }),
            Sought::Members { members, more, found } => {
                let status = |user: &UserId| found.get(user).copied().unwrap_or(Status::Offline);
                self.say_members(call, &members, more, status);
            }
        }
    }

    fn say_users(&mut self, call: &Call, users: &[UserId]) {
        let watching = &self.presence.watching;
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_raw(out, "presence", b"[");
            watching.write_users(out, users);
            out.push(b']');
        });
    }

    fn say_room(&mut self, call: &Call, key: RoomKey) {
        let watching = &self.presence.watching;
        // Gone again when the right ended meanwhile, or the client thought better of it; others may watch the room.
        let is_watched = watching.conns.get(&call.conn).is_some_and(|watches| watches.rooms.contains(&key));
        self.cx.ok(call.conn, call.id.as_ref(), |out| {
            field_raw(out, "presence", b"[");
            if is_watched {
                watching.write_members(out, key);
            }
            out.push(b']');
            if is_watched {
                watching.write_counts(out, key);
            }
        });
    }

    /// What this shard says of its own users to whoever asks; nothing of those it knows nothing of.
    pub(super) fn people(&self, users: Vec<UserId>, is_brief: bool) -> Vec<(UserId, Status, Box<str>)> {
        let describe = |name: UserId| {
            let user = self.users.find(name.as_str()).map(|idx| self.users.get(idx));
            let user = user.filter(|user| user.presence.shown != Status::Offline);
            let departed = self.presence.departed.get(name.as_str());
            let status = user.map_or(Status::Offline, |user| user.presence.shown);
            if is_brief {
                return (status != Status::Offline).then(|| (name, status, Box::default()));
            }
            let mut out = Vec::with_capacity(128);
            match (user, departed) {
                (Some(user), _) => self.write_person(&mut out, user),
                (None, Some(card)) => {
                    card.write_open(&mut out);
                    out.extend_from_slice(b",\"devices\":[]}");
                }
                (None, None) => return None,
            }
            let json = String::from_utf8(out).expect("JSON is written from texts");
            Some((name, status, json.into_boxed_str()))
        };
        users.into_iter().filter_map(describe).collect()
    }

    fn write_person(&self, out: &mut Vec<u8>, user: &User) {
        let sessions = user.conns.iter().filter_map(|conn| self.sessions.get(*conn));
        let open = sessions.filter(|session| session.state != State::Loading);
        let ghosts = user.presence.ghosts().iter().map(|ghost| (&ghost.device, &ghost.presence));
        let devices = open.map(|session| (&session.device, &session.presence)).chain(ghosts);
        let active_at = devices.clone().map(|(_, presence)| presence.active_at).max().unwrap_or(user.presence.seen_at);
        write_open(out, &user.name, user.presence.shown, user.presence.custom());
        field_integer(out, "last_seen", active_at.max(user.presence.seen_at));
        field_integer(out, "last_activity", active_at);
        field_raw(out, "devices", b"[");
        for (at, (device, presence)) in devices.enumerate() {
            out.extend_from_slice(if at == 0 { b"{\"device\":" } else { b",{\"device\":" });
            string(out, device.as_str());
            field_string(out, "status", presence.device().status().as_str());
            field_string(out, "activity", presence.activity(self.cx.now).as_str());
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }

    /// Forgets what a connection watches.
    pub(super) fn unwatch_all(&mut self, conn: ConnKey) {
        let Some(watches) = self.presence.watching.conns.get(&conn) else { return };
        let (users, rooms) = (watches.users.clone(), watches.rooms.clone());
        self.unwatch_users(conn, users.iter());
        rooms.into_iter().for_each(|room| self.unwatch_room(conn, room));
    }
}
