//! Joining, leaving, and what others do to a membership. Who may do what is the sequencer's.

use antiphon::engine::event::{Entry, ReadReply};
use antiphon::engine::limits::Limits;
use antiphon::protocol::command::Manage;
use antiphon::protocol::ids::{Role, RoomKind, RoomName};

use crate::harness::{Table, user};

#[test]
fn a_join_is_parked_until_its_commit_and_listens_from_there_on() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.says("a", r#"{"type":"room:join","id":1,"room":"general"}"#).gives(
        r#"
        a park
        append join general alice or create
        "#,
    );
    table.commit().gives(
        r#"
        a ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":1,"role":"owner","members":1,"recovered":false,"events":[]}
        a unpark
        "#,
    );
    // A member already: nothing is written.
    table.says("a", r#"{"type":"room:join","id":2,"room":"general"}"#).gives(
        r#"
        a ! {"type":"ok","id":2,"room":"general","epoch":"e1","seq":1,"role":"owner","members":1,"recovered":false,"events":[]}
        "#,
    );
    table.has("b", "bob");
    table.says("b", r#"{"type":"room:join","id":1,"room":"general"}"#).whatever();
    table.commit().gives(
        r#"
        a general 2 {"type":"room:joined","room":"general","seq":2,"ts":1000000,"user":"bob","role":"member"}
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":2,"role":"member","members":2,"recovered":false,"events":[]}
        b unpark
        "#,
    );
}

#[test]
fn a_refused_join_is_answered_and_the_connection_goes_on() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.says("a", r#"{"type":"room:create","id":1,"room":"den","kind":"private"}"#).gives(
        r#"
        a park
        append create den private by alice with []
        "#,
    );
    table.commit().gives(
        r#"
        a ! {"type":"ok","id":1,"room":"den","seq":1}
        a unpark
        "#,
    );
    table.says("b", r#"{"type":"room:join","id":1,"room":"den"}"#).whatever();
    table.commit().gives(
        r#"
        b ! {"type":"error","id":1,"code":103,"error":"permission_denied","message":"this room is entered by invitation only","temporary":false,"retry_after_ms":0}
        b unpark
        "#,
    );
    table.says("b", r#"{"type":"room:subscribe","id":2,"room":"den"}"#).gives(
        r#"
        b ! {"type":"error","id":2,"code":103,"error":"permission_denied","message":"not allowed in this room","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("b", r#"{"type":"message:send","id":3,"room":"den","body":"x"}"#).gives(
        r#"
        b ! {"type":"error","id":3,"code":103,"error":"permission_denied","message":"not allowed in this room","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("a", r#"{"type":"room:create","id":2,"room":"den","kind":"public"}"#).whatever();
    table.commit().gives(
        r#"
        a ! {"type":"error","id":2,"code":116,"error":"conflict","message":"a room of this name exists","temporary":false,"retry_after_ms":0}
        a unpark
        "#,
    );
}

#[test]
fn a_join_that_resumes_from_the_store_stays_parked_until_its_one_answer() {
    let limits = antiphon::engine::limits::Limits { recent_bytes_max: 0, ..Default::default() };
    let mut table = Table::with(limits);
    table.has("a", "alice");
    table.joins("a", "general");
    table.sends("a", "general", "1");
    table.has("b", "bob");
    table.says("b", r#"{"type":"room:join","id":1,"room":"general","since":{"epoch":"e1","seq":0}}"#).gives(
        r#"
            b park
            append join general bob or create
            "#,
    );
    table.commit().gives(
        r#"
        a general 3 {"type":"room:joined","room":"general","seq":3,"ts":1000000,"user":"bob","role":"member"}
        read history 1 after 0 before 4 oldest 500
        "#,
    );
    table.answer().gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":3,"role":"member","members":2,"recovered":true,"events":[{"type":"room:joined","room":"general","seq":1,"ts":1000000,"user":"alice","role":"owner"},{"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"alice","body":"1","trace":"*"},{"type":"room:joined","room":"general","seq":3,"ts":1000000,"user":"bob","role":"member"}]}
        b unpark
        "#,
    );
}

