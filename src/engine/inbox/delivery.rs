//! One user's queue on their own shard: what is to be sent, and when again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{ATTEMPTS_MAX, Item, ItemId, RETRY_FIRST_MS, RETRY_LAST_MS};
use crate::protocol::ids::{Priority, RoomKey, Seq, UnixMillis};

/// One item as it is sent now.
#[derive(Debug, Clone)]
pub struct Sending {
    /// The item.
    pub item: Arc<Item>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

/// What a deadline brought.
#[derive(Debug, Default)]
pub struct Due {
    /// To be sent again, most urgent first, oldest first.
    pub again: Vec<Sending>,
    /// Sent too often: to be made dead letters.
    pub dead: Vec<ItemId>,
    /// How many expired.
    pub expired: u32,
}

#[derive(Debug)]
struct Waiting {
    item: Arc<Item>,
    /// Attempts so far; 0: not sent by this process.
    attempts: u32,
    /// The core has been asked to take it away: it is shown to nobody until that has failed.
    is_leaving: bool,
    /// When it is to be sent again.
    next_at: UnixMillis,
}

/// The waiting items of one loaded user.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: BTreeMap<(Priority, ItemId), Waiting>,
    /// Those that no device has been sent, in no order; some may be gone again.
    fresh: Vec<(Priority, ItemId)>,
    /// Removed while the user was being read: the page may still have them.
    gone: HashSet<ItemId, ahash::RandomState>,
    /// Attempts put on record while the user was being read: the page may not have counted them.
    tried: Vec<ItemId>,
    /// The one deadline that counts; 0: none is set.
    pub timer_at: UnixMillis,
}

impl Inbox {
    /// How many wait to be shown.
    pub fn len(&self) -> usize {
        self.shown().count()
    }

    fn shown(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.values().filter(|waiting| !waiting.is_leaving)
    }

