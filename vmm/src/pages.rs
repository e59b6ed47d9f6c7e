//! Pages of mote that the guest sees as it sees RAM: a memory slot each, while they are shown.

use std::io;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use pci::host::{Pages, Sight};
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, VolatileMemory};

use crate::kvm::Vm;
use crate::layout;

/// Pages and the memory slot that shows them.
pub(crate) struct SlotPages {
    vm: Vm,
    slot: u32,
    sight: Sight,
    /// Mapped for as long as the process lives: the guest may read it to its end.
    host: &'static MmapRegion<()>,
    shown: Mutex<Option<u64>>,
}

impl SlotPages {
    /// So many pages of zeros for memory slot `slot`, which nothing else uses.
    pub(crate) fn new(vm: Vm, slot: u32, sight: Sight, count: u64) -> io::Result<Self> {
        let len = usize::try_from(count.saturating_mul(layout::PAGE)).map_err(io::Error::other)?;
        let host = MmapRegion::new(len).map_err(io::Error::other)?;
        Ok(Self { vm, slot, sight, host: Box::leak(Box::new(host)), shown: Mutex::new(None) })
    }

    /// Gives the slot this address, or takes it away.
    fn set_slot(&self, at: Option<u64>) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: self.slot,
            flags: if self.sight == Sight::Read { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: at.unwrap_or(0),
            memory_size: at.map_or(0, |_| self.host.size() as u64),
            userspace_addr: self.host.as_ptr().addr() as u64,
        };
        #[expect(unsafe_code, reason = "the guest will see host memory that is named by address")]
        // SAFETY: the pages are mapped for as long as the process lives, hold nothing but what the guest may see, and are
        // read and written by volatile accesses only. The slot is their own.
        unsafe { self.vm.fd().set_user_memory_region(region) }?;
        Ok(())
    }
}

impl Pages for SlotPages {
    fn write(&self, offset: u64, bytes: &[u8]) {
        if let Ok(at) = usize::try_from(offset) {
            // What does not fit is left out.
            let _ = self.host.as_volatile_slice().write(bytes, at);
        }
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        if let Ok(at) = usize::try_from(offset) {
            let _ = self.host.as_volatile_slice().read(bytes, at);
        }
    }

    fn show(&self, at: Option<u64>) -> io::Result<()> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown == at {
            return Ok(());
        }
        if shown.take().is_some() {
            self.set_slot(None)?;
        }
        if let Some(address) = at {
            let end = address.saturating_add(self.host.size() as u64);
            let is_device = |window: &std::ops::Range<u64>| window.start <= address && end <= window.end;
            if !is_device(&layout::PCI_MEMORY) && !is_device(&layout::ECAM) {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            }
            // KVM refuses what overlaps another slot.
            self.set_slot(at)?;
            *shown = at;
        }
        Ok(())
    }
}
