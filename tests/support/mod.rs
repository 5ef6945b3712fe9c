//! What tests against the running binary share: a server process on free ports with a folder of its
//! own, tokens, HTTP requests, and a blocking WebSocket client (`client`).
//!
//! Nothing here looks inside the server: it is driven by flags, signals, sockets and files, as any
//! operator or client would. Every wait is bounded, and every process is reaped when its owner drops.
#![allow(dead_code, clippy::unwrap_used)]

pub mod client;
pub mod http;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use antiphon::gateway::token::{NewToken, mint};
use antiphon::protocol::ids::UserId;

#[allow(unused_imports)]
pub use client::{Client, Connect, End, Heard};

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// HS256 secret of every test server.
pub const SECRET: &str = "integration-tests-only-0123456789";
/// Bearer token of every test server's admin API.
pub const ADMIN_TOKEN: &str = "integration-admin-token";

/// A folder that goes away with the test.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("antiphon-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A token of `user` for an hour.
pub fn token(user: &str) -> String {
    token_with(user, |_| {})
}

/// A token of `user`, with whatever `change` adds.
pub fn token_with(user: &str, change: impl FnOnce(&mut NewToken<'_>)) -> String {
    let user = UserId::parse(user).unwrap();
    let now = now_ms();
    let mut new = NewToken::new(&user, now, now + 3_600_000);
    change(&mut new);
    mint(SECRET.as_bytes(), &new).unwrap()
}

/// A token of `user` that covers these room patterns only; `true`: also for writing.
pub fn token_for_rooms(user: &str, rooms: &[(&str, bool)]) -> String {
    let user = UserId::parse(user).unwrap();
    let rooms: Vec<(String, bool)> =
        rooms.iter().map(|(pattern, may_write)| ((*pattern).to_owned(), *may_write)).collect();
    let now = now_ms();
    let new = NewToken { rooms: Some(&rooms), ..NewToken::new(&user, now, now + 3_600_000) };
    mint(SECRET.as_bytes(), &new).unwrap()
}

/// For `env`: a server takes SIGHUP for ignored where its parent has it so, as tests that were started with `nohup` do.
const HEAR_HANG_UP: &str = "--default-signal=HUP";

/// How a test server is started.
#[derive(Default)]
pub struct Options {
    flags: Vec<String>,
    open_files: Option<u32>,
    file_kib: Option<u32>,
    locked_kib: Option<u32>,
}

impl Options {
    /// `shards` shards on free ports, without rates.
    pub fn shards(shards: u16) -> Self {
        Self::default()
            .with("--listen", "127.0.0.1:0")
            .with("--control-listen", "127.0.0.1:0")
            .with("--shards", &shards.to_string())
            .with("--rate-limits", "off")
            .with("--drain-ms", "2000")
            .with("--pin", "off")
    }

    /// With a flag and its value; a flag given later wins over an earlier one.
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        if let Some(at) = self.flags.iter().position(|known| known == flag) {
            self.flags.drain(at..at + 2);
        }
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// With at most so many open files.
    pub fn open_files(mut self, most: u32) -> Self {
        self.open_files = Some(most);
        self
    }

    /// With at most so many KiB of locked memory.
    pub fn locked_kib(mut self, most: u32) -> Self {
        self.locked_kib = Some(most);
        self
    }

    /// With files of at most so many KiB: writing past that fails as on a full disk.
    pub fn file_kib(mut self, most: u32) -> Self {
        self.file_kib = Some(most);
        self
    }

    pub fn file_kib_off(&mut self) {
        self.file_kib = None;
    }

    /// The command, for a server on free ports whose data is in `dir`.
    pub fn command(&self, dir: &Path) -> Command {
        let binary = env!("CARGO_BIN_EXE_antiphon");
        let mut limits = String::new();
        if let Some(most) = self.open_files {
            limits.push_str(&format!("ulimit -n {most}; "));
        }
        if let Some(most) = self.locked_kib {
            limits.push_str(&format!("ulimit -l {most}; "));
        }
        if let Some(most) = self.file_kib {
            // `ulimit` counts blocks of 512 bytes.
            limits.push_str(&format!("ulimit -f {}; ", most * 2));
        }
        let mut command = match limits.as_str() {
            "" => {
                let mut env = Command::new("env");
                env.args([HEAR_HANG_UP, binary]);
                env
            }
            limits => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{limits}exec env {HEAR_HANG_UP} \"$0\" \"$@\""), binary]);
                shell
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ANTIPHON_") {
                command.env_remove(name);
            }
        }
        command.arg("serve").arg("--data-dir").arg(dir).args(&self.flags);
        command.env("ANTIPHON_JWT_SECRET", SECRET).env("ANTIPHON_ADMIN_TOKEN", ADMIN_TOKEN);
        // Away from the repository: its config.toml is not for tests.
        command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
        command
    }

    /// Starts a server in a new folder.
    pub fn start(self) -> Server {
        let dir = TempDir::new();
        Server::start(self, dir)
    }
}

