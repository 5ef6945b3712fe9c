//! The logic of a shard, pure: no socket, disk, thread, async, clock or randomness of its own.

pub mod event;
pub mod limits;
pub mod sequencer;
