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
use tungstenite::handshake::server::{Request, Response};

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

/// Whose token it is; nobody's in the plain dialect.
fn user_of(request: &Request) -> Option<String> {
    let token = request.headers().get("authorization")?.to_str().unwrap().trim_start_matches("Bearer ").to_owned();
    let key = jsonwebtoken::DecodingKey::from_secret(b"s");
    let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    Some(jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap().claims["sub"].as_str().unwrap().to_owned())
}

fn talk(stream: TcpStream, rooms: &Mutex<Rooms>) {
    let me = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let mut user = None;
    // The refusal is large, and never made.
    #[allow(clippy::result_large_err)]
    let accept = |request: &Request, response: Response| {
        user = user_of(request);
        Ok(response)
    };
    let mut socket = tungstenite::accept_hdr(stream, accept).unwrap();
    if user.is_some() {
        say(&me, &json!({"type":"hello","epoch":"e","rooms":[]}));
    }
    let author = user.unwrap_or_default();
    while let Ok(Message::Text(text)) = socket.read() {
        let command: Value = serde_json::from_str(&text).unwrap();
        let mut rooms = rooms.lock().unwrap();
        let (seq, members) = rooms.entry(command["room"].as_str().unwrap().to_owned()).or_default();
        if command["type"] == "message:send" {
            *seq += 1;
            let (room, client, body) = (&command["room"], &command["client_id"], &command["body"]);
            let event =
                json!({"type":"message:created","room":room,"seq":*seq,"author":author,"client_id":client,"body":body});
            members.iter().for_each(|member| say(member, &event));
        } else if command["type"] != "room:create" {
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

#[test]
fn an_interrupted_script_tells_what_it_has_and_accuses_nobody() {
    let folder = folder("interrupted-script");
    let (saved, url) = (folder.join("saved.json"), serve());
    let saved = saved.to_str().unwrap();
    let args = ["herd", "--secret", "s", "--url", &url, "--clients", "6", "--rooms-of", "3", "--away", "600"];
    let child = tool(&[&args[..], &["--progress=false", "--json", saved]].concat()).spawn().unwrap();
    // While the herd is away, or before.
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(saved).unwrap()).unwrap();
    assert_eq!(report["failures"], json!(["interrupted during a pause"]), "nothing else is wrong: {report}");
    assert!(report["settings"]["traffic"].as_str().unwrap().starts_with("all 6 drop at once"), "{report}");
    assert!(report["checked"]["delivered"].as_u64().unwrap() > 0, "{report}");
    let newcomers = report["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == "newcomers_before");
    assert!(newcomers.unwrap()["value"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["figures"].as_array().unwrap().iter().all(|figure| figure["name"] != "all_back"), "{report}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn nobody_there_is_said_at_once_by_scripts_too() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let url = format!("ws://{address}");
    for scenario in ["herd", "presence", "inbox", "mixed", "soak"] {
        let begun = std::time::Instant::now();
        let out = run(&[scenario, "--secret", "s", "--url", &url, "--progress=false"]);
        let said = text(&out.stderr);
        assert!(said.contains(&format!("cannot connect to {address}: Connection refused")), "{scenario}: {said}");
        assert!(out.status.code() == Some(2) && begun.elapsed() < Duration::from_secs(30), "{scenario}");
    }
}
