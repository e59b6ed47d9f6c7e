//! The runner of mote: configuration, assembly, guest memory, vCPUs, and all that is done with KVM.
//!
//! Read [`vm`] first: it puts a machine together from top to bottom and names every step.

#![deny(unsafe_code)]

pub mod areas;
mod board;
pub mod bus;
pub mod cli;
pub mod config;
pub mod cpu;
pub mod cpuid;
pub mod dump;
mod ending;
mod fatal;
pub mod files;
mod guardian;
pub mod heap;
pub mod kvm;
pub mod layout;
pub mod log;
pub mod memory;
mod operator;
mod pages;
pub mod qvmconf;
pub mod signals;
pub mod start;
pub mod state;
mod summary;
pub mod terminal;
pub mod timeline;
pub mod vcpu;
pub mod vm;
