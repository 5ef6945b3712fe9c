//! A client that keeps the protocol's rules and holds the server to them: it pipelines, retries what
//! was not acknowledged under the same `client_id`, resumes with its cursors, and notices every seq
//! that is missing, doubled, or not its business.

use std::collections::{BTreeMap, VecDeque};

use antiphon::engine::inbox::ItemId;
use antiphon::protocol::ids::{Seq, UserId};

use crate::checker::{Checker, Reader};
use crate::inbox::InboxView;
use crate::log::EPOCH;
use crate::plan::{Dice, Plan};
use crate::presence::PresenceView;
use crate::tally::roll;

/// What a client has at hand while it acts.
pub struct Scene<'a> {
    pub checker: &'a mut Checker,
    pub dice: &'a mut Dice,
    pub plan: &'a Plan,
    pub heals: bool,
    /// Send one more message into each room that is listened to.
    pub last_words: bool,
    /// Nothing is under way any more: what the server says now is how things stand.
    pub is_final: bool,
    pub now: u64,
    /// How far the shard was when it was asked what it now answers.
    pub fed_at: u64,
}

#[derive(Debug, Clone)]
pub struct Message {
    pub client_id: String,
    pub room: String,
    pub body: String,
    pub audience: String,
}

#[derive(Debug)]
pub enum Asked {
    Send {
        message: Message,
        order: u64,
    },
    Subscribe {
        room: String,
        since: Option<Seq>,
    },
    Unsubscribe {
        room: String,
    },
    History {
        room: String,
        after: Option<Seq>,
    },
    Read {
        room: String,
    },
    /// A subscription that must agree with the log.
    Probe {
        room: String,
    },
    Amend {
        room: String,
        target: Seq,
    },
    /// Hashes that must be the server's.
    Hashes {
        rooms: Vec<(String, Seq, u64)>,
    },
    Choose {
        status: &'static str,
    },
    WatchUsers {
        users: Vec<String>,
    },
    UnwatchUsers {
        users: Vec<String>,
    },
    WatchRoom {
        room: String,
    },
    Notify {
        user: String,
        name: String,
    },
    AckItems {
        items: Vec<ItemId>,
    },
    ListItems {
        after: ItemId,
    },
    Other,
}

/// Whether this connection listens to a room, as far as the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
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
    pub wanted: bool,
    pub listening: Listening,
    /// Last seq that came live (or lies behind a gap, or was the head when listening began).
    pub live: Seq,
    /// Listening began more than once: older live entries may still come.
    pub resubscribed: bool,
    /// Everything up to here is known, from where knowledge began.
    pub cursor: Option<Seq>,
    /// Known beyond the cursor, with their times.
    pub have: BTreeMap<Seq, u64>,
    /// Rolling hash of everything up to the cursor; filters hide times, so not with a filter.
    pub hash: Option<u64>,
}

impl View {
    pub fn learn(&mut self, seq: Seq, ts: u64) {
        let Some(cursor) = &mut self.cursor else { return };
        if seq > *cursor {
            self.have.insert(seq, ts);
            while let Some(ts) = self.have.remove(&(*cursor + 1)) {
                *cursor += 1;
                self.hash = self.hash.map(|hash| roll(hash, *cursor, ts));
            }
        }
    }
}

