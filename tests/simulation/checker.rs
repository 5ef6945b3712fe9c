//! What is true: the log, who may read what, and what was promised. Every check that finds a
//! promise broken panics with one sentence.

use std::collections::{BTreeMap, BTreeSet};

use antiphon::engine::event::{MembershipChange, Revocation, Viewer};
use antiphon::protocol::encode::{EventKind, hidden_event, hidden_events, json_string};
use antiphon::protocol::ids::{Position, Role, RoomKey, RoomKind, Seq, UserId};

use serde_json::Value;

use crate::inbox::Inboxes;
use crate::log::TestLog;

/// One entry of the log, as readers may see it.
pub struct Truth {
    pub position: Position,
    pub author: Option<UserId>,
    pub client_id: Option<Box<str>>,
    pub json: Vec<u8>,
    hidden: Vec<u8>,
    change: Option<Box<MembershipChange>>,
    audience: Option<std::sync::Arc<antiphon::engine::event::Audience>>,
}

/// What became of one message.
#[derive(Default)]
struct MessageTruth {
    /// Body of each version from 2 on; none: the tombstone.
    versions: Vec<Option<String>>,
    reactions: BTreeMap<String, BTreeSet<UserId>>,
}

pub struct RoomTruth {
    pub kind: RoomKind,
    pub entries: Vec<Truth>,
    /// Role of each user from a position on.
    roles: BTreeMap<UserId, Vec<(Position, Option<Role>)>>,
}

impl Truth {
    fn is_visible(&self, user: &UserId) -> bool {
        match (&self.audience, &self.author) {
            (Some(audience), Some(author)) => audience.admits(&Viewer::anywhere(user.as_str(), None), author.as_str()),
            _ => true,
        }
    }

    /// What a filter for this `k` says, by a parser of another make.
    fn is_wanted(&self, filter: u64) -> bool {
        let value: serde_json::Value = serde_json::from_slice(&self.json).expect("entries are JSON");
        value["type"] != "message:created" || value["meta"]["k"] == filter
    }
}

impl RoomTruth {
    fn allows(&self, reader: &Reader<'_>, role: Option<Role>) -> bool {
        match role {
            Some(role) => role.is_member(),
            None => reader.is_admin || self.kind == RoomKind::Public,
        }
    }

    pub fn head(&self) -> Seq {
        self.entries.len() as Seq
    }
}

/// Who looks.
pub struct Reader<'a> {
    pub user: &'a UserId,
    pub is_admin: bool,
}

/// How an entry came: `live` or in which answer, and how far the shard was when it was asked.
pub type How<'a> = (&'a str, Position);

#[derive(Default)]
pub struct Checker {
    pub rooms: BTreeMap<String, RoomTruth>,
    names: BTreeMap<RoomKey, String>,
    known: usize,
    sent: BTreeSet<(UserId, Box<str>)>,
    /// Read cursors that were acknowledged.
    reads: BTreeMap<(UserId, String), Seq>,
    pub acks: u64,
    pub events: u64,
    pub resumes: u64,
    pub gaps: u64,
    /// Entries that filters hid.
    pub hidden: u64,
    pub amended: u64,
    /// Unread messages that hellos counted, and hashes that clients compared.
    pub unread_counted: u64,
    pub hashes_compared: u64,
    pub inboxes: Inboxes,
    /// How each message stands, by room and seq: recomputed from the log's steps.
    messages: BTreeMap<(String, Seq), MessageTruth>,
}

