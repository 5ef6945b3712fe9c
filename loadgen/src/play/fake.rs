//! A tiny server for tests of scripts: presence of one room and everybody's inbox, in threads and
//! memory, correct unless told to commit one fault. Nobody has a grace in it.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use antiphon::protocol::encode::frame_text;
use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::handshake::server::{Request, Response};

use crate::fake::{SECRET, user_of};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// One watcher is not told of one user's return.
    Deaf,
    /// One watcher is told an old status after the new one.
    Stale,
    /// Of a user's items the last is left out.
    Loses,
    /// Items come again after their ack was answered.
    Repeats,
    /// Acks are answered with one too few.
    Miscounts,
    /// Items come newest first.
    Reverses,
}

type Peer = Arc<Mutex<TcpStream>>;

#[derive(Default)]
struct State {
    /// Connected users, and which connection of theirs counts.
    here: HashMap<String, u64>,
    watchers: Vec<(u64, Peer)>,
    version: u64,
    told: u64,
    inboxes: HashMap<String, BTreeMap<u64, Value>>,
    last_item: u64,
}

pub struct House {
    pub address: SocketAddrV4,
}

struct Inner {
    fault: Fault,
    state: Mutex<State>,
}

impl House {
    pub fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("bound to IPv4") };
        let inner = Arc::new(Inner { fault, state: Mutex::default() });
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (Ok(stream), inner) = (stream, inner.clone()) else { return };
                std::thread::spawn(move || inner.serve(number as u64, stream));
            }
        });
        Self { address }
    }

    pub fn args(&self, scenario: &str, more: &[&str]) -> Vec<String> {
        let url = format!("ws://{}", self.address);
        let head = ["antiphon-load", scenario, "--secret", SECRET, "--progress=false", "--url", &url];
        head.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }
}

fn send(to: &Peer, value: &Value) {
    let mut frame = Vec::new();
    frame_text(&mut frame, |out| out.extend_from_slice(value.to_string().as_bytes()));
    // The receiver may be gone, which its own thread will see.
    let _ = to.lock().unwrap().write_all(&frame);
}

impl Inner {
    fn serve(&self, number: u64, stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let out = Arc::new(Mutex::new(stream.try_clone().ok()?));
        let mut user = String::new();
        // The refusal is large, and never made.
        #[allow(clippy::result_large_err)]
        let accept = |request: &Request, response: Response| {
            user = user_of(request);
            Ok(response)
        };
        let mut socket = tungstenite::accept_hdr(stream, accept).ok()?;
        self.come(number, &user, &out);
        while let Ok(Message::Text(text)) = socket.read() {
            let command: Value = serde_json::from_str(&text).unwrap();
            self.obey(number, &user, &command, &out);
        }
        self.go(number, &user);
        None
    }

    fn come(&self, number: u64, user: &str, out: &Peer) {
        let mut state = self.state.lock().unwrap();
        let items: Vec<Value> = state.inboxes.get(user).into_iter().flat_map(|all| all.values().cloned()).collect();
        send(out, &json!({"type": "hello", "epoch": "e", "rooms": [], "inbox": items.len()}));
        self.deliver(items, out);
        state.here.insert(user.to_owned(), number);
        self.tell(&mut state, user, "online");
    }

    fn go(&self, number: u64, user: &str) {
        let mut state = self.state.lock().unwrap();
        state.watchers.retain(|(other, _)| *other != number);
        if state.here.get(user) == Some(&number) {
            state.here.remove(user);
            self.tell(&mut state, user, "offline");
        }
    }

    fn tell(&self, state: &mut State, user: &str, status: &str) {
        state.version += 1;
        let card = |status: &str, version: u64| json!({"type": "presence:changed", "room": "r", "presence": [{"user": user, "status": status, "version": version}]});
        for (at, (_, watcher)) in state.watchers.iter().enumerate() {
            let is_victim = at == 0 && status == "online";
            // Once a watcher is there, the first return it should hear of.
            if is_victim && self.fault == Fault::Deaf && std::mem::replace(&mut state.told, 1) == 0 {
                continue;
            }
            send(watcher, &card(status, state.version));
            if is_victim && self.fault == Fault::Stale {
                send(watcher, &card("offline", state.version - 1));
            }
        }
    }

    fn deliver(&self, mut items: Vec<Value>, out: &Peer) {
        let urgency = |item: &Value| match item["priority"].as_str() {
            Some("critical") => 0,
            Some("low") => 2,
            _ => 1,
        };
        items.sort_by_key(|item| (urgency(item), item["item"].as_u64()));
        match self.fault {
            Fault::Reverses => items.reverse(),
            Fault::Loses => drop(items.pop()),
            _ => {}
        }
        for some in items.chunks(50) {
            send(out, &json!({"type": "inbox:item", "items": some}));
        }
    }

    fn obey(&self, number: u64, user: &str, command: &Value, out: &Peer) {
        let mut state = self.state.lock().unwrap();
        let id = &command["id"];
        match command["type"].as_str().unwrap() {
            "room:join" | "room:unsubscribe" => send(out, &json!({"type": "ok", "id": id, "seq": 1})),
            "presence:subscribe" => {
                let card = |user: &String| json!({"user": user, "status": "online", "version": state.version});
                let cards: Vec<Value> = state.here.keys().map(card).collect();
                send(out, &json!({"type": "ok", "id": id, "presence": cards}));
                state.watchers.push((number, out.clone()));
            }
            "notify" => {
                state.last_item += 1;
                let item = state.last_item;
                let value =
                    json!({"item": item, "name": "load", "data": command["data"], "priority": command["priority"]});
                state.inboxes.entry(command["user"].as_str().unwrap().to_owned()).or_default().insert(item, value);
                send(out, &json!({"type": "ok", "id": id, "item": item}));
            }
            "inbox:ack" => {
                let items = command["items"].as_array().unwrap();
                let inbox = state.inboxes.get_mut(user).unwrap();
                let gone: Vec<Value> = items.iter().filter_map(|item| inbox.remove(&item.as_u64()?)).collect();
                let acked = gone.len() - usize::from(self.fault == Fault::Miscounts);
                send(out, &json!({"type": "ok", "id": id, "acked": acked}));
                if self.fault == Fault::Repeats {
                    self.deliver(gone, out);
                }
            }
            other => panic!("the tool does not send {other}"),
        }
    }
}
