//! Who may change a membership, and what it leaves.

use super::*;

#[test]
fn joining() {
    let mut world = World::new();
    assert_eq!(
        world.answer(Entry::Join { room: room("x"), user: user("bob"), auto_create: false }),
        "102 unknown_room"
    );
    let lines = world.turn(vec![join("open", "alice"), join("open", "bob"), join("open", "bob")]);
    assert_eq!(
        lines,
        [
            "1/1",
            "1/2",
            "1/2",
            r#"{"type":"room:joined","room":"open","seq":1,"user":"alice","role":"owner"}"#,
            r#"{"type":"room:joined","room":"open","seq":2,"user":"bob","role":"member"}"#,
        ]
    );
    world.commit(vec![
        create("closed", RoomKind::Private, "alice", &[]),
        create("dm", RoomKind::Direct, "alice", &["bob"]),
    ]);
    assert_eq!(world.answer(join("closed", "bob")), "103 permission_denied");
    assert_eq!(world.answer(join("dm", "carol")), "103 permission_denied");
    assert_eq!(world.answer(join("dm", "bob")), "3/2");
    world.commit(vec![manage("open", "alice", "bob", Manage::Ban)]);
    assert_eq!(world.answer(join("open", "bob")), "103 permission_denied");
    assert_eq!(world.log.rooms[&RoomKey(1)].members, 1);
}

#[test]
fn nobody_is_in_more_rooms_than_allowed() {
    let mut world = World::new();
    let lines =
        world.answers(vec![join("a", "bob"), join("b", "bob"), join("c", "bob"), join("d", "bob"), join("a", "bob")]);
    assert_eq!(lines, ["1/1", "2/1", "3/1", "106 limit_exceeded", "1/1"]);
    assert_eq!(world.answer(create("e", RoomKind::Private, "alice", &["bob"])), "106 limit_exceeded");
    assert!(!world.log.names.contains_key(&room("e")), "refused whole");
    world.commit(vec![join("f", "alice")]);
    assert_eq!(world.answer(manage("f", "alice", "bob", Manage::Invite(Role::Member))), "106 limit_exceeded");
    assert_eq!(world.answers(vec![leave("a", "bob"), join("f", "bob")]), ["1/2", "4/2"]);
    // A ban is no membership: lifting it is one.
    world.commit(vec![by_admin("b", "bob", Manage::Ban), join("g", "bob")]);
    assert_eq!(world.answer(by_admin("b", "bob", Manage::Role(Role::Member))), "106 limit_exceeded");
}

#[test]
fn leaving() {
    let mut world = World::new();
    world.commit(vec![create("p", RoomKind::Private, "alice", &["bob"]), join("o", "alice"), join("o", "bob")]);
    assert_eq!(world.answer(leave("nowhere", "bob")), "102 unknown_room");
    assert_eq!(world.answer(leave("p", "carol")), "110 not_found");
    assert_eq!(world.answer(leave("p", "alice")), "103 permission_denied");
    assert_eq!(world.answer(leave("o", "alice")), "2/3");
    let lines = world.turn(vec![leave("p", "bob"), leave("p", "alice")]);
    assert_eq!(
        lines,
        [
            "1/3",
            "1/4",
            r#"{"type":"room:left","room":"p","seq":3,"user":"bob"}"#,
            r#"{"type":"room:left","room":"p","seq":4,"user":"alice"}"#,
        ]
    );
    assert_eq!(world.log.rooms[&RoomKey(1)].members, 0);
    assert!(world.log.roles.keys().all(|(key, _)| *key == RoomKey(2)));
}

/// A private room with two owners, two moderators, two members, one banned, one stranger.
fn full_room() -> World {
    let mut world = World::new();
    world.commit(vec![create("r", RoomKind::Private, "own", &["own2", "mod", "mod2", "mem", "mem2"])]);
    world.commit(vec![
        by_admin("r", "own2", Manage::Role(Role::Owner)),
        by_admin("r", "mod", Manage::Role(Role::Moderator)),
        by_admin("r", "mod2", Manage::Role(Role::Moderator)),
        by_admin("r", "ban", Manage::Ban),
    ]);
    world
}

