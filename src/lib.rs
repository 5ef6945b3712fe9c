pub mod control;
pub mod engine;
pub mod protocol;
