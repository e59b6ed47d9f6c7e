//! A function's configuration space: bytes, and which of their bits the guest may write (PCI 3.0 §6).

use std::ops::Range;

use devices::vdev::Region;

use crate::function::Window;
use crate::read_bytes;

/// Offsets of the type 0 header.
mod header {
    pub const VENDOR: usize = 0x00;
    pub const DEVICE: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x0a;
    pub const CACHE_LINE: usize = 0x0c;
    pub const TYPE: usize = 0x0e;
    pub const BAR: usize = 0x10;
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub const SUBSYSTEM: usize = 0x2e;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    pub const END: usize = 0x40;
}

/// Bits of the command register.
pub mod command {
    /// I/O ports are decoded.
    pub const IO: u16 = 1;
    /// Memory is decoded.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may access memory and send messages.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// The interrupt pin is silent.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Status bit: the function asserts its interrupt pin, or would.
const STATUS_INTERRUPT: u8 = 1 << 3;
/// Status bit: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Offset of the low half of the status register, which the guest never writes.
pub const STATUS: usize = header::STATUS;

/// The low half of the status register of a function with capabilities.
pub fn status(is_interrupt_asserted: bool) -> u8 {
    let [capabilities, _] = STATUS_CAPABILITIES.to_le_bytes();
    if is_interrupt_asserted { capabilities | STATUS_INTERRUPT } else { capabilities }
}

/// Bytes of configuration space that hold anything; the extended space behind them reads as 0.
const LEN: usize = 256;
/// BARs of a type 0 header.
const BARS: usize = 6;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class and subclass.
    pub class: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// 32-bit memory of this many bytes, a power of two of at least 4096, so that a page has one purpose.
    Memory(u32),
    /// This many I/O ports, a power of two of at least 4.
    Io(u32),
}

/// The configuration space of a function.
pub struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    bars: [Option<Bar>; BARS],
    /// Where the next capability goes.
    free: usize,
    /// Where the pointer to the next capability stands.
    link: usize,
}