/// A running server. Killed and reaped when dropped, with its folder.
pub struct Server {
    pub public: SocketAddr,
    pub control: SocketAddr,
    pub dir: TempDir,
    options: Options,
    child: Child,
    log: PathBuf,
    /// From the start of the process to its ready line.
    pub ready_after: Duration,
    /// The ready line.
    pub ready_line: String,
}

impl Server {
    /// A server of `shards` shards in a new folder.
    pub fn shards(shards: u16) -> Self {
        Options::shards(shards).start()
    }

    /// A server on the data in `dir`.
    pub fn start(options: Options, dir: TempDir) -> Self {
        let data = dir.path().join("data");
        let log = dir.path().join("log");
        let run = Run::start(&options, &data, &log);
        Self {
            public: run.public,
            control: run.control,
            dir,
            options,
            child: run.child,
            log,
            ready_after: run.ready_after,
            ready_line: run.ready_line,
        }
    }

    /// How it is started the next time.
    pub fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(status.success(), "the server is gone already");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for(&mut self.child, "the server's end")
    }

    /// Starts it again on the same data, on new ports. It must have ended.
    pub fn restart(&mut self) {
        assert!(self.child.try_wait().unwrap().is_some(), "still running");
        let run = Run::start(&self.options, &self.data_dir(), &self.log);
        self.child = run.child;
        (self.public, self.control, self.ready_after) = (run.public, run.control, run.ready_after);
        self.ready_line = run.ready_line;
    }

    /// A graceful stop and a new start.
    pub fn stop_and_restart(&mut self) {
        self.terminate();
        assert_eq!(self.wait().code(), Some(0), "{}", self.log());
        self.restart();
    }

    /// A connected client of `user`, from the device `default`.
    pub fn client(&self, user: &str) -> Client {
        self.device(user, "default")
    }

    /// A connected client of `user`, from `device`.
    pub fn device(&self, user: &str, device: &str) -> Client {
        Client::open(self.public, Connect::new(user).device(device))
    }

    /// A request to the admin API, and its JSON answer.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let answer = self.admin_with(method, path, &[], body);
        (answer.status, answer.json())
    }

    /// A request to the admin API with more headers.
    pub fn admin_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> http::Answer {
        let bearer = format!("Bearer {ADMIN_TOKEN}");
        let mut all = vec![("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        all.extend_from_slice(headers);
        http::request(self.control, method, path, &all, body)
    }

    /// The sum of one counter over all shards, from `/admin/stats`.
    pub fn stat(&self, name: &str) -> u64 {
        let (status, stats) = self.admin("GET", "/admin/stats", "");
        assert_eq!(status, 200, "{stats}");
        stats["shards"].as_array().unwrap().iter().map(|shard| shard[name].as_u64().unwrap()).sum()
    }

    /// Waits until the sum of a counter fits.
    pub fn wait_for_stat(&self, name: &str, fits: impl Fn(u64) -> bool) -> u64 {
        let until = Instant::now() + PATIENCE;
        loop {
            let value = self.stat(name);
            if fits(value) {
                return value;
            }
            assert!(Instant::now() < until, "{name} stays at {value}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("-- end of the server's log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A process that has said that it is ready.
struct Run {
    child: Child,
    public: SocketAddr,
    control: SocketAddr,
    ready_after: Duration,
    ready_line: String,
}

impl Run {
    fn start(options: &Options, data: &Path, log: &Path) -> Self {
        let log_file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let began = Instant::now();
        let mut child = options.command(data).stdout(Stdio::piped()).stderr(log_file).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        let mut next = |what: &str| match lines.recv_timeout(PATIENCE) {
            Ok((at, line)) if line.contains(what) => (at, line),
            other => {
                let _ = child.kill();
                let _ = child.wait();
                let log = std::fs::read_to_string(log).unwrap_or_default();
                panic!("no {what:?} from the server, but {other:?}; its log:\n{log}");
            }
        };
        let (ready_at, ready_line) = next("antiphon ready");
        let address = |line: &str| {
            let (_, rest) = line.split_once("://").unwrap();
            rest.split('/').next().unwrap().parse::<SocketAddr>().unwrap()
        };
        let public = address(&next("listen").1);
        let control = address(&next("control").1);
        Self { public, control, ready_after: ready_at - began, ready_line, child }
    }
}

/// Waits for a process to end, for a bounded time.
pub fn wait_for(child: &mut Child, what: &str) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} did not come");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end: exit code, standard output, standard error.
pub fn run_to_end(mut command: Command) -> (Option<i32>, String, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = wait_for(&mut child, "the end of a command");
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (status.code(), out, err)
}
