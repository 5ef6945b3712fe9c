//! A client that keeps the protocol's rules and holds the server to them: it pipelines, retries what
//! was not acknowledged under the same `client_id`, resumes with its cursors, and notices every seq
//! that is missing, doubled, or not its business.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use antiphon::protocol::ids::{Seq, UserId};
use serde_json::Value;

use crate::checker::{Checker, Reader, text};
use crate::log::EPOCH;
use crate::plan::{Dice, Plan};

/// What a client has at hand while it acts.
pub struct Scene<'a> {
    pub checker: &'a mut Checker,
    pub dice: &'a mut Dice,
    pub plan: &'a Plan,
    pub heals: bool,
    /// Send one more message into each room that is listened to.
    pub last_words: bool,
    pub now: u64,
}

#[derive(Debug, Clone)]
pub struct Message {
    client_id: String,
    room: String,
    body: String,
    audience: String,
}

#[derive(Debug)]
enum Asked {
    Send { message: Message, order: u64 },
    Subscribe { room: String, since: Option<Seq> },
    Unsubscribe { room: String },
    History { room: String, after: Option<Seq> },
    Read { room: String },
    Other,
}

/// Whether this connection listens to a room, as far as the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    /// Never on this connection.
    Never,
    On,
    /// Not any more, by its own wish: what was under way may still come.
    Ended,
    /// Not any more: an entry shut this user out.
    ShutOut,
}

#[derive(Debug)]
pub struct View {
    wanted: bool,
    listening: Listening,
    /// Last seq that came live (or lies behind a gap, or was the head when listening began).
    live: Seq,
    /// Listening began more than once: older live entries may still come.
    resubscribed: bool,
    /// Everything up to here is known, from where knowledge began.
    cursor: Option<Seq>,
    /// Known beyond the cursor.
    have: BTreeSet<Seq>,
}

impl View {
    fn learn(&mut self, seq: Seq) {
        let Some(cursor) = &mut self.cursor else { return };
        if seq > *cursor {
            self.have.insert(seq);
            while self.have.remove(&(*cursor + 1)) {
                *cursor += 1;
            }
        }
    }
}

pub struct Client {
    pub number: usize,
    pub user: UserId,
    pub is_admin: bool,
    pub views: BTreeMap<String, View>,
    asked: BTreeMap<u64, Asked>,
    next_id: u64,
    next_message: u64,
    unsent: VecDeque<Message>,
    /// Acked first-time sends of this connection: room → order → seq.
    acked: BTreeMap<String, BTreeMap<u64, Seq>>,
    order: u64,
    had_hello: bool,
    /// Answers without an id that are due.
    nameless: u64,
    /// Commands without an id, which are answered only when they are refused.
    nameless_maybe: u64,
    nameless_got: u64,
    pub wants_refresh: bool,
    /// The server asked for patience until then.
    quiet_until: u64,
    /// It listens with a filter: messages whose `meta` has this `k`.
    filter: Option<u64>,
    /// What was read, and acknowledged, before this connection.
    read_before: BTreeMap<String, Seq>,
}

impl Client {
    pub fn new(number: usize, user: UserId, is_admin: bool) -> Self {
        Self {
            number,
            user,
            is_admin,
            views: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_id: 1,
            next_message: 1,
            unsent: VecDeque::new(),
            acked: BTreeMap::new(),
            order: 0,
            had_hello: false,
            nameless: 0,
            nameless_maybe: 0,
            nameless_got: 0,
            wants_refresh: false,
            quiet_until: 0,
            filter: (number % 3 == 1).then_some(number as u64 % 2),
            read_before: BTreeMap::new(),
        }
    }

    /// A new connection; some talk before they are greeted.
    pub fn on_connect(&mut self, scene: &mut Scene<'_>) -> Vec<String> {
        self.read_before = scene.checker.reads_of(&self.user);
        if scene.dice.chance(300) { self.resume(scene.now) } else { Vec::new() }
    }

