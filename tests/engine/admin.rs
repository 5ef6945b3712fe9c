//! What the admin API asks of a shard.

use antiphon::engine::event::AdminAct;
use antiphon::protocol::ids::{Priority, RoomName};

use crate::harness::{Table, user};

fn publish(room: &str, client_id: Option<&str>) -> AdminAct {
    AdminAct::Publish {
        room: RoomName::parse(room).unwrap(),
        author: user("system"),
        client_id: client_id.map(Box::from),
        body: "hear".into(),
        meta: Some(r#"{"a":1}"#.into()),
        priority: Priority::Normal,
    }
}

#[test]
fn publishing_loads_the_room_and_answers_after_the_commit() {
    let mut table = Table::new();
    table.admin(publish("nowhere", None)).gives(
        r#"
        read room nowhere
        "#,
    );
    table.answer().gives(
        r#"
        admin 1 refused 102 unknown_room
        "#,
    );
    table.admin(publish("nowhere", None)).gives(
        r#"
        admin 2 refused 102 unknown_room
        "#,
    );
    table.has("a", "alice");
    table.joins("a", "general");
    table.admin(publish("general", Some("once"))).gives(
        r#"
        append message of system to 1 as once
        "#,
    );
    table.commit().gives(
        r#"
        a general 2 {"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"system","client_id":"once","body":"hear","meta":{"a":1},"trace":"*"}
        admin 3 published general 2
        "#,
    );
    table.admin(publish("general", Some("once"))).whatever();
    table.commit().gives(
        r#"
        admin 4 published general 2
        "#,
    );
    table.degrades(true).whatever();
    table.admin(publish("general", None)).gives(
        r#"
        admin 5 refused 117 degraded
        "#,
    );
}

#[test]
fn disconnecting_closes_every_connection_of_a_user() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "alice");
    let act = AdminAct::Disconnect { user: user("alice"), reason: "enough".into() };
    table.admin(act.clone()).gives(
        r#"
        a close 4003 forbidden: enough
        b close 4003 forbidden: enough
        admin 1 disconnected 2
        "#,
    );
    table.admin(act).gives(
        r#"
        admin 2 disconnected 0
        "#,
    );
}
