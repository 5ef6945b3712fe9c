//! What a tick of presence costs when a thousand users have changed and others watch them.

mod common;

use antiphon::engine::event::{ConnKey, Input};

use common::Bench;
use common::table::Table;

const USERS: usize = 1_000;

fn main() {
    common::main("presence", &[users, room]);
}

/// Each user is watched by ten others: by name, a hundred at a time.
fn users(bench: &mut Bench) {
    let mut table = Table::new();
    let conns: Vec<ConnKey> = (0..USERS).map(|n| table.opens(&format!("user-{n}"))).collect();
    for watcher in 0..100 {
        let conn = table.opens(&format!("watcher-{watcher}"));
        let names: Vec<String> = (0..100).map(|n| format!("\"user-{}\"", watcher % 10 * 100 + n)).collect();
        table.says(conn, &format!(r#"{{"type":"presence:subscribe","users":[{}]}}"#, names.join(",")));
    }
    ticks(bench, table, conns, "1000 changes, each watched by 10");
}

/// All are members of one room, which ten of them watch.
fn room(bench: &mut Bench) {
    let mut table = Table::new();
    let conns = table.crowd(USERS, "room-17");
    for conn in &conns[..10] {
        table.says(*conn, r#"{"type":"presence:subscribe","room":"room-17"}"#);
    }
    ticks(bench, table, conns, "1000 changes in a room watched by 10");
}

fn ticks(bench: &mut Bench, table: Table, conns: Vec<ConnKey>, name: &str) {
    let mut state = (table, false);
    let prepare = |(table, is_away): &mut (Table, bool)| {
        table.settle();
        *is_away = !*is_away;
        let status = if *is_away { "away" } else { "online" };
        let set = format!(r#"{{"type":"presence:set","status":"{status}"}}"#);
        conns.iter().for_each(|conn| table.turn(*conn, &set));
        table.settle();
        table.now += 100;
    };
    bench.run_prepared(name, &mut state, prepare, |(table, _)| {
        table.give(Input::Tick);
        assert!(!table.outputs.bytes.is_empty() || !table.outputs.list.is_empty());
    });
}
