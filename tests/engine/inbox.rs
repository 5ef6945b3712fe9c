//! The inbox of a user: what puts items there, who gets them, when again, and what takes them away.

use antiphon::engine::dead::{DeadAct, DeadFilter};
use antiphon::engine::event::{AdminAct, Entry};
use antiphon::engine::inbox::{Bounds, Head, Held, NewItem};
use antiphon::protocol::ids::Priority;
use proptest::prelude::*;

use crate::harness::{Table, user};

fn item(to: &str, name: &str, priority: Priority) -> NewItem {
    NewItem { user: user(to), name: name.into(), data: "1".into(), priority, ttl_ms: None, from: None, covers: None }
}

impl Table {
    /// An item that is there before anybody looks.
    fn queued(&mut self, to: &str, name: &str, priority: Priority) {
        self.elsewhere(Entry::Notify { item: item(to, name, priority), by_admin: true });
        self.commit().whatever();
    }
}

#[test]
fn what_waits_comes_after_hello_most_urgent_first_and_an_ack_cancels_it() {
    let mut table = Table::new();
    table.queued("bob", "low", Priority::Low);
    table.queued("bob", "normal", Priority::Normal);
    table.queued("bob", "urgent", Priority::Critical);
    table.queued("carol", "hers", Priority::Normal);
    table.opens("b", "bob").whatever();
    let given = table.answer();
    assert!(given.has("\"inbox\":3}"), "{given:?}");
    let items = r#"{"type":"inbox:item","items":[{"item":3,"name":"urgent","data":1,"priority":"critical","ts":1000000,"expires_ts":605800000,"attempt":1},{"item":2,"name":"normal","data":1,"priority":"normal","ts":1000000,"expires_ts":605800000,"attempt":1},{"item":1,"name":"low","data":1,"priority":"low","ts":1000000,"expires_ts":605800000,"attempt":1}]}"#;
    assert!(given.has(&format!("b ! {items}")), "{given:?}");
    // A second device gets the same, and that is no further attempt.
    let given = table.opens("b2", "bob");
    assert!(given.has(&format!("b2 ! {items}")), "{given:?}");
    table.says("b", r#"{"type":"inbox:ack","id":1,"items":[3,1,4,99]}"#).gives("append inbox ack bob [3, 1, 4, 99]");
    table.commit().gives(
        r#"
        b ! {"type":"ok","id":1,"acked":2}
        b2 = {"type":"inbox:acked","items":[3,1,4,99]}
        "#,
    );
    assert_eq!(table.log.kept.inbox.keys().copied().collect::<Vec<_>>(), [2, 4], "carol's is hers");
    table.says("b2", r#"{"type":"inbox:list","id":2}"#).gives(
        r#"b2 ! {"type":"ok","id":2,"items":[{"item":2,"name":"normal","data":1,"priority":"normal","ts":1000000,"expires_ts":605800000,"attempt":1}]}"#,
    );
    table.says("b2", r#"{"type":"inbox:list","id":3,"after":2}"#).gives(r#"b2 ! {"type":"ok","id":3,"items":[]}"#);
    // Only what is left is sent again.
    let again = table.passes(1_500);
    assert!(again.has("b2 = ") && again.has(r#""item":2"#) && !again.has(r#""item":3"#), "{again:?}");
    assert!(again.has("append inbox tried bob [2]"), "{again:?}");
}

#[test]
fn notify_needs_a_shared_room_and_reaches_who_is_there() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table
        .says("a", r#"{"type":"notify","id":1,"user":"bob","name":"poke","data":{"x":1},"ttl_ms":5000}"#)
        .gives(r#"append notify bob normal poke {"x":1}"#);
    table.commit().gives(r#"a ! {"type":"error","id":1,"code":103,"error":"permission_denied","message":"you share no room with this user","temporary":false,"retry_after_ms":0}"#);
    table.joins("b", "general");
    table.says("a", r#"{"type":"notify","id":2,"user":"bob","name":"poke","data":{"x":1},"ttl_ms":5000}"#).whatever();
    table.commit().gives(
        r#"
        b = {"type":"inbox:item","items":[{"item":1,"name":"poke","data":{"x":1},"priority":"normal","ts":1000000,"expires_ts":1005000,"attempt":1,"from":"alice"}]}
        a ! {"type":"ok","id":2,"item":1}
        "#,
    );
    // Without an answer it comes again after a second, and is gone after its time.
    assert!(table.passes(1_300).has(r#""attempt":2"#));
    table.settle();
    assert!(!table.passes(10_000).has(r#""attempt":4"#), "it expires after five seconds");
    table.says("b", r#"{"type":"inbox:list","id":3}"#).gives(r#"b ! {"type":"ok","id":3,"items":[]}"#);
    for bad in [
        r#"{"type":"notify","id":1,"user":"b b","name":"n","data":1}"#,
        r#"{"type":"notify","id":1,"user":"bob","name":"","data":1}"#,
        r#"{"type":"notify","id":1,"user":"bob","name":"n"}"#,
        r#"{"type":"notify","id":1,"user":"bob","name":"n","data":1,"ttl_ms":0}"#,
        r#"{"type":"inbox:ack","id":1,"items":[]}"#,
        r#"{"type":"inbox:ack","id":1,"items":["x"]}"#,
        r#"{"type":"inbox:list","id":1,"limit":101}"#,
    ] {
        assert!(table.says("a", bad).has("\"code\":107"), "{bad}");
    }
}

#[test]
fn a_full_inbox_refuses_what_is_less_urgent_and_throws_out_the_oldest_of_the_rest() {
    let inbox = Bounds { items_max: 2, ..Bounds::default() };
    let mut table = Table::with_inbox(inbox);
    let notify = |priority| AdminAct::Notify(Box::new(item("bob", "n", priority)));
    let mut answers = Vec::new();
    for priority in [Priority::Normal, Priority::Critical, Priority::Low, Priority::Normal, Priority::Critical] {
        table.admin(notify(priority)).whatever();
        answers.push(table.commit());
    }
    assert!(answers[2].has("admin 3 refused 115 inbox_full"), "{answers:?}");
    assert!(answers[4].has("admin 5 notified 4"), "{answers:?}");
    assert_eq!(table.log.kept.inbox.keys().copied().collect::<Vec<_>>(), [2, 4]);
    table.admin(notify(Priority::Normal)).whatever();
    table.commit().gives("admin 6 refused 115 inbox_full");
}

#[test]
fn mentions_invitations_and_direct_messages_wait_for_who_does_not_listen() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.has("b", "bob");
    table.joins("a", "general");
    table.joins("b", "general");
    // Bob listens: he hears the message, and the item is taken away at once.
    table
        .says("a", r#"{"type":"message:send","room":"general","body":"hi","mentions":["bob","dave","alice"]}"#)
        .whatever();
    let given = table.commit();
    assert!(!given.has("inbox:item") && given.has("append inbox ack bob [1]"), "{given:?}");
    table.settle();
    assert!(table.log.kept.inbox.is_empty(), "nobody but members, and not the author");
    // He does not listen any more: now it is delivered, until he reads the room.
    table.says("b", r#"{"type":"room:unsubscribe","room":"general"}"#).whatever();
    table.says("a", r#"{"type":"message:send","room":"general","body":"hi","mentions":["bob"]}"#).whatever();
    let given = table.commit();
    assert!(
        given.has(r#"b = {"type":"inbox:item","items":[{"item":2,"name":"mention","data":{"room":"general","seq":4,"by":"alice"},"#),
        "{given:?}"
    );
    table.says("b", r#"{"type":"message:read","room":"general","seq":4}"#).whatever();
    table.settle();
    assert!(table.log.kept.inbox.is_empty());
    // A direct room: everybody else in it, offline or not; who may not see the message gets nothing.
    table.says("a", r#"{"type":"room:create","room":"dm","kind":"direct","members":["bob","carol"]}"#).whatever();
    table.settle();
    table.says("a", r#"{"type":"message:send","room":"dm","body":"psst","exclude":["bob"]}"#).whatever();
    table.settle();
    table.says("a", r#"{"type":"room:create","room":"den","kind":"private"}"#).whatever();
    table.settle();
    table.says("a", r#"{"type":"room:invite","room":"den","user":"carol"}"#).whatever();
    table.settle();
    let waits: Vec<String> =
        table.log.kept.inbox.values().map(|item| format!("{} {} {}", item.user, item.name, item.data)).collect();
    assert_eq!(
        waits,
        [
            r#"carol direct {"room":"dm","seq":4,"by":"alice"}"#,
            r#"carol invitation {"room":"den","seq":2,"by":"alice"}"#
        ]
    );
}

#[test]
fn what_nobody_acknowledges_becomes_a_dead_letter() {
    let mut table = Table::new();
    table.queued("bob", "n", Priority::Normal);
    table.has("b", "bob");
    let mut sent = 1;
    for _ in 0..1_000 {
        table.is_heard("b");
        let given = table.passes(1_000);
        sent += u32::from(given.has("inbox:item"));
        table.settle();
    }
    assert_eq!(sent, 10);
    assert!(table.log.kept.inbox.is_empty());
    let dead: Vec<_> = table.log.kept.dead.values().map(|item| (item.id, item.attempts)).collect();
    assert_eq!(dead, [(1, 9)], "nine retries are on record");
    let stats = table.engine.stats();
    assert_eq!((stats.inbox_sent, stats.inbox_retries, stats.inbox_dead), (10, 9, 1));
    table.admin(AdminAct::DeadLetters { filter: DeadFilter::default(), after: 0, limit: 9 }).gives(
        r#"
        read dead after 0 9
        "#,
    );
    table.answer().gives(
        r#"
        admin 1 letters [(1, "{\"what\":\"item\",\"name\":\"n\",\"data\":1,\"priority\":\"normal\"}")]
        "#,
    );
    // Replayed once: it waits again, under a new number.
    table.admin(AdminAct::Dead(DeadAct::Replay(1))).whatever();
    table.admin(AdminAct::Dead(DeadAct::Replay(1))).whatever();
    let given = table.commit();
    assert!(given.has("admin 2 dead 2") && given.has("admin 3 refused 110 not_found"), "{given:?}");
    assert!(given.has("\"item\":2,\"name\":\"n\""), "{given:?}");
    assert!(table.log.kept.letters.is_empty());
    table.admin(AdminAct::Dead(DeadAct::Purge(DeadFilter::default()))).whatever();
    assert!(table.commit().has("admin 4 dead 0"));
    assert_eq!((table.engine.stats().dead_replayed, table.engine.stats().dead_purged), (1, 0));
}

#[test]
fn changes_while_the_user_is_read_are_not_lost() {
    let mut table = Table::new();
    table.queued("bob", "first", Priority::Normal);
    table.queued("bob", "second", Priority::Normal);
    table.opens("b", "bob").whatever();
    // The snapshot has both. Before it is handed over, one goes and one comes.
    let page = table.read_one();
    table.elsewhere(Entry::InboxAck { user: user("bob"), items: [1].into() });
    table.elsewhere(Entry::Notify { item: item("bob", "third", Priority::Normal), by_admin: true });
    table.commit().gives_nothing();
    let given = table.hand_over(page);
    assert!(given.has("\"inbox\":2}") && given.has(r#"[{"item":2,"#) && given.has(r#"{"item":3,"#), "{given:?}");
}

#[test]
fn a_thousand_items_come_in_order_in_events_of_fifty() {
    let mut table = Table::new();
    let priorities = [Priority::Low, Priority::Normal, Priority::Critical];
    for number in 0..1_000 {
        table.elsewhere(Entry::Notify { item: item("bob", "n", priorities[number % 3]), by_admin: true });
    }
    table.commit().whatever();
    table.opens("b", "bob").whatever();
    let lines = table.answer().lines("inbox:item");
    assert_eq!(lines.len(), 20);
    let mut seen = Vec::new();
    for line in lines {
        let json: serde_json::Value = serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap();
        let items = json["items"].as_array().unwrap();
        assert_eq!(items.len(), 50);
        seen.extend(items.iter().map(|item| {
            let priority = Priority::parse(item["priority"].as_str().unwrap()).unwrap();
            (priority, item["item"].as_u64().unwrap())
        }));
    }
    assert_eq!(seen.len(), 1_000);
    assert!(seen.is_sorted(), "most urgent first, oldest first");
}

// ------------------------------------------------------------------------------------------------
// The bounds against a naive model: a list that is sorted each time.

#[derive(Debug, Clone)]
enum Step {
    Add { priority: Priority, bytes: u32, ttl: u64 },
    Ack(u64),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let priority = prop_oneof![Just(Priority::Critical), Just(Priority::Normal), Just(Priority::Low)];
    prop_oneof![
        6 => (priority, 1u32..60, 1u64..200).prop_map(|(priority, bytes, ttl)| Step::Add { priority, bytes, ttl }),
        2 => (1u64..60).prop_map(Step::Ack),
        1 => (1u64..100).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn the_bounds_hold_as_in_the_model(steps in prop::collection::vec(step(), 1..80)) {
        let bounds = Bounds { items_max: 5, bytes_max: 150, ttl_ms: 100 };
        let (mut held, mut model): (Held, Vec<Head>) = (Held::default(), Vec::new());
        let (mut id, mut now) = (0, 0);
        for step in steps {
            match step {
                Step::Pass(ms) => now += ms,
                Step::Ack(id) => {
                    let was = model.iter().position(|head| head.id == id).map(|at| model.remove(at)).is_some();
                    prop_assert_eq!(held.remove(id), was);
                }
                Step::Add { priority, bytes, ttl } => {
                    id += 1;
                    let full = |list: &[Head]| {
                        list.len() as u32 + 1 > bounds.items_max
                            || list.iter().map(|head| head.bytes).sum::<u32>() + bytes > bounds.bytes_max
                    };
                    if full(&model) {
                        model.retain(|head| head.expires_ts > now);
                    }
                    let mut left = model.clone();
                    while full(&left) {
                        let Some(at) = (0..left.len())
                            .filter(|at| left[*at].priority >= priority)
                            .max_by_key(|at| (left[*at].priority, u64::MAX - left[*at].id)) else { break };
                        left.remove(at);
                    }
                    let fits = !full(&left);
                    let head = Head { id, priority, bytes, expires_ts: now + ttl };
                    if fits {
                        model = left;
                        model.push(head);
                    }
                    held.expire_for(bytes, &bounds, now);
                    let room = held.make_room(bytes, priority, &bounds);
                    prop_assert_eq!(room.is_ok(), fits);
                    if fits {
                        held.insert(head);
                    }
                }
            }
            prop_assert_eq!(&held, &Held::of(model.iter().copied()));
            prop_assert!(held.len() <= 5 && held.bytes() <= 150);
        }
    }
}

#[test]
fn a_mention_that_no_listening_device_is_shown_waits() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "general");
    table.opens_with("b", "laptop-1", table.claims("bob")).whatever();
    table.answer().whatever();
    table.joins("b", "general");
    let say =
        |more: &str| format!(r#"{{"type":"message:send","room":"general","body":"x","mentions":["bob"],{more}}}"#);
    // Shown: nothing waits.
    table.says("a", &say(r#""only_devices":["laptop"]"#)).whatever();
    table.settle();
    assert!(table.log.kept.inbox.is_empty());
    // For another device of bob's.
    table.says("a", &say(r#""only_devices":["phone"]"#)).whatever();
    assert!(table.commit().has(r#"b = {"type":"inbox:item""#));
    table.settle();
    assert_eq!(table.log.kept.inbox.len(), 1);
    // Against bob's filter.
    let filter = r#"{"type":"room:subscribe","room":"general","filter":{"field":"lang","eq":"de"}}"#;
    table.says("b", filter).whatever();
    table.says("a", &say(r#""meta":{"lang":"fr"}"#)).whatever();
    assert!(table.commit().has(r#"b = {"type":"inbox:item""#));
    table.says("a", &say(r#""meta":{"lang":"de"}"#)).whatever();
    table.settle();
    assert_eq!(table.log.kept.inbox.len(), 2);
}

#[test]
fn what_goes_away_by_itself_is_taken_from_every_device() {
    let mut table = Table::with_inbox(Bounds { items_max: 2, ..Bounds::default() });
    table.has("a", "alice");
    table.has("b", "bob");
    table.has("b2", "bob");
    table.joins("a", "general");
    table.joins("b", "general");
    table.says("b", r#"{"type":"room:unsubscribe","room":"general"}"#).whatever();
    table.says("a", r#"{"type":"message:send","room":"general","body":"hi","mentions":["bob"]}"#).whatever();
    let given = table.commit();
    assert!(given.has(r#"b2 = {"type":"inbox:item","items":[{"item":1,"#), "{given:?}");
    // Read on one device.
    table.says("b", r#"{"type":"message:read","room":"general","seq":3}"#).whatever();
    table.settle_with(&["b", "b2"]).gives(
        r#"
        b = {"type":"inbox:acked","items":[1]}
        b2 = {"type":"inbox:acked","items":[1]}
        "#,
    );
    // Thrown out of a full inbox: only what was sent is taken away.
    for name in ["two", "three", "four", "five"] {
        table.elsewhere(Entry::Notify { item: item("bob", name, Priority::Normal), by_admin: true });
    }
    assert!(table.commit().only(&["b2"]).lines("acked").is_empty());
    table.elsewhere(Entry::Notify { item: item("bob", "six", Priority::Normal), by_admin: true });
    assert_eq!(table.commit().only(&["b2"]).lines("acked"), [r#"b2 = {"type":"inbox:acked","items":[4]}"#]);
    // A device that is gone before it is told has acknowledged for the others all the same.
    table.says("b", r#"{"type":"inbox:ack","items":[5]}"#).whatever();
    table.closes("b").whatever();
    assert_eq!(table.commit().only(&["b2"]).0, [r#"b2 = {"type":"inbox:acked","items":[5]}"#]);
}

#[test]
fn hello_counts_nothing_that_has_expired() {
    let mut table = Table::new();
    table.has("b", "bob");
    let item = NewItem { ttl_ms: Some(1_000), ..item("bob", "n", Priority::Normal) };
    table.elsewhere(Entry::Notify { item, by_admin: true });
    table.commit().whatever();
    table.closes("b").whatever();
    table.passes(1_500).whatever();
    let given = table.opens("b2", "bob");
    assert!(given.has(r#""inbox":0}"#) && !given.has("inbox:item"), "{given:?}");
    assert_eq!(table.engine.stats().inbox_expired, 1);
}
