//! What lies where below 1 MiB when the guest starts. Each address is written down here and nowhere else.
//!
//! | range | what |
//! | --- | --- |
//! | 0x00000 to 0x01000 | nothing: a kernel looks for BIOS data here (0x40e, 0x413) and must find zeros |
//! | 0x01000 to 0x02000 | [`GDT`] |
//! | 0x02000 to 0x03000 | [`BOOT_PARAMS`], the "zero page" |
//! | 0x03000 to 0x09000 | page tables: [`PML4`], [`PDPT`], [`PAGE_DIRECTORIES`] |
//! | 0x09000 to 0x0a000 | [`SETUP_DATA`] |
//! | 0x0a000 to 0x0b000 | [`STACK`] |
//! | 0x10000 to 0x20000 | [`COMMAND_LINE`] |
//! | 0x9d000 to 0xa0000 | nothing: Linux changes the number of paging levels from here |
//! | 0xa0000 to 0x100000 | RAM in the memory slot, but not in the e820 map; ends in [`ACPI`] |
//!
//! Linux does not hand out the first 64 KiB by default, and copies the command line before it allocates:
//! nothing is overwritten before it has been read.

use std::ops::Range;

/// A page, the unit of alignment of all that is placed, in bytes.
pub const PAGE_SIZE: u64 = 0x1000;

/// The global descriptor table.
pub const GDT: u64 = 0x1000;

/// `struct boot_params`, one page. `%rsi` points to it at entry.
pub const BOOT_PARAMS: u64 = 0x2000;

/// The top of the page tables.
pub const PML4: u64 = 0x3000;

/// The page-directory-pointer table, of which the first four entries are used.
pub const PDPT: u64 = 0x4000;

/// Four page directories, one for each GiB.
pub const PAGE_DIRECTORIES: Range<u64> = 0x5000..0x9000;

/// The list of `struct setup_data`.
pub const SETUP_DATA: Range<u64> = 0x9000..0xa000;

/// A page of stack. Linux brings its own; small guests of a few instructions need not.
pub const STACK: Range<u64> = 0xa000..0xb000;

/// The kernel's command line with its terminating zero.
pub const COMMAND_LINE: Range<u64> = 0x1_0000..0x2_0000;

/// The end of the RAM that e820 shows below 1 MiB.
pub const LOW_RAM_END: u64 = 0xa_0000;

/// The ACPI tables. Within the range that firmware without EFI uses for the RSDP (ACPI 6.5, 5.2.5.1).
pub const ACPI: Range<u64> = 0xe_0000..0x10_0000;

/// Where a processor starts in real mode, at the end of what [`ACPI`] may fill (Intel SDM volume 3, 10.1.4).
pub const RESET_VECTOR: Range<u64> = 0xf_fff0..0x10_0000;

/// Where RAM goes on above the PC's hole.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// The end of what the page tables at entry map.
pub const MAPPED_END: u64 = 1 << 32;

const _: () = {
    assert!(GDT >= PAGE_SIZE && GDT < BOOT_PARAMS && BOOT_PARAMS + PAGE_SIZE == PML4);
    assert!(PML4 + PAGE_SIZE == PDPT && PDPT + PAGE_SIZE == PAGE_DIRECTORIES.start);
    assert!(PAGE_DIRECTORIES.end - PAGE_DIRECTORIES.start == 4 * PAGE_SIZE);
    assert!(PAGE_DIRECTORIES.end <= SETUP_DATA.start && SETUP_DATA.end <= STACK.start);
    assert!(STACK.end <= COMMAND_LINE.start && COMMAND_LINE.end <= 0x9_d000);
    assert!(LOW_RAM_END <= ACPI.start && ACPI.end == HIGH_RAM_START);
};
