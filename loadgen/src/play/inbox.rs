//! `inbox`: many inboxes are filled at full speed by `notify`, then every user connects, receives and
//! acknowledges. Each item must come to its user, in order, and never again once its ack was answered.
//!
//! Items name their user and number in `data`, so that what comes can be checked against what was
//! queued. First some users come one by one, with nobody else about: that is the time at rest. Then
//! all others come at once: that is delivery at full speed. At the end all come back to empty inboxes.

use std::collections::VecDeque;

use clap::Args;
use hdrhistogram::Histogram;

use super::{Crew, Theatre, Verdict, command, perform, text};
use crate::cli::Common;
use crate::interrupt;
use crate::measure::{Latency, histogram};
use crate::report::{Report, thousands};
use crate::scan::{self, Members, Value};
use crate::stage::{Event, Play, Stage};

/// `inbox`
#[derive(Debug, Clone, Args)]
pub struct InboxArgs {
    /// Users whose inboxes are filled
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub users: u32,
    /// Items for each of them (the server keeps inbox_items_max, 1,000)
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub items: u32,
    /// Connections that queue them
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub senders: u32,
    /// Items of each sender on their way at any time
    #[arg(long, value_name = "K", default_value_t = 128)]
    pub in_flight: u32,
    /// Bytes of an item's data (48 to 4000)
    #[arg(long, value_name = "B", default_value_t = 64)]
    pub data_bytes: usize,
    /// Users that come one by one, for the time at rest
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub at_rest: u32,
    /// Users that come at once, each thereafter as one is done
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub at_once: u32,
    #[command(flatten)]
    pub common: Common,
}

/// Items of one `inbox:ack`.
const ACK_MAX: usize = 1_000;
/// Goal for all 1,000 items of one user at rest, ms.
const AT_REST_MS: f64 = 100.0;
/// Nobody's inbox takes so long at rest, s.
const GIVE_UP_S: f64 = 10.0;
/// Shortest data: two numbers and their names.
const DATA_BYTES_MIN: usize = 48;

impl InboxArgs {
    fn check(&self) -> Result<(), String> {
        if !(1..=100_000).contains(&self.users) || !(1..=100_000).contains(&self.items) {
            return Err("--users and --items must be 1 to 100,000".to_owned());
        }
        if !(1..=1_000).contains(&self.senders) || !(1..=10_000).contains(&self.in_flight) || self.at_once == 0 {
            return Err("--senders must be 1 to 1,000, --in-flight 1 to 10,000, --at-once at least 1".to_owned());
        }
        if !(DATA_BYTES_MIN..=4_000).contains(&self.data_bytes) {
            return Err(format!("--data-bytes must be {DATA_BYTES_MIN} to 4000"));
        }
        Ok(())
    }
}

/// How urgent the item of this number is: one in ten critical, one in ten low. Less is more urgent.
fn urgency(number: u32) -> (u8, &'static str) {
    match number % 10 {
        0 => (0, "critical"),
        9 => (2, "low"),
        _ => (1, "normal"),
    }
}

/// One user's inbox as the tool knows it.
#[derive(Debug, Default, Clone)]
struct Box_ {
    /// The server's id of each number; 0: not queued.
    ids: Vec<u64>,
    /// How often each came.
    came: Vec<u8>,
    /// Its ack was answered.
    is_acked: Vec<bool>,
    acked: u32,
    seen: u32,
    /// Urgency and id of the last first sight on this connection.
    last: (u8, u64),
    /// Numbers to be acknowledged.
    to_ack: Vec<u32>,
    /// Acks on their way: number of the command, and what it names.
    acking: VecDeque<(u64, Vec<u32>)>,
}

#[derive(Debug, Default)]
struct Wrong {
    strangers: u64,
    again_after_ack: u64,
    out_of_order: u64,
    miscounted: u64,
    errors: u64,
    ended: u64,
    /// `hello` named another number of waiting items than the tool knows.
    hellos: u64,
}

