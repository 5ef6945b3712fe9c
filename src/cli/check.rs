//! `antiphon check`: one line for each thing that the server needs of the machine, with what to do
//! where it is missing. It changes nothing, except a small file that it writes and removes to time
//! the disk, and the lock of the folder, which it holds while it looks at the database.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::{Shared, process};
use crate::config::Config;
use crate::config::secrets::is_open_to_others;
use crate::exit::{Exit, StartError};
use crate::server::descriptors::needed;
use crate::store::schema::{LOCK_FILE, probe_database};

/// glommio asks for this much locked memory for each executor.
const LOCKED_BYTES_MIN: u64 = 512 * 1024;
/// Open files below which a server is a toy.
const OPEN_FILES_LOW: u64 = 65_536;
/// Writes that are timed.
const SYNCS: usize = 24;
/// Median time of a sync above which acknowledgements feel slow.
const SYNC_SLOW: Duration = Duration::from_millis(10);

/// Flags of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Exits with 3 when a line says FAIL.")]
pub struct Check {
    #[command(flatten)]
    shared: Shared,
    /// Where clients will connect [default: 127.0.0.1:8080]
    #[arg(long, env = "ANTIPHON_LISTEN", hide_env = true, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Where operators will connect [default: 127.0.0.1:8081]
    #[arg(long, env = "ANTIPHON_CONTROL_LISTEN", hide_env = true, value_name = "IP:PORT")]
    control_listen: Option<SocketAddr>,
    /// Threads that will serve clients [default: auto]
    #[arg(long, env = "ANTIPHON_SHARDS", hide_env = true, value_name = "auto|N")]
    shards: Option<crate::config::value::ShardCount>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do, unless all is well.
    advice: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn bad(what: &'static str, verdict: Verdict, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict, found: found.into(), advice: Some(advice.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "OK",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{verdict:<5} {:<14} {}", self.what, self.found)?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl Check {
    /// # Errors
    /// The configuration is wrong. What is wrong with the machine is in the report, not an error.
    pub(super) fn run(&self) -> Result<Exit, StartError> {
        let mut flags = self.shared.flags();
        flags.server.listen = self.listen.or(flags.server.listen);
        flags.server.control_listen = self.control_listen.or(flags.server.control_listen);
        flags.server.shards = self.shards.or(flags.server.shards);
        let config = Config::load(&flags)?;
        let mut worst_is_fail = false;
        for finding in findings(&config) {
            worst_is_fail |= finding.verdict == Verdict::Fail;
            super::print(&format!("{finding}\n"))?;
        }
        Ok(if worst_is_fail { Exit::Environment } else { Exit::Ok })
    }
}

fn findings(config: &Config) -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    vec![
        io_uring(),
        locked_memory(process::locked_bytes(), config.server.shards),
        open_files(process::open_files(), needed(config.server.shards, config.store.reader_threads)),
        shards(config.server.shards, cores),
        folder(&config.server.data_dir),
        disk(&config.server.data_dir),
        port("listen", config.server.listen),
        port("control listen", config.server.control_listen),
    ]
}

fn io_uring() -> Finding {
    match crate::shard::probe::probe() {
        Ok(report) => Finding::ok("kernel", report.to_string()),
        Err(sentence) => Finding::bad("kernel", Verdict::Fail, sentence, "the server cannot start without it"),
    }
}

fn locked_memory(limit: io::Result<process::Limit>, shards: u16) -> Finding {
    let needed = LOCKED_BYTES_MIN * u64::from(shards);
    let advice = format!(
        "raise it to {} KiB or more: ulimit -l, LimitMEMLOCK= in systemd, --ulimit memlock= in Docker",
        needed / 1024
    );
    match limit {
        Ok(limit) if limit.soft >= needed => Finding::ok("locked memory", bytes(limit.soft)),
        Ok(limit) => Finding::bad("locked memory", Verdict::Fail, bytes(limit.soft), advice),
        Err(err) => Finding::bad("locked memory", Verdict::Warn, format!("not known: {err}"), advice),
    }
}

fn open_files(limit: io::Result<process::Limit>, needed: u64) -> Finding {
    let advice = "raise it: ulimit -Hn, LimitNOFILE= in systemd, --ulimit nofile= in Docker";
    match limit {
        Ok(limit) => {
            // `serve` raises the soft limit to the hard one by itself.
            let found = format!("{}, one for each connection", limit.hard);
            match limit.hard {
                OPEN_FILES_LOW.. => Finding::ok("open files", found),
                hard if hard >= needed => Finding::bad("open files", Verdict::Warn, found, advice),
                _ => Finding::bad("open files", Verdict::Fail, format!("{found}; {needed} are needed"), advice),
            }
        }
        Err(err) => Finding::bad("open files", Verdict::Warn, format!("not known: {err}"), advice),
    }
}

