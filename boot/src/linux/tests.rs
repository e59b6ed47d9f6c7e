//! Plans at their edges, and what a loaded guest finds in its memory.

#![expect(clippy::single_range_in_vec_init, reason = "memory of one range is meant")]

use std::os::unix::fs::FileExt;

use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::acpi;
use crate::image::tests::{PROTECTED_SIZE, bzimage, image, with};
use crate::layout::{GDT, PAGE_SIZE, PML4, STACK};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Of the synthetic kernel: preferred address 16 MiB, init_size 32 MiB.
const KERNEL: Range<u64> = 16 * MIB..48 * MIB;

fn command_line(text: &str) -> CommandLine {
    CommandLine::new(&[], text).unwrap()
}

/// An initrd of `size` bytes, of which the host stores none.
fn initrd(size: u64) -> Initrd {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    Initrd::open(file.as_path()).unwrap()
}

fn plan_of(bytes: &[u8], initrd: Option<Initrd>, ram: u64) -> Result<Plan> {
    Plan::new(image(bytes).unwrap(), initrd, command_line("quiet"), &[0..ram], &[])
}

fn plan(initrd: Option<Initrd>, ram: u64) -> Result<Plan> {
    plan_of(&bzimage(), initrd, ram)
}

fn initrd_of(size: u64, ram: u64) -> Range<u64> {
    plan(Some(initrd(size)), ram).unwrap().initrd().unwrap()
}

#[test]
fn the_kernel_goes_to_its_preferred_address_with_init_size_reserved() {
    let plan = plan(None, 64 * MIB).unwrap();
    assert_eq!((plan.kernel(), plan.initrd()), (KERNEL, None));
}

#[test]
fn a_kernel_that_just_fits_is_planned_and_a_byte_less_is_too_little() {
    assert!(plan(None, 48 * MIB).is_ok());
    let error = plan(None, 48 * MIB - PAGE_SIZE).unwrap_err();
    assert!(matches!(error, Error::KernelDoesNotFit { start: 0x100_0000, end: 0x300_0000, .. }), "{error}");
    assert!(error.to_string().ends_with("give the guest at least 48 MiB"), "{error}");
}

#[test]
fn a_relocatable_kernel_is_aligned_upwards_and_a_fixed_one_left_where_it_wants_to_be() {
    let mut bytes = with(0x258, &0x90_1000u64.to_le_bytes());
    assert_eq!(plan_of(&bytes, None, GIB).unwrap().kernel().start, 0xa0_0000);
    bytes[0x234] = 0;
    assert_eq!(plan_of(&bytes, None, GIB).unwrap().kernel().start, 0x90_1000);
    let anywhere = with(0x258, &[0; 8]);
    assert_eq!(plan_of(&anywhere, None, GIB).unwrap().kernel().start, 0x20_0000);
}

#[test]
fn hostile_addresses_and_sizes_do_not_fit() {
    for address in [u64::MAX, u64::MAX - 0xf_ffff, 1 << 63, 1 << 32] {
        let error = plan_of(&with(0x258, &address.to_le_bytes()), None, GIB).unwrap_err();
        assert!(matches!(error, Error::KernelDoesNotFit { .. }), "{error}");
    }
    let error = plan_of(&with(0x260, &[0xff; 4]), None, GIB).unwrap_err();
    assert!(matches!(error, Error::KernelDoesNotFit { .. }), "{error}");
}

#[test]
fn a_header_with_any_byte_changed_is_planned_or_refused() {
    for (offset, value) in
        (0x1f1..0x290).flat_map(|offset| [0, 0x7f, 0x80, 0xff].map(|value| (offset, value)))
    {
        if let Ok(image) = image(&with(offset, &[value])) {
            let plan = Plan::new(image, Some(initrd(MIB)), command_line("quiet"), &[0..GIB], &[]);
            let Ok(plan) = plan else { continue };
            let (kernel, initrd) = (plan.kernel(), plan.initrd().unwrap());
            assert!(kernel.end <= GIB && initrd.end <= GIB, "{offset:#x} {value:#x}");
            assert!(initrd.end <= kernel.start || kernel.end <= initrd.start, "{offset:#x} {value:#x}");
        }
    }
}

#[test]
fn a_kernel_larger_than_its_init_size_is_reserved_whole() {
    let plan = plan_of(&with(0x260, &[0; 4]), None, GIB).unwrap();
    assert_eq!(plan.kernel(), 16 * MIB..16 * MIB + PROTECTED_SIZE as u64);
}

