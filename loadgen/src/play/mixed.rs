//! `mixed` and `soak`: a day in a chat. Everybody types, reads, sends, reacts, edits, comes and goes at
//! the weights of [`DAY`]; at a fixed rate, whatever the server does. Every delivery is checked: each
//! entry once, in order, the same for everybody, each message what its author sent; each command answered; each
//! inbox item acknowledged.
//!
//! `soak` is the same for long: the server is looked at once a second, and must stay as it is.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use clap::Args;

use super::roster::{Mail, Place, judge, pause_ns};
use super::{Crew, Messages, Rate, Theatre, Verdict, command, perform, text};
use crate::cli::Common;
use crate::control;
use crate::interrupt;
use crate::measure::{Latency, Meters, Pacer, Schedule};
use crate::plan::ns;
use crate::report::Report;
use crate::scan::{self, Members, Value};
use crate::stage::{Event, Play, Stage};
use crate::tally::Tally;
use crate::verify::Seq;
use crate::watch::Watch;

/// `mixed` and `soak`
#[derive(Debug, Clone, Args)]
pub struct MixedArgs {
    /// Users, each in one room
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub users: u32,
    /// Members of a room
    #[arg(long, value_name = "M", default_value_t = 20)]
    pub rooms_of: u32,
    /// Things that are done a second, by all together
    #[arg(long, value_name = "R", default_value_t = 500.0)]
    pub rate: f64,
    /// soak: how much the server's memory may grow from the second to the last third, in percent
    #[arg(long, value_name = "P", default_value_t = 10.0)]
    pub rss_growth_max: f64,
    /// soak: highest 99th percentile of cross-shard wake-ups, ms (needs --control)
    #[arg(long, value_name = "MS", default_value_t = 5.0)]
    pub wake_max: f64,
    #[command(flatten)]
    pub common: Common,
}

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Typing,
    Read,
    Delivered,
    Send,
    React,
    Edit,
    Presence,
    Look,
    History,
    Notify,
    LeaveAndJoin,
    Reconnect,
}

/// The table of weights: of 1,000 things that are done, so many are of this kind. A chat in which for
/// each message somebody types twice and others read it; one in fifty goes away and comes back.
const DAY: [(Act, &str, u32); 12] = [
    (Act::Typing, "typing", 330),
    (Act::Read, "message:read", 220),
    (Act::Delivered, "message:delivered", 80),
    (Act::Send, "message:send", 170),
    (Act::React, "reaction:add", 60),
    (Act::Edit, "message:edit", 15),
    (Act::Presence, "presence:set", 30),
    (Act::Look, "presence:get", 20),
    (Act::History, "message:history", 20),
    (Act::Notify, "notify", 25),
    (Act::LeaveAndJoin, "room:leave and room:join", 10),
    (Act::Reconnect, "drop and resume", 20),
];

const _: () = {
    let (mut sum, mut at) = (0, 0);
    while at < DAY.len() {
        sum += DAY[at].2;
        at += 1;
    }
    assert!(sum == 1_000);
};

/// Numbers of commands that are none of [`DAY`]'s.
const ENTER: u32 = 100;
const ACK: u32 = 101;

/// A `notify` to somebody who has just left the room.
const PERMISSION_DENIED: u64 = 103;

/// Entries of a room that can be compared.
const REMEMBERED: usize = 512;
/// Bytes of a message's body.
const BODY_BYTES: usize = 91;

impl MixedArgs {
    fn check(&self) -> Result<(), String> {
        if !(2..=100_000).contains(&self.users) || !(2..=1_000).contains(&self.rooms_of) {
            return Err("--users must be 2 to 100,000, --rooms-of 2 to 1,000".to_owned());
        }
        if !(0.1..=1_000_000.0).contains(&self.rate) || self.rss_growth_max < 0.0 || self.wake_max <= 0.0 {
            return Err("--rate must be 0.1 to 1,000,000, --rss-growth-max and --wake-max positive".to_owned());
        }
        Ok(())
    }

    fn rooms(&self) -> u32 {
        self.users.div_ceil(self.rooms_of)
    }

    fn room_of(&self, user: u32) -> u32 {
        user / self.rooms_of
    }
}

