//! A guest that every VMM starts at once: an ELF file of a few instructions, entered as the PVH protocol has it. It prints
//! one byte to the serial port and then asks for power-off in the ways that VMMs know.

/// What it prints.
pub const BYTE: u8 = b'!';

/// Where it is loaded: crosvm takes nothing lower.
const BASE: u32 = 0x20_0000;
/// Where code and note are in the file and, from [`BASE`] on, in memory.
const CODE: u32 = 0x1000;
const NOTE: u32 = 0x2000;
const END: u32 = 0x3000;

/// 32-bit code: the byte to port 0x3f8, then mote's and the reset registers that others have.
const INSTRUCTIONS: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, BYTE, 0xee, // out dx, '!'
    0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
    0xb0, 0x34, 0xee, // out dx, 0x34: mote's sleep control, off
    0xb0, 0xfe, 0xe6, 0x64, // out 0x64, 0xfe: reset by the keyboard controller
    0x0f, 0x01, 0x1d, 0, 0, 0, 0,    // lidt [0]
    0xcc, // int3: a triple fault
    0xf4, // hlt
];

/// The 64-bit code of the same, for mote's usual path: everything up to the triple fault.
pub fn bare_code() -> Vec<u8> {
    let mut code = INSTRUCTIONS[..14].to_vec();
    code.push(0xf4);
    code
}

/// A guest that prints and then halts for good: its VMM can be looked at.
pub fn halting_code() -> Vec<u8> {
    let mut code = INSTRUCTIONS[..7].to_vec();
    code.extend([0xf4, 0xeb, 0xfd]);
    code
}

/// The file.
pub fn pvh() -> Vec<u8> {
    let mut file = vec![0; END as usize];
    let mut put = |at: u32, bytes: &[u8]| file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]); // an executable for x86-64
    put(24, &u64::from(BASE + CODE).to_le_bytes()); // entry
    put(32, &64_u64.to_le_bytes()); // program headers
    put(52, &[64, 0, 56, 0, 2, 0]); // sizes, two program headers
    let mut header = |at: u32, kind: u32, from: u32, to: u32| {
        put(at, &[kind.to_le_bytes(), 5_u32.to_le_bytes()].concat());
        let (offset, address, size) = (from.into(), (BASE + from).into(), (to - from).into());
        let words: [u64; 6] = [offset, address, address, size, size, 4];
        put(at + 8, &words.map(u64::to_le_bytes).concat());
    };
    header(64, 1, 0, END); // PT_LOAD
    header(120, 4, NOTE, NOTE + 20); // PT_NOTE
    put(CODE, INSTRUCTIONS);
    // XEN_ELFNOTE_PHYS32_ENTRY
    put(NOTE, &[4_u32, 4, 18].map(u32::to_le_bytes).concat());
    put(NOTE + 12, b"Xen\0");
    put(NOTE + 16, &(BASE + CODE).to_le_bytes());
    file
}
