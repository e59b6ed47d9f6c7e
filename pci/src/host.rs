//! What PCI asks of the machine. The runner answers it with KVM, tests with a model.

use std::io;
use std::ops::Range;

use vmm_sys_util::eventfd::EventFd;

/// Where a write rings a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// A write of any width to this guest-physical address.
    Memory(u64),
    /// A two-byte write of this value to this port.
    Port(u16, u16),
}

/// What the guest may do with [`Pages`] without leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Read; writes come as accesses do.
    Read,
    /// Read and write.
    Write,
}

/// Pages of 4096 bytes that the guest can see at an address of its own, as it sees RAM.
pub trait Pages: Send + Sync {
    /// Puts bytes into the pages. What is beyond their end is left out.
    fn write(&self, offset: u64, bytes: &[u8]);

    /// Takes bytes out of the pages. What is beyond their end stays as it is.
    fn read(&self, offset: u64, bytes: &mut [u8]);

    /// Shows the pages at this guest-physical address alone, or nowhere; then accesses come as all others do.
    ///
    /// # Errors
    ///
    /// The machine cannot show it there, and shows it nowhere.
    fn show(&self, at: Option<u64>) -> io::Result<()>;
}

/// The machine, as PCI functions need it. What is provided here is for a machine that can do no better.
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

    /// So many new pages of zeros, shown nowhere.
    ///
    /// # Errors
    ///
    /// The machine has no such pages.
    fn pages(&self, _sight: Sight, _count: u64) -> io::Result<Box<dyn Pages>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// From now on writes to these guest-physical addresses may come late: before the next access of any kind that
    /// comes at all, and in their order. Or, with `is_on` false, no longer.
    ///
    /// # Errors
    ///
    /// The machine cannot; writes then come as they did.
    fn defer_writes(&self, _range: Range<u64>, _is_on: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
