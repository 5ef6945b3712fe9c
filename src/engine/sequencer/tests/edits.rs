//! Scenarios of edits, deletions, reactions and delivered cursors; and whose edit wins, in whatever
//! order and whatever batches.

use proptest::prelude::*;

use super::*;
use crate::engine::edits::REACTION_KINDS_MAX;
use crate::engine::event::{Amend, AmendAct, Viewer};
use crate::protocol::ids::DeviceId;

fn amend(target: Seq, by: &str, act: AmendAct) -> Entry {
    Entry::Amend(Box::new(Amend { room: RoomKey(1), target, by: user(by), by_admin: false, act }))
}

fn edit(target: Seq, by: &str, body: &str, version: Option<u64>) -> Entry {
    amend(target, by, AmendAct::Edit { body_json: format!("\"{body}\"").into(), version })
}

fn delete(target: Seq, by: &str) -> Entry {
    amend(target, by, AmendAct::Delete)
}

fn react(target: Seq, by: &str, emoji: &str) -> Entry {
    amend(target, by, AmendAct::React(emoji.into()))
}

fn unreact(target: Seq, by: &str, emoji: &str) -> Entry {
    amend(target, by, AmendAct::Unreact(emoji.into()))
}

/// Seq 1 to 3: ann, the owner, ben and cat join; seq 4 is ben's message.
fn world() -> World {
    let mut world = World::new();
    world.turn(vec![create("team", RoomKind::Private, "ann", &["ben", "cat"])]);
    assert_eq!(world.answer(message(1, "ben", None, "first")), "1/4");
    world
}

#[test]
fn an_edit_is_an_entry_of_its_own_with_the_next_version() {
    let mut world = world();
    let lines = world.turn(vec![edit(4, "ben", "second", Some(1)), edit(4, "ben", "third", None)]);
    assert_eq!(
        lines,
        [
            "1/5 =2",
            "1/6 =3",
            r#"{"type":"message:updated","room":"team","seq":5,"author":"ben","target":4,"version":2,"body":"second"}"#,
            r#"{"type":"message:updated","room":"team","seq":6,"author":"ben","target":4,"version":3,"body":"third"}"#,
        ]
    );
}

#[test]
fn of_two_edits_of_one_version_the_first_wins_and_the_other_learns_what_stands() {
    let mut world = world();
    let batch = world.commit(vec![edit(4, "ben", "mine", Some(1)), edit(4, "ann", "no, mine", Some(1))]);
    assert_eq!(answers(&batch), ["1/5 =2", "116 conflict"]);
    let Err(refusal) = &batch.outcomes[0][1].result else { panic!("refused") };
    assert_eq!(refusal.current, Some(2));
    // The same over two batches.
    let batch = world.commit(vec![edit(4, "ann", "late", Some(1))]);
    let Err(refusal) = &batch.outcomes[0][0].result else { panic!("refused") };
    assert_eq!((refusal.code, refusal.current), (ErrorCode::Conflict, Some(2)));
}

#[test]
fn authors_moderators_and_owners_change_messages_and_nobody_else() {
    let mut world = world();
    assert_eq!(world.answer(edit(4, "cat", "x", None)), "103 permission_denied");
    assert_eq!(world.answer(delete(4, "cat")), "103 permission_denied");
    let by_owner = world.turn(vec![edit(4, "ann", "x", None)]);
    assert_eq!(by_owner[0], "1/5 =2");
    world.turn(vec![manage("team", "ann", "cat", Manage::Role(Role::Moderator))]);
    assert_eq!(world.answer(edit(4, "cat", "y", None)), "1/7 =3");
    // Not a member, not even in the room: the shard checked at a time when it was so.
    let admin = Amend { room: RoomKey(1), target: 4, by: user("root"), by_admin: true, act: AmendAct::Delete };
    assert_eq!(world.answer(Entry::Amend(Box::new(admin))), "1/8 =4");
}

#[test]
fn whoever_was_kicked_since_the_check_changes_nothing() {
    let mut world = world();
    let seen = world.core.position();
    world.turn(vec![manage("team", "ann", "ben", Manage::Kick)]);
    let append = |entry| Append { shard: ShardId(0), token: Token(1), seen, entry };
    for entry in [edit(4, "ben", "x", None), delete(4, "ben"), react(4, "ben", "+")] {
        assert_eq!(answers(&world.commit_appends(vec![append(entry)])), ["103 permission_denied"]);
    }
}

