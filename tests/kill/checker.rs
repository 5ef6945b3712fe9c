//! Reads everything back, through the protocol and from the database file, and compares it with what
//! the actors sent, saw and were told.

use std::collections::HashMap;

use antiphon::store::schema::SCHEMA_VERSION;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::ROOMS;
use super::actor::{Actor, client_id, print_of, room_of};
use super::loader::Loaded;
use super::support::Server;

/// Sums over all actors.
#[derive(Default)]
pub struct Found {
    pub sent: u64,
    pub acked: u64,
    pub stored: u64,
    pub duplicates: u64,
    pub resumed: u64,
    pub told: u64,
    pub seen: u64,
}

/// One stored message.
struct Stored {
    room: usize,
    seq: u64,
}

/// Judges. Panics with the first promise that was not kept.
pub fn check(server: &Server, actors: &[Actor], loaded: &Loaded) -> Found {
    let histories: Vec<Vec<Value>> = (0..ROOMS.len()).map(|room| read_history(server, room)).collect();
    check_file(server, &histories, loaded);

    // One seq per author and client_id.
    let mut stored: HashMap<(String, String), Stored> = HashMap::new();
    for (room, history) in histories.iter().enumerate() {
        for event in history.iter().filter(|event| event["type"] == "message:created") {
            let author = event["author"].as_str().unwrap().to_owned();
            let id = event["client_id"].as_str().unwrap().to_owned();
            let seq = event["seq"].as_u64().unwrap();
            let before = stored.insert((author, id.clone()), Stored { room, seq });
            assert!(before.is_none(), "stored twice: {id} at {} and {seq}", before.unwrap().seq);
        }
    }

    let mut found = Found { stored: stored.len() as u64, ..Found::default() };
    for actor in actors {
        check_sender(actor, &stored);
        check_listener(actor, &histories);
        found.sent += actor.sent;
        found.acked += actor.acked.len() as u64;
        found.duplicates += actor.duplicates;
        found.resumed += actor.resumed;
        found.told += actor.told;
        found.seen += actor.rooms.iter().map(|seen| seen.prints.len() as u64).sum::<u64>();
    }
    // Every message was retried until it was acknowledged: nothing more and nothing less is stored.
    assert_eq!((found.sent, found.acked), (found.stored, found.stored));
    found
}

/// What was acknowledged is stored under that seq, and in the order in which it was sent.
fn check_sender(actor: &Actor, stored: &HashMap<(String, String), Stored>) {
    let user = Actor::user(actor.number);
    let mut last = [0; ROOMS.len()];
    for (at, (message, acked_seq)) in actor.acked.iter().enumerate() {
        assert_eq!(*message, at as u64, "acknowledged out of order");
        let key = (user.clone(), client_id(actor.number, *message));
        let Stored { room, seq } = stored.get(&key).unwrap_or_else(|| panic!("acknowledged and lost: {key:?}"));
        assert_eq!(seq, acked_seq, "{key:?} was acknowledged as another seq");
        assert_eq!(*room, room_of(actor.number, *message));
        assert!(*seq > last[*room], "{key:?} at {seq} came after {}", last[*room]);
        last[*room] = *seq;
    }
}

/// What was seen is what is stored, to the letter, from the join to the end.
fn check_listener(actor: &Actor, histories: &[Vec<Value>]) {
    for (room, (seen, history)) in actor.rooms.iter().zip(histories).enumerate() {
        assert_eq!(seen.last(), history.len() as u64, "actor {} did not see all of {}", actor.number, ROOMS[room]);
        for (print, event) in seen.prints.iter().zip(&history[seen.from as usize..]) {
            assert_eq!(*print, print_of(event), "actor {} saw something else than {event}", actor.number);
        }
    }
}

/// The whole history of a room; its seqs are dense from 1.
fn read_history(server: &Server, room: usize) -> Vec<Value> {
    let mut reader = server.client("checker");
    let mut history: Vec<Value> = Vec::new();
    loop {
        let after = history.len() as u64;
        let page = reader.ok(json!({"type": "message:history", "room": ROOMS[room], "after": after, "limit": 100}));
        for event in page["events"].as_array().unwrap() {
            assert_eq!(event["seq"], history.len() as u64 + 1, "a hole in {}", ROOMS[room]);
            history.push(event.clone());
        }
        if page["more"] == false {
            return history;
        }
    }
}

/// The same from the file, while the server runs.
fn check_file(server: &Server, histories: &[Vec<Value>], loaded: &Loaded) {
    let file = server.data_dir().join("antiphon.db");
    let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let version: u32 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, SCHEMA_VERSION);
    let integrity: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
    let (rows, first, last): (i64, i64, i64) = db
        .query_row("SELECT count(*), min(position), max(position) FROM log", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    assert_eq!((rows, first), (last, 1), "positions are dense");
    let sparse: i64 = db
        .query_row(
            "SELECT count(*) FROM (SELECT room FROM log GROUP BY room HAVING min(seq) <> 1 OR max(seq) <> count(*))",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(sparse, 0, "rooms with holes");
    let doubled: i64 = db
        .query_row(
            "SELECT count(*) FROM (SELECT 1 FROM log WHERE client_id IS NOT NULL GROUP BY author, client_id HAVING count(*) > 1)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(doubled, 0, "client_ids stored twice");
    let mut messages = db
        .prepare("SELECT count(*) FROM log JOIN rooms ON rooms.key = log.room WHERE rooms.name = ?1 AND log.kind = 1")
        .unwrap();
    for (room, share) in &loaded.rooms {
        let count: i64 = messages.query_row([room], |row| row.get(0)).unwrap();
        assert_eq!(count, *share as i64, "{room}");
    }
    let mut rows = db
        .prepare(
            "SELECT log.seq, log.author, log.client_id FROM log JOIN rooms ON rooms.key = log.room
             WHERE rooms.name = ?1 ORDER BY log.seq",
        )
        .unwrap();
    for (room, history) in ROOMS.iter().zip(histories) {
        let stored: Vec<(i64, Option<String>, Option<String>)> = rows
            .query_map([room], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(stored.len(), history.len(), "{room}");
        for ((seq, author, id), event) in stored.iter().zip(history) {
            assert_eq!(event["seq"], *seq);
            assert_eq!(event["author"].as_str(), author.as_deref());
            assert_eq!(event["client_id"].as_str(), id.as_deref());
        }
    }
}
