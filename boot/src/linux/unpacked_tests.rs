//! Kernels that are unpacked here, or need not be: what of them is in memory, where, and what they are told.

#![expect(clippy::single_range_in_vec_init, reason = "memory of one range is meant")]

use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::acpi;
use crate::image::tests::bzimage_of;
use crate::layout::PML4;
use crate::sample::{
    COMPRESSORS, ENTRY, LINKED, MIB, Part, QUADS, WORDS, elf, image, image_of, laid_out, memory, pack, read,
    relocatable, table, vmlinux,
};
use crate::{Compressor, Offsets};

const RAM: u64 = 128 * MIB;

fn plan(image: Image, line: &str) -> Plan {
    Plan::new(image, None, CommandLine::new(&[], line).unwrap(), &[0..RAM], &[]).unwrap()
}

fn load(plan: Plan) -> (GuestMemoryMmap, Loaded) {
    let memory = memory(RAM);
    let tables = acpi::tables(&acpi::tests::machine()).unwrap();
    let loaded = plan.load(&memory, &tables, &mut [7; SEED_SIZE]).unwrap();
    (memory, loaded)
}

fn notes(kernel: &Kernel) -> Vec<String> {
    kernel.notes.iter().map(ToString::to_string).collect()
}

/// `loadflags` of the boot parameters.
fn loadflags(memory: &GuestMemoryMmap) -> u8 {
    read(memory, BOOT_PARAMS + 0x211, 1)[0]
}

/// The sample as it is in memory after its words moved.
fn relocated(offset: u64) -> Vec<u8> {
    let mut bytes = laid_out();
    for at in QUADS.map(|address| (address - LINKED) as usize) {
        let word = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()).wrapping_add(offset);
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    for at in WORDS.map(|address| (address - LINKED) as usize) {
        let word = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).wrapping_add(offset as u32);
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[test]
fn every_compressor_brings_the_kernel_to_where_it_is_linked() {
    for compressor in COMPRESSORS {
        let (memory, Loaded { entry, kernel }) = load(plan(image(compressor, &relocatable()), ""));
        assert_eq!(kernel.method, Method::Unpacked(compressor));
        assert_eq!((entry.rip, entry.rsi, entry.cr3), (ENTRY, BOOT_PARAMS, PML4));
        assert_eq!(kernel.place, LINKED..LINKED + 32 * MIB, "init_size is reserved");
        assert_eq!(kernel.offsets, Offsets::default());
        assert!(read(&memory, LINKED, 0x8000) == laid_out(), "{compressor}");
        assert_eq!(loadflags(&memory), 1, "no KASLR_FLAG");
        assert!(notes(&kernel).is_empty());
    }
}

#[test]
fn a_random_kernel_is_moved_relocated_and_told() {
    let mut places = std::collections::BTreeSet::new();
    for seed in 0..40u64 {
        let random = [seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), seed.wrapping_mul(0xd1b5_4a32_d192_ed03)];
        let plan = plan(image(Compressor::Zstd, &relocatable()), "quiet").randomised(random, &[]);
        let place = plan.kernel();
        let (memory, Loaded { entry, kernel }) = load(plan);
        let Offsets { physical_offset: Some(physical), virtual_offset: Some(offset) } = kernel.offsets else {
            panic!("{:?}", kernel.offsets);
        };
        assert_eq!(kernel.place, place);
        assert_eq!((kernel.place.start, entry.rip), (LINKED + physical, ENTRY + physical));
        assert!(physical.is_multiple_of(2 * MIB) && offset.is_multiple_of(2 * MIB));
        assert!(read(&memory, LINKED + physical, 0x8000) == relocated(offset));
        assert_eq!(loadflags(&memory), 3, "KASLR_FLAG");
        let code32_start = u32::from_le_bytes(read(&memory, BOOT_PARAMS + 0x214, 4).try_into().unwrap());
        assert_eq!(u64::from(code32_start), kernel.place.start);
        places.insert((physical, offset));
    }
    assert!(places.len() > 30);
}

#[test]
fn a_random_kernel_stays_in_ram_and_clear_of_the_initrd_and_of_what_others_put_there() {
    let file = TempFile::new().unwrap();
    file.as_file().set_len(20 * MIB + 5).unwrap();
    for seed in 0..200u64 {
        let initrd = Initrd::open(file.as_path()).unwrap();
        let line = CommandLine::new(&[], "").unwrap();
        let image = image(Compressor::Lz4, &relocatable());
        let plan = Plan::new(image, Some(initrd), line, &[0..RAM], &[]).unwrap();
        let taken = 60 * MIB..61 * MIB;
        let random = [seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), seed];
        let plan = plan.randomised(random, std::slice::from_ref(&taken));
        let (kernel, initrd) = (plan.kernel(), plan.initrd().unwrap());
        assert!(kernel.end <= RAM && kernel.start >= LINKED);
        for other in [initrd, taken] {
            assert!(kernel.end <= other.start || other.end <= kernel.start);
        }
    }
}

