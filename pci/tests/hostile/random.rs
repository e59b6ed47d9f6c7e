//! Guests that do anything at all, from a seed: accesses of every width to every place, random bytes in rings, and enough
//! sense to get far enough for it to matter.

use std::time::{Duration, Instant};

use devices::virtio::Doorbell;
use pci::virtio::Faces;

use crate::allocations::Meter;
use crate::alone;
use crate::driver::function::{BUS_MASTER, IO, MEMORY};
use crate::driver::machine::LOW;
use crate::driver::way::{Face, Way, Wire};
use crate::driver::{Buf, Driver, Machine, Plug, Probe, Ring};
use crate::target::{Ends, Target};

/// How many accesses each seed makes.
const ACCESSES: u32 = 125_000;

/// How many pages, from address 0 on, have rings in them.
const PAGES: u64 = 12;

/// A generator of which a seed is all that there is to know (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    /// A value of the kind that finds mistakes.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => self.below(16),
            3 => 1 << self.below(64),
            4 => (1_u64 << self.below(64)).wrapping_sub(1),
            5 => self.below(LOW) & !0xfff,
            6 => self.below(LOW),
            _ => self.next(),
        }
    }

    fn width(&mut self) -> usize {
        self.of(&[1, 2, 2, 4, 4, 4, 8])
    }
}

/// What is attacked, slot by slot from 2 on. Slot 1 is a bystander.
const ATTACKED: [(Target, Faces); 5] = [
    (Target::Entropy, Faces::Modern),
    (Target::Console, Faces::Transitional),
    (Target::Probe(Doorbell::Worker), Faces::Modern),
    (Target::Probe(Doorbell::Inline), Faces::Legacy),
    (Target::Probe(Doorbell::Worker), Faces::Transitional),
];

struct Guest<'m> {
    machine: &'m Machine,
    random: Random,
    /// Where each attacked function's BARs were last put: memory and ports.
    places: Vec<(u64, u64)>,
}

