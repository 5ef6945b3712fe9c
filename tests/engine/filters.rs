//! Subscriptions with a filter: what they see, what stands in for the rest, and what resumes say.

use antiphon::engine::limits::Limits;
use antiphon::protocol::command::Command;
use antiphon::protocol::ids::Priority;
use antiphon::protocol::parse::Parser;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::harness::Table;

/// Alice and bob are members of `general` and listen, bob with this filter. Their joins are 1 and 2.
fn with_filter(filter: &str) -> Table {
    let mut table = Table::with(Limits::default());
    table.has("a", "alice");
    table.joins("a", "general");
    table.has("b", "bob");
    table.says("b", &format!(r#"{{"type":"room:join","id":0,"room":"general","filter":{filter}}}"#)).whatever();
    table.settle();
    table
}

fn sends(table: &mut Table, body: &str, meta: &str) {
    table.says("a", &format!(r#"{{"type":"message:send","room":"general","body":"{body}","meta":{meta}}}"#)).whatever();
}

#[test]
fn hidden_neighbours_share_a_stand_in_and_seqs_stay_dense() {
    let mut table = with_filter(r#"{"all":[{"field":"lang","in":["de","en"]},{"field":"level","gte":3}]}"#);
    sends(&mut table, "1", r#"{"lang":"fr","level":9}"#);
    sends(&mut table, "2", r#"{"lang":"de","level":2}"#);
    sends(&mut table, "3", r#"{"lang":"de","level":3}"#);
    table.says("a", r#"{"type":"message:send","room":"general","body":"4"}"#).whatever();
    table.commit().only(&["b"]).gives(
        r#"
        b general 3..4 {"type":"message:hidden","room":"general","seq":4,"ts":1000000,"from":3}
        b general 5 {"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"3","meta":{"lang":"de","level":3},"trace":"*"}
        b general 6 {"type":"message:hidden","room":"general","seq":6,"ts":1000000}
        "#,
    );
    let stats = table.engine.stats();
    assert_eq!((stats.filtered, stats.withheld_normal, stats.considered_normal), (3, 3, 1 + 8));
}

#[test]
fn memberships_pass_and_an_audience_still_hides() {
    let mut table = with_filter(r#"{"field":"tag","exists":true}"#);
    table.has("c", "carol");
    table.says("c", r#"{"type":"room:join","id":1,"room":"general"}"#).whatever();
    table.commit().only(&["b"]).gives(
        r#"
        b general 3 {"type":"room:joined","room":"general","seq":3,"ts":1000000,"user":"carol","role":"member"}
        "#,
    );
    table
        .says("a", r#"{"type":"message:send","room":"general","body":"x","meta":{"tag":1},"exclude":["bob"]}"#)
        .whatever();
    sends(&mut table, "y", r#"{"tag":null}"#);
    table.commit().only(&["b", "c"]).gives(
        r#"
        b general 4 {"type":"message:hidden","room":"general","seq":4,"ts":1000000}
        b general 5 {"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"y","meta":{"tag":null},"trace":"*"}
        c general 4 {"type":"message:created","room":"general","seq":4,"ts":1000000,"author":"alice","body":"x","meta":{"tag":1},"trace":"*"}
        c general 5 {"type":"message:created","room":"general","seq":5,"ts":1000000,"author":"alice","body":"y","meta":{"tag":null},"trace":"*"}
        "#,
    );
}

#[test]
fn a_resume_obeys_the_filter_from_memory_and_from_the_store() {
    for recent_bytes_max in [Limits::default().recent_bytes_max, 0] {
        let mut table = Table::with(Limits { recent_bytes_max, ..Limits::default() });
        table.has("a", "alice");
        table.joins("a", "general");
        for (body, meta) in [("2", r#"{"x":1}"#), ("3", r#"{"x":2}"#), ("4", r#"{"x":2}"#), ("5", "{}")] {
            sends(&mut table, body, meta);
            table.settle();
        }
        table.has("b", "bob");
        let frame = r#"{"type":"room:subscribe","id":1,"room":"general","since":{"epoch":"e1","seq":1},"filter":{"field":"x","eq":1}}"#;
        let mut all = table.says("b", frame).0;
        all.extend(table.settle_with(&["b"]).0);
        let said = all.join("\n");
        assert!(
            said.contains(r#""recovered":true,"events":[{"type":"message:created","room":"general","seq":2,"#),
            "{said}"
        );
        assert!(
            said.contains(r#"},{"type":"message:hidden","room":"general","seq":5,"ts":1000000,"from":3}]}"#),
            "{said}"
        );
        // History is the room's, whatever a subscription wants.
        table.says("b", r#"{"type":"message:history","id":2,"room":"general"}"#).whatever();
        assert!(!table.settle_with(&["b"]).has("message:hidden"));
    }
}

#[test]
fn the_last_word_of_a_subscription_counts() {
    let mut table = with_filter(r#"{"field":"x","eq":true}"#);
    let says = |table: &mut Table, text: &str| {
        table.says("b", text).whatever();
        sends(table, "m", r#"{"x":false}"#);
        table.commit().only(&["b"]).has("message:created")
    };
    assert!(says(&mut table, r#"{"type":"room:subscribe","room":"general","filter":{"not":{"field":"x","eq":true}}}"#));
    assert!(!says(&mut table, r#"{"type":"room:subscribe","room":"general","filter":{"field":"x","prefix":"f"}}"#));
    assert!(says(&mut table, r#"{"type":"room:subscribe","room":"general"}"#));
    table.says("b", r#"{"type":"room:unsubscribe","room":"general"}"#).whatever();
    sends(&mut table, "m", "{}");
    table.commit().only(&["b"]).gives("");
    assert_eq!(table.engine.stats().subscriptions, 1);
}

#[test]
fn a_filter_outside_the_grammar_is_refused() {
    let mut table = Table::new();
    table.has("b", "bob");
    let deep = format!("{}{}{}", r#"{"not":"#.repeat(5), r#"{"field":"x","eq":1}"#, "}".repeat(5));
    let many = format!(r#"{{"any":[{}]}}"#, vec![r#"{"field":"x","eq":1}"#; 33].join(","));
    let long = format!(r#"{{"field":"x","in":[{}]}}"#, vec!["1"; 129].join(","));
    for filter in [
        "1",
        "{}",
        r#"{"all":[]}"#,
        r#"{"all":{}}"#,
        r#"{"field":"x"}"#,
        r#"{"field":"x","eq":null}"#,
        r#"{"field":"x","like":"y"}"#,
        r#"{"field":"","eq":1}"#,
        r#"{"field":"x","gt":"1"}"#,
        r#"{"field":"x","gt":1,"lt":2}"#,
        r#"{"all":[{"field":"x","eq":1}],"not":1}"#,
        r#"{"field":"x","exists":1}"#,
        r#"{"field":"x","in":[[]]}"#,
        &deep,
        &many,
        &long,
    ] {
        let said =
            table.says("b", &format!(r#"{{"type":"room:subscribe","id":1,"room":"general","filter":{filter}}}"#));
        assert!(said.has(r#""code":107,"error":"bad_request","message":"#), "{filter}: {:?}", said.0);
    }
}

#[test]
fn critical_entries_are_marked_and_keep_the_rooms_order() {
    let mut table = with_filter(r#"{"field":"x","exists":false}"#);
    for priority in [Priority::Low, Priority::Critical, Priority::Normal] {
        let priority = priority.as_str();
        table
            .says("a", &format!(r#"{{"type":"message:send","room":"general","body":"m","priority":"{priority}"}}"#))
            .whatever();
    }
    let given = table.commit();
    let lanes: Vec<String> = given.0.iter().map(|line| line.split(" {").next().unwrap().to_owned()).collect();
    assert_eq!(lanes, ["b general 3", "b general 4!", "b general 5", "a general 3", "a general 4!", "a general 5"]);
    let stats = table.engine.stats();
    assert_eq!((stats.events_in_low, stats.events_in_critical, stats.events_in_normal), (1, 1, 1));
    assert_eq!((stats.considered_low, stats.considered_critical), (2, 2));
}

/// The grammar once more, slowly: against the parsed value of the whole `meta`.
fn holds(filter: &Value, meta: &Value) -> bool {
    if let Some(parts) = filter.get("all") {
        return parts.as_array().unwrap().iter().all(|part| holds(part, meta));
    }
    if let Some(parts) = filter.get("any") {
        return parts.as_array().unwrap().iter().any(|part| holds(part, meta));
    }
    if let Some(part) = filter.get("not") {
        return !holds(part, meta);
    }
    let value = meta.get(filter["field"].as_str().unwrap());
    let same = |wanted: &Value| {
        value.is_some_and(|value| match (value.as_f64(), wanted.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => value == wanted,
        })
    };
    let number = |ok: fn(f64, f64) -> bool, bound: &Value| {
        value.and_then(Value::as_f64).is_some_and(|value| ok(value, bound.as_f64().unwrap()))
    };
    let (operator, operand) = filter.as_object().unwrap().iter().find(|(name, _)| *name != "field").unwrap();
    match operator.as_str() {
        "eq" => same(operand),
        "in" => operand.as_array().unwrap().iter().any(same),
        "prefix" => value.and_then(Value::as_str).is_some_and(|text| text.starts_with(operand.as_str().unwrap())),
        "gt" => number(|a, b| a > b, operand),
        "gte" => number(|a, b| a >= b, operand),
        "lt" => number(|a, b| a < b, operand),
        "lte" => number(|a, b| a <= b, operand),
        "exists" => value.is_some() == operand.as_bool().unwrap(),
        other => panic!("no operator {other}"),
    }
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "", "a", "de", "de-AT", "a\"b", "\\", "\n", "\u{1}", "\u{2028}", "größe", "😀", "meta"
        ])
        .prop_map(str::to_owned),
        "[ab\"\\\\\u{e9}]{0,4}",
    ]
}

fn scalars() -> impl Strategy<Value = Value> {
    prop_oneof![
        texts().prop_map(Value::from),
        (-3i64..4).prop_map(Value::from),
        prop::sample::select(vec![0.5, -1.5, 2.0, 1e3, u64::MAX as f64]).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
    ]
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![3 => prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned), 1 => "[a\"\\\\ü]{1,2}"]
}

fn metas() -> impl Strategy<Value = Value> {
    let values = scalars().prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            Just(Value::Null),
            vec(inner.clone(), 0..3).prop_map(Value::from),
            btree_map(names(), inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    btree_map(names(), values, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
}

fn filters() -> impl Strategy<Value = Value> {
    let numbers = prop_oneof![(-3i64..4).prop_map(Value::from), Just(Value::from(0.5))];
    let operators = prop_oneof![
        scalars().prop_map(|value| ("eq", value)),
        vec(scalars(), 0..4).prop_map(|list| ("in", Value::from(list))),
        texts().prop_map(|text| ("prefix", Value::from(text))),
        (prop::sample::select(vec!["gt", "gte", "lt", "lte"]), numbers),
        any::<bool>().prop_map(|wanted| ("exists", Value::from(wanted))),
    ];
    let tests =
        (names(), operators).prop_map(|(field, (operator, operand))| json!({"field": field, operator: operand}));
    tests.prop_recursive(4, 8, 2, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(|parts| json!({"all": parts})),
            vec(inner.clone(), 1..3).prop_map(|parts| json!({"any": parts})),
            inner.prop_map(|part| json!({"not": part})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The compiled filter says of the event on the wire what the grammar says of the parsed value.
    #[test]
    fn a_filter_is_its_grammar(filter in filters(), meta in metas(), body in texts()) {
        let mut parser = Parser::new(64 * 1024);
        let frame = json!({"type": "room:subscribe", "room": "a", "filter": filter}).to_string();
        let Ok(request) = parser.parse(frame.as_bytes()) else { return Ok(()) };
        let Command::RoomSubscribe { filter: Some(compiled), .. } = request.command else { panic!("another command") };
        // As the server writes it (escaped by its own rules), and as serde does.
        let mut parser = Parser::new(64 * 1024);
        let frame = json!({"type": "message:send", "room": "a", "body": "x", "meta": meta}).to_string();
        let request = parser.parse(frame.as_bytes()).unwrap();
        let Command::MessageSend(send) = request.command else { panic!("another command") };
        for text in [send.meta.unwrap(), meta.to_string()] {
            let body = Value::from(body.clone());
            let event = format!(r#"{{"type":"message:created","room":"a","seq":1,"body":{body},"meta":{text},"trace":"0"}}"#);
            prop_assert_eq!(compiled.admits(event.as_bytes()), holds(&filter, &meta), "{} on {}", filter, text);
        }
        let without = br#"{"type":"message:created","room":"a","seq":1,"body":"x"}"#;
        prop_assert_eq!(compiled.admits(without), holds(&filter, &json!({})));
        let joined = br#"{"type":"room:joined","room":"a","seq":1}"#;
        prop_assert!(compiled.admits(joined), "memberships pass");
    }
}
