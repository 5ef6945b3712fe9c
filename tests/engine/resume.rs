//! Resuming: everything after the cursor, or nothing and a word that says so.

use antiphon::engine::event::Page;
use antiphon::engine::limits::Limits;
use antiphon::protocol::ids::RoomKey;

use crate::harness::Table;

/// Alice listens to `general`, which stands at `head` (her join is 1).
fn with(limits: Limits, head: u64) -> Table {
    let mut table = Table::with(limits);
    table.has("a", "alice");
    table.joins("a", "general");
    for number in 2..=head {
        table.sends("a", "general", &format!("m{number}"));
    }
    table.has("b", "bob");
    table
}

fn since(id: u64, epoch: &str, seq: u64) -> String {
    format!(r#"{{"type":"room:subscribe","id":{id},"room":"general","since":{{"epoch":"{epoch}","seq":{seq}}}}}"#)
}

#[test]
fn from_recent_entries_at_once_and_then_live() {
    let mut table = with(Limits::default(), 4);
    table.says("b", &since(1, "e1", 2)).gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":4,"role":null,"members":1,"recovered":true,"events":[{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"m3","trace":"*"},{"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"alice","body":"m4","trace":"*"}]}
        "#,
    );
    table.says("a", r#"{"type":"message:send","room":"general","body":"live"}"#).whatever();
    table.commit().gives(
        r#"
        a general 5 {"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"live","trace":"*"}
        b general 5 {"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"live","trace":"*"}
        "#,
    );
    table.says("b", &since(2, "e1", 5)).gives(
        r#"
        b ! {"type":"ok","id":2,"room":"general","epoch":"e1","seq":5,"role":null,"members":1,"recovered":true,"events":[]}
        "#,
    );
    assert_eq!(table.engine.stats().resume_events_memory, 2);
}

#[test]
fn nothing_is_replayed_without_a_cursor_or_with_one_of_another_history() {
    let mut table = with(Limits::default(), 4);
    table.says("b", r#"{"type":"room:subscribe","id":1,"room":"general"}"#).gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":4,"role":null,"members":1,"recovered":false,"events":[]}
        "#,
    );
    table.says("b", &since(2, "e0", 2)).gives(
        r#"
        b ! {"type":"ok","id":2,"room":"general","epoch":"e1","seq":4,"role":null,"members":1,"recovered":false,"events":[]}
        "#,
    );
}

#[test]
fn a_cursor_ahead_of_the_log_cannot_be_honoured() {
    let mut table = with(Limits::default(), 4);
    table.says("b", &since(1, "e1", 5)).gives(
        r#"
        b ! {"type":"error","id":1,"code":112,"error":"unrecoverable_cursor","message":"the cursor is ahead of the room","temporary":false,"retry_after_ms":0}
        "#,
    );
}

#[test]
fn more_than_resume_events_max_is_not_replayed_in_part() {
    let mut table = with(Limits { resume_events_max: 2, ..Limits::default() }, 4);
    table.says("b", &since(1, "e1", 1)).gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":4,"role":null,"members":1,"recovered":false,"events":[]}
        "#,
    );
    table.says("b", &since(2, "e1", 2)).gives(
        r#"
        b ! {"type":"ok","id":2,"room":"general","epoch":"e1","seq":4,"role":null,"members":1,"recovered":true,"events":[{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"m3","trace":"*"},{"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"alice","body":"m4","trace":"*"}]}
        "#,
    );
}

#[test]
fn from_the_store_when_memory_does_not_reach_back() {
    let mut table = with(Limits { recent_bytes_max: 0, ..Limits::default() }, 3);
    table.says("b", &since(1, "e1", 1)).gives(
        r#"
        read history 1 after 1 before 4 oldest 500
        b park
        "#,
    );
    table.answer().gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":3,"role":null,"members":1,"recovered":true,"events":[{"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"alice","body":"m2","trace":"*"},{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"m3","trace":"*"}]}
        b unpark
        "#,
    );
    assert_eq!(table.engine.stats().resume_events_store, 2);
}

#[test]
fn entries_that_come_while_the_store_is_read_are_not_lost_between() {
    let mut table = with(Limits { recent_bytes_max: 0, ..Limits::default() }, 3);
    table.says("b", &since(1, "e1", 1)).whatever();
    let page = table.read_one();
    table.says("a", r#"{"type":"message:send","room":"general","body":"meanwhile"}"#).whatever();
    table.commit().only(&["b"]).gives_nothing();
    // Not in memory either: the store is asked again, and the connection stays parked.
    table.hand_over(page).gives(
        r#"
        read history 1 after 3 before 5 oldest 500
        "#,
    );
    table.answer().gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":4,"role":null,"members":1,"recovered":true,"events":[{"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"alice","body":"m2","trace":"*"},{"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"alice","body":"m3","trace":"*"},{"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"alice","body":"meanwhile","trace":"*"}]}
        b unpark
        "#,
    );
}

