//! What waits on purpose and what waits because nobody reads: low events and joins that look for company, and
//! the budget for clients that do not take what they are sent.
//!
//! Only sockets that refused bytes count towards the budget: what will leave with this turn's send
//! is no sign of slowness, however large the room. When the budget is exceeded the largest outboxes
//! climb their ladders first, all of them one step before any takes the next: low frames go, then
//! messages (with a gap), then connections.

use super::conn::{Phase, Slow};
use super::driver::{Deadline, Driver};
use crate::engine::event::{Class, ConnKey};
use crate::gateway::outbox::{Outbox, Pushed};

impl Driver {
    /// Something patient waits for company: the connection is flushed with the next event of any kind, or
    /// when `batch_delay_ms` after the first of the shard's waiting ones are over.
    pub(super) fn delay(&mut self, key: ConnKey, class: Class, pushed: Pushed) {
        self.count_pushed(key, class, pushed);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if std::mem::replace(&mut conn.is_delayed, true) {
            return;
        }
        if self.delayed.is_empty() {
            self.deadlines.set(self.now + u64::from(self.limits.batch_delay_ms), Deadline::Delayed);
        }
        self.delayed.push(key);
    }

    /// What is patient has waited long enough.
    pub(super) fn send_delayed(&mut self) {
        for key in self.delayed.drain(..) {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            conn.is_delayed = false;
            if conn.outbox.is_some() && !conn.is_blocked {
                self.to_flush.mark(conn);
            }
        }
    }

    /// Counts what became of a frame, for the shard and for the connection.
    pub(super) fn count_pushed(&mut self, key: ConnKey, class: Class, pushed: Pushed) {
        let stats = self.engine.stats_mut();
        match pushed {
            Pushed::Queued => {
                stats.frames_out += 1;
                return match class {
                    Class::Critical | Class::CriticalLog { .. } | Class::Reply { .. } => stats.frames_out_critical += 1,
                    Class::Log { .. } | Class::Normal => stats.frames_out_normal += 1,
                    Class::Low { .. } => stats.frames_out_low += 1,
                };
            }
            Pushed::BehindGap(_) | Pushed::Overflow => return,
            Pushed::Conflated => stats.slow_conflated += 1,
            Pushed::DroppedLow => stats.slow_dropped_low += 1,
            Pushed::DroppedNormal => stats.slow_dropped_normal += 1,
        }
        self.count_slow(key, |slow| match pushed {
            Pushed::Conflated => slow.conflated += 1,
            Pushed::DroppedLow => slow.dropped_low += 1,
            _ => slow.dropped_normal += 1,
        });
    }

    fn count_slow(&mut self, key: ConnKey, count: impl FnOnce(&mut Slow)) {
        if let Some(conn) = self.conns.get_mut(key) {
            count(conn.slow.get_or_insert_default());
        }
    }

    /// A socket takes bytes again, or is gone: what waits for it counts no longer.
    pub(super) fn let_go(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if std::mem::replace(&mut conn.is_blocked, false) {
            self.held_bytes -= conn.outbox.as_ref().map_or(0, |outbox| outbox.bytes());
        }
    }

    /// Brings what waits for slow clients back to the budget.
    pub(super) fn shed(&mut self) {
        if self.held_bytes <= self.held_bytes_max {
            return;
        }
        self.engine.stats_mut().outbox_shed += 1;
        // A little lower than the bound, so that the next frame does not shed again.
        let target = self.held_bytes_max - self.held_bytes_max / 8;
        let slow = self.conns.iter().filter(|conn| conn.is_blocked && matches!(conn.phase, Phase::Open));
        let mut slow: Vec<(usize, ConnKey)> =
            slow.map(|conn| (conn.outbox.as_ref().map_or(0, |outbox| outbox.bytes()), conn.key)).collect();
        slow.sort_unstable_by(|a, b| b.cmp(a));
        for step in [Step::Low, Step::Normal, Step::Close] {
            for (_, key) in &slow {
                if self.held_bytes <= target {
                    return;
                }
                self.climb(*key, step);
            }
        }
    }

    fn climb(&mut self, key: ConnKey, step: Step) {
        let shed: fn(&mut Outbox) -> usize = match step {
            Step::Low => Outbox::shed_low,
            Step::Normal => Outbox::shed_normal,
            Step::Close => return self.close_slow(key, "too much is waiting for clients that do not read"),
        };
        let Some(outbox) = self.conns.get_mut(key).and_then(|conn| conn.outbox.as_mut()) else { return };
        let before = outbox.bytes();
        let dropped = shed(outbox) as u64;
        self.held_bytes -= before - outbox.bytes();
        if dropped == 0 {
            return;
        }
        let stats = self.engine.stats_mut();
        match step {
            Step::Low => stats.slow_dropped_low += dropped,
            _ => stats.slow_dropped_normal += dropped,
        }
        self.count_slow(key, |slow| match step {
            Step::Low => slow.dropped_low += dropped,
            _ => slow.dropped_normal += dropped,
        });
    }
}

/// A step of the ladder that the budget makes an outbox climb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Low,
    Normal,
    Close,
}
