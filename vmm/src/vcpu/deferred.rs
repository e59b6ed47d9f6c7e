//! Writes that KVM kept back instead of leaving the guest for each: a ring of them, shared by all vCPUs of a VM
//! (`KVM_CAP_COALESCED_MMIO`). They are passed on, in their order, before any access that did leave the guest.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use devices::vdev::Effect;
use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::bus::{Bus, Space};
use crate::layout::PAGE;

/// The entries that a page has room for.
const ENTRIES: u32 =
    ((PAGE as usize - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The ring, mapped for as long as the process lives.
pub(super) struct Deferred {
    ring: NonNull<kvm_coalesced_mmio_ring>,
    /// Held while writes are passed on, so that they stay in order.
    passing: Mutex<()>,
}

#[expect(unsafe_code, reason = "a pointer to memory that is shared with the kernel")]
// SAFETY: the page stays mapped, its indices are accessed as atomics, and its entries only under the lock.
unsafe impl Send for Deferred {}
#[expect(unsafe_code, reason = "a pointer to memory that is shared with the kernel")]
// SAFETY: as above.
unsafe impl Sync for Deferred {}

impl Deferred {
    /// The ring of the VM that `vcpu` belongs to.
    pub(super) fn of(vcpu: &VcpuFd) -> std::io::Result<Self> {
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        #[expect(unsafe_code, reason = "mapping memory is a raw system call")]
        // SAFETY: the descriptor is open while `vcpu` is, and a mapping at an address of the kernel's choice changes no
        // memory that exists.
        let page = unsafe {
            let fd = BorrowedFd::borrow_raw(vcpu.as_raw_fd());
            mmap(std::ptr::null_mut(), PAGE as usize, access, flags, fd, offset)
        }?;
        let ring = NonNull::new(page.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { ring, passing: Mutex::new(()) })
    }

    /// Passes on what was kept back. A write that ends the run is told.
    pub(super) fn pass_on(&self, bus: &Bus) -> Effect {
        #[expect(unsafe_code, reason = "the indices are in memory shared with the kernel")]
        // SAFETY: the page is mapped, and both sides access the indices as whole words.
        let (first, last) = unsafe {
            let ring = self.ring.as_ptr();
            (AtomicU32::from_ptr(&raw mut (*ring).first), AtomicU32::from_ptr(&raw mut (*ring).last))
        };
        if first.load(Ordering::Relaxed) == last.load(Ordering::Acquire) {
            return Effect::None;
        }
        let _order = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let at = first.load(Ordering::Relaxed);
            if at == last.load(Ordering::Acquire) {
                return Effect::None;
            }
            let at = at % ENTRIES;
            #[expect(unsafe_code, reason = "the entries are in memory shared with the kernel")]
            // SAFETY: the entry is in the page, the kernel has written it and does not again before `first` is past it.
            let entry = unsafe {
                (&raw const (*self.ring.as_ptr()).coalesced_mmio)
                    .cast::<kvm_coalesced_mmio>()
                    .add(at as usize)
                    .read()
            };
            first.store((at + 1) % ENTRIES, Ordering::Release);
            let data = entry.data.get(..entry.len as usize).unwrap_or(&entry.data);
            if let end @ Effect::End(_) = bus.write(Space::Memory, entry.phys_addr, data) {
                return end;
            }
        }
    }
}
