//! A store for tests: the real sequencer over maps, and the readers' answers from the same maps.
//!
//! Nothing here waits, fails or loses anything by itself: whoever drives it decides when a batch is
//! decided, whether its commit succeeds, and when an answer is handed over.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::Arc;

use antiphon::engine::edits::{current_fields, subject};
use antiphon::engine::event::{
    Append, CommittedBatch, Genesis, HistoryEntry, Membership, Page, Query, Restricted, ShardId,
};
use antiphon::engine::sequencer::memory::{MemoryLog, Stored};
use antiphon::engine::sequencer::{Decided, Failed, Sequencer, SequencerConfig};
use antiphon::protocol::encode::{LoggedEvent, room_json};
use antiphon::protocol::error::{ErrorCode, Refusal};
use antiphon::protocol::ids::{Epoch, Role, RoomKey, RoomKind, UnixMillis, UserId};

/// The text of the epoch of every such log.
pub const EPOCH: &str = "e1";

/// Log and sequencer.
pub struct TestLog {
    pub kept: MemoryLog,
    sequencer: Sequencer,
    config: SequencerConfig,
}

impl TestLog {
    pub fn new(config: SequencerConfig) -> Self {
        let kept = MemoryLog::default();
        let sequencer = Sequencer::new(config.clone(), kept.end());
        Self { kept, sequencer, config }
    }

    /// What a shard's engine starts from, now.
    pub fn genesis(&self, shard: u16, seed: u64) -> Genesis {
        Genesis {
            shard: ShardId(shard),
            shards: self.config.shards,
            seed,
            epoch: Epoch::new(EPOCH),
            position: self.kept.end().position,
            revocations: self.kept.revocations.clone(),
            notes_messages: false,
        }
    }

    pub fn decide(&mut self, appends: Vec<Append>, now: UnixMillis) -> Decided {
        match self.sequencer.decide(appends, now, &mut self.kept) {
            Ok(decided) => decided,
            Err((error, _)) => match error {},
        }
    }

    /// The commit succeeded.
    pub fn commit(&mut self, decided: Decided) -> Arc<CommittedBatch> {
        self.kept.apply(&decided);
        Arc::new(self.sequencer.commit(decided))
    }

    /// The commit failed, or so it seems: with `lands` the batch stands in the log all the same.
    pub fn fail(&mut self, decided: Decided, lands: bool) -> Failed {
        if lands {
            self.kept.apply(&decided);
        }
        let refusal = Refusal::new(ErrorCode::Degraded, "the outcome is unknown").retry_after(1_000);
        self.sequencer.fail(decided, &refusal)
    }

    /// Refuses without deciding.
    pub fn refuse(&mut self, appends: Vec<Append>) -> Arc<CommittedBatch> {
        let refusal = Refusal::new(ErrorCode::Degraded, "the store takes no writes").retry_after(1_000);
        Arc::new(self.sequencer.refuse(appends, &refusal))
    }

    /// A batch that failed turned out to stand in the log.
    pub fn adopt(&mut self, held: &CommittedBatch) {
        let end = self.kept.end();
        let rows = if held.last >= held.first { &self.kept.rows[held.first as usize - 1..] } else { &[] };
        let messages = rows.iter().filter_map(|row| {
            Some((row.author.as_ref()?.as_str(), row.client_id.as_deref()?, row.room, row.seq, row.ts))
        });
        self.sequencer.adopt(end, messages);
    }

    /// A new process opens the same log.
    pub fn reopen(&mut self, now: UnixMillis) {
        let end = self.kept.end();
        self.kept.presence.settle(now, end.ts);
        self.sequencer = Sequencer::new(self.config.clone(), self.kept.end());
        for row in self.kept.rows.iter().rev() {
            if let (Some(author), Some(client_id)) = (&row.author, &row.client_id) {
                self.sequencer.remember_older(author.as_str(), client_id, row.room, (row.seq, row.ts), row.ts);
            }
        }
    }

