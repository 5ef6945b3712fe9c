//! The outbox: lanes, ladder, arrays, shedding, all without a socket.

use super::*;
use crate::protocol::encode::frame_text;

const LADDER: Ladder = Ladder { low_bytes_max: 40, normal_bytes_max: 80, bytes_max: 120 };

fn frame(text: &str) -> Frames {
    let mut out = Vec::new();
    frame_text(&mut out, |out| out.extend_from_slice(text.as_bytes()));
    Frames::Owned(out.into())
}

fn log(first: Seq, last: Seq) -> Class {
    Class::Log { room: RoomKey(1), first, last, is_patient: false }
}

/// Sends everything, at most `step` bytes a time, and returns the texts in order.
fn drain(outbox: &mut Outbox, step: usize) -> Vec<String> {
    let mut wire = Vec::new();
    while outbox.bytes() > 0 {
        let mut slices = [IoSlice::new(&[]); 3];
        let filled = outbox.slices(&mut slices);
        let all: Vec<u8> = slices[..filled].iter().flat_map(|s| s.iter().copied()).collect();
        let sent = all.len().min(step);
        wire.extend_from_slice(&all[..sent]);
        outbox.advance(sent);
    }
    let mut texts = Vec::new();
    let mut at = 0;
    while at < wire.len() {
        let len = usize::from(wire[at + 1]);
        texts.push(String::from_utf8(wire[at + 2..at + 2 + len].to_vec()).unwrap());
        at += 2 + len;
    }
    texts
}

#[test]
fn lanes_leave_in_order_whatever_the_sends_take() {
    for step in 1..40 {
        let mut outbox = Outbox::default();
        outbox.push(Class::Low { key: 0 }, &frame("low"), &[], &LADDER);
        outbox.push(log(1, 1), &frame("n1"), &[], &LADDER);
        outbox.push(Class::Normal, &frame("n2"), &[], &LADDER);
        outbox.push(Class::Critical, &frame("c1"), &[], &LADDER);
        outbox.push(Class::Critical, &frame("c2"), &[], &LADDER);
        assert_eq!(drain(&mut outbox, step), ["c1", "c2", "n1", "n2", "low"], "step {step}");
        assert!(outbox.is_empty());
    }
}

#[test]
fn the_close_frame_leaves_last() {
    for step in 1..40 {
        let mut outbox = Outbox::default();
        outbox.push(log(1, 1), &frame("n1"), &[], &LADDER);
        outbox.push_last(frame("bye").as_slice(&[]));
        outbox.push(Class::Low { key: 0 }, &frame("low"), &[], &LADDER);
        outbox.push(Class::Critical, &frame("c1"), &[], &LADDER);
        assert_eq!(drain(&mut outbox, step), ["c1", "n1", "low", "bye"], "step {step}");
        outbox.clear();
        assert_eq!((outbox.bytes(), drain(&mut outbox, step).len()), (0, 0));
    }
}

#[test]
fn a_cut_frame_is_finished_before_critical_ones() {
    let mut outbox = Outbox::default();
    outbox.push(log(1, 1), &frame("abcdef"), &[], &LADDER);
    outbox.push(log(2, 2), &frame("next"), &[], &LADDER);
    outbox.advance(3);
    outbox.push(Class::Critical, &frame("ack"), &[], &LADDER);
    let mut slices = [IoSlice::new(&[]); 8];
    assert_eq!(outbox.slices(&mut slices), 3);
    assert_eq!(&*slices[0], b"bcdef");
    assert_eq!(&slices[1][2..], b"ack");
    assert_eq!(&slices[2][2..], b"next");
}

