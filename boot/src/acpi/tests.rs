//! What the tables must say, read back as a guest reads them: from the RSDP on.

use super::*;

/// A machine as mote makes them: one bus, a serial port, a power button.
pub(crate) fn machine() -> Machine {
    let pins = (0..32).flat_map(|slot| (0..4).map(move |pin| (slot, pin)));
    Machine {
        apic_ids: vec![0, 1, 2, 3],
        local_apic: 0xfee0_0000,
        io_apic: IoApic { id: 0, address: 0xfec0_0000, gsi_base: 0 },
        pci: PciHost {
            ecam: Some(0xe000_0000),
            last_bus: 0,
            memory: 0xc000_0000..0xe000_0000,
            memory_above_4g: Some(0x40_0000_0000..0x80_0000_0000),
            io: 0x1000..0x1_0000,
            routes: pins
                .map(|(slot, pin)| Route { slot, pin, gsi: 16 + u32::from(slot + pin) % 8 })
                .collect(),
        },
        power: Power {
            sleep_control: 0x600,
            sleep_type_off: 5,
            sleep_status: 0x601,
            reset: 0x602,
            reset_value: 1,
        },
        power_button: Some(5),
        legacy: Legacy { has_isa_devices: true, ..Legacy::default() },
        parts: vec![part()],
        tables: Vec::new(),
    }
}