struct Post {
    args: InboxArgs,
    boxes: Vec<Box_>,
    /// Of each sender: what it still has to queue is `next`, in steps of the number of senders.
    next: Vec<u64>,
    waiting: Vec<VecDeque<u64>>,
    /// To be sent again: due time, sender, item.
    later: Vec<(u64, u32, u64)>,
    queued: u64,
    refused_for_now: u64,
    acked: u64,
    received: u64,
    repeats: u64,
    next_ack: u64,
    /// Acks are held back until everything came (time at rest).
    holds_acks: bool,
    /// When the last item of each user came, after its connection was begun.
    whole: Histogram<u64>,
    expected_hello: Option<u64>,
    /// Items received when everybody had acknowledged all.
    received_when_done: Option<u64>,
    wrong: Wrong,
}

impl Post {
    fn new(args: InboxArgs) -> Self {
        let empty = Box_ {
            ids: vec![0; args.items as usize],
            came: vec![0; args.items as usize],
            is_acked: vec![false; args.items as usize],
            ..Box_::default()
        };
        Self {
            boxes: vec![empty; args.users as usize],
            next: (0..u64::from(args.senders)).collect(),
            waiting: vec![VecDeque::new(); args.senders as usize],
            later: Vec::new(),
            queued: 0,
            refused_for_now: 0,
            acked: 0,
            received: 0,
            repeats: 0,
            next_ack: 1,
            holds_acks: false,
            whole: histogram(),
            expected_hello: None,
            received_when_done: None,
            wrong: Wrong::default(),
            args,
        }
    }

    fn all(&self) -> u64 {
        u64::from(self.args.users) * u64::from(self.args.items)
    }

    /// The user and number of an item: users in turn, so that all inboxes fill alike.
    fn place(&self, item: u64) -> (u32, u32) {
        ((item % u64::from(self.args.users)) as u32, (item / u64::from(self.args.users)) as u32)
    }

    fn sender_slot(&self, sender: u32) -> u32 {
        self.args.users + sender
    }

    /// Every sender is kept at its number on their way.
    fn post_more(&mut self, stage: &mut Stage) {
        let now_ns = stage.now_ns;
        let due: Vec<_> = self.later.extract_if(.., |(at, ..)| *at <= now_ns).collect();
        for (_, sender, item) in due {
            self.post(stage, sender, item);
        }
        for sender in 0..self.args.senders {
            while self.waiting[sender as usize].len() < self.args.in_flight as usize
                && self.next[sender as usize] < self.all()
            {
                let item = self.next[sender as usize];
                self.next[sender as usize] += u64::from(self.args.senders);
                self.post(stage, sender, item);
            }
        }
    }

    fn post(&mut self, stage: &mut Stage, sender: u32, item: u64) {
        let (user, number) = self.place(item);
        self.waiting[sender as usize].push_back(item);
        let name = stage.world.user_name(user);
        let head = format!("{{\"u\":{user},\"n\":{number},\"pad\":\"");
        let pad = self.args.data_bytes.saturating_sub(head.len() + 2);
        stage.say(self.sender_slot(sender), |out| {
            command(out, "notify", item + 1);
            text(out, "user", &name);
            text(out, "name", "load");
            text(out, "priority", urgency(number).1);
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(head.as_bytes());
            out.resize(out.len() + pad, b'.');
            out.extend_from_slice(b"\"}}");
        });
    }

    fn on_sender(&mut self, stage: &mut Stage, sender: u32, payload: &[u8]) {
        let (Ok(head), Ok(reply)) = (scan::head(payload), scan::reply(payload)) else {
            stage.books.malformed += 1;
            return;
        };
        let Some(item) = head.id.and_then(|id| id.checked_sub(1)) else { return };
        let waiting = &mut self.waiting[sender as usize];
        let Some(at) = waiting.iter().position(|other| *other == item) else { return };
        waiting.remove(at);
        if head.kind == b"error" {
            if reply.temporary {
                self.refused_for_now += 1;
                let after_ns = reply.retry_after_ms.unwrap_or(0).max(1) * 1_000_000;
                self.later.push((stage.now_ns + after_ns, sender, item));
            } else {
                self.wrong.errors += 1;
            }
            return;
        }
        match number_of(payload, b"item") {
            Some(id) => {
                let (user, number) = self.place(item);
                self.boxes[user as usize].ids[number as usize] = id;
                self.queued += 1;
            }
            None => stage.books.malformed += 1,
        }
    }

