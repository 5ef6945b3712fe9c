//! Ephemeral events, stats, and the mesh.

use antiphon::engine::limits::Limits;

use crate::harness::Table;

fn event(priority: &str) -> String {
    format!(r#"{{"type":"event:send","id":1,"room":"general","name":"wave","data":{{"n":1}},"priority":"{priority}"}}"#)
}

#[test]
fn an_event_goes_to_listeners_here_and_by_the_mesh_to_the_others() {
    let mut table = Table::of_shards(Limits::default(), 2);
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table.joins("b", "general");
    table.says("a", &event("normal")).gives(
        r#"
        a = {"type":"event","room":"general","author":"alice","name":"wave","data":{"n":1},"ts":1000000}
        b = {"type":"event","room":"general","author":"alice","name":"wave","data":{"n":1},"ts":1000000}
        mesh 1 normal {"type":"event","room":"general","author":"alice","name":"wave","data":{"n":1},"ts":1000000}
        a ! {"type":"ok","id":1}
        "#,
    );
    table.says("b", r#"{"type":"room:unsubscribe","room":"general"}"#).whatever();
    table.says("a", &event("low")).gives(
        r#"
        a ~ {"type":"event","room":"general","author":"alice","name":"wave","data":{"n":1},"ts":1000000}
        mesh 1 low {"type":"event","room":"general","author":"alice","name":"wave","data":{"n":1},"ts":1000000}
        a ! {"type":"ok","id":1}
        "#,
    );
    table.says("a", &event("critical")).gives(
        r#"
        a ! {"type":"event","room":"general","author":"alice","name":"wave","data":{"n":1},"ts":1000000}
        mesh 1 critical {"type":"event","room":"general","author":"alice","name":"wave","data":{"n":1},"ts":1000000}
        a ! {"type":"ok","id":1}
        "#,
    );
    let message = table.mesh.pop().unwrap();
    table.meshed(message).gives(
        r#"
        a ! {"type":"event","room":"general","author":"alice","name":"wave","data":{"n":1},"ts":1000000}
        "#,
    );
    assert_eq!((table.engine.stats().ephemeral_in, table.engine.stats().ephemeral_out), (3, 5));
}

#[test]
fn only_who_moderates_sends_critical_events() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table.joins("b", "general");
    table.says("b", &event("critical")).gives(
        r#"
        b ! {"type":"error","id":1,"code":103,"error":"permission_denied","message":"only moderators send critical events","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("b", &event("low")).whatever();
    let promote = r#"{"type":"room:role","room":"general","user":"bob","role":"moderator"}"#;
    table.says("a", promote).whatever();
    table.commit().whatever();
    assert!(table.says("b", &event("critical")).has("b ! {\"type\":\"ok\",\"id\":1}"));
    let mut claims = table.claims("root");
    claims.admin = true;
    table.opens_with("r", "d", claims).whatever();
    table.settle();
    assert!(table.says("r", &event("critical")).has("r ! {\"type\":\"ok\",\"id\":1}"));
}

#[test]
fn an_event_for_some_roles_or_devices_is_heard_by_those() {
    let mut table = Table::of_shards(Limits::default(), 2);
    table.has("a", "alice");
    for (conn, device) in [("p", "phone-1"), ("t", "tablet.x")] {
        let claims = table.claims("bob");
        table.opens_with(conn, device, claims).whatever();
        table.settle();
    }
    table.joins("a", "general");
    table.joins("p", "general");
    table.joins("t", "general");
    let to = |who: &str| format!(r#"{{"type":"event:send","room":"general","name":"n","data":1,{who}}}"#);
    let heard = r#"{"type":"event","room":"general","author":"alice","name":"n","data":1,"ts":1000000}"#;
    let line = |conn: &str| format!("{conn} = {heard}");
    // The author hears it in any case.
    let [author, phone, tablet] = ["a", "p", "t"].map(line);
    let mesh = format!("mesh 1 normal {heard}");
    table.says("a", &to(r#""only_devices":["phone","tv"]"#)).gives(&[&*author, &*phone, &*mesh].join("\n"));
    let message = table.mesh.pop().unwrap();
    table.meshed(message).gives(&[&*author, &*phone].join("\n"));
    table.says("a", &to(r#""only_roles":["member"]"#)).gives(&[&*author, &*phone, &*tablet, &*mesh].join("\n"));
    table.says("a", &to(r#""only_roles":["moderator"]"#)).gives(&[&*author, &*mesh].join("\n"));
    let nobody = to(r#""only_roles":["member"],"only_devices":["watch"]"#);
    table.says("a", &nobody).gives(&[&*author, &*mesh].join("\n"));
    let stats = table.engine.stats();
    assert_eq!((stats.considered_normal, stats.withheld_normal, stats.ephemeral_out), (15 + 1, 1 + 1 + 2 + 2, 9));
    for bad in [r#""only_roles":["banned"]"#, r#""only_roles":"owner""#, r#""only_devices":["a-b"]"#] {
        table.says("a", &to(&format!("{bad},\"id\":1"))).lines("107").pop().expect("refused");
    }
}

#[test]
fn an_event_of_a_room_that_nobody_here_knows_goes_nowhere() {
    let mut table = Table::of_shards(Limits::default(), 2);
    table.has("a", "alice");
    table.joins("a", "general");
    table.says("a", &event("normal")).whatever();
    let message = table.mesh.pop().unwrap();
    let mut other = Table::of_shards(Limits::default(), 2);
    other.meshed(message).gives_nothing();
}

#[test]
fn stats_are_given_to_the_driver_to_complete() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "general");
    table.says("a", r#"{"type":"stats","id":1}"#).gives(
        r#"
        a stats ,"subscriptions":1,"errors_in_a_row":0
        "#,
    );
    table.says("a", r#"{"type":"stats"}"#).gives_nothing();
}