#[test]
fn a_tombstone_stays() {
    let mut world = world();
    let lines = world.turn(vec![delete(4, "ben"), edit(4, "ben", "x", None), delete(4, "ben"), react(4, "cat", "+")]);
    let gone = "110 not_found";
    let deleted = r#"{"type":"message:deleted","room":"team","seq":5,"author":"ben","target":4,"version":2}"#;
    assert_eq!(lines, ["1/5 =2", gone, gone, gone, deleted]);
    assert_eq!(world.answer(edit(4, "ben", "x", Some(2))), gone);
    let state = &world.log.states[&(RoomKey(1), 4)];
    assert_eq!((state.version, state.deleted, &state.body_json, state.edited_ts), (2, true, &None, NOW));
}

#[test]
fn only_messages_are_changed() {
    let mut world = world();
    for seq in [1, 5, 99] {
        assert_eq!(world.answer(edit(seq, "ann", "x", None)), "110 not_found");
        assert_eq!(world.answer(react(seq, "ann", "+")), "110 not_found");
    }
    world.turn(vec![edit(4, "ben", "x", None)]);
    assert_eq!(world.answer(edit(5, "ben", "x", None)), "110 not_found", "an edit is no message");
    let nowhere = Amend { room: RoomKey(9), target: 1, by: user("ann"), by_admin: false, act: AmendAct::Delete };
    assert_eq!(world.answer(Entry::Amend(Box::new(nowhere))), "102 unknown_room");
}

#[test]
fn reactions_are_counted_and_said_once() {
    let mut world = world();
    let lines =
        world.turn(vec![react(4, "ann", "+"), react(4, "cat", "+"), react(4, "ann", "+"), unreact(4, "ben", "+")]);
    assert_eq!(
        lines,
        [
            "1/5 =1",
            "1/6 =2",
            "1/6 =2",
            "1/6 =2",
            r#"{"type":"reaction:added","room":"team","seq":5,"author":"ann","target":4,"emoji":"+","count":1}"#,
            r#"{"type":"reaction:added","room":"team","seq":6,"author":"cat","target":4,"emoji":"+","count":2}"#,
        ]
    );
    let lines = world.turn(vec![unreact(4, "ann", "+"), unreact(4, "ann", "+"), react(4, "ann", "-")]);
    assert_eq!(lines[..3], ["1/7 =1", "1/7 =1", "1/8 =1"]);
    assert_eq!(world.log.reaction_counts(RoomKey(1), 4), [("+".into(), 1), ("-".into(), 1)]);
}

#[test]
fn different_reactions_to_a_message_are_bounded() {
    let mut world = world();
    let some = |from: u32, to: u32| (from..to).map(|n| react(4, "ann", &format!("e{n}"))).collect::<Vec<_>>();
    world.turn(some(0, 10));
    world.turn(some(10, REACTION_KINDS_MAX));
    assert_eq!(world.answer(react(4, "ann", "more")), "106 limit_exceeded");
    assert_eq!(world.answer(react(4, "cat", "e0")), format!("1/{} =2", REACTION_KINDS_MAX + 5));
    let lines = world.answers(vec![unreact(4, "ann", "e1"), react(4, "ann", "more"), react(4, "ann", "e1")]);
    assert_eq!(lines[2], "106 limit_exceeded", "one went, one came: {lines:?}");
}

#[test]
fn changes_of_a_restricted_message_have_its_audience() {
    let mut world = world();
    let Entry::Message(mut whisper) = message(1, "ben", None, "psst") else { unreachable!() };
    whisper.audience = Some(Arc::new(Audience::Only([user("ann")].into())));
    world.turn(vec![Entry::Message(whisper)]);
    assert_eq!(world.answer(react(5, "cat", "+")), "110 not_found", "who may not see it is not told that it is there");
    let batch = world.commit(vec![react(5, "ann", "+"), edit(5, "ann", "hush", None), edit(5, "ben", "psst", None)]);
    for entry in &batch.runs[0].entries {
        let restricted = entry.restricted.as_ref().expect("restricted like the message");
        let sees = |who: &str| restricted.audience.admits(&Viewer::anywhere(who, None), restricted.author.as_str());
        assert!(sees("ann") && sees("ben") && !sees("cat"), "{entry:?}");
    }
}