impl ConfigSpace {
    /// The space of a function with no BARs, no interrupt and no capabilities.
    pub fn new(identity: Identity) -> Self {
        let Identity { vendor, device, revision, class, subsystem_vendor, subsystem } = identity;
        let mut this = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            bars: [None; BARS],
            free: header::END,
            link: header::CAPABILITIES,
        };
        this.put(header::VENDOR, &vendor.to_le_bytes());
        this.put(header::DEVICE, &device.to_le_bytes());
        this.put(header::REVISION, &[revision]);
        this.put(header::CLASS, &class.to_le_bytes());
        this.put(header::SUBSYSTEM_VENDOR, &subsystem_vendor.to_le_bytes());
        this.put(header::SUBSYSTEM, &subsystem.to_le_bytes());
        this.allow(header::CACHE_LINE, &[0xff]);
        this.allow(header::COMMAND, &command::BUS_MASTER.to_le_bytes());
        this
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let to = self.bytes.get_mut(at..).unwrap_or_default();
        to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        let to = self.writable.get_mut(at..).unwrap_or_default();
        to.iter_mut().zip(mask).for_each(|(to, from)| *to |= *from);
    }

    /// Adds base address register `index`, which decodes nothing yet.
    #[must_use]
    pub fn with_bar(mut self, index: u8, bar: Bar) -> Self {
        let (size, flags, command) = match bar {
            Bar::Memory(size) => (size, 0_u32, command::MEMORY),
            Bar::Io(size) => (size, 1_u32, command::IO),
        };
        let at = bar_offset(index);
        self.put(at, &flags.to_le_bytes());
        self.allow(at, &(!size.wrapping_sub(1)).to_le_bytes());
        self.allow(header::COMMAND, &command.to_le_bytes());
        if let Some(slot) = self.bars.get_mut(usize::from(index)) {
            *slot = Some(bar);
        }
        self
    }

    /// Adds interrupt pin INTA#, with the line number that firmware would note down for it.
    #[must_use]
    pub fn with_interrupt(mut self, line: u8) -> Self {
        self.put(header::INTERRUPT_LINE, &[line]);
        self.put(header::INTERRUPT_PIN, &[1]);
        self.allow(header::INTERRUPT_LINE, &[0xff]);
        self.allow(header::COMMAND, &command::INTX_DISABLE.to_le_bytes());
        self
    }

    /// Adds a capability: its id, and what follows the pointer to the next one, with the bits that the guest may write.
    /// Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let at = self.free;
        let body_at = at.saturating_add(2);
        self.put(at, &[id, 0]);
        self.put(body_at, body);
        self.allow(body_at, writable);
        let pointer = u8::try_from(at).unwrap_or(0);
        self.put(self.link, &[pointer]);
        self.link = at.saturating_add(1);
        self.free = body_at.saturating_add(body.len()).next_multiple_of(4);
        self.put(header::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        u16::from(pointer)
    }

    /// Places base address register `index`, as firmware does before the guest runs.
    pub fn place_bar(&mut self, index: u8, base: u32) {
        let flags = self.bar_word(index) & 3;
        self.put(bar_offset(index), &(base | flags).to_le_bytes());
    }

    /// The slot has several functions (PCI 3.0 §6.2.1, header type bit 7).
    pub fn set_multi_function(&mut self) {
        self.put(header::TYPE, &[0x80]);
    }

    /// The base address registers that there are.
    pub fn bars(&self) -> impl Iterator<Item = (u8, Bar)> {
        (0_u8..).zip(self.bars).filter_map(|(index, bar)| bar.map(|bar| (index, bar)))
    }

    fn bar_word(&self, index: u8) -> u32 {
        let mut word = [0; 4];
        read_bytes(&self.bytes, u64::try_from(bar_offset(index)).unwrap_or(u64::MAX), &mut word);
        u32::from_le_bytes(word)
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.word(header::COMMAND)
    }

    /// Two bytes at `at`, which is a place in the space.
    pub fn word(&self, at: usize) -> u16 {
        let mut word = [0; 2];
        read_bytes(&self.bytes, u64::try_from(at).unwrap_or(u64::MAX), &mut word);
        u16::from_le_bytes(word)
    }

    /// Four bytes at `at`, which is a place in the space.
    pub fn double_word(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at.saturating_add(2))) << 16
    }

    /// Ranges of the header, in double words, in which nothing can be written: BARs that there are not, and their like.
    pub fn inert(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for at in (header::BAR..header::CAPABILITIES).step_by(4) {
            let masks = self.writable.get(at..at.saturating_add(4)).unwrap_or_default();
            if masks.iter().any(|mask| *mask != 0) {
                continue;
            }
            let at = u64::try_from(at).unwrap_or(u64::MAX);
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end = at.saturating_add(4),
                _ => ranges.push(at..at.saturating_add(4)),
            }
        }
        ranges
    }

    /// All bytes, as the guest reads them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The device's own bytes at `at`, such as a window's data; no write mask applies.
    pub fn set_bytes(&mut self, at: usize, bytes: &[u8]) {
        self.put(at, bytes);
    }

    /// Whether status bit 3 shows.
    pub fn set_interrupt_status(&mut self, is_set: bool) {
        let [status, _] = self.word(header::STATUS).to_le_bytes();
        self.put(
            header::STATUS,
            &[if is_set { status | STATUS_INTERRUPT } else { status & !STATUS_INTERRUPT }],
        );
    }

    /// The guest reads. The extended space is empty and reads as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        read_bytes(&self.bytes, offset, data);
    }

    /// The guest writes. Bits that it may not write stay.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(at) = usize::try_from(offset) else { return };
        let bytes = self.bytes.get_mut(at..).unwrap_or_default();
        let masks = self.writable.get(at..).unwrap_or_default();
        for ((byte, mask), new) in bytes.iter_mut().zip(masks).zip(data) {
            *byte = *byte & !mask | new & mask;
        }
    }

    /// The ranges that the function decodes now. A BAR at 0 is one that nobody has placed.
    pub fn windows(&self) -> Vec<Window> {
        let command = self.command();
        self.bars()
            .filter_map(|(index, bar)| {
                let (space, len, mask, bit) = match bar {
                    Bar::Memory(len) => (Region::Memory, len, !0xf, command::MEMORY),
                    Bar::Io(len) => (Region::Port, len, !3, command::IO),
                };
                let base = self.bar_word(index) & mask;
                let is_decoded = command & bit != 0 && base != 0;
                is_decoded.then_some(Window { space, base: base.into(), len: len.into(), bar: index })
            })
            .collect()
    }
}

