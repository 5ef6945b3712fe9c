//! The plan's one event: readers that drop and return, or that stop reading and go on.

use super::{Act, Driver};
use crate::conductor::Phase;
use crate::plan::ns;

impl Driver {
    /// What the plan has for this moment.
    pub(super) fn play(&mut self) {
        if self.phase != Phase::Traffic {
            return;
        }
        let times = match (self.plan.absence, self.plan.stall) {
            (Some(absence), _) => (absence.from_s, absence.to_s),
            (_, Some(stall)) => (stall.from_s, stall.to_s),
            _ => return,
        };
        let since_ns = self.now_ns.saturating_sub(self.schedule.from_ns);
        let is_absence = self.plan.absence.is_some();
        let step = |seconds: f64| since_ns >= ns(seconds) && self.now_ns >= self.schedule.from_ns;
        let (start, stop) = (step(times.0), step(times.1));
        if self.act == Act::Before && start {
            self.act = Act::During;
            if is_absence { self.drop_readers() } else { self.stall_readers() }
        }
        if self.act == Act::During && stop {
            self.act = Act::After;
            self.back_ns = self.now_ns;
            if is_absence { self.return_readers() } else { self.resume_readers() }
        }
    }

    fn is_absentee(&self, slot: u32) -> bool {
        !self.plan.is_sender(self.clients[slot as usize].user, self.world.rooms_of)
    }

    fn drop_readers(&mut self) {
        for slot in (0..self.clients.len() as u32).filter(|slot| self.is_absentee(*slot)).collect::<Vec<_>>() {
            self.drop_link(slot);
        }
    }

    fn return_readers(&mut self) {
        self.links.making_max = u32::MAX;
        let absentees: Vec<u32> = (0..self.clients.len() as u32).filter(|slot| self.is_absentee(*slot)).collect();
        absentees.into_iter().for_each(|slot| self.links.enqueue(slot));
    }

    fn stall_readers(&mut self) {
        for slot in (0..self.clients.len()).filter(|slot| self.clients[*slot].is_slow) {
            self.links.stall(slot as u32);
        }
    }

    fn resume_readers(&mut self) {
        for slot in 0..self.clients.len() as u32 {
            if !self.clients[slot as usize].is_slow {
                continue;
            }
            // Who was cut before, comes back now.
            if self.links.has_socket(slot) {
                self.links.resume(slot);
                self.clients[slot as usize].probe(&mut self.rng);
                self.mark_dirty(slot);
            } else {
                self.links.enqueue(slot);
            }
        }
    }
}
