//! The terminal that the guest's console is on: raw while the guest runs, and given back as it was.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// What the terminal was like. A panic anywhere has to find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Whether standard input is a terminal in raw mode.
pub fn is_raw() -> bool {
    IS_RAW.load(Ordering::Relaxed)
}

/// Standard input in raw mode. Dropping it gives the terminal back.
#[must_use]
pub struct Raw(());

impl Raw {
    /// Makes standard input raw if it is a terminal: every key goes to the guest.
    ///
    /// # Errors
    ///
    /// The terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(before);
        let this = Self(());
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw)?;
        IS_RAW.store(true, Ordering::Relaxed);
        Ok(Some(this))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that has gone away needs no mending.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, &before);
    }
    IS_RAW.store(false, Ordering::Relaxed);
}
