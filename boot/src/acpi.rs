//! The machine as the guest's kernel is told about it: hardware-reduced ACPI (ACPI 6.5, 4.1) from a plain
//! description.
//!
//! There is no power-management timer, no system control interrupt and no fixed button. A guest powers off
//! through the sleep control register, resets through the reset register, and hears of the power button from
//! a generic event device.
//!
//! [`tables`] makes RSDP, XSDT, FADT, MADT, MCFG and DSDT. Those of fixed layout are in `acpi/fixed.rs`, the
//! namespace in `acpi/dsdt.rs`.

mod dsdt;
mod fixed;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use crate::layout::ACPI;
use crate::{Error, Result};

/// The OEM that signs the tables.
const OEM_ID: [u8; 6] = *b"MOTE  ";
/// The OEM's name for this set of tables.
const OEM_TABLE_ID: [u8; 8] = *b"MOTE-VMM";
/// The OEM's revision of them.
const OEM_REVISION: u32 = 1;
/// Where a table may start. The RSDP must lie on such a boundary (ACPI 6.5, 5.2.5.1).
const ALIGNMENT: usize = 16;

/// Everything that the tables tell. Addresses are guest physical.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The local APIC id of each processor, the boot processor's first.
    pub apic_ids: Vec<u32>,
    /// Where the local APICs' registers are.
    pub local_apic: u32,
    /// The I/O APIC.
    pub io_apic: IoApic,
    /// The PCI host bridge.
    pub pci: PciHost,
    /// Where the guest powers off and resets.
    pub power: Power,
    /// The GSI on which the power button is announced, if there is one. Edge, active high: raise it and lower
    /// it again. The guest's only reaction is to tell its button driver, so there is nothing for it to clear.
    pub power_button: Option<u32>,
    /// Which parts of the old PC there are.
    pub legacy: Legacy,
    /// AML of further devices, each whole and in the scope `\_SB`.
    pub parts: Vec<Vec<u8>>,
    /// Further tables, each whole, with a header and a checksum that are right.
    pub tables: Vec<Vec<u8>>,
}

/// An I/O APIC (ACPI 6.5, 5.2.12.3).
#[derive(Clone, Copy, Debug)]
pub struct IoApic {
    /// Its id. KVM's is 0 at reset.
    pub id: u8,
    /// Where its registers are.
    pub address: u32,
    /// The GSI of its pin 0.
    pub gsi_base: u32,
}

/// A PCI host bridge of segment 0 whose configuration space is ECAM (PCI Firmware 3.3, 4.1).
///
/// A window is what functions' BARs may occupy; all of them lie outside RAM and outside ECAM.
#[derive(Clone, Debug)]
pub struct PciHost {
    /// Where the configuration space of bus 0 is, if it is in memory; each bus has 1 MiB. Reserve the same range in e820 too:
    /// some kernels want to see both.
    pub ecam: Option<u32>,
    /// The last bus, 0 if there is but one. No more than there are, or the guest looks for functions on each.
    pub last_bus: u8,
    /// Memory below 4 GiB.
    pub memory: Range<u64>,
    /// Memory above 4 GiB.
    pub memory_above_4g: Option<Range<u64>>,
    /// I/O ports.
    pub io: Range<u64>,
    /// Where the interrupt pins of the functions on bus 0 lead (`_PRT`).
    pub routes: Vec<Route>,
}

/// One row of `_PRT` (ACPI 6.5, 6.2.13): a pin of a slot is wired to a GSI, level triggered and active low as
/// PCI has it.
///
/// KVM's I/O APIC ignores the polarity: `KVM_IRQ_LINE` with level 1 asserts.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The device number, 0 to 31.
    pub slot: u8,
    /// The pin: 0 is INTA.
    pub pin: u8,
    /// Where it leads.
    pub gsi: u32,
}

/// The I/O ports behind power-off and reset, a byte each.
#[derive(Clone, Copy, Debug)]
pub struct Power {
    /// The sleep control register (ACPI 6.5, 4.8.3.7).
    pub sleep_control: u16,
    /// The value of its SLP_TYP field that means S5, soft off; `\_S5` gives it to the guest (ACPI 6.5, 7.4.2.6).
    pub sleep_type_off: u8,
    /// The sleep status register (ACPI 6.5, 4.8.3.7).
    pub sleep_status: u16,
    /// The reset register (ACPI 6.5, 4.8.3.6).
    pub reset: u16,
    /// What a guest that resets writes to it.
    pub reset_value: u8,
}

