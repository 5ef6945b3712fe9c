//! Presence: statuses, grace, idleness, watches, and what shards tell each other.

use antiphon::engine::event::{AdminAct, MeshMessage, Revocation, ShardId};
use antiphon::engine::limits::Limits;
use antiphon::engine::presence::mail::{Entry, Mail};
use antiphon::protocol::ids::RoomKey;

use crate::harness::{Table, user};

/// alice watches bob, who is here with one device.
fn watched() -> Table {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.says("a", r#"{"type":"presence:subscribe","id":1,"users":["bob","carol","bob"]}"#).gives(
        r#"
        a ! {"type":"ok","id":1,"presence":[{"user":"bob","status":"online","version":1000000001,"last_seen":1000000},{"user":"carol","status":"offline"}]}
        "#,
    );
    table.passes(200).gives_nothing();
    table
}

#[test]
fn a_watcher_hears_the_latest_of_a_tick_once() {
    let mut table = watched();
    for status in ["away", "offline", "busy"] {
        table
            .says("b", &format!(r#"{{"type":"presence:set","status":"{status}","custom":"a \"b\""}}"#))
            .gives_nothing();
    }
    table.passes(100).gives(
        r#"
        a ~ {"type":"presence:changed","presence":[{"user":"bob","status":"busy","custom":"a \"b\"","version":1000000003,"last_seen":1000200}]}
        "#,
    );
    // There and back within a tick is nothing.
    table.says("b", r#"{"type":"presence:set","id":5,"status":"away"}"#).gives(
        r#"
        b ! {"type":"ok","id":5,"status":"away","shown":"away"}
        "#,
    );
    table.says("b", r#"{"type":"presence:set","status":"busy"}"#).gives_nothing();
    table.passes(1_000).gives_nothing();
    table.says("a", r#"{"type":"presence:unsubscribe","id":6,"users":["bob","nobody"]}"#).gives(
        r#"
        a ! {"type":"ok","id":6}
        "#,
    );
    table.says("b", r#"{"type":"presence:set","status":"away"}"#).gives_nothing();
    table.passes(1_000).gives_nothing();
}

#[test]
fn who_returns_within_the_grace_shows_nobody_anything() {
    let mut table = watched();
    table.says("b", r#"{"type":"presence:set","status":"busy"}"#).gives_nothing();
    table.passes(100).whatever();
    table.closes("b").gives_nothing();
    table.passes(9_000).only(&["a ~"]).gives_nothing();
    let claims = table.claims("bob");
    table.opens_with("b2", "b", claims).whatever();
    table.passes(20_000).only(&["a ~"]).gives_nothing();
    assert!(table.says("a", r#"{"type":"presence:get","id":2,"users":["bob"]}"#).has(r#""status":"busy""#));
    // Gone for good: after the grace, once, with the cause.
    table.closes("b2").gives_nothing();
    table.passes(10_099).only(&["a ~"]).gives_nothing();
    let went = table.now - 10_099;
    table.passes(1).only(&["a ~"]).gives(&format!(
        r#"
        a ~ {{"type":"presence:changed","presence":[{{"user":"bob","status":"offline","version":1000000004,"last_seen":{went},"cause":"timeout"}}]}}
        "#
    ));
}

#[test]
fn who_is_put_out_is_gone_at_once_and_who_says_goodbye_went_cleanly() {
    let mut table = watched();
    table.admin(AdminAct::Disconnect { user: user("bob"), reason: "out".into() }).whatever();
    let given = table.passes(100);
    assert!(given.has(r#""status":"offline""#) && given.has(r#""cause":"kicked""#), "{given:?}");
    table.has("b2", "bob");
    table.passes(100).whatever();
    table.engine.note_goodbye(table.key("b2"));
    table.closes("b2").whatever();
    let given = table.passes(10_100);
    assert!(given.has(r#""cause":"clean""#), "{given:?}");
}

#[test]
fn two_devices_are_two_devices() {
    let mut table = watched();
    table.has("b2", "bob");
    table.says("b2", r#"{"type":"presence:set","status":"away"}"#).gives_nothing();
    // The most present device wins.
    table.passes(1_000).gives_nothing();
    table.says("b2", r#"{"type":"activity","kind":"typing"}"#).gives_nothing();
    table.says("a", r#"{"type":"presence:get","id":2,"users":["bob","nobody"]}"#).gives(
        r#"
        a ! {"type":"ok","id":2,"presence":[{"user":"bob","status":"online","last_seen":1001200,"last_activity":1001200,"devices":[{"device":"b","status":"online","activity":"active"},{"device":"b2","status":"away","activity":"typing"}]},{"user":"nobody","status":"offline","devices":[]}]}
        "#,
    );
    // One that is invisible hides all.
    table.says("b2", r#"{"type":"presence:set","status":"offline"}"#).gives_nothing();
    let given = table.passes(100);
    assert!(given.has(r#""status":"offline","version":1000000003"#), "{given:?}");
    let given = table.says("a", r#"{"type":"presence:get","id":3,"users":["bob"]}"#);
    assert!(given.has(r#""status":"offline""#) && given.has(r#""devices":[]"#), "{given:?}");
    table
        .admin(AdminAct::Presence)
        .gives("admin 1 PresenceCount { online: 1, away: 0, busy: 0, invisible: 1, devices: [1, 1, 0, 0] }");
}

#[test]
fn idle_is_away_by_itself_and_back_on_activity() {
    let mut table = Table::with(Limits { idle_after_ms: 5_000, ..Limits::default() });
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("b", "one");
    table.says("a", r#"{"type":"presence:subscribe","users":["bob"]}"#).gives_nothing();
    table.passes(4_000).only(&["a ~"]).gives_nothing();
    // Programs that talk by themselves keep nobody awake.
    table.says("b", r#"{"type":"ping"}"#).gives_nothing();
    assert!(table.passes(1_200).only(&["a ~"]).has(r#""status":"away""#));
    table.sends("b", "one", "back");
    assert!(table.passes(100).only(&["a ~"]).has(r#""status":"online""#));
    table.says("b", r#"{"type":"activity","kind":"idle"}"#).gives_nothing();
    assert!(table.passes(100).only(&["a ~"]).has(r#""status":"away""#));
}

#[test]
fn what_only_a_person_does_ends_idleness() {
    let acts = [
        r#"{"type":"message:edit","room":"one","seq":2,"body":"better"}"#,
        r#"{"type":"message:delete","room":"one","seq":2}"#,
        r#"{"type":"reaction:add","room":"one","seq":2,"emoji":"+1"}"#,
        r#"{"type":"notify","user":"alice","name":"hey","data":{}}"#,
    ];
    for act in acts {
        let mut table = Table::with(Limits { idle_after_ms: 5_000, ..Limits::default() });
        table.has("a", "alice");
        table.has("b", "bob");
        table.joins("b", "one");
        table.says("a", r#"{"type":"presence:subscribe","users":["bob"]}"#).gives_nothing();
        assert!(table.passes(6_000).only(&["a ~"]).has(r#""status":"away""#));
        let _ = table.says("b", act);
        assert!(table.passes(100).only(&["a ~"]).has(r#""status":"online""#), "{act}");
    }
}

#[test]
fn a_room_is_watched_as_long_as_one_may() {
    let mut table = Table::new();
    for (conn, name) in [("a", "alice"), ("b", "bob"), ("c", "carol")] {
        table.has(conn, name);
    }
    table.joins("a", "one");
    table.joins("b", "one");
    table.passes(100).gives_nothing();
    table.says("a", r#"{"type":"presence:subscribe","id":1,"room":"one"}"#).gives(
        r#"
        a ! {"type":"ok","id":1,"presence":[{"user":"alice","status":"online","version":1000000001,"last_seen":1000000},{"user":"bob","status":"online","version":1000000002,"last_seen":1000000}]}
        "#,
    );
    // Who joins is told; who is no member is nobody's business.
    table.says("c", r#"{"type":"presence:set","status":"busy"}"#).gives_nothing();
    table.passes(100).gives_nothing();
    table.joins("c", "one");
    table.passes(100).gives(
        r#"
        a ~ {"type":"presence:changed","room":"one","presence":[{"user":"carol","status":"busy","version":1000000005,"last_seen":1000200}]}
        "#,
    );
    // A watcher that is put out watches no more.
    table.joins("b", "two");
    table.says("b", r#"{"type":"presence:subscribe","room":"one"}"#).gives_nothing();
    table.says("a", r#"{"type":"room:kick","room":"one","user":"bob"}"#).whatever();
    table.settle();
    table.passes(100).only(&["b"]).gives_nothing();
    table.says("c", r#"{"type":"presence:set","status":"away"}"#).gives_nothing();
    let given = table.passes(100);
    assert!(given.has("a ~") && !given.has("b ~"), "{given:?}");
    // Who leaves is not there any more, wherever else they are.
    table.says("c", r#"{"type":"room:leave","room":"one"}"#).whatever();
    table.settle();
    let given = table.passes(100).only(&["a ~"]);
    assert!(given.has(r#""room":"one","presence":[{"user":"carol","status":"offline""#), "{given:?}");
    assert_eq!(table.engine.stats().presence_watches, 1);
    table.closes("a").whatever();
    assert_eq!((table.engine.stats().presence_watches, table.engine.stats().presence_cards), (0, 0));
}

/// Who is in the snapshot for someone who begins to watch `one`, and what they are.
fn shown(table: &mut Table) -> String {
    let line = table.says("w", r#"{"type":"presence:subscribe","id":1,"room":"one"}"#).0.remove(0);
    table.says("w", r#"{"type":"presence:unsubscribe","room":"one"}"#).gives_nothing();
    let of_users = line.split(r#""user":""#).skip(1).map(|part| part.split('"').next().unwrap());
    let counts = line.split(r#""counts":"#).nth(1).map_or("", |counts| counts.trim_end_matches("}}"));
    format!("{}{counts}", of_users.collect::<Vec<_>>().join(" "))
}

#[test]
fn who_begins_to_watch_sees_the_members_of_now() {
    for presence_room_max in [0, 1_000] {
        let mut table = Table::with(Limits { presence_room_max, idle_unload_ms: 1_000, ..Limits::default() });
        let is_counted = presence_room_max == 0;
        let sees = |table: &mut Table, users: &str| {
            let online = users.split_whitespace().count();
            let counts = format!(r#"{{"online":{online},"away":0,"busy":0"#);
            // Whoever came or went is looked at in the next tick.
            table.passes(100).whatever();
            assert_eq!(shown(table), if is_counted { counts } else { users.to_owned() });
        };
        for (conn, name) in [("w", "walter"), ("a", "alice"), ("b", "bob"), ("c", "carol"), ("d", "dave")] {
            table.has(conn, name);
        }
        for conn in ["a", "b", "c", "d"] {
            table.joins(conn, "one");
        }
        table.joins("d", "two");
        sees(&mut table, "alice bob carol dave");
        for (conn, act) in [
            ("b", r#"{"type":"room:leave","room":"one"}"#),
            ("a", r#"{"type":"room:kick","room":"one","user":"carol"}"#),
            ("a", r#"{"type":"room:ban","room":"one","user":"dave"}"#),
        ] {
            table.says(conn, act).whatever();
            table.settle();
        }
        sees(&mut table, "alice");
        table.joins("b", "one");
        sees(&mut table, "alice bob");
        // Unloaded, and another in their place; then loaded again.
        table.closes("b").whatever();
        for _ in 0..12 {
            table.passes(5_000).whatever();
            ["w", "a", "c", "d"].iter().for_each(|conn| table.is_heard(conn));
        }
        assert_eq!(table.engine.stats().users_loaded, 4);
        sees(&mut table, "alice");
        table.has("e", "erin");
        sees(&mut table, "alice");
        table.has("b2", "bob");
        sees(&mut table, "alice bob");
    }
}

#[test]
fn a_large_room_is_only_counted() {
    let mut table = Table::with(Limits { presence_room_max: 1, ..Limits::default() });
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "one");
    table.joins("b", "one");
    table.passes(100).gives_nothing();
    table.says("a", r#"{"type":"presence:subscribe","id":1,"room":"one"}"#).gives(
        r#"
        a ! {"type":"ok","id":1,"presence":[],"counts":{"online":2,"away":0,"busy":0}}
        "#,
    );
    table.says("b", r#"{"type":"presence:set","status":"busy"}"#).gives_nothing();
    table.passes(1_000).gives_nothing();
    table.passes(100).gives(
        r#"
        a ~ {"type":"presence:changed","room":"one","presence":[],"counts":{"online":1,"away":0,"busy":1}}
        "#,
    );
}

#[test]
fn typing_is_passed_on_once_a_second_and_not_of_the_invisible() {
    let mut table = Table::of_shards(Limits::default(), 2);
    table.has("a", "alice");
    table.joins("a", "one");
    let typing = r#"{"type":"activity","id":1,"room":"one","kind":"typing"}"#;
    table.says("a", typing).gives(
        r#"
        a ~ {"type":"activity","room":"one","user":"alice","kind":"typing","ts":1000000}
        mesh activity 1 {"type":"activity","room":"one","user":"alice","kind":"typing","ts":1000000}
        a ! {"type":"ok","id":1}
        "#,
    );
    table.says("a", typing).gives(r#"a ! {"type":"ok","id":1}"#);
    table.passes(1_000).whatever();
    assert!(table.says("a", typing).has("mesh activity"));
    table.says("a", r#"{"type":"presence:set","status":"offline"}"#).gives_nothing();
    table.passes(1_000).whatever();
    table.says("a", typing).gives(r#"a ! {"type":"ok","id":1}"#);
    table.says("a", r#"{"type":"activity","id":2,"room":"one","kind":"sleeping"}"#).gives(
        r#"
        a ! {"type":"error","id":2,"code":107,"error":"bad_request","message":"kind must be one of typing, reading, idle, active","temporary":false,"retry_after_ms":0}
        "#,
    );
}

/// What the other shard of two says of its user `bob`.
fn cards(table: &Table, status: antiphon::protocol::command::Status, version: u64) -> MeshMessage {
    let card = antiphon::engine::presence::mail::Card {
        user: user("frank"),
        status,
        custom: None,
        version,
        seen_at: 0,
        cause: None,
    };
    let entries = vec![Entry { card: card.into(), rooms: Box::default() }];
    let gather = match table.mesh.iter().rev().find_map(|message| match message {
        MeshMessage::Presence { mail, .. } => match &**mail {
            Mail::Watch { gather, .. } => Some(*gather),
            _ => None,
        },
        MeshMessage::Ephemeral { .. } => None,
    }) {
        Some(gather) if version == 3 => gather,
        _ => 0,
    };
    let mail = Mail::Cards { entries, counts: Vec::new(), is_all: false, clock: version, gather };
    MeshMessage::Presence { from: ShardId(1), mail: mail.into() }
}

#[test]
fn another_shard_is_asked_once_and_late_news_is_ignored() {
    use antiphon::protocol::command::Status;
    let mut table = Table::of_shards(Limits::default(), 2);
    assert_eq!(antiphon::engine::shard_of(&user("frank"), 2), ShardId(1), "frank lives elsewhere");
    table.has("a", "alice");
    table.has("a2", "alice");
    table.passes(200).whatever();
    table
        .says("a", r#"{"type":"presence:subscribe","id":1,"users":["frank"]}"#)
        .gives("mesh to 1 watch {\"frank\"} {}");
    table.hears_from_mesh(cards(&table, Status::Away, 3)).gives(
        r#"
        a ! {"type":"ok","id":1,"presence":[{"user":"frank","status":"away","version":3}]}
        "#,
    );
    // A second watcher costs the other shard nothing.
    table.says("a2", r#"{"type":"presence:subscribe","id":2,"users":["frank"]}"#).gives(
        r#"
        a2 ! {"type":"ok","id":2,"presence":[{"user":"frank","status":"away","version":3}]}
        "#,
    );
    table.hears_from_mesh(cards(&table, Status::Online, 2)).gives_nothing();
    table.hears_from_mesh(cards(&table, Status::Busy, 4)).gives(
        r#"
        a ~ {"type":"presence:changed","presence":[{"user":"frank","status":"busy","version":4}]}
        a2 ~ {"type":"presence:changed","presence":[{"user":"frank","status":"busy","version":4}]}
        "#,
    );
    table.passes(5_000).only(&["mesh"]).gives("mesh to 1 probe");
    table.closes("a").gives_nothing();
    table.closes("a2").gives("mesh to 1 unwatch {\"frank\"} {}");
}

#[test]
fn who_watches_what_another_has_just_asked_for_waits_for_the_same_parts() {
    use antiphon::protocol::command::Status;
    let mut table = Table::of_shards(Limits::default(), 2);
    table.has("a", "alice");
    table.has("a2", "alice");
    table.passes(200).whatever();
    table
        .says("a", r#"{"type":"presence:subscribe","id":1,"users":["frank"]}"#)
        .gives("mesh to 1 watch {\"frank\"} {}");
    // Answered now, frank would be shown as gone.
    table.says("a2", r#"{"type":"presence:subscribe","id":2,"users":["frank"]}"#).gives_nothing();
    table.hears_from_mesh(cards(&table, Status::Away, 3)).gives(
        r#"
        a ! {"type":"ok","id":1,"presence":[{"user":"frank","status":"away","version":3}]}
        a2 ! {"type":"ok","id":2,"presence":[{"user":"frank","status":"away","version":3}]}
        "#,
    );
    table.hears_from_mesh(cards(&table, Status::Busy, 4)).gives(
        r#"
        a ~ {"type":"presence:changed","presence":[{"user":"frank","status":"busy","version":4}]}
        a2 ~ {"type":"presence:changed","presence":[{"user":"frank","status":"busy","version":4}]}
        "#,
    );
}

#[test]
fn a_question_whose_part_is_lost_is_answered_with_what_is_there() {
    let mut table = Table::of_shards(Limits::default(), 2);
    table.has("a", "alice");
    table.passes(200).whatever();
    table.says("a", r#"{"type":"presence:get","id":1,"users":["frank"]}"#).gives("mesh to 1 get [\"frank\"]");
    table.passes(249).gives_nothing();
    table.passes(1).gives(
        r#"
        a ! {"type":"ok","id":1,"presence":[{"user":"frank","status":"offline","devices":[]}]}
        "#,
    );
    assert_eq!(table.engine.stats().presence_partial, 1);
}

#[test]
fn who_lost_low_events_is_told_all_of_it_anew() {
    let mut table = watched();
    table.drained("a", &[]).gives(
        r#"
        a ! {"type":"presence:changed","presence":[{"user":"bob","status":"online","version":1000000001,"last_seen":1000000},{"user":"carol","status":"offline"}]}
        "#,
    );
    table.joins("a", "one");
    table.drained("b", &[(RoomKey(1), 1)]).only(&["b !"]).gives_nothing();
}

#[test]
fn watches_are_bounded() {
    let mut table = Table::new();
    table.has("a", "alice");
    let names = |from: u32| (from..from + 600).map(|n| format!("\"u{n}\"")).collect::<Vec<_>>().join(",");
    table.says("a", &format!(r#"{{"type":"presence:subscribe","users":[{}]}}"#, names(0))).gives_nothing();
    let given = table.says("a", &format!(r#"{{"type":"presence:subscribe","id":1,"users":[{}]}}"#, names(500)));
    assert!(given.has(r#""code":106"#));
    assert_eq!(table.engine.stats().presence_watches, 600, "what is refused changes nothing");
    for wrong in [
        r#"{"type":"presence:subscribe","id":1}"#,
        r#"{"type":"presence:subscribe","id":1,"users":[]}"#,
        r#"{"type":"presence:subscribe","id":1,"users":["a b"]}"#,
        r#"{"type":"presence:subscribe","id":1,"users":["a"],"room":"b"}"#,
        r#"{"type":"presence:get","id":1}"#,
        r#"{"type":"presence:set","id":1,"status":"gone"}"#,
        r#"{"type":"presence:set","id":1,"status":"busy","custom":7}"#,
        r#"{"type":"activity","id":1,"room":"one"}"#,
    ] {
        assert!(table.says("a", wrong).has(r#""code":107"#), "{wrong}");
    }
}

#[test]
fn the_latest_activity_of_a_second_is_told_at_its_end() {
    let mut table = Table::new();
    for (conn, name) in [("a", "alice"), ("b", "bob")] {
        table.has(conn, name);
        table.joins(conn, "one");
    }
    table.passes(2_000).whatever();
    let does = |table: &mut Table, kind: &str| {
        table.says("a", &format!(r#"{{"type":"activity","room":"one","kind":"{kind}"}}"#)).only(&["b"])
    };
    assert!(does(&mut table, "typing").has(r#""kind":"typing""#));
    for kind in ["reading", "typing", "active", "idle"] {
        does(&mut table, kind).gives_nothing();
    }
    table.passes(999).only(&["b ~"]).gives_nothing();
    assert_eq!(table.passes(1).only(&["b ~"]).lines(r#""kind":"idle""#).len(), 1);
    // What was told already need not be told again.
    does(&mut table, "active").gives_nothing();
    does(&mut table, "idle").gives_nothing();
    table.passes(2_000).only(&["b ~"]).gives_nothing();
    // Who hides meanwhile, or is put out, is not spoken of.
    assert!(does(&mut table, "typing").has(r#""kind":"typing""#));
    does(&mut table, "reading").gives_nothing();
    table.says("a", r#"{"type":"presence:set","status":"offline"}"#).whatever();
    table.passes(2_000).only(&["b ~"]).gives_nothing();
    table.says("a", r#"{"type":"presence:set","status":"online"}"#).whatever();
    assert!(does(&mut table, "typing").has(r#""kind":"typing""#));
    does(&mut table, "reading").gives_nothing();
    table.closes("a").whatever();
    table.passes(2_000).only(&["b ~"]).gives_nothing();
}

#[test]
fn a_room_that_becomes_large_is_told_anew_and_no_other() {
    let mut table = Table::with(Limits { presence_room_max: 1, ..Limits::default() });
    table.has("a", "alice");
    table.joins("a", "one");
    table.joins("a", "two");
    table.passes(100).whatever();
    table.says("a", r#"{"type":"presence:subscribe","id":1,"room":"one"}"#).whatever();
    table.says("a", r#"{"type":"presence:subscribe","id":2,"room":"two"}"#).whatever();
    table.has("b", "bob");
    table.joins("b", "one");
    let heard = (0..70).flat_map(|_| table.passes(100).lines("\"whole\":true")).collect::<Vec<_>>();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(heard[0].contains(r#""room":"one""#), "{heard:?}");
}

#[test]
fn an_idle_device_that_comes_back_is_idle() {
    let mut table = Table::with(Limits { idle_after_ms: 5_000, ..Limits::default() });
    table.has("a", "alice");
    table.has("b", "bob");
    table.says("a", r#"{"type":"presence:subscribe","users":["bob"]}"#).gives_nothing();
    assert!(table.passes(5_200).only(&["a ~"]).has(r#""status":"away""#));
    let get = r#"{"type":"presence:get","id":1,"users":["bob"]}"#;
    let before = table.says("a", get);
    assert!(before.has(r#""last_activity":1000000,"devices":[{"device":"b","status":"away","activity":"idle"}]"#));
    table.closes("b").gives_nothing();
    table.passes(1_000).only(&["a ~"]).gives_nothing();
    // Within the grace the device counts, and is shown as it was.
    let devices = r#""status":"away","last_seen":1005200,"last_activity":1000000,"devices":[{"device":"b","status":"away","activity":"idle"}]"#;
    let given = table.says("a", get);
    assert!(given.has(devices), "{given:?}");
    let claims = table.claims("bob");
    table.opens_with("b2", "b", claims).whatever();
    table.passes(1_000).only(&["a ~"]).gives_nothing();
    let given = table.says("a", get);
    assert!(given.has(devices), "{given:?}");
    // One that was not idle yet becomes so when it would have.
    table.says("b2", r#"{"type":"activity","kind":"active"}"#).gives_nothing();
    assert!(table.passes(3_000).only(&["a ~"]).has(r#""status":"online""#));
    table.closes("b2").gives_nothing();
    let claims = table.claims("bob");
    table.opens_with("b3", "b", claims).whatever();
    table.passes(1_900).only(&["a ~"]).gives_nothing();
    assert!(table.passes(1_200).only(&["a ~"]).has(r#""status":"away""#));
}

#[test]
fn who_is_put_out_is_gone_with_the_devices_that_might_have_come_back() {
    let acts = [
        AdminAct::Disconnect { user: user("bob"), reason: "out".into() },
        AdminAct::Revoke(Revocation::UserBefore(user("bob"), u64::MAX / 2)),
    ];
    for act in acts {
        let mut table = watched();
        table.has("b2", "bob");
        table.passes(200).whatever();
        table.closes("b2").gives_nothing();
        table.passes(200).only(&["a ~"]).gives_nothing();
        table.admin(act).whatever();
        table.settle();
        let given = table.passes(100).only(&["a ~"]);
        assert!(given.has(r#""status":"offline""#) && given.has(r#""cause":"kicked""#), "{given:?}");
    }
}

#[test]
fn custom_status_goes_with_the_last_device() {
    let mut table = watched();
    let get = r#"{"type":"presence:get","id":1,"users":["bob"]}"#;
    table.says("b", r#"{"type":"presence:set","status":"busy","custom":"at sea"}"#).gives_nothing();
    table.closes("b").gives_nothing();
    table.passes(9_000).whatever();
    table.has("b2", "bob");
    assert!(table.says("a", get).has("at sea"), "within the grace it stays");
    table.closes("b2").gives_nothing();
    table.passes(11_000).whatever();
    table.has("b3", "bob");
    assert!(!table.says("a", get).has("at sea"));
}

#[test]
fn cards_of_rooms_that_are_watched_no_longer_are_not_held() {
    let mut table = Table::of_shards(Limits::default(), 2);
    table.has("a", "alice");
    table.joins("a", "one");
    // Whoever watches nothing takes no cards at all.
    table.says("a", r#"{"type":"presence:subscribe","users":["alice"]}"#).whatever();
    table.passes(300).whatever();
    let held = table.engine.stats().presence_cards;
    let watch = r#"{"type":"presence:subscribe","id":1,"room":"one"}"#;
    let answers = |table: &mut Table| {
        let gather = table.mesh.iter().rev().find_map(|message| match message {
            MeshMessage::Presence { mail, .. } => match &**mail {
                Mail::Watch { gather, .. } => Some(*gather),
                _ => None,
            },
            MeshMessage::Ephemeral { .. } => None,
        });
        let card = antiphon::engine::presence::mail::Card {
            user: user("frank"),
            status: antiphon::protocol::command::Status::Online,
            custom: None,
            version: 3,
            seen_at: 0,
            cause: None,
        };
        let entries = vec![Entry { card: card.into(), rooms: [RoomKey(1)].into() }];
        let gather = gather.expect("it was asked");
        let mail = Mail::Cards { entries, counts: Vec::new(), is_all: false, clock: 3, gather };
        table.hears_from_mesh(MeshMessage::Presence { from: ShardId(1), mail: mail.into() })
    };
    table.says("a", watch).whatever();
    table.says("a", r#"{"type":"presence:unsubscribe","id":2,"room":"one"}"#).whatever();
    // The other shard's part comes when nobody asks for it any more.
    answers(&mut table).only(&["a"]).gives(
        r#"
        a ! {"type":"ok","id":1,"presence":[]}
        "#,
    );
    assert_eq!(table.engine.stats().presence_cards, held);
    table.says("a", watch).whatever();
    assert!(answers(&mut table).has("frank"), "and as long as it is watched they are");
}
