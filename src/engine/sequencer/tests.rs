//! Scenarios: these appends give exactly these answers and entries.

mod edits;
mod membership;
mod trouble;

use std::sync::Arc;

use super::memory::MemoryLog;
use super::*;
use crate::engine::event::{Audience, ShardId, Token};
use crate::protocol::command::Manage;
use crate::protocol::error::ErrorCode;
use crate::protocol::ids::{Priority, RoomName};

/// A sequencer over a log in memory, at a time that stands until it is moved.
struct World {
    log: MemoryLog,
    core: Sequencer,
    now: UnixMillis,
}

const NOW: UnixMillis = 1_000_000;

fn config() -> SequencerConfig {
    SequencerConfig { shards: 2, dedupe_window_ms: 1_000, rooms_max: 3, ..SequencerConfig::default() }
}

impl World {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: SequencerConfig) -> Self {
        Self { log: MemoryLog::default(), core: Sequencer::new(config, LogEnd::default()), now: NOW }
    }

    /// Appends of shard 0 that saw everything, tokens from 1.
    fn appends(&self, entries: Vec<Entry>) -> Vec<Append> {
        let seen = self.core.position();
        let tokens = (1..).map(Token);
        entries.into_iter().zip(tokens).map(|(entry, token)| Append { shard: ShardId(0), token, seen, entry }).collect()
    }

    fn decide(&mut self, appends: Vec<Append>) -> Decided {
        let Ok(decided) = self.core.decide(appends, self.now, &mut self.log);
        decided
    }

    fn commit_appends(&mut self, appends: Vec<Append>) -> CommittedBatch {
        let decided = self.decide(appends);
        self.log.apply(&decided);
        self.core.commit(decided)
    }

    fn commit(&mut self, entries: Vec<Entry>) -> CommittedBatch {
        let appends = self.appends(entries);
        self.commit_appends(appends)
    }

    /// The answers, then the entries as they are sent.
    fn turn(&mut self, entries: Vec<Entry>) -> Vec<String> {
        let batch = self.commit(entries);
        answers(&batch).into_iter().chain(frames(&batch)).collect()
    }

    /// Just the answers.
    fn answers(&mut self, entries: Vec<Entry>) -> Vec<String> {
        answers(&self.commit(entries))
    }

    /// The answer to one entry.
    fn answer(&mut self, entry: Entry) -> String {
        self.answers(vec![entry]).remove(0)
    }
}

fn answers(batch: &CommittedBatch) -> Vec<String> {
    let outcome = |outcome: &Outcome| match &outcome.result {
        Ok(Committed { room, seq, duplicate, value, .. }) => {
            let value = if *value > 0 { format!(" ={value}") } else { String::new() };
            format!("{}/{seq}{}{value}", room.0, if *duplicate { " again" } else { "" })
        }
        Err(refusal) => refusal.code.to_string(),
    };
    batch.outcomes.iter().flatten().map(outcome).collect()
}

