//! The background check of the loaded rooms: a few a second, one after the other. The recent entries are
//! counted again here, the store's by a reader; what differs is reloaded, or put right by the core.
//!
//! Nothing of this is in the way of anybody: a round is left out while the store takes no writes, while
//! many questions wait, and while answers of the last round are missing.

use super::super::consistency::{
    ASK_AGAIN_MS, Audit, Broken, Diverged, Finding, SAY_AGAIN_MS, Witness, is_cache_whole, judge,
};
use super::super::event::{Committed, Entry, Note, Page, Query, RoomRow};
use super::super::rooms::RoomIdx;
use super::super::shard::Shard;
use super::super::timers::Timer;
use super::Waiting;
use crate::protocol::error::{ErrorCode, Refusal};
use crate::protocol::ids::{Position, RoomKey};

/// Between rounds, ms.
pub(in crate::engine) const ROUND_MS: u64 = 1_000;

impl Shard {
    pub(super) fn on_consistency_timer(&mut self) {
        self.timers.set(self.cx.now + ROUND_MS, Timer::Consistency);
        let is_loaded =
            self.cx.reads > self.cx.limits.reads_max / 2 || self.cx.appends > self.cx.limits.appends_max / 2;
        if self.cx.degraded || is_loaded || self.consistency.in_flight > 0 || self.draining.is_some() {
            return;
        }
        self.ask_about_diverged();
        let count = self.cx.limits.consistency_rooms_per_s as usize;
        let again = &mut self.consistency.again;
        let soon = again.len().min(count);
        let mut due: Vec<RoomIdx> = again.drain(..soon).filter_map(|room| self.rooms.find_key(room)).collect();
        while due.len() < count
            && let Some(idx) = self.rooms.at_or_after(RoomIdx(self.consistency.next))
        {
            self.consistency.next = idx.0 + 1;
            if due.contains(&idx) {
                break;
            }
            due.push(idx);
        }
        due.into_iter().for_each(|idx| self.check_room(idx));
    }

    fn check_room(&mut self, idx: RoomIdx) {
        let room = self.rooms.get_mut(idx);
        let (key, witness) = (room.key, Witness { seq: room.head, tally: room.tally });
        if !is_cache_whole(room) {
            room.recent = Default::default();
            self.cx.stats.rooms_checked += 1;
            return self.mend(key, witness, Some("the recent entries did not add up"));
        }
        if self.cx.reads >= self.cx.limits.reads_max {
            return self.consistency.look_again(key);
        }
        let token = self.pending.insert(Waiting::Audit { room: key, witness });
        self.consistency.in_flight += 1;
        self.cx.read(token, Query::Audit { room: key, seq: witness.seq });
    }

    pub(super) fn on_audit(&mut self, room: RoomKey, witness: Witness, result: Result<Page, Refusal>) {
        self.consistency.in_flight -= 1;
        let Ok(Page::Audit(audit)) = result else { return self.consistency.look_again(room) };
        self.cx.stats.rooms_checked += 1;
        self.on_finding(room, witness, &audit);
    }

    fn on_finding(&mut self, room: RoomKey, witness: Witness, audit: &Result<Audit, Broken>) {
        match judge(audit, witness.tally) {
            Finding::Well if self.consistency.diverged.contains_key(&room) => self.mend(room, witness, None),
            Finding::Well => {}
            // What the shard remembers came from the core, which therefore looks as well.
            Finding::Memory => self.mend(room, witness, Some("the shard remembered another tally than the store has")),
            Finding::Head => self.mend(room, witness, None),
            Finding::Rows(_) => self.mend(room, witness, Some("the shard remembered other entries than the store has")),
        }
    }

