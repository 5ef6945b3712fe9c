//! Edits, deletions, reactions, and what devices have.

use antiphon::engine::event::{Amend, AmendAct, Entry};
use antiphon::protocol::ids::{RoomKey, Seq};

use crate::harness::{Table, user};

/// Alice, who owns the room, and bob; seq 3 is alice's message.
fn a_message() -> Table {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table.joins("b", "general");
    table.sends("a", "general", "one");
    table
}

fn edit_elsewhere(target: Seq, by: &str, body: &str) -> Entry {
    let act = AmendAct::Edit { body_json: format!("\"{body}\"").into(), version: None };
    Entry::Amend(Box::new(Amend { room: RoomKey(1), target, by: user(by), by_admin: false, act }))
}

#[test]
fn an_edit_is_told_to_everybody_and_then_acked_with_its_version() {
    let mut table = a_message();
    table.says("a", r#"{"type":"message:edit","id":1,"room":"general","seq":3,"body":"t\"wo","version":1}"#).gives(
        r#"
        append amend 1 3 by alice: Edit { body_json: "\"t\\\"wo\"", version: Some(1) }
        "#,
    );
    table.commit().gives(
        r#"
        a general 4 {"type":"message:updated","room":"general","seq":4,"ts":1000000,"author":"alice","target":3,"version":2,"body":"t\"wo"}
        b general 4 {"type":"message:updated","room":"general","seq":4,"ts":1000000,"author":"alice","target":3,"version":2,"body":"t\"wo"}
        a ! {"type":"ok","id":1,"room":"general","seq":4,"version":2}
        "#,
    );
    table.says("b", r#"{"type":"message:delete","id":2,"room":"general","seq":3}"#).whatever();
    table.commit().gives(
        r#"
        b ! {"type":"error","id":2,"code":103,"error":"permission_denied","message":"only its author, moderators and owners change a message","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("a", r#"{"type":"message:delete","id":3,"room":"general","seq":3}"#).whatever();
    table.commit().gives(
        r#"
        a general 5 {"type":"message:deleted","room":"general","seq":5,"ts":1000000,"author":"alice","target":3,"version":3}
        b general 5 {"type":"message:deleted","room":"general","seq":5,"ts":1000000,"author":"alice","target":3,"version":3}
        a ! {"type":"ok","id":3,"room":"general","seq":5,"version":3}
        "#,
    );
    assert_eq!(table.engine.stats().edits, 2);
}

#[test]
fn the_edit_that_comes_second_is_a_conflict_with_the_version_that_stands() {
    let mut table = a_message();
    table.elsewhere(edit_elsewhere(3, "alice", "from another shard"));
    table.says("a", r#"{"type":"message:edit","id":1,"room":"general","seq":3,"body":"late","version":1}"#).whatever();
    table.commit().only(&["a !"]).gives(
        r#"
        a ! {"type":"error","id":1,"code":116,"error":"conflict","message":"another version stands","temporary":false,"retry_after_ms":0,"current":2}
        "#,
    );
    assert_eq!((table.engine.stats().edits, table.engine.stats().edit_conflicts), (0, 1));
}

#[test]
fn reactions_count_and_what_is_so_already_is_not_told_again() {
    let mut table = a_message();
    let add = |id: u32| format!(r#"{{"type":"reaction:add","id":{id},"room":"general","seq":3,"emoji":"👍"}}"#);
    table.says("a", &add(1)).whatever();
    table.says("b", &add(2)).whatever();
    table.says("b", &add(3)).whatever();
    table.commit().only(&["b"]).gives(
        r#"
        b general 4..5 {"type":"reaction:added","room":"general","seq":4,"ts":1000000,"author":"alice","target":3,"emoji":"👍","count":1} {"type":"reaction:added","room":"general","seq":5,"ts":1000000,"author":"bob","target":3,"emoji":"👍","count":2}
        b ! {"type":"ok","id":2,"room":"general","seq":5,"count":2}
        b ! {"type":"ok","id":3,"room":"general","seq":5,"count":2}
        "#,
    );
    table.says("b", r#"{"type":"reaction:remove","id":4,"room":"general","seq":3,"emoji":"👍"}"#).whatever();
    table.commit().only(&["b"]).gives(
        r#"
        b general 6 {"type":"reaction:removed","room":"general","seq":6,"ts":1000000,"author":"bob","target":3,"emoji":"👍","count":1}
        b ! {"type":"ok","id":4,"room":"general","seq":6,"count":1}
        "#,
    );
    assert_eq!(table.engine.stats().reactions, 4);
}

#[test]
fn history_shows_what_stands_and_a_resume_each_step() {
    let mut table = a_message();
    table.says("a", r#"{"type":"message:edit","room":"general","seq":3,"body":"two"}"#).whatever();
    table.says("b", r#"{"type":"reaction:add","room":"general","seq":3,"emoji":"+"}"#).whatever();
    table.says("a", r#"{"type":"message:edit","room":"general","seq":3,"body":"three"}"#).whatever();
    table.settle();
    table.says("b", r#"{"type":"message:history","id":1,"room":"general","after":2}"#).whatever();
    table.answer().gives(
        r#"
        b unpark
        b ! {"type":"ok","id":1,"events":[{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"three","trace":"*","version":3,"edited_ts":1000000,"reactions":{"+":1}},{"type":"message:updated","room":"general","seq":4,"ts":1000000,"author":"alice","target":3,"version":2},{"type":"reaction:added","room":"general","seq":5,"ts":1000000,"author":"bob","target":3,"emoji":"+","count":1},{"type":"message:updated","room":"general","seq":6,"ts":1000000,"author":"alice","target":3,"version":3,"body":"three"}],"more":false}
        "#,
    );
    let since = r#"{"type":"room:subscribe","id":2,"room":"general","since":{"epoch":"e1","seq":2}}"#;
    table.says("b", since).gives(
        r#"
        b ! {"type":"ok","id":2,"room":"general","epoch":"e1","seq":6,"role":"member","members":2,"recovered":true,"events":[{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"one","trace":"*"},{"type":"message:updated","room":"general","seq":4,"ts":1000000,"author":"alice","target":3,"version":2,"body":"two"},{"type":"reaction:added","room":"general","seq":5,"ts":1000000,"author":"bob","target":3,"emoji":"+","count":1},{"type":"message:updated","room":"general","seq":6,"ts":1000000,"author":"alice","target":3,"version":3,"body":"three"}]}
        "#,
    );
    table.says("a", r#"{"type":"message:delete","room":"general","seq":3}"#).whatever();
    table.settle();
    table.says("b", r#"{"type":"message:history","id":3,"room":"general","after":2,"limit":2}"#).whatever();
    table.answer().gives(
        r#"
        b unpark
        b ! {"type":"ok","id":3,"events":[{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","deleted":true,"version":4,"edited_ts":1000000},{"type":"message:updated","room":"general","seq":4,"ts":1000000,"author":"alice","target":3,"version":2}],"more":true}
        "#,
    );
}

#[test]
fn who_may_not_see_a_message_gets_stand_ins_for_its_changes() {
    let mut table = a_message();
    table.has("c", "carol");
    table.joins("c", "general");
    table.says("a", r#"{"type":"message:send","room":"general","body":"psst","only":["bob"]}"#).whatever();
    table.settle();
    table.says("b", r#"{"type":"reaction:add","room":"general","seq":5,"emoji":"+"}"#).whatever();
    table.commit().gives(
        r#"
        a general 6 {"type":"reaction:added","room":"general","seq":6,"ts":1000000,"author":"bob","target":5,"emoji":"+","count":1}
        b general 6 {"type":"reaction:added","room":"general","seq":6,"ts":1000000,"author":"bob","target":5,"emoji":"+","count":1}
        c general 6 {"type":"message:hidden","room":"general","seq":6,"ts":1000000}
        "#,
    );
    table.says("c", r#"{"type":"reaction:add","id":1,"room":"general","seq":5,"emoji":"+"}"#).whatever();
    table.commit().gives(
        r#"
        c ! {"type":"error","id":1,"code":110,"error":"not_found","message":"seq names no message","temporary":false,"retry_after_ms":0}
        "#,
    );
}

#[test]
fn what_lies_beyond_the_head_is_refused_here_and_bad_fields_too() {
    let mut table = a_message();
    table.says("a", r#"{"type":"message:delete","id":1,"room":"general","seq":4}"#).gives(
        r#"
        a ! {"type":"error","id":1,"code":110,"error":"not_found","message":"seq names no message","temporary":false,"retry_after_ms":0}
        "#,
    );
    let long = "x".repeat(33);
    for bad in [
        r#"{"type":"message:edit","id":1,"room":"general","seq":3,"body":""}"#.to_owned(),
        r#"{"type":"message:edit","id":1,"room":"general","seq":3,"body":"x","version":0}"#.to_owned(),
        r#"{"type":"message:edit","id":1,"room":"general","body":"x"}"#.to_owned(),
        r#"{"type":"message:delete","id":1,"room":"general","seq":"3"}"#.to_owned(),
        r#"{"type":"reaction:add","id":1,"room":"general","seq":3,"emoji":""}"#.to_owned(),
        r#"{"type":"reaction:add","id":1,"room":"general","seq":3,"emoji":"\u0000"}"#.to_owned(),
        format!(r#"{{"type":"reaction:remove","id":1,"room":"general","seq":3,"emoji":"{long}"}}"#),
        r#"{"type":"message:delivered","id":1,"room":"general","seq":0}"#.to_owned(),
    ] {
        assert!(table.says("a", &bad).has(r#""code":107"#), "{bad}");
    }
}

#[test]
fn a_token_that_only_reads_changes_nothing() {
    let mut table = a_message();
    let mut claims = table.claims("alice");
    claims.rooms = Some([("general".into(), false)].into());
    table.opens_with("r", "reader", claims).whatever();
    for command in [
        r#"{"type":"message:edit","id":1,"room":"general","seq":3,"body":"x"}"#,
        r#"{"type":"message:delete","id":1,"room":"general","seq":3}"#,
        r#"{"type":"reaction:add","id":1,"room":"general","seq":3,"emoji":"+"}"#,
    ] {
        assert!(table.says("r", command).has(r#""code":103"#), "{command}");
    }
}

#[test]
fn what_a_device_has_is_told_in_the_low_lane() {
    let mut table = a_message();
    table.says("b", r#"{"type":"message:delivered","id":1,"room":"general","seq":3}"#).gives(
        r#"
        append delivered mark 1 bob b 3
        "#,
    );
    table.commit().gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","seq":3}
        "#,
    );
    table.passes(1_000).only(&["a"]).gives(
        r#"
        a ~ {"type":"delivered:advanced","room":"general","user":"bob","device":"b","delivered":3}
        "#,
    );
    // It has not been read for that.
    let given = table.opens("b2", "bob");
    assert!(given.has(r#""seq":3,"read":2,"delivered":2,"unread":1"#), "{given:?}");
}
