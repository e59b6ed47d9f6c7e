//! Interrupt lines that functions share: a line is high while any of its functions holds it (PCI 3.0 §2.2.6).

use std::io;
use std::sync::{Arc, Mutex};

use crate::host::Host;
use crate::lock;

/// One line of the interrupt controller.
pub struct Line {
    host: Arc<dyn Host>,
    gsi: u32,
    /// Which holders assert it. The wire is driven under this lock, so the two cannot part.
    asserted: Mutex<u64>,
}

impl Line {
    /// The line of global system interrupt `gsi`.
    pub fn new(host: Arc<dyn Host>, gsi: u32) -> Arc<Self> {
        Arc::new(Self { host, gsi, asserted: Mutex::new(0) })
    }

    /// The global system interrupt that it raises.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

/// One function's end of a line.
pub struct Pin {
    line: Arc<Line>,
    bit: u64,
}

impl Pin {
    /// The end of `line` that belongs to holder `index`, of which a line has at most 64.
    pub fn new(line: Arc<Line>, index: u32) -> Self {
        Self { line, bit: 1_u64.rotate_left(index) }
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
        let mut asserted = lock(&self.line.asserted);
        let before = *asserted;
        *asserted = if is_asserted { before | self.bit } else { before & !self.bit };
        match (before != 0, *asserted != 0) {
            (false, true) => self.line.host.set_line(self.line.gsi, true),
            (true, false) => self.line.host.set_line(self.line.gsi, false),
            _ => Ok(()),
        }
    }
}