#[test]
fn a_batch_that_fails_leaves_versions_and_counts_as_they_were() {
    let mut world = world();
    let appends = world.appends(vec![edit(4, "ben", "x", None), react(4, "ann", "+")]);
    let decided = world.decide(appends);
    let _failed = world.core.fail(decided, &Refusal::new(ErrorCode::Degraded, "no"));
    assert_eq!(world.answers(vec![edit(4, "ben", "y", Some(1)), react(4, "ann", "+")]), ["1/5 =2", "1/6 =1"]);
}

#[test]
fn what_is_read_is_delivered_and_devices_have_their_own_cursors() {
    let mut world = world();
    let delivered = |device: &str, seq| Entry::Delivered {
        room: RoomKey(1),
        user: user("cat"),
        device: DeviceId::parse(device).unwrap(),
        seq,
    };
    let batch = world.commit(vec![delivered("phone", 2), delivered("phone", 1), delivered("pad", 99)]);
    assert_eq!(answers(&batch), ["1/3", "1/3", "1/4"], "cat has read her own coming in");
    assert_eq!(batch.reads.len(), 1, "what is read is delivered");
    assert_eq!(world.answers(vec![read(1, "cat", 3)]), ["1/3"], "a device does not read");
    assert_eq!(world.answers(vec![delivered("phone", 1), delivered("tv", 1)]), ["1/3", "1/3"]);
    let Entry::Delivered { room, device, seq, .. } = delivered("phone", 1) else { unreachable!() };
    let stranger = Entry::Delivered { room, user: user("eve"), device, seq };
    assert_eq!(world.answer(stranger), "103 permission_denied");
}

proptest! {
    /// Editors on several shards, each of whom edits the version that they saw last: for each version
    /// there is exactly one winner, whoever loses learns the version that stands, and the body that
    /// stands is the last winner's.
    #[test]
    fn each_version_has_exactly_one_winner(
        rounds in prop::collection::vec((prop::collection::vec((0..3usize, any::<bool>()), 1..6), any::<bool>()), 1..20)
    ) {
        let mut world = world();
        let editors = ["ann", "ben", "ann"];
        let mut seen = [1u64; 3];
        let (mut winners, mut stands) = (1, "first".to_owned());
        for (at, (asks, commits)) in rounds.iter().enumerate() {
            let bodies: Vec<String> = (0..asks.len()).map(|index| format!("{at}.{index}")).collect();
            let entries = asks.iter().zip(&bodies);
            let entries = entries.map(|((who, blind), body)| {
                edit(4, editors[*who], body, (!blind).then_some(seen[*who]))
            });
            let entries = entries.collect();
            let appends = world.appends(entries);
            let decided = world.decide(appends);
            if !commits {
                let _failed = world.core.fail(decided, &Refusal::new(ErrorCode::Degraded, "no"));
                continue;
            }
            world.log.apply(&decided);
            let batch = world.core.commit(decided);
            let mut told = seen;
            for (((who, blind), body), outcome) in asks.iter().zip(&bodies).zip(&batch.outcomes[0]) {
                match &outcome.result {
                    Ok(committed) => {
                        prop_assert!(*blind || seen[*who] == winners, "an edit of a version that did not stand won");
                        winners += 1;
                        prop_assert_eq!(committed.value, winners);
                        stands.clone_from(body);
                        told[*who] = winners;
                    }
                    Err(refusal) => {
                        prop_assert!(!blind && seen[*who] != winners);
                        prop_assert_eq!((refusal.code, refusal.current), (ErrorCode::Conflict, Some(winners)));
                        told[*who] = winners;
                    }
                }
            }
            seen = told;
        }
        let state = world.log.states.get(&(RoomKey(1), 4)).cloned().unwrap_or_default();
        prop_assert_eq!(state.version, winners);
        let body = state.body_json.map_or_else(|| "first".to_owned(), |json| json.trim_matches('"').to_owned());
        prop_assert_eq!(body, stands);
    }
}
