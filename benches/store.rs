//! What the store costs, alone: rows a second and CPU a row at several batch sizes, beside bare SQLite
//! loops that append the same rows. Plain figures on standard output:
//!
//! - `cargo bench --bench store [-- seconds-per-case [batch-size]]`; with a batch size, the store alone
//! - `cargo bench --bench store -- fill ROWS`: does it get slower, and how long does opening it take?
//! - `cargo bench --bench store -- members ROWS`: what does a join cost as the member table grows?

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use antiphon::engine::event::{Append, Entry, NewMessage, Query, ReadReply, ReadRequest, ShardId, StoreEvent, Token};
use antiphon::protocol::ids::{Priority, RoomKey, RoomName, UserId};
use antiphon::store::{LogListener, Origin, RoomLog, RunningLog, SqliteLog, StoreConfig};
use rusqlite::Connection;

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rooms that the rows are spread over, as in `antiphon-load chat` with 2,000 clients.
const ROOMS: u64 = 200;
const SIZES: [usize; 4] = [1, 10, 100, 1_000];
/// `"body"` of 64 bytes and a trace id.
const FIELDS: &str =
    "\"body\":\"0123456789012345678901234567890123456789012345678901234567890123\",\"trace\":\"0123456789abcdef\"";

/// As wide as most hashes are.
const HASH: i64 = 0x5bd1_e995_1234_5678;