impl Checker {
    /// Rows were written: positions and seqs are dense (the log asserts it), and no message twice.
    pub fn on_rows(&mut self, log: &TestLog, changes: Vec<Option<Box<MembershipChange>>>) {
        let rows = &log.kept.rows[self.known..];
        assert_eq!(rows.len(), changes.len(), "a batch is written whole");
        self.known = log.kept.rows.len();
        for (row, change) in rows.iter().zip(changes) {
            let kept = &log.kept.rooms[&row.room];
            let name = self.names.entry(row.room).or_insert_with(|| kept.name.as_str().to_owned());
            let room = self.rooms.entry(name.clone()).or_insert_with(|| RoomTruth {
                kind: kept.kind,
                entries: Vec::new(),
                roles: BTreeMap::new(),
            });
            if let (Some(author), Some(client_id)) = (&row.author, &row.client_id) {
                let is_new = self.sent.insert((author.clone(), client_id.clone()));
                assert!(is_new, "P3: {author} {client_id} stands in the log twice");
            }
            if let Some(change) = &change {
                room.roles.entry(change.user.clone()).or_default().push((row.position, change.role));
            }
            let mut hidden = Vec::new();
            hidden_event(&mut hidden, &antiphon::protocol::encode::room_json(&kept.name), row.seq, row.ts);
            assert_eq!(row.seq, room.head() + 1, "P2: seqs are dense");
            room.entries.push(Truth {
                position: row.position,
                author: row.author.clone(),
                client_id: row.client_id.clone(),
                json: log.json_of(row),
                hidden,
                change,
                audience: row.audience.clone(),
            });
            let name = name.clone();
            self.on_step(&name, row);
        }
    }

    /// An edit, a deletion or a reaction stands in the log: versions are dense, nothing follows a
    /// tombstone, and reactions are counted.
    fn on_step(&mut self, room: &str, row: &antiphon::engine::sequencer::memory::Stored) {
        let is_step = |kind| {
            use EventKind::{MessageDeleted, MessageUpdated, ReactionAdded, ReactionRemoved};
            matches!(kind, MessageUpdated | MessageDeleted | ReactionAdded | ReactionRemoved)
        };
        if !is_step(row.kind) {
            return;
        }
        let fields: Value = serde_json::from_str(&format!("{{{}}}", row.fields)).expect("fields are JSON");
        let target = fields["target"].as_u64().expect("steps name their target");
        let of = self.entry(room, target).unwrap_or_else(|| panic!("{room} {} is about nothing", row.seq));
        assert!(of.json.starts_with(b"{\"type\":\"message:created\""), "{room} {} is about no message", row.seq);
        let message = self.messages.entry((room.to_owned(), target)).or_default();
        assert!(message.versions.last() != Some(&None), "{room} {} changes a tombstone", row.seq);
        let author = row.author.clone().expect("steps have an author");
        match row.kind {
            EventKind::MessageUpdated | EventKind::MessageDeleted => {
                message.versions.push(fields["body"].as_str().map(str::to_owned));
                let version = message.versions.len() as u64 + 1;
                assert_eq!(fields["version"], version, "{room} {target}: each version has one winner");
            }
            _ => {
                let users = message.reactions.entry(fields["emoji"].as_str().unwrap().to_owned()).or_default();
                let is_change = match row.kind {
                    EventKind::ReactionAdded => users.insert(author),
                    _ => users.remove(&author),
                };
                assert!(is_change, "{room} {} says what is so already", row.seq);
                assert_eq!(fields["count"], users.len(), "{room} {target}: reactions are counted");
            }
        }
    }

    /// An edit, a deletion or a reaction was acknowledged: its entry stands there and is this user's.
    pub fn check_amended(&mut self, user: &UserId, room: &str, target: Seq, seq: Seq, version: u64) {
        self.amended += 1;
        let entry = self.entry(room, seq).unwrap_or_else(|| panic!("P1: {room} {seq} was acked and is not in the log"));
        let value: Value = serde_json::from_slice(&entry.json).unwrap();
        let is_it = entry.author.as_ref() == Some(user) && value["target"] == target && value["version"] == version;
        assert!(is_it, "P1: version {version} of {room} {target} was acked to {user}: {value}");
    }