/// A device of the platform: `Name (PART, 7)`.
fn part() -> Vec<u8> {
    b"\x08PART\x0a\x07".to_vec()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn dword(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn qword(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn at(tables: &Tables, address: u64) -> &[u8] {
    &tables.bytes()[usize::try_from(address - tables.address()).unwrap()..]
}

/// A table with a standard header, which must be whole.
fn table(tables: &Tables, address: u64) -> &[u8] {
    let bytes = at(tables, address);
    let bytes = &bytes[..dword(bytes, 4) as usize];
    assert_eq!(sum(bytes), 0, "checksum of {:?}", std::str::from_utf8(&bytes[..4]));
    assert_eq!(&bytes[10..24], b"MOTE  MOTE-VMM");
    bytes
}

/// The table of `signature`, found by way of RSDP, XSDT and, for the DSDT, FADT.
fn find<'a>(tables: &'a Tables, signature: &[u8; 4]) -> &'a [u8] {
    if signature == b"DSDT" {
        return table(tables, qword(find(tables, b"FACP"), 140));
    }
    let xsdt = table(tables, qword(at(tables, tables.rsdp()), 24));
    let mut entries = xsdt[36..].chunks(8).map(|entry| table(tables, qword(entry, 0)));
    entries.find(|table| table.starts_with(signature)).unwrap()
}

fn position(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn reason(change: impl FnOnce(&mut Machine)) -> &'static str {
    let mut machine = machine();
    change(&mut machine);
    match tables(&machine) {
        Err(Error::Machine { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_rsdp_is_of_revision_2_with_both_checksums_right() {
    let tables = tables(&machine()).unwrap();
    let rsdp = &at(&tables, tables.rsdp())[..36];
    assert_eq!(tables.rsdp() % 16, 0);
    assert!(ACPI.contains(&tables.rsdp()));
    assert_eq!((&rsdp[..8], rsdp[15], dword(rsdp, 16), dword(rsdp, 20)), (b"RSD PTR ".as_slice(), 2, 0, 36));
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
}

#[test]
fn the_xsdt_leads_to_three_tables_and_the_fadt_to_the_dsdt() {
    let tables = tables(&machine()).unwrap();
    let xsdt = table(&tables, qword(at(&tables, tables.rsdp()), 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let signatures: Vec<&[u8]> =
        xsdt[36..].chunks(8).map(|entry| &table(&tables, qword(entry, 0))[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
    assert_eq!(&find(&tables, b"DSDT")[..4], b"DSDT");
}

#[test]
fn the_fadt_describes_hardware_reduced_acpi_without_fixed_buttons() {
    let tables = tables(&machine()).unwrap();
    let fadt = find(&tables, b"FACP");
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    assert_eq!(dword(fadt, 112), 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4 | 1);
    assert!(fadt[36..76].iter().all(|byte| *byte == 0), "no FACS, 32-bit DSDT, SCI or fixed registers");
    assert!(fadt[148..244].iter().all(|byte| *byte == 0), "no fixed registers of 64 bits");
}

#[test]
fn power_off_and_reset_are_byte_ports() {
    let tables = tables(&machine()).unwrap();
    let fadt = find(&tables, b"FACP");
    let port = |low: u8| [1, 8, 0, 1, low, 6, 0, 0, 0, 0, 0, 0];
    assert_eq!(fadt[116..128], port(2));
    assert_eq!(fadt[128], 1);
    assert_eq!((&fadt[244..256], &fadt[256..268]), (port(0).as_slice(), port(1).as_slice()));
}

#[test]
fn what_is_not_there_of_the_old_pc_is_declared_absent() {
    let arch = |legacy| {
        let tables = tables(&Machine { legacy, ..machine() }).unwrap();
        u16::from_le_bytes(find(&tables, b"FACP")[109..111].try_into().unwrap())
    };
    assert_eq!(arch(Legacy::default()), 0b11_0100);
    let all = Legacy { has_isa_devices: true, has_8042: true, has_vga: true, has_cmos_clock: true };
    assert_eq!(arch(all), 0b01_0011);
}

#[test]
fn the_madt_names_every_processor_and_no_8259() {
    let tables = tables(&machine()).unwrap();
    let madt = find(&tables, b"APIC");
    assert_eq!((dword(madt, 36), dword(madt, 40)), (0xfee0_0000, 0));
    for id in 0..4u8 {
        assert_eq!(madt[44 + usize::from(id) * 8..][..8], [0, 8, id, id, 1, 0, 0, 0]);
    }
    assert_eq!(madt[76..88], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(madt[88..], [4, 6, 0xff, 0, 0, 1]);
}

#[test]
fn processors_from_id_255_on_have_wide_entries() {
    let tables = tables(&Machine { apic_ids: vec![254, 255, 0x1_0203], ..machine() }).unwrap();
    let madt = find(&tables, b"APIC");
    assert_eq!(madt[44..52], [0, 8, 254, 254, 1, 0, 0, 0]);
    assert_eq!(madt[52..68], [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]);
    assert_eq!(madt[68..84], [9, 16, 0, 0, 3, 2, 1, 0, 1, 0, 0, 0, 3, 2, 1, 0]);
    assert_eq!(madt[84 + 12 + 6..], [10, 12, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0]);
}

#[test]
fn ecam_is_in_mcfg_and_reserved_exactly() {
    let mut machine = machine();
    let tables_of_one = tables(&machine).unwrap();
    let mcfg = find(&tables_of_one, b"MCFG");
    assert_eq!(mcfg[44..], [0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let fixed = [0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0x10, 0];
    assert!(position(find(&tables_of_one, b"DSDT"), &fixed).is_some());

    machine.pci.last_bus = 3;
    let tables_of_four = tables(&machine).unwrap();
    assert_eq!(find(&tables_of_four, b"MCFG")[44 + 11], 3);
    let fixed = [0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0x40, 0];
    assert!(position(find(&tables_of_four, b"DSDT"), &fixed).is_some());
}

#[test]
fn s5_has_the_machines_sleep_type() {
    let tables = tables(&machine()).unwrap();
    let dsdt = find(&tables, b"DSDT");
    assert_eq!(dsdt[36..49], *b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00");
}

#[test]
fn the_host_bridge_has_one_bus_and_its_windows() {
    let tables = tables(&machine()).unwrap();
    let dsdt = find(&tables, b"DSDT");
    let bus = [0x88, 13, 0, 2, 0xc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let io = [0x88, 13, 0, 1, 0xc, 3, 0, 0, 0, 0x10, 0xff, 0xff, 0, 0, 0, 0xf0];
    let memory = [
        0x87, 23, 0, 0, 0xc, 1, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0xff, 0xdf, 0, 0, 0, 0, 0, 0, 0, 0x20,
    ];
    let windows = [bus.as_slice(), &io, &memory, &[0x8a, 43, 0, 0, 0xc, 1]].concat();
    assert!(position(dsdt, &windows).is_some());
    assert!(position(dsdt, b"_HID\x0c\x41\xd0\x0a\x08").is_some());
    assert!(position(dsdt, b"_CID\x0c\x41\xd0\x0a\x03").is_some());
}

#[test]
fn every_pin_is_routed_straight_to_its_gsi() {
    let tables = tables(&machine()).unwrap();
    let dsdt = find(&tables, b"DSDT");
    let prt = &dsdt[position(dsdt, b"_PRT").unwrap() + 4..];
    assert_eq!((prt[0], prt[3]), (0x12, 128));
    assert!(position(dsdt, &[0x12, 0x09, 4, 0x0b, 0xff, 0xff, 0, 0, 0x0a, 16]).is_some(), "slot 0, INTA");
    assert!(position(dsdt, &[4, 0x0c, 0xff, 0xff, 5, 0, 0x0a, 2, 0, 0x0a, 23]).is_some(), "slot 5, INTC");
    assert!(position(dsdt, &[4, 0x0c, 0xff, 0xff, 31, 0, 0x0a, 3, 0, 0x0a, 18]).is_some(), "slot 31, INTD");
}

#[test]
fn the_power_button_is_announced_by_an_edge_on_its_own_gsi() {
    let with = tables(&machine()).unwrap();
    let dsdt = find(&with, b"DSDT");
    let interrupt = [0x89, 6, 0, 0b0011, 1, 5, 0, 0, 0];
    assert!(position(dsdt, &interrupt).is_some());
    assert!(position(dsdt, b"ACPI0013\0").is_some());
    assert!(position(dsdt, b"_EVT\x09\x86PWRB\x0a\x80").is_some());

    let without = tables(&Machine { power_button: None, ..machine() }).unwrap();
    assert!(position(find(&without, b"DSDT"), b"PWRB").is_none());
}

#[test]
fn a_machine_without_ecam_tells_of_none() {
    let mut machine = machine();
    machine.pci.ecam = None;
    let tables = tables(&machine).unwrap();
    assert!(position(tables.bytes(), b"MCFG").is_none());
    assert!(position(tables.bytes(), b"ECAM").is_none());
}

#[test]
fn a_part_stands_in_the_namespace_as_it_is() {
    let tables = tables(&machine()).unwrap();
    assert!(position(find(&tables, b"DSDT"), &part()).is_some());
}

#[test]
fn a_further_table_is_listed_as_it_is() {
    let mut table = b"SSDT\x24\0\0\0".to_vec();
    table.resize(0x24, 0);
    table[10..24].copy_from_slice(b"MOTE  MOTE-VMM");
    table[9] = 0_u8.wrapping_sub(sum(&table));
    let tables = tables(&Machine { tables: vec![table.clone()], ..machine() }).unwrap();
    assert_eq!(find(&tables, b"SSDT"), table);
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let error = tables(&Machine { apic_ids: (0..10_000).collect(), ..machine() }).unwrap_err();
    assert!(matches!(error, Error::TablesTooLarge { room: 0x1_fff0, .. }), "{error}");
    assert!(tables(&Machine { apic_ids: (0..4096).collect(), ..machine() }).is_ok());
}

#[test]
fn a_machine_that_contradicts_itself_is_refused() {
    assert_eq!(reason(|machine| machine.apic_ids.clear()), "there is no processor");
    assert_eq!(
        reason(|machine| machine.apic_ids.push(u32::MAX)),
        "no processor can have the APIC id that means all"
    );
    assert_eq!(
        reason(|machine| {
            machine.pci.ecam = Some(0xfff0_0000);
            machine.pci.last_bus = 1;
        }),
        "ECAM ends above 4 GiB"
    );
    let memory = "the PCI memory window is empty, or not below 4 GiB";
    assert_eq!(reason(|machine| machine.pci.memory = 5..5), memory);
    assert_eq!(reason(|machine| machine.pci.memory = 0xf000_0000..0x1_0000_1000), memory);
    assert_eq!(reason(|machine| machine.pci.memory.end += 1), "the PCI memory window overlaps ECAM");
    let upper = "the upper PCI memory window is empty, or not above 4 GiB";
    assert_eq!(reason(|machine| machine.pci.memory_above_4g = Some(0..1 << 33)), upper);
    assert_eq!(reason(|machine| machine.pci.memory_above_4g = Some(1 << 33..1 << 33)), upper);
    let io = "the PCI I/O window is empty, or not among the 64 Ki ports";
    assert_eq!(reason(|machine| machine.pci.io = 0..0x1_0000), io);
    assert_eq!(reason(|machine| machine.pci.io.end += 1), io);
    let pins = "a PCI bus has 32 slots with 4 pins each";
    assert_eq!(reason(|machine| machine.pci.routes[0].slot = 32), pins);
    assert_eq!(reason(|machine| machine.pci.routes[0].pin = 4), pins);
    assert_eq!(reason(|machine| machine.pci.routes.push(Route { slot: 0, pin: 0, gsi: 16 })), pins);
}