    /// The connection is over: what was not answered may or may not have happened.
    pub fn on_disconnect(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        let sends = asked.into_values().filter_map(|asked| match asked {
            Asked::Send { message, .. } => Some(message),
            _ => None,
        });
        let mut again: VecDeque<Message> = sends.collect();
        again.append(&mut self.unsent);
        self.unsent = again;
        for view in self.views.values_mut() {
            view.listening = Listening::Never;
            view.resubscribed = false;
            view.live = 0;
        }
        self.acked.clear();
        self.had_hello = false;
        (self.nameless, self.nameless_maybe, self.nameless_got) = (0, 0, 0);
    }

    pub fn is_settled(&self) -> bool {
        self.asked.is_empty() && self.unsent.is_empty() && self.nameless_got >= self.nameless
    }

    pub fn is_greeted(&self) -> bool {
        self.had_hello
    }

    pub fn describe(&self) -> String {
        let unsent = self.unsent.len();
        let Self { number, user, asked, views, .. } = self;
        format!("{number} ({user}) asked {asked:?}, {unsent} unsent, views {views:?}")
    }

    /// Every room that is listened to stands where the log stands.
    pub fn check_converged(&self, checker: &Checker) {
        let reader = Reader { user: &self.user, is_admin: self.is_admin };
        for (room, view) in self.views.iter().filter(|(_, view)| view.listening == Listening::On) {
            assert!(checker.may_read_now(&reader, room), "P9: client {} still listens to {room}", self.number);
            let head = checker.head(room);
            assert!(
                view.cursor == Some(head) && view.live == head,
                "P4: client {} listens to {room}, which stands at {head}, and has {view:?}",
                self.number
            );
        }
    }

    // --------------------------------------------------------------------------------------------
    // Saying

    fn ask(&mut self, asked: Asked, fields: &str) -> String {
        let id = self.next_id;
        self.next_id += 1;
        self.asked.insert(id, asked);
        format!("{{\"id\":{id},{fields}}}")
    }

    fn subscribe(&mut self, room: &str, verb: &str) -> String {
        let since = self.views.get(room).and_then(|view| view.cursor);
        let cursor = since.map_or(String::new(), |seq| format!(",\"since\":{{\"epoch\":\"{EPOCH}\",\"seq\":{seq}}}"));
        let filter = |k| format!(",\"filter\":{{\"all\":[{{\"field\":\"k\",\"in\":[{k},\"no\"]}}]}}");
        let filter = self.filter.map_or(String::new(), filter);
        self.ask(
            Asked::Subscribe { room: room.to_owned(), since },
            &format!("\"type\":\"room:{verb}\",\"room\":\"{room}\"{cursor}{filter}"),
        )
    }

    fn is_asking_for(&self, room: &str) -> bool {
        self.asked.values().any(|asked| matches!(asked, Asked::Subscribe { room: r, .. } if r == room))
    }

    fn resume(&mut self, now: u64) -> Vec<String> {
        let due = |view: &View| view.wanted && view.listening != Listening::On;
        let rooms: Vec<String> =
            self.views.iter().filter(|(_, view)| due(view)).map(|(room, _)| room.clone()).collect();
        let mut frames = Vec::new();
        for room in rooms {
            if !self.is_asking_for(&room) {
                frames.push(self.subscribe(&room, "subscribe"));
            }
        }
        // A few at a time: a server that is busy is not to be asked for everything at once.
        for _ in 0..if now < self.quiet_until { 0 } else { 4 } {
            let Some(message) = self.unsent.pop_front() else { break };
            frames.push(self.send(message));
        }
        frames
    }

    fn send(&mut self, message: Message) -> String {
        let Message { client_id, room, body, audience } = &message;
        let fields = format!(
            "\"type\":\"message:send\",\"room\":\"{room}\",\"client_id\":\"{client_id}\",\"body\":\"{body}\"{audience}"
        );
        self.order += 1;
        let order = self.order;
        self.ask(Asked::Send { message, order }, &fields)
    }