    /// History may show a message as it stood at any time since: with the body of its version.
    fn is_as_it_stood(&self, room: &str, seq: Seq, due: &[u8], json: &[u8]) -> bool {
        let (Ok(mut due), Ok(mut is)) = (serde_json::from_slice::<Value>(due), serde_json::from_slice::<Value>(json))
        else {
            return false;
        };
        if due["type"] == "message:updated" {
            // Overtaken: without its body.
            return due.as_object_mut().is_some_and(|due| due.remove("body").is_some()) && due == is;
        }
        let Some(message) = self.messages.get(&(room.to_owned(), seq)) else { return false };
        let (Some(due), Some(is)) = (due.as_object_mut(), is.as_object_mut()) else { return false };
        is.remove("edited_ts");
        let reactions = is.remove("reactions");
        let version = is.remove("version").and_then(|version| version.as_u64()).unwrap_or(1);
        let body = match version {
            1 => due.get("body").and_then(Value::as_str).map(str::to_owned),
            _ => message.versions.get(version as usize - 2).cloned().flatten(),
        };
        let known = |emoji: &String| message.reactions.contains_key(emoji);
        let reacted = reactions.as_ref().is_none_or(|all| all.as_object().is_some_and(|all| all.keys().all(known)));
        if is.remove("deleted").is_some() {
            let kept = ["type", "room", "seq", "ts", "author", "client_id", "thread"];
            return body.is_none() && reactions.is_none() && is.keys().all(|key| kept.contains(&key.as_str()));
        }
        due.remove("body");
        is.remove("body").as_ref().and_then(Value::as_str).map(str::to_owned) == body && due == is && reacted
    }

    /// True when a message is a tombstone.
    pub fn is_deleted(&self, room: &str, seq: Seq) -> bool {
        let message = self.messages.get(&(room.to_owned(), seq));
        message.is_some_and(|message| message.versions.last() == Some(&None))
    }

    pub fn head(&self, room: &str) -> Seq {
        self.rooms.get(room).map_or(0, RoomTruth::head)
    }

    pub fn entry(&self, room: &str, seq: Seq) -> Option<&Truth> {
        self.rooms.get(room)?.entries.get((seq as usize).checked_sub(1)?)
    }

    /// The role of a user as the log ends now.
    pub fn role(&self, room: &str, user: &UserId) -> Option<Role> {
        self.rooms.get(room)?.roles.get(user)?.last()?.1
    }

    /// As the log ends now.
    pub fn may_read_now(&self, reader: &Reader<'_>, room: &str) -> bool {
        self.may_read_at_or_after(reader, room, Position::MAX)
    }

    /// True when there was a moment at which the reader could not read the room.
    pub fn was_shut_out(&self, reader: &Reader<'_>, room: &str) -> bool {
        let Some(room) = self.rooms.get(room) else { return true };
        let mut roles = room.roles.get(reader.user).into_iter().flatten().map(|(_, role)| *role);
        !room.allows(reader, None) || roles.any(|role| !room.allows(reader, role))
    }

    /// True when the reader may read the room at this place in the log, or at a later one.
    fn may_read_at_or_after(&self, reader: &Reader<'_>, room: &str, from: Position) -> bool {
        let Some(room) = self.rooms.get(room) else { return false };
        let allows = |role: Option<Role>| room.allows(reader, role);
        let changes = room.roles.get(reader.user).map_or(&[][..], Vec::as_slice);
        let before = changes.iter().rev().find(|(at, _)| *at <= from).and_then(|(_, role)| *role);
        allows(before) || changes.iter().any(|(at, role)| *at > from && allows(*role))
    }

    /// An entry came to a reader: it stands in the log with this content, and they may see it, or it
    /// stands in for what their filter hides. Returns the first seq that it tells of.
    ///
    /// `how`: live, or in which answer; and where the shard stood in the log when it was asked. A
    /// reader thread may be a moment ahead of it: the right is that of the shard's place.
    pub fn check_entry(
        &mut self,
        reader: &Reader<'_>,
        filter: Option<u64>,
        room: &str,
        seq: Seq,
        json: &[u8],
        how: How<'_>,
    ) -> Seq {
        let Some(filter) = filter else {
            self.check_plain(reader, room, seq, json, how);
            return seq;
        };
        let is_hidden = |checker: &Self, seq: Seq| {
            let entry = checker.entry(room, seq).unwrap_or_else(|| panic!("P1: {room} {seq} is not in the log"));
            !entry.is_visible(reader.user) || !entry.is_wanted(filter)
        };
        if !json.starts_with(b"{\"type\":\"message:hidden\"") {
            assert!(!is_hidden(self, seq), "the filter hides {room} {seq}: {}", text(json));
            self.check_plain(reader, room, seq, json, how);
            return seq;
        }
        let value: serde_json::Value = serde_json::from_slice(json).expect("the server says JSON");
        let from = value["from"].as_u64().unwrap_or(seq);
        assert!(
            (from..=seq).all(|seq| is_hidden(self, seq)),
            "the filter shows one of {room} {from}..{seq} ({})",
            how.0
        );
        let mut due = Vec::new();
        hidden_events(&mut due, &json_string(room), from, seq, value["ts"].as_u64().unwrap_or(0));
        assert_eq!(text(json), text(&due));
        self.events += 1;
        self.hidden += seq - from + 1;
        from
    }

