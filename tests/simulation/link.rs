//! One connection as the server's driver and the network see it: the real outbox, a window of bytes
//! in flight, and the parking that the engine asks for.

use std::collections::VecDeque;
use std::io::IoSlice;

use antiphon::engine::event::ConnKey;
use antiphon::engine::inbox::ItemId;
use antiphon::gateway::outbox::Outbox;

/// Where a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The upgrade is under way.
    Opening,
    Open,
    /// The engine has closed it; what waits in the critical lane still goes.
    Closing,
    Dead,
}

pub struct Link {
    pub client: usize,
    pub shard: usize,
    pub key: ConnKey,
    pub phase: Phase,
    /// `iat` of its token, seconds.
    pub issued_at: u64,
    /// The client has left without a word.
    pub is_abandoned: bool,
    pub is_parked: bool,
    /// Its hello was made.
    pub is_greeted: bool,
    /// Items that it was told, while an input is handled, another device has acknowledged.
    pub cancelled: Vec<ItemId>,
    pub again: Option<String>,
    pub backlog: VecDeque<String>,
    pub outbox: Outbox,
    pub is_dirty: bool,
    /// Bytes on the way to the client.
    pub wire: VecDeque<u8>,
    /// Bytes that the client has read and not yet understood: a part of a frame.
    pub arrived: VecDeque<u8>,
    pub window: usize,
    pub progress_at: u64,
    pub is_blocked: bool,
    pub is_read_due: bool,
    /// The client does not read before this time.
    pub stalled_until: u64,
    /// How far its shard was in the log when it was last given a frame.
    pub fed_at: u64,
    /// `fed_at` of each `ok` that is on its way.
    pub oks: VecDeque<u64>,
    /// When the last frame on its way to the server arrives.
    pub up_at: u64,
}

impl Link {
    pub fn new(client: usize, shard: usize, key: ConnKey, issued_at: u64, window: u64) -> Self {
        Self {
            client,
            shard,
            key,
            phase: Phase::Opening,
            issued_at,
            is_abandoned: false,
            is_parked: false,
            is_greeted: false,
            cancelled: Vec::new(),
            again: None,
            backlog: VecDeque::new(),
            outbox: Outbox::default(),
            is_dirty: false,
            wire: VecDeque::new(),
            arrived: VecDeque::new(),
            window: window as usize,
            progress_at: 0,
            is_blocked: false,
            is_read_due: false,
            stalled_until: 0,
            fed_at: 0,
            oks: VecDeque::new(),
            up_at: 0,
        }
    }

    /// Moves bytes from the outbox into the window. False when the window is full.
    pub fn send(&mut self, now: u64) -> bool {
        while self.outbox.bytes() > 0 {
            let room = self.window.saturating_sub(self.wire.len());
            if room == 0 {
                if !std::mem::replace(&mut self.is_blocked, true) {
                    self.progress_at = now;
                }
                return false;
            }
            let mut slices = [IoSlice::new(&[]); 16];
            let filled = self.outbox.slices(&mut slices);
            let mut sent = 0;
            for slice in &slices[..filled] {
                let taken = slice.len().min(room - sent);
                self.wire.extend(&slice[..taken]);
                sent += taken;
            }
            self.outbox.advance(sent);
            self.progress_at = now;
        }
        self.is_blocked = false;
        true
    }

    /// The last words: a close frame, and nothing but what was cut in the middle when `is_slow`.
    pub fn close(&mut self, code: u16, is_slow: bool) {
        if is_slow {
            self.outbox.keep_only_cut_frame();
        }
        let [high, low] = code.to_be_bytes();
        self.outbox.push_last(&[0x88, 2, high, low]);
        self.phase = Phase::Closing;
        self.again = None;
        self.backlog.clear();
    }
}

/// What the server said in one frame.
pub enum Heard {
    Text(Vec<u8>),
    Ping,
    Close(u16),
}

/// Takes one whole frame (RFC 6455 section 5.2, unmasked) off the wire.
pub fn take_frame(wire: &mut VecDeque<u8>) -> Option<Heard> {
    let byte = |at: usize| wire.get(at).map(|byte| u64::from(*byte));
    let number = |from: usize, bytes: usize| (from..from + bytes).try_fold(0, |sum, at| Some(sum << 8 | byte(at)?));
    let (header, len) = match byte(1)? {
        126 => (4, number(2, 2)?),
        127 => (10, number(2, 8)?),
        short => (2, short),
    };
    let whole = header + len as usize;
    if wire.len() < whole {
        return None;
    }
    let first = byte(0)?;
    let frame: Vec<u8> = wire.drain(..whole).skip(header).collect();
    Some(match first {
        0x81 => Heard::Text(frame),
        0x89 => Heard::Ping,
        0x88 => Heard::Close(u16::from_be_bytes([frame[0], frame[1]])),
        other => panic!("no frame of ours begins with {other:#x}"),
    })
}
