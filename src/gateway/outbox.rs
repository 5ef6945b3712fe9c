//! What waits to be sent to one connection: three lanes, and the ladder for slow consumers.
//!
//! Pure: it is handed frames and asked for slices; who sends them says how many bytes went.
//! Order of sending: whatever a send has cut in the middle, then critical, then normal, then low,
//! then the close frame, after which nothing may come (RFC 6455 section 5.5.1).
//!
//! The ladder, by bytes that wait:
//! 1. a low frame replaces a waiting one of the same key (always)
//! 2. past `low_bytes_max` low frames are dropped
//! 3. past `normal_bytes_max` log entries are dropped: their room is *in a gap* and gets nothing
//!    more until the outbox has drained, when the engine puts one `gap` event in their place
//! 4. past `bytes_max`, or with no progress for too long (the driver's clock), the connection ends
//!
//! An idle connection has no outbox at all: the driver lends one while something waits.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::event::{Class, CommittedBatch, Frames};
use crate::engine::limits::Limits;
use crate::protocol::ids::{RoomKey, Seq};

/// Past what an outbox climbs its ladder, bytes.
#[derive(Debug, Clone, Copy)]
pub struct Ladder {
    /// Low frames are dropped.
    pub low_bytes_max: usize,
    /// Normal frames are dropped.
    pub normal_bytes_max: usize,
    /// The connection ends.
    pub bytes_max: usize,
}

impl Ladder {
    /// The ladder in `limits`.
    pub fn of(limits: &Limits) -> Self {
        Self {
            low_bytes_max: limits.outbox_low_bytes_max as usize,
            normal_bytes_max: limits.outbox_normal_bytes_max as usize,
            bytes_max: limits.outbox_bytes_max as usize,
        }
    }
}

/// What became of a pushed frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It waits.
    Queued,
    /// It took the place of an older one (step 1).
    Conflated,
    /// Dropped, low lane (step 2).
    DroppedLow,
    /// Dropped, normal lane (step 3).
    DroppedNormal,
    /// There is no room even for critical frames (step 4): end the connection.
    Overflow,
}

/// Bytes that can be sent as they are.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    Batch(Arc<CommittedBatch>, std::ops::Range<u32>),
}

impl Piece {
    fn new(frames: &Frames, scratch: &[u8]) -> Self {
        match frames {
            Frames::Scratch(_) => Self::Bytes(Bytes::copy_from_slice(frames.as_slice(scratch))),
            Frames::Owned(bytes) => Self::Bytes(bytes.clone()),
            Frames::Batch(batch, span) => Self::Batch(batch.clone(), span.clone()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Batch(batch, span) => &batch.bytes[span.start as usize..span.end as usize],
        }
    }
}

/// One connection's waiting frames.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Small frames, copied together.
    critical: Vec<u8>,
    /// Bytes of `critical` that were sent.
    critical_sent: usize,
    normal: VecDeque<Piece>,
    low: VecDeque<(u64, Bytes)>,
    /// Bytes of the front of `normal` that were sent: it must be finished first.
    normal_sent: usize,
    /// Likewise for `low`.
    low_sent: usize,
    /// The close frame, once there is one.
    last: Vec<u8>,
    /// Bytes of `last` that were sent.
    last_sent: usize,
    /// All bytes that wait.
    bytes: usize,
    /// Rooms whose entries were dropped, with the last seq that was not.
    gaps: Vec<(RoomKey, Seq)>,
}

/// How far back a waiting low frame of the same key is looked for.
const CONFLATE_LOOK_BACK: usize = 64;

