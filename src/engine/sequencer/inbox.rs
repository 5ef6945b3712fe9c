//! Who gets an inbox item, and what happens to it: bounds, acknowledgements, dead letters, expiry.
//!
//! Items change no log entry and have no position: they ride in a batch like read cursors. The core
//! alone counts them, so that a queue never exceeds its bounds, whoever adds to it.
//!
//! Mentions, invitations and messages in direct rooms put an item there for every member they
//! concern, in the transaction of the entry itself: nothing between the two can be lost. The core
//! does not know who is connected. The owner's shard does, and takes the item away at once when the
//! user listens to the room. A full inbox never refuses a message: its item is left out, and counted.

use ahash::{AHashMap, AHashSet};

use super::batch::Counted;
use super::membership::DIRECT_MEMBERS_MAX;
use super::{Facts, Stop, Turn, Verdict, refuse};
use crate::engine::event::{Audience, Committed, Viewer};
use crate::engine::inbox::{Bounds, Full, Head, Held, InboxChange, Item, ItemId, NewItem, Removal, bytes};
use crate::protocol::encode::field_string;
use crate::protocol::error::ErrorCode;
use crate::protocol::ids::{Priority, Role, RoomKey, RoomKind, Seq, UnixMillis, UserId};

/// How often expired items of users who do not come are looked for, ms, and how many at once.
const EXPIRE_EVERY_MS: u64 = 10_000;
const EXPIRE_AT_ONCE: u32 = 256;
/// The same when there were as many, so that what is left does not pile up.
const EXPIRE_MORE_MS: u64 = 100;

/// The queues that were looked at lately.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    held: AHashMap<UserId, Held>,
    /// The highest number given so far; not taken back when a batch fails.
    pub last_id: ItemId,
    /// When expired items are looked for next, by the steady clock.
    expire_from: UnixMillis,
    /// Batches since the queues were last counted.
    uncounted: u32,
    /// Since the start.
    counted: Counted,
}

/// Heads in memory, of some 50 bytes each, beyond which half of the queues are let go. To look at a
/// queue again costs a read of all its heads, so this is far above what is filled at one time.
const HEADS_MAX: usize = 2_097_152;
/// Users likewise.
const USERS_MAX: usize = 65_536;
/// Batches between two counts: looking at every queue is not for each of them.
const COUNT_EVERY: u32 = 64;

impl Inboxes {
    /// Nothing looked at yet, and numbers given up to `last_id`.
    pub fn after(last_id: ItemId) -> Self {
        Self { last_id, ..Self::default() }
    }

    pub fn forget(&mut self) {
        self.held.clear();
    }

    /// A batch stands.
    pub fn count(&mut self, batch: &Counted) {
        let all = &mut self.counted;
        all.refused += batch.refused;
        all.evicted += batch.evicted;
        all.expired += batch.expired;
    }

    /// Keeps the memory bounded. Looks at every queue only when there are many, and then seldom.
    pub fn shrink(&mut self, items_max: u32) {
        let users_sure = (HEADS_MAX / (items_max as usize).max(1)).min(USERS_MAX);
        self.uncounted += 1;
        if self.held.len() <= users_sure || self.uncounted < COUNT_EVERY {
            return;
        }
        self.uncounted = 0;
        let mut heads: usize = self.held.values().map(Held::len).sum();
        let mut users = self.held.len();
        if heads > HEADS_MAX || users > USERS_MAX {
            // Whichever come first in a hash map: nobody can have all of theirs thrown out each time.
            self.held.retain(|_, held| {
                let stays = heads <= HEADS_MAX / 2 && users <= USERS_MAX / 2;
                if !stays {
                    heads -= held.len();
                    users -= 1;
                }
                stays
            });
        }
    }
}

/// A log entry that puts items into inboxes.
struct Cause<'a> {
    name: &'static str,
    room: RoomKey,
    seq: Seq,
    by: &'a UserId,
    priority: Priority,
}