#[test]
fn the_initrd_goes_as_high_as_ram_lets_it_on_a_page() {
    assert_eq!(initrd_of(PAGE_SIZE, 64 * MIB), 64 * MIB - PAGE_SIZE..64 * MIB);
    assert_eq!(initrd_of(PAGE_SIZE + 1, 64 * MIB), 64 * MIB - 2 * PAGE_SIZE..64 * MIB - PAGE_SIZE + 1);
}

#[test]
fn the_initrd_stays_below_initrd_addr_max() {
    assert_eq!(initrd_of(MIB, 3 * GIB), 2 * GIB - MIB..2 * GIB);
}

#[test]
fn the_initrd_stays_clear_of_the_kernel() {
    assert_eq!(initrd_of(16 * MIB, 64 * MIB), 48 * MIB..64 * MIB);
    assert_eq!(initrd_of(15 * MIB, 48 * MIB), MIB..16 * MIB, "no room above, just enough below");
    let error = plan(Some(initrd(16 * MIB + 1)), 64 * MIB).unwrap_err();
    assert!(matches!(error, Error::InitrdDoesNotFit { size: 0x100_0001, limit: 0x400_0000, .. }), "{error}");
}

#[test]
fn an_initrd_larger_than_all_memory_does_not_fit() {
    for size in [64 * MIB, 4 * GIB, 1 << 42] {
        let error = plan(Some(initrd(size)), 64 * MIB).unwrap_err();
        assert!(matches!(error, Error::InitrdDoesNotFit { .. }), "{error}");
    }
}

#[test]
fn an_initrd_addr_max_below_the_kernel_leaves_the_room_below_it() {
    let bytes = with(0x22c, &(8 * MIB as u32 - 1).to_le_bytes());
    assert_eq!(plan_of(&bytes, Some(initrd(MIB)), GIB).unwrap().initrd(), Some(7 * MIB..8 * MIB));
}

#[test]
fn a_command_line_is_as_long_as_the_kernel_says_at_most() {
    let plan = |length, bytes: &[u8]| {
        let line = command_line(&"x".repeat(length));
        Plan::new(image(bytes).unwrap(), None, line, &[0..GIB], &[])
    };
    assert!(plan(2047, &bzimage()).is_ok());
    let error = plan(2048, &bzimage()).unwrap_err();
    assert!(matches!(error, Error::CommandLineTooLong { length: 2048, limit: 2047 }), "{error}");
    let boundless = with(0x238, &[0xff; 4]);
    assert!(plan(0xffff, &boundless).is_ok());
    assert!(matches!(plan(0x1_0000, &boundless), Err(Error::CommandLineTooLong { limit: 0xffff, .. })));
}

#[test]
fn ram_that_no_pc_has_is_refused() {
    assert!(matches!(plan(None, 5 * GIB), Err(Error::MemoryMap { .. })));
}

/// A guest of 64 MiB with an initrd of 5000 bytes, loaded.
fn loaded() -> (GuestMemoryMmap, Entry, acpi::Tables, Range<u64>) {
    let file = TempFile::new().unwrap();
    file.as_file().write_all_at(&[0x5a; 5000], 0).unwrap();
    let initrd = Initrd::open(file.as_path()).unwrap();
    let line = command_line("console=hvc0 quiet");
    let ram = [0..64 * MIB, 4 * GIB..5 * GIB];
    let plan =
        Plan::new(image(&bzimage()).unwrap(), Some(initrd), line, &ram, &[0xe000_0000..0xe010_0000]).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
    let tables = acpi::tables(&acpi::tests::machine()).unwrap();
    let mut seed = [7; SEED_SIZE];
    let places = (plan.kernel(), plan.initrd());
    let loaded = plan.load(&memory, &tables, &mut seed).unwrap();
    assert_eq!(seed, [0; SEED_SIZE]);
    assert_eq!(loaded.kernel.method, Method::SelfUnpacking);
    assert_eq!(loaded.kernel.place, places.0);
    (memory, loaded.entry, tables, places.1.unwrap())
}