/// One user.
#[derive(Default)]
struct Member {
    place: Place,
    /// `hello` has come on this connection.
    is_greeted: bool,
    /// Their last message that is acknowledged.
    own: Seq,
    /// The last message that they heard.
    heard: Seq,
    /// Items that came.
    items: BTreeSet<u64>,
    /// What each ack on its way names.
    acks: VecDeque<(u64, u64)>,
}

struct Day {
    args: MixedArgs,
    members: Vec<Member>,
    rooms: Vec<String>,
    mail: Mail,
    tally: Tally,
    done: [u64; DAY.len()],
    notified: u64,
    /// `notify` to somebody who had just left the shared room.
    just_left: u64,
    /// Items that came, each user's apart, and those whose ack was answered.
    items: u64,
    acked: u64,
    live: u32,
    /// Connections that were closed, and tries that did not come to one.
    ended: u64,
    failed_tries: u64,
    /// To be tried again: due time, user.
    later: Vec<(u64, u32)>,
    pacer: Option<Pacer>,
    /// What is measured; empty until then.
    schedule: Schedule,
    meters: Meters,
    /// Events without a number.
    other_events: u64,
}

impl Day {
    fn new(args: MixedArgs, room: impl Fn(u32) -> String) -> Self {
        Self {
            members: (0..args.users).map(|_| Member::default()).collect(),
            rooms: (0..args.rooms()).map(room).collect(),
            mail: Mail::new(args.rooms(), REMEMBERED, BODY_BYTES),
            tally: Tally::default(),
            done: [0; DAY.len()],
            notified: 0,
            just_left: 0,
            items: 0,
            acked: 0,
            live: 0,
            ended: 0,
            failed_tries: 0,
            later: Vec::new(),
            pacer: None,
            schedule: Schedule::default(),
            meters: Meters::new(1),
            other_events: 0,
            args,
        }
    }

    /// Who was cut off tries again when the time has come.
    fn come_back(&mut self, stage: &mut Stage) {
        let now_ns = stage.now_ns;
        self.later.extract_if(.., |(at, _)| *at <= now_ns).for_each(|(_, user)| stage.open(user));
    }

    /// Does what is due.
    fn go_on(&mut self, stage: &mut Stage) {
        self.come_back(stage);
        let now_ns = stage.world.now_ns();
        while let Some(due_ns) = self.pacer.as_mut().and_then(|pacer| pacer.due(now_ns)) {
            if self.schedule.is_measuring(due_ns) {
                self.meters.late.saturating_record(now_ns - due_ns);
            }
            let first = stage.rng.below(self.args.users);
            let mut users = (first..self.args.users).chain(0..first);
            // Who is just coming back does nothing.
            let Some(user) = users.find(|user| self.members[*user as usize].place.is_live) else { continue };
            let mut weight = stage.rng.below(1_000);
            let at = DAY.iter().position(|(.., share)| {
                let is_it = weight < *share;
                weight = weight.saturating_sub(*share);
                is_it
            });
            let at = at.expect("the weights come to 1,000");
            if self.act(stage, user, at as u32, DAY[at].0, due_ns) {
                self.done[at] += 1;
            }
        }
    }