fn shards(shards: u16, cores: usize) -> Finding {
    let found = format!("{shards} on {cores} core{}", if cores == 1 { "" } else { "s" });
    if usize::from(shards) > cores {
        return Finding::bad("shards", Verdict::Warn, found, "more shards than cores cost latency and gain nothing");
    }
    Finding::ok("shards", found)
}

/// Whether a server could have the folder to itself.
fn folder(data_dir: &Path) -> Finding {
    let what = "data folder";
    let shown = data_dir.display();
    let there = existing(data_dir);
    if !there.is_dir() {
        let found = format!("{} is no folder", there.display());
        return Finding::bad(what, Verdict::Fail, found, "give the server a folder (--data-dir)");
    }
    match hold(data_dir) {
        Ok(Hold::Taken) => {
            let advice = "stop that one, or give this one a folder of its own (--data-dir)";
            Finding::bad(what, Verdict::Fail, format!("{shown} is in use by another antiphon process"), advice)
        }
        Ok(Hold::Free(_)) if there != data_dir => Finding::ok(what, format!("{shown} would be made")),
        Ok(Hold::Free(_lock)) => match probe_database(data_dir) {
            Err(err) => Finding::bad(what, Verdict::Fail, err.about(data_dir), "the server could not open it"),
            Ok(()) if is_open_to_others(data_dir) => {
                let found = format!("{shown} is open to other users");
                Finding::bad(what, Verdict::Warn, found, "chmod 700, StateDirectoryMode=0700 in systemd")
            }
            Ok(()) => Finding::ok(what, shown.to_string()),
        },
        Err(err) => {
            let advice = "the server must be able to write the files in its folder";
            Finding::bad(what, Verdict::Fail, format!("{shown} cannot be used: {err}"), advice)
        }
    }
}

/// Who has a data folder.
enum Hold {
    /// This process, as long as it keeps the file; none: nobody ever had it.
    Free(Option<File>),
    /// Another one.
    Taken,
}

/// Takes the lock of the folder, without making the file.
fn hold(data_dir: &Path) -> io::Result<Hold> {
    let file = match OpenOptions::new().write(true).open(data_dir.join(LOCK_FILE)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Hold::Free(None)),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Hold::Free(Some(file))),
        Err(TryLockError::WouldBlock) => Ok(Hold::Taken),
        Err(TryLockError::Error(err)) => Err(err),
    }
}

fn disk(data_dir: &Path) -> Finding {
    let folder = existing(data_dir);
    let shown = folder.display();
    let times = match sync_times(&folder) {
        Ok(times) => times,
        Err(err) => {
            let advice = "give the server a folder that it may write to (--data-dir)";
            return Finding::bad("disk", Verdict::Fail, format!("{shown} cannot be written: {err}"), advice);
        }
    };
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let found = format!(
        "a sync in {shown} takes {:.2} ms, at worst {:.2} ms",
        median.as_secs_f64() * 1e3,
        worst.as_secs_f64() * 1e3
    );
    if median > SYNC_SLOW {
        let advice = "every acknowledgement waits for one; a local SSD takes about 1 ms";
        return Finding::bad("disk", Verdict::Warn, found, advice);
    }
    Finding::ok("disk", found)
}

/// The folder itself or, before it is made, where it would be made. Whatever has the name is taken, so that a file
/// (or a link to nothing) in the place of a folder is found.
fn existing(path: &Path) -> PathBuf {
    let here = PathBuf::from(".");
    path.ancestors()
        .map(|ancestor| if ancestor.as_os_str().is_empty() { here.clone() } else { ancestor.to_owned() })
        .find(|ancestor| ancestor.symlink_metadata().is_ok())
        .unwrap_or(here)
}