fn main() {
    let rows = |word| std::env::args().skip_while(|arg| arg != word).nth(1)?.parse().ok();
    if let Some(rows) = rows("fill") {
        return fill(rows);
    }
    if let Some(rows) = rows("members") {
        return members(rows);
    }
    // Cargo passes `--bench`; numbers are ours.
    let mut numbers = std::env::args().filter_map(|arg| arg.parse::<f64>().ok());
    let seconds = numbers.next().unwrap_or(3.0);
    let only = numbers.next().map(|size| size as usize);
    let limit = Duration::from_secs_f64(seconds);
    println!("{ROOMS} rooms, rows of {} bytes of fields, {seconds} s a case", FIELDS.len());
    println!("{:>6}  {:<28} {:>10} {:>10} {:>12}", "batch", "what", "rows/s", "CPU µs/row", "commits/s");
    if let Some(size) = only {
        return store(size, limit);
    }
    for size in SIZES {
        for tables in [Bare::Log, Bare::Indexed, Bare::Same] {
            bare(size, tables, limit);
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

/// CPU time of all live threads of this process, and of those but the one that asks, µs.
fn cpu_us() -> (f64, f64) {
    let us_of = |task: &Path| {
        let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
        Some(text.split(' ').next()?.parse::<f64>().ok()? / 1_000.0)
    };
    let own = us_of(Path::new("/proc/thread-self")).expect("Linux");
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux").flatten();
    let all: f64 = tasks.filter_map(|task| us_of(&task.path())).sum();
    (all, all - own)
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

/// What the bare loop appends to.
#[derive(Clone, Copy)]
enum Bare {
    /// A table of rows, by which nothing is found.
    Log,
    /// The same with an index on (room, seq).
    Indexed,
    /// The tables of the store: the log, where each room's last entry stands, and where every 64th does.
    Same,
}

fn bare(size: usize, tables: Bare, limit: Duration) {
    let dir = TempDir::new("bare");
    let conn = Connection::open(dir.0.join("bare.db")).expect("a database");
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE log (position INTEGER PRIMARY KEY, room INTEGER, seq INTEGER, prev INTEGER, ts INTEGER,
             kind INTEGER, priority INTEGER, author TEXT, client_id TEXT, thread INTEGER, audience TEXT, fields TEXT);
         CREATE TABLE heads (room INTEGER PRIMARY KEY, seq INTEGER, position INTEGER, messages INTEGER, hash INTEGER);
         CREATE TABLE anchors (room INTEGER, seq INTEGER, position INTEGER, messages INTEGER, hash INTEGER,
             PRIMARY KEY (room, seq)) WITHOUT ROWID;",
    )
    .expect("tables");
    let what = match tables {
        Bare::Log => "bare loop",
        Bare::Indexed => {
            conn.execute_batch("CREATE UNIQUE INDEX log_room_seq ON log (room, seq)").expect("an index");
            "bare loop + index"
        }
        Bare::Same => {
            let index = "CREATE INDEX log_thread ON log (room, thread, seq) WHERE thread IS NOT NULL";
            conn.execute_batch(index).expect("an index");
            "bare loop, the same tables"
        }
    };
    let mut insert = conn.prepare("INSERT INTO log VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)").expect("SQL");
    let mut anchor = conn.prepare("INSERT INTO anchors VALUES (?1,?2,?3,?4,?5)").expect("SQL");
    let mut head = conn
        .prepare(
            "INSERT INTO heads VALUES (?1,?2,?3,?4,?5) ON CONFLICT (room) DO UPDATE SET seq = excluded.seq,
             position = excluded.position, messages = excluded.messages, hash = excluded.hash",
        )
        .expect("SQL");
    let (began, cpu, mut n, mut commits) = (Instant::now(), cpu_us(), 0u64, 0u64);
    while began.elapsed() < limit {
        conn.execute_batch("BEGIN").expect("begin");
        let first = n + 1;
        for _ in 0..size {
            n += 1;
            let client_id = format!("client-{n}");
            let (room, seq) = ((n % ROOMS) as i64, (n / ROOMS) as i64);
            insert
                .execute(rusqlite::params![
                    n as i64,
                    room,
                    seq,
                    n.saturating_sub(ROOMS) as i64,
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
            if matches!(tables, Bare::Same) && seq % 64 == 0 {
                anchor.execute((room, seq, n as i64, seq, HASH)).expect("insert");
            }
        }
        if matches!(tables, Bare::Same) {
            // The rooms that moved, each once.
            for last in first.max(n.saturating_sub(ROOMS - 1))..=n {
                let (room, seq) = ((last % ROOMS) as i64, (last / ROOMS) as i64);
                head.execute((room, seq, last as i64, seq, HASH)).expect("upsert");
            }
        }
        conn.execute_batch("COMMIT").expect("commit");
        commits += 1;
    }
    line(size, what, n, began.elapsed(), cpu_us().0 - cpu.0, commits);
}

struct Ear(flume::Sender<StoreEvent>, flume::Sender<ReadReply>);

impl LogListener for Ear {
    fn on_store(&self, event: StoreEvent) {
        let _ = self.0.send(event);
    }

    fn on_read(&self, replies: Vec<ReadReply>) {
        replies.into_iter().for_each(|reply| drop(self.1.send(reply)));
    }
}

/// A store with its rooms made, and the ear of its one shard.
struct Bench {
    running: RunningLog,
    ear: flume::Receiver<StoreEvent>,
    replies: flume::Receiver<ReadReply>,
    user: UserId,
    n: u64,
}

impl Bench {
    fn open(config: &StoreConfig) -> (Self, Origin) {
        let (open, origin) = SqliteLog::open(config).expect("a store");
        let ((to_ear, ear), (to_replies, replies)) = (flume::unbounded(), flume::unbounded());
        let running = open.start(vec![Box::new(Ear(to_ear, to_replies))]).expect("threads");
        let user = UserId::parse("author-0001").expect("a name");
        let bench = Self { running, ear, replies, user, n: origin.position };
        for room in 0..ROOMS {
            let room = RoomName::parse(&format!("room-{room}")).expect("a name");
            let owner = UserId::parse(&format!("owner-{room}")).expect("a name");
            bench.submit(vec![append(0, Entry::Join { room, user: owner, auto_create: true })]);
            assert_eq!(bench.answered(), 1);
        }
        (bench, origin)
    }

    fn submit(&self, appends: Vec<Append>) {
        self.running.log().submit(appends).expect("room in the inbox");
    }

    /// Waits for a batch; how many of our appends it answered.
    fn answered(&self) -> usize {
        match self.ear.recv() {
            Ok(StoreEvent::Batch(batch)) => batch.outcomes.iter().map(Vec::len).sum(),
            other => panic!("no batch: {other:?}"),
        }
    }

    /// Asks for pages of 50 entries, one after the other; µs a page within the store.
    fn read_pages(&self, what: &str, before: impl Fn(u64) -> u64) {
        for n in 0..2_000 {
            let (room, before) = (RoomKey(n % ROOMS + 1), before(n));
            let query = Query::History {
                room,
                after: 0,
                before,
                newest: true,
                thread: None,
                current: false,
                limit: 50,
                bytes_max: 1 << 20,
            };
            let request = ReadRequest { shard: ShardId(0), token: Token(n), query };
            self.running.log().read(vec![request]).expect("room in the queue");
            let reply = self.replies.recv().expect("an answer");
            assert!(reply.result.is_ok());
        }
        let read_us = self.running.stats().read_us;
        println!("{what}: mean {:.0} µs, p99 {} µs", read_us.mean(), read_us.value_at_quantile(0.99));
    }

    /// Submits `size` messages, spread over the rooms.
    fn send(&mut self, size: usize) {
        let list = (0..size).map(|_| {
            self.n += 1;
            let message = NewMessage {
                room: RoomKey(self.n % ROOMS + 1),
                author: self.user.clone(),
                by_admin: false,
                client_id: Some(format!("client-{}", self.n).into()),
                fields: FIELDS.into(),
                thread: None,
                audience: None,
                priority: Priority::Normal,
                mentions: Box::default(),
                reads: false,
            };
            append(self.n, Entry::Message(message))
        });
        let list = list.collect();
        self.submit(list);
    }
}

fn append(token: u64, entry: Entry) -> Append {
    Append { shard: ShardId(0), token: Token(token), seen: u64::MAX, entry }
}

/// What making the appends and dropping the batches costs is counted too, and told apart: in the server it is the
/// shard's.
fn store(size: usize, limit: Duration) {
    let dir = TempDir::new("store");
    let mut config = StoreConfig::new(&dir.0);
    config.commit_window_us = 0;
    let (mut bench, _) = Bench::open(&config);
    let (began, cpu, mut rows, mut commits, mut in_flight) = (Instant::now(), cpu_us(), 0u64, 0u64, 0usize);
    while began.elapsed() < limit {
        // Two lists in flight, so that the writer never waits for us.
        while in_flight < 2 * size {
            bench.send(size);
            in_flight += size;
        }
        let answered = bench.answered();
        in_flight -= answered;
        rows += answered as u64;
        commits += 1;
    }
    let (took, (all, own)) = (began.elapsed(), cpu_us());
    line(size, "store", rows, took, all - cpu.0, commits);
    let stats = bench.running.stats();
    let at = |quantile| stats.commit_us.value_at_quantile(quantile);
    println!(
        "{:>6}  {:.2} of it in the store's threads; commit p50 {} µs, p99 {} µs; {} checkpoints",
        "",
        (own - cpu.1) / rows as f64,
        at(0.5),
        at(0.99),
        stats.checkpoints
    );
    bench.running.stop();
}

/// Joins of users who were never seen before, each in a room of 100 that is picked at random: the worst case for the
/// writer's page cache, since every join touches other pages.
fn members(rows: u64) {
    let dir = TempDir::new("members");
    let mut config = StoreConfig::new(&dir.0);
    config.commit_window_us = 0;
    let (bench, _) = Bench::open(&config);
    let rooms = (rows / 100).max(1);
    let mut n = 0u64;
    for tenth in 1..=10 {
        let (began, cpu, mut commits) = (Instant::now(), cpu_us(), 0);
        let first = n;
        while n < rows / 10 * tenth {
            let list = (0..500).map(|_| {
                n += 1;
                // Knuth's multiplicative hashing: scattered and the same in every run.
                let scattered = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                let room = RoomName::parse(&format!("group-{}", scattered % rooms)).expect("a name");
                let user = UserId::parse(&format!("user-{scattered:x}")).expect("a name");
                append(n, Entry::Join { room, user, auto_create: true })
            });
            let list = list.collect();
            bench.submit(list);
            assert_eq!(bench.answered(), 500);
            commits += 1;
        }
        line(500, &format!("members up to {n}"), n - first, began.elapsed(), cpu_us().0 - cpu.0, commits);
    }
    bench.running.stop();
}

fn fill(rows: u64) {
    let dir = TempDir::new("fill");
    let mut config = StoreConfig::new(&dir.0);
    config.commit_window_us = 0;
    let (mut bench, _) = Bench::open(&config);
    for tenth in 1..=10 {
        let (began, cpu) = (Instant::now(), cpu_us());
        let (mut commits, mut done) = (0, 0u64);
        while done < rows / 10 {
            bench.send(500);
            done += bench.answered() as u64;
            commits += 1;
        }
        line(500, &format!("rows up to {}", rows / 10 * tenth), done, began.elapsed(), cpu_us().0 - cpu.0, commits);
    }
    bench.running.stop();
    let bytes = std::fs::metadata(dir.0.join("antiphon.db")).map_or(0, |meta| meta.len());
    println!("database: {} bytes a row", bytes / rows);
    for what in ["opened again", "and again"] {
        let (bench, origin) = Bench::open(&config);
        println!("{what} in {:?}: {} pairs remembered", origin.took, origin.dedupe_entries);
        match what {
            "opened again" => bench.read_pages("the newest 50 of a room", |_| u64::MAX),
            _ => bench.read_pages("50 from anywhere in a room", |n| 2 + n * 7_919 % (rows / ROOMS)),
        }
        bench.running.stop();
    }
}
