//! What the guests of all targets can do.

use std::sync::Once;

use devices::virtio::VirtioDevice;
use pci::virtio::Faces;

use crate::driver::ring::{INDIRECT, WRITE};
use crate::driver::way::{Face, Way, Wire};
use crate::driver::{Buf, Driver, Machine, Ring, feature};
use crate::input::Input;

/// A machine with `device`, and a driver of it, as the first byte says.
pub fn way(input: &mut Input<'_>) -> Way {
    let bits = input.byte();
    let (faces, face) = match bits & 3 {
        0 => (Faces::Modern, Face::Modern),
        1 => (Faces::Legacy, Face::Legacy),
        2 => (Faces::Transitional, Face::Modern),
        _ => (Faces::Transitional, Face::Legacy),
    };
    let wire = if bits & 4 == 0 { Wire::Msix } else { Wire::Intx };
    Way { faces, face, wire, is_showing: bits & 8 != 0 }
}

/// A machine with `device` in slot 1.
pub fn machine(device: impl VirtioDevice + 'static, way: Way) -> Machine {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| log::set_max_level(log::LevelFilter::Off));
    let machine = Machine::with(device, way);
    machine.host.forget_messages();
    machine
}

/// The feature bits that a byte stands for.
pub fn features(input: &mut Input<'_>) -> u128 {
    let bits = input.byte();
    let chosen = [feature::INDIRECT, feature::EVENT_IDX, feature::RING_RESET, 1, 2, 4, 1 << 27, 1 << 33];
    (0..).zip(chosen).filter(|(n, _)| bits >> n & 1 != 0).fold(0, |all, (_, bit)| all | bit)
}

/// Where the fuzzer's own bytes go: a page of nothing in particular.
const PLAYGROUND: u64 = 0x8000;

/// Something with a ring and its memory.
pub fn touch_ring(machine: &Machine, ring: &Ring<'_>, input: &mut Input<'_>) {
    match input.below(8) {
        // A descriptor that makes some sense, of the ring or of a table.
        0..=3 => {
            let table = if input.byte() & 1 == 0 { ring.desc } else { PLAYGROUND };
            let entry = u64::from(input.below(16));
            let addr = match input.below(6) {
                0 => input.value(8),
                1 => ring.avail,
                2 => ring.used,
                3 => PLAYGROUND,
                _ => 0x10_0000 + input.word() * 16,
            };
            let len = match input.below(4) {
                0 => input.value(4),
                1 => 16 * u64::from(input.below(20)),
                _ => input.word(),
            };
            let len = u32::try_from(len & 0xffff_ffff).unwrap();
            let buf = Buf { addr, len, is_writable: false };
            let flags = input.below(8).into();
            let next = u16::from(input.below(20));
            Ring::write_descriptor(machine, table + 16 * entry, buf, flags, next);
        }
        // Any bytes anywhere in it.
        4 => {
            let base = [ring.desc, ring.avail, ring.used, PLAYGROUND][usize::from(input.below(4))];
            let at = base + input.word() % 0x400;
            let count = input.below(24);
            let bytes = input.bytes(count);
            machine.set_bytes(at, &bytes);
        }
        5 => ring.set_used_event(u16::try_from(input.word()).unwrap()),
        6 => ring.set_avail_flags(input.byte().into()),
        _ => ring.set_avail_index(u16::try_from(input.word()).unwrap()),
    }
}

/// Makes something available.
pub fn offer(machine: &Machine, ring: &Ring<'_>, input: &mut Input<'_>) {
    let head = input.below(20);
    if head < 16 {
        return ring.offer(head.into());
    }
    // A request as drivers make it.
    let len = u32::try_from(input.word()).unwrap();
    let is_writable = input.byte() & 1 != 0;
    let buf = Buf { addr: 0x10_0000, len, is_writable };
    let flags = if is_writable { WRITE } else { 0 };
    if head == 16 {
        ring.set_descriptor(0, buf, flags, 0);
    } else {
        Ring::write_descriptor(machine, PLAYGROUND, buf, flags, 0);
        ring.set_descriptor(0, Buf::out(PLAYGROUND, 16), INDIRECT, 0);
    }
    ring.offer(0);
}

/// An access to a register, a port or configuration space, of any width and anywhere.
pub fn touch_register(driver: &Driver<'_>, input: &mut Input<'_>) {
    let machine = driver.machine;
    let width = input.width();
    match input.below(8) {
        0 => drop(machine.load(memory(driver, input), width)),
        1..=3 => {
            let at = memory(driver, input);
            machine.store(at, width, input.value(width));
        }
        4 => drop(machine.port_in(port(driver, input), width.min(4))),
        5 => {
            let at = port(driver, input);
            machine.port_out(at, width.min(4), input.value(width));
        }
        6 => drop(machine.config(1, input.word() & 0xfff, width.min(4))),
        _ => {
            let at = input.word() & 0xff;
            let value = input.value(width);
            // Where its BARs are, the driver itself says.
            if !(0x08..0x28).contains(&at) {
                machine.set_config(1, at, width.min(4), value);
            }
        }
    }
}

fn memory(driver: &Driver<'_>, input: &mut Input<'_>) -> u64 {
    let page = u64::from(input.below(9)) * 0x1000;
    driver.function.bars[2] + page + (input.word() & 0xfff)
}

fn port(driver: &Driver<'_>, input: &mut Input<'_>) -> u64 {
    let base = if driver.function.bars[0] == 0 { 0x1000 } else { driver.function.bars[0] };
    base + u64::from(input.below(0x48))
}

/// Zeroed rings at the places where they were.
pub fn fresh<'m>(machine: &'m Machine, old: &[Ring<'_>], bits: u128) -> Vec<Ring<'m>> {
    let clear = |at: u64, len: usize| machine.set_bytes(at, &vec![0; len]);
    let again = old.iter().map(|ring| {
        let n = usize::from(ring.size);
        clear(ring.desc, 16 * n);
        clear(ring.avail, 2 * n + 6);
        clear(ring.used, 8 * n + 6);
        Ring::at(machine, ring.queue, ring.size, [ring.desc, ring.avail, ring.used], bits)
    });
    again.collect()
}

/// Finds the function anew, puts its registers right, resets the device and starts it, as a good driver does.
pub fn restart<'m>(
    machine: &'m Machine,
    way: Way,
    old: &[Ring<'_>],
    bits: u128,
) -> (Driver<'m>, Vec<Ring<'m>>) {
    let rings = fresh(machine, old, bits);
    let driver = Driver::find(machine, 1, way);
    driver.negotiate(bits);
    rings.iter().for_each(|ring| driver.enable(ring));
    driver.finish();
    (driver, rings)
}

/// Tells the device of a ring, and maps no vector: MSI-X may be off, or all of it out of reach.
pub fn enable(driver: &Driver<'_>, ring: &Ring<'_>) {
    let way = Way { wire: Wire::Intx, ..driver.way };
    Driver { machine: driver.machine, function: driver.function.clone(), way }.enable(ring);
}
