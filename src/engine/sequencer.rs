//! The sequencer: decides what a batch of appends becomes. Pure, and the only place where entries
//! are numbered.
//!
//! It holds room heads, the dedupe window, the recent losses of rights, and the next numbers. It
//! refuses to know how the past is kept (see [`Facts`]) or how a batch is made durable. Drive it so:
//!
//! ```text
//!   decide(appends, now, facts) ──► Decided ──► written and committed ──► commit(decided) ──► CommittedBatch
//!                                           └─► not committed ──────────► fail(decided)   ──► Failed
//! ```
//! One batch at a time. After `fail` everything is as before `decide`; if it turns out that the
//! batch stands in the log after all, [`Sequencer::adopt`] takes it over before the next `decide`.
//!
//! Rules that are this module's to keep:
//! - `seq` is dense per room from 1, `position` dense over the log from 1. Read cursors and
//!   revocations change no log entry: they ride in a batch without a position of their own.
//! - A message's author was checked by their shard as of position `seen`. The core looks again only
//!   when the author may have lost the right since. What is a right: see [`may_write`].
//! - Who may change a membership: see the `membership` part; a message: see the `edits` part.

mod batch;
mod counts;
mod dead;
mod dedupe;
mod edits;
mod facts;
mod inbox;
mod losses;
mod membership;
pub mod memory;
mod mend;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ahash::AHashMap;

pub use batch::{Begun, Decided, HeadRow, MemberRow, ReactionRow, Row, StateRow};
use dedupe::{Dedupe, First, PairHash};
pub use facts::{Facts, Reacted, Target};
use inbox::Inboxes;
use losses::Losses;

use super::event::{
    Append, Committed, CommittedBatch, Entry, MembershipChange, NewMessage, Outcome, ReadAdvance, Revocation, RoomRow,
};
use super::inbox::{Bounds, ItemId, Removal};
use super::presence::history::News;
use super::tally::Tally;
use crate::protocol::encode::{EventKind, room_json};
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{DeviceId, Position, Role, RoomKey, RoomKind, RoomName, Seq, UnixMillis, UserId};

/// Bounds of a sequencer, and what it is told once.
#[derive(Debug, Clone)]
pub struct SequencerConfig {
    /// How many shards get outcomes.
    pub shards: u16,
    /// How long a `client_id` is remembered, ms; 0: not at all.
    pub dedupe_window_ms: u32,
    /// How many are remembered at most; the oldest leave early.
    pub dedupe_entries_max: usize,
    /// Memberships a user may have.
    pub rooms_max: u32,
    /// Rooms whose head is kept in memory between batches.
    pub rooms_cached_max: usize,
    /// Losses of rights that are remembered one by one.
    pub losses_max: usize,
    /// Keys the hash of the dedupe window.
    pub seed: u64,
    /// Bounds of each user's inbox.
    pub inbox: Bounds,
}

impl Default for SequencerConfig {
    fn default() -> Self {
        Self {
            shards: 1,
            dedupe_window_ms: 600_000,
            dedupe_entries_max: 1_000_000,
            rooms_max: 256,
            rooms_cached_max: 65_536,
            losses_max: 4_096,
            seed: 0,
            inbox: Bounds::default(),
        }
    }
}

/// Where a log ends when a sequencer takes it over.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogEnd {
    /// Position of the last entry; 0: an empty log.
    pub position: Position,
    /// The highest room key given so far; 0: none.
    pub room_key: u64,
    /// `ts` of the last entry.
    pub ts: UnixMillis,
    /// The highest number of an inbox item given so far; 0: none.
    pub item: ItemId,
}

/// The time, by two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The clock on the wall: what entries are stamped with, and what people's spans are counted by. It may be set.
    pub wall: UnixMillis,
    /// The same at the start, and from there on at its own pace: it never goes back nor jumps.
    pub steady: UnixMillis,
}

/// Where nobody sets the clock one serves for both.
impl From<UnixMillis> for Now {
    fn from(wall: UnixMillis) -> Self {
        Self { wall, steady: wall }
    }
}

/// A batch that was not committed, as far as is known.
#[derive(Debug)]
pub struct Failed {
    /// What to tell the shards now: everybody refused, no entries.
    pub refused: CommittedBatch,
    /// What to tell them later, should the batch stand in the log after all; it has no outcomes.
    pub held: CommittedBatch,
}

