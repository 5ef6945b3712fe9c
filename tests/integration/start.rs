//! What keeps the server from starting is one sentence and an exit code of its own.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::json;

use crate::support::{Options, Server, TempDir, http, run_to_end};

fn start(options: &Options, dir: &std::path::Path, change: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    let mut command = options.command(dir);
    change(&mut command);
    let (code, out, err) = run_to_end(command);
    assert_eq!(out, "", "nothing is announced");
    // The log, whose lines begin with a date, may have said more before; the sentence is the last line.
    let said: Vec<&str> = err.lines().filter(|line| !line.starts_with("20")).collect();
    assert!(said.len() == 1 || code == Some(2), "one sentence, not {said:?}");
    (code, err.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn a_port_that_is_taken() {
    let server = Server::shards(2);
    let dir = TempDir::new();
    for flag in ["--listen", "--control-listen"] {
        for taken in [server.public, server.control] {
            let options = Options::shards(2).with(flag, &taken.to_string());
            let (code, line) = start(&options, dir.path(), |_| {});
            assert_eq!(code, Some(4), "{flag} {taken}: {line}");
            assert!(line.contains("taken") && line.contains(&taken.port().to_string()), "{line}");
        }
    }
    // The one that was there goes on.
    assert_eq!(server.client("alice").ok(json!({"type": "ping"}))["type"], "ok");
}

#[test]
fn a_folder_that_is_in_use_or_no_folder() {
    let server = Server::shards(1);
    let (code, line) = start(&Options::shards(1), &server.data_dir(), |_| {});
    assert_eq!(code, Some(5), "{line}");
    assert!(line.contains(&*server.data_dir().to_string_lossy()), "{line}");
    assert_eq!(server.client("alice").hello["user"], "alice");
    let dir = TempDir::new();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let (code, line) = start(&Options::shards(1), &file, |_| {});
    assert_eq!(code, Some(5), "{line}");
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(
        broken.join("antiphon.db"),
        "this is no database, but it is long enough to be looked at".repeat(100),
    )
    .unwrap();
    let (code, line) = start(&Options::shards(1), &broken, |_| {});
    assert_eq!(code, Some(5), "{line}");
}

#[test]
fn a_shard_that_cannot_start() {
    let dir = TempDir::new();
    for shards in [1, 3] {
        let (code, line) = start(&Options::shards(shards).locked_kib(64), dir.path(), |_| {});
        assert_eq!(code, Some(3), "{line}");
        assert!(line.contains("shard 0 did not start") && line.contains("antiphon check"), "{line}");
    }
}

#[test]
fn while_it_starts_it_says_so_and_can_be_stopped() {
    let mut server = Server::shards(1);
    server.terminate();
    assert_eq!(server.wait().code(), Some(0));
    // The store waits for whoever writes to its database, for five seconds.
    let other = rusqlite::Connection::open(server.data_dir().join("antiphon.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Below the ports that are given to those who ask for any.
    let port = 20_000 + (std::process::id() % 5_000) as u16 * 2;
    let (public, control) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", port + 1));
    let options = Options::shards(2).with("--listen", &public).with("--control-listen", &control);
    let mut command = options.command(&server.data_dir());
    let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while std::net::TcpStream::connect(&control).is_err() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let ask = |path: &str| http::get(control.parse().unwrap(), path);
    let ready = ask("/health/ready");
    assert_eq!((ready.status, &ready.json()["accepting"]), (503, &json!(false)));
    assert_eq!((ask("/health/live").status, ask("/metrics").status), (200, 200));
    let bearer = format!("Bearer {}", crate::support::ADMIN_TOKEN);
    let early = http::request(control.parse().unwrap(), "GET", "/admin/presence", &[("Authorization", &bearer)], "");
    assert_eq!((early.status, &early.json()["code"]), (503, &json!(113)), "{}", early.body);
    assert!(std::net::TcpStream::connect(&public).is_err(), "nobody is let in yet");
    // The port is taken all the same.
    let dir = TempDir::new();
    let (code, line) = start(&Options::shards(1).with("--listen", &public), dir.path(), |_| {});
    assert_eq!(code, Some(4), "{line}");
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(crate::support::wait_for(&mut child, "the end of the start").code(), Some(0));
}

#[test]
fn settings_that_are_wrong() {
    let dir = TempDir::new();
    let config = dir.path().join("config.toml");
    let with_config = |text: &str| {
        std::fs::write(&config, text).unwrap();
        start(&Options::shards(1).with("--config", &config.to_string_lossy()), &dir.path().join("data"), |_| {})
    };
    for text in ["[server", "[server]\nlisten = 5", "[server]\nno_such_knob = 1", "[nothing]\nx = 1", "\u{0}"] {
        let (code, line) = with_config(text);
        assert_eq!(code, Some(2), "{text:?}: {line}");
        assert!(!line.is_empty(), "{text:?}");
    }
    let missing = Options::shards(1).with("--config", "/nonexistent/config.toml");
    let (code, line) = start(&missing, &dir.path().join("data"), |_| {});
    assert_eq!(code, Some(2), "{line}");
    assert!(line.contains("/nonexistent/config.toml"), "{line}");
    for (flag, value) in [
        ("--listen", "nowhere"),
        ("--shards", "0"),
        ("--shards", "many"),
        ("--heartbeat-ms", "5"),
        ("--durability", "hope"),
        ("--outbox-bytes-max", "4096"),
        ("--log-level", "antiphon=loud"),
        ("--origins", "good.example"),
        ("--jwks-file", "/nonexistent"),
    ] {
        let (code, line) = start(&Options::shards(1).with(flag, value), &dir.path().join("data"), |_| {});
        assert_eq!(code, Some(2), "{flag} {value}: {line}");
    }
    let (code, line) = start(&Options::shards(1), &dir.path().join("data"), |command| {
        command.env("ANTIPHON_JWT_SECRET", "short");
    });
    assert_eq!(code, Some(2), "{line}");
    assert!(line.contains("32") && !line.contains("short"), "{line}");
}

#[test]
fn without_any_key_a_development_secret_is_made() {
    let dir = TempDir::new();
    let data = dir.path().join("data");
    let serve = |print_config: bool| {
        let mut command = Options::shards(1).command(&data);
        command.env_remove("ANTIPHON_JWT_SECRET");
        if print_config {
            command.arg("--print-config");
        }
        command
    };
    let (code, printed, _) = run_to_end(serve(true));
    assert_eq!(code, Some(0));
    assert!(printed.contains("[limits]") && printed.contains("shards = 1"), "{printed}");
    assert!(!data.exists(), "printing makes nothing");
    let mut child =
        serve(false).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let secret = data.join("dev-secret");
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while !secret.exists() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let mode = std::fs::metadata(&secret).map(|meta| meta.permissions().mode() & 0o777);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(mode.unwrap(), 0o600);
}
