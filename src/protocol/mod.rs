//! The wire contract, pure: bytes to commands, events to bytes. No I/O, no state of a connection's
//! but the WebSocket codec's own.
//!
//! Reading order: [`ids`] (names and numbers), [`command`] (what a client may say), [`parse`] (how
//! it is read), [`filter`] (what a
//! subscription wants to see), [`encode`] (what the server says), [`error`] (codes), [`upgrade`] (HTTP to
//! WebSocket), [`websocket`] (bytes to messages), [`audience`]
//! (roles and classes of devices), [`client`] (the other half, for tests and load).

pub mod audience;
pub mod client;
pub mod command;
pub mod encode;
pub mod error;
pub mod filter;
pub mod ids;
pub mod parse;
pub mod upgrade;
pub mod websocket;
