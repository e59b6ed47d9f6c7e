//! Signals that end the run, made readable so that the main thread can wait for them and for the guest at once.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::pipe;

/// A signal that ended the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGHUP: the terminal went away.
    Hangup,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGTERM.
    Terminate,
    /// Something woke mote that it cannot name.
    Unknown,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Terminate => "SIGTERM",
            Self::Unknown => "an unknown signal",
        })
    }
}

/// The signals, caught from [`Signals::catch`] on.
pub struct Signals {
    readable: UnixStream,
    /// The signal that came last; 0 is none.
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Catches SIGTERM, SIGINT, SIGQUIT and SIGHUP for the rest of the process's life.
    ///
    /// # Errors
    ///
    /// The host has no descriptor to spare.
    pub fn catch() -> io::Result<Self> {
        let (readable, writable) = UnixStream::pair()?;
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGTERM, SIGINT, SIGQUIT, SIGHUP] {
            let number = usize::try_from(signal).unwrap_or(0);
            // In this order: who reads the byte finds the number.
            signal_hook::flag::register_usize(signal, Arc::clone(&last), number)?;
            pipe::register(signal, writable.try_clone()?)?;
        }
        Ok(Self { readable, last })
    }

    /// The signal that came, once.
    pub fn take(&self) -> Option<Stop> {
        match i32::try_from(self.last.swap(0, Ordering::SeqCst)) {
            Ok(0) => None,
            Ok(SIGHUP) => Some(Stop::Hangup),
            Ok(SIGINT) => Some(Stop::Interrupt),
            Ok(SIGQUIT) => Some(Stop::Quit),
            Ok(SIGTERM) => Some(Stop::Terminate),
            _ => Some(Stop::Unknown),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}
