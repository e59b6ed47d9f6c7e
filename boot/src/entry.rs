//! The state of the boot processor when the kernel gets it: interrupts off, flat segments, and either 64-bit
//! mode with the first 4 GiB mapped to themselves (boot protocol, "64-bit Boot Protocol") or 32-bit mode
//! without paging (Xen, `docs/misc/pvh.pandoc`).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{BOOT_PARAMS, GDT, MAPPED_END, PAGE_DIRECTORIES, PAGE_SIZE, PDPT, PML4, STACK};
use crate::{Error, Result};

/// CR0: protection and paging on, the extension type and native floating-point errors as on every 64-bit
/// processor.
const CR0: u64 = CR0_PG | CR0_NE | CR0_ET | CR0_PE;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension, without which there is no 64-bit mode.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER: u64 = EFER_LME | EFER_LMA;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: nothing but the bit that is always one; IF is clear.
const RFLAGS: u64 = 1 << 1;

/// A page-table entry that leads to a table or a page, writable.
const PRESENT_WRITABLE: u64 = 0x3;
/// In a page directory: the entry maps a large page.
const LARGE: u64 = 1 << 7;
/// A large page, in bytes.
const LARGE_PAGE_SIZE: usize = 2 << 20;
/// From one table to the next, in bytes.
#[expect(clippy::cast_possible_truncation, reason = "4096 fits")]
const TABLE_SIZE: usize = PAGE_SIZE as usize;
/// The limit of a descriptor table that ends with [`DATA`].
const GDT_LIMIT: u16 = DATA.selector + 7;

/// `__BOOT_CS`, as the boot protocol wants it: a flat 64-bit segment to execute and read.
const CODE: Segment = Segment { selector: 0x10, kind: 0xb, is_64_bit: true, is_32_bit: false };
/// The same for 32-bit mode.
const CODE_32: Segment = Segment { is_64_bit: false, is_32_bit: true, ..CODE };
/// `__BOOT_DS`, as the boot protocol wants it: a flat segment to read and write.
const DATA: Segment = Segment { selector: 0x18, kind: 0x3, is_64_bit: false, is_32_bit: true };

/// A flat segment. What all of them share is a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its byte offset in the GDT.
    pub selector: u16,
    /// The four bits of its type: 0xb execute/read, 0x3 read/write, both with the accessed bit.
    pub kind: u8,
    /// `L`: 64-bit code.
    pub is_64_bit: bool,
    /// `D/B`: 32-bit operands.
    pub is_32_bit: bool,
}

impl Segment {
    /// The first address.
    pub const BASE: u64 = 0;
    /// The last offset, in bytes.
    pub const LIMIT: u32 = u32::MAX;
    /// `DPL`.
    pub const PRIVILEGE: u8 = 0;
    /// `P`.
    pub const IS_PRESENT: bool = true;
    /// `S`: a code or data segment, none of the system's.
    pub const IS_CODE_OR_DATA: bool = true;
    /// `G`: the descriptor counts the limit in pages.
    pub const IS_LIMIT_IN_PAGES: bool = true;

    /// The descriptor in the GDT (Intel SDM volume 3, 3.4.5).
    #[must_use]
    pub const fn descriptor(self) -> u64 {
        const FLAT: u64 = 0x008f_9000_0000_ffff;
        FLAT | (self.kind as u64) << 40 | (self.is_64_bit as u64) << 53 | (self.is_32_bit as u64) << 54
    }
}

/// What a descriptor-table register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Address of the table.
    pub base: u64,
    /// Its size in bytes, less one.
    pub limit: u16,
}

/// The registers to start the boot processor with. Those that are not named are as KVM resets them, general
/// ones 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it starts.
    pub rip: u64,
    /// The top of [`crate::layout::STACK`]. Neither protocol asks for a stack.
    pub rsp: u64,
    /// The address of `struct boot_params`, or 0.
    pub rsi: u64,
    /// The address of `struct hvm_start_info`, or 0.
    pub rbx: u64,
    /// Flags, with interrupts off.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// The page tables, or 0.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// The extended feature enable register.
    pub efer: u64,
    /// The global descriptor table. There is no interrupt descriptor table: base 0, limit 0.
    pub gdt: TableRegister,
    /// For `cs`.
    pub code: Segment,
    /// For `ds`, `es`, `ss`, `fs` and `gs`.
    pub data: Segment,
}

impl Entry {
    /// Writes descriptor table and page tables to `memory`, for a kernel that starts at `rip` in 64-bit mode.
    pub(crate) fn write(memory: &GuestMemoryMmap, rip: u64) -> Result<Self> {
        put(memory, "the descriptor table", GDT, [0, 0, CODE.descriptor(), DATA.descriptor()])?;
        put(memory, "the page tables", PML4, [PDPT | PRESENT_WRITABLE])?;
        let directories = PAGE_DIRECTORIES.step_by(TABLE_SIZE).map(|table| table | PRESENT_WRITABLE);
        put(memory, "the page tables", PDPT, directories)?;
        let pages = (0..MAPPED_END).step_by(LARGE_PAGE_SIZE).map(|page| page | PRESENT_WRITABLE | LARGE);
        put(memory, "the page tables", PAGE_DIRECTORIES.start, pages)?;

        Ok(Self {
            rip,
            rsp: STACK.end,
            rsi: BOOT_PARAMS,
            rbx: 0,
            rflags: RFLAGS,
            cr0: CR0,
            cr3: PML4,
            cr4: CR4_PAE,
            efer: EFER,
            gdt: TableRegister { base: GDT, limit: GDT_LIMIT },
            code: CODE,
            data: DATA,
        })
    }