fn read(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn dword(memory: &GuestMemoryMmap, address: u64) -> u32 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn qword(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

#[test]
fn the_protected_mode_part_is_loaded_and_entered_at_its_64_bit_entry() {
    let (memory, entry, ..) = loaded();
    assert_eq!(read(&memory, KERNEL.start, PROTECTED_SIZE), bzimage()[1024..]);
    assert_eq!(read(&memory, KERNEL.start + PROTECTED_SIZE as u64, 16), [0; 16]);
    assert_eq!((entry.rip, entry.rsi, entry.rsp, entry.cr3), (0x100_0200, BOOT_PARAMS, STACK.end, PML4));
    assert_eq!(entry.gdt.base, GDT);
}

#[test]
fn the_initrd_is_loaded_and_its_place_told() {
    let (memory, .., place) = loaded();
    assert_eq!(place, 64 * MIB - 2 * PAGE_SIZE..64 * MIB - 2 * PAGE_SIZE + 5000);
    assert_eq!(read(&memory, place.start, 5001), [[0x5a; 5000].as_slice(), &[0]].concat());
    assert_eq!(u64::from(dword(&memory, BOOT_PARAMS + 0x218)), place.start);
    assert_eq!(dword(&memory, BOOT_PARAMS + 0x21c), 5000);
}

#[test]
fn the_boot_parameters_hold_the_header_and_what_the_loader_did() {
    let (memory, _, tables, _) = loaded();
    let page = read(&memory, BOOT_PARAMS, 4096);
    assert_eq!(page[0x1ef], 0, "the sentinel");
    assert_eq!(&page[0x202..0x206], b"HdrS");
    assert_eq!((page[0x210], page[0x211]), (0xff, 1));
    assert_eq!(dword(&memory, BOOT_PARAMS + 0x214), 0x100_0000);
    assert_eq!(qword(&memory, BOOT_PARAMS + 0x70), tables.rsdp());
    assert_eq!(page[0x264..0x26c], bzimage()[0x264..0x26c]);
    assert!(
        page[0x26c..0x2d0].iter().all(|byte| *byte == 0),
        "what follows the header in the file is not copied"
    );
}

#[test]
fn the_memory_map_is_in_the_boot_parameters() {
    let (memory, ..) = loaded();
    assert_eq!(read(&memory, BOOT_PARAMS + 0x1e8, 1), [6]);
    let entry = |n: u64| {
        let at = BOOT_PARAMS + 0x2d0 + n * 20;
        (qword(&memory, at), qword(&memory, at + 8), dword(&memory, at + 16))
    };
    assert_eq!(entry(0), (0, 0xa_0000, 1));
    assert_eq!(entry(1), (0xa_0000, 0x4_0000, 2));
    assert_eq!(entry(2), (0xe_0000, 0x2_0000, 3));
    assert_eq!(entry(3), (MIB, 63 * MIB, 1));
    assert_eq!(entry(4), (0xe000_0000, MIB, 2));
    assert_eq!(entry(5), (4 * GIB, GIB, 1));
    assert_eq!(entry(6), (0, 0, 0));
}

#[test]
fn the_command_line_ends_in_zero() {
    let (memory, ..) = loaded();
    let address = u64::from(dword(&memory, BOOT_PARAMS + 0x228));
    assert_eq!(address, COMMAND_LINE.start);
    assert_eq!(read(&memory, address, 19), b"console=hvc0 quiet\0");
}

#[test]
fn the_seed_is_one_node_of_setup_data() {
    let (memory, ..) = loaded();
    let address = qword(&memory, BOOT_PARAMS + 0x250);
    assert_eq!(address, SETUP_DATA.start);
    assert_eq!(qword(&memory, address), 0, "no next node");
    assert_eq!((dword(&memory, address + 8), dword(&memory, address + 12)), (9, 64));
    assert_eq!(read(&memory, address + 16, SEED_SIZE), [7; SEED_SIZE]);
}

#[test]
fn the_acpi_tables_are_where_they_say() {
    let (memory, _, tables, _) = loaded();
    assert_eq!(read(&memory, tables.address(), tables.bytes().len()), tables.bytes());
    assert_eq!(read(&memory, tables.rsdp(), 8), b"RSD PTR ");
}

#[test]
fn a_guest_without_initrd_is_told_of_none() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
    let tables = acpi::tables(&acpi::tests::machine()).unwrap();
    plan(None, 64 * MIB).unwrap().load(&memory, &tables, &mut [1; SEED_SIZE]).unwrap();
    assert_eq!(qword(&memory, BOOT_PARAMS + 0x218), 0);
}

#[test]
fn memory_smaller_than_planned_is_an_error() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
    let tables = acpi::tables(&acpi::tests::machine()).unwrap();
    let error = plan(None, 64 * MIB).unwrap().load(&memory, &tables, &mut [1; SEED_SIZE]).unwrap_err();
    assert!(matches!(error, Error::Memory { address: 0x100_0000, .. }), "{error}");
}
