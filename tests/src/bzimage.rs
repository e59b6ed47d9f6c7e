//! Wraps a few instructions as a kernel, so that they go through the loader that Linux goes through.
//!
//! The layout is that of the kernel's Documentation/arch/x86/boot.rst, protocol 2.15.

/// The setup part: the boot sector and one sector more.
const SETUP: usize = 2 * SECTOR;
const SECTOR: usize = 512;

/// Where the 64-bit entry is in the protected-mode part.
const ENTRY: usize = 0x200;

/// Memory that the kernel needs from its load address on; behind the code it is the guest's to use.
const INIT_SIZE: u32 = 1 << 20;

/// What a test may get wrong in a kernel on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing is wrong.
    None,
    /// The magic number `HdrS` is another.
    Magic,
    /// The protocol is older than 2.12, which brought the 64-bit entry.
    Protocol,
    /// The kernel has no 64-bit entry.
    Entry,
    /// The file ends in the middle of the code.
    Truncated,
}

/// Makes a bzImage whose 64-bit entry is the first byte of `code`, which must not depend on where it is loaded.
#[must_use]
pub fn wrap(code: &[u8], flaw: Flaw) -> Vec<u8> {
    let kernel = (ENTRY + code.len()).next_multiple_of(SECTOR);
    let mut image = vec![0; SETUP + kernel];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[(SETUP / SECTOR - 1) as u8]); // setup_sects
    put(0x1f4, &((kernel / 16) as u32).to_le_bytes()); // syssize
    put(0x1fe, &0xaa55_u16.to_le_bytes()); // boot_flag
    put(0x200, &[0xeb, 0x66]); // a jump, which tells where the header ends: 0x268
    put(0x202, if flaw == Flaw::Magic { b"HdrZ" } else { b"HdrS" });
    put(0x206, &if flaw == Flaw::Protocol { 0x020b_u16 } else { 0x020f }.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: loaded high
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1, 21]); // relocatable_kernel, min_alignment
    put(0x236, &if flaw == Flaw::Entry { 0_u16 } else { 3 }.to_le_bytes()); // xloadflags: 64-bit entry, above 4G
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &INIT_SIZE.to_le_bytes()); // init_size
    put(SETUP + ENTRY, code);
    if flaw == Flaw::Truncated {
        image.truncate(SETUP + ENTRY / 2);
    }
    image
}
