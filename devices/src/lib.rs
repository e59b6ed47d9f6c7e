//! The vdevs of mote, and the virtio core that most of them share.
//!
//! A device is one file and one row of [`KINDS`]. It is either a [`VirtioDevice`], which any
//! virtio transport can carry, or a [`Vdev`] of its own. This crate knows no bus and no KVM.

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

mod action;
pub mod chain;
pub mod console;
pub mod core;
mod counter;
pub mod engine;
pub mod entropy;
pub mod escape;
mod hostdev;
pub mod interrupt;
mod ioapic;
pub mod location;
mod mc146818;
pub mod mmio;
pub mod options;
mod pckeyboard;
mod poller;
pub mod power;
mod pvpanic;
pub mod queue;
mod ser8250;
pub mod size;
mod stream;
pub mod terminal;
pub mod thread;
pub mod timeline;
mod timer8254;
pub mod vdev;
pub mod virtio;
mod wdt_ib700;
mod worker;

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::interrupt::Line;
use crate::location::{Location, Placement, Space};
use crate::options::Options;
use crate::terminal::Terminal;
use crate::vdev::{Machine, Vdev};
use crate::virtio::VirtioDevice;

/// Every kind of vdev there is.
pub const KINDS: &[Kind] = &[
    entropy::KIND,
    console::KIND,
    ser8250::KIND,
    pckeyboard::KIND,
    mc146818::KIND,
    timer8254::KIND,
    wdt_ib700::KIND,
    pvpanic::KIND,
    ioapic::KIND,
    counter::KIND,
];

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
    /// Its own options, those of its family, and those of all.
    pub fn all_options(&self) -> impl Iterator<Item = &'static OptionHelp> {
        let family = if self.is_virtio { VIRTIO_OPTIONS } else { &[] };
        self.options.iter().chain(family).chain(COMMON_OPTIONS)
    }

    /// The place of a vdev that has but one: what its `loc` takes is a place then, not a placeholder.
    pub fn only_place(&self) -> Option<Location> {
        let loc = self.options.iter().find(|help| help.name == "loc")?;
        Location::parse(loc.value, Space::Port).ok()
    }
}

/// The options that every vdev takes. The machine sees to them.
pub const COMMON_OPTIONS: &[OptionHelp] = &[
    OptionHelp {
        name: "name",
        value: "NAME",
        about: "what messages and the status call it (default: its type)",
    },
    OptionHelp {
        name: "log",
        value: "FILTER[,FILTER]... DEST",
        about: "where its messages go, instead of where 'logger' sends them; may be repeated",
    },
];

/// The option of platform vdevs whose ports can be chosen.
pub const LOC_PORT: OptionHelp =
    OptionHelp { name: "loc", value: "io:PORT", about: "its first I/O port, such as io:0x2f8" };

/// The option of platform vdevs that can be at ports or in memory.
pub const LOC_ANY: OptionHelp = OptionHelp {
    name: "loc",
    value: "io:PORT|mem:ADDRESS",
    about: "its place, such as io:0x300 or mem:0xf8000000",
};

/// The option of platform vdevs that have one place.
const fn loc_at(place: &'static str) -> OptionHelp {
    OptionHelp { name: "loc", value: place, about: "where it is, and no other place" }
}

/// The option of vdevs that raise an interrupt.
pub const INTR: OptionHelp =
    OptionHelp { name: "intr", value: "PIC:LINE", about: "the interrupt that it raises, such as ioapic:4" };

/// The options that every virtio vdev takes.
pub const VIRTIO_OPTIONS: &[OptionHelp] = &[
    OptionHelp {
        name: "loc",
        value: "LOCATION",
        about: "pci:BUS:DEVICE.FUNCTION (default: the next slot), or mem:ADDRESS with intr for VIRTIO over MMIO",
    },
    OptionHelp {
        name: "intr",
        value: "PIC:LINE",
        about: "the interrupt that it raises, such as ioapic:12 (default on PCI: by slot, 16 to 23)",
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
    /// Its value, as a placeholder; empty for a flag. In a configuration file the value has as many words as this, and
    /// none if this is in brackets, which makes it optional.
    pub value: &'static str,
    /// What it does, with its default.
    pub about: &'static str,
}

impl OptionHelp {
    /// Whether it can do without its value.
    pub fn is_value_optional(&self) -> bool {
        self.value.starts_with('[') && self.value.ends_with(']')
    }
}

/// What a factory can ask of the machine.
pub struct Context<'a> {
    /// What the user calls this vdev: its option `name`, or its type. Messages begin with it and a colon, and are
    /// filtered by it.
    pub name: &'static str,
    /// Where its user wants it.
    pub place: Placement,
    /// The machine, for a device's own thread.
    pub machine: Arc<dyn Machine>,
    /// Nothing will run: leave alone what others would notice on the host.
    pub is_check: bool,
    /// Whether standard input is still free; who takes it leaves `false`.
    pub claim_input: Cell<bool>,
    /// The terminal that standard input may be.
    pub terminal: Arc<dyn Terminal>,
    /// Gives the interrupt line of a global system interrupt number.
    pub line: &'a dyn Fn(u32) -> Arc<dyn Line>,
}

/// A device that a factory made, for the machine to place.
pub enum Built {
    /// A virtio device, for a transport.
    Virtio(Box<dyn VirtioDevice>),
    /// A device of the platform, with its place.
    Platform(Platform),
    /// A part that KVM has itself.
    Kvm(Part),
}

/// A part of the machine that KVM has itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The I/O APIC, which is always there.
    IoApic,
    /// The interval timer (Intel 8254) at ports 0x40 to 0x43, with its gate at 0x61.
    Timer,
}

/// A device of the platform and where it sits.
pub struct Platform {
    /// The device.
    pub vdev: Arc<dyn Vdev>,
    /// Its ranges of I/O ports. To the device, offsets count from the start of the first.
    pub ports: Vec<Range<u16>>,
    /// Its ranges of guest-physical addresses, likewise.
    pub memory: Vec<Range<u64>>,
    /// The interrupt that it raises, for itself alone.
    pub interrupt: Option<u32>,
    /// Its description for the guest's ACPI namespace (ACPI 6.5 §20).
    pub aml: Vec<u8>,
}

/// Makes the vdev that `options` describe.
///
/// # Errors
///
/// An unknown type, or what the vdev's own factory says.
pub fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let kind = options.row().ok_or_else(|| options::OptionError::UnknownType(options.kind.clone()))?;
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
