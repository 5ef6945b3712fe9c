//! What a full inbox costs its user's shard: a thousand items come, are delivered in order, and are acknowledged.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use antiphon::engine::event::{CommittedBatch, ConnKey, Input, StoreEvent};
use antiphon::engine::inbox::{EVENT_ITEMS_MAX, InboxChange, Item, ItemId, Removal};
use antiphon::protocol::ids::{Priority, UserId};

use common::Bench;
use common::table::Table;

const ITEMS: u64 = 1_000;

fn main() {
    common::main("inbox", &[put, deliver, ack]);
}

/// bob, and what waits for him.
struct Inbox {
    table: Table,
    bob: ConnKey,
    items: Vec<Arc<Item>>,
    /// What the core says next.
    batch: CommittedBatch,
}

impl Inbox {
    fn new() -> Self {
        let mut table = Table::new();
        let bob = table.opens("bob");
        let item = |id| Item {
            id,
            user: UserId::parse("bob").unwrap(),
            name: "poke".into(),
            data: r#"{"room":"room-17","text":"sixty-four bytes of what somebody wants bob to know"}"#.into(),
            // Every third is more urgent than those before it.
            priority: if id % 3 == 0 { Priority::Critical } else { Priority::Normal },
            ts: table.now,
            expires_ts: table.now * 2,
            attempts: 0,
            from: None,
            covers: None,
        };
        let items = (1..=ITEMS).map(|id| Arc::new(item(id))).collect();
        Self { table, bob, items, batch: CommittedBatch::default() }
    }

    fn prepare_put(&mut self) {
        let inbox = self.items.iter().cloned().map(InboxChange::Added).collect();
        self.batch = CommittedBatch { first: 1, inbox, ..CommittedBatch::default() };
    }

    fn prepare_removal(&mut self) {
        let items = (1..=ITEMS).collect();
        let removed = InboxChange::Removed { user: self.items[0].user.clone(), items, why: Removal::Acked };
        self.batch = CommittedBatch { first: 1, inbox: vec![removed], ..CommittedBatch::default() };
    }

    fn hears_batch(&mut self) {
        let batch = Arc::new(std::mem::take(&mut self.batch));
        self.table.give(Input::Store(StoreEvent::Batch(batch)));
    }

    /// bob acknowledges everything in as many commands as it came in, and the core says that it is gone.
    fn acks(&mut self, commands: &[String]) {
        commands.iter().for_each(|json| self.table.turn(self.bob, json));
        self.table.drain();
        self.table.collect();
        assert_eq!(self.table.appends.len(), commands.len());
        let CommittedBatch { inbox, .. } = std::mem::take(&mut self.batch);
        let answers = self.table.answers();
        self.batch = CommittedBatch { inbox, ..answers };
        self.hears_batch();
    }
}

fn put(bench: &mut Bench) {
    let prepare = |inbox: &mut Inbox| {
        inbox.prepare_removal();
        inbox.hears_batch();
        inbox.prepare_put();
    };
    bench.run_prepared(&format!("put {ITEMS}"), &mut Inbox::new(), prepare, Inbox::hears_batch);
}

/// Another device of bob's comes and gets everything.
fn deliver(bench: &mut Bench) {
    let mut inbox = Inbox::new();
    inbox.prepare_put();
    inbox.hears_batch();
    inbox.table.settle();
    let phone = ConnKey { slot: 7, generation: 1 };
    let prepare = |(inbox, phone): &mut (Inbox, ConnKey)| {
        inbox.table.give(Input::Closed(*phone));
        inbox.table.settle();
        phone.generation += 1;
    };
    bench.run_prepared(&format!("deliver {ITEMS}"), &mut (inbox, phone), prepare, |(inbox, phone)| {
        inbox.table.opens_as(*phone, "bob");
        assert!(inbox.table.outputs.list.len() > ITEMS as usize / EVENT_ITEMS_MAX);
    });
}

fn ack(bench: &mut Bench) {
    let ids: Vec<ItemId> = (1..=ITEMS).collect();
    let ack = |ids: &[ItemId]| format!(r#"{{"type":"inbox:ack","id":1,"items":{ids:?}}}"#);
    let commands: Vec<String> = ids.chunks(EVENT_ITEMS_MAX).map(ack).collect();
    let prepare = |inbox: &mut Inbox| {
        inbox.prepare_put();
        inbox.hears_batch();
        inbox.prepare_removal();
    };
    bench.run_prepared(&format!("ack {ITEMS}"), &mut Inbox::new(), prepare, |inbox| inbox.acks(&commands));
}
