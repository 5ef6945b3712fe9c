//! What a soak notices, and what a day compares.

use super::*;
use crate::cli::{Cli, Scenario};
use crate::fake::{Fake, Fault, SECRET};
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
fn what_comes_is_held_against_what_was_sent_and_what_others_saw() {
    let nowhere = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 9);
    let world = std::sync::Arc::new(crate::world::tests::world(4, 2, 1, nowhere));
    let stage = Stage::new(world.clone(), 4).unwrap();
    let mut day = Day::new(args(&["--users", "4", "--rooms-of", "2"]), |room| format!("r{room}"));
    day.members.iter_mut().for_each(|member| member.place.is_live = true);
    let message = day.mail.add(0, 1, 0, 7);
    let mut rest = Vec::new();
    day.mail.write(&mut rest, message);
    let (author, rest) = (world.user_name(0), String::from_utf8(rest).unwrap());
    let honest = format!(r#"{{"type":"message:created","room":"r0","seq":1,"author":"{author}"{rest}}}"#);
    assert_eq!((day.hold(&stage, 0, 1, honest.as_bytes()), day.hold(&stage, 1, 1, honest.as_bytes())), (7, 7));
    assert_eq!((day.tally.clone(), day.members[1].heard), (Tally::default(), 1));
    day.hold(&stage, 1, 1, honest.replace(&author, "mallory").as_bytes());
    assert_eq!(day.tally.differing, 1);
    day.hold(&stage, 1, 1, honest.replace("r0", "r1").as_bytes());
    assert_eq!(day.tally.malformed, 1);
    assert_eq!(day.hold(&stage, 1, 2, honest.replace("\"seq\":1", "\"seq\":2").as_bytes()), 0);
    assert_eq!(day.tally.stored_again, 1);
    assert!(day.mail.acked(0, 1, 0, br#"{"type":"ok","id":1,"seq":5}"#, &mut day.tally).is_some());
    assert_eq!(day.tally.wrong_acks, 1, "it stands under 1");
    assert_eq!(day.stragglers(), 2, "nobody has 5");
}

#[test]
fn a_rate_is_of_what_comes_within_the_time() {
    let nowhere = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 9);
    let world = std::sync::Arc::new(crate::world::tests::world(2, 2, 1, nowhere));
    let mut stage = Stage::new(world.clone(), 2).unwrap();
    let mut day = Day::new(args(&["--users", "2", "--rooms-of", "2"]), |room| format!("r{room}"));
    day.members.iter_mut().for_each(|member| member.place.is_live = true);
    day.schedule = Schedule::whole(1_000, 1.0);
    // Meant for before, within, and within; they come within, within, and after.
    for (seq, sent_ns, now_ns) in [(1, 500, 2_000), (2, 2_000, 3_000), (3, 3_000, 1_000_001_000)] {
        let message = day.mail.add(0, seq, 0, sent_ns);
        let mut rest = Vec::new();
        day.mail.write(&mut rest, message);
        let (author, rest) = (world.user_name(0), String::from_utf8(rest).unwrap());
        let entry = format!(r#"{{"type":"message:created","room":"r0","seq":{seq},"author":"{author}"{rest}}}"#);
        stage.now_ns = now_ns;
        day.on_entry(&stage, 1, seq, entry.as_bytes());
        let send = DAY.iter().position(|(act, ..)| *act == Act::Send).unwrap() as u32;
        day.on_ok(&mut stage, 0, send, seq, format!(r#"{{"type":"ok","id":{seq},"seq":{seq}}}"#).as_bytes());
    }
    assert_eq!((day.tally.acked_in_window, day.tally.delivered_in_window), (2, 2));
    assert_eq!((day.meters.ack[0].len(), day.meters.delivery[0].len()), (2, 2), "latencies go by the intended time");
    assert!(day.meters.delivery[0].max() >= 999_000_000);
}

fn failures_against(fault: Fault) -> Vec<String> {
    let url = format!("ws://{}", Fake::start(fault).address);
    // One room, so that everybody hears of everything.
    let mut args = args(&["--users", "8", "--rooms-of", "8", "--rate", "400", "--progress=false"]);
    (args.common.url, args.common.secret, args.common.server_pid) = (url, Some(SECRET.to_owned()), None);
    (args.common.warmup, args.common.duration) = (0.0, 1.0);
    run(&args, false).unwrap().failures
}

#[test]
fn a_server_that_lies_does_not_pass() {
    assert_eq!(failures_against(Fault::None), [""; 0]);
    let cases = [
        (Fault::ForgeForAll, "1 messages with a wrong body"),
        (Fault::OtherTime, "1 messages with a wrong body"),
        (Fault::OtherAuthor, "1 messages with a wrong author"),
        (Fault::StoreTwice, "1 messages stored again under another number"),
        (Fault::Invent, "1 messages that nobody sent"),
        (Fault::AckOnly, "1 messages acknowledged and never delivered"),
        (Fault::WrongAck, "1 acknowledgements that name another message"),
        (Fault::OtherRoom, "frames the protocol does not allow"),
    ];
    for (fault, words) in cases {
        let failures = failures_against(fault);
        assert!(failures.iter().any(|failure| failure.contains(words)), "{fault:?}: {failures:?}");
    }
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
    assert_eq!(day.next_due_ns(), day.later.first().map(|(at_ns, _)| *at_ns), "the next try");
    assert_eq!(day.ended, 0, "a try is no connection that was closed");
    day.members[1].is_greeted = true;
    day.on(&mut stage, 1, Event::Ended(0));
    assert_eq!((day.ended, day.failed_tries, stage.pending()), (1, 5, 0));
}
