//! What a storm demands, a view against the truth, and whole storms against the fake server.

use super::super::fake::{Fault, House};
use super::*;
use crate::cli::{Cli, Scenario};

fn args(more: &[&str]) -> PresenceArgs {
    let all = ["antiphon-load", "presence", "--secret", "s"].iter().chain(more).copied();
    let Scenario::Presence(args) = Cli::scenario_of(all) else { panic!("presence was asked for") };
    args
}

#[test]
fn the_grace_decides_what_must_be_seen() {
    let expected = |grace: &str| args(&["--grace-ms", grace]).expectation();
    assert_eq!((args(&[]).drop + args(&[]).away + args(&[]).back) as u32, 9);
    assert_eq!(expected("10000"), Expectation::Unseen);
    assert_eq!(expected("1000"), Expectation::Seen);
    assert_eq!(expected("5500"), Expectation::Either);
    assert!(args(&["--watching", "0"]).check().unwrap_err().contains("--watching"));
}

#[test]
fn a_view_keeps_the_later_version_and_is_compared_with_the_truth() {
    let mut storm = Storm::new(args(&["--users", "4", "--watching", "100"]), "r".to_owned());
    let card = |status, version| Card { user: b"", status, version };
    storm.is_here = vec![true, true, false, true];
    storm.here = 3;
    for slot in [0, 1, 3] {
        storm.views[slot as usize].is_answered = true;
        for user in [0, 1, 3] {
            storm.apply(slot, user, card(b"online", 5));
        }
    }
    assert_eq!((storm.wrong(), storm.is_wrong()), (0, false));
    storm.apply(0, 2, card(b"online", 3));
    assert_eq!(storm.wrong(), 1, "who is not there must not be shown");
    storm.apply(0, 2, card(b"offline", 4));
    storm.apply(0, 2, card(b"online", 3));
    assert_eq!(storm.wrong(), 0, "an older version is ignored");
    storm.apply(1, 3, card(b"away", 6));
    assert_eq!(storm.wrong(), 1);
    storm.views[1].counts = Some([3, 0, 0]);
    assert_eq!(storm.wrong(), 0, "of a counted room only counts are compared");
    storm.views[1].counts = Some([2, 0, 0]);
    assert!(storm.is_wrong());
    // Users 0 and 1 dropped long ago: watcher 3 still shows both, and goes.
    storm.views[1].counts = None;
    (storm.args.grace_ms, storm.dropped_ns) = (500, vec![1, 2]);
    storm.drop_user(3, 10_000_000_000);
    assert_eq!((storm.seen.untold, storm.seen.told, storm.dropped_ns.len()), (2, 0, 3));
    storm.apply(1, 0, card(b"offline", 9));
    storm.drop_user(1, 10_000_000_001);
    assert_eq!((storm.seen.untold, storm.seen.told), (3, 1));
}

#[test]
fn news_are_read_in_both_forms() {
    let listed = br#"{"type":"presence:changed","room":"r","whole":true,"presence":[{"user":"x-1","status":"offline","version":31,"cause":"clean"}]}"#;
    let news = News::of(listed).unwrap();
    assert!(news.is_whole && news.counts.is_none());
    let card = Card::of(&news.cards[1..news.cards.len() - 1]).unwrap();
    assert_eq!((card.user, card.status, card.version), (&b"x-1"[..], &b"offline"[..], 31));
    let counted = br#"{"type":"ok","id":3,"presence":[],"counts":{"online":7,"away":1,"busy":2}}"#;
    assert_eq!(News::of(counted).unwrap().counts, Some([7, 1, 2]));
}

fn storm_against(fault: Fault, grace_ms: &str) -> Report {
    let more =
        ["--users", "20", "--watching", "100", "--drop", "0.1", "--away", "1.1", "--back", "0.1", "--settle", "2"];
    let all = House::start(fault).args("presence", &[&more[..], &["--grace-ms", grace_ms]].concat());
    let Scenario::Presence(args) = Cli::scenario_of(all) else { panic!("presence was asked for") };
    run(&args).unwrap()
}

#[test]
fn every_watcher_comes_to_the_truth_or_it_is_said() {
    let honest = storm_against(Fault::None, "0");
    assert_eq!(honest.failures, [""; 0]);
    let figure = |name: &str| honest.figures.iter().find(|figure| figure.name == name).unwrap().value;
    assert_eq!((figure("changes"), figure("naive_notifications")), (40.0, 380.0), "of who is connected");
    assert!(figure("events_received") > 50.0 && figure("cards_received") > 50.0);
    let stale = storm_against(Fault::Stale, "0");
    assert_eq!(stale.failures, [""; 0], "an older version changes nothing");
    let deaf = storm_against(Fault::Deaf, "0");
    assert!(deaf.failures.iter().any(|failure| failure.starts_with("1 watchers whose view")), "{:?}", deaf.failures);
}

#[test]
fn a_flicker_within_the_grace_is_noticed() {
    let failures = storm_against(Fault::None, "10000").failures;
    assert!(failures.iter().any(|failure| failure.contains("within the grace was shown as gone")), "{failures:?}");
}
