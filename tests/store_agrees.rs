//! The database against the log in memory: the same appends through both give the same answers, and
//! leave the same rooms, members, cursors and entries, restarts and failed commits in between.

#![allow(clippy::unwrap_used)]

mod store_support;

use antiphon::engine::edits::{MessageState, current_fields, subject};
use antiphon::engine::event::{Amend, AmendAct, Append, Entry, Outcome, Page, Query};
use antiphon::engine::sequencer::memory::MemoryLog;
use antiphon::engine::sequencer::{LogEnd, Sequencer};
use antiphon::protocol::command::Manage;
use antiphon::protocol::error::{ErrorCode, Refusal};
use antiphon::protocol::ids::{DeviceId, Role, RoomKey, RoomKind};
use antiphon::store::{Durability, RoomLog};
use store_support::*;

/// SplitMix64: the same seed, the same run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize].clone()
    }
}

const USERS: [&str; 6] = ["ann", "ben", "cat", "dan", "eve", "fay"];
const ROOMS: [&str; 5] = ["r0", "r1", "r2", "r3", "r4"];

fn entry(random: &mut Random) -> Entry {
    let (name, who, whom) = (random.of(&ROOMS), random.of(&USERS), random.of(&USERS));
    let key = RoomKey(random.below(6));
    match random.below(28) {
        0..10 => {
            let id = random.below(40).to_string();
            message(key, who, (random.below(3) > 0).then_some(id.as_str()), "x")
        }
        10 => create(name, random.of(&[RoomKind::Public, RoomKind::Private, RoomKind::Direct]), who, &[whom]),
        11..13 => join(name, who),
        13 => leave(name, who),
        14 => read(key, who, random.below(60)),
        20..28 => {
            let target = 1 + random.below(12);
            let emoji: Box<str> = random.of(&["+", "-", "\"q\""]).into();
            let act = match random.below(8) {
                0 => AmendAct::Delete,
                1..4 => AmendAct::Edit {
                    body_json: format!("\"b{}\"", random.below(100)).into(),
                    version: (random.below(2) == 0).then(|| 1 + random.below(3)),
                },
                4 | 5 => AmendAct::Unreact(emoji),
                _ => AmendAct::React(emoji),
            };
            let by_admin = random.below(4) == 0;
            Entry::Amend(Box::new(Amend { room: key, target, by: user(who), by_admin, act }))
        }
        15 => Entry::Delivered {
            room: key,
            user: user(who),
            device: device(random.of(&["a", "b"])),
            seq: random.below(60),
        },
        _ => {
            let roles = [Role::Member, Role::Moderator, Role::Owner];
            let act = match random.below(5) {
                0 | 1 => Manage::Invite(random.of(&roles)),
                2 => Manage::Kick,
                3 => Manage::Ban,
                _ => Manage::Role(random.of(&roles)),
            };
            let by_admin = random.below(4) == 0;
            Entry::Manage { room: room(name), by: user(who), by_admin, user: user(whom), act }
        }
    }
}

type Said = Result<(u64, u64, bool, u64), (ErrorCode, Option<u64>)>;

fn said(outcomes: &[Outcome]) -> Vec<Said> {
    let one = |outcome: &Outcome| match &outcome.result {
        Ok(done) => Ok((done.room.0, done.seq, done.duplicate, done.value)),
        Err(refusal) => Err((refusal.code, refusal.current)),
    };
    outcomes.iter().map(one).collect()
}

