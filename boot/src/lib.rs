//! From a kernel image on the host to a guest that can be started: guest memory filled, registers as plain
//! integers.
//!
//! The crate makes no KVM calls and knows no device. It is used in three steps, of which the first two happen
//! before any VM is made, so that a file that is no kernel or a guest that is too small is a clear error and
//! costs nothing:
//!
//! 1. [`Image::open`] and [`Initrd::open`] look at the files: magic numbers, boot protocol, lengths.
//! 2. [`Plan::new`] decides where kernel, initrd and command line go in the RAM that the guest will have;
//!    [`Plan::randomised`] gives the kernel a random place and [`Plan::cached`] a [`Cache`].
//!    [`acpi::tables`] turns a description of the machine into the bytes of its ACPI tables.
//! 3. [`Plan::load`] writes all of it to guest memory and returns the [`Entry`]: the registers that the boot
//!    processor starts with. [`Plan::load_kernel`] is the part of it that takes time.
//!
//! A kernel reaches guest memory in one of four ways ([`Method`]). A distribution's bzImage is unpacked here, at
//! the host's speed (`payload.rs`, `unpack.rs`), put into place as it comes (`scatter.rs`), and relocated
//! (`relocs.rs`, `kaslr.rs`); the next time it comes from the cache. An ELF file is read straight into place
//! (`vmlinux.rs`). One that has no 64-bit entry starts by the PVH protocol (`pvh.rs`). A bzImage that is packed in
//! an unknown way starts at its own entry and unpacks itself.
//!
//! What lies where below 1 MiB is in [`layout`]. The specifications are the Linux/x86 boot protocol
//! (`Documentation/arch/x86/boot.rst` and `zero-page.rst` in the kernel's source), ELF, Xen's PVH and ACPI 6.5.

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

mod cache;
mod cmdline;
mod e820;
mod elf;
mod entry;
mod error;
mod image;
mod input;
mod kaslr;
mod kernel;
mod linux;
mod locks;
mod payload;
mod place;
mod pvh;
mod relocs;
mod reset;
#[cfg(test)]
mod sample;
mod scatter;
mod unpack;
mod vmlinux;
mod zero_page;

pub use cache::Cache;
pub use cmdline::CommandLine;
pub use entry::{Entry, Segment, TableRegister};
pub use error::{Error, Result};
pub use image::{Header, Image};
pub use input::Initrd;
pub use kaslr::Offsets;
pub use kernel::{Kernel, Method, Note};
pub use linux::{Loaded, Plan, SEED_SIZE};
pub use payload::Compressor;
pub use reset::write_reset_vector;