    /// False when there is nothing yet that it could be done to.
    fn act(&mut self, stage: &mut Stage, user: u32, what: u32, act: Act, due_ns: u64) -> bool {
        let room = self.rooms[self.args.room_of(user) as usize].clone();
        let member = &mut self.members[user as usize];
        let heard = member.heard;
        let needed = match act {
            Act::Read | Act::Delivered | Act::React | Act::History => heard,
            Act::Edit => member.own,
            _ => 1,
        };
        if needed == 0 {
            return false;
        }
        let fellow = self.fellow(stage, user);
        let fellow = stage.world.user_name(fellow);
        let pick = stage.rng.below(6) as usize;
        if act == Act::Reconnect {
            self.drop_user(stage, user);
            stage.open(user);
            return true;
        }
        let member = &mut self.members[user as usize];
        let id = member.place.ask(what);
        let in_room = |out: &mut Vec<u8>, kind: &str| {
            command(out, kind, id);
            text(out, "room", &room);
        };
        let seq = |out: &mut Vec<u8>, seq: Seq| out.extend_from_slice(format!(",\"seq\":{seq}").as_bytes());
        let mut message = None;
        match act {
            Act::Send => {
                message = Some(self.mail.add(user, id, self.args.room_of(user) as usize, due_ns));
                self.tally.sent += 1;
            }
            Act::LeaveAndJoin => {
                self.live -= 1;
                member.place.forget();
                member.heard = 0;
                member.own = 0;
            }
            _ => {}
        }
        let own = member.own;
        stage.say(user, |out| {
            match act {
                Act::Typing => {
                    in_room(out, "activity");
                    text(out, "kind", "typing");
                }
                Act::Read => {
                    in_room(out, "message:read");
                    seq(out, heard);
                }
                Act::Delivered => {
                    in_room(out, "message:delivered");
                    seq(out, heard);
                }
                Act::Send => {
                    in_room(out, "message:send");
                    message.into_iter().for_each(|message| self.mail.write(out, message));
                }
                Act::React => {
                    in_room(out, "reaction:add");
                    seq(out, heard);
                    text(out, "emoji", ["👍", "🎉", "😀", "👀", "❤", "🚀"][pick]);
                }
                Act::Edit => {
                    in_room(out, "message:edit");
                    seq(out, own);
                    text(out, "body", "what I meant to say");
                }
                Act::Presence => {
                    command(out, "presence:set", id);
                    text(out, "status", ["online", "online", "online", "away", "busy", "offline"][pick]);
                }
                Act::Look => {
                    command(out, "presence:get", id);
                    out.extend_from_slice(format!(",\"users\":[\"{fellow}\"]").as_bytes());
                }
                Act::History => {
                    in_room(out, "message:history");
                    out.extend_from_slice(b",\"limit\":20");
                }
                Act::Notify => {
                    command(out, "notify", id);
                    text(out, "user", &fellow);
                    text(out, "name", "load");
                    out.extend_from_slice(b",\"data\":{}");
                }
                Act::LeaveAndJoin => in_room(out, "room:leave"),
                Act::Reconnect => {}
            }
            out.push(b'}');
        });
        true
    }

    /// Somebody else of the user's room.
    fn fellow(&self, stage: &mut Stage, user: u32) -> u32 {
        let first = self.args.room_of(user) * self.args.rooms_of;
        let count = self.args.rooms_of.min(self.args.users - first);
        first + (user - first + 1 + stage.rng.below(count.saturating_sub(1))) % count
    }

    fn drop_user(&mut self, stage: &mut Stage, user: u32) {
        stage.cut(user);
        self.lose(user);
    }

    fn lose(&mut self, user: u32) {
        let member = &mut self.members[user as usize];
        self.live -= u32::from(member.place.is_live);
        member.is_greeted = false;
        // Answers that were lost with the connection are nobody's fault.
        member.place.lose();
        member.acks.clear();
        self.mail.lose(user);
    }

    fn on_text(&mut self, stage: &mut Stage, user: u32, payload: &[u8]) {
        let Ok(head) = scan::head(payload) else {
            self.tally.malformed += 1;
            return;
        };
        match head.kind {
            b"ok" => match self.members[user as usize].place.answered(head.id) {
                Some(what) => self.on_ok(stage, user, what, head.id.unwrap_or(0), payload),
                None => self.tally.malformed += 1,
            },
            b"error" => {
                let what = self.members[user as usize].place.answered(head.id);
                let code = scan::reply(payload).ok().and_then(|reply| reply.code).unwrap_or(0);
                self.mail.refused(user, head.id.unwrap_or(0));
                let is_notify =
                    what.is_some_and(|what| DAY.get(what as usize).is_some_and(|(act, ..)| *act == Act::Notify));
                if is_notify && code == PERMISSION_DENIED {
                    self.just_left += 1;
                } else {
                    *self.tally.errors.entry(code).or_default() += 1;
                }
            }
            b"gap" => {
                let is_ours = head.room == Some(self.rooms[self.args.room_of(user) as usize].as_bytes());
                self.members[user as usize].place.gap(is_ours, payload, &mut self.tally);
            }
            b"inbox:item" => self.on_items(stage, user, payload),
            _ => match (head.seq, head.room) {
                (None, Some(room)) if room != self.rooms[self.args.room_of(user) as usize].as_bytes() => {
                    self.tally.malformed += 1;
                }
                (Some(seq), Some(_)) => self.on_entry(stage, user, seq, payload),
                _ => self.other_events += 1,
            },
        }
    }

