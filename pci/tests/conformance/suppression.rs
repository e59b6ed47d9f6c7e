//! Who notifies whom, and who asked not to be (VIRTIO 1.3 §2.7.7, §2.7.10).

use crate::driver::way::{LEGACY, MODERN, every_way};
use crate::driver::{Buf, Driver, Machine, Ring, Way, Wire, feature};
use crate::{DOORBELLS, inline, probe};

/// One request, and whether an interrupt came for it.
fn interrupts(machine: &Machine, driver: &Driver<'_>, ring: &Ring<'_>) -> bool {
    let room = machine.ram(4, 1);
    ring.post(&[Buf::room(room, 4)]);
    driver.kick(ring.queue);
    ring.wait();
    driver.settle();
    match driver.way.wire {
        Wire::Msix => !machine.host.take_messages().is_empty(),
        Wire::Intx => driver.isr() & 1 != 0,
    }
}

fn in_every_way(test: impl Fn(Way, &Machine, &Driver<'_>)) {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            test(way, &machine, &driver);
        }
    });
}

#[test]
fn vq_20_without_event_idx_the_flag_decides_and_used_event_is_nothing() {
    in_every_way(|_, machine, driver| {
        let ring = &driver.start(0)[0];
        for garbage in [0, 1, 0x1234, 0xffff] {
            ring.set_used_event(garbage);
            ring.set_avail_flags(0);
            assert!(interrupts(machine, driver, ring), "flags 0");
            ring.set_avail_flags(1);
            assert!(!interrupts(machine, driver, ring), "flags 1");
            ring.set_avail_flags(0xfffe);
            assert!(interrupts(machine, driver, ring), "the other flags mean nothing");
        }
    });
}

#[test]
fn vq_21_with_event_idx_used_event_decides_and_the_flag_is_nothing() {
    in_every_way(|_, machine, driver| {
        let ring = &driver.start(feature::EVENT_IDX)[0];
        for flags in [0, 1] {
            ring.set_avail_flags(flags);
            let now = ring.used_index();
            ring.set_used_event(now.wrapping_add(3));
            let came: Vec<bool> = (0..8).map(|_| interrupts(machine, driver, ring)).collect();
            assert_eq!(came, [false, false, false, true, false, false, false, false]);
        }
    });
}

#[test]
fn vq_21_a_batch_that_passes_used_event_interrupts_once() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(feature::EVENT_IDX)[0];
        let room = machine.ram(4, 1);
        for (event, is_due) in [(0, true), (7, true), (8, false), (0xffff, false), (3, true)] {
            let now = ring.used_index();
            ring.set_used_event(now.wrapping_add(event));
            for _ in 0..8 {
                ring.post(&[Buf::room(room, 4)]);
            }
            driver.kick(0);
            for _ in 0..8 {
                ring.wait();
            }
            if is_due { driver.expect_queue(0) } else { driver.expect_quiet() }
        }
    });
}

#[test]
fn vq_22_used_event_0_fires_for_the_first_buffer_and_65536_later() {
    for way in [MODERN, LEGACY] {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(feature::EVENT_IDX)[0];
        let room = machine.ram(4, 1);
        ring.set_used_event(0);
        for n in 0..=65_536_u32 {
            ring.post(&[Buf::room(room, 4)]);
            driver.kick(0);
            ring.wait();
            if n == 0 || n == 65_536 {
                driver.expect_queue(0);
            }
        }
        driver.expect_quiet();
    }
}

#[test]
fn vq_23_the_devices_own_suppression_keeps_to_the_rules() {
    in_every_way(|_, machine, driver| {
        for bits in [0, feature::EVENT_IDX] {
            let ring = &driver.start(bits)[0];
            for n in 1..20_u16 {
                interrupts(machine, driver, ring);
                assert!(ring.used_flags() <= 1);
                if bits == 0 {
                    assert_eq!(ring.used_flags(), 0, "an idle device wants to hear the doorbell");
                } else {
                    assert_eq!(ring.used_flags(), 0, "always 0 with EVENT_IDX");
                    assert_eq!(ring.avail_event(), n, "an idle device wants to hear the next buffer");
                }
            }
        }
    });
}

/// A driver that rings only when the device wants to hear it, one request after the other: a doorbell that is not wanted
/// although it was due would stop it for ever.
#[test]
fn vq_24_no_doorbell_is_lost_between_looking_and_arming() {
    in_every_way(|way, machine, driver| {
        machine.host.forget_messages();
        for bits in [0, feature::EVENT_IDX] {
            let ring = &driver.start(bits)[0];
            let room = machine.ram(4, 1);
            let rounds = if way.is_modern() { 5_000 } else { 1_000 };
            for n in 0..rounds {
                for _ in 0..=n % 3 {
                    ring.post(&[Buf::room(room, 4)]);
                    if ring.wants_kick() {
                        driver.kick(0);
                    }
                }
                for _ in 0..=n % 3 {
                    ring.wait();
                }
            }
        }
    });
}

/// A driver that waits for interrupts and never looks at the ring without one.
#[test]
fn vq_24_no_interrupt_is_lost_between_using_and_looking() {
    in_every_way(|way, machine, driver| {
        for bits in [0, feature::EVENT_IDX] {
            let ring = &driver.start(bits)[0];
            let room = machine.ram(4, 1);
            for _ in 0..2_000 {
                if ring.has_event_idx {
                    ring.arm();
                }
                ring.post(&[Buf::room(room, 4)]);
                driver.kick(0);
                match way.wire {
                    Wire::Msix => assert_eq!(machine.host.wait_messages(1).len(), 1),
                    Wire::Intx => {
                        assert!(machine.host.wait_high(driver.function.gsi()));
                        assert_eq!(driver.isr(), 1);
                    }
                }
                assert!(ring.take().is_some(), "an interrupt comes after what it is about");
            }
        }
    });
}
