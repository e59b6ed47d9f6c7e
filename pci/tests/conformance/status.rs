//! The device status: initialisation, breakage, reset (VIRTIO 1.3 §2.1, §2.4, §3.1).

use devices::virtio::Doorbell;

use crate::driver::machine::HOLE;
use crate::driver::way::{MODERN, every_way, modern_ways};
use crate::driver::{Buf, Driver, Machine, Probe, Reg, Ring, feature, patiently, status};
use crate::{DOORBELLS, echo, inline, probe};

/// A chain that no ring of eight entries can have: the device has to ask for a reset.
fn break_ring(driver: &Driver<'_>, ring: &Ring<'_>) {
    ring.offer(ring.size);
    driver.kick(ring.queue);
    patiently("NEEDS_RESET", || driver.needs_reset());
}

#[test]
fn st_01_status_is_zero_at_power_on_and_after_reset() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        assert_eq!(driver.status(), 0);
        driver.start(0);
        assert_ne!(driver.status(), 0);
        driver.set_status(0);
        assert_eq!(driver.status(), 0);
    });
}

#[test]
fn st_02_no_buffer_is_used_before_driver_ok() {
    modern_ways(|way| {
        for doorbell in DOORBELLS {
            let (machine, control) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            driver.negotiate(0);
            let ring = driver.ring(0, 8, 0);
            driver.enable(&ring);
            ring.post(&[Buf::room(machine.ram(16, 1), 16)]);
            driver.kick(0);
            patiently("the doorbell is heard", || control.services() > 0);
            driver.expect_quiet();
            assert_eq!(ring.used_index(), 0);
            driver.finish();
            driver.kick(0);
            assert_eq!(ring.wait().1, 16);
            driver.expect_queue(0);
        }
    });
}

#[test]
fn st_03_what_was_posted_before_driver_ok_is_served_without_a_doorbell() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            driver.negotiate(0);
            let rings = [driver.ring(0, 8, 0), driver.ring(1, 8, 0)];
            for ring in &rings {
                driver.enable(ring);
                ring.post(&[Buf::room(machine.ram(16, 1), 16)]);
            }
            driver.finish();
            assert_eq!(rings[0].wait().1, 16);
            assert_eq!(rings[1].wait().1, 16);
        }
    });
}

#[test]
fn st_04_what_only_a_reset_can_cure_sets_needs_reset() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            break_ring(&driver, &rings[0]);
            // The other queue is not served either.
            rings[1].post(&[Buf::room(machine.ram(16, 1), 16)]);
            driver.kick(1);
            assert_eq!(rings[1].used_index(), 0);
            // And a reset does cure it.
            machine.host.take_messages();
            let rings = driver.start(0);
            echo(&driver, &rings[0], b"cured");
        }
    });
}

#[test]
fn st_05_needs_reset_is_told_by_a_configuration_interrupt() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        break_ring(&driver, &rings[0]);
        driver.expect_config();
        // Once.
        driver.kick(0);
        driver.kick(1);
        driver.expect_quiet();
    });
}

#[test]
fn st_05_a_breakage_before_driver_ok_is_told_at_driver_ok() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.negotiate(0);
        let ring = Ring::at(&machine, 0, 8, [HOLE; 3], 0);
        driver.enable(&ring);
        assert!(driver.needs_reset());
        driver.expect_quiet();
        driver.finish();
        driver.expect_config();
        assert!(driver.needs_reset());
    });
}

#[test]
fn st_06_a_reset_under_load_is_over_when_its_write_returns() {
    every_way(|way| {
        let (machine, _) = probe(way, Doorbell::Worker);
        let driver = Driver::find(&machine, 1, way);
        let room = machine.ram(4096, 1);
        // One set of rings for all rounds.
        let rings = [driver.ring(0, 8, 0), driver.ring(1, 8, 0)];
        for _ in 0..200 {
            driver.negotiate(0);
            let rings = rings.each_ref().map(|r| {
                machine.set_bytes(r.avail, &[0; 22]);
                machine.set_bytes(r.used, &[0; 70]);
                Ring::at(&machine, r.queue, 8, [r.desc, r.avail, r.used], 0)
            });
            rings.iter().for_each(|r| driver.enable(r));
            driver.finish();
            for ring in &rings {
                for _ in 0..8 {
                    ring.post(&[Buf::room(room, 4096)]);
                }
                driver.kick(ring.queue);
            }
            driver.reset();
            let used = rings.each_ref().map(Ring::used_index);
            machine.host.take_messages();
            driver.expect_quiet();
            assert_eq!(rings.each_ref().map(Ring::used_index), used, "nothing runs any more");
        }
        assert_eq!(machine.host.refused(), [""; 0]);
    });
}

