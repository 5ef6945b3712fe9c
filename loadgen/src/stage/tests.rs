//! A stage against the fake server: greetings, frames, cuts, and nobody there.

use super::*;
use crate::fake::{Fake, Fault};
use crate::world::tests::world;

#[derive(Default)]
struct Log {
    hellos: Vec<u32>,
    texts: Vec<(u32, String)>,
    ended: Vec<(u32, i64)>,
}

impl Play for Log {
    fn on(&mut self, stage: &mut Stage, slot: u32, event: Event<'_>) {
        match event {
            Event::Hello(payload) => {
                assert!(payload.starts_with(b"{") && stage.is_open(slot));
                self.hellos.push(slot);
                stage.say(slot, |out| {
                    out.extend_from_slice(
                        format!("{{\"type\":\"room:create\",\"id\":9,\"room\":\"{slot}\"}}").as_bytes(),
                    )
                });
            }
            Event::Text(payload) => self.texts.push((slot, String::from_utf8_lossy(payload).into_owned())),
            Event::Ended(code) => self.ended.push((slot, code)),
        }
    }
}

#[test]
fn everybody_is_greeted_heard_and_answered() {
    let fake = Fake::start(Fault::None);
    let mut stage = Stage::new(Arc::new(world(40, 1, 1, fake.address)), 40).unwrap();
    stage.make_at_once(7);
    let mut log = Log::default();
    (0..40).for_each(|slot| stage.open(slot));
    stage.until(&mut log, 10.0, "answers", |log, _| log.texts.len() == 40).unwrap();
    assert_eq!((log.hellos.len(), stage.books.greeted, stage.books.frames_out), (40, 40, 40));
    assert!(log.texts.iter().all(|(_, text)| text.contains("\"ok\"")));
    assert_eq!((stage.pending(), stage.connect.len(), stage.books.malformed), (0, 40, 0));
    assert!(stage.books.bytes_in > 40 * 100);
}

#[test]
fn a_cut_connection_says_nothing_more_and_may_come_again() {
    let fake = Fake::start(Fault::None);
    let mut stage = Stage::new(Arc::new(world(2, 1, 1, fake.address)), 2).unwrap();
    let mut log = Log::default();
    (0..2).for_each(|slot| stage.open(slot));
    stage.until(&mut log, 10.0, "answers", |log, _| log.texts.len() == 2).unwrap();
    stage.cut(0);
    stage.say(0, |_| panic!("a closed connection says nothing"));
    // In the same turn: the descriptor's number may not be taken for the old connection's.
    stage.open(0);
    stage.until(&mut log, 10.0, "the second answer", |log, _| log.texts.len() == 3).unwrap();
    assert_eq!((log.texts[2].0, log.ended.len()), (0, 0));
    assert!(stage.is_open(0) && stage.is_open(1));
}

#[test]
fn a_script_sleeps_no_longer_than_until_it_is_due() {
    let micros = Duration::from_micros;
    assert_eq!([None, Some(9_000_000)].map(|due| pause(due, 1_000_000)), [micros(2_000); 2]);
    assert_eq!((pause(Some(1_300_000), 1_000_000), pause(Some(7), 1_000_000)), (micros(300), micros(0)));
}

#[test]
fn nobody_there_ends_it_with_the_errno() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(address) = free.local_addr().unwrap() else { panic!("bound to IPv4") };
    drop(free);
    let mut stage = Stage::new(Arc::new(world(1, 1, 1, address)), 1).unwrap();
    let mut log = Log::default();
    stage.open(0);
    stage.until(&mut log, 10.0, "the end", |log, _| !log.ended.is_empty()).unwrap();
    assert_eq!((log.ended[0], stage.pending()), ((0, -111), 0));
    stage.is_setting_up = true;
    stage.open(0);
    let begun = std::time::Instant::now();
    let refused = stage.until(&mut log, 10.0, "the set-up", |_, _| false).unwrap_err();
    assert_eq!(refused, format!("cannot connect to {address}: Connection refused (os error 111)"));
    assert!(begun.elapsed() < Duration::from_secs(5), "at once");
    assert!(ended_early("x-1", "Greeting", 4001).contains("--secret-file"));
    assert!(ended_early("x-1", "Greeting", 4105).ends_with("in stage Greeting with code 4105"));
    let late = stage.until(&mut log, 0.01, "a miracle", |_, _| false).unwrap_err();
    assert!(late.contains("a miracle was not done"), "{late}");
}
