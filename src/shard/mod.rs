//! One shard: a pinned executor that meets its sockets in turns.
//!
//! Reading order: [`driver`] (the turn), [`accept`] (socket to session), [`read`] (bytes to engine),
//! [`write`] (engine to outboxes), [`flush`] (outboxes to sockets), [`conn`] (the table of sockets), [`mail`] (how other threads reach a
//! shard), [`stages`] (where the time goes), then what lies below: [`ring`] (one thread's I/O), [`buffers`] (memory lent to the
//! kernel), [`doorbell`] (waking a thread), [`socket`] (listeners and options), [`probe`] (may this
//! process do it?).

mod accept;
pub mod buffers;
mod clock;
mod conn;
pub mod cores;
pub mod doorbell;
pub mod driver;
mod flush;
pub mod mail;
mod notes;
mod pressure;
pub mod probe;
mod read;
pub mod ring;
pub mod socket;
mod stages;
mod write;
