//! kill -9 while the store writes: a child process appends as fast as it can and says what was
//! acknowledged; it is killed; what it said must stand, once, in order.

#![allow(clippy::unwrap_used)]

mod store_support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use antiphon::engine::event::StoreEvent;
use antiphon::protocol::ids::RoomKey;
use store_support::*;

const CHILD: &str = "ANTIPHON_STORE_KILL_CHILD";

/// Not a test of its own: what the child runs. Without its variable it does nothing.
#[test]
fn child() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let (dir, from) = text.split_once(' ').unwrap();
    let dir = std::mem::ManuallyDrop::new(TempDir(dir.into()));
    let store = Store::open(&config(&dir));
    let key = store.committed(join("a", "alice")).room;
    let (mut out, mut n) = (std::io::stdout().lock(), from.parse::<usize>().unwrap());
    loop {
        for _ in 0..20 {
            store.submit(vec![numbered(key, "alice", n)]);
            n += 1;
        }
        let StoreEvent::Batch(batch) = store.event() else { continue };
        for run in &batch.runs {
            for entry in &run.entries {
                let json: serde_json::Value = serde_json::from_slice(&batch.bytes[entry.json_span()]).unwrap();
                if let Some(id) = json["client_id"].as_str() {
                    writeln!(out, "acked {id} {}", entry.seq).unwrap();
                }
            }
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_by_a_kill() {
    let dir = TempDir::new();
    let mut acked: Vec<(String, u64)> = Vec::new();
    let mut epoch = None;
    for round in 0..5 {
        let from = round * 1_000_000;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, format!("{} {from}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            let parse = |line: String| {
                let (id, seq) = line.strip_prefix("acked ")?.split_once(' ')?;
                Some((id.to_owned(), seq.parse::<u64>().ok()?))
            };
            lines.filter_map(parse).collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(400));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = reader.join().unwrap();
        assert!(!said.is_empty(), "round {round}: the child wrote");
        acked.extend(said);

        let store = Store::open(&config(&dir));
        assert_eq!(epoch.get_or_insert(store.origin.epoch.clone()), &store.origin.epoch);
        assert!(store.origin.took < Duration::from_secs(2), "{:?}", store.origin.took);
        for (id, seq) in acked.iter().rev().take(2_000) {
            let n = id.strip_prefix('c').unwrap().parse().unwrap();
            let again = store.committed(numbered(RoomKey(1), "alice", n));
            assert_eq!((again.seq, again.duplicate), (*seq, true), "round {round}: {id}");
        }
        store.stop();
    }
    let report = antiphon::store::inspect::inspect(dir.path(), true).unwrap();
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    assert_eq!(report.rooms[0].head, report.last.unwrap().0);
    assert!(report.rooms[0].head > acked.len() as u64);
}
