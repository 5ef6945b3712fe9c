//! What engines want logged, as log lines: one an event, ids as fields.

use crate::engine::event::{Note, ShardId};
use crate::protocol::error::CloseCode;

/// Writes one line.
pub fn log(shard: ShardId, note: &Note) {
    let shard = shard.0;
    match note {
        Note::SessionOpened { conn, session, user, device } => tracing::debug!(
            shard, conn = conn.slot, session = %format_args!("{session:016x}"), %user, %device, "session opened"
        ),
        Note::SessionClosed { conn, session, user, code: None } => tracing::debug!(
            shard, conn = conn.slot, session = %format_args!("{session:016x}"), %user, "session closed by the client"
        ),
        Note::SessionClosed { conn, session, user, code: Some(code) } => {
            let session = format_args!("{session:016x}");
            let code_number = code.number();
            // These happen to whole herds at once, as they should.
            if matches!(code, CloseCode::Draining | CloseCode::Replaced | CloseCode::TokenExpired) {
                tracing::debug!(shard, conn = conn.slot, %session, %user, code = code_number, "session closed: {}", code.name());
            } else {
                tracing::info!(shard, conn = conn.slot, %session, %user, code = code_number, "session closed: {}", code.name());
            }
        }
        Note::Denied { conn, user, what } => tracing::info!(shard, conn = conn.slot, %user, "{what} denied"),
        Note::Committed { trace, room, seq } => {
            tracing::trace!(shard, trace = %format_args!("{trace:016x}"), room = room.0, seq, "message committed");
        }
        Note::Repaired { room, what } => tracing::warn!(shard, room = room.0, "room repaired: {what}"),
        Note::Diverged { room, reason } => {
            tracing::error!(shard, room = room.0, "room diverged, its writes are refused: {reason}");
        }
        Note::WellAgain { room } => tracing::warn!(shard, room = room.0, "room adds up again, it takes writes"),
    }
}
