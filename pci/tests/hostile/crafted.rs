//! Attacks made by hand, each with its outcome.

use std::sync::atomic::{AtomicBool, Ordering};

use devices::virtio::Doorbell;
use pci::virtio::Faces;

use crate::allocations::Meter;
use crate::alone;
use crate::driver::function::{BUS_MASTER, IO, Kind, MEMORY};
use crate::driver::machine::{HIGH, HOLE, LOW};
use crate::driver::ring::WRITE;
use crate::driver::way::{MODERN, Way};
use crate::driver::{Buf, Driver, Machine, Plug, Probe, Ring, feature, patiently};
use crate::logged;
use crate::offences::{OFFENCES, Offence};
use crate::target::{TARGETS, Target};

/// The attacked device in slot 1, and one in slot 2 that has to go on.
fn machine_of(device: Box<dyn devices::virtio::VirtioDevice>) -> Machine {
    let faces = Faces::Transitional;
    let other = Box::new(Probe::inline(&[8]));
    let plugs = [(device, 16), (other, 17)];
    Machine::new(plugs.into_iter().map(|(device, gsi)| Plug { device, faces, gsi }).collect(), false)
}

/// Runs `test` on a machine with this target, and another device beside it.
fn on(target: Target, test: impl FnOnce(&Machine)) {
    // The host's ends go after the machine.
    let (device, _ends) = target.make();
    test(&machine_of(device));
}

/// Runs `test` on a machine with each target.
fn each_target(test: impl Fn(Target, &Machine)) {
    let _alone = alone();
    for target in TARGETS {
        on(target, |machine| test(target, machine));
    }
}

const WAY: Way = Way { faces: Faces::Transitional, ..MODERN };

#[test]
fn every_broken_ring_breaks_its_device_alone_and_until_a_reset() {
    let _alone = alone();
    for target in TARGETS {
        for Offence { name, commit } in OFFENCES {
            // These are harmless where nothing has to come back, and where either direction is welcome.
            let is_harmless = match *name {
                "nothing at all" => target != Target::Entropy,
                "wrong direction" => matches!(target, Target::Probe(_)),
                _ => false,
            };
            if is_harmless {
                continue;
            }
            println!("{target:?}: {name}");
            on(target, |machine| {
                let driver = Driver::find(machine, 1, WAY);
                let other = Driver::find(machine, 2, WAY);
                let room = machine.ram(64, 1);
                let rings = driver.start(feature::INDIRECT);
                let queue = target.queue();
                let buf = if target == Target::Console { Buf::out(room, 8) } else { Buf::room(room, 8) };
                logged::take(machine.name(1));
                commit(machine, &rings[usize::from(queue)], buf);
                (0..3).for_each(|_| driver.kick(queue));
                patiently("NEEDS_RESET", || driver.needs_reset());
                driver.expect_config();
                assert_eq!(logged::take(machine.name(1)).len(), 1, "it is told once");
                assert!(machine.describe(1).contains(" 1 faults"), "{}", machine.describe(1));
                Target::Probe(Doorbell::Inline).check(&other, room);
                target.check(&driver, room);
            });
        }
    }
}

#[test]
fn rings_in_mmio_or_unaligned_break_their_device_alone_and_until_a_reset() {
    each_target(|target, machine| {
        let driver = Driver::find(machine, 1, WAY);
        let room = machine.ram(64, 1);
        let bar = driver.function.bars[2];
        let good = driver.ring(0, 4, 0);
        for bad in [bar, bar + 0x2000, HOLE, LOW - 8, LOW, HIGH - 16, !0xf, good.desc + 1, good.desc + 2] {
            for part in 0..3 {
                let mut places = [good.desc, good.avail, good.used];
                places[part] = bad;
                // Aligned enough for this part.
                if bad == good.desc + 2 && part != 0 && part != 2 {
                    continue;
                }
                driver.negotiate(0);
                driver.enable(&Ring::at(machine, 0, 4, places, 0));
                assert!(driver.needs_reset(), "part {part} at {bad:#x}");
                driver.kick(0);
                driver.finish();
                driver.kick(0);
                driver.expect_config();
            }
        }
        target.check(&driver, room);
    });
}

