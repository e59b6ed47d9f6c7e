//! From a kernel image on the host to a guest that can be started: guest memory filled, registers as plain
//! integers.
//!
//! The crate makes no KVM calls and knows no device. It is used in three steps, of which the first two happen
//! before any VM is made, so that a file that is no kernel or a guest that is too small is a clear error and
//! costs nothing:
//!
//! 1. [`Image::open`] and [`Initrd::open`] look at the files: magic numbers, boot protocol, lengths.
//! 2. [`Plan::new`] decides where kernel, initrd and command line go in the RAM that the guest will have.
//!    [`acpi::tables`] turns a description of the machine into the bytes of its ACPI tables.
//! 3. [`Plan::load`] writes all of it to guest memory, each file straight from its descriptor, and returns
//!    the [`Entry`]: the registers that the boot processor starts with.
//!
//! What lies where below 1 MiB is in [`layout`]. The specifications are the Linux/x86 boot protocol
//! (`Documentation/arch/x86/boot.rst` and `zero-page.rst` in the kernel's source) and ACPI 6.5.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::todo,
        clippy::unimplemented,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

pub mod acpi;
pub mod layout;

mod cmdline;
mod e820;
mod entry;
mod error;
mod image;
mod input;
mod linux;
mod zero_page;

pub use cmdline::CommandLine;
pub use entry::{Entry, Segment, TableRegister};
pub use error::{Error, Result};
pub use image::{Header, Image};
pub use input::Initrd;
pub use linux::{Plan, SEED_SIZE};
