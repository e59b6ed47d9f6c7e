//! Signals that ask something of mote, made readable so that the main thread can wait for them and for the guest at once.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use libc::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::signal::register_signal_handler;

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

/// The signals that came and were not taken: a bit for each of [`SIGNALS`].
static CAME: AtomicU8 = AtomicU8::new(0);
/// Becomes readable when one comes. A signal handler has to find it.
static READABLE: OnceLock<OwnedFd> = OnceLock::new();

/// The signals, caught from [`Signals::catch`] on: they wait to be read.
///
/// They are not blocked, which would be simpler, because commands that mote starts would have them blocked, too.
pub struct Signals(&'static OwnedFd);

impl Signals {
    /// Catches the signals for the rest of the process's life.
    ///
    /// # Errors
    ///
    /// The host has no descriptor to spare.
    pub fn catch() -> io::Result<Self> {
        let readable = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let readable = READABLE.get_or_init(|| readable);
        for (signal, _) in SIGNALS {
            register_signal_handler(signal, note)?;
        }
        Ok(Self(readable))
    }

    /// What was asked for since the last time.
    pub fn take(&self) -> Vec<Request> {
        // In this order: what comes after the read is readable again.
        let _ = rustix::io::read(self.0, &mut [0; 8]);
        let came = CAME.swap(0, Ordering::SeqCst);
        let bits = (0..).map(|index| came >> index & 1 != 0);
        SIGNALS.iter().zip(bits).filter(|(_, has_come)| *has_come).map(|((_, request), _)| *request).collect()
    }
}

/// Takes note of a signal. In this order: who reads the descriptor finds the bit.
extern "C" fn note(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    if let Some(index) = SIGNALS.iter().position(|(known, _)| *known == signal) {
        CAME.fetch_or(1 << index, Ordering::SeqCst);
    }
    if let Some(readable) = READABLE.get() {
        // A full counter wakes just as well.
        let _ = rustix::io::write(readable, &1_u64.to_ne_bytes());
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
