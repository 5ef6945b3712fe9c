//! Inboxes in the simulation: what was put in, what became of it, and what the server may still send.
//!
//! The truth is what the core decided and what became durable. It is held against every frame at the
//! moment when an engine makes it: lanes and networks may let an older frame arrive later.

use std::collections::{BTreeMap, BTreeSet};

use antiphon::engine::inbox::{ATTEMPTS_MAX, InboxChange, Item, ItemId, Removal};
use antiphon::engine::sequencer::memory::MemoryLog;
use antiphon::protocol::ids::{Priority, UserId};
use serde_json::Value;

use crate::plan::Dice;

/// What stands about every item that was ever taken in.
#[derive(Default)]
pub struct Inboxes {
    items: BTreeMap<ItemId, (Item, Option<Removal>)>,
    /// Items whose acknowledgement some client of the user asked for.
    asked: BTreeSet<(UserId, ItemId)>,
    /// Those whose acknowledgement was confirmed.
    confirmed: BTreeSet<ItemId>,
    /// Items times connections, as engines sent them.
    pub sent: u64,
    pub acked: u64,
    pub evicted: u64,
    pub expired: u64,
    pub dead: u64,
}

impl Inboxes {
    /// A batch stands in the log.
    pub fn on_changes(&mut self, changes: &[InboxChange]) {
        for change in changes {
            match change {
                InboxChange::Added(item) => {
                    let is_new = self.items.insert(item.id, ((**item).clone(), None)).is_none();
                    assert!(is_new, "the number {} is given twice", item.id);
                }
                InboxChange::Removed { user, items, why } => {
                    items.iter().for_each(|id| self.on_removed(user, *id, *why));
                }
                InboxChange::Tried { user, items } => {
                    for id in items {
                        let (item, gone) = self.items.get_mut(id).expect("only what is there is tried");
                        assert!(item.user == *user && gone.is_none(), "item {id} is gone and is tried");
                        item.attempts += 1;
                        assert!(item.attempts < ATTEMPTS_MAX, "item {id} is tried too often");
                    }
                }
            }
        }
    }

    fn on_removed(&mut self, user: &UserId, id: ItemId, why: Removal) {
        let (item, gone) = self.items.get_mut(&id).expect("only what is there goes");
        assert!(item.user == *user && gone.is_none(), "item {id} goes twice, or with another user");
        *gone = Some(why);
        match why {
            Removal::Acked => {
                let is_wanted = item.covers.is_some() || self.asked.contains(&(user.clone(), id));
                assert!(is_wanted, "item {id} of {user} was taken away and nobody asked for it");
                self.acked += 1;
            }
            Removal::Evicted => self.evicted += 1,
            Removal::Expired => self.expired += 1,
            Removal::Dead => self.dead += 1,
        }
    }

    /// A client says that it has these.
    pub fn on_asked(&mut self, user: &UserId, items: &[ItemId]) {
        self.asked.extend(items.iter().map(|id| (user.clone(), *id)));
    }

    /// A `notify` was accepted: the item stands.
    pub fn check_notified(&self, user: &str, name: &str, id: ItemId) {
        let (item, _) = self.items.get(&id).unwrap_or_else(|| panic!("P1: item {id} was acked and does not stand"));
        assert!(item.user.as_str() == user && &*item.name == name, "P1: item {id} is another one: {item:?}");
    }

    /// An engine answers an acknowledgement: these are gone, for ever.
    pub fn on_confirmed(&mut self, user: &UserId, items: &[ItemId]) {
        for id in items {
            if self.items.get(id).is_some_and(|(item, _)| item.user == *user) {
                let is_gone = self.items[id].1.is_some();
                assert!(is_gone, "P1: the end of item {id} was confirmed before it stood in the log");
                self.confirmed.insert(*id);
            }
        }
    }