    /// Writes the descriptor table to `memory`, for a kernel that starts at `rip` as PVH has it. The page for
    /// boot parameters is the one with `struct hvm_start_info`.
    pub(crate) fn write_pvh(memory: &GuestMemoryMmap, rip: u64) -> Result<Self> {
        put(memory, "the descriptor table", GDT, [0, 0, CODE_32.descriptor(), DATA.descriptor()])?;
        Ok(Self {
            rip,
            rsp: STACK.end,
            rsi: 0,
            rbx: BOOT_PARAMS,
            rflags: RFLAGS,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdt: TableRegister { base: GDT, limit: GDT_LIMIT },
            code: CODE_32,
            data: DATA,
        })
    }
}

/// Writes a table of 8-byte entries.
fn put(
    memory: &GuestMemoryMmap,
    what: &'static str,
    address: u64,
    entries: impl IntoIterator<Item = u64>,
) -> Result<()> {
    let bytes: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
    memory.write_slice(&bytes, GuestAddress(address)).map_err(|source| Error::Memory {
        what,
        address,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
    }

    fn qword(memory: &GuestMemoryMmap, address: u64) -> u64 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// What the processor's walk of the page tables makes of `address`.
    fn translate(memory: &GuestMemoryMmap, entry: &Entry, address: u64) -> Option<u64> {
        let mut table = entry.cr3;
        for shift in [39, 30, 21] {
            let found = qword(memory, table + (address >> shift & 0x1ff) * 8);
            if found & 3 != 3 {
                return None;
            }
            table = found & !0xfff;
            if found & 0x80 != 0 {
                assert_eq!(shift, 21);
                return Some((found & !0x1f_ffff) + (address & 0x1f_ffff));
            }
        }
        None
    }

    #[test]
    fn the_descriptors_are_flat_and_at_the_protocols_selectors() {
        let memory = memory();
        let entry = Entry::write(&memory, 0).unwrap();
        assert_eq!((entry.code.selector, entry.data.selector), (0x10, 0x18));
        assert_eq!((entry.gdt.base, entry.gdt.limit), (GDT, 31));
        let table: Vec<u64> = (0..4).map(|n| qword(&memory, GDT + n * 8)).collect();
        assert_eq!(table, [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
        assert_eq!(table[2..], [entry.code.descriptor(), entry.data.descriptor()]);
    }

    #[test]
    fn the_first_four_gibibytes_are_mapped_to_themselves() {
        let memory = memory();
        let entry = Entry::write(&memory, 0).unwrap();
        for page in 0..2048 {
            let address = page << 21 | 0x12345;
            assert_eq!(translate(&memory, &entry, address), Some(address));
        }
        assert_eq!(translate(&memory, &entry, 0xffff_ffff), Some(0xffff_ffff));
    }

    #[test]
    fn nothing_above_four_gibibytes_is_mapped() {
        let memory = memory();
        let entry = Entry::write(&memory, 0).unwrap();
        for address in [1 << 32, 1 << 38, 1 << 39, 0xffff_8000_0000_0000, u64::MAX] {
            assert_eq!(translate(&memory, &entry, address), None, "{address:#x}");
        }
    }

    #[test]
    fn the_processor_starts_in_64_bit_mode_with_interrupts_off() {
        let entry = Entry::write(&memory(), 0x100_0200).unwrap();
        assert_eq!(entry.rip, 0x100_0200);
        assert_eq!(entry.rsi, BOOT_PARAMS);
        assert_eq!((entry.cr0, entry.cr3, entry.cr4, entry.efer), (0x8000_0031, PML4, 0x20, 0x500));
        assert_eq!(entry.rflags & 1 << 9, 0);
    }

    #[test]
    fn a_pvh_kernel_starts_in_32_bit_mode_without_paging() {
        let memory = memory();
        let entry = Entry::write_pvh(&memory, 0x100_0200).unwrap();
        assert_eq!((entry.rip, entry.rbx, entry.rsi), (0x100_0200, BOOT_PARAMS, 0));
        assert_eq!((entry.cr0, entry.cr3, entry.cr4, entry.efer), (0x11, 0, 0, 0));
        assert_eq!(entry.rflags, 2);
        assert!(entry.code.is_32_bit && !entry.code.is_64_bit);
        assert_eq!(qword(&memory, GDT + 0x10), 0x00cf_9b00_0000_ffff);
        assert_eq!(qword(&memory, GDT + 0x18), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn memory_that_is_too_small_for_the_tables_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
        let error = Entry::write(&memory, 0).unwrap_err();
        assert!(matches!(error, Error::Memory { what: "the page tables", address: PML4, .. }), "{error}");
    }
}
