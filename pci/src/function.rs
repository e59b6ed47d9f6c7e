//! A PCI function as its bus sees it.

use std::sync::Arc;

use devices::vdev::{Region, Vdev};

use crate::host::Pages;

/// A range that a function decodes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// [`Region::Memory`] or [`Region::Port`].
    pub space: Region,
    /// First address or port.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// The base address register that says so.
    pub bar: u8,
}

/// A device with a configuration space: [`Region::PciConfig`] of its [`Vdev`].
pub trait Function: Vdev {
    /// The ranges that it decodes at this moment.
    fn windows(&self) -> Vec<Window>;

    /// From now on the guest sees its configuration space in `page`, at this guest-physical address, without an exit.
    fn show_config(&self, page: Arc<dyn Pages>, at: u64);

    /// The slot has other functions too, which the header type of function 0 has to tell.
    fn set_multi_function(&self);
}
