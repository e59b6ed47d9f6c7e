//! Rings that no good driver makes.

use crate::driver::machine::{HIGH, HOLE, LOW};
use crate::driver::ring::{INDIRECT, NEXT, WRITE};
use crate::driver::{Buf, Machine, Ring};

/// A ring that no good driver makes. Its buffer goes the way that the device wants.
pub struct Offence {
    pub name: &'static str,
    pub commit: fn(&Machine, &Ring<'_>, Buf),
}

fn direct(ring: &Ring<'_>, buf: Buf, flags: u16, next: u16) {
    let way = if buf.is_writable { WRITE } else { 0 };
    ring.set_descriptor(0, buf, flags | way, next);
    ring.offer(0);
}

fn table(machine: &Machine, ring: &Ring<'_>, entries: &[(Buf, u16, u16)], len: u32) {
    let at = machine.ram(entries.len() as u64 * 16, 16);
    for (n, (buf, flags, next)) in (0..).zip(entries) {
        let way = if buf.is_writable { WRITE } else { 0 };
        Ring::write_descriptor(machine, at + n * 16, *buf, flags | way, *next);
    }
    ring.set_descriptor(0, Buf::out(at, len), INDIRECT, 0);
    ring.offer(0);
}

/// All that was thought of.
pub const OFFENCES: &[Offence] = &[
    Offence { name: "head out of range", commit: |_, ring, _| ring.offer(0xffff) },
    Offence { name: "index far ahead", commit: |_, ring, _| ring.set_avail_index(0x4000) },
    Offence { name: "index one too far", commit: |_, ring, _| ring.set_avail_index(ring.size + 1) },
    Offence { name: "loop of one", commit: |_, ring, buf| direct(ring, buf, NEXT, 0) },
    Offence {
        name: "loop of empty buffers",
        commit: |_, ring, buf| direct(ring, Buf { len: 0, ..buf }, NEXT, 0),
    },
    Offence { name: "link out of range", commit: |_, ring, buf| direct(ring, buf, NEXT, ring.size) },
    Offence { name: "buffer in MMIO", commit: |_, ring, buf| direct(ring, Buf { addr: HOLE, ..buf }, 0, 0) },
    Offence {
        name: "buffer beyond RAM",
        commit: |_, ring, buf| direct(ring, Buf { addr: LOW - 1, len: 2, ..buf }, 0, 0),
    },
    Offence {
        name: "buffer before RAM",
        commit: |_, ring, buf| direct(ring, Buf { addr: HIGH - 1, len: 2, ..buf }, 0, 0),
    },
    Offence {
        name: "wrapping buffer",
        commit: |_, ring, buf| direct(ring, Buf { addr: u64::MAX - 3, len: 16, ..buf }, 0, 0),
    },
    Offence {
        name: "giant buffer",
        commit: |_, ring, buf| direct(ring, Buf { addr: 0, len: u32::MAX, ..buf }, 0, 0),
    },
    Offence { name: "nothing at all", commit: |_, ring, _| direct(ring, Buf::room(0, 0), 0, 0) },
    Offence {
        name: "wrong direction",
        commit: |_, ring, buf| direct(ring, Buf { is_writable: !buf.is_writable, ..buf }, 0, 0),
    },
    Offence {
        name: "readable behind writable",
        commit: |_, ring, buf| {
            ring.set_descriptor(1, Buf::out(buf.addr, 8), 0, 0);
            direct(ring, Buf { is_writable: true, ..buf }, NEXT, 1);
        },
    },
    Offence { name: "empty table", commit: |machine, ring, buf| table(machine, ring, &[(buf, 0, 0)], 0) },
    Offence {
        name: "table cut short",
        commit: |machine, ring, buf| table(machine, ring, &[(buf, 0, 0)], 24),
    },
    Offence {
        name: "giant table",
        commit: |machine, ring, buf| table(machine, ring, &[(buf, 0, 0)], 0xffff_fff0),
    },
    Offence {
        name: "looping table",
        commit: |machine, ring, buf| table(machine, ring, &[(buf, NEXT, 0)], 16),
    },
    Offence {
        name: "table in a table",
        commit: |machine, ring, _| table(machine, ring, &[(Buf::out(0x1000, 16), INDIRECT, 0)], 16),
    },
    Offence {
        name: "link out of a table",
        commit: |machine, ring, buf| table(machine, ring, &[(buf, NEXT, 1)], 16),
    },
    Offence {
        name: "table in MMIO",
        commit: |_, ring, _| {
            ring.set_descriptor(0, Buf::out(HOLE, 32), INDIRECT, 0);
            ring.offer(0);
        },
    },
    Offence {
        name: "table that goes on behind itself",
        commit: |machine, ring, buf| {
            table(machine, ring, &[(buf, 0, 0)], 16);
            let bytes = machine.bytes(ring.desc, 16);
            let at = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            ring.set_descriptor(0, Buf::out(at, 16), INDIRECT | NEXT, 0);
        },
    },
    Offence {
        name: "more descriptors than any driver needs",
        commit: |machine, ring, buf| {
            let entries: Vec<_> = (0..2000).map(|n| (Buf { len: 1, ..buf }, NEXT, n + 1)).collect();
            table(machine, ring, &entries, 32_000);
        },
    },
];