pub struct Client {
    pub number: usize,
    pub user: UserId,
    pub is_admin: bool,
    pub views: BTreeMap<String, View>,
    pub asked: BTreeMap<u64, Asked>,
    next_id: u64,
    next_message: u64,
    pub unsent: VecDeque<Message>,
    /// Acked first-time sends of this connection: room → order → seq.
    pub acked: BTreeMap<String, BTreeMap<u64, Seq>>,
    order: u64,
    pub had_hello: bool,
    /// Answers without an id that are due.
    pub nameless: u64,
    /// Commands without an id, which are answered only when they are refused.
    pub nameless_maybe: u64,
    pub nameless_got: u64,
    pub wants_refresh: bool,
    /// The server asked for patience until then.
    pub quiet_until: u64,
    /// It listens with a filter: messages whose `meta` has this `k`.
    pub filter: Option<u64>,
    /// What was read, and acknowledged, before this connection.
    pub read_before: BTreeMap<String, Seq>,
    pub presence: PresenceView,
    pub inbox: InboxView,
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
            presence: PresenceView::default(),
            inbox: InboxView::default(),
        }
    }

    /// A new connection; some talk before they are greeted.
    pub fn on_connect(&mut self, scene: &mut Scene<'_>) -> Vec<String> {
        self.read_before = scene.checker.reads_of(&self.user);
        if !scene.is_final && scene.dice.chance(300) { self.resume(scene.now) } else { Vec::new() }
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
        self.presence = PresenceView::default();
        self.inbox = InboxView::default();
        self.had_hello = false;
        (self.nameless, self.nameless_maybe, self.nameless_got) = (0, 0, 0);
    }

    pub fn is_settled(&self) -> bool {
        self.is_answered() && self.unsent.is_empty()
    }

    pub fn is_answered(&self) -> bool {
        self.asked.is_empty() && self.nameless_got >= self.nameless
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

    pub fn ask(&mut self, asked: Asked, fields: &str) -> String {
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

    pub fn resume(&mut self, now: u64) -> Vec<String> {
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

    /// Asks for every room, to hear whether the server knows how this user stands there.
    pub fn probe(&mut self, rooms: u64) -> Vec<String> {
        let mut ask = |room: String| {
            let fields = format!("\"type\":\"room:subscribe\",\"room\":\"{room}\"");
            self.ask(Asked::Probe { room }, &fields)
        };
        let mut frames: Vec<String> = (0..rooms).map(|room| ask(format!("r{room}"))).collect();
        frames.extend(self.check_hashes());
        frames
    }

    /// What it does when it is its turn: frames to send.
    pub fn act(&mut self, scene: &mut Scene<'_>) -> Vec<String> {
        if !self.had_hello || scene.is_final {
            return Vec::new();
        }
        let mut frames = Vec::new();
        if self.wants_refresh {
            self.wants_refresh = false;
            // The world writes the token in.
            frames.push(self.ask(Asked::Other, "\"type\":\"auth:refresh\",\"token\":\"TOKEN\""));
        }
        frames.extend(self.resume(scene.now));
        let is_choosing = self.asked.values().any(|asked| matches!(asked, Asked::Choose { .. }));
        if scene.heals && self.presence.chosen.is_none() && !is_choosing && scene.now >= self.quiet_until {
            frames.push(self.choose(scene.dice));
        }
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
        if dice.chance(150) {
            return self.something_of_presence(&room, &other, dice);
        }
        if dice.chance(plan.inboxes) {
            return self.something_of_inboxes(&other, scene);
        }
        match dice.below(100) {
            0..10 => self.amend(&room, scene),
            10..47 => {
                let audience = match dice.below(10) {
                    0 => format!(",\"exclude\":[\"{other}\"]"),
                    1 => format!(",\"only\":[\"{other}\"]"),
                    2 => ",\"priority\":\"critical\"".to_owned(),
                    _ => String::new(),
                };
                let message = self.new_message(&room, audience, dice);
                self.send(message)
            }
            47..60 => self.subscribe(&room, "join"),
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
            92 => self.check_hashes().unwrap_or_else(|| self.ask(Asked::Other, "\"type\":\"ping\"")),
            93 => {
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

    /// Something is done to one of the room's last entries, often to one that others change as well.
    fn amend(&mut self, room: &str, scene: &mut Scene<'_>) -> String {
        let (dice, head) = (&mut *scene.dice, scene.checker.head(room));
        let target = head.saturating_sub(dice.below(6)).max(1);
        let of = |verb: &str| format!("\"type\":\"{verb}\",\"room\":\"{room}\",\"seq\":{target}");
        let emoji = dice.pick(&["+", "-"]);
        match dice.below(10) {
            0 => self.ask(Asked::Amend { room: room.to_owned(), target }, &of("message:delete")),
            1..6 => {
                let version = match dice.below(3) {
                    0 => String::new(),
                    _ => format!(",\"version\":{}", dice.between(1, 3)),
                };
                let fields = format!("{},\"body\":\"e{}\"{version}", of("message:edit"), dice.below(1_000_000));
                self.ask(Asked::Amend { room: room.to_owned(), target }, &fields)
            }
            6 => self.ask(Asked::Other, &of("message:delivered")),
            7 => self.ask(Asked::Other, &format!("{},\"emoji\":\"{emoji}\"", of("reaction:remove"))),
            _ => self.ask(Asked::Other, &format!("{},\"emoji\":\"{emoji}\"", of("reaction:add"))),
        }
    }

    fn choose(&mut self, dice: &mut Dice) -> String {
        let status = dice.pick(&["online", "online", "away", "busy", "offline"]);
        self.ask(Asked::Choose { status }, &format!("\"type\":\"presence:set\",\"status\":\"{status}\""))
    }

    fn something_of_presence(&mut self, room: &str, other: &str, dice: &mut Dice) -> String {
        let of_users = |verb: &str| format!("\"type\":\"presence:{verb}\",\"users\":[\"{other}\",\"u0\"]");
        let users = || vec![other.to_owned(), "u0".to_owned()];
        match dice.below(8) {
            0 | 1 => self.choose(dice),
            2 | 3 => self.ask(Asked::WatchUsers { users: users() }, &of_users("subscribe")),
            4 => self.ask(Asked::UnwatchUsers { users: users() }, &of_users("unsubscribe")),
            5 => {
                let fields = format!("\"type\":\"presence:subscribe\",\"room\":\"{room}\"");
                self.ask(Asked::WatchRoom { room: room.to_owned() }, &fields)
            }
            6 => self.ask(Asked::Other, &of_users("get")),
            _ => {
                let fields = format!("\"type\":\"activity\",\"room\":\"{room}\",\"kind\":\"typing\"");
                self.ask(Asked::Other, &fields)
            }
        }
    }

    fn something_of_inboxes(&mut self, other: &str, scene: &mut Scene<'_>) -> String {
        let dice = &mut *scene.dice;
        match dice.below(10) {
            0..4 => {
                let name = format!("{}-{}", self.number, self.next_message);
                self.next_message += 1;
                let priority = dice.pick(&["critical", "normal", "low"]);
                let ttl = dice.pick(&["", "", ",\"ttl_ms\":400", ",\"ttl_ms\":6000"]);
                let rest =
                    format!("\"user\":\"{other}\",\"name\":\"{name}\",\"data\":[1],\"priority\":\"{priority}\"{ttl}");
                let asked = Asked::Notify { user: other.to_owned(), name };
                self.ask(asked, &format!("\"type\":\"notify\",{rest}"))
            }
            // Some never acknowledge anything.
            4..9 if self.number % 4 != 3 => {
                let items = self.inbox.choose(dice);
                scene.checker.inboxes.on_asked(&self.user, &items);
                let list = format!("{items:?}");
                self.ask(Asked::AckItems { items }, &format!("\"type\":\"inbox:ack\",\"items\":{list}"))
            }
            _ => {
                let after = dice.below(self.inbox.last + 2);
                let fields = format!("\"type\":\"inbox:list\",\"after\":{after},\"limit\":{}", dice.between(1, 100));
                self.ask(Asked::ListItems { after }, &fields)
            }
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
}
