//! What waits to be sent to one connection: three lanes, and the ladder for slow consumers.
//!
//! Pure: it is handed frames and asked for slices; who sends them says how many bytes went.
//! Order of sending: whatever a send has cut in the middle, then critical, then normal, then low,
//! then the close frame, after which nothing may come (RFC 6455 section 5.5.1).
//!
//! The ladder, by bytes that wait. An empty outbox takes one piece up to `bytes_max`, a critical one of any size: a large
//! piece alone is no sign of a slow reader.
//! 1. a low frame replaces a waiting one of the same key (always)
//! 2. past `low_bytes_max` low frames are dropped
//! 3. past `normal_bytes_max` log entries are dropped: their room is *in a gap* and gets nothing
//!    more until the outbox has drained, when the engine puts one `gap` event in their place
//! 4. past `bytes_max`, or with no progress for too long (the driver's clock), the connection ends
//!
//! A critical log entry keeps its place among the messages and is dropped only with the connection: past
//! `normal_bytes_max` it still waits, and behind a gap the gap is told first ([`Outbox::close_gap`]).
//! When all outboxes together are too large, the driver makes single ones climb earlier:
//! [`Outbox::shed_low`], [`Outbox::shed_normal`].
//!
//! An idle connection has no outbox at all: the driver lends one while something waits.

mod arrays;
#[cfg(test)]
mod tests;

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
    /// Not queued yet: never dropped, and its room is in a gap that begins after this seq. Tell the gap
    /// with [`Outbox::close_gap`].
    BehindGap(Seq),
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

    /// A copy, where the batch is more than [`BATCH_SHARE`] times as large.
    fn let_go_of_batch(&mut self) {
        if let Self::Batch(batch, span) = self
            && span.len() < batch.bytes.len() / BATCH_SHARE
        {
            *self = Self::Bytes(Bytes::copy_from_slice(self.as_slice()));
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Batch(batch, span) => &batch.bytes[span.start as usize..span.end as usize],
        }
    }
}

/// What is lost with frames of the normal lane.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// Nothing that anybody would ask for.
    Ephemeral,
    /// Entries of a room after this seq.
    Log(RoomKey, Seq),
    /// Entries of several rooms, likewise.
    Logs(Box<[(RoomKey, Seq)]>),
    /// A reply, which is not lost, nor part of an array.
    Reply,
}

/// Frames of the normal lane.
#[derive(Debug)]
struct Waiting {
    piece: Piece,
    origin: Origin,
    /// Never dropped, and nothing before it either.
    is_critical: bool,
}

/// One connection's waiting frames.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Small frames, copied together, behind the HTTP answer of a new connection.
    critical: Vec<u8>,
    /// Bytes of that answer in `critical`.
    answer: usize,
    /// Bytes of `critical` that were sent.
    critical_sent: usize,
    normal: VecDeque<Waiting>,
    low: VecDeque<(u64, Bytes)>,
    /// Bytes of the front of `normal` that were sent: it must be finished first.
    normal_sent: usize,
    /// Likewise for `low`.
    low_sent: usize,
    /// How many of `normal`, from the front, are arrays already (clients that asked for them).
    normal_composed: usize,
    /// Likewise of `low`.
    low_composed: usize,
    /// The close frame, once there is one.
    last: Vec<u8>,
    /// Bytes of `last` that were sent.
    last_sent: usize,
    /// All bytes that wait.
    bytes: usize,
    /// Rooms whose entries were dropped, with the last seq that was not.
    gaps: Vec<(RoomKey, Seq)>,
    /// Low frames were dropped: what they said is to be said anew.
    low_lost: bool,
}

/// A batch may be so many times as large as what waits of it with a reader that is slow.
const BATCH_SHARE: usize = 4;
/// How far back a waiting low frame of the same key is looked for.
const CONFLATE_LOOK_BACK: usize = 64;

