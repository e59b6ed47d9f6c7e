//! The relocations of an unpacked kernel: which of its words hold virtual addresses, and change when it is
//! linked elsewhere.
//!
//! They follow the ELF file in the payload (Linux, `arch/x86/tools/relocs.c`): 32-bit words, each the lower
//! half of the virtual address of a word to change, in lists of which each starts with a zero. Up to Linux
//! 6.14 there are three lists: 64-bit words, 32-bit words from which the offset is subtracted, 32-bit words.
//! Since 6.15 there are two, without the one in the middle.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::elf::KERNEL_MAP;
use crate::{Error, Result};

/// The size of an entry.
const ENTRY_SIZE: usize = 4;

/// A checked table. Entries are addresses as linked, physical.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Relocations {
    /// 8-byte words to which the offset is added.
    pub(crate) quads: Vec<u32>,
    /// 4-byte words from which it is subtracted.
    pub(crate) inverse: Vec<u32>,
    /// 4-byte words to which its lower half is added.
    pub(crate) words: Vec<u32>,
}

impl Relocations {
    /// Reads the table of a kernel whose file fills `image`, in physical addresses as linked.
    ///
    /// # Errors
    ///
    /// Why this is no table whose meaning is known, in words that follow "the kernel".
    pub(crate) fn parse(table: &[u8], image: &Range<u64>) -> Result<Self, &'static str> {
        if table.is_empty() {
            return Err("has no relocations");
        }
        let (entries, rest) = table.as_chunks::<ENTRY_SIZE>();
        let mut entries = entries.iter().map(|entry| u32::from_le_bytes(*entry));
        if !rest.is_empty() || entries.next() != Some(0) {
            return Err("has relocations in an unknown form");
        }
        let mut lists = vec![Vec::new()];
        for entry in entries {
            match lists.last_mut() {
                Some(list) if entry != 0 => list.push(physical(entry)?),
                _ => lists.push(Vec::new()),
            }
        }
        let mut lists = lists.into_iter();
        let table = match (lists.next(), lists.next(), lists.next(), lists.next()) {
            (Some(quads), Some(words), None, None) => Self { quads, inverse: Vec::new(), words },
            (Some(quads), Some(inverse), Some(words), None) => Self { quads, inverse, words },
            _ => return Err("has relocations in an unknown form"),
        };
        if table.is_within(image) { Ok(table) } else { Err("has relocations outside of itself") }
    }

    /// Whether each word lies in `image` as a whole.
    pub(crate) fn is_within(&self, image: &Range<u64>) -> bool {
        let all = |list: &[u32], size: u64| {
            list.iter().all(|entry| {
                let start = u64::from(*entry);
                image.start <= start && start.saturating_add(size) <= image.end
            })
        };
        all(&self.quads, 8) && all(&self.inverse, 4) && all(&self.words, 4)
    }

    /// Makes the kernel that fills `image` as linked, and lies `shift` above that in `memory`, run `offset`
    /// above the virtual address that it is linked at.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] if there is no such memory.
    pub(crate) fn apply(
        &self,
        memory: &GuestMemoryMmap,
        image: &Range<u64>,
        shift: u64,
        offset: u64,
    ) -> Result<()> {
        let address = image.start.wrapping_add(shift);
        let size = usize::try_from(image.end.saturating_sub(image.start)).unwrap_or(usize::MAX);
        let failed = |source| Error::Memory { what: "the kernel's relocations", address, source };
        let kernel = memory.get_slice(GuestAddress(address), size).map_err(failed)?;
        let at =
            |entry: u32| usize::try_from(u64::from(entry).saturating_sub(image.start)).unwrap_or(usize::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "32-bit words take the lower half")]
        let half = offset as u32;
        let relocated = || {
            for entry in &self.quads {
                let word: u64 = kernel.read_obj(at(*entry))?;
                kernel.write_obj(word.wrapping_add(offset), at(*entry))?;
            }
            for entry in &self.inverse {
                let word: u32 = kernel.read_obj(at(*entry))?;
                kernel.write_obj(word.wrapping_sub(half), at(*entry))?;
            }
            for entry in &self.words {
                let word: u32 = kernel.read_obj(at(*entry))?;
                kernel.write_obj(word.wrapping_add(half), at(*entry))?;
            }
            Ok(())
        };
        relocated().map_err(|source: vm_memory::volatile_memory::Error| failed(source.into()))
    }
}

/// The physical address that an entry stands for: the lower half of a virtual address in the upper 2 GiB.
fn physical(entry: u32) -> Result<u32, &'static str> {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what an entry is")]
    const MAP: u32 = KERNEL_MAP as u32;
    entry.checked_sub(MAP).ok_or("has relocations outside of itself")
}

#[cfg(test)]
mod tests;
