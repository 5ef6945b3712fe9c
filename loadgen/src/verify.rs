//! What was promised about deliveries, checked for every one of them. Pure.
//!
//! Two views are kept. A [`Cursor`] per connection and room holds that the numbers are dense: each
//! once, in order, none missing, unless the server said so. A [`Ledger`] per room (one in each
//! thread that has members of it) holds that everybody sees the same thing under the same number,
//! and that what was acknowledged is what was delivered; its memory is bounded, so it forgets old
//! entries, and checks that could not be made are counted. A running digest over all entries lets
//! the ledgers of several threads be compared at the end.

use std::collections::BTreeMap;

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
    /// The author's id for it; 0 when it is none of this tool's messages.
    pub client: u64,
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

/// Acknowledged and delivered do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongAck;

#[derive(Debug, Clone, Copy)]
struct Entry {
    seq: Seq,
    facts: Option<Facts>,
    /// What an acknowledgement said stands here; 0: none yet.
    acked: u64,
}

const EMPTY: Entry = Entry { seq: 0, facts: None, acked: 0 };

/// One thread's memory of one room.
#[derive(Debug)]
pub struct Ledger {
    capacity: usize,
    /// Made at the first entry; a power of two long.
    entries: Vec<Entry>,
    high: Seq,
    acked_high: Seq,
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
        Self { capacity: capacity.next_power_of_two(), entries: Vec::new(), high: 0, acked_high: 0, digest }
    }

    /// The room's head at a subscription: digests begin at the highest one.
    pub fn start_at(&mut self, head: Seq) {
        self.high = self.high.max(head);
        if self.digest.last < head {
            self.digest = Digest { base: head, last: head, sum: 0 };
        }
    }

    /// The server named `head` as the room's: everybody must get that far.
    pub fn on_head(&mut self, head: Seq) {
        self.high = self.high.max(head);
    }

    /// The highest number that was delivered to anybody, acknowledged, or told as head.
    pub fn high(&self) -> Seq {
        self.high.max(self.acked_high)
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
    pub fn learn(&mut self, seq: Seq, facts: Facts) -> Result<(), WrongAck> {
        self.high = self.high.max(seq);
        if seq == self.digest.last + 1 {
            self.digest.last = seq;
            self.digest.sum = self.digest.sum.rotate_left(1).wrapping_add(facts.content);
        }
        let entry = self.entry(seq);
        let acked = if entry.seq == seq { entry.acked } else { 0 };
        *entry = Entry { seq, facts: Some(facts), acked };
        if acked == 0 || acked == facts.client { Ok(()) } else { Err(WrongAck) }
    }

    /// An acknowledgement said that the message `client` stands at `seq`.
    pub fn on_ack(&mut self, seq: Seq, client: u64) -> Result<(), WrongAck> {
        self.acked_high = self.acked_high.max(seq);
        let entry = self.entry(seq);
        if entry.seq < seq {
            *entry = Entry { seq, facts: None, acked: client };
            return Ok(());
        }
        if entry.seq > seq {
            return Ok(());
        }
        if entry.acked != 0 && entry.acked != client {
            return Err(WrongAck);
        }
        entry.acked = client;
        match entry.facts {
            Some(facts) if facts.client != client => Err(WrongAck),
            _ => Ok(()),
        }
    }

    fn entry(&mut self, seq: Seq) -> &mut Entry {
        if self.entries.is_empty() {
            self.entries = vec![EMPTY; self.capacity];
        }
        let at = seq as usize & (self.capacity - 1);
        &mut self.entries[at]
    }
}

/// Counts of everything that was checked. Adding two gives the count of both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Commands `message:send` written, retries included.
    pub sent: u64,
    /// Messages acknowledged.
    pub acked: u64,
    /// Acknowledged within the measuring window.
    pub acked_in_window: u64,
    /// `message:created` received.
    pub delivered: u64,
    /// … within the measuring window.
    pub delivered_in_window: u64,
    /// Other events with a number.
    pub other_events: u64,
    /// Frames received.
    pub frames: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Frames that went through a full JSON parser.
    pub sampled: u64,
    /// Pings answered.
    pub pings: u64,
    /// Missing without a word; what came late is taken off.
    pub lost: u64,
    /// Delivered again.
    pub doubled: u64,
    /// Delivered after a later one.
    pub out_of_order: u64,
    /// Not the same for everybody.
    pub differing: u64,
    /// Acknowledged and delivered disagree.
    pub wrong_acks: u64,
    /// A message whose body is not what was sent.
    pub wrong_bodies: u64,
    /// Not what the protocol allows: bad JSON, bad frames, replies to nothing.
    pub malformed: u64,
    /// Commands without any reply at the end.
    pub unanswered: u64,
    /// Messages refused for good.
    pub refused: u64,
    /// Connections that were not in their room at the end, whatever the reason.
    pub absent: u64,
    /// Deliveries whose content was too old to compare.
    pub unchecked: u64,
    /// `gap` events.
    pub gaps: u64,
    /// A `gap` whose `last` is not what was received last.
    pub wrong_gaps: u64,
    /// Numbers skipped after the server said so.
    pub excused: u64,
    /// Resumes by cursor that were recovered.
    pub recovered: u64,
    /// Resumes by cursor that were not.
    pub not_recovered: u64,
    /// Numbers that resumes had to bring.
    pub resumed_entries: u64,
    /// `error` replies by code.
    pub errors: BTreeMap<u64, u64>,
    /// Connections that ended unasked, by close code (0: without one; errno negated).
    pub closes: BTreeMap<i64, u64>,
    /// Of these, those that may: slow consumers cut with 4102.
    pub closes_expected: u64,
    /// Connections that could not be made.
    pub connect_failures: u64,
}

