//! The function in configuration space: identity, BARs, capabilities (VIRTIO 1.3 §4.1.2, §4.1.4; PCI 3.0 §6).

use pci::virtio::Faces;

use crate::driver::function::{BUS_MASTER, COMMAND, INTX_DISABLE, IO, Kind, MEMORY, STATUS};
use crate::driver::way::{MODERN, every_way, modern_ways};
use crate::driver::{Driver, Function, Machine, Probe};
use crate::inline;

/// Ids that only the modern interface has.
const MODERN_ID: u64 = 0x1040 + 0x2a;

#[test]
fn pci_01_the_ids_are_those_of_the_interface() {
    every_way(|way| {
        let machine = inline(way);
        let function = Function::find(&machine, 1);
        let expected = if way.faces == Faces::Modern { MODERN_ID } else { 0x1009 };
        assert_eq!(function.config(0, 4), expected << 16 | 0x1af4);
    });
}

#[test]
fn pci_02_a_modern_function_says_so() {
    let machine = inline(MODERN);
    let function = Function::find(&machine, 1);
    assert!((0x1040..=0x107f).contains(&function.config(2, 2)));
    assert!(function.config(8, 1) >= 1, "revision");
    assert_eq!(function.config(0x2c, 2), 0x1af4);
    assert!(function.config(0x2e, 2) >= 0x40, "subsystem");
}

#[test]
fn pci_03_bars_are_sized_with_and_without_decoding() {
    every_way(|way| {
        let machine = inline(way);
        let function = Function::find(&machine, 1);
        for command in [0, IO | MEMORY | BUS_MASTER] {
            function.set_command(command);
            for bar in 0..6_u32 {
                let at = 0x10 + u64::from(bar) * 4;
                let index = usize::try_from(bar).unwrap();
                let flags = u64::from(function.is_io[index]);
                let before = function.config(at, 4);
                function.set_config(at, 4, 0xffff_ffff);
                let expected = match function.sizes[index] {
                    0 => 0,
                    size => (!(size - 1) & 0xffff_ffff) | flags,
                };
                assert_eq!(function.config(at, 4), expected, "BAR {bar}");
                function.set_config(at, 4, before);
                assert_eq!(function.config(at, 4), before);
            }
        }
        assert_eq!(function.sizes[2].count_ones(), 1);
        assert_eq!(function.sizes[0] != 0, way.faces != Faces::Modern);
    });
}

#[test]
fn pci_03_the_command_register_enables_each_space_for_itself() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.set_status(1);
        let (here, other) = if way.is_modern() { (MEMORY, IO) } else { (IO, MEMORY) };
        driver.function.set_command(other);
        assert_eq!(driver.status(), 0xff, "nobody answers");
        driver.set_status(3);
        driver.function.set_command(here);
        assert_eq!(driver.status(), 1);
        driver.function.set_command(0);
        assert_eq!(driver.status(), 0xff);
    });
}

#[test]
fn pci_03_any_width_reads_the_same_and_all_ones_change_only_what_may_be_changed() {
    every_way(|way| {
        let machine = inline(way);
        let function = Function::find(&machine, 1);
        let dump = |width: usize| -> Vec<u8> {
            let words = (0..256).step_by(width);
            words.flat_map(|at| function.config(at, width).to_le_bytes()[..width].to_vec()).collect()
        };
        function.set_command(0);
        assert_eq!(dump(1), dump(2));
        assert_eq!(dump(1), dump(4));
        let before: Vec<u64> = [0, 8, 0x2c, 0x34].map(|at| function.config(at, 4)).to_vec();
        let capabilities = function.capabilities();
        (0..4096).for_each(|at| function.set_config(at, 1, 0xff));
        assert_eq!([0, 8, 0x2c, 0x34].map(|at| function.config(at, 4)).to_vec(), before);
        assert_eq!(function.capabilities(), capabilities);
        let io = if way.faces == Faces::Modern { 0 } else { IO };
        assert_eq!(function.config(COMMAND, 2), io | MEMORY | BUS_MASTER | INTX_DISABLE);
        assert_eq!(function.config(STATUS, 2) & !8, 1 << 4);
        assert_eq!(function.config(0x0e, 1), 0, "header type");
        assert_eq!(function.config(0x3d, 1), 1, "interrupt pin");
        assert_eq!(function.config(0x3c, 1), 0xff, "the interrupt line is a note of firmware's");
        (256..4096).step_by(4).for_each(|at| assert_eq!(function.config(at, 4), 0));
    });
}

#[test]
fn pci_03_absent_functions_read_all_ones() {
    let machine = inline(MODERN);
    assert_eq!(machine.config(2, 0, 4), 0xffff_ffff);
    assert_eq!(machine.config(31, 0x3c, 1), 0xff);
    // Function 1 of slot 1.
    assert_eq!(machine.config(1, 1 << 12, 2), 0xffff);
    machine.set_config(2, 4, 2, 7);
    assert_eq!(machine.config(32, 0, 4), 0xffff_ffff, "beyond the bus");
    assert_eq!(machine.config(0, 0, 2), 0x1b36, "the host bridge");
}

