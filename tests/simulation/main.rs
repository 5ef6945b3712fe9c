//! The simulation: shards with the real engine, sequencer and outbox, a store, a mesh, a network and
//! clients that fail by the dice, on one thread with a virtual clock. First safety, then healing.
//!
//! `ANTIPHON_SIM_SEEDS=n` runs that many seeds (2,000 when not set); `ANTIPHON_SIM_FROM=n` begins at
//! another one; `ANTIPHON_SIM_SEED=n` runs just one. A seed that fails is run once more to print its
//! last steps.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails loudly, which is what a test is for")]

mod checker;
mod client;
mod faults;
mod hear;
mod inbox;
mod link;
#[path = "../support/log.rs"]
mod log;
mod network;
mod plan;
mod presence;
mod store;
mod tally;
mod world;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use antiphon::engine::event::Input;
use world::{DAWN, World};

/// Steps that are printed of a run that failed.
const TRACE_LINES: usize = 40;

thread_local! {
    static TRACE: RefCell<Option<VecDeque<String>>> = const { RefCell::new(None) };
}

/// Notes a step, when a failed run is being repeated.
#[macro_export]
macro_rules! trace {
    ($($format:tt)*) => { $crate::note(|| format!($($format)*)) };
}

fn note(line: impl FnOnce() -> String) {
    TRACE.with_borrow_mut(|trace| {
        let Some(lines) = trace else { return };
        if lines.len() == trace_lines() {
            lines.pop_front();
        }
        lines.push_back(line());
    });
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn trace_lines() -> usize {
    number("ANTIPHON_SIM_LINES").map_or(TRACE_LINES, |lines| lines as usize)
}

/// What a run did, so that a test can tell a run that did something from one that did nothing.
#[derive(Default)]
struct Done {
    acks: u64,
    events: u64,
    resumes: u64,
    gaps: u64,
    hidden: u64,
    amended: u64,
    /// Views of presence that were compared with the truth.
    watches: u64,
    /// Unread messages counted, and hashes compared.
    unread: u64,
    hashes: u64,
    /// Items times connections, acknowledged items, and those that went otherwise.
    items: u64,
    items_acked: u64,
    items_evicted: u64,
    items_expired: u64,
    items_dead: u64,
}

fn run(seed: u64) -> Done {
    let mut world = World::new(seed);
    world.run(DAWN + world.plan.run_ms);
    world.heal();
    settle(&mut world);
    // One more word in each room, so that whoever fell off a fan-out list without being told shows.
    world.last_words = true;
    world.run(world.now + world.plan.pause_ms * 2);
    world.last_words = false;
    settle(&mut world);
    presence::calm_down(&mut world);
    let watches = presence::check_converged(&world);
    check_quiet(&mut world);
    presence::check_kept(&world);
    if seed.is_multiple_of(2) {
        presence::check_lost(&mut world);
    }
    if seed % 40 == 3 {
        // Long enough for the last attempt.
        world.run(world.now + 900_000);
        check_quiet(&mut world);
    }
    world.checker.inboxes.check_quiet(&world.store.log.kept);
    // Everybody comes anew and is told how they stand.
    world.is_final = true;
    for client in 0..world.clients.len() {
        if let Some(link) = world.uses[client] {
            world.on_peer_gone(link);
        }
    }
    world.run(world.now + 2_000 + world.plan.pause_ms * 2);
    // Whoever found no room comes again and again, and may have got in a moment ago.
    run_until(&mut world, |world| world.clients.iter().all(client::Client::is_answered));
    check_answered(&world);
    check_inboxes(&world);
    check_given_back(&mut world);
    Done {
        acks: world.checker.acks,
        events: world.checker.events,
        resumes: world.checker.resumes,
        gaps: world.checker.gaps,
        hidden: world.checker.hidden,
        amended: world.checker.amended,
        watches,
        unread: world.checker.unread_counted,
        hashes: world.checker.hashes_compared,
        items: world.checker.inboxes.sent,
        items_acked: world.checker.inboxes.acked,
        items_evicted: world.checker.inboxes.evicted,
        items_expired: world.checker.inboxes.expired,
        items_dead: world.checker.inboxes.dead,
    }
}

/// Runs until nothing is under way, for a time within which every wait must have ended.
fn settle(world: &mut World) {
    // Longer than a stalled client, an unnoticed end of a connection or a retry can take.
    world.run(world.now + 10_000);
    let patience = world.now + 300_000;
    let mut calm = 0;
    while world.now < patience && calm < 3 {
        let is_calm = world.store.is_idle() && world.clients.iter().all(|client| is_settled(world, client));
        calm = if is_calm { calm + 1 } else { 0 };
        world.run(world.now + 1_000);
    }
}

/// Whoever finds no room within the bounds on connections waits outside for ever.
fn is_settled(world: &World, client: &client::Client) -> bool {
    let is_full = world.plan.limits.shard_connections_max < 100;
    client.is_settled() && client.is_greeted() || is_full && !client.is_greeted()
}

/// Nothing waits, and everybody has everything.
fn check_quiet(world: &mut World) {
    // Items of inboxes are tried again and again, each time with an append: look between two of them.
    for _ in 0..200 {
        if world.store.is_idle() && world.shards.iter().all(|shard| shard.engine.unanswered() == 0) {
            break;
        }
        world.run(world.now + 7);
    }
    assert!(world.store.is_idle(), "the store has work left");
    assert!(world.admin_asked.is_empty(), "the admin API was not answered");
    for (number, client) in world.clients.iter().enumerate() {
        assert!(is_settled(world, client), "client waits for ever: {}", client.describe());
        client.check_converged(&world.checker);
        if let Some(link) = world.uses[number] {
            let it = &world.links[link];
            assert!(!it.is_parked, "client {number} is parked for ever");
            let is_revoked =
                checker::Checker::is_revoked(&world.store.log.kept.revocations, &client.user, it.issued_at);
            assert!(!is_revoked, "P9: client {number} is here with a revoked token");
        }
    }
    for shard in 0..world.shards.len() {
        let engine = &mut world.shards[shard].engine;
        assert_eq!(engine.unanswered(), 0, "shard {shard} waits for ever");
        let stats = engine.stats();
        assert_eq!((stats.appends_pending, stats.reads_pending), (0, 0));
        let found = (stats.rooms_repaired, stats.rooms_diverged);
        assert_eq!(found, (0, 0), "shard {shard} found rooms to differ that nobody meddled with");
    }
}

/// Everybody who has just come has been sent what waits for them, and nothing else.
fn check_inboxes(world: &World) {
    for client in world.clients.iter().filter(|client| client.is_greeted()) {
        let (due, may) = world.checker.inboxes.waiting(&client.user, &world.store.log.kept, world.now);
        let has = &client.inbox.waiting;
        // What a narrow outbox drops is sent again in its time, which may be minutes away.
        let is_narrow = world.plan.limits.outbox_normal_bytes_max < 1 << 20;
        assert!(is_narrow || due.is_subset(has), "{} was not sent {due:?} but {has:?}", client.user);
        let gone = has.difference(&may).count() as u64;
        assert!(gone <= world.checker.inboxes.expired + world.checker.inboxes.acked, "{has:?} and {may:?}");
    }
}

fn check_answered(world: &World) {
    for client in &world.clients {
        assert!(client.is_answered(), "client waits for ever: {}", client.describe());
    }
}

/// Goes on until something holds, for at most five seconds.
fn run_until(world: &mut World, holds: impl Fn(&mut World) -> bool) {
    for _ in 0..5_000 {
        if holds(world) {
            break;
        }
        world.run(world.now + 1);
    }
}

/// When everybody has left, all that was taken is given back.
fn check_given_back(world: &mut World) {
    // And may be about to be read at the very end.
    run_until(world, |world| world.shards.iter_mut().all(|shard| shard.engine.stats().reads_pending == 0));
    for link in 0..world.links.len() {
        let (shard, key) = (world.links[link].shard, world.links[link].key);
        if world.links[link].phase == link::Phase::Open && world.link_of(shard, key) == Some(link) {
            world.handle(shard, Input::Closed(key));
        }
    }
    for shard in 0..world.shards.len() {
        // First the users go, and some time later the rooms that were kept for them.
        for _ in 0..8 {
            world.now += u64::from(world.plan.limits.idle_unload_ms) + 6_000;
            world.handle(shard, Input::Tick);
        }
        let stats = world.shards[shard].engine.stats();
        let left = (stats.sessions, stats.users_loaded, stats.rooms_loaded, stats.subscriptions);
        assert_eq!(left, (0, 0, 0, 0), "shard {shard} keeps sessions, users, rooms, subscriptions");
    }
}

/// Runs a seed; when it fails, once more with its steps written down.
fn run_or_explain(seed: u64) -> Done {
    match catch_unwind(AssertUnwindSafe(|| run(seed))) {
        Ok(done) => done,
        Err(_) => {
            TRACE.set(Some(VecDeque::new()));
            let _ = catch_unwind(AssertUnwindSafe(|| run(seed)));
            for line in TRACE.take().into_iter().flatten() {
                println!("{}", line.chars().take(600).collect::<String>());
            }
            panic!("seed {seed} failed: ANTIPHON_SIM_SEED={seed} runs it alone");
        }
    }
}

/// Seeds that once found a fault, of the server or of this harness.
const FOUND: [u64; 11] = [199, 400, 493, 819, 6_105, 8_653, 21_642, 50_145, 55_010, 67_483, 77_676];

#[test]
fn seeds_that_found_something() {
    for seed in FOUND {
        run_or_explain(seed);
    }
}

#[test]
fn seeds() {
    let seeds = match number("ANTIPHON_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("ANTIPHON_SIM_FROM").unwrap_or(0);
            from..from + number("ANTIPHON_SIM_SEEDS").unwrap_or(2_000)
        }
    };
    let is_many = seeds.end - seeds.start >= 100;
    let mut all = Done::default();
    for seed in seeds {
        let done = run_or_explain(seed);
        all.acks += done.acks;
        all.events += done.events;
        all.resumes += done.resumes;
        all.gaps += done.gaps;
        all.hidden += done.hidden;
        all.amended += done.amended;
        all.watches += done.watches;
        all.unread += done.unread;
        all.hashes += done.hashes;
        all.items += done.items;
        all.items_acked += done.items_acked;
        all.items_evicted += done.items_evicted;
        all.items_expired += done.items_expired;
        all.items_dead += done.items_dead;
    }
    let Done { acks, events, resumes, gaps, hidden, amended, watches, unread, hashes, .. } = all;
    let Done { items, items_acked, items_evicted, items_expired, items_dead, .. } = all;
    println!(
        "{acks} acks, {events} events, {resumes} resumes, {gaps} gaps, {hidden} hidden, {amended} edits, {watches} watches, \
         {unread} unread, {hashes} hashes"
    );
    println!(
        "{items} items sent, {items_acked} acked, {items_evicted} evicted, {items_expired} expired, {items_dead} dead"
    );
    if is_many {
        assert!(items > 5_000 && items_acked > 500 && items_evicted > 50 && items_expired > 50, "too tame");
        assert!(items_dead > 0, "nobody gave up");
        assert!(acks > 10_000 && events > 50_000 && resumes > 500 && gaps > 10, "too tame");
        assert!(hidden > 10_000 && amended > 100, "too tame");
        assert!(watches > 500, "nobody watches");
        assert!(unread > 1_000 && hashes > 500, "too tame");
    }
}

#[test]
fn one_seed_is_one_run() {
    let [first, second] = [0, 0].map(|_| {
        let mut world = World::new(7);
        world.run(DAWN + 3_000);
        let rows: Vec<_> = world.store.log.kept.rows.iter().map(|row| (row.seq, row.ts, row.fields.clone())).collect();
        (world.steps, rows)
    });
    assert_eq!(first, second);
}
