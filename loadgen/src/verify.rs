//! What was promised about deliveries, checked for every one of them. Pure.
//!
//! Two views are kept. A [`Cursor`] per connection and room holds that the numbers are dense: each
//! once, in order, none missing, unless the server said so. A [`Ledger`] per room (one in each
//! thread that has members of it) holds that everybody sees the same thing under the same number;
//! its memory is bounded, so it forgets old entries, and checks that could not be made are counted. A
//! running digest over all entries lets the ledgers of several threads be compared at the end. That
//! what was acknowledged is what was delivered is [`crate::roll`]'s to hold.

/// Number of an entry within its room.
pub type Seq = u64;

/// What a delivery was to its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next number.
    InOrder,
    /// Numbers were skipped without a word: so many are missing so far.
    Hole(u64),
    /// Numbers were skipped after the server had said so.
    Excused(u64),
    /// Missing before, here now: delivered, but out of order.
    Late,
    /// Delivered before.
    Doubled,
}

/// One connection's place in one room.
#[derive(Debug, Clone, Default)]
pub struct Cursor {
    next: Seq,
    /// The server announced a gap: the next number may skip ahead.
    may_skip: bool,
    /// Missing ranges, ends included; empty unless the server fails. Kept small.
    holes: Vec<(Seq, Seq)>,
}

/// Missing ranges that a cursor remembers for telling late from doubled.
const HOLES_MAX: usize = 16;

impl Cursor {
    /// A cursor of a connection that has everything up to and with `head`.
    pub fn at(head: Seq) -> Self {
        Self { next: head + 1, may_skip: false, holes: Vec::new() }
    }

    /// The last number that the connection has.
    pub fn last(&self) -> Seq {
        self.next.saturating_sub(1)
    }

    /// The number expected next.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// A delivery.
    pub fn advance(&mut self, seq: Seq) -> Step {
        if seq == self.next {
            self.next += 1;
            self.may_skip = false;
            return Step::InOrder;
        }
        if seq > self.next {
            let (from, missing) = (self.next, seq - self.next);
            self.next = seq + 1;
            if std::mem::take(&mut self.may_skip) {
                return Step::Excused(missing);
            }
            if self.holes.len() == HOLES_MAX {
                self.holes.remove(0);
            }
            self.holes.push((from, seq - 1));
            return Step::Hole(missing);
        }
        match self.holes.iter().position(|(from, to)| (*from..=*to).contains(&seq)) {
            Some(at) => {
                let (from, to) = self.holes.swap_remove(at);
                self.holes.extend([(from, seq - 1), (seq + 1, to)].into_iter().filter(|(a, b)| a <= b));
                Step::Late
            }
            None => Step::Doubled,
        }
    }

    /// The server said that everything up to `head` will not come by itself, and that more may be
    /// missing before the next delivery. Returns how many numbers are excused.
    pub fn excuse(&mut self, head: Seq) -> u64 {
        let excused = (head + 1).saturating_sub(self.next);
        self.next = self.next.max(head + 1);
        self.may_skip = true;
        excused
    }
}

/// What the first sight of an entry told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Hash of the frame as received.
    pub bytes: u64,
    /// Hash of what must be equal however it is written.
    pub content: u64,
    /// Intended time of sending, ns; 0 when it is none of this tool's messages.
    pub sent_ns: u64,
}

/// What is known of a delivered entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Seen by another connection, the same bytes. Holds the intended time of sending.
    Same(u64),
    /// Seen by another connection, other bytes: compare content with [`Ledger::is_same_content`].
    OtherBytes(u64),
    /// Nobody here has seen it: read it and [`Ledger::learn`].
    New,
    /// Too old to know.
    Forgotten,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    seq: Seq,
    facts: Option<Facts>,
}

const EMPTY: Entry = Entry { seq: 0, facts: None };

/// One thread's memory of one room.
#[derive(Debug)]
pub struct Ledger {
    capacity: usize,
    /// Made at the first entry; a power of two long.
    entries: Vec<Entry>,
    high: Seq,
    digest: Digest,
}

/// Sum over all entries seen, in order, since a place that all threads share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// The last number before the first summed one.
    pub base: Seq,
    /// The last number summed.
    pub last: Seq,
    /// The sum.
    pub sum: u64,
}

impl Ledger {
    /// A ledger of a room that remembers the last `capacity` entries (rounded up to a power of two).
    pub fn new(capacity: usize) -> Self {
        let digest = Digest { base: 0, last: 0, sum: 0 };
        Self { capacity: capacity.next_power_of_two(), entries: Vec::new(), high: 0, digest }
    }

