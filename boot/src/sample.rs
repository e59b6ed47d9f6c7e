//! Kernels for tests: small ELF files with relocations, packed with every compressor into a bzImage.

use std::io::Write;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;

use crate::elf::KERNEL_MAP;
use crate::image::tests::bzimage_of;
use crate::{Compressor, Image};

pub(crate) const MIB: u64 = 1 << 20;
/// Where the sample is linked.
pub(crate) const LINKED: u64 = 16 * MIB;
/// Where it starts.
pub(crate) const ENTRY: u64 = LINKED + 0x1040;
/// The end of what its file fills: the first segment has 0x2000 bytes, the second starts at 0x4000.
pub(crate) const FILLED_END: u64 = LINKED + 0x5800;
/// The end of its memory.
pub(crate) const MEMORY_END: u64 = LINKED + 0x8000;

pub(crate) const COMPRESSORS: [Compressor; 7] = [
    Compressor::Gzip,
    Compressor::Xz,
    Compressor::Lzma,
    Compressor::Lzo,
    Compressor::Lz4,
    Compressor::Zstd,
    Compressor::Bzip2,
];

/// A segment of an ELF file.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) kind: u32,
    pub(crate) address: u64,
    pub(crate) linked: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory_size: u64,
}

impl Part {
    /// What Linux has: virtual and physical address belong together.
    pub(crate) fn load(address: u64, bytes: Vec<u8>, memory_size: u64) -> Self {
        Self { kind: 1, address, linked: address + KERNEL_MAP, bytes, memory_size }
    }

    pub(crate) fn note(bytes: Vec<u8>) -> Self {
        Self { kind: 4, address: 0, linked: 0, memory_size: 0, bytes }
    }
}

/// A 64-bit ELF file of `parts`. Its section headers, of which there are two, come last.
pub(crate) fn elf(entry: u64, parts: &[Part]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64 + parts.len() * 56, 0);
    for (index, part) in parts.iter().enumerate() {
        file.resize(file.len().next_multiple_of(0x100), 0xee);
        let numbers = [
            u64::from(part.kind),
            file.len() as u64,
            part.linked,
            part.address,
            part.bytes.len() as u64,
            part.memory_size,
            0x20_0000,
        ];
        let header: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        file[64 + index * 56..][..56].copy_from_slice(&header);
        file.extend_from_slice(&part.bytes);
    }
    let mut put = |offset: usize, value: &[u8]| file[offset..offset + value.len()].copy_from_slice(value);
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &entry.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, parts.len() as u8, 0, 64, 0, 2, 0]);
    let sections = file.len() as u64;
    file[40..48].copy_from_slice(&sections.to_le_bytes());
    file.resize(file.len() + 128, 0xdd);
    file
}

/// `size` bytes that compress a little, and differ by `seed`.
pub(crate) fn pattern(size: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..size)
        .map(|index| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            if index % 8 < 5 { (index / 64) as u8 } else { state as u8 }
        })
        .collect()
}

/// The sample without relocations.
pub(crate) fn vmlinux() -> Vec<u8> {
    elf(
        ENTRY,
        &[
            Part::load(LINKED, pattern(0x2000, 1), 0x2000),
            Part::load(LINKED + 0x4000, pattern(0x1800, 2), 0x4000),
        ],
    )
}

/// A table of relocations from its lists of addresses as linked.
pub(crate) fn table(lists: &[&[u64]]) -> Vec<u8> {
    let entry = |address: &u64| ((address + KERNEL_MAP) as u32).to_le_bytes();
    lists.iter().flat_map(|list| [0; 4].into_iter().chain(list.iter().flat_map(entry))).collect()
}

/// What the sample's relocations are: 8-byte words, and 4-byte words.
pub(crate) const QUADS: [u64; 2] = [LINKED + 0x10, LINKED + 0x4003];
pub(crate) const WORDS: [u64; 2] = [LINKED, FILLED_END - 4];

/// The sample as it is in a payload of Linux 6.15 or later.
pub(crate) fn relocatable() -> Vec<u8> {
    [vmlinux(), table(&[&QUADS, &WORDS])].concat()
}

/// Packs as the kernel's build does, with the size at the end.
pub(crate) fn pack(compressor: Compressor, bytes: &[u8]) -> Vec<u8> {
    let mut packed = pack_only(compressor, bytes);
    if compressor != Compressor::Gzip {
        packed.extend((bytes.len() as u32).to_le_bytes());
    }
    packed
}

fn pack_only(compressor: Compressor, bytes: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
    let xz = |stream| {
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let options = LzmaOptions::new_preset(1).unwrap();
    match compressor {
        Compressor::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compressor::Xz => {
            let mut filters = Filters::new();
            filters.x86().lzma2(&options);
            xz(Stream::new_stream_encoder(&filters, Check::Crc32).unwrap())
        }
        Compressor::Lzma => xz(Stream::new_lzma_encoder(&options).unwrap()),
        Compressor::Lzo => lzop(bytes),
        Compressor::Lz4 => {
            let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in bytes.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
        Compressor::Zstd => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compressor::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
    }
}

/// As lzop does it with its default options.
fn lzop(bytes: &[u8]) -> Vec<u8> {
    let mut packed = b"\x89LZO\0\r\n\x1a\n".to_vec();
    packed.extend([0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 3, 9, 3, 0, 0, 1]);
    packed.extend([0; 12]);
    packed.extend(b"\x06kernel\0\0\0\0");
    for block in bytes.chunks(256 << 10) {
        let shrunk = lzokay::compress::compress(block).unwrap();
        let stored = if shrunk.len() < block.len() { &shrunk } else { block };
        for number in [block.len() as u32, stored.len() as u32, adler32(block)] {
            packed.extend(number.to_be_bytes());
        }
        packed.extend(stored);
    }
    packed.extend([0; 4]);
    packed
}

/// Another one than the one that is tested.
fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1u64, 0u64), |(low, high), byte| {
        let low = (low + u64::from(*byte)) % 65521;
        (low, (high + low) % 65521)
    });
    (high << 16 | low) as u32
}

/// An image of the bzImage with `payload` packed.
pub(crate) fn image(compressor: Compressor, payload: &[u8]) -> Image {
    image_of(&bzimage_of(&pack(compressor, payload)))
}

/// An image of a file.
pub(crate) fn image_of(bytes: &[u8]) -> Image {
    let file = TempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    Image::open(file.as_path()).unwrap()
}

/// RAM of so many bytes, zero.
pub(crate) fn memory(size: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap()
}

pub(crate) fn read(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// What the memory from [`LINKED`] to [`MEMORY_END`] is before relocations.
pub(crate) fn laid_out() -> Vec<u8> {
    let mut bytes = vec![0; (MEMORY_END - LINKED) as usize];
    bytes[..0x2000].copy_from_slice(&pattern(0x2000, 1));
    bytes[0x4000..0x5800].copy_from_slice(&pattern(0x1800, 2));
    bytes
}
