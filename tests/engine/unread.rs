//! Unread messages in `hello`, the delivered cursor beside them, and hashes in `sync:check`.

use antiphon::engine::event::Entry;
use antiphon::engine::limits::Limits;
use antiphon::engine::tally::hash_text;
use antiphon::protocol::command::Manage;
use antiphon::protocol::ids::{DeviceId, Role, RoomKey, RoomName};

use crate::harness::{Given, Table, user};

/// What `hello` says of the first room: seq, read, delivered, unread.
#[track_caller]
fn hello(given: Given) -> [u64; 4] {
    let line = given.lines("\"hello\"").pop().expect("a hello");
    let json: serde_json::Value = serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap();
    ["seq", "read", "delivered", "unread"].map(|field| json["rooms"][0][field].as_u64().unwrap())
}

/// Of one more device of bob's, and of one after the shard has forgotten him: they must say the same.
#[track_caller]
fn bob_is_told(table: &mut Table, device: &str, due: [u64; 4]) {
    let now = table.now;
    assert_eq!(hello(table.opens_with("again", device, table.claims("bob"))), due, "a loaded user");
    table.closes("again").whatever();
    let mut other = Table::with(Limits::default());
    other.log.kept = table.log.kept.clone();
    other.now = now;
    other.engine = antiphon::engine::shard::Shard::new(other.log.genesis(0, 1), Limits::default().into(), now);
    other.opens_with("again", device, other.claims("bob")).whatever();
    assert_eq!(hello(other.answer()), due, "a user from the store");
}

