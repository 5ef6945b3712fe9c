//! What the persistence core knows of one user's queue: enough to keep its bounds.

use std::collections::BTreeMap;

use super::{Bounds, ItemId};
use crate::protocol::ids::{Priority, UnixMillis};

/// One waiting item, without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub id: ItemId,
    /// Order of delivery.
    pub priority: Priority,
    /// What it counts against the bound.
    pub bytes: u32,
    /// From when on it is not delivered.
    pub expires_ts: UnixMillis,
}

/// There is no room, and nothing that is no more urgent than the new item could make any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The items of one priority, by their age.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Class {
    heads: BTreeMap<ItemId, Head>,
    bytes: u64,
}

/// One user's waiting items. They lie by priority and age, so that whoever has to go is found at once: a full queue costs
/// each new item as much as one with room.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// As [`Priority`] orders them: the most urgent first.
    classes: [Class; 3],
    /// No item expires before this; none: nobody has looked, or there was none.
    expires_first: Option<UnixMillis>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.classes == other.classes
    }
}

impl Eq for Held {}

impl Held {
    /// The queue as the store has it.
    pub fn of(heads: impl IntoIterator<Item = Head>) -> Self {
        let mut held = Self::default();
        heads.into_iter().for_each(|head| held.insert(head));
        held
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.classes.iter().map(|class| class.heads.len()).sum()
    }

    /// True when none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of what waits.
    pub fn bytes(&self) -> u64 {
        self.classes.iter().map(|class| class.bytes).sum()
    }

    /// Adds an item that [`Held::make_room`] found room for.
    pub fn insert(&mut self, head: Head) {
        self.remove(head.id);
        let class = &mut self.classes[head.priority as usize];
        class.heads.insert(head.id, head);
        class.bytes += u64::from(head.bytes);
        self.expires_first = Some(self.expires_first.map_or(head.expires_ts, |first| first.min(head.expires_ts)));
    }

    /// Takes an item out. False when it was not there.
    pub fn remove(&mut self, id: ItemId) -> bool {
        for class in &mut self.classes {
            if let Some(head) = class.heads.remove(&id) {
                class.bytes -= u64::from(head.bytes);
                return true;
            }
        }
        false
    }

    /// True when this item waits.
    pub fn contains(&self, id: ItemId) -> bool {
        self.classes.iter().any(|class| class.heads.contains_key(&id))
    }

    /// Takes out what has expired by `now`, if another item of `bytes` would not fit otherwise.
    pub fn expire_for(&mut self, bytes: u32, bounds: &Bounds, now: UnixMillis) -> Vec<ItemId> {
        if self.expires_first.is_none_or(|first| now < first) || self.fits(bytes, bounds) {
            return Vec::new();
        }
        let all = self.classes.iter().flat_map(|class| class.heads.values());
        let mut over: Vec<ItemId> = all.filter(|head| head.expires_ts <= now).map(|head| head.id).collect();
        over.sort_unstable();
        over.iter().for_each(|id| {
            self.remove(*id);
        });
        let all = self.classes.iter().flat_map(|class| class.heads.values());
        self.expires_first = all.map(|head| head.expires_ts).min();
        over
    }

    /// Takes out what has to go so that an item of this size and priority fits: the oldest of the
    /// lowest priority first, and nothing that is more urgent than the new one.
    ///
    /// # Errors
    /// [`Full`], and nothing was taken out.
    pub fn make_room(&mut self, bytes: u32, priority: Priority, bounds: &Bounds) -> Result<Vec<ItemId>, Full> {
        if self.fits(bytes, bounds) {
            return Ok(Vec::new());
        }
        // `Priority` orders by urgency: what is greater may go for what is smaller or equal.
        let (stays, may_go) = self.classes.split_at(priority as usize);
        let len: usize = stays.iter().map(|class| class.heads.len()).sum();
        let left = stays.iter().map(|class| class.bytes).sum::<u64>() + u64::from(bytes);
        if len >= bounds.items_max as usize || left > u64::from(bounds.bytes_max) {
            return Err(Full);
        }
        debug_assert!(may_go.iter().any(|class| !class.heads.is_empty()));
        let mut victims = Vec::new();
        while !self.fits(bytes, bounds) {
            let Some(class) = self.classes.iter_mut().rev().find(|class| !class.heads.is_empty()) else { break };
            if let Some((id, head)) = class.heads.pop_first() {
                class.bytes -= u64::from(head.bytes);
                victims.push(id);
            }
        }
        Ok(victims)
    }

    fn fits(&self, bytes: u32, bounds: &Bounds) -> bool {
        self.len() < bounds.items_max as usize && self.bytes() + u64::from(bytes) <= u64::from(bounds.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{Critical, Low, Normal};

    const BOUNDS: Bounds = Bounds { items_max: 3, bytes_max: 100, ttl_ms: 1_000 };

    fn head(id: ItemId, priority: Priority, bytes: u32) -> Head {
        Head { id, priority, bytes, expires_ts: 1_000 + id }
    }

    #[test]
    fn the_oldest_of_the_lowest_priority_makes_room() {
        let mut held = Held::of([head(1, Normal, 10), head(2, Low, 10), head(3, Low, 10)]);
        assert_eq!(held.make_room(10, Low, &BOUNDS), Ok(vec![2]));
        held.insert(head(4, Low, 10));
        assert_eq!(held.make_room(10, Critical, &BOUNDS), Ok(vec![3]));
        held.insert(head(5, Critical, 10));
        assert_eq!(held.make_room(10, Critical, &BOUNDS), Ok(vec![4]));
        held.insert(head(6, Critical, 10));
        assert_eq!(held.make_room(10, Low, &BOUNDS), Err(Full), "everything is more urgent");
        assert_eq!(held.make_room(10, Normal, &BOUNDS), Ok(vec![1]), "the same priority: the oldest goes");
        assert_eq!(held.bytes(), 20);
    }

    #[test]
    fn bytes_are_bounded_like_items() {
        let mut held = Held::of([head(1, Low, 60), head(2, Critical, 30)]);
        assert_eq!(held.make_room(80, Normal, &BOUNDS), Err(Full), "without the low one it is still too much");
        assert_eq!(held.len(), 2, "and nothing was thrown out for nothing");
        assert_eq!(held.make_room(70, Normal, &BOUNDS), Ok(vec![1]));
        held.insert(head(3, Normal, 70));
        assert_eq!(held.make_room(101, Critical, &BOUNDS), Err(Full));
    }

    #[test]
    fn expired_items_go_before_anybody_is_thrown_out() {
        let mut held = Held::of([head(1, Critical, 10), head(2, Critical, 10), head(3, Critical, 10)]);
        assert!(held.expire_for(10, &BOUNDS, 1_000).is_empty());
        assert_eq!(held.expire_for(10, &BOUNDS, 1_002), [1, 2]);
        assert!(held.expire_for(10, &BOUNDS, 9_999).is_empty(), "it fits: nobody looks");
        assert!(held.contains(3) && !held.remove(1) && held.remove(3) && held.is_empty());
    }
}
