//! Signals that ask something of mote, made readable so that the main thread can wait for them and for the guest at once.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::ptr;

use libc::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

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

/// The signals, caught from [`Signals::catch`] on: no thread is interrupted by them, they wait to be read.
pub struct Signals(File);

impl Signals {
    /// Catches the signals for the rest of the process's life, in this thread and those that it starts from now on.
    ///
    /// # Errors
    ///
    /// The host has no descriptor to spare.
    pub fn catch() -> io::Result<Self> {
        #[expect(unsafe_code, reason = "there is no safe way to block signals and to read them")]
        // SAFETY: an all-zero set is a valid one, and the calls read nothing else. The descriptor is new.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            for (signal, _) in SIGNALS {
                libc::sigaddset(&raw mut set, signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            match libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(File::from_raw_fd(fd))),
            }
        }
    }

    /// What was asked for since the last time.
    pub fn take(&self) -> Vec<Request> {
        const INFO: usize = size_of::<libc::signalfd_siginfo>();
        let mut came = Vec::new();
        let mut info = [0; INFO];
        while (&self.0).read(&mut info).is_ok_and(|count| count == INFO) {
            // The structure begins with the signal's number.
            came.extend(info.first_chunk().map(|number| i32::from_ne_bytes(*number)));
        }
        SIGNALS.iter().filter(|(signal, _)| came.contains(signal)).map(|(_, request)| *request).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether mote, if it were stopped, would be seen by a shell that can continue it: not if it leads its session.
pub(crate) fn can_be_continued() -> bool {
    rustix::process::getsid(None).is_ok_and(|session| session != rustix::process::getpid())
}
