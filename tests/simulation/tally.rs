//! What clients and checker count by themselves: unread messages, and the rolling hash of what a client
//! saw, computed as the documentation tells it.

use antiphon::protocol::ids::{Seq, UserId};
use serde_json::Value;

use crate::checker::{Checker, Reader};
use crate::client::{Asked, Client, View};

/// `(hash ^ value) * K`, then the upper half over the lower one.
fn step(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

/// The hash after one more entry.
pub fn roll(hash: u64, seq: Seq, ts: u64) -> u64 {
    step(step(hash, seq), ts)
}

/// The `ts` of an entry; test rooms need no escapes.
pub fn ts_of(json: &[u8]) -> u64 {
    let json = std::str::from_utf8(json).expect("frames are UTF-8");
    let rest = json.split_once(",\"ts\":").expect("entries have a time").1;
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().expect("a number")
}

impl Checker {
    /// The hash of a room's entries up to `seq`.
    pub fn hash(&self, room: &str, seq: Seq) -> u64 {
        let start = room
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        (1..=seq).fold(start, |hash, seq| {
            let entry = self.entry(room, seq).expect("the entries up to the cursor are there");
            roll(hash, seq, ts_of(&entry.json))
        })
    }

    /// Messages behind a read cursor, tombstones left out.
    fn unread(&self, room: &str, read: Seq) -> u64 {
        let is_message = |seq: &Seq| {
            let entry = self.entry(room, *seq).expect("up to the head");
            entry.json.starts_with(b"{\"type\":\"message:created\"") && !self.is_deleted(room, *seq)
        };
        (read + 1..=self.head(room)).filter(is_message).count() as u64
    }

    /// Once all is quiet, hello counts what is unread.
    pub fn check_unread(&mut self, user: &UserId, hello: &Value) {
        for room in hello["rooms"].as_array().expect("hello lists rooms") {
            let (name, read) = (room["room"].as_str().unwrap(), room["read"].as_u64().unwrap());
            assert_eq!(room["unread"], self.unread(name, read), "what {user} has not read of {name}: {room}");
            assert!(room["delivered"].as_u64().unwrap() >= read, "what is read is delivered: {room}");
            self.unread_counted += room["unread"].as_u64().unwrap();
        }
    }
}

impl Client {
    /// Asks whether the server saw the same entries, for the rooms of which the hash is known.
    pub fn check_hashes(&mut self) -> Option<String> {
        let known = |(room, view): (&String, &View)| Some((room.clone(), view.cursor?, view.hash?));
        let rooms: Vec<(String, Seq, u64)> = self.views.iter().filter_map(known).take(32).collect();
        if rooms.is_empty() {
            return None;
        }
        let of = |(room, seq, hash): &(String, Seq, u64)| {
            format!("{{\"room\":\"{room}\",\"seq\":{seq},\"hash\":\"{hash:016x}\"}}")
        };
        let list: Vec<String> = rooms.iter().map(of).collect();
        Some(self.ask(Asked::Hashes { rooms }, &format!("\"type\":\"sync:check\",\"rooms\":[{}]", list.join(","))))
    }

    pub fn hear_hashes(&self, asked: &[(String, Seq, u64)], value: &Value, checker: &mut Checker) {
        let told = value["rooms"].as_array().expect("sync:check lists rooms");
        assert_eq!(told.len(), asked.len());
        for ((room, seq, hash), told) in asked.iter().zip(told) {
            assert_eq!(told["room"], *room);
            if told["state"] == "unknown" {
                let reader = Reader { user: &self.user, is_admin: self.is_admin };
                assert!(checker.was_shut_out(&reader, room), "client {} was always in {room}: {told}", self.number);
                continue;
            }
            let state = if told["seq"] == *seq { "ok" } else { "behind" };
            assert_eq!(told["state"], state, "client {} has {seq} of {room}: {told}", self.number);
            assert_eq!(told["hash"], format!("{hash:016x}"), "client {} has {seq} of {room}", self.number);
            checker.hashes_compared += 1;
        }
    }
}
