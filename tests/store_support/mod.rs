//! What the store's tests share: a data directory of their own, an ear that keeps what it hears, and
//! short ways to say an append or a question.
#![allow(dead_code, clippy::unwrap_used)]

pub mod older;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use antiphon::engine::auth::{Names, Rights};
use antiphon::engine::event::{
    Append, Committed, CommittedBatch, Entry, HistoryEntry, NewMessage, Outcome, Page, Query, ReadReply, ReadRequest,
    ShardId, StoreEvent, Token,
};
use antiphon::protocol::command::Manage;
use antiphon::protocol::error::Refusal;
use antiphon::protocol::ids::{Position, Priority, RoomKey, RoomKind, RoomName, UserId};
use antiphon::store::{LogListener, Origin, RoomLog, RunningLog, SqliteLog, StoreConfig};

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that goes away with the test.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("antiphon-store-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Ear {
    store: flume::Sender<StoreEvent>,
    read: flume::Sender<ReadReply>,
}

impl LogListener for Ear {
    fn on_store(&self, event: StoreEvent) {
        let _ = self.store.send(event);
    }

    fn on_read(&self, replies: Vec<ReadReply>) {
        replies.into_iter().for_each(|reply| drop(self.read.send(reply)));
    }
}

/// A running store with the ears of its shards.
pub struct Store {
    pub running: Option<RunningLog>,
    pub log: Arc<SqliteLog>,
    pub origin: Origin,
    pub ears: Vec<flume::Receiver<StoreEvent>>,
    pub replies: Vec<flume::Receiver<ReadReply>>,
    /// Position of the last entry that shard 0 heard of.
    pub heard: AtomicU64,
    next_token: AtomicU64,
}

pub fn config(dir: &TempDir) -> StoreConfig {
    let mut config = StoreConfig::new(dir.path());
    config.fatal = Arc::new(|text| panic!("fatal: {text}"));
    config
}

impl Store {
    pub fn open(config: &StoreConfig) -> Self {
        let (open, origin) = SqliteLog::open(config).unwrap();
        let (mut ears, mut replies, mut listeners) = (Vec::new(), Vec::new(), Vec::<Box<dyn LogListener>>::new());
        for _ in 0..config.sequencer.shards {
            let (store, ear) = flume::unbounded();
            let (read, reply) = flume::unbounded();
            listeners.push(Box::new(Ear { store, read }));
            ears.push(ear);
            replies.push(reply);
        }
        let running = open.start(listeners).unwrap();
        let log = running.log();
        let heard = AtomicU64::new(origin.position);
        Self { running: Some(running), log, origin, ears, replies, heard, next_token: AtomicU64::new(1) }
    }

    pub fn running(&self) -> &RunningLog {
        self.running.as_ref().unwrap()
    }

    pub fn stop(mut self) {
        self.running.take().unwrap().stop();
    }

    pub fn append(&self, entry: Entry) -> Append {
        let token = Token(self.next_token.fetch_add(1, Ordering::Relaxed));
        Append { shard: ShardId(0), token, seen: self.heard.load(Ordering::Relaxed), entry }
    }

    /// Submits without waiting.
    pub fn submit(&self, entries: Vec<Entry>) {
        let appends = entries.into_iter().map(|entry| self.append(entry)).collect();
        self.log.submit(appends).unwrap();
    }

    /// The next event of shard 0.
    pub fn event(&self) -> StoreEvent {
        let event = self.ears[0].recv_timeout(PATIENCE).expect("the store says something");
        if let StoreEvent::Batch(batch) = &event {
            assert_eq!(batch.first, self.heard.load(Ordering::Relaxed) + 1, "batches are contiguous");
            self.heard.store(batch.last, Ordering::Relaxed);
        }
        event
    }

    /// The next batch of shard 0; other events are skipped.
    pub fn batch(&self) -> Arc<CommittedBatch> {
        loop {
            if let StoreEvent::Batch(batch) = self.event() {
                return batch;
            }
        }
    }

