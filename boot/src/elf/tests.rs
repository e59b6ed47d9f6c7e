//! ELF headers, whole and broken.

use super::*;
use crate::sample::{ENTRY, LINKED, MEMORY_END, Part, elf, vmlinux};

fn with(offset: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = vmlinux();
    bytes[offset..offset + value.len()].copy_from_slice(value);
    bytes
}

fn refusal(bytes: &[u8]) -> &'static str {
    Elf::parse(bytes).unwrap_err()
}

/// The offset of a field of the first program header.
const FIRST: usize = 64;

#[test]
fn a_kernel_tells_its_segments_and_its_entry() {
    let bytes = vmlinux();
    let elf = Elf::parse(&bytes[..HEAD_SIZE]).unwrap();
    assert_eq!((elf.class, elf.entry, elf.end), (Class::Bits64, ENTRY, bytes.len() as u64));
    let [first, second] = elf.segments.as_slice() else { panic!("{elf:?}") };
    assert_eq!((first.memory.clone(), first.filled()), (LINKED..LINKED + 0x2000, LINKED..LINKED + 0x2000));
    assert_eq!(second.memory, LINKED + 0x4000..MEMORY_END);
    assert_eq!(second.file.end - second.file.start, 0x1800);
    assert!(elf.has_64_bit_entry() && elf.is_linked_as_linux());
}

#[test]
fn an_entry_outside_of_what_is_loaded_is_none() {
    for entry in [0, LINKED - 1, LINKED + 0x2000, MEMORY_END - 1, ENTRY + KERNEL_MAP] {
        let elf = Elf::parse(&with(24, &entry.to_le_bytes())).unwrap();
        assert!(!elf.has_64_bit_entry(), "{entry:#x}");
    }
}

#[test]
fn a_kernel_linked_where_it_runs_is_not_linux() {
    let part = Part { linked: LINKED, ..Part::load(LINKED, vec![1; 16], 16) };
    let elf = Elf::parse(&elf(LINKED, &[part])).unwrap();
    assert!(elf.has_64_bit_entry() && !elf.is_linked_as_linux());
}

#[test]
fn files_for_others_are_refused() {
    assert_eq!(refusal(b""), "it is no ELF file");
    assert_eq!(refusal(b"\x7fELG"), "it is no ELF file");
    assert_eq!(refusal(&with(4, &[3])), "it is an ELF file of an unknown class");
    assert_eq!(refusal(&with(4, &[1])), "it is an ELF file for another processor");
    assert_eq!(refusal(&with(5, &[2])), "it is an ELF file for another processor");
    assert_eq!(refusal(&with(18, &[183])), "it is an ELF file for another processor");
    assert_eq!(refusal(&with(16, &[1])), "it is an ELF file that cannot be executed");
}

#[test]
fn headers_that_cannot_be_are_refused() {
    assert_eq!(refusal(&with(54, &[32, 0])), "its ELF program headers have an unknown size");
    assert_eq!(refusal(&with(32, &[0xff; 8])), "its ELF program headers are not at its start");
    assert_eq!(
        refusal(&with(32, &4041u64.to_le_bytes())[..4096]),
        "its ELF program headers are not at its start"
    );
    let many = Table { offset: 64, entry_size: 56, count: u16::MAX };
    let last = ProgramHeader::read(&vmlinux(), Class::Bits64, &many, u16::MAX);
    assert_eq!(last.err(), Some("its ELF program headers are not at its start"));
    assert_eq!(refusal(&with(56, &[0, 0])), "it is an ELF file with nothing to load");
    assert_eq!(refusal(&with(40, &[0xff; 8])), "its ELF section headers lie beyond all bounds");
}

#[test]
fn segments_that_cannot_be_are_refused() {
    assert_eq!(refusal(&with(FIRST + 8, &[0xff; 8])), "an ELF segment lies beyond all bounds in the file");
    assert_eq!(refusal(&with(FIRST + 24, &[0xff; 8])), "an ELF segment lies beyond all memory");
    assert_eq!(refusal(&with(FIRST + 40, &[0xff; 8])), "an ELF segment lies beyond all memory");
    assert_eq!(refusal(&with(FIRST + 40, &[1, 0, 0])), "an ELF segment is larger in the file than in memory");
    assert_eq!(refusal(&with(FIRST + 24, &0xf_ffffu64.to_le_bytes())), "an ELF segment lies below 1 MiB");
}

#[test]
fn any_byte_of_the_headers_may_be_anything() {
    for (offset, value) in (0..64 + 2 * 56).flat_map(|offset| [0, 1, 0x7f, 0x80, 0xff].map(|v| (offset, v))) {
        let Ok(elf) = Elf::parse(&with(offset, &[value])) else { continue };
        assert!(!elf.segments.is_empty());
        for segment in &elf.segments {
            let filled = segment.filled();
            assert!(segment.memory.start >= HIGH_RAM_START && filled.end <= segment.memory.end);
            assert!(segment.file.end <= elf.end);
        }
    }
}

#[test]
fn a_32_bit_file_has_its_own_layout() {
    let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
    bytes.resize(52 + 32, 0);
    let mut put = |offset: usize, value: u32| bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    put(16, 2 | 3 << 16);
    put(24, 0x10_0000);
    put(28, 52);
    put(42, 32 | 1 << 16);
    for (index, value) in [1, 84, 0xc010_0000, 0x10_0000, 4, 8].into_iter().enumerate() {
        put(52 + index * 4, value);
    }
    bytes.extend([0xf4; 4]);
    let elf = Elf::parse(&bytes).unwrap();
    assert_eq!((elf.class, elf.entry, elf.end), (Class::Bits32, 0x10_0000, 88));
    let segment = Segment { file: 84..88, memory: 0x10_0000..0x10_0008, linked: 0xc010_0000 };
    assert_eq!(elf.segments, [segment]);
    assert!(!elf.has_64_bit_entry());
}
