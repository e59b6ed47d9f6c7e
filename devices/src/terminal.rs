//! The terminal that mote was started on, as far as a device needs the machine for it.

use std::os::fd::OwnedFd;

use crate::escape::EscapeKey;

/// What a person asks of mote itself, by the escape key and one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Cut the power.
    Quit,
    /// Reset the machine.
    Reset,
    /// Suspend mote as a job of its shell.
    Suspend,
    /// Print what the keys do.
    Help,
}

/// The terminal. The machine implements it; a device that reads from the terminal uses it.
pub trait Terminal: Send + Sync {
    /// The key that leads to the menu.
    fn escape_key(&self) -> EscapeKey;

    /// A key of the menu was pressed. Must not block.
    fn press(&self, key: Key);

    /// Whether the terminal is ours to read: a job in the background has to leave it to its shell.
    fn is_foreground(&self) -> bool;

    /// A descriptor that becomes readable when the terminal's size may have changed; its reader takes the bytes.
    /// `None` where there is no terminal, or another device has it.
    fn take_resized(&self) -> Option<OwnedFd>;
}

/// No terminal: for tests, and for machines that are run without one.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTerminal;

impl Terminal for NoTerminal {
    fn escape_key(&self) -> EscapeKey {
        EscapeKey::NONE
    }

    fn press(&self, _key: Key) {}

    fn is_foreground(&self) -> bool {
        true
    }

    fn take_resized(&self) -> Option<OwnedFd> {
        None
    }
}