    fn on_ok(&mut self, stage: &mut Stage, user: u32, what: u32, id: u64, payload: &[u8]) {
        let member = &mut self.members[user as usize];
        if what == ENTER {
            let mut brought = Vec::new();
            let head = member.place.entered(payload, &mut self.tally, |seq, event| brought.push((seq, event.to_vec())));
            let Some(head) = head else {
                self.tally.malformed += 1;
                return;
            };
            self.live += 1;
            self.mail.on_head(self.args.room_of(user) as usize, head);
            for (seq, event) in brought {
                self.hold(stage, user, seq, &event);
            }
        } else if what == ACK {
            if let Some(at) = member.acks.iter().position(|(asked, _)| *asked == id) {
                self.acked += member.acks.remove(at).map_or(0, |(_, count)| count);
            }
        } else {
            match DAY[what as usize].0 {
                Act::Send => {
                    let room = self.args.room_of(user) as usize;
                    if let Some((message, seq)) = self.mail.acked(user, id, room, payload, &mut self.tally) {
                        member.own = seq;
                        let sent_ns = message.sent_ns;
                        self.tally.acked_in_window += u64::from(self.schedule.is_measuring(stage.now_ns));
                        self.meters.record_ack(&self.schedule, sent_ns, stage.now_ns);
                    }
                }
                Act::Notify => self.notified += 1,
                Act::LeaveAndJoin => self.enter(stage, user),
                _ => {}
            }
        }
    }

    fn enter(&mut self, stage: &mut Stage, user: u32) {
        let room = &self.rooms[self.args.room_of(user) as usize];
        let place = &mut self.members[user as usize].place;
        let kind = if place.has_cursor() { "room:subscribe" } else { "room:join" };
        place.enter(stage, user, kind, room, ENTER);
    }

    fn on_entry(&mut self, stage: &Stage, user: u32, seq: Seq, payload: &[u8]) {
        self.members[user as usize].place.heard(seq, &mut self.tally);
        let sent_ns = self.hold(stage, user, seq, payload);
        if sent_ns > 0 && self.members[user as usize].place.is_live {
            self.tally.delivered += 1;
            self.tally.delivered_in_window += u64::from(self.schedule.is_measuring(stage.now_ns));
            self.meters.record_delivery(&self.schedule, sent_ns, stage.now_ns);
        }
    }

    /// Holds an entry against what was sent and what others saw. When it is a message of ours: when it was meant to be
    /// sent; else 0.
    fn hold(&mut self, stage: &Stage, user: u32, seq: Seq, payload: &[u8]) -> u64 {
        let room = self.args.room_of(user) as usize;
        let sent_ns = self.mail.came(&stage.world, user, (room, &self.rooms[room]), payload, &mut self.tally);
        let member = &mut self.members[user as usize];
        // What comes between leaving and joining is nothing that the user may still act upon.
        if sent_ns > 0 && member.place.is_live {
            member.heard = seq;
        }
        sent_ns
    }

    fn on_items(&mut self, stage: &mut Stage, user: u32, payload: &[u8]) {
        let member = &mut self.members[user as usize];
        let mut fresh = Vec::new();
        let walked = items_of(payload).map(|items| {
            scan::each_object(items, |item| match item_of(item) {
                // What comes again was sent before its ack was there: it is acknowledged again.
                Some(id) => {
                    self.items += u64::from(member.items.insert(id));
                    fresh.push(id);
                }
                None => self.tally.malformed += 1,
            })
        });
        self.tally.malformed += u64::from(!matches!(walked, Some(Ok(()))));
        let id = member.place.ask(ACK);
        member.acks.push_back((id, fresh.len() as u64));
        let list: Vec<String> = fresh.iter().map(u64::to_string).collect();
        stage.say(user, |out| {
            command(out, "inbox:ack", id);
            out.extend_from_slice(format!(",\"items\":[{}]}}", list.join(",")).as_bytes());
        });
    }

    /// What is plotted over time.
    fn totals(&self) -> [u64; 5] {
        let tally = &self.tally;
        [u64::from(self.live), tally.sent, tally.acked, tally.delivered, tally.broken()]
    }

