//! Which ELF files start how.

use std::os::unix::fs::FileExt;

use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::sample::{ENTRY, LINKED, MEMORY_END, Part, elf, relocatable, table, vmlinux};

fn open(bytes: &[u8]) -> Result<(Vmlinux, Start)> {
    let file = TempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    Vmlinux::open(&Input::open(file.as_path()).unwrap())
}

/// A note of Xen's with `entry` in so many bytes, after one of somebody else's.
pub(crate) fn note(entry: u64, size: usize) -> Vec<u8> {
    let mut notes = [6u32, 5, 18].map(u32::to_le_bytes).concat();
    notes.extend(b"Linux\0\0\0wrong\0\0\0");
    notes.extend([4, size as u32, 18].map(u32::to_le_bytes).concat());
    notes.extend(b"Xen\0");
    notes.extend(&entry.to_le_bytes()[..size]);
    notes
}

fn with_note(entry: u64, note: Vec<u8>, linked: u64) -> Vec<u8> {
    let part = Part { linked, ..Part::load(LINKED, vec![0xf4; 64], 128) };
    elf(entry, &[part, Part::note(note)])
}

#[test]
fn linux_starts_at_its_64_bit_entry_even_if_it_has_another() {
    assert_eq!(open(&vmlinux()).unwrap().1, Start::Linux);
    let both = with_note(LINKED, note(LINKED + 16, 4), LINKED + crate::elf::KERNEL_MAP);
    assert_eq!(open(&both).unwrap().1, Start::Linux);
}

#[test]
fn others_start_by_pvh_if_they_can() {
    for size in [4, 8] {
        let other = with_note(LINKED, note(LINKED + 16, size), LINKED);
        assert_eq!(open(&other).unwrap().1, Start::Pvh(LINKED as u32 + 16));
    }
    let virtual_entry = with_note(0xffff_ffff_8020_0000, note(LINKED, 4), 0xffff_ffff_8020_0000);
    assert_eq!(open(&virtual_entry).unwrap().1, Start::Pvh(LINKED as u32));
    let neither = with_note(LINKED, Vec::new(), LINKED);
    assert_eq!(open(&neither).unwrap().1, Start::Linux, "a 64-bit entry is better than none");
}

#[test]
fn a_note_that_leads_nowhere_is_none() {
    for (entry, size) in [(LINKED - 1, 4), (LINKED + 64, 4), (1 << 32 | LINKED, 8)] {
        let error = open(&with_note(0, note(entry, size), LINKED)).unwrap_err();
        assert!(error.to_string().ends_with("it has neither a 64-bit entry nor a PVH note"), "{error}");
    }
}

#[test]
fn notes_of_any_length_are_looked_through() {
    let whole = note(LINKED, 4);
    for length in 0..whole.len() {
        assert_eq!(find_entry(&whole[..length]), None);
    }
    assert_eq!(find_entry(&whole), Some(LINKED as u32));
    for offset in [0, 4, 28, 32] {
        let mut broken = whole.clone();
        broken[offset..offset + 4].fill(0xff);
        assert_eq!(find_entry(&broken), None, "{offset}");
    }
}

#[test]
fn the_header_is_as_a_bzimage_would_have_it() {
    let (file, start) = open(&vmlinux()).unwrap();
    let header = file.header(start);
    assert_eq!((header.pref_address, header.init_size), (LINKED, MEMORY_END - LINKED));
    assert!(header.is_relocatable);
    assert!(!file.header(Start::Pvh(0)).is_relocatable);
    let head = head();
    assert_eq!(head.len(), 0x26c);
    assert_eq!((&head[0x1fe..0x200], &head[0x202..0x208]), (&[0x55, 0xaa][..], &b"HdrS\x0f\x02"[..]));
    assert_eq!(head[0x211], 1);
}

#[test]
fn relocations_that_follow_the_file_are_found() {
    let file = TempFile::new().unwrap();
    file.as_file().write_all_at(&relocatable(), 0).unwrap();
    let input = Input::open(file.as_path()).unwrap();
    let (vmlinux, _) = Vmlinux::open(&input).unwrap();
    assert_eq!(vmlinux.tail(&input).unwrap(), table(&[&crate::sample::QUADS, &crate::sample::WORDS]));
    file.as_file().set_len(TAIL_LIMIT * 2).unwrap();
    assert_eq!(vmlinux.tail(&Input::open(file.as_path()).unwrap()).unwrap(), [], "too large to be a table");
}

#[test]
fn a_file_that_cannot_be_booted_says_why() {
    let error = open(&elf(0, &[])).unwrap_err();
    assert!(matches!(error, Error::NotBootable { reason: "it is an ELF file with nothing to load", .. }));
    let bytes = vmlinux();
    let error = open(&bytes[..0x2000]).unwrap_err();
    assert!(matches!(error, Error::Truncated { actual: 0x2000, .. }), "{error}");
    assert_eq!(open(&bytes).unwrap().0.elf.entry, ENTRY);
}
