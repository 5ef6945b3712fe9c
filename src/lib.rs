//! Antiphon: a thread-per-core WebSocket server for chat and other real-time messaging.
//!
//! The modules in reading order, along the way of a message:
//! [`config`] (what was asked for) → [`server`] (who is started) → [`shard`] (one pinned thread: socket
//! bytes in, socket bytes out) → [`gateway`] (a connection between bytes and frames) → [`protocol`]
//! (frames) → [`engine`] (what happens) → [`store`] (made durable, numbered, handed to every shard) →
//! back through [`engine`] and [`shard`] to the sockets. Beside it: [`control`] (admin API, metrics).

pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod engine;
pub mod exit;
pub mod gateway;
pub mod logging;
pub mod protocol;
pub mod server;
pub mod shard;
pub mod store;
#[cfg(test)]
mod test_dir;