    /// A reader's answer from the log as it stands.
    pub fn answer(&self, query: &Query) -> Page {
        let at = self.kept.end().position;
        match query {
            Query::User(user) => {
                let inbox = self.kept.inbox.values().filter(|item| item.user == *user).cloned().collect();
                let theirs = self.kept.delivered.iter().filter(|((_, of, _), _)| of == user);
                let delivered = theirs.map(|((room, _, device), seq)| (*room, device.clone(), *seq)).collect();
                let theirs = self.kept.roles.iter().filter(|((_, of), role)| of == user && !role.is_member());
                let bans = theirs.map(|((room, _), _)| *room).collect();
                Page::User { at, memberships: self.memberships(user), bans, inbox, delivered }
            }
            Query::Room(name) => {
                let room = self.kept.names.get(name).map(|key| self.kept.rooms[key].clone());
                Page::Room { at, room }
            }
            Query::Tallies(of) => Page::Tallies(of.iter().map(|(room, seq)| self.kept.tally(*room, *seq)).collect()),
            Query::Audit { room, seq } => Page::Audit(self.kept.audit(*room, *seq)),
            Query::History { .. } => self.history(query),
            Query::PresenceHistory(ask) => Page::PresenceHistory(self.kept.presence.history(ask)),
            // Numbers for the operator are the database's own.
            Query::PresenceAnalytics { .. } => Page::PresenceAnalytics(Box::default()),
            Query::DeadLetters { filter, after, limit } => {
                let fits = self.kept.letters.values().filter(|letter| letter.id > *after && filter.fits(letter));
                let mut letters: Vec<_> = fits.cloned().collect();
                let more = letters.len() > *limit as usize;
                letters.truncate(*limit as usize);
                Page::DeadLetters { letters, more }
            }
            Query::Members { room, after, limit } => {
                let mut members: Vec<(UserId, Role)> = self
                    .kept
                    .roles
                    .iter()
                    .filter(|((key, user), role)| {
                        key == room && role.is_member() && after.as_ref().is_none_or(|after| user > after)
                    })
                    .map(|((_, user), role)| (user.clone(), *role))
                    .collect();
                let more = members.len() > *limit as usize;
                members.truncate(*limit as usize);
                Page::Members { members, more }
            }
            Query::Rooms { user, within, kind, after, limit } => {
                let role = |key: RoomKey| self.kept.roles.get(&(key, user.clone())).copied();
                let names = self.kept.names.iter().filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after));
                let mut rooms: Vec<_> = names
                    .filter(|(name, _)| within.iter().any(|names| names.contain(name.as_str())))
                    .map(|(_, key)| (self.kept.rooms[key].clone(), role(*key)))
                    .filter(|(row, _)| kind.is_none_or(|kind| row.kind == kind))
                    .filter(|(row, role)| match role {
                        Some(role) => role.is_member(),
                        None => row.kind == RoomKind::Public,
                    })
                    .collect();
                let more = rooms.len() > *limit as usize;
                rooms.truncate(*limit as usize);
                Page::Rooms { rooms, more }
            }
        }
    }

    fn memberships(&self, user: &UserId) -> Vec<Membership> {
        let theirs = self.kept.roles.iter().filter(|((_, member), role)| member == user && role.is_member());
        theirs
            .map(|((key, _), role)| {
                let (read, counted) = self.kept.cursors.get(&(*key, user.clone())).copied().unwrap_or_default();
                let deleted = self.kept.deleted_after(*key, read);
                Membership { room: self.kept.rooms[key].clone(), role: *role, read, counted, deleted }
            })
            .collect()
    }

    fn history(&self, query: &Query) -> Page {
        let Query::History { room, after, before, newest, thread, current, limit, bytes_max } = query else {
            unreachable!("asked for history only")
        };
        let is_asked = |row: &&Stored| {
            row.room == *room
                && row.seq > *after
                && row.seq < *before
                && thread.is_none_or(|root| row.thread == Some(root) || row.seq == root)
        };
        let found: Vec<&Stored> = self.kept.rows.iter().filter(is_asked).collect();
        let mut rows: Box<dyn Iterator<Item = &Stored>> = match newest {
            true => Box::new(found.iter().rev().copied()),
            false => Box::new(found.iter().copied()),
        };
        let mut taken: Vec<(&Stored, Vec<u8>)> = Vec::new();
        let (mut bytes, mut more) = (0, false);
        for row in rows.by_ref() {
            let json = if *current { self.current_json_of(row) } else { self.json_of(row) };
            if taken.len() >= *limit as usize || (bytes + json.len() > *bytes_max as usize && !taken.is_empty()) {
                more = true;
                break;
            }
            bytes += json.len();
            taken.push((row, json));
        }
        taken.sort_by_key(|(row, _)| row.seq);
        let mut all = Vec::new();
        let entries = taken
            .iter()
            .map(|(row, json)| {
                let start = all.len() as u32;
                all.extend_from_slice(json);
                let restricted = row.audience.as_ref().zip(row.author.as_ref()).map(|(audience, author)| {
                    Box::new(Restricted { author: author.clone(), audience: audience.clone() })
                });
                HistoryEntry { seq: row.seq, ts: row.ts, span: start..all.len() as u32, restricted }
            })
            .collect();
        Page::History { json: all, entries, more }
    }

    /// One entry as history shows it to everybody who may see it.
    pub fn current_json_of(&self, row: &Stored) -> Vec<u8> {
        let state = subject(row.kind, row.seq, &row.fields).and_then(|seq| self.kept.states.get(&(row.room, seq)));
        let Some(state) = state else { return self.json_of(row) };
        let reactions = self.kept.reaction_counts(row.room, row.seq);
        let fields = current_fields(row.kind, &row.fields, row.thread, state, &reactions);
        self.json_with(row, &fields)
    }

    /// One entry as everybody who may see it sees it live.
    pub fn json_of(&self, row: &Stored) -> Vec<u8> {
        self.json_with(row, &row.fields)
    }

    fn json_with(&self, row: &Stored, fields: &str) -> Vec<u8> {
        let mut json = Vec::new();
        let name = room_json(&self.kept.rooms[&row.room].name);
        LoggedEvent {
            kind: row.kind,
            room_json: &name,
            seq: row.seq,
            ts: row.ts,
            author: row.author.as_ref().map_or("", UserId::as_str),
            client_id: row.client_id.as_deref(),
            fields,
        }
        .write_json(&mut json);
        json
    }
}
