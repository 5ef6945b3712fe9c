pub mod config;
pub mod control;
pub mod engine;
pub mod exit;
pub mod protocol;
pub mod shard;
