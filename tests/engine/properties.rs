//! The engine against small models: token buckets, users' standings, and the promise that a resume
//! equals the log wherever the cursor stands and however much memory there is.

use std::collections::BTreeMap;

use antiphon::engine::event::{Entry, NewMessage, Page, ReadAdvance};
use antiphon::engine::limits::{Bucket, Limits, Rate};
use antiphon::engine::users::{Loading, Users};
use antiphon::protocol::command::Manage;
use antiphon::protocol::ids::{Priority, Role, RoomKey, RoomName};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::harness::{Table, user};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// A bucket of floating-point tokens that is filled as time passes.
    #[test]
    fn a_bucket_is_a_bucket(per_second in 1u32..500, burst in 1u32..50, pauses in vec((0u64..400, 1u32..70), 1..200)) {
        let rate = Rate { per_second, burst };
        let (mut bucket, mut now) = (Bucket::default(), 1_600_000_000_000u64);
        // The real one counts in whole microseconds: its tokens come a little sooner than true ones.
        let interval_ms = f64::from(1_000_000 / per_second) / 1_000.0;
        let (mut tokens, mut at) = (f64::from(burst), now);
        for (pause, cost) in pauses {
            // Mostly one, as nearly everything costs.
            let cost = if cost > 60 { cost } else { 1 + cost / 20 };
            now += pause;
            tokens = (tokens + (now - at) as f64 / interval_ms).min(f64::from(burst));
            at = now;
            let is_due = tokens >= f64::from(cost.min(burst)) - 1e-6;
            match bucket.take(cost, rate, now) {
                Ok(()) => {
                    prop_assert!(is_due, "given with {tokens} tokens");
                    tokens -= f64::from(cost);
                }
                Err(wait_ms) => {
                    prop_assert!(!is_due, "refused with {tokens} tokens");
                    // After that wait it is given, and a millisecond earlier it is not.
                    let (mut early, mut late) = (bucket, bucket);
                    prop_assert!(late.take(cost, rate, now + u64::from(wait_ms)).is_ok());
                    prop_assert!(wait_ms == 1 || early.take(cost, rate, now + u64::from(wait_ms) - 1).is_err());
                }
            }
        }
    }

    /// Standings are a map from room to role and cursor.
    #[test]
    fn standings_are_a_map(steps in vec((0u64..6, 0u8..6, 0u64..20), 0..60)) {
        let mut users = Users::default();
        let idx = users.add(user("alice"));
        let alice = users.get_mut(idx);
        alice.loading = Loading::Loaded(0);
        let mut model: BTreeMap<u64, (Role, u64)> = BTreeMap::new();
        for (room, what, seq) in steps {
            let role = [None, Some(Role::Banned), Some(Role::Member), Some(Role::Owner)].get(usize::from(what)).copied();
            match role {
                Some(role) => {
                    let members = |model: &BTreeMap<u64, (Role, u64)>| {
                        model.values().filter(|(role, _)| role.is_member()).count() as i32
                    };
                    let before = members(&model);
                    match role {
                        Some(role) => model.entry(room).or_insert((role, 0)).0 = role,
                        None => drop(model.remove(&room)),
                    }
                    prop_assert_eq!(alice.set_role(RoomKey(room), role, (0, 0)), members(&model) - before);
                }
                None => {
                    let (room, user) = (RoomKey(room), user("alice"));
                    alice.advance(&ReadAdvance { room, user, device: None, seq, counted: seq });
                    let room = room.0;
                    if let Some((_, read)) = model.get_mut(&room) {
                        *read = (*read).max(seq);
                    }
                }
            }
            let is: Vec<_> = alice.standings.iter().map(|s| (s.room.0, (s.role, s.read))).collect();
            let due: Vec<_> = model.iter().map(|(room, standing)| (*room, *standing)).collect();
            prop_assert_eq!(is, due);
        }
    }
}

/// What a second of some log holds.
#[derive(Debug, Clone)]
enum Step {
    /// So many messages, in one batch, into each of the rooms (by bit).
    Say(u8, u8),
    /// Bob is kicked from a room, or invited.
    Kick(u8),
    Invite(u8),
    /// Time passes: old batches go, the idle are unloaded.
    Pass(u16),
    /// Bob's connection asks for a room after a cursor so far behind its head; the reader answers
    /// before (or after) another message is committed.
    Resume {
        room: u8,
        behind: u8,
        races: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..5, 1u8..8).prop_map(|(count, rooms)| Step::Say(count, rooms)),
        1 => (0u8..3).prop_map(Step::Kick),
        1 => (0u8..3).prop_map(Step::Invite),
        1 => (0u16..8_000).prop_map(Step::Pass),
        4 => (0u8..3, 0u8..12, any::<bool>()).prop_map(|(room, behind, races)| Step::Resume { room, behind, races }),
    ]
}

