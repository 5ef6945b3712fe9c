//! What a turn of one shard's engine costs, between the sockets and the store.

mod common;

use std::ops::Range;
use std::sync::Arc;

use antiphon::engine::event::{CommittedBatch, ConnKey, Input, LogEntry, RoomRun, StoreEvent};

use common::table::Table;
use common::{Bench, message};

/// Messages in one turn, each of another connection.
const MESSAGES: usize = 64;
/// Entries in a batch, as with 8 messages in flight.
const ENTRIES: usize = 8;
const SUBSCRIBERS: usize = 100;

fn main() {
    common::main("engine", &[messages, batch]);
}

/// In: `message:send`, one of each connection. Out: their appends. Then the core's answers, and the acks.
fn messages(bench: &mut Bench) {
    let mut table = Table::new();
    let conns = table.crowd(MESSAGES, "room-17");
    let json = message("room-17", 128);
    let send = |table: &mut Table| {
        conns.iter().for_each(|conn| table.turn(*conn, &json));
        table.drain();
    };
    let ack = |table: &mut Table| {
        table.collect();
        assert_eq!(table.appends.len(), MESSAGES);
        let answers = table.answers();
        table.give(Input::Store(StoreEvent::Batch(Arc::new(answers))));
    };
    send(&mut table);
    bench.run_prepared(&format!("{MESSAGES} message:send, to appends"), &mut table, ack, send);
    bench.run_prepared(&format!("{MESSAGES} answers, to acks"), &mut table, send, ack);
}

/// In: a committed batch. Out: one fan-out to everybody in the room.
fn batch(bench: &mut Bench) {
    let mut table = Table::new();
    let conns = table.crowd(SUBSCRIBERS, "room-17");
    let json = message("room-17", 128).replace(r#""client_id":"c-000123""#, r#""meta":{}"#);
    conns[..ENTRIES].iter().for_each(|conn: &ConnKey| table.turn(*conn, &json));
    table.drain();
    table.collect();
    let first = table.commits();
    table.give(Input::Store(StoreEvent::Batch(first.clone())));
    let mut state = (table, first);
    bench.run_prepared(
        &format!("a batch of {ENTRIES} to a room of {SUBSCRIBERS}"),
        &mut state,
        |(_, batch)| *batch = Arc::new(next(batch)),
        |(table, batch)| {
            table.give(Input::Store(StoreEvent::Batch(batch.clone())));
            assert_eq!(table.outputs.targets.len(), SUBSCRIBERS);
        },
    );
}

/// The same entries once more, right behind: the shard looks at numbers, never at bytes.
fn next(batch: &CommittedBatch) -> CommittedBatch {
    let run = &batch.runs[0];
    let count = run.entries.len() as u64;
    let entries = run.entries.iter().map(|entry| LogEntry {
        seq: entry.seq + count,
        position: entry.position + count,
        span: Range { ..entry.span.clone() },
        ..entry.clone()
    });
    let run = RoomRun { room: run.room, name: run.name.clone(), entries: entries.collect(), ..*run };
    CommittedBatch {
        first: batch.first + count,
        last: batch.last + count,
        bytes: batch.bytes.clone(),
        runs: vec![run],
        ..CommittedBatch::default()
    }
}
