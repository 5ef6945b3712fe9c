//! temp
use crate::engine::event::{Append, ReadReply, ReadRequest, StoreEvent};
pub trait RoomLog: Send + Sync {
    fn submit(&self, batch: Vec<Append>) -> Result<(), Vec<Append>>;
    fn read(&self, request: ReadRequest) -> Result<(), ReadRequest>;
}
pub trait LogListener: Send {
    fn on_store(&self, event: StoreEvent);
    fn on_read(&self, reply: ReadReply);
}
