//! What a store keeps of presence, in maps: the model that the tests compare the database with, and
//! the simulation's stand-in for it. Never pruned; no numbers for the operator.

use std::collections::BTreeMap;

use super::Cause;
use super::history::{Ask, History, Kept, News, SUMMARY_ROWS_MAX, Summing};
use crate::protocol::command::Status;
use crate::protocol::ids::{UnixMillis, UserId};

/// Everything that is kept.
#[derive(Debug, Default, Clone)]
pub struct KeptPresence {
    /// Every transition, by user and time.
    pub log: BTreeMap<(UserId, UnixMillis), Kept>,
    /// Who is shown as present, and since when.
    pub shown: BTreeMap<UserId, (Status, UnixMillis)>,
    /// The last news of each shard: life, number, and when.
    told: BTreeMap<u16, (u64, u64, UnixMillis)>,
}

impl KeptPresence {
    /// Keeps news, once.
    pub fn apply(&mut self, news: &News) {
        let known = self.told.get(&news.shard.0);
        if known.is_some_and(|(boot, number, _)| *boot == news.boot && *number >= news.number) {
            return;
        }
        self.told.insert(news.shard.0, (news.boot, news.number, news.ts));
        for transition in &news.transitions {
            let (user, ts, status) = (transition.user.clone(), transition.ts, transition.status);
            let kept = Kept { ts, status, cause: transition.cause, device: transition.device.clone(), lost_ts: None };
            self.log.insert((user.clone(), ts), kept);
            match status {
                Status::Offline => self.shown.remove(&user),
                status => self.shown.insert(user, (status, ts)),
            };
        }
    }

    /// A new process takes over: whoever was shown as present was lost with the old one.
    pub fn settle(&mut self, now: UnixMillis, last_log_ts: UnixMillis) {
        let alive = self.told.values().map(|(.., ts)| *ts).fold(last_log_ts, UnixMillis::max).min(now);
        for (user, (_, since)) in std::mem::take(&mut self.shown) {
            let ts = now.max(since + 1);
            let lost_ts = Some(alive.max(since));
            let kept = Kept { ts, status: Status::Offline, cause: Cause::ServerRestart, device: None, lost_ts };
            self.log.insert((user, ts), kept);
        }
        self.told.clear();
    }

    /// A reader's answer.
    pub fn history(&self, ask: &Ask) -> History {
        let key = |ts| (ask.user.clone(), ts);
        let before = self.log.range(key(0)..key(ask.from)).next_back().map(|(_, kept)| kept);
        let mut summing = Summing::new(ask.from, before.map_or(Status::Offline, |kept| kept.status));
        let rows: Vec<&Kept> = self.log.range(key(ask.from)..key(ask.to.max(ask.from))).map(|(_, kept)| kept).collect();
        let is_partial = rows.len() > SUMMARY_ROWS_MAX;
        rows.iter().take(SUMMARY_ROWS_MAX).for_each(|kept| summing.add(kept.ts, kept.status, kept.lost_ts));
        History {
            transitions: rows.iter().take(ask.limit as usize).map(|kept| (*kept).clone()).collect(),
            next: rows.get(ask.limit as usize).map(|kept| kept.ts),
            summary: summing.end(ask.to, is_partial),
        }
    }
}
