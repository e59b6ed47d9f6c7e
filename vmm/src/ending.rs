//! What devices tell the machine: that a thread of theirs ends the run, and which pseudo-terminals they made.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use devices::vdev::{Machine, Reason};
use rustix::event::{EventfdFlags, eventfd};

/// The first reason that a device's thread gave, made readable for the main thread.
pub(crate) struct Ending {
    reason: Mutex<Option<Reason>>,
    readable: OwnedFd,
    ptys: Mutex<Vec<Pty>>,
}

/// A pseudo-terminal that a vdev made, for one of its ports where they have names.
#[derive(Clone)]
pub(crate) struct Pty {
    pub(crate) vdev: String,
    pub(crate) port: Option<String>,
    pub(crate) path: PathBuf,
}

impl Ending {
    pub(crate) fn new() -> io::Result<Self> {
        let readable = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { reason: Mutex::new(None), readable, ptys: Mutex::default() })
    }

    /// The reason, if there is one.
    pub(crate) fn reason(&self) -> Option<Reason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pseudo-terminals so far, in the order in which they were made.
    pub(crate) fn ptys(&self) -> Vec<Pty> {
        self.ptys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Machine for Ending {
    fn end(&self, reason: Reason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        // A full counter wakes just as well.
        let _ = rustix::io::write(&self.readable, &1_u64.to_ne_bytes());
    }

    fn add_pty(&self, vdev: &str, port: Option<&str>, path: &Path) {
        let pty = Pty { vdev: vdev.to_owned(), port: port.map(str::to_owned), path: path.to_owned() };
        self.ptys.lock().unwrap_or_else(PoisonError::into_inner).push(pty);
    }
}

impl AsFd for Ending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}
