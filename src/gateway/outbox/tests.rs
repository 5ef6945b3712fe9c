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
    Class::Log { room: RoomKey(1), first, last }
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
