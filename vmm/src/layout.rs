//! The guest-physical map of the machine, its I/O ports, interrupt inputs and memory slots: each a constant, told once.
//!
//! ```text
//! 0x0000_0000   RAM, up to 3 GiB                     slot 0 (0xa0000 to 0xfffff is RAM that e820 reserves)
//! 0xc000_0000   the hole
//!                 0xc000_0000   PCI memory           32-bit BARs
//!                 0xf000_0000   ECAM                 one bus, 4 KiB a function
//!                 0xf800_0000   platform devices     virtio-mmio
//!                 0xfec0_0000   I/O APIC             in KVM
//!                 0xfee0_0000   local APICs          in KVM
//!                 0xfeff_c000   KVM's own pages      identity map, TSS
//!                 0xff00_0000   ROM                  a firmware's place, empty without one
//! 0x1_0000_0000 RAM, what did not fit below          slot 1
//! ```

use std::ops::Range;

use devices::power;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;
/// The unit of the guest's memory map.
pub const PAGE: u64 = 4 << 10;

/// What lies between low and high RAM: devices, interrupt chips, KVM's own pages.
pub const HOLE: Range<u64> = 3 * GIB..4 * GIB;

/// Where 32-bit memory BARs go: what the host bridge's `_CRS` offers.
pub const PCI_MEMORY: Range<u64> = 0xc000_0000..0xf000_0000;
/// Configuration space: bus 0 alone, 32 devices of 8 functions with a page each (PCI Express 5.0 §7.2.2).
pub const ECAM: Range<u64> = 0xf000_0000..0xf000_0000 + MIB;
/// Where platform devices (virtio-mmio) go.
pub const PLATFORM_MEMORY: Range<u64> = 0xf800_0000..0xf800_0000 + MIB;
/// The I/O APIC's registers.
pub const IO_APIC: Range<u64> = 0xfec0_0000..0xfec0_0000 + PAGE;
/// The local APICs' registers, each processor's at the same place (Intel SDM volume 3, 11.4.1).
pub const LOCAL_APIC: Range<u64> = 0xfee0_0000..0xfee0_0000 + PAGE;
/// The page table with which KVM on Intel runs real mode where the processor cannot: no guest memory, never seen.
pub const KVM_IDENTITY_MAP: Range<u64> = 0xfeff_c000..0xfeff_c000 + PAGE;
/// The task state segment that KVM on Intel needs for the same.
pub const KVM_TSS: Range<u64> = 0xfeff_d000..0xfeff_d000 + 3 * PAGE;
/// Kept free for a firmware image, which ends at 4 GiB.
pub const ROM: Range<u64> = 0xff00_0000..4 * GIB;

/// The registers that end the run: sleep control, sleep status and reset, a byte each.
pub const POWER_PORTS: Range<u64> = 0x600..0x600 + power::PORTS as u64;
/// The ACPI sleep control register (ACPI 6.5 §4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = POWER_PORTS.start as u16 + power::SLEEP_CONTROL;
/// The ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = POWER_PORTS.start as u16 + power::SLEEP_STATUS;
/// The ACPI reset register (ACPI 6.5 §4.8.3.6).
pub const RESET_PORT: u16 = POWER_PORTS.start as u16 + power::RESET;
/// Where I/O BARs go: what the host bridge's `_CRS` offers.
pub const PCI_PORTS: Range<u64> = 0x1000..0x1_0000;
/// The first port of each serial port that a PC can have (COM1 to COM4), 8 ports each.
pub const SERIAL_PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];

/// The inputs of the I/O APIC: a GSI is the number of one.
pub const IO_APIC_PINS: u32 = 24;
/// COM1's interrupt, edge triggered, active high.
pub const SERIAL_GSI: u32 = 4;
/// The interrupt of the Generic Event Device, which carries the power button.
pub const EVENT_GSI: u32 = 9;
/// Interrupts for platform devices (virtio-mmio).
pub const PLATFORM_GSIS: Range<u32> = 10..16;
/// The lines that the PCI functions' INTx pins are spread over, level triggered.
pub const PCI_GSIS: Range<u32> = 16..24;

/// The memory slot of RAM below the hole.
pub const LOW_RAM_SLOT: u32 = 0;
/// The memory slot of RAM above the hole.
pub const HIGH_RAM_SLOT: u32 = 1;
/// Kept free for a firmware image.
pub const ROM_SLOT: u32 = 2;
/// From here on one slot for each page that the guest reads without an exit (a function's configuration space).
pub const FIRST_PAGE_SLOT: u32 = 3;

/// The ranges of RAM of a guest with `size` bytes of it: what fits below the hole, and the rest from 4 GiB.
///
/// ```
/// use vmm::layout::{GIB, ram};
///
/// assert_eq!(ram(GIB), [0..GIB]);
/// assert_eq!(ram(5 * GIB), [0..3 * GIB, 4 * GIB..6 * GIB]);
/// ```
#[must_use]
pub fn ram(size: u64) -> Vec<Range<u64>> {
    let low = size.min(HOLE.start);
    let high = HOLE.end..HOLE.end.saturating_add(size - low);
    [0..low, high].into_iter().filter(|range| !range.is_empty()).collect()
}

const _: () = {
    // What is in the hole is in this order, apart, on whole pages.
    assert!(
        HOLE.start <= PCI_MEMORY.start && PCI_MEMORY.end <= ECAM.start && ECAM.end <= PLATFORM_MEMORY.start
    );
    assert!(PLATFORM_MEMORY.end <= IO_APIC.start && IO_APIC.end <= LOCAL_APIC.start);
    assert!(LOCAL_APIC.end <= KVM_IDENTITY_MAP.start && KVM_IDENTITY_MAP.end <= KVM_TSS.start);
    assert!(KVM_TSS.end <= ROM.start && ROM.end <= HOLE.end);
    assert!(PCI_MEMORY.start.is_multiple_of(PAGE) && KVM_IDENTITY_MAP.start.is_multiple_of(PAGE));
    // ECAM is the whole of one bus, aligned to its size.
    assert!(ECAM.end - ECAM.start == 32 * 8 * PAGE && ECAM.start.is_multiple_of(ECAM.end - ECAM.start));
    // Ports are apart: the serial ports all lie below the power registers, those below PCI's.
    assert!(SERIAL_PORTS[0] as u64 + 8 <= POWER_PORTS.start && POWER_PORTS.end <= PCI_PORTS.start);
    // Interrupt inputs are distinct, and exist.
    assert!(SERIAL_GSI < EVENT_GSI && EVENT_GSI < PLATFORM_GSIS.start && PLATFORM_GSIS.end <= PCI_GSIS.start);
    assert!(PCI_GSIS.end == IO_APIC_PINS);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(size: u64) -> Vec<(u64, u64)> {
        ram(size).iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn ram_leaves_the_hole_out() {
        assert_eq!(bounds(64 * MIB), [(0, 64 * MIB)]);
        assert_eq!(bounds(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(bounds(3 * GIB + 2 * MIB), [(0, 3 * GIB), (4 * GIB, 4 * GIB + 2 * MIB)]);
        assert_eq!(bounds(0), []);
    }
}
