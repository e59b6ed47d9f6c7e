//! Signals that ask something of mote, made readable so that the main thread can wait for them and for the guest at once.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::pipe;

/// What ended the run, where the guest did not: a signal, or a key of the escape key's menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGHUP: the terminal went away.
    Hangup,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    QuitSignal,
    /// SIGTERM.
    Terminate,
    /// The escape key, and x.
    Quit,
    /// The escape key, and r.
    Reset,
    /// The guest did not heed its power button in time.
    Unheeded,
    /// Something woke mote that it cannot name.
    Unknown,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::QuitSignal => "SIGQUIT",
            Self::Terminate => "SIGTERM",
            Self::Quit => "the escape key and x",
            Self::Reset => "the escape key and r",
            Self::Unheeded => "the guest did not heed its power button",
            Self::Unknown => "an unknown signal",
        })
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Press the power button; if it is pressed already, cut the power.
    Button(Stop),
    /// Cut the power.
    Cut(Stop),
    /// Tell how everything is.
    Status,
    /// Dump the guest.
    Dump,
    /// mote was stopped and goes on.
    Continued,
}

/// The signals, each with what it asks for, in the order in which they are heeded.
const SIGNALS: [(i32, Request); 7] = [
    (SIGCONT, Request::Continued),
    (SIGUSR1, Request::Status),
    (SIGUSR2, Request::Dump),
    (SIGTERM, Request::Button(Stop::Terminate)),
    (SIGINT, Request::Button(Stop::Interrupt)),
    (SIGHUP, Request::Cut(Stop::Hangup)),
    (SIGQUIT, Request::Cut(Stop::QuitSignal)),
];

/// The signals, caught from [`Signals::catch`] on.
pub struct Signals {
    readable: UnixStream,
    came: Vec<(Request, Arc<AtomicBool>)>,
}

impl Signals {
    /// Catches the signals for the rest of the process's life.
    ///
    /// # Errors
    ///
    /// The host has no descriptor to spare.
    pub fn catch() -> io::Result<Self> {
        let (readable, writable) = UnixStream::pair()?;
        readable.set_nonblocking(true)?;
        let mut came = Vec::new();
        for (signal, request) in SIGNALS {
            let flag = Arc::new(AtomicBool::new(false));
            // In this order: who reads the byte finds the flag.
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
            pipe::register(signal, writable.try_clone()?)?;
            came.push((request, flag));
        }
        Ok(Self { readable, came })
    }

    /// What was asked for since the last time.
    pub fn take(&self) -> Vec<Request> {
        // What comes after this read wakes again.
        while (&self.readable).read(&mut [0; 64]).is_ok_and(|count| count != 0) {}
        let asked = self.came.iter().filter(|(_, flag)| flag.swap(false, Ordering::SeqCst));
        asked.map(|(request, _)| *request).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

/// Whether mote, if it were stopped, would be seen by a shell that can continue it: not if it leads its session.
pub(crate) fn can_be_continued() -> bool {
    rustix::process::getsid(None).is_ok_and(|session| session != rustix::process::getpid())
}
