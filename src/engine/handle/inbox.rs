//! The inbox: `notify`, `inbox:ack`, `inbox:list`, and delivery to every device of a user.
//!
//! What waits is decided by the persistence core and told to all shards in its batches; the owner's
//! shard keeps it in memory while the user is loaded, sends it, and asks the core to take away what
//! was acknowledged, read, delivered otherwise, or sent too often.

use std::sync::Arc;

use super::super::cx::Cx;
use super::super::event::{Class, ConnKey, Entry, Frames, Token};
use super::super::inbox::{EVENT_BYTES_MAX, EVENT_ITEMS_MAX, InboxChange, Item, ItemId, NewItem, Removal, Sending};
use super::super::shard::Shard;
use super::super::shard_of;
use super::super::sync;
use super::super::timers::Timer;
use super::super::users::UserIdx;
use super::{Call, Waiting};
use crate::protocol::command::{CommandId, Notify};
use crate::protocol::encode::{field_integer, field_raw, field_string, integer};
use crate::protocol::error::Refusal;
use crate::protocol::ids::{Priority, RoomKey, Seq, UnixMillis, UserId};

/// Deadlines of inboxes fall on multiples of this, ms.
const TIMER_STEP_MS: UnixMillis = 100;
/// Bytes of data in one reply to `inbox:list`, at least one item.
const LIST_BYTES_MAX: usize = 256 * 1024;

impl Shard {
    // --------------------------------------------------------------------------------------------
    // Commands

    pub(super) fn on_notify(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        notify: &Notify<'_>,
    ) -> Result<(), Refusal> {
        let user = UserId::parse(notify.user)?;
        self.pay_for_append(conn)?;
        let from = self.user_of(conn)?;
        let by_admin = self.sessions.get(conn).is_some_and(|session| session.rights.admin);
        let item = NewItem {
            user,
            name: notify.name.into(),
            data: notify.data.as_str().into(),
            priority: notify.priority,
            ttl_ms: notify.ttl_ms,
            from: Some(from),
            covers: None,
        };
        let token = self.pending.insert(Waiting::Notify { call: Call { conn, id: id.cloned() } });
        self.cx.append(token, Entry::Notify { item, by_admin });
        Ok(())
    }

    pub(super) fn on_inbox_ack(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        items: &[ItemId],
    ) -> Result<(), Refusal> {
        self.cx.may_append()?;
        let user = self.user_of(conn)?;
        let items: Box<[ItemId]> = items.into();
        let call = Call { conn, id: id.cloned() };
        let token = self.pending.insert(Waiting::InboxAck { call, user: user.clone(), items: items.clone() });
        self.cx.append(token, Entry::InboxAck { user, items });
        Ok(())
    }

    pub(super) fn on_inbox_list(
        &mut self,
        conn: ConnKey,
        id: Option<&CommandId>,
        after: ItemId,
        limit: u32,
    ) -> Result<(), Refusal> {
        let Some(session) = self.sessions.get(conn) else { return Ok(()) };
        let now = self.cx.now;
        let user = self.users.get_mut(session.user);
        let mut items = Vec::new();
        if let Some(inbox) = &mut user.inbox {
            self.cx.stats.inbox_expired += u64::from(inbox.expire(now));
            items = inbox.list(after);
        }
        let mut bytes = 0;
        let fits = |sending: &&Sending| {
            bytes += sending.item.bytes() as usize;
            bytes <= LIST_BYTES_MAX
        };
        let count = items.iter().take(limit as usize).take_while(fits).count().max(1).min(items.len());
        let next = (count < items.len()).then(|| items[count - 1].item.id);
        self.cx.ok(conn, id, |out| {
            field_raw(out, "items", b"");
            write_items(out, &items[..count]);
            if let Some(next) = next {
                field_integer(out, "next", next);
            }
        });
        Ok(())
    }

    pub(super) fn admin_notify(&mut self, token: Token, item: NewItem) -> Result<(), Refusal> {
        self.cx.may_append()?;
        let waiting = self.pending.insert(Waiting::AdminNotify { token });
        self.cx.append(waiting, Entry::Notify { item, by_admin: true });
        Ok(())
    }

    // --------------------------------------------------------------------------------------------
    // Answers of the core