impl Guest<'_> {
    /// One access, or a few that belong together.
    fn act(&mut self) {
        let n = self.random.below(ATTACKED.len() as u64);
        let slot = u8::try_from(n).unwrap() + 2;
        let (memory, ports) = self.places[usize::try_from(n).unwrap()];
        match self.random.below(100) {
            0..8 => self.touch_config(slot),
            8..24 => self.touch_memory(memory),
            24..32 => self.touch_ports(ports),
            32..60 => self.scribble(),
            60..92 => self.kick(memory, ports),
            92..98 => self.bring_up(slot, memory, ports),
            98 if self.random.one_in(8) => self.place(slot),
            _ if self.random.one_in(4) => self.reset(memory, ports),
            _ => {}
        }
    }

    fn touch_config(&mut self, slot: u8) {
        let width = self.random.of(&[1, 2, 4]);
        let offset = if self.random.one_in(8) { self.random.below(4096) } else { self.random.below(0xb0) };
        if self.random.one_in(2) {
            self.machine.config(slot, offset, width);
            return;
        }
        // BARs are moved elsewhere in this file, out of the bystander's way.
        let end = offset + width as u64;
        if end <= 0x10 || offset >= 0x28 {
            let value = self.random.value();
            self.machine.set_config(slot, offset, width, value);
        }
    }

    fn touch_memory(&mut self, memory: u64) {
        let page = self.random.of(&[0, 0, 0, 0, 0x1000, 0x2000, 0x3000, 0x3000, 0x4000, 0x7000]);
        let within = self.random.of(&[0x40, 0x40, 0x60, 0x1000]);
        let at = memory + page + self.random.below(within);
        let width = self.random.width();
        if self.random.one_in(3) {
            self.machine.load(at, width);
        } else {
            let value = self.random.value();
            self.machine.store(at, width, value);
        }
    }

    fn touch_ports(&mut self, ports: u64) {
        let at = ports + self.random.below(0x40);
        let width = self.random.of(&[1, 2, 4]);
        if self.random.one_in(3) {
            self.machine.port_in(at, width);
        } else {
            let value = self.random.value();
            self.machine.port_out(at, width, value);
        }
    }

    /// Random bytes where rings may be; mostly such as rings could hold.
    fn scribble(&mut self) {
        let page = self.random.below(PAGES) * 0x1000;
        if self.random.one_in(16) {
            let len = usize::try_from(self.random.below(64)).unwrap();
            let bytes: Vec<u8> = (0..len).map(|_| self.random.next().to_le_bytes()[3]).collect();
            let within = self.random.below(0x1000);
            self.machine.set_bytes(page + within, &bytes);
            return;
        }
        let entry = self.random.of(&[0, 0, 1, 1, 2, 3, 5, 15]);
        let flags = if self.random.one_in(12) { self.random.below(8) } else { self.random.of(&[0, 2, 2, 3]) };
        let next = if self.random.one_in(12) { self.random.value() } else { entry + 1 };
        let len = self.random.of(&[0, 1, 16, 64, 64, 64, 4096, 0x1_0000, 0x10_0000]);
        // Mostly into the second mebibyte, sometimes over the rings themselves, sometimes anywhere.
        let addr = match self.random.below(24) {
            0 => self.random.value(),
            1 => self.random.below(PAGES) * 0x1000 + self.random.below(0x1000),
            _ => 0x10_0000 + self.random.below(0x10_0000),
        };
        let rest = [flags.to_le_bytes(), next.to_le_bytes()].map(|b| [b[0], b[1]]).concat();
        let len = if self.random.one_in(50) { u32::MAX } else { len };
        let descriptor = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &rest].concat();
        self.machine.set_bytes(page + entry * 16, &descriptor);
    }

    /// A few more buffers, where an index may be, and a doorbell.
    fn kick(&mut self, memory: u64, ports: u64) {
        let queue = self.random.below(3);
        let (page, more) = (self.random.below(PAGES) * 0x1000, self.random.of(&[0, 1, 1, 1, 2, 3]));
        let at = page + self.random.of(&[0x402, 0x402, 0x42, 0x102]);
        let index = u16::from_le_bytes(self.machine.bytes(at, 2).try_into().unwrap());
        let index =
            if self.random.one_in(100) { self.random.below(0x1_0000) } else { u64::from(index) + more };
        self.machine.set_bytes(at, &index.to_le_bytes()[..2]);
        let head = self.random.of(&[0, 0, 1, 1, 2, 3]);
        self.machine.set_bytes(at + 2 + self.random.below(8) * 2, &[head, 0]);
        if self.random.one_in(2) {
            self.machine.store(memory + 0x2000 + queue * 4, 2, queue);
        } else {
            self.machine.port_out(ports + 0x10, 2, queue);
        }
    }

    /// What a driver does, with a detail wrong here and there.
    fn bring_up(&mut self, slot: u8, memory: u64, ports: u64) {
        self.machine.set_config(slot, 4, 2, IO | MEMORY | BUS_MASTER);
        let mut common = |at: u64, width: usize, value: u64| {
            let value = if self.random.one_in(200) { self.random.value() } else { value };
            self.machine.store(memory + at, width, value);
        };
        common(0x14, 1, 0);
        common(0x14, 1, 3);
        for (select, word) in [(0, 0x3000_0000), (1, 0x101)] {
            common(0x08, 4, select);
            common(0x0c, 4, word);
        }
        common(0x14, 1, 11);
        for queue in 0..2 {
            let base = self.random.below(PAGES) * 0x1000;
            self.machine.set_bytes(base, &[0; 0x1000]);
            let mut common = |at: u64, width: usize, value: u64| {
                let value = if self.random.one_in(200) { self.random.value() } else { value };
                self.machine.store(memory + at, width, value);
            };
            common(0x16, 2, queue);
            for (at, part) in [(0x20, base), (0x28, base + 0x400), (0x30, base + 0x800)] {
                common(at, 4, part);
                common(at + 4, 4, 0);
            }
            common(0x1a, 2, queue + 1);
            common(0x1c, 2, 1);
            self.machine.port_out(ports + 0x0e, 2, queue);
            self.machine.port_out(ports + 0x08, 4, base >> 12);
        }
        self.machine.store(memory + 0x14, 1, 15);
        self.machine.port_out(ports + 0x12, 1, 7);
    }

    /// Moves a function's BARs: to a place of its own, or on top of another attacked one.
    fn place(&mut self, slot: u8) {
        let n = usize::from(slot) - 2;
        let memory = 0x4000_0000 + self.random.below(6) * 0x8000;
        let ports = 0x2000 + self.random.below(6) * 0x40;
        self.machine.set_config(slot, 0x18, 4, memory);
        self.machine.set_config(slot, 0x10, 4, ports);
        self.places[n] = (memory, ports);
    }

    fn reset(&mut self, memory: u64, ports: u64) {
        if self.random.one_in(2) {
            self.machine.store(memory + 0x14, 1, 0);
        } else {
            self.machine.port_out(ports + 0x12, 1, 0);
        }
    }
}

