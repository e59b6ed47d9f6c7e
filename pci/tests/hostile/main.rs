//! Guests that mean harm: every access and every byte of a ring is theirs to choose. A device may stop working until its
//! driver resets it; nothing else may happen.

#[path = "../driver/mod.rs"]
mod driver;

mod allocations;
mod crafted;
mod logged;
mod offences;
mod random;
mod target;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time, for they count lines of the log and bytes of memory.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    logged::start();
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;
