//! One shard's engine at a table: an input goes in, and exactly these outputs come out.
//!
//! Outputs are written as one line each:
//!
//! ```text
//! a ! {…}                 to connection a, critical        a park      a park again     a unpark
//! a general 1..2 {…} {…}  log entries                      a ping      a close 4203 replaced
//! a = {…}   a ~ {…}       normal, low                      append …    read …    mesh …    admin …
//! ```
//! Traces and session ids are written as `*`. Log notes are left out. Appends wait until
//! [`Table::commit`], questions until [`Table::answer`]; time stands still until told.

use std::collections::BTreeMap;
use std::sync::Arc;

use antiphon::engine::event::{
    AdminAct, AdminAnswer, AdminRequest, Append, Claims, Class, Committed, CommittedBatch, ConnKey, Entry, Frames,
    Input, MeshMessage, Opening, Outcome, Output, Outputs, Query, ReadReply, ReadRequest, StoreEvent, Token,
};
use antiphon::engine::inbox::Bounds;
use antiphon::engine::limits::Limits;
use antiphon::engine::presence::mail::{Interest, Mail};
use antiphon::engine::sequencer::SequencerConfig;
use antiphon::engine::shard::Shard;
use antiphon::protocol::error::{ErrorCode, Refusal};
use antiphon::protocol::ids::{DeviceId, RoomKey, Seq, UserId};
use antiphon::protocol::parse::Parser;

use crate::log::TestLog;

/// When tables are laid: milliseconds since the epoch.
pub const DAWN: u64 = 1_000_000;

/// The lines that an input gave.
#[must_use = "what comes out is what is tested"]
#[derive(Debug)]
pub struct Given(pub Vec<String>);

impl Given {
    /// Exactly these lines, in this order; white space at their ends is no matter.
    #[track_caller]
    pub fn gives(self, lines: &str) {
        let due: Vec<&str> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let is = self.0.join("\n");
        assert!(self.0 == due, "it gave:\n{is}\n\nand was to give:\n{}", due.join("\n"));
    }

    #[track_caller]
    pub fn gives_nothing(self) {
        self.gives("");
    }

    /// For the laying of the table.
    pub fn whatever(self) {}

    /// Only the lines about these: `"a"`, `"append"`.
    pub fn only(self, who: &[&str]) -> Self {
        Self(self.0.into_iter().filter(|line| who.iter().any(|who| line.starts_with(&format!("{who} ")))).collect())
    }

    /// The lines with `part` in them.
    pub fn lines(self, part: &str) -> Vec<String> {
        self.0.into_iter().filter(|line| line.contains(part)).collect()
    }

    pub fn has(&self, part: &str) -> bool {
        self.0.iter().any(|line| line.contains(part))
    }
}

/// A shard, its log, and what waits between them.
pub struct Table {
    pub engine: Shard,
    pub log: TestLog,
    pub now: u64,
    parser: Option<Parser>,
    conns: BTreeMap<String, ConnKey>,
    slots: u32,
    pub appends: Vec<Append>,
    pub reads: Vec<ReadRequest>,
    /// News of presence that the engine wants kept: answered at once, without a line, unless held.
    pub news: Vec<Append>,
    pub holds_news: bool,
    verifying: Vec<(ConnKey, Token, String)>,
    pub mesh: Vec<MeshMessage>,
    /// Frames that the engine wants again, by connection.
    again: BTreeMap<String, String>,
    admin_tokens: u64,
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

impl Table {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        Self::of_shards(limits, 1)
    }

    /// With other bounds of inboxes.
    pub fn with_inbox(inbox: Bounds) -> Self {
        Self::laid(
            Limits { inbox, ..Limits::default() },
            SequencerConfig { seed: 1, inbox, ..SequencerConfig::default() },
        )
    }

    pub fn of_shards(limits: Limits, shards: u16) -> Self {
        Self::laid(limits, SequencerConfig { shards, seed: 1, ..SequencerConfig::default() })
    }

