//! The running server over real sockets with a real database, as a client or an operator sees it.
//!
//! The scenarios of `rooms`, `members` and `resume` run with 1, 2 and 4 shards: nothing of what a
//! client can observe may depend on that number.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

/// One test for each scenario and number of shards.
macro_rules! with_1_2_4_shards {
    ($($scenario:ident),* $(,)?) => {
        mod one_shard { $(#[test] fn $scenario() { super::$scenario(1); })* }
        mod two_shards { $(#[test] fn $scenario() { super::$scenario(2); })* }
        mod four_shards { $(#[test] fn $scenario() { super::$scenario(4); })* }
    };
}

mod admin;
mod broadcast;
mod consistency;
mod crowd;
mod dead;
mod disk;
mod drain;
mod edits;
mod frames;
mod handshake;
mod idle;
mod inbox;
mod limits;
mod members;
mod presence;
mod presence_history;
mod resume;
mod ring;
mod rooms;
mod slow;
mod start;
mod timing;
mod tokens;