#[test]
fn the_ladder_step_by_step() {
    let mut outbox = Outbox::default();
    let low = |key| Class::Low { key };
    assert_eq!(outbox.push(low(7), &frame("0123456789"), &[], &LADDER), Pushed::Queued);
    assert_eq!(outbox.push(low(7), &frame("abc"), &[], &LADDER), Pushed::Conflated);
    assert_eq!(outbox.bytes(), 5);
    assert_eq!(outbox.push(log(1, 1), &frame(&"x".repeat(38)), &[], &LADDER), Pushed::Queued);
    assert_eq!(outbox.push(low(8), &frame("later"), &[], &LADDER), Pushed::DroppedLow);
    assert_eq!(outbox.step(&LADDER), 2);
    assert_eq!(outbox.push(log(2, 4), &frame(&"y".repeat(40)), &[], &LADDER), Pushed::DroppedNormal);
    assert_eq!(outbox.push(log(5, 5), &frame("z"), &[], &LADDER), Pushed::DroppedNormal, "in the gap");
    assert_eq!(outbox.step(&LADDER), 3);
    assert_eq!(outbox.push(Class::Critical, &frame(&"c".repeat(60)), &[], &LADDER), Pushed::Queued);
    assert_eq!(outbox.push(Class::Critical, &frame(&"c".repeat(60)), &[], &LADDER), Pushed::Overflow);
    assert_eq!(outbox.take_gaps(&LADDER), None, "too much still waits");
    assert_eq!(drain(&mut outbox, 1000).len(), 3);
    assert!(!outbox.is_empty(), "the gap is not told yet");
    assert_eq!(outbox.take_gaps(&LADDER), Some(vec![(RoomKey(1), 1)]));
    assert!(outbox.is_empty());
    assert_eq!(outbox.push(log(6, 6), &frame("z"), &[], &LADDER), Pushed::Queued);
}

#[test]
fn at_the_end_only_the_cut_frame_is_finished() {
    for sent in 0..=14 {
        let mut outbox = Outbox::default();
        outbox.push(log(1, 1), &frame("abcde"), &[], &LADDER);
        outbox.push(log(2, 2), &frame("fghij"), &[], &LADDER);
        outbox.advance(sent);
        outbox.keep_only_cut_frame();
        outbox.push(Class::Critical, &frame("bye"), &[], &LADDER);
        let rest = (7 - sent % 7) % 7;
        assert_eq!(outbox.bytes(), rest + 5, "after {sent}");
    }
}

#[test]
fn a_peer_that_is_cut_off_at_once_still_gets_its_answer() {
    const ANSWER: &[u8] = b"HTTP/1.1 101\r\n\r\n";
    for sent in 0..=ANSWER.len() + 7 {
        let mut outbox = Outbox::default();
        outbox.push_answer(ANSWER);
        outbox.push(Class::Critical, &frame("hello"), &[], &LADDER);
        outbox.advance(sent);
        outbox.keep_only_cut_frame();
        let rest = match sent.checked_sub(ANSWER.len()) {
            None => ANSWER.len() - sent,
            Some(of_hello) => (7 - of_hello) % 7,
        };
        assert_eq!(outbox.bytes(), rest, "after {sent}");
    }
}

fn critical(seq: Seq) -> Class {
    Class::CriticalLog { room: RoomKey(1), first: seq, last: seq }
}

#[test]
fn a_critical_entry_waits_where_others_are_dropped_and_tells_the_gap_first() {
    let mut outbox = Outbox::default();
    outbox.push(log(1, 1), &frame(&"x".repeat(70)), &[], &LADDER);
    assert_eq!(outbox.push(critical(2), &frame("c2-past-the-bound"), &[], &LADDER), Pushed::Queued);
    assert_eq!(outbox.push(log(3, 3), &frame("lost"), &[], &LADDER), Pushed::DroppedNormal);
    assert_eq!(outbox.push(critical(4), &frame("c4"), &[], &LADDER), Pushed::BehindGap(2), "not queued yet");
    outbox.close_gap(RoomKey(1), Bytes::copy_from_slice(frame("gap").as_slice(&[])));
    assert_eq!(outbox.push(critical(4), &frame("c4"), &[], &LADDER), Pushed::Queued);
    assert_eq!(outbox.push(log(5, 5), &frame("lost"), &[], &LADDER), Pushed::DroppedNormal, "a gap of its own");
    let too_much = frame(&"c".repeat(60));
    assert_eq!(outbox.push(critical(6), &too_much, &[], &LADDER), Pushed::BehindGap(4));
    assert_eq!(drain(&mut outbox, 7)[1..], ["c2-past-the-bound", "gap", "c4"]);
    assert_eq!(outbox.take_gaps(&LADDER), Some(vec![(RoomKey(1), 4)]));
    outbox.push(log(7, 7), &frame(&"x".repeat(70)), &[], &LADDER);
    assert_eq!(
        outbox.push(critical(8), &too_much, &[], &LADDER),
        Pushed::Overflow,
        "only the connection's end drops it"
    );
}