    fn on_user(&mut self, stage: &mut Stage, user: u32, payload: &[u8]) {
        let Ok(head) = scan::head(payload) else {
            stage.books.malformed += 1;
            return;
        };
        match head.kind {
            b"inbox:item" => {
                let Some(items) = raw_of(payload, b"items") else {
                    stage.books.malformed += 1;
                    return;
                };
                let walked = scan::each_object(items, |item| self.on_item(stage, user, item));
                stage.books.malformed += u64::from(walked.is_err());
                let started_ns = stage.started_ns(user);
                let inbox = &self.boxes[user as usize];
                if inbox.seen == self.args.items && inbox.acked == 0 && self.holds_acks {
                    self.whole.saturating_record(stage.now_ns - started_ns);
                    self.holds_acks = false;
                }
                if !self.holds_acks {
                    self.ack(stage, user);
                }
            }
            b"ok" => self.on_acked(stage, user, head.id, payload),
            b"error" => self.wrong.errors += 1,
            _ => {}
        }
    }

    fn on_item(&mut self, stage: &mut Stage, user: u32, object: &[u8]) {
        let id = number_of(object, b"item");
        let data = raw_of(object, b"data");
        let of = data.and_then(|data| Some((number_of(data, b"u")?, number_of(data, b"n")?)));
        let (Some(id), Some((of, number))) = (id, of) else {
            stage.books.malformed += 1;
            return;
        };
        self.received += 1;
        let inbox = &mut self.boxes[user as usize];
        let at = number as usize;
        if of != u64::from(user) || inbox.ids.get(at) != Some(&id) {
            self.wrong.strangers += 1;
            return;
        }
        if inbox.is_acked[at] {
            self.wrong.again_after_ack += 1;
            return;
        }
        inbox.came[at] = inbox.came[at].saturating_add(1);
        if inbox.came[at] > 1 {
            self.repeats += 1;
            return;
        }
        inbox.seen += 1;
        let key = (urgency(number as u32).0, id);
        self.wrong.out_of_order += u64::from(key < inbox.last);
        inbox.last = key;
        inbox.to_ack.push(number as u32);
    }

    fn ack(&mut self, stage: &mut Stage, user: u32) {
        let inbox = &mut self.boxes[user as usize];
        while !inbox.to_ack.is_empty() {
            let some: Vec<u32> = inbox.to_ack.drain(..inbox.to_ack.len().min(ACK_MAX)).collect();
            let id = self.next_ack;
            self.next_ack += 1;
            stage.say(user, |out| {
                command(out, "inbox:ack", id);
                out.extend_from_slice(b",\"items\":[");
                for (at, number) in some.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    antiphon::protocol::encode::integer(out, inbox.ids[*number as usize]);
                }
                out.extend_from_slice(b"]}");
            });
            inbox.acking.push_back((id, some));
        }
    }

    fn on_acked(&mut self, stage: &mut Stage, user: u32, id: Option<u64>, payload: &[u8]) {
        let inbox = &mut self.boxes[user as usize];
        let Some(at) = inbox.acking.iter().position(|(asked, _)| Some(*asked) == id) else {
            stage.books.malformed += 1;
            return;
        };
        let (_, numbers) = inbox.acking.remove(at).expect("a position that was just found");
        let all = numbers.len() as u64;
        self.wrong.miscounted += u64::from(number_of(payload, b"acked") != Some(all));
        for number in numbers {
            inbox.is_acked[number as usize] = true;
        }
        inbox.acked += all as u32;
        self.acked += all;
    }

    fn is_done(&self, user: u32) -> bool {
        self.boxes[user as usize].acked == self.args.items
    }
}

impl Play for Post {
    fn on(&mut self, stage: &mut Stage, slot: u32, event: Event<'_>) {
        match event {
            Event::Hello(hello) => {
                if let Some(expected) = self.expected_hello.filter(|_| slot < self.args.users) {
                    self.wrong.hellos += u64::from(number_of(hello, b"inbox") != Some(expected));
                }
            }
            Event::Text(payload) if slot >= self.args.users => self.on_sender(stage, slot - self.args.users, payload),
            Event::Text(payload) => self.on_user(stage, slot, payload),
            Event::Ended(_) => self.wrong.ended += 1,
        }
    }
}