/// Decides batches. See the module's page.
#[derive(Debug)]
pub struct Sequencer {
    config: SequencerConfig,
    rooms: AHashMap<RoomKey, RoomState>,
    names: AHashMap<RoomName, RoomKey>,
    dedupe: Dedupe,
    losses: Losses,
    inboxes: Inboxes,
    /// Rooms whose entries do not add up: they take no writes until then, by the steady clock.
    diverged: AHashMap<RoomKey, u64>,
    end: LogEnd,
    /// Number of the batch that is being decided, or was last.
    batch: u64,
    /// When that was, by the steady clock.
    steady: UnixMillis,
    duplicates: u64,
}

/// One room, as the sequencer keeps it.
#[derive(Debug)]
pub(in crate::engine::sequencer) struct RoomState {
    name: RoomName,
    name_json: Box<str>,
    kind: RoomKind,
    head: Seq,
    members: u32,
    tally: Tally,
    recent: counts::RecentKinds,
    /// The last batch that used it.
    used: u64,
}

/// Appends that are looked up together.
const AHEAD: usize = 16;

/// Time that a clock may go back and still be held at the last `ts`, so that `ts` does not decrease
/// along the log in ordinary life. A clock that goes back further was wrong before, and is followed.
pub const CLOCK_SLACK_MS: u64 = 5_000;

/// What those are told who may not do in a room what they ask for.
pub const NOT_ALLOWED: &str = "not allowed in this room";

/// True when someone with `role` may write into a room of this kind: anybody who is not banned into
/// a public one, members only into the others.
pub fn may_write(kind: RoomKind, role: Option<Role>) -> bool {
    match kind {
        RoomKind::Public => role != Some(Role::Banned),
        RoomKind::Private | RoomKind::Direct => role.is_some_and(Role::is_member),
    }
}

impl Sequencer {
    /// A sequencer that goes on where a log ends. Feed it the dedupe window with
    /// [`Sequencer::remember_older`] before the first batch.
    pub fn new(config: SequencerConfig, end: LogEnd) -> Self {
        let dedupe = Dedupe::new(config.dedupe_window_ms, config.dedupe_entries_max, config.seed);
        Self {
            losses: Losses::new(config.losses_max, end.position),
            inboxes: Inboxes::after(end.item),
            dedupe,
            config,
            rooms: AHashMap::new(),
            names: AHashMap::new(),
            diverged: AHashMap::new(),
            end,
            batch: 0,
            steady: 0,
            duplicates: 0,
        }
    }

    /// Adds an entry of the log to the dedupe window, newest first; `since`: from when on it is kept, by the steady clock.
    /// False when the window is full or switched off: older entries need not be read.
    pub fn remember_older(
        &mut self,
        author: &str,
        client_id: &str,
        room: RoomKey,
        (seq, ts): (Seq, UnixMillis),
        since: UnixMillis,
    ) -> bool {
        let hash = self.dedupe.hash(author, client_id);
        self.dedupe.is_on() && self.dedupe.add_older(hash, First { room, seq, ts }, since)
    }

    /// Decides a batch as of `now`. On an error of `facts` nothing has happened, and the batch that
    /// comes with the error refuses every append with `degraded`.
    ///
    /// # Errors
    /// What `facts` said, and what to tell the shards.
    pub fn decide<F: Facts>(
        &mut self,
        appends: impl IntoIterator<Item = Append>,
        now: impl Into<Now>,
        facts: &mut F,
    ) -> Result<Decided, (F::Error, Box<CommittedBatch>)> {
        let Now { wall, steady } = now.into();
        self.batch += 1;
        self.steady = self.steady.max(steady);
        let ts = if wall + CLOCK_SLACK_MS >= self.end.ts { wall.max(self.end.ts) } else { wall };
        self.dedupe.expire(self.steady);
        let draft = Decided::new(self.end.position + 1, ts, usize::from(self.config.shards));
        let mut turn = Turn { core: self, facts, draft, now: ts, error: None, changes: Changes::default() };
        if let Err(error) = turn.expire_inboxes() {
            turn.error = Some(error);
        }
        turn.decide(appends.into_iter());
        let Turn { draft, error, changes, .. } = turn;
        match error {
            None => Ok(self.finish(draft, changes)),
            Some(error) => {
                let failed = self.fail(self_contained(draft), &unanswerable());
                Err((error, Box::new(failed.refused)))
            }
        }
    }

