//! What the store costs, alone: rows a second and CPU a row at several batch sizes, beside a bare
//! SQLite loop that appends the same rows. Plain figures on standard output:
//!
//! `cargo bench --bench store [-- seconds-per-case]`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use antiphon::engine::event::{Append, Entry, NewMessage, ReadReply, ShardId, StoreEvent, Token};
use antiphon::protocol::ids::{Priority, RoomKey, RoomName, UserId};
use antiphon::store::{LogListener, RoomLog, SqliteLog, StoreConfig};
use rusqlite::Connection;

/// Rooms that the rows are spread over, as in `antiphon-load chat` with 2,000 clients.
const ROOMS: u64 = 200;
const SIZES: [usize; 4] = [1, 10, 100, 1_000];
/// `"body"` of 64 bytes and a trace id.
const FIELDS: &str =
    "\"body\":\"0123456789012345678901234567890123456789012345678901234567890123\",\"trace\":\"0123456789abcdef\"";

fn main() {
    // Cargo passes `--bench`; a number is ours.
    let seconds = std::env::args().find_map(|arg| arg.parse::<f64>().ok()).unwrap_or(3.0);
    let limit = Duration::from_secs_f64(seconds);
    println!("{ROOMS} rooms, rows of {} bytes of fields, {seconds} s a case", FIELDS.len());
    println!("{:>6}  {:<28} {:>10} {:>10} {:>12}", "batch", "what", "rows/s", "CPU µs/row", "commits/s");
    for size in SIZES {
        for indexed in [false, true] {
            bare(size, indexed, limit);
        }
        store(size, limit);
    }
}

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        // Beside the build's output: a disk, where /tmp may be memory.
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the target folder can be written");
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// CPU time of all live threads of this process, µs.
fn cpu_us() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux").flatten();
    let of_task = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    tasks.filter_map(of_task).sum::<f64>() / 1_000.0
}

fn line(size: usize, what: &str, rows: u64, took: Duration, cpu_us: f64, commits: u64) {
    let seconds = took.as_secs_f64();
    println!(
        "{size:>6}  {what:<28} {:>10.0} {:>10.2} {:>12.0}",
        rows as f64 / seconds,
        cpu_us / rows as f64,
        commits as f64 / seconds
    );
}

fn bare(size: usize, indexed: bool, limit: Duration) {
    let dir = TempDir::new("bare");
    let conn = Connection::open(dir.0.join("bare.db")).expect("a database");
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE log (position INTEGER PRIMARY KEY, room INTEGER, seq INTEGER, ts INTEGER, kind INTEGER,
         priority INTEGER, author TEXT, client_id TEXT, thread INTEGER, audience TEXT, fields TEXT);",
    )
    .expect("a table");
    if indexed {
        conn.execute_batch("CREATE UNIQUE INDEX log_room_seq ON log (room, seq)").expect("an index");
    }
    let mut insert = conn.prepare("INSERT INTO log VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)").expect("SQL");
    let (began, cpu, mut n, mut commits) = (Instant::now(), cpu_us(), 0u64, 0u64);
    while began.elapsed() < limit {
        conn.execute_batch("BEGIN").expect("begin");
        for _ in 0..size {
            n += 1;
            let client_id = format!("client-{n}");
            insert
                .execute(rusqlite::params![
                    n as i64,
                    (n % ROOMS) as i64,
                    (n / ROOMS) as i64,
                    1_700_000_000_000i64,
                    1,
                    1,
                    "author-0001",
                    client_id,
                    None::<i64>,
                    None::<&str>,
                    FIELDS
                ])
                .expect("insert");
        }
        conn.execute_batch("COMMIT").expect("commit");
        commits += 1;
    }
    let what = if indexed { "bare loop + index" } else { "bare loop" };
    line(size, what, n, began.elapsed(), cpu_us() - cpu, commits);
}

struct Ear(flume::Sender<StoreEvent>);

impl LogListener for Ear {
    fn on_store(&self, event: StoreEvent) {
        let _ = self.0.send(event);
    }

    fn on_read(&self, _reply: ReadReply) {}
}

fn store(size: usize, limit: Duration) {
    let dir = TempDir::new("store");
    let mut config = StoreConfig::new(&dir.0);
    config.commit_window_us = 0;
    let (open, _) = SqliteLog::open(&config).expect("a store");
    let (to_ear, ear) = flume::unbounded();
    let running = open.start(vec![Box::new(Ear(to_ear))]).expect("threads");
    let log = running.log();
    let user = UserId::parse("author-0001").expect("a name");
    let append = |token: u64, entry: Entry| Append { shard: ShardId(0), token: Token(token), seen: u64::MAX, entry };
    let wait = || match ear.recv() {
        Ok(StoreEvent::Batch(batch)) => batch,
        other => panic!("no batch: {other:?}"),
    };
    for room in 0..ROOMS {
        let room = RoomName::parse(&format!("room-{room}")).expect("a name");
        let joiner = UserId::parse(&format!("owner-{room}")).expect("a name");
        log.submit(vec![append(0, Entry::Join { room, user: joiner, auto_create: true })]).expect("room in the inbox");
        let batch = wait();
        assert!(batch.outcomes[0][0].result.is_ok());
    }
    // The appends are made beforehand in part: their cost is the shard's, not the store's. What a
    // list costs to make here is counted all the same.
    let (began, cpu, mut n, mut commits) = (Instant::now(), cpu_us(), 0u64, 0u64);
    let mut in_flight = 0usize;
    while began.elapsed() < limit {
        // Two lists in flight, so that the writer never waits for us.
        while in_flight < 2 {
            let list = (0..size).map(|_| {
                n += 1;
                append(
                    n,
                    Entry::Message(NewMessage {
                        room: RoomKey(n % ROOMS + 1),
                        author: user.clone(),
                        client_id: Some(format!("client-{n}").into()),
                        fields: FIELDS.into(),
                        thread: None,
                        audience: None,
                        priority: Priority::Normal,
                    }),
                )
            });
            log.submit(list.collect()).expect("room in the inbox");
            in_flight += 1;
        }
        in_flight -= 1;
        let batch = wait();
        let answered: usize = batch.outcomes.iter().map(Vec::len).sum();
        in_flight -= (answered / size).saturating_sub(1);
        commits += 1;
    }
    let (took, cpu) = (began.elapsed(), cpu_us() - cpu);
    let stats = running.stats();
    line(size, "store", n - (in_flight * size) as u64, took, cpu, commits);
    let (p50, p99) = (stats.commit_us.value_at_quantile(0.5), stats.commit_us.value_at_quantile(0.99));
    println!(
        "{:>6}  commit p50 {p50} µs, p99 {p99} µs; {} checkpoints, wal {} KiB",
        "",
        stats.checkpoints,
        stats.wal_bytes / 1024
    );
    drop(log);
    running.stop();
}
