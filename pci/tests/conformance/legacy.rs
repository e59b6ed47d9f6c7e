//! The legacy interface and transitional functions (VIRTIO 1.3 §4.1.4.10, §7.4; VIRTIO 0.9.5).

use std::sync::atomic::{AtomicBool, Ordering};

use devices::virtio::Doorbell;
use pci::virtio::Faces;

use crate::driver::function::{IO, Kind, MEMORY};
use crate::driver::machine::LOW;
use crate::driver::way::{Face, LEGACY, LEGACY_MSIX, MODERN, Wire, every_way, legacy_ways};
use crate::driver::{Buf, Driver, Function, Machine, NO_VECTOR, Probe, Reg, Ring, Way, feature, status};
use crate::{DOORBELLS, Done, echo, inline, probe};

const TRANSITIONAL: Way = Way { faces: Faces::Transitional, ..MODERN };

#[test]
fn leg_02_identity_is_what_legacy_drivers_bind_to() {
    every_way(|way| {
        if way.faces == Faces::Modern {
            return;
        }
        let machine = inline(way);
        let function = Function::find(&machine, 1);
        assert!((0x1000..=0x103f).contains(&function.config(2, 2)));
        assert_eq!(function.config(8, 1), 0, "revision");
        assert_eq!(function.config(0x2e, 2), 0x2a, "the subsystem is the virtio id");
    });
}

#[test]
fn leg_03_the_block_lies_in_ports_at_bar_0_beside_the_modern_capabilities() {
    let machine = inline(TRANSITIONAL);
    let function = Function::find(&machine, 1);
    assert!(function.is_io[0]);
    assert!(function.find_part(Kind::Common).is_some());
    let machine = inline(LEGACY);
    let function = Function::find(&machine, 1);
    assert!(function.is_io[0]);
    assert!(function.parts().is_empty(), "a legacy function shows nothing modern");
}

#[test]
fn leg_04_the_configuration_follows_the_vectors_while_msix_is_enabled() {
    legacy_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        control.change_config(0x77);
        let base = driver.function.bars[0];
        for is_enabled in [true, false, true, false] {
            driver.function.set_msix(is_enabled, false);
            let at = if is_enabled { 24 } else { 20 };
            assert_eq!(machine.port_in(base + at, 4), 0x7777_7777);
            assert_eq!(machine.port_in(base + at + 16, 1), 0);
            // The mask of the function is another bit, and does not count.
            driver.function.set_msix(is_enabled, true);
            assert_eq!(machine.port_in(base + at, 4), 0x7777_7777);
        }
    });
}

#[test]
fn leg_05_the_configuration_gives_the_same_bytes_at_any_width() {
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.write_config(8, 4, 0x4433_2211);
        driver.write_config(12, 2, 0x6655);
        driver.write_config(14, 1, 0x77);
        driver.write_config(15, 1, 0x88);
        let by = |width: usize| -> Vec<u8> {
            let words = (8..16).step_by(width).map(|at| driver.read_config(at, width));
            words.flat_map(|w| w.to_le_bytes()[..width].to_vec()).collect()
        };
        let bytes = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
        assert_eq!([by(1), by(2), by(4)], [bytes; 3]);
    });
}

#[test]
fn leg_06_bits_above_31_count_as_refused() {
    let machine = inline(TRANSITIONAL);
    let modern = Driver::find(&machine, 1, TRANSITIONAL);
    modern.start(feature::RING_RESET | feature::INDIRECT);
    modern.reset();
    let legacy = modern.through(Face::Legacy);
    let rings = legacy.start(feature::EVENT_IDX);
    modern.set(Reg::DriverFeatureSelect, 1);
    assert_eq!(modern.get(Reg::DriverFeature), 0);
    modern.set(Reg::QueueSelect, 0);
    modern.set(Reg::QueueReset, 1);
    echo(&legacy, &rings[0], b"RING_RESET was refused");
}

#[test]
fn leg_07_legacy_rules_hold_for_whoever_does_not_accept_version_1() {
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::INDIRECT | feature::ANY_LAYOUT);
        assert_eq!(driver.status(), status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK);
        echo(&driver, &rings[0], b"legacy");
        driver.set_status(driver.status() | status::FEATURES_OK);
        assert_eq!(driver.status() & status::FEATURES_OK, 0, "there is no such bit");
    });
}

#[test]
fn leg_08_the_configuration_may_be_written_first_of_all() {
    legacy_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.write_config(8, 1, 0x41);
        assert_eq!(control.written()[0], 0x41);
    });
}

#[test]
fn leg_09_a_queue_serves_before_driver_ok() {
    legacy_ways(|way| {
        for doorbell in DOORBELLS {
            for before in [0, status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
                let (machine, _) = probe(way, doorbell);
                let driver = Driver::find(&machine, 1, way);
                if before != 0 {
                    driver.set_status(before);
                }
                let ring = driver.ring(1, 8, 0);
                driver.enable(&ring);
                echo(&driver, &ring, b"early");
                assert_eq!(driver.status(), before);
            }
        }
    });
}

