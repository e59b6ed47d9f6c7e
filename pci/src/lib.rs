//! PCI as the guest sees it: one bus, its functions' configuration space, MSI-X and INTx, and the virtio transport.
//!
//! All that it asks of the machine is the trait [`host::Host`]; it knows no KVM.

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

pub mod bridge;
pub mod config;
pub mod function;
pub mod host;
pub mod line;
pub mod msix;
pub mod ports;
pub mod root;
pub mod virtio;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock whose holder cannot have left it half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads `source` as a little-endian register file from `offset` on; what is beyond it stays as it is.
fn read_bytes(source: &[u8], offset: u64, data: &mut [u8]) {
    let bytes = usize::try_from(offset).ok().and_then(|at| source.get(at..)).unwrap_or_default();
    data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
}
