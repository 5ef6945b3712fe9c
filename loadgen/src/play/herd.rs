//! `herd`: everybody drops at once and returns at once with a cursor, while messages go on and new
//! users keep coming. How long until all are back, what failed on the way, and what the new ones wait.
//!
//! One user of each room stays and sends, so that whoever returns has missed something. Everybody must
//! have every entry in the end: each number once, in order, and under it what was sent.

use clap::Args;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

use super::roster::{Mail, Place, judge, pause_ns};
use super::{Crew, Theatre, Verdict, assemble, command, perform, text};
use crate::cli::Common;
use crate::interrupt;
use crate::measure::{Latency, Pacer, histogram};
use crate::plan::ns;
use crate::report::Report;
use crate::scan;
use crate::stage::{Event, Play, Stage};
use crate::tally::Tally;

/// `herd`
#[derive(Debug, Clone, Args)]
pub struct HerdArgs {
    /// Connections that drop and return
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub clients: u32,
    /// How many of them share a room; one more in each stays and sends
    #[arg(long, value_name = "M", default_value_t = 10)]
    pub rooms_of: u32,
    /// Messages a second over all rooms
    #[arg(long, value_name = "R", default_value_t = 200.0)]
    pub rate: f64,
    /// Seconds between the drop and the return
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub away: f64,
    /// New users a second, before and while the herd returns
    #[arg(long, value_name = "R", default_value_t = 20.0)]
    pub newcomers: f64,
    /// Seconds within which all must be back
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    pub limit: f64,
    #[command(flatten)]
    pub common: Common,
}

/// Seconds of traffic and newcomers before the drop: what is usual.
const BEFORE_S: f64 = if cfg!(test) { 1.5 } else { 3.0 };
/// Newcomers beyond this many stay away.
const NEWCOMERS_MAX: u32 = 4_000;

/// Bytes of a message's body.
const BODY_BYTES: usize = 44;
/// Entries of a room that can be compared: more than a herd misses at the usual rate.
const REMEMBERED: usize = 256;

const CREATE: u32 = 1;
const ENTER: u32 = 2;
const SEND: u32 = 3;

impl HerdArgs {
    fn check(&self) -> Result<(), String> {
        if !(1..=500_000).contains(&self.clients) || !(1..=10_000).contains(&self.rooms_of) {
            return Err("--clients must be 1 to 500,000, --rooms-of 1 to 10,000".to_owned());
        }
        if !(0.1..=100_000.0).contains(&self.rate) || !(0.1..=10_000.0).contains(&self.newcomers) {
            return Err("--rate must be 0.1 to 100,000, --newcomers 0.1 to 10,000".to_owned());
        }
        if !(0.0..=3_600.0).contains(&self.away) || !(0.1..=3_600.0).contains(&self.limit) {
            return Err("--away must be 0 to 3,600 seconds, --limit 0.1 to 3,600".to_owned());
        }
        Ok(())
    }

    fn rooms(&self) -> u32 {
        self.clients.div_ceil(self.rooms_of.max(1))
    }

    /// Who takes part in all: the herd, a sender a room, newcomers.
    pub fn users(&self) -> u32 {
        self.clients.saturating_add(self.rooms()).saturating_add(NEWCOMERS_MAX)
    }
}

struct Herd {
    args: HerdArgs,
    places: Vec<Place>,
    rooms: Vec<String>,
    mail: Mail,
    tally: Tally,
    created: u32,
    live: u32,
    /// The herd is on its way back since then, ns; 0: not.
    return_ns: u64,
    back: Histogram<u64>,
    failures: BTreeMap<i64, u64>,
    /// To be tried again: due time, slot.
    later: Vec<(u64, u32)>,
    newcomers: Newcomers,
    sender: u32,
    sending: Option<Pacer>,
}

/// The trickle of new users.
struct Newcomers {
    pacer: Option<Pacer>,
    next: u32,
    /// Intended times of those who are not greeted, by slot.
    due: BTreeMap<u32, u64>,
    /// Before the drop, and from the return on.
    waits: [Histogram<u64>; 2],
    failed: u64,
}

