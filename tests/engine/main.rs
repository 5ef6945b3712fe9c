//! The engine of one shard, scenario by scenario: this input gives exactly these outputs. And its
//! parts against small models.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails loudly, which is what a test is for")]

mod admin;
mod bounds;
mod consistency;
mod edits;
mod events;
mod filters;
mod harness;
mod inbox;
mod loading;
#[path = "../support/log.rs"]
mod log;
mod messages;
mod presence;
mod presence_history;
mod properties;
mod resume;
mod rooms;
mod sessions;
mod tokens;
mod unread;
