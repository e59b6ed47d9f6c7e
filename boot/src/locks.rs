//! The lock prefixes of Linux, which a guest with one processor does not need.
//!
//! Linux lists them in its section `.smp_locks`: for each, how far it is from its entry, as a 32-bit number. Where it finds
//! itself on one processor it turns each into a prefix without a meaning there (`alternatives_smp_unlock` of
//! `arch/x86/kernel/alternative.c`), and since its code is write-protected by then, it goes through a temporary address space
//! each time, ten thousand times. It passes over those that have been turned already.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::elf::{Class, Elf, KERNEL_MAP};
use crate::{Error, Result};

/// `LOCK`, and what Linux puts there: `DS`, as a prefix.
const LOCK: u8 = 0xf0;
const DS: u8 = 0x3e;
/// The size of an entry.
const ENTRY_SIZE: usize = 4;

/// Where they are, in physical addresses as linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locks {
    /// The list.
    pub(crate) table: Range<u64>,
    /// The code. What the list has outside of it Linux leaves alone.
    pub(crate) text: Range<u64>,
}

impl Locks {
    /// Looks for them in the file of `elf`, of which `read` gets so many bytes at an offset. `None` if this is no
    /// Linux for several processors, or one whose sections nobody can tell.
    pub(crate) fn find(elf: &Elf, read: impl Fn(u64, u64) -> Option<Vec<u8>>) -> Option<Self> {
        if elf.class != Class::Bits64 || !elf.is_linked_as_linux() {
            return None;
        }
        let [table, text] = elf.sections(read, [b".smp_locks", b".text"])?.map(|section| {
            let section = section?;
            Some(section.start.checked_sub(KERNEL_MAP)?..section.end.checked_sub(KERNEL_MAP)?)
        });
        Some(Self { table: table?, text: text? }).filter(|locks| locks.is_within(&elf.filled()))
    }

    /// Whether all lies in `image`.
    pub(crate) fn is_within(&self, image: &Range<u64>) -> bool {
        [&self.table, &self.text]
            .iter()
            .all(|range| image.start <= range.start && range.start <= range.end && range.end <= image.end)
    }

    /// Takes them from the kernel that fills `image` as linked, and lies `shift` above that in `memory`. Tells how many.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if there is no such memory.
    pub(crate) fn take(&self, memory: &GuestMemoryMmap, image: &Range<u64>, shift: u64) -> Result<usize> {
        let address = image.start.wrapping_add(shift);
        let failed = |source| Error::Memory { what: "the kernel's lock prefixes", address, source };
        let size =
            |range: &Range<u64>| usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let at = |linked: u64| size(&(image.start..linked));
        let kernel = memory.get_slice(GuestAddress(address), size(image)).map_err(failed)?;
        let mut table = vec![0; size(&self.table)];
        let mut count: usize = 0;
        let mut taken = || {
            kernel.read_slice(&mut table, at(self.table.start))?;
            let entries = table.as_chunks::<ENTRY_SIZE>().0.iter().map(|entry| i32::from_le_bytes(*entry));
            for (place, distance) in (self.table.start..).step_by(ENTRY_SIZE).zip(entries) {
                let lock = place.wrapping_add_signed(distance.into());
                if self.text.contains(&lock) && kernel.read_obj::<u8>(at(lock))? == LOCK {
                    kernel.write_obj(DS, at(lock))?;
                    count = count.saturating_add(1);
                }
            }
            Ok(())
        };
        taken().map_err(|source: vm_memory::volatile_memory::Error| failed(source.into()))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