#[test]
fn the_database_is_the_log_in_memory() {
    for seed in 0..6 {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let dir = TempDir::new();
    let mut config = config(&dir);
    config.durability = Durability::Relaxed;
    config.breaker.failures_max = 1_000;
    (config.sequencer.rooms_max, config.sequencer.rooms_cached_max, config.sequencer.losses_max) = (4, 2, 2);
    let mut store = Store::open(&config);
    let (mut log, mut core) = (MemoryLog::default(), Sequencer::new(config.sequencer.clone(), LogEnd::default()));
    for round in 0..150 {
        let count = 1 + random.below(8);
        // As if every shard had looked a few entries ago: old enough to be doubtful at times.
        let seen = store.position().saturating_sub(random.below(6));
        let appends: Vec<Append> = (0..count).map(|_| Append { seen, ..store.append(entry(&mut random)) }).collect();
        let fate = random.below(12);
        let faults = store.running().faults();
        match fate {
            0 => faults.fail_before_commit(1),
            1 => faults.fail_after_commit(1),
            _ => {}
        }
        store.log.submit(appends.clone()).unwrap();
        let now = 1_700_000_000_000 + round;
        let Ok(decided) = core.decide(appends.clone(), now, &mut log);
        // A batch that writes nothing has no commit that could fail: the fault waits for the next.
        let fails = fate < 2 && !decided.is_empty();
        if fate < 2 && !fails {
            store.running().faults().fail_before_commit(0);
            store.running().faults().fail_after_commit(0);
        }
        if !fails || fate == 1 {
            log.apply(&decided);
        }
        let told = store.batch();
        if !fails {
            let expected = core.commit(decided);
            assert_eq!(said(&told.outcomes[0]), said(&expected.outcomes[0]), "seed {seed} round {round}");
            assert_eq!((told.first, told.last), (expected.first, expected.last));
            let shape = |batch: &antiphon::engine::event::CommittedBatch| {
                let entry = |e: &antiphon::engine::event::LogEntry| (e.seq, e.position, e.kind, e.change.clone());
                let run = |r: &antiphon::engine::event::RoomRun| {
                    (r.room, r.name.clone(), r.kind, r.members, r.entries.iter().map(entry).collect::<Vec<_>>())
                };
                batch.runs.iter().map(run).collect::<Vec<_>>()
            };
            assert_eq!(shape(&told), shape(&expected), "seed {seed} round {round}");
        } else {
            assert!(said(&told.outcomes[0]).iter().all(|said| *said == Err((ErrorCode::Degraded, None))));
            let failed = core.fail(decided, &Refusal::new(ErrorCode::Degraded, "unknown"));
            if fate == 1 {
                let known: Vec<_> = log.rows.iter().skip(core.position() as usize).cloned().collect();
                let known = known.iter().filter_map(|row| {
                    Some((row.author.as_ref()?.as_str(), row.client_id.as_deref()?, row.room, row.seq, row.ts))
                });
                core.adopt(log.end(), known);
                // The next batch brings it along, even if it decides nothing itself.
                store.submit(vec![read(RoomKey(77), "ann", 1)]);
                let found = store.batch();
                assert_eq!(
                    (found.first, found.last),
                    (failed.held.first, failed.held.last),
                    "seed {seed} round {round}"
                );
                assert_eq!(store.batch().outcomes[0].len(), 1);
            }
        }
        if random.below(40) == 0 {
            store.stop();
            store = Store::open(&config);
            core = Sequencer::new(config.sequencer.clone(), log.end());
            for row in log.rows.iter().rev() {
                if let (Some(author), Some(id)) = (&row.author, &row.client_id) {
                    assert!(core.remember_older(author.as_str(), id, row.room, (row.seq, row.ts), row.ts));
                }
            }
        }
    }
    compare(&store, &log);
    store.stop();
    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    assert!(report.faults.is_empty(), "seed {seed}: {:?}", report.faults);
}

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

/// History shows messages as they stand. When a message was edited is the clock's to say.
fn compare_current(store: &Store, log: &MemoryLog, key: RoomKey) {
    for newest in [false, true] {
        let all = Query::History {
            room: key,
            after: 0,
            before: u64::MAX,
            newest,
            thread: None,
            current: true,
            limit: 10_000,
            bytes_max: u32::MAX,
        };
        let Page::History { json, entries, .. } = store.page(all) else { panic!("history") };
        let rows = log.rows.iter().filter(|row| row.room == key);
        for (entry, row) in entries.iter().zip(rows) {
            let text = std::str::from_utf8(&json[entry.span.start as usize..entry.span.end as usize]).unwrap();
            let state = subject(row.kind, row.seq, &row.fields).and_then(|seq| log.states.get(&(key, seq)));
            let fields = match state {
                None => row.fields.to_string(),
                Some(state) => {
                    let ts = text
                        .split_once("\"edited_ts\":")
                        .map_or(0, |(_, rest)| rest.split([',', '}']).next().unwrap().parse().unwrap());
                    let state = MessageState { edited_ts: ts, ..state.clone() };
                    let reactions = log.reaction_counts(key, row.seq);
                    current_fields(row.kind, &row.fields, row.thread, &state, &reactions)
                }
            };
            assert!(text.ends_with(&format!(",{fields}}}")), "{text} with {fields}");
        }
    }
}

fn compare(store: &Store, log: &MemoryLog) {
    assert_eq!(store.position(), log.rows.len() as u64);
    assert!(log.rooms.len() >= 3, "the run did something");
    for (key, expected) in &log.rooms {
        let Page::Room { room: Some(row), .. } = store.page(Query::Room(expected.name.clone())) else {
            panic!("a room")
        };
        assert_eq!((row.key, row.head, row.members, row.kind), (*key, expected.head, expected.members, expected.kind));
        // Hashes take in the time, which is each log's own; `store_unread` has them.
        assert_eq!(row.tally.messages, expected.tally.messages);
        let all: Vec<(RoomKey, u64)> = (0..=expected.head + 1).map(|seq| (*key, seq)).collect();
        let Page::Tallies(tallies) = store.page(Query::Tallies(all)) else { panic!("tallies") };
        let counts: Vec<_> = tallies.into_iter().map(|tally| tally.map(|tally| tally.messages)).collect();
        let due = (0..=expected.head + 1).map(|seq| log.tally(*key, seq).map(|tally| tally.messages));
        assert_eq!(counts, due.collect::<Vec<_>>());
        let Page::Members { members, .. } = store.page(Query::Members { room: *key, after: None, limit: 100 }) else {
            panic!("members")
        };
        let kept = log.roles.iter().filter(|((room, _), role)| room == key && role.is_member());
        assert_eq!(members, kept.map(|((_, user), role)| (user.clone(), *role)).collect::<Vec<_>>());
        let (json, entries) = store.every_entry(*key);
        let rows: Vec<_> = log.rows.iter().filter(|row| row.room == *key).collect();
        assert_eq!(entries.len(), rows.len());
        for (entry, row) in entries.iter().zip(rows) {
            let object = &json[entry.span.start as usize..entry.span.end as usize];
            let object: serde_json::Value = serde_json::from_slice(object).unwrap();
            assert_eq!((entry.seq, &object["type"]), (row.seq, &row.kind.as_str().into()));
            assert_eq!(object["author"].as_str(), row.author.as_ref().map(|author| author.as_str()));
            assert_eq!(object["client_id"].as_str(), row.client_id.as_deref());
            let fields: serde_json::Value = serde_json::from_str(&format!("{{{}}}", row.fields)).unwrap();
            for (name, value) in fields.as_object().unwrap() {
                assert_eq!(&object[name], value);
            }
        }
        compare_current(store, log, *key);
    }
    assert!(log.states.len() >= 3 && log.reactions.len() >= 2, "messages were edited and reacted to");
    assert!(log.states.values().any(|state| state.deleted));
    for ((room, name, which), seq) in &log.delivered {
        let again = Entry::Delivered { room: *room, user: name.clone(), device: which.clone(), seq: 1 };
        let read = log.cursors.get(&(*room, name.clone())).map_or(0, |(seq, _)| *seq);
        match store.ask(again) {
            Ok(committed) => assert_eq!(committed.seq, (*seq).max(read)),
            Err(refusal) => assert_eq!(refusal.code, ErrorCode::PermissionDenied, "no member any more"),
        }
    }
    for name in USERS {
        let who = user(name);
        let page = store.page(Query::User(who.clone()));
        let Page::User { memberships, bans, delivered, .. } = page else { panic!("a user") };
        let told: Vec<_> = memberships.iter().map(|m| (m.room.key, m.role, (m.read, m.counted))).collect();
        let kept = log.roles.iter().filter(|((_, user), role)| *user == who && role.is_member());
        let banned = log.roles.iter().filter(|((_, user), role)| *user == who && !role.is_member());
        assert_eq!(bans, banned.map(|((key, _), _)| *key).collect::<Vec<_>>());
        let cursor = |key: RoomKey| log.cursors.get(&(key, who.clone())).copied().unwrap_or_default();
        for of in &memberships {
            let unread = of.counted < of.room.tally.messages;
            assert_eq!(of.deleted, if unread { log.deleted_after(of.room.key, of.read) } else { Vec::new() });
        }
        let ahead = log.delivered.iter().filter(|((room, of, _), seq)| *of == who && **seq > cursor(*room).0);
        let mut delivered = delivered;
        delivered.sort();
        assert_eq!(delivered, ahead.map(|((room, _, device), seq)| (*room, device.clone(), *seq)).collect::<Vec<_>>());
        assert_eq!(told, kept.map(|((key, _), role)| (*key, *role, cursor(*key))).collect::<Vec<_>>(), "{name}");
    }
}