    /// Submits one entry and waits for its answer.
    pub fn ask(&self, entry: Entry) -> Result<Committed, Refusal> {
        let append = self.append(entry);
        let token = append.token;
        self.log.submit(vec![append]).unwrap();
        loop {
            let batch = self.batch();
            if let Some(Outcome { result, .. }) =
                batch.outcomes.iter().take(1).flatten().find(|outcome| outcome.token == token)
            {
                return result.clone();
            }
        }
    }

    pub fn committed(&self, entry: Entry) -> Committed {
        self.ask(entry).expect("committed")
    }

    pub fn page(&self, query: Query) -> Page {
        self.read(query).expect("answered")
    }

    pub fn read(&self, query: Query) -> Result<Page, Refusal> {
        let token = Token(self.next_token.fetch_add(1, Ordering::Relaxed));
        self.log.read(vec![ReadRequest { shard: ShardId(0), token, query }]).unwrap();
        let reply = self.replies[0].recv_timeout(PATIENCE).expect("every question is answered");
        assert_eq!(reply.token, token);
        reply.result
    }

    /// Every entry of a room as it was said: their JSON back to back, and where each lies.
    pub fn every_entry(&self, room: RoomKey) -> (Vec<u8>, Vec<HistoryEntry>) {
        let all = Query::History {
            room,
            after: 0,
            before: u64::MAX,
            newest: false,
            thread: None,
            current: false,
            limit: 10_000,
            bytes_max: u32::MAX,
        };
        let Page::History { json, entries, .. } = self.page(all) else { panic!("history") };
        (json, entries)
    }

    /// The head of a room that is there, as a reader sees it.
    pub fn page_head(&self, name: &str) -> u64 {
        let Page::Room { room: Some(row), .. } = self.page(Query::Room(room(name))) else { panic!("no room {name}") };
        row.head
    }

    pub fn position(&self) -> Position {
        self.heard.load(Ordering::Relaxed)
    }
}

/// Waits until `holds`, and fails after a while.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

/// The names that a token covers: all of them, or those of `patterns`.
pub fn names(patterns: Option<&[&str]>) -> Vec<Names> {
    let rooms = patterns.map(|patterns| patterns.iter().map(|pattern| (Box::from(*pattern), false)).collect());
    Rights { admin: false, rooms }.names()
}

pub fn room(name: &str) -> RoomName {
    RoomName::parse(name).unwrap()
}

pub fn create(name: &str, kind: RoomKind, creator: &str, members: &[&str]) -> Entry {
    let members = members.iter().map(|name| user(name)).collect();
    Entry::CreateRoom { room: room(name), kind, title: None, creator: user(creator), members }
}

pub fn join(name: &str, who: &str) -> Entry {
    Entry::Join { room: room(name), user: user(who), auto_create: true }
}

pub fn leave(name: &str, who: &str) -> Entry {
    Entry::Leave { room: room(name), user: user(who) }
}

pub fn manage(name: &str, by: &str, whom: &str, act: Manage) -> Entry {
    Entry::Manage { room: room(name), by: user(by), by_admin: false, user: user(whom), act }
}

pub fn read(key: RoomKey, who: &str, seq: u64) -> Entry {
    Entry::Read { room: key, user: user(who), seq }
}

pub fn new_message(key: RoomKey, author: &str, client_id: Option<&str>, body: &str) -> NewMessage {
    NewMessage {
        room: key,
        author: user(author),
        by_admin: false,
        client_id: client_id.map(Into::into),
        fields: format!("\"body\":\"{body}\",\"trace\":\"00\"").into(),
        thread: None,
        audience: None,
        priority: Priority::Normal,
        mentions: Box::default(),
        reads: false,
    }
}

pub fn message(key: RoomKey, author: &str, client_id: Option<&str>, body: &str) -> Entry {
    Entry::Message(new_message(key, author, client_id, body))
}

/// `message` with a client id `n`.
pub fn numbered(key: RoomKey, author: &str, n: usize) -> Entry {
    message(key, author, Some(&format!("c{n}")), &format!("body {n}"))
}