    /// Users who are not where they should be at the end.
    fn stragglers(&self) -> u64 {
        let is_behind = |(user, member): (usize, &Member)| {
            let high = self.mail.high(self.args.room_of(user as u32) as usize);
            !member.place.is_live || member.place.last() < high || member.place.unanswered() > 0
        };
        self.members.iter().enumerate().filter(|(user, member)| is_behind((*user, member))).count() as u64
    }
}

fn items_of(payload: &[u8]) -> Option<&[u8]> {
    let mut members = Members::of(payload).ok()?;
    while let Some((key, value)) = members.next().ok()? {
        if let (b"items", Value::Raw(raw)) = (key, value) {
            return Some(raw);
        }
    }
    None
}

fn item_of(object: &[u8]) -> Option<u64> {
    let mut members = Members::of(object).ok()?;
    while let Some((key, value)) = members.next().ok()? {
        if key == b"item" {
            return value.number();
        }
    }
    None
}

impl Play for Day {
    fn next_due_ns(&self) -> Option<u64> {
        let tries = self.later.iter().map(|(at_ns, _)| *at_ns);
        tries.chain(self.pacer.as_ref().map(Pacer::next_ns)).min()
    }

    fn on(&mut self, stage: &mut Stage, slot: u32, event: Event<'_>) {
        match event {
            Event::Hello(_) => {
                self.members[slot as usize].is_greeted = true;
                // The first coming is the set-up's business.
                if self.pacer.is_some() {
                    self.enter(stage, slot);
                }
            }
            Event::Text(payload) => self.on_text(stage, slot, payload),
            Event::Ended(_) => {
                let had_come = self.members[slot as usize].is_greeted;
                *(if had_come { &mut self.ended } else { &mut self.failed_tries }) += 1;
                self.lose(slot);
                self.later.push((stage.now_ns + pause_ns(stage), slot));
            }
        }
    }
}

/// Runs it; a soak when `is_soak`.
///
/// # Errors
/// One sentence why it could not be carried out.
pub fn run(args: &MixedArgs, is_soak: bool) -> Result<Report, String> {
    args.check()?;
    let scenario = if is_soak { "soak" } else { "mixed" };
    let crew = Crew { scenario, users: args.users, spare: 0, rooms_of: args.rooms_of, rooms: args.rooms() };
    let control = args.common.control.as_deref().map(control::address).transpose()?;
    let script = args.clone();
    perform(&args.common, crew, move |theatre, verdict| {
        let world = theatre.stage.world.clone();
        let mut day = Day::new(script.clone(), |room| world.room_name(room));
        settle_in(theatre, &mut day)?;
        let watch = Watch::start(script.common.server_pid, control, Duration::from_secs(1));
        let ended = play(theatre, verdict, &mut day);
        let seen = watch.stop();
        if is_soak {
            flatness::judge(verdict, &script, &seen);
        }
        verdict.failures.extend(seen.trouble);
        ended
    })
}

fn play(theatre: &mut Theatre, verdict: &mut Verdict, day: &mut Day) -> Result<(), String> {
    let args = day.args.clone();
    let begun_ns = theatre.stage.world.now_ns();
    day.pacer = Some(Pacer::new(begun_ns, args.rate));
    // A day may be cut short: what was measured of it is told.
    theatre.stage.heeds_interrupt = false;
    wait(theatre, day, begun_ns + ns(args.common.warmup))?;
    theatre.measure()?;
    day.schedule = Schedule::whole(theatre.stage.world.now_ns(), args.common.duration);
    wait(theatre, day, day.schedule.to_ns)?;
    theatre.measured()?;
    let (measured_ns, now_ns) = (day.schedule.from_ns, theatre.stage.world.now_ns());
    let cut_short = (now_ns < day.schedule.to_ns).then(|| (now_ns - measured_ns) as f64 / 1e9);
    day.schedule.cut(now_ns);
    // From here on nothing new is done; who is away comes back.
    day.pacer = Some(Pacer::new(u64::MAX / 2, 1.0));
    // What does not come now is counted below.
    let (stage, sampler) = (&mut theatre.stage, &mut theatre.sampler);
    let end_ns = day.schedule.to_ns + ns(1.0);
    let _ = stage.until(day, 15.0, "the rest", |day, stage| {
        day.come_back(stage);
        sampler.tick(stage.now_ns, || day.totals());
        day.stragglers() == 0 && day.items >= day.notified && stage.now_ns >= end_ns
    });
    day.mail.close(&mut day.tally);
    tell(verdict, day, cut_short.is_some());
    verdict.failures.extend(cut_short.map(|s| format!("interrupted: the figures are of {s:.1} s")));
    if let Some(cpu_s) = theatre.server_cpu_s() {
        let things = args.rate * cut_short.unwrap_or(args.common.duration);
        if things >= 1.0 {
            verdict.figure("server_cpu_per_thing", cpu_s * 1e6 / things, "µs, with all that follows from it");
        }
    }
    Ok(())
}

