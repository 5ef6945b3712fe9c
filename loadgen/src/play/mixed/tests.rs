//! What a soak notices, and what a day compares.

use super::*;
use crate::cli::{Cli, Scenario};
use crate::watch::{Seen, Sight};

fn args(more: &[&str]) -> MixedArgs {
    let all = ["antiphon-load", "soak", "--secret", "s", "--server-pid", "1"].iter().chain(more).copied();
    let Scenario::Soak(args) = Cli::scenario_of(all) else { panic!("soak was asked for") };
    assert_eq!(args.check(), Ok(()));
    args
}

fn judged(sight: impl Fn(u64) -> Sight) -> Vec<String> {
    let seen = Seen { sights: (0..30).map(sight).collect(), ..Seen::default() };
    let mut verdict = Verdict::default();
    flatness::judge(&mut verdict, &args(&[]), &seen);
    verdict.failures
}

#[test]
fn a_server_that_grows_is_found_out() {
    let flat = Sight { rss_bytes: 100 << 20, fds: 500, threads: 9, wake_p99_us: 300, ..Sight::default() };
    let at = |n: u64| Sight { at_s: n as f64, ..flat };
    assert_eq!(judged(at), [""; 0]);
    assert_eq!(judged(|n| Sight { rss_bytes: (100 + 5 * n) << 20, ..at(n) }).len(), 1);
    assert_eq!(judged(|n| Sight { rss_bytes: (if n < 9 { 100 + 10 * n } else { 190 }) << 20, ..at(n) }), [""; 0]);
    assert_eq!(judged(|n| Sight { fds: 500 + 2 * n, ..at(n) }).len(), 1);
    assert_eq!(judged(|n| Sight { threads: 9 + n / 15, ..at(n) }).len(), 1);
    assert_eq!(judged(|n| Sight { wake_p99_us: 6_000, ..at(n) }).len(), 1);
}

#[test]
fn whoever_sees_something_else_is_noticed() {
    let mut day = Day::new(args(&["--users", "4", "--rooms-of", "2"]), |room| format!("r{room}"));
    let event =
        |body: &str| format!(r#"{{"type":"message:created","room":"r0","seq":1,"author":"u","body":"{body}"}}"#);
    assert_eq!(day.compare(0, 1, event("0000000000000007 x").as_bytes()), Some(7));
    assert_eq!(day.compare(1, 1, event("0000000000000007 x").as_bytes()), Some(7));
    assert_eq!((day.tally.differing, day.members[1].heard), (0, 1));
    day.compare(1, 1, event("0000000000000007 y").as_bytes());
    assert_eq!(day.tally.differing, 1);
    assert_eq!(day.stragglers(), 4, "nobody is in their room");
}

#[test]
fn a_server_that_is_gone_is_not_hammered() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(address) = free.local_addr().unwrap() else { panic!("bound to IPv4") };
    drop(free);
    let world = std::sync::Arc::new(crate::world::tests::world(2, 2, 1, address));
    let mut stage = Stage::new(world, 2).unwrap();
    let mut day = Day::new(args(&["--users", "2", "--rooms-of", "2"]), |room| format!("r{room}"));
    stage.open(0);
    let begun = std::time::Instant::now();
    stage
        .until(&mut day, 10.0, "tries", |day, stage| {
            day.come_back(stage);
            day.failed_tries == 5
        })
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(4 * 50), "{:?}", begun.elapsed());
    assert_eq!(day.ended, 0, "a try is no connection that was closed");
    day.members[1].is_greeted = true;
    day.on(&mut stage, 1, Event::Ended(0));
    assert_eq!((day.ended, day.failed_tries, stage.pending()), (1, 5, 0));
}
