//! What a connection is between bytes and frames.

pub mod outbox;
pub mod token;
