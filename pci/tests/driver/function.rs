//! A PCI function as a guest finds it: identity, BARs, capabilities, the MSI-X table.

use super::machine::Machine;

/// Offsets in the header, and bits.
pub const COMMAND: u64 = 0x04;
pub const STATUS: u64 = 0x06;
pub const IO: u64 = 1;
pub const MEMORY: u64 = 1 << 1;
pub const BUS_MASTER: u64 = 1 << 2;
pub const INTX_DISABLE: u64 = 1 << 10;
const BAR: u64 = 0x10;

/// A capability of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its offset in configuration space.
    pub at: u64,
    /// Its identifier.
    pub id: u64,
}

/// Types of virtio capabilities (VIRTIO 1.3 §4.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    Window = 5,
}

/// A part of a BAR that a virtio capability names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub at: u64,
    pub cap_len: u64,
    pub kind: u64,
    pub bar: u64,
    pub offset: u64,
    pub length: u64,
}

/// A function that was found, with its BARs placed and decoded.
#[derive(Clone)]
pub struct Function<'m> {
    pub machine: &'m Machine,
    pub slot: u8,
    /// Where each BAR is; 0 for those that there are not.
    pub bars: [u64; 6],
    /// Bytes of each BAR.
    pub sizes: [u64; 6],
    /// Which BARs are ports.
    pub is_io: [bool; 6],
    parts: Vec<Part>,
    msix: u64,
}

impl<'m> Function<'m> {
    /// Finds the function in `slot`, gives its BARs a place, and switches on decoding and bus mastering.
    pub fn find(machine: &'m Machine, slot: u8) -> Self {
        let mut this = Self {
            machine,
            slot,
            bars: [0; 6],
            sizes: [0; 6],
            is_io: [false; 6],
            parts: Vec::new(),
            msix: 0,
        };
        assert_eq!(this.config(0, 2), 0x1af4, "a virtio function sits in slot {slot}");
        this.set_config(COMMAND, 2, 0);
        for bar in 0..6 {
            this.size(bar);
        }
        this.set_config(COMMAND, 2, IO | MEMORY | BUS_MASTER);
        this.parts = this.read_parts();
        this.msix = this.capabilities().into_iter().find(|c| c.id == 0x11).expect("MSI-X").at;
        this
    }

    fn size(&mut self, bar: usize) {
        let at = BAR + bar as u64 * 4;
        self.set_config(at, 4, 0xffff_ffff);
        let bits = self.config(at, 4);
        if bits == 0 {
            return;
        }
        self.is_io[bar] = bits & 1 != 0;
        let mask: u64 = if self.is_io[bar] { !3 } else { !0xf };
        self.sizes[bar] = (!(bits & mask) + 1) & 0xffff_ffff;
        let base = match self.is_io[bar] {
            true => self.machine.port_space(self.sizes[bar]),
            false => self.machine.bar_space(self.sizes[bar]),
        };
        self.place(bar, base);
    }

    /// Moves a BAR.
    pub fn place(&mut self, bar: usize, base: u64) {
        self.set_config(BAR + bar as u64 * 4, 4, base);
        self.bars[bar] = base;
    }

    pub fn config(&self, offset: u64, width: usize) -> u64 {
        self.machine.config(self.slot, offset, width)
    }

    pub fn set_config(&self, offset: u64, width: usize, value: u64) {
        self.machine.set_config(self.slot, offset, width, value);
    }

    /// Writes the command register.
    pub fn set_command(&self, command: u64) {
        self.set_config(COMMAND, 2, command);
    }

    /// Walks the capability list.
    pub fn capabilities(&self) -> Vec<Capability> {
        let mut found = Vec::new();
        let mut at = if self.config(STATUS, 2) & 1 << 4 != 0 { self.config(0x34, 1) } else { 0 };
        while at != 0 {
            assert!(at >= 0x40 && at.is_multiple_of(4), "a capability at {at:#x}");
            assert!(found.len() < 48, "the capability list is a loop");
            found.push(Capability { at, id: self.config(at, 1) });
            at = self.config(at + 1, 1);
        }
        found
    }

    /// The virtio capabilities, in the order of the list.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn read_parts(&self) -> Vec<Part> {
        let vendor = self.capabilities().into_iter().filter(|c| c.id == 9);
        let part = |Capability { at, .. }| Part {
            at,
            cap_len: self.config(at + 2, 1),
            kind: self.config(at + 3, 1),
            bar: self.config(at + 4, 1),
            offset: self.config(at + 8, 4),
            length: self.config(at + 12, 4),
        };
        vendor.map(part).collect()
    }

    /// The first virtio capability of a type.
    pub fn find_part(&self, kind: Kind) -> Option<Part> {
        self.parts.iter().find(|p| p.kind == kind as u64).copied()
    }

    /// The first virtio capability of a type, which must be there.
    pub fn part(&self, kind: Kind) -> Part {
        self.find_part(kind).unwrap_or_else(|| panic!("no {kind:?} capability"))
    }

    /// Where the structure of a capability is in memory.
    pub fn address(&self, kind: Kind) -> u64 {
        let part = self.part(kind);
        self.bars[usize::try_from(part.bar).unwrap()] + part.offset
    }

    /// The MSI-X table's number of entries.
    pub fn vectors(&self) -> u64 {
        (self.config(self.msix + 2, 2) & 0x7ff) + 1
    }

    /// Switches MSI-X, and the mask of the whole function.
    pub fn set_msix(&self, is_enabled: bool, is_masked: bool) {
        self.set_config(self.msix + 2, 2, u64::from(is_enabled) << 15 | u64::from(is_masked) << 14);
    }

    /// The MSI-X message control word.
    pub fn msix_control(&self) -> u64 {
        self.config(self.msix + 2, 2)
    }

    fn place_of(&self, field: u64) -> u64 {
        let place = self.config(self.msix + field, 4);
        self.bars[usize::try_from(place & 7).unwrap()] + (place & !7)
    }

    /// Where the MSI-X table is.
    pub fn table(&self) -> u64 {
        self.place_of(4)
    }

    /// Where the pending bits are.
    pub fn pending_bits(&self) -> u64 {
        self.place_of(8)
    }

    /// Writes an entry of the table, the way Linux does: masked, filled, and then as wished.
    pub fn set_vector(&self, vector: u64, address: u64, data: u64, is_masked: bool) {
        let at = self.table() + vector * 16;
        self.machine.store(at + 12, 4, 1);
        self.machine.store(at, 4, address & 0xffff_ffff);
        self.machine.store(at + 4, 4, address >> 32);
        self.machine.store(at + 8, 4, data);
        self.machine.store(at + 12, 4, is_masked.into());
    }

    /// Masks or unmasks one vector.
    pub fn mask(&self, vector: u64, is_masked: bool) {
        self.machine.store(self.table() + vector * 16 + 12, 4, is_masked.into());
    }

    /// Whether a vector is pending.
    pub fn is_pending(&self, vector: u64) -> bool {
        self.machine.load(self.pending_bits() + vector / 8, 1) >> (vector % 8) & 1 != 0
    }

    /// The line that its pin is wired to, as firmware noted it down.
    pub fn gsi(&self) -> u32 {
        u32::try_from(self.config(0x3c, 1)).unwrap()
    }
}
