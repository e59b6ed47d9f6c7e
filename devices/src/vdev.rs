//! The machine's view of a device: what every vdev answers, whatever bus it sits on.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The part of a device that an access falls into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The configuration space of a PCI function.
    PciConfig,
    /// A base address register's range of a PCI function, by the register's index (0 to 5).
    Bar(u8),
    /// A platform device's range of guest-physical addresses.
    Memory,
    /// A platform device's range of x86 I/O ports.
    Port,
}

/// Where a guest's access falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The part of the device.
    pub region: Region,
    /// Bytes from the start of that part.
    pub offset: u64,
}

/// What the machine has to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing: the guest goes on.
    None,
    /// The run ends.
    End(Reason),
}

/// Why a device ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The guest switched itself off (ACPI 6.5 §4.8.3.7).
    PowerOff,
    /// The guest asked for a reset (ACPI 6.5 §4.8.3.6).
    Reset,
    /// The guest did not write to its watchdog in time.
    Watchdog {
        /// Whether the guest's state is to be dumped before the end.
        is_dumped: bool,
    },
    /// The guest's kernel panicked, and said so.
    Panicked {
        /// Whether the guest's state is to be dumped before the end.
        is_dumped: bool,
    },
    /// The vdev of this name cannot go on.
    Failed(&'static str),
}

impl Reason {
    /// The status that mote ends with.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::PowerOff | Self::Reset => 0,
            Self::Watchdog { .. } => 4,
            Self::Failed(_) => 6,
            // The first of those that are a vdev's own, 32 to 63.
            Self::Panicked { .. } => 32,
        }
    }

    /// Whether the guest's state is to be dumped before the end.
    #[must_use]
    pub fn is_dumped(self) -> bool {
        matches!(self, Self::Watchdog { is_dumped: true } | Self::Panicked { is_dumped: true })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("powered off"),
            Self::Reset => f.write_str("reset"),
            Self::Watchdog { .. } => f.write_str("was bitten by its watchdog"),
            Self::Panicked { .. } => f.write_str("panicked"),
            Self::Failed(vdev) => write!(f, "was stopped: vdev {vdev} cannot go on"),
        }
    }
}

/// The machine, as a device needs it: by its own thread, where a vCPU's access returns an [`Effect`], and while it is made.
pub trait Machine: Send + Sync {
    /// Ends the run. The first reason counts.
    fn end(&self, reason: Reason);

    /// `vdev` has made a pseudo-terminal, whose name nobody could know before, for its port of this name or of none.
    fn add_pty(&self, _vdev: &str, _port: Option<&str>, _path: &Path) {}
}

/// A button of the machine's front panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Button {
    /// The power button.
    Power,
}

/// A virtual device as the machine sees it.
///
/// The events come in this order: [`guest_configured`](Vdev::guest_configured) once, then accesses and buttons from any
/// thread, then [`terminate`](Vdev::terminate) once. A guest's mistake is never an error of the machine: a device
/// ignores it, or asks its driver for a reset.
pub trait Vdev: Send + Sync {
    /// The name that logs and the status text use.
    fn name(&self) -> &str;

    /// The machine is assembled and the guest is about to run; from here on the device may start threads.
    ///
    /// # Errors
    ///
    /// A device that cannot start: the run ends before the guest's first instruction.
    fn guest_configured(self: Arc<Self>) -> Result<(), crate::Error> {
        Ok(())
    }

    /// A guest's read of `data.len()` bytes. `data` comes in as 0xff; bytes that nobody claims stay so.
    fn vread(&self, at: Access, data: &mut [u8]);

    /// A guest's write of `data.len()` bytes.
    fn vwrite(&self, at: Access, data: &[u8]) -> Effect;

    /// A button was pressed.
    fn button(&self, _button: Button) {}

    /// The device's state as free text, for the status signal.
    fn status(&self) -> String {
        String::new()
    }

    /// Stops the device. When this returns, no thread of the device runs.
    fn terminate(&self) {}
}
