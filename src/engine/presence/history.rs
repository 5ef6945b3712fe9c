//! What is kept of presence: each change of a user's status that others could see, and numbers for
//! the operator. Data and rules; when it is gathered and sent is in `handle/presence_history.rs`.
//!
//! Each shard gathers the changes of its own users and hands them to the persistence core as one
//! [`News`] at a time. A piece of news is sent until it is known to be kept; it carries a number, so
//! that the store takes it once however often it comes. What waits is bounded: past the bound the
//! steps between are given up first, then the oldest. The message path is not concerned.
//!
//! Whoever is invisible is kept as others saw them: offline.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use super::Cause;
use crate::engine::event::ShardId;
use crate::protocol::command::Status;
use crate::protocol::ids::{DeviceId, UnixMillis, UserId};

/// Transitions that a shard keeps for a store that does not take them.
pub const WAITING_MAX: usize = 65_536;
/// Transitions of one piece of news.
pub const NEWS_MAX: usize = 4_096;
/// While somebody is present the store hears of it at least so often, ms: its last sign of life.
pub const SIGN_OF_LIFE_MS: u64 = 60_000;
/// Transitions that a summary looks at.
pub const SUMMARY_ROWS_MAX: usize = 10_000;
/// Device classes that are told apart; the others are counted as [`OTHER_CLASS`].
pub const CLASSES_MAX: usize = 32;
/// Name of the class of all others.
pub const OTHER_CLASS: &str = "other";
/// Longest name of a class, bytes.
const CLASS_BYTES_MAX: usize = 16;

/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;
/// Milliseconds of an hour.
pub const HOUR_MS: u64 = 3_600_000;

/// A change of what others see of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Whose.
    pub user: UserId,
    /// When; no two of a user have the same.
    pub ts: UnixMillis,
    /// What is shown from now on.
    pub status: Status,
    /// Why.
    pub cause: Cause,
    /// The device that caused it.
    pub device: Option<DeviceId>,
    /// What was shown before.
    pub was: Status,
    /// How long it was shown, ms; 0 when it was offline.
    pub was_ms: u64,
}

/// Sessions that ended, and their lengths together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionSum {
    /// How many.
    pub sessions: u64,
    /// Milliseconds, all together.
    pub total_ms: u64,
}

impl SessionSum {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.total_ms += other.total_ms;
    }
}

/// What one shard has to tell the store. Told again as it is until the store has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Who tells.
    pub shard: ShardId,
    /// Names the shard's life: numbers start anew in each.
    pub boot: u64,
    /// From 1; a number that is not above the last one of the same life is no news.
    pub number: u64,
    /// When it was gathered.
    pub ts: UnixMillis,
    /// In the order in which they happened.
    pub transitions: Vec<Transition>,
    /// The shard's users that are shown online, away and busy after these.
    pub present: [u32; 3],
    /// Sessions that ended, by class of device.
    pub sessions: Vec<(Box<str>, SessionSum)>,
}

/// The class of a device: the letters that its id begins with, in lower case, at most 16 of them
/// (`phone` of `phone-1`); none: `other`.
pub fn device_class(device: &DeviceId) -> Box<str> {
    let letters = device.as_str().bytes().take(CLASS_BYTES_MAX).take_while(u8::is_ascii_alphabetic);
    let class: String = letters.map(|byte| char::from(byte.to_ascii_lowercase())).collect();
    if class.is_empty() { OTHER_CLASS.into() } else { class.into_boxed_str() }
}

/// Adds to a class, or to the others when too many are told apart.
pub fn add_to_class<T: Default>(classes: &mut BTreeMap<Box<str>, T>, class: Box<str>, add: impl FnOnce(&mut T)) {
    let is_new = classes.len() >= CLASSES_MAX && !classes.contains_key(&class);
    add(classes.entry(if is_new { OTHER_CLASS.into() } else { class }).or_default());
}

/// Place of a status in [`News::present`]; none for offline.
pub fn present_index(status: Status) -> Option<usize> {
    match status {
        Status::Online => Some(0),
        Status::Away => Some(1),
        Status::Busy => Some(2),
        Status::Offline => None,
    }
}