#[test]
fn who_may_do_what_to_whom() {
    use Manage::{Ban, Invite, Kick, Role as Set};
    use Role::{Banned, Member, Moderator, Owner};
    // For each act: targets own2, mod2, mem2, ban, new; actors own, mod, mem, ban, new (nobody).
    // `+` done, `=` nothing to do, otherwise the code.
    let table: [(Manage, [&str; 5]); 9] = [
        (Invite(Member), ["= = = 103 +", "= = = 103 +", "103", "103", "103"]),
        (Invite(Moderator), ["= = 116 103 +", "= = 116 103 103", "103", "103", "103"]),
        (Invite(Owner), ["107 107 107 107 107", "107 107 107 107 107", "103", "103", "103"]),
        (Kick, ["103 + + 110 110", "103 103 + 110 110", "103", "103", "103"]),
        (Ban, ["103 + + = +", "103 103 + = +", "103", "103", "103"]),
        (Set(Member), ["+ + = + 110", "103 103 103 + 110", "103", "103", "103"]),
        (Set(Moderator), ["+ = + 107 110", "103 103 103 107 110", "103", "103", "103"]),
        (Set(Owner), ["= + + 107 110", "103 103 103 107 110", "103", "103", "103"]),
        (Set(Banned), ["107 107 107 107 107", "107 107 107 107 107", "103", "103", "103"]),
    ];
    for (act, rows) in table {
        for (actor, row) in ["own", "mod", "mem", "ban", "new"].into_iter().zip(rows) {
            let codes: Vec<&str> = row.split(' ').collect();
            for (at, target) in ["own2", "mod2", "mem2", "ban", "new"].into_iter().enumerate() {
                let expected = codes[at.min(codes.len() - 1)];
                let mut world = full_room();
                let head = world.log.rooms[&RoomKey(1)].head;
                let answer = world.answer(manage("r", actor, target, act));
                let said = match answer.as_str() {
                    done if done == format!("1/{}", head + 1) => "+".to_owned(),
                    same if same == format!("1/{head}") => "=".to_owned(),
                    code => code.split(' ').next().unwrap_or(code).to_owned(),
                };
                assert_eq!(said, expected, "{act:?} by {actor} on {target}");
            }
        }
    }
}