    /// The batch stands in the log: everything it decided holds from now on.
    pub fn commit(&mut self, mut decided: Decided) -> CommittedBatch {
        self.end.position = decided.last();
        self.end.ts = decided.ts;
        self.end.room_key = decided.rooms.iter().map(|room| room.key.0).fold(self.end.room_key, u64::max);
        self.dedupe.settle();
        self.duplicates += decided.counted.duplicates;
        self.inboxes.count(&decided.counted);
        for mended in &decided.mended {
            self.diverged.remove(&mended.room);
        }
        for (position, room, user) in std::mem::take(&mut decided.losses) {
            self.losses.note(room, user, position);
        }
        let batch = decided.publish(&self.rooms);
        self.shrink();
        self.inboxes.shrink(self.config.inbox.items_max);
        batch
    }

    /// The batch was not committed, or nobody knows. Everybody gets `refusal`; all is as before.
    pub fn fail(&mut self, mut decided: Decided, refusal: &Refusal) -> Failed {
        let outcomes = std::mem::take(&mut decided.outcomes);
        let refused = batch::refused(decided.first, outcomes, refusal);
        let held = decided.publish(&self.rooms);
        self.dedupe.take_back();
        self.forget_rooms();
        self.inboxes.forget();
        Failed { refused, held }
    }

    /// Refuses appends without deciding anything (the store takes no writes).
    pub fn refuse(&self, appends: impl IntoIterator<Item = Append>, refusal: &Refusal) -> CommittedBatch {
        let mut draft = Decided::new(self.end.position + 1, self.end.ts, usize::from(self.config.shards));
        for append in appends {
            draft.answer(append.shard, batch::refusal_outcome(append.token, refusal));
        }
        batch::refused(draft.first, draft.outcomes, refusal)
    }

    /// A batch given to [`Sequencer::fail`] stands in the log after all. `messages` are its rows
    /// with a `client_id`: author, client id, room, seq; all with `ts`.
    pub fn adopt<'a>(
        &mut self,
        end: LogEnd,
        messages: impl IntoIterator<Item = (&'a str, &'a str, RoomKey, Seq, UnixMillis)>,
    ) {
        debug_assert!(end.position >= self.end.position);
        self.end = end;
        for (author, client_id, room, seq, ts) in messages {
            let hash = self.dedupe.hash(author, client_id);
            if self.dedupe.is_on() {
                self.dedupe.add(hash, First { room, seq, ts }, self.steady);
            }
        }
        self.dedupe.settle();
        self.losses.forget_until(end.position);
        self.forget_rooms();
        self.inboxes.forget();
        self.inboxes.last_id = self.inboxes.last_id.max(end.item);
    }

    /// By what a message is known when it is sent again; none: by nothing, as nothing is remembered.
    fn pair_of(&self, author: &UserId, client_id: &str) -> Option<PairHash> {
        self.dedupe.is_on().then(|| self.dedupe.hash(author.as_str(), client_id))
    }

    /// Position of the last entry that stands.
    pub fn position(&self) -> Position {
        self.end.position
    }

    /// Pairs in the dedupe window.
    pub fn dedupe_len(&self) -> usize {
        self.dedupe.len()
    }

    /// Pairs that left the window early since the start, because it was full.
    pub fn dedupe_evicted_early(&self) -> u64 {
        self.dedupe.evicted_early()
    }

    /// Messages answered with an earlier entry since the start.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    fn finish(&mut self, mut draft: Decided, changes: Changes) -> Decided {
        for room in &mut draft.rooms {
            let state = &self.rooms[&room.key];
            (room.head, room.members, room.tally) = (state.head, state.members, state.tally);
        }
        let mut roles: Vec<_> = changes.roles.into_iter().collect();
        roles.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        if !roles.is_empty() {
            let counts = roles.chunk_by(|a, b| a.0.0 == b.0.0).map(|of_room| of_room[0].0.0);
            draft.counts = counts.map(|key| (key, self.rooms[&key].members)).collect();
        }
        let members = roles.into_iter().map(|(pair, role)| {
            let begun = changes.begun.get(&pair).copied();
            MemberRow { room: pair.0, user: pair.1, role, begun }
        });
        draft.members = members.collect();
        draft
    }

    fn forget_rooms(&mut self) {
        self.rooms.clear();
        self.names.clear();
    }

    /// Lets go the rooms that were not used for longest, half of them at once, when there are too
    /// many: the cost per room is that of one comparison, however many there are.
    fn shrink(&mut self) {
        if self.rooms.len() <= self.config.rooms_cached_max {
            return;
        }
        let mut ages: Vec<u64> = self.rooms.values().map(|room| room.used).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let oldest_kept = *median;
        self.rooms.retain(|_, room| room.used > oldest_kept);
        self.names.retain(|_, key| self.rooms.contains_key(key));
    }
}

