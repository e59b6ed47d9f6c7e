//! The common configuration's queue registers, and the doorbells (VIRTIO 1.3 §4.1.4.3, §4.1.4.4).

use crate::driver::function::Kind;
use crate::driver::way::{every_way, modern_ways};
use crate::driver::{Buf, Driver, Machine, NO_VECTOR, Probe, Reg};
use crate::{DOORBELLS, echo, inline, probe};

#[test]
fn pci_20_num_queues_counts_the_queues() {
    modern_ways(|way| {
        for sizes in [&[8][..], &[8, 8], &[1; 40]] {
            let machine = Machine::with(Probe::inline(sizes), way);
            let driver = Driver::find(&machine, 1, way);
            assert_eq!(driver.get(Reg::QueueCount), sizes.len() as u64);
        }
    });
}

#[test]
fn pci_21_a_queue_that_is_not_there_has_size_0() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        for queue in [2, 3, 64, 255, 256, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            driver.set(Reg::QueueSelect, queue);
            assert_eq!(driver.get(Reg::QueueSelect), queue);
            assert_eq!(driver.get(Reg::QueueSize), 0, "queue {queue}");
            if way.is_modern() {
                let rest = [Reg::QueueEnable, Reg::QueueDesc, Reg::QueueDriver, Reg::QueueDevice];
                assert_eq!(rest.map(|r| driver.get(r)), [0; 4]);
                assert_eq!(driver.get(Reg::QueueVector), NO_VECTOR);
                // Writes change nothing, of this queue or of another.
                let all =
                    [Reg::QueueSize, Reg::QueueVector, Reg::QueueEnable, Reg::QueueDesc, Reg::QueueReset];
                all.into_iter().for_each(|r| driver.set(r, 1));
                assert_eq!(driver.get(Reg::QueueSize), 0);
                assert_eq!(driver.get(Reg::QueueVector), NO_VECTOR);
            }
        }
        driver.set(Reg::QueueSelect, 1);
        assert_eq!(driver.get(Reg::QueueSize), 8);
        assert!(!driver.needs_reset());
    });
}

#[test]
fn pci_22_sizes_are_powers_of_two() {
    every_way(|way| {
        let machine = Machine::with(Probe::inline(&[1, 2, 256, 1024]), way);
        let driver = Driver::find(&machine, 1, way);
        assert_eq!([0, 1, 2, 3].map(|q| driver.queue_size(q)), [1, 2, 256, 1024]);
    });
}

#[test]
fn pci_23_sizes_that_cannot_be_are_ignored() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.set(Reg::QueueSelect, 0);
        for (size, expected) in [(4, 4), (0, 4), (3, 4), (16, 4), (0x8000, 4), (0xffff, 4), (8, 8)] {
            driver.set(Reg::QueueSize, size);
            assert_eq!(driver.get(Reg::QueueSize), expected);
        }
    });
}

#[test]
fn pci_24_a_queue_is_enabled_by_1_and_not_disabled_by_0() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.set(Reg::QueueSelect, 0);
        assert_eq!(driver.get(Reg::QueueEnable), 0);
        let rings = driver.start(0);
        driver.set(Reg::QueueSelect, 0);
        for odd in [0, 2, 0xffff] {
            driver.set(Reg::QueueEnable, odd);
            assert_eq!(driver.get(Reg::QueueEnable), 1);
        }
        echo(&driver, &rings[0], b"still live");
    });
}

#[test]
fn pci_25_addresses_read_back_per_queue_and_freeze_when_it_is_enabled() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let registers = [Reg::QueueDesc, Reg::QueueDriver, Reg::QueueDevice];
        for (queue, base) in [(0, 0x1_0000_0000), (1, 0x2_3456_7890_u64)] {
            driver.set(Reg::QueueSelect, queue);
            registers.into_iter().zip(base..).for_each(|(r, value)| driver.set(r, value));
        }
        for (queue, base) in [(0, 0x1_0000_0000), (1, 0x2_3456_7890_u64)] {
            driver.set(Reg::QueueSelect, queue);
            assert_eq!(registers.map(|r| driver.get(r)), [base, base + 1, base + 2]);
        }
        let rings = driver.start(0);
        driver.set(Reg::QueueSelect, 0);
        registers.into_iter().for_each(|r| driver.set(r, 0x1000));
        driver.set(Reg::QueueSize, 2);
        assert_eq!(registers.map(|r| driver.get(r)), [rings[0].desc, rings[0].avail, rings[0].used]);
        assert_eq!(driver.get(Reg::QueueSize), 8);
        echo(&driver, &rings[0], b"where it was");
    });
}

#[test]
fn pci_26_read_only_fields_ignore_writes() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let fields = [(0x04, 4), (0x12, 2), (0x15, 1), (0x1e, 2), (0x38, 2), (0x3c, 2), (0x3e, 2)];
        let read = || fields.map(|(at, width)| driver.common(at, width));
        let before = read();
        fields.into_iter().for_each(|(at, width)| driver.set_common(at, width, 0xffff_ffff));
        assert_eq!(read(), before);
        machine.store(driver.function.address(Kind::Isr), 1, 0xff);
        assert_eq!(driver.isr(), 0);
    });
}

#[test]
fn pci_40_every_doorbell_lies_in_the_notification_structure() {
    modern_ways(|way| {
        for queues in [1, 2, 40_u16] {
            let machine = Machine::with(Probe::inline(&vec![8; queues.into()]), way);
            let driver = Driver::find(&machine, 1, way);
            let part = driver.function.part(Kind::Notify);
            let multiplier = driver.function.config(part.at + 16, 4);
            assert!(part.offset.is_multiple_of(2) && part.length >= 2);
            assert!(multiplier == 0 || multiplier.is_power_of_two() && multiplier.is_multiple_of(2));
            for queue in 0..queues {
                driver.set(Reg::QueueSelect, queue.into());
                assert!(driver.get(Reg::NotifyOffset) * multiplier + 2 <= part.length);
            }
        }
    });
}

#[test]
fn pci_41_doorbells_have_room_for_notification_data() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let part = driver.function.part(Kind::Notify);
        let multiplier = driver.function.config(part.at + 16, 4);
        // Not asked for while the feature is not offered, but an address then does for a write of either width.
        assert!(part.offset.is_multiple_of(4) && multiplier.is_multiple_of(4));
        driver.set(Reg::QueueSelect, 1);
        assert!(driver.get(Reg::NotifyOffset) * multiplier + 4 <= part.length);
    });
}

#[test]
fn pci_42_a_write_at_a_queues_doorbell_notifies_that_queue() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            let room = machine.ram(4, 1);
            for (queue, other) in [(0, 1), (1, 0)] {
                let [ring, other] = [&rings[queue], &rings[other]];
                ring.post(&[Buf::room(room, 4)]);
                other.post(&[Buf::room(room, 4)]);
                driver.kick(ring.queue);
                ring.wait();
                driver.expect_queue(ring.queue);
                assert!(other.take().is_none(), "the other queue's doorbell did not ring");
                driver.kick(other.queue);
                other.wait();
                driver.expect_queue(other.queue);
            }
        }
    });
}