#[test]
fn st_07_after_a_reset_nothing_is_touched_and_nothing_interrupts() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, control) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            control.hold(true);
            let rings = driver.start(0);
            let room = machine.ram(64, 1);
            for ring in &rings {
                ring.post(&[Buf::room(room, 64)]);
                driver.kick(ring.queue);
            }
            driver.reset();
            let pattern = vec![0x5a; 64];
            machine.set_bytes(room, &pattern);
            let before = rings.iter().map(|r| machine.bytes(r.used, 70)).collect::<Vec<_>>();
            control.hold(false);
            control.poke();
            driver.kick(0);
            driver.kick(1);
            driver.expect_quiet();
            // Once the device serves new rings, it has seen all that was meant for the old ones.
            let fresh = driver.start(0);
            echo(&driver, &fresh[0], b"fresh");
            control.change_config(1);
            assert_eq!(machine.bytes(room, 64), pattern);
            assert_eq!(rings.iter().map(|r| machine.bytes(r.used, 70)).collect::<Vec<_>>(), before);
        }
    });
}

/// Everything that the registers show, with the selects put where they were.
fn snapshot(driver: &Driver<'_>) -> Vec<u64> {
    let mut all = vec![driver.status(), driver.isr(), driver.get(Reg::QueueSelect)];
    if driver.way.is_modern() {
        all.extend([Reg::DeviceFeatureSelect, Reg::DriverFeatureSelect].map(|r| driver.get(r)));
        for select in 0..4 {
            driver.set(Reg::DriverFeatureSelect, select);
            all.push(driver.get(Reg::DriverFeature));
        }
        driver.set(Reg::DriverFeatureSelect, 0);
    } else {
        all.push(driver.get(Reg::DriverFeature));
    }
    let is_msix = driver.function.msix_control() & 1 << 15 != 0;
    if is_msix || driver.way.is_modern() {
        all.push(driver.get(Reg::ConfigVector));
    }
    for queue in 0..3 {
        driver.set(Reg::QueueSelect, queue);
        all.push(driver.get(Reg::QueueSize));
        if is_msix || driver.way.is_modern() {
            all.push(driver.get(Reg::QueueVector));
        }
        if driver.way.is_modern() {
            let more =
                [Reg::QueueEnable, Reg::QueueDesc, Reg::QueueDriver, Reg::QueueDevice, Reg::QueueReset];
            all.extend(more.map(|r| driver.get(r)));
        } else {
            all.push(driver.get(Reg::QueuePage));
        }
    }
    driver.set(Reg::QueueSelect, 0);
    all
}

#[test]
fn st_08_a_reset_restores_every_register() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let fresh = snapshot(&driver);
        let ring = &driver.start(feature::INDIRECT)[0];
        ring.post(&[Buf::room(machine.ram(8, 1), 8)]);
        driver.kick(0);
        driver.set(Reg::QueueSelect, 1);
        if way.is_modern() {
            driver.set(Reg::DeviceFeatureSelect, 7);
            driver.set(Reg::DriverFeatureSelect, 9);
        }
        assert_ne!(snapshot(&driver), fresh);
        driver.set_status(driver.status() | status::FAILED);
        driver.reset();
        assert_eq!(snapshot(&driver), fresh);
        assert!(!machine.host.is_high(driver.function.gsi()));
    });
}

#[test]
fn st_08_a_reset_forgets_interrupts_that_were_pending() {
    let machine = inline(MODERN);
    let driver = Driver::find(&machine, 1, MODERN);
    let ring = &driver.start(0)[0];
    driver.function.mask(1, true);
    ring.post(&[Buf::room(machine.ram(8, 1), 8)]);
    driver.kick(0);
    assert!(driver.function.is_pending(1));
    driver.reset();
    driver.function.mask(1, false);
    driver.expect_quiet();
}

