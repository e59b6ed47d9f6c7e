//! BARs that move while the device is in use, decoding that is switched off, bus mastering that is taken away: doorbells
//! follow, and nothing is lost (design.md, section 3).

use devices::virtio::Doorbell;
use pci::host::Bell;
use pci::virtio::Faces;

use crate::driver::function::{BUS_MASTER, IO, Kind, MEMORY};
use crate::driver::way::{MODERN, every_way};
use crate::driver::{Buf, Driver, Machine, Plug, Probe, feature, patiently};
use crate::{DOORBELLS, echo, probe};

/// Where the device's doorbells are bound, in order.
fn bells(machine: &Machine) -> Vec<u64> {
    let place = |bell| match bell {
        Bell::Memory(at) => at,
        Bell::Port(port, value) => u64::from(port) << 32 | u64::from(value),
    };
    let mut all: Vec<u64> = machine.host.bells().into_iter().map(place).collect();
    all.sort_unstable();
    all
}

#[test]
fn doorbells_are_bound_while_the_driver_runs_and_at_no_other_time() {
    every_way(|way| {
        let (machine, _) = probe(way, Doorbell::Worker);
        let driver = Driver::find(&machine, 1, way);
        assert_eq!(bells(&machine), [0; 0]);
        driver.negotiate(0);
        let ring = driver.ring(0, 8, 0);
        driver.enable(&ring);
        assert_eq!(bells(&machine), [0; 0], "not before DRIVER_OK");
        driver.finish();
        let count = if way.faces == Faces::Transitional { 4 } else { 2 };
        assert_eq!(machine.host.bells().len(), count);
        echo(&driver, &ring, b"bound");
        driver.reset();
        assert_eq!(bells(&machine), [0; 0], "silent after a reset");
        assert_eq!(machine.host.refused(), [""; 0]);
    });
}

#[test]
fn inline_doorbells_are_never_bound() {
    every_way(|way| {
        let (machine, _) = probe(way, Doorbell::Inline);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        assert_eq!(bells(&machine), [0; 0]);
        echo(&driver, &rings[0], b"inline");
    });
}

#[test]
fn a_bar_that_moves_takes_its_doorbells_along() {
    every_way(|way| {
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let mut driver = Driver::find(&machine, 1, way);
            let rings = driver.start(0);
            let bar = if way.is_modern() { 2 } else { 0 };
            for _ in 0..10 {
                let old = driver.function.bars[bar];
                let size = driver.function.sizes[bar];
                let base = if way.is_modern() { machine.bar_space(size) } else { machine.port_space(size) };
                driver.function.place(bar, base);
                echo(&driver, &rings[0], b"here now");
                // Nobody is left at the old place.
                if way.is_modern() {
                    assert_eq!(machine.load(old, 4), 0xffff_ffff);
                    assert!(bells(&machine).iter().all(|at| !(old..old + size).contains(at)));
                } else {
                    assert_eq!(machine.port_in(old, 4), 0xffff_ffff);
                    assert!(bells(&machine).iter().all(|at| !(old..old + size).contains(&(at >> 32))));
                }
            }
            assert_eq!(machine.host.refused(), [""; 0]);
        }
    });
}

#[test]
fn doorbells_are_bound_only_while_their_space_is_decoded() {
    every_way(|way| {
        let (machine, _) = probe(way, Doorbell::Worker);
        let driver = Driver::find(&machine, 1, way);
        let rings = driver.start(0);
        let bound = bells(&machine);
        driver.function.set_command(BUS_MASTER);
        assert_eq!(bells(&machine), [0; 0]);
        driver.function.set_command(IO | MEMORY | BUS_MASTER);
        assert_eq!(bells(&machine), bound);
        echo(&driver, &rings[1], b"back again");
        assert_eq!(machine.host.refused(), [""; 0]);
    });
}

#[test]
fn a_place_that_another_bar_has_is_not_taken_from_it() {
    let plug =
        |_| Plug { device: Box::new(Probe::new(&[8], Doorbell::Worker).0), faces: Faces::Modern, gsi: 16 };
    let machine = Machine::new((0..2).map(plug).collect(), false);
    let first = Driver::find(&machine, 1, MODERN);
    let mut second = Driver::find(&machine, 2, MODERN);
    let rings = first.start(0);
    let home = second.function.bars[2];
    second.start(0);
    second.function.place(2, first.function.bars[2]);
    echo(&first, &rings[0], b"mine");
    second.function.place(2, home);
    let seconds = second.start(0);
    echo(&second, &seconds[0], b"and mine");
    echo(&first, &rings[0], b"still mine");
}

