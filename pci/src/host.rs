//! What PCI asks of the machine. The runner answers it with KVM, tests with a model.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// Where a write rings a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// A write of any width to this guest-physical address.
    Memory(u64),
    /// A two-byte write of this value to this port.
    Port(u16, u16),
}

/// The machine, as PCI functions need it.
pub trait Host: Send + Sync {
    /// Delivers a message-signalled interrupt.
    ///
    /// # Errors
    ///
    /// The machine refuses the message, as for an address that no local APIC answers.
    fn send_msi(&self, address: u64, data: u32) -> io::Result<()>;

    /// Raises or lowers the interrupt line of a global system interrupt.
    ///
    /// # Errors
    ///
    /// The machine has no such line.
    fn set_line(&self, gsi: u32, is_high: bool) -> io::Result<()>;

    /// From now on a write to `bell` signals `event` instead of leaving the guest.
    ///
    /// # Errors
    ///
    /// The machine cannot; the write then arrives as any other does.
    fn bind_doorbell(&self, bell: Bell, event: &EventFd) -> io::Result<()>;

    /// Ends what [`bind_doorbell`](Host::bind_doorbell) began, with the same arguments.
    ///
    /// # Errors
    ///
    /// It was not bound.
    fn unbind_doorbell(&self, bell: Bell, event: &EventFd) -> io::Result<()>;
}
