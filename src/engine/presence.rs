//! Presence: many devices, one status per user, and who wants to hear of it.
//!
//! The user's own shard (the *owner*) holds the truth. Other shards hold *cards*: copies of what is
//! shown of a user, for the local connections that watch. An owner keeps an [`Interest`] for each
//! shard, not for each watcher, and tells each interested shard a change once; that shard tells its
//! watchers. So the cost of a change grows with shards and watchers, never with pairs of users.
//!
//! What travels may be lost. Each card has a version that only grows at its owner, so that late or
//! doubled news is ignored; and a watching shard regularly sends a digest of its interest and of its
//! cards ([`Mail::Probe`]), which the owner compares with its own and sends all anew when they differ.
//!
//! Only data and rules are here; what happens on which input is in `handle/presence*.rs`. Who is
//! present is not durable: after a restart nobody is who has not connected again. What is kept of the
//! past is in [`history`].

pub mod history;
pub mod kept;
pub mod mail;
pub mod watch;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::event::{ConnKey, ShardId};
use super::users::UserIdx;
use crate::protocol::command::{Activity, Status};
use crate::protocol::ids::{DeviceId, RoomKey, UnixMillis, UserId};
use history::Recorder;
use mail::{Card, Interest};
use watch::Watching;

/// How long `typing` holds unless it is repeated, ms.
pub const TYPING_MS: u64 = 10_000;

/// Users whose last sight is remembered after they left memory.
const DEPARTED_MAX: usize = 16_384;

/// What one device counts for in its user's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// What was chosen; `Offline` hides the user.
    pub chosen: Status,
    /// Nothing was done on it for some time.
    pub is_idle: bool,
}

impl Device {
    /// What the device alone shows: an idle one that chose `online` is away.
    pub fn status(self) -> Status {
        match self.chosen {
            Status::Online if self.is_idle => Status::Away,
            chosen => chosen,
        }
    }
}

/// A user's one status, of all their devices:
/// no device, or any that is invisible: offline; else any that is busy: busy; else the most present.
pub fn merge(devices: impl IntoIterator<Item = Device>) -> Status {
    let rank = |status| match status {
        Status::Away => 1,
        Status::Online => 2,
        Status::Busy => 3,
        // Invisible hides all.
        Status::Offline => 4,
    };
    devices.into_iter().map(Device::status).max_by_key(|status| rank(*status)).unwrap_or(Status::Offline)
}

/// Why a user's status changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A device came.
    Connect,
    /// Somebody chose it.
    Set,
    /// Nothing was done for some time.
    Idle,
    /// Something was done again.
    Active,
    /// The client said goodbye, or its user hides: others cannot tell these apart.
    Clean,
    /// The connection broke, fell silent or did not read.
    Timeout,
    /// The server ended it.
    Kicked,
    /// The same device connected again, and did not stay.
    Replaced,
    /// The token ran out.
    Expired,
    /// The server was stopped.
    Drain,
    /// The server ended without a stop, and found out at its next start.
    ServerRestart,
}

impl Cause {
    /// All of them, in the order of their numbers in the store.
    pub const ALL: [Self; 11] = [
        Self::Connect,
        Self::Set,
        Self::Idle,
        Self::Active,
        Self::Clean,
        Self::Timeout,
        Self::Kicked,
        Self::Replaced,
        Self::Expired,
        Self::Drain,
        Self::ServerRestart,
    ];

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Set => "set",
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Clean => "clean",
            Self::Timeout => "timeout",
            Self::Kicked => "kicked",
            Self::Replaced => "replaced",
            Self::Expired => "expired",
            Self::Drain => "drain",
            Self::ServerRestart => "server_restart",
        }
    }

    /// True when a device is gone for this cause.
    pub const fn is_departure(self) -> bool {
        !matches!(self, Self::Connect | Self::Set | Self::Idle | Self::Active)
    }

    /// The cause that others are told of a change: of what was `noted` last, and why the last device
    /// went. Who hides looks like somebody who went, and who shows themselves like somebody who came.
    pub fn of_change(before: Status, after: Status, noted: Option<Self>, went: Self) -> Self {
        match noted {
            Some(cause) if after == Status::Offline && cause.is_departure() => cause,
            Some(Self::Set) if after == Status::Offline => Self::Clean,
            _ if after == Status::Offline => went,
            _ if before == Status::Offline => Self::Connect,
            Some(cause) => cause,
            None => Self::Set,
        }
    }
}

/// One device's presence, kept with its session.
#[derive(Debug, Clone, Copy)]
pub struct DevicePresence {
    /// When it came; a return within its grace is no new coming.
    pub began: UnixMillis,
    /// When something was last done on it.
    pub active_at: UnixMillis,
    /// What its user chose for it.
    pub chosen: Status,
    /// What it is used for.
    pub activity: Activity,
    /// Nothing was done for `idle_after_ms`, or it said so.
    pub is_idle: bool,
    /// The client has said goodbye.
    pub said_goodbye: bool,
}