/// Times of writing and syncing a page, ascending.
fn sync_times(folder: &Path) -> io::Result<Vec<Duration>> {
    let path = folder.join(format!(".antiphon-check-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let times = time_syncs(&mut file);
    fs::remove_file(&path)?;
    times
}

fn time_syncs(file: &mut File) -> io::Result<Vec<Duration>> {
    let page = [0x5a; 4096];
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn port(what: &'static str, address: SocketAddr) -> Finding {
    match port_is_free(address) {
        Ok(()) if address.port() == 0 => Finding::ok(what, format!("{address}: any free port")),
        Ok(()) => Finding::ok(what, format!("{address} is free")),
        Err(err) => {
            Finding::bad(what, Verdict::Fail, format!("{address} cannot be used"), crate::control::in_words(&err))
        }
    }
}

/// Whether nobody listens at `address`. The shards' listeners share their port (SO_REUSEPORT), so that
/// they alone would not notice a second server; this asks without sharing.
///
/// # Errors
/// Why it cannot be used.
pub fn port_is_free(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

fn bytes(count: u64) -> String {
    match count {
        u64::MAX => "unlimited".to_owned(),
        count => format!("{} KiB", count / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    fn limit(hard: u64) -> io::Result<process::Limit> {
        Ok(process::Limit { soft: hard, hard })
    }

    #[test]
    fn limits_are_judged() {
        assert_eq!(locked_memory(limit(u64::MAX), 8).to_string(), "OK    locked memory  unlimited");
        let short = locked_memory(limit(64 * 1024), 2);
        assert_eq!(short.verdict, Verdict::Fail);
        assert!(short.to_string().contains("64 KiB; raise it to 1024 KiB"), "{short}");
        for (hard, verdict) in [(u64::MAX, Verdict::Ok), (4_096, Verdict::Warn), (64, Verdict::Fail)] {
            assert_eq!(open_files(limit(hard), 100).verdict, verdict, "{hard}");
        }
        assert_eq!(shards(2, 2).verdict, Verdict::Ok);
        assert_eq!(shards(4, 2).verdict, Verdict::Warn);
    }

    #[test]
    fn the_disk_is_timed_and_left_clean() {
        let folder = TestDir::new("check");
        let finding = disk(&folder.0.join("not/yet/made"));
        assert!(finding.found.contains("a sync in"), "{finding}");
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
        assert_eq!(disk(Path::new("/proc")).verdict, Verdict::Fail);
    }

    #[test]
    fn a_folder_that_no_server_could_have_is_found() {
        let dir = TestDir::new("check-folder");
        let file = dir.0.join("file");
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(dir.0.join("nothing"), dir.0.join("link")).unwrap();
        for path in [file.clone(), file.join("below"), dir.0.join("link")] {
            for finding in [folder(&path), disk(&path)] {
                assert_eq!(finding.verdict, Verdict::Fail, "{path:?}: {finding}");
            }
        }
        assert!(folder(&dir.0.join("not/yet")).to_string().contains("not/yet would be made"));
        assert!(folder(&dir.0).to_string().contains("open to other users"));
        fs::set_permissions(&dir.0, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(folder(&dir.0).verdict, Verdict::Ok);
        let lock = File::create(dir.0.join(LOCK_FILE)).unwrap();
        assert_eq!(folder(&dir.0).verdict, Verdict::Ok, "left by a server that has ended");
        lock.try_lock().unwrap();
        let taken = folder(&dir.0);
        assert_eq!(taken.verdict, Verdict::Fail);
        assert!(taken.to_string().contains("in use by another antiphon process"), "{taken}");
    }

    #[test]
    fn a_database_that_no_server_could_open_is_found() {
        let dir = TestDir::new("check-database");
        fs::set_permissions(&dir.0, Permissions::from_mode(0o700)).unwrap();
        let path = dir.0.join("antiphon.db");
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.execute_batch("CREATE TABLE t (a)").unwrap();
        assert!(folder(&dir.0).to_string().contains("antiphon.db was not made by antiphon"));
        conn.execute_batch("PRAGMA application_id = 0x416e7469; PRAGMA user_version = 99").unwrap();
        let newer = folder(&dir.0);
        assert_eq!(newer.verdict, Verdict::Fail);
        assert!(newer.to_string().contains("schema version 99"), "{newer}");
        // What a crash leaves stays as it is.
        conn.execute_batch("PRAGMA user_version = 1; PRAGMA journal_mode = WAL; INSERT INTO t VALUES (1)").unwrap();
        let wal = fs::read(dir.0.join("antiphon.db-wal")).unwrap();
        let whole = fs::read(&path).unwrap();
        drop(conn);
        fs::write(&path, &whole).unwrap();
        fs::write(dir.0.join("antiphon.db-wal"), &wal).unwrap();
        assert_eq!(folder(&dir.0).verdict, Verdict::Ok);
        assert_eq!((fs::read(&path).unwrap(), fs::read(dir.0.join("antiphon.db-wal")).unwrap()), (whole, wal));
        fs::write(&path, "no database".repeat(1_000)).unwrap();
        let garbage = folder(&dir.0).to_string();
        assert!(garbage.contains("FAIL") && garbage.contains("antiphon.db"), "{garbage}");
    }

    #[test]
    fn a_taken_port_is_found() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = port("listen", holder.local_addr().unwrap());
        assert_eq!(taken.verdict, Verdict::Fail);
        assert!(taken.to_string().contains("taken by another process"), "{taken}");
        assert_eq!(port("listen", "127.0.0.1:0".parse().unwrap()).verdict, Verdict::Ok);
    }
}
