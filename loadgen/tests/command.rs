//! The tool as a command: what it refuses before a run, what it tells of one that ends early, and its
//! exit codes. The server is a small one of the plain dialect that does nothing wrong.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::Message;

/// A room's last number, and who is in it.
type Rooms = HashMap<String, (u64, Vec<Arc<Mutex<TcpStream>>>)>;

fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon-load"));
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    tool(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder of one test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("antiphon-load-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Starts the server; returns its URL.
fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let rooms: Arc<Mutex<Rooms>> = Arc::default();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, rooms) = (stream.unwrap(), rooms.clone());
            std::thread::spawn(move || talk(stream, &rooms));
        }
    });
    url
}

fn say(to: &Mutex<TcpStream>, value: &Value) {
    let mut frame = Vec::new();
    antiphon::protocol::encode::frame_text(&mut frame, |out| out.extend_from_slice(value.to_string().as_bytes()));
    // Who is gone needs nothing more.
    let _ = std::io::Write::write_all(&mut *to.lock().unwrap(), &frame);
}

fn talk(stream: TcpStream, rooms: &Mutex<Rooms>) {
    let me = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let mut socket = tungstenite::accept(stream).unwrap();
    while let Ok(Message::Text(text)) = socket.read() {
        let command: Value = serde_json::from_str(&text).unwrap();
        let mut rooms = rooms.lock().unwrap();
        let (seq, members) = rooms.entry(command["room"].as_str().unwrap().to_owned()).or_default();
        if command["type"] == "message:send" {
            *seq += 1;
            let (room, client, body) = (&command["room"], &command["client_id"], &command["body"]);
            let event =
                json!({"type":"message:created","room":room,"seq":*seq,"author":"u","client_id":client,"body":body});
            members.iter().for_each(|member| say(member, &event));
        } else {
            members.push(me.clone());
        }
        say(&me, &json!({"type":"ok","id":command["id"],"seq":*seq,"epoch":"e"}));
    }
}

#[test]
fn a_file_that_cannot_be_written_is_named_before_the_run() {
    for flag in ["--json", "--html", "--hgrm"] {
        // Nobody listens there: the run would fail otherwise.
        let out = run(&["chat", "--secret", "s", "--url", "ws://127.0.0.1:9", flag, "/no/such/folder/file"]);
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains(flag), "{flag}: {}", text(&out.stderr));
    }
}

#[test]
fn only_reports_are_read_and_a_failed_one_stays_failed() {
    let folder = folder("reports");
    let (saved, url) = (folder.join("saved.json"), serve());
    let saved = saved.to_str().unwrap();
    let args = ["chat", "--dialect", "plain", "--url", &url, "--clients", "6", "--rooms-of", "3", "--progress=false"];
    let more = ["--warmup", "0.1", "--duration", "0.5", "--json", saved, "--assert", "p99@'whole'<1000s"];
    let good = run(&[&args[..], &more].concat());
    assert_eq!(good.status.code(), Some(0), "{}{}", text(&good.stdout), text(&good.stderr));
    assert_eq!(run(&["report", saved]).status.code(), Some(0));
    let mut report: Value = serde_json::from_str(&std::fs::read_to_string(saved).unwrap()).unwrap();
    report["passed"] = false.into();
    std::fs::write(saved, report.to_string()).unwrap();
    let failed = run(&["report", saved]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(!text(&failed.stdout).contains("PASSED"));
    for strange in ["{}", r#"{"name":"a package"}"#, "[]"] {
        std::fs::write(saved, strange).unwrap();
        assert_eq!(run(&["report", saved]).status.code(), Some(2), "{strange}");
        assert_eq!(run(&["compare", saved, saved]).status.code(), Some(2), "{strange}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn an_interrupted_run_tells_what_it_has_measured() {
    let folder = folder("interrupted");
    let (saved, url) = (folder.join("saved.json"), serve());
    let saved = saved.to_str().unwrap();
    let args = ["chat", "--dialect", "plain", "--url", &url, "--clients", "6", "--rooms-of", "3", "--rate", "100"];
    let more = ["--warmup", "0", "--duration", "60", "--progress=false", "--json", saved];
    let child = tool(&[&args[..], &more].concat()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("interrupted: the figures are of"), "{}", text(&out.stdout));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(saved).unwrap()).unwrap();
    let rate = report["traffic"]["acked_per_second"].as_f64().unwrap();
    assert!((70.0..=130.0).contains(&rate), "of the time that was measured: {rate}");
    assert_eq!(report["failures"].as_array().unwrap().len(), 1, "nothing else is wrong: {report}");
    std::fs::remove_dir_all(folder).unwrap();
}
