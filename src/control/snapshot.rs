//! The numbers of the whole process at one moment: asked of all shards at once, waited for together.
//!
//! A shard that does not answer in time is missing from the picture and named as such, since a hung
//! shard is exactly what somebody may be looking for.

use std::time::Duration;

use super::Context;
use super::ports::Ready;
use crate::engine::event::ShardId;
use crate::engine::stats::{Stats, StoreStats};

/// One moment of the process.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// By shard; none: no answer.
    pub(super) shards: Vec<Option<Stats>>,
    /// The persistence core's.
    pub(super) store: StoreStats,
    /// Readiness.
    pub(super) ready: Ready,
    /// Since start.
    pub(super) uptime: Duration,
    /// What the kernel says of the process.
    pub(super) process: Process,
}

/// The process as the kernel sees it. Zero: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Process {
    /// Resident memory, bytes.
    pub(super) resident_bytes: u64,
    /// Open descriptors.
    pub(super) open_fds: u64,
    /// Threads.
    pub(super) threads: u64,
}

impl Snapshot {
    /// Takes one. Returns within the context's `answer_wait`.
    pub(super) async fn take(context: &Context) -> Self {
        let cluster = &context.cluster;
        let asked: Vec<_> = (0..cluster.shards()).map(|shard| cluster.shard_stats(ShardId(shard))).collect();
        let deadline = tokio::time::Instant::now() + context.answer_wait;
        let mut shards = Vec::with_capacity(asked.len());
        for answer in asked {
            shards.push(tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok));
        }
        Self {
            shards,
            store: cluster.store_stats(),
            ready: cluster.ready(),
            uptime: context.started.elapsed(),
            process: Process::read(),
        }
    }
}

impl Process {
    fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        Self {
            resident_bytes: field("VmRSS:") * 1024,
            threads: field("Threads:"),
            // Linux ≥ 6.2 gives the number as the size of the folder, without a walk over 100,000 entries.
            open_fds: std::fs::metadata("/proc/self/fd").map_or(0, |meta| meta.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_understood() {
        let process = Process::read();
        assert!(process.resident_bytes > 1024 * 1024 && process.threads >= 1, "{process:?}");
    }
}
