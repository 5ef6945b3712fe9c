//! Who is in a room and what they may do there.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Connect, Options, Server, token_with};

with_1_2_4_shards!(
    rooms_are_created_once,
    private_rooms_are_by_invitation,
    roles_are_given_and_taken,
    kicked_means_out,
    banned_means_out_for_good,
    leaving_ends_membership,
    members_and_rooms_come_in_pages,
    direct_rooms_stay_as_they_are,
    a_device_that_comes_again_replaces_the_first,
);

fn create(client: &mut Client, room: &str, kind: &str, members: &[&str]) -> Value {
    client.ok(json!({"type": "room:create", "room": room, "kind": kind, "members": members}))
}

fn rooms_are_created_once(shards: u16) {
    let mut server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    let created = create(&mut alice, "club", "private", &["bob", "carol", "bob", "alice"]);
    assert_eq!((&created["room"], &created["seq"]), (&json!("club"), &json!(3)));
    alice.refused(json!({"type": "room:create", "room": "club", "kind": "public"}), 116);
    bob.refused(json!({"type": "room:create", "room": "club", "kind": "private"}), 116);
    // Members by creation may come in at once.
    assert_eq!(bob.ok(json!({"type": "room:subscribe", "room": "club"}))["role"], "member");
    for wrong in [
        json!({"type": "room:create", "room": "x"}),
        json!({"type": "room:create", "room": "x", "kind": "secret"}),
        json!({"type": "room:create", "room": "", "kind": "public"}),
        json!({"type": "room:create", "room": "a\nb", "kind": "public"}),
        json!({"type": "room:create", "room": "x*", "kind": "public"}),
        json!({"type": "room:create", "room": "x", "kind": "public", "members": ["a b"]}),
        json!({"type": "room:create", "room": "é".repeat(65), "kind": "public"}),
    ] {
        alice.refused(wrong, 107);
    }
    // Two at the same moment: one wins.
    let (a, b) = (
        alice.begin(json!({"type": "room:create", "room": "race", "kind": "public"})),
        bob.begin(json!({"type": "room:create", "room": "race", "kind": "public"})),
    );
    let mut answers = [alice.reply(a)["type"].to_string(), bob.reply(b)["type"].to_string()];
    answers.sort();
    assert_eq!(answers, ["\"error\"", "\"ok\""]);
    server.stop_and_restart();
    server.client("carol").refused(json!({"type": "room:create", "room": "club", "kind": "public"}), 116);
}

fn private_rooms_are_by_invitation(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    create(&mut alice, "den", "private", &[]);
    alice.ok(json!({"type": "room:subscribe", "room": "den"}));
    for denied in [
        json!({"type": "room:join", "room": "den"}),
        json!({"type": "room:subscribe", "room": "den"}),
        json!({"type": "message:history", "room": "den"}),
        json!({"type": "message:send", "room": "den", "body": "x"}),
        json!({"type": "message:read", "room": "den", "seq": 1}),
        json!({"type": "room:members", "room": "den"}),
        json!({"type": "room:invite", "room": "den", "user": "bob"}),
        json!({"type": "event:send", "room": "den", "name": "n", "data": 1}),
    ] {
        bob.refused(denied, 103);
    }
    let checked = bob.ok(json!({"type": "sync:check", "rooms": [{"room": "den", "seq": 1}]}));
    assert_eq!(checked["rooms"], json!([{"room": "den", "seq": 0, "state": "unknown"}]));
    assert_eq!(bob.ok(json!({"type": "room:list"}))["rooms"], json!([]));
    alice.ok(json!({"type": "room:invite", "room": "den", "user": "bob"}));
    let joined = alice.event("room:joined");
    assert_eq!(
        joined,
        json!({"type": "room:joined", "room": "den", "seq": 2, "ts": joined["ts"], "user": "bob", "by": "alice",
               "role": "member"})
    );
    assert_eq!(bob.join("den")["role"], "member");
    bob.send("den", "inside");
    assert_eq!(alice.event("message:created")["author"], "bob");
    // A member may not invite; an administrator may.
    bob.refused(json!({"type": "room:invite", "room": "den", "user": "carol"}), 103);
    let admin_token = token_with("root", |new| new.admin = true);
    let mut root = Client::open(server.public, Connect::with_token(&admin_token));
    root.ok(json!({"type": "room:invite", "room": "den", "user": "carol"}));
    assert_eq!(alice.event("room:joined")["by"], "root");
    alice.refused(json!({"type": "room:invite", "room": "nowhere", "user": "bob"}), 102);
}

