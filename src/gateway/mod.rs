//! What a connection is between bytes and frames.

pub mod token;
