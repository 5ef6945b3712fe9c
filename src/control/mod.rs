//! The side thread: admin API, metrics, health and the operator's page.
//!
//! Nothing here is on the data path. It asks shards for copies of their numbers and hands them
//! requests; it never reaches into them.

pub mod ports;
