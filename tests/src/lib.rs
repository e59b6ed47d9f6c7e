//! Guests, run through the `mote` binary as a user would run it.
//!
//! A test asks for a [`Machine`] and spawns programs there: [`Machine::here`] runs Linux guests, in the nested rig where
//! this machine has no hardware KVM; [`Machine::local`] is for guests of a few instructions, which any `/dev/kvm` runs.

pub mod agent;
pub mod bzimage;
pub mod command;
pub mod elf;
pub mod guest;
pub mod initramfs;
pub mod link;
pub mod machine;
pub mod paths;
pub mod rig;
pub mod session;
pub mod wire;

pub use command::Command;
pub use machine::Machine;
pub use session::{Output, Session};
pub use wire::{Size, Status};

use std::time::Duration;

/// A deadline for what an idle machine does within a second or two; long, since emulation on a busy machine is slow.
pub const SOON: Duration = Duration::from_secs(60);

/// A deadline for a boot of Linux, or anything else of which it takes minutes to say that it hangs.
pub const LATE: Duration = Duration::from_secs(300);
