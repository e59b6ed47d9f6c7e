//! What a kernel is told that starts by the PVH protocol (Xen, `docs/misc/pvh.pandoc` and
//! `xen/include/public/arch-x86/hvm/start_info.h`): a page with `struct hvm_start_info`, the list of modules,
//! of which the first is the initrd, and the memory map.

use std::mem::size_of;
use std::ops::Range;

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};

use crate::e820::MemoryMap;
use crate::layout::BOOT_PARAMS;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;
/// The list of modules follows the structure.
const MODULES: u64 = BOOT_PARAMS + size_of::<hvm_start_info>() as u64;
/// The memory map follows the list, which has one entry or none.
const MEMORY_MAP: u64 = MODULES + size_of::<hvm_modlist_entry>() as u64;

/// What the page is made from.
pub(crate) struct StartInfo<'a> {
    pub(crate) command_line: u64,
    pub(crate) rsdp: u64,
    pub(crate) initrd: Option<Range<u64>>,
    pub(crate) memory_map: &'a MemoryMap,
}

impl StartInfo<'_> {
    /// The bytes for [`BOOT_PARAMS`].
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let entries = self.memory_map.entries();
        let mut page = Bytes::default();
        page.dword(MAGIC).dword(VERSION).dword(0).dword(self.initrd.is_some().into());
        page.qword(if self.initrd.is_some() { MODULES } else { 0 });
        page.qword(self.command_line).qword(self.rsdp);
        page.qword(MEMORY_MAP).dword(u32::try_from(entries.len()).unwrap_or(u32::MAX)).dword(0);

        let initrd = self.initrd.clone().unwrap_or_default();
        page.qword(initrd.start).qword(initrd.end.saturating_sub(initrd.start)).qword(0).qword(0);

        for entry in entries {
            let Range { start, end } = entry.range;
            page.qword(start).qword(end.saturating_sub(start)).dword(entry.kind.code()).dword(0);
        }
        page.0
    }
}

const _: () = {
    use linux_loader::loader::bootparam::E820_MAX_ENTRIES_ZEROPAGE;
    let end = MEMORY_MAP + (size_of::<hvm_memmap_table_entry>() * E820_MAX_ENTRIES_ZEROPAGE) as u64;
    assert!(end <= BOOT_PARAMS + crate::layout::PAGE_SIZE);
};

/// Bytes that grow by little-endian numbers.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn dword(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn qword(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

#[cfg(test)]
mod tests;
