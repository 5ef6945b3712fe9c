//! Clocks that are set, batches that fail and are tried again, and rooms that are closed.

use super::*;
use crate::engine::inbox::NewItem;

impl World {
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
