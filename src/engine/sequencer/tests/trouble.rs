//! Clocks that are set, batches that fail and are tried again, and rooms that are closed.

use super::*;

impl World {}

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
