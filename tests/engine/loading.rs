//! Rooms and users that are read while the log goes on, and unloaded when nobody needs them.

use antiphon::engine::event::{Entry, NewMessage};
use antiphon::engine::limits::Limits;
use antiphon::protocol::command::Manage;
use antiphon::protocol::ids::{Priority, Role, RoomKey, RoomName};

use crate::harness::{Table, user};

fn say(room: u64, author: &str, text: &str) -> Entry {
    Entry::Message(NewMessage {
        room: RoomKey(room),
        author: user(author),
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

fn join(room: &str, name: &str) -> Entry {
    Entry::Join { room: RoomName::parse(room).unwrap(), user: user(name), auto_create: true }
}

/// `general` exists, made by zoe on another shard; here is alice.
fn with(limits: Limits) -> Table {
    let mut table = Table::with(limits);
    table.elsewhere(join("general", "zoe"));
    table.commit().gives_nothing();
    table.has("a", "alice");
    table
}

const SUBSCRIBE: &str = r#"{"type":"room:subscribe","id":1,"room":"general"}"#;

#[test]
fn a_room_is_read_once_and_the_frame_comes_again() {
    let mut table = with(Limits::default());
    table.has("b", "bob");
    table.says("a", SUBSCRIBE).gives(
        r#"
        read room general
        a park again
        "#,
    );
    table.says("b", SUBSCRIBE).gives(
        r#"
        b park again
        "#,
    );
    table.answer().gives(
        r#"
        a unpark
        b unpark
        "#,
    );
    table.comes_again("a").gives(
        r#"
        a ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":1,"role":null,"members":1,"recovered":false,"events":[]}
        "#,
    );
    table.comes_again("b").whatever();
    table.elsewhere(say(1, "zoe", "x"));
    table.commit().gives(
        r#"
        a general 2 {"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"zoe","body":"x"}
        b general 2 {"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"zoe","body":"x"}
        "#,
    );
}

#[test]
fn a_page_older_than_the_shard_is_brought_up_to_date() {
    let mut table = with(Limits::default());
    table.says("a", SUBSCRIBE).whatever();
    let page = table.read_one();
    table.elsewhere(say(1, "zoe", "later"));
    table.commit().gives_nothing();
    table.hand_over(page).whatever();
    table.comes_again("a").gives(
        r#"
        a ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":2,"role":null,"members":1,"recovered":false,"events":[]}
        "#,
    );
    // What was caught up is in memory for resumes, and the next entry follows it.
    table.says("a", r#"{"type":"room:subscribe","id":2,"room":"general","since":{"epoch":"e1","seq":1}}"#).gives(
        r#"
        a ! {"type":"ok","id":2,"room":"general","epoch":"e1","seq":2,"role":null,"members":1,"recovered":true,"events":[{"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"zoe","body":"later"}]}
        "#,
    );
    table.elsewhere(say(1, "zoe", "next"));
    table.commit().gives(
        r#"
        a general 3 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"zoe","body":"next"}
        "#,
    );
}

#[test]
fn who_comes_in_past_the_entry_that_shuts_them_out_is_cut_off() {
    let mut table = with(Limits::default());
    table.has("b", "bob");
    let room = RoomName::parse("general").unwrap();
    table.elsewhere(Entry::Manage { room, by: user("zoe"), by_admin: false, user: user("alice"), act: Manage::Ban });
    let banned = table.commit_only();
    for conn in ["a", "b"] {
        table.says(conn, SUBSCRIBE).whatever();
    }
    table.answer().whatever();
    for conn in ["a", "b"] {
        assert!(table.comes_again(conn).has(r#""seq":2"#), "the room is ahead of the shard");
    }
    table.apply(banned).only(&["a", "b"]).gives("a close 4202 gap: a room was lost while it was entered");
    table.has("a2", "alice");
    assert!(table.says("a2", SUBSCRIBE).has(r#""code":103"#));
    table.elsewhere(say(1, "zoe", "next"));
    table.commit().gives(
        r#"
        b general 3 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"zoe","body":"next"}
        "#,
    );
}

#[test]
fn a_page_newer_than_the_shard_makes_it_skip_what_it_has_seen() {
    let mut table = with(Limits::default());
    table.elsewhere(say(1, "zoe", "early"));
    let batch = table.commit_only();
    table.says("a", SUBSCRIBE).whatever();
    table.answer().whatever();
    table.comes_again("a").gives(
        r#"
        a ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":2,"role":null,"members":1,"recovered":false,"events":[]}
        "#,
    );
    table.apply(batch).gives_nothing();
    table.elsewhere(say(1, "zoe", "next"));
    table.commit().gives(
        r#"
        a general 3 {"type":"message:created","room":"general","seq":3,"ts":1000000,"author":"zoe","body":"next"}
        "#,
    );
}

#[test]
fn a_page_so_old_that_memory_does_not_reach_it_is_asked_for_again() {
    let mut table = with(Limits { recent_bytes_max: 0, ..Limits::default() });
    table.says("a", SUBSCRIBE).whatever();
    let page = table.read_one();
    table.elsewhere(say(1, "zoe", "later"));
    table.commit().gives_nothing();
    table.hand_over(page).gives(
        r#"
        read room general
        "#,
    );
    table.answer().gives(
        r#"
        a unpark
        "#,
    );
}

#[test]
fn a_room_that_is_not_there_is_remembered_until_it_is() {
    let mut table = with(Limits::default());
    let ask = r#"{"type":"message:history","id":1,"room":"new"}"#;
    table.says("a", ask).gives(
        r#"
        read room new
        a park again
        "#,
    );
    table.answer().whatever();
    table.comes_again("a").gives(
        r#"
        a ! {"type":"error","id":1,"code":102,"error":"unknown_room","message":"there is no such room","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("a", ask).gives(
        r#"
        a ! {"type":"error","id":1,"code":102,"error":"unknown_room","message":"there is no such room","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.elsewhere(join("new", "zoe"));
    table.commit().gives_nothing();
    table.says("a", ask).gives(
        r#"
        read room new
        a park again
        "#,
    );
}

#[test]
fn a_room_born_while_it_is_looked_for_is_found() {
    let mut table = with(Limits::default());
    table.says("a", r#"{"type":"room:subscribe","id":1,"room":"new"}"#).whatever();
    let page = table.read_one();
    table.elsewhere(join("new", "zoe"));
    table.commit().gives_nothing();
    table.hand_over(page).whatever();
    table.comes_again("a").gives(
        r#"
        a ! {"type":"ok","id":1,"room":"new","epoch":"e1","seq":1,"role":null,"members":1,"recovered":false,"events":[]}
        "#,
    );
}

#[test]
fn a_room_that_cannot_be_read_refuses_the_frame_when_it_comes_again() {
    let mut table = with(Limits::default());
    table.says("a", SUBSCRIBE).whatever();
    table.fail_reads().gives(
        r#"
        a unpark
        "#,
    );
    table.comes_again("a").gives(
        r#"
        a ! {"type":"error","id":1,"code":117,"error":"degraded","message":"no reads","temporary":true,"retry_after_ms":500}
        "#,
    );
    // The next one asks anew.
    table.says("a", SUBSCRIBE).gives(
        r#"
        read room general
        a park again
        "#,
    );
}

#[test]
fn membership_changes_while_a_user_is_read_are_not_lost() {
    let mut table = with(Limits::default());
    table.elsewhere(join("general", "bob"));
    table.commit().gives_nothing();
    table.opens("b", "bob").whatever();
    let page = table.read_one();
    let room = RoomName::parse("general").unwrap();
    table.elsewhere(Entry::Manage { room, by: user("zoe"), by_admin: false, user: user("bob"), act: Manage::Kick });
    table.elsewhere(join("second", "bob"));
    table.commit().gives_nothing();
    table.hand_over(page).gives(
        r#"
        b ! {"type":"hello","session":"*","user":"bob","device":"b","epoch":"e1","ts":1000000,"heartbeat_ms":25000,"token_expires_ts":4600000,"rooms":[{"room":"second","seq":1,"read":1,"delivered":1,"unread":0,"role":"owner"}],"limits":{"message_bytes_max":16384,"body_bytes_max":8192,"data_bytes_max":4096,"meta_bytes_max":1024,"rooms_max":256,"subscriptions_max":256,"dedupe_window_ms":600000,"resume_events_max":500,"resume_bytes_max":1048576,"commands_per_second":200,"messages_per_second":100},"inbox":0}
        b unpark
        "#,
    );
    assert_eq!(table.engine.stats().rooms_loaded, 2);
}

#[test]
fn changes_that_a_users_page_has_seen_are_not_applied_twice() {
    let mut table = with(Limits::default());
    table.elsewhere(join("general", "bob"));
    let joined = table.commit_only();
    let room = RoomName::parse("general").unwrap();
    let act = Manage::Role(Role::Moderator);
    table.elsewhere(Entry::Manage { room, by: user("zoe"), by_admin: false, user: user("bob"), act });
    let raised = table.commit_only();
    table.has("b", "bob");
    table.apply(joined).gives_nothing();
    table.apply(raised).gives_nothing();
    table.says("b", r#"{"type":"room:join","id":1,"room":"general"}"#).gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":3,"role":"moderator","members":2,"recovered":false,"events":[]}
        "#,
    );
}

#[test]
fn read_marks_while_a_user_is_read_are_not_lost() {
    let mut table = with(Limits::default());
    table.elsewhere(join("general", "bob"));
    table.elsewhere(say(1, "zoe", "x"));
    table.commit().gives_nothing();
    table.opens("b", "bob").whatever();
    let page = table.read_one();
    table.elsewhere(Entry::Read { room: RoomKey(1), user: user("bob"), seq: 3 });
    table.commit().gives_nothing();
    let given = table.hand_over(page);
    assert!(given.has(r#""seq":3,"read":3"#), "{given:?}");
}

#[test]
fn the_idle_are_unloaded_and_their_places_given_to_others() {
    let mut table = with(Limits { idle_unload_ms: 10_000, ..Limits::default() });
    table.joins("a", "mine");
    table.says("a", SUBSCRIBE).whatever();
    table.settle();
    table.closes("a").whatever();
    table.passes(9_000).whatever();
    let stats = table.engine.stats();
    assert_eq!((stats.users_loaded, stats.rooms_loaded), (1, 2));
    table.passes(60_000).whatever();
    let stats = table.engine.stats();
    assert_eq!((stats.users_loaded, stats.rooms_loaded, stats.recent_bytes > 0), (0, 0, true));
    // Other users and rooms in their places; entries of the old ones go nowhere.
    table.has("b", "bob");
    table.joins("b", "other");
    table.elsewhere(say(1, "zoe", "nobody here listens"));
    table.elsewhere(say(3, "bob", "bob listens"));
    table.commit().gives(
        r#"
        b other 2 {"type":"message:created","room":"other","seq":2,"ts":1069000,"author":"bob","body":"bob listens"}
        "#,
    );
    table.passes(200_000).whatever();
    assert_eq!(table.engine.stats().recent_bytes, 0, "old batches go");
}

#[test]
fn a_room_that_is_unloaded_under_a_resume_says_busy() {
    let limits = Limits { recent_bytes_max: 0, idle_unload_ms: 0, ..Limits::default() };
    let mut table = with(limits);
    table.says("a", r#"{"type":"room:subscribe","id":1,"room":"general","since":{"epoch":"e1","seq":0}}"#).whatever();
    table.answer().whatever();
    table.comes_again("a").whatever();
    let page = table.read_one();
    table.passes(11_000).only(&["append", "read"]).gives_nothing();
    assert_eq!(table.engine.stats().rooms_loaded, 0);
    table.hand_over(page).gives(
        r#"
        a ! {"type":"error","id":1,"code":113,"error":"busy","message":"the room was unloaded meanwhile","temporary":true,"retry_after_ms":100}
        a unpark
        "#,
    );
}