impl DevicePresence {
    /// A device that has just come.
    pub const fn new(now: UnixMillis) -> Self {
        Self {
            began: now,
            active_at: now,
            chosen: Status::Online,
            activity: Activity::Active,
            is_idle: false,
            said_goodbye: false,
        }
    }

    /// What counts for the user's status.
    pub const fn device(&self) -> Device {
        Device { chosen: self.chosen, is_idle: self.is_idle }
    }

    /// What the device is used for right now.
    pub fn activity(&self, now: UnixMillis) -> Activity {
        match self.activity {
            _ if self.is_idle => Activity::Idle,
            Activity::Typing if now >= self.active_at + TYPING_MS => Activity::Active,
            activity => activity,
        }
    }
}

/// A device that is gone and still counts.
#[derive(Debug)]
pub struct Ghost {
    /// Which.
    pub device: DeviceId,
    /// As it was.
    pub presence: DevicePresence,
    /// Why it went.
    pub cause: Cause,
    /// Until when.
    pub until: UnixMillis,
}

/// What is seldom there.
#[derive(Debug, Default)]
pub struct More {
    /// Custom status; empty: none.
    pub custom: Box<str>,
    /// Devices within their grace.
    pub ghosts: Vec<Ghost>,
}

/// One user's presence, kept with the loaded user: 40 bytes for whom it does not concern further.
#[derive(Debug)]
pub struct UserPresence {
    /// Of what was last shown; 0: never anything.
    pub version: u64,
    /// When a device of theirs was last active or went.
    pub seen_at: UnixMillis,
    /// When what is shown last changed; 0: not since they were loaded.
    pub since: UnixMillis,
    /// Custom status and grace.
    pub more: Option<Box<More>>,
    /// What others see.
    pub shown: Status,
    /// Why their last device went.
    pub cause: Cause,
}

impl Default for UserPresence {
    fn default() -> Self {
        Self { version: 0, seen_at: 0, since: 0, more: None, shown: Status::Offline, cause: Cause::Clean }
    }
}

impl UserPresence {
    /// Devices within their grace.
    pub fn ghosts(&self) -> &[Ghost] {
        self.more.as_deref().map_or(&[], |more| &more.ghosts)
    }

    /// Custom status, if one is set.
    pub fn custom(&self) -> Option<&str> {
        self.more.as_deref().map(|more| &*more.custom).filter(|custom| !custom.is_empty())
    }

    /// Others see nothing of them, and nothing is pending.
    pub fn is_gone(&self) -> bool {
        self.shown == Status::Offline && self.ghosts().is_empty()
    }

    /// Takes the ghosts for which `is_over` holds.
    pub fn end_ghosts(&mut self, is_over: impl Fn(&Ghost) -> bool) -> Option<Ghost> {
        let more = self.more.as_deref_mut()?;
        let mut last = None;
        while let Some(at) = more.ghosts.iter().position(&is_over) {
            last = Some(more.ghosts.remove(at));
        }
        if more.ghosts.is_empty() {
            more.ghosts = Vec::new();
            if more.custom.is_empty() {
                self.more = None;
            }
        }
        last
    }
}

/// What is to be looked at again at the next tick.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Told even when the status is the same: the custom status or a membership changed.
    pub is_forced: bool,
    /// What happened last, and on which device.
    pub noted: Option<(Cause, DeviceId)>,
    /// Rooms whose membership ended.
    pub left: Vec<RoomKey>,
}

/// The last activity of a user that a room was told.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    /// When.
    pub at: UnixMillis,
    /// Which.
    pub kind: Activity,
    /// A later one, of another kind, that waits for its time.
    pub held: Option<(ConnKey, Activity)>,
}

/// Users whom others last saw some time ago, bounded: the oldest are forgotten.
#[derive(Debug, Default)]
pub struct Departed {
    cards: HashMap<UserId, Arc<Card>, ahash::RandomState>,
    order: VecDeque<(UserId, u64)>,
}

impl Departed {
    /// A user went offline with this last card.
    pub fn add(&mut self, card: Arc<Card>) {
        self.order.push_back((card.user.clone(), card.version));
        self.cards.insert(card.user.clone(), card);
        while self.order.len() > DEPARTED_MAX {
            let Some((user, version)) = self.order.pop_front() else { break };
            if self.cards.get(&user).is_some_and(|card| card.version == version) {
                self.cards.remove(&user);
            }
        }
    }

    /// A user is back.
    pub fn remove(&mut self, user: &UserId) {
        self.cards.remove(user);
    }

    /// The last card of a user.
    pub fn get(&self, user: &str) -> Option<&Arc<Card>> {
        self.cards.get(user)
    }
}

/// A shard's part of presence: as owner of its users, and as watcher of everybody's.
#[derive(Debug)]
pub struct Presence {
    /// What each shard, this one included, wants to hear of this shard's users.
    pub interest: Vec<Interest>,
    /// Users to be looked at at the next tick.
    pub dirty: HashMap<UserIdx, Dirty, ahash::RandomState>,
    /// Version of the last change.
    pub clock: u64,
    /// Last sights.
    pub departed: Departed,
    /// Rooms whose counts changed.
    pub counts_due: BTreeSet<RoomKey>,
    /// Activities that were passed on a moment ago.
    pub passed: HashMap<(UserIdx, RoomKey), Passed, ahash::RandomState>,
    /// What is watched here.
    pub watching: Watching,
    /// What the store is to keep.
    pub recorder: Recorder,
}

