//! Where in the queue the pair of a hash stands: a hash table of one word for each pair.
//!
//! Made for one use: of millions of hashes looked up, hardly any is known, and each is then added. So a look-up and what
//! is added after it touch the same cache line, nothing outside the table is looked at before 31 bits of the hash agree,
//! and what is removed leaves no mark. Linear probing, with what follows moved back on removal (Knuth, volume 3,
//! section 6.4, algorithms L and R).

use super::Place;

/// Slots of the smallest table.
const SLOTS_MIN: usize = 16;

/// A part of a hash, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag(u32);

impl Tag {
    /// That of a hash: its upper half, but for the last bit.
    pub fn of(hash: u64) -> Self {
        Self((hash >> 32) as u32 | 1)
    }
}

/// A tag and a place; 0: free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    const FREE: Self = Self(0);

    fn new(tag: Tag, place: Place) -> Self {
        Self(u64::from(tag.0) << 32 | u64::from(place.0))
    }

    fn tag(self) -> Tag {
        Tag((self.0 >> 32) as u32)
    }

    fn place(self) -> Place {
        Place(self.0 as u32)
    }
}

/// Places by tag. Several may have the same tag, each place only one.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// None, or a power of two of them; five eighths are taken at most.
    slots: Vec<Slot>,
    taken: usize,
}

impl Table {
    /// The place with this tag for which `is_same` holds.
    pub fn find(&self, tag: Tag, is_same: impl Fn(Place) -> bool) -> Option<Place> {
        self.index_of(tag, is_same).map(|index| self.slots[index].place())
    }

    /// Something that lies where the probing of `tag` begins. No branch depends on it, so that many can be waited for at once.
    pub fn peek(&self, tag: Tag) -> u64 {
        self.slots.get(self.home(tag)).map_or(0, |slot| slot.0)
    }

    /// Adds a place that is not there.
    pub fn add(&mut self, tag: Tag, place: Place) {
        if (self.taken + 1) * 8 > self.slots.len() * 5 {
            self.grow();
        }
        let free = self.first(tag, |slot| slot == Slot::FREE);
        self.slots[free] = Slot::new(tag, place);
        self.taken += 1;
    }

    /// Takes out `place`, if it is there.
    pub fn remove(&mut self, tag: Tag, place: Place) {
        let Some(mut gap) = self.index_of(tag, |known| known == place) else { return };
        let mut next = gap;
        loop {
            next = self.after(next);
            let slot = self.slots[next];
            if slot == Slot::FREE {
                break;
            }
            // It may move back as far as where its probing begins.
            if self.distance(self.home(slot.tag()), next) >= self.distance(gap, next) {
                self.slots[gap] = slot;
                gap = next;
            }
        }
        self.slots[gap] = Slot::FREE;
        self.taken -= 1;
    }

    fn index_of(&self, tag: Tag, is_same: impl Fn(Place) -> bool) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let index = self.first(tag, |slot| slot == Slot::FREE || slot.tag() == tag && is_same(slot.place()));
        (self.slots[index] != Slot::FREE).then_some(index)
    }

    /// The first slot from where the probing of `tag` begins that is wanted. One is free at least.
    fn first(&self, tag: Tag, is_wanted: impl Fn(Slot) -> bool) -> usize {
        let mut index = self.home(tag);
        while !is_wanted(self.slots[index]) {
            index = self.after(index);
        }
        index
    }

    /// Where the probing of a tag begins: its highest bits, as many as number the slots.
    fn home(&self, tag: Tag) -> usize {
        ((u64::from(tag.0) * self.slots.len() as u64) >> 32) as usize
    }

    fn after(&self, index: usize) -> usize {
        (index + 1) & (self.slots.len() - 1)
    }

    /// Steps from one slot to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.slots.len() - 1)
    }

    #[cold]
    fn grow(&mut self) {
        let doubled = (self.slots.len() * 2).max(SLOTS_MIN);
        let old = std::mem::replace(&mut self.slots, vec![Slot::FREE; doubled]);
        for slot in old.into_iter().filter(|slot| *slot != Slot::FREE) {
            let free = self.first(slot.tag(), |slot| slot == Slot::FREE);
            self.slots[free] = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Few tags, near each other and at the end of the table, so that they collide and wrap around.
        #[test]
        fn it_is_a_multimap(steps in proptest::collection::vec((0u8..3, 0u32..40), 1..400)) {
            let mut table = Table::default();
            let mut model = Vec::<(Tag, Place)>::new();
            let mut next = u32::MAX - 100;
            for (step, number) in steps {
                let tag = Tag::of(u64::from(u32::MAX - number * 0x0100_0000) << 32);
                if step > 0 {
                    next = next.wrapping_add(1);
                    table.add(tag, Place(next));
                    model.push((tag, Place(next)));
                } else {
                    let oldest = model.iter().find(|(of, _)| *of == tag).map_or(Place(u32::MAX / 2), |(_, place)| *place);
                    table.remove(tag, oldest);
                    model.retain(|(_, place)| *place != oldest);
                }
                prop_assert_eq!(table.taken, model.len());
                prop_assert!(table.taken * 8 <= table.slots.len() * 5);
                prop_assert_eq!(table.slots.iter().filter(|slot| **slot != Slot::FREE).count(), table.taken);
                for (tag, place) in &model {
                    prop_assert_eq!(table.find(*tag, |known| known == *place), Some(*place));
                }
                prop_assert_eq!(table.find(tag, |_| false), None);
            }
        }
    }
}