fn frames(batch: &CommittedBatch) -> Vec<String> {
    let entries = batch.runs.iter().flat_map(|run| &run.entries);
    let json = entries.map(|entry| String::from_utf8(batch.bytes[entry.json_span()].to_vec()).unwrap());
    json.map(|json| json.replace(&format!("\"ts\":{NOW},"), "")).collect()
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

fn room(name: &str) -> RoomName {
    RoomName::parse(name).unwrap()
}

fn create(name: &str, kind: RoomKind, creator: &str, members: &[&str]) -> Entry {
    let members = members.iter().map(|name| user(name)).collect();
    Entry::CreateRoom { room: room(name), kind, title: None, creator: user(creator), members }
}

fn join(name: &str, who: &str) -> Entry {
    Entry::Join { room: room(name), user: user(who), auto_create: true }
}

fn leave(name: &str, who: &str) -> Entry {
    Entry::Leave { room: room(name), user: user(who) }
}

fn manage(name: &str, by: &str, whom: &str, act: Manage) -> Entry {
    Entry::Manage { room: room(name), by: user(by), by_admin: false, user: user(whom), act }
}

fn by_admin(name: &str, whom: &str, act: Manage) -> Entry {
    Entry::Manage { room: room(name), by: user("root"), by_admin: true, user: user(whom), act }
}

fn message(key: u64, author: &str, client_id: Option<&str>, body: &str) -> Entry {
    Entry::Message(NewMessage {
        room: RoomKey(key),
        author: user(author),
        by_admin: false,
        client_id: client_id.map(Into::into),
        fields: format!("\"body\":\"{body}\"").into(),
        thread: None,
        audience: None,
        priority: Priority::Normal,
        mentions: Box::default(),
        reads: false,
    })
}

fn read(key: u64, who: &str, seq: Seq) -> Entry {
    Entry::Read { room: RoomKey(key), user: user(who), seq }
}

#[test]
fn a_new_room_begins_with_its_owner_then_its_members() {
    let mut world = World::new();
    let lines = world.turn(vec![create("team", RoomKind::Private, "carol", &["bob", "alice", "carol", "bob"])]);
    assert_eq!(
        lines,
        [
            "1/3",
            r#"{"type":"room:joined","room":"team","seq":1,"user":"carol","role":"owner"}"#,
            r#"{"type":"room:joined","room":"team","seq":2,"user":"alice","by":"carol","role":"member"}"#,
            r#"{"type":"room:joined","room":"team","seq":3,"user":"bob","by":"carol","role":"member"}"#,
        ]
    );
    assert_eq!(world.log.rooms[&RoomKey(1)].members, 3);
    assert_eq!(world.answer(create("team", RoomKind::Public, "dave", &[])), "116 conflict");
}

#[test]
fn entries_are_numbered_per_room_and_over_the_log_and_lie_together_by_room() {
    let mut world = World::new();
    world.commit(vec![join("b", "alice"), join("a", "alice")]);
    let batch = world.commit(vec![
        message(2, "alice", None, "one"),
        message(1, "alice", None, "two"),
        message(2, "alice", None, "three"),
    ]);
    assert_eq!((batch.first, batch.last), (3, 5));
    assert_eq!(answers(&batch), ["2/2", "1/2", "2/3"]);
    let runs: Vec<_> =
        batch.runs.iter().map(|run| (run.room.0, run.name.as_str(), run.span(), run.last_seq())).collect();
    let end = batch.bytes.len() as u32;
    let middle = runs[0].2.end;
    assert_eq!(runs, [(1, "b", 0..middle, 2), (2, "a", middle..end, 3)]);
    let positions: Vec<_> = batch.runs.iter().flat_map(|run| run.entries.iter().map(|e| (e.seq, e.position))).collect();
    assert_eq!(positions, [(2, 4), (2, 3), (3, 5)]);
    assert_eq!(
        frames(&batch),
        [
            r#"{"type":"message:created","room":"b","seq":2,"author":"alice","body":"two"}"#,
            r#"{"type":"message:created","room":"a","seq":2,"author":"alice","body":"one"}"#,
            r#"{"type":"message:created","room":"a","seq":3,"author":"alice","body":"three"}"#,
        ]
    );
}

#[test]
fn outcomes_go_to_the_shard_that_asked_in_its_order() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice")]);
    let mut appends = world.appends(vec![message(1, "alice", None, "x"), message(1, "bob", None, "y")]);
    appends[0].shard = ShardId(1);
    appends[0].token = Token(77);
    let batch = world.commit_appends(appends);
    assert_eq!((batch.outcomes[0].len(), batch.outcomes[1].len()), (1, 1));
    assert_eq!(batch.outcomes[1][0].token, Token(77));
}

