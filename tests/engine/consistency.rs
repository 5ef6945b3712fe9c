//! The background check of rooms: what it asks, what it puts right, and what it gives up on.

use std::sync::Arc;

use antiphon::engine::consistency::ASK_AGAIN_MS;
use antiphon::engine::event::{CommittedBatch, Entry};
use antiphon::engine::limits::Limits;
use antiphon::protocol::ids::{RoomKey, RoomName};

use crate::harness::{Given, Table, user};

const GENERAL: RoomKey = RoomKey(1);
const ROUND_MS: u64 = 1_000;

/// alice (1) is in, and said 2, 3, 4.
fn laid(limits: Limits) -> Table {
    let mut table = Table::checking(limits);
    table.has("a", "alice");
    table.joins("a", "general");
    (0..3).for_each(|_| table.sends("a", "general", "x"));
    table
}

/// One round, answered, and what the core was asked meanwhile is committed and answered too.
fn round(table: &mut Table) -> Vec<String> {
    let mut lines = table.passes(ROUND_MS).only(&["read", "append"]).0;
    while !(table.reads.is_empty() && table.appends.is_empty()) {
        let answered = table.answer().only(&["read", "append"]).0;
        let committed = if table.appends.is_empty() { Vec::new() } else { table.commit().only(&["read", "append"]).0 };
        lines.extend(answered.into_iter().chain(committed));
    }
    lines
}

/// Checked, repaired, diverged.
fn counts(table: &mut Table) -> [u64; 3] {
    let stats = table.engine.stats();
    [stats.rooms_checked, stats.rooms_repaired, stats.rooms_diverged]
}

