//! Streams in pieces of every size, and streams that are no kernel.

use super::*;
use crate::sample::{
    self, ENTRY, FILLED_END, LINKED, MEMORY_END, MIB, Part, elf, laid_out, pattern, read, relocatable,
    vmlinux,
};

const ROOM: std::ops::Range<u64> = LINKED..MEMORY_END;

fn memory() -> GuestMemoryMmap {
    sample::memory(40 * MIB)
}

fn refusal(stop: Stop) -> &'static str {
    match stop {
        Stop::Refused(reason) => reason,
        Stop::Memory(error) => panic!("{error}"),
    }
}

/// Why `bytes` are refused.
fn refused(bytes: &[u8]) -> &'static str {
    let memory = memory();
    let mut keep = |_, _: &[u8]| ();
    let mut scatter = Scatter::new(&memory, 0, ROOM, &mut keep);
    match scatter.take(bytes) {
        Err(stop) => refusal(stop),
        Ok(()) => refusal(scatter.finish().unwrap_err()),
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(reason) => out.write_str(reason),
            Self::Memory(error) => error.fmt(out),
        }
    }
}

#[test]
fn pieces_of_any_size_make_the_same_memory() {
    let file = relocatable();
    for size in [1, 7, 100, HEAD_SIZE - 1, HEAD_SIZE, HEAD_SIZE + 1, file.len()] {
        let memory = memory();
        let mut kept = vec![0; (FILLED_END - LINKED) as usize];
        let mut keep =
            |offset: u64, bytes: &[u8]| kept[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        let mut scatter = Scatter::new(&memory, 0, ROOM, &mut keep);
        for piece in file.chunks(size) {
            scatter.take(piece).unwrap();
        }
        let (elf, rest) = scatter.finish().unwrap();
        assert_eq!(elf.entry, ENTRY);
        assert_eq!(elf.filled(), LINKED..FILLED_END);
        assert_eq!(elf.memory(), LINKED..MEMORY_END);
        assert_eq!(rest, file[elf.loaded_end() as usize..], "pieces of {size}");
        assert!(elf.loaded_end() < elf.end && elf.end == vmlinux().len() as u64);
        assert!(read(&memory, LINKED, 0x8000) == laid_out(), "pieces of {size}");
        assert_eq!(read(&memory, LINKED - 16, 16), [0; 16]);
        assert!(kept == laid_out()[..kept.len()], "pieces of {size}");
    }
}

#[test]
fn a_kernel_can_lie_above_and_below_where_it_is_linked() {
    for shift in [8 * MIB, 0u64.wrapping_sub(8 * MIB)] {
        let memory = memory();
        let mut keep = |_, _: &[u8]| ();
        let mut scatter = Scatter::new(&memory, shift, ROOM, &mut keep);
        scatter.take(&vmlinux()).unwrap();
        scatter.finish().unwrap();
        assert!(read(&memory, LINKED.wrapping_add(shift), 0x8000) == laid_out());
        assert_eq!(read(&memory, LINKED, 16), [0; 16]);
    }
}

#[test]
fn a_small_file_is_whole_before_its_headers_could_end() {
    let memory = memory();
    let mut keep = |_, _: &[u8]| ();
    let mut scatter = Scatter::new(&memory, 0, ROOM, &mut keep);
    scatter.take(&elf(LINKED, &[Part::load(LINKED, vec![1, 2, 3], 3)])).unwrap();
    scatter.finish().unwrap();
    assert_eq!(read(&memory, LINKED, 4), [1, 2, 3, 0]);
}

#[test]
fn what_is_no_kernel_is_refused() {
    assert_eq!(refused(&[0; 10]), "it is no ELF file");
    assert_eq!(refused(&[0; 10_000]), "it is no ELF file");
    assert_eq!(refused(b""), "it is no ELF file");
    let file = vmlinux();
    assert_eq!(refused(&file[..file.len() - 1]), "it ends before its last ELF segment does");
    assert_eq!(refused(&file[..0x2000]), "it ends before its last ELF segment does");
}

#[test]
fn segments_outside_of_the_kernels_memory_are_refused_before_anything_is_written() {
    let outside = "its ELF segments lie outside of the memory that its header asks for";
    let part = |address| Part::load(address, pattern(16, 1), 16);
    for address in [LINKED - 1, MEMORY_END - 15, 1 << 30] {
        assert_eq!(refused(&elf(LINKED, &[part(LINKED), part(address)])), outside, "{address:#x}");
    }
    let huge = Part { memory_size: MEMORY_END - LINKED + 1, ..part(LINKED) };
    assert_eq!(refused(&elf(LINKED, &[huge])), outside);
}

#[test]
fn memory_that_is_missing_is_an_error() {
    let memory = sample::memory(MIB);
    let stop = Scatter::new(&memory, 0, ROOM, &mut |_, _| ()).take(&vmlinux()).unwrap_err();
    assert!(matches!(stop, Stop::Memory(Error::Memory { what: "the kernel", .. })), "{stop:?}");
}
