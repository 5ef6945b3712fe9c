//! `soak`: does the server's use of memory, descriptors and threads stay flat, and do its shards wake in time?

use super::MixedArgs;
use crate::play::Verdict;
use crate::watch::Seen;

/// What a soak is for: the server stays as it is.
pub fn judge(verdict: &mut Verdict, args: &MixedArgs, seen: &Seen) {
    let count = seen.sights.len();
    let parts = [&seen.sights[count / 3..2 * count / 3], &seen.sights[2 * count / 3..]];
    let mean = |part: usize, of: fn(&crate::watch::Sight) -> u64| {
        let part = parts[part];
        part.iter().map(|sight| of(sight) as f64).sum::<f64>() / part.len().max(1) as f64
    };
    let settled = &seen.sights[count / 3..];
    if args.common.server_pid.is_some() && count >= 6 {
        let growth = |of| (mean(1, of) / mean(0, of).max(1.0) - 1.0) * 100.0;
        let slope = crate::watch::slope(settled.iter().map(|sight| (sight.at_s, sight.rss_bytes as f64)));
        let (rss, fds, threads) = (growth(|s| s.rss_bytes), growth(|s| s.fds), growth(|s| s.threads));
        verdict.figure("rss_slope", slope * 3_600.0 / 1_048_576.0, "MiB an hour over the last two thirds");
        verdict.figure("rss_growth", rss, "% from the second to the last third");
        verdict.figure("fds_growth", fds, "%");
        verdict.figure("threads_growth", threads, "%");
        if rss > args.rss_growth_max {
            verdict.failures.push(format!("the server's memory grew by {rss:.1} % from the second to the last third"));
        }
        // Reconnects under way move the number of descriptors a little.
        if fds > 2.0 || threads > 0.5 {
            verdict.failures.push(format!("descriptors grew by {fds:.1} %, threads by {threads:.1} %"));
        }
    } else {
        verdict.note("give --server-pid, and at least 6 s, to have memory, descriptors and threads checked");
    }
    let mut wakes: Vec<u64> = settled.iter().map(|sight| sight.wake_p99_us).filter(|us| *us > 0).collect();
    wakes.sort_unstable();
    match wakes.get(wakes.len() / 2) {
        Some(middle) => {
            let (p99, worst) = (*middle as f64 / 1e3, wakes[wakes.len() - 1] as f64 / 1e3);
            verdict.figure("wake_p99", p99, "ms from a shard's wake-up call to its turn, median of the seconds' p99");
            verdict.figure("wake_p99_worst", worst, "ms in the worst second");
            if p99 > args.wake_max {
                verdict
                    .failures
                    .push(format!("wake-ups between shards took {p99:.2} ms (p99), above {} ms", args.wake_max));
            }
        }
        None => verdict.note("give --control, and at least two shards, to see how fast shards wake each other"),
    }
}
