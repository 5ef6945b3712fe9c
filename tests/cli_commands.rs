//! The commands as a person types them: exit codes, one sentence for each mistake, and no secret on
//! any output. Each test has a folder of its own and no variable of the caller's.

#![allow(clippy::unwrap_used)]

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("antiphon-cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program in `dir`, without variables of ours.
fn antiphon(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ANTIPHON_") {
            command.env_remove(name);
        }
    }
    command.args(args).current_dir(dir).stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    outcome(antiphon(dir, args).output().unwrap())
}

fn outcome(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A server on free ports, stopped with SIGTERM (or killed, if a test fails).
struct Server {
    child: Child,
    listen: String,
    control: String,
    said: Vec<String>,
}

impl Server {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let ports =
            ["serve", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--shards", "1", "--pin", "off"];
        let mut child =
            antiphon(dir, &[&ports[..], args].concat()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        // Ends with the pipe, should the server not start.
        while !said.iter().any(|line: &String| line.starts_with("  admin")) {
            match lines.next() {
                Some(line) => said.push(line.unwrap()),
                None => break,
            }
        }
        let find = |key: &str| {
            let line = said.iter().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("no {key} in {said:?}")).to_owned()
        };
        Self { listen: find("  listen   ws://"), control: find("  control  http://"), said, child }
    }

    /// Sends SIGTERM and gives the exit code and the log.
    fn stop(mut self) -> (i32, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "the server does not stop");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code().unwrap(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn http(address: &str, request: &str) -> String {
    let address = address.split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn post(address: &str, token: &str, path: &str, body: &str) -> String {
    let length = body.len();
    http(
        address,
        &format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    )
}

#[test]
fn mistakes_end_in_one_sentence_and_their_code() {
    let dir = TempDir::new();
    std::fs::write(dir.0.join("bad.toml"), "[server]\nlissten = \"x\"\n").unwrap();
    std::fs::write(dir.0.join("short"), "short\n").unwrap();
    std::fs::write(dir.0.join("key.pem"), "no key\n").unwrap();
    std::fs::write(dir.0.join("file"), "").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let free = ["serve", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"];
    let serve = |args: &[&'static str]| [&free[..], args].concat();
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["serve", "--config", "none.toml"], 2, "none.toml cannot be read"),
        (
            vec!["serve", "--config", "bad.toml"],
            2,
            "bad.toml line 2: there is no setting lissten; did you mean listen?",
        ),
        (serve(&["--heartbeat-ms", "5"]), 2, "it must be from 1000 to 600000"),
        (serve(&["--jwt-secret", "hunter2"]), 2, "has 7 bytes, but at least 32"),
        (serve(&["--jwt-secret-file", "short"]), 2, "has 5 bytes, but at least 32"),
        (serve(&["--jwt-secret-file", "none"]), 2, "cannot be read"),
        (serve(&["--jwt-public-key-file", "key.pem"]), 2, "key.pem"),
        (serve(&["--admin-token", "short"]), 2, "admin.token has 5 bytes"),
        (serve(&["--origins", "https://a.example/"]), 2, "is not an origin"),
        (vec!["serve", "--listen", &taken, "--control-listen", "127.0.0.1:0"], 4, "taken"),
        (vec!["serve", "--listen", "127.0.0.1:0", "--control-listen", &taken], 4, "taken"),
        (serve(&["--data-dir", "file"]), 5, "file"),
        (serve(&["--data-dir", "/proc/antiphon"]), 5, "/proc/antiphon"),
        (vec!["inspect", "--data-dir", "nothing-here"], 5, "nothing-here"),
        (vec!["token", "--user", "alice", "--jwt-secret", "short"], 2, "has 5 bytes"),
        (vec!["token", "--user", "alice", "--jwt-secret-file", "none"], 2, "cannot be read"),
        (vec!["token", "--user", "alice", "--data-dir", "typo"], 2, "no development secret in typo/dev-secret"),
        (serve(&["--log-level", "warning"]), 2, "neither a level (error, warn, info, debug, trace, off)"),
        (serve(&["--log-level", ""]), 2, "neither a level"),
        (serve(&["--tcp-congestion", "nosuch"]), 2, "server.tcp_congestion: \"nosuch\" cannot be used here"),
    ];
    for (args, code, sentence) in cases {
        let (exit, out, err) = run(&dir.0, &args);
        let last = err.lines().last().unwrap_or_default();
        assert_eq!(exit, code, "{args:?}: {out}{err}");
        assert!(last.starts_with("antiphon: ") && last.contains(sentence), "{args:?}: {err}");
        assert!(out.is_empty() && !err.contains("hunter2") && !err.contains("panicked"), "{args:?}: {out}{err}");
    }
    assert!(!dir.0.join("typo").exists(), "a token is no reason to make a folder");
}

#[test]
fn flags_that_do_not_exist_are_usage_errors() {
    let dir = TempDir::new();
    for args in [&["serve", "--nope"][..], &["token"], &["token", "--user", "a b"], &["unknown"], &[]] {
        assert_eq!(run(&dir.0, args).0, 2, "{args:?}");
    }
    assert_eq!(run(&dir.0, &["--version"]).0, 0);
}

#[test]
fn help_names_every_setting_with_its_variable() {
    let dir = TempDir::new();
    let (code, long, _) = run(&dir.0, &["serve", "--help"]);
    assert_eq!(code, 0);
    for text in [
        "--listen",
        "ANTIPHON_LISTEN",
        "--rate-limits",
        "Examples:",
        "Network ring:",
        "[default: 25000; 1000 to 600000",
    ] {
        assert!(long.contains(text), "{text}");
    }
    let (_, short, _) = run(&dir.0, &["serve", "-h"]);
    assert!(short.lines().count() < 60 && short.contains("--listen") && !short.contains("--ring-buffers"), "{short}");
}

#[test]
fn variables_stand_behind_flags_and_before_the_file() {
    let dir = TempDir::new();
    std::fs::write(
        dir.0.join("config.toml"),
        "[server]\ndrain_ms = 1\ngoaway_spread_ms = 1\nlisten = \"127.0.0.1:1\"\n",
    )
    .unwrap();
    let mut command = antiphon(&dir.0, &["serve", "--print-config", "--drain-ms", "3"]);
    command.env("ANTIPHON_DRAIN_MS", "2").env("ANTIPHON_GOAWAY_SPREAD_MS", "2");
    command.env("ANTIPHON_JWT_SECRET", "visible-visible-visible-visible-visible");
    let (code, out, err) = outcome(command.output().unwrap());
    assert_eq!(code, 0, "{err}");
    let table: toml::Table = out.parse().unwrap();
    let server = table["server"].as_table().unwrap();
    assert_eq!(server["drain_ms"].as_integer(), Some(3));
    assert_eq!(server["goaway_spread_ms"].as_integer(), Some(2));
    assert_eq!(server["listen"].as_str(), Some("127.0.0.1:1"));
    assert!(!out.contains("visible"), "{out}");
    // What was printed is a config file.
    std::fs::write(dir.0.join("printed.toml"), &out).unwrap();
    let (code, again, err) = run(&dir.0, &["serve", "--print-config", "--config", "printed.toml"]);
    assert_eq!(code, 0, "{err}");
    let settings = |text: &str| text.parse::<toml::Table>().map(|table| table["server"].clone());
    assert_eq!(settings(&again), settings(&out));
}

#[test]
fn check_says_what_it_found_and_leaves_nothing() {
    let dir = TempDir::new();
    let (code, out, err) = run(&dir.0, &["check", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"]);
    assert_eq!(code, 0, "{out}{err}");
    for what in ["kernel", "locked memory", "open files", "shards", "disk", "listen"] {
        assert!(out.lines().any(|line| line.contains(what)), "{what}: {out}");
    }
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, out, _) = run(&dir.0, &["check", "--listen", &taken.local_addr().unwrap().to_string()]);
    assert_eq!(code, 3);
    assert!(out.contains("FAIL  listen"), "{out}");
    std::fs::write(dir.0.join("file"), "").unwrap();
    let free = ["check", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--data-dir"];
    let (code, out, _) = run(&dir.0, &[&free[..], &["file"]].concat());
    assert_eq!(code, 3);
    assert!(out.contains("FAIL  data folder    file is no folder"), "{out}");
}

#[test]
fn a_server_starts_from_nothing_and_stops_gracefully() {
    let dir = TempDir::new();
    let server = Server::start(&dir.0, &["--data-dir", "data", "--log-format", "json"]);
    assert!(server.said[0].starts_with("antiphon ready: "), "{:?}", server.said);
    assert!(server.said.iter().any(|line| line.contains("dev-secret, made just now")), "{:?}", server.said);
    let health = http(&server.control, "GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let public = http(&server.listen, "GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(public.starts_with("HTTP/1.1 200"), "{public}");
    let admin = std::fs::read_to_string(dir.0.join("data/admin-token")).unwrap();
    let lost = post(&server.control, admin.trim(), "/admin/rooms/none/messages", r#"{"body":"hi"}"#);
    assert!(lost.starts_with("HTTP/1.1 404") && lost.contains("\"code\":102"), "{lost}");
    // The folder belongs to one process.
    let free = ["--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--data-dir", "data"];
    let (code, _, err) = run(&dir.0, &[&["serve"][..], &free].concat());
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("in use by another"), "{err}");
    let (code, out, _) = run(&dir.0, &[&["check"][..], &free].concat());
    assert_eq!(code, 3, "{out}");
    assert!(out.contains("FAIL  data folder    data is in use by another"), "{out}");
    let refused = http(&server.control, "GET /admin/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");

    let (code, log) = server.stop();
    assert_eq!(code, 0, "{log}");
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"));
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
    assert!(!log.contains(admin.trim()));
    // As it was asked for, not as the router sees it.
    assert!(log.contains(r#""path":"/admin/stats""#), "{log}");
    let (code, out, err) = run(&dir.0, &["inspect", "--data-dir", "data"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("integrity    ok"), "{out}");
    // Nobody else's, also what an older version left open to others.
    let modes = |path: &str| std::fs::metadata(dir.0.join(path)).unwrap().permissions().mode() & 0o777;
    let files = ["data/antiphon.db", "data/antiphon.lock", "data/dev-secret", "data/admin-token"];
    assert_eq!((files.map(modes), modes("data")), ([0o600; 4], 0o700));
    for file in &files[..2] {
        std::fs::set_permissions(dir.0.join(file), Permissions::from_mode(0o644)).unwrap();
    }
    let names = || {
        let entries = std::fs::read_dir(dir.0.join("data")).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    let (code, out, _) = run(&dir.0, &[&["check"][..], &free].concat());
    assert_eq!((code, names()), (0, before), "{out}");
    // The same secret the next time.
    let again = Server::start(&dir.0, &["--data-dir", "data"]);
    assert!(!again.said.iter().any(|line| line.contains("made just now")), "{:?}", again.said);
    assert_eq!([modes("data/antiphon.db-wal"), modes("data/antiphon.db"), modes("data/antiphon.lock")], [0o600; 3]);
}

#[test]
fn what_may_be_over_by_itself_has_a_code_of_its_own() {
    let dir = TempDir::new();
    assert_eq!(Server::start(&dir.0, &["--data-dir", "data"]).stop().0, 0);
    let other = rusqlite::Connection::open(dir.0.join("data/antiphon.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let free = ["--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--data-dir", "data"];
    let (code, _, err) = run(&dir.0, &[&["serve"][..], &free].concat());
    assert_eq!(code, 6, "{err}");
    assert!(err.contains("data/antiphon.db: ") && err.contains("locked"), "{err}");
}

#[test]
fn inspect_shows_rooms_and_finds_holes() {
    let dir = TempDir::new();
    let server = Server::start(&dir.0, &["--data-dir", "data"]);
    let (code, token, err) = run(&dir.0, &["token", "--user", "alice", "--data-dir", "data"]);
    assert_eq!((code, token.trim().split('.').count()), (0, 3), "{err}");
    say_something(&server.listen, token.trim());
    // Also while the server runs.
    let (code, out, _) = run(&dir.0, &["inspect", "--data-dir", "data", "--json"]);
    assert_eq!(code, 0, "{out}");
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["position"], 2);
    assert_eq!(found["faults"], serde_json::json!([]));
    assert_eq!(found["listed"][0]["room"], "general");
    assert_eq!((&found["listed"][0]["seq"], &found["listed"][0]["members"]), (&2.into(), &1.into()));
    assert_eq!(run(&dir.0, &["inspect", "--data-dir", "data", "--room", "none"]).0, 1);
    assert_eq!(server.stop().0, 0);

    let db = rusqlite::Connection::open(dir.0.join("data/antiphon.db")).unwrap();
    db.execute("DELETE FROM log WHERE position = 1", []).unwrap();
    drop(db);
    let (code, out, _) = run(&dir.0, &["inspect", "--data-dir", "data", "--room", "general"]);
    assert_eq!(code, 5, "{out}");
    assert!(out.contains("some are missing") && out.contains("seq 2 follows 0"), "{out}");
}

/// Joins `general` and sends one message, over a WebSocket spoken by hand.
fn say_something(listen: &str, token: &str) {
    let mut stream = TcpStream::connect(listen.split('/').next().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(
        stream,
        "GET /ws?access_token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .unwrap();
    for command in [
        r#"{"type":"room:join","id":1,"room":"general"}"#,
        r#"{"type":"message:send","id":2,"room":"general","body":"hi"}"#,
    ] {
        // A mask of zeroes is a mask.
        let mut frame = vec![0x81, 0x80 | command.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(command.as_bytes());
        stream.write_all(&frame).unwrap();
    }
    let mut seen = String::new();
    let mut buffer = [0u8; 4096];
    while !seen.contains(r#""id":2"#) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the server hung up: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(seen.contains(r#"{"type":"ok","id":2"#), "{seen}");
}
