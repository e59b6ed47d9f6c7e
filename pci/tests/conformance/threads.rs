//! The device's own thread: deadlines, the host's events, and its end.

use std::time::Duration;

use devices::virtio::Doorbell;

use crate::driver::way::{LEGACY, MODERN, every_way};
use crate::driver::{Buf, Driver, Machine, Probe, feature, patiently};
use crate::{DOORBELLS, echo, probe};

#[test]
fn a_deadline_comes_once() {
    for doorbell in DOORBELLS {
        let (machine, control) = probe(MODERN, doorbell);
        let driver = Driver::find(&machine, 1, MODERN);
        let rings = driver.start(0);
        for n in 1..=3 {
            control.ask_deadline(Duration::from_millis(1));
            echo(&driver, &rings[0], b"and then");
            patiently("the deadline", || control.deadlines() == n);
        }
        echo(&driver, &rings[0], b"at last");
        assert_eq!(control.deadlines(), 3);
    }
}

#[test]
fn a_deadline_does_not_outlive_a_reset() {
    every_way(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        control.ask_deadline(Duration::from_millis(5));
        echo(&driver, &rings[0], b"before");
        driver.reset();
        let rings = driver.start(0);
        // This one is later than the forgotten one would have been.
        control.ask_deadline(Duration::from_millis(15));
        echo(&driver, &rings[0], b"after");
        patiently("the deadline", || control.deadlines() > 0);
        echo(&driver, &rings[0], b"and that is all");
        assert_eq!(control.deadlines(), 1);
    });
}

#[test]
fn a_device_ends_whatever_it_is_doing() {
    for doorbell in DOORBELLS {
        for way in [MODERN, LEGACY] {
            for _ in 0..20 {
                let machine = Machine::with(Probe::new(&[256], doorbell).0, way);
                machine.host.forget_messages();
                let driver = Driver::find(&machine, 1, way);
                let ring = &driver.start(0)[0];
                let room = machine.ram(0x1_0000, 1);
                for _ in 0..256 {
                    ring.post(&[Buf::room(room, 0x1_0000)]);
                }
                driver.kick(0);
                // The machine goes, and its device stops and joins, in the middle of that.
            }
        }
    }
}

#[test]
fn the_host_is_heard_by_every_driver_after_another() {
    every_way(|way| {
        let (machine, control) = probe(way, Doorbell::Worker);
        let driver = Driver::find(&machine, 1, way);
        for n in 1..=10 {
            let rings = driver.start(feature::EVENT_IDX);
            control.change_config(n);
            driver.expect_config();
            echo(&driver, &rings[0], b"bound");
            driver.reset();
        }
        assert_eq!(control.pokes(), 10);
    });
}