    /// Asks the store where a room stands.
    fn reload_room(&mut self, key: RoomKey, what: &'static str) {
        let Some(room) = self.rooms.get_key_mut(key) else { return };
        if self.cx.reads >= self.cx.limits.reads_max {
            return self.consistency.look_again(key);
        }
        let name = room.name.clone();
        let token = self.pending.insert(Waiting::Reload { room: key, what });
        self.consistency.in_flight += 1;
        self.cx.read(token, Query::Room(name));
    }

    pub(super) fn on_reload(&mut self, key: RoomKey, what: &'static str, result: Result<Page, Refusal>) {
        self.consistency.in_flight -= 1;
        // Whatever comes of it is looked at.
        self.consistency.look_again(key);
        let Ok(Page::Room { at, room: Some(row) }) = result else { return };
        // Ahead of the shard: entries in between have still to be delivered. Next time.
        if at > self.cx.position || !self.recent.covers_after(at, self.cx.position) {
            return;
        }
        if let Some(idx) = self.rooms.find_key(key) {
            self.put_room(idx, row, at);
            self.cx.stats.rooms_repaired += 1;
            self.cx.note(Note::Repaired { room: key, what });
        }
    }

    /// A loaded room stands as it stood at `at`, and is brought up to the shard's position again.
    fn put_room(&mut self, idx: RoomIdx, row: RoomRow, at: Position) {
        let room = self.rooms.get_mut(idx);
        (room.head, room.members, room.tally, room.loaded_at) = (row.head, row.members, row.tally, at);
        room.recent = Default::default();
        self.catch_up_room(idx, at);
    }

    /// The core looks at the room in its own turn. With `reload` (why) the room is loaded anew when the
    /// core is done.
    fn mend(&mut self, room: RoomKey, witness: Witness, reload: Option<&'static str>) {
        if self.cx.may_append().is_err() {
            return self.consistency.look_again(room);
        }
        let token = self.pending.insert(Waiting::Mend { room, witness, reload });
        self.consistency.in_flight += 1;
        self.cx.append(token, Entry::Mend { room, witness });
    }

    pub(super) fn on_mended(
        &mut self,
        room: RoomKey,
        witness: Witness,
        reload: Option<&'static str>,
        result: &Result<Committed, Refusal>,
    ) {
        self.consistency.in_flight -= 1;
        match result {
            Ok(committed) => {
                if self.consistency.diverged.remove(&room).is_some() {
                    self.cx.note(Note::WellAgain { room });
                }
                if committed.value > 0 {
                    self.cx.stats.rooms_repaired += 1;
                    let what = "the store's head row or the core's memory differed from the entries";
                    self.cx.note(Note::Repaired { room, what });
                }
                if let Some(what) = reload {
                    self.reload_room(room, what);
                }
                self.consistency.look_again(room);
            }
            Err(refusal) if refusal.code == ErrorCode::Conflict => self.on_diverged(room, witness, refusal),
            Err(_) => self.consistency.look_again(room),
        }
    }

    fn on_diverged(&mut self, room: RoomKey, witness: Witness, refusal: &Refusal) {
        let now = self.cx.now;
        let fresh = Diverged { witness, ask_at: now, say_at: now };
        let diverged = self.consistency.diverged.entry(room).or_insert(fresh);
        diverged.ask_at = now + ASK_AGAIN_MS;
        if diverged.say_at <= now {
            diverged.say_at = now + SAY_AGAIN_MS;
            self.cx.note(Note::Diverged { room, reason: refusal.message.clone().into() });
        }
    }

    /// Also of rooms that were unloaded since.
    fn ask_about_diverged(&mut self) {
        let now = self.cx.now;
        let due: Vec<(RoomKey, Witness)> = self
            .consistency
            .diverged
            .iter_mut()
            .filter(|(_, diverged)| diverged.ask_at <= now)
            .map(|(room, diverged)| {
                diverged.ask_at = now + ASK_AGAIN_MS;
                (*room, diverged.witness)
            })
            .collect();
        due.into_iter().for_each(|(room, witness)| self.mend(room, witness, None));
    }
}
