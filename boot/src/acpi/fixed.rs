//! The tables whose layout is fixed: FADT, MADT, MCFG.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

use super::{Legacy, Machine, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};

/// IAPC_BOOT_ARCH (ACPI 6.5, table 5.11).
mod boot_arch {
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    pub(super) const HAS_8042: u16 = 1 << 1;
    pub(super) const NO_VGA: u16 = 1 << 2;
    pub(super) const NO_ASPM: u16 = 1 << 4;
    pub(super) const NO_CMOS_CLOCK: u16 = 1 << 5;
}

/// The revision of the MADT that came with ACPI 6.5.
const MADT_REVISION: u8 = 6;
/// Size of a table header and of what the MADT has between it and its entries.
const MADT_HEADER: u32 = 44;
/// Processor ids from here on need an entry with 32 bits (ACPI 6.5, 5.2.12.12).
const FIRST_X2APIC_ID: u32 = 255;

/// The FADT (ACPI 6.5, 5.2.9) of a hardware-reduced machine, with the DSDT at `dsdt`.
pub(super) fn fadt(machine: &Machine, dsdt: u64) -> Vec<u8> {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    // The two button flags say that there is no such button in fixed hardware.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = iapc_boot_arch(machine.legacy).into();
    fadt.reset_reg = port(machine.power.reset);
    fadt.reset_value = machine.power.reset_value;
    fadt.sleep_control_reg = port(machine.power.sleep_control);
    fadt.sleep_status_reg = port(machine.power.sleep_status);
    bytes(&fadt.finalize())
}

fn iapc_boot_arch(legacy: Legacy) -> u16 {
    let Legacy { has_isa_devices, has_8042, has_vga, has_cmos_clock } = legacy;
    let flags = [
        (has_isa_devices, boot_arch::LEGACY_DEVICES),
        (has_8042, boot_arch::HAS_8042),
        (!has_vga, boot_arch::NO_VGA),
        (true, boot_arch::NO_ASPM),
        (!has_cmos_clock, boot_arch::NO_CMOS_CLOCK),
    ];
    flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag)
}

/// The MADT (ACPI 6.5, 5.2.12): no 8259s, every processor enabled, its ACPI id its APIC id.
pub(super) fn madt(machine: &Machine) -> Vec<u8> {
    let mut body = Vec::new();
    for id in &machine.apic_ids {
        match u8::try_from(*id) {
            Ok(narrow) if *id < FIRST_X2APIC_ID => {
                ProcessorLocalApic::new(narrow, narrow, EnabledStatus::Enabled).to_aml_bytes(&mut body);
            }
            _ => body.extend(x2apic(*id)),
        }
    }
    let io_apic = machine.io_apic;
    IoApic::new(io_apic.id, io_apic.address, io_apic.gsi_base).to_aml_bytes(&mut body);
    body.extend(local_apic_nmi());
    if machine.apic_ids.iter().any(|id| *id >= FIRST_X2APIC_ID) {
        body.extend(x2apic_nmi());
    }

    let mut madt = Sdt::new(*b"APIC", MADT_HEADER, MADT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, machine.local_apic);
    madt.append_slice(&body);
    madt.as_slice().to_vec()
}

/// A processor by its x2APIC id (ACPI 6.5, 5.2.12.12): reserved, id, flags (enabled), ACPI id.
fn x2apic(id: u32) -> [u8; 16] {
    let [a, b, c, d] = id.to_le_bytes();
    [9, 16, 0, 0, a, b, c, d, 1, 0, 0, 0, a, b, c, d]
}

/// All processors have their NMI at LINT1 (ACPI 6.5, 5.2.12.7): ACPI id, flags (as the bus has it), pin.
fn local_apic_nmi() -> [u8; 6] {
    [4, 6, 0xff, 0, 0, 1]
}

/// As [`local_apic_nmi`], for those with wide ids (ACPI 6.5, 5.2.12.13): flags, ACPI id, pin, reserved.
fn x2apic_nmi() -> [u8; 12] {
    [10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]
}

/// The MCFG (PCI Firmware 3.3, 4.1.2).
pub(super) fn mcfg(ecam: u32, last_bus: u8) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ecam.into(), 0, 0, last_bus);
    bytes(&mcfg)
}