#[test]
fn a_client_id_counts_once_per_author_within_its_window() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice"), join("b", "alice")]);
    let first = message(1, "alice", Some("c1"), "hi");
    let lines = world.turn(vec![first.clone(), first.clone(), message(1, "bob", Some("c1"), "hi")]);
    assert_eq!(lines[..3], ["1/2", "1/2 again", "1/3"]);
    assert_eq!(lines.len(), 5, "the duplicate leaves no entry");
    // In another room it is another message, which must not be taken for stored.
    assert_eq!(world.answer(message(2, "alice", Some("c1"), "hi")), ErrorCode::Conflict.to_string());
    let first_ts = world.now;
    world.now += 999;
    let batch = world.commit(vec![first.clone()]);
    let Ok(known) = batch.outcomes[0][0].result else { panic!("a duplicate is an ok") };
    assert_eq!((known.ts, known.duplicate), (first_ts, true));
    assert_eq!((batch.first, batch.last), (5, 4), "no entries");
    world.now += 1;
    assert_eq!(world.answer(first), "1/4");
    assert_eq!(world.core.duplicates(), 2);
}

#[test]
fn a_retry_is_acknowledged_even_when_the_right_is_gone() {
    let mut world = World::new();
    world.commit(vec![create("p", RoomKind::Private, "alice", &["bob"]), message(1, "bob", Some("c"), "hi")]);
    let appends = world.appends(vec![message(1, "bob", Some("c"), "hi"), message(1, "bob", Some("d"), "late")]);
    world.commit(vec![manage("p", "alice", "bob", Manage::Kick)]);
    assert_eq!(answers(&world.commit_appends(appends)), ["1/3 again", "103 permission_denied"]);
}

#[test]
fn a_repeat_is_acknowledged_if_it_is_one_and_writes_nothing() {
    let repeat = |key, author, client_id: &str| {
        let client_id = client_id.into();
        Entry::Repeat { room: RoomKey(key), author: user(author), client_id }
    };
    let denied = "103 permission_denied";
    let mut world = World::new();
    world.commit(vec![create("p", RoomKind::Private, "alice", &["bob"]), message(1, "bob", Some("c"), "hi")]);
    world.commit(vec![manage("p", "alice", "bob", Manage::Kick), join("q", "bob")]);
    let first_ts = world.now;
    world.now += 999;
    let asked = [(1, "bob", "c"), (1, "bob", "d"), (1, "alice", "c"), (2, "bob", "c"), (9, "bob", "x")];
    let batch = world.commit(asked.map(|(key, author, client_id)| repeat(key, author, client_id)).to_vec());
    assert_eq!(answers(&batch), ["1/3 again", denied, denied, denied, denied]);
    assert_eq!((batch.last, frames(&batch).len()), (batch.first - 1, 0), "no entries");
    let Ok(known) = batch.outcomes[0][0].result else { panic!("a duplicate is an ok") };
    assert_eq!((known.ts, world.core.duplicates()), (first_ts, 1));
    world.now += 1;
    assert_eq!(world.answer(repeat(1, "bob", "c")), denied, "past the window");
    // The first of them in the same batch.
    let lines = world.answers(vec![message(1, "alice", Some("e"), "x"), repeat(1, "alice", "e")]);
    assert_eq!(lines, ["1/5", "1/5 again"]);
    let mut world = World::with(SequencerConfig { dedupe_window_ms: 0, ..config() });
    world.commit(vec![join("q", "bob"), message(1, "bob", Some("c"), "hi")]);
    assert_eq!(world.answer(repeat(1, "bob", "c")), denied, "no window");
}