impl Tally {
    /// Adds another thread's counts.
    pub fn add(&mut self, other: &Self) {
        let Self {
            sent,
            acked,
            acked_in_window,
            delivered,
            delivered_in_window,
            other_events,
            frames,
            bytes,
            sampled,
            pings,
            lost,
            doubled,
            out_of_order,
            differing,
            wrong_acks,
            wrong_bodies,
            malformed,
            unanswered,
            refused,
            absent,
            unchecked,
            gaps,
            wrong_gaps,
            excused,
            recovered,
            not_recovered,
            resumed_entries,
            errors,
            closes,
            closes_expected,
            connect_failures,
        } = other;
        let sums = [
            (&mut self.sent, sent),
            (&mut self.acked, acked),
            (&mut self.acked_in_window, acked_in_window),
            (&mut self.delivered, delivered),
            (&mut self.delivered_in_window, delivered_in_window),
            (&mut self.other_events, other_events),
            (&mut self.frames, frames),
            (&mut self.bytes, bytes),
            (&mut self.sampled, sampled),
            (&mut self.pings, pings),
            (&mut self.lost, lost),
            (&mut self.doubled, doubled),
            (&mut self.out_of_order, out_of_order),
            (&mut self.differing, differing),
            (&mut self.wrong_acks, wrong_acks),
            (&mut self.wrong_bodies, wrong_bodies),
            (&mut self.malformed, malformed),
            (&mut self.unanswered, unanswered),
            (&mut self.refused, refused),
            (&mut self.absent, absent),
            (&mut self.unchecked, unchecked),
            (&mut self.gaps, gaps),
            (&mut self.wrong_gaps, wrong_gaps),
            (&mut self.excused, excused),
            (&mut self.recovered, recovered),
            (&mut self.not_recovered, not_recovered),
            (&mut self.resumed_entries, resumed_entries),
            (&mut self.closes_expected, closes_expected),
            (&mut self.connect_failures, connect_failures),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        errors.iter().for_each(|(code, n)| *self.errors.entry(*code).or_default() += n);
        closes.iter().for_each(|(code, n)| *self.closes.entry(*code).or_default() += n);
    }

    /// What broke a promise, in words; empty when nothing did.
    pub fn failures(&self) -> Vec<String> {
        let all_closed = self.closes.values().sum::<u64>();
        let closed = all_closed.saturating_sub(self.closes_expected);
        let counts = [
            (self.lost, "deliveries lost"),
            (self.doubled, "deliveries doubled"),
            (self.out_of_order, "deliveries out of order"),
            (self.differing, "deliveries not the same for everybody"),
            (self.wrong_acks, "acknowledgements that name another message"),
            (self.wrong_bodies, "messages with a wrong body"),
            (self.malformed, "frames the protocol does not allow"),
            (self.unanswered, "commands without a reply"),
            (self.refused, "messages refused for good"),
            (self.wrong_gaps, "gap events with a wrong `last`"),
            (self.connect_failures, "connections that could not be made"),
            (closed, "connections closed unasked"),
            (self.absent.saturating_sub(all_closed), "connections that did not come back"),
        ];
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect()
    }
}

/// Counts how the step broke a promise, if it did.
pub fn count_step(tally: &mut Tally, step: Step) {
    match step {
        Step::InOrder => {}
        Step::Hole(missing) => tally.lost += missing,
        Step::Excused(missing) => tally.excused += missing,
        Step::Late => {
            tally.lost = tally.lost.saturating_sub(1);
            tally.out_of_order += 1;
        }
        Step::Doubled => tally.doubled += 1,
    }
}

/// What one thread knows of a room at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomEnd {
    /// Which room.
    pub room: u32,
    /// The highest number known.
    pub high: Seq,
    /// Over all that was seen.
    pub digest: Digest,
    /// How many live connections expect which number next.
    pub next: BTreeMap<Seq, u64>,
}

