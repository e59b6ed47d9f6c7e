//! Guests made of the fuzzer's bytes: what they do, and what has to hold whatever they do.
//!
//! The machine and the well-behaved driver are those of `pci/tests`. Each input gets a machine of its own, so that it
//! does the same each time.

#[path = "../../pci/tests/driver/mod.rs"]
pub mod driver;

pub mod guest;
pub mod input;