/// A draft whose batch failed while it was being decided: its rows were never written, so nothing
/// of it can be published later.
fn self_contained(mut draft: Decided) -> Decided {
    draft.rows.clear();
    draft
}

fn unanswerable() -> Refusal {
    Refusal::new(ErrorCode::Degraded, "the store cannot be read now; nothing was written").retry_after(1_000)
}

/// Why an append was not decided for.
enum Stop<E> {
    Refused(Refusal),
    Facts(E),
}

type Verdict<E> = Result<Committed, Stop<E>>;

/// What changed within the batch, on top of the facts.
#[derive(Default)]
struct Changes {
    roles: AHashMap<(RoomKey, UserId), Option<Role>>,
    begun: AHashMap<(RoomKey, UserId), Begun>,
    /// Memberships won (or lost) by user.
    memberships: AHashMap<UserId, i64>,
    /// Index into [`Decided::cursors`].
    cursors: AHashMap<(RoomKey, UserId, Option<DeviceId>), usize>,
    edits: edits::Edits,
}

/// One batch being decided.
struct Turn<'a, F: Facts> {
    core: &'a mut Sequencer,
    facts: &'a mut F,
    draft: Decided,
    changes: Changes,
    now: UnixMillis,
    error: Option<F::Error>,
}

impl<F: Facts> Turn<'_, F> {
    /// One after the other; but what is known of their messages is fetched some way ahead.
    fn decide(&mut self, mut appends: impl Iterator<Item = Append>) {
        let mut ahead: Vec<(Append, Option<PairHash>)> = Vec::with_capacity(AHEAD);
        loop {
            ahead.extend(appends.by_ref().take(AHEAD).map(|append| {
                let pair = match &append.entry {
                    Entry::Message(NewMessage { author, client_id: Some(client_id), .. })
                    | Entry::Repeat { author, client_id, .. } => self.core.pair_of(author, client_id),
                    _ => None,
                };
                (append, pair)
            }));
            if ahead.is_empty() {
                return;
            }
            self.core.dedupe.fetch(ahead.iter().filter_map(|(_, pair)| *pair));
            for (append, pair) in ahead.drain(..) {
                self.append(append, pair);
            }
        }
    }

    /// `pair`: that of a message or repeat, see [`Sequencer::pair_of`].
    fn append(&mut self, append: Append, pair: Option<PairHash>) {
        let Append { shard, token, seen, entry } = append;
        // Once the facts have failed, the rest is only listed, to be refused with the others.
        let verdict = if self.error.is_some() {
            Err(Stop::Refused(unanswerable()))
        } else {
            match entry {
                Entry::Message(message) => self.message(message, pair, seen),
                Entry::Repeat { room, .. } => self.repeat(room, pair),
                Entry::CreateRoom { room, kind, title, creator, members } => {
                    self.create_room(room, kind, title, &creator, members)
                }
                Entry::Join { room, user, auto_create } => self.join(&room, user, auto_create),
                Entry::Leave { room, user } => self.leave(&room, &user),
                Entry::Manage { room, by, by_admin, user, act } => self.manage(&room, &by, by_admin, user, act),
                Entry::Read { room, user, seq } => self.cursor(room, user, None, seq),
                Entry::Delivered { room, user, device, seq } => self.cursor(room, user, Some(device), seq),
                Entry::Amend(amend) => self.amend(*amend, seen),
                Entry::Revoke(revocation) => self.revoke(revocation),
                Entry::Notify { item, by_admin } => self.notify(item, by_admin),
                Entry::InboxAck { user, items } => self.inbox_ack(user, &items, Removal::Acked),
                Entry::InboxTried { user, items } => self.inbox_tried(user, &items),
                Entry::PresenceNews(news) => self.presence(news),
                Entry::InboxDead { user, items } => self.inbox_ack(user, &items, Removal::Dead),
                Entry::Dead(act) => self.dead(act),
                Entry::Mend { room, witness } => self.mend(room, witness),
            }
        };
        let result = match verdict {
            Ok(committed) => Ok(committed),
            Err(Stop::Refused(refusal)) => Err(refusal),
            Err(Stop::Facts(error)) => {
                self.error = Some(error);
                Err(unanswerable())
            }
        };
        self.draft.answer(shard, Outcome { token, result });
    }

    fn message(&mut self, message: NewMessage, pair: Option<PairHash>, seen: Position) -> Verdict<F::Error> {
        let NewMessage { room: key, author, by_admin, client_id, fields, thread, audience, priority, mentions, reads } =
            message;
        if let Some(first) = pair.and_then(|pair| self.core.dedupe.find(pair)) {
            if first.room != key {
                return Err(refuse(ErrorCode::Conflict, "this client_id was used for a message in another room"));
            }
            return Ok(self.duplicate_of(first));
        }
        if !self.load(key)? {
            return Err(refuse(ErrorCode::UnknownRoom, "there is no such room"));
        }
        self.check_whole(key)?;
        self.check_may_write(key, &author, by_admin, seen)?;
        let kind = EventKind::MessageCreated;
        let feeds = (!mentions.is_empty() || self.room(key).kind == RoomKind::Direct)
            .then(|| (author.clone(), audience.clone()));
        let reader = reads.then(|| author.clone());
        let author = Some(author);
        let row = Row { room: key, seq: 0, kind, priority, author, client_id, thread, audience, fields, change: None };
        let committed = self.push(row);
        if let Some(pair) = pair {
            let first = First { room: key, seq: committed.seq, ts: committed.ts };
            self.core.dedupe.add(pair, first, self.core.steady);
        }
        if let Some((author, audience)) = feeds {
            self.feed_message(&committed, &author, audience.as_deref(), priority, &mentions)?;
        }
        if let Some(reader) = reader
            && self.role(key, &reader)?.is_some_and(Role::is_member)
        {
            self.cursor(key, reader, None, committed.seq)?;
        }
        Ok(committed)
    }

    /// Their shard has found that the author may not write here: only what stands already is acknowledged.
    fn repeat(&mut self, key: RoomKey, pair: Option<PairHash>) -> Verdict<F::Error> {
        match pair.and_then(|pair| self.core.dedupe.find(pair)) {
            Some(first) if first.room == key => Ok(self.duplicate_of(first)),
            _ => Err(refuse(ErrorCode::PermissionDenied, NOT_ALLOWED)),
        }
    }

    fn duplicate_of(&mut self, First { room, seq, ts }: First) -> Committed {
        self.draft.counted.duplicates += 1;
        Committed { room, seq, ts, duplicate: true, value: 0 }
    }

    /// Cursors are kept for members only, move forward only, and stop at the head. What is read is
    /// delivered, on every device.
    fn cursor(&mut self, key: RoomKey, user: UserId, device: Option<DeviceId>, seq: Seq) -> Verdict<F::Error> {
        if !self.load(key)? {
            return Err(refuse(ErrorCode::UnknownRoom, "there is no such room"));
        }
        self.check_whole(key)?;
        let pair = (key, user, device);
        // Also of one that moved in this batch: a kick may have come in between.
        if !self.role(key, &pair.1)?.is_some_and(Role::is_member) {
            return Err(refuse(ErrorCode::PermissionDenied, "only members have a read cursor"));
        }
        let known = self.changes.cursors.get(&pair).copied();
        let stands = match known {
            Some(index) => self.draft.cursors[index].seq,
            None => match &pair.2 {
                None => self.facts.read_cursor(key, &pair.1),
                Some(device) => self.facts.delivered_cursor(key, &pair.1, device),
            }
            .map_err(Stop::Facts)?,
        };
        let stands = match self.changes.begun.is_empty() {
            true => stands,
            false => self.changes.begun.get(&(key, pair.1.clone())).map_or(stands, |begun| stands.max(begun.seq)),
        };
        let cursor = seq.min(self.room(key).head).max(stands);
        if cursor > stands {
            let counted = if pair.2.is_none() { self.counted_at(key, cursor)? } else { 0 };
            match known {
                Some(index) => {
                    let row = &mut self.draft.cursors[index];
                    (row.seq, row.counted) = (cursor, counted);
                }
                None => {
                    let (user, device) = (pair.1.clone(), pair.2.clone());
                    self.draft.cursors.push(ReadAdvance { room: key, user, device, seq: cursor, counted });
                    self.changes.cursors.insert(pair, self.draft.cursors.len() - 1);
                }
            }
        }
        Ok(Committed { room: key, seq: cursor, ts: self.now, duplicate: false, value: 0 })
    }

    /// Rides along: it concerns nobody's place in the order, and no other shard.
    fn presence(&mut self, news: Arc<News>) -> Verdict<F::Error> {
        self.draft.presence.push(news);
        Ok(Committed { room: RoomKey(0), seq: 0, ts: self.now, duplicate: false, value: 0 })
    }

    fn revoke(&mut self, revocation: Revocation) -> Verdict<F::Error> {
        self.draft.revocations.push(revocation);
        Ok(Committed { room: RoomKey(0), seq: 0, ts: self.now, duplicate: false, value: 0 })
    }

    /// Numbers a row and adds it. Its room is loaded.
    fn push(&mut self, mut row: Row) -> Committed {
        let room = self.core.rooms.get_mut(&row.room).expect("the room was loaded by the caller");
        room.head += 1;
        row.seq = room.head;
        room.tally.add(row.seq, self.now, row.kind);
        room.recent.push(row.kind);
        let committed = Committed { room: row.room, seq: row.seq, ts: self.now, duplicate: false, value: 0 };
        self.draft.rows.push(row);
        committed
    }

    /// Looks again at the right of whoever may have lost it. Administrators need no membership, but nobody writes where
    /// they are banned.
    fn check_may_write(
        &mut self,
        key: RoomKey,
        by: &UserId,
        by_admin: bool,
        seen: Position,
    ) -> Result<(), Stop<F::Error>> {
        if !self.is_doubtful(key, by, seen) {
            return Ok(());
        }
        let role = self.role(key, by)?;
        let is_free = by_admin && role != Some(Role::Banned);
        if is_free || may_write(self.room(key).kind, role) {
            return Ok(());
        }
        Err(refuse(ErrorCode::PermissionDenied, "you may no longer write in this room"))
    }

    fn is_doubtful(&self, room: RoomKey, user: &UserId, seen: Position) -> bool {
        self.core.losses.is_doubtful(room, user, seen)
            || (!self.changes.roles.is_empty() && self.changes.roles.contains_key(&(room, user.clone())))
    }

    fn role(&mut self, room: RoomKey, user: &UserId) -> Result<Option<Role>, Stop<F::Error>> {
        if !self.changes.roles.is_empty()
            && let Some(role) = self.changes.roles.get(&(room, user.clone()))
        {
            return Ok(*role);
        }
        self.facts.role(room, user).map_err(Stop::Facts)
    }

    /// Makes sure the room is in memory; false when there is none.
    fn load(&mut self, key: RoomKey) -> Result<bool, Stop<F::Error>> {
        if let Some(room) = self.core.rooms.get_mut(&key) {
            room.used = self.core.batch;
            return Ok(true);
        }
        match self.facts.room_by_key(key).map_err(Stop::Facts)? {
            Some(row) => {
                self.keep(row);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// The key of the room of that name, loaded.
    fn find(&mut self, name: &RoomName) -> Result<Option<RoomKey>, Stop<F::Error>> {
        if let Some(key) = self.core.names.get(name).copied() {
            self.check_whole(key)?;
            return Ok(self.load(key)?.then_some(key));
        }
        let Some(row) = self.facts.room_by_name(name).map_err(Stop::Facts)? else { return Ok(None) };
        self.check_whole(row.key)?;
        Ok(Some(self.keep(row)))
    }

    fn keep(&mut self, row: RoomRow) -> RoomKey {
        let RoomRow { key, name, kind, head, members, tally, .. } = row;
        let (name_json, used) = (room_json(&name), self.core.batch);
        self.core.names.insert(name.clone(), key);
        self.core
            .rooms
            .insert(key, RoomState { name, name_json, kind, head, members, tally, recent: Default::default(), used });
        key
    }

    fn room(&self, key: RoomKey) -> &RoomState {
        &self.core.rooms[&key]
    }

    /// "It is so already": no entry, the room's head.
    fn unchanged(&self, key: RoomKey) -> Verdict<F::Error> {
        Ok(Committed { room: key, seq: self.room(key).head, ts: self.now, duplicate: false, value: 0 })
    }
}

fn refuse<E>(code: ErrorCode, message: &'static str) -> Stop<E> {
    Stop::Refused(Refusal::new(code, message))
}