/// Which parts of the old PC are present (ACPI 6.5, 5.2.9.3, IAPC_BOOT_ARCH). Nothing by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Legacy {
    /// Devices on the ISA bus that a user can see, such as a serial port.
    pub has_isa_devices: bool,
    /// A keyboard controller at ports 0x60 and 0x64.
    pub has_8042: bool,
    /// A VGA that can be probed for.
    pub has_vga: bool,
    /// The CMOS clock at ports 0x70 and 0x71.
    pub has_cmos_clock: bool,
}

/// The tables, linked to each other by their addresses. [`crate::Plan::load`] puts them where they belong.
#[derive(Clone, Debug)]
pub struct Tables {
    bytes: Vec<u8>,
    rsdp: u64,
}

impl Tables {
    /// Where the bytes go.
    #[must_use]
    pub fn address(&self) -> u64 {
        ACPI.start
    }

    /// The bytes of all tables.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The address of the RSDP.
    #[must_use]
    pub fn rsdp(&self) -> u64 {
        self.rsdp
    }

    /// Appends a table and returns its address.
    fn place(&mut self, table: &[u8]) -> u64 {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(table);
        ACPI.start.saturating_add(u64::try_from(offset).unwrap_or(u64::MAX))
    }
}

/// Describes `machine` in ACPI's tables.
///
/// # Errors
///
/// [`Error::Machine`] if the description contradicts itself, [`Error::TablesTooLarge`] if the tables do not
/// fit into [`crate::layout::ACPI`].
pub fn tables(machine: &Machine) -> Result<Tables> {
    check(machine)?;
    let mut tables = Tables { bytes: Vec::new(), rsdp: 0 };
    let dsdt = tables.place(&dsdt::dsdt(machine));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mcfg = machine.pci.ecam.map(|ecam| fixed::mcfg(ecam, machine.pci.last_bus));
    for table in [fixed::fadt(machine, dsdt), fixed::madt(machine)].into_iter().chain(mcfg) {
        xsdt.add_entry(tables.place(&table));
    }
    for table in &machine.tables {
        xsdt.add_entry(tables.place(table));
    }
    let xsdt = tables.place(&bytes(&xsdt));
    tables.rsdp = tables.place(&bytes(&Rsdp::new(OEM_ID, xsdt)));

    let room =
        usize::try_from(crate::layout::RESET_VECTOR.start.saturating_sub(ACPI.start)).unwrap_or(usize::MAX);
    let size = tables.bytes.len();
    if size > room { Err(Error::TablesTooLarge { size, room }) } else { Ok(tables) }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Sees to it that the encoders get only what they can encode.
fn check(machine: &Machine) -> Result<()> {
    const FOUR_GIB: u64 = 1 << 32;
    let PciHost { ecam, last_bus, memory, memory_above_4g, io, routes } = &machine.pci;
    let ecam =
        ecam.map(|start| u64::from(start)..u64::from(start).saturating_add(ecam_size(*last_bus).into()));
    let ecam = ecam.unwrap_or(0..0);
    let meets_ecam = |window: &Range<u64>| window.start < ecam.end && ecam.start < window.end;
    let is_window =
        |window: &Range<u64>, end: u64| window.start > 0 && !window.is_empty() && window.end <= end;
    let is_high = |window: &Range<u64>| window.start >= FOUR_GIB && !window.is_empty();
    let is_pin = |route: &Route| route.slot < 32 && route.pin < 4;
    let rules = [
        (!machine.apic_ids.is_empty(), "there is no processor"),
        (!machine.apic_ids.contains(&u32::MAX), "no processor can have the APIC id that means all"),
        (ecam.end <= FOUR_GIB, "ECAM ends above 4 GiB"),
        (is_window(memory, FOUR_GIB), "the PCI memory window is empty, or not below 4 GiB"),
        (!meets_ecam(memory), "the PCI memory window overlaps ECAM"),
        (
            memory_above_4g.as_ref().is_none_or(is_high),
            "the upper PCI memory window is empty, or not above 4 GiB",
        ),
        (is_window(io, 1 << 16), "the PCI I/O window is empty, or not among the 64 Ki ports"),
        (routes.len() <= 32 * 4 && routes.iter().all(is_pin), "a PCI bus has 32 slots with 4 pins each"),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        Some((_, reason)) => Err(Error::Machine { reason }),
        None => Ok(()),
    }
}

/// What ECAM occupies, in bytes (PCI Express Base 6.0, 7.2.2): 1 MiB for each bus up to `last_bus`.
fn ecam_size(last_bus: u8) -> u32 {
    u32::from(last_bus).saturating_add(1) << 20
}

#[cfg(test)]
pub(crate) mod tests;
