//! Tokens: expiry, refresh, narrower rooms, revocation.

use std::sync::Arc;

use antiphon::engine::event::{AdminAct, Claims, Revocation};
use antiphon::protocol::error::{ErrorCode, Refusal};

use crate::harness::{Table, user};

const REFRESH: &str = r#"{"type":"auth:refresh","id":1,"token":"jwt"}"#;

fn covering(table: &Table, rooms: &[(&str, bool)]) -> Claims {
    let rooms: Arc<[(Box<str>, bool)]> = rooms.iter().map(|(room, write)| (Box::from(*room), *write)).collect();
    Claims { rooms: Some(rooms), ..table.claims("alice") }
}

#[test]
fn an_expired_token_ends_the_connection_and_a_renewed_one_does_not() {
    let mut table = Table::new();
    let short = Claims { expires_at: table.now + 5_000, ..table.claims("alice") };
    table.opens_with("a", "a", short.clone()).whatever();
    table.opens_with("b", "b", short).whatever();
    table.answer().whatever();
    table.says("a", REFRESH).gives(
        r#"
        a park
        verify jwt
        "#,
    );
    let renewed = table.claims("alice");
    table.verified(Ok(renewed)).gives(
        r#"
        a ! {"type":"ok","id":1,"token_expires_ts":4600000}
        a unpark
        "#,
    );
    table.passes(4_999).only(&["a close", "b close"]).gives_nothing();
    table.passes(1).gives(
        r#"
        b close 4201 token_expired: the token has expired
        "#,
    );
}

#[test]
fn a_token_lives_by_the_time_of_day_which_may_be_set() {
    let mut table = Table::new();
    let short = Claims { expires_at: table.now + 5_000, ..table.claims("alice") };
    table.opens_with("a", "a", short).whatever();
    table.answer().whatever();
    // Set back by a minute: the token has a minute more.
    table.engine.note_time_of_day(-60_000);
    table.passes(6_000).only(&["a close"]).gives_nothing();
    table.says("a", r#"{"type":"ping","id":1}"#).gives(
        r#"
        a ! {"type":"ok","id":1,"ts":946000}
        "#,
    );
    // Set forward by two hours: it is found out with the next heartbeat.
    table.engine.note_time_of_day(7_200_000);
    table.is_heard("a");
    assert!(table.passes(25_000).has("a close 4201"));
    let fresh = Claims { expires_at: table.now + 7_200_000 + 5_000, ..table.claims("alice") };
    table.opens_with("c", "c", fresh).whatever();
    table.answer().whatever();
    table.passes(4_999).only(&["c close"]).gives_nothing();
    assert!(table.passes(1).has("c close 4201"));
}

#[test]
fn a_token_of_another_user_or_none_is_refused_and_the_old_one_stands() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.says("a", REFRESH).whatever();
    let bobs = table.claims("bob");
    table.verified(Ok(bobs)).gives(
        r#"
        a ! {"type":"error","id":1,"code":101,"error":"unauthorized","message":"the token is another user's","temporary":false,"retry_after_ms":0}
        a unpark
        "#,
    );
    table.says("a", REFRESH).whatever();
    table.verified(Err(Refusal::new(ErrorCode::TokenExpired, "the token has expired"))).gives(
        r#"
        a ! {"type":"error","id":1,"code":109,"error":"token_expired","message":"the token has expired","temporary":false,"retry_after_ms":0}
        a unpark
        "#,
    );
    table.says("a", r#"{"type":"ping","id":2}"#).gives(
        r#"
        a ! {"type":"ok","id":2,"ts":1000000}
        "#,
    );
}

