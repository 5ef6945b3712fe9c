pub mod config;
pub mod control;
pub mod engine;
pub mod exit;
pub mod gateway;
pub mod protocol;
pub mod shard;
pub mod store;