fn number_of(object: &[u8], name: &[u8]) -> Option<u64> {
    find(object, name)?.number()
}

fn raw_of<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if let Value::Raw(raw) = find(object, name)? { Some(raw) } else { None }
}

fn find<'a>(object: &'a [u8], name: &[u8]) -> Option<Value<'a>> {
    let mut members = Members::of(object).ok()?;
    while let Some((key, value)) = members.next().ok()? {
        if key == name {
            return Some(value);
        }
    }
    None
}

/// Runs it.
///
/// # Errors
/// One sentence why it could not be carried out.
pub fn run(args: &InboxArgs) -> Result<Report, String> {
    args.check()?;
    let crew = Crew { scenario: "inbox", users: args.users + args.senders, spare: 0, rooms_of: 1, rooms: 0 };
    let script = args.clone();
    perform(&args.common, crew, move |theatre, verdict| play(theatre, verdict, script))
}

fn play(theatre: &mut Theatre, verdict: &mut Verdict, args: InboxArgs) -> Result<(), String> {
    verdict.asked = format!("{} items for each of {} users, data of {} B", args.items, args.users, args.data_bytes);
    let mut post = Post::new(args);
    let ended = course(theatre, verdict, &mut post);
    tell(verdict, &post);
    // Who ends it early has not waited for the rest, and accuses nobody.
    if !interrupt::is_asked() {
        judge_end(verdict, &post);
    }
    ended
}

/// Queueing, the time at rest, delivery at full speed, and the empty inboxes.
fn course(theatre: &mut Theatre, verdict: &mut Verdict, post: &mut Post) -> Result<(), String> {
    let args = post.args.clone();
    let enqueue_s = enqueue(theatre, post)?;
    let queued = post.queued;
    verdict.figure("enqueued", queued as f64, "items, each committed before its ok");
    verdict.figure("enqueued_per_second", queued as f64 / enqueue_s, "items/s");

    let at_rest = args.at_rest.min(args.users);
    theatre.say(format!("{} items are queued; {at_rest} users come one by one", thousands(queued)));
    post.expected_hello = Some(u64::from(args.items));
    for user in 0..at_rest {
        come_alone(theatre, post, user)?;
    }
    tell_whole(verdict, &post.whole);

    theatre.say("the others come at once");
    let before = post.acked;
    let deliver_s = deliver(theatre, post, at_rest)?;
    tell_rates(verdict, post, post.acked - before, deliver_s, theatre.server_cpu_s());

    // Whoever comes again finds nothing.
    post.received_when_done = Some(post.received);
    post.expected_hello = Some(0);
    let stage = &mut theatre.stage;
    (0..args.users).for_each(|user| stage.cut(user));
    (0..args.users).for_each(|user| stage.open(user));
    stage.until(post, 120.0, "the second coming", |_, stage| stage.pending() == 0)?;
    stage.pass(post, 1.5)
}

/// How long an inbox took that came whole and by itself; nothing where none did.
fn tell_whole(verdict: &mut Verdict, whole: &Histogram<u64>) {
    let whole = Latency::of(whole);
    if whole.count == 0 {
        return;
    }
    verdict.figure("whole_inbox_p50", whole.p50_ms, "ms from connect to the last item, at rest");
    verdict.figure("whole_inbox_max", whole.max_ms, "ms");
    let held = if whole.p50_ms < AT_REST_MS { "within" } else { "above" };
    verdict
        .note(format!("a whole inbox at rest takes {:.1} ms (p50): {held} the goal of {AT_REST_MS} ms", whole.p50_ms));
}

