//! Split rings: where they lie, what goes into them, in which order (VIRTIO 1.3 §2.7).

use std::sync::atomic::{AtomicBool, Ordering};

use devices::virtio::Doorbell;

use crate::driver::way::{LEGACY, MODERN, every_way, modern_ways};
use crate::driver::{Buf, Driver, Machine, Probe, Reg, Ring, feature, patiently};
use crate::{DOORBELLS, Done, echo, inline, probe};

#[test]
fn vq_01_the_parts_may_lie_anywhere() {
    modern_ways(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        // Least alignment, no order, above 4 GiB.
        let low = machine.ram(0x1000, 0x1000);
        let high = machine.high_ram(0x3000, 0x1000);
        for places in [
            [low + 0x10, low + 0x802, low + 0x404],
            [low + 0x800, low + 0x402, low + 0x4],
            [high + 0xff0, high + 0x1ffe, high + 0x2004],
            [low + 0x7f0, high + 0x2, high + 0x2ffc - 70 + 2],
        ] {
            let [desc, avail, used] = [places[0], places[1], places[2] & !3];
            machine.set_bytes(low, &[0; 0x1000]);
            machine.set_bytes(high, &[0; 0x3000]);
            driver.negotiate(0);
            let ring = Ring::at(&machine, 0, 8, [desc, avail, used], 0);
            driver.enable(&ring);
            driver.finish();
            (0..20).for_each(|_| echo(&driver, &ring, b"anywhere"));
        }
    });
}

#[test]
fn vq_01_buffers_may_lie_above_4_gib() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let at = machine.high_ram(16, 1);
        machine.set_bytes(at, b"above us");
        rings[0].post(&[Buf::out(at, 8), Buf::room(at + 8, 8)]);
        driver.kick(0);
        rings[0].wait();
        assert_eq!(machine.bytes(at + 8, 8), b"above us");
    });
}

#[test]
fn vq_02_all_fields_are_little_endian() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let ring = &driver.start(0)[0];
        let room = machine.ram(0x102, 1);
        ring.set_descriptor(5, Buf::room(room, 0x102), 2, 0);
        machine.set_bytes(ring.avail, &[0, 0, 1, 0, 5, 0]);
        driver.kick(0);
        patiently("used", || ring.used_index() == 1);
        assert_eq!(machine.bytes(ring.used, 12), [0, 0, 1, 0, 5, 0, 0, 0, 2, 1, 0, 0]);
    });
}

#[test]
fn vq_14_indices_run_freely_and_every_new_entry_is_taken() {
    for way in [MODERN, LEGACY] {
        for bits in [0, feature::EVENT_IDX] {
            let machine = inline(way);
            machine.host.forget_messages();
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(bits);
            let room = machine.ram(4, 1);
            let mut done = 0;
            // Batches of one to eight, past the wrap of the index.
            for batch in (1..=8).cycle() {
                for _ in 0..batch {
                    rings[0].post(&[Buf::room(room, 4)]);
                }
                driver.kick(0);
                (0..batch).for_each(|_| assert_eq!(rings[0].wait().1, 4));
                done += batch;
                if done > 70_000 {
                    break;
                }
            }
            assert_eq!(rings[0].in_flight(), 0);
        }
    }
}

#[test]
fn vq_15_an_available_index_that_cannot_be_is_an_error_and_no_endless_loop() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            // Too far ahead, and back.
            for index in [9, 10, 0x8000, 0xffff] {
                let (machine, _) = probe(way, doorbell);
                let driver = Driver::find(&machine, 1, way);
                let rings = driver.start(0);
                rings[0].set_avail_index(index);
                driver.kick(0);
                patiently("NEEDS_RESET", || driver.needs_reset());
                assert_eq!(rings[0].used_index(), 0);
            }
        }
    });
}

#[test]
fn vq_16_a_used_element_and_its_data_are_there_before_the_index_says_so() {
    let (machine, _) = probe(MODERN, Doorbell::Worker);
    machine.host.forget_messages();
    let driver = Driver::find(&machine, 1, MODERN);
    let rings = driver.start(0);
    let room = machine.ram(64, 1);
    for _ in 0..10_000 {
        machine.set_bytes(room, &[0; 64]);
        let head = rings[0].post(&[Buf::room(room, 64)]);
        driver.kick(0);
        // This is the other processor: it looks at the index, and at once at what it announces.
        patiently("used", || rings[0].used_index() != 0 && rings[0].take() == Some((head, 64)));
        assert_eq!(machine.bytes(room, 64), [0xa5; 64]);
    }
}

