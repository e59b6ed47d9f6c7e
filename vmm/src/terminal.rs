//! The terminal that mote was started on: raw while the guest runs, and given back as it was, however the run ends.
//!
//! | what ends or stops mote | who gives the terminal back |
//! |---|---|
//! | the end of the run, an error, SIGTERM, SIGINT, SIGHUP, SIGQUIT | dropping [`Raw`] |
//! | a panic | the panic hook |
//! | SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE, SIGSYS, SIGTRAP; SIGTSTP | the handlers of `fatal.rs` |
//! | SIGKILL, and every other way | `guardian.rs` |
//!
//! Only a job in the foreground touches the terminal. A job that comes to the foreground later takes it then.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};

use devices::escape::EscapeKey;
use devices::terminal::Key;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Signal, getpgrp, kill_current_process_group};
use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use signal_hook::consts::SIGWINCH;
use signal_hook::low_level::pipe;

use crate::guardian::Guardian;
use crate::signals::Stop;
use crate::{fatal, signals};

/// What the terminal was like, and what it is like while it is raw. A signal handler has to find them.
static MODES: OnceLock<(Termios, Termios)> = OnceLock::new();
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Whether standard input is a terminal in raw mode.
pub fn is_raw() -> bool {
    IS_RAW.load(Ordering::Relaxed)
}

/// Gives the terminal back as it was, if it is raw. Safe in a signal handler.
pub(crate) fn restore() {
    if IS_RAW.swap(false, Ordering::SeqCst)
        && let Some((before, _)) = MODES.get()
    {
        // A terminal that has gone away needs no mending.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, before);
    }
}

/// Makes the terminal raw again, or for the first time. Not in the background, and then later. Safe in a signal handler
/// once it has been raw.
pub(crate) fn resume() {
    if !is_foreground() {
        IS_RAW.store(false, Ordering::SeqCst);
        return;
    }
    if let Some((_, raw)) = MODES.get()
        && tcsetattr(stdio::stdin(), OptionalActions::Now, raw).is_ok()
    {
        IS_RAW.store(true, Ordering::SeqCst);
    }
}

/// Whether the terminal is ours. One that controls no session, or another than ours, has no foreground.
fn is_foreground() -> bool {
    tcgetpgrp(stdio::stdin()).is_ok_and(|group| group == getpgrp()) || !is_controlling()
}

fn is_controlling() -> bool {
    rustix::termios::tcgetsid(stdio::stdin())
        .is_ok_and(|session| rustix::process::getsid(None).is_ok_and(|own| own == session))
}

/// The terminal on standard input, and what is asked of mote there.
pub struct Terminal {
    escape: EscapeKey,
    keys: Mutex<VecDeque<Key>>,
    pressed: OwnedFd,
    /// A byte for each change of size: the end to read, until a device takes it, and the end to write.
    resized: Mutex<Option<OwnedFd>>,
    resizes: UnixStream,
    /// `None` where standard input is no terminal, or there is no process to spare.
    guardian: Mutex<Option<Guardian>>,
    is_terminal: bool,
    /// The guest reads from the terminal: from [`enter_raw`](Self::enter_raw) on it is raw whenever it is ours.
    is_in_use: AtomicBool,
}

impl Terminal {
    /// Looks at the terminal and, if there is one, sets a guardian over it: call it while the process is small and has
    /// one thread.
    ///
    /// # Errors
    ///
    /// The host has no descriptor to spare.
    pub fn open(escape: EscapeKey) -> io::Result<Arc<Self>> {
        let is_terminal = io::stdin().is_terminal();
        let guardian = if is_terminal { Guardian::start() } else { None };
        let (readable, resizes) = UnixStream::pair()?;
        readable.set_nonblocking(true)?;
        if is_terminal || io::stdout().is_terminal() {
            pipe::register(SIGWINCH, resizes.try_clone()?)?;
        }
        Ok(Arc::new(Self {
            escape,
            keys: Mutex::default(),
            pressed: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            resized: Mutex::new(Some(readable.into())),
            resizes,
            guardian: Mutex::new(guardian),
            is_terminal,
            is_in_use: AtomicBool::new(false),
        }))
    }

    /// Makes the terminal raw, so that every key goes to the guest: at once, or when mote comes to the foreground.
    /// Dropping what is returned gives the terminal back.
    ///
    /// # Errors
    ///
    /// The terminal refuses.
    pub fn enter_raw(self: &Arc<Self>) -> io::Result<Option<Raw>> {
        if !self.is_terminal {
            return Ok(None);
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                hook(panic);
            }));
        });
        fatal::install()?;
        self.is_in_use.store(true, Ordering::SeqCst);
        self.take_terminal();
        Ok(Some(Raw(())))
    }

    /// Makes the terminal raw if it is ours and is not raw yet. Tells whether it is ours.
    fn take_terminal(&self) -> bool {
        if !self.is_terminal {
            return true;
        }
        if !is_foreground() {
            return false;
        }
        if !is_raw() && self.is_in_use.load(Ordering::SeqCst) {
            // Only now: before, a shell may have had it.
            if MODES.get().is_none()
                && let Ok(before) = tcgetattr(stdio::stdin())
            {
                if let Some(guardian) = &*lock(&self.guardian) {
                    guardian.arm();
                }
                let mut raw = before.clone();
                raw.make_raw();
                let _ = MODES.set((before, raw));
            }
            resume();
        }
        true
    }

    /// Does what was asked for by key, and what has to be done when mote goes on after it was stopped. Returns what
    /// ends the run.
    pub fn attend(&self, has_continued: bool) -> Option<Stop> {
        let _ = rustix::io::read(&self.pressed, &mut [0; 8]);
        if has_continued && self.is_terminal && MODES.get().is_some() {
            resume();
            // Nobody told of a change in the meantime.
            let _ = (&self.resizes).write(&[0]);
        }
        loop {
            let key = lock(&self.keys).pop_front()?;
            match key {
                Key::Quit => return Some(Stop::Quit),
                Key::Reset => return Some(Stop::Reset),
                Key::Suspend => suspend(),
                Key::Help => self.print_menu(),
            }
        }
    }

    fn print_menu(&self) {
        let key = self.escape;
        let name = key.to_string();
        let menu = format!(
            "\r\n{name} x  quit: cut the guest's power\r\n{name} r  reset: end the run as the guest's reset does\r\n\
             {name} z  suspend mote; fg goes on\r\n{name} a  send {name} to the guest\r\n{name} ?  print this\r\n"
        );
        // There is nobody to tell of a failure.
        let _ = io::stderr().write_all(menu.as_bytes());
    }
}

/// Stops the whole job, as Ctrl-z does where it is not for the guest. The handler of SIGTSTP gives the terminal back
/// before, and takes it after.
fn suspend() {
    if signals::can_be_continued() {
        let _ = kill_current_process_group(Signal::TSTP);
    } else {
        let _ = io::stderr().write_all(b"\r\nmote: there is no shell to suspend to\r\n");
    }
}

impl devices::terminal::Terminal for Terminal {
    fn escape_key(&self) -> EscapeKey {
        self.escape
    }

    fn press(&self, key: Key) {
        lock(&self.keys).push_back(key);
        // A full counter wakes just as well.
        let _ = rustix::io::write(&self.pressed, &1_u64.to_ne_bytes());
    }

    fn is_foreground(&self) -> bool {
        self.take_terminal()
    }

    fn take_resized(&self) -> Option<OwnedFd> {
        lock(&self.resized).take()
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pressed.as_fd()
    }
}

/// The terminal in raw mode. Dropping it gives the terminal back.
#[must_use]
pub struct Raw(());

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