/// What a second and an item cost, of what was acknowledged; nothing where a connection ended, and with it the work.
fn tell_rates(verdict: &mut Verdict, post: &Post, delivered: u64, deliver_s: f64, cpu_s: Option<f64>) {
    if post.wrong.ended > 0 {
        return;
    }
    if delivered > 0 {
        verdict.figure("delivered_per_second", delivered as f64 / deliver_s, "items/s, received and acknowledged");
    }
    if let Some(cpu_s) = cpu_s.filter(|_| post.acked > 0) {
        let each = cpu_s * 1e6 / post.acked as f64;
        verdict.figure("server_cpu_per_item", each, "µs, queued, delivered and acknowledged");
    }
}

/// What is known, however far it went.
fn tell(verdict: &mut Verdict, post: &Post) {
    let wrong = &post.wrong;
    verdict.figure("acked", post.acked as f64, "items");
    verdict.figure("repeats", post.repeats as f64, "items that came again before their ack was answered");
    verdict.figure("put_off", post.refused_for_now as f64, "times the server was busy");
    let late = post.received_when_done.map_or(0, |then| post.received - then);
    verdict.forbid(wrong.strangers, "items that are none of their user's");
    verdict.forbid(wrong.again_after_ack, "items that came again after their ack was answered");
    verdict.forbid(late, "items for users who had acknowledged all");
    verdict.forbid(wrong.out_of_order, "items before a more urgent or older one");
    verdict.forbid(wrong.miscounted, "acks that were not of as many waiting items as they named");
    verdict.forbid(wrong.hellos, "hellos with a wrong number of waiting items");
    verdict.forbid(wrong.errors, "error replies");
    verdict.forbid(wrong.ended, "connections closed unasked");
}

/// What must hold when everything has come.
fn judge_end(verdict: &mut Verdict, post: &Post) {
    let lost = post.boxes.iter().flat_map(|inbox| &inbox.came).filter(|came| **came == 0).count() as u64;
    verdict.forbid(post.all() - post.queued, "items that could not be queued");
    verdict.forbid(lost, "items lost");
    verdict.forbid(post.all() - post.acked, "items whose ack was not answered");
}

/// Seconds that queueing everything took.
fn enqueue(theatre: &mut Theatre, post: &mut Post) -> Result<f64, String> {
    let args = post.args.clone();
    let stage = &mut theatre.stage;
    (0..args.senders).for_each(|sender| stage.open_admin(args.users + sender));
    stage.until(post, 30.0, "connecting", |post, stage| stage.pending() == 0 || post.wrong.ended > 0)?;
    theatre.is_ready()?;
    theatre.measure()?;
    let stage = &mut theatre.stage;
    let (start_ns, all) = (stage.world.now_ns(), post.all());
    let limit_s = 60.0 + all as f64 / 500.0;
    let mut told_ns = start_ns;
    let (start, progress) = (theatre.start.at, theatre.progress);
    stage.until(post, limit_s, "queueing", |post, stage| {
        post.post_more(stage);
        if progress && stage.now_ns > told_ns + 2_000_000_000 {
            told_ns = stage.now_ns;
            eprintln!("{:>7.1} s  {} items queued", start.elapsed().as_secs_f64(), thousands(post.queued));
        }
        post.queued + post.wrong.errors >= all || post.wrong.ended > 0
    })?;
    Ok((stage.now_ns - start_ns) as f64 / 1e9)
}

/// One user connects with nobody else about, receives everything, and acknowledges it.
fn come_alone(theatre: &mut Theatre, post: &mut Post, user: u32) -> Result<(), String> {
    post.holds_acks = true;
    theatre.stage.open(user);
    theatre.stage.until(post, GIVE_UP_S, "one user's inbox", |post, _| post.is_done(user) || post.wrong.ended > 0)?;
    // Leaves the server a moment, so that the next one is at rest too.
    theatre.stage.pass(post, 0.02)
}

