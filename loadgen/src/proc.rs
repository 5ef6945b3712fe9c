//! What /proc tells of a process: CPU time in all and by thread, and resident memory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddrV4;

/// CPU time and memory of a process at a moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Seconds in user mode, all threads that ever were.
    pub user_s: f64,
    /// Seconds in the kernel on the process's behalf.
    pub system_s: f64,
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Seconds on a CPU by thread.
    pub threads: BTreeMap<u32, Thread>,
}

/// One thread's share.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// Seconds on a CPU: exact (schedstat) where the kernel keeps it, else in ticks.
    pub cpu_s: f64,
    /// Seconds in which it could have run and had no CPU, where the kernel keeps them.
    pub waited_s: Option<f64>,
}

/// The kernel's USER_HZ: fixed at 100 on every architecture that has io_uring in use.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads a process.
///
/// # Errors
/// No such process, or not ours to read.
pub fn sample(pid: u32) -> io::Result<Sample> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    if is_over(&stat) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has ended"));
    }
    let (user_s, system_s) = parse_stat(&stat)?;
    let rss_bytes = parse_rss(&fs::read_to_string(format!("/proc/{pid}/status"))?);
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let path = entry.path();
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A thread may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(path.join("stat")) else { continue };
        let name = parse_name(&stat).to_owned();
        let exact = fs::read_to_string(path.join("schedstat")).ok().and_then(|text| parse_schedstat(&text));
        let ticks = || parse_stat(&stat).map_or(0.0, |(user, system)| user + system);
        let (cpu_s, waited_s) = exact.map_or_else(|| (ticks(), None), |(cpu_s, waited_s)| (cpu_s, Some(waited_s)));
        threads.insert(tid, Thread { name, cpu_s, waited_s });
    }
    Ok(Sample { user_s, system_s, rss_bytes, threads })
}

/// CPU seconds between two samples.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spent {
    /// In user mode, in ticks of 10 ms.
    pub user_s: f64,
    /// In the kernel, likewise.
    pub system_s: f64,
    /// Both, as exact as the kernel keeps it.
    pub total_s: f64,
    /// By thread name (threads of one name together), the largest first, those above zero.
    pub threads: Vec<(String, f64)>,
    /// Seconds of waiting for a CPU, by thread name; those of which the kernel keeps them.
    pub waits: BTreeMap<String, f64>,
}

/// What was spent from `before` to `after`.
pub fn spent(before: &Sample, after: &Sample) -> Spent {
    let mut by_name: BTreeMap<&str, f64> = BTreeMap::new();
    let mut waits: BTreeMap<String, f64> = BTreeMap::new();
    for (tid, thread) in &after.threads {
        let earlier = before.threads.get(tid);
        *by_name.entry(&thread.name).or_default() += (thread.cpu_s - earlier.map_or(0.0, |t| t.cpu_s)).max(0.0);
        if let Some(waited_s) = thread.waited_s {
            let earlier_s = earlier.and_then(|t| t.waited_s).unwrap_or(0.0);
            *waits.entry(thread.name.clone()).or_default() += (waited_s - earlier_s).max(0.0);
        }
    }
    let (user_s, system_s) = (after.user_s - before.user_s, after.system_s - before.system_s);
    let exact: f64 = by_name.values().sum();
    // Threads that ended in between are only in the process's own count.
    let total_s = if (user_s + system_s) - exact > 0.05 { user_s + system_s } else { exact };
    let mut threads: Vec<(String, f64)> =
        by_name.into_iter().filter(|(_, s)| *s >= 0.0005).map(|(name, s)| (name.to_owned(), s)).collect();
    threads.sort_by(|a, b| b.1.total_cmp(&a.1));
    Spent { user_s, system_s, total_s, threads, waits }
}

/// True when the process holds a socket that listens on the address.
pub fn listens(pid: u32, address: SocketAddrV4) -> bool {
    // Those of the process's own network: a container has another one.
    let sockets =
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default());
    let inodes: Vec<String> = sockets.iter().flat_map(|table| listeners(table, address)).collect();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|link| {
        let link = link.to_string_lossy();
        inodes.iter().any(|inode| link == format!("socket:[{inode}]"))
    })
}

/// The inodes of a table's sockets that listen (state 0A) on the address, or on all of the machine's at its port.
fn listeners(table: &str, address: SocketAddrV4) -> Vec<String> {
    let (port, ip) = (format!("{:04X}", address.port()), format!("{:08X}", u32::from(*address.ip()).swap_bytes()));
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let (at, at_port) = local.split_once(':')?;
        // Within tcp6 the last group is that of an IPv4 address.
        let is_it = at.ends_with(&ip) || at.bytes().all(|digit| digit == b'0');
        (*state == "0A" && at_port == port && is_it).then(|| (*inode).to_owned())
    };
    table.lines().filter_map(inode).collect()
}