    /// True when nothing needs it kept.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.gone.is_empty()
    }

    /// Adds an item that the core took in. One that is there already is left alone.
    pub fn insert(&mut self, item: Arc<Item>) {
        let key = (item.priority, item.id);
        if self.waiting.contains_key(&key) {
            return;
        }
        let attempts = item.attempts;
        self.waiting.insert(key, Waiting { item, attempts, is_leaving: false, next_at: 0 });
        self.fresh.push(key);
    }

    /// Takes an item out. True when it was there, and some device may have been sent it.
    pub fn remove(&mut self, id: ItemId) -> bool {
        let mut priorities = [Priority::Critical, Priority::Normal, Priority::Low].into_iter();
        let removed = priorities.find_map(|priority| self.waiting.remove(&(priority, id)));
        removed.is_some_and(|waiting| waiting.attempts > 0)
    }

    /// The core is asked to take these away.
    pub fn leave(&mut self, items: &[ItemId]) {
        self.each_of(items, |waiting| waiting.is_leaving = true);
    }

    /// It could not: those that are still there wait like any other, from now on. For what this process
    /// has not sent that counts as the first attempt, which no record is made of.
    pub fn stay(&mut self, items: &[ItemId], now: UnixMillis) {
        self.each_of(items, |waiting| {
            waiting.is_leaving = false;
            waiting.attempts = waiting.attempts.max(waiting.item.attempts + 1);
            waiting.next_at = now + RETRY_FIRST_MS;
        });
    }

    fn each_of(&mut self, items: &[ItemId], change: impl Fn(&mut Waiting)) {
        for id in items {
            for priority in [Priority::Critical, Priority::Normal, Priority::Low] {
                if let Some(waiting) = self.waiting.get_mut(&(priority, *id)) {
                    change(waiting);
                }
            }
        }
    }

    /// Takes an item out while the user is being read.
    pub fn remove_early(&mut self, id: ItemId) {
        self.remove(id);
        self.gone.insert(id);
    }

    /// Counts an attempt that is put on record while the user is being read.
    pub fn try_early(&mut self, items: &[ItemId]) {
        self.tried.extend_from_slice(items);
    }

    /// The user was read: `page` is what the store had. Whether it counts an attempt that was put on
    /// record meanwhile is not known; counted twice, the item is dead one attempt early, never late.
    pub fn fill(&mut self, page: impl IntoIterator<Item = Item>) {
        let (gone, tried) = (std::mem::take(&mut self.gone), std::mem::take(&mut self.tried));
        for mut item in page {
            if !gone.contains(&item.id) {
                item.attempts += tried.iter().filter(|id| **id == item.id).count() as u32;
                self.insert(Arc::new(item));
            }
        }
    }

    /// Drops what has expired by `now`. Tells how many.
    pub fn expire(&mut self, now: UnixMillis) -> u32 {
        let before = self.waiting.len();
        self.waiting.retain(|_, waiting| waiting.item.expires_ts > now);
        (before - self.waiting.len()) as u32
    }

    /// Items about entries of `room` up to and with `seq`.
    pub fn covered(&self, room: RoomKey, seq: Seq) -> Vec<ItemId> {
        let is_covered = |item: &Item| item.covers.is_some_and(|(of, at)| of == room && at <= seq);
        self.shown().filter(|waiting| is_covered(&waiting.item)).map(|waiting| waiting.item.id).collect()
    }

    /// What no device has been sent: this is their first attempt (of this process).
    pub fn take_fresh(&mut self, now: UnixMillis, jitter: u32) -> Vec<Sending> {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_unstable();
        let send = |key| Some(self.waiting.get_mut(key).filter(|waiting| !waiting.is_leaving)?.send(now, jitter));
        fresh.iter().filter_map(send).collect()
    }

    /// Everything, for a device that has just connected. Only what was never sent counts as an
    /// attempt; what fell due while nobody was connected waits for an answer from now on.
    pub fn greet(&mut self, now: UnixMillis, jitter: u32) -> Vec<Sending> {
        for key in std::mem::take(&mut self.fresh) {
            if let Some(waiting) = self.waiting.get_mut(&key).filter(|waiting| !waiting.is_leaving) {
                waiting.send(now, jitter);
            }
        }
        self.waiting
            .values_mut()
            .filter(|waiting| !waiting.is_leaving)
            .map(|waiting| {
                if waiting.next_at <= now {
                    waiting.next_at = now + retry_ms(waiting.attempts, jitter);
                }
                Sending { item: waiting.item.clone(), attempt: waiting.attempts }
            })
            .collect()
    }

    /// What is due at `now`.
    pub fn due(&mut self, now: UnixMillis, jitter: u32) -> Due {
        let mut due = Due { expired: self.expire(now), ..Due::default() };
        let is_due = |waiting: &&mut Waiting| !waiting.is_leaving && waiting.attempts > 0 && waiting.next_at <= now;
        for waiting in self.waiting.values_mut().filter(is_due) {
            if waiting.attempts >= ATTEMPTS_MAX {
                due.dead.push(waiting.item.id);
                // Should the core not take it now, it is asked again.
                waiting.next_at = now + RETRY_LAST_MS;
            } else {
                due.again.push(waiting.send(now, jitter));
            }
        }
        due
    }

    /// When [`Inbox::due`] has something to say next. Looks at every item.
    pub fn next_deadline(&self) -> Option<UnixMillis> {
        self.shown()
            .filter(|waiting| waiting.attempts > 0)
            .map(|waiting| waiting.next_at.min(waiting.item.expires_ts))
            .min()
    }

    /// Items with a number above `after`, oldest first, and how often each was sent.
    pub fn list(&self, after: ItemId) -> Vec<Sending> {
        let mut items: Vec<Sending> = self
            .shown()
            .filter(|waiting| waiting.item.id > after)
            .map(|waiting| Sending { item: waiting.item.clone(), attempt: waiting.attempts })
            .collect();
        items.sort_unstable_by_key(|sending| sending.item.id);
        items
    }
}

impl Waiting {
    fn send(&mut self, now: UnixMillis, jitter: u32) -> Sending {
        self.attempts += 1;
        self.next_at = now + retry_ms(self.attempts, jitter);
        Sending { item: self.item.clone(), attempt: self.attempts }
    }
}