fn roles_are_given_and_taken(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    let mut carol = server.client("carol");
    for client in [&mut alice, &mut bob, &mut carol] {
        client.join("room");
    }
    bob.refused(json!({"type": "room:role", "room": "room", "user": "carol", "role": "moderator"}), 103);
    alice.ok(json!({"type": "room:role", "room": "room", "user": "bob", "role": "moderator"}));
    let changed = carol.event("room:role_changed");
    assert_eq!(
        changed,
        json!({"type": "room:role_changed", "room": "room", "seq": 4, "ts": changed["ts"], "user": "bob",
               "by": "alice", "role": "moderator"})
    );
    // The same again changes nothing and leaves nothing.
    alice.ok(json!({"type": "room:role", "room": "room", "user": "bob", "role": "moderator"}));
    // A moderator kicks members, not owners.
    bob.refused(json!({"type": "room:kick", "room": "room", "user": "alice"}), 103);
    bob.ok(json!({"type": "room:kick", "room": "room", "user": "carol"}));
    assert_eq!(alice.event("room:kicked")["seq"], 5);
    // The last owner stays one.
    alice.refused(json!({"type": "room:role", "room": "room", "user": "alice", "role": "member"}), 103);
    alice.refused(json!({"type": "room:role", "room": "room", "user": "nobody", "role": "member"}), 110);
    for wrong in [
        json!({"type": "room:role", "room": "room", "user": "bob"}),
        json!({"type": "room:role", "room": "room", "user": "bob", "role": "banned"}),
        json!({"type": "room:role", "room": "room", "role": "member"}),
    ] {
        alice.refused(wrong, 107);
    }
    let hello = server.device("bob", "two").hello.clone();
    assert_eq!(hello["rooms"][0]["role"], "moderator");
}

fn kicked_means_out(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    create(&mut alice, "den", "private", &["bob"]);
    alice.ok(json!({"type": "room:subscribe", "room": "den"}));
    let mut bobs = [server.device("bob", "one"), server.device("bob", "two")];
    for bob in &mut bobs {
        bob.ok(json!({"type": "room:subscribe", "room": "den"}));
    }
    alice.ok(json!({"type": "room:kick", "room": "den", "user": "bob"}));
    alice.send("den", "about bob");
    for bob in &mut bobs {
        // The kick itself is the last that they hear, on every device.
        let kicked = bob.event("room:kicked");
        assert_eq!((&kicked["user"], &kicked["by"], &kicked["seq"]), (&json!("bob"), &json!("alice"), &json!(3)));
        bob.hears_no("message:created", Duration::from_millis(150));
        bob.refused(json!({"type": "message:send", "room": "den", "body": "x"}), 103);
        bob.refused(json!({"type": "message:history", "room": "den"}), 103);
        let since = json!({"epoch": bob.hello["epoch"], "seq": 2});
        bob.refused(json!({"type": "room:subscribe", "room": "den", "since": since}), 103);
    }
    alice.refused(json!({"type": "room:kick", "room": "den", "user": "bob"}), 110);
    // From a public room one is kicked and may come back.
    bobs[0].join("hall");
    let mut carol = server.client("carol");
    carol.join("hall");
    bobs[0].ok(json!({"type": "room:kick", "room": "hall", "user": "carol"}));
    carol.event("room:kicked");
    assert_eq!(carol.join("hall")["role"], "member");
}

fn banned_means_out_for_good(shards: u16) {
    let mut server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    alice.join("hall");
    bob.join("hall");
    alice.ok(json!({"type": "room:ban", "room": "hall", "user": "bob"}));
    let kicked = bob.event("room:kicked");
    assert_eq!((&kicked["user"], &kicked["role"]), (&json!("bob"), &json!("banned")));
    let tries = [
        json!({"type": "room:join", "room": "hall"}),
        json!({"type": "room:subscribe", "room": "hall"}),
        json!({"type": "message:send", "room": "hall", "body": "x"}),
        json!({"type": "message:history", "room": "hall"}),
    ];
    tries.iter().for_each(|command| {
        bob.refused(command.clone(), 103);
    });
    alice.refused(json!({"type": "room:invite", "room": "hall", "user": "bob"}), 103);
    server.stop_and_restart();
    let mut bob = server.client("bob");
    tries.iter().for_each(|command| {
        bob.refused(command.clone(), 103);
    });
    let mut alice = server.client("alice");
    alice.ok(json!({"type": "room:role", "room": "hall", "user": "bob", "role": "member"}));
    assert_eq!(bob.join("hall")["role"], "member");
}

fn leaving_ends_membership(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    alice.join("hall");
    bob.join("hall");
    bob.ok(json!({"type": "room:leave", "room": "hall"}));
    let left = alice.event("room:left");
    assert_eq!(left, json!({"type": "room:left", "room": "hall", "seq": 3, "ts": left["ts"], "user": "bob"}));
    alice.send("hall", "x");
    bob.hears_no("message:created", Duration::from_millis(150));
    bob.refused(json!({"type": "room:leave", "room": "hall"}), 110);
    bob.refused(json!({"type": "room:leave", "room": "nowhere"}), 102);
    assert_eq!(server.device("bob", "two").hello["rooms"], json!([]));
    // Private: the last owner among others names another one first.
    create(&mut alice, "den", "private", &["bob"]);
    alice.refused(json!({"type": "room:leave", "room": "den"}), 103);
    alice.ok(json!({"type": "room:role", "room": "den", "user": "bob", "role": "owner"}));
    alice.ok(json!({"type": "room:leave", "room": "den"}));
    alice.refused(json!({"type": "message:history", "room": "den"}), 103);
    bob.ok(json!({"type": "room:leave", "room": "den"}));
}