/// Seconds that all others took to receive and acknowledge everything.
fn deliver(theatre: &mut Theatre, post: &mut Post, from: u32) -> Result<f64, String> {
    let args = post.args.clone();
    post.holds_acks = false;
    let stage = &mut theatre.stage;
    let start_ns = stage.world.now_ns();
    let (mut next, mut oldest) = (from, from);
    let limit_s = 60.0 + post.all() as f64 / 1_000.0;
    stage.until(post, limit_s, "receiving", |post, stage| {
        while oldest < args.users && post.is_done(oldest) {
            oldest += 1;
        }
        while next < args.users && next - oldest < args.at_once {
            stage.open(next);
            next += 1;
        }
        oldest == args.users || post.wrong.ended > 0
    })?;
    let took_s = (stage.now_ns - start_ns) as f64 / 1e9;
    theatre.measured()?;
    Ok(took_s)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fault, House};
    use super::*;
    use crate::cli::{Cli, Scenario};

    fn post(items: u32) -> Post {
        let items = items.to_string();
        let all = ["antiphon-load", "inbox", "--secret", "s", "--users", "2", "--items", &items];
        let Scenario::Inbox(args) = Cli::scenario_of(all) else { panic!("inbox was asked for") };
        assert_eq!(args.check(), Ok(()));
        Post::new(args)
    }

    #[test]
    fn items_are_spread_over_all_inboxes() {
        let post = post(3);
        let places: Vec<_> = (0..post.all()).map(|item| post.place(item)).collect();
        assert_eq!(places, [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]);
    }

    #[test]
    fn every_kind_of_wrong_is_named() {
        let mut verdict = Verdict::default();
        let mut post = post(2);
        post.queued = 4;
        judge_end(&mut verdict, &post);
        assert_eq!(verdict.failures, ["4 items lost", "4 items whose ack was not answered"]);
        post.boxes.iter_mut().for_each(|inbox| inbox.came = vec![1, 2]);
        post.acked = 4;
        let judged = |post: &Post| {
            let mut verdict = Verdict::default();
            tell(&mut verdict, post);
            judge_end(&mut verdict, post);
            verdict.failures
        };
        assert_eq!(judged(&post), [""; 0]);
        (post.received, post.received_when_done) = (3, Some(3));
        assert_eq!(judged(&post), [""; 0]);
        post.received_when_done = Some(2);
        assert_eq!(judged(&post), ["1 items for users who had acknowledged all"]);
        (post.received_when_done, post.wrong.again_after_ack) = (None, 2);
        assert_eq!(judged(&post), ["2 items that came again after their ack was answered"]);
    }

    #[test]
    fn what_did_not_come_has_no_figure() {
        let names = |post: &Post, delivered| {
            let mut verdict = Verdict::default();
            tell_whole(&mut verdict, &post.whole);
            tell_rates(&mut verdict, post, delivered, 2.0, Some(1.0));
            assert_eq!(verdict.notes.is_empty(), post.whole.is_empty(), "{:?}", verdict.notes);
            verdict.figures.iter().map(|figure| (figure.name.to_string(), figure.value)).collect::<Vec<_>>()
        };
        let mut post = post(2);
        assert!(names(&post, 0).is_empty());
        post.acked = 4;
        let figures = [("delivered_per_second".to_owned(), 1.0), ("server_cpu_per_item".to_owned(), 250_000.0)];
        assert_eq!(names(&post, 2), figures);
        post.wrong.ended = 1;
        assert!(names(&post, 2).is_empty(), "the server closed: what was done is not what was asked for");
        post.whole.saturating_record(5_000_000);
        assert_eq!(names(&post, 2).len(), 2, "an inbox that came whole did");
    }

    fn filled_by(fault: Fault) -> Vec<String> {
        let more = ["--users", "6", "--items", "120", "--at-rest", "2", "--senders", "2"];
        let all = House::start(fault).args("inbox", &more);
        let Scenario::Inbox(args) = Cli::scenario_of(all) else { panic!("inbox was asked for") };
        run(&args).map_or_else(|error| vec![error], |report| report.failures)
    }

    #[test]
    fn every_item_is_accounted_for() {
        assert_eq!(filled_by(Fault::None), [""; 0]);
        let has = |fault, words: &str| {
            let failures = filled_by(fault);
            assert!(failures.iter().any(|failure| failure.contains(words)), "{fault:?}: {failures:?}");
        };
        has(Fault::Repeats, "came again after their ack was answered");
        has(Fault::Miscounts, "acks that were not of as many waiting items");
        has(Fault::Loses, "items lost");
        has(Fault::Reverses, "before a more urgent or older one");
    }
}
