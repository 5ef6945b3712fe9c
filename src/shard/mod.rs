//! What a shard is made of below its engine: the ring that meets the sockets, the bell that other
//! threads ring, and the sockets' own options.
//!
//! Reading order: [`socket`] (listeners and options), [`buffers`] (memory lent to the kernel),
//! [`ring`] (one thread's I/O), [`doorbell`] (waking a thread), [`probe`] (may this process do it?).

pub mod buffers;
pub mod doorbell;
pub mod probe;
pub mod ring;
pub mod socket;