fn members_and_rooms_come_in_pages(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    let members: Vec<String> = (0..25).map(|number| format!("user-{number:02}")).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    create(&mut alice, "big", "private", &names);
    let mut page = json!({"type": "room:members", "room": "big", "limit": 10});
    let mut found = Vec::new();
    loop {
        let reply = alice.ok(page.clone());
        let users = reply["members"].as_array().unwrap();
        assert!(users.len() <= 10);
        found.extend(users.iter().map(|member| member["user"].as_str().unwrap().to_owned()));
        match reply.get("next") {
            Some(next) => page["after"] = next.clone(),
            None => break,
        }
    }
    assert_eq!(found[0], "alice");
    assert_eq!(found[1..], members);
    for number in 0..12 {
        create(&mut alice, &format!("room-{number:02}"), if number % 2 == 0 { "public" } else { "private" }, &[]);
    }
    let mut list = |kind: Option<&str>| {
        let mut command = json!({"type": "room:list", "limit": 5});
        if let Some(kind) = kind {
            command["kind"] = kind.into();
        }
        let mut found: Vec<String> = Vec::new();
        loop {
            let reply = alice.ok(command.clone());
            let rooms = reply["rooms"].as_array().unwrap();
            found.extend(rooms.iter().map(|room| room["room"].as_str().unwrap().to_owned()));
            match reply.get("next") {
                Some(next) => command["after"] = next.clone(),
                None => return found,
            }
        }
    };
    let all = list(None);
    assert_eq!(all.len(), 13, "{all:?}");
    assert!(all.is_sorted());
    assert_eq!(list(Some("public")).len(), 6);
    assert_eq!(list(Some("private")).len(), 7);
    assert_eq!(list(Some("direct")).len(), 0);
    // A stranger sees the public ones.
    let mut bob = server.client("bob");
    let seen = bob.ok(json!({"type": "room:list"}));
    assert_eq!(seen["rooms"].as_array().unwrap().len(), 6);
    assert_eq!(seen["rooms"][0], json!({"room": "room-00", "kind": "public", "seq": 1, "members": 1}));
    bob.refused(json!({"type": "room:list", "kind": "secret"}), 107);
    bob.refused(json!({"type": "room:list", "limit": 0}), 107);
}

fn direct_rooms_stay_as_they_are(shards: u16) {
    let server = Server::shards(shards);
    let mut alice = server.client("alice");
    let mut bob = server.client("bob");
    create(&mut alice, "alice+bob", "direct", &["bob"]);
    bob.ok(json!({"type": "room:subscribe", "room": "alice+bob"}));
    alice.send("alice+bob", "psst");
    assert_eq!(bob.event("message:created")["body"], "psst");
    alice.refused(json!({"type": "room:invite", "room": "alice+bob", "user": "carol"}), 103);
    alice.refused(json!({"type": "room:kick", "room": "alice+bob", "user": "bob"}), 103);
    server.client("carol").refused(json!({"type": "room:join", "room": "alice+bob"}), 103);
}

fn a_device_that_comes_again_replaces_the_first(shards: u16) {
    let server = Server::shards(shards);
    let mut first = server.device("alice", "phone");
    let mut other = server.device("alice", "laptop");
    first.join("room");
    other.join("room");
    let mut second = server.device("alice", "phone");
    assert_eq!(first.end().code, 4203);
    second.ok(json!({"type": "room:subscribe", "room": "room"}));
    second.send("room", "from the second");
    assert_eq!(other.event("message:created")["body"], "from the second");
    assert_eq!(second.event("message:created")["body"], "from the second");
}

#[test]
fn a_user_has_so_many_connections_and_rooms() {
    let server = Options::shards(2).with("--user-connections-max", "3").with("--rooms-max", "2").start();
    let mut clients: Vec<Client> = (0..3).map(|number| server.device("alice", &format!("d{number}"))).collect();
    let mut fourth = Client::upgrade(server.public, &Connect::new("alice").device("d3")).unwrap();
    assert_eq!(fourth.end().code, 4005);
    // A device that comes again takes its own place.
    clients.push(server.device("alice", "d0"));
    assert_eq!(clients[0].end().code, 4203);
    // When one has gone there is room again.
    clients.remove(1).close();
    let mut alice = server.device("alice", "d4");
    alice.join("one");
    alice.join("two");
    alice.refused(json!({"type": "room:join", "room": "three"}), 106);
    alice.refused(json!({"type": "room:create", "room": "three", "kind": "public"}), 106);
    alice.ok(json!({"type": "room:leave", "room": "one"}));
    alice.join("three");
    assert_eq!(clients[1].ok(json!({"type": "ping"}))["type"], "ok");
}