#[test]
fn leaving_ends_listening_on_every_device() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "alice");
    table.joins("a", "general");
    table.says("b", r#"{"type":"room:subscribe","id":1,"room":"general"}"#).whatever();
    table.says("a", r#"{"type":"room:leave","id":2,"room":"general"}"#).gives(
        r#"
        a park
        append leave general alice
        "#,
    );
    table.commit().gives(
        r#"
        a general 2 {"type":"room:left","room":"general","seq":2,"ts":1000000,"user":"alice"}
        b general 2 {"type":"room:left","room":"general","seq":2,"ts":1000000,"user":"alice"}
        a ! {"type":"ok","id":2,"room":"general","seq":2}
        a unpark
        "#,
    );
    table.says("a", r#"{"type":"room:leave","id":3,"room":"general"}"#).whatever();
    table.commit().gives(
        r#"
        a ! {"type":"error","id":3,"code":110,"error":"not_found","message":"you are not a member of this room","temporary":false,"retry_after_ms":0}
        a unpark
        "#,
    );
    assert_eq!(table.engine.stats().subscriptions, 0);
}

#[test]
fn an_invitation_makes_a_member_who_may_then_subscribe() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.says("a", r#"{"type":"room:create","id":1,"room":"den","kind":"private"}"#).whatever();
    table.commit().whatever();
    table.says("a", r#"{"type":"room:invite","id":2,"room":"den","user":"bob"}"#).gives(
        r#"
        a park
        append manage den bob Invite(Member) by alice
        "#,
    );
    table.commit().gives(
        r#"
        b = {"type":"inbox:item","items":[{"item":1,"name":"invitation","data":{"room":"den","seq":2,"by":"alice"},"priority":"normal","ts":1000000,"expires_ts":605800000,"attempt":1,"from":"alice"}]}
        a ! {"type":"ok","id":2,"room":"den","seq":2}
        a unpark
        "#,
    );
    table.says("b", r#"{"type":"room:subscribe","id":1,"room":"den"}"#).gives(
        r#"
        b ! {"type":"ok","id":1,"room":"den","epoch":"e1","seq":2,"role":"member","members":2,"recovered":false,"events":[]}
        "#,
    );
    table.says("a", r#"{"type":"room:ban","id":3,"room":"den","user":"bob"}"#).whatever();
    table.commit().gives(
        r#"
        b den 3 {"type":"room:kicked","room":"den","seq":3,"ts":1000000,"user":"bob","by":"alice","role":"banned"}
        a ! {"type":"ok","id":3,"room":"den","seq":3}
        a unpark
        "#,
    );
    table.says("b", r#"{"type":"room:subscribe","id":2,"room":"den"}"#).gives(
        r#"
        b ! {"type":"error","id":2,"code":103,"error":"permission_denied","message":"not allowed in this room","temporary":false,"retry_after_ms":0}
        "#,
    );
}

#[test]
fn a_ban_in_a_public_room_shuts_out_who_was_no_member() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table.says("b", r#"{"type":"room:subscribe","id":1,"room":"general"}"#).gives(
        r#"
        b ! {"type":"ok","id":1,"room":"general","epoch":"e1","seq":1,"role":null,"members":1,"recovered":false,"events":[]}
        "#,
    );
    table.says("a", r#"{"type":"room:ban","id":1,"room":"general","user":"bob"}"#).whatever();
    table.commit().gives(
        r#"
        a general 2 {"type":"room:kicked","room":"general","seq":2,"ts":1000000,"user":"bob","by":"alice","role":"banned"}
        b general 2 {"type":"room:kicked","room":"general","seq":2,"ts":1000000,"user":"bob","by":"alice","role":"banned"}
        a ! {"type":"ok","id":1,"room":"general","seq":2}
        a unpark
        "#,
    );
    table.says("b", r#"{"type":"message:history","id":2,"room":"general"}"#).gives(
        r#"
        b ! {"type":"error","id":2,"code":103,"error":"permission_denied","message":"not allowed in this room","temporary":false,"retry_after_ms":0}
        "#,
    );
}

#[test]
fn unsubscribing_is_of_this_connection_only_and_never_fails() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "alice");
    table.joins("a", "general");
    table.joins("b", "general");
    table.says("a", r#"{"type":"room:unsubscribe","id":1,"room":"general"}"#).gives(
        r#"
        a ! {"type":"ok","id":1}
        "#,
    );
    table.says("a", r#"{"type":"room:unsubscribe","id":2,"room":"nowhere"}"#).gives(
        r#"
        a ! {"type":"ok","id":2}
        "#,
    );
    table.says("a", r#"{"type":"message:send","id":3,"room":"general","body":"x"}"#).whatever();
    table.commit().gives(
        r#"
        b general 2 {"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"alice","body":"x","trace":"*"}
        a ! {"type":"ok","id":3,"room":"general","seq":2,"ts":1000000,"duplicate":false,"trace":"*"}
        "#,
    );
}

#[test]
fn members_and_rooms_are_listed_in_pages() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "one");
    table.joins("b", "one");
    table.says("b", r#"{"type":"room:create","room":"secret","kind":"private"}"#).whatever();
    table.settle();
    table.joins("b", "two");
    table.says("a", r#"{"type":"room:members","id":1,"room":"one","limit":1}"#).gives(
        r#"
        a park
        read members 1 1
        "#,
    );
    table.answer().gives(
        r#"
        a ! {"type":"ok","id":1,"members":[{"user":"alice","role":"owner","status":"online"}],"next":"alice"}
        a unpark
        "#,
    );
    table.says("a", r#"{"type":"room:members","id":2,"room":"one","after":"alice"}"#).whatever();
    table.answer().gives(
        r#"
        a ! {"type":"ok","id":2,"members":[{"user":"bob","role":"member","status":"online"}]}
        a unpark
        "#,
    );
    table.says("a", r#"{"type":"room:list","id":3,"limit":1}"#).gives(
        r#"
        a park
        read rooms alice 1
        "#,
    );
    table.answer().gives(
        r#"
        a ! {"type":"ok","id":3,"rooms":[{"room":"one","kind":"public","seq":2,"members":2,"role":"owner"}],"next":"one"}
        a unpark
        "#,
    );
    table.says("b", r#"{"type":"room:list","id":3,"after":"one"}"#).whatever();
    table.answer().gives(
        r#"
        b ! {"type":"ok","id":3,"rooms":[{"room":"secret","kind":"private","seq":1,"members":1,"role":"owner"},{"room":"two","kind":"public","seq":1,"members":1,"role":"owner"}]}
        b unpark
        "#,
    );
}

#[test]
fn sync_check_loads_many_rooms_at_once() {
    let check = |count: usize| {
        let rooms: Vec<String> = (0..count).map(|number| format!(r#"{{"room":"r{number}","seq":1}}"#)).collect();
        format!(r#"{{"type":"sync:check","id":1,"rooms":[{}]}}"#, rooms.join(","))
    };
    // As many reads as may wait, and one after the other where only one may.
    for (reads_max, rounds) in [(16_384, [32, 8, 0]), (1, [1, 1, 0]), (30, [30, 10, 0])] {
        let mut table = Table::with(Limits { reads_max, ..Limits::default() });
        table.has("a", "alice");
        let count = rounds.iter().sum();
        let mut given = table.says("a", &check(count));
        for round in rounds {
            assert_eq!(given.0.iter().filter(|line| line.starts_with("read room")).count(), round, "{given:?}");
            let is_parked = given.0.iter().filter(|line| *line == "a park again").count() == 1;
            assert_eq!(is_parked, round > 0, "{given:?}");
            if is_parked {
                table.answer().gives("a unpark");
                given = table.comes_again("a");
            }
        }
        assert_eq!(given.0.concat().matches(r#""state":"unknown""#).count(), count, "{given:?}");
    }
}

#[test]
fn sync_check_says_where_each_room_stands() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "one");
    table.sends("a", "one", "x");
    let check = r#"{"type":"sync:check","id":1,"rooms":[
        {"room":"one","seq":2},{"room":"one","seq":1},{"room":"one","seq":3},{"room":"nowhere","seq":1}]}"#;
    table.says("a", check).gives(
        r#"
        read room nowhere
        a park again
        "#,
    );
    table.answer().gives(
        r#"
        a unpark
        "#,
    );
    table.comes_again("a").gives(
        r#"
        a ! {"type":"ok","id":1,"rooms":[{"room":"one","seq":2,"state":"ok"},{"room":"one","seq":2,"state":"behind"},{"room":"one","seq":2,"state":"diverged"},{"room":"nowhere","seq":0,"state":"unknown"}]}
        "#,
    );
}

#[test]
fn sync_check_answers_for_every_room_also_for_one_that_was_lost() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "one");
    table.joins("b", "one");
    table.says("a", r#"{"type":"room:create","id":1,"room":"den","kind":"private","members":["bob"]}"#).whatever();
    table.settle();
    table.says("a", r#"{"type":"room:kick","id":2,"room":"den","user":"bob"}"#).whatever();
    table.settle();
    table.says("b", r#"{"type":"sync:check","id":3,"rooms":[{"room":"one","seq":2},{"room":"den","seq":2}]}"#).gives(
        r#"
        b ! {"type":"ok","id":3,"rooms":[{"room":"one","seq":2,"state":"ok"},{"room":"den","seq":0,"state":"unknown"}]}
        "#,
    );
}

/// Eve bans bob from a room of hers, or lets him in, on another shard.
fn elsewhere(table: &mut Table, name: &str, act: Manage) {
    let room = RoomName::parse(name).unwrap();
    table.elsewhere(Entry::Manage { room, by: user("eve"), by_admin: false, user: user("bob"), act });
    table.commit().whatever();
}

#[test]
fn bans_load_no_rooms_and_hold_all_the_same() {
    let mut table = Table::new();
    for number in 0..20 {
        let room = RoomName::parse(&format!("trap-{number}")).unwrap();
        let (kind, creator) = (RoomKind::Public, user("eve"));
        table.elsewhere(Entry::CreateRoom { room, kind, title: None, creator, members: Vec::new() });
        table.commit().whatever();
    }
    for number in 0..10 {
        elsewhere(&mut table, &format!("trap-{number}"), Manage::Ban);
    }
    table.has("b", "bob");
    // Some while he is there, too.
    for number in 10..20 {
        elsewhere(&mut table, &format!("trap-{number}"), Manage::Ban);
    }
    assert_eq!(table.engine.stats().rooms_loaded, 0);
    for trap in ["trap-1", "trap-11"] {
        let commands = [
            format!(r#"{{"type":"room:subscribe","id":1,"room":"{trap}"}}"#),
            format!(r#"{{"type":"message:history","id":1,"room":"{trap}"}}"#),
            format!(r#"{{"type":"presence:subscribe","id":1,"room":"{trap}"}}"#),
            format!(r#"{{"type":"room:members","id":1,"room":"{trap}"}}"#),
            format!(r#"{{"type":"message:send","id":1,"room":"{trap}","body":"x"}}"#),
            format!(r#"{{"type":"room:join","id":1,"room":"{trap}"}}"#),
        ];
        for command in commands {
            let mut given = table.says("b", &command);
            given.0.extend(table.settle_with(&["b"]).0);
            assert!(given.has(r#""code":103"#), "{command}: {given:?}");
        }
    }
    // Nobody needs those two: they go again, and the ban is known still.
    assert_eq!(table.engine.stats().rooms_loaded, 2);
    for _ in 0..60 {
        table.is_heard("b");
        table.passes(20_000).whatever();
        table.settle();
    }
    assert_eq!(table.engine.stats().rooms_loaded, 0);
    for trap in ["trap-1", "trap-12"] {
        elsewhere(&mut table, trap, Manage::Role(Role::Member));
        let given = table.says("b", &format!(r#"{{"type":"room:subscribe","id":2,"room":"{trap}"}}"#));
        assert!(given.has(r#""role":"member","members":2"#), "{given:?}");
        elsewhere(&mut table, trap, Manage::Ban);
        let given = table.says("b", &format!(r#"{{"type":"room:subscribe","id":3,"room":"{trap}"}}"#));
        assert!(given.has(r#""code":103"#), "{given:?}");
    }
}

#[test]
fn who_is_put_out_in_the_batch_of_their_join_is_refused() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "general");
    table.has("b", "bob");
    table.says("b", r#"{"type":"room:join","id":1,"room":"general"}"#).whatever();
    table.says("a", r#"{"type":"room:kick","id":2,"room":"general","user":"bob"}"#).whatever();
    table.commit().only(&["b"]).gives(
        r#"
        b ! {"type":"error","id":1,"code":103,"error":"permission_denied","message":"you were put out of this room at once","temporary":false,"retry_after_ms":0}
        b unpark
        "#,
    );
}

#[test]
fn who_is_put_out_while_their_join_reads_the_store_is_refused() {
    let mut table = Table::with(Limits { recent_bytes_max: 0, ..Limits::default() });
    table.has("a", "alice");
    table.joins("a", "general");
    table.sends("a", "general", "m2");
    table.has("b", "bob");
    let join = |id| format!(r#"{{"type":"room:join","id":{id},"room":"general","since":{{"epoch":"e1","seq":1}}}}"#);
    // The join itself, and then that of a member who listens already.
    table.says("b", &join(1)).whatever();
    table.commit().whatever();
    let first = put_out_meanwhile(&mut table);
    table.hand_over(first).gives(
        r#"
        b ! {"type":"error","id":1,"code":103,"error":"permission_denied","message":"you were put out of this room at once","temporary":false,"retry_after_ms":0}
        b unpark
        "#,
    );
    assert_eq!(table.engine.stats().subscriptions, 1, "alice only");
    table.joins("b", "general");
    assert_eq!(table.engine.stats().subscriptions, 2);
    table.says("b", &join(2)).whatever();
    let second = put_out_meanwhile(&mut table);
    table.hand_over(second).gives(
        r#"
        b ! {"type":"error","id":2,"code":103,"error":"permission_denied","message":"you were put out of this room at once","temporary":false,"retry_after_ms":0}
        b unpark
        "#,
    );
    assert_eq!(table.engine.stats().subscriptions, 1);
    table.says("a", r#"{"type":"message:send","room":"general","body":"alone"}"#).whatever();
    table.commit().only(&["b"]).gives_nothing();
}

/// Alice kicks bob, whose join waits for a page: the page as it was read before.
fn put_out_meanwhile(table: &mut Table) -> ReadReply {
    let page = table.read_one();
    table.says("a", r#"{"type":"room:kick","room":"general","user":"bob"}"#).whatever();
    table.commit().whatever();
    page
}
