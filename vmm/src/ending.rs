//! How a device's own thread ends the run.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use devices::vdev::{Machine, Reason};
use rustix::event::{EventfdFlags, eventfd};

/// The first reason that a device's thread gave, made readable for the main thread.
pub(crate) struct Ending {
    reason: Mutex<Option<Reason>>,
    readable: OwnedFd,
}

impl Ending {
    pub(crate) fn new() -> io::Result<Self> {
        let readable = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { reason: Mutex::new(None), readable })
    }

    /// The reason, if there is one.
    pub(crate) fn reason(&self) -> Option<Reason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine for Ending {
    fn end(&self, reason: Reason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        // A full counter wakes just as well.
        let _ = rustix::io::write(&self.readable, &1_u64.to_ne_bytes());
    }
}

impl AsFd for Ending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}