#[test]
fn vq_17_the_length_is_what_was_written() {
    every_way(|way| {
        let machine = inline(way);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let at = machine.ram(64, 1);
        machine.set_bytes(at, &[0x77; 64]);
        for (out, room, expected) in [(5, 0, 0), (0, 16, 16), (5, 16, 5), (16, 5, 5)] {
            machine.set_bytes(at + 32, &[0x99; 32]);
            let bufs = [Buf::out(at, out), Buf::room(at + 32, room)];
            rings[0].post(&bufs);
            driver.kick(0);
            assert_eq!(rings[0].wait().1, expected);
            let behind = usize::try_from(expected).unwrap();
            assert_eq!(machine.bytes(at + 32 + u64::from(expected), 32 - behind), vec![0x99; 32 - behind]);
        }
    });
}

#[test]
fn vq_18_every_head_comes_back_once() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            machine.host.forget_messages();
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            let room = machine.ram(4, 1);
            for round in 0..500 {
                // The ring itself sees to it that a head that comes back was outstanding.
                let ring = &rings[round % 2];
                let mut expected: Vec<u16> = (0..8).map(|_| ring.post(&[Buf::room(room, 4)])).collect();
                driver.kick(ring.queue);
                let mut back: Vec<u16> = (0..8).map(|_| ring.wait().0).collect();
                expected.sort_unstable();
                back.sort_unstable();
                assert_eq!(back, expected);
            }
        }
    });
}

#[test]
fn vq_19_requests_may_come_back_in_any_order() {
    every_way(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        control.go_backwards(true);
        let bufs: Vec<u64> = (0..8).map(|_| machine.ram(4, 1)).collect();
        for _ in 0..5 {
            let mut heads: Vec<u16> = bufs.iter().map(|at| rings[0].post(&[Buf::room(*at, 4)])).collect();
            driver.kick(0);
            let back: Vec<u16> = (0..8).map(|_| rings[0].wait().0).collect();
            heads.reverse();
            assert_eq!(back, heads);
        }
    });
}

#[test]
fn vq_25_a_size_that_the_driver_lowered_holds() {
    modern_ways(|way| {
        let machine = Machine::with(Probe::inline(&[256]), way);
        let driver = Driver::find(&machine, 1, way);
        for size in [4, 1, 2, 128, 256] {
            driver.negotiate(0);
            let ring = driver.ring(0, size, 0);
            driver.enable(&ring);
            driver.finish();
            assert_eq!(driver.get(Reg::QueueSize), u64::from(size));
            let room = machine.ram(4, 1);
            for _ in 0..600 {
                ring.post(&[Buf::room(room, 4)]);
                driver.kick(0);
                assert_eq!(ring.wait().1, 4);
            }
            machine.host.take_messages();
            // One more than the lowered size is an error.
            let done = ring.used_index();
            ring.set_avail_index(done.wrapping_add(size + 1));
            driver.kick(0);
            assert!(driver.needs_reset());
        }
    });
}

/// More work than one hold of the lock may do: 64 requests, or 64 KiB.
#[test]
fn more_than_one_service_may_do_is_continued_until_it_is_done() {
    for doorbell in DOORBELLS {
        for len in [1_u32, 4096, 0x1_0000] {
            let machine = Machine::with(Probe::new(&[256], doorbell).0, MODERN);
            machine.host.forget_messages();
            let driver = Driver::find(&machine, 1, MODERN);
            let ring = &driver.start(0)[0];
            let room = machine.ram(len.into(), 1);
            for _ in 0..3 {
                for _ in 0..256 {
                    ring.post(&[Buf::room(room, len)]);
                }
                driver.kick(0);
                (0..256).for_each(|_| assert_eq!(ring.wait().1, len));
            }
        }
    }
}

/// While one vCPU keeps a device busy, another can still use its registers.
#[test]
fn a_busy_queue_does_not_keep_others_from_the_registers() {
    let machine = Machine::with(Probe::new(&[256, 8], Doorbell::Worker).0, MODERN);
    machine.host.forget_messages();
    let driver = Driver::find(&machine, 1, MODERN);
    let rings = driver.start(0);
    let room = machine.ram(0x1_0000, 1);
    let is_done = AtomicBool::new(false);
    let bell = driver.doorbell(0);
    std::thread::scope(|scope| {
        let _done = Done(&is_done);
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                machine.store(bell, 2, 0);
                std::thread::yield_now();
            }
        });
        for _ in 0..256 {
            rings[0].post(&[Buf::room(room, 0x1_0000)]);
        }
        driver.kick(0);
        for _ in 0..100 {
            rings[1].post(&[Buf::room(room, 4)]);
            driver.kick(1);
            rings[1].wait();
            driver.settle();
        }
        for _ in 0..256 {
            rings[0].wait();
        }
    });
}
