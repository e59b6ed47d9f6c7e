//! Interrupt lines that functions share: a line is high while any of its functions holds it (PCI 3.0 §2.2.6).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::host::Host;
use crate::lock;

/// One line of the interrupt controller.
pub struct Line {
    host: Arc<dyn Host>,
    gsi: u32,
    /// How many pins assert it. The wire is driven under this lock, so the two cannot part.
    holders: Mutex<u32>,
}

impl Line {
    /// The line of global system interrupt `gsi`.
    pub fn new(host: Arc<dyn Host>, gsi: u32) -> Arc<Self> {
        Arc::new(Self { host, gsi, holders: Mutex::new(0) })
    }

    /// The global system interrupt that it raises.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

/// One function's end of a line.
pub struct Pin {
    line: Arc<Line>,
    /// Read and written under the line's lock alone.
    is_asserted: AtomicBool,
}

impl Pin {
    /// One more end of `line`.
    pub fn new(line: Arc<Line>) -> Self {
        Self { line, is_asserted: AtomicBool::new(false) }
    }

    /// The global system interrupt behind the pin.
    pub fn gsi(&self) -> u32 {
        self.line.gsi
    }

    /// Holds the line or lets go of it.
    ///
    /// # Errors
    ///
    /// The machine refused.
    pub fn set(&self, is_asserted: bool) -> io::Result<()> {
        let mut holders = lock(&self.line.holders);
        if self.is_asserted.swap(is_asserted, Ordering::Relaxed) == is_asserted {
            return Ok(());
        }
        *holders = if is_asserted { holders.saturating_add(1) } else { holders.saturating_sub(1) };
        match (is_asserted, *holders) {
            (true, 1) | (false, 0) => self.line.host.set_line(self.line.gsi, is_asserted),
            _ => Ok(()),
        }
    }
}