    /// With the background check of rooms, which would put its questions between those of other scenarios.
    pub fn checking(limits: Limits) -> Self {
        Self::begun(limits, SequencerConfig { seed: 1, ..SequencerConfig::default() })
    }

    fn laid(limits: Limits, config: SequencerConfig) -> Self {
        Self::begun(Limits { consistency_rooms_per_s: 0, ..limits }, config)
    }

    fn begun(limits: Limits, config: SequencerConfig) -> Self {
        let log = TestLog::new(config);
        let engine = Shard::new(log.genesis(0, 1), Arc::new(limits), DAWN);
        Self {
            engine,
            log,
            now: DAWN,
            parser: Some(Parser::new(16 * 1024)),
            conns: BTreeMap::new(),
            slots: 0,
            appends: Vec::new(),
            reads: Vec::new(),
            news: Vec::new(),
            holds_news: false,
            verifying: Vec::new(),
            mesh: Vec::new(),
            again: BTreeMap::new(),
            admin_tokens: 0,
        }
    }

    // --------------------------------------------------------------------------------------------
    // In

    pub fn claims(&self, name: &str) -> Claims {
        Claims {
            user: user(name),
            expires_at: self.now + 3_600_000,
            issued_at: Some(self.now / 1_000),
            jti: None,
            admin: false,
            rooms: None,
        }
    }

    /// A connection called `conn` of this user; the device is called like the connection.
    pub fn opens(&mut self, conn: &str, name: &str) -> Given {
        let claims = self.claims(name);
        self.opens_with(conn, conn, claims)
    }

    pub fn opens_with(&mut self, conn: &str, device: &str, claims: Claims) -> Given {
        let key = ConnKey { slot: self.slots, generation: 1 };
        self.slots += 1;
        self.conns.insert(conn.to_owned(), key);
        let device = DeviceId::parse(device).unwrap();
        self.give(Input::Opened(key, Opening { claims, device, batch: false }))
    }

    /// Opened and greeted.
    pub fn has(&mut self, conn: &str, name: &str) {
        self.opens(conn, name).whatever();
        self.answer().whatever();
    }

