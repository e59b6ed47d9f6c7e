//! Handlers of the signals that end or stop mote on the spot: they give the terminal back first.
//!
//! What a handler calls is a swap of an atomic and an `ioctl`; both are allowed there.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::ptr;

use crate::terminal;

/// What a defect of mote, or of what it is linked to, raises.
const DEFECTS: [c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL, libc::SIGFPE, libc::SIGSYS, libc::SIGTRAP];

/// Installs the handlers.
///
/// # Errors
///
/// The host refuses; it has no reason to.
pub(crate) fn install() -> io::Result<()> {
    DEFECTS.iter().try_for_each(|signal| set(*signal, Some(defect), libc::SA_RESETHAND))?;
    set(libc::SIGTSTP, Some(stop), libc::SA_RESTART)
}

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Sets the action for a signal: a handler, or what the kernel does by itself.
fn set(signal: c_int, handler: Option<Handler>, flags: c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "there is no safe way to handle these signals")]
    // SAFETY: an all-zero sigaction is a valid one. The handlers call nothing that a handler may not call.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler.map_or(libc::SIG_DFL, |handler| handler as libc::sighandler_t);
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | flags;
        libc::sigaction(signal, &raw const action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn raise(signal: c_int) {
    #[expect(unsafe_code, reason = "the signal has to come once more")]
    // SAFETY: it sends a signal to this thread and touches no memory.
    unsafe {
        libc::raise(signal);
    }
}

/// A defect: the terminal is given back, and the signal has its usual effect, a core dump with the true place in it.
extern "C" fn defect(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    terminal::restore();
    // SA_RESETHAND has set the usual action. An instruction that faulted would fault again; a signal that was sent
    // would be lost.
    raise(signal);
}

/// A request to stop: the terminal is given back, mote stops, and takes the terminal again when it goes on in the
/// foreground.
extern "C" fn stop(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    terminal::restore();
    if set(signal, None, 0).is_ok() {
        raise(signal);
        let _ = set(signal, Some(stop), libc::SA_RESTART);
    }
    terminal::resume();
}