impl Herd {
    fn new(args: HerdArgs, room: impl Fn(u32) -> String) -> Self {
        let rooms = args.rooms();
        Self {
            places: vec![Place::default(); (args.clients + rooms) as usize],
            rooms: (0..rooms).map(room).collect(),
            mail: Mail::new(rooms, REMEMBERED, BODY_BYTES),
            tally: Tally::default(),
            created: 0,
            live: 0,
            return_ns: 0,
            back: histogram(),
            failures: BTreeMap::new(),
            later: Vec::new(),
            newcomers: Newcomers {
                pacer: None,
                next: args.clients + rooms,
                due: BTreeMap::new(),
                waits: [histogram(), histogram()],
                failed: 0,
            },
            sender: 0,
            sending: None,
            args,
        }
    }

    fn room_of(&self, slot: u32) -> usize {
        let room = if slot < self.args.clients { slot / self.args.rooms_of } else { slot - self.args.clients };
        room as usize
    }

    fn is_newcomer(&self, slot: u32) -> bool {
        slot as usize >= self.places.len()
    }

    fn enter(&mut self, stage: &mut Stage, slot: u32) {
        let room = self.room_of(slot);
        self.places[slot as usize].enter(stage, slot, "room:subscribe", &self.rooms[room], ENTER);
    }

    /// What is due: messages, newcomers, second tries.
    fn go_on(&mut self, stage: &mut Stage) {
        let now_ns = stage.world.now_ns();
        while let Some(due_ns) = self.sending.as_mut().and_then(|pacer| pacer.due(now_ns)) {
            let (slot, room) = (self.args.clients + self.sender, self.sender as usize);
            self.sender = (self.sender + 1) % self.args.rooms();
            let id = self.places[slot as usize].ask(SEND);
            let message = self.mail.add(slot, id, room, due_ns);
            self.tally.sent += 1;
            stage.say(slot, |out| {
                command(out, "message:send", id);
                text(out, "room", &self.rooms[room]);
                self.mail.write(out, message);
                out.push(b'}');
            });
        }
        let newcomers = &mut self.newcomers;
        while let Some(due_ns) = newcomers.pacer.as_mut().and_then(|pacer| pacer.due(now_ns)) {
            if newcomers.next < self.args.users() {
                newcomers.due.insert(newcomers.next, due_ns);
                stage.open(newcomers.next);
                newcomers.next += 1;
            }
        }
        let due: Vec<_> = self.later.extract_if(.., |(at, _)| *at <= now_ns).collect();
        due.into_iter().for_each(|(_, slot)| stage.open(slot));
    }

    fn on_text(&mut self, stage: &mut Stage, slot: u32, payload: &[u8]) {
        if self.is_newcomer(slot) {
            return;
        }
        let Ok(head) = scan::head(payload) else {
            self.tally.malformed += 1;
            return;
        };
        let room = self.room_of(slot);
        let place = &mut self.places[slot as usize];
        match head.kind {
            b"ok" => match place.answered(head.id) {
                Some(CREATE) => self.created += 1,
                Some(ENTER) => {
                    let mut brought = Vec::new();
                    let entered = place.entered(payload, &mut self.tally, |_, event| brought.push(event.to_vec()));
                    let Some(head) = entered else {
                        self.tally.malformed += 1;
                        return;
                    };
                    self.mail.on_head(room, head);
                    brought.iter().for_each(|event| self.hold(stage, slot, event));
                    self.live += 1;
                    if self.return_ns > 0 {
                        self.back.saturating_record(stage.now_ns - self.return_ns);
                    }
                }
                Some(SEND) => {
                    self.mail.acked(slot, head.id.unwrap_or(0), room, payload, &mut self.tally);
                }
                _ => self.tally.malformed += 1,
            },
            b"error" => {
                place.answered(head.id);
                self.mail.refused(slot, head.id.unwrap_or(0));
                let code = scan::reply(payload).ok().and_then(|reply| reply.code).unwrap_or(0);
                *self.tally.errors.entry(code).or_default() += 1;
            }
            b"gap" => place.gap(head.room == Some(self.rooms[room].as_bytes()), payload, &mut self.tally),
            _ => {
                if let (Some(seq), Some(_)) = (head.seq, head.room) {
                    place.heard(seq, &mut self.tally);
                    self.hold(stage, slot, payload);
                }
            }
        }
    }

