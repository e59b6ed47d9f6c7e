//! A guest's driver for virtio over PCI, and the machine that it runs on, for tests.
//!
//! The driver knows the device by configuration space, memory, ports and its own memory alone. Offsets and bits are
//! written down here a second time, from the specification, so that a slip in the device's tables shows.

#![allow(dead_code, unused_imports, reason = "each test binary takes what it needs of it")]

pub mod function;
pub mod guest;
pub mod host;
pub mod machine;
pub mod pages;
pub mod probe;
pub mod ring;
pub mod way;

pub use function::Function;
pub use guest::{Driver, Reg};
pub use machine::{Machine, Plug, patiently};
pub use probe::{Control, Probe};
pub use ring::{Buf, Ring};
pub use way::{Way, Wire};

/// Device status bits (VIRTIO 1.3 §2.1).
pub mod status {
    pub const ACKNOWLEDGE: u64 = 1;
    pub const DRIVER: u64 = 2;
    pub const DRIVER_OK: u64 = 4;
    pub const FEATURES_OK: u64 = 8;
    pub const NEEDS_RESET: u64 = 64;
    pub const FAILED: u64 = 128;
}

/// Feature bits (VIRTIO 1.3 §6).
pub mod feature {
    pub const ANY_LAYOUT: u128 = 1 << 27;
    pub const INDIRECT: u128 = 1 << 28;
    pub const EVENT_IDX: u128 = 1 << 29;
    pub const VERSION_1: u128 = 1 << 32;
    pub const RING_RESET: u128 = 1 << 40;
}

/// No vector (VIRTIO 1.3 §4.1.5.1.2).
pub const NO_VECTOR: u64 = 0xffff;
