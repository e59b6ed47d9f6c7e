//! MSI-X: vectors, mapping, masking, pending bits (VIRTIO 1.3 §4.1.5.1.2; PCI 3.0 §6.8.2).

use devices::virtio::Doorbell;

use crate::driver::way::{MODERN, Wire, ways_by};
use crate::driver::{Driver, Machine, NO_VECTOR, Probe, Reg, Way};
use crate::{DOORBELLS, echo, probe, request};

fn msix_ways(test: impl Fn(Way)) {
    ways_by(Wire::Msix, test);
}

/// The vectors whose messages came.
fn fired(driver: &Driver<'_>) -> Vec<u64> {
    driver.settle();
    let messages = driver.machine.host.take_messages();
    messages.into_iter().map(|(_, data)| u64::from(data) - 0x40).collect()
}

#[test]
fn pci_70_there_is_a_vector_for_the_configuration_and_for_each_queue() {
    msix_ways(|way| {
        for queues in [1, 2, 40_usize] {
            let machine = Machine::with(Probe::inline(&vec![8; queues]), way);
            let driver = Driver::find(&machine, 1, way);
            assert_eq!(driver.function.vectors(), queues as u64 + 1);
        }
    });
}

#[test]
fn pci_71_any_event_maps_to_any_vector_and_to_none() {
    msix_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let mut value = 0;
        for config in [0, 1, 2, NO_VECTOR] {
            for queue in [0, 1, 2, NO_VECTOR] {
                driver.set(Reg::ConfigVector, config);
                driver.set(Reg::QueueSelect, 0);
                driver.set(Reg::QueueVector, queue);
                request(&driver, &rings[0]);
                assert_eq!(fired(&driver), Vec::from_iter((queue != NO_VECTOR).then_some(queue)));
                value += 1;
                control.change_config(value);
                assert_eq!(fired(&driver), Vec::from_iter((config != NO_VECTOR).then_some(config)));
            }
        }
    });
}

#[test]
fn pci_72_vector_registers_read_back_the_mapping() {
    msix_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        for vector in [0, 1, 2, NO_VECTOR] {
            driver.set(Reg::ConfigVector, vector);
            assert_eq!(driver.get(Reg::ConfigVector), vector);
            for queue in [0, 1] {
                driver.set(Reg::QueueSelect, queue);
                driver.set(Reg::QueueVector, vector);
                assert_eq!(driver.get(Reg::QueueVector), vector);
            }
        }
    });
}

#[test]
fn pci_73_a_reset_unmaps_everything() {
    msix_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        driver.reset();
        assert_eq!(driver.get(Reg::ConfigVector), NO_VECTOR);
        for queue in [0, 1] {
            driver.set(Reg::QueueSelect, queue);
            assert_eq!(driver.get(Reg::QueueVector), NO_VECTOR);
        }
        // The table and the enable bit are PCI's, and stay.
        let rings = driver.start(0);
        echo(&driver, &rings[0], b"mapped again");
    });
}

#[test]
fn pci_74_a_vector_that_does_not_exist_maps_to_none() {
    msix_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        for vector in [3, 4, 0x7ff, 0x800, 0x7fff, 0xfffe] {
            driver.set(Reg::ConfigVector, 1);
            driver.set(Reg::ConfigVector, vector);
            assert_eq!(driver.get(Reg::ConfigVector), NO_VECTOR, "vector {vector:#x}");
            driver.set(Reg::QueueSelect, 0);
            driver.set(Reg::QueueVector, 2);
            driver.set(Reg::QueueVector, vector);
            assert_eq!(driver.get(Reg::QueueVector), NO_VECTOR, "vector {vector:#x}");
        }
        request(&driver, &rings[0]);
        control.change_config(1);
        assert_eq!(fired(&driver), [0; 0]);
    });
}

#[test]
fn pci_75_without_a_vector_there_is_no_interrupt_of_any_kind() {
    msix_ways(|way| {
        for doorbell in DOORBELLS {
            let (machine, control) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            driver.unmap(2);
            request(&driver, &rings[0]);
            control.change_config(1);
            driver.expect_quiet();
            assert_eq!(machine.host.rises(), 0, "the line stays out of it");
        }
    });
}

#[test]
fn pci_76_a_masked_vector_pends_and_comes_once_when_it_is_unmasked() {
    msix_ways(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            driver.function.mask(1, true);
            request(&driver, &rings[0]);
            request(&driver, &rings[0]);
            request(&driver, &rings[1]);
            assert_eq!(fired(&driver), [2], "the other vector is not held up");
            assert!(driver.function.is_pending(1));
            assert!(!driver.function.is_pending(2));
            driver.function.mask(1, false);
            assert_eq!(fired(&driver), [1]);
            assert!(!driver.function.is_pending(1));
        }
    });
}

