//! One shard's engine with its log in memory, driven as the shard's thread drives it: no sockets, no disk.

use std::sync::Arc;

use antiphon::engine::event::{
    Append, Claims, Committed, CommittedBatch, ConnKey, Input, Opening, Outcome, Output, Outputs, ReadReply,
    ReadRequest, StoreEvent,
};
use antiphon::engine::limits::Limits;
use antiphon::engine::sequencer::SequencerConfig;
use antiphon::engine::shard::Shard;
use antiphon::protocol::ids::{DeviceId, RoomKey, UserId};
use antiphon::protocol::parse::Parser;

use self::log::TestLog;

#[path = "../../tests/support/log.rs"]
mod log;

/// When tables are laid: milliseconds since the epoch.
const DAWN: u64 = 1_800_000_000_000;

/// A shard, its log, and what waits between them.
pub struct Table {
    pub engine: Shard,
    pub log: TestLog,
    pub now: u64,
    /// Of the last input, until [`Table::settle`] or [`Table::clear`].
    pub outputs: Outputs,
    pub appends: Vec<Append>,
    reads: Vec<ReadRequest>,
    parser: Parser,
    slots: u32,
    parks_again: bool,
}

impl Table {
    /// Nobody is cut off for rates, silence or idleness: rounds may be many, and time stands still.
    pub fn new() -> Self {
        let limits = Limits {
            rates_on: false,
            consistency_rooms_per_s: 0,
            heartbeat_ms: u32::MAX,
            idle_after_ms: u32::MAX,
            ..Limits::default()
        };
        let log = TestLog::new(SequencerConfig { seed: 1, ..SequencerConfig::default() });
        let engine = Shard::new(log.genesis(0, 1), Arc::new(limits), DAWN);
        Self {
            engine,
            log,
            now: DAWN,
            outputs: Outputs::default(),
            appends: Vec::new(),
            reads: Vec::new(),
            parser: Parser::new(16 * 1024),
            slots: 0,
            parks_again: false,
        }
    }

    /// A connection of this user, greeted.
    pub fn opens(&mut self, name: &str) -> ConnKey {
        let conn = ConnKey { slot: self.slots, generation: 1 };
        self.slots += 1;
        self.opens_as(conn, name);
        self.settle();
        conn
    }

    /// The same with a key of one's own, and what comes out left in `outputs`.
    pub fn opens_as(&mut self, conn: ConnKey, name: &str) {
        let user = UserId::parse(name).unwrap();
        let claims = Claims { user, expires_at: self.now * 2, issued_at: None, jti: None, admin: false, rooms: None };
        let device = DeviceId::parse(&format!("d{}", conn.slot)).unwrap();
        self.give(Input::Opened(conn, Opening { claims, device, batch: false }));
    }

    /// So many users, each with a connection, in one room.
    pub fn crowd(&mut self, count: usize, room: &str) -> Vec<ConnKey> {
        let join = format!(r#"{{"type":"room:join","id":0,"room":"{room}"}}"#);
        let conns: Vec<ConnKey> = (0..count).map(|n| self.opens(&format!("user-{n}"))).collect();
        conns.iter().for_each(|conn| self.says(*conn, &join));
        conns
    }

    /// A frame, and all that follows from it.
    pub fn says(&mut self, conn: ConnKey, json: &str) {
        loop {
            self.turn(conn, json);
            self.settle();
            if !std::mem::take(&mut self.parks_again) {
                return;
            }
        }
    }

    /// A frame: what comes out of it is in `outputs`.
    pub fn turn(&mut self, conn: ConnKey, json: &str) {
        let request = self.parser.parse(json.as_bytes()).expect("a good frame");
        self.engine.handle(Input::Frame(conn, &request), self.now);
    }

    /// Any other input, and what comes out.
    pub fn give(&mut self, input: Input<'_>) {
        self.engine.handle(input, self.now);
        self.drain();
    }

    pub fn drain(&mut self) {
        self.outputs.clear();
        self.engine.drain_outputs(&mut self.outputs);
    }

    /// Takes the appends and questions out of `outputs`, and forgets the rest.
    pub fn collect(&mut self) {
        for output in self.outputs.list.drain(..) {
            match output {
                Output::Append(append) => self.appends.push(append),
                Output::Read(read) => self.reads.push(read),
                Output::Park { again: true, .. } => self.parks_again = true,
                _ => {}
            }
        }
        self.outputs.clear();
    }

    /// Commits and answers until nothing waits.
    pub fn settle(&mut self) {
        loop {
            if self.outputs.list.is_empty() {
                self.drain();
            }
            self.collect();
            if !self.appends.is_empty() {
                let batch = self.commits();
                self.give(Input::Store(StoreEvent::Batch(batch)));
            } else if let Some(ReadRequest { token, query, .. }) = self.reads.pop() {
                let reply = ReadReply { token, result: Ok(self.log.answer(&query)) };
                self.give(Input::Read(reply));
            } else {
                return;
            }
        }
    }

    /// The appends that wait, as one committed batch that the shard has not heard of.
    pub fn commits(&mut self) -> Arc<CommittedBatch> {
        let decided = self.log.decide(std::mem::take(&mut self.appends), self.now);
        self.log.commit(decided)
    }

    /// The core's answers to the appends that wait, as if each stood in the log: the log does not grow.
    pub fn answers(&mut self) -> CommittedBatch {
        let committed = Committed { room: RoomKey(1), seq: 1, ts: self.now, duplicate: false, value: 0 };
        let outcome = |append: Append| Outcome { token: append.token, result: Ok(committed) };
        let outcomes = vec![self.appends.drain(..).map(outcome).collect()];
        CommittedBatch { first: 1, outcomes, ..CommittedBatch::default() }
    }
}