    fn new_message(&mut self, room: &str, audience: String, dice: &mut Dice) -> Message {
        let number = self.next_message;
        self.next_message += 1;
        let padding = "x".repeat(dice.pick(&[0, 0, 0, 40, 200]));
        let client_id = format!("{}-{number}", self.number);
        let meta = dice.pick(&["", ",\"meta\":{\"k\":0}", ",\"meta\":{\"x\":[1,{\"k\":0}],\"k\":1}"]);
        let audience = format!("{audience}{meta}");
        Message { body: format!("{client_id}{padding}"), client_id, room: room.to_owned(), audience }
    }

    /// What it does when it is its turn: frames to send.
    pub fn act(&mut self, scene: &mut Scene<'_>) -> Vec<String> {
        if !self.had_hello {
            return Vec::new();
        }
        let mut frames = Vec::new();
        if self.wants_refresh {
            self.wants_refresh = false;
            // The world writes the token in.
            frames.push(self.ask(Asked::Other, "\"type\":\"auth:refresh\",\"token\":\"TOKEN\""));
        }
        frames.extend(self.resume(scene.now));
        if scene.last_words {
            let listens = |view: &View| view.listening == Listening::On;
            let rooms: Vec<String> =
                self.views.iter().filter(|(_, view)| listens(view)).map(|(room, _)| room.clone()).collect();
            for room in rooms {
                let message = self.new_message(&room, String::new(), scene.dice);
                frames.push(self.send(message));
            }
        }
        if !scene.heals && self.unsent.len() < 8 && scene.now >= self.quiet_until {
            for _ in 0..scene.dice.between(1, scene.plan.pipeline) {
                let frame = self.something(scene);
                frames.push(frame);
            }
        }
        frames
    }

    fn something(&mut self, scene: &mut Scene<'_>) -> String {
        let Scene { dice, plan, .. } = scene;
        let room = format!("r{}", dice.below(plan.rooms));
        let other = format!("u{}", dice.below(plan.users));
        if dice.chance(plan.moderation) {
            return self.moderate(&room, &other, dice);
        }
        let named = |kind: &str| format!("\"type\":\"{kind}\",\"room\":\"{room}\"");
        match dice.below(100) {
            0..45 => {
                let audience = match dice.below(10) {
                    0 => format!(",\"exclude\":[\"{other}\"]"),
                    1 => format!(",\"only\":[\"{other}\"]"),
                    2 => ",\"priority\":\"critical\"".to_owned(),
                    _ => String::new(),
                };
                let message = self.new_message(&room, audience, dice);
                self.send(message)
            }
            45..60 => self.subscribe(&room, "join"),
            60..68 => self.subscribe(&room, "subscribe"),
            68..72 => self.ask(Asked::Unsubscribe { room: room.clone() }, &named("room:unsubscribe")),
            72..78 => {
                let seq = dice.between(1, 30);
                let (bound, after) = match dice.below(3) {
                    0 => (String::new(), None),
                    1 => (format!(",\"before\":{seq}"), None),
                    _ => (format!(",\"after\":{seq}"), Some(seq)),
                };
                let limit = dice.between(1, 100);
                let fields = format!("{}{bound},\"limit\":{limit}", named("message:history"));
                self.ask(Asked::History { room: room.clone(), after }, &fields)
            }
            78..83 => {
                let fields = format!("{},\"seq\":{}", named("message:read"), dice.between(1, 40));
                self.ask(Asked::Read { room: room.clone() }, &fields)
            }
            83..88 => {
                let priority = dice.pick(&["critical", "normal", "low"]);
                let rest = format!(",\"name\":\"n\",\"data\":{{\"a\":1}},\"priority\":\"{priority}\"");
                self.ask(Asked::Other, &format!("{}{rest}", named("event:send")))
            }
            88..90 => self.ask(Asked::Other, &named("room:members")),
            90..92 => self.ask(Asked::Other, "\"type\":\"room:list\",\"limit\":2"),
            92..94 => {
                let rooms = format!("[{{\"room\":\"{room}\",\"seq\":3}},{{\"room\":\"r1\",\"seq\":1}}]");
                self.ask(Asked::Other, &format!("\"type\":\"sync:check\",\"rooms\":{rooms}"))
            }
            94 => self.ask(Asked::Other, "\"type\":\"stats\""),
            95 => self.ask(Asked::Other, "\"type\":\"no:such\""),
            96 => {
                self.nameless += 1;
                "no json".to_owned()
            }
            97 => {
                self.nameless_maybe += 1;
                "{\"type\":\"ping\"}".to_owned()
            }
            _ => self.ask(Asked::Other, "\"type\":\"ping\""),
        }
    }

