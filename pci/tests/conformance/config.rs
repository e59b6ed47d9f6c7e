//! Device configuration space and driver notifications (VIRTIO 1.3 §2.5, §2.9, §4.1.4.6).

use devices::virtio::Doorbell;

use crate::driver::function::Kind;
use crate::driver::probe::CONFIG_LEN;
use crate::driver::way::{MODERN, every_way, legacy_ways, modern_ways};
use crate::driver::{Buf, Driver, Reg};
use crate::{DOORBELLS, echo, inline, probe};

#[test]
fn cf_01_the_configuration_is_readable_before_features_are_agreed_on() {
    every_way(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        control.change_config(0x5a);
        driver.reset();
        assert_eq!(driver.read_config(0, 4), 0x5a5a_5a5a);
    });
}

#[test]
fn cf_02_fields_are_little_endian() {
    every_way(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.write_config(8, 4, 0x1122_3344);
        assert_eq!(control.written(), [0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0]);
        assert_eq!(driver.read_config(8, 2), 0x3344);
        assert_eq!(driver.read_config(10, 2), 0x1122);
    });
}

#[test]
fn cf_03_the_generation_tells_of_a_change_between_two_reads() {
    modern_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        let before = driver.get(Reg::Generation);
        assert_eq!(driver.read_config(0, 4), 0);
        control.change_config(7);
        assert_eq!(driver.read_config(0, 4), 0x0707_0707);
        let after = driver.get(Reg::Generation);
        assert_ne!(before, after);
        assert_eq!(driver.get(Reg::Generation), after, "it stays while nothing changes");
        driver.write_config(8, 4, 1);
        assert_eq!(driver.get(Reg::Generation), after, "what the driver writes is no change");
    });
}

#[test]
fn cf_04_any_number_of_changes_is_told_from_none() {
    let (machine, control) = probe(MODERN, Doorbell::Inline);
    let driver = Driver::find(&machine, 1, MODERN);
    driver.start(0);
    for changes in [1, 255, 256, 512] {
        let before = driver.get(Reg::Generation);
        (0..changes).for_each(|n| control.change_config(u8::try_from(n % 251).unwrap()));
        driver.settle();
        assert_ne!(driver.get(Reg::Generation), before, "{changes} changes");
    }
}

#[test]
fn cf_05_a_change_is_notified_once() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, control) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            driver.start(0);
            control.change_config(3);
            driver.expect_config();
            driver.expect_quiet();
        }
    });
}

#[test]
fn cf_05_a_change_before_driver_ok_is_not_notified() {
    legacy_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.reset();
        // A legacy device may be used before DRIVER_OK, and so hears from the host.
        driver.enable(&driver.ring(0, 8, 0));
        driver.kick(0);
        control.change_config(3);
        driver.expect_quiet();
        assert_eq!(driver.read_config(0, 1), 3);
    });
}

#[test]
fn cf_06_the_halves_of_an_address_can_be_written_alone() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        for at in [0x20, 0x28, 0x30] {
            driver.set_common(at + 4, 4, 0x1122_3344);
            assert_eq!(driver.common(at, 8), 0x1122_3344_0000_0000);
            driver.set_common(at, 4, 0x5566_7788);
            assert_eq!(driver.common(at, 8), 0x1122_3344_5566_7788);
            assert_eq!([driver.common(at, 4), driver.common(at + 4, 4)], [0x5566_7788, 0x1122_3344]);
            driver.set_common(at, 8, 0x99);
            assert_eq!(driver.common(at, 8), 0x99);
        }
    });
}

#[test]
fn cf_07_beyond_the_last_field_there_are_zeros() {
    every_way(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        control.change_config(0xee);
        let len = CONFIG_LEN as u64;
        let end = match way.is_modern() {
            true => driver.function.sizes[2] - driver.function.part(Kind::Device).offset,
            false => driver.function.sizes[0] - 24,
        };
        for width in [1, 2, 4] {
            for at in (0..end.min(256)).step_by(width) {
                if at >= len {
                    assert_eq!(driver.read_config(at, width), 0, "{width} bytes at {at}");
                    driver.write_config(at, width, 0xffff_ffff);
                }
            }
        }
        assert_eq!(control.written(), [0; 8]);
        // An access may straddle the end.
        let mut straddling = driver.read_config(len - 1, 4);
        driver.write_config(len - 1, 4, 0x4433_2211);
        assert_eq!(straddling, 0);
        straddling = driver.read_config(len - 1, 4);
        assert_eq!(straddling, 0x11);
    });
}

#[test]
fn cf_07_writes_to_the_devices_own_fields_do_nothing() {
    every_way(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        control.change_config(0x11);
        (0..8).for_each(|at| driver.write_config(at, 1, 0xff));
        assert_eq!([driver.read_config(0, 4), driver.read_config(4, 4)], [0x1111_1111; 2]);
    });
}

#[test]
fn nt_01_a_doorbell_with_nothing_to_do_does_no_harm() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            (0..10_000).for_each(|_| driver.kick(0));
            driver.expect_quiet();
            echo(&driver, &rings[0], b"and now something");
        }
    });
}

#[test]
fn nt_02_doorbells_of_queues_that_do_not_run_are_passed_over() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            driver.kick(0);
            driver.negotiate(0);
            let ring = driver.ring(0, 8, 0);
            driver.enable(&ring);
            driver.finish();
            driver.kick(1);
            if way.is_modern() {
                let bells = driver.function.address(Kind::Notify);
                (0..0x1000).step_by(2).for_each(|at| machine.store(bells + at, 2, at));
                machine.store(bells, 2, 0xffff);
            } else {
                for queue in [2, 5, 64, 0x8000, 0xffff] {
                    driver.kick(queue);
                }
            }
            driver.expect_quiet();
            echo(&driver, &ring, b"the one that runs");
        }
    });
}

#[test]
fn nt_03_a_doorbells_value_is_no_more_than_a_hint() {
    modern_ways(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            let bell = driver.doorbell(1);
            rings[1].post(&[Buf::room(machine.ram(8, 1), 8)]);
            for (width, value) in [(4, 0x7fff_0001), (4, 0xffff_ffff), (1, 0x55), (8, u64::MAX)] {
                machine.store(bell, width, value);
            }
            assert_eq!(rings[1].wait().1, 8);
            driver.expect_queue(1);
            assert_eq!(rings[1].used_index(), 1);
        }
    });
}
