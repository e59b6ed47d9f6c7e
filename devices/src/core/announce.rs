//! Whether, and when, a driver is interrupted for what its device used (`docs/decisions/004-late-interrupts.md`).

use std::time::Duration;

use super::Core;
use crate::interrupt::Cause;
use crate::queue::{Place, Ring};
use crate::virtio::{Timing, Wake, feature};

/// The device's thread looks so often whether a decision is due: when nothing was used since its last look. A driver that
/// polls has long seen by then what was used.
pub(crate) const LATE: Duration = Duration::from_millis(1);
/// A driver that gives as many buffers between two looks is in the middle of something.
const BURST: u16 = 4;

/// What the device's thread is to do about queues that are decided late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// Nothing.
    Done,
    /// To come back after [`LATE`].
    Again {
        /// A driver is in the middle of something.
        is_burst: bool,
    },
    /// To look for buffers by itself, with [`Core::poll`], until there are no more.
    Poll,
}

impl Core {
    /// Interrupts for every queue whose driver is waiting for what was used, but for those that are decided later.
    pub(super) fn announce(&mut self) {
        for index in 0..self.queue_count() {
            if self.is_late(index) {
                let is_undecided = self.rings.get(usize::from(index)).is_some_and(Ring::is_undecided);
                if is_undecided && !std::mem::replace(&mut self.has_late_timer, true) {
                    self.wants.late = true;
                }
                continue;
            }
            self.decide(index);
        }
    }

    /// Whether the driver of queue `index` says by EVENT_IDX what it has seen, and is given the time to.
    fn is_late(&self, index: u16) -> bool {
        let queue = self.desc.queues.get(usize::from(index));
        queue.is_some_and(|queue| queue.timing == Timing::Late) && self.has_accepted(feature::EVENT_IDX)
    }

    /// Interrupts for queue `index` if its driver is waiting for what was used.
    fn decide(&mut self, index: u16) {
        let accepted = self.accepted();
        let Some(ring) = self.rings.get_mut(usize::from(index)) else { return };
        match ring.take_interrupt(&self.memory, accepted) {
            Ok(false) => {}
            Ok(true) => self.signal(Cause::Queue(index)),
            Err(fault) => self.fail(fault),
        }
    }

    /// Makes the decision about queue `index` that was put off, if its driver has gone on to new buffers.
    pub(super) fn decide_before(&mut self, index: u16) {
        let ring = self.rings.get(usize::from(index));
        if self.may_access_memory
            && self.is_late(index)
            && ring.is_some_and(|ring| ring.may_have_buffers(&self.memory))
        {
            self.decide(index);
        }
    }

    /// Makes the decisions that have been put off for long enough, and says what to do about the others. A burst may be
    /// polled where there is a processor for that; what is polled is left to who does it.
    pub(crate) fn decide_late(&mut self, may_poll: bool) -> Late {
        let mut next = Late::Done;
        for index in 0..self.queue_count() {
            if !self.is_late(index) || !self.may_access_memory || self.is_broken() {
                continue;
            }
            let Some(ring) = self.rings.get_mut(usize::from(index)) else { continue };
            if ring.is_polled() {
                next = Late::Poll;
                continue;
            }
            let fresh = ring.look();
            if !ring.is_undecided() {
                continue;
            }
            match (fresh, next) {
                (0, _) => self.decide(index),
                (BURST.., _) if may_poll => {
                    ring.set_polled(true);
                    next = Late::Poll;
                }
                (_, Late::Poll) => {}
                (_, Late::Again { is_burst: true }) => {}
                _ => next = Late::Again { is_burst: fresh >= BURST },
            }
        }
        self.has_late_timer = next != Late::Done;
        next
    }

    /// Serves the queues that are polled, if they have something, and says where to look for more.
    pub(crate) fn poll(&mut self, places: &mut Vec<Place>) {
        places.clear();
        for index in 0..self.queue_count() {
            let Self { rings, memory, .. } = self;
            let Some(ring) = rings.get(usize::from(index)).filter(|ring| ring.is_polled()) else { continue };
            let has_buffers = ring.may_have_buffers(memory);
            if has_buffers {
                self.serve(Wake::Queue(index));
            }
            let Some(ring) = self.polled(index) else { continue };
            if has_buffers && ring.look() == 0 {
                // What is there is not taken: whoever makes it wait will have it served.
                ring.set_polled(false);
                continue;
            }
            places.push(ring.place());
        }
    }

    /// Polls no more: the drivers have to ring again.
    pub(crate) fn stop_polling(&mut self) {
        for index in 0..self.queue_count() {
            if let Some(ring) = self.polled(index) {
                ring.set_polled(false);
                self.serve(Wake::Queue(index));
            }
        }
    }

    fn polled(&mut self, index: u16) -> Option<&mut Ring> {
        self.rings.get_mut(usize::from(index)).filter(|ring| ring.is_polled())
    }
}

#[cfg(test)]
mod tests;
