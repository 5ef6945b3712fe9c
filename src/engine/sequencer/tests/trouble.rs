//! Clocks that are set, batches that fail and are tried again, and rooms that are closed.

use super::*;
use crate::engine::consistency::Witness;
use crate::engine::inbox::{Bounds, NewItem};

const NO: &str = "the outcome is unknown";

impl World {
    /// Decides, and does not commit.
    fn fails(&mut self, entries: Vec<Entry>) {
        let appends = self.appends(entries);
        let decided = self.decide(appends);
        let _ = self.core.fail(decided, &Refusal::new(ErrorCode::Degraded, NO));
    }

    fn at(&mut self, wall: UnixMillis, steady: UnixMillis, entry: Entry) -> String {
        let appends = self.appends(vec![entry]);
        let Ok(decided) = self.core.decide(appends, Now { wall, steady }, &mut self.log);
        self.log.apply(&decided);
        answers(&self.core.commit(decided)).remove(0)
    }
}

fn notify(to: &str, ttl_ms: u64) -> Entry {
    let (name, data) = ("n".into(), "{}".into());
    let (priority, ttl_ms) = (Priority::Normal, Some(ttl_ms));
    let item = NewItem { user: user(to), name, data, priority, ttl_ms, from: None, covers: None };
    Entry::Notify { item, by_admin: true }
}

#[test]
fn a_clock_that_is_set_forward_or_back_forgets_no_pair() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice")]);
    let sent = || message(1, "alice", Some("k"), "x");
    assert_eq!(world.at(NOW, NOW, sent()), "1/2");
    let ten_minutes = 600_000;
    assert_eq!(world.at(NOW + ten_minutes, NOW + 200, sent()), "1/2 again", "set forward");
    assert_eq!(world.at(NOW - ten_minutes, NOW + 999, sent()), "1/2 again", "set back");
    assert_eq!(world.at(NOW - ten_minutes, NOW + 1_000, sent()), "1/3", "the window is over, whatever the clock says");
}

#[test]
fn a_batch_that_is_tried_again_is_counted_once() {
    let bounds = Bounds { items_max: 1, ..Bounds::default() };
    let mut world = World::with(SequencerConfig { inbox: bounds, ..config() });
    world.commit(vec![join("a", "alice"), message(1, "alice", Some("k"), "x"), notify("bob", 1)]);
    world.now += 10;
    // A duplicate, an item past its time, one thrown out.
    let entries = || vec![message(1, "alice", Some("k"), "x"), notify("bob", 99), notify("bob", 99)];
    world.fails(entries());
    assert_eq!((world.core.duplicates(), world.core.inbox_losses()), (0, (0, 0, 0)));
    world.commit(entries());
    assert_eq!((world.core.duplicates(), world.core.inbox_losses()), (1, (0, 1, 1)));
}

#[test]
fn a_room_that_was_found_well_opens_when_that_is_written() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice")]);
    let tally = world.log.tally(RoomKey(1), 1).unwrap();
    let mend = || Entry::Mend { room: RoomKey(1), witness: Witness { seq: 1, tally } };
    world.log.rows[0].seq = 7;
    assert_eq!(world.answer(mend()), "116 conflict");
    assert_eq!(world.answer(message(1, "alice", None, "x")), "117 degraded");
    world.log.rows[0].seq = 1;
    world.fails(vec![mend()]);
    assert_eq!(world.answer(message(1, "alice", None, "x")), "117 degraded", "nothing is known to be written");
    world.commit(vec![mend()]);
    assert_eq!(world.answer(message(1, "alice", None, "x")), "1/2");
}

#[test]
fn a_room_that_the_store_has_met_damaged_is_closed_for_a_while() {
    let mut world = World::new();
    world.commit(vec![join("a", "alice"), join("b", "alice")]);
    world.core.close_room(RoomKey(1));
    let both = || vec![message(1, "alice", None, "x"), message(2, "alice", None, "x")];
    assert_eq!(world.answers(both()), ["117 degraded", "2/2"]);
    world.now += 4_999;
    assert_eq!(world.answers(both()), ["117 degraded", "2/3"]);
    world.now += 1;
    assert_eq!(world.answers(both()), ["1/2", "2/4"]);
}

#[test]
fn an_administrator_in_doubt_needs_no_membership() {
    let mut world = World::new();
    world.commit(vec![create("den", RoomKind::Private, "alice", &["bob"]), manage("den", "alice", "bob", Manage::Ban)]);
    // After a start nothing is known of who lost what.
    world.core = Sequencer::new(config(), world.log.end());
    let says = |world: &mut World, author: &str, by_admin| {
        let Entry::Message(mut entry) = message(1, author, None, "x") else { unreachable!() };
        entry.by_admin = by_admin;
        let mut appends = world.appends(vec![Entry::Message(entry)]);
        appends[0].seen = 0;
        answers(&world.commit_appends(appends)).remove(0)
    };
    assert_eq!(says(&mut world, "root", true), "1/4");
    assert_eq!(says(&mut world, "root", false), "103 permission_denied");
    assert_eq!(says(&mut world, "bob", true), "103 permission_denied", "not where they are banned");
}

#[test]
fn what_is_over_is_looked_for_again_soon_while_there_is_more() {
    let mut world = World::new();
    world.commit((0..300).map(|_| notify("bob", 1)).collect());
    let mut left = |ms| {
        world.now += ms;
        world.commit(Vec::new());
        world.log.inbox.len()
    };
    assert_eq!((left(9_999), left(1), left(99), left(1)), (300, 44, 44, 0));
}