#[test]
fn a_room_that_runs_ahead_of_the_pages_for_ever_is_given_up() {
    let mut table = with(Limits { recent_bytes_max: 0, resume_events_max: 4, ..Limits::default() }, 5);
    table.says("b", &since(1, "e1", 1)).whatever();
    for _ in 0..2 {
        let page = table.read_one();
        for _ in 0..3 {
            table.says("a", r#"{"type":"message:send","room":"general","body":"more"}"#).whatever();
            table.commit().whatever();
        }
        let given = table.hand_over(page);
        if given.has("b unpark") {
            return given.gives(
                r#"
                b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":11,"role":null,"members":1,"recovered":false,"events":[]}
                b unpark
                "#,
            );
        }
    }
    panic!("it would go on for ever");
}

#[test]
fn a_page_with_too_many_bytes_is_not_replayed_in_part() {
    let mut table = with(Limits { recent_bytes_max: 0, resume_bytes_max: 200, ..Limits::default() }, 5);
    table.says("b", &since(1, "e1", 1)).whatever();
    table.answer().gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":5,"role":null,"members":1,"recovered":false,"events":[]}
        b unpark
        "#,
    );
}

#[test]
fn an_empty_page_ends_the_resume() {
    let mut table = with(Limits { recent_bytes_max: 0, ..Limits::default() }, 3);
    table.says("b", &since(1, "e1", 1)).whatever();
    let mut page = table.read_one();
    page.result = Ok(Page::History { json: Vec::new(), entries: Vec::new(), more: false });
    table.hand_over(page).gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":3,"role":null,"members":1,"recovered":false,"events":[]}
        b unpark
        "#,
    );
}

#[test]
fn a_store_that_cannot_be_read_is_said_and_the_connection_goes_on() {
    let mut table = with(Limits { recent_bytes_max: 0, ..Limits::default() }, 3);
    table.says("b", &since(1, "e1", 1)).whatever();
    table.fail_reads().gives(
        r#"
        b ! {"type":"error","id":1,"code":117,"error":"degraded","message":"no reads","temporary":true,"retry_after_ms":500}
        b unpark
        "#,
    );
}

#[test]
fn the_right_is_checked_again_when_the_page_is_there() {
    let mut table = with(Limits { recent_bytes_max: 0, ..Limits::default() }, 3);
    table.says("b", &since(1, "e1", 1)).whatever();
    let page = table.read_one();
    table.says("a", r#"{"type":"room:ban","room":"general","user":"bob"}"#).whatever();
    table.commit().whatever();
    table.hand_over(page).gives(
        r#"
        read history 1 after 3 before 5 oldest 500
        "#,
    );
    table.answer().gives(
        r#"
        b ! {"type":"error","id":1,"code":103,"error":"permission_denied","message":"not allowed in this room","temporary":false,"retry_after_ms":0}
        b unpark
        "#,
    );
    assert_eq!(table.engine.stats().subscriptions, 1);
}

#[test]
fn a_gap_is_told_in_the_lane_of_messages() {
    let mut table = with(Limits::default(), 6);
    table.says("b", &since(1, "e1", 6)).whatever();
    table.drained("b", &[(RoomKey(1), 2)]).gives(
        r#"
        b general 3..6 {"type":"gap","room":"general","last":2,"head":6}
        "#,
    );
    // Also to who no longer listens: the entry that shut them out may be among what was dropped.
    table.says("b", r#"{"type":"room:unsubscribe","room":"general"}"#).whatever();
    table.drained("b", &[(RoomKey(1), 4)]).gives(
        r#"
        b general 5..6 {"type":"gap","room":"general","last":4,"head":6}
        "#,
    );
    table.closes("b").whatever();
    table.drained("b", &[(RoomKey(1), 4)]).gives_nothing();
    assert_eq!(table.engine.stats().gaps, 2);
}

#[test]
fn a_gap_in_a_room_that_was_unloaded_meanwhile_sends_the_client_back_to_resume() {
    let mut table = with(Limits { idle_unload_ms: 0, ..Limits::default() }, 3);
    table.joins("b", "other");
    table.says("b", r#"{"type":"room:leave","room":"other"}"#).whatever();
    table.settle();
    table.is_heard("b");
    table.passes(11_000).whatever();
    table.drained("b", &[(RoomKey(2), 1)]).gives(
        r#"
        b close 4202 gap: events were lost; come back and resume
        "#,
    );
}

#[test]
fn a_join_with_a_cursor_ahead_of_the_log_makes_nobody_a_member() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "general");
    table.has("b", "bob");
    let refused = r#"
        b ! {"type":"error","id":1,"code":112,"error":"unrecoverable_cursor","message":"the cursor is ahead of the room","temporary":false,"retry_after_ms":0}
        "#;
    let join = |room: &str, seq: u64| {
        format!(r#"{{"type":"room:join","id":1,"room":"{room}","since":{{"epoch":"e1","seq":{seq}}}}}"#)
    };
    table.says("b", &join("general", 9)).gives(refused);
    // A room that does not exist, and is not made.
    table.says("b", &join("nowhere", 1)).whatever();
    table.answer().whatever();
    table.comes_again("b").gives(refused);
    assert_eq!((table.log.kept.rooms.len(), table.log.kept.rooms[&RoomKey(1)].members), (1, 1));
    // One that is not ahead is as good as ever.
    table.says("b", &join("general", 1)).whatever();
    assert!(table.commit().has(r#""recovered":true"#));
}
