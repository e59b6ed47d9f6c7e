//! A device at work: it is served, its driver told what came of it, and a broken ring becomes a request for a reset.

use log::{debug, warn};

use super::{Core, Wants, status};
use crate::interrupt::Cause;
use crate::queue::{Fault, Queues, Running};
use crate::virtio::{Next, Wake};

/// A guest that breaks its rings and resets the device again and again does not fill the log.
const MAX_TOLD: u64 = 16;

impl Core {
    /// Serves every queue: what a driver made available before its queues ran need not be announced again.
    pub fn serve_all(&mut self) {
        for index in 0..self.queue_count() {
            self.serve(Wake::Queue(index));
        }
    }

    /// Serves queue `index` if its last service ended before it was empty.
    pub(crate) fn serve_more(&mut self, index: u16) {
        if self.rings.get(usize::from(index)).is_some_and(|r| r.has_more) {
            self.serve(Wake::Queue(index));
        }
    }

    /// Serves the device once, interrupts for what it used, and notes what it wants next.
    ///
    /// A device that may not access memory is served too, with queues that have nothing: what the host wants to tell it
    /// would come again and again otherwise.
    pub fn serve(&mut self, wake: Wake) {
        // A deadline may have been on its way when the device was reset.
        let is_meant = wake != Wake::Deadline || std::mem::take(&mut self.has_deadline);
        // What the device watches whatever its driver does is heard though its rings are broken.
        let is_lasting = matches!(wake, Wake::Host(_));
        if !is_meant || (self.is_broken() && !is_lasting) {
            return;
        }
        self.counters.services = self.counters.services.saturating_add(1);
        if let Wake::Queue(index) = wake {
            self.decide_before(index);
            if let Some(ring) = self.rings.get_mut(usize::from(index)) {
                ring.has_more = false;
            }
        }
        let running = match (self.may_access_memory, self.status & status::DRIVER_OK != 0) {
            _ if self.is_broken() => Running::None,
            (false, _) => Running::None,
            (true, false) => Running::Legacy,
            (true, true) => Running::All,
        };
        let accepted = self.accepted();
        let mut queues = Queues::new(&self.memory, &mut self.rings, accepted, running);
        match self.device.service(wake, &mut queues) {
            Ok(next) => self.note(next),
            Err(fault) => self.fail(fault),
        }
        if self.may_access_memory {
            self.announce();
        }
    }

    fn note(&mut self, next: Next) {
        let Next { config_changed, watch, deadline } = next;
        if let Some(watch) = watch {
            self.is_watching = !watch.is_empty();
            self.wants.watch = Some(watch);
        }
        self.has_deadline |= deadline.is_some();
        self.wants.deadline = deadline.or(self.wants.deadline);
        self.wants.again |= self.rings.iter().any(|ring| ring.has_more);
        if config_changed {
            self.generation.is_stale = true;
            if self.is_live() {
                self.signal(Cause::Config);
            }
        }
    }

    /// The rings are broken: ask for a reset (VIRTIO 1.3 §2.1.2), and say so once.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.counters.faults = self.counters.faults.saturating_add(1);
        if self.is_broken() {
            return;
        }
        match self.counters.breakages {
            0..MAX_TOLD => warn!("{}: {fault}; the device waits for its driver to reset it", self.desc.name),
            MAX_TOLD => {
                warn!("{}: {fault}; from now on such faults are counted and not told", self.desc.name)
            }
            _ => debug!("{}: {fault}", self.desc.name),
        }
        self.counters.breakages = self.counters.breakages.saturating_add(1);
        let was_running = self.status & status::DRIVER_OK != 0;
        self.status |= status::DEVICE_NEEDS_RESET;
        self.wants = Wants::nothing(&mut self.is_watching, &mut self.has_deadline);
        self.watch_lasting();
        if was_running {
            self.signal(Cause::Config);
        }
    }

    pub(super) fn signal(&mut self, cause: Cause) {
        self.counters.interrupts = self.counters.interrupts.saturating_add(1);
        if let Err(error) = self.interrupt.signal(cause) {
            self.counters.lost_interrupts = self.counters.lost_interrupts.saturating_add(1);
            debug!("{}: interrupt for {cause:?} not delivered: {error}", self.desc.name);
        }
    }

    /// What the device's thread has to wait for, once; `None` if nothing changed.
    pub(crate) fn take_wants(&mut self) -> Option<Wants> {
        (!self.wants.is_empty()).then(|| std::mem::take(&mut self.wants))
    }

    pub(crate) fn has_wants(&self) -> bool {
        !self.wants.is_empty()
    }
}
