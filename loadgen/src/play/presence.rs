//! `presence`: a storm. Everybody in one room drops and returns within seconds, while half of them
//! watch the room. At the end every watcher's view must equal the truth, which the tool knows.
//!
//! A watcher's view is what the protocol page says: the answer of `presence:subscribe`, then each
//! `presence:changed`, the later `version` of a user before the earlier; of a large room only counts.
//! Who was away for less than the server's grace may not be missed by anybody at any time.

use clap::Args;

use super::{Crew, Theatre, Verdict, assemble, command, perform, text};
use crate::cli::Common;
use crate::interrupt;
use crate::plan::ns;
use crate::report::{Report, thousands};
use crate::scan::{self, Members, Value};
use crate::stage::{Event, Play, Stage};

/// `presence`
#[derive(Debug, Clone, Args)]
pub struct PresenceArgs {
    /// Users in the room
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub users: u32,
    /// How many of them watch it, in percent
    #[arg(long, value_name = "P", default_value_t = 50)]
    pub watching: u32,
    /// Seconds over which they drop
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub drop: f64,
    /// Seconds from the last drop to the first return
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub away: f64,
    /// Seconds over which they return
    #[arg(long, value_name = "S", default_value_t = 4.0)]
    pub back: f64,
    /// How many never return, in percent: they must be offline in the end
    #[arg(long, value_name = "P", default_value_t = 0)]
    pub lost: u32,
    /// The server's `grace_ms`: shorter absences may show nobody anything
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub grace_ms: u32,
    /// Seconds within which every view must be right after the last change
    #[arg(long, value_name = "S", default_value_t = 30.0)]
    pub settle: f64,
    #[command(flatten)]
    pub common: Common,
}

/// An absence this close to the grace could go either way, s.
const MARGIN_S: f64 = 1.0;
/// Views that are right must stay so for this long, s: longer than counts are held back.
const STAY_RIGHT_S: f64 = 2.5;

impl PresenceArgs {
    fn check(&self) -> Result<(), String> {
        if !(2..=200_000).contains(&self.users) {
            return Err("--users must be 2 to 200,000".to_owned());
        }
        if !(1..=100).contains(&self.watching) || self.lost > 90 {
            return Err("--watching must be 1 to 100 percent, --lost at most 90".to_owned());
        }
        if [self.drop, self.away, self.back].iter().any(|s| !(0.0..=600.0).contains(s)) {
            return Err("--drop, --away and --back must be 0 to 600 seconds".to_owned());
        }
        Ok(())
    }

    fn is_watcher(&self, user: u32) -> bool {
        user % 100 < self.watching
    }

    fn is_lost(&self, user: u32) -> bool {
        // From the other end than watchers, so that both kinds are lost only when there are many.
        99 - user % 100 < self.lost
    }

    fn grace_s(&self) -> f64 {
        f64::from(self.grace_ms) / 1e3
    }

    /// When a user drops and returns, seconds after the start.
    fn times(&self, user: u32) -> (f64, f64) {
        let share = f64::from(user) / f64::from(self.users);
        (self.drop * share, self.drop + self.away + self.back * share)
    }

    /// Notifications that would be made of each change, if everybody who watches at that moment got one.
    fn naive(&self) -> u64 {
        let watchers: Vec<u32> = (0..self.users).filter(|user| self.is_watcher(*user)).collect();
        // Both by time, since users drop and return in turn.
        let drops: Vec<f64> = watchers.iter().map(|user| self.times(*user).0).collect();
        let returns: Vec<f64> =
            watchers.iter().filter(|u| !self.is_lost(**u)).map(|user| self.times(*user).1).collect();
        let connected = |at: f64| {
            let gone = drops.partition_point(|drop| *drop <= at);
            (drops.len() - gone + returns.partition_point(|back| *back < at)) as u64
        };
        let is_seen = self.expectation() != Expectation::Unseen;
        let of = |user: u32| {
            let ((drop, back), is_lost) = (self.times(user), self.is_lost(user));
            let went = if is_seen || is_lost { connected(drop + self.grace_s()) } else { 0 };
            went + if is_seen && !is_lost { connected(back) } else { 0 }
        };
        (0..self.users).map(of).sum()
    }