impl Outbox {
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when nothing waits and nothing was dropped that is yet to be told.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && self.gaps.is_empty()
    }

    /// Which step of the ladder it stands on: 0 to 3.
    pub fn step(&self, ladder: &Ladder) -> u8 {
        match self.bytes {
            _ if !self.gaps.is_empty() => 3,
            bytes if bytes > ladder.low_bytes_max => 2,
            _ if self.low.len() > 1 => 1,
            _ => 0,
        }
    }

    /// Puts frames into the lane of their class. `scratch` is what `Frames::Scratch` points into.
    pub fn push(&mut self, class: Class, frames: &Frames, scratch: &[u8], ladder: &Ladder) -> Pushed {
        let len = frames.as_slice(scratch).len();
        match class {
            Class::Critical => return self.push_critical(frames.as_slice(scratch), ladder),
            Class::Log { room, first, .. } => {
                if self.gaps.iter().any(|(gap, _)| *gap == room) {
                    return Pushed::DroppedNormal;
                }
                if self.bytes + len > ladder.normal_bytes_max {
                    self.gaps.push((room, first.saturating_sub(1)));
                    return Pushed::DroppedNormal;
                }
                self.normal.push_back(Piece::new(frames, scratch));
            }
            Class::Normal => {
                if self.bytes + len > ladder.normal_bytes_max {
                    return Pushed::DroppedNormal;
                }
                self.normal.push_back(Piece::new(frames, scratch));
            }
            Class::Low { key } => return self.push_low(key, frames, scratch, ladder),
        }
        self.bytes += len;
        Pushed::Queued
    }

    /// Puts bytes into the critical lane.
    pub fn push_critical(&mut self, frames: &[u8], ladder: &Ladder) -> Pushed {
        if self.bytes + frames.len() > ladder.bytes_max {
            return Pushed::Overflow;
        }
        self.critical.extend_from_slice(frames);
        self.bytes += frames.len();
        Pushed::Queued
    }

    /// Puts the close frame behind all that waits. It is small and comes once, so there is always room.
    pub fn push_last(&mut self, frame: &[u8]) {
        self.last.extend_from_slice(frame);
        self.bytes += frame.len();
    }

    fn push_low(&mut self, key: u64, frames: &Frames, scratch: &[u8], ladder: &Ladder) -> Pushed {
        let bytes = match frames {
            Frames::Owned(bytes) => bytes.clone(),
            _ => Bytes::copy_from_slice(frames.as_slice(scratch)),
        };
        // The front may be half sent; what is behind it has not been touched.
        let untouched = usize::from(self.low_sent > 0);
        let waiting = self.low.iter_mut().skip(untouched).rev().take(CONFLATE_LOOK_BACK);
        if key != 0
            && let Some((_, old)) = waiting.into_iter().find(|(waiting, _)| *waiting == key)
        {
            self.bytes = self.bytes - old.len() + bytes.len();
            *old = bytes;
            return Pushed::Conflated;
        }
        if self.bytes + bytes.len() > ladder.low_bytes_max {
            return Pushed::DroppedLow;
        }
        self.bytes += bytes.len();
        self.low.push_back((key, bytes));
        Pushed::Queued
    }

    /// Fills `slices` with what is to be sent next, in order. Returns how many were filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        let mut add = |bytes: &'a [u8]| {
            if !bytes.is_empty()
                && let Some(slot) = slices.get_mut(filled)
            {
                *slot = IoSlice::new(bytes);
                filled += 1;
            }
        };
        let mut normal = self.normal.iter();
        let mut low = self.low.iter();
        if self.normal_sent > 0
            && let Some(cut) = normal.next()
        {
            add(&cut.as_slice()[self.normal_sent..]);
        }
        if self.low_sent > 0
            && let Some((_, cut)) = low.next()
        {
            add(&cut[self.low_sent..]);
        }
        add(&self.critical[self.critical_sent..]);
        normal.for_each(|piece| add(piece.as_slice()));
        low.for_each(|(_, bytes)| add(bytes));
        add(&self.last[self.last_sent..]);
        filled
    }

    /// `sent` bytes of what [`Outbox::slices`] gave have gone.
    pub fn advance(&mut self, sent: usize) {
        debug_assert!(sent <= self.bytes);
        self.bytes -= sent;
        let mut left = sent;
        if self.normal_sent > 0 {
            left = self.advance_normal(left);
        }
        if self.low_sent > 0 {
            left = self.advance_low(left);
        }
        let of_critical = left.min(self.critical.len() - self.critical_sent);
        self.critical_sent += of_critical;
        left -= of_critical;
        if self.critical_sent == self.critical.len() {
            self.critical.clear();
            self.critical_sent = 0;
        }
        while left > 0 && !self.normal.is_empty() {
            left = self.advance_normal(left);
        }
        while left > 0 && !self.low.is_empty() {
            left = self.advance_low(left);
        }
        self.last_sent += left;
    }

    fn advance_normal(&mut self, left: usize) -> usize {
        let Some(front) = self.normal.front() else { return left };
        let rest = front.as_slice().len() - self.normal_sent;
        if left < rest {
            self.normal_sent += left;
            return 0;
        }
        self.normal.pop_front();
        self.normal_sent = 0;
        left - rest
    }

    fn advance_low(&mut self, left: usize) -> usize {
        let Some((_, front)) = self.low.front() else { return left };
        let rest = front.len() - self.low_sent;
        if left < rest {
            self.low_sent += left;
            return 0;
        }
        self.low.pop_front();
        self.low_sent = 0;
        left - rest
    }

    /// The gaps to be told now: all of them, once so little waits that messages fit again.
    pub fn take_gaps(&mut self, ladder: &Ladder) -> Option<Vec<(RoomKey, Seq)>> {
        let is_time = !self.gaps.is_empty() && self.bytes <= ladder.low_bytes_max / 2;
        is_time.then(|| std::mem::take(&mut self.gaps))
    }

    /// Drops everything but the rest of a frame that was cut in the middle, for a last close frame
    /// that the peer can read.
    pub fn keep_only_cut_frame(&mut self) {
        let mut rest = Vec::new();
        if self.normal_sent > 0
            && let Some(front) = self.normal.front()
        {
            rest.extend_from_slice(cut_frame(front.as_slice(), self.normal_sent));
        }
        if self.low_sent > 0
            && let Some((_, front)) = self.low.front()
        {
            rest.extend_from_slice(cut_frame(front, self.low_sent));
        }
        if self.critical_sent > 0 {
            rest.extend_from_slice(cut_frame(&self.critical, self.critical_sent));
        }
        self.clear();
        self.bytes = rest.len();
        self.critical = rest;
    }

    /// Forgets everything, keeps a little memory for the next connection that borrows it.
    pub fn clear(&mut self) {
        const KEEP_BYTES: usize = 16 * 1024;
        self.critical.clear();
        self.critical.shrink_to(KEEP_BYTES);
        self.normal.clear();
        self.normal.shrink_to(64);
        self.low.clear();
        self.low.shrink_to(16);
        self.gaps = Vec::new();
        self.last.clear();
        (self.critical_sent, self.normal_sent, self.low_sent, self.last_sent, self.bytes) = (0, 0, 0, 0, 0);
    }
}

/// The part after `sent` of the frame that `sent` lies in; empty when it lies between two frames.
/// `frames` are whole unmasked frames (RFC 6455 section 5.2), all of our own making.
fn cut_frame(frames: &[u8], sent: usize) -> &[u8] {
    let mut at = 0;
    while at < sent {
        let Some(head) = frames.get(at..at + 2) else { return &[] };
        let (header, payload) = match head[1] & 0x7f {
            126 => (4, be_len(frames, at + 2, 2)),
            127 => (10, be_len(frames, at + 2, 8)),
            short => (2, usize::from(short)),
        };
        at += header + payload;
    }
    frames.get(sent..at).unwrap_or_default()
}

fn be_len(frames: &[u8], at: usize, bytes: usize) -> usize {
    frames.iter().skip(at).take(bytes).fold(0, |len, byte| (len << 8) | usize::from(*byte))
}

#[cfg(test)]
mod tests {
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
}
