//! What the benchmarks share: one way to run them, under criterion's clock or under a count of instructions.
//!
//! A benchmark is a name and something to do again and again. `cargo bench --bench codec [-- FILTER]` has criterion
//! time it. With `ANTIPHON_BENCH_COUNT` set it runs a fixed number of times instead, within [`measured`], where
//! `scripts/bench-diff` has callgrind count; each count is a line on standard output: how many rounds, and of what.
#![allow(dead_code, clippy::unwrap_used, reason = "each benchmark uses its part")]

pub mod table;

use std::hint::black_box;
use std::time::{Duration, Instant};

use antiphon::protocol::encode::{EventKind, LoggedEvent};
use criterion::Criterion;

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds before the count begins: buffers have grown, tables are warm.
const COUNT_WARM_UPS: u32 = 5;
/// Rounds that are counted.
const COUNT_ROUNDS: u32 = 20;

/// Runs the benchmarks of one part.
pub struct Bench {
    part: &'static str,
    /// None: count.
    criterion: Option<Criterion>,
}

/// The `main` of a part.
pub fn main(part: &'static str, groups: &[fn(&mut Bench)]) {
    let criterion = std::env::var_os("ANTIPHON_BENCH_COUNT").is_none().then(|| {
        Criterion::default()
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2))
            .sample_size(40)
            .without_plots()
            .configure_from_args()
    });
    let mut bench = Bench { part, criterion };
    groups.iter().for_each(|group| group(&mut bench));
    if let Some(criterion) = &bench.criterion {
        criterion.final_summary();
    }
}

impl Bench {
    /// Something that leaves things as they were.
    pub fn run<R>(&mut self, name: &str, mut routine: impl FnMut() -> R) {
        let name = format!("{}/{name}", self.part);
        if let Some(criterion) = &mut self.criterion {
            criterion.bench_function(&name, |bencher| bencher.iter(&mut routine));
            return;
        }
        let mut rounds = |count| (0..count).for_each(|_| drop(black_box(routine())));
        rounds(COUNT_WARM_UPS);
        measured(&mut || rounds(COUNT_ROUNDS));
        println!("{COUNT_ROUNDS}\t{name}");
    }

    /// Something that needs `prepare` before each time; only `routine` is measured.
    pub fn run_prepared<S>(
        &mut self,
        name: &str,
        state: &mut S,
        mut prepare: impl FnMut(&mut S),
        mut routine: impl FnMut(&mut S),
    ) {
        let name = format!("{}/{name}", self.part);
        if let Some(criterion) = &mut self.criterion {
            let mut timed = |state: &mut S| {
                prepare(state);
                let began = Instant::now();
                routine(state);
                began.elapsed()
            };
            criterion.bench_function(&name, |bencher| {
                bencher.iter_custom(|rounds| (0..rounds).map(|_| timed(state)).sum());
            });
            return;
        }
        for round in 0..COUNT_WARM_UPS + COUNT_ROUNDS {
            prepare(state);
            if round < COUNT_WARM_UPS {
                routine(state);
            } else {
                measured(&mut || routine(state));
                println!("1\t{name}");
            }
        }
    }
}

/// Callgrind knows this function by its name: its count is zero at the entry and written down at the exit.
#[inline(never)]
fn measured(routine: &mut dyn FnMut()) {
    routine();
    // Something after the call, or it would be a jump.
    black_box(());
}

/// A `message:send` into `room` with a body of so many bytes.
pub fn message(room: &str, body_bytes: usize) -> String {
    let body = "x".repeat(body_bytes);
    format!(r#"{{"type":"message:send","id":123,"room":"{room}","body":"{body}","client_id":"c-000123"}}"#)
}

/// The rest of a logged message's fields, with a body of so many bytes.
pub fn fields(body_bytes: usize) -> String {
    format!(r#""body":"{}","trace":"0123456789abcdef""#, "x".repeat(body_bytes))
}

/// A message as it stands in the log.
pub fn event(fields: &str) -> LoggedEvent<'_> {
    LoggedEvent {
        kind: EventKind::MessageCreated,
        room_json: "\"room-17\"",
        seq: 123_456,
        ts: 1_800_000_000_000,
        author: "alice",
        client_id: Some("c-000123"),
        fields,
    }
}
