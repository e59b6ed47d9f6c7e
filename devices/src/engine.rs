//! A virtio device in operation: its core behind the one lock, its doorbells, and its thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::core::Core;
use crate::virtio::{Doorbell, Wake};
use crate::worker::Worker;

/// What a transport drives.
pub struct Engine {
    core: Mutex<Core>,
    doorbells: Vec<Bell>,
    worker: Worker,
}

/// Who comes when a queue's doorbell rings.
enum Bell {
    Inline,
    Worker(EventFd),
}

impl Engine {
    /// Puts `core` to work. No thread runs before the device needs one.
    ///
    /// # Errors
    ///
    /// The host has no event descriptors left.
    pub fn new(core: Core) -> Result<Arc<Self>, crate::Error> {
        let name = core.desc().name;
        let event =
            || EventFd::new(EFD_NONBLOCK).map_err(|source| crate::Error::Worker { vdev: name, source });
        let doorbells = (core.desc().queues.iter())
            .map(|queue| match queue.doorbell {
                Doorbell::Inline => Ok(Bell::Inline),
                Doorbell::Worker => event().map(Bell::Worker),
            })
            .collect::<Result<_, _>>()?;
        let worker = Worker::new(name, event()?);
        Ok(Arc::new(Self { core: Mutex::new(core), doorbells, worker }))
    }

    /// The core. While the guard lives, nothing of the device runs.
    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor that the doorbell of `queue` may write to instead of leaving the guest; `None` where the vCPU
    /// is to serve the queue by itself.
    pub fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        match self.doorbells.get(usize::from(queue))? {
            Bell::Inline => None,
            Bell::Worker(event) => Some(event),
        }
    }

    /// The driver rang the doorbell of `queue`. Queues that do not exist or do not run are passed over.
    pub fn notify(self: &Arc<Self>, queue: u16) {
        match self.doorbells.get(usize::from(queue)) {
            None => {}
            Some(Bell::Inline) => self.serve(|core| core.serve(Wake::Queue(queue))),
            Some(Bell::Worker(event)) => {
                self.worker.start(self);
                // A full counter rings just as well.
                let _ = event.write(1);
            }
        }
    }

    /// Runs `serve` on the core, and passes on to the thread what is left to wait for.
    pub fn serve(self: &Arc<Self>, serve: impl FnOnce(&mut Core)) {
        let mut core = self.core();
        serve(&mut core);
        let is_waiting = core.has_wants();
        drop(core);
        if is_waiting {
            self.worker.wake(self);
        }
    }

    pub(crate) fn queue_count(&self) -> u16 {
        u16::try_from(self.doorbells.len()).unwrap_or(u16::MAX)
    }

    /// The descriptors of the doorbells that wake the thread, with their queues.
    pub(crate) fn worker_doorbells(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        (0..).zip(&self.doorbells).filter_map(|(queue, bell)| match bell {
            Bell::Inline => None,
            Bell::Worker(event) => Some((queue, event)),
        })
    }

    /// Starts the thread if a queue's doorbell can only be heard by it.
    pub fn start(self: &Arc<Self>) {
        if self.worker_doorbells().next().is_some() {
            self.worker.start(self);
        }
        self.serve(Core::watch_lasting);
    }

    /// Stops the thread and waits for it. It does not start again.
    pub fn stop(&self) {
        self.worker.stop();
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }
}
