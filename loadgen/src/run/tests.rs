//! Whole runs against the fake server: an honest one passes, and each fault is found and named.

use super::*;
use crate::dialect::Dialect;
use crate::fake::{Fake, Fault};
use crate::plan::tests::plan;
use crate::plan::{Absence, Traffic};
use crate::world::tests::world;

fn run_against(fault: Fault, clients: u32, rooms_of: u32, threads: u32, plan: Plan) -> Outcome {
    let fake = Fake::start(fault);
    run_at(Arc::new(world(clients, rooms_of, threads, fake.address)), plan)
}

fn run_plain(fault: Fault, plan: Plan) -> Outcome {
    let fake = Fake::start_plain(fault);
    let mut world = world(5, 5, 1, fake.address);
    world.dialect = Dialect::Plain;
    run_at(Arc::new(world), plan)
}

fn run_at(world: Arc<World>, plan: Plan) -> Outcome {
    let options = RunOptions { server_pid: Some(std::process::id()), ..RunOptions::default() };
    run(&world, &Arc::new(plan), &options).unwrap()
}

/// The failures of one room of five, and the tally.
fn failures(fault: Fault) -> (Vec<String>, Tally) {
    let outcome = run_against(fault, 5, 5, 1, plan());
    assert!(outcome.tally.acked > 60, "{fault:?}: only {} messages", outcome.tally.acked);
    (outcome.tally.failures(), outcome.tally)
}

#[test]
fn an_honest_server_passes_and_is_measured() {
    let plan = Plan { traffic: Traffic::Closed { in_flight: 3 }, ..plan() };
    let outcome = run_against(Fault::None, 20, 5, 2, plan);
    let tally = &outcome.tally;
    assert_eq!(tally.failures(), [""; 0]);
    assert!(tally.acked_in_window > 0 && tally.delivered == tally.acked * 5, "{tally:?}");
    assert!(tally.sampled > 0 && tally.sent == tally.acked);
    assert_eq!(outcome.meters.ack[0].len() * 5, outcome.meters.delivery[0].len());
    assert_eq!(outcome.meters.connect.len(), 20);
    let server = outcome.server.unwrap();
    assert!(server.rss_ready > Some(0) && server.window.unwrap().total_s > 0.0);
    assert!((outcome.measured_s - 0.5).abs() < 0.3, "{}", outcome.measured_s);
}

#[test]
fn a_room_may_span_threads() {
    let plan = Plan { traffic: Traffic::Closed { in_flight: 4 }, ..plan() };
    let outcome = run_against(Fault::None, 9, 9, 3, plan);
    assert_eq!(outcome.tally.failures(), [""; 0]);
    assert!(outcome.tally.acked > 0 && outcome.tally.delivered == outcome.tally.acked * 9);
}

#[test]
fn threads_compare_what_they_saw() {
    // The victim of the forgery is alone in its thread, so that only the digests can tell.
    let outcome = run_against(Fault::Forge, 2, 2, 2, plan());
    assert!(outcome.tally.differing > 0 || outcome.tally.wrong_bodies > 0, "{:?}", outcome.tally);
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let plan = Plan { traffic: Traffic::Open { per_second: 400.0 }, ..plan() };
    let outcome = run_against(Fault::None, 10, 5, 2, plan);
    assert_eq!(outcome.tally.failures(), [""; 0]);
    assert!((180..=220).contains(&outcome.meters.ack[0].len()), "{}", outcome.meters.ack[0].len());
}

#[test]
fn every_step_has_the_servers_cores() {
    let traffic = Traffic::Steps { from: 100.0, to: 200.0, steps: 3 };
    let plan = Plan { traffic, duration_s: 0.3, ..plan() };
    let fake = Fake::start(Fault::None);
    let world = Arc::new(world(5, 5, 1, fake.address));
    let outcome = run_at(world.clone(), plan.clone());
    let report = crate::report::report(&world, &plan, &outcome, Vec::new(), Vec::new());
    let windows = report.traffic.unwrap().windows;
    assert!(windows.len() == 3 && windows.iter().all(|window| window.server_cores.is_some()), "{windows:?}");
}

#[test]
fn each_joins_by_itself() {
    let plan = Plan { setup: Setup::JoinEach, traffic: Traffic::None, warmup_s: 0.0, ..plan() };
    let outcome = run_against(Fault::None, 40, 10, 1, plan);
    assert_eq!(outcome.tally.failures(), [""; 0]);
    assert_eq!(outcome.meters.connect.len(), 40);
}

