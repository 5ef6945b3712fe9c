//! What a client makes of what it hears: each entry is checked against the log, and each seq against
//! the one before.

use std::collections::BTreeMap;

use antiphon::protocol::ids::{Role, Seq};
use serde_json::Value;

use crate::checker::{Checker, Reader, text};
use crate::client::{Asked, Client, Listening, Scene, View};
use crate::log::EPOCH;
use crate::tally::ts_of;

impl Client {
    /// One frame from the server; returns what it says at once.
    pub fn hear(&mut self, json: &[u8], scene: &mut Scene<'_>) -> Vec<String> {
        let is_hello = json.starts_with(b"{\"type\":\"hello\"");
        assert!(is_hello != self.had_hello, "hello comes first and once: {}", text(json));
        let entries = [&b"{\"type\":\"message:"[..], b"{\"type\":\"room:", b"{\"type\":\"reaction:"];
        if entries.iter().any(|start| json.starts_with(start)) {
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
                if scene.is_final {
                    scene.checker.check_unread(&self.user, &value);
                    self.check_final_hello(&value, scene.checker);
                    return self.probe(scene.plan.rooms);
                }
                return self.resume(scene.now);
            }
            "ok" => self.hear_ok(&value, json, scene),
            "error" => self.hear_error(&value, scene),
            "gap" => self.hear_gap(&value, scene),
            "presence:changed" => self.presence.hear_changed(&value),
            "inbox:item" => self.inbox.hear_items(&value),
            "inbox:acked" => self.inbox.hear_cancelled(&value),
            "event" | "read:advanced" | "delivered:advanced" | "goaway" | "degraded" | "activity" => {}
            other => panic!("the protocol has no {other}"),
        }
        Vec::new()
    }

    /// Once all is quiet, hello lists exactly the rooms that the user is in, as they stand.
    fn check_final_hello(&self, value: &Value, checker: &Checker) {
        let listed: Vec<(&str, &str, Seq)> = value["rooms"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|room| (room["room"].as_str().unwrap(), room["role"].as_str().unwrap(), room["seq"].as_u64().unwrap()))
            .collect();
        let mut sorted = listed.clone();
        sorted.sort_unstable();
        let roles = checker.rooms.keys().map(|room| (room.as_str(), checker.role(room, &self.user)));
        let due: Vec<_> = roles
            .filter_map(|(room, role)| Some((room, role.filter(|role| role.is_member())?.as_str(), checker.head(room))))
            .collect();
        assert_eq!(sorted, due, "the rooms of {}", self.user);
    }

    fn hear_entry(&mut self, json: &[u8], scene: &mut Scene<'_>) {
        let (room, seq) = room_and_seq(json);
        let reader = Reader { user: &self.user, is_admin: self.is_admin };
        let from = scene.checker.check_entry(&reader, self.filter, room, seq, json, ("live", Seq::MAX));
        let ts = ts_of(json);
        for seq in from..=seq {
            self.hear_seq(room, seq, ts, scene);
        }
    }

    fn hear_seq(&mut self, room: &str, seq: Seq, ts: u64, scene: &mut Scene<'_>) {
        let number = self.number;
        let view = self.views.get_mut(room).unwrap_or_else(|| panic!("client {number} never asked for {room}"));
        assert!(
            !matches!(view.listening, Listening::Never),
            "client {number} got {room} {seq} live and never listened on this connection"
        );
        if seq <= view.live {
            assert!(view.resubscribed, "P2: client {number} got {room} {seq} again, live, after {}", view.live);
            view.learn(seq, ts);
            return;
        }
        assert!(seq == view.live + 1, "P4: client {number} got {room} {seq} after {}", view.live);
        assert!(view.listening != Listening::ShutOut, "P9: client {number} was shut out of {room} and got {seq}");
        view.live = seq;
        view.learn(seq, ts);
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
                let seqs: Vec<Seq> =
                    self.check_events(&room, json, scene, "history").into_iter().map(|(seq, _)| seq).collect();
                assert!(seqs.is_sorted(), "history ascends: {seqs:?}");
                if let (Some(after), Some(first)) = (after, seqs.first()) {
                    assert_eq!(*first, after + 1, "history after {after} begins right there");
                }
            }
            Asked::Read { room } => {
                scene.checker.note_read(&self.user, &room, value["seq"].as_u64().unwrap());
            }
            Asked::Amend { room, target } => {
                assert_eq!(value["room"], room);
                let (seq, version) = (value["seq"].as_u64().unwrap(), value["version"].as_u64().unwrap());
                scene.checker.check_amended(&self.user, &room, target, seq, version);
            }
            Asked::Hashes { rooms } => self.hear_hashes(&rooms, value, scene.checker),
            Asked::Choose { status } => self.presence.chosen = Some(status),
            Asked::WatchUsers { users } => self.presence.watch_users(users, value),
            Asked::UnwatchUsers { users } => self.presence.unwatch_users(users, value),
            Asked::WatchRoom { room } => self.presence.watch_room(&room, value),
            Asked::Probe { room } => {
                let due = scene.checker.role(&room, &self.user);
                let role = value["role"].as_str().and_then(Role::parse);
                assert_eq!(role, due, "the server takes {} for another in {room}", self.user);
                assert_eq!(value["seq"], scene.checker.head(&room), "the head of {room}");
            }
            Asked::Notify { user, name } => {
                scene.checker.inboxes.check_notified(&user, &name, value["item"].as_u64().unwrap());
            }
            Asked::AckItems { items } => {
                assert!(value["acked"].as_u64().unwrap() <= items.len() as u64);
                self.inbox.on_acked(&items);
            }
            Asked::ListItems { after } => {
                let ids: Vec<u64> =
                    value["items"].as_array().unwrap().iter().map(|item| item["item"].as_u64().unwrap()).collect();
                assert!(ids.is_sorted() && ids.first().is_none_or(|first| *first > after), "{ids:?} after {after}");
            }
            Asked::Other => {}
        }
    }

    fn listen(&mut self, room: &str, since: Option<Seq>, value: &Value, json: &[u8], scene: &mut Scene<'_>) {
        assert_eq!(value["epoch"], EPOCH);
        let head = value["seq"].as_u64().unwrap();
        let recovered = value["recovered"] == Value::Bool(true);
        let entries = self.check_events(room, json, scene, "resume");
        let seqs: Vec<Seq> = entries.iter().map(|(seq, _)| *seq).collect();
        let view = self.views.entry(room.to_owned()).or_insert_with(|| View {
            wanted: true,
            listening: Listening::Never,
            live: 0,
            resubscribed: false,
            cursor: None,
            have: BTreeMap::new(),
            hash: None,
        });
        assert!(head >= view.live, "the head of {room} was {} and is {head}", view.live);
        match since {
            Some(since) if recovered => {
                let due: Vec<Seq> = (since + 1..=head).collect();
                assert_eq!(seqs, due, "P4: a resume of {room} after {since} is whole");
                scene.checker.resumes += 1;
                entries.iter().for_each(|(seq, ts)| view.learn(*seq, *ts));
            }
            _ => {
                assert!(!recovered && seqs.is_empty(), "P4: nothing or everything is replayed");
                if view.cursor.is_none_or(|cursor| cursor < head) {
                    view.cursor = Some(head);
                    view.have.retain(|seq, _| *seq > head);
                    // The server tells the hash that belongs to a head; the truth will do.
                    view.hash = self.filter.is_none().then(|| scene.checker.hash(room, head));
                }
            }
        }
        view.resubscribed |= view.listening != Listening::Never;
        view.listening = Listening::On;
        view.wanted = true;
        view.live = head;
    }

    fn check_events(&mut self, room: &str, json: &[u8], scene: &mut Scene<'_>, how: &str) -> Vec<(Seq, u64)> {
        let reader = Reader { user: &self.user, is_admin: self.is_admin };
        let mut seqs = Vec::new();
        for event in events(json) {
            let (named, seq) = room_and_seq(event);
            assert_eq!(named, room);
            let filter = self.filter.filter(|_| how == "resume");
            let from = scene.checker.check_entry(&reader, filter, room, seq, event, (how, scene.fed_at));
            let ts = ts_of(event);
            seqs.extend((from..=seq).map(|seq| (seq, ts)));
        }
        seqs
    }

    fn hear_error(&mut self, value: &Value, scene: &Scene<'_>) {
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
        self.quiet_until = self.quiet_until.max(scene.now + retry_after_ms);
        match asked {
            Asked::Probe { room } => {
                let reader = Reader { user: &self.user, is_admin: self.is_admin };
                let is_due = match code {
                    102 => scene.checker.head(&room) == 0,
                    103 => !scene.checker.may_read_now(&reader, &room),
                    // Bounds are bounds.
                    106 | 111 | 113 => true,
                    _ => false,
                };
                assert!(is_due, "{} asks for {room} and hears {value}", self.user);
            }
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
