//! Whether, and when, a driver is interrupted for what its device used (`docs/decisions/004-late-interrupts.md`).

use std::time::Duration;

use super::Core;
use crate::interrupt::Cause;
use crate::queue::Ring;
use crate::virtio::{Timing, feature};

/// How long the decision to interrupt is put off at most. A driver that polls has long seen by then what was used.
const LATE: Duration = Duration::from_millis(1);

impl Core {
    /// Interrupts for every queue whose driver is waiting for what was used, but for those that are decided later.
    pub(super) fn announce(&mut self) {
        for index in 0..self.queue_count() {
            if self.is_late(index) {
                let is_undecided = self.rings.get_mut(usize::from(index)).is_some_and(Ring::postpone);
                if is_undecided && !std::mem::replace(&mut self.has_late_timer, true) {
                    self.wants.late = Some(LATE);
                }
                continue;
            }
            self.decide(index);
        }
    }

    /// Whether the driver of queue `index` says by EVENT_IDX what it has seen, and is given the time to.
    pub(super) fn is_late(&self, index: u16) -> bool {
        let queue = self.desc.queues.get(usize::from(index));
        queue.is_some_and(|queue| queue.timing == Timing::Late) && self.has_accepted(feature::EVENT_IDX)
    }

    /// Interrupts for queue `index` if its driver is waiting for what was used.
    pub(super) fn decide(&mut self, index: u16) {
        let accepted = self.accepted();
        let Some(ring) = self.rings.get_mut(usize::from(index)) else { return };
        match ring.take_interrupt(&self.memory, accepted) {
            Ok(false) => {}
            Ok(true) => self.signal(Cause::Queue(index)),
            Err(fault) => self.fail(fault),
        }
    }

    /// Makes the decisions that have been put off for long enough. Returns when to come back for the others.
    pub(crate) fn decide_late(&mut self) -> Option<Duration> {
        let mut next = None;
        for index in 0..self.queue_count() {
            let Some(age) = self.rings.get(usize::from(index)).and_then(Ring::undecided) else { continue };
            if !self.may_access_memory || self.is_broken() {
                continue;
            }
            match LATE.checked_sub(age).filter(|left| !left.is_zero()) {
                Some(left) => next = Some(next.map_or(left, |next: Duration| next.min(left))),
                None => self.decide(index),
            }
        }
        self.has_late_timer = next.is_some();
        next
    }
}