/// A shard's gatherer of news.
#[derive(Debug)]
pub struct Recorder {
    shard: ShardId,
    boot: u64,
    number: u64,
    waiting: VecDeque<Transition>,
    sessions: BTreeMap<Box<str>, SessionSum>,
    present: [u32; 3],
    /// Sent, or to be sent again.
    told: Option<Arc<News>>,
    is_under_way: bool,
    told_at: UnixMillis,
    /// A timer will look.
    pub is_armed: bool,
}

impl Recorder {
    /// Nothing happened yet. `boot` is to differ from life to life.
    pub fn new(shard: ShardId, boot: u64) -> Self {
        Self {
            shard,
            boot,
            number: 0,
            waiting: VecDeque::new(),
            sessions: BTreeMap::new(),
            present: [0; 3],
            told: None,
            is_under_way: false,
            told_at: 0,
            is_armed: false,
        }
    }

    /// Transitions that the store has not confirmed.
    pub fn unwritten(&self) -> usize {
        self.waiting.len() + self.told.as_ref().map_or(0, |news| news.transitions.len())
    }

    /// Adds one. Tells how many had to be given up.
    pub fn record(&mut self, transition: Transition) -> u64 {
        if let Some(at) = present_index(transition.was) {
            self.present[at] = self.present[at].saturating_sub(1);
        }
        if let Some(at) = present_index(transition.status) {
            self.present[at] += 1;
        }
        self.waiting.push_back(transition);
        if self.waiting.len() <= WAITING_MAX { 0 } else { self.give_up() }
    }

    /// Keeps the last one of each user; when that is little gain, the oldest quarter goes too, so that
    /// the cost is spread over the many that come until the next time.
    fn give_up(&mut self) -> u64 {
        let before = self.waiting.len();
        let mut seen: HashSet<UserId, ahash::RandomState> = HashSet::default();
        let last: Vec<Transition> =
            self.waiting.drain(..).rev().filter(|transition| seen.insert(transition.user.clone())).collect();
        self.waiting.extend(last.into_iter().rev());
        let too_many = self.waiting.len().saturating_sub(WAITING_MAX / 4 * 3);
        self.waiting.drain(..too_many);
        (before - self.waiting.len()) as u64
    }

    /// A device's session has ended.
    pub fn end_session(&mut self, device: &DeviceId, length_ms: u64) {
        let tally = SessionSum { sessions: 1, total_ms: length_ms };
        add_to_class(&mut self.sessions, device_class(device), |sum: &mut SessionSum| sum.add(tally));
    }

    /// True when the store has heard nothing for long, although somebody is present.
    pub fn is_silent(&self, now: UnixMillis) -> bool {
        self.present != [0; 3] && self.told_at + SIGN_OF_LIFE_MS <= now
    }

    /// What is to be sent now, at this time of day, if anything: one at a time, the same until it is kept.
    pub fn next(&mut self, now: UnixMillis, ts: UnixMillis) -> Option<Arc<News>> {
        if self.is_under_way {
            return None;
        }
        if self.told.is_none() {
            if self.waiting.is_empty() && self.sessions.is_empty() && !self.is_silent(now) {
                return None;
            }
            self.number += 1;
            let count = self.waiting.len().min(NEWS_MAX);
            self.told = Some(Arc::new(News {
                shard: self.shard,
                boot: self.boot,
                number: self.number,
                ts,
                transitions: self.waiting.drain(..count).collect(),
                present: self.present,
                sessions: std::mem::take(&mut self.sessions).into_iter().collect(),
            }));
            if self.waiting.is_empty() {
                // A storm leaves no memory behind.
                self.waiting.shrink_to(NEWS_MAX);
            }
            self.told_at = now;
        }
        self.is_under_way = true;
        self.told.clone()
    }

    /// The store has answered: kept, or not as far as is known. Tells how many transitions were kept.
    pub fn on_answer(&mut self, is_kept: bool) -> u64 {
        self.is_under_way = false;
        let kept = if is_kept { self.told.take() } else { None };
        kept.map_or(0, |news| news.transitions.len() as u64)
    }
}

/// A transition as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// When.
    pub ts: UnixMillis,
    /// What was shown from then on.
    pub status: Status,
    /// Why.
    pub cause: Cause,
    /// The device that caused it.
    pub device: Option<DeviceId>,
    /// For [`Cause::ServerRestart`]: the last moment at which the server is known to have lived.
    pub lost_ts: Option<UnixMillis>,
}