fn say(room: u8, text: &str) -> Entry {
    Entry::Message(NewMessage {
        room: RoomKey(u64::from(room) + 1),
        author: user("zoe"),
        by_admin: false,
        client_id: None,
        fields: format!("\"body\":\"{text}\"").into(),
        thread: None,
        audience: None,
        priority: Priority::Normal,
        mentions: Box::default(),
        reads: false,
    })
}

fn manage(room: u8, act: Manage) -> Entry {
    let room = RoomName::parse(&format!("r{room}")).unwrap();
    Entry::Manage { room, by: user("zoe"), by_admin: false, user: user("bob"), act }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is kept in memory, a resume gives exactly the log's entries, or none and says so.
    #[test]
    fn a_resume_equals_the_log(steps in vec(step(), 1..40), recent_bytes_max in 0usize..2_000, events_max in 1u32..12) {
        let limits = Limits {
            recent_bytes_max,
            resume_events_max: events_max,
            recent_ttl_ms: 6_000,
            idle_unload_ms: 3_000,
            heartbeat_ms: 1_000_000,
            ..Limits::default()
        };
        let mut table = Table::with(limits);
        for room in 0..3 {
            let room = RoomName::parse(&format!("r{room}")).unwrap();
            table.elsewhere(Entry::Join { room, user: user("zoe"), auto_create: true });
            table.commit().whatever();
        }
        table.has("b", "bob");
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Say(count, rooms) => {
                    for nth in 0..count {
                        (0..3).filter(|room| rooms & (1 << room) != 0).for_each(|room| {
                            table.elsewhere(say(room, &format!("{number}.{nth}")));
                        });
                    }
                    table.commit().whatever();
                }
                Step::Kick(room) | Step::Invite(room) => {
                    let is_kick = matches!(step, Step::Kick(_));
                    let act = if is_kick { Manage::Kick } else { Manage::Invite(Role::Member) };
                    table.elsewhere(manage(room, act));
                    table.commit().whatever();
                }
                Step::Pass(ms) => table.passes(u64::from(ms)).whatever(),
                Step::Resume { room, behind, races } => resume(&mut table, room, behind, races, events_max)?,
            }
        }
    }
}

fn resume(table: &mut Table, room: u8, behind: u8, races: bool, events_max: u32) -> Result<(), TestCaseError> {
    let key = RoomKey(u64::from(room) + 1);
    let head = table.log.kept.rooms[&key].head;
    let since = head.saturating_sub(u64::from(behind));
    let ask = format!(r#"{{"type":"room:subscribe","id":1,"room":"r{room}","since":{{"epoch":"e1","seq":{since}}}}}"#);
    let mut lines = vec![table.says("b", &ask)];
    let mut is_raced = !races;
    while !lines.iter().any(|line| line.has(r#""type":"ok""#)) {
        prop_assert!(lines.len() < 50, "it never ends");
        if table.reads.is_empty() {
            lines.push(table.comes_again("b"));
            continue;
        }
        let page = table.read_one();
        let is_of_room = matches!(page.result, Ok(Page::Room { .. } | Page::History { .. }));
        prop_assert!(is_of_room);
        if !std::mem::replace(&mut is_raced, true) {
            table.elsewhere(say(room, "meanwhile"));
            table.commit().whatever();
        }
        lines.push(table.hand_over(page));
    }
    let head = table.log.kept.rooms[&key].head;
    let rows = table.log.kept.rows.iter().filter(|row| row.room == key && row.seq > since);
    let due: Vec<String> = rows.map(|row| String::from_utf8(table.log.json_of(row)).unwrap()).collect();
    let whole = format!(r#""seq":{head},"#);
    let replayed = format!(r#""recovered":true,"events":[{}]}}"#, due.join(","));
    let nothing = r#""recovered":false,"events":[]}"#;
    let answer = lines.iter().find(|line| line.has(r#""type":"ok""#)).unwrap();
    prop_assert!(answer.has(&whole), "the head is {head}: {answer:?}");
    // Unless it is too much, everything is replayed.
    let is_due = due.len() <= events_max as usize;
    prop_assert!(answer.has(if is_due { &replayed } else { nothing }), "after {since}, {} due: {answer:?}", due.len());
    Ok(())
}