impl Outbox {
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when nothing waits and nothing was dropped that is yet to be told.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && self.gaps.is_empty() && !self.low_lost
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
        let fits = || self.fits(class, len, ladder);
        let (origin, is_critical) = match class {
            Class::Critical => return self.push_critical(frames.as_slice(scratch), ladder),
            Class::Log { room, first, .. } => {
                if self.gap_of(room).is_some() {
                    return Pushed::DroppedNormal;
                }
                if !fits() {
                    self.gaps.push((room, first.saturating_sub(1)));
                    return Pushed::DroppedNormal;
                }
                (Origin::Log(room, first.saturating_sub(1)), false)
            }
            Class::CriticalLog { room, .. } | Class::Reply { room, .. } => {
                if let Some(last) = self.gap_of(room) {
                    return Pushed::BehindGap(last);
                }
                if !fits() {
                    return Pushed::Overflow;
                }
                let origin = match class {
                    Class::CriticalLog { first, .. } => Origin::Log(room, first.saturating_sub(1)),
                    _ => Origin::Reply,
                };
                (origin, true)
            }
            Class::Normal if !fits() => return Pushed::DroppedNormal,
            Class::Normal => (Origin::Ephemeral, false),
            Class::Low { key } => return self.push_low(key, frames, scratch, ladder),
        };
        self.normal.push_back(Waiting { piece: Piece::new(frames, scratch), origin, is_critical });
        self.bytes += len;
        Pushed::Queued
    }

    /// True when frames of this class and length would be dropped, or end the connection, for what waits before them.
    pub fn is_too_full(&self, class: Class, len: usize, ladder: &Ladder) -> bool {
        self.bytes > 0 && !self.fits(class, len, ladder)
    }

    /// True when frames of this class and length may wait with what waits already.
    fn fits(&self, class: Class, len: usize, ladder: &Ladder) -> bool {
        let max = match class {
            Class::Critical | Class::CriticalLog { .. } | Class::Reply { .. } if self.bytes == 0 => usize::MAX,
            Class::Critical | Class::CriticalLog { .. } | Class::Reply { .. } => ladder.bytes_max,
            Class::Log { .. } if self.bytes == 0 => ladder.bytes_max,
            Class::Log { .. } | Class::Normal => ladder.normal_bytes_max,
            Class::Low { .. } => ladder.low_bytes_max,
        };
        self.bytes + len <= max
    }

    /// Lets go of batches of which little waits here: what a slow reader keeps alive is what is counted for it, and not
    /// all that was committed together with it.
    pub fn let_go_of_batches(&mut self) {
        for waiting in &mut self.normal {
            waiting.piece.let_go_of_batch();
        }
    }

    /// The same for what was pushed last.
    pub fn let_go_of_last_batch(&mut self) {
        if let Some(last) = self.normal.back_mut() {
            last.piece.let_go_of_batch();
        }
    }

    fn gap_of(&self, room: RoomKey) -> Option<Seq> {
        self.gaps.iter().find(|(gap, _)| *gap == room).map(|(_, last)| *last)
    }

    /// Tells a room's gap now, where it is in the order: `frame` is the `gap` event. The room's
    /// entries may follow again.
    pub fn close_gap(&mut self, room: RoomKey, frame: Bytes) {
        let Some(at) = self.gaps.iter().position(|(gap, _)| *gap == room) else { return };
        let (_, last) = self.gaps.swap_remove(at);
        self.bytes += frame.len();
        self.normal.push_back(Waiting {
            piece: Piece::Bytes(frame),
            origin: Origin::Log(room, last),
            is_critical: true,
        });
    }

    /// Drops what waits in the low lane, all but a frame that is half sent. Says how many frames.
    pub fn shed_low(&mut self) -> usize {
        let keep = usize::from(self.low_sent > 0);
        let dropped = self.low.drain(keep.min(self.low.len())..);
        let count = dropped.len();
        self.bytes -= dropped.map(|(_, bytes)| bytes.len()).sum::<usize>();
        self.low_composed = self.low_composed.min(keep);
        self.low_lost |= count > 0;
        count
    }

    /// Drops what waits in the normal lane behind its last critical entry, all but a frame that is
    /// half sent; the rooms concerned are in a gap from there on. Says how many pieces.
    pub fn shed_normal(&mut self) -> usize {
        let is_kept = |waiting: &Waiting| waiting.is_critical;
        let keep = self.normal.iter().rposition(is_kept).map_or(0, |at| at + 1).max(usize::from(self.normal_sent > 0));
        let dropped = self.normal.split_off(keep.min(self.normal.len()));
        for waiting in &dropped {
            self.bytes -= waiting.piece.as_slice().len();
            let lost = match &waiting.origin {
                Origin::Ephemeral | Origin::Reply => &[][..],
                Origin::Log(room, last) => &[(*room, *last)],
                Origin::Logs(rooms) => rooms,
            };
            for (room, last) in lost {
                // What was dropped before came later in the room.
                match self.gaps.iter_mut().find(|(gap, _)| gap == room) {
                    Some((_, known)) => *known = (*known).min(*last),
                    None => self.gaps.push((*room, *last)),
                }
            }
        }
        self.normal_composed = self.normal_composed.min(keep);
        dropped.len()
    }

    /// Puts the HTTP answer of a new connection before everything else; once, into an empty outbox.
    pub fn push_answer(&mut self, answer: &[u8]) {
        debug_assert!(self.is_empty(), "an answer is the first that is sent");
        self.critical.extend_from_slice(answer);
        (self.answer, self.bytes) = (answer.len(), answer.len());
    }

    /// Puts bytes into the critical lane.
    pub fn push_critical(&mut self, frames: &[u8], ladder: &Ladder) -> Pushed {
        if !self.fits(Class::Critical, frames.len(), ladder) {
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
        if !self.fits(Class::Low { key }, bytes.len(), ladder) {
            self.low_lost = true;
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
            add(&cut.piece.as_slice()[self.normal_sent..]);
        }
        if self.low_sent > 0
            && let Some((_, cut)) = low.next()
        {
            add(&cut[self.low_sent..]);
        }
        add(&self.critical[self.critical_sent..]);
        normal.for_each(|waiting| add(waiting.piece.as_slice()));
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
            (self.critical_sent, self.answer) = (0, 0);
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
        let rest = front.piece.as_slice().len() - self.normal_sent;
        if left < rest {
            self.normal_sent += left;
            return 0;
        }
        self.normal.pop_front();
        self.normal_composed = self.normal_composed.saturating_sub(1);
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
        self.low_composed = self.low_composed.saturating_sub(1);
        self.low_sent = 0;
        left - rest
    }

    /// The gaps to be told now: all of them, once so little waits that messages fit again. Empty when
    /// only low frames were lost.
    pub fn take_gaps(&mut self, ladder: &Ladder) -> Option<Vec<(RoomKey, Seq)>> {
        let is_lossy = !self.gaps.is_empty() || self.low_lost;
        let is_time = is_lossy && self.bytes <= ladder.low_bytes_max / 2;
        is_time.then(|| {
            self.low_lost = false;
            std::mem::take(&mut self.gaps)
        })
    }

    /// Drops everything but the rest of a frame that was cut in the middle, or of the HTTP answer, for a
    /// last close frame that the peer can read.
    pub fn keep_only_cut_frame(&mut self) {
        let mut rest = Vec::new();
        if self.normal_sent > 0
            && let Some(front) = self.normal.front()
        {
            rest.extend_from_slice(cut_frame(front.piece.as_slice(), self.normal_sent));
        }
        if self.low_sent > 0
            && let Some((_, front)) = self.low.front()
        {
            rest.extend_from_slice(cut_frame(front, self.low_sent));
        }
        let (answer, frames) = self.critical.split_at(self.answer);
        match self.critical_sent.checked_sub(self.answer) {
            Some(sent) => rest.extend_from_slice(cut_frame(frames, sent)),
            None => rest.extend_from_slice(&answer[self.critical_sent..]),
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
        (self.normal_composed, self.low_composed, self.answer) = (0, 0, 0);
        self.low_lost = false;
        self.last.clear();
        (self.critical_sent, self.normal_sent, self.low_sent, self.last_sent, self.bytes) = (0, 0, 0, 0, 0);
    }
}

/// The part after `sent` of the frame that `sent` lies in; empty when it lies between two frames.
/// `frames` are whole unmasked frames (RFC 6455 section 5.2), all of our own making.
fn cut_frame(frames: &[u8], sent: usize) -> &[u8] {
    let mut at = 0;
    while at < sent {
        let Some((header, payload)) = frame_lens(frames, at) else { return &[] };
        at += header + payload;
    }
    frames.get(sent..at).unwrap_or_default()
}

/// Bytes of the header and of the payload of the frame at `at`.
fn frame_lens(frames: &[u8], at: usize) -> Option<(usize, usize)> {
    let head = frames.get(at..at + 2)?;
    Some(match head[1] & 0x7f {
        126 => (4, be_len(frames, at + 2, 2)),
        127 => (10, be_len(frames, at + 2, 8)),
        short => (2, usize::from(short)),
    })
}

fn be_len(frames: &[u8], at: usize, bytes: usize) -> usize {
    frames.iter().skip(at).take(bytes).fold(0, |len, byte| (len << 8) | usize::from(*byte))
}