impl<F: Facts> Turn<'_, F> {
    pub(super) fn notify(&mut self, item: NewItem, by_admin: bool) -> Verdict<F::Error> {
        if let Some(from) = item.from.clone()
            && !by_admin
            && from != item.user
            && !self.share_a_room(&from, &item.user)?
        {
            return Err(refuse(ErrorCode::PermissionDenied, "you share no room with this user"));
        }
        match self.enqueue(item)? {
            Some(id) => Ok(self.answer(id)),
            None => Err(refuse(ErrorCode::InboxFull, "the user's inbox is full of items that are more urgent")),
        }
    }

    pub(super) fn inbox_ack(&mut self, user: UserId, items: &[ItemId], why: Removal) -> Verdict<F::Error> {
        let held = self.held(&user)?;
        let there: Box<[ItemId]> = items.iter().copied().filter(|id| held.remove(*id)).collect();
        let count = there.len() as u64;
        if count > 0 {
            self.draft.inbox.push(InboxChange::Removed { user, items: there, why });
        }
        Ok(self.answer(count))
    }

    pub(super) fn inbox_tried(&mut self, user: UserId, items: &[ItemId]) -> Verdict<F::Error> {
        let held = self.held(&user)?;
        let there: Box<[ItemId]> = items.iter().copied().filter(|id| held.contains(*id)).collect();
        let count = there.len() as u64;
        if count > 0 {
            self.draft.inbox.push(InboxChange::Tried { user, items: there });
        }
        Ok(self.answer(count))
    }

    /// The items of a message: for the other people of a direct room, and for mentioned members.
    pub(super) fn feed_message(
        &mut self,
        committed: &Committed,
        author: &UserId,
        audience: Option<&Audience>,
        priority: Priority,
        mentions: &[UserId],
    ) -> Result<(), Stop<F::Error>> {
        let (room, seq) = (committed.room, committed.seq);
        let sees = |user: &UserId, role| {
            let viewer = Viewer::anywhere(user.as_str(), role);
            user != author && audience.is_none_or(|a| a.admits(&viewer, author.as_str()))
        };
        let mut told: AHashSet<UserId> = AHashSet::new();
        for user in mentions {
            if told.contains(user) {
                continue;
            }
            let role = self.role(room, user)?;
            if role.is_some_and(Role::is_member) && sees(user, role) {
                told.insert(user.clone());
                self.feed(&Cause { name: "mention", room, seq, by: author, priority }, user)?;
            }
        }
        let here = self.room(room);
        // Earlier versions took more in. Those rooms stay as they are, without items.
        if here.kind == RoomKind::Direct && here.members <= DIRECT_MEMBERS_MAX {
            for user in self.facts.members(room).map_err(Stop::Facts)? {
                let role = self.role(room, &user)?;
                if role.is_some_and(Role::is_member) && sees(&user, role) && !told.contains(&user) {
                    self.feed(&Cause { name: "direct", room, seq, by: author, priority }, &user)?;
                }
            }
            // Who came in by this very batch is not among the facts: the room was made in it.
            self.feed_newcomers(committed, author, audience, priority, &told)?;
        }
        Ok(())
    }

    fn feed_newcomers(
        &mut self,
        committed: &Committed,
        author: &UserId,
        audience: Option<&Audience>,
        priority: Priority,
        told: &AHashSet<UserId>,
    ) -> Result<(), Stop<F::Error>> {
        let (room, seq) = (committed.room, committed.seq);
        let here =
            self.changes.roles.iter().filter(|((key, _), role)| *key == room && role.is_some_and(Role::is_member));
        let mut users: Vec<(UserId, Option<Role>)> = here.map(|((_, user), role)| (user.clone(), *role)).collect();
        users.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (user, role) in users {
            let viewer = Viewer::anywhere(user.as_str(), role);
            let sees = user != *author && audience.is_none_or(|a| a.admits(&viewer, author.as_str()));
            let is_known = self.facts.role(room, &user).map_err(Stop::Facts)?.is_some_and(Role::is_member);
            if sees && !is_known && !told.contains(&user) {
                self.feed(&Cause { name: "direct", room, seq, by: author, priority }, &user)?;
            }
        }
        Ok(())
    }

    /// The item of an invitation.
    pub(super) fn feed_invitation(
        &mut self,
        committed: &Committed,
        by: &UserId,
        user: &UserId,
    ) -> Result<(), Stop<F::Error>> {
        let (room, seq) = (committed.room, committed.seq);
        self.feed(&Cause { name: "invitation", room, seq, by, priority: Priority::Normal }, user)
    }

    fn feed(&mut self, cause: &Cause<'_>, user: &UserId) -> Result<(), Stop<F::Error>> {
        let mut data = format!("{{\"room\":{},\"seq\":{}", self.room(cause.room).name_json, cause.seq).into_bytes();
        field_string(&mut data, "by", cause.by.as_str());
        data.push(b'}');
        let data = String::from_utf8(data).expect("made of texts and escapes");
        self.enqueue(NewItem {
            user: user.clone(),
            name: cause.name.into(),
            data: data.into(),
            priority: cause.priority,
            ttl_ms: None,
            from: Some(cause.by.clone()),
            // Who comes into a room has read it up to the coming; an invitation goes with what they read then.
            covers: Some((cause.room, cause.seq + u64::from(cause.name == "invitation"))),
        })?;
        Ok(())
    }

    /// Takes an item in, and throws out what has to go for it. `None`: there is no room.
    fn enqueue(&mut self, item: NewItem) -> Result<Option<ItemId>, Stop<F::Error>> {
        let (bounds, now) = (self.core.config.inbox, self.now);
        let NewItem { user, name, data, priority, ttl_ms, from, covers } = item;
        let size = bytes(&name, &data);
        let held = self.held(&user)?;
        let over = held.expire_for(size, &bounds, now);
        let victims = held.make_room(size, priority, &bounds);
        self.draft.counted.expired += over.len() as u64;
        self.removed(&user, over, Removal::Expired);
        let Ok(victims) = victims.inspect_err(|Full| self.draft.counted.refused += 1) else { return Ok(None) };
        self.draft.counted.evicted += victims.len() as u64;
        self.removed(&user, victims, Removal::Evicted);
        self.core.inboxes.last_id += 1;
        let id = self.core.inboxes.last_id;
        let expires_ts = now + ttl_ms.unwrap_or(u64::from(bounds.ttl_ms));
        let head = Head { id, priority, bytes: size, expires_ts };
        self.held(&user)?.insert(head);
        let item = Item { id, user, name, data, priority, ts: now, expires_ts, attempts: 0, from, covers };
        self.draft.inbox.push(InboxChange::Added(std::sync::Arc::new(item)));
        Ok(Some(id))
    }

    fn removed(&mut self, user: &UserId, items: Vec<ItemId>, why: Removal) {
        if !items.is_empty() {
            self.draft.inbox.push(InboxChange::Removed { user: user.clone(), items: items.into(), why });
        }
    }

    /// Deletes what has expired in the inboxes of users who do not come, some of it, now and then.
    pub(super) fn expire_inboxes(&mut self) -> Result<(), F::Error> {
        let steady = self.core.steady;
        if steady < self.core.inboxes.expire_from {
            return Ok(());
        }
        let over = self.facts.expired_items(self.now, EXPIRE_AT_ONCE)?;
        let is_all = over.len() < EXPIRE_AT_ONCE as usize;
        self.core.inboxes.expire_from = steady + if is_all { EXPIRE_EVERY_MS } else { EXPIRE_MORE_MS };
        let mut by_user: std::collections::BTreeMap<UserId, Vec<ItemId>> = Default::default();
        for (user, id) in over {
            by_user.entry(user).or_default().push(id);
        }
        for (user, items) in by_user {
            if let Some(held) = self.core.inboxes.held.get_mut(&user) {
                items.iter().for_each(|id| {
                    held.remove(*id);
                });
            }
            self.draft.counted.expired += items.len() as u64;
            self.removed(&user, items, Removal::Expired);
        }
        Ok(())
    }

    /// The user's queue, this batch's changes included.
    fn held(&mut self, user: &UserId) -> Result<&mut Held, Stop<F::Error>> {
        if !self.core.inboxes.held.contains_key(user) {
            let mut held = Held::of(self.facts.inbox(user).map_err(Stop::Facts)?);
            // The facts are as before the batch. What changed since is in memory, but for what expired before anything
            // else: looking at all of the batch would take long for many users.
            for change in &self.draft.inbox {
                let InboxChange::Removed { user: of, items, why: Removal::Expired } = change else { break };
                if of == user {
                    items.iter().for_each(|id| {
                        held.remove(*id);
                    });
                }
            }
            self.core.inboxes.held.insert(user.clone(), held);
        }
        Ok(self.core.inboxes.held.get_mut(user).expect("it was put there"))
    }

    fn share_a_room(&mut self, one: &UserId, other: &UserId) -> Result<bool, Stop<F::Error>> {
        let mut rooms = self.facts.shared_rooms(one, other).map_err(Stop::Facts)?;
        if self.changes.roles.is_empty() {
            return Ok(!rooms.is_empty());
        }
        rooms.extend(self.changes.roles.keys().filter(|(_, user)| user == one || user == other).map(|(room, _)| *room));
        for room in rooms {
            if self.role(room, one)?.is_some_and(Role::is_member)
                && self.role(room, other)?.is_some_and(Role::is_member)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn answer(&self, number: u64) -> Committed {
        Committed { room: RoomKey(0), seq: number, ts: self.now, duplicate: false, value: 0 }
    }
}

impl super::Sequencer {
    /// Inbox items that were refused, thrown out and expired, since the start.
    pub fn inbox_losses(&self) -> (u64, u64, u64) {
        let Counted { refused, evicted, expired, .. } = self.inboxes.counted;
        (refused, evicted, expired)
    }

    /// The bounds of everybody's inbox.
    pub fn inbox_bounds(&self) -> Bounds {
        self.config.inbox
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_never_thrown_out_whole() {
        let head = |id| Head { id, priority: Priority::Normal, bytes: 10, expires_ts: 1 };
        let mut inboxes = Inboxes::after(0);
        for user in 0..3_000 {
            let queue = Held::of((0..1_000).map(|id| head(id + 1)));
            inboxes.held.insert(UserId::parse(&format!("u{user}")).unwrap(), queue);
        }
        for _ in 1..COUNT_EVERY {
            inboxes.shrink(1_000);
        }
        assert_eq!(inboxes.held.len(), 3_000, "not counted yet");
        inboxes.shrink(1_000);
        assert_eq!(inboxes.held.len(), HEADS_MAX / 2 / 1_000);
    }
}