/// Lets a random guest loose, and says how long it took.
fn attack(seed: u64, is_showing: bool) -> Duration {
    let start = Instant::now();
    let (bystander, _) = Probe::new(&[8], Doorbell::Worker);
    let mut plugs = vec![Plug { device: Box::new(bystander), faces: Faces::Modern, gsi: 23 }];
    let mut ends: Vec<Ends> = Vec::new();
    for (n, (target, faces)) in (0..).zip(ATTACKED) {
        let (device, end) = target.make();
        plugs.push(Plug { device, faces, gsi: 16 + n % 3 });
        ends.push(end);
    }
    let machine = Machine::new(plugs, is_showing);
    machine.host.forget_messages();
    let way = Way { faces: Faces::Modern, face: Face::Modern, wire: Wire::Msix, is_showing };
    let quiet = Driver::find(&machine, 1, way);
    // Above 4 GiB, where the guest lets no device write.
    quiet.negotiate(0);
    let places = [128, 22, 70].map(|len| machine.high_ram(len, 16));
    let ring = Ring::at(&machine, 0, 8, places, 0);
    quiet.enable(&ring);
    quiet.finish();
    let at = machine.high_ram(64, 64);
    let mut guest = Guest { machine: &machine, random: Random(seed), places: vec![(0, 0); ATTACKED.len()] };
    (2..).take(ATTACKED.len()).for_each(|slot| guest.place(slot));
    let meter = Meter::start();
    for access in 0..ACCESSES {
        guest.act();
        if access % 1000 == 0 {
            ring.post(&[Buf::room(at, 64)]);
            quiet.kick(0);
            assert_eq!(ring.wait().1, 64, "the bystander serves");
            assert!(!quiet.needs_reset());
            ends[1].type_in(b"typed");
        }
    }
    assert!(meter.largest() < 256 << 10, "seed {seed}: {} bytes at once", meter.largest());
    assert!(meter.peak() < 2 << 20, "seed {seed}: {} bytes", meter.peak());
    machine.set_bytes(0, &vec![0; usize::try_from(LOW).unwrap()]);
    // A full reset, and each serves as if nothing had been.
    let before = machine.host.bells().len();
    for (slot, (target, faces)) in (2..).zip(ATTACKED) {
        let face = if faces == Faces::Legacy { Face::Legacy } else { Face::Modern };
        let driver = Driver::find(&machine, slot, Way { faces, face, ..way });
        driver.set_status(0);
        target.check(&driver, at);
    }
    assert_eq!(machine.host.bells().len(), 1, "the bystander's is the only doorbell left of {before}");
    drop(ring);
    drop(quiet);
    drop(machine);
    drop(ends);
    start.elapsed()
}

#[test]
fn a_million_random_accesses_do_no_harm() {
    let _alone = alone();
    let seeds = (1..=8_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let ways = seeds.zip([false, true].into_iter().cycle());
    let times: Vec<Duration> = ways.map(|(seed, is_showing)| attack(seed, is_showing)).collect();
    println!("{times:?}");
}
