//! The namespace: what the guest cannot find out by looking.
//!
//! ```text
//! \_S5                     how to power off
//! \_SB.PCI0   PNP0A08      the PCI host bridge: buses, windows, interrupt routing
//! \_SB.ECAM   PNP0C02      the configuration window, reserved; without this Linux does not use it
//! \_SB.PWRB   PNP0C0C      the power button
//! \_SB.GED_   ACPI0013     tells that it was pressed
//! \_SB....                 the machine's further parts
//! ```

use std::ops::Range;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Interrupt, Memory32Fixed, Method, Name, Notify,
    Package, PackageBuilder, Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{Machine, OEM_ID, OEM_REVISION, OEM_TABLE_ID, PciHost, bytes, ecam_size};

/// From this revision on, the interpreter's integers have 64 bits (ACPI 6.5, 5.2.11.1).
const DSDT_REVISION: u8 = 2;
/// Size of a table header, in bytes.
const SDT_HEADER: u32 = 36;
/// The notification of a button that was pressed (ACPI 6.5, 5.6.6).
const BUTTON_PRESSED: u8 = 0x80;

/// AML that is there already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

/// The DSDT (ACPI 6.5, 5.2.11.1).
pub(super) fn dsdt(machine: &Machine) -> Vec<u8> {
    let mut devices = host_bridge(&machine.pci);
    if let Some(start) = machine.pci.ecam {
        devices.extend(ecam(start, machine.pci.last_bus));
    }
    if let Some(gsi) = machine.power_button {
        devices.extend(power_button(gsi));
    }
    devices.extend(machine.parts.iter().flatten());

    let sleep = Package::new(vec![&machine.power.sleep_type_off, &0u8, &0u8, &0u8]);
    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &sleep)));
    dsdt.append_slice(&bytes(&Scope::new(Path::new("_SB_"), vec![&Raw(&devices)])));
    dsdt.as_slice().to_vec()
}

/// The host bridge (PCI Firmware 3.3, chapter 4). Without `_OSC` Linux leaves hot plug, AER and ASPM alone.
fn host_bridge(pci: &PciHost) -> Vec<u8> {
    device(
        "PCI0",
        &[
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &0u8),
            &name("_SEG", &0u8),
            &name("_BBN", &0u8),
            &name("_CRS", &Raw(&windows(pci))),
            &name("_PRT", &routes(pci)),
        ],
    )
}

/// What the bridge passes on to its bus (ACPI 6.5, 6.2.2): bus numbers, I/O ports, memory.
fn windows(pci: &PciHost) -> Vec<u8> {
    const READ_WRITE: bool = true;
    let (first, last) = ends(&pci.io);
    let io = AddressSpace::<u16>::new_io(first, last, None);
    let (first, last) = ends(&pci.memory);
    let memory =
        AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, READ_WRITE, first, last, None);
    let above_4g = pci.memory_above_4g.as_ref().map(|window| {
        let (first, last) = ends(window);
        AddressSpace::<u64>::new_memory(AddressSpaceCacheable::NotCacheable, READ_WRITE, first, last, None)
    });
    let buses = AddressSpace::<u16>::new_bus_number(0, pci.last_bus.into());
    let mut windows: Vec<&dyn Aml> = vec![&buses, &io, &memory];
    windows.extend(above_4g.iter().map(|window| window as &dyn Aml));
    bytes(&ResourceTemplate::new(windows))
}

/// First and last address of a window, in the width of its descriptor. They fit: the description has been
/// checked.
fn ends<T: TryFrom<u64> + Default>(window: &Range<u64>) -> (T, T) {
    let narrow = |address| T::try_from(address).unwrap_or_default();
    (narrow(window.start), narrow(window.end.saturating_sub(1)))
}

/// `_PRT` (ACPI 6.5, 6.2.13): address of the slot with any function, pin, no link device, GSI.
fn routes(pci: &PciHost) -> PackageBuilder {
    let mut rows = PackageBuilder::new();
    for route in &pci.routes {
        let slot = u32::from(route.slot) << 16 | 0xffff;
        rows.add_element(&Package::new(vec![&slot, &route.pin, &0u8, &route.gsi]));
    }
    rows
}

/// The configuration window, reserved exactly (PCI Firmware 3.3, 4.1.2, asks for a motherboard resource).
fn ecam(start: u32, last_bus: u8) -> Vec<u8> {
    let window = Memory32Fixed::new(true, start, ecam_size(last_bus));
    device(
        "ECAM",
        &[
            &name("_HID", &EISAName::new("PNP0C02")),
            &name("_UID", &0u8),
            &name("_CRS", &ResourceTemplate::new(vec![&window])),
        ],
    )
}

/// The power button (ACPI 6.5, 4.8.2.2.1.2) and the generic event device (ACPI 6.5, 5.6.9) that tells of it.
fn power_button(gsi: u32) -> Vec<u8> {
    const BUTTON: &str = "PWRB";
    let button = device(BUTTON, &[&name("_HID", &EISAName::new("PNP0C0C")), &name("_UID", &0u8)]);
    let button_path = Path::new(BUTTON);
    let pressed = Notify::new(&button_path, &BUTTON_PRESSED);
    let event = device(
        "GED_",
        &[
            &name("_HID", &"ACPI0013"),
            &name("_UID", &0u8),
            &name("_CRS", &ResourceTemplate::new(vec![&edge(gsi)])),
            &Method::new(Path::new("_EVT"), 1, true, vec![&pressed]),
        ],
    );
    [button, event].concat()
}

fn device(path: &str, children: &[&dyn Aml]) -> Vec<u8> {
    bytes(&Device::new(Path::new(path), children.to_vec()))
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

/// An interrupt that its device has for itself: edge, active high.
fn edge(gsi: u32) -> Interrupt {
    let (is_consumer, is_edge, is_active_low, is_shared) = (true, true, false, false);
    Interrupt::new(is_consumer, is_edge, is_active_low, is_shared, gsi)
}