/// What is asked of a user's transitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Whose.
    pub user: UserId,
    /// The first moment.
    pub from: UnixMillis,
    /// The moment after the last one; not later than now.
    pub to: UnixMillis,
    /// At most so many.
    pub limit: u32,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Ascending.
    pub transitions: Vec<Kept>,
    /// Where the next page begins.
    pub next: Option<UnixMillis>,
    /// Of the whole time that was asked for, not of the page.
    pub summary: Summary,
}

/// A user's presence over a time, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// How long they were present, ms.
    pub online_ms: u64,
    /// How often they came; one that was under way at the beginning included.
    pub sessions: u64,
    /// When they were first present.
    pub first_seen: Option<UnixMillis>,
    /// When they were last present.
    pub last_seen: Option<UnixMillis>,
    /// There were too many transitions: it is true up to the last one that was looked at.
    pub is_partial: bool,
}

/// Sums transitions up, in their order.
#[derive(Debug)]
pub struct Summing {
    summary: Summary,
    is_present: bool,
    since: UnixMillis,
}

impl Summing {
    /// Begins at `from`, with what was shown then.
    pub fn new(from: UnixMillis, shown: Status) -> Self {
        let is_present = shown != Status::Offline;
        let summary =
            Summary { sessions: u64::from(is_present), first_seen: is_present.then_some(from), ..Summary::default() };
        Self { summary, is_present, since: from }
    }

    /// The next transition.
    pub fn add(&mut self, ts: UnixMillis, status: Status, lost_ts: Option<UnixMillis>) {
        self.pass(lost_ts.unwrap_or(ts).min(ts));
        self.since = ts;
        let is_present = status != Status::Offline;
        if is_present && !self.is_present {
            self.summary.sessions += 1;
            self.summary.first_seen.get_or_insert(ts);
            self.summary.last_seen = Some(ts);
        }
        self.is_present = is_present;
    }

    /// The end; `is_partial`: it is where the look ended, not the time.
    pub fn end(mut self, to: UnixMillis, is_partial: bool) -> Summary {
        self.pass(if is_partial { self.since } else { to });
        self.summary.is_partial = is_partial;
        self.summary
    }

    fn pass(&mut self, until: UnixMillis) {
        if self.is_present {
            let until = until.max(self.since);
            self.summary.online_ms += until - self.since;
            self.summary.last_seen = Some(until);
        }
    }
}

/// Numbers for the operator, from the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Analytics {
    /// Hours in which something happened, ascending.
    pub hours: Vec<Hour>,
    /// Sessions that ended in these hours, by class of device.
    pub devices: Vec<(Box<str>, SessionSum)>,
    /// Days since the epoch, and how many users were active on each; ascending.
    pub days: Vec<(u64, u64)>,
    /// Months (see [`month_of`]), likewise.
    pub months: Vec<(u64, u64)>,
}

/// One hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hour {
    /// Hours since the epoch.
    pub hour: u64,
    /// Most users that were present at once.
    pub peak: u64,
    /// Most that were online, away and busy at once.
    pub peaks: [u64; 3],
    /// How long users had been online, away and busy before a change in this hour, ms.
    pub shown_ms: [u64; 3],
    /// Sessions that ended.
    pub ended: SessionSum,
}

/// The UTC month of a moment: twelve times the year, plus 0 for January.
pub fn month_of(ts: UnixMillis) -> u64 {
    let (year, month, _) = date_of(ts / DAY_MS);
    year * 12 + u64::from(month) - 1
}

