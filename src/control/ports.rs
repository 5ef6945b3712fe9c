//! What the control thread needs from the rest of the process, and nothing more.
//!
//! `server` implements [`Cluster`]; this module neither knows shards nor the store. Every question
//! to a shard is answered later, over a one-shot channel, since the shard's thread answers it in one
//! of its turns. An answer that never comes (a shard that died) is a dropped sender, which the
//! control thread reports as such.

use tokio::sync::oneshot;

use crate::engine::event::{AdminAct, AdminAnswer, ShardId};
use crate::engine::stats::{Stats, StoreStats};
use crate::protocol::error::Refusal;

/// Where an answer arrives.
pub type Answer<T> = oneshot::Receiver<T>;

/// What a request of the admin API came to.
pub type AdminResult = Result<AdminAnswer, Refusal>;

/// The running process, as the control thread sees it.
pub trait Cluster: Send + Sync + 'static {
    /// How many shards there are.
    fn shards(&self) -> u16;

    /// Hands a request to a shard (the one of the user it is about). Never blocks: when the shard's
    /// queue is full the answer is a `busy` refusal.
    fn admin(&self, shard: ShardId, act: AdminAct) -> Answer<AdminResult>;

    /// Asks a shard for a clone of its numbers.
    fn shard_stats(&self, shard: ShardId) -> Answer<Stats>;

    /// The persistence core's numbers.
    fn store_stats(&self) -> StoreStats;

    /// Whether clients should be sent here.
    fn ready(&self) -> Ready;
}

/// What `/health/ready` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Ready {
    /// Every shard accepts connections.
    pub accepting: bool,
    /// The store takes writes.
    pub store: bool,
    /// The process is being stopped.
    pub draining: bool,
}

impl Ready {
    /// True when clients should be sent here. A degraded store does not count against it: reads and
    /// live connections go on, and a restart elsewhere would not mend a disk.
    pub fn is_ready(&self) -> bool {
        self.accepting && !self.draining
    }
}