    /// What those who return must look like.
    fn expectation(&self) -> Expectation {
        let (first, last) = (self.drop + self.away, self.away + self.back);
        if first.max(last) + MARGIN_S <= self.grace_s() {
            Expectation::Unseen
        } else if first.min(last) >= self.grace_s() + MARGIN_S {
            Expectation::Seen
        } else {
            Expectation::Either
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expectation {
    /// Everybody is back within the grace: no flicker anywhere.
    Unseen,
    /// Everybody is away for longer: each goes offline and comes back.
    Seen,
    /// Some of both.
    Either,
}

const JOIN: u64 = 1;
const UNSUBSCRIBE: u64 = 2;
const WATCH: u64 = 3;

const ONLINE: u64 = 3;
const OTHER: u64 = 1;

/// What one watcher knows of the room.
#[derive(Debug, Clone, Default)]
struct View {
    /// The answer of the subscription came.
    is_answered: bool,
    /// Counts, when the room is counted: online, away, busy.
    counts: Option<[u64; 3]>,
    /// `version << 2 | status` by user; empty while nobody was listed.
    users: Vec<u64>,
}

impl View {
    fn forget(&mut self) {
        *self = Self { is_answered: self.is_answered, users: std::mem::take(&mut self.users), counts: None };
        self.users.fill(0);
    }

    fn online(&self) -> u64 {
        match self.counts {
            Some([online, ..]) => online,
            None => self.users.iter().filter(|known| *known & 3 == ONLINE).count() as u64,
        }
    }

    /// True when it shows just those whom `is_there` names, `there` of `users` in all.
    fn is_right(&self, users: u32, there: u64, is_there: impl Fn(u32) -> bool) -> bool {
        if !self.is_answered {
            return false;
        }
        match self.counts {
            Some(counts) => counts == [there, 0, 0],
            None => (0..users).all(|user| {
                let known = self.users.get(user as usize).map_or(0, |known| known & 3);
                known == if is_there(user) { ONLINE } else { 0 }
            }),
        }
    }
}

/// What happened during the storm.
#[derive(Debug, Default)]
struct Seen {
    /// `presence:changed` events.
    events: u64,
    /// Users named in them.
    cards: u64,
    /// Bytes of them.
    bytes: u64,
    /// Somebody who was back within the grace was shown as gone.
    flickers: u64,
    /// Departures of which a watcher had been told when it went itself, of those long enough ago.
    told: u64,
    /// And of which it had not.
    untold: u64,
    /// Error replies.
    errors: u64,
    /// Connections that ended unasked.
    ended: u64,
}

struct Storm {
    args: PresenceArgs,
    room: String,
    views: Vec<View>,
    joined: u32,
    seen: Seen,
    /// Those who are connected, by the tool's own doing.
    is_here: Vec<bool>,
    here: u64,
    is_watching: bool,
    /// Nobody may be missed, but for the lost.
    is_steady: bool,
    /// All but the lost.
    least: u64,
    /// When each of those who have dropped did, in turn, ns.
    dropped_ns: Vec<u64>,
}

impl Play for Storm {
    fn on(&mut self, stage: &mut Stage, slot: u32, event: Event<'_>) {
        match event {
            Event::Hello(_) => {
                self.here += u64::from(!std::mem::replace(&mut self.is_here[slot as usize], true));
                if self.is_watching {
                    self.watch(stage, slot);
                }
            }
            Event::Text(payload) => self.on_text(stage, slot, payload),
            Event::Ended(_) => {
                self.seen.ended += 1;
                self.leave(slot);
            }
        }
    }
}

impl Storm {
    fn new(args: PresenceArgs, room: String) -> Self {
        let users = args.users as usize;
        Self {
            room,
            views: vec![View::default(); users],
            joined: 0,
            seen: Seen::default(),
            is_here: vec![false; users],
            here: 0,
            is_watching: false,
            is_steady: false,
            dropped_ns: Vec::new(),
            least: (0..args.users).filter(|user| !args.is_lost(*user)).count() as u64,
            args,
        }
    }

    fn leave(&mut self, slot: u32) {
        self.here -= u64::from(std::mem::replace(&mut self.is_here[slot as usize], false));
        self.views[slot as usize] = View::default();
    }

    fn say(&self, stage: &mut Stage, slot: u32, kind: &str, id: u64) {
        stage.say(slot, |out| {
            command(out, kind, id);
            text(out, "room", &self.room);
            out.push(b'}');
        });
    }

    fn watch(&self, stage: &mut Stage, slot: u32) {
        if self.args.is_watcher(slot) {
            self.say(stage, slot, "presence:subscribe", WATCH);
        }
    }

    fn on_text(&mut self, stage: &mut Stage, slot: u32, payload: &[u8]) {
        let Ok(head) = scan::head(payload) else {
            stage.books.malformed += 1;
            return;
        };
        match (head.kind, head.id) {
            (b"ok", Some(JOIN)) => self.say(stage, slot, "room:unsubscribe", UNSUBSCRIBE),
            (b"ok", Some(UNSUBSCRIBE)) => self.joined += 1,
            (b"ok", Some(WATCH)) => {
                self.views[slot as usize].forget();
                self.views[slot as usize].is_answered = true;
                self.take(stage, slot, payload);
                let is_short = self.views[slot as usize].online() < self.least;
                self.seen.flickers += u64::from(self.is_steady && is_short);
            }
            (b"presence:changed", _) => {
                self.seen.events += 1;
                self.seen.bytes += payload.len() as u64;
                self.seen.cards += self.take(stage, slot, payload);
            }
            (b"error", _) => self.seen.errors += 1,
            _ => {}
        }
    }

    /// Takes an answer or an event into the watcher's view. Returns how many users it names.
    fn take(&mut self, stage: &mut Stage, slot: u32, payload: &[u8]) -> u64 {
        let Ok(news) = News::of(payload) else {
            stage.books.malformed += 1;
            return 0;
        };
        if news.is_whole {
            self.views[slot as usize].forget();
        }
        if let Some(counts) = news.counts {
            self.seen.flickers += u64::from(self.is_steady && counts[0] < self.least);
            self.views[slot as usize].counts = Some(counts);
        }
        let mut cards = 0;
        let walked = scan::each_object(news.cards, |card| {
            cards += 1;
            match Card::of(card) {
                Ok(card) => match stage.world.user_of(card.user) {
                    Some(user) if user < self.args.users => self.apply(slot, user, card),
                    _ => stage.books.malformed += 1,
                },
                Err(_) => stage.books.malformed += 1,
            }
        });
        stage.books.malformed += u64::from(walked.is_err());
        cards
    }

    fn apply(&mut self, slot: u32, user: u32, card: Card<'_>) {
        let view = &mut self.views[slot as usize];
        if view.users.is_empty() {
            view.users = vec![0; self.args.users as usize];
        }
        let known = &mut view.users[user as usize];
        if card.version < *known >> 2 {
            return;
        }
        let status = match card.status {
            b"online" => ONLINE,
            b"offline" => 0,
            _ => OTHER,
        };
        if *known & 3 == ONLINE && status != ONLINE {
            self.seen.flickers += u64::from(self.is_steady && !self.args.is_lost(user));
        }
        *known = card.version << 2 | status;
    }

    /// A user drops. As a watcher it must have been told of everybody who went long enough before: longer ago than
    /// the grace, and what a server may take.
    fn drop_user(&mut self, slot: u32, now_ns: u64) {
        let view = &self.views[slot as usize];
        if self.args.expectation() == Expectation::Seen && self.args.is_watcher(slot) && view.is_answered {
            // Counts are held back for a while.
            let patience_s = if view.counts.is_some() { STAY_RIGHT_S } else { MARGIN_S };
            let before_ns = now_ns.saturating_sub(ns(self.args.grace_s() + patience_s));
            let due = self.dropped_ns.partition_point(|at_ns| *at_ns <= before_ns) as u64;
            let untold = match view.counts {
                Some([online, ..]) => (online + due).saturating_sub(u64::from(self.args.users)),
                None => view.users.iter().take(due as usize).filter(|known| **known & 3 == ONLINE).count() as u64,
            };
            self.seen.untold += untold;
            self.seen.told += due - untold.min(due);
        }
        self.leave(slot);
        self.dropped_ns.push(now_ns);
    }

    fn is_there(&self, user: u32) -> bool {
        self.is_here[user as usize]
    }

    /// Watchers that are connected and whose view is not the truth.
    fn wrong(&self) -> u64 {
        let is_wrong = |user: &u32| {
            let view = &self.views[*user as usize];
            !view.is_right(self.args.users, self.here, |other| self.is_there(other))
        };
        (0..self.args.users).filter(|u| self.args.is_watcher(*u) && self.is_there(*u)).filter(is_wrong).count() as u64
    }

    /// True when some connected watcher is wrong: stops at the first one.
    fn is_wrong(&self) -> bool {
        (0..self.args.users)
            .filter(|u| self.args.is_watcher(*u) && self.is_there(*u))
            .any(|user| !self.views[user as usize].is_right(self.args.users, self.here, |other| self.is_there(other)))
    }
}

/// What an answer or an event tells.
struct News<'a> {
    is_whole: bool,
    counts: Option<[u64; 3]>,
    /// An array of objects.
    cards: &'a [u8],
}

impl<'a> News<'a> {
    fn of(payload: &'a [u8]) -> Result<Self, scan::Malformed> {
        let mut news = News { is_whole: false, counts: None, cards: b"[]" };
        let mut members = Members::of(payload)?;
        while let Some((key, value)) = members.next()? {
            match (key, value) {
                (b"presence", Value::Raw(raw)) => news.cards = raw,
                (b"whole", Value::Raw(raw)) => news.is_whole = raw == b"true",
                (b"counts", Value::Raw(raw)) => news.counts = Some(counts(raw)?),
                _ => {}
            }
        }
        Ok(news)
    }
}

fn counts(raw: &[u8]) -> Result<[u64; 3], scan::Malformed> {
    let mut counts = [0; 3];
    let mut members = Members::of(raw)?;
    while let Some((key, value)) = members.next()? {
        let at = match key {
            b"online" => 0,
            b"away" => 1,
            b"busy" => 2,
            _ => continue,
        };
        counts[at] = value.number().ok_or(scan::Malformed)?;
    }
    Ok(counts)
}

#[derive(Clone, Copy)]
struct Card<'a> {
    user: &'a [u8],
    status: &'a [u8],
    version: u64,
}

impl<'a> Card<'a> {
    fn of(object: &'a [u8]) -> Result<Self, scan::Malformed> {
        let mut card = Card { user: b"", status: b"", version: 0 };
        let mut members = Members::of(object)?;
        while let Some((key, value)) = members.next()? {
            match (key, value) {
                (b"user", Value::Text(text)) => card.user = text,
                (b"status", Value::Text(text)) => card.status = text,
                (b"version", Value::Number(n)) => card.version = n,
                _ => {}
            }
        }
        Ok(card)
    }
}

/// Runs it.
///
/// # Errors
/// One sentence why it could not be carried out.
pub fn run(args: &PresenceArgs) -> Result<Report, String> {
    args.check()?;
    let crew = Crew { scenario: "presence", users: args.users, spare: 0, rooms_of: args.users, rooms: 1 };
    let script = args.clone();
    perform(&args.common, crew, move |theatre, verdict| play(theatre, verdict, script))
}

fn play(theatre: &mut Theatre, verdict: &mut Verdict, args: PresenceArgs) -> Result<(), String> {
    verdict.asked = asked(&args);
    let mut storm = Storm::new(args.clone(), theatre.stage.world.room_name(0));
    gather(theatre, &mut storm)?;
    let stage = &mut theatre.stage;
    storm.is_watching = true;
    (0..args.users).for_each(|slot| storm.watch(stage, slot));
    stage.until(&mut storm, args.settle + 30.0, "the first view of every watcher", |storm, _| !storm.is_wrong())?;
    theatre.say("everybody is there and seen; they drop");
    storm.is_steady = args.expectation() == Expectation::Unseen;
    storm.seen = Seen::default();
    theatre.measure()?;
    let before = theatre.stage.books;
    let ended = course(theatre, verdict, &mut storm);
    let seen = &storm.seen;
    verdict.figure("events_received", seen.events as f64, "presence:changed");
    verdict.figure("cards_received", seen.cards as f64, "users in them");
    verdict.figure("event_bytes", seen.bytes as f64, "B");
    let bytes = theatre.stage.books.since(&before).bytes_in;
    verdict.figure("all_bytes", bytes as f64, "B, answers and handshakes included");
    verdict.forbid(seen.flickers, "times somebody who was back within the grace was shown as gone");
    verdict.forbid(seen.untold, "departures that a watcher who stayed was not told of in time");
    verdict.forbid(seen.errors, "error replies");
    verdict.forbid(seen.ended, "connections closed unasked");
    if ended.is_ok() {
        judge_end(theatre, verdict, &storm);
    }
    ended
}

/// The storm, and the calm after it.
fn course(theatre: &mut Theatre, verdict: &mut Verdict, storm: &mut Storm) -> Result<(), String> {
    let settle_s = storm.args.settle;
    let last_change_ns = drop_and_return(theatre, storm)?;
    theatre.say("all are back; their views must come to the truth");
    let limit_s = settle_s + last_change_ns.saturating_sub(theatre.stage.now_ns) as f64 / 1e9;
    let settled = theatre.stage.until(storm, limit_s, "every view", |storm, stage| {
        stage.now_ns >= last_change_ns && stage.pending() == 0 && !storm.is_wrong()
    });
    let truth_ns = theatre.stage.now_ns;
    theatre.measured()?;
    match settled {
        Err(interrupted) if interrupt::is_asked() => return Err(interrupted),
        Err(_) => verdict.failures.push(format!("some views were not right within {settle_s} s")),
        Ok(()) => {
            let took_ms = truth_ns.saturating_sub(last_change_ns) as f64 / 1e6;
            verdict.figure("time_to_truth", took_ms, "ms after the last change");
        }
    }
    theatre.stage.pass(storm, STAY_RIGHT_S)
}

/// What must hold when everything has come, and what it cost.
fn judge_end(theatre: &Theatre, verdict: &mut Verdict, storm: &Storm) {
    let (args, users) = (&storm.args, storm.args.users);
    let expectation = args.expectation();
    verdict.forbid(storm.wrong(), "watchers whose view is not the truth at the end");
    let lost = (0..users).filter(|user| args.is_lost(*user)).count() as u64;
    verdict.forbid((u64::from(users) - lost).abs_diff(storm.here), "connections that are not as they should be");
    // What others must see change: each of them twice when their absences are longer than the grace.
    let changes = match expectation {
        Expectation::Unseen => lost,
        _ => 2 * u64::from(users) - lost,
    };
    let naive = args.naive();
    verdict.figure("changes", changes as f64, "");
    verdict.figure("naive_notifications", naive as f64, "each change to each watcher that is connected then");
    if naive > 0 {
        verdict.figure("events_against_naive", storm.seen.events as f64 / naive as f64, "");
    }
    verdict.figure(
        "departures_told",
        storm.seen.told as f64,
        "of those that a watcher stayed long enough to be told of",
    );
    if let Some(cpu_s) = theatre.server_cpu_s() {
        // The crowd's first coming had no watchers: what a connection costs by itself.
        let connect_s = theatre.connect_cpu_s().unwrap_or(0.0);
        verdict.figure("server_cpu", cpu_s, "s, reconnecting included");
        verdict.figure("server_cpu_first_coming", connect_s, "s, connect and join");
        if changes > 0 {
            verdict.figure("cpu_per_change", cpu_s * 1e6 / changes as f64, "µs, reconnecting included");
        }
    }
    verdict.note(match expectation {
        Expectation::Unseen => "every absence was shorter than the grace: nobody may see anything of the storm",
        Expectation::Seen => "every absence was longer than the grace: each is seen to go and to come",
        Expectation::Either => "some absences were about as long as the grace: the number of changes is an upper bound",
    });
    if expectation == Expectation::Seen && storm.seen.told + storm.seen.untold == 0 {
        verdict
            .note("no watcher stayed long enough to be told of a departure: --drop longer than the grace shows them");
    }
    let is_counted = storm.views.iter().any(|view| view.counts.is_some());
    verdict.note(if is_counted {
        "the room is above the server's presence_room_max: watchers get counts, and each must equal the truth"
    } else {
        "watchers get every member by name, and each must equal the truth"
    });
}

fn asked(args: &PresenceArgs) -> String {
    format!(
        "{} % watching, all drop within {} s, are away {} s, return within {} s; {} % never; grace {} ms",
        args.watching, args.drop, args.away, args.back, args.lost, args.grace_ms
    )
}

/// Everybody connects and joins. They stop listening at once: a room that fills would otherwise tell
/// everybody of everybody.
fn gather(theatre: &mut Theatre, storm: &mut Storm) -> Result<(), String> {
    let users = storm.args.users;
    assemble(&mut theatre.stage, storm, 0..users)?;
    theatre.say(format!("{} are connected; they join", thousands(u64::from(users))));
    /// Joins under way at a time.
    const AT_ONCE: u32 = 64;
    let mut asked = 0;
    theatre.stage.until(storm, 120.0 + f64::from(users) / 100.0, "joining", |storm, stage| {
        while asked < users && asked < storm.joined + AT_ONCE {
            storm.say(stage, asked, "room:join", JOIN);
            asked += 1;
        }
        storm.joined == users || storm.seen.errors + storm.seen.ended > 0
    })?;
    if storm.joined < users {
        return Err("the server refused joins: is it started with --rate-limits off?".to_owned());
    }
    theatre.is_ready()
}

/// The storm itself. Returns when the last visible change happened (or will), ns.
fn drop_and_return(theatre: &mut Theatre, storm: &mut Storm) -> Result<u64, String> {
    let args = storm.args.clone();
    let stage = &mut theatre.stage;
    stage.make_at_once(u32::MAX);
    let start_ns = stage.world.now_ns();
    let at = |seconds: f64| start_ns + ns(seconds);
    let (mut dropped, mut returned) = (0, 0);
    let limit_s = args.drop + args.away + args.back + 120.0;
    stage.until(storm, limit_s, "the return of everybody", |storm, stage| {
        let now_ns = stage.world.now_ns();
        while dropped < args.users && at(args.times(dropped).0) <= now_ns {
            stage.cut(dropped);
            storm.drop_user(dropped, now_ns);
            dropped += 1;
        }
        while returned < dropped && at(args.times(returned).1) <= now_ns {
            if !args.is_lost(returned) {
                stage.open(returned);
            }
            returned += 1;
        }
        returned == args.users && stage.pending() == 0
    })?;
    let lost_at = (0..args.users)
        .rev()
        .find(|user| args.is_lost(*user))
        .map_or(0, |user| at(args.times(user).0 + args.grace_s()));
    Ok(stage.now_ns.max(lost_at))
}

#[cfg(test)]
mod tests;