#[test]
fn a_polling_tool_is_judged_by_what_it_did_in_the_time_that_is_measured() {
    let fake = Fake::start(Fault::None);
    let polling = |plan: Plan| {
        let mut world = world(10, 5, 1, fake.address);
        world.busy_poll = true;
        run_at(Arc::new(world), plan)
    };
    let traffic = polling(plan());
    assert!(traffic.polled_s > Some(0.0) && traffic.polled_s <= Some(traffic.tool_s), "{:?}", traffic.polled_s);
    // While connecting it sleeps as any other does: the kernel tells how long it worked.
    let plan = Plan { setup: Setup::JoinEach, traffic: Traffic::None, warmup_s: 0.0, ..plan() };
    assert_eq!(polling(plan).polled_s, None);
}

#[test]
fn every_fault_is_found_and_named() {
    let cases = [
        (Fault::Drop, "1 deliveries lost"),
        (Fault::Double, "1 deliveries doubled"),
        (Fault::Swap, "1 deliveries out of order"),
        (Fault::ForgeForAll, "1 messages with a wrong body"),
        (Fault::WrongAck, "1 acknowledgements that name another message"),
        (Fault::WrongGap, "1 gap events with a wrong `last`"),
        (Fault::Garbage, "1 frames the protocol does not allow"),
        (Fault::StoreTwice, "1 messages stored again under another number"),
        (Fault::Invent, "1 messages that nobody sent"),
        (Fault::AckOnly, "1 messages acknowledged and never delivered"),
        (Fault::OtherTime, "1 messages with a wrong body"),
        (Fault::OtherAuthor, "1 messages with a wrong author"),
    ];
    for (fault, words) in cases {
        assert_eq!(failures(fault).0, [words], "{fault:?}");
    }
    // Whose connection it was may have had a message on its way.
    assert!(failures(Fault::Close).0.contains(&"1 connections closed unasked".to_owned()));
    let strange = failures(Fault::StrangeGap).0;
    assert_eq!(strange, ["1 deliveries lost", "1 frames the protocol does not allow"]);
    // Whoever is read first is believed: the victim against the others, or they against it.
    let (named, tally) = failures(Fault::Forge);
    assert!(matches!((tally.differing, tally.wrong_bodies), (1, 0) | (4, 1)), "{named:?}");
}

#[test]
fn lost_acks_and_refusals_end_a_message_not_the_run() {
    // One message in flight: the room falls silent, and the run says why.
    let no_ack = run_against(Fault::NoAck, 5, 5, 1, plan());
    assert_eq!(no_ack.tally.failures(), ["1 commands without a reply"]);
    let refused = run_against(Fault::Refuse, 5, 5, 1, plan());
    assert_eq!(refused.tally.failures(), ["1 messages refused for good"]);
    assert_eq!(refused.tally.errors.get(&103), Some(&1));
}

#[test]
fn what_the_server_announces_is_no_failure() {
    let (failed, tally) = failures(Fault::ToldGap);
    assert_eq!((failed, tally.gaps, tally.excused), (Vec::new(), 1, 1));
    let (failed, tally) = failures(Fault::Busy);
    assert_eq!(failed, [""; 0]);
    assert!(tally.errors[&113] > 0 && tally.sent == tally.acked + tally.errors[&113], "{tally:?}");
}

#[test]
fn a_server_of_another_kind_is_not_believed_either() {
    let honest = run_plain(Fault::None, plan()).tally;
    assert!(honest.failures().is_empty() && honest.acked > 60, "{honest:?}");
    for (fault, words) in [
        (Fault::StoreTwice, "1 messages stored again under another number"),
        (Fault::Invent, "1 messages that nobody sent"),
        (Fault::AckOnly, "1 messages acknowledged and never delivered"),
        (Fault::WrongAck, "1 acknowledgements that name another message"),
        (Fault::OtherTime, "1 messages with a wrong body"),
    ] {
        let tally = run_plain(fault, plan()).tally;
        assert_eq!(tally.failures(), [words], "{fault:?}");
        // The second copy of a message, and one that nobody sent, are no deliveries of messages.
        assert_eq!(tally.delivered, (tally.acked - tally.acked_only) * 5, "{fault:?}");
    }
}

#[test]
fn what_a_server_never_accepts_is_no_success() {
    let plan = Plan { traffic: Traffic::Open { per_second: 200.0 }, duration_s: 0.3, warmup_s: 0.0, ..plan() };
    let tally = run_against(Fault::BusyForGood, 5, 5, 1, plan).tally;
    let open = tally.never_accepted + tally.unanswered;
    assert!(tally.acked == 9 && (50..=53).contains(&open) && tally.put_off > open, "{tally:?}");
    assert!(tally.failures().iter().any(|failure| failure.ends_with("messages were never accepted")));
}

