pub mod engine;
pub mod gateway;
pub mod protocol;