    /// Holds an entry against what was sent and what others saw.
    fn hold(&mut self, stage: &Stage, slot: u32, payload: &[u8]) {
        let room = self.room_of(slot);
        let sent_ns = self.mail.came(&stage.world, slot, (room, &self.rooms[room]), payload, &mut self.tally);
        self.tally.delivered += u64::from(sent_ns > 0);
    }

    /// What is plotted over time.
    fn totals(&self) -> [u64; 5] {
        let tally = &self.tally;
        [u64::from(self.live), tally.sent, tally.acked, tally.delivered, tally.broken()]
    }

    /// Somebody of the herd is where they should not be.
    fn stragglers(&self) -> u64 {
        let is_behind = |(slot, place): (usize, &Place)| {
            !place.is_live || place.last() < self.mail.high(self.room_of(slot as u32)) || place.unanswered() > 0
        };
        self.places.iter().enumerate().filter(|(slot, place)| is_behind((*slot, place))).count() as u64
    }
}

impl Play for Herd {
    fn next_due_ns(&self) -> Option<u64> {
        let tries = self.later.iter().map(|(at_ns, _)| *at_ns);
        let pacers = self.sending.iter().chain(&self.newcomers.pacer).map(Pacer::next_ns);
        tries.chain(pacers).min()
    }

    fn on(&mut self, stage: &mut Stage, slot: u32, event: Event<'_>) {
        match event {
            Event::Hello(_) if self.is_newcomer(slot) => {
                if let Some(due_ns) = self.newcomers.due.remove(&slot) {
                    let window = usize::from(self.return_ns > 0);
                    self.newcomers.waits[window].saturating_record(stage.now_ns.saturating_sub(due_ns));
                }
            }
            Event::Hello(_) if self.return_ns > 0 => self.enter(stage, slot),
            Event::Hello(_) => {}
            Event::Text(payload) => self.on_text(stage, slot, payload),
            Event::Ended(code) if self.is_newcomer(slot) => {
                self.newcomers.failed += 1;
                *self.failures.entry(code).or_default() += 1;
                self.later.push((stage.now_ns + pause_ns(stage), slot));
            }
            Event::Ended(code) => {
                let place = &mut self.places[slot as usize];
                self.live -= u32::from(place.is_live);
                self.tally.unanswered += place.lose().len() as u64;
                self.mail.lose(slot);
                *self.failures.entry(code).or_default() += 1;
                self.later.push((stage.now_ns + pause_ns(stage), slot));
            }
        }
    }
}

/// Runs it.
///
/// # Errors
/// One sentence why it could not be carried out.
pub fn run(args: &HerdArgs) -> Result<Report, String> {
    args.check()?;
    let crew = Crew {
        scenario: "herd",
        users: args.clients + args.rooms(),
        spare: NEWCOMERS_MAX,
        rooms_of: args.rooms_of,
        rooms: args.rooms(),
    };
    let script = args.clone();
    perform(&args.common, crew, move |theatre, verdict| play(theatre, verdict, script))
}

fn play(theatre: &mut Theatre, verdict: &mut Verdict, args: HerdArgs) -> Result<(), String> {
    let world = theatre.stage.world.clone();
    verdict.asked = format!(
        "all {} drop at once and return after {} s; {} messages/s, {} new users/s",
        args.clients, args.away, args.rate, args.newcomers
    );
    let mut herd = Herd::new(args.clone(), |room| world.room_name(room));
    settle_in(theatre, &mut herd)?;
    let ended = course(theatre, verdict, &mut herd);
    tell(verdict, &herd);
    if ended.is_ok() {
        herd.mail.close(&mut herd.tally);
        judge_end(verdict, &herd);
    }
    judge(verdict, &herd.tally);
    verdict.tally = herd.tally;
    ended
}