#[test]
fn a_narrower_token_stops_listening_to_what_it_does_not_cover() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "news");
    table.joins("a", "general");
    table.says("a", REFRESH).whatever();
    let narrow = covering(&table, &[("gen*", false)]);
    table.verified(Ok(narrow)).whatever();
    table.has("b", "bob");
    let send = |room: &str| format!(r#"{{"type":"message:send","room":"{room}","body":"x"}}"#);
    table.says("b", &send("news")).whatever();
    table.settle_with(&["a"]).gives_nothing();
    table.says("b", &send("general")).whatever();
    table.settle_with(&["a"]).gives(
        r#"
        a general 2 {"type":"message:created","room":"general","seq":2,"ts":1000000,"author":"bob","body":"x","trace":"*"}
        "#,
    );
    // Read only: nothing that makes an entry.
    table.says("a", r#"{"type":"message:send","id":1,"room":"general","body":"x"}"#).gives(
        r#"
        a ! {"type":"error","id":1,"code":103,"error":"permission_denied","message":"the token does not cover this room","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("a", r#"{"type":"message:history","id":2,"room":"news"}"#).gives(
        r#"
        a ! {"type":"error","id":2,"code":103,"error":"permission_denied","message":"the token does not cover this room","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("a", r#"{"type":"room:join","id":3,"room":"news"}"#).gives(
        r#"
        a ! {"type":"error","id":3,"code":103,"error":"permission_denied","message":"the token does not cover this room","temporary":false,"retry_after_ms":0}
        "#,
    );
    table.says("a", r#"{"type":"room:list","id":4}"#).whatever();
    table.answer().gives(
        r#"
        a ! {"type":"ok","id":4,"rooms":[{"room":"general","kind":"public","seq":2,"members":1,"role":"owner"}]}
        a unpark
        "#,
    );
}

#[test]
fn a_token_that_is_no_admins_any_more_watches_no_private_room() {
    let mut table = Table::new();
    table.has("b", "bob");
    table.says("b", r#"{"type":"room:create","room":"den","kind":"private"}"#).whatever();
    table.settle();
    table.joins("b", "general");
    let admin = Claims { admin: true, ..table.claims("alice") };
    table.opens_with("a", "a", admin).whatever();
    table.settle();
    for room in ["den", "general"] {
        assert!(table.says("a", &format!(r#"{{"type":"presence:subscribe","id":1,"room":"{room}"}}"#)).has("ok"));
    }
    table.says("a", r#"{"type":"room:subscribe","id":2,"room":"den"}"#).whatever();
    table.passes(1_000).whatever();
    assert_eq!(table.engine.stats().subscriptions, 2);
    table.says("a", REFRESH).whatever();
    let plain = table.claims("alice");
    table.verified(Ok(plain)).whatever();
    assert_eq!(table.engine.stats().subscriptions, 1, "bob's");
    table.says("b", r#"{"type":"presence:set","status":"busy","custom":"secret"}"#).gives_nothing();
    let heard = table.passes(1_000).lines("presence:changed");
    // What anybody may hear they hear still.
    assert!(heard.len() == 1 && heard[0].contains(r#""room":"general""#), "{heard:?}");
    assert_eq!(table.engine.stats().presence_watches, 1);
}

#[test]
fn a_revocation_ends_sessions_and_keeps_them_out() {
    let mut table = Table::new();
    let with_jti = Claims { jti: Some("j1".into()), ..table.claims("alice") };
    table.opens_with("a", "a", with_jti.clone()).whatever();
    table.answer().whatever();
    table.has("b", "alice");
    table.admin(AdminAct::Revoke(Revocation::Jti("j1".into()))).gives(
        r#"
        append revoke Jti("j1")
        "#,
    );
    table.commit().gives(
        r#"
        a close 4001 invalid_token: the token was revoked
        admin 1 revoked
        "#,
    );
    table.opens_with("c", "c", with_jti).gives(
        r#"
        c close 4001 invalid_token: the token was revoked
        "#,
    );
    table.admin(AdminAct::Revoke(Revocation::UserBefore(user("alice"), table.now / 1_000))).whatever();
    table.commit().gives(
        r#"
        b close 4001 invalid_token: the token was revoked
        admin 2 revoked
        "#,
    );
    table.opens("d", "alice").gives(
        r#"
        d close 4001 invalid_token: the token was revoked
        "#,
    );
    table.now += 1_000;
    table.opens("e", "alice").whatever();
    // A revoked token is none to refresh with.
    table.says("e", REFRESH).whatever();
    let old = Claims { issued_at: Some(table.now / 1_000 - 1), ..table.claims("alice") };
    table.verified(Ok(old)).gives(
        r#"
        e ! {"type":"error","id":1,"code":101,"error":"unauthorized","message":"the token was revoked","temporary":false,"retry_after_ms":0}
        e unpark
        "#,
    );
    assert_eq!(table.engine.stats().revoked, 2);
}

#[test]
fn a_narrow_token_is_told_of_no_other_room_and_makes_none_that_it_may_only_read() {
    let mut table = Table::new();
    table.has("a", "alice");
    table.joins("a", "secret");
    table.joins("a", "ro-1");
    let narrow = covering(&table, &[("ro-*", false)]);
    let given = table.opens_with("n", "n", narrow);
    assert!(given.has(r#""rooms":[{"room":"ro-1","#) && !given.has("secret"), "{given:?}");
    table.says("n", r#"{"type":"room:join","id":1,"room":"ro-2"}"#).whatever();
    assert!(table.commit().has(r#"n ! {"type":"error","id":1,"code":102"#));
}