/// Year, month and day (from 1) of a day since the epoch, in UTC (Hinnant's algorithm).
pub fn date_of(day: u64) -> (u64, u32, u32) {
    // Days since the first of March of the year 0, in eras of 400 years.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transition(user: &str, ts: u64, was: Status, status: Status) -> Transition {
        let user = UserId::parse(user).unwrap();
        Transition { user, ts, status, cause: Cause::Set, device: None, was, was_ms: 0 }
    }

    #[test]
    fn news_are_told_until_they_are_kept_and_one_at_a_time() {
        let mut recorder = Recorder::new(ShardId(1), 7);
        assert_eq!(recorder.next(5, 5), None);
        recorder.record(transition("a", 1, Status::Offline, Status::Online));
        let first = recorder.next(5, 5).unwrap();
        assert_eq!((first.number, first.transitions.len(), first.present), (1, 1, [1, 0, 0]));
        recorder.record(transition("a", 2, Status::Online, Status::Busy));
        assert_eq!(recorder.next(6, 6), None, "one is under way");
        assert_eq!(recorder.on_answer(false), 0);
        assert_eq!(recorder.next(7, 7).as_ref(), Some(&first), "told again as it was");
        assert_eq!(recorder.on_answer(true), 1);
        let second = recorder.next(8, 8).unwrap();
        assert_eq!((second.number, second.present, second.ts), (2, [0, 0, 1], 8));
        recorder.on_answer(true);
        assert_eq!(recorder.next(9, 9), None);
        assert_eq!(recorder.next(8 + SIGN_OF_LIFE_MS, 0).map(|news| news.number), Some(3), "a sign of life");
    }

    #[test]
    fn what_waits_is_bounded_and_the_last_of_each_user_stays_longest() {
        let mut recorder = Recorder::new(ShardId(0), 0);
        let mut lost = recorder.record(transition("quiet", 1, Status::Offline, Status::Online));
        for number in 0..WAITING_MAX as u64 {
            lost += recorder.record(transition("busy", 2 + number, Status::Away, Status::Busy));
        }
        assert_eq!((lost, recorder.unwritten()), (WAITING_MAX as u64 - 1, 2));
        for number in 0..WAITING_MAX {
            lost += recorder.record(transition(&format!("u{number}"), 9, Status::Offline, Status::Online));
        }
        assert!(recorder.unwritten() <= WAITING_MAX);
        assert_eq!(lost + recorder.unwritten() as u64, 2 * WAITING_MAX as u64 + 1, "all are accounted for");
        let news = recorder.next(10, 10).unwrap();
        assert_eq!(news.transitions.len(), NEWS_MAX);
    }

    #[test]
    fn a_class_is_what_a_device_begins_with() {
        let class = |text: &str| device_class(&DeviceId::parse(text).unwrap());
        assert_eq!(&*class("Phone-1"), "phone");
        assert_eq!(&*class("web2"), "web");
        assert_eq!(&*class("1234"), "other");
        assert_eq!(&*class("abcdefghijklmnopqrstuvwxyz"), "abcdefghijklmnop");
        let mut classes: BTreeMap<Box<str>, u64> = BTreeMap::new();
        for number in 0..100u8 {
            let name = format!("{}{}", char::from(b'a' + number % 26), char::from(b'a' + number / 26));
            add_to_class(&mut classes, name.into(), |count| *count += 1);
        }
        assert_eq!((classes.len(), classes.values().sum::<u64>()), (CLASSES_MAX + 1, 100));
    }

    #[test]
    fn a_summary_counts_what_others_saw() {
        let mut summing = Summing::new(100, Status::Offline);
        summing.add(200, Status::Online, None);
        summing.add(300, Status::Away, None);
        summing.add(400, Status::Offline, None);
        summing.add(500, Status::Online, None);
        // The server died at 550 and was back at 900.
        summing.add(900, Status::Offline, Some(550));
        summing.add(950, Status::Busy, None);
        let due = Summary {
            online_ms: 200 + 50 + 50,
            sessions: 3,
            first_seen: Some(200),
            last_seen: Some(1_000),
            is_partial: false,
        };
        assert_eq!(summing.end(1_000, false), due);
        let under_way = Summing::new(100, Status::Busy).end(150, false);
        assert_eq!((under_way.online_ms, under_way.sessions, under_way.first_seen), (50, 1, Some(100)));
        assert_eq!(Summing::new(100, Status::Offline).end(150, false), Summary::default());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date_of(0), (1970, 1, 1));
        assert_eq!(date_of(11_016), (2000, 2, 29));
        assert_eq!(date_of(11_017), (2000, 3, 1));
        assert_eq!(date_of(20_454), (2026, 1, 1));
        assert_eq!(month_of(20_453 * DAY_MS), 2025 * 12 + 11);
        assert_eq!(month_of(20_454 * DAY_MS), 2026 * 12);
    }
}
