//! The logic of a shard, pure: no socket, disk, thread, async, clock or randomness of its own.
//!
//! Reading order: [`event`] (what can come in and go out), [`shard`] (the three calls), `handle/`
//! (what happens on each input), then the parts.

pub mod auth;
mod cx;
pub mod event;
mod handle;
pub mod limits;
pub mod pending;
pub mod rng;
pub mod rooms;
pub mod session;
pub mod shard;
pub mod sync;
pub mod timers;
pub mod users;
