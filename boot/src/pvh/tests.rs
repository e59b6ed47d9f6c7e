//! The page as the guest reads it.

#![expect(clippy::single_range_in_vec_init, reason = "memory of one range is meant")]

use super::*;
use crate::layout::{ACPI, COMMAND_LINE};
use crate::zero_page::field;

fn page(initrd: Option<Range<u64>>) -> Vec<u8> {
    let memory_map = MemoryMap::new(&[0..64 << 20, 4 << 30..5 << 30], &[0xf000_0000..0xf010_0000]).unwrap();
    StartInfo { command_line: COMMAND_LINE.start, rsdp: ACPI.start + 64, initrd, memory_map: &memory_map }
        .bytes()
}

fn dword(page: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(page, offset))
}

fn qword(page: &[u8], offset: u64) -> u64 {
    u64::from_le_bytes(field(page, offset as usize))
}

#[test]
fn the_structure_leads_to_command_line_tables_and_memory_map() {
    let page = page(None);
    assert_eq!((dword(&page, 0), dword(&page, 4), dword(&page, 8)), (0x336e_c578, 1, 0));
    assert_eq!((dword(&page, 12), qword(&page, 16)), (0, 0), "no modules");
    assert_eq!((qword(&page, 24), qword(&page, 32)), (COMMAND_LINE.start, ACPI.start + 64));
    assert_eq!(dword(&page, 48), 6);
    let map = qword(&page, 40) - BOOT_PARAMS;
    let entry = |n: u64| {
        let at = map + n * 24;
        (qword(&page, at), qword(&page, at + 8), dword(&page, at as usize + 16))
    };
    assert_eq!(entry(0), (0, 0xa_0000, 1));
    assert_eq!(entry(2), (ACPI.start, 0x2_0000, 3));
    assert_eq!(entry(5), (4 << 30, 1 << 30, 1));
    assert_eq!(page.len() as u64, map + 6 * 24);
}

#[test]
fn the_initrd_is_the_first_module() {
    let page = page(Some(0x300_0000..0x300_1234));
    assert_eq!(dword(&page, 12), 1);
    let module = qword(&page, 16) - BOOT_PARAMS;
    let fields = [0, 8, 16, 24].map(|offset| qword(&page, module + offset));
    assert_eq!(fields, [0x300_0000, 0x1234, 0, 0]);
}