#[test]
fn pci_76_the_mask_of_the_function_holds_all_vectors() {
    msix_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        driver.function.set_msix(true, true);
        request(&driver, &rings[0]);
        control.change_config(1);
        assert_eq!(fired(&driver), [0; 0]);
        assert!(driver.function.is_pending(0) && driver.function.is_pending(1));
        driver.function.set_msix(true, false);
        let mut came = fired(&driver);
        came.sort_unstable();
        assert_eq!(came, [0, 1]);
    });
}

#[test]
fn pci_76_a_pending_message_goes_where_the_table_says_when_it_is_sent() {
    msix_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        driver.function.mask(1, true);
        request(&driver, &rings[0]);
        // As when an affinity changes: the entry is rewritten while it is masked.
        driver.function.set_vector(1, 0x1_fee0_f000, 0x1234_5678, false);
        assert_eq!(machine.host.take_messages(), [(0x1_fee0_f000, 0x1234_5678)]);
    });
}

#[test]
fn pci_76_the_pending_bits_cannot_be_written() {
    msix_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        let at = driver.function.pending_bits();
        for width in [1, 4, 8] {
            machine.store(at, width, u64::MAX);
        }
        assert_eq!(machine.load(at, 8), 0);
        driver.expect_quiet();
    });
}

#[test]
fn pci_76_the_table_reads_back_at_any_width() {
    msix_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let at = driver.function.table();
        machine.store(at + 16, 8, 0x1122_3344_5566_7788);
        assert_eq!(machine.load(at + 16, 4), 0x5566_7788);
        assert_eq!(machine.load(at + 20, 4), 0x1122_3344);
        assert_eq!(machine.load(at + 16, 8), 0x1122_3344_5566_7788);
        let end = driver.function.vectors() * 16;
        machine.store(at + end - 4, 8, u64::MAX);
        if !way.is_showing {
            assert_eq!(machine.load(at + end, 8), 0, "there is nothing behind the table");
        }
    });
}

#[test]
fn pci_77_switching_msix_moves_interrupts_between_the_two_worlds() {
    msix_ways(|way| {
        for doorbell in DOORBELLS {
            let (machine, control) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            let gsi = driver.function.gsi();
            request(&driver, &rings[0]);
            assert_eq!(fired(&driver), [1]);
            driver.function.set_msix(false, false);
            request(&driver, &rings[0]);
            assert_eq!(fired(&driver), [0; 0]);
            assert!(machine.host.is_high(gsi));
            // The level goes with MSI-X and comes back with it.
            driver.function.set_msix(true, false);
            assert!(!machine.host.is_high(gsi));
            driver.function.set_msix(false, false);
            assert!(machine.host.is_high(gsi));
            assert_eq!(driver.isr(), 1);
            driver.function.set_msix(true, false);
            control.change_config(1);
            assert_eq!(fired(&driver), [0]);
            request(&driver, &rings[0]);
            assert_eq!(fired(&driver), [1], "the mapping is as it was");
        }
    });
}

#[test]
fn pci_76_a_table_that_the_guest_writes_unseen_is_seen_while_something_pends() {
    let way = Way { is_showing: true, ..MODERN };
    let (machine, _) = probe(way, Doorbell::Inline);
    let driver = Driver::find(&machine, 1, way);
    let rings = driver.start(0);
    let table = driver.function.table();
    let is_shown = || machine.host.slots.as_ref().unwrap().shown().iter().any(|r| r.start == table);
    assert!(is_shown());
    driver.function.mask(1, true);
    request(&driver, &rings[0]);
    assert!(!is_shown(), "the write that unmasks has to be seen");
    driver.function.mask(1, false);
    assert_eq!(fired(&driver), [1]);
    assert!(is_shown());
    // Hiding it costs the whole guest; whoever keeps asking for it does without.
    for _ in 0..100 {
        driver.function.mask(1, true);
        request(&driver, &rings[0]);
        driver.function.mask(1, false);
        assert_eq!(fired(&driver), [1]);
    }
    assert!(machine.host.slots.as_ref().unwrap().hidings() < 20);
    driver.function.mask(1, true);
    request(&driver, &rings[0]);
    driver.function.mask(1, false);
    assert_eq!(fired(&driver), [1]);
}