    fn moderate(&mut self, room: &str, other: &str, dice: &mut Dice) -> String {
        let kind = dice.pick(&["public", "private", "direct"]);
        let of = |verb: &str| format!("\"type\":\"room:{verb}\",\"room\":\"{room}\"");
        let on = |verb: &str| format!("{},\"user\":\"{other}\"", of(verb));
        let fields = match dice.below(7) {
            0 => format!("{},\"kind\":\"{kind}\",\"members\":[\"{other}\"]", of("create")),
            1 => on("invite"),
            2 => on("kick"),
            3 => on("ban"),
            4 => format!("{},\"role\":\"member\"", on("role")),
            5 => format!("{},\"role\":\"moderator\"", on("role")),
            _ => of("leave"),
        };
        self.ask(Asked::Other, &fields)
    }

    // --------------------------------------------------------------------------------------------
    // Hearing

    /// One frame from the server; returns what it says at once.
    pub fn hear(&mut self, json: &[u8], scene: &mut Scene<'_>) -> Vec<String> {
        let is_hello = json.starts_with(b"{\"type\":\"hello\"");
        assert!(is_hello != self.had_hello, "hello comes first and once: {}", text(json));
        if json.starts_with(b"{\"type\":\"message:") || json.starts_with(b"{\"type\":\"room:") {
            self.hear_entry(json, scene);
            return Vec::new();
        }
        let value: Value = serde_json::from_slice(json).expect("the server says JSON");
        match value["type"].as_str().expect("frames have a type") {
            "hello" => {
                self.had_hello = true;
                for room in value["rooms"].as_array().expect("hello lists rooms") {
                    let (name, read) = (room["room"].as_str().unwrap(), room["read"].as_u64().unwrap());
                    let before = self.read_before.get(name).copied().unwrap_or(0);
                    let is_unbroken = scene.checker.is_unbroken(&self.user, name);
                    assert!(read >= before || !is_unbroken, "{name} was read to {before}, and hello says {read}");
                }
                return self.resume(scene.now);
            }
            "ok" => self.hear_ok(&value, json, scene),
            "error" => self.hear_error(&value, scene.now),
            "gap" => self.hear_gap(&value, scene),
            "event" | "read:advanced" | "goaway" | "degraded" => {}
            other => panic!("the protocol has no {other}"),
        }
        Vec::new()
    }

    fn hear_entry(&mut self, json: &[u8], scene: &mut Scene<'_>) {
        let (room, seq) = room_and_seq(json);
        let reader = Reader { user: &self.user, is_admin: self.is_admin };
        let from = scene.checker.check_entry(&reader, self.filter, room, seq, json, "live");
        for seq in from..=seq {
            self.hear_seq(room, seq, scene);
        }
    }

