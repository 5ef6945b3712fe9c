//! A graceful stop: everybody is told, nothing acknowledged is lost, the process ends well.

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Connect, Options, Server, http};

#[test]
fn a_stop_is_announced_and_ends_well() {
    for shards in [1, 2, 4] {
        let mut server = Options::shards(shards).with("--drain-ms", "1500").with("--goaway-spread-ms", "4000").start();
        let mut clients: Vec<Client> = (0..12).map(|number| server.client(&format!("user-{number}"))).collect();
        for client in &mut clients {
            client.join("room");
        }
        let began = Instant::now();
        server.terminate();
        let mut waits = Vec::new();
        for client in &mut clients {
            let goaway = client.event("goaway");
            assert_eq!(goaway["reason"], "draining");
            waits.push(goaway["retry_after_ms"].as_u64().unwrap());
        }
        assert!(waits.iter().all(|wait| *wait < 4_000), "{waits:?}");
        waits.sort_unstable();
        waits.dedup();
        assert!(waits.len() > 6, "spread: {waits:?}");
        // Until the end commands work, and an ack counts.
        let ack =
            clients[0].ok(json!({"type": "message:send", "room": "room", "body": "last words", "client_id": "last"}));
        assert!(refuses_connections(&server), "new connections are taken while draining");
        if shards == 1 {
            let ready = http::get(server.control, "/health/ready");
            assert_eq!((ready.status, &ready.json()["draining"]), (503, &json!(true)));
        }
        for client in &mut clients {
            assert_eq!(client.end().code, 4200);
        }
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        server.restart();
        let mut user = server.client("user-0");
        let again = user.ok(json!({"type": "message:send", "room": "room", "body": "last words", "client_id": "last"}));
        assert_eq!((&again["duplicate"], &again["seq"]), (&json!(true), &ack["seq"]));
    }
}

/// A shard closes its listener a moment after the signal; from then on nobody is let in.
fn refuses_connections(server: &Server) -> bool {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        let Ok(stream) = TcpStream::connect_timeout(&server.public, Duration::from_secs(1)) else { return true };
        drop(stream);
        if matches!(Client::upgrade(server.public, &Connect::new("late")), Err(None)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[test]
fn when_everybody_has_gone_the_stop_is_quick() {
    let mut server = Options::shards(2).with("--drain-ms", "15000").start();
    let clients: Vec<Client> = (0..4).map(|number| server.client(&format!("user-{number}"))).collect();
    server.terminate();
    for mut client in clients {
        client.event("goaway");
        assert_eq!(client.close().code, 1000);
    }
    let began = Instant::now();
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_second_signal_cuts_it_short() {
    for first in ["-INT", "-HUP"] {
        let mut server = Options::shards(2).with("--drain-ms", "60000").start();
        let mut client = server.client("alice");
        let began = Instant::now();
        Command::new("kill").args([first, &server.pid().to_string()]).status().unwrap();
        client.event("goaway");
        server.terminate();
        assert_eq!(client.end().code, 4200);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_stop_under_load_acknowledges_what_it_stores_and_loses_none_of_it() {
    let mut server = Options::shards(2).with("--drain-ms", "300").start();
    let address = server.public;
    let writers: Vec<_> = (0..4)
        .map(|number| {
            std::thread::spawn(move || {
                let mut client = Client::open(address, Connect::new(&format!("writer-{number}")));
                client.join("room");
                let mut acked = Vec::new();
                let mut open = std::collections::VecDeque::new();
                for at in 0.. {
                    let client_id = format!("{number}-{at}");
                    let mut command =
                        json!({"type": "message:send", "room": "room", "body": "x", "client_id": client_id});
                    command["id"] = at.into();
                    let frame = crate::support::client::text_frame(&command);
                    if std::io::Write::write_all(&mut client.stream, &frame).is_err() {
                        break;
                    }
                    open.push_back(client_id);
                    // Eight are under way at a time.
                    if open.len() == 8 && !take_ack(&mut client, &mut open, &mut acked) {
                        break;
                    }
                }
                while !open.is_empty() && take_ack(&mut client, &mut open, &mut acked) {}
                acked
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(400));
    server.terminate();
    let acked: Vec<(String, u64)> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(acked.len() > 100, "{}", acked.len());
    server.restart();
    let mut reader = server.client("reader");
    let mut stored = std::collections::HashMap::new();
    let mut after = 0;
    loop {
        let page = reader.ok(json!({"type": "message:history", "room": "room", "after": after, "limit": 100}));
        for event in page["events"].as_array().unwrap() {
            let seq = event["seq"].as_u64().unwrap();
            assert_eq!(seq, after + 1);
            after = seq;
            if let Some(id) = event["client_id"].as_str() {
                assert_eq!(stored.insert(id.to_owned(), seq), None);
            }
        }
        if page["more"] == false {
            break;
        }
    }
    for (id, seq) in acked {
        assert_eq!(stored.remove(&id), Some(seq), "{id} was acknowledged");
    }
    assert!(stored.is_empty(), "stored, and their authors were told 4200 without an answer: {stored:?}");
}

/// Waits for the oldest open message's ack. False at the end of the connection.
fn take_ack(
    client: &mut Client,
    open: &mut std::collections::VecDeque<String>,
    acked: &mut Vec<(String, u64)>,
) -> bool {
    loop {
        match client.hear(crate::support::PATIENCE) {
            crate::support::Heard::Json(value) if value["type"] == "ok" => {
                acked.push((open.pop_front().unwrap(), value["seq"].as_u64().unwrap()));
                return true;
            }
            crate::support::Heard::Json(value) => assert_ne!(value["type"], "error", "{value}"),
            crate::support::Heard::End(_) => return false,
            crate::support::Heard::Nothing => panic!("no ack"),
        }
    }
}
