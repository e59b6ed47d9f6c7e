//! The vdevs of mote, and the virtio core that most of them share.
//!
//! A device is one file and one row of [`KINDS`]. It is either a [`VirtioDevice`](virtio::VirtioDevice), which any
//! virtio transport can carry, or a [`Vdev`](vdev::Vdev) of its own. This crate knows no bus and no KVM.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

pub mod chain;
mod console;
pub mod core;
pub mod engine;
mod entropy;
pub mod interrupt;
pub mod options;
pub mod power;
pub mod queue;
mod ser8250;
mod stream;
pub mod vdev;
pub mod virtio;
mod worker;

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::interrupt::Line;
use crate::options::Options;
use crate::vdev::Vdev;
use crate::virtio::VirtioDevice;

/// Every kind of vdev there is.
pub const KINDS: &[Kind] = &[entropy::KIND, console::KIND, ser8250::KIND];

/// One kind of vdev: what `mote vdevs` says of it, and how to make one.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Its type, as on the command line.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub about: &'static str,
    /// Its own options; see [`Kind::all_options`].
    pub options: &'static [OptionHelp],
    /// Whether it is a virtio device, and takes [`VIRTIO_OPTIONS`] too.
    pub is_virtio: bool,
    /// Makes one.
    pub build: fn(&Options, &Context<'_>) -> Result<Built, Error>,
}

impl Kind {
    /// Its own options, and those of its family.
    pub fn all_options(&self) -> impl Iterator<Item = &'static OptionHelp> {
        let family = if self.is_virtio { VIRTIO_OPTIONS } else { &[] };
        self.options.iter().chain(family)
    }
}

/// The options that every virtio vdev takes.
pub const VIRTIO_OPTIONS: &[OptionHelp] = &[
    OptionHelp {
        name: "loc",
        value: "pci:BUS:DEVICE.FUNCTION",
        about: "its place on the PCI bus (default: the next slot)",
    },
    OptionHelp { name: "legacy", value: "", about: "present the 0.9.5 interface alone, for old drivers" },
    OptionHelp {
        name: "transitional",
        value: "",
        about: "present the 0.9.5 interface beside the modern one",
    },
];

/// What help says of one option.
#[derive(Clone, Copy, Debug)]
pub struct OptionHelp {
    /// Its name.
    pub name: &'static str,
    /// Its value, as a placeholder; empty for a flag.
    pub value: &'static str,
    /// What it does, with its default.
    pub about: &'static str,
}

/// What a factory can ask of the machine.
pub struct Context<'a> {
    /// Whether standard input is still free; who takes it leaves `false`.
    pub claim_input: Cell<bool>,
    /// Gives the interrupt line of a global system interrupt number.
    pub line: &'a dyn Fn(u32) -> Arc<dyn Line>,
}

/// A device that a factory made, for the machine to place.
pub enum Built {
    /// A virtio device, for a transport.
    Virtio(Box<dyn VirtioDevice>),
    /// A device of the platform, with its place.
    Platform(Platform),
}

/// A device of the platform and where it sits.
pub struct Platform {
    /// The device.
    pub vdev: Arc<dyn Vdev>,
    /// First I/O port.
    pub port: u16,
    /// Number of I/O ports.
    pub ports: u16,
    /// Its description for the guest's ACPI namespace (ACPI 6.5 §20).
    pub aml: Vec<u8>,
}

/// Makes the vdev that `options` describe.
///
/// # Errors
///
/// An unknown type, or what the vdev's own factory says.
pub fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let kind = KINDS.iter().find(|k| k.name == options.kind);
    let kind = kind.ok_or_else(|| options::OptionError::UnknownType(options.kind.clone()))?;
    (kind.build)(options, context)
}

/// What can go wrong in making or starting a vdev.
#[derive(Debug, Error)]
pub enum Error {
    /// The vdev's options are wrong.
    #[error(transparent)]
    Options(#[from] options::OptionError),
    /// Something of the host cannot be opened.
    #[error("{vdev}: cannot open {}: {source}", path.display())]
    Open {
        /// The vdev's type.
        vdev: &'static str,
        /// What it tried to open.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A queue cannot be made as the device describes it.
    #[error("{vdev}: a queue cannot be made: {source}")]
    Queue {
        /// The vdev's type.
        vdev: &'static str,
        /// Why not.
        source: virtio_queue::Error,
    },
    /// The host has no event descriptor or thread for the device.
    #[error("{vdev}: the host has no event descriptor or thread to spare: {source}")]
    Worker {
        /// The vdev's type.
        vdev: &'static str,
        /// Why not.
        source: io::Error,
    },
}