    /// An engine sends items to a connection of `user`.
    pub fn check_sent(&mut self, user: &UserId, event: &Value) {
        let items = event["items"].as_array().expect("items are a list");
        assert!((1..=50).contains(&items.len()), "an event has 1 to 50 items");
        let mut order: Vec<(Priority, ItemId)> = Vec::new();
        for sent in items {
            let id = sent["item"].as_u64().unwrap();
            let (item, _) = self.items.get(&id).unwrap_or_else(|| panic!("P1: item {id} is sent and does not stand"));
            assert_eq!(item.user, *user, "P9: item {id} is sent to somebody else");
            assert!(!self.confirmed.contains(&id), "item {id} comes again after its acknowledgement was confirmed");
            let priority = Priority::parse(sent["priority"].as_str().unwrap()).unwrap();
            assert!(priority == item.priority && sent["name"] == *item.name, "item {id} is sent as another one");
            let attempt = sent["attempt"].as_u64().unwrap();
            assert!((1..=u64::from(ATTEMPTS_MAX)).contains(&attempt), "item {id} has attempt {attempt}");
            order.push((priority, id));
            self.sent += 1;
        }
        assert!(order.is_sorted(), "the most urgent and oldest goes first: {order:?}");
    }

    /// What must be there for `user` now, and what may be there still: an item whose time is over, or
    /// that is about what they have read, need not be shown any more.
    pub fn waiting(&self, user: &UserId, log: &MemoryLog, now: u64) -> (BTreeSet<ItemId>, BTreeSet<ItemId>) {
        let stands = self.items.values().filter(|(item, gone)| item.user == *user && gone.is_none());
        let is_read = |item: &Item| {
            item.covers
                .is_some_and(|(room, seq)| log.cursors.get(&(room, user.clone())).is_some_and(|(at, _)| *at >= seq))
        };
        let (mut due, mut may) = (BTreeSet::new(), BTreeSet::new());
        for (item, _) in stands {
            may.insert(item.id);
            if item.expires_ts > now && !is_read(item) {
                due.insert(item.id);
            }
        }
        (due, may)
    }

    /// Once all is quiet: the log holds what the steps left, and what was counted as lost is what was lost.
    pub fn check_quiet(&self, log: &MemoryLog) {
        let stands: Vec<ItemId> =
            self.items.iter().filter(|(_, (_, gone))| gone.is_none()).map(|(id, _)| *id).collect();
        let kept: Vec<ItemId> = log.inbox.keys().copied().collect();
        assert_eq!(stands, kept, "an accepted item is lost");
        assert_eq!(self.dead, log.letters.len() as u64, "an item that died became no letter");
    }
}

/// What one connection knows of its user's inbox.
#[derive(Debug, Default)]
pub struct InboxView {
    /// Came, and was not cancelled.
    pub waiting: BTreeSet<ItemId>,
    /// Cancelled, or acknowledged by this connection: does not come again in the same lane.
    cancelled: BTreeSet<ItemId>,
    pub last: ItemId,
}

impl InboxView {
    pub fn hear_items(&mut self, event: &Value) {
        for item in event["items"].as_array().unwrap() {
            let id = item["item"].as_u64().unwrap();
            assert!(!self.cancelled.contains(&id), "item {id} was cancelled on this device and comes again");
            self.waiting.insert(id);
            self.last = self.last.max(id);
        }
    }

    /// `inbox:acked`: another device has them.
    pub fn hear_cancelled(&mut self, event: &Value) {
        for id in event["items"].as_array().unwrap().iter().filter_map(Value::as_u64) {
            self.waiting.remove(&id);
            self.cancelled.insert(id);
        }
    }

    pub fn on_acked(&mut self, items: &[ItemId]) {
        items.iter().for_each(|id| {
            self.waiting.remove(id);
        });
    }

    /// Some of what waits, and now and then one that does not.
    pub fn choose(&self, dice: &mut Dice) -> Vec<ItemId> {
        let mut chosen: Vec<ItemId> = self.waiting.iter().copied().filter(|_| dice.chance(600)).collect();
        if chosen.is_empty() || dice.chance(100) {
            // Numbers up to the last one are given; a later one could be before its answer comes.
            chosen.push(if self.last == 0 { 1_000_000_000 } else { dice.between(1, self.last) });
        }
        chosen
    }
}
