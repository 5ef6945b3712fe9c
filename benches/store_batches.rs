//! What the store costs a batch, from the appends handed over until it is committed and told to the shard.
//!
//! `cargo bench --bench store` has rates over seconds, and a bare SQLite loop beside them.

mod common;
#[path = "../tests/store_support/mod.rs"]
mod store_support;

use std::path::Path;

use antiphon::engine::event::{Append, Entry};
use antiphon::protocol::ids::RoomKey;
use antiphon::store::{RoomLog as _, StoreConfig};

use common::Bench;
use store_support::{Store, join, new_message};

/// Rooms that the rows are spread over.
const ROOMS: u64 = 200;

fn main() {
    common::main("store", &[batches]);
}

fn batches(bench: &mut Bench) {
    for size in [1, 10, 100, 1_000] {
        // Beside the build's output: a disk, where the folder for temporary files may be memory.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-batches-{}", std::process::id()));
        let mut config = StoreConfig::new(&dir);
        config.commit_window_us = 0;
        let store = Store::open(&config);
        for room in 0..ROOMS {
            store.committed(join(&format!("room-{room}"), "alice"));
        }
        let mut state = (Vec::<Append>::with_capacity(size), 0);
        let prepare = |(appends, n): &mut (Vec<Append>, u64)| {
            for _ in 0..size {
                *n += 1;
                let client_id = format!("client-{n}");
                let message = new_message(RoomKey(*n % ROOMS + 1), "alice", Some(&client_id), &"x".repeat(64));
                appends.push(store.append(Entry::Message(message)));
            }
        };
        bench.run_prepared(&format!("a batch of {size}"), &mut state, prepare, |(appends, _)| {
            store.log.submit(std::mem::take(appends)).expect("room in the inbox");
            let mut answered = 0;
            while answered < size {
                answered += store.batch().outcomes[0].len();
            }
        });
        store.stop();
        let _ = std::fs::remove_dir_all(&dir);
    }
}