#[test]
fn what_a_change_of_membership_leaves() {
    let mut world = full_room();
    let mut change = |entry: Entry| {
        let batch = world.commit(vec![entry]);
        let json = frames(&batch).remove(0);
        let change = batch.runs[0].entries[0].change.clone().unwrap();
        let fields = json.split_once("\"user\"").map(|(_, fields)| fields.trim_end_matches('}').to_owned()).unwrap();
        let kind = json.split('"').nth(3).unwrap().to_owned();
        format!("{kind} {fields} -> {:?} of {}", change.role, batch.runs[0].members)
    };
    use Manage::{Ban, Invite, Kick, Role as Set};
    let cases = [
        (
            manage("r", "own", "new", Invite(Role::Member)),
            r#"room:joined :"new","by":"own","role":"member" -> Some(Member) of 7"#,
        ),
        (
            manage("r", "own", "new", Set(Role::Moderator)),
            r#"room:role_changed :"new","by":"own","role":"moderator" -> Some(Moderator) of 7"#,
        ),
        (manage("r", "own", "new", Kick), r#"room:kicked :"new","by":"own" -> None of 6"#),
        (manage("r", "mod", "mem", Ban), r#"room:kicked :"mem","by":"mod","role":"banned" -> Some(Banned) of 5"#),
        (manage("r", "mod", "new", Ban), r#"room:kicked :"new","by":"mod","role":"banned" -> Some(Banned) of 5"#),
        (
            manage("r", "mod", "mem", Set(Role::Member)),
            r#"room:role_changed :"mem","by":"mod","role":"member" -> Some(Member) of 6"#,
        ),
        (
            manage("r", "own", "own", Set(Role::Member)),
            r#"room:role_changed :"own","by":"own","role":"member" -> Some(Member) of 6"#,
        ),
    ];
    for (entry, expected) in cases {
        assert_eq!(change(entry), expected);
    }
    // `own2` is the last owner now.
    assert_eq!(world.answer(manage("r", "own2", "own2", Set(Role::Member))), "103 permission_denied");
    assert_eq!(world.answer(by_admin("r", "own2", Set(Role::Member))), "1/18");
}

#[test]
fn two_owners_cannot_both_step_down_in_one_batch() {
    let mut world = full_room();
    let down = |who: &str| manage("r", who, who, Manage::Role(Role::Moderator));
    assert_eq!(world.answers(vec![down("own"), down("own2")]), ["1/11", "103 permission_denied"]);
    // And one who has just become owner counts.
    let up = manage("r", "own2", "mem", Manage::Role(Role::Owner));
    assert_eq!(world.answers(vec![up, down("own2")]), ["1/12", "1/13"]);
}

#[test]
fn direct_rooms_keep_their_people() {
    let mut world = World::new();
    world.commit(vec![create("dm", RoomKind::Direct, "alice", &["bob"])]);
    for act in [Manage::Invite(Role::Member), Manage::Kick, Manage::Ban, Manage::Role(Role::Moderator)] {
        assert_eq!(world.answer(manage("dm", "alice", "bob", act)), "103 permission_denied", "{act:?}");
    }
    assert_eq!(world.answer(by_admin("dm", "carol", Manage::Invite(Role::Member))), "103 permission_denied");
    // An administrator may put somebody out, and lift what keeps them out; nothing else.
    assert_eq!(world.answer(by_admin("dm", "bob", Manage::Ban)), "1/3");
    let lift = Manage::Role(Role::Member);
    assert_eq!(world.answer(manage("dm", "alice", "bob", lift)), "103 permission_denied");
    assert_eq!(world.answer(by_admin("dm", "bob", Manage::Role(Role::Owner))), "107 bad_request");
    assert_eq!(world.answer(by_admin("dm", "carol", lift)), "103 permission_denied");
    assert_eq!(
        world.answers(vec![by_admin("dm", "bob", lift), by_admin("dm", "bob", lift)]),
        ["1/4", "103 permission_denied"]
    );
    assert_eq!(world.log.roles[&(RoomKey(1), user("bob"))], Role::Member);
    assert_eq!(world.answers(vec![leave("dm", "alice"), leave("dm", "bob")]), ["1/5", "1/6"]);
}

#[test]
fn a_direct_room_is_of_few_people_and_a_larger_one_of_old_puts_no_items() {
    let mut world = World::new();
    let names: Vec<String> = (0..64).map(|n| format!("u{n}")).collect();
    let others: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(world.answer(create("crowd", RoomKind::Direct, "alice", &others)), "106 limit_exceeded");
    assert_eq!(world.answer(create("dm", RoomKind::Direct, "alice", &others[1..])), "1/64");
    assert_eq!(world.answer(create("team", RoomKind::Private, "alice", &others)), "2/65", "others are not bounded so");
    assert_eq!(world.commit(vec![message(1, "alice", None, "x")]).inbox.len(), 63);
    // As an earlier version may have left it.
    world.log.rooms.get_mut(&RoomKey(1)).unwrap().members = 65;
    world.core = Sequencer::new(config(), world.log.end());
    let batch = world.commit(vec![message(1, "alice", None, "y")]);
    assert_eq!((answers(&batch), batch.inbox.len()), (vec!["1/66".to_owned()], 0));
}

#[test]
fn others_cannot_fill_all_places_of_a_user() {
    let mut world = World::with(SequencerConfig { rooms_max: 8, ..config() });
    for room in 0..6 {
        world.commit(vec![create(&format!("trap-{room}"), RoomKind::Public, "eve", &["bob"])]);
        world.commit(vec![leave(&format!("trap-{room}"), "eve")]);
    }
    assert_eq!(world.answer(create("trap-7", RoomKind::Public, "eve", &["bob"])), "106 limit_exceeded");
    world.commit(vec![join("lair", "eve")]);
    assert_eq!(world.answer(manage("lair", "eve", "bob", Manage::Invite(Role::Member))), "106 limit_exceeded");
    assert!(world.answer(join("home", "bob")).ends_with("/1"), "bob goes where he wants");
    assert!(world.answer(by_admin("lair", "bob", Manage::Invite(Role::Member))).ends_with("/2"), "administrators may");
    assert_eq!(world.answer(join("one-more", "bob")), "106 limit_exceeded");
}
