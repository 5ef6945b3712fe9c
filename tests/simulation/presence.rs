//! P8: presence is honest. What clients hold of others' presence, and its comparison with the truth
//! once everything is quiet: what each user's connected devices chose, merged by the rule.

use std::collections::BTreeMap;

use antiphon::engine::presence::{Cause, Device, merge};
use antiphon::protocol::command::Status;
use antiphon::protocol::ids::UserId;
use serde_json::Value;

use crate::World;
use crate::checker::Reader;
use crate::link::Phase;

/// One room as its watcher sees it.
#[derive(Debug, Default)]
struct RoomView {
    people: BTreeMap<String, (u64, String)>,
    counts: Option<[u64; 3]>,
}

/// What one connection knows of presence.
#[derive(Debug, Default)]
pub struct PresenceView {
    /// What this device chose, and was told is so.
    pub chosen: Option<&'static str>,
    /// With the command that last began the watch. Commands are handled in order; replies may pass
    /// each other.
    watched: BTreeMap<String, u64>,
    /// With the command that last ended it.
    ended: BTreeMap<String, u64>,
    people: BTreeMap<String, (u64, String)>,
    rooms: BTreeMap<String, RoomView>,
}

/// The rule for clients: what is older than what is known is ignored.
fn learn(people: &mut BTreeMap<String, (u64, String)>, value: &Value) {
    for card in value["presence"].as_array().expect("presence is a list") {
        let user = card["user"].as_str().expect("a card names its user").to_owned();
        let status = card["status"].as_str().expect("a card has a status").to_owned();
        let version = card["version"].as_u64().unwrap_or(u64::MAX);
        match people.get_mut(&user) {
            Some(known) if version == u64::MAX => known.1 = status,
            Some(known) if known.0 > version => {}
            Some(known) => *known = (version, status),
            None => {
                people.insert(user, (if version == u64::MAX { 0 } else { version }, status));
            }
        }
    }
}

fn counts_of(value: &Value) -> Option<[u64; 3]> {
    let counts = value.get("counts")?;
    Some(["online", "away", "busy"].map(|status| counts[status].as_u64().expect("counts are numbers")))
}

impl PresenceView {
    pub fn hear_changed(&mut self, value: &Value) {
        let Some(room) = value["room"].as_str() else { return learn(&mut self.people, value) };
        let view = self.rooms.entry(room.to_owned()).or_default();
        if value["whole"] == Value::Bool(true) {
            *view = RoomView::default();
        }
        view.counts = counts_of(value);
        learn(&mut view.people, value);
    }

    pub fn watch_users(&mut self, users: Vec<String>, value: &Value) {
        learn(&mut self.people, value);
        let id = value["id"].as_u64().expect("ids come back");
        for user in users {
            if self.ended.get(&user).is_none_or(|ended| *ended < id) {
                let began = self.watched.entry(user).or_default();
                *began = id.max(*began);
            }
        }
    }

    pub fn unwatch_users(&mut self, users: Vec<String>, value: &Value) {
        let id = value["id"].as_u64().expect("ids come back");
        for user in users {
            if self.watched.get(&user).is_some_and(|began| *began < id) {
                self.watched.remove(&user);
            }
            let ended = self.ended.entry(user).or_default();
            *ended = id.max(*ended);
        }
    }

    pub fn watch_room(&mut self, room: &str, value: &Value) {
        let view = self.rooms.entry(room.to_owned()).or_default();
        *view = RoomView { counts: counts_of(value), ..RoomView::default() };
        learn(&mut view.people, value);
    }
}

/// Runs until nobody came or went for so long that every grace is over and every view was compared.
/// A token that was issued before the healing may still run out, and its client comes again.
pub fn calm_down(world: &mut World) {
    let limits = &world.plan.limits;
    let calm_ms = u64::from(limits.grace_ms + limits.presence_tick_ms + 3 * limits.presence_refresh_ms + 3_000);
    for _ in 0..20 {
        let before = world.uses.clone();
        world.run(world.now + calm_ms);
        if world.uses == before {
            break;
        }
    }
}

/// What each user shows, by the devices whose connections stand. Nothing when nobody can tell: who finds
/// no room may have left a half-open connection behind, of which only the server knows.
fn truth(world: &World) -> Option<BTreeMap<&str, Status>> {
    if world.plan.limits.shard_connections_max < 100 {
        return None;
    }
    let mut devices: BTreeMap<&str, Vec<Device>> = BTreeMap::new();
    for (number, client) in world.clients.iter().enumerate() {
        let is_up = world.uses[number].is_some_and(|link| world.links[link].phase == Phase::Open);
        if is_up && let Some(chosen) = client.presence.chosen.and_then(Status::parse) {
            devices.entry(client.user.as_str()).or_default().push(Device { chosen, is_idle: false });
        }
    }
    Some(devices.into_iter().map(|(user, devices)| (user, merge(devices))).collect())
}

