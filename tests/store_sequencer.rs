//! The sequencer against a naive model: random appends in random batches, some of which fail, some
//! of which fail and stand all the same. Every answer and every entry must be the model's.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use antiphon::engine::event::{Append, CommittedBatch, Entry, NewMessage, ReadAdvance, ShardId, Token};
use antiphon::engine::sequencer::memory::MemoryLog;
use antiphon::engine::sequencer::{LogEnd, Sequencer, SequencerConfig, may_write};
use antiphon::protocol::command::Manage;
use antiphon::protocol::encode::EventKind;
use antiphon::protocol::error::{ErrorCode, Refusal};
use antiphon::protocol::ids::{Priority, Role, RoomKey, RoomKind, RoomName, UserId};
use proptest::prelude::*;

const WINDOW_MS: u64 = 50;
const ROOMS_MAX: usize = 3;
const USERS: [&str; 5] = ["ann", "ben", "cat", "dan", "eve"];
const ROOMS: [&str; 4] = ["r0", "r1", "r2", "r3"];

/// What is asked, by index into the names above.
#[derive(Debug, Clone)]
enum Ask {
    Message { room: usize, author: usize, client_id: Option<u8>, seen_back: u64 },
    Create { room: usize, kind: RoomKind, creator: usize, members: Vec<usize> },
    Join { room: usize, user: usize, auto_create: bool },
    Leave { room: usize, user: usize },
    Manage { room: usize, by: usize, by_admin: bool, user: usize, act: Manage },
    Read { room: usize, user: usize, seq: u64 },
}

/// One batch: what is asked, how long after the last, and what becomes of its commit.
#[derive(Debug, Clone)]
struct Step {
    asks: Vec<Ask>,
    pause_ms: u64,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Commits,
    Fails,
    /// Reported as failed; found in the log afterwards.
    StandsAfterAll,
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Banned), Just(Role::Member), Just(Role::Moderator), Just(Role::Owner)]
}

fn act() -> impl Strategy<Value = Manage> {
    prop_oneof![role().prop_map(Manage::Invite), Just(Manage::Kick), Just(Manage::Ban), role().prop_map(Manage::Role),]
}