    /// The room's head at a subscription: digests begin at the highest one.
    pub fn start_at(&mut self, head: Seq) {
        self.high = self.high.max(head);
        if self.digest.last < head {
            self.digest = Digest { base: head, last: head, sum: 0 };
        }
    }

    /// The server named `head` as the room's, or as an acknowledged message's: everybody must get that far.
    pub fn on_head(&mut self, head: Seq) {
        self.high = self.high.max(head);
    }

    /// The highest number that was delivered to anybody, acknowledged, or told as head.
    pub fn high(&self) -> Seq {
        self.high
    }

    /// For the comparison with other threads.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What is known of the entry.
    pub fn look(&mut self, seq: Seq, bytes: u64) -> Sight {
        let entry = self.entry(seq);
        if entry.seq > seq {
            return Sight::Forgotten;
        }
        match entry.facts.filter(|_| entry.seq == seq) {
            Some(facts) if facts.bytes == bytes => Sight::Same(facts.sent_ns),
            Some(facts) => Sight::OtherBytes(facts.sent_ns),
            None => Sight::New,
        }
    }

    /// True when the entry, known under other bytes, has this content.
    pub fn is_same_content(&mut self, seq: Seq, content: u64) -> bool {
        let entry = self.entry(seq);
        entry.seq == seq && entry.facts.is_some_and(|facts| facts.content == content)
    }

    /// Keeps what the first sight told.
    pub fn learn(&mut self, seq: Seq, facts: Facts) {
        self.high = self.high.max(seq);
        if seq == self.digest.last + 1 {
            self.digest.last = seq;
            self.digest.sum = self.digest.sum.rotate_left(1).wrapping_add(facts.content);
        }
        *self.entry(seq) = Entry { seq, facts: Some(facts) };
    }

    fn entry(&mut self, seq: Seq) -> &mut Entry {
        if self.entries.is_empty() {
            self.entries = vec![EMPTY; self.capacity];
        }
        let at = seq as usize & (self.capacity - 1);
        &mut self.entries[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(bytes: u64) -> Facts {
        Facts { bytes, content: bytes ^ 1, sent_ns: 5 }
    }

    #[test]
    fn a_cursor_tells_holes_late_and_doubled_apart() {
        let mut cursor = Cursor::at(10);
        let steps: Vec<Step> = [11, 12, 16, 14, 14, 13, 17, 12, 15].iter().map(|s| cursor.advance(*s)).collect();
        use Step::*;
        assert_eq!(steps, [InOrder, InOrder, Hole(3), Late, Doubled, Late, InOrder, Doubled, Late]);
        assert_eq!(cursor.last(), 17);
    }

    #[test]
    fn only_the_servers_word_excuses_a_hole() {
        let mut cursor = Cursor::at(10);
        assert_eq!(cursor.excuse(15), 5);
        assert_eq!(cursor.advance(18), Step::Excused(2));
        assert_eq!(cursor.advance(20), Step::Hole(1), "once said, excused once");
        let mut cursor = Cursor::at(10);
        cursor.excuse(15);
        assert_eq!(cursor.advance(16), Step::InOrder);
        assert_eq!(cursor.advance(18), Step::Hole(1));
        assert_eq!(cursor.excuse(5), 0, "a cursor never goes back");
        assert_eq!(cursor.next(), 19);
    }

    #[test]
    fn a_ledger_compares_what_everybody_sees() {
        let mut ledger = Ledger::new(3);
        ledger.start_at(10);
        assert_eq!(ledger.look(11, 100), Sight::New);
        ledger.learn(11, facts(100));
        assert_eq!(ledger.look(11, 100), Sight::Same(5));
        assert_eq!(ledger.look(11, 101), Sight::OtherBytes(5));
        assert!(ledger.is_same_content(11, 101));
        assert!(!ledger.is_same_content(11, 102));
        assert!(!ledger.is_same_content(12, 101));
        for seq in 12..=15 {
            assert_eq!(ledger.look(seq, seq), Sight::New);
            ledger.learn(seq, facts(seq));
        }
        assert_eq!(ledger.look(11, 100), Sight::Forgotten);
        assert_eq!(ledger.high(), 15);
        ledger.on_head(20);
        assert_eq!(ledger.high(), 20, "what was acked must come");
    }

    #[test]
    fn digests_depend_on_order_and_content() {
        let run = |order: [u64; 2]| {
            let mut ledger = Ledger::new(8);
            ledger.start_at(3);
            ledger.learn(4, facts(order[0]));
            ledger.learn(5, facts(order[1]));
            ledger.digest()
        };
        assert_eq!(run([10, 20]), run([10, 20]));
        assert_ne!(run([10, 20]).sum, run([20, 10]).sum);
        assert_eq!(run([10, 20]).last, 5);
    }
}