#[test]
fn pci_04_capabilities_are_read_only_but_for_the_window() {
    modern_ways(|way| {
        let machine = inline(way);
        let function = Function::find(&machine, 1);
        for part in function.parts() {
            let fields =
                |at: u64| (at..at + part.cap_len).map(|at| function.config(at, 1)).collect::<Vec<_>>();
            if part.kind == Kind::Window as u64 {
                continue;
            }
            let before = fields(part.at);
            (part.at..part.at + part.cap_len).for_each(|at| function.set_config(at, 1, 0xff));
            assert_eq!(fields(part.at), before);
        }
    });
}

#[test]
fn pci_05_lengths_count_the_whole_capability() {
    modern_ways(|way| {
        let machine = inline(way);
        let lens: Vec<_> = Function::find(&machine, 1).parts().iter().map(|p| (p.kind, p.cap_len)).collect();
        assert_eq!(lens, [(1, 16), (2, 20), (3, 16), (4, 16), (5, 20)]);
    });
}

#[test]
fn pci_06_there_is_one_capability_of_a_type() {
    modern_ways(|way| {
        let machine = inline(way);
        let kinds: Vec<_> = Function::find(&machine, 1).parts().iter().map(|p| p.kind).collect();
        assert!(kinds.is_sorted() && kinds.windows(2).all(|k| k[0] != k[1]), "{kinds:?}");
    });
}

#[test]
fn pci_07_structures_lie_in_their_bar_and_do_not_overlap() {
    modern_ways(|way| {
        let machine = inline(way);
        let function = Function::find(&machine, 1);
        let parts = function.parts().iter().filter(|p| p.kind != Kind::Window as u64);
        let mut ranges: Vec<_> = parts
            .map(|p| {
                assert!(p.bar <= 5);
                (p.bar, p.offset, p.offset + p.length)
            })
            .collect();
        let base = function.bars[2];
        let vectors = function.vectors();
        ranges.push((2, function.table() - base, function.table() - base + 16 * vectors));
        ranges.push((2, function.pending_bits() - base, function.pending_bits() - base + 8));
        ranges.sort_unstable();
        for (bar, _, end) in &ranges {
            assert!(*end <= function.sizes[usize::try_from(*bar).unwrap()]);
        }
        assert!(ranges.windows(2).all(|r| r[0].2 <= r[1].1), "{ranges:x?}");
    });
}

#[test]
fn pci_08_there_is_a_common_configuration() {
    modern_ways(|way| {
        let machine = inline(way);
        let common = Function::find(&machine, 1).part(Kind::Common);
        assert!(common.offset.is_multiple_of(4));
        assert!(common.length >= 0x3c, "as long as RING_RESET needs it");
    });
}

#[test]
fn pci_09_there_are_doorbells_and_an_interrupt_status() {
    modern_ways(|way| {
        let machine = inline(way);
        let function = Function::find(&machine, 1);
        assert!(function.part(Kind::Notify).length > 0);
        assert!(function.part(Kind::Isr).length >= 1);
    });
}

#[test]
fn pci_10_there_is_a_device_configuration_if_the_type_has_one() {
    modern_ways(|way| {
        let machine = inline(way);
        let device = Function::find(&machine, 1).part(Kind::Device);
        assert!(device.offset.is_multiple_of(4));
        assert_eq!(device.length, 16);
        let entropy = devices::entropy::Entropy::new(std::fs::File::open("/dev/zero").unwrap());
        let machine = Machine::with(entropy, way);
        assert_eq!(Function::find(&machine, 1).find_part(Kind::Device), None);
    });
}

#[test]
fn pci_11_there_is_a_window() {
    modern_ways(|way| {
        let machine = inline(way);
        assert_eq!(Function::find(&machine, 1).part(Kind::Window).cap_len, 20);
    });
}

#[test]
fn pci_12_natural_widths_work_and_others_do_no_harm() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let (base, len, is_port) = match way.is_modern() {
            true => (driver.function.bars[2], driver.function.sizes[2], false),
            false => (driver.function.bars[0], driver.function.sizes[0], true),
        };
        for width in [1, 2, 3, 4, 8] {
            // Into the next page, and across the BAR's end.
            for offset in (0..len.min(0x200)).chain(0xffa..0x1008).chain(len - 9..len) {
                for value in [0, u64::MAX, 0x0123_4567_89ab_cdef] {
                    if offset >= len {
                        continue;
                    }
                    if is_port {
                        machine.port_out(base + offset, width, value);
                        machine.port_in(base + offset, width);
                    } else {
                        machine.store(base + offset, width, value);
                        machine.load(base + offset, width);
                    }
                }
            }
        }
        driver.function.set_msix(false, false);
        machine.host.take_messages();
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        crate::echo(&driver, &rings[0], b"unharmed");
    });
}

#[test]
fn pci_65_there_is_no_vendor_capability_of_our_own() {
    every_way(|way| {
        let machine = inline(way);
        assert!(Function::find(&machine, 1).parts().iter().all(|p| p.kind != 9));
    });
}

#[test]
fn pci_66_there_is_no_shared_memory() {
    every_way(|way| {
        let machine = inline(way);
        assert!(Function::find(&machine, 1).parts().iter().all(|p| p.kind != 8));
    });
}

#[test]
fn pci_78_a_modern_function_has_nothing_for_a_legacy_driver() {
    let machine = Machine::with(Probe::inline(&[8]), MODERN);
    let function = Function::find(&machine, 1);
    assert_eq!(function.bars[0], 0);
    assert!(function.config(2, 2) >= 0x1040, "no legacy driver asks for its id");
}
