//! The parts of an ELF core file but for memory itself (System V ABI; `linux/elfcore.h`; QEMU's `arch_dump.c`).

use kvm_bindings::{kvm_dtable, kvm_segment};

use crate::vcpu::Registers;

const HEADER: usize = 64;
const SEGMENT: usize = 56;
/// Memory begins on a page, so that readers can map it.
const ALIGNMENT: usize = 4096;

/// Types of segments.
const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// Access to memory: all kinds.
const ALL: u32 = 7;
/// The note type of a thread's registers.
const PRSTATUS: u32 = 1;
/// What the number of segments is in the header when there are more than it can tell. There never are.
const MOST_SEGMENTS: usize = 0xfffe;

/// Little-endian numbers, one after the other.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn half(&mut self, number: u16) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn word(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn long(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

/// Everything before the memory at `ranges` (start and length).
pub(super) fn head(ranges: &[(u64, u64)], vcpus: &[Registers]) -> Vec<u8> {
    let ranges = ranges.get(..MOST_SEGMENTS).unwrap_or(ranges);
    let notes = notes(vcpus);
    let segments = ranges.len() + 1;
    let notes_at = HEADER + segments * SEGMENT;
    let memory_at = (notes_at + notes.len()).next_multiple_of(ALIGNMENT);

    let mut out = Bytes::default();
    // 64 bits, little-endian, version 1.
    out.0.extend(b"\x7fELF\x02\x01\x01");
    out.zeros(9);
    // Type core, x86-64, version 1; no entry; segments follow at once; no sections, no flags.
    out.half(4).half(62).word(1).long(0).long(HEADER as u64).long(0).word(0);
    out.half(HEADER as u16).half(SEGMENT as u16).half(segments as u16).half(0).half(0).half(0);
    segment(&mut out, NOTE, notes_at as u64, 0, notes.len() as u64);
    let mut offset = memory_at as u64;
    for (start, length) in ranges {
        segment(&mut out, LOAD, offset, *start, *length);
        offset += length;
    }
    out.0.extend(notes);
    out.0.resize(memory_at, 0);
    out.0
}

/// A program header. Virtual and physical address are the same: it is physical memory. There is no word of alignment, as
/// in a dump of QEMU's: `crash` takes a file whose memory has one for a dump of netdump's, and fails.
fn segment(out: &mut Bytes, kind: u32, offset: u64, address: u64, length: u64) {
    let flags = if kind == LOAD { ALL } else { 0 };
    out.word(kind).word(flags).long(offset).long(address).long(address).long(length).long(length).long(0);
}

/// The notes of all processors.
pub(super) fn notes(vcpus: &[Registers]) -> Vec<u8> {
    let mut out = Bytes::default();
    for (index, registers) in (1..).zip(vcpus) {
        note(&mut out, b"CORE\0", PRSTATUS, &prstatus(index, registers));
    }
    for registers in vcpus {
        note(&mut out, b"QEMU\0", 0, &qemu(registers));
    }
    out.0
}

fn note(out: &mut Bytes, name: &[u8], kind: u32, content: &[u8]) {
    out.word(name.len() as u32).word(content.len() as u32).word(kind);
    out.0.extend(name);
    out.zeros(name.len().next_multiple_of(4) - name.len());
    out.0.extend(content);
    out.zeros(content.len().next_multiple_of(4) - content.len());
}

/// `struct elf_prstatus` of thread `index`, of which the signal, the times and the like are zero.
fn prstatus(index: u32, registers: &Registers) -> Vec<u8> {
    let (general, system) = (&registers.general, &registers.system);
    let mut out = Bytes::default();
    // Signal information, pending signals, then process, parent, group, session, and four times.
    out.zeros(32).word(index).zeros(12).zeros(64);
    for value in [
        general.r15,
        general.r14,
        general.r13,
        general.r12,
        general.rbp,
        general.rbx,
        general.r11,
        general.r10,
        general.r9,
        general.r8,
        general.rax,
        general.rcx,
        general.rdx,
        general.rsi,
        general.rdi,
        // The number of a system call, of which there is none.
        u64::MAX,
        general.rip,
        system.cs.selector.into(),
        general.rflags,
        general.rsp,
        system.ss.selector.into(),
        system.fs.base,
        system.gs.base,
        system.ds.selector.into(),
        system.es.selector.into(),
        system.fs.selector.into(),
        system.gs.selector.into(),
    ] {
        out.long(value);
    }
    // Whether there are floating-point registers, and padding.
    out.zeros(8);
    out.0
}

/// `QEMUCPUState`, version 1.
fn qemu(registers: &Registers) -> Vec<u8> {
    const VERSION: u32 = 1;
    const LENGTH: u32 = 440;
    let (general, system) = (&registers.general, &registers.system);
    let mut out = Bytes::default();
    out.word(VERSION).word(LENGTH);
    for value in [
        general.rax,
        general.rbx,
        general.rcx,
        general.rdx,
        general.rsi,
        general.rdi,
        general.rsp,
        general.rbp,
        general.r8,
        general.r9,
        general.r10,
        general.r11,
        general.r12,
        general.r13,
        general.r14,
        general.r15,
        general.rip,
        general.rflags,
    ] {
        out.long(value);
    }
    for it in
        [&system.cs, &system.ds, &system.es, &system.fs, &system.gs, &system.ss, &system.ldt, &system.tr]
    {
        qemu_segment(&mut out, it);
    }
    for kvm_dtable { base, limit, .. } in [&system.gdt, &system.idt] {
        out.word(0).word((*limit).into()).word(0).word(0).long(*base);
    }
    for value in [system.cr0, 0, system.cr2, system.cr3, system.cr4, registers.kernel_gs_base] {
        out.long(value);
    }
    out.0
}

/// A segment register; its flags are where a descriptor's upper half has them.
fn qemu_segment(out: &mut Bytes, segment: &kvm_segment) {
    let kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, .. } = *segment;
    let bits = [(type_, 8), (s, 12), (dpl, 13), (present, 15), (avl, 20), (l, 21), (db, 22), (g, 23)];
    let flags = bits.iter().fold(0, |flags, (bit, shift)| flags | u32::from(*bit) << shift);
    out.word(selector.into()).word(limit).word(flags).word(0).long(base);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_sizes_that_others_expect() {
        assert_eq!(prstatus(1, &Registers::default()).len(), 336);
        assert_eq!(qemu(&Registers::default()).len(), 440);
        assert_eq!(head(&[(0, 4096)], &[Registers::default()]).len() % ALIGNMENT, 0);
    }
}
