//! kill -9 under load, again and again; then everything is read back and compared with what every
//! client sent, saw and was told. Holds P1 to P4 and P7 of the promises.
//!
//! `actor` is a client that never gives up, `checker` the judge, `loader` fills the store beforehand.
//! `scripts/kill-loop 20` runs the long form against the release build.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod actor;
mod checker;
mod loader;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actor::{Actor, World};
use support::{Options, now_ms};

/// Rooms that the actors talk in.
const ROOMS: [&str; 4] = ["room-0", "room-1", "room-2", "room-3"];
/// Clients that send.
const WRITERS: usize = 8;
/// Clients that only listen.
const LISTENERS: usize = 2;

/// How hard the server is tried.
struct Trial {
    rounds: u32,
    /// Messages that are in the store before the first round.
    stored: u64,
    /// Sent per second by all writers together, while the server is up.
    rate: u32,
    shards: u16,
    /// The server lives for so many milliseconds: from, to.
    life_ms: (u64, u64),
    /// What must hold beside the promises.
    rate_min: f64,
    ready_max: Duration,
    /// Done to the database while the server is dead.
    sabotage: Option<&'static str>,
}

impl Trial {
    /// A short one. Debug builds on a busy machine are slow: figures are for the long form.
    fn short(rounds: u32) -> Self {
        Self {
            rounds,
            stored: 20_000,
            rate: 2_500,
            shards: 2,
            life_ms: (700, 2_200),
            rate_min: 200.0,
            ready_max: Duration::from_secs(10),
            sabotage: None,
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_a_few_kills() {
    run(&Trial::short(4));
}

/// The judges are judged: a store that breaks a promise is found out, and not by waiting in vain.
#[test]
fn broken_promises_are_noticed() {
    let sabotages = [
        ("the last messages are lost", "DELETE FROM log WHERE position > (SELECT max(position) FROM log) - 20"),
        ("one message is lost", "DELETE FROM log WHERE position = (SELECT max(position) FROM log) - 300"),
        ("client_ids are forgotten", "UPDATE log SET client_id = client_id || '-' WHERE position > 20100"),
        ("another history", "UPDATE meta SET value = 'another' WHERE key = 'epoch'"),
        ("a body changes", "UPDATE log SET fields = replace(fields, 'message', 'massage') WHERE position > 20100"),
    ];
    for (what, sabotage) in sabotages {
        let trial = Trial { life_ms: (700, 900), sabotage: Some(sabotage), ..Trial::short(1) };
        let panic = std::panic::catch_unwind(|| run(&trial)).expect_err(what);
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        assert!(message.is_some_and(|message| !message.contains("waiting for")), "{what}: {message:?}");
    }
}

#[test]
#[ignore = "minutes; scripts/kill-loop runs it"]
fn kill_loop() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let trial = Trial {
        rounds: number("KILL_ROUNDS", 20) as u32,
        stored: number("KILL_STORED", 1_000_000),
        rate: number("KILL_RATE", 3_000) as u32,
        shards: number("KILL_SHARDS", 2) as u16,
        life_ms: (800, 3_500),
        rate_min: 2_000.0,
        ready_max: Duration::from_secs(2),
        sabotage: None,
    };
    run(&trial);
}

fn run(trial: &Trial) {
    let mut random = now_ms() | 1;
    let seed = random;
    let mut server = Options::shards(trial.shards).with("--resume-events-max", "60").start();
    let loaded = loader::load(server.public, trial.stored);
    let world = Arc::new(World::new(server.public));
    let actors: Vec<_> = (0..WRITERS + LISTENERS)
        .map(|number| {
            let rate = if number < WRITERS { f64::from(trial.rate) / WRITERS as f64 } else { 0.0 };
            let (world, actor) = (world.clone(), Actor::new(number, rate));
            std::thread::spawn(move || actor.run(&world))
        })
        .collect();
    world.wait_until_all_joined(WRITERS + LISTENERS);
    let (mut up, mut ready) = (Duration::ZERO, Vec::new());
    for round in 1..=trial.rounds {
        let began = Instant::now();
        std::thread::sleep(Duration::from_millis(between(&mut random, trial.life_ms)));
        server.kill();
        up += began.elapsed();
        if let Some(sabotage) = trial.sabotage {
            let db = rusqlite::Connection::open(server.data_dir().join("antiphon.db")).unwrap();
            db.execute_batch(sabotage).unwrap();
        }
        server.restart();
        world.move_to(server.public);
        ready.push(server.ready_after);
        eprintln!("round {round}: {} acked, ready after {} ms", world.acked(), server.ready_after.as_millis());
    }
    // The last life is long enough for everybody to come back.
    let began = Instant::now();
    std::thread::sleep(Duration::from_millis(trial.life_ms.1));
    up += began.elapsed();
    let acked_per_s = world.acked() as f64 / up.as_secs_f64();
    world.settle(&server);
    let join = |actor: JoinHandle<Actor>| actor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let actors: Vec<Actor> = actors.into_iter().map(join).collect();
    let found = checker::check(&server, &actors, &loaded);
    let slowest = ready.iter().max().copied().unwrap_or_default();
    println!(
        "kill -9: {} rounds, {} stored before, {:.0} messages/s acked while up, {} sent, {} acked, {} stored, 0 lost, \
         0 doubled, {} answered as duplicates, {} resumes whole, {} told to load history, {} deliveries seen, one epoch, \
         ready after {} ms at most, {} shards, seed {seed}",
        trial.rounds,
        loaded.messages,
        acked_per_s,
        found.sent,
        found.acked,
        found.stored,
        found.duplicates,
        found.resumed,
        found.told,
        found.seen,
        slowest.as_millis(),
        trial.shards,
    );
    assert!(acked_per_s >= trial.rate_min, "only {acked_per_s:.0} messages/s");
    // On a machine that is busy with other things the wait for a core counts too.
    let busy = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    assert!(slowest <= trial.ready_max, "ready only after {slowest:?}; load average {busy}");
}

/// A number within bounds, from a xorshift.
fn between(state: &mut u64, (from, to): (u64, u64)) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    from + *state % (to - from)
}
