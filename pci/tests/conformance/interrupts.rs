//! The interrupt status and the line (VIRTIO 1.3 §4.1.4.5, §4.1.5.3; PCI 3.0 §2.2.6).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use devices::virtio::Doorbell;
use pci::virtio::Faces;

use crate::driver::function::{BUS_MASTER, INTX_DISABLE, IO, MEMORY, STATUS};
use crate::driver::way::{MODERN, MODERN_INTX, Wire, every_way, ways_by};
use crate::driver::{Buf, Driver, Machine, Plug, Probe, Way, patiently};
use crate::{DOORBELLS, Done, echo, probe, request};

fn intx_ways(test: impl Fn(Way)) {
    ways_by(Wire::Intx, test);
}

#[test]
fn pci_50_reading_the_status_returns_it_clears_it_and_drops_the_line() {
    intx_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        request(&driver, &rings[0]);
        assert!(machine.host.is_high(16));
        assert_eq!(driver.isr(), 1);
        assert!(!machine.host.is_high(16));
        assert_eq!(driver.isr(), 0);
    });
}

#[test]
fn pci_51_a_queues_interrupt_sets_bit_0_first() {
    intx_ways(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            for ring in &rings {
                request(&driver, ring);
                assert!(machine.host.wait_high(16));
                assert_eq!(driver.isr(), 1, "whoever sees the line finds the reason");
            }
        }
    });
}

#[test]
fn pci_52_a_configuration_change_sets_bit_1_whatever_the_wire() {
    every_way(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        driver.start(0);
        control.change_config(1);
        driver.settle();
        assert_eq!(driver.isr(), 2);
        assert_eq!(driver.isr(), 0);
    });
}

#[test]
fn pci_53_status_bit_3_shows_that_the_pin_is_asserted() {
    intx_ways(|way| {
        let (machine, control) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let is_shown = || driver.function.config(STATUS, 2) & 8 != 0;
        assert!(!is_shown());
        request(&driver, &rings[0]);
        assert!(is_shown());
        // It shows even while the pin is silenced.
        driver.function.set_command(IO | MEMORY | BUS_MASTER | INTX_DISABLE);
        assert!(is_shown());
        driver.isr();
        assert!(!is_shown());
        control.change_config(4);
        driver.settle();
        assert!(is_shown());
        driver.function.set_msix(true, false);
        assert!(!is_shown(), "MSI-X is on");
    });
}

#[test]
fn pci_54_the_line_is_a_level_that_functions_share() {
    for faces in [Faces::Modern, Faces::Transitional] {
        let plug = |_| Plug { device: Box::new(Probe::inline(&[8])), faces, gsi: 19 };
        let machine = Machine::new((0..3).map(plug).collect(), false);
        let way = Way { faces, ..MODERN_INTX };
        let drivers = [1, 2, 3].map(|slot| Driver::find(&machine, slot, way));
        let rings = drivers.each_ref().map(|d| d.start(0));
        assert_eq!(drivers[0].function.config(0x3d, 1), 1);
        request(&drivers[0], &rings[0][0]);
        request(&drivers[1], &rings[1][0]);
        assert_eq!(drivers[2].isr(), 0, "not mine");
        assert!(machine.host.is_high(19));
        assert_eq!(drivers[0].isr(), 1);
        assert!(machine.host.is_high(19), "the other still holds it");
        assert_eq!(drivers[1].isr(), 1);
        assert!(!machine.host.is_high(19));
        assert_eq!(machine.host.rises(), 1);
    }
}

#[test]
fn pci_54_command_bit_10_silences_the_pin_and_gives_it_back() {
    intx_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let on = IO | MEMORY | BUS_MASTER;
        driver.function.set_command(on | INTX_DISABLE);
        request(&driver, &rings[0]);
        assert!(!machine.host.is_high(16));
        driver.function.set_command(on);
        assert!(machine.host.is_high(16), "the level is what the status says");
        driver.function.set_command(on | INTX_DISABLE);
        assert!(!machine.host.is_high(16));
        driver.function.set_command(on);
        assert_eq!(driver.isr(), 1);
        assert!(!machine.host.is_high(16));
    });
}

/// While one vCPU reads the status without pause, every request's bit is seen by somebody, once.
#[test]
fn pci_55_no_interrupt_is_lost_between_reading_and_clearing() {
    intx_ways(|way| {
        let (machine, _) = probe(way, Doorbell::Worker);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let place = match way.is_modern() {
            true => driver.function.address(crate::driver::function::Kind::Isr),
            false => driver.function.bars[0] + 0x13,
        };
        let read = || if way.is_modern() { machine.load(place, 1) } else { machine.port_in(place, 1) };
        let (seen, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let _done = Done(&is_done);
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    seen.fetch_add(read() & 1, Ordering::SeqCst);
                    // As long as it takes to leave a guest and enter it again.
                    std::thread::yield_now();
                }
            });
            let room = machine.ram(4, 1);
            for n in 1..=1_000 {
                rings[0].post(&[Buf::room(room, 4)]);
                driver.kick(0);
                rings[0].wait();
                patiently("the bit is seen", || seen.load(Ordering::SeqCst) == n);
            }
        });
        assert_eq!(driver.isr(), 0);
        assert!(!machine.host.is_high(16));
    });
}