#[test]
fn nokaslr_turns_it_off() {
    let plan = plan(image(Compressor::Gzip, &relocatable()), "quiet nokaslr").randomised([77, 99], &[]);
    let (memory, Loaded { kernel, .. }) = load(plan);
    assert_eq!((kernel.place.start, kernel.offsets), (LINKED, Offsets::default()));
    assert!(read(&memory, LINKED, 0x8000) == laid_out());
    assert_eq!(loadflags(&memory), 1);
    assert!(notes(&kernel).is_empty());
}

#[test]
fn a_guest_with_less_memory_than_it_has_gets_a_virtual_offset_only() {
    let plan = plan(image(Compressor::Gzip, &relocatable()), "mem=64M").randomised([77, 99], &[]);
    let (memory, Loaded { kernel, .. }) = load(plan);
    assert_eq!((kernel.place.start, kernel.offsets.physical_offset), (LINKED, None));
    assert!(read(&memory, LINKED, 0x8000) == relocated(kernel.offsets.virtual_offset.unwrap()));
    assert_eq!(loadflags(&memory), 3);
    assert_eq!(
        notes(&kernel),
        ["the kernel's physical address is not random: the command line limits the guest's memory"]
    );
}

#[test]
fn relocations_that_nobody_knows_leave_the_virtual_address_alone() {
    let outside = table(&[&[LINKED - 4], &[]]);
    let unknown = table(&[&[LINKED]]);
    for (tail, reason) in [
        (Vec::new(), "has no relocations"),
        (outside, "has relocations outside of itself"),
        (unknown, "has relocations in an unknown form"),
    ] {
        let image = image(Compressor::Xz, &[vmlinux(), tail].concat());
        let (memory, Loaded { kernel, .. }) = load(plan(image, "").randomised([5, 6], &[]));
        assert_eq!(kernel.offsets.virtual_offset, None);
        assert!(kernel.offsets.physical_offset.is_some());
        assert!(read(&memory, kernel.place.start, 0x8000) == laid_out());
        assert_eq!(notes(&kernel), [format!("the kernel's virtual address is not random: it {reason}")]);
    }
}

#[test]
fn a_payload_that_is_no_kernel_is_an_error_that_names_the_compressor() {
    let not_linux = elf(0, &[Part::load(LINKED, vec![1; 64], 64)]);
    for payload in [b"no kernel at all".to_vec(), vec![0; 10_000], vmlinux()[..0x3000].to_vec(), not_linux] {
        for compressor in COMPRESSORS {
            let error = plan(image(compressor, &payload), "").load_kernel(&memory(RAM)).unwrap_err();
            assert!(matches!(error, Error::Payload { compressor: c, .. } if c == compressor), "{error}");
        }
    }
}