#[test]
fn without_bus_mastering_a_modern_function_touches_no_memory_and_loses_nothing() {
    for doorbell in DOORBELLS {
        for bits in [0, feature::EVENT_IDX] {
            let (machine, control) = probe(MODERN, doorbell);
            let driver = Driver::find(&machine, 1, MODERN);
            let rings = driver.start(bits);
            driver.function.set_command(MEMORY);
            let room = machine.ram(8, 1);
            rings[0].post(&[Buf::room(room, 8)]);
            driver.kick(0);
            control.change_config(9);
            driver.settle();
            assert_eq!(machine.bytes(room, 8), [0; 8]);
            assert_eq!(rings[0].used_index(), 0);
            assert_eq!(machine.host.take_messages(), [], "a message is a write to memory");
            driver.function.set_command(MEMORY | BUS_MASTER);
            assert_eq!(rings[0].wait().1, 8);
            // The queue's message and the configuration's.
            patiently("both messages", || machine.host.sent() == 2);
            machine.host.take_messages();
            if bits != 0 {
                rings[0].arm();
            }
            driver.isr();
            echo(&driver, &rings[1], b"master again");
        }
    }
}

/// A device that hears from the host without being allowed to touch memory must not be asked again and again.
#[test]
fn without_bus_mastering_the_host_does_not_spin() {
    let (machine, control) = probe(MODERN, Doorbell::Worker);
    let driver = Driver::find(&machine, 1, MODERN);
    driver.start(0);
    driver.function.set_command(MEMORY);
    control.poke();
    patiently("the device hears from the host once", || control.pokes() == 1);
}

/// What the guest reads without leaving is what it would read by leaving, whatever moves.
#[test]
fn a_page_of_configuration_space_shows_what_an_access_would() {
    every_way(|way| {
        if !way.is_showing {
            return;
        }
        let (machine, control) = probe(way, Doorbell::Inline);
        let mut driver = Driver::find(&machine, 1, way);
        let check = |driver: &Driver<'_>, what: &str| {
            for at in (0..0x100).step_by(4) {
                let page = driver.function.config(at, 4);
                assert_eq!(page, machine.config_by_access(1, at, 4), "{what}: {at:#x}");
            }
        };
        check(&driver, "before");
        let rings = driver.start(0);
        rings[0].post(&[Buf::room(machine.ram(8, 1), 8)]);
        driver.kick(0);
        check(&driver, "an interrupt is due");
        control.change_config(1);
        driver.settle();
        check(&driver, "another");
        driver.isr();
        check(&driver, "none is");
        driver.function.place(2, machine.bar_space(driver.function.sizes[2]));
        check(&driver, "moved");
        driver.function.set_command(0);
        check(&driver, "not decoded");
        for at in 0..0x100 {
            driver.function.set_config(at, 1, 0xff);
            // Reading the window acts; the page is gone as soon as it could.
            if way.is_modern() && at >= driver.function.part(Kind::Window).at + 4 {
                break;
            }
            check(&driver, "all ones");
        }
    });
}

#[test]
fn leg_23_a_legacy_driver_need_not_switch_bus_mastering_on() {
    every_way(|way| {
        if way.faces == Faces::Modern {
            return;
        }
        for doorbell in DOORBELLS {
            let (machine, _) = probe(way, doorbell);
            let driver = Driver::find(&machine, 1, way);
            driver.function.set_command(IO | MEMORY);
            let rings = driver.start(0);
            echo(&driver, &rings[0], b"no master");
        }
    });
}

#[test]
fn doorbells_of_the_window_work_without_decoding() {
    let (machine, _) = probe(MODERN, Doorbell::Worker);
    let driver = Driver::find(&machine, 1, MODERN);
    let rings = driver.start(0);
    let bell = driver.doorbell(0) - driver.function.bars[2];
    driver.function.set_command(BUS_MASTER);
    rings[0].post(&[Buf::room(machine.ram(8, 1), 8)]);
    let window = driver.function.part(Kind::Window).at;
    driver.function.set_config(window + 4, 1, 2);
    driver.function.set_config(window + 8, 4, bell);
    driver.function.set_config(window + 12, 4, 2);
    driver.function.set_config(window + 16, 2, 0);
    assert_eq!(rings[0].wait().1, 8);
}