fn tell(verdict: &mut Verdict, day: &mut Day, is_cut_short: bool) {
    verdict.asked = format!("{} things a second", day.args.rate);
    for ((_, name, weight), done) in DAY.iter().zip(day.done) {
        verdict.note(format!("{name}: {done} times (weight {weight} of 1,000)"));
    }
    let lag = Latency::of(&day.meters.late);
    verdict.figure("events_without_seq", day.other_events as f64, "typing, reads, presence …");
    verdict.figure("resumed", day.tally.recovered as f64, "connections that came back with a cursor");
    verdict.figure("inbox_items", day.items as f64, "received");
    verdict.figure("inbox_acks", day.acked as f64, "items whose ack was answered, repeats included");
    verdict.figure("notify_refused", day.just_left as f64, "since somebody had just left the room");
    verdict.figure("tool_lag_p99", lag.p99_ms, "ms that this tool was late in doing things");
    judge(verdict, &day.tally);
    verdict.forbid(day.stragglers(), "users who are not in their room with every entry and every reply");
    verdict.forbid(day.tally.not_recovered, "returns that were not recovered from the cursor");
    verdict.forbid(day.notified.saturating_sub(day.items), "inbox items lost");
    verdict.forbid(day.ended, "connections closed unasked");
    verdict.forbid(day.failed_tries, "tries to connect that failed");
    if day.tally.delivered == 0 && !is_cut_short {
        verdict.failures.push("no message was delivered".to_owned());
    }
    verdict.tally = std::mem::take(&mut day.tally);
    let of_sends = DAY.iter().find(|(act, ..)| *act == Act::Send).map_or(0, |(.., weight)| *weight);
    let schedule = std::mem::take(&mut day.schedule);
    let meters = std::mem::replace(&mut day.meters, Meters::new(0));
    let per_second = day.args.rate * f64::from(of_sends) / 1_000.0;
    let rate = Rate { per_second, warmup_s: day.args.common.warmup };
    verdict.messages = Some(Messages { schedule, rate, meters });
}

fn wait(theatre: &mut Theatre, day: &mut Day, end_ns: u64) -> Result<(), String> {
    let (stage, sampler) = (&mut theatre.stage, &mut theatre.sampler);
    let seconds = end_ns.saturating_sub(stage.world.now_ns()) as f64 / 1e9;
    stage.until(day, seconds + 60.0, "the day", |day, stage| {
        day.go_on(stage);
        sampler.tick(stage.now_ns, || day.totals());
        stage.now_ns >= end_ns || interrupt::is_asked()
    })
}

/// Everybody connects and joins; a room's members one after the other would not be realistic either.
fn settle_in(theatre: &mut Theatre, day: &mut Day) -> Result<(), String> {
    let users = day.args.users;
    (0..users).for_each(|user| theatre.stage.open(user));
    theatre.stage.until(day, 60.0 + f64::from(users) / 1_000.0, "connecting", |day, stage| {
        day.come_back(stage);
        day.members.iter().all(|member| member.is_greeted)
    })?;
    let mut asked = 0;
    theatre.stage.until(day, 120.0 + f64::from(users) / 100.0, "joining", |day, stage| {
        while asked < users && asked < day.live + 64 {
            day.enter(stage, asked);
            asked += 1;
        }
        day.live == users || !day.tally.errors.is_empty() || day.ended > 0
    })?;
    if day.live < users {
        return Err("the server refused joins: is it started with --rate-limits off?".to_owned());
    }
    theatre.is_ready()
}

mod flatness;

#[cfg(test)]
mod tests;