    fn hear_seq(&mut self, room: &str, seq: Seq, scene: &mut Scene<'_>) {
        let number = self.number;
        let view = self.views.get_mut(room).unwrap_or_else(|| panic!("client {number} never asked for {room}"));
        assert!(
            !matches!(view.listening, Listening::Never),
            "client {number} got {room} {seq} live and never listened on this connection"
        );
        if seq <= view.live {
            assert!(view.resubscribed, "P2: client {number} got {room} {seq} again, live, after {}", view.live);
            view.learn(seq);
            return;
        }
        assert!(seq == view.live + 1, "P4: client {number} got {room} {seq} after {}", view.live);
        assert!(view.listening != Listening::ShutOut, "P9: client {number} was shut out of {room} and got {seq}");
        view.live = seq;
        view.learn(seq);
        if view.listening == Listening::On && scene.checker.shuts_out(room, seq, &self.user) {
            view.listening = Listening::ShutOut;
            view.wanted = false;
        }
    }

    fn hear_gap(&mut self, value: &Value, scene: &mut Scene<'_>) {
        scene.checker.gaps += 1;
        let room = value["room"].as_str().expect("a gap names its room");
        let (last, head) = (value["last"].as_u64().unwrap(), value["head"].as_u64().unwrap());
        let view = self.views.get_mut(room).expect("gaps are of rooms that were asked for");
        assert!(last <= view.live, "P4: a gap after {last}, and client {} saw {} last", self.number, view.live);
        assert!(head > last, "an empty gap");
        if head > view.live {
            view.live = head;
            if view.listening == Listening::On {
                // It may have been shut out meanwhile: to listen anew tells, and fetches the rest.
                view.listening = Listening::Ended;
            }
        }
    }

    fn hear_ok(&mut self, value: &Value, json: &[u8], scene: &mut Scene<'_>) {
        let asked = self.answered(value, json);
        match asked {
            Asked::Send { message, order } => {
                let (room, seq) = (value["room"].as_str().unwrap(), value["seq"].as_u64().unwrap());
                assert_eq!(room, message.room);
                scene.checker.check_ack(&self.user, &message.client_id, &message.body, room, seq);
                if value["duplicate"] == Value::Bool(false) {
                    let acked = self.acked.entry(message.room).or_default();
                    let before = acked.range(..order).next_back().is_none_or(|(_, other)| *other < seq);
                    let after = acked.range(order..).next().is_none_or(|(_, other)| *other > seq);
                    assert!(before && after, "messages of one connection changed places");
                    acked.insert(order, seq);
                }
            }
            Asked::Subscribe { room, since } => self.listen(&room, since, value, json, scene),
            Asked::Unsubscribe { room } => {
                if let Some(view) = self.views.get_mut(&room) {
                    view.wanted = false;
                    if view.listening == Listening::On {
                        view.listening = Listening::Ended;
                    }
                }
            }
            Asked::History { room, after } => {
                let seqs = self.check_events(&room, json, scene, "history");
                assert!(seqs.is_sorted(), "history ascends: {seqs:?}");
                if let (Some(after), Some(first)) = (after, seqs.first()) {
                    assert_eq!(*first, after + 1, "history after {after} begins right there");
                }
            }
            Asked::Read { room } => {
                scene.checker.note_read(&self.user, &room, value["seq"].as_u64().unwrap());
            }
            Asked::Other => {}
        }
    }

    fn listen(&mut self, room: &str, since: Option<Seq>, value: &Value, json: &[u8], scene: &mut Scene<'_>) {
        assert_eq!(value["epoch"], EPOCH);
        let head = value["seq"].as_u64().unwrap();
        let recovered = value["recovered"] == Value::Bool(true);
        let seqs = self.check_events(room, json, scene, "resume");
        let view = self.views.entry(room.to_owned()).or_insert_with(|| View {
            wanted: true,
            listening: Listening::Never,
            live: 0,
            resubscribed: false,
            cursor: None,
            have: BTreeSet::new(),
        });
        assert!(head >= view.live, "the head of {room} was {} and is {head}", view.live);
        match since {
            Some(since) if recovered => {
                let due: Vec<Seq> = (since + 1..=head).collect();
                assert_eq!(seqs, due, "P4: a resume of {room} after {since} is whole");
                scene.checker.resumes += 1;
                seqs.iter().for_each(|seq| view.learn(*seq));
            }
            _ => {
                assert!(!recovered && seqs.is_empty(), "P4: nothing or everything is replayed");
                if view.cursor.is_none_or(|cursor| cursor < head) {
                    view.cursor = Some(head);
                    view.have.retain(|seq| *seq > head);
                }
            }
        }
        view.resubscribed |= view.listening != Listening::Never;
        view.listening = Listening::On;
        view.wanted = true;
        view.live = head;
    }