/// The drop, the return, and what remains.
fn course(theatre: &mut Theatre, verdict: &mut Verdict, herd: &mut Herd) -> Result<(), String> {
    let args = herd.args.clone();
    let now_ns = theatre.stage.world.now_ns();
    herd.sending = Some(Pacer::new(now_ns, args.rate));
    herd.newcomers.pacer = Some(Pacer::new(now_ns, args.newcomers));
    wait(theatre, herd, BEFORE_S)?;
    theatre.say("the herd drops");
    theatre.measure()?;
    for slot in 0..args.clients {
        theatre.stage.cut(slot);
        herd.places[slot as usize].lose();
    }
    herd.live -= args.clients;
    wait(theatre, herd, args.away)?;
    theatre.say("the herd returns");
    let stage = &mut theatre.stage;
    stage.make_at_once(u32::MAX);
    herd.return_ns = stage.world.now_ns();
    (0..args.clients).for_each(|slot| stage.open(slot));
    let everybody = herd.places.len() as u32;
    let (stage, sampler) = (&mut theatre.stage, &mut theatre.sampler);
    let returned = stage.until(herd, args.limit, "the return", |herd, stage| {
        herd.go_on(stage);
        sampler.tick(stage.now_ns, || herd.totals());
        herd.live == everybody
    });
    let took_s = (theatre.stage.now_ns - herd.return_ns) as f64 / 1e9;
    theatre.measured()?;
    match returned {
        Err(interrupted) if interrupt::is_asked() => return Err(interrupted),
        Err(late) => verdict.failures.push(late),
        Ok(()) => verdict.figure("all_back", took_s, "s after the return began"),
    }
    if let Some(cpu_s) = theatre.server_cpu_s() {
        verdict.figure("server_cpu_per_return", cpu_s * 1e6 / f64::from(args.clients), "µs, all traffic included");
    }
    // Newcomers of the last moments are waited for as well.
    wait(theatre, herd, 1.0)?;
    (herd.sending, herd.newcomers.pacer) = (None, None);
    let rest = theatre.stage.until(herd, 15.0, "the rest", |herd, stage| {
        herd.go_on(stage);
        herd.stragglers() == 0 && herd.newcomers.due.is_empty()
    });
    // What has not come by now is counted.
    if interrupt::is_asked() { rest } else { Ok(()) }
}

/// What is known, however far it went.
fn tell(verdict: &mut Verdict, herd: &Herd) {
    if herd.return_ns > 0 {
        let back = Latency::of(&herd.back);
        if back.count > 0 {
            verdict.figure("back_p50", back.p50_ms / 1e3, "s");
            verdict.figure("back_p99", back.p99_ms / 1e3, "s");
        }
        verdict.figure("resumed", herd.tally.recovered as f64, "from their cursor");
        verdict.figure("resumed_entries", herd.tally.resumed_entries as f64, "entries that they had missed");
    }
    verdict.figure(
        "failed_tries",
        herd.failures.values().sum::<u64>() as f64,
        "connections that ended and were tried again",
    );
    let [usual, during] = &herd.newcomers.waits;
    for (names, hist) in [
        (["newcomers_before", "newcomers_before_p50", "newcomers_before_p99"], usual),
        (["newcomers_during", "newcomers_during_p50", "newcomers_during_p99"], during),
    ] {
        let wait = Latency::of(hist);
        verdict.figure(names[0], wait.count as f64, "new users greeted");
        if wait.count > 0 {
            verdict.figure(names[1], wait.p50_ms, "ms from the intended time to hello");
            verdict.figure(names[2], wait.p99_ms, "ms");
        }
    }
    for (code, count) in &herd.failures {
        verdict.note(format!("{count} connections ended with {code} (a close code, or an errno negated)"));
    }
    verdict.forbid(herd.tally.not_recovered, "returns that were not recovered from the cursor");
}

/// What must hold when everything has come.
fn judge_end(verdict: &mut Verdict, herd: &Herd) {
    verdict.forbid(herd.stragglers(), "connections that are not back with every entry");
    let missing = u64::from(herd.args.clients).saturating_sub(herd.tally.recovered);
    verdict.forbid(missing, "of the herd that did not resume");
    verdict.forbid(herd.newcomers.due.len() as u64, "new users that were not greeted");
}

fn wait(theatre: &mut Theatre, herd: &mut Herd, seconds: f64) -> Result<(), String> {
    let (stage, sampler) = (&mut theatre.stage, &mut theatre.sampler);
    let end_ns = stage.world.now_ns() + ns(seconds);
    stage.until(herd, seconds + 60.0, "a pause", |herd, stage| {
        herd.go_on(stage);
        sampler.tick(stage.now_ns, || herd.totals());
        stage.now_ns >= end_ns
    })
}