/// What is said when the server's process cannot be read any more.
pub fn gone(pid: u32, error: &io::Error) -> String {
    match sample(pid) {
        Ok(_) => format!("cannot read the server's /proc entry (--server-pid {pid}): {error}"),
        Err(_) => format!("the server's process is gone (--server-pid {pid})"),
    }
}

/// It has ended, and its parent has not asked how: such an entry still reads, as if nothing were used.
fn is_over(stat: &str) -> bool {
    let rest = stat.rfind(')').and_then(|at| stat.get(at + 1..)).unwrap_or("");
    matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X'))
}

/// `comm`: in parentheses, and free to hold parentheses and spaces itself.
fn parse_name(stat: &str) -> &str {
    let start = stat.find('(').map_or(0, |at| at + 1);
    let end = stat.rfind(')').unwrap_or(stat.len());
    stat.get(start..end).unwrap_or("")
}

/// utime and stime: the 14th and 15th field, counted after `comm`.
fn parse_stat(stat: &str) -> io::Result<(f64, f64)> {
    let rest = stat.rfind(')').and_then(|at| stat.get(at + 1..)).unwrap_or("");
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut seconds = || fields.next()?.parse::<u64>().ok().map(|ticks| ticks as f64 / TICKS_PER_SECOND);
    match (seconds(), seconds()) {
        (Some(user), Some(system)) => Ok((user, system)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "/proc/…/stat is not as expected")),
    }
}

/// Seconds on a CPU and of waiting for one: the first two fields, in ns. The third counts the turns: where it is 0 for
/// a thread that has run, the kernel keeps nothing.
fn parse_schedstat(text: &str) -> Option<(f64, f64)> {
    let mut fields = text.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
    let (cpu_ns, waited_ns, turns) = (fields.next()??, fields.next()??, fields.next()??);
    (turns > 0).then_some((cpu_ns as f64 / 1e9, waited_ns as f64 / 1e9))
}

/// `VmRSS: 1234 kB`
fn parse_rss(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("");
    line.split_ascii_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "77 (anti) (phon s) S 1 77 77 0 -1 4194560 5 0 0 0 1234 567 0 0 20 0 4 0 100 1 2 3";

    #[test]
    fn stat_is_read_behind_any_name() {
        assert_eq!(parse_name(STAT), "anti) (phon s");
        assert_eq!(parse_stat(STAT).unwrap(), (12.34, 5.67));
        assert!(!is_over(STAT) && is_over(&STAT.replace(") S 1", ") Z 1")));
        for bad in ["", "77", "77 (x) S 1 2 3", "77 (x) S 1 77 77 0 -1 4194560 5 0 0 0 a b"] {
            assert!(parse_stat(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_small_files_are_read() {
        assert_eq!(parse_schedstat("1500000000 250000000 33\n"), Some((1.5, 0.25)));
        assert_eq!((parse_schedstat(""), parse_schedstat("7 8"), parse_schedstat("0 0 0")), (None, None, None));
        assert_eq!(parse_rss("Name:\tx\nVmRSS:\t   2048 kB\nThreads: 1\n"), 2_097_152);
        assert_eq!(parse_rss("Name:\tx\n"), 0);
    }

    #[test]
    fn who_listens_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("bound to IPv4") };
        assert!(listens(std::process::id(), address));
        assert!(!listens(1, address), "another process, or one that may not be looked into");
        drop(listener);
        assert!(!listens(std::process::id(), address));
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 4711 1\n\
            1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 4712 1\n\
            2: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 4713 1\n\
            3: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000 0 4714 1\n";
        assert_eq!(listeners(table, "127.0.0.1:8080".parse().unwrap()), ["4711", "4712"]);
    }

    #[test]
    fn what_was_spent_is_counted_by_name() {
        let thread = |name: &str, cpu_s| Thread { name: name.to_owned(), cpu_s, waited_s: Some(cpu_s * 2.0) };
        let sample = |user_s, threads: &[(u32, Thread)]| Sample {
            user_s,
            threads: threads.iter().cloned().collect(),
            ..Sample::default()
        };
        let before = sample(1.0, &[(1, thread("shard-0", 0.5)), (2, thread("store", 0.1))]);
        let after = sample(2.0, &[(1, thread("shard-0", 1.3)), (2, thread("store", 0.2)), (3, thread("shard-0", 0.1))]);
        let spent = spent(&before, &after);
        assert_eq!(spent.threads.len(), 2);
        assert_eq!(spent.threads[0].0, "shard-0");
        assert!((spent.waits["shard-0"] - 1.8).abs() < 1e-9);
        assert!((spent.threads[0].1 - 0.9).abs() < 1e-9 && (spent.total_s - 1.0).abs() < 1e-9);
    }

    #[test]
    fn this_process_can_be_sampled() {
        let before = sample(std::process::id()).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 60 {
            std::hint::spin_loop();
        }
        let spent = spent(&before, &sample(std::process::id()).unwrap());
        assert!(before.rss_bytes > 0 && !before.threads.is_empty());
        assert!(spent.total_s > 0.005, "{spent:?}");
    }
}