/// One interrupt for one request, while another vCPU masks and unmasks: none lost, none too many.
#[test]
fn interrupts_are_exact_while_vectors_are_masked_and_unmasked() {
    for (doorbell, is_showing) in DOORBELLS.into_iter().flat_map(|d| [(d, false), (d, true)]) {
        let way = Way { is_showing, ..MODERN };
        let (machine, _) = probe(way, doorbell);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let control = driver.function.table() + 16 + 12;
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _done = Done(&is_done);
            scope.spawn(|| {
                for mask in [1, 0].into_iter().cycle() {
                    machine.store(control, 4, mask);
                    if is_done.load(Ordering::Relaxed) {
                        break;
                    }
                }
                machine.store(control, 4, 0);
            });
            let room = machine.ram(4, 1);
            for n in 0..5_000 {
                rings[0].post(&[Buf::room(room, 4)]);
                driver.kick(0);
                rings[0].wait();
                assert_eq!(machine.host.wait_messages(1).len(), 1, "request {n}");
            }
        });
        driver.expect_quiet();
        assert_eq!(machine.host.sent(), 5_000);
    }
}

/// One interrupt for one request, while another vCPU sends the vector from one to another as Linux does, and now and then
/// masks the whole function: none lost, none too many, and none of which one half is old and the other new.
#[test]
fn interrupts_are_exact_while_a_vector_goes_from_vcpu_to_vcpu() {
    for (doorbell, is_showing) in DOORBELLS.into_iter().flat_map(|d| [(d, false), (d, true)]) {
        // Several machines: one that had to hide its table too often stops showing it.
        for _ in 0..20 {
            let (machine, _) = probe(Way { is_showing, ..MODERN }, doorbell);
            let driver = Driver::find(&machine, 1, MODERN);
            let rings = driver.start(0);
            let messages = [(0xfee0_1000, 0x41), (0xfee0_2000, 0x52)];
            let is_done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let _done = Done(&is_done);
                scope.spawn(|| {
                    for (n, (address, data)) in (1..).zip(messages.into_iter().cycle()) {
                        driver.function.set_vector(1, address, data, false);
                        if is_done.load(Ordering::Relaxed) {
                            break;
                        }
                        if n % 64 == 0 {
                            driver.function.set_msix(true, true);
                            driver.function.set_msix(true, false);
                        }
                    }
                });
                let room = machine.ram(4, 1);
                for n in 0..500 {
                    rings[0].post(&[Buf::room(room, 4)]);
                    driver.kick(0);
                    rings[0].wait();
                    let came = machine.host.wait_messages(1);
                    let [(address, data)] = came[..] else { panic!("request {n}: {came:x?}") };
                    let is_whole =
                        messages.contains(&(address, data.into())) || (address, data) == driver.message(1);
                    assert!(is_whole, "request {n}: {address:#x}, {data:#x}");
                }
            });
            driver.settle();
            assert_eq!(machine.host.take_messages(), []);
            assert_eq!(machine.host.sent(), 500);
        }
    }
}

/// The same for a line that two devices share, each used by a vCPU of its own, while a third vCPU silences the pins and
/// gives them back: each device's status says once what the line is for, and the line is low when both have been asked.
#[test]
fn interrupts_are_exact_on_a_line_that_two_devices_share() {
    for is_silenced in [false, true] {
        let plug = |_| Plug {
            device: Box::new(Probe::new(&[8], Doorbell::Worker).0),
            faces: Faces::Transitional,
            gsi: 20,
        };
        let machine = Machine::new((0..2).map(plug).collect(), false);
        let way = Way { faces: Faces::Transitional, ..MODERN_INTX };
        let drivers = [1, 2].map(|slot| Driver::find(&machine, slot, way));
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _done = Done(&is_done);
            scope.spawn(|| {
                let on = IO | MEMORY | BUS_MASTER;
                while is_silenced && !is_done.load(Ordering::Relaxed) {
                    drivers.iter().for_each(|driver| driver.function.set_command(on | INTX_DISABLE));
                    drivers.iter().for_each(|driver| driver.function.set_command(on));
                }
            });
            let users = drivers.each_ref().map(|driver| {
                let machine = &machine;
                scope.spawn(move || {
                    let rings = driver.start(0);
                    let room = machine.ram(4, 1);
                    for _ in 0..3_000 {
                        rings[0].post(&[Buf::room(room, 4)]);
                        driver.kick(0);
                        rings[0].wait();
                        driver.settle();
                        let is_high =
                            if is_silenced { machine.host.wait_high(20) } else { machine.host.is_high(20) };
                        assert!(is_high, "a request is done and nobody has read the status");
                        assert_eq!(driver.isr(), 1);
                        assert_eq!(driver.isr(), 0);
                    }
                })
            });
            users.into_iter().for_each(|user| user.join().unwrap());
        });
        assert!(!machine.host.is_high(20));
        if !is_silenced {
            assert!(machine.host.rises() <= 6_000, "a rise for each request at most");
        }
    }
}

#[test]
fn a_message_that_the_host_refuses_stops_nothing() {
    let (machine, _) = probe(MODERN, Doorbell::Inline);
    let driver = Driver::find(&machine, 1, MODERN);
    let rings = driver.start(0);
    machine.host.refuse_messages(true);
    request(&driver, &rings[0]);
    assert!(machine.describe(1).contains("1 lost"), "{}", machine.describe(1));
    machine.host.refuse_messages(false);
    echo(&driver, &rings[0], b"heard again");
}