/// A message, which the shard is told with another sum than it has.
fn is_told_wrong(table: &mut Table) {
    table.says("a", r#"{"type":"message:send","room":"general","body":"y"}"#).whatever();
    let batch = Arc::into_inner(table.commit_only()).expect("nobody else has it");
    let mut runs = batch.runs;
    runs[0].tally.hash ^= 1;
    table.apply(Arc::new(CommittedBatch { runs, ..batch })).whatever();
}

fn hash(given: Given) -> String {
    let line = given.lines("\"hash\"").pop().expect("a hash");
    let json: serde_json::Value = serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap();
    json["rooms"][0]["hash"].as_str().unwrap().to_owned()
}

fn check(table: &mut Table, seq: u64) -> String {
    let said = format!(r#"{{"type":"sync:check","id":9,"rooms":[{{"room":"general","seq":{seq},"hash":""}}]}}"#);
    let given = table.says("a", &said);
    if given.has("\"hash\"") { hash(given) } else { hash(table.settle_with(&["a"])) }
}

fn due(table: &Table, seq: u64) -> String {
    antiphon::engine::tally::hash_text(table.log.kept.tally(GENERAL, seq).unwrap().hash)
}

#[test]
fn rooms_are_checked_in_turn() {
    let mut table = laid(Limits { consistency_rooms_per_s: 2, ..Limits::default() });
    table.joins("a", "second");
    table.joins("a", "third");
    assert_eq!(round(&mut table), ["read audit 1/4", "read audit 2/1"]);
    assert_eq!(round(&mut table), ["read audit 3/1", "read audit 1/4"]);
    assert_eq!(round(&mut table), ["read audit 2/1", "read audit 3/1"]);
    assert_eq!(counts(&mut table), [6, 0, 0]);
    // Each once a round, however many may be.
    let mut table = laid(Limits::default());
    assert_eq!(round(&mut table), ["read audit 1/4"]);
}

#[test]
fn a_round_waits_for_answers_and_for_the_store() {
    let mut table = laid(Limits::default());
    table.passes(ROUND_MS).only(&["read"]).gives("read audit 1/4");
    table.passes(3 * ROUND_MS).only(&["read"]).gives_nothing();
    table.fail_reads().gives_nothing();
    assert_eq!(counts(&mut table), [0, 0, 0], "what could not be read is not checked");
    table.degrades(true).whatever();
    assert_eq!(round(&mut table), [""; 0]);
    table.degrades(false).whatever();
    assert_eq!(round(&mut table), ["read audit 1/4"]);
    let mut off = laid(Limits { consistency_rooms_per_s: 0, ..Limits::default() });
    assert_eq!(round(&mut off), [""; 0]);
}

#[test]
fn entries_that_come_meanwhile_are_no_difference() {
    let mut table = laid(Limits::default());
    table.passes(ROUND_MS).whatever();
    table.says("a", r#"{"type":"message:send","room":"general","body":"late"}"#).whatever();
    table.commit().whatever();
    table.answer().gives_nothing();
    assert_eq!(counts(&mut table), [1, 0, 0]);
}

#[test]
fn recent_entries_that_do_not_add_up_are_dropped() {
    let mut table = laid(Limits::default());
    is_told_wrong(&mut table);
    assert_ne!(check(&mut table, 5), due(&table, 5));
    assert_eq!(round(&mut table), ["append mend 1 5", "read room general"]);
    assert_eq!(check(&mut table, 5), due(&table, 5));
    // The older ones are gone from memory: the store is asked.
    let older = r#"{"type":"sync:check","id":9,"rooms":[{"room":"general","seq":4,"hash":""}]}"#;
    table.says("a", older).only(&["read"]).gives("read tallies 1/4");
    assert_eq!(hash(table.settle_with(&["a"])), due(&table, 4));
    assert_eq!(round(&mut table), ["read audit 1/5"]);
    assert_eq!(counts(&mut table), [2, 1, 0]);
}

#[test]
fn a_memory_that_differs_is_loaded_anew() {
    let mut table = laid(Limits { recent_bytes_max: 0, ..Limits::default() });
    is_told_wrong(&mut table);
    assert_ne!(check(&mut table, 5), due(&table, 5));
    assert_eq!(round(&mut table), ["read audit 1/5", "append mend 1 5", "read room general"]);
    assert_eq!(check(&mut table, 5), due(&table, 5));
    assert_eq!(round(&mut table), ["read audit 1/5"]);
    assert_eq!(counts(&mut table), [2, 1, 0]);
    // And it goes on from there.
    table.sends("a", "general", "z");
    assert_eq!(check(&mut table, 6), due(&table, 6));
}

#[test]
fn nothing_is_lost_to_a_listener_when_the_store_is_ahead_of_the_reload() {
    let mut table = laid(Limits::default());
    is_told_wrong(&mut table);
    table.passes(ROUND_MS).only(&["append"]).gives("append mend 1 5");
    table.commit().only(&["read"]).gives("read room general");
    table.says("a", r#"{"type":"message:send","room":"general","body":"late"}"#).whatever();
    let batch = table.commit_only();
    table.answer().gives_nothing();
    assert_eq!(counts(&mut table), [1, 0, 0], "not yet");
    assert!(table.apply(batch).has("\"late\""));
    assert_eq!(round(&mut table), ["read audit 1/6"]);
    assert_eq!((check(&mut table, 6), counts(&mut table)), (due(&table, 6), [2, 0, 0]));
}

#[test]
fn a_wrong_head_row_is_put_right_by_the_core() {
    let mut table = laid(Limits::default());
    let room = table.log.kept.rooms.get_mut(&GENERAL).unwrap();
    room.tally.messages += 7;
    assert_eq!(round(&mut table), ["read audit 1/4", "append mend 1 4"]);
    assert_eq!(table.log.kept.rooms[&GENERAL].tally.messages, 3);
    assert_eq!(counts(&mut table), [1, 1, 0]);
    // A seq that lags, and a core that has just begun and read it.
    table.log.kept.rooms.get_mut(&GENERAL).unwrap().head = 2;
    table.log.reopen(table.now);
    assert_eq!(round(&mut table), ["read audit 1/4", "append mend 1 4"]);
    table.sends("a", "general", "next");
    assert_eq!(round(&mut table), ["read audit 1/5"]);
    assert_eq!(counts(&mut table), [3, 2, 0]);
}

#[test]
fn a_core_that_remembers_wrongly_is_put_right() {
    let mut table = laid(Limits { recent_bytes_max: 0, ..Limits::default() });
    let right = table.log.kept.rooms[&GENERAL].tally;
    table.log.kept.rooms.get_mut(&GENERAL).unwrap().tally.hash ^= 1;
    table.log.reopen(table.now);
    // The core reads it for a join that changes nothing.
    table.elsewhere(Entry::Join { room: RoomName::parse("general").unwrap(), user: user("alice"), auto_create: false });
    table.commit().whatever();
    table.log.kept.rooms.get_mut(&GENERAL).unwrap().tally = right;
    table.sends("a", "general", "y");
    assert_ne!(check(&mut table, 5), due(&table, 5), "the shard believes the core");
    assert_eq!(round(&mut table), ["read audit 1/5", "append mend 1 5", "read room general"]);
    assert_eq!(counts(&mut table), [1, 2, 0], "the core, and the shard");
    table.sends("a", "general", "z");
    assert_eq!((check(&mut table, 6), round(&mut table)), (due(&table, 6), vec!["read audit 1/6".to_owned()]));
    assert_eq!(counts(&mut table), [2, 2, 0]);
}

#[test]
fn entries_that_do_not_add_up_close_the_room_until_they_do() {
    let mut table = laid(Limits::default());
    table.joins("a", "other");
    table.log.kept.rows[2].ts += 1;
    assert_eq!(round(&mut table), ["read audit 1/4", "read audit 2/1", "append mend 1 4"]);
    assert_eq!(counts(&mut table), [2, 0, 1]);
    for write in [
        r#"{"type":"message:send","id":1,"room":"general","body":"no"}"#,
        r#"{"type":"message:edit","id":1,"room":"general","seq":3,"body":"no"}"#,
        r#"{"type":"message:read","id":1,"room":"general","seq":3}"#,
        r#"{"type":"room:leave","id":1,"room":"general"}"#,
    ] {
        table.says("a", write).whatever();
        let given = table.commit();
        assert!(given.has("\"code\":117") && given.has("retry_after_ms"), "{write}: {given:?}");
    }
    assert_eq!(table.log.kept.rooms[&GENERAL].head, 4);
    table.sends("a", "other", "yes");
    assert_eq!(table.log.kept.rooms[&RoomKey(2)].head, 2, "other rooms go on");
    // Asked again until it is well.
    let asked = |table: &mut Table| {
        let lines: Vec<String> = (0..ASK_AGAIN_MS / ROUND_MS).flat_map(|_| round(table)).collect();
        lines.iter().filter(|line| *line == "append mend 1 4").count()
    };
    assert!(asked(&mut table) >= 1);
    assert_eq!(counts(&mut table)[2], 1);
    table.log.kept.rows[2].ts -= 1;
    assert!(asked(&mut table) >= 1);
    assert_eq!(counts(&mut table)[1..], [0, 0]);
    table.sends("a", "general", "again");
    assert_eq!(table.log.kept.rooms[&GENERAL].head, 5);
}

#[test]
fn missing_entries_are_found_and_stay_in_the_gauge_after_the_room_is_unloaded() {
    let mut table = laid(Limits { idle_unload_ms: 0, ..Limits::default() });
    table.log.kept.rows.pop();
    assert_eq!(round(&mut table), ["read audit 1/4", "append mend 1 4"]);
    table.closes("a").whatever();
    table.passes(20_000).whatever();
    table.settle();
    assert_eq!(table.engine.stats().rooms_loaded, 0);
    assert_eq!(counts(&mut table)[2], 1);
}
