//! Queues that are reset one by one (VIRTIO 1.3 §2.6.1).

use crate::driver::way::modern_ways;
use crate::driver::{Buf, Driver, NO_VECTOR, Reg, Way, feature};
use crate::{DOORBELLS, echo, inline, probe};

fn in_every_way(test: impl Fn(Way, devices::virtio::Doorbell)) {
    modern_ways(|way| DOORBELLS.into_iter().for_each(|doorbell| test(way, doorbell)));
}

fn reset(driver: &Driver<'_>, queue: u16) {
    driver.set(Reg::QueueSelect, queue.into());
    driver.set(Reg::QueueReset, 1);
    assert_eq!(driver.get(Reg::QueueReset), 0, "the reset is over when the write returns");
    assert_eq!(driver.get(Reg::QueueEnable), 0);
}

#[test]
fn rr_01_a_queue_reset_is_over_at_once_and_the_queue_disabled() {
    in_every_way(|way, doorbell| {
        let (machine, control) = probe(way, doorbell);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::RING_RESET);
        reset(&driver, 0);
        assert_eq!(control.queue_resets(), [0]);
        driver.set(Reg::QueueSelect, 1);
        assert_eq!(driver.get(Reg::QueueEnable), 1);
        echo(&driver, &rings[1], b"the other goes on");
        // Only 1 resets.
        for odd in [0, 2, 3, 0xffff] {
            driver.set(Reg::QueueReset, odd);
            assert_eq!(driver.get(Reg::QueueEnable), 1);
        }
    });
}

#[test]
fn rr_02_after_a_queue_reset_nothing_of_it_is_left() {
    in_every_way(|way, doorbell| {
        let (machine, control) = probe(way, doorbell);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::RING_RESET | feature::EVENT_IDX);
        (0..3).for_each(|_| echo(&driver, &rings[0], b"indices move on"));
        control.hold(true);
        let room = machine.ram(64, 1);
        rings[0].post(&[Buf::room(room, 64)]);
        driver.kick(0);
        reset(&driver, 0);
        let used = machine.bytes(rings[0].used, 70);
        control.hold(false);
        // The other queue is served, the reset one is not, whoever rings.
        driver.kick(0);
        control.poke();
        echo(&driver, &rings[1], b"the other goes on");
        driver.kick(0);
        control.change_config(1);
        driver.expect_config();
        assert_eq!(machine.bytes(room, 64), [0; 64]);
        assert_eq!(machine.bytes(rings[0].used, 70), used);
        // All of its state is as at power-on, the indices included.
        driver.set(Reg::QueueSelect, 0);
        assert_eq!(driver.get(Reg::QueueSize), 8);
        assert_eq!(driver.get(Reg::QueueVector), NO_VECTOR);
        for reg in [Reg::QueueDesc, Reg::QueueDriver, Reg::QueueDevice] {
            assert_eq!(driver.get(reg), 0);
        }
        let fresh = driver.ring(0, 8, feature::EVENT_IDX);
        driver.enable(&fresh);
        echo(&driver, &fresh, b"from index 0");
        assert_eq!(fresh.used_index(), 1);
    });
}

#[test]
fn rr_03_a_queue_can_be_enabled_anew_with_another_size_and_place() {
    in_every_way(|way, doorbell| {
        let (machine, _) = probe(way, doorbell);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(feature::RING_RESET);
        let room = machine.ram(4, 1);
        for size in [4, 2, 1, 8].into_iter().cycle().take(40) {
            // In the middle of traffic on both.
            for ring in &rings {
                if ring.in_flight() < 4 {
                    ring.post(&[Buf::room(room, 4)]);
                    driver.kick(ring.queue);
                }
            }
            reset(&driver, 1);
            let fresh = driver.ring(1, size, 0);
            driver.enable(&fresh);
            assert_eq!(driver.get(Reg::QueueReset), 0);
            assert_eq!(driver.get(Reg::QueueEnable), 1);
            for _ in 0..10 {
                fresh.post(&[Buf::room(room, 4)]);
                driver.kick(1);
                fresh.wait();
            }
            while rings[0].in_flight() > 0 {
                rings[0].wait();
            }
            reset(&driver, 1);
        }
        assert!(!driver.needs_reset());
        assert_eq!(machine.host.refused(), [""; 0]);
    });
}

#[test]
fn rr_04_the_register_does_not_exist_unless_it_was_negotiated() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        driver.set(Reg::QueueSelect, 0);
        driver.set(Reg::QueueReset, 1);
        assert_eq!(driver.get(Reg::QueueReset), 0);
        assert_eq!(driver.get(Reg::QueueEnable), 1);
        echo(&driver, &rings[0], b"still there");
    });
}