/// Everybody connects, the senders make the rooms, and all listen.
fn settle_in(theatre: &mut Theatre, herd: &mut Herd) -> Result<(), String> {
    let (clients, rooms) = (herd.args.clients, herd.args.rooms());
    assemble(&mut theatre.stage, herd, 0..clients + rooms)?;
    let stage = &mut theatre.stage;
    for room in 0..rooms {
        let id = herd.places[(clients + room) as usize].ask(CREATE);
        let name = &herd.rooms[room as usize];
        stage.say(clients + room, |out| {
            command(out, "room:create", id);
            text(out, "room", name);
            text(out, "kind", "public");
            out.push(b'}');
        });
    }
    let failed = |herd: &Herd| !herd.tally.errors.is_empty() || !herd.failures.is_empty();
    stage.until(herd, 120.0, "making the rooms", |herd, _| herd.created == rooms || failed(herd))?;
    let mut asked = 0;
    stage.until(herd, 120.0, "listening", |herd, stage| {
        while asked < clients + rooms && asked < herd.live + 512 {
            herd.enter(stage, asked);
            asked += 1;
        }
        herd.live == clients + rooms || failed(herd)
    })?;
    if failed(herd) {
        return Err("the server refused the set-up: is it started with --rate-limits off?".to_owned());
    }
    theatre.is_ready()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Scenario};
    use crate::fake::{Fake, Fault};

    fn herd_against(fault: Fault) -> Report {
        let fake = Fake::start(fault);
        let url = format!("ws://{}", fake.address);
        let all = ["antiphon-load", "herd", "--secret", "0123456789abcdef0123456789abcdef", "--url", &url];
        let more = [
            "--clients",
            "12",
            "--rooms-of",
            "4",
            "--rate",
            "150",
            "--away",
            "0.3",
            "--limit",
            "30",
            "--progress=false",
        ];
        let Scenario::Herd(args) = Cli::scenario_of(all.iter().chain(&more)) else { panic!("herd was asked for") };
        run(&args).unwrap()
    }

    fn figure(report: &Report, name: &str) -> f64 {
        report.figures.iter().find(|figure| figure.name == name).unwrap().value
    }

    #[test]
    fn a_herd_that_never_came_back_has_no_time_of_return() {
        let all = ["antiphon-load", "herd", "--secret", "s", "--clients", "12", "--rooms-of", "4"];
        let Scenario::Herd(args) = Cli::scenario_of(all) else { panic!("herd was asked for") };
        let mut herd = Herd::new(args, |room| format!("r{room}"));
        herd.return_ns = 1;
        let has_time = |herd: &Herd| {
            let mut verdict = Verdict::default();
            tell(&mut verdict, herd);
            verdict.figures.iter().any(|figure| figure.name.starts_with("back_"))
        };
        assert!(!has_time(&herd));
        herd.back.saturating_record(2_000_000);
        assert!(has_time(&herd));
    }

    #[test]
    fn the_herd_is_back_with_everything_or_it_is_said() {
        let report = herd_against(Fault::None);
        assert_eq!(report.failures, [""; 0]);
        assert_eq!((figure(&report, "resumed"), figure(&report, "failed_tries")), (12.0, 0.0));
        assert!(figure(&report, "resumed_entries") > 12.0 && figure(&report, "newcomers_before") > 15.0);
        let forgetful = herd_against(Fault::Forgetful);
        assert!(
            forgetful.failures.contains(&"12 returns that were not recovered from the cursor".to_owned()),
            "{forgetful:?}"
        );
        let silent = herd_against(Fault::SilentResume);
        assert!(silent.failures.iter().any(|failure| failure.ends_with("deliveries lost")), "{silent:?}");
    }

    #[test]
    fn a_server_that_lies_does_not_pass() {
        let cases = [
            (Fault::ForgeForAll, "messages with a wrong body"),
            (Fault::OtherTime, "messages with a wrong body"),
            (Fault::OtherAuthor, "messages with a wrong author"),
            (Fault::StoreTwice, "messages stored again under another number"),
            (Fault::Invent, "messages that nobody sent"),
            (Fault::AckOnly, "messages acknowledged and never delivered"),
            (Fault::WrongAck, "acknowledgements that name another message"),
            (Fault::OtherRoom, "frames the protocol does not allow"),
        ];
        for (fault, words) in cases {
            let failures = herd_against(fault).failures;
            assert!(failures.iter().any(|failure| failure.contains(words)), "{fault:?}: {failures:?}");
        }
    }
}