#[test]
fn leg_10_features_may_come_after_the_queues_and_before_their_first_use() {
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.reset();
        driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
        driver.accept(0);
        let mut ring = driver.ring(0, 8, feature::EVENT_IDX);
        driver.enable(&ring);
        driver.accept(feature::EVENT_IDX | feature::INDIRECT);
        ring.has_event_idx = true;
        echo(&driver, &ring, b"with EVENT_IDX");
        ring.set_used_event(100);
        ring.post_indirect(&[Buf::room(machine.ram(8, 1), 8)]);
        driver.kick(0);
        assert_eq!(ring.wait().1, 8);
        driver.expect_quiet();
    });
}

#[test]
fn leg_11_the_ring_is_one_block_aligned_to_4096() {
    legacy_ways(|way| {
        for size in [4, 8, 128, 256, 1024] {
            let machine = Machine::with(Probe::inline(&[size]), way);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            let n = u64::from(size);
            let used = if size <= 128 { 4096 } else { (18 * n + 6).next_multiple_of(4096) };
            assert_eq!(rings[0].used - rings[0].desc, used);
            let room = machine.ram(1, 1);
            for _ in 0..3 {
                for _ in 0..size {
                    rings[0].post(&[Buf::room(room, 1)]);
                }
                driver.kick(0);
                (0..size).for_each(|_| assert_eq!(rings[0].wait().1, 1));
            }
        }
    });
}

#[test]
fn leg_12_the_address_is_in_pages_and_the_size_is_the_devices() {
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        for ring in &rings {
            driver.set(Reg::QueueSelect, ring.queue.into());
            assert_eq!(driver.get(Reg::QueuePage), ring.desc / 4096);
            driver.set(Reg::QueueSize, 4);
            assert_eq!(driver.get(Reg::QueueSize), 8);
        }
        echo(&driver, &rings[1], b"of 8 entries");
    });
}

#[test]
fn leg_13_page_0_stops_a_queue_and_that_queue_alone() {
    legacy_ways(|way| {
        for doorbell in DOORBELLS {
            let (machine, control) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            driver.set(Reg::QueueSelect, 0);
            assert_eq!(driver.get(Reg::QueuePage), 0);
            let rings = driver.start(0);
            driver.set(Reg::QueueSelect, 0);
            driver.set(Reg::QueuePage, 0);
            assert_eq!(driver.get(Reg::QueuePage), 0);
            assert_eq!(control.resets(), 1, "the device is not reset");
            rings[0].post(&[Buf::room(machine.ram(8, 1), 8)]);
            driver.kick(0);
            echo(&driver, &rings[1], b"the other goes on");
            assert_eq!(rings[0].used_index(), 0);
            let elsewhere = driver.ring(0, 8, 0);
            driver.enable(&elsewhere);
            echo(&driver, &elsewhere, b"elsewhere");
        }
    });
}

#[test]
fn leg_13_a_page_that_is_not_ram_breaks_the_device_until_a_reset() {
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        for page in [LOW >> 12, (LOW >> 12) - 1, 0xd_0000, 0xffff_ffff] {
            driver.reset();
            driver.set(Reg::QueueSelect, 0);
            driver.set(Reg::QueuePage, page);
            assert_eq!(driver.get(Reg::QueuePage), 0, "page {page:#x}");
            driver.kick(0);
        }
        let rings = driver.start(0);
        echo(&driver, &rings[0], b"a good one");
    });
}

#[test]
fn leg_14_queues_that_do_not_exist_have_size_0() {
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        for queue in [2, 5, 0x7fff, 0xffff] {
            driver.set(Reg::QueueSelect, queue);
            assert_eq!(driver.get(Reg::QueueSize), 0);
            assert_eq!(driver.get(Reg::QueuePage), 0);
            driver.set(Reg::QueuePage, 1);
            assert_eq!(driver.get(Reg::QueuePage), 0);
        }
    });
}

#[test]
fn leg_15_a_reset_is_complete_when_the_write_returns() {
    legacy_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Worker);
        let driver = Driver::find(&machine, 1, way);
        let room = machine.ram(4096, 1);
        let block = driver.ring(0, 8, 0);
        for _ in 0..200 {
            machine.set_bytes(block.desc, &[0; 8192]);
            let ring = Ring::at(&machine, 0, 8, [block.desc, block.avail, block.used], 0);
            driver.enable(&ring);
            for _ in 0..8 {
                ring.post(&[Buf::room(room, 4096)]);
            }
            driver.kick(0);
            // No look at the status in between: old drivers do not poll.
            driver.set_status(0);
            machine.set_bytes(block.desc, &[0x5a; 8192]);
            machine.set_bytes(room, &[0x5a; 4096]);
            driver.kick(0);
            driver.settle();
            assert!(machine.bytes(block.desc, 8192).iter().all(|b| *b == 0x5a));
            assert!(machine.bytes(room, 4096).iter().all(|b| *b == 0x5a));
            machine.host.take_messages();
        }
    });
}

