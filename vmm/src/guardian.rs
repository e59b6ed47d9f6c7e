//! The guardian: a process that outlives mote by a moment, to give the terminal back where mote could not.
//!
//! It is forked before there is a VM, has a session of its own, and holds the terminal and one end of a socket, nothing
//! else. When the other end closes, mote is gone. If the terminal is then still as mote made it, the guardian makes it
//! as it was; if it is not, somebody has done so already.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use log::warn;
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// mote's end of the guardian. The guardian ends when it is dropped.
pub(crate) struct Guardian {
    socket: Option<UnixStream>,
    process: Option<Pid>,
}

impl Guardian {
    /// Forks it. A host that has no process to spare goes without.
    pub(crate) fn start() -> Option<Self> {
        let pair = UnixStream::pair();
        let (ours, theirs) = pair.inspect_err(|error| warn!("no guardian for the terminal: {error}")).ok()?;
        #[expect(unsafe_code, reason = "there is no other way to a process without a program of its own")]
        // SAFETY: the process has one thread, so the child finds every lock as its own thread left it.
        match unsafe { libc::fork() } {
            0 => {
                drop(ours);
                let _ = guard(theirs);
                #[expect(unsafe_code, reason = "what is registered to run at exit is the parent's")]
                // SAFETY: it ends the process, of which nothing is left to clean up.
                unsafe {
                    libc::_exit(0)
                }
            }
            -1 => {
                warn!("no guardian for the terminal: {}", std::io::Error::last_os_error());
                None
            }
            process => Some(Self { socket: Some(ours), process: Pid::from_raw(process) }),
        }
    }

    /// Has it take note of what the terminal is like. When this returns, it has.
    pub(crate) fn arm(&self) {
        // A guardian that is gone guards nothing, and nothing can be done about it.
        let Some(mut socket) = self.socket.as_ref() else { return };
        let _ = socket.write_all(&[0]);
        let _ = socket.read(&mut [0]);
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.socket.take());
        // It has nothing left to do but to end.
        let _ = waitpid(self.process, WaitOptions::empty());
    }
}

/// The life of the guardian.
fn guard(socket: UnixStream) -> std::io::Result<()> {
    // Where it is a session's leader, the terminal's keys and the end of its session don't reach it.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"tty-guardian");
    rustix::stdio::dup2_stdout(&socket)?;
    drop(socket);
    #[expect(unsafe_code, reason = "closing all that was inherited is what this is for")]
    // SAFETY: nobody in this process uses a descriptor but the first two from here on. The signals are blocked by a set
    // of this frame.
    unsafe {
        libc::close_range(2, libc::c_uint::MAX, 0);
        let mut signals = std::mem::zeroed();
        libc::sigfillset(&raw mut signals);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const signals, std::ptr::null_mut());
    }
    let mut byte = [0];
    if rustix::io::read(stdio::stdout(), &mut byte)? == 0 {
        return Ok(());
    }
    let before = tcgetattr(stdio::stdin())?;
    rustix::io::write(stdio::stdout(), &byte)?;
    while rustix::io::read(stdio::stdout(), &mut byte)? != 0 {}
    let mut raw = before.clone();
    raw.make_raw();
    if is_like(&tcgetattr(stdio::stdin())?, &raw) {
        tcsetattr(stdio::stdin(), OptionalActions::Now, &before)?;
    }
    Ok(())
}

fn is_like(one: &Termios, other: &Termios) -> bool {
    one.input_modes == other.input_modes
        && one.output_modes == other.output_modes
        && one.local_modes == other.local_modes
        && one.control_modes == other.control_modes
}