#[test]
fn bars_on_top_of_each_other_and_of_ram_do_no_lasting_harm() {
    let _alone = alone();
    for is_showing in [false, true] {
        let plug = |gsi| Plug {
            device: Box::new(Probe::new(&[16, 4], Doorbell::Worker).0),
            faces: Faces::Transitional,
            gsi,
        };
        let machine = Machine::new([16, 17, 18].map(plug).into(), is_showing);
        let way = Way { is_showing, ..WAY };
        let mut drivers = [1, 2, 3].map(|slot| Driver::find(&machine, slot, way));
        let room = machine.ram(64, 1);
        let homes = drivers.each_ref().map(|d| d.function.bars);
        let places =
            [0, 0x8000, LOW / 2, LOW, homes[0][2], homes[1][2], 0xffff_8000, 0xfee0_0000, 0xe000_8000];
        for memory in places {
            for (n, driver) in drivers.iter_mut().enumerate() {
                driver.start(0);
                driver.function.place(2, memory & 0xffff_8000);
                driver.function.place(0, homes[0][0]);
                // Whoever answers there, the others do not mind.
                machine.store(memory + 0x14, 1, 0xff);
                machine.store(memory + 0x2000, 2, 1);
                machine.load(memory, 4);
                driver.function.set_command(0);
                driver.function.set_command(IO | MEMORY | BUS_MASTER);
                driver.function.place(2, homes[n][2]);
                driver.function.place(0, homes[n][0]);
            }
        }
        for driver in &drivers {
            // Vectors that were written to somebody else's table are written again.
            for vector in 0..driver.function.vectors() {
                let (address, data) = driver.message(vector);
                driver.function.set_vector(vector, address, data.into(), false);
            }
            Target::Probe(Doorbell::Worker).check(driver, room);
        }
    }
}

#[test]
fn an_msix_table_of_nonsense_hurts_nobody_else() {
    let _alone = alone();
    for is_showing in [false, true] {
        let way = Way { is_showing, ..MODERN };
        let machine = Machine::with(Probe::inline(&[16, 4]), way);
        let driver = Driver::find(&machine, 1, way);
        let room = machine.ram(64, 1);
        let rings = driver.start(0);
        let table = driver.function.table();
        machine.host.refuse_messages(true);
        for value in [0, u64::MAX, 0xfee0_0000, 0xdead_beef_dead_beef, 1] {
            for at in (0..0x1000).step_by(8) {
                machine.store(table + at, 8, value);
            }
            for vector in [0, 1, 2, 3, 0xfffe] {
                driver.set(crate::driver::Reg::QueueSelect, 0);
                driver.set(crate::driver::Reg::QueueVector, vector);
                rings[0].post(&[Buf::room(room, 8)]);
                driver.kick(0);
                rings[0].wait();
            }
            driver.function.set_msix(true, true);
            driver.function.set_msix(false, true);
            driver.function.set_msix(true, false);
        }
        machine.host.refuse_messages(false);
        let driver = Driver::find(&machine, 1, way);
        Target::Probe(Doorbell::Inline).check(&driver, room);
    }
}

#[test]
fn doorbells_before_driver_ok_and_after_a_reset_do_nothing() {
    each_target(|target, machine| {
        let driver = Driver::find(machine, 1, WAY);
        let room = machine.ram(64, 1);
        let queue = target.queue();
        driver.negotiate(0);
        let ring = driver.ring(queue, 4, 0);
        driver.enable(&ring);
        ring.set_descriptor(0, Buf::room(room, 64), WRITE, 0);
        ring.offer(0);
        (0..1000).for_each(|_| driver.kick(queue));
        assert_eq!(ring.used_index(), 0);
        driver.reset();
        (0..1000).for_each(|_| driver.kick(queue));
        assert_eq!(ring.used_index(), 0);
        assert_eq!(machine.bytes(room, 64), [0; 64]);
        assert!(!driver.needs_reset());
        target.check(&driver, room);
    });
}

