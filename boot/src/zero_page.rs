//! `struct boot_params`, the page that tells the kernel what its loader did (boot protocol, "32-bit boot
//! protocol"; `zero-page.rst`).
//!
//! The offsets come from linux-loader's definition of the structure. A bzImage has its setup header at the
//! same offset in the file as the structure has it in the page, so both are read by the same function.

use std::mem::{offset_of, size_of};

use linux_loader::loader::bootparam::{KASLR_FLAG, boot_e820_entry, boot_params};

use crate::e820::MemoryMap;

/// Where the setup header starts, in the file and in the page.
pub(crate) const HEADER: usize = offset_of!(boot_params, hdr);

/// Where the setup header must end: what follows in the page belongs to others.
pub(crate) const HEADER_MAX_END: usize = offset_of!(boot_params, edd_mbr_sig_buffer);

/// Says that the loader has no id of its own (boot protocol, `type_of_loader`).
const LOADER_UNDEFINED: u8 = 0xff;

/// The offset of a field of the setup header, in the file and in the page.
macro_rules! header_field {
    ($field:ident) => {
        std::mem::offset_of!(linux_loader::loader::bootparam::boot_params, hdr.$field)
    };
}
pub(crate) use header_field;

/// The `N` bytes at `offset`; zeros where `bytes` ends before them.
pub(crate) fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

/// The page while it is being filled in.
pub(crate) struct ZeroPage([u8; size_of::<boot_params>()]);

impl ZeroPage {
    /// A page of zeros with the kernel's setup header in its place, `header` being the file up to the
    /// header's end. Nothing else of the file is copied: the kernel takes a non-zero byte before the header
    /// for a broken loader.
    pub(crate) fn new(header: &[u8]) -> Self {
        let mut page = Self([0; size_of::<boot_params>()]);
        page.put(HEADER, header.get(HEADER..).unwrap_or_default());
        page.put(header_field!(type_of_loader), &[LOADER_UNDEFINED]);
        page
    }

    /// Says that the kernel's place is random, so that it makes more of its addresses so (`KASLR_FLAG`).
    pub(crate) fn set_kaslr(&mut self) {
        let [flags] = field(&self.0, header_field!(loadflags));
        self.put(header_field!(loadflags), &[flags | KASLR_FLAG]);
    }

    /// The kernel's load address.
    pub(crate) fn set_code32_start(&mut self, address: u32) {
        self.put(header_field!(code32_start), &address.to_le_bytes());
    }

    /// The address of the command line.
    pub(crate) fn set_cmd_line_ptr(&mut self, address: u32) {
        self.put(header_field!(cmd_line_ptr), &address.to_le_bytes());
    }

    /// Address and size of the initrd.
    pub(crate) fn set_ramdisk(&mut self, address: u32, size: u32) {
        self.put(header_field!(ramdisk_image), &address.to_le_bytes());
        self.put(header_field!(ramdisk_size), &size.to_le_bytes());
    }

    /// The head of the list of `struct setup_data`.
    pub(crate) fn set_setup_data(&mut self, address: u64) {
        self.put(header_field!(setup_data), &address.to_le_bytes());
    }

    /// The address of the RSDP, so that the kernel does not search for it.
    pub(crate) fn set_acpi_rsdp_addr(&mut self, address: u64) {
        self.put(offset_of!(boot_params, acpi_rsdp_addr), &address.to_le_bytes());
    }

    /// The memory map. It has no more entries than the page has room for.
    pub(crate) fn set_e820(&mut self, map: &MemoryMap) {
        let mut at = offset_of!(boot_params, e820_table);
        for entry in map.entries() {
            let size = entry.range.end.saturating_sub(entry.range.start);
            self.put(at.saturating_add(offset_of!(boot_e820_entry, addr)), &entry.range.start.to_le_bytes());
            self.put(at.saturating_add(offset_of!(boot_e820_entry, size)), &size.to_le_bytes());
            self.put(
                at.saturating_add(offset_of!(boot_e820_entry, r#type)),
                &entry.kind.code().to_le_bytes(),
            );
            at = at.saturating_add(size_of::<boot_e820_entry>());
        }
        let count = u8::try_from(map.entries().len()).unwrap_or(u8::MAX);
        self.put(offset_of!(boot_params, e820_entries), &[count]);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offsets_are_those_of_the_boot_protocol() {
        assert_eq!(size_of::<boot_params>(), 0x1000);
        assert_eq!((HEADER, HEADER_MAX_END), (0x1f1, 0x290));
        assert_eq!(header_field!(type_of_loader), 0x210);
        assert_eq!(header_field!(code32_start), 0x214);
        assert_eq!(header_field!(ramdisk_image), 0x218);
        assert_eq!(header_field!(cmd_line_ptr), 0x228);
        assert_eq!(header_field!(setup_data), 0x250);
        assert_eq!(header_field!(init_size), 0x260);
        assert_eq!(offset_of!(boot_params, acpi_rsdp_addr), 0x70);
        assert_eq!(offset_of!(boot_params, e820_entries), 0x1e8);
        assert_eq!(offset_of!(boot_params, e820_table), 0x2d0);
    }

    #[test]
    fn only_the_header_is_copied_from_the_file() {
        let page = ZeroPage::new(&[0xaa; 0x26c]);
        assert!(page.bytes()[..0x1f1].iter().all(|byte| *byte == 0));
        assert!(page.bytes()[0x1f1..0x210].iter().all(|byte| *byte == 0xaa));
        assert_eq!(page.bytes()[0x210], 0xff);
        assert!(page.bytes()[0x211..0x26c].iter().all(|byte| *byte == 0xaa));
        assert!(page.bytes()[0x26c..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_field_beyond_the_end_reads_as_zero() {
        assert_eq!(field::<4>(&[1, 2, 3, 4, 5], 1), [2, 3, 4, 5]);
        assert_eq!(field::<4>(&[1, 2, 3, 4, 5], 2), [0; 4]);
        assert_eq!(field::<4>(&[], usize::MAX), [0; 4]);
    }
}