    /// Items are acknowledged: the device that said so is told how many, the others which.
    pub(super) fn on_acked(&mut self, call: &Call, user: &UserId, items: &[ItemId], acked: u64) {
        self.cx.ok(call.conn, call.id.as_ref(), |out| field_integer(out, "acked", acked));
        if acked > 0 {
            self.say_gone(user, items, Some(call.conn));
        }
    }

    /// Items that devices were sent need no attention any more: told to all of them but `except`.
    pub(super) fn say_gone(&mut self, user: &UserId, items: &[ItemId], except: Option<ConnKey>) {
        let Some(idx) = self.users.find(user.as_str()) else { return };
        let mut conns = self.open_conns(idx);
        conns.retain(|conn| Some(*conn) != except);
        if conns.is_empty() || items.is_empty() {
            return;
        }
        let span = self.cx.scratch(|out| {
            out.extend_from_slice(b"{\"type\":\"inbox:acked\",\"items\":[");
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                integer(out, *item);
            }
            out.extend_from_slice(b"]}");
        });
        self.cx.fanout(conns, Class::Normal, Frames::Scratch(span));
    }

    /// Queues of this shard's users change.
    pub(super) fn on_inbox_changes(&mut self, changes: &[InboxChange]) {
        let mut news: Vec<UserIdx> = Vec::new();
        for change in changes {
            if let Some(idx) = self.users.find(change.user().as_str()) {
                self.apply_inbox(idx, change);
                if matches!(change, InboxChange::Added(_)) && !news.contains(&idx) {
                    news.push(idx);
                }
            }
            if let InboxChange::Removed { user, items, why } = change
                && shard_of(user, self.cx.shards) == self.cx.shard
            {
                match why {
                    Removal::Acked => self.cx.stats.inbox_acked += items.len() as u64,
                    Removal::Dead => self.cx.stats.inbox_dead += items.len() as u64,
                    // The core counts what it throws out.
                    Removal::Evicted | Removal::Expired => {}
                }
            }
        }
        for idx in news {
            self.deliver_fresh(idx);
        }
    }

    fn apply_inbox(&mut self, idx: UserIdx, change: &InboxChange) {
        let user = self.users.get_mut(idx);
        let is_loaded = user.loaded_at().is_some();
        match change {
            InboxChange::Added(item) => user.inbox.get_or_insert_default().insert(item.clone()),
            InboxChange::Removed { user: name, items, why } if is_loaded => {
                let Some(inbox) = &mut user.inbox else { return };
                let mut sent = items.to_vec();
                sent.retain(|id| inbox.remove(*id));
                // Whoever had a hand in it is told by the answer to that; when an item expires it says itself.
                if matches!(why, Removal::Evicted | Removal::Dead) {
                    self.say_gone(name, &sent, None);
                }
            }
            InboxChange::Removed { items, .. } => {
                let inbox = user.inbox.get_or_insert_default();
                items.iter().for_each(|id| inbox.remove_early(*id));
            }
            // Whoever is loaded has counted it when it was sent.
            InboxChange::Tried { .. } if is_loaded => {}
            InboxChange::Tried { items, .. } => user.inbox.get_or_insert_default().try_early(items),
        }
        let user = self.users.get_mut(idx);
        if is_loaded && user.inbox.as_ref().is_some_and(|inbox| inbox.is_empty()) {
            user.inbox = None;
        }
    }

    // --------------------------------------------------------------------------------------------
    // Delivery

    /// The user has been read: `page` is what waits. What they have read meanwhile is let go.
    pub(super) fn fill_inbox(&mut self, idx: UserIdx, page: Vec<Item>) {
        let now = self.cx.now;
        let user = self.users.get_mut(idx);
        if page.is_empty() && user.inbox.is_none() {
            return;
        }
        let inbox = user.inbox.get_or_insert_default();
        inbox.fill(page);
        self.cx.stats.inbox_expired += u64::from(inbox.expire(now));
        let read: Vec<ItemId> = user.standings.iter().flat_map(|s| inbox.covered(s.room, s.read)).collect();
        self.take_away(idx, read, false);
        let user = self.users.get_mut(idx);
        if user.inbox.as_ref().is_some_and(|inbox| inbox.is_empty()) {
            user.inbox = None;
        }
    }

    /// How many items wait, for `hello`.
    pub(super) fn waiting_count(&mut self, idx: UserIdx) -> u64 {
        let Some(inbox) = &mut self.users.get_mut(idx).inbox else { return 0 };
        self.cx.stats.inbox_expired += u64::from(inbox.expire(self.cx.now));
        inbox.len() as u64
    }

    /// Everything that waits, for a device that has just had its `hello`, which counted it.
    pub(super) fn greet_with_inbox(&mut self, conn: ConnKey) {
        let Some(session) = self.sessions.get(conn) else { return };
        let (idx, now) = (session.user, self.cx.now);
        let jitter = (self.cx.rng.next_u64() >> 32) as u32;
        let Some(inbox) = &mut self.users.get_mut(idx).inbox else { return };
        let sendings = inbox.greet(now, jitter);
        self.send_items(&[conn], &sendings);
        self.arm_inbox(idx);
    }

    /// New items: to every device, unless the user hears of them by listening to the room.
    fn deliver_fresh(&mut self, idx: UserIdx) {
        let conns = self.open_conns(idx);
        if conns.is_empty() {
            return;
        }
        let jitter = (self.cx.rng.next_u64() >> 32) as u32;
        let now = self.cx.now;
        let Some(inbox) = &mut self.users.get_mut(idx).inbox else { return };
        let mut sendings = inbox.take_fresh(now, jitter);
        let heard: Vec<ItemId> =
            sendings.iter().filter(|sending| self.hears(idx, sending.item.covers)).map(|s| s.item.id).collect();
        if !heard.is_empty() && self.take_away(idx, heard.clone(), false) {
            self.cx.stats.inbox_heard += heard.len() as u64;
            sendings.retain(|sending| !heard.contains(&sending.item.id));
        }
        self.send_items(&conns, &sendings);
        self.arm_inbox(idx);
    }

    /// True when a connection of the user listens to the room that an item is about, and is shown the entry in question.
    fn hears(&self, idx: UserIdx, covers: Option<(RoomKey, Seq)>) -> bool {
        let Some((key, seq)) = covers else { return false };
        let Some(room) = self.rooms.find_key(key) else { return false };
        let recent =
            sync::recent_after(self.rooms.get(room), seq.saturating_sub(1)).and_then(|mut entries| entries.next());
        let listens = |conn: &ConnKey| {
            self.sessions.get(*conn).is_some_and(|session| {
                session.subscriptions.contains(&room)
                    && recent.is_none_or(|(batch, entry)| self.is_shown(session, room, batch, entry))
            })
        };
        self.users.get(idx).conns.iter().any(listens)
    }

    /// The user has read a room: what is about its entries goes away.
    pub(super) fn clear_read(&mut self, idx: UserIdx, room: RoomKey, seq: Seq) {
        let user = self.users.get(idx);
        if user.loaded_at().is_none() {
            return;
        }
        let Some(inbox) = &user.inbox else { return };
        let covered = inbox.covered(room, seq);
        self.take_away(idx, covered, true);
    }

    /// Asks the core to take items away, and shows them to nobody meanwhile; devices that were sent them
    /// are told when they are gone. False when it cannot be asked now: then they stay, and are sent again
    /// in their time.
    fn take_away(&mut self, idx: UserIdx, items: Vec<ItemId>, was_sent: bool) -> bool {
        if items.is_empty() || self.cx.may_append().is_err() {
            return false;
        }
        let user = self.users.get_mut(idx);
        if let Some(inbox) = &mut user.inbox {
            inbox.leave(&items);
        }
        let (user, items): (_, Box<[ItemId]>) = (user.name.clone(), items.into());
        let waiting = Waiting::InboxTakeAway { user: user.clone(), items: items.clone(), was_sent };
        let token = self.pending.insert(waiting);
        let entry = Entry::InboxAck { user, items };
        self.cx.append(token, entry);
        true
    }

    /// Items could not be taken away, or nobody knows: should they stand, they are not to be forgotten.
    pub(super) fn on_not_taken_away(&mut self, user: &UserId, items: &[ItemId]) {
        let now = self.cx.now;
        let Some(idx) = self.users.find(user.as_str()) else { return };
        if let Some(inbox) = &mut self.users.get_mut(idx).inbox {
            inbox.stay(items, now);
            self.arm_inbox(idx);
        }
    }

    /// A retry may be due.
    pub(super) fn on_inbox_timer(&mut self, idx: UserIdx, due: UnixMillis) {
        let now = self.cx.now;
        let Some(user) = self.users.find_idx_mut(idx) else { return };
        let Some(inbox) = user.inbox.as_mut().filter(|inbox| inbox.timer_at == due) else { return };
        inbox.timer_at = 0;
        let conns = self.open_conns(idx);
        if conns.is_empty() {
            // The next device that connects sets it again.
            return;
        }
        let jitter = (self.cx.rng.next_u64() >> 32) as u32;
        let Some(inbox) = &mut self.users.get_mut(idx).inbox else { return };
        let what = inbox.due(now, jitter);
        self.cx.stats.inbox_expired += u64::from(what.expired);
        self.cx.stats.inbox_retries += what.again.len() as u64;
        self.send_items(&conns, &what.again);
        let user = self.users.get(idx).name.clone();
        let tried: Vec<ItemId> = what.again.iter().map(|sending| sending.item.id).collect();
        self.upkeep(tried, |items| Entry::InboxTried { user: user.clone(), items });
        self.upkeep(what.dead, |items| Entry::InboxDead { user: user.clone(), items });
        self.arm_inbox(idx);
    }

    /// Puts on record what happened, if that can be done now; an attempt too many is no harm.
    fn upkeep(&mut self, items: Vec<ItemId>, entry: impl FnOnce(Box<[ItemId]>) -> Entry) {
        if !items.is_empty() && self.cx.may_append().is_ok() {
            let token = self.pending.insert(Waiting::InboxUpkeep);
            self.cx.append(token, entry(items.into()));
        }
    }

    fn arm_inbox(&mut self, idx: UserIdx) {
        let now = self.cx.now;
        let Some(inbox) = &mut self.users.get_mut(idx).inbox else { return };
        let Some(due) = inbox.next_deadline() else { return };
        let due = due.max(now + 1).next_multiple_of(TIMER_STEP_MS);
        if inbox.timer_at <= now || due < inbox.timer_at {
            inbox.timer_at = due;
            self.timers.set(due, Timer::Inbox(idx));
        }
    }

    /// Sends items in events of bounded size, in the order given.
    fn send_items(&mut self, conns: &[ConnKey], sendings: &[Sending]) {
        let mut rest = sendings;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |sending: &&Sending| {
                bytes += sending.item.bytes() as usize;
                bytes <= EVENT_BYTES_MAX
            };
            let count = rest.iter().take(EVENT_ITEMS_MAX).take_while(fits).count().max(1);
            let (batch, later) = rest.split_at(count);
            rest = later;
            let is_critical = batch.iter().any(|sending| sending.item.priority == Priority::Critical);
            // What an outbox drops is not acknowledged, and therefore sent again.
            let class = if is_critical { Class::Critical } else { Class::Normal };
            let frame = Cx::frame(|out| {
                out.extend_from_slice(b"{\"type\":\"inbox:item\",\"items\":");
                write_items(out, batch);
                out.push(b'}');
            });
            self.cx.stats.inbox_sent += (batch.len() * conns.len()) as u64;
            self.cx.fanout(conns.iter().copied(), class, Frames::Owned(frame));
        }
    }

    /// The user's connections that have had their `hello`.
    pub(super) fn open_conns(&self, idx: UserIdx) -> Vec<ConnKey> {
        self.users.get(idx).conns.iter().copied().filter(|conn| self.is_open(*conn)).collect()
    }
}

fn write_items(out: &mut Vec<u8>, sendings: &[Sending]) {
    out.push(b'[');
    for (at, Sending { item, attempt }) in sendings.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"{\"item\":" } else { b",{\"item\":" });
        write_item(out, item, *attempt);
        out.push(b'}');
    }
    out.push(b']');
}

fn write_item(out: &mut Vec<u8>, item: &Arc<Item>, attempt: u32) {
    integer(out, item.id);
    field_string(out, "name", &item.name);
    field_raw(out, "data", item.data.as_bytes());
    field_string(out, "priority", item.priority.as_str());
    field_integer(out, "ts", item.ts);
    field_integer(out, "expires_ts", item.expires_ts);
    field_integer(out, "attempt", u64::from(attempt));
    if let Some(from) = &item.from {
        field_string(out, "from", from.as_str());
    }
}