#[test]
fn a_message_after_its_authors_loss_is_refused_wherever_the_loss_stands() {
    for (kind, loss, refused) in [
        (RoomKind::Private, manage("r", "alice", "bob", Manage::Kick), true),
        (RoomKind::Private, leave("r", "bob"), true),
        (RoomKind::Private, manage("r", "alice", "bob", Manage::Ban), true),
        (RoomKind::Public, manage("r", "alice", "bob", Manage::Ban), true),
        // Anyone may write into a public room, members or not.
        (RoomKind::Public, manage("r", "alice", "bob", Manage::Kick), false),
        (RoomKind::Public, leave("r", "bob"), false),
    ] {
        let expected = if refused { "103 permission_denied" } else { "1/4" };
        let case = format!("{kind:?} {loss:?}");
        let begin = vec![create("r", kind, "alice", &["bob"])];
        // In the same batch.
        let mut world = World::new();
        world.commit(begin.clone());
        assert_eq!(world.answers(vec![loss.clone(), message(1, "bob", None, "x")])[1], expected, "{case}");
        // In an earlier batch that the author's shard had not seen.
        let mut world = World::new();
        world.commit(begin.clone());
        let late = world.appends(vec![message(1, "bob", None, "x")]);
        world.commit(vec![loss.clone()]);
        assert_eq!(answers(&world.commit_appends(late)), [expected], "{case}");
        // Won again since: the check is made at the message's own place in the order.
        let mut world = World::new();
        world.commit(begin);
        let late = world.appends(vec![message(1, "bob", None, "x")]);
        world.commit(vec![loss]);
        let back = if kind == RoomKind::Public && !refused {
            join("r", "bob")
        } else {
            by_admin("r", "bob", Manage::Role(Role::Member))
        };
        world.commit(vec![back, by_admin("r", "bob", Manage::Invite(Role::Member))]);
        assert_eq!(answers(&world.commit_appends(late)), ["1/5"], "{case}");
    }
}

#[test]
fn a_forgotten_loss_is_looked_up() {
    let mut world = World::with(SequencerConfig { losses_max: 1, ..config() });
    world.commit(vec![create("r", RoomKind::Private, "alice", &["bob", "carol", "dave"])]);
    let late = world.appends(vec![message(1, "bob", None, "x"), message(1, "dave", None, "y")]);
    world.commit(vec![leave("r", "bob")]);
    world.commit(vec![leave("r", "carol")]);
    assert_eq!(answers(&world.commit_appends(late)), ["103 permission_denied", "1/7"]);
}

#[test]
fn read_cursors_move_forward_and_not_past_the_head() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice"), join("a", "bob")]);
    let batch = world.commit(vec![
        read(1, "bob", 1),
        read(1, "bob", 99),
        read(1, "alice", 1),
        message(1, "bob", None, "x"),
        read(1, "bob", 3),
    ]);
    assert_eq!(answers(&batch), ["1/2", "1/2", "1/1", "1/3", "1/3"], "who came in has read the entry of it");
    let moved: Vec<_> = batch.reads.iter().map(|read| (read.user.as_str(), read.seq)).collect();
    assert_eq!(moved, [("bob", 3)], "the latest of each");
    let batch = world.commit(vec![read(1, "bob", 2)]);
    assert_eq!(answers(&batch), ["1/3"]);
    assert!(batch.reads.is_empty(), "nothing moved");
    assert_eq!(world.answer(read(1, "eve", 1)), "103 permission_denied");
    assert_eq!(world.answer(read(9, "eve", 1)), "102 unknown_room");
    assert_eq!(world.core.position(), 3);
}

#[test]
fn who_is_put_out_reads_no_further_in_the_same_batch() {
    let mut world = World::new();
    world.commit(vec![
        join("a", "alice"),
        join("a", "bob"),
        message(1, "alice", None, "x"),
        message(1, "alice", None, "y"),
    ]);
    let batch = world.commit(vec![read(1, "bob", 3), by_admin("a", "bob", Manage::Kick), read(1, "bob", 4)]);
    assert_eq!(answers(&batch)[2], "103 permission_denied");
    assert!(batch.reads.iter().all(|read| read.seq <= 3), "{:?}", batch.reads);
}

#[test]
fn revocations_take_no_position() {
    let mut world = World::new();
    let revocation = Revocation::UserBefore(user("eve"), 12);
    let batch = world.commit(vec![Entry::Revoke(revocation.clone())]);
    assert_eq!((batch.first, batch.last, batch.revocations), (1, 0, vec![revocation]));
    assert!(batch.runs.is_empty() && batch.bytes.is_empty());
}

#[test]
fn restricted_messages_say_for_whom() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice")]);
    let audience = Arc::new(Audience::Only([user("bob")].into()));
    let Entry::Message(message) = message(1, "alice", None, "x") else { panic!("a message") };
    let batch = world.commit(vec![Entry::Message(NewMessage { audience: Some(audience.clone()), ..message })]);
    let restricted = batch.runs[0].entries[0].restricted.as_ref().unwrap();
    assert_eq!((restricted.author.as_str(), &restricted.audience), ("alice", &audience));
}