/// Wait after the attempt of this number: doubling, up to a quarter longer by `jitter` (0: nothing,
/// `u32::MAX`: the quarter), never longer than the last.
fn retry_ms(attempt: u32, jitter: u32) -> u64 {
    let longest = RETRY_LAST_MS * 4 / 5;
    let base = (RETRY_FIRST_MS << attempt.saturating_sub(1).min(16)).min(longest);
    base + ((base / 4 * u64::from(jitter)) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ids::UserId;

    pub fn item(id: ItemId, priority: Priority, expires_ts: UnixMillis) -> Item {
        Item {
            id,
            user: UserId::parse("alice").unwrap(),
            name: "n".into(),
            data: "1".into(),
            priority,
            ts: 0,
            expires_ts,
            attempts: 0,
            from: None,
            covers: id.is_multiple_of(2).then_some((RoomKey(1), id)),
        }
    }

    fn ids(list: &[Sending]) -> Vec<(ItemId, u32)> {
        list.iter().map(|sending| (sending.item.id, sending.attempt)).collect()
    }

    #[test]
    fn the_most_urgent_and_oldest_goes_first() {
        let mut inbox = Inbox::default();
        for (id, priority) in
            [(1, Priority::Low), (2, Priority::Normal), (3, Priority::Critical), (4, Priority::Normal)]
        {
            inbox.insert(Arc::new(item(id, priority, 1_000_000)));
        }
        assert_eq!(ids(&inbox.take_fresh(10, 0)), [(3, 1), (2, 1), (4, 1), (1, 1)]);
        assert_eq!(ids(&inbox.take_fresh(10, 0)), []);
        assert_eq!(ids(&inbox.greet(20, 0)), [(3, 1), (2, 1), (4, 1), (1, 1)], "another device: no further attempt");
        assert_eq!(ids(&inbox.list(2)), [(3, 1), (4, 1)]);
        assert_eq!(inbox.covered(RoomKey(1), 3), [2]);
        assert!(inbox.remove(2) && !inbox.remove(2));
        assert_eq!(inbox.next_deadline(), Some(1_010));
        assert_eq!(ids(&inbox.due(1_009, 0).again), []);
        assert_eq!(ids(&inbox.due(1_010, 0).again), [(3, 2), (4, 2), (1, 2)]);
        assert_eq!(inbox.next_deadline(), Some(3_010));
    }

    #[test]
    fn waits_double_up_to_five_minutes_and_then_it_is_dead() {
        for jitter in [0, u32::MAX] {
            let mut inbox = Inbox::default();
            inbox.insert(Arc::new(item(1, Priority::Low, u64::MAX)));
            assert_eq!(inbox.take_fresh(0, jitter).len(), 1);
            let (mut now, mut waits) = (0, Vec::new());
            let dead = loop {
                let at = inbox.next_deadline().unwrap();
                waits.push(at - now);
                now = at;
                let due = inbox.due(now, jitter);
                if due.again.is_empty() {
                    break due.dead;
                }
            };
            assert_eq!((dead, waits.len()), (vec![1], ATTEMPTS_MAX as usize));
            assert!(waits.iter().all(|wait| (RETRY_FIRST_MS..=RETRY_LAST_MS).contains(wait)), "{waits:?}");
            assert!(waits.is_sorted(), "{waits:?}");
        }
    }

    #[test]
    fn what_is_being_taken_away_is_shown_to_nobody_and_comes_back_when_that_fails() {
        let mut inbox = Inbox::default();
        for id in [1, 2] {
            inbox.insert(Arc::new(item(id, Priority::Normal, 1_000_000)));
        }
        inbox.leave(&[2]);
        assert_eq!((ids(&inbox.take_fresh(10, 0)), ids(&inbox.list(0)), inbox.len()), (vec![(1, 1)], vec![(1, 1)], 1));
        assert!(inbox.remove(1) && ids(&inbox.greet(20, 0)).is_empty() && !inbox.is_empty());
        assert_eq!((inbox.next_deadline(), inbox.covered(RoomKey(1), 9)), (None, vec![]));
        inbox.stay(&[1, 2], 100);
        assert_eq!((inbox.next_deadline(), ids(&inbox.list(0))), (Some(1_100), vec![(2, 1)]));
        assert_eq!(ids(&inbox.due(1_100, 0).again), [(2, 2)], "what is gone does not come back");
    }

    #[test]
    fn what_expires_is_gone_and_what_was_removed_while_loading_stays_so() {
        let mut inbox = Inbox::default();
        inbox.insert(Arc::new(item(2, Priority::Normal, 50)));
        inbox.remove_early(1);
        inbox.fill([item(1, Priority::Normal, 100), item(2, Priority::Normal, 50), item(3, Priority::Normal, 100)]);
        assert_eq!(ids(&inbox.greet(10, 0)), [(2, 1), (3, 1)]);
        assert_eq!(inbox.next_deadline(), Some(50));
        assert_eq!(inbox.due(50, 0).expired, 1);
        assert_eq!(inbox.len(), 1);
        assert_eq!(inbox.due(100, 0).expired, 1);
        assert!(inbox.is_empty());
    }

    #[test]
    fn attempts_of_an_earlier_process_count_for_what_stays() {
        let mut inbox = Inbox::default();
        inbox.fill([Item { attempts: 3, ..item(1, Priority::Normal, 1_000_000) }]);
        inbox.leave(&[1]);
        inbox.stay(&[1], 100);
        assert_eq!(ids(&inbox.due(1_100, 0).again), [(1, 5)], "the fourth is the one that stayed");
    }

    #[test]
    fn attempts_on_record_while_loading_count() {
        let mut inbox = Inbox::default();
        inbox.try_early(&[1, 7]);
        inbox.fill([item(1, Priority::Normal, 100), item(2, Priority::Normal, 100)]);
        assert_eq!(ids(&inbox.greet(10, 0)), [(1, 2), (2, 1)]);
    }
}