impl Presence {
    /// Nobody is present, nobody watches. `boot` names the shard's life.
    pub fn new(shard: ShardId, shards: u16, boot: u64, now: UnixMillis) -> Self {
        Self {
            interest: (0..shards.max(1)).map(|_| Interest::default()).collect(),
            dirty: HashMap::default(),
            // Past every version of an earlier life, whichever shard a user was on then, unless it made a million changes
            // a second; and below 2^53, up to which JSON's readers count.
            clock: now * 1_000,
            departed: Departed::default(),
            counts_due: BTreeSet::new(),
            passed: HashMap::default(),
            watching: Watching::new(shards),
            recorder: Recorder::new(shard, boot),
        }
    }

    /// Whether some shard watches this room.
    pub fn is_room_watched(&self, room: RoomKey) -> bool {
        self.interest.iter().any(|interest| interest.rooms.contains_key(&room))
    }

    /// The interest of a shard.
    pub fn interest_of(&mut self, shard: ShardId) -> Option<&mut Interest> {
        self.interest.get_mut(usize::from(shard.0))
    }
}

/// A sum of hashes: the same for equal sets in any order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// Adds one element.
    pub fn add(&mut self, element: impl std::hash::Hash) {
        self.0 = self.0.wrapping_add(ahash::RandomState::with_seeds(11, 13, 17, 19).hash_one(element));
    }
}

/// Keeps each name once, in the order of their first place.
pub fn unique(names: &[&str]) -> Vec<UserId> {
    let mut seen = HashSet::with_capacity(names.len());
    names.iter().filter(|name| seen.insert(**name)).filter_map(|name| UserId::parse(name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn device() -> impl Strategy<Value = Device> {
        let chosen = prop_oneof![
            4 => Just(Status::Online),
            2 => Just(Status::Away),
            2 => Just(Status::Busy),
            1 => Just(Status::Offline)
        ];
        (chosen, any::<bool>()).prop_map(|(chosen, is_idle)| Device { chosen, is_idle })
    }

    proptest! {
        /// The rule in words, one clause after the other.
        #[test]
        fn the_merge_rule(devices in prop::collection::vec(device(), 0..6)) {
            let any = |is: &dyn Fn(&Device) -> bool| devices.iter().any(is);
            let due = if devices.is_empty() || any(&|d| d.chosen == Status::Offline) {
                Status::Offline
            } else if any(&|d| d.chosen == Status::Busy) {
                Status::Busy
            } else if any(&|d| d.chosen == Status::Online && !d.is_idle) {
                Status::Online
            } else {
                Status::Away
            };
            prop_assert_eq!(merge(devices.iter().copied()), due);
            // Order is no matter, and a twin changes nothing.
            prop_assert_eq!(merge(devices.iter().rev().copied()), due);
            prop_assert_eq!(merge(devices.iter().chain(devices.first()).copied()), due);
        }
    }

    #[test]
    fn typing_ends_by_itself_and_idle_hides_it() {
        let mut device = DevicePresence { activity: Activity::Typing, ..DevicePresence::new(1_000) };
        assert_eq!(device.activity(10_999), Activity::Typing);
        assert_eq!(device.activity(11_000), Activity::Active);
        device.is_idle = true;
        assert_eq!(device.activity(1_000), Activity::Idle);
    }

    #[test]
    fn a_later_life_begins_past_the_versions_of_an_earlier_one() {
        let clock = |shard, shards, now| Presence::new(ShardId(shard), shards, 1, now).clock;
        let now = 1_795_560_000_000;
        let busy_for_a_second = clock(1, 2, now) + 500_000;
        assert!(clock(0, 1, now + 1_000) > busy_for_a_second);
        let in_two_centuries = now + 200 * 365 * 86_400_000;
        assert!(clock(0, 1, in_two_centuries) < 1 << 53, "every JSON parser keeps it whole");
    }

    #[test]
    fn last_sights_are_bounded_and_the_newest_of_a_user_stays() {
        let card = |name: &str, version| {
            Arc::new(Card {
                user: UserId::parse(name).unwrap(),
                status: Status::Offline,
                custom: None,
                version,
                seen_at: version,
                cause: None,
            })
        };
        let mut departed = Departed::default();
        departed.add(card("alice", 1));
        departed.add(card("alice", 2));
        for number in 0..DEPARTED_MAX as u64 - 1 {
            departed.add(card(&format!("u{number}"), 3 + number));
        }
        assert_eq!(departed.get("alice").map(|card| card.version), Some(2), "only its older sight went");
        departed.add(card("last", 1_000_000));
        assert!(departed.get("alice").is_none());
        assert!(departed.cards.len() <= DEPARTED_MAX && departed.order.len() <= DEPARTED_MAX);
    }
}