/// Compares every watcher's view with the truth; tells how many views there were.
pub fn check_converged(world: &World) -> u64 {
    let Some(truth) = truth(world) else { return 0 };
    let status = |user: &str| truth.get(user).copied().unwrap_or(Status::Offline);
    let mut views = 0;
    for (number, client) in world.clients.iter().enumerate() {
        if world.uses[number].is_none() {
            continue;
        }
        let view = &client.presence;
        for user in view.watched.keys() {
            let seen = view.people.get(user).map_or("nothing", |(_, status)| status);
            assert_eq!(seen, status(user).as_str(), "P8: client {number} sees {user} so: {view:?}");
            views += 1;
        }
        let reader = Reader { user: &client.user, is_admin: client.is_admin };
        for (room, seen) in &view.rooms {
            // Whoever was put out of a room meanwhile does not watch it any more.
            if !world.checker.may_read_now(&reader, room) || !world.checker.is_unbroken(&client.user, room) {
                continue;
            }
            check_room(world, number, room, seen, &status);
            views += 1;
        }
    }
    views
}

/// What the store keeps of presence: the last transition of each user is the truth, and no transition
/// came twice or was lost on the way, whatever became of the commits that carried them.
pub fn check_kept(world: &World) {
    let kept = &world.store.log.kept.presence;
    let mut last: BTreeMap<&str, Status> = BTreeMap::new();
    for ((user, ts), transition) in &kept.log {
        let before = last.insert(user.as_str(), transition.status).unwrap_or(Status::Offline);
        assert_ne!(before, transition.status, "P8: {user} at {ts} changes to what they were: {transition:?}");
        let is_end = transition.status == Status::Offline;
        assert!(!is_end || transition.cause.is_departure(), "P8: nobody went: {transition:?}");
        assert!(is_end || transition.cause != Cause::ServerRestart, "P8: a restart brings nobody: {transition:?}");
    }
    for (user, (status, _)) in &kept.shown {
        assert_eq!(last.get(user.as_str()), Some(status), "P8: {user} is shown otherwise than they last changed");
    }
    if let Some(truth) = truth(world) {
        let shown = kept.shown.iter().map(|(user, (status, _))| (user.as_str(), *status)).collect();
        let due: BTreeMap<&str, Status> = truth.into_iter().filter(|(_, status)| *status != Status::Offline).collect();
        assert_eq!(due, shown, "P8: what the store shows is not who is here");
    }
}

/// The server dies twice in a row: everybody who was here is offline once, for the restart.
pub fn check_lost(world: &mut World) {
    let count = |world: &World| world.store.log.kept.presence.log.len();
    let shown: Vec<UserId> = world.store.log.kept.presence.shown.keys().cloned().collect();
    let before = count(world);
    world.crash();
    assert_eq!(count(world), before + shown.len(), "P8: one transition for each user who was lost");
    for user in &shown {
        let kept = &world.store.log.kept.presence;
        let (_, last) = kept.log.range((user.clone(), 0)..=(user.clone(), u64::MAX)).next_back().expect("was shown");
        assert_eq!((last.status, last.cause), (Status::Offline, Cause::ServerRestart), "P8: {user}");
        assert!(last.lost_ts.is_some_and(|lost_ts| lost_ts <= last.ts), "P8: {user}");
    }
    world.crash();
    assert_eq!(count(world), before + shown.len(), "P8: the second restart lost nobody");
    assert!(world.store.log.kept.presence.shown.is_empty(), "P8: nobody has come yet");
}

fn check_room(world: &World, number: usize, room: &str, seen: &RoomView, status: &dyn Fn(&str) -> Status) {
    let members = world.checker.members(room);
    if members.len() > world.plan.limits.presence_room_max as usize {
        let count = |wanted| members.iter().filter(|user| status(user.as_str()) == wanted).count() as u64;
        let due = [Status::Online, Status::Away, Status::Busy].map(count);
        assert_eq!(seen.counts, Some(due), "P8: client {number} counts {room} so: {seen:?}");
        return;
    }
    for user in members {
        let is = seen.people.get(user.as_str()).map_or("offline", |(_, status)| status);
        assert_eq!(is, status(user.as_str()).as_str(), "P8: client {number} sees {user} in {room} so: {seen:?}");
    }
}