#[test]
fn a_failed_batch_leaves_no_trace() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice")]);
    let entries = vec![
        message(1, "alice", Some("c"), "hi"),
        create("b", RoomKind::Public, "alice", &[]),
        manage("a", "alice", "bob", Manage::Ban),
        read(1, "alice", 1),
    ];
    let appends = world.appends(entries.clone());
    let decided = world.decide(appends);
    let failed = world.core.fail(decided, &Refusal::new(ErrorCode::Degraded, "unknown"));
    assert_eq!(answers(&failed.refused), ["117 degraded"; 4]);
    assert_eq!((failed.refused.first, failed.refused.last, failed.refused.runs.len()), (2, 1, 0));
    assert_eq!((failed.held.first, failed.held.last, failed.held.outcomes.len()), (2, 4, 0));
    assert_eq!(frames(&failed.held).len(), 3);
    assert_eq!(world.answers(entries), ["1/2", "2/1", "1/3", "1/1"]);
}

#[test]
fn a_failed_batch_that_stands_after_all_is_taken_over() {
    let mut world = World::new();
    world.commit(vec![create("a", RoomKind::Private, "alice", &["bob"])]);
    let late = world.appends(vec![message(1, "bob", None, "x")]);
    let appends = world.appends(vec![message(1, "alice", Some("c"), "hi"), manage("a", "alice", "bob", Manage::Kick)]);
    let decided = world.decide(appends);
    world.log.apply(&decided);
    let failed = world.core.fail(decided, &Refusal::new(ErrorCode::Degraded, "unknown"));
    let (end, ts) = (world.log.end(), world.now);
    world.core.adopt(end, [("alice", "c", RoomKey(1), 3, ts)]);
    assert_eq!(failed.held.last, world.core.position());
    assert_eq!(world.answer(message(1, "alice", Some("c"), "hi")), "1/3 again");
    assert_eq!(answers(&world.commit_appends(late)), ["103 permission_denied"], "its losses count");
    assert_eq!(world.answer(message(1, "alice", None, "next")), "1/5");
}

