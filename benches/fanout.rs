//! What it costs to show one message to everybody: encoded once, queued for each, taken out in slices.

mod common;

use std::hint::black_box;
use std::io::IoSlice;
use std::sync::Arc;

use antiphon::engine::event::{Class, CommittedBatch, Frames};
use antiphon::engine::limits::Limits;
use antiphon::gateway::outbox::{Ladder, Outbox};
use antiphon::protocol::encode;
use antiphon::protocol::ids::RoomKey;

use common::{Bench, event, fields};

fn main() {
    common::main("fanout", &[fan_out]);
}

fn fan_out(bench: &mut Bench) {
    let ladder = Ladder::of(&Limits::default());
    let fields = fields(128);
    let event = event(&fields);
    let class = Class::Log { room: RoomKey(17), first: event.seq, last: event.seq, is_patient: false };
    for count in [10, 100, 1_000] {
        let mut outboxes: Vec<Outbox> = (0..count).map(|_| Outbox::default()).collect();
        bench.run(&format!("a message to {count}"), || {
            let mut bytes = Vec::with_capacity(512);
            encode::frame_text(&mut bytes, |out| black_box(&event).write_json(out));
            let span = 0..bytes.len() as u32;
            let batch = Arc::new(CommittedBatch { bytes: bytes.into(), ..CommittedBatch::default() });
            let frames = Frames::Batch(batch, span);
            for outbox in &mut outboxes {
                outbox.push(class, &frames, &[], &ladder);
            }
            for outbox in &mut outboxes {
                let mut slices = [IoSlice::new(&[]); 64];
                let filled = outbox.slices(&mut slices);
                let bytes = slices[..filled].iter().map(|slice| slice.len()).sum();
                outbox.advance(black_box(bytes));
            }
        });
    }
}
