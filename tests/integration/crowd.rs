//! Many at once: sockets in flight between shards, herds, and too few descriptors.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::Duration;

use antiphon::protocol::client::client_key;
use serde_json::json;

use crate::support::{Client, Connect, Options, Server, http};

#[test]
fn two_hundred_users_come_at_once_to_four_shards() {
    const USERS: usize = 200;
    let server = Server::shards(4);
    // All requests first, then all answers: sockets are under way between all shards at once.
    let begun: Vec<(TcpStream, String)> = (0..USERS)
        .map(|number| {
            let key = client_key();
            let mut stream = http::connect(server.public);
            let mut bytes = Connect::new(&format!("user-{number}")).request(server.public, &key);
            // The first commands travel with the socket.
            bytes.extend(crate::support::client::text_frame(&json!({"type": "room:join", "id": 1, "room": "hall"})));
            std::io::Write::write_all(&mut stream, &bytes).unwrap();
            (stream, key)
        })
        .collect();
    let mut clients: Vec<Client> =
        begun.into_iter().map(|(stream, key)| Client::finish_upgrade(stream, &key).unwrap()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.event("hello")["user"], format!("user-{number}"));
        assert_eq!(client.wait(|value| value["id"] == 1, "the join")["type"], "ok");
    }
    let handed_over = server.stat("handoffs_out");
    assert!(handed_over > 50 && handed_over == server.stat("handoffs_in"), "{handed_over}");
    let ack = clients[17].send("hall", "hello everybody");
    for client in &mut clients {
        assert_eq!(client.event("message:created")["seq"], ack["seq"]);
    }
    assert_eq!(server.stat("sessions"), USERS as u64);
    // A herd that drops and comes back.
    drop(clients);
    server.wait_for_stat("connections", |open| open == 0);
    let back: Vec<Client> = (0..USERS).map(|number| server.client(&format!("user-{number}"))).collect();
    assert!(back.iter().all(|client| client.hello["rooms"][0]["room"] == "hall"));
    assert_eq!(server.stat("subscriptions"), 0);
}

#[test]
fn users_that_vanish_while_they_move() {
    let server = Server::shards(4);
    for number in 0..200 {
        let mut stream = http::connect(server.public);
        let mut bytes = Connect::new(&format!("user-{number}")).request(server.public, &client_key());
        bytes.extend(crate::support::client::text_frame(&json!({"type": "room:join", "id": 1, "room": "hall"})));
        std::io::Write::write_all(&mut stream, &bytes).unwrap();
    }
    server.wait_for_stat("accepted", |count| count >= 200);
    server.wait_for_stat("connections", |open| open == 0);
    server.wait_for_stat("sessions", |open| open == 0);
    server.wait_for_stat("appends_pending", |open| open == 0);
    assert_eq!(server.stat("subscriptions"), 0);
    server.client("alice").join("hall");
}

#[test]
fn who_finds_no_descriptor_is_turned_away() {
    let mut server = Options::shards(2).open_files(140).start();
    let mut early = server.client("early");
    early.join("room");
    let sockets: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect_timeout(&server.public, Duration::from_secs(5)).unwrap()).collect();
    // The server keeps descriptors for operators and the store: it can be asked, and who is in is served.
    server.wait_for_stat("turned_away", |count| count > 100);
    assert_eq!(http::get(server.control, "/health/ready").status, 200);
    early.send("room", "still here");
    assert!(server.is_running());
    let busy = cpu_ms(server.pid());
    std::thread::sleep(Duration::from_millis(500));
    let spent = cpu_ms(server.pid()) - busy;
    assert!(spent < 250, "{spent} ms of CPU time in 500 ms: it spins");
    let told = |mut socket: TcpStream| {
        let mut said = [0; 12];
        socket.set_nonblocking(true).unwrap();
        socket.read(&mut said).is_ok_and(|_| said == *b"HTTP/1.1 503")
    };
    assert!(sockets.into_iter().filter_map(|socket| told(socket).then_some(())).count() > 100);
    server.wait_for_stat("connections", |count| count == 1);
    let late = server.client("late");
    assert_eq!(late.hello["user"], "late");
    early.send("room", "still here");
    let said = server.log().matches("no room for more connections").count();
    assert!((1..=2).contains(&said), "once a shard, not for each: {}", server.log());
}

/// CPU time of a process so far, ms.
fn cpu_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks * 10
}

#[test]
fn a_large_room_does_not_hold_up_who_writes_into_it() {
    const MEMBERS: u64 = 300;
    const MESSAGES: u64 = 200;
    let server = Server::shards(1);
    let mut members: Vec<Client> = (0..MEMBERS).map(|number| server.client(&format!("user-{number}"))).collect();
    let joined = members.iter_mut().map(|member| member.join("hall")["seq"].as_u64().unwrap()).max().unwrap();
    for member in &mut members[..MEMBERS as usize - 1] {
        member.entries_until("hall", joined);
    }
    let mut author = members.pop().unwrap();
    // On a busy machine the author may be late with the next message each time: once in five is enough. A flush that
    // goes on to its end shares none, however often.
    let mut sends = 0;
    for round in 1..=5 {
        let before = server.stat("sends");
        for number in 0..MESSAGES {
            // Each after the answer to the one before: it is read while the others are still being sent to.
            author.send("hall", &format!("{number}"));
        }
        for member in &mut members {
            let heard = member.entries_until("hall", joined + round * MESSAGES);
            let bodies: Vec<&str> = heard.iter().map(|entry| entry["body"].as_str().unwrap()).collect();
            assert_eq!(bodies, (0..MESSAGES).map(|number| number.to_string()).collect::<Vec<_>>());
        }
        sends = server.stat("sends") - before;
        if sends < MEMBERS * MESSAGES * 9 / 10 {
            return;
        }
    }
    panic!("{sends} sends: no two messages shared one");
}