#[test]
fn a_damaged_payload_is_an_error_with_its_cause() {
    let mut packed = pack(Compressor::Zstd, &relocatable());
    let middle = packed.len() / 2;
    packed[middle] ^= 0xff;
    let error = plan(image_of(&bzimage_of(&packed)), "").load_kernel(&memory(RAM)).unwrap_err();
    assert!(error.to_string().ends_with("which is packed with zstd"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_vmlinux_is_loaded_from_its_file_and_told_all_that_a_bzimage_is() {
    let (memory, Loaded { entry, kernel }) = load(plan(image_of(&relocatable()), "quiet"));
    assert_eq!((kernel.method, kernel.place.clone()), (Method::Vmlinux, LINKED..LINKED + 0x8000));
    assert_eq!((entry.rip, entry.rsi), (ENTRY, BOOT_PARAMS));
    assert!(read(&memory, LINKED, 0x8000) == laid_out());
    assert_eq!(read(&memory, BOOT_PARAMS + 0x202, 6), b"HdrS\x0f\x02");
    assert_eq!(read(&memory, BOOT_PARAMS + 0x210, 2), [0xff, 1]);
    assert_eq!(read(&memory, BOOT_PARAMS + 0x228, 4), (COMMAND_LINE.start as u32).to_le_bytes());
    assert_eq!(read(&memory, BOOT_PARAMS + 0x250, 8), SETUP_DATA.start.to_le_bytes());
    assert_eq!(read(&memory, BOOT_PARAMS + 0x1e8, 1), [4]);
}

#[test]
fn a_vmlinux_with_relocations_is_random_in_both_ways_and_one_without_in_one() {
    let (memory, Loaded { kernel, .. }) = load(plan(image_of(&relocatable()), "").randomised([9, 4], &[]));
    let Offsets { physical_offset: Some(_), virtual_offset: Some(offset) } = kernel.offsets else {
        panic!("{:?}", kernel.offsets);
    };
    assert!(read(&memory, kernel.place.start, 0x8000) == relocated(offset));

    let (memory, Loaded { kernel, .. }) = load(plan(image_of(&vmlinux()), "").randomised([9, 4], &[]));
    assert!(kernel.offsets.physical_offset.is_some() && kernel.offsets.virtual_offset.is_none());
    assert!(read(&memory, kernel.place.start, 0x8000) == laid_out());
    assert_eq!(loadflags(&memory), 3);
    assert_eq!(notes(&kernel).len(), 1);
}

#[test]
fn a_kernel_with_a_pvh_note_alone_is_started_by_it() {
    let note =
        [&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0], b"Xen\0".as_slice(), &(LINKED as u32 + 8).to_le_bytes()];
    let part = Part { linked: LINKED, ..Part::load(LINKED, vec![0xf4; 64], 4096) };
    let kernel = elf(0, &[part, Part::note(note.concat())]);
    let (memory, Loaded { entry, kernel }) = load(plan(image_of(&kernel), "a=b").randomised([9, 4], &[]));
    assert_eq!(kernel.method, Method::Pvh);
    assert_eq!((entry.rip, entry.rbx, entry.cr0), (LINKED + 8, BOOT_PARAMS, 0x11));
    assert_eq!(read(&memory, LINKED, 65), [[0xf4; 64].as_slice(), &[0]].concat());
    assert_eq!(read(&memory, BOOT_PARAMS, 4), 0x336e_c578u32.to_le_bytes());
    assert_eq!(read(&memory, BOOT_PARAMS + 24, 8), COMMAND_LINE.start.to_le_bytes());
    assert_eq!(read(&memory, COMMAND_LINE.start, 4), b"a=b\0");
    assert_eq!(kernel.offsets, Offsets::default());
    assert_eq!(notes(&kernel).len(), 1, "it is not random");
}

#[test]
fn a_kernel_that_unpacks_itself_is_left_as_it_is_and_said() {
    let image = image_of(&crate::image::tests::bzimage());
    let (memory, Loaded { entry, kernel }) = load(plan(image, "").randomised([9, 4], &[]));
    assert_eq!(
        (kernel.method, kernel.place.start, entry.rip),
        (Method::SelfUnpacking, LINKED, LINKED + 0x200)
    );
    assert_eq!(kernel.offsets, Offsets::default());
    assert_eq!(loadflags(&memory), 1);
    assert_eq!(notes(&kernel), ["the kernel unpacks itself: its payload is in an unknown format"]);
}

#[test]
fn a_header_with_any_byte_changed_is_loaded_into_the_guests_ram_or_refused() {
    let whole = bzimage_of(&pack(Compressor::Lz4, &relocatable()));
    for (offset, value) in (0x1f1..0x290).flat_map(|offset| [0, 0x7f, 0x80, 0xff].map(|v| (offset, v))) {
        let mut bytes = whole.clone();
        bytes[offset] = value;
        let file = TempFile::new().unwrap();
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), &bytes, 0).unwrap();
        let Ok(image) = Image::open(file.as_path()) else { continue };
        let line = CommandLine::new(&[], "").unwrap();
        let Ok(plan) = Plan::new(image, None, line, &[0..RAM], &[]) else { continue };
        match plan.randomised([offset as u64, value.into()], &[]).load_kernel(&memory(RAM)) {
            Ok(kernel) => assert!(kernel.place.end <= RAM && kernel.place.contains(&kernel.entry)),
            Err(error) => assert!(matches!(error, Error::Payload { .. } | Error::Unpack { .. }), "{error}"),
        }
    }
}

#[test]
fn the_log_says_how_the_kernel_came() {
    let text =
        |image: Image, line: &str| load(plan(image, line).randomised([1, 2], &[])).1.kernel.to_string();
    let image = || image(Compressor::Gzip, &relocatable());
    assert_eq!(
        text(image(), ""),
        "unpacked (gzip), at a random physical and virtual address, 0x200000 and 0x400000 from where it is linked"
    );
    assert_eq!(
        text(image(), "mem=64M"),
        "unpacked (gzip), at a random virtual address, 0x400000 from where it is linked"
    );
    assert_eq!(text(image(), "nokaslr"), "unpacked (gzip), at its usual address");
    assert_eq!(
        text(image_of(&vmlinux()), ""),
        "ELF, at a random physical address, 0x200000 from where it is linked"
    );
    assert_eq!(text(image_of(&crate::image::tests::bzimage()), ""), "unpacking itself");
}

#[test]
fn a_kernel_can_be_loaded_on_a_thread_of_its_own() {
    let plan = plan(image(Compressor::Gzip, &relocatable()), "");
    let memory = memory(RAM);
    let kernel = std::thread::scope(|scope| scope.spawn(|| plan.load_kernel(&memory)).join().unwrap());
    assert_eq!(kernel.unwrap().method, Method::Unpacked(Compressor::Gzip));
}