#[test]
fn shedding_keeps_the_cut_frame_and_what_stands_before_a_critical_entry() {
    let wide = Ladder { low_bytes_max: 1_000, normal_bytes_max: 1_000, bytes_max: 1_000 };
    let of = |room: u64, seq| Class::Log { room: RoomKey(room), first: seq, last: seq, is_patient: false };
    let mut outbox = Outbox::default();
    outbox.push(of(1, 1), &frame("abc"), &[], &wide);
    outbox.push(of(1, 2), &frame("m2"), &[], &wide);
    outbox.push(Class::Low { key: 3 }, &frame("low"), &[], &wide);
    outbox.advance(2);
    assert_eq!((outbox.shed_low(), outbox.shed_low()), (1, 0));
    assert_eq!(outbox.shed_normal(), 1);
    assert_eq!(outbox.bytes(), 3, "the rest of the cut frame");
    outbox.advance(3);
    assert_eq!(outbox.take_gaps(&wide), Some(vec![(RoomKey(1), 1)]));

    outbox.push(of(1, 3), &frame("m3"), &[], &wide);
    outbox.push(critical(4), &frame("c4"), &[], &wide);
    outbox.push(of(2, 9), &frame("n9"), &[], &wide);
    outbox.push(Class::Normal, &frame("event"), &[], &wide);
    outbox.push(of(1, 5), &frame("m5"), &[], &wide);
    outbox.push(of(2, 10), &frame("n10"), &[], &wide);
    assert_eq!(outbox.shed_normal(), 4);
    assert_eq!(outbox.push(of(1, 6), &frame("m6"), &[], &wide), Pushed::DroppedNormal);
    assert_eq!(drain(&mut outbox, 5), ["m3", "c4"]);
    let mut gaps = outbox.take_gaps(&wide).unwrap();
    gaps.sort_unstable();
    assert_eq!(gaps, [(RoomKey(1), 4), (RoomKey(2), 8)]);
    assert!(outbox.is_empty());
}

#[test]
fn shedding_lowers_a_gap_that_the_ladder_began_later() {
    let mut outbox = Outbox::default();
    outbox.push(log(1, 3), &frame(&"x".repeat(60)), &[], &LADDER);
    outbox.push(log(4, 4), &frame(&"y".repeat(60)), &[], &LADDER);
    assert_eq!(outbox.shed_normal(), 1);
    assert_eq!(outbox.take_gaps(&LADDER), Some(vec![(RoomKey(1), 0)]));
}

const WIDE: Ladder = Ladder { low_bytes_max: 1 << 20, normal_bytes_max: 1 << 20, bytes_max: 1 << 20 };

