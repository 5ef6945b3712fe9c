//! The books of a run: counts of everything that was checked, what of it broke a promise, and the
//! comparison of what the threads saw. Pure.

use std::collections::BTreeMap;

use crate::driver::drain::DRAIN_MAX_S;
use crate::verify::{Digest, Seq, Step};

/// Counts of everything that was checked. Adding two gives the count of both (of `busy_ns`: the larger).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Commands `message:send` written, retries included.
    pub sent: u64,
    /// Messages acknowledged.
    pub acked: u64,
    /// Acknowledged within the measuring window.
    pub acked_in_window: u64,
    /// Time within the measuring window in which a driver had something to do, ns; counted when it polls.
    pub busy_ns: u64,
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
    /// A message whose body is not what was sent, the time in it included.
    pub wrong_bodies: u64,
    /// A message that names another author than who sent it.
    pub wrong_authors: u64,
    /// A message that came under a second number.
    pub stored_again: u64,
    /// A message that nobody of this tool sent.
    pub invented: u64,
    /// Acknowledged, and nobody got it.
    pub acked_only: u64,
    /// Refusals for the time being.
    pub put_off: u64,
    /// Meant to be sent, and not accepted by the end.
    pub never_accepted: u64,
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
    /// Of the numbers skipped, those of slow readers, which read them from the history.
    pub missed: u64,
    /// Of these, those that came from there.
    pub refetched: u64,
    /// `error` replies by code.
    pub errors: BTreeMap<u64, u64>,
    /// Connections that ended unasked, by close code (0: without one; errno negated).
    pub closes: BTreeMap<i64, u64>,
    /// Of these, those that may: slow consumers cut with 4102.
    pub closes_expected: u64,
    /// Connections that could not be made.
    pub connect_failures: u64,
    /// A thread stopped waiting while things still came: what is missing then is late, and not known to be lost.
    pub is_overdue: bool,
    /// What was missing then: answers, deliveries, messages not yet accepted.
    pub overdue: u64,
}

impl Tally {
    /// Adds another thread's counts.
    pub fn add(&mut self, other: &Self) {
        let Self {
            sent,
            acked,
            acked_in_window,
            busy_ns,
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
            wrong_authors,
            stored_again,
            invented,
            acked_only,
            put_off,
            never_accepted,
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
            missed,
            refetched,
            errors,
            closes,
            closes_expected,
            connect_failures,
            is_overdue,
            overdue,
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
            (&mut self.wrong_authors, wrong_authors),
            (&mut self.stored_again, stored_again),
            (&mut self.invented, invented),
            (&mut self.acked_only, acked_only),
            (&mut self.put_off, put_off),
            (&mut self.never_accepted, never_accepted),
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
            (&mut self.missed, missed),
            (&mut self.refetched, refetched),
            (&mut self.closes_expected, closes_expected),
            (&mut self.connect_failures, connect_failures),
            (&mut self.overdue, overdue),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
        self.is_overdue |= is_overdue;
        // The busiest thread is what limits a run.
        self.busy_ns = self.busy_ns.max(*busy_ns);
        errors.iter().for_each(|(code, n)| *self.errors.entry(*code).or_default() += n);
        closes.iter().for_each(|(code, n)| *self.closes.entry(*code).or_default() += n);
    }

    /// Deliveries that broke a promise.
    pub fn broken(&self) -> u64 {
        let content = self.wrong_bodies + self.wrong_authors + self.stored_again + self.invented;
        self.lost + self.doubled + self.out_of_order + self.differing + content
    }

    /// What broke a promise, in words; empty when nothing did.
    pub fn failures(&self) -> Vec<String> {
        // Whoever was closed as expected comes back; who was closed unasked is counted as that, and need not.
        let closed = self.closes.values().sum::<u64>().saturating_sub(self.closes_expected);
        let overdue = format!("answers and deliveries not there within {DRAIN_MAX_S} s of the end");
        let counts = [
            (self.lost, "deliveries lost"),
            (self.doubled, "deliveries doubled"),
            (self.out_of_order, "deliveries out of order"),
            (self.differing, "deliveries not the same for everybody"),
            (self.wrong_acks, "acknowledgements that name another message"),
            (self.wrong_bodies, "messages with a wrong body"),
            (self.wrong_authors, "messages with a wrong author"),
            (self.stored_again, "messages stored again under another number"),
            (self.invented, "messages that nobody sent"),
            (self.acked_only, "messages acknowledged and never delivered"),
            (self.never_accepted, "messages were never accepted"),
            (self.malformed, "frames the protocol does not allow"),
            (self.unanswered, "commands without a reply"),
            (self.overdue, &overdue),
            (self.refused, "messages refused for good"),
            (self.wrong_gaps, "gap events with a wrong `last`"),
            (self.connect_failures, "connections that could not be made"),
            (closed, "connections closed unasked"),
            (self.absent.saturating_sub(closed), "connections that did not come back"),
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
            let missing = if tally.is_overdue { &mut tally.overdue } else { &mut tally.lost };
            *missing += (high + 1).saturating_sub(*next) * connections;
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

    #[test]
    fn what_came_late_was_not_lost() {
        use Step::*;
        let mut tally = Tally::default();
        [InOrder, Hole(3), Late, Doubled, Late, Excused(4), Doubled, Late]
            .into_iter()
            .for_each(|step| count_step(&mut tally, step));
        assert_eq!((tally.lost, tally.doubled, tally.out_of_order, tally.excused), (0, 2, 3, 4));
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
        // While things still come, what is missing is late.
        let mut late = Tally { is_overdue: true, ..Tally::default() };
        reconcile(&[end(1, 9, 5, &[(10, 3)]), end(1, 7, 5, &[(8, 2)])], &mut late);
        assert_eq!(
            (late.lost, late.failures()),
            (0, vec!["4 answers and deliveries not there within 120 s of the end".to_owned()])
        );
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

    #[test]
    fn a_close_that_was_expected_excuses_nobody_who_stays_away() {
        let failures = |absent, cut, unasked| {
            let closes = [(4102, cut), (4105, unasked)].into();
            Tally { absent, closes, closes_expected: cut, ..Tally::default() }.failures()
        };
        assert_eq!(failures(0, 9, 0), [""; 0]);
        assert_eq!(failures(2, 9, 0), ["2 connections that did not come back"]);
        assert_eq!(failures(1, 9, 1), ["1 connections closed unasked"]);
        assert_eq!(failures(1, 0, 1), ["1 connections closed unasked"], "as where nobody is slow");
    }
}