#[test]
fn facts_that_fail_refuse_the_whole_batch() {
    /// Answers some questions, then none.
    struct Failing(MemoryLog, u32);
    impl Failing {
        fn ask<T>(
            &mut self,
            answer: impl FnOnce(&mut MemoryLog) -> Result<T, std::convert::Infallible>,
        ) -> Result<T, &'static str> {
            self.1 = self.1.checked_sub(1).ok_or("the disk is gone")?;
            answer(&mut self.0).map_err(|never| match never {})
        }
    }
    impl Facts for Failing {
        type Error = &'static str;
        fn room_by_key(&mut self, room: RoomKey) -> Result<Option<RoomRow>, Self::Error> {
            self.ask(|log| log.room_by_key(room))
        }
        fn room_by_name(&mut self, name: &RoomName) -> Result<Option<RoomRow>, Self::Error> {
            self.ask(|log| log.room_by_name(name))
        }
        fn role(&mut self, room: RoomKey, user: &UserId) -> Result<Option<Role>, Self::Error> {
            self.ask(|log| log.role(room, user))
        }
        fn memberships(&mut self, user: &UserId) -> Result<u32, Self::Error> {
            self.ask(|log| log.memberships(user))
        }
        fn owners(&mut self, room: RoomKey) -> Result<u32, Self::Error> {
            self.ask(|log| log.owners(room))
        }
        fn read_cursor(&mut self, room: RoomKey, user: &UserId) -> Result<Seq, Self::Error> {
            self.ask(|log| log.read_cursor(room, user))
        }
        fn tally_at(&mut self, room: RoomKey, seq: Seq) -> Result<Option<crate::engine::tally::Tally>, Self::Error> {
            self.ask(|log| log.tally_at(room, seq))
        }
        fn audit(
            &mut self,
            room: RoomKey,
            seq: Seq,
        ) -> Result<Result<crate::engine::consistency::Audit, crate::engine::consistency::Broken>, Self::Error>
        {
            self.ask(|log| Facts::audit(log, room, seq))
        }
        fn members(&mut self, room: RoomKey) -> Result<Vec<UserId>, Self::Error> {
            self.ask(|log| log.members(room))
        }
        fn shared_rooms(&mut self, one: &UserId, other: &UserId) -> Result<Vec<RoomKey>, Self::Error> {
            self.ask(|log| log.shared_rooms(one, other))
        }
        fn inbox(&mut self, user: &UserId) -> Result<Vec<crate::engine::inbox::Head>, Self::Error> {
            self.ask(|log| Facts::inbox(log, user))
        }
        fn expired_items(&mut self, now: u64, max: u32) -> Result<Vec<(UserId, u64)>, Self::Error> {
            self.ask(|log| log.expired_items(now, max))
        }
        fn delivered_cursor(&mut self, room: RoomKey, user: &UserId, device: &DeviceId) -> Result<Seq, Self::Error> {
            self.ask(|log| log.delivered_cursor(room, user, device))
        }
        fn target(&mut self, room: RoomKey, seq: Seq) -> Result<Option<Target>, Self::Error> {
            self.ask(|log| log.target(room, seq))
        }
        fn reacted(&mut self, room: RoomKey, seq: Seq, emoji: &str, user: &UserId) -> Result<Reacted, Self::Error> {
            self.ask(|log| log.reacted(room, seq, emoji, user))
        }
        fn reaction_kinds(&mut self, room: RoomKey, seq: Seq) -> Result<u32, Self::Error> {
            self.ask(|log| log.reaction_kinds(room, seq))
        }
        fn dead_letter(&mut self, id: u64) -> Result<Option<crate::engine::dead::DeadLetter>, Self::Error> {
            self.ask(|log| log.dead_letter(id))
        }
        fn dead_count(&mut self, filter: &crate::engine::dead::DeadFilter) -> Result<u64, Self::Error> {
            self.ask(|log| log.dead_count(filter))
        }
    }
    for questions in 0..6 {
        let mut world = World::new();
        world.commit(vec![join("a", "alice"), join("b", "bob")]);
        world.core.forget_rooms();
        let entries = vec![
            message(1, "alice", Some("c"), "hi"),
            join("b", "alice"),
            join("c", "alice"),
            message(2, "bob", None, "x"),
        ];
        let appends = world.appends(entries.clone());
        let mut facts = Failing(world.log.clone(), questions);
        let Err((error, refused)) = world.core.decide(appends, world.now, &mut facts) else {
            panic!("{questions} questions are not enough")
        };
        assert_eq!(error, "the disk is gone");
        assert_eq!(answers(&refused), ["117 degraded"; 4], "{questions}");
        assert_eq!(world.answers(entries), ["1/2", "2/2", "3/1", "2/3"], "{questions}");
    }
}

#[test]
fn the_room_cache_is_bounded_and_forgets_without_harm() {
    let mut world = World::with(SequencerConfig { rooms_cached_max: 4, rooms_max: 100, ..config() });
    for number in 0..20 {
        world.commit(vec![join(&format!("room{number}"), "alice")]);
        assert!(world.core.rooms.len() <= 5 && world.core.names.len() == world.core.rooms.len());
    }
    for number in 1..=20 {
        assert_eq!(world.answer(message(number, "alice", None, "x")), format!("{number}/2"));
    }
}

#[test]
fn the_clock_may_slip_a_little() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice")]);
    let ts = |world: &mut World| world.commit(vec![message(1, "alice", None, "x")]).runs[0].entries[0].ts;
    world.now = NOW - CLOCK_SLACK_MS;
    assert_eq!(ts(&mut world), NOW, "held");
    world.now = NOW - CLOCK_SLACK_MS - 1;
    assert_eq!(ts(&mut world), world.now, "a clock that was wrong is followed back");
    world.now = NOW + 3;
    assert_eq!(ts(&mut world), NOW + 3);
}
