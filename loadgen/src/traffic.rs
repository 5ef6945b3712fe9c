//! Who sends the next message, and when. Pure: the driver asks, and does the sending.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::client::Message;
use crate::measure::{Pacer, Schedule};
use crate::plan::{Traffic, ns};
use crate::roll;
use antiphon::engine::rng::Rng;

/// One thread's part of the traffic.
pub struct Sending {
    /// Local senders by local room, as slots of the driver.
    senders: Vec<Vec<u32>>,
    /// All of them.
    everybody: Vec<u32>,
    pacer: Option<Pacer>,
    /// Sends owed at once: local rooms.
    owed: Vec<u32>,
    /// Sends put off by the server: due time, slot, message.
    later: BinaryHeap<Reverse<(u64, u32, u64, u64)>>,
    /// Id of the next message; its high bits name the thread.
    next_client: u64,
    /// Messages that were due while nobody could send.
    unsent: u64,
    rng: Rng,
}

impl Sending {
    /// `share` is what part of the whole rate this thread has; `in_flight_here(room)` how many of a
    /// local room's messages on their way are this thread's to keep up. The times are those of the first send
    /// and of measuring.
    pub fn new(
        traffic: Traffic,
        thread: u32,
        senders: Vec<Vec<u32>>,
        share: f64,
        (start_ns, schedule): (u64, &Schedule),
        in_flight_here: impl Fn(u32, u32) -> u32,
        mut rng: Rng,
    ) -> Self {
        let everybody: Vec<u32> = senders.iter().flatten().copied().collect();
        let mut owed = Vec::new();
        let mut pacer = None;
        match traffic {
            Traffic::None => {}
            Traffic::Closed { in_flight } => {
                for room in (0..senders.len() as u32).filter(|room| !senders[*room as usize].is_empty()) {
                    owed.extend((0..in_flight_here(room, in_flight)).map(|_| room));
                }
            }
            Traffic::Open { .. } | Traffic::Steps { .. } => {
                let rates = traffic.rates((schedule.to_ns - schedule.from_ns) as f64 / 1e9);
                let rate = rates[0].1 * share;
                if rate > 0.0 && !everybody.is_empty() {
                    // Threads start apart, or all would send at the same moments.
                    let offset_ns = u64::from(rng.below((1e9 / rate) as u32 + 1));
                    let first = Pacer::new(start_ns + offset_ns, rate);
                    let later = rates.windows(2).map(|pair| (schedule.from_ns + ns(pair[0].0) + offset_ns, pair[1].1));
                    pacer = Some(later.fold(first, |pacer, (from_ns, rate)| pacer.and_then(from_ns, rate * share)));
                }
            }
        }
        let next_client = roll::first_id(thread);
        Self { senders, everybody, pacer, owed, later: BinaryHeap::new(), next_client, unsent: 0, rng }
    }

    /// Nothing new from now on; what was put off still is.
    pub fn stop(&mut self) {
        self.pacer = None;
        self.owed.clear();
    }

    /// Messages that were due at a rate while nobody could send them.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }

    /// A closed loop's message came back: the room owes another.
    pub fn on_done(&mut self, local_room: u32) {
        if self.pacer.is_none() {
            self.owed.push(local_room);
        }
    }

    /// The server wants a message again after `after_ns`.
    pub fn put_off(&mut self, slot: u32, message: Message, now_ns: u64, after_ns: u64) {
        self.later.push(Reverse((now_ns + after_ns, slot, message.client, message.sent_ns)));
    }

    /// True for an open loop.
    pub fn is_paced(&self) -> bool {
        self.pacer.is_some()
    }

    /// Messages that wait to be sent again.
    pub fn put_off_count(&self) -> usize {
        self.later.len()
    }

    /// When something is due next, ns.
    pub fn next_ns(&self) -> Option<u64> {
        let later = self.later.peek().map(|Reverse((due, ..))| *due);
        let paced = self.pacer.as_ref().map(Pacer::next_ns);
        let now = (!self.owed.is_empty()).then_some(0);
        [later, paced, now].into_iter().flatten().min()
    }

    /// The next message that the server put off and that is due.
    pub fn again(&mut self, now_ns: u64) -> Option<(u32, Message)> {
        let Reverse((due, slot, client, sent_ns)) = *self.later.peek()?;
        if due > now_ns {
            return None;
        }
        self.later.pop();
        Some((slot, Message { client, sent_ns }))
    }