/// Compares the ends of all threads: counts what never came, and digests that differ.
pub fn reconcile(ends: &[RoomEnd], tally: &mut Tally) {
    let mut rooms: BTreeMap<u32, Vec<&RoomEnd>> = BTreeMap::new();
    ends.iter().for_each(|end| rooms.entry(end.room).or_default().push(end));
    for views in rooms.values() {
        let high = views.iter().map(|end| end.high).max().unwrap_or(0);
        for (next, connections) in views.iter().flat_map(|end| &end.next) {
            tally.lost += (high + 1).saturating_sub(*next) * connections;
        }
        let comparable = |a: &Digest, b: &Digest| a.base == b.base && a.last == b.last;
        let differs = views
            .windows(2)
            .any(|pair| comparable(&pair[0].digest, &pair[1].digest) && pair[0].digest.sum != pair[1].digest.sum);
        tally.differing += u64::from(differs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(bytes: u64, client: u64) -> Facts {
        Facts { bytes, content: bytes ^ 1, client, sent_ns: 5 }
    }

    #[test]
    fn a_cursor_tells_holes_late_and_doubled_apart() {
        let mut cursor = Cursor::at(10);
        let steps: Vec<Step> = [11, 12, 16, 14, 14, 13, 17, 12, 15].iter().map(|s| cursor.advance(*s)).collect();
        use Step::*;
        assert_eq!(steps, [InOrder, InOrder, Hole(3), Late, Doubled, Late, InOrder, Doubled, Late]);
        assert_eq!(cursor.last(), 17);
        let mut tally = Tally::default();
        steps.into_iter().for_each(|step| count_step(&mut tally, step));
        assert_eq!((tally.lost, tally.doubled, tally.out_of_order), (0, 2, 3));
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
        assert_eq!(ledger.learn(11, facts(100, 7)), Ok(()));
        assert_eq!(ledger.look(11, 100), Sight::Same(5));
        assert_eq!(ledger.look(11, 101), Sight::OtherBytes(5));
        assert!(ledger.is_same_content(11, 101));
        assert!(!ledger.is_same_content(11, 102));
        assert!(!ledger.is_same_content(12, 101));
        for seq in 12..=15 {
            assert_eq!(ledger.look(seq, seq), Sight::New);
            ledger.learn(seq, facts(seq, seq)).unwrap();
        }
        assert_eq!(ledger.look(11, 100), Sight::Forgotten);
        assert_eq!(ledger.high(), 15);
    }

    #[test]
    fn acks_and_deliveries_must_agree_in_either_order() {
        let mut ledger = Ledger::new(8);
        assert_eq!(ledger.on_ack(1, 7), Ok(()));
        assert_eq!(ledger.look(1, 100), Sight::New);
        assert_eq!(ledger.learn(1, facts(100, 7)), Ok(()));
        assert_eq!(ledger.on_ack(1, 7), Ok(()), "a duplicate is acked with the first number");
        assert_eq!(ledger.on_ack(1, 8), Err(WrongAck));
        ledger.on_ack(2, 9).unwrap();
        assert_eq!(ledger.learn(2, facts(1, 10)), Err(WrongAck));
        ledger.learn(3, facts(1, 11)).unwrap();
        assert_eq!(ledger.on_ack(3, 12), Err(WrongAck));
        assert_eq!(ledger.on_ack(20, 1), Ok(()));
        assert_eq!(ledger.high(), 20, "what was acked must come");
    }

    fn end(room: u32, high: Seq, sum: u64, next: &[(Seq, u64)]) -> RoomEnd {
        RoomEnd { room, high, digest: Digest { base: 1, last: 9, sum }, next: next.iter().copied().collect() }
    }

    #[test]
    fn threads_are_reconciled_by_room() {
        let mut tally = Tally::default();
        let good = [end(1, 9, 5, &[(10, 3)]), end(1, 9, 5, &[(10, 2)]), end(2, 4, 6, &[(5, 1)])];
        reconcile(&good, &mut tally);
        assert!(tally.failures().is_empty());
        // One thread saw up to 9, the other's two connections stopped before 8.
        reconcile(&[end(1, 9, 5, &[(10, 3)]), end(1, 7, 5, &[(8, 2)])], &mut tally);
        assert_eq!((tally.lost, tally.differing), (4, 0));
        reconcile(&[end(3, 9, 5, &[]), end(3, 9, 6, &[])], &mut tally);
        assert_eq!(tally.differing, 1);
        assert_eq!(tally.failures().len(), 2);
    }

    #[test]
    fn digests_depend_on_order_and_content() {
        let run = |order: [u64; 2]| {
            let mut ledger = Ledger::new(8);
            ledger.start_at(3);
            ledger.learn(4, facts(order[0], 0)).unwrap();
            ledger.learn(5, facts(order[1], 0)).unwrap();
            ledger.digest()
        };
        assert_eq!(run([10, 20]), run([10, 20]));
        assert_ne!(run([10, 20]).sum, run([20, 10]).sum);
        assert_eq!(run([10, 20]).last, 5);
    }

    #[test]
    fn tallies_add_up() {
        let mut a = Tally { lost: 1, acked: 2, ..Tally::default() };
        a.errors.insert(113, 4);
        let mut b = a.clone();
        b.closes.insert(4102, 2);
        b.closes_expected = 2;
        a.add(&b);
        assert_eq!((a.lost, a.acked, a.errors[&113], a.closes[&4102]), (2, 4, 8, 2));
        assert_eq!(a.failures(), ["2 deliveries lost"]);
    }
}
