//! Bodies of messages: when the message was meant to be sent, then a filler that its id determines.

/// The rest of each message's body behind its time: other bytes for other messages, so that a mix-up
/// shows.
#[derive(Debug)]
pub struct Filler {
    pattern: Vec<u8>,
    len: usize,
}

/// Bytes of the time at the start of a body.
pub const BODY_BYTES_MIN: usize = 16;

impl Filler {
    /// For bodies of `body_bytes` in all, at least [`BODY_BYTES_MIN`].
    pub fn new(body_bytes: usize) -> Self {
        let len = body_bytes.saturating_sub(BODY_BYTES_MIN);
        Self { pattern: (0..len + 61).map(|n| b'a' + (n * n % 61 % 26) as u8).collect(), len }
    }

    /// The filler of a message.
    pub fn of(&self, client: u64) -> &[u8] {
        let from = (client % 61) as usize;
        &self.pattern[from..from + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fillers_have_their_length_and_differ() {
        let filler = Filler::new(100);
        assert!((0..200).all(|client| filler.of(client).len() == 84));
        assert_ne!(filler.of(1), filler.of(2));
        assert_eq!(filler.of(7), Filler::new(100).of(7));
        assert!(filler.of(3).iter().all(u8::is_ascii_lowercase), "nothing that JSON would escape");
        assert!(Filler::new(BODY_BYTES_MIN).of(5).is_empty());
    }
}