#[test]
fn st_09_what_was_accepted_once_is_accepted_again() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let offered = driver.offered();
        (0..1000).for_each(|_| driver.negotiate(offered));
        let rings = driver.start(offered);
        echo(&driver, &rings[0], b"the last one");
    });
}

#[test]
fn st_10_features_ok_is_granted_to_every_valid_set_and_to_no_other() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let offered = driver.offered();
        let bits: Vec<u128> = (0..128).map(|n| 1 << n).filter(|b| offered & b != 0).collect();
        for set in 0..1_usize << bits.len() {
            let chosen = bits.iter().enumerate().filter(|(n, _)| set >> n & 1 != 0).map(|(_, b)| b);
            let chosen = chosen.sum::<u128>();
            driver.reset();
            driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
            driver.accept(chosen);
            driver.set_status(driver.status() | status::FEATURES_OK);
            let is_valid = chosen & feature::VERSION_1 != 0;
            assert_eq!(driver.status() & status::FEATURES_OK != 0, is_valid, "{chosen:#x}");
        }
        // A driver may try again with another set.
        driver.reset();
        driver.accept(feature::VERSION_1 | 1 << 50);
        driver.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        assert_eq!(driver.status() & status::FEATURES_OK, 0);
        driver.accept(feature::VERSION_1);
        driver.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        assert_eq!(driver.status() & status::FEATURES_OK, status::FEATURES_OK);
    });
}

#[test]
fn st_11_features_are_frozen_after_features_ok() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(0)[0];
        driver.accept(feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT);
        driver.set(Reg::DriverFeatureSelect, 0);
        assert_eq!(driver.get(Reg::DriverFeature), 0);
        if driver.function.bars[0] != 0 {
            machine.port_out(driver.function.bars[0] + 4, 4, 1 << 29);
            assert_eq!(driver.get(Reg::DriverFeature), 0, "neither through the other interface");
            driver.set(Reg::DriverFeatureSelect, 1);
            assert_eq!(driver.get(Reg::DriverFeature), 1);
        }
        // EVENT_IDX does not hold: the flag decides and used_event is nothing.
        ring.set_used_event(0x4000);
        ring.post(&[Buf::room(machine.ram(8, 1), 8)]);
        driver.kick(0);
        driver.expect_queue(0);
    });
}

#[test]
fn st_12_status_bits_that_make_no_sense_do_no_harm() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        let before = driver.status();
        for odd in [64, 16, 32, 1, 2, 8, 0xff & !status::FAILED] {
            driver.set_status(odd);
            assert_eq!(driver.status(), before, "after {odd:#x}");
        }
        driver.set_status(status::FAILED);
        assert_eq!(driver.status(), before | status::FAILED, "FAILED is just shown");
        let rings = driver.start(0);
        echo(&driver, &rings[0], b"still here");
    });
}

#[test]
fn st_14_a_reset_ends_the_life_of_all_queues() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let old = driver.start(0);
        driver.reset();
        for ring in &old {
            ring.post(&[Buf::room(machine.ram(8, 1), 8)]);
            driver.kick(ring.queue);
            driver.set(Reg::QueueSelect, ring.queue.into());
            let place = if way.is_modern() { Reg::QueueEnable } else { Reg::QueuePage };
            assert_eq!(driver.get(place), 0);
        }
        // DRIVER_OK alone does not bring them back.
        driver.negotiate(0);
        driver.finish();
        old.iter().for_each(|r| driver.kick(r.queue));
        assert_eq!([old[0].used_index(), old[1].used_index()], [0, 0]);
        driver.expect_quiet();
    });
}

#[test]
fn st_14_devices_are_reset_one_by_one() {
    let plug =
        |_| crate::driver::Plug { device: Box::new(Probe::inline(&[8])), faces: MODERN.faces, gsi: 17 };
    let machine = Machine::new((0..2).map(plug).collect(), false);
    let drivers = [1, 2].map(|slot| Driver::find(&machine, slot, MODERN));
    let rings = drivers.each_ref().map(|d| d.start(0));
    drivers[0].reset();
    echo(&drivers[1], &rings[1][0], b"untouched");
}