#[test]
fn arrays_hold_what_waits_in_order_and_replies_stay_single() {
    let mut outbox = Outbox::default();
    outbox.push(log(1, 1), &frame(r#"{"n":1}"#), &[], &WIDE);
    outbox.push(Class::Critical, &frame(r#"{"ok":1}"#), &[], &WIDE);
    outbox.push(Class::Normal, &frame(r#"{"n":2}"#), &[], &WIDE);
    outbox.push(Class::Low { key: 1 }, &frame(r#"{"l":1}"#), &[], &WIDE);
    outbox.push(Class::Low { key: 2 }, &frame(r#"{"l":2}"#), &[], &WIDE);
    outbox.push(Class::Low { key: 1 }, &frame(r#"{"l":3}"#), &[], &WIDE);
    let done = outbox.compose();
    assert_eq!((done.arrays, done.events, done.bytes_before, done.bytes_after), (2, 4, 4 * 9, 2 * 19));
    assert_eq!(outbox.compose(), arrays::Composed::default(), "what was composed is left alone");
    outbox.push(log(2, 2), &frame(r#"{"n":4}"#), &[], &WIDE);
    let alone = outbox.compose();
    assert_eq!((alone.arrays, alone.bytes_before), (0, alone.bytes_after));
    let expected = [r#"{"ok":1}"#, r#"[{"n":1},{"n":2}]"#, r#"{"n":4}"#, r#"[{"l":3},{"l":2}]"#];
    assert_eq!(drain(&mut outbox, 4), expected);
    assert!(outbox.is_empty());
}

/// Frames of any length in one piece, as a run of a committed batch is.
fn run(texts: &[String]) -> Frames {
    let mut out = Vec::new();
    texts.iter().for_each(|text| {
        frame_text(&mut out, |out| out.extend_from_slice(text.as_bytes()));
    });
    Frames::Owned(out.into())
}

#[test]
fn arrays_are_bounded_and_remember_what_a_drop_would_lose() {
    let mut outbox = Outbox::default();
    let small: Vec<String> = (0..150).map(|n| format!("{{\"n\":{n}}}")).collect();
    outbox.push(log(1, 150), &run(&small), &[], &WIDE);
    let large: Vec<String> = (0..3).map(|_| format!("{{\"x\":\"{}\"}}", "y".repeat(30_000))).collect();
    outbox.push(Class::Log { room: RoomKey(2), first: 7, last: 9, is_patient: false }, &run(&large), &[], &WIDE);
    let before = outbox.bytes();
    let done = outbox.compose();
    assert_eq!(done.bytes_before as usize, before);
    assert_eq!(done.bytes_after as usize, outbox.bytes());
    // 64, 64, the last 22 with two large ones (which fit), one large one by itself.
    let first_seqs: Vec<Origin> = outbox.normal.iter().map(|waiting| waiting.origin.clone()).collect();
    let both = Origin::Logs([(RoomKey(1), 128), (RoomKey(2), 6)].into());
    let one = |seq| Origin::Log(RoomKey(1), seq);
    assert_eq!(first_seqs, [one(0), one(64), both, Origin::Log(RoomKey(2), 8)]);
    assert!(outbox.normal.iter().all(|waiting| waiting.piece.as_slice().len() <= arrays::ARRAY_BYTES_MAX + 10));
    outbox.advance(outbox.normal[0].piece.as_slice().len() + 1);
    assert_eq!(outbox.shed_normal(), 2, "the second array is half sent");
    let mut gaps = outbox.gaps.clone();
    gaps.sort_unstable();
    assert_eq!(gaps, [(RoomKey(1), 128), (RoomKey(2), 6)]);
}

#[test]
fn an_empty_outbox_takes_one_large_piece_and_says_when_it_is_too_full_for_more() {
    let critical = Class::CriticalLog { room: RoomKey(1), first: 2, last: 2 };
    for (class, bytes) in [(log(1, 50), LADDER.bytes_max - 2), (critical, LADDER.bytes_max)] {
        let mut outbox = Outbox::default();
        let long = frame(&"x".repeat(bytes));
        assert!(!outbox.is_too_full(class, long.as_slice(&[]).len(), &LADDER));
        assert_eq!(outbox.push(class, &long, &[], &LADDER), Pushed::Queued);
        assert_eq!(outbox.take_gaps(&LADDER), None);
        for more in [log(51, 51), critical, Class::Normal, Class::Critical, Class::Low { key: 0 }] {
            assert!(outbox.is_too_full(more, 1, &LADDER), "{more:?}");
        }
        outbox.advance(outbox.bytes());
        assert!(!outbox.is_too_full(log(51, 51), 1, &LADDER));
    }
    let mut outbox = Outbox::default();
    let endless = frame(&"x".repeat(LADDER.bytes_max - 1));
    assert_eq!(outbox.push(log(1, 50), &endless, &[], &LADDER), Pushed::DroppedNormal);
}

#[test]
fn what_was_shed_is_told_anew() {
    let mut outbox = Outbox::default();
    outbox.push(Class::Low { key: 1 }, &frame("busy"), &[], &LADDER);
    assert_eq!(outbox.shed_low(), 1);
    assert_eq!(outbox.take_gaps(&LADDER), Some(Vec::new()), "only low frames were lost");
    assert_eq!((outbox.shed_low(), outbox.take_gaps(&LADDER)), (0, None), "nothing was there");
}

#[test]
fn a_slow_reader_keeps_no_batch_alive_of_which_little_waits() {
    let bytes: Bytes = frame(&"x".repeat(100)).as_slice(&[]).repeat(10).into();
    let batch = Arc::new(CommittedBatch { bytes, ..CommittedBatch::default() });
    let ladder = Ladder { low_bytes_max: 4_000, normal_bytes_max: 4_000, bytes_max: 4_000 };
    let mut outbox = Outbox::default();
    let (little, much) = (Frames::Batch(batch.clone(), 0..102), Frames::Batch(batch.clone(), 102..918));
    outbox.push(log(1, 1), &little, &[], &ladder);
    outbox.push(log(2, 9), &much, &[], &ladder);
    outbox.push(log(10, 10), &little, &[], &ladder);
    drop((little, much));
    assert_eq!(Arc::strong_count(&batch), 4);
    outbox.let_go_of_last_batch();
    assert_eq!(Arc::strong_count(&batch), 3);
    outbox.let_go_of_batches();
    assert_eq!(Arc::strong_count(&batch), 2, "a copy of most of it would cost more than it frees");
    assert_eq!(drain(&mut outbox, 50), vec!["x".repeat(100); 10]);
}

#[test]
fn a_reply_keeps_its_place_among_the_rooms_entries() {
    let reply = |head| Class::Reply { room: RoomKey(1), head };
    let mut outbox = Outbox::default();
    outbox.push(log(1, 1), &frame("one"), &[], &LADDER);
    outbox.push(reply(1), &frame("left"), &[], &LADDER);
    outbox.push(Class::Critical, &frame("ack"), &[], &LADDER);
    assert_eq!(drain(&mut outbox, 4), ["ack", "one", "left"]);
    // Behind a gap, which is told first; what is dropped later is what comes after it.
    outbox.push(log(2, 2), &frame(&"n".repeat(60)), &[], &LADDER);
    assert_eq!(outbox.push(log(3, 3), &frame(&"n".repeat(60)), &[], &LADDER), Pushed::DroppedNormal);
    assert_eq!(outbox.push(reply(3), &frame("joined"), &[], &LADDER), Pushed::BehindGap(2));
    outbox.close_gap(RoomKey(1), Bytes::from_static(b"gap"));
    assert_eq!(outbox.push(reply(3), &frame("joined"), &[], &LADDER), Pushed::Queued);
    assert_eq!(outbox.shed_normal(), 0);
}

#[test]
fn a_reply_is_no_part_of_an_array() {
    let mut outbox = Outbox::default();
    for seq in 1..=2 {
        outbox.push(log(seq, seq), &frame(&format!(r#"{{"n":{seq}}}"#)), &[], &WIDE);
    }
    outbox.push(Class::Reply { room: RoomKey(1), head: 2 }, &frame(r#"{"ok":1}"#), &[], &WIDE);
    outbox.push(log(3, 3), &frame(r#"{"n":3}"#), &[], &WIDE);
    assert_eq!(outbox.compose().arrays, 1);
    assert_eq!(drain(&mut outbox, 4), [r#"[{"n":1},{"n":2}]"#, r#"{"ok":1}"#, r#"{"n":3}"#]);
}

/// Whoever asks before a push is told what the push does, but for gaps and frames of the same key.
#[test]
fn too_full_is_what_a_push_finds() {
    let classes = [
        Class::Critical,
        Class::CriticalLog { room: RoomKey(1), first: 1, last: 1 },
        Class::Reply { room: RoomKey(1), head: 1 },
        log(1, 1),
        Class::Normal,
        Class::Low { key: 0 },
    ];
    for class in classes {
        for waiting in 3..=LADDER.bytes_max {
            for len in [2, 9, 40] {
                let mut outbox = Outbox::default();
                outbox.push(Class::Critical, &frame(&"x".repeat(waiting - 2)), &[], &LADDER);
                assert_eq!(outbox.bytes(), waiting);
                let is_too_full = outbox.is_too_full(class, len, &LADDER);
                let pushed = outbox.push(class, &frame(&"y".repeat(len - 2)), &[], &LADDER);
                assert_eq!(is_too_full, pushed != Pushed::Queued, "{class:?}: {len} behind {waiting}: {pushed:?}");
            }
        }
    }
}

#[test]
fn an_empty_outbox_takes_one_critical_piece_of_any_size() {
    let large = frame(&"x".repeat(100));
    let ladder = Ladder { low_bytes_max: 10, normal_bytes_max: 20, bytes_max: 50 };
    let mut outbox = Outbox::default();
    assert!(!outbox.is_too_full(Class::Critical, 102, &ladder));
    assert_eq!(outbox.push(Class::Critical, &large, &[], &ladder), Pushed::Queued, "a hello of many rooms");
    assert_eq!(outbox.push(Class::Critical, &frame("x"), &[], &ladder), Pushed::Overflow);
}