fn ask() -> impl Strategy<Value = Ask> {
    let (room, user) = (0..ROOMS.len(), 0..USERS.len());
    let kind = prop_oneof![Just(RoomKind::Public), Just(RoomKind::Private), Just(RoomKind::Direct)];
    prop_oneof![
        6 => (room.clone(), user.clone(), prop::option::of(0..6u8), 0..6u64)
            .prop_map(|(room, author, client_id, seen_back)| Ask::Message { room, author, client_id, seen_back }),
        1 => (room.clone(), kind, user.clone(), prop::collection::vec(user.clone(), 0..4))
            .prop_map(|(room, kind, creator, members)| Ask::Create { room, kind, creator, members }),
        2 => (room.clone(), user.clone(), any::<bool>())
            .prop_map(|(room, user, auto_create)| Ask::Join { room, user, auto_create }),
        1 => (room.clone(), user.clone()).prop_map(|(room, user)| Ask::Leave { room, user }),
        4 => (room.clone(), user.clone(), prop::bool::weighted(0.2), user.clone(), act())
            .prop_map(|(room, by, by_admin, user, act)| Ask::Manage { room, by, by_admin, user, act }),
        1 => (room, user, 1..30u64).prop_map(|(room, user, seq)| Ask::Read { room, user, seq }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![8 => Just(Fate::Commits), 1 => Just(Fate::Fails), 1 => Just(Fate::StandsAfterAll)];
    (prop::collection::vec(ask(), 1..8), 0..30u64, fate).prop_map(|(asks, pause_ms, fate)| Step {
        asks,
        pause_ms,
        fate,
    })
}

// ------------------------------------------------------------------------------------------------
// The model: one append at a time, everything recomputed from plain maps.

#[derive(Debug, Clone, Default)]
struct Model {
    rooms: Vec<ModelRoom>,
    position: u64,
    /// Author and client id → room, seq, ts, each time it was stored.
    sent: BTreeMap<(usize, u8), (u64, u64, u64)>,
    cursors: BTreeMap<(usize, usize), u64>,
    /// Cursors that a reader moved, not a join.
    told: BTreeMap<(usize, usize), u64>,
}

#[derive(Debug, Clone)]
struct ModelRoom {
    name: usize,
    kind: RoomKind,
    roles: BTreeMap<usize, Role>,
    /// Who had which role from which position on, for checks as of an earlier position.
    past: Vec<(u64, usize, Option<Role>)>,
    log: Vec<(u64, EventKind)>,
}

type Said = Result<(u64, u64, bool), ErrorCode>;

impl Model {
    fn room(&self, name: usize) -> Option<usize> {
        self.rooms.iter().position(|room| room.name == name)
    }

    fn rooms_of(&self, user: usize) -> usize {
        self.rooms.iter().filter(|room| room.roles.get(&user).is_some_and(|role| role.is_member())).count()
    }

    fn head(&self, at: usize) -> u64 {
        self.rooms[at].log.len() as u64
    }

    fn push(&mut self, at: usize, kind: EventKind) -> Said {
        self.position += 1;
        self.rooms[at].log.push((self.position, kind));
        Ok((at as u64 + 1, self.head(at), false))
    }

    fn set(&mut self, at: usize, user: usize, role: Option<Role>, kind: EventKind) -> Said {
        let said = self.push(at, kind);
        let (position, head) = (self.position, self.head(at));
        let room = &mut self.rooms[at];
        let is_in = |role: Option<Role>| role.is_some_and(Role::is_member);
        if is_in(role) && !is_in(room.roles.get(&user).copied()) {
            self.cursors.insert((at, user), head);
        }
        room.past.push((position, user, role));
        match role {
            Some(role) => room.roles.insert(user, role),
            None => room.roles.remove(&user),
        };
        said
    }

    fn could_write_at(&self, at: usize, user: usize, position: u64) -> bool {
        let past = self.rooms[at].past.iter().rev().find(|(from, who, _)| *who == user && *from <= position);
        may_write(self.rooms[at].kind, past.and_then(|(_, _, role)| *role))
    }

    fn apply(&mut self, ask: &Ask, now: u64) -> Said {
        let found = |name: &usize| self.room(*name).ok_or(ErrorCode::UnknownRoom);
        match ask {
            Ask::Message { room, author, client_id, .. } => {
                let at = found(room)?;
                if let Some(&(room, seq, ts)) = client_id.and_then(|id| self.sent.get(&(*author, id)))
                    && now < ts + WINDOW_MS
                {
                    return if room == at as u64 + 1 { Ok((room, seq, true)) } else { Err(ErrorCode::Conflict) };
                }
                if !may_write(self.rooms[at].kind, self.rooms[at].roles.get(author).copied()) {
                    return Err(ErrorCode::PermissionDenied);
                }
                let (room, seq, _) = self.push(at, EventKind::MessageCreated)?;
                if let Some(id) = client_id {
                    self.sent.insert((*author, *id), (room, seq, now));
                }
                Ok((room, seq, false))
            }
            Ask::Create { room, kind, creator, members } => self.create(*room, *kind, *creator, members),
            Ask::Join { room, user, auto_create } => match self.room(*room) {
                None if *auto_create => self.create(*room, RoomKind::Public, *user, &[]),
                None => Err(ErrorCode::UnknownRoom),
                Some(at) => match (self.rooms[at].roles.get(user), self.rooms[at].kind) {
                    (Some(Role::Banned), _) => Err(ErrorCode::PermissionDenied),
                    (Some(_), _) => Ok((at as u64 + 1, self.head(at), false)),
                    (None, RoomKind::Public) if self.rooms_of(*user) >= ROOMS_MAX => Err(ErrorCode::LimitExceeded),
                    (None, RoomKind::Public) => self.set(at, *user, Some(Role::Member), EventKind::RoomJoined),
                    (None, _) => Err(ErrorCode::PermissionDenied),
                },
            },
            Ask::Leave { room, user } => {
                let at = found(room)?;
                let roles = &self.rooms[at].roles;
                let members = roles.values().filter(|role| role.is_member()).count();
                let others_own = roles.iter().any(|(who, role)| who != user && *role == Role::Owner);
                match roles.get(user) {
                    None | Some(Role::Banned) => Err(ErrorCode::NotFound),
                    Some(Role::Owner) if self.rooms[at].kind == RoomKind::Private && members > 1 && !others_own => {
                        Err(ErrorCode::PermissionDenied)
                    }
                    Some(_) => self.set(at, *user, None, EventKind::RoomLeft),
                }
            }
            Ask::Manage { room, by, by_admin, user, act } => {
                let at = found(room)?;
                self.manage(at, *by, *by_admin, *user, *act)
            }
            Ask::Read { room, user, seq } => {
                let at = found(room)?;
                if !self.rooms[at].roles.get(user).is_some_and(|role| role.is_member()) {
                    return Err(ErrorCode::PermissionDenied);
                }
                let head = self.head(at);
                let cursor = self.cursors.entry((at, *user)).or_default();
                let moves = (*seq).min(head) > *cursor;
                *cursor = (*cursor).max((*seq).min(head));
                let cursor = *cursor;
                if moves {
                    self.told.insert((at, *user), cursor);
                }
                Ok((at as u64 + 1, cursor, false))
            }
        }
    }

    fn create(&mut self, name: usize, kind: RoomKind, creator: usize, members: &[usize]) -> Said {
        if self.room(name).is_some() {
            return Err(ErrorCode::Conflict);
        }
        let mut members: Vec<usize> = members.iter().copied().filter(|user| *user != creator).collect();
        members.sort();
        members.dedup();
        if members.iter().chain([&creator]).any(|user| self.rooms_of(*user) >= ROOMS_MAX) {
            return Err(ErrorCode::LimitExceeded);
        }
        self.rooms.push(ModelRoom { name, kind, roles: BTreeMap::new(), past: Vec::new(), log: Vec::new() });
        let at = self.rooms.len() - 1;
        let mut said = self.set(at, creator, Some(Role::Owner), EventKind::RoomJoined);
        for user in members {
            said = self.set(at, user, Some(Role::Member), EventKind::RoomJoined);
        }
        said
    }

    fn manage(&mut self, at: usize, by: usize, by_admin: bool, user: usize, act: Manage) -> Said {
        let (kind, roles) = (self.rooms[at].kind, &self.rooms[at].roles);
        let power = |who: usize| match roles.get(&who) {
            Some(Role::Owner) => 3,
            Some(Role::Moderator) => 2,
            Some(Role::Member) => 1,
            _ => 0,
        };
        let mine = if by_admin { 4 } else { power(by) };
        let old = roles.get(&user).copied();
        let owners = roles.values().filter(|role| **role == Role::Owner).count();
        let same = Ok((at as u64 + 1, self.head(at), false));
        if mine < 2 {
            return Err(ErrorCode::PermissionDenied);
        }
        let lifts = matches!(act, Manage::Role(_)) && old == Some(Role::Banned);
        let may_in_direct = by_admin && (lifts || matches!(act, Manage::Kick | Manage::Ban));
        if kind == RoomKind::Direct && !may_in_direct {
            return Err(ErrorCode::PermissionDenied);
        }
        let (new, event) = match (act, old) {
            (Manage::Invite(Role::Banned | Role::Owner), _) => return Err(ErrorCode::BadRequest),
            (Manage::Invite(_), Some(Role::Banned)) => return Err(ErrorCode::PermissionDenied),
            (Manage::Invite(Role::Moderator), Some(Role::Member)) => return Err(ErrorCode::Conflict),
            (Manage::Invite(_), Some(_)) => return same,
            (Manage::Invite(Role::Moderator), None) if mine < 3 => return Err(ErrorCode::PermissionDenied),
            (Manage::Invite(role), None) => (Some(role), EventKind::RoomJoined),
            (Manage::Kick, None | Some(Role::Banned)) => return Err(ErrorCode::NotFound),
            (Manage::Kick | Manage::Ban, _) if power(user) >= mine => return Err(ErrorCode::PermissionDenied),
            (Manage::Kick, _) => (None, EventKind::RoomKicked),
            (Manage::Ban, Some(Role::Banned)) => return same,
            (Manage::Ban, _) => (Some(Role::Banned), EventKind::RoomKicked),
            (Manage::Role(Role::Banned), _) => return Err(ErrorCode::BadRequest),
            (Manage::Role(_), None) => return Err(ErrorCode::NotFound),
            (Manage::Role(Role::Member), Some(Role::Banned)) => (Some(Role::Member), EventKind::RoomRoleChanged),
            (Manage::Role(_), Some(Role::Banned)) => return Err(ErrorCode::BadRequest),
            (Manage::Role(_), _) if mine < 3 => return Err(ErrorCode::PermissionDenied),
            (Manage::Role(role), Some(Role::Owner)) if role != Role::Owner && owners == 1 && !by_admin => {
                return Err(ErrorCode::PermissionDenied);
            }
            (Manage::Role(role), Some(old)) if role == old => return same,
            (Manage::Role(role), Some(_)) => (Some(role), EventKind::RoomRoleChanged),
        };
        let gains = new.is_some_and(Role::is_member) && !old.is_some_and(Role::is_member);
        if gains && self.rooms_of(user) >= ROOMS_MAX {
            return Err(ErrorCode::LimitExceeded);
        }
        self.set(at, user, new, event)
    }
}

// ------------------------------------------------------------------------------------------------
// The real one

fn name(index: usize) -> UserId {
    UserId::parse(USERS[index]).unwrap()
}

fn room(index: usize) -> RoomName {
    RoomName::parse(ROOMS[index]).unwrap()
}

/// The ask as an entry. Rooms are known by key only where the model knows them.
fn entry(ask: &Ask, model: &Model) -> Entry {
    let key = |room: &usize| RoomKey(model.room(*room).map_or(999, |at| at as u64 + 1));
    match ask {
        Ask::Message { room, author, client_id, .. } => Entry::Message(NewMessage {
            room: key(room),
            author: name(*author),
            by_admin: false,
            client_id: client_id.map(|id| id.to_string().into()),
            fields: "\"body\":\"x\"".into(),
            thread: None,
            audience: None,
            priority: Priority::Normal,
            mentions: Box::default(),
            reads: false,
        }),
        Ask::Create { room: index, kind, creator, members } => Entry::CreateRoom {
            room: room(*index),
            kind: *kind,
            title: None,
            creator: name(*creator),
            members: members.iter().map(|user| name(*user)).collect(),
        },
        Ask::Join { room: index, user, auto_create } => {
            Entry::Join { room: room(*index), user: name(*user), auto_create: *auto_create }
        }
        Ask::Leave { room: index, user } => Entry::Leave { room: room(*index), user: name(*user) },
        Ask::Manage { room: index, by, by_admin, user, act } => {
            Entry::Manage { room: room(*index), by: name(*by), by_admin: *by_admin, user: name(*user), act: *act }
        }
        Ask::Read { room, user, seq } => Entry::Read { room: key(room), user: name(*user), seq: *seq },
    }
}

/// Messages only reach the core when their author's shard allowed them as of some position.
fn passes_the_shard(ask: &Ask, committed: &Model, seen: u64) -> bool {
    match ask {
        Ask::Message { room, author, .. } => {
            committed.room(*room).is_some_and(|at| committed.could_write_at(at, *author, seen))
        }
        Ask::Read { room, .. } => committed.room(*room).is_some(),
        _ => true,
    }
}

fn said(batch: &CommittedBatch) -> Vec<Said> {
    let result = |outcome: &antiphon::engine::event::Outcome| match &outcome.result {
        Ok(done) => Ok((done.room.0, done.seq, done.duplicate)),
        Err(refusal) => Err(refusal.code),
    };
    batch.outcomes[0].iter().map(result).collect()
}

/// The invariants of every batch, and the entries it adds to each room.
fn check_batch(batch: &CommittedBatch, before: &Model, after: &Model) {
    assert_eq!((batch.first, batch.last), (before.position + 1, after.position));
    let mut positions = Vec::new();
    let mut bytes_end = 0;
    for pair in batch.runs.windows(2) {
        assert!(pair[0].room < pair[1].room);
    }
    for run in &batch.runs {
        let at = run.room.0 as usize - 1;
        let model = &after.rooms[at];
        let from = before.rooms.get(at).map_or(0, |room| room.log.len());
        let entries: Vec<_> = run.entries.iter().map(|entry| (entry.position, entry.kind)).collect();
        assert_eq!(entries, model.log[from..]);
        assert_eq!(run.name, room(model.name));
        assert_eq!(run.members as usize, model.roles.values().filter(|role| role.is_member()).count());
        for (entry, seq) in run.entries.iter().zip(from as u64 + 1..) {
            assert_eq!(entry.seq, seq);
            assert_eq!(entry.span.start, bytes_end, "frames lie back to back");
            bytes_end = entry.span.end;
            let json: serde_json::Value = serde_json::from_slice(&batch.bytes[entry.json_span()]).unwrap();
            assert_eq!((&json["seq"], &json["type"]), (&seq.into(), &entry.kind.as_str().into()));
        }
        positions.extend(entries.iter().map(|entry| entry.0));
    }
    assert_eq!(bytes_end as usize, batch.bytes.len());
    positions.sort_unstable();
    assert_eq!(positions, (before.position + 1..=after.position).collect::<Vec<_>>());
}

fn check_reads(reads: &[ReadAdvance], before: &Model, after: &Model) {
    let mut expected: Vec<_> = after
        .told
        .iter()
        .filter(|(pair, seq)| before.told.get(pair).copied().unwrap_or(0) < **seq)
        .map(|((at, user), seq)| (RoomKey(*at as u64 + 1), name(*user), *seq))
        .collect();
    let mut told: Vec<_> = reads.iter().map(|read| (read.room, read.user.clone(), read.seq)).collect();
    expected.sort();
    told.sort();
    assert_eq!(told, expected);
}

fn run(steps: Vec<Step>, rooms_cached_max: usize, losses_max: usize) {
    let config = SequencerConfig {
        dedupe_window_ms: WINDOW_MS as u32,
        rooms_max: ROOMS_MAX as u32,
        rooms_cached_max,
        losses_max,
        ..SequencerConfig::default()
    };
    let mut core = Sequencer::new(config, LogEnd::default());
    let (mut log, mut model) = (MemoryLog::default(), Model::default());
    let mut now = 1_000;
    for step in steps {
        now += step.pause_ms;
        let before = model.clone();
        let (mut after, mut appends, mut expected) = (model.clone(), Vec::new(), Vec::new());
        for ask in &step.asks {
            let back = if let Ask::Message { seen_back, .. } = ask { *seen_back } else { 0 };
            let seen = before.position.saturating_sub(back);
            if passes_the_shard(ask, &before, seen) {
                let token = Token(appends.len() as u64);
                appends.push(Append { shard: ShardId(0), token, seen, entry: entry(ask, &before) });
                expected.push(after.apply(ask, now));
            }
        }
        let Ok(decided) = core.decide(appends, now, &mut log);
        assert_eq!(core.position(), before.position, "nothing stands before the commit");
        if step.fate != Fate::Fails {
            log.apply(&decided);
        }
        if step.fate == Fate::Commits {
            let batch = core.commit(decided);
            assert_eq!(said(&batch), expected);
            check_batch(&batch, &before, &after);
            check_reads(&batch.reads, &before, &after);
            model = after;
            continue;
        }
        let failed = core.fail(decided, &Refusal::new(ErrorCode::Degraded, "unknown"));
        assert!(said(&failed.refused).iter().all(|said| *said == Err(ErrorCode::Degraded)));
        assert_eq!((failed.refused.first, failed.refused.last), (before.position + 1, before.position));
        if step.fate == Fate::StandsAfterAll {
            let rows: Vec<_> = log.rows[before.position as usize..].to_vec();
            let known = rows.iter().filter_map(|row| {
                Some((row.author.as_ref()?.as_str(), row.client_id.as_deref()?, row.room, row.seq, row.ts))
            });
            core.adopt(log.end(), known);
            check_batch(&failed.held, &before, &after);
            check_reads(&failed.held.reads, &before, &after);
            model = after;
        }
    }
    // What a store would keep is what the model has.
    for (at, room) in model.rooms.iter().enumerate() {
        let key = RoomKey(at as u64 + 1);
        assert_eq!(log.rooms[&key].head, room.log.len() as u64);
        let roles: BTreeMap<_, _> = room.roles.iter().map(|(user, role)| ((key, name(*user)), *role)).collect();
        let kept: BTreeMap<_, _> =
            log.roles.iter().filter(|((room, _), _)| *room == key).map(|(pair, role)| (pair.clone(), *role)).collect();
        assert_eq!(kept, roles);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_sequencer_is_the_model(
        steps in prop::collection::vec(step(), 1..30),
        rooms_cached_max in 0..4usize,
        losses_max in 0..4usize,
    ) {
        run(steps, rooms_cached_max, losses_max);
    }
}
