//! Why no guest runs.

use std::io;

use thiserror::Error;

use crate::bus::MapError;
use crate::config::Vdev;
use crate::qvmconf::{self, Origin};
use crate::{files, kvm};

/// Why no guest runs.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel, the initial ramdisk, the command line or the ACPI tables.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// KVM, or the guest's memory.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// The configuration.
    #[error(transparent)]
    Configuration(#[from] qvmconf::Error),
    /// A further file.
    #[error(transparent)]
    File(#[from] files::Error),
    /// Something about a vdev, and where that was asked for.
    #[error("{origin} {source}")]
    At {
        /// Where.
        origin: Origin,
        /// What.
        source: Box<Error>,
    },
    /// A vdev.
    #[error(transparent)]
    Vdev(#[from] devices::Error),
    /// Two vdevs in one place.
    #[error(transparent)]
    Map(#[from] MapError),
    /// More PCI functions than slots.
    #[error("there is no PCI slot left for vdev {vdev}; a bus has 32")]
    Slots {
        /// The vdev that found none.
        vdev: String,
    },
    /// Two PCI functions in one place.
    #[error("vdev {vdev} cannot be PCI function 00:{slot:02x}.{number}: another one is there")]
    Taken {
        /// The vdev that came second.
        vdev: String,
        /// The slot.
        slot: u8,
        /// The function in it.
        number: u8,
    },
    /// Functions that no guest looks for.
    #[error(
        "PCI slot {slot:#x} has functions but no function 0, so no guest looks for them; give one vdev loc=pci:0:{slot:x}.0"
    )]
    NoFunction0 {
        /// The slot.
        slot: u8,
    },
    /// The BARs do not fit their window.
    #[error("there is no address left for a BAR of vdev {vdev}")]
    Window {
        /// The vdev that found none.
        vdev: String,
    },
    /// Two devices on one interrupt.
    #[error("vdev {name} cannot have interrupt ioapic:{gsi}: {other} has it")]
    Line {
        /// The input of the I/O APIC.
        gsi: u32,
        /// Who asked.
        name: String,
        /// Who has it.
        other: String,
    },
    /// A defect of mote.
    #[error("the thread that loads the kernel panicked")]
    LoaderPanicked,
    /// The host.
    #[error("cannot {attempt}: {source}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn host(attempt: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { attempt, source }
    }

    /// Shows where the vdev asked for what is wrong.
    pub(super) fn about(self, vdev: &Vdev) -> Self {
        let option = match &self {
            Self::Vdev(devices::Error::Options(error)) => error.option(),
            Self::Line { .. } => Some("intr"),
            Self::Taken { .. } | Self::Map(_) => Some("loc"),
            _ => None,
        };
        match vdev.origin_of(option) {
            Some(origin) => Self::At { origin, source: Box::new(self) },
            None => self,
        }
    }

    /// The status that mote ends with: 65 for what is wrong with the configuration as it stands, 64 for all else.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::At { source, .. } => source.exit_status(),
            Self::Configuration(_)
            | Self::File(files::Error::Place { .. })
            | Self::Vdev(devices::Error::Options(_))
            | Self::Map(_)
            | Self::Slots { .. }
            | Self::Taken { .. }
            | Self::NoFunction0 { .. }
            | Self::Window { .. }
            | Self::Line { .. } => 65,
            _ => 64,
        }
    }
}
