//! Wraps a few instructions as a kernel that is an ELF file with relocations, as the payload of Linux's bzImage is.

/// The physical address that the code is linked at.
pub const LINKED: u64 = 16 << 20;

/// What Linux adds to a physical address for the virtual one (`__START_KERNEL_map`).
pub const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Memory that the kernel needs from its load address on; behind the code it is the guest's to use.
const MEMORY_SIZE: u64 = 1 << 20;

/// The length of the file's header.
const HEADER: usize = 64;
/// The length of the one program header.
const PROGRAM_HEADER: usize = 56;

/// Makes an ELF file that starts with the first byte of `code`, which must not depend on where it is loaded. The
/// 8 bytes at `word` in it are made its virtual address, and follow that when it is moved.
#[must_use]
pub fn wrap(code: &[u8], word: usize) -> Vec<u8> {
    let start = HEADER + PROGRAM_HEADER;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(start, 0);
    file.extend(code);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 62, 0, 1]); // executable, x86-64, version
    put(24, &LINKED.to_le_bytes()); // entry
    put(32, &(HEADER as u64).to_le_bytes()); // program headers
    put(52, &[HEADER as u8, 0, PROGRAM_HEADER as u8, 0, 1, 0]); // one of them, and no section headers
    let size = code.len() as u64;
    // Loaded, may be executed; in the file, virtual, physical, in the file and in memory, alignment.
    let program = [1 | 5 << 32, start as u64, KERNEL_MAP + LINKED, LINKED, size, MEMORY_SIZE, 0x20_0000];
    put(HEADER, &program.map(u64::to_le_bytes).concat());
    let place = KERNEL_MAP + LINKED + word as u64;
    put(start + word, &place.to_le_bytes());
    // The relocations: words of 8 bytes, and none of 4.
    file.extend([0, place as u32, 0].map(u32::to_le_bytes).concat());
    file
}