    /// The next new message that is due, and whose it is. `is_live` tells who can send.
    pub fn next(&mut self, now_ns: u64, is_live: impl Fn(u32) -> bool) -> Option<(u32, Message)> {
        let (sent_ns, room) = match &mut self.pacer {
            Some(pacer) => (pacer.due(now_ns)?, None),
            None => (now_ns, Some(self.owed.pop()?)),
        };
        let choices = room.map_or(&self.everybody, |room| &self.senders[room as usize]);
        let first = self.rng.below(choices.len() as u32) as usize;
        let (before, from) = choices.split_at(first);
        let Some(slot) = from.iter().chain(before).copied().find(|slot| is_live(*slot)) else {
            self.unsent += u64::from(room.is_none());
            return None;
        };
        let client = self.next_client;
        self.next_client += 1;
        Some((slot, Message { client, sent_ns }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sending(traffic: Traffic) -> Sending {
        let schedule = Schedule { from_ns: 1_000, to_ns: 2_000_001_000, windows: Vec::new() };
        Sending::new(traffic, 1, vec![vec![0, 1, 2], vec![3], vec![]], 0.5, (1_000, &schedule), |_, k| k, Rng::new(1))
    }

    #[test]
    fn a_closed_loop_keeps_its_number_in_flight() {
        let mut closed = sending(Traffic::Closed { in_flight: 2 });
        let first: Vec<(u32, Message)> = std::iter::from_fn(|| closed.next(5, |_| true)).collect();
        assert_eq!(first.len(), 4);
        assert_eq!(first.iter().filter(|(slot, _)| *slot == 3).count(), 2);
        assert!(first.iter().all(|(_, m)| m.sent_ns == 5 && m.client >> 40 == 2));
        closed.on_done(1);
        assert_eq!(closed.next_ns(), Some(0));
        assert_eq!(closed.next(9, |_| true).unwrap().0, 3);
        assert_eq!(closed.next(9, |_| true), None);
        closed.on_done(0);
        assert_eq!(closed.next(9, |slot| slot == 1).unwrap().0, 1, "only who is live sends");
    }

    #[test]
    fn an_open_loop_sends_by_the_clock_alone() {
        let mut open = sending(Traffic::Open { per_second: 2_000.0 });
        let owed: Vec<(u32, Message)> = std::iter::from_fn(|| open.next(10_001_000, |_| true)).collect();
        assert!((9..=11).contains(&owed.len()), "half of 2,000/s for 10 ms: {}", owed.len());
        assert!(owed.windows(2).all(|pair| pair[1].1.sent_ns - pair[0].1.sent_ns == 1_000_000));
        open.on_done(0);
        assert_eq!(open.next(10_001_000, |_| true), None, "an ack owes nothing");
        assert_eq!((open.next(11_001_000, |_| false), open.unsent()), (None, 1), "it stays in the books");
        open.stop();
        assert_eq!((open.next(20_001_000, |_| true), open.next_ns()), (None, None));
        let ids: std::collections::HashSet<u64> = owed.iter().map(|(_, m)| m.client).collect();
        assert_eq!(ids.len(), owed.len());
    }

    #[test]
    fn a_staircase_is_shared_like_a_rate() {
        let mut stairs = sending(Traffic::Steps { from: 100.0, to: 1_000.0, steps: 2 });
        let times: Vec<u64> =
            std::iter::from_fn(|| stairs.next(2_000_001_000, |_| true)).map(|(_, m)| m.sent_ns).collect();
        let first = times.iter().filter(|t| **t < 1_000_001_000).count();
        assert!((48..=53).contains(&first) && (485..=501).contains(&(times.len() - first)), "{first} {}", times.len());
    }

    #[test]
    fn what_is_put_off_comes_back_as_it_was() {
        let mut none = sending(Traffic::None);
        let message = Message { client: 7, sent_ns: 3 };
        none.put_off(2, message, 100, 50);
        assert_eq!((none.next_ns(), none.again(149), none.put_off_count()), (Some(150), None, 1));
        assert_eq!(none.again(150), Some((2, message)));
        assert_eq!((none.next_ns(), none.put_off_count()), (None, 0));
    }
}