fn resume(fault: Fault) -> Tally {
    let absence = Some(Absence { from_s: 0.15, to_s: 0.3 });
    let traffic = Traffic::Open { per_second: 300.0 };
    let plan = Plan { first_member_sends: true, absence, traffic, duration_s: 0.8, ..plan() };
    run_against(fault, 10, 5, 1, plan).tally
}

#[test]
fn resumes_close_the_gap_or_are_found_out() {
    let good = resume(Fault::None);
    assert_eq!((good.failures(), good.recovered, good.not_recovered), (Vec::new(), 8, 0));
    assert!(good.resumed_entries > 8, "{good:?}");
    let forgetful = resume(Fault::Forgetful);
    assert_eq!((forgetful.failures(), forgetful.not_recovered), (Vec::new(), 8));
    assert!(forgetful.excused > 0);
    assert_eq!(resume(Fault::SilentResume).failures(), ["8 deliveries lost"]);
}

#[test]
fn nobody_there_is_said_in_one_sentence() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(address) = free.local_addr().unwrap() else { panic!("bound to IPv4") };
    drop(free);
    let error = run(&Arc::new(world(3, 3, 1, address)), &Arc::new(plan()), &RunOptions::default()).unwrap_err();
    assert!(error.contains("cannot connect") && error.contains("refused"), "{error}");
}

/// A process that is there for so long, whatever the server does.
fn mortal(seconds: &str) -> std::process::Child {
    std::process::Command::new("sleep").arg(seconds).spawn().unwrap()
}

#[test]
fn a_process_that_goes_in_mid_run_is_a_finding_and_takes_no_figures_away() {
    let fake = Fake::start(Fault::None);
    let mut process = mortal("0.4");
    let options = RunOptions { server_pid: Some(process.id()), ..RunOptions::default() };
    let world = Arc::new(world(5, 5, 1, fake.address));
    let plan = Plan { traffic: Traffic::Open { per_second: 100.0 }, ..plan() };
    let outcome = run(&world, &Arc::new(plan.clone()), &options).unwrap();
    // Nobody has asked how it ended: its entry in /proc still stands.
    assert_eq!(outcome.trouble, [format!("the server's process is gone (--server-pid {})", process.id())]);
    assert!(outcome.tally.acked > 40 && outcome.tally.failures().is_empty());
    let report = crate::report::report(&world, &plan, &outcome, Vec::new(), outcome.trouble.clone());
    let server = report.server.as_ref().unwrap();
    assert!(server.connect_cpu_s.is_some() && server.rss_ready.is_some(), "what was read before is told");
    assert!(server.cpu_s.is_none() && server.rss_end.is_none() && !report.passed);
    process.wait().unwrap();
    let wrong = run(&world, &Arc::new(plan), &options).unwrap_err();
    assert!(wrong.contains("--server-pid"), "asked for wrongly from the start: {wrong}");
}

#[test]
fn nothing_is_connected_before_the_clock_of_connecting_runs() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = std::io::Read::read(&mut stream, &mut [0; 512]);
            // Time enough for everybody to connect meanwhile.
            std::thread::sleep(Duration::from_millis(300));
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nx 1\n").unwrap();
        }
    });
    let fake = Fake::start(Fault::None);
    let options = RunOptions { metrics: Some(url), ..RunOptions::default() };
    let outcome = run(&Arc::new(world(5, 5, 1, fake.address)), &Arc::new(plan()), &options).unwrap();
    let slowest_s = outcome.meters.connect.max() as f64 / 1e9;
    assert!(outcome.connect_s >= slowest_s * 0.99, "{} s for all, {slowest_s} s for one", outcome.connect_s);
}

#[test]
fn a_control_listener_that_goes_is_a_finding_too() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let control = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = std::io::Read::read(&mut stream, &mut [0; 512]);
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nx 1\n").unwrap();
    });
    let fake = Fake::start(Fault::None);
    let options = RunOptions { metrics: Some(url), ..RunOptions::default() };
    let outcome = run(&Arc::new(world(5, 5, 1, fake.address)), &Arc::new(plan()), &options).unwrap();
    control.join().unwrap();
    assert!(outcome.trouble.len() == 1 && outcome.trouble[0].starts_with("--control http://"), "{:?}", outcome.trouble);
    let wrong = run(&Arc::new(world(5, 5, 1, fake.address)), &Arc::new(plan()), &options).unwrap_err();
    assert!(wrong.contains("--control"), "{wrong}");
}
