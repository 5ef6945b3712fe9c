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