fn bar_offset(index: u8) -> usize {
    usize::from(index).saturating_mul(4).saturating_add(header::BAR)
}

/// Whether a write at `offset` of `len` bytes can change what the function decodes, sends or asserts.
pub fn touches_decode(offset: u64, len: usize) -> bool {
    let end = offset.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
    let overlaps = |start: u64, stop: u64| offset < stop && start < end;
    overlaps(0x04, 0x06) || overlaps(0x10, 0x28)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: 0x00ff,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        };
        ConfigSpace::new(identity)
            .with_bar(0, Bar::Io(64))
            .with_bar(2, Bar::Memory(0x8000))
            .with_interrupt(16)
    }

    fn read32(space: &ConfigSpace, at: u64) -> u32 {
        let mut word = [0xff; 4];
        space.read(at, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn all_ones_size_a_bar_and_its_flags_stay() {
        let mut space = space();
        space.write(0x10, &[0xff; 4]);
        space.write(0x18, &[0xff; 4]);
        space.write(0x1c, &[0xff; 4]);
        assert_eq!(read32(&space, 0x10), 0xffff_ffc1);
        assert_eq!(read32(&space, 0x18), 0xffff_8000);
        assert_eq!(read32(&space, 0x1c), 0);
    }

    #[test]
    fn a_bar_can_be_written_byte_by_byte() {
        let mut space = space();
        for (at, byte) in (0x18..).zip(0xc012_8000_u32.to_le_bytes()) {
            space.write(at, &[byte]);
        }
        assert_eq!(read32(&space, 0x18), 0xc012_8000);
    }

    #[test]
    fn nothing_is_decoded_before_the_command_register_says_so() {
        let mut space = space();
        space.place_bar(2, 0xc000_0000);
        space.place_bar(0, 0x1000);
        assert_eq!(space.windows(), []);
        space.write(0x04, &command::MEMORY.to_le_bytes());
        assert_eq!(
            space.windows(),
            [Window { space: Region::Memory, base: 0xc000_0000, len: 0x8000, bar: 2 }]
        );
        space.write(0x04, &command::IO.to_le_bytes());
        assert_eq!(space.windows(), [Window { space: Region::Port, base: 0x1000, len: 64, bar: 0 }]);
    }

    #[test]
    fn all_ones_written_everywhere_leave_what_is_read_only() {
        let mut space = space();
        let at = space.add_capability(9, &[1, 2, 3, 4], &[0, 0xff]);
        let before = read32(&space, 0x00);
        for offset in 0..0x1000 {
            space.write(offset, &[0xff]);
        }
        space.write(u64::MAX, &[0xff; 4]);
        assert_eq!(read32(&space, 0x00), before);
        assert_eq!(read32(&space, 0x34), u32::from(at));
        assert_eq!(
            space.command(),
            command::IO | command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE
        );
        assert_eq!(read32(&space, u64::from(at)), 0xff01_0009);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[0; 14], &[]);
        let second = space.add_capability(0x11, &[0; 10], &[]);
        assert_eq!(read32(&space, 0x34) & 0xff, u32::from(first));
        assert_eq!(read32(&space, first.into()) >> 8 & 0xff, u32::from(second));
        assert_eq!(read32(&space, second.into()) >> 8 & 0xff, 0);
        assert_eq!(read32(&space, 0x04) >> 20 & 1, 1);
    }

    #[test]
    fn absent_bars_are_inert_and_present_ones_are_not() {
        assert_eq!(space().inert(), [0x14..0x18, 0x1c..0x34]);
    }

    #[test]
    fn the_extended_space_reads_as_zero() {
        assert_eq!(read32(&space(), 0x100), 0);
        assert_eq!(read32(&space(), 0xffc), 0);
    }
}