fn read(table: &mut Table, conn: &str, seq: u64) {
    table.says(conn, &format!(r#"{{"type":"message:read","room":"general","seq":{seq}}}"#)).whatever();
    table.settle();
}

/// alice (1) and bob (2) are in, and alice said 3, 4, 5.
fn three_messages() -> Table {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table.joins("b", "general");
    (0..3).for_each(|_| table.sends("a", "general", "x"));
    table
}

#[test]
fn messages_behind_the_cursor_are_unread() {
    let mut table = three_messages();
    bob_is_told(&mut table, "two", [5, 2, 2, 3]);
    read(&mut table, "b", 3);
    bob_is_told(&mut table, "two", [5, 3, 3, 2]);
    read(&mut table, "b", 4_000);
    bob_is_told(&mut table, "two", [5, 5, 5, 0]);
    read(&mut table, "b", 1);
    bob_is_told(&mut table, "two", [5, 5, 5, 0]);
}

#[test]
fn joins_edits_reactions_and_tombstones_do_not_count() {
    let mut table = three_messages();
    table.has("c", "carol");
    table.joins("c", "general");
    table.says("a", r#"{"type":"message:edit","room":"general","seq":3,"body":"new"}"#).whatever();
    table.says("c", r#"{"type":"reaction:add","room":"general","seq":3,"emoji":"+"}"#).whatever();
    table.settle();
    bob_is_told(&mut table, "two", [8, 2, 2, 3]);
    table.says("a", r#"{"type":"message:delete","room":"general","seq":4}"#).whatever();
    table.settle();
    bob_is_told(&mut table, "two", [9, 2, 2, 2]);
    // What was read before it was deleted is subtracted once.
    read(&mut table, "b", 4);
    bob_is_told(&mut table, "two", [9, 4, 4, 1]);
    table.says("a", r#"{"type":"message:delete","room":"general","seq":3}"#).whatever();
    table.settle();
    bob_is_told(&mut table, "two", [10, 4, 4, 1]);
}

#[test]
fn a_deletion_while_the_user_is_read_counts_once() {
    let mut table = three_messages();
    table.closes("b").whatever();
    // Long enough for the shard to forget bob, while alice stays.
    for _ in 0..10 {
        table.is_heard("a");
        table.passes(20_000).whatever();
    }
    table.opens("b", "bob").whatever();
    let page = table.read_one();
    table.says("a", r#"{"type":"message:delete","room":"general","seq":4}"#).whatever();
    table.commit().whatever();
    assert_eq!(hello(table.hand_over(page)), [6, 2, 2, 2]);
}

#[test]
fn whoever_comes_in_has_read_what_was_said_before() {
    let mut table = three_messages();
    read(&mut table, "b", 3);
    table.says("b", r#"{"type":"room:leave","room":"general"}"#).whatever();
    table.settle();
    table.sends("a", "general", "behind his back");
    table.joins("b", "general");
    bob_is_told(&mut table, "two", [8, 8, 8, 0]);
    table.sends("a", "general", "hello again");
    bob_is_told(&mut table, "two", [9, 8, 8, 1]);
    // The same for a ban that is lifted.
    let manage = |act| Entry::Manage {
        room: RoomName::parse("general").unwrap(),
        by: user("alice"),
        by_admin: false,
        user: user("bob"),
        act,
    };
    table.elsewhere(manage(Manage::Ban));
    table.commit().whatever();
    table.sends("a", "general", "unheard");
    table.elsewhere(manage(Manage::Role(Role::Member)));
    table.commit().whatever();
    bob_is_told(&mut table, "two", [12, 12, 12, 0]);
    // A change of role is none of coming in.
    table.sends("a", "general", "news");
    table.elsewhere(manage(Manage::Role(Role::Moderator)));
    table.commit().whatever();
    bob_is_told(&mut table, "two", [14, 12, 12, 1]);
}

#[test]
fn a_message_may_read_the_room_for_its_author() {
    let mut table = three_messages();
    table.sends("b", "general", "counts for bob himself");
    bob_is_told(&mut table, "two", [6, 2, 2, 4]);
    table.says("b", r#"{"type":"message:send","id":1,"room":"general","body":"y","read":true}"#).gives(
        r#"
        append message of bob to 1
        "#,
    );
    table.commit().whatever();
    bob_is_told(&mut table, "two", [7, 7, 7, 0]);
    assert!(table.passes(1_000).has(r#""type":"read:advanced","room":"general","user":"bob","read":7"#));
    assert!(table.says("b", r#"{"type":"message:send","id":2,"room":"general","body":"y","read":1}"#).has("107"));
    // Who is no member has no cursor, and may write into a public room all the same.
    table.has("z", "zoe");
    table.says("z", r#"{"type":"message:send","id":3,"room":"general","body":"y","read":true}"#).whatever();
    assert!(table.commit().has(r#"z ! {"type":"ok","id":3,"room":"general","seq":8"#));
}

#[test]
fn hello_tells_what_this_device_has() {
    let mut table = three_messages();
    table.says("b", r#"{"type":"message:delivered","room":"general","seq":4}"#).whatever();
    table.settle();
    bob_is_told(&mut table, "b2", [5, 2, 2, 3]);
    table.closes("b").whatever();
    bob_is_told(&mut table, "b", [5, 2, 4, 3]);
    table.elsewhere(Entry::Delivered {
        room: RoomKey(1),
        user: user("bob"),
        device: DeviceId::parse("b2").unwrap(),
        seq: 5,
    });
    table.elsewhere(Entry::Read { room: RoomKey(1), user: user("bob"), seq: 3 });
    table.commit().whatever();
    bob_is_told(&mut table, "b2", [5, 3, 5, 2]);
    bob_is_told(&mut table, "b", [5, 3, 4, 2]);
    bob_is_told(&mut table, "b3", [5, 3, 3, 2]);
}

#[test]
fn a_hash_tells_whether_both_saw_the_same() {
    let limits = Limits { recent_bytes_max: 0, ..Limits::default() };
    let mut table = Table::with(limits);
    table.has("a", "alice");
    table.joins("a", "general");
    (0..5).for_each(|_| table.sends("a", "general", "x"));
    let hash = |seq| hash_text(table.log.kept.tally(RoomKey(1), seq).unwrap().hash);
    let (h0, h3, h6) = (hash(0), hash(3), hash(6));
    let check = |seq: u64, hash: &str| {
        format!(r#"{{"type":"sync:check","id":1,"rooms":[{{"room":"general","seq":{seq},"hash":"{hash}"}}]}}"#)
    };
    let told = |seq: u64, state: &str, hash: &str| {
        format!(
            r#"a ! {{"type":"ok","id":1,"rooms":[{{"room":"general","seq":{seq},"state":"{state}","hash":"{hash}"}}]}}"#
        )
    };
    table.says("a", &check(6, &h6)).gives(&told(6, "ok", &h6));
    table.says("a", &check(6, &h3)).gives(&told(6, "diverged", &h6));
    table.says("a", &check(0, &h0)).gives(&told(6, "behind", &h0));
    // The recent entries do not reach back: the store is asked.
    for (given, state) in [(&h3, "behind"), (&h6, "diverged")] {
        table.says("a", &check(3, given)).gives("a park\nread tallies 1/3");
        table.answer().gives(&format!("{}\na unpark", told(6, state, &h3)));
    }
    // Ahead of the log there is nothing to compare.
    let ahead = table.says("a", &check(7, &h6));
    ahead.gives(r#"a ! {"type":"ok","id":1,"rooms":[{"room":"general","seq":6,"state":"diverged"}]}"#);
    table.says("a", &check(6, "")).gives(&told(6, "ok", &h6));
    for bad in ["12", "zz00000000000000", "+000000000000000"] {
        assert!(table.says("a", &check(1, bad)).has("\"code\":107"), "{bad}");
    }
    let many = vec![format!(r#"{{"room":"general","seq":1,"hash":"{h0}"}}"#); 33].join(",");
    assert!(table.says("a", &format!(r#"{{"type":"sync:check","id":1,"rooms":[{many}]}}"#)).has("\"code\":106"));
}

#[test]
fn recent_entries_tell_the_hash_without_the_store() {
    let mut table = three_messages();
    for seq in 0..=5 {
        let hash = hash_text(table.log.kept.tally(RoomKey(1), seq).unwrap().hash);
        let check =
            format!(r#"{{"type":"sync:check","id":1,"rooms":[{{"room":"general","seq":{seq},"hash":"{hash}"}}]}}"#);
        let state = if seq == 5 { "ok" } else { "behind" };
        table.says("a", &check).gives(&format!(
            r#"a ! {{"type":"ok","id":1,"rooms":[{{"room":"general","seq":5,"state":"{state}","hash":"{hash}"}}]}}"#
        ));
    }
}
