//! Subscriptions with a filter: what they do not want is replaced by a stand-in, so that their seqs
//! stay dense. Neighbours that are hidden share one stand-in, in a batch as in a resume.
//!
//! Rooms without such subscriptions never come here, and listeners without a filter are sent whole
//! runs as before. What the audience of an entry shuts out stays shut out, whatever the filter says.

use std::ops::Range;
use std::sync::Arc;

use super::super::event::{Class, CommittedBatch, Frames, LogEntry, Output, RoomRun};
use super::super::rooms::RoomIdx;
use super::super::session::Session;
use super::super::shard::Shard;
use super::Resume;
use super::subscribe::{admits, comma, viewer};
use crate::protocol::encode;
use crate::protocol::filter::{Filter, judged_meta};
use crate::protocol::ids::{Seq, UnixMillis};

/// Neighbouring entries that one stand-in tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hidden {
    /// First seq.
    pub first: Seq,
    /// Last seq.
    pub last: Seq,
    /// When the last one was numbered.
    pub ts: UnixMillis,
}

impl Resume {
    /// Appends one entry, or remembers that it is hidden. `mark` is the entry by itself.
    pub(super) fn append(&mut self, room_json: &str, json: &[u8], is_admitted: bool, mark: Hidden) {
        let Some(filter) = &self.filter else {
            comma(&mut self.json);
            if is_admitted {
                self.json.extend_from_slice(json);
            } else {
                encode::hidden_event(&mut self.json, room_json, mark.first, mark.ts);
            }
            return;
        };
        if is_admitted && filter.admits(json) {
            self.tell_hidden(room_json);
            comma(&mut self.json);
            self.json.extend_from_slice(json);
        } else {
            self.hidden = Some(Hidden { first: self.hidden.map_or(mark.first, |hidden| hidden.first), ..mark });
        }
    }

    /// Appends the stand-in of what is hidden up to here.
    pub(super) fn tell_hidden(&mut self, room_json: &str) {
        if let Some(Hidden { first, last, ts }) = self.hidden.take() {
            comma(&mut self.json);
            encode::hidden_events(&mut self.json, room_json, first, last, ts);
        }
    }
}

impl Shard {
    /// Sends a part of a run to those who listen with a filter.
    pub(super) fn fan_out_filtered(
        &mut self,
        idx: RoomIdx,
        batch: &Arc<CommittedBatch>,
        run: &RoomRun,
        part: Range<usize>,
    ) {
        let entries = &run.entries[part];
        let mut metas = std::mem::take(&mut self.filter_metas);
        metas.clear();
        metas.extend(entries.iter().map(|entry| meta_span(batch, entry)));
        let room = self.rooms.get(idx);
        let room_json = room.json();
        for (conn, filter) in room.filtering_subscribers() {
            let Some(session) = self.sessions.get(conn) else { continue };
            let reader = viewer(&self.users, session, run.room);
            let sees = |at: usize| {
                admits(entries[at].restricted.as_deref(), &reader)
                    && metas[at].as_ref().is_none_or(|meta| filter.admits_meta(&batch.bytes[meta.clone()]))
            };
            let mut at = 0;
            while at < entries.len() {
                let start = at;
                let is_seen = sees(at);
                at += 1;
                let is_alike = |at: usize| {
                    sees(at) == is_seen && (!is_seen || entries[at].is_critical() == entries[start].is_critical())
                };
                while at < entries.len() && is_alike(at) {
                    at += 1;
                }
                let (first, last) = (&entries[start], &entries[at - 1]);
                for entry in &entries[start..at] {
                    self.cx.stats.count_fanout(entry.priority, 1, u64::from(!is_seen));
                }
                let (class, frames) = if is_seen {
                    (
                        Class::of_log(run.room, &entries[start..at]),
                        Frames::Batch(batch.clone(), first.span.start..last.span.end),
                    )
                } else {
                    self.cx.stats.filtered += (at - start) as u64;
                    let hide = |out: &mut Vec<u8>| encode::hidden_events(out, &room_json, first.seq, last.seq, last.ts);
                    let class = Class::Log { room: run.room, first: first.seq, last: last.seq, is_patient: false };
                    (class, Frames::Scratch(self.cx.scratch(hide)))
                };
                self.cx.out.list.push(Output::Send { conn, class, frames });
            }
            self.cx.stats.deliveries += entries.len() as u64;
            self.cx.stats.fanout_recipients += 1;
        }
        self.filter_metas = metas;
    }

    /// True when a listener is sent an entry, and not a stand-in for it.
    pub(super) fn is_shown(&self, session: &Session, idx: RoomIdx, batch: &CommittedBatch, entry: &LogEntry) -> bool {
        let room = self.rooms.get(idx);
        let passes =
            |filter: &Arc<Filter>| meta_span(batch, entry).is_none_or(|meta| filter.admits_meta(&batch.bytes[meta]));
        admits(entry.restricted.as_deref(), &viewer(&self.users, session, room.key))
            && room.filter_of(session.conn).is_none_or(passes)
    }
}

/// Where the `meta` by which an entry is judged lies in the batch: an empty range when it has none,
/// `None` when it passes every filter.
fn meta_span(batch: &CommittedBatch, entry: &LogEntry) -> Option<Range<usize>> {
    let span = entry.json_span();
    let meta = judged_meta(&batch.bytes[span.clone()])?;
    Some(span.start + meta.start..span.start + meta.end)
}