    fn check_plain(&mut self, reader: &Reader<'_>, room: &str, seq: Seq, json: &[u8], how: How<'_>) {
        self.events += 1;
        let user = reader.user;
        let (how, asked_at) = how;
        let Some(entry) = self.entry(room, seq) else {
            panic!("P1: {user} was shown {room} {seq} ({how}), which the log has not: {}", text(json));
        };
        let sees = entry.is_visible(user);
        let due = if sees { &entry.json } else { &entry.hidden };
        assert!(
            json == &due[..]
                || (how == "history" && entry.is_visible(user) && self.is_as_it_stood(room, seq, due, json)),
            "P2: {user} was shown another {room} {seq} ({how}):\n is {}\n due {}",
            text(json),
            text(due)
        );
        assert!(
            self.may_read_at_or_after(reader, room, asked_at.min(entry.position - 1)),
            "P9: {user} was shown {room} {seq} ({how}) and had no right to it: {}",
            text(json)
        );
    }

    /// True when this entry ends the user's own membership.
    pub fn shuts_out(&self, room: &str, seq: Seq, user: &UserId) -> bool {
        let change = self.entry(room, seq).and_then(|entry| entry.change.as_deref());
        change.is_some_and(|change| change.user == *user && change.role.is_none_or(|role| !role.is_member()))
    }

    /// A message was acknowledged: it stands there, from this author, with this content.
    pub fn check_ack(&mut self, user: &UserId, client_id: &str, body: &str, room: &str, seq: Seq) {
        self.acks += 1;
        let entry = self.entry(room, seq).unwrap_or_else(|| panic!("P1: {room} {seq} was acked and is not in the log"));
        let is_it = entry.author.as_ref() == Some(user) && entry.client_id.as_deref() == Some(client_id);
        let json = text(&entry.json);
        assert!(is_it, "P1: the ack of {client_id} names another entry: {json}");
        assert!(json.contains(&format!("\"body\":\"{body}\"")), "P1: acked with another body: {json}");
    }

    pub fn note_read(&mut self, user: &UserId, room: &str, seq: Seq) {
        let read = self.reads.entry((user.clone(), room.to_owned())).or_default();
        *read = (*read).max(seq);
    }

    /// How far a user has read, by what was acknowledged.
    pub fn reads_of(&self, user: &UserId) -> BTreeMap<String, Seq> {
        let theirs = self.reads.iter().filter(|((reader, _), _)| reader == user);
        theirs.map(|((_, room), seq)| (room.clone(), *seq)).collect()
    }

    /// Who is a member now.
    pub fn members(&self, room: &str) -> Vec<UserId> {
        let roles = self.rooms.get(room).into_iter().flat_map(|room| &room.roles);
        let is_in = |changes: &[(Position, Option<Role>)]| {
            changes.last().and_then(|(_, role)| *role).is_some_and(|role| role.is_member())
        };
        roles.filter(|(_, changes)| is_in(changes)).map(|(user, _)| user.clone()).collect()
    }

    /// True when the user's membership began once and never changed.
    pub fn is_unbroken(&self, user: &UserId, room: &str) -> bool {
        self.rooms.get(room).and_then(|room| room.roles.get(user)).is_none_or(|changes| changes.len() == 1)
    }

    /// True when a token of this user that was issued then is no longer valid.
    pub fn is_revoked(revocations: &[Revocation], user: &UserId, issued_at: u64) -> bool {
        revocations.iter().any(|revocation| match revocation {
            Revocation::UserBefore(revoked, second) => revoked == user && issued_at <= *second,
            Revocation::Jti(_) | Revocation::JtiUntil(..) => false,
        })
    }
}

pub fn text(json: &[u8]) -> String {
    String::from_utf8_lossy(json).into_owned()
}