    /// Joined and listening.
    pub fn joins(&mut self, conn: &str, room: &str) {
        self.says(conn, &format!(r#"{{"type":"room:join","id":0,"room":"{room}"}}"#)).whatever();
        self.settle();
    }

    /// Sent and committed.
    pub fn sends(&mut self, conn: &str, room: &str, body: &str) {
        self.says(conn, &format!(r#"{{"type":"message:send","room":"{room}","body":"{body}"}}"#)).whatever();
        self.settle();
    }

    pub fn says(&mut self, conn: &str, json: &str) -> Given {
        let key = self.conns[conn];
        let mut parser = self.parser.take().unwrap();
        let given = match parser.parse(json.as_bytes()) {
            Ok(request) => self.give(Input::Frame(key, &request)),
            Err(bad) => self.give(Input::BadFrame(key, bad.id, bad.refusal)),
        };
        self.parser = Some(parser);
        if given.0.contains(&format!("{conn} park again")) {
            self.again.insert(conn.to_owned(), json.to_owned());
        }
        given
    }

    /// The frame that was parked comes again.
    pub fn comes_again(&mut self, conn: &str) -> Given {
        let json = self.again.remove(conn).expect("a frame was parked");
        self.says(conn, &json)
    }

    pub fn hears_from_mesh(&mut self, message: MeshMessage) -> Given {
        self.give(Input::Mesh(message))
    }

    pub fn key(&self, conn: &str) -> ConnKey {
        self.conns[conn]
    }

    pub fn closes(&mut self, conn: &str) -> Given {
        let key = self.conns[conn];
        self.give(Input::Closed(key))
    }

    pub fn pings(&mut self, conn: &str) -> Given {
        let key = self.conns[conn];
        self.give(Input::Control(key))
    }

    pub fn is_heard(&mut self, conn: &str) {
        self.engine.note_heard(self.conns[conn], self.now);
    }

    pub fn drained(&mut self, conn: &str, gaps: &[(RoomKey, Seq)]) -> Given {
        let key = self.conns[conn];
        self.give(Input::OutboxDrained(key, gaps.to_vec()))
    }

    /// Everything that waits is committed as one batch, which the shard applies.
    pub fn commit(&mut self) -> Given {
        let batch = self.commit_only();
        self.apply(batch)
    }

    /// The store has answered the news of presence that wait: kept, or not as far as is known.
    pub fn answer_news(&mut self, is_kept: bool) -> Given {
        let mut all = Vec::new();
        for append in std::mem::take(&mut self.news) {
            let Entry::PresenceNews(news) = &append.entry else { continue };
            if is_kept {
                self.log.kept.presence.apply(news);
            }
            let committed = Committed { room: RoomKey(0), seq: 0, ts: self.now, duplicate: false, value: 0 };
            let refusal = || Refusal::new(ErrorCode::Degraded, "no writes").retry_after(500);
            let result = if is_kept { Ok(committed) } else { Err(refusal()) };
            let outcomes = vec![vec![Outcome { token: append.token, result }]];
            // A batch of an answer only; it says nothing about positions.
            all.extend(self.apply(Arc::new(CommittedBatch { first: 1, outcomes, ..CommittedBatch::default() })).0);
        }
        Given(all)
    }

    /// Committed, and not yet told to the shard.
    pub fn commit_only(&mut self) -> Arc<CommittedBatch> {
        let decided = self.log.decide(std::mem::take(&mut self.appends), self.now);
        self.log.commit(decided)
    }

    pub fn apply(&mut self, batch: Arc<CommittedBatch>) -> Given {
        self.give(Input::Store(StoreEvent::Batch(batch)))
    }

    /// An entry that another shard asked for.
    pub fn elsewhere(&mut self, entry: Entry) {
        let token = Token(u64::MAX);
        let seen = self.log.kept.end().position;
        let shard = antiphon::engine::event::ShardId(0);
        self.appends.push(Append { shard, token, seen, entry });
    }

    pub fn degrades(&mut self, is_on: bool) -> Given {
        self.give(Input::Store(StoreEvent::Degraded(is_on)))
    }

    /// Every question that waits is answered from the log as it stands.
    pub fn answer(&mut self) -> Given {
        let mut all = Vec::new();
        for request in std::mem::take(&mut self.reads) {
            let reply = self.read(&request);
            all.extend(self.give(Input::Read(reply)).0);
        }
        Given(all)
    }

    /// The answer as of now, to be handed over later.
    pub fn read(&self, request: &ReadRequest) -> ReadReply {
        ReadReply { token: request.token, result: Ok(self.log.answer(&request.query)) }
    }

    pub fn read_one(&mut self) -> ReadReply {
        let request = self.reads.remove(0);
        self.read(&request)
    }

    pub fn hand_over(&mut self, reply: ReadReply) -> Given {
        self.give(Input::Read(reply))
    }

    pub fn fail_reads(&mut self) -> Given {
        let mut all = Vec::new();
        for request in std::mem::take(&mut self.reads) {
            let refusal = Refusal::new(ErrorCode::Degraded, "no reads").retry_after(500);
            all.extend(self.give(Input::Read(ReadReply { token: request.token, result: Err(refusal) })).0);
        }
        Given(all)
    }

    pub fn verified(&mut self, claims: Result<Claims, Refusal>) -> Given {
        let (conn, token, _) = self.verifying.pop().expect("a token waits");
        self.give(Input::TokenVerified(conn, token, claims))
    }

    pub fn meshed(&mut self, message: MeshMessage) -> Given {
        self.give(Input::Mesh(message))
    }

    pub fn admin(&mut self, act: AdminAct) -> Given {
        self.admin_tokens += 1;
        self.give(Input::Admin(AdminRequest { token: Token(self.admin_tokens), act }))
    }

    /// Time passes; every deadline on the way is kept.
    pub fn passes(&mut self, ms: u64) -> Given {
        let until = self.now + ms;
        let mut all = Vec::new();
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            all.extend(self.give(Input::Tick).0);
        }
        self.now = until;
        Given(all)
    }

    pub fn give(&mut self, input: Input<'_>) -> Given {
        self.engine.handle(input, self.now);
        let mut outputs = Outputs::default();
        self.engine.drain_outputs(&mut outputs);
        let mut lines = Vec::new();
        for output in std::mem::take(&mut outputs.list) {
            self.note(output, &outputs, &mut lines);
        }
        if !self.holds_news && !self.news.is_empty() {
            lines.extend(self.answer_news(true).0);
        }
        Given(lines)
    }

    /// Commits, answers and hands parked frames in again until nothing waits.
    pub fn settle(&mut self) {
        self.settle_with(&[]).whatever();
    }

    /// The same, and what these connections got meanwhile.
    pub fn settle_with(&mut self, who: &[&str]) -> Given {
        let mut all = Vec::new();
        while !(self.appends.is_empty() && self.reads.is_empty() && self.again.is_empty()) {
            if !self.appends.is_empty() {
                all.extend(self.commit().only(who).0);
            }
            all.extend(self.answer().only(who).0);
            for conn in self.again.keys().cloned().collect::<Vec<_>>() {
                all.extend(self.comes_again(&conn).only(who).0);
            }
        }
        Given(all)
    }

    // --------------------------------------------------------------------------------------------
    // Out

    fn name(&self, key: ConnKey) -> &str {
        self.conns.iter().find(|(_, conn)| **conn == key).map_or("nobody", |(name, _)| name)
    }

    fn note(&mut self, output: Output, outputs: &Outputs, lines: &mut Vec<String>) {
        let line = match output {
            Output::Send { conn, class, frames } => self.sent(conn, class, &frames, outputs),
            Output::Fanout { targets, class, frames } => {
                for conn in &outputs.targets[targets.start as usize..targets.end as usize] {
                    lines.push(self.sent(*conn, class, &frames, outputs));
                }
                return;
            }
            Output::Ping(conn) => format!("{} ping", self.name(conn)),
            Output::Close { conn, code, reason } => {
                format!("{} close {} {}: {reason}", self.name(conn), code.number(), code.name())
            }
            Output::Park { conn, again } => format!("{} park{}", self.name(conn), if again { " again" } else { "" }),
            Output::Unpark(conn) => format!("{} unpark", self.name(conn)),
            Output::VerifyToken { conn, token, jwt } => {
                self.verifying.push((conn, token, jwt.to_string()));
                format!("verify {jwt}")
            }
            Output::Append(append) if matches!(append.entry, Entry::PresenceNews(_)) => {
                self.news.push(append);
                return;
            }
            Output::Append(append) => {
                let line = format!("append {}", entry_text(&append.entry));
                self.appends.push(append);
                line
            }
            Output::Read(request) => {
                let line = format!("read {}", query_text(&request.query));
                self.reads.push(request);
                line
            }
            Output::Mesh(message) => {
                let line = match &message {
                    MeshMessage::Ephemeral { room, frame, priority, .. } => {
                        format!("mesh {} {} {}", room.0, priority.as_str(), texts(frame).join(" "))
                    }
                    MeshMessage::Presence { mail, .. } => format!("mesh {}", mail_text(mail)),
                };
                self.mesh.push(message);
                line
            }
            Output::MeshTo(to, message) => {
                let MeshMessage::Presence { mail, .. } = &message else { panic!("only presence is for one shard") };
                let line = format!("mesh to {} {}", to.0, mail_text(mail));
                self.mesh.push(message);
                line
            }
            Output::AdminReply(token, result) => format!("admin {} {}", token.0, admin_text(&result)),
            Output::StatsReply { conn, fields, .. } => {
                let fields = &outputs.bytes[fields.start as usize..fields.end as usize];
                format!("{} stats {}", self.name(conn), String::from_utf8_lossy(fields))
            }
            Output::Note(_) => return,
        };
        lines.push(line);
    }

    fn sent(&self, conn: ConnKey, class: Class, frames: &Frames, outputs: &Outputs) -> String {
        let lane = match class {
            Class::Critical | Class::Reply { .. } => "!".to_owned(),
            Class::Normal => "=".to_owned(),
            Class::Low { .. } => "~".to_owned(),
            Class::Log { room, first, last, .. } | Class::CriticalLog { room, first, last } => {
                let name = self.log.kept.rooms[&room].name.as_str();
                let mark = if matches!(class, Class::CriticalLog { .. }) { "!" } else { "" };
                if first == last { format!("{name} {first}{mark}") } else { format!("{name} {first}..{last}{mark}") }
            }
        };
        format!("{} {lane} {}", self.name(conn), texts(frames.as_slice(&outputs.bytes)).join(" "))
    }
}

/// The payloads of unmasked text frames, random ids made plain, `hello` without the spaces that fill it up.
fn texts(mut frames: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while !frames.is_empty() {
        let (header, len) = match frames[1] {
            126 => (4, usize::from(u16::from_be_bytes([frames[2], frames[3]]))),
            127 => (10, u64::from_be_bytes(frames[2..10].try_into().unwrap()) as usize),
            short => (2, usize::from(short)),
        };
        let mut text = String::from_utf8(frames[header..header + len].to_vec()).unwrap();
        if text.starts_with(r#"{"type":"hello""#) {
            text.truncate(text.trim_end_matches(' ').len());
        }
        found.push(plain(plain(text, "\"trace\":\""), "\"session\":\""));
        frames = &frames[header + len..];
    }
    found
}

/// `text` with what follows each `key`, up to the next quote, made `*`.
fn plain(text: String, key: &str) -> String {
    let mut out = String::new();
    let mut parts = text.split(key);
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        out.push_str(key);
        out.push('*');
        out.push_str(&part[part.find('"').unwrap_or(0)..]);
    }
    out
}

fn mail_text(mail: &Mail) -> String {
    let named = |interest: &Interest| format!("{:?} {:?}", interest.users, interest.rooms);
    match mail {
        Mail::Watch { interest, is_all, .. } => {
            format!("watch{} {}", if *is_all { " only" } else { "" }, named(interest))
        }
        Mail::Unwatch(interest) => format!("unwatch {}", named(interest)),
        Mail::Cards { entries, counts, is_all, .. } => {
            let cards = entries.iter().map(|e| format!("{} {} {:?}", e.card.user, e.card.status.as_str(), e.rooms));
            let cards: Vec<String> = cards.collect();
            format!("cards{} {} {counts:?}", if *is_all { " all" } else { "" }, cards.join(", "))
        }
        Mail::Probe { .. } => "probe".to_owned(),
        Mail::AskInterest => "ask interest".to_owned(),
        Mail::Get { users, .. } => format!("get {users:?}"),
        Mail::Got { people, .. } => format!("got {people:?}"),
        Mail::Activity { room, frame, .. } => format!("activity {} {}", room.0, texts(frame).join(" ")),
    }
}

fn entry_text(entry: &Entry) -> String {
    match entry {
        Entry::Message(message) => {
            let audience = message.audience.as_ref().map_or(String::new(), |audience| format!(" {audience:?}"));
            let client_id = message.client_id.as_ref().map_or(String::new(), |id| format!(" as {id}"));
            format!("message of {} to {}{client_id}{audience}", message.author, message.room.0)
        }
        Entry::Repeat { room, author, client_id } => format!("repeat of {author} to {} as {client_id}", room.0),
        Entry::CreateRoom { room, kind, creator, members, .. } => {
            format!("create {room} {} by {creator} with {members:?}", kind.as_str())
        }
        Entry::Join { room, user, auto_create } => {
            format!("join {room} {user}{}", if *auto_create { " or create" } else { "" })
        }
        Entry::Leave { room, user } => format!("leave {room} {user}"),
        Entry::Manage { room, by, by_admin, user, act } => {
            format!("manage {room} {user} {act:?} by {by}{}", if *by_admin { " (admin)" } else { "" })
        }
        Entry::Read { room, user, seq } => format!("read mark {} {user} {seq}", room.0),
        Entry::Delivered { room, user, device, seq } => format!("delivered mark {} {user} {device} {seq}", room.0),
        Entry::Amend(amend) => {
            let admin = if amend.by_admin { " (admin)" } else { "" };
            format!("amend {} {} by {}{admin}: {:?}", amend.room.0, amend.target, amend.by, amend.act)
        }
        Entry::Revoke(revocation) => format!("revoke {revocation:?}"),
        Entry::Notify { item, by_admin } => {
            let by = if *by_admin { " (admin)" } else { "" };
            format!("notify {} {} {} {}{by}", item.user, item.priority.as_str(), item.name, item.data)
        }
        Entry::InboxAck { user, items } => format!("inbox ack {user} {items:?}"),
        Entry::InboxTried { user, items } => format!("inbox tried {user} {items:?}"),
        Entry::PresenceNews(news) => format!("news of presence {}", news.transitions.len()),
        Entry::InboxDead { user, items } => format!("inbox dead {user} {items:?}"),
        Entry::Dead(act) => format!("dead {act:?}"),
        Entry::Mend { room, witness } => format!("mend {} {}", room.0, witness.seq),
    }
}

fn query_text(query: &Query) -> String {
    match query {
        Query::User(user) => format!("user {user}"),
        Query::Room(room) => format!("room {room}"),
        Query::History { room, after, before, newest, limit, .. } => {
            let end = if *newest { "newest" } else { "oldest" };
            format!("history {} after {after} before {before} {end} {limit}", room.0)
        }
        Query::Members { room, limit, .. } => format!("members {} {limit}", room.0),
        Query::PresenceHistory(ask) => format!("presence of {} {}..{} {}", ask.user, ask.from, ask.to, ask.limit),
        Query::PresenceAnalytics { hours, .. } => format!("analytics of {hours}"),
        Query::Rooms { user, limit, .. } => format!("rooms {user} {limit}"),
        Query::Tallies(of) => {
            let of: Vec<String> = of.iter().map(|(room, seq)| format!("{}/{seq}", room.0)).collect();
            format!("tallies {}", of.join(" "))
        }
        Query::Audit { room, seq } => format!("audit {}/{seq}", room.0),
        Query::DeadLetters { after, limit, .. } => format!("dead after {after} {limit}"),
    }
}

fn admin_text(result: &Result<AdminAnswer, Refusal>) -> String {
    match result {
        Ok(AdminAnswer::Published { room, committed }) => format!("published {room} {}", committed.seq),
        Ok(AdminAnswer::Disconnected(count)) => format!("disconnected {count}"),
        Ok(AdminAnswer::Revoked) => "revoked".to_owned(),
        Ok(AdminAnswer::PresenceDevices(classes)) => format!("{classes:?}"),
        Ok(AdminAnswer::PresenceAnalytics(_)) => "analytics".to_owned(),
        Ok(AdminAnswer::Presence(count)) => format!("{count:?}"),
        Ok(AdminAnswer::Notified(item)) => format!("notified {item}"),
        Ok(AdminAnswer::Dead(committed)) => format!("dead {}", committed.seq),
        Ok(AdminAnswer::DeadLetters { letters, more }) => {
            let letters: Vec<_> = letters.iter().map(|letter| (letter.id, &*letter.payload)).collect();
            format!("letters {letters:?}{}", if *more { " and more" } else { "" })
        }
        Err(refusal) => format!("refused {}", refusal.code),
    }
}
