//! Arrays of events for clients that asked for them (`batch=1`): what waits in a lane when the
//! connection is flushed becomes a few frames instead of one for each event.
//!
//! Only the normal and the low lane hold events; replies, in whatever lane, and what else is critical stay
//! frames of their own. An event that is alone stays as it is, and frames that were offered to the socket
//! before are not touched again.

use bytes::Bytes;

use super::{Origin, Outbox, Piece, Waiting, frame_lens};
use crate::protocol::encode::frame_text;
use crate::protocol::ids::{RoomKey, Seq};

/// Events in one array at most.
pub const ARRAY_EVENTS_MAX: usize = 64;
/// Bytes of the JSON of one array at most, unless a single event has more.
pub const ARRAY_BYTES_MAX: usize = 64 * 1024;

/// What composing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Composed {
    /// Events that went into arrays.
    pub events: u64,
    /// Arrays.
    pub arrays: u64,
    /// Bytes of the frames before.
    pub bytes_before: u64,
    /// Bytes of the frames after.
    pub bytes_after: u64,
}

impl Outbox {
    /// Makes arrays of what has come into the normal and the low lane since the last call.
    pub fn compose(&mut self) -> Composed {
        let mut done = Composed::default();
        let normal = self.normal.split_off(self.normal_composed.min(self.normal.len()));
        let mut growing = Growing::new(&mut done);
        for waiting in normal {
            if waiting.origin == Origin::Reply {
                growing.end(|array| self.normal.push_back(array));
                self.normal.push_back(waiting);
            } else {
                growing.add(&waiting, |array| self.normal.push_back(array));
            }
        }
        growing.end(|array| self.normal.push_back(array));
        self.normal_composed = self.normal.len();

        let low = self.low.split_off(self.low_composed.min(self.low.len()));
        let mut growing = Growing::new(&mut done);
        let mut put = |array: Waiting| {
            if let Piece::Bytes(bytes) = array.piece {
                self.low.push_back((0, bytes));
            }
        };
        for (_, bytes) in low {
            let waiting = Waiting { piece: Piece::Bytes(bytes), origin: Origin::Ephemeral, is_critical: false };
            growing.add(&waiting, &mut put);
        }
        growing.end(put);
        self.low_composed = self.low.len();
        self.bytes = self.bytes + done.bytes_after as usize - done.bytes_before as usize;
        done
    }
}

/// One array that grows.
struct Growing<'d> {
    json: Vec<u8>,
    events: usize,
    rooms: Vec<(RoomKey, Seq)>,
    is_critical: bool,
    done: &'d mut Composed,
}

impl<'d> Growing<'d> {
    fn new(done: &'d mut Composed) -> Self {
        Self { json: Vec::new(), events: 0, rooms: Vec::new(), is_critical: false, done }
    }

    /// Adds every event of some frames; arrays that are full go to `put`.
    fn add(&mut self, waiting: &Waiting, mut put: impl FnMut(Waiting)) {
        let frames = waiting.piece.as_slice();
        let (mut at, mut nth) = (0, 0);
        while let Some((header, payload)) = frame_lens(frames, at) {
            let json = &frames[at + header..at + header + payload];
            if self.events == ARRAY_EVENTS_MAX || self.events > 0 && self.json.len() + json.len() + 2 > ARRAY_BYTES_MAX
            {
                self.end(&mut put);
            }
            self.json.push(if self.events == 0 { b'[' } else { b',' });
            self.json.extend_from_slice(json);
            self.events += 1;
            self.is_critical |= waiting.is_critical;
            // Frames of one piece are neighbours in their room, one a seq.
            if let Origin::Log(room, before) = waiting.origin
                && !self.rooms.iter().any(|(known, _)| *known == room)
            {
                self.rooms.push((room, before + nth));
            }
            self.done.bytes_before += (header + payload) as u64;
            at += header + payload;
            nth += 1;
        }
    }

    /// Ends the array, if there is one.
    fn end(&mut self, mut put: impl FnMut(Waiting)) {
        if self.events == 0 {
            return;
        }
        let mut frame = Vec::with_capacity(self.json.len() + 11);
        if self.events == 1 {
            frame_text(&mut frame, |out| out.extend_from_slice(&self.json[1..]));
        } else {
            self.json.push(b']');
            frame_text(&mut frame, |out| out.extend_from_slice(&self.json));
            self.done.events += self.events as u64;
            self.done.arrays += 1;
        }
        self.done.bytes_after += frame.len() as u64;
        let origin = match self.rooms[..] {
            [] => Origin::Ephemeral,
            [(room, before)] => Origin::Log(room, before),
            _ => Origin::Logs(self.rooms.as_slice().into()),
        };
        put(Waiting { piece: Piece::Bytes(Bytes::from(frame)), origin, is_critical: self.is_critical });
        self.json.clear();
        self.rooms.clear();
        (self.events, self.is_critical) = (0, false);
    }
}