    fn check_events(&mut self, room: &str, json: &[u8], scene: &mut Scene<'_>, how: &str) -> Vec<Seq> {
        let reader = Reader { user: &self.user, is_admin: self.is_admin };
        let mut seqs = Vec::new();
        for event in events(json) {
            let (named, seq) = room_and_seq(event);
            assert_eq!(named, room);
            let filter = self.filter.filter(|_| how == "resume");
            let from = scene.checker.check_entry(&reader, filter, room, seq, event, how);
            seqs.extend(from..=seq);
        }
        seqs
    }

    fn hear_error(&mut self, value: &Value, now: u64) {
        if value.get("id").is_none() {
            self.nameless_got += 1;
            assert!(self.nameless_got <= self.nameless + self.nameless_maybe, "an error for nothing: {value}");
            return;
        }
        let asked = self.answered(value, value.to_string().as_bytes());
        let code = value["code"].as_u64().unwrap();
        let is_temporary = value["temporary"] == Value::Bool(true);
        let retry_after_ms = value["retry_after_ms"].as_u64().unwrap();
        assert!(!is_temporary || retry_after_ms > 0, "retry when? {value}");
        self.quiet_until = self.quiet_until.max(now + retry_after_ms);
        match asked {
            Asked::Send { message, .. } if is_temporary => self.unsent.push_back(message),
            Asked::Subscribe { room, .. } => {
                assert_ne!(code, 112, "client {}: a cursor in {room} that the server gave is refused", self.number);
                if let Some(view) = self.views.get_mut(&room)
                    && !is_temporary
                    && view.listening != Listening::On
                {
                    view.wanted = false;
                }
            }
            _ => {}
        }
    }

    fn answered(&mut self, value: &Value, json: &[u8]) -> Asked {
        let id = value["id"].as_u64().expect("ids come back as they went");
        let asked = self.asked.remove(&id);
        asked.unwrap_or_else(|| panic!("client {} got an answer it does not wait for: {}", self.number, text(json)))
    }
}

/// The room and seq of an entry; both stand at its beginning, and test rooms need no escapes.
fn room_and_seq(json: &[u8]) -> (&str, Seq) {
    let json = std::str::from_utf8(json).expect("frames are UTF-8");
    let rest = json.split_once("\"room\":\"").expect("entries name their room").1;
    let (room, rest) = rest.split_once("\",\"seq\":").expect("then their seq");
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    (room, digits.parse().expect("a number"))
}

/// The objects of the `events` field, as they stand.
fn events(json: &[u8]) -> Vec<&[u8]> {
    const KEY: &[u8] = b",\"events\":[";
    let Some(start) = json.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let rest = &json[start + KEY.len()..];
    let (mut found, mut depth, mut from, mut in_text) = (Vec::new(), 0, 0, false);
    for (at, byte) in rest.iter().enumerate() {
        match byte {
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                if depth == 0 {
                    from = at;
                }
                depth += 1;
            }
            b']' if !in_text && depth == 0 => break,
            b'}' | b']' if !in_text => {
                depth -= 1;
                if depth == 0 {
                    found.push(&rest[from..=at]);
                }
            }
            _ => {}
        }
    }
    found
}