#[test]
fn leg_16_there_is_one_interrupt_status_for_both_interfaces() {
    let way = Way { wire: Wire::Intx, ..TRANSITIONAL };
    let (machine, control) = probe(way, Doorbell::Inline);
    let modern = Driver::find(&machine, 1, way);
    let legacy = modern.through(Face::Legacy);
    let rings = legacy.start(0);
    rings[0].post(&[Buf::room(machine.ram(8, 1), 8)]);
    legacy.kick(0);
    control.change_config(1);
    legacy.settle();
    assert_eq!(modern.isr(), 3);
    assert_eq!(legacy.isr(), 0);
    assert!(!machine.host.is_high(16));
    control.change_config(2);
    legacy.settle();
    assert_eq!([legacy.isr(), modern.isr()], [2, 0]);
}

#[test]
fn leg_17_vector_registers_are_there_only_while_msix_is_enabled() {
    let (machine, control) = probe(LEGACY_MSIX, Doorbell::Inline);
    let driver = Driver::find(&machine, 1, LEGACY_MSIX);
    driver.start(0);
    control.change_config(0x33);
    let base = driver.function.bars[0];
    assert_eq!(machine.port_in(base + 0x14, 2), 0);
    driver.set(Reg::ConfigVector, 9);
    assert_eq!(driver.get(Reg::ConfigVector), NO_VECTOR);
    driver.set(Reg::ConfigVector, 2);
    driver.function.set_msix(false, false);
    assert_eq!(machine.port_in(base + 0x14, 2), 0x3333, "configuration bytes");
    machine.port_out(base + 0x14, 2, 1);
    driver.function.set_msix(true, false);
    assert_eq!(driver.get(Reg::ConfigVector), 2, "and no vector was written");
}

#[test]
fn leg_18_rings_and_configuration_are_in_the_guests_byte_order() {
    legacy_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(0)[0];
        ring.set_descriptor(5, Buf::room(machine.ram(0x102, 1), 0x102), 2, 0);
        machine.set_bytes(ring.avail, &[0, 0, 1, 0, 5, 0]);
        driver.kick(0);
        assert_eq!(machine.bytes(ring.used, 12), [0, 0, 1, 0, 5, 0, 0, 0, 2, 1, 0, 0]);
        driver.write_config(8, 4, 0x0403_0201);
        assert_eq!(control.written()[..4], [1, 2, 3, 4]);
    });
}

#[test]
fn leg_19_the_used_length_is_right_for_legacy_drivers_too() {
    legacy_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(0)[0];
        let at = machine.ram(16, 1);
        for (bufs, len) in [(vec![Buf::out(at, 8)], 0), (vec![Buf::out(at, 3), Buf::room(at + 8, 8)], 3)] {
            ring.post(&bufs);
            driver.kick(0);
            assert_eq!(ring.wait().1, len);
        }
    });
}

#[test]
fn leg_21_a_field_changes_all_at_once() {
    legacy_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        let place = driver.function.bars[0] + if way.wire == Wire::Msix { 24 } else { 20 };
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _done = Done(&is_done);
                (1..=200).for_each(|value| control.change_config(value));
            });
            while !is_done.load(Ordering::Relaxed) {
                let field = machine.port_in(place, 4);
                assert_eq!(field, (field & 0xff) * 0x0101_0101);
            }
        });
    });
}

#[test]
fn leg_22_both_interfaces_drive_one_device() {
    let (machine, control) = probe(TRANSITIONAL, Doorbell::Worker);
    let modern = Driver::find(&machine, 1, TRANSITIONAL);
    let legacy = modern.through(Face::Legacy);
    let rings = modern.start(0);
    assert_eq!(legacy.status(), modern.status());
    legacy.set(Reg::QueueSelect, 1);
    assert_eq!(modern.get(Reg::QueueSelect), 1);
    assert_eq!(legacy.get(Reg::QueuePage), rings[1].desc >> 12);
    assert_eq!(legacy.get(Reg::ConfigVector), 0);
    // The doorbell of either rings.
    rings[1].post(&[Buf::room(machine.ram(8, 1), 8)]);
    legacy.kick(1);
    rings[1].wait();
    modern.expect_queue(1);
    // A reset of either resets all.
    legacy.reset();
    assert_eq!(modern.status(), 0);
    assert_eq!(control.resets(), 2);
    assert_eq!(machine.host.bells(), []);
    let rings = legacy.start(0);
    echo(&legacy, &rings[0], b"legacy now");
    modern.reset();
    assert_eq!(legacy.status(), 0);
    modern.function.set_command(IO | MEMORY);
    assert_eq!(machine.host.refused(), [""; 0]);
}