#[test]
fn a_storm_of_resets_leaves_nothing_behind() {
    each_target(|target, machine| {
        machine.host.forget_messages();
        let driver = Driver::find(machine, 1, WAY);
        let room = machine.ram(4096, 1);
        let rings = driver.start(0);
        let queue = target.queue();
        let size = rings[usize::from(queue)].size;
        let block = driver.ring(queue, size, 0);
        driver.reset();
        let bell = driver.doorbell(queue);
        let meter = Meter::start();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Another vCPU kicks all the while.
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    machine.store(bell, 2, 0);
                    std::thread::yield_now();
                }
            });
            for _ in 0..500 {
                machine.set_bytes(block.avail, &vec![0; usize::from(size) * 2 + 6]);
                machine.set_bytes(block.used, &vec![0; usize::from(size) * 8 + 6]);
                driver.negotiate(0);
                let ring = Ring::at(machine, queue, size, [block.desc, block.avail, block.used], 0);
                driver.enable(&ring);
                driver.finish();
                let buf = if target == Target::Console { Buf::out(room, 64) } else { Buf::room(room, 4096) };
                for _ in 0..4 {
                    ring.post(&[buf]);
                }
                driver.kick(queue);
                driver.reset();
            }
            is_done.store(true, Ordering::Relaxed);
        });
        assert!(meter.peak() < 1 << 20, "{} bytes", meter.peak());
        target.check(&driver, room);
    });
}

/// The ring changes under the device's eyes, as when another vCPU writes it: what was checked once is what is used.
#[test]
fn a_ring_that_is_rewritten_while_it_is_read_breaks_nothing_else() {
    each_target(|target, machine| {
        machine.host.forget_messages();
        let driver = Driver::find(machine, 1, WAY);
        let other = Driver::find(machine, 2, WAY);
        let room = machine.ram(64, 1);
        let queue = target.queue();
        let is_done = AtomicBool::new(false);
        let ring = driver.ring(queue, 4, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Lengths and addresses in turn inside and outside of RAM, links in turn good and bad.
                let good = [room.to_le_bytes(), [64, 0, 0, 0, 2, 0, 1, 0]].concat();
                let bad = [HOLE.to_le_bytes(), [0xff, 0xff, 0xff, 0xff, 7, 0, 9, 0]].concat();
                while !is_done.load(Ordering::Relaxed) {
                    for n in 0..4 {
                        machine.set_bytes(ring.desc + n * 16, &good);
                        machine.set_bytes(ring.desc + n * 16, &bad);
                    }
                }
            });
            for round in 0..3_000_u16 {
                if driver.status() & 0x44 != 4 {
                    driver.negotiate(feature::INDIRECT);
                    machine.set_bytes(ring.avail, &[0; 14]);
                    let fresh = Ring::at(machine, queue, 4, [ring.desc, ring.avail, ring.used], 0);
                    driver.enable(&fresh);
                    driver.finish();
                }
                let index = u16::from_le_bytes(machine.bytes(ring.avail + 2, 2).try_into().unwrap());
                machine.set_bytes(ring.avail + 2, &index.wrapping_add(1).to_le_bytes());
                machine.set_bytes(ring.avail + 4, &[0, 0, 1, 0, 2, 0, 3, 0]);
                driver.kick(round % 2);
            }
            is_done.store(true, Ordering::Relaxed);
        });
        Target::Probe(Doorbell::Inline).check(&other, room);
        target.check(&driver, room);
    });
}

/// Whoever asks for the impossible allocates nothing of it.
#[test]
fn no_length_that_a_guest_names_is_allocated() {
    each_target(|target, machine| {
        machine.host.forget_messages();
        let driver = Driver::find(machine, 1, WAY);
        let whole = Buf { addr: 0, len: u32::try_from(LOW).unwrap(), is_writable: target != Target::Console };
        // The device writes its own rings over: that is the guest's wish, too.
        let rings = driver.start(feature::INDIRECT);
        let ring = &rings[usize::from(target.queue())];
        let half = Buf { addr: LOW / 2, len: whole.len / 2, ..whole };
        let meter = Meter::start();
        ring.post(&[half]);
        ring.post_indirect(&[half; 40]);
        driver.kick(target.queue());
        patiently("both are answered", || {
            while ring.take().is_some() {}
            ring.in_flight() == 0 || driver.needs_reset()
        });
        assert!(meter.largest() < 256 << 10, "{} bytes at once", meter.largest());
        assert!(meter.peak() < 1 << 20, "{} bytes", meter.peak());
        assert!(driver.function.find_part(Kind::Common).is_some());
    });
}
