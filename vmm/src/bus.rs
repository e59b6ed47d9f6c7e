//! The address map of the running guest: who answers at which guest-physical address and at which I/O port.
//!
//! A [`Map`] is filled while the machine is assembled and frozen into a [`Bus`] before the first vCPU runs, so that a
//! lookup takes no lock and allocates nothing. What moves while the guest runs (a BAR) moves behind an entry of the map:
//! the PCI root answers for the host bridge's windows as a whole.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::vdev::{Access, Effect, Vdev};
use thiserror::Error;

use crate::layout::SERIAL_PORTS;

/// The two address spaces of an x86 guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Guest-physical addresses.
    Memory,
    /// I/O ports.
    Port,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Port => "ports",
        })
    }
}

/// A mistake of who assembled the machine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// Two devices want the same place.
    #[error("{name} cannot have {space} {:#x} to {:#x}: {other} is there; move one of the two", range.start, range.end)]
    Overlap {
        /// The address space.
        space: Space,
        /// What was asked for.
        range: Range<u64>,
        /// Who asked.
        name: String,
        /// Who has it.
        other: String,
    },
    /// A range of no bytes, or one whose offsets for the device would pass 2⁶⁴.
    #[error("{name} cannot have {space} {:#x} to {:#x}: that is no range", range.start, range.end)]
    Range {
        /// The address space.
        space: Space,
        /// What was asked for.
        range: Range<u64>,
        /// Who asked.
        name: String,
    },
}

/// A range and who answers in it.
struct Entry {
    range: Range<u64>,
    /// What the range's first byte is to the vdev.
    first: Access,
    vdev: Arc<dyn Vdev>,
}

impl Entry {
    /// What `address`, which is in the range, is to the vdev. [`Map::attach`] saw to it that the sum is exact.
    fn access(&self, address: u64) -> Access {
        let inside = address.wrapping_sub(self.range.start);
        Access { offset: self.first.offset.wrapping_add(inside), ..self.first }
    }
}

/// The address map while it is made.
#[derive(Default)]
pub struct Map {
    memory: Vec<Entry>,
    ports: Vec<Entry>,
    vacant: Arc<AtomicU64>,
}

impl Map {
    /// Gives `vdev` a range. `first` is what the range's first byte is to it: offset 0 of a region for most, the
    /// address itself for the PCI root, which decodes addresses.
    ///
    /// # Errors
    ///
    /// A range that is taken, or none.
    pub fn attach(
        &mut self,
        space: Space,
        range: Range<u64>,
        first: Access,
        vdev: Arc<dyn Vdev>,
    ) -> Result<(), MapError> {
        let name = vdev.name().to_owned();
        if range.is_empty() || first.offset.checked_add(range.end - range.start).is_none() {
            return Err(MapError::Range { space, range, name });
        }
        let entries = match space {
            Space::Memory => &mut self.memory,
            Space::Port => &mut self.ports,
        };
        let place = entries.partition_point(|entry| entry.range.end <= range.start);
        if let Some(other) = entries.get(place).filter(|other| other.range.start < range.end) {
            let other = other.vdev.name().to_owned();
            return Err(MapError::Overlap { space, range, name, other });
        }
        entries.insert(place, Entry { range, first, vdev });
        Ok(())
    }

    /// Counts accesses that nobody answers together with a vdev that looks further by itself.
    pub fn count_in(&mut self, vacant: Arc<AtomicU64>) {
        self.vacant = vacant;
    }

    /// The map as the guest sees it from now on.
    #[must_use]
    pub fn freeze(self) -> Bus {
        Bus { memory: self.memory.into(), ports: self.ports.into(), vacant: self.vacant }
    }
}

/// The address map of the running guest.
///
/// An access that begins in one range and ends in another, or in none, is taken apart: each device sees the bytes that
/// are its own, as one access.
pub struct Bus {
    memory: Box<[Entry]>,
    ports: Box<[Entry]>,
    vacant: Arc<AtomicU64>,
}

impl Bus {
    /// A guest's read of `data.len()` bytes.
    pub fn read(&self, space: Space, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        let (mut address, mut rest) = (address, data);
        while !rest.is_empty() {
            let (entry, length) = self.run(space, address, rest.len());
            let (run, after) = rest.split_at_mut(length);
            match entry {
                Some(entry) => entry.vdev.vread(entry.access(address), run),
                None => self.read_vacant(space, address, run),
            }
            (address, rest) = (address.wrapping_add(length as u64), after);
        }
    }

    /// A guest's write of `data.len()` bytes.
    pub fn write(&self, space: Space, address: u64, data: &[u8]) -> Effect {
        let (mut address, mut rest) = (address, data);
        while !rest.is_empty() {
            let (entry, length) = self.run(space, address, rest.len());
            let (run, after) = rest.split_at(length);
            match entry.map(|entry| entry.vdev.vwrite(entry.access(address), run)) {
                Some(Effect::None) => {}
                Some(end @ Effect::End(_)) => return end,
                None => self.count_vacant(),
            }
            (address, rest) = (address.wrapping_add(length as u64), after);
        }
        Effect::None
    }

    /// How many accesses found nobody.
    #[must_use]
    pub fn vacant_accesses(&self) -> u64 {
        self.vacant.load(Ordering::Relaxed)
    }

    /// Who answers at `address`, if anyone, and for how many of the `length` bytes from there: at least one.
    fn run(&self, space: Space, address: u64, length: usize) -> (Option<&Entry>, usize) {
        let entries = match space {
            Space::Memory => &self.memory,
            Space::Port => &self.ports,
        };
        let next = entries.get(entries.partition_point(|entry| entry.range.end <= address));
        let (entry, end) = match next {
            Some(entry) if entry.range.start <= address => (Some(entry), entry.range.end),
            Some(entry) => (None, entry.range.start),
            None => (None, u64::MAX),
        };
        let run = usize::try_from(end.saturating_sub(address)).unwrap_or(usize::MAX);
        (entry, length.min(run).max(1))
    }

    /// What an empty place answers: all ones, as a bus does that nobody drives.
    ///
    /// The line status of an absent serial port alone says that all has been sent. A kernel with an early console on
    /// such a port would else wait for each of its bytes. The port stays absent to a driver, whose probe tests others.
    fn read_vacant(&self, space: Space, address: u64, data: &mut [u8]) {
        const LINE_STATUS: u64 = 5;
        const TRANSMITTER_EMPTY: u8 = 0x60;
        self.count_vacant();
        if space != Space::Port {
            return;
        }
        for (port, byte) in (address..).zip(data) {
            if SERIAL_PORTS.iter().any(|&base| port.checked_sub(base.into()) == Some(LINE_STATUS)) {
                *byte = TRANSMITTER_EMPTY;
            }
        }
    }

    fn count_vacant(&self) {
        self.vacant.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use devices::vdev::{Reason, Region};

    use super::*;

    /// Answers with its number, and remembers what it was asked.
    struct Probe {
        name: &'static str,
        number: u8,
        seen: Mutex<Vec<(Access, Vec<u8>)>>,
        effect: Effect,
    }

    impl Vdev for Probe {
        fn name(&self) -> &str {
            self.name
        }
        fn vread(&self, at: Access, data: &mut [u8]) {
            assert!(data.iter().all(|&byte| byte == 0xff));
            data.fill(self.number);
            self.seen.lock().unwrap().push((at, data.to_vec()));
        }
        fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
            self.seen.lock().unwrap().push((at, data.to_vec()));
            self.effect
        }
    }

    fn probe(name: &'static str, number: u8) -> Arc<Probe> {
        Arc::new(Probe { name, number, seen: Mutex::default(), effect: Effect::None })
    }

    const MEMORY: Access = Access { region: Region::Memory, offset: 0 };
    const PORT: Access = Access { region: Region::Port, offset: 0 };

    #[test]
    fn each_device_sees_offsets_in_its_own_region() {
        let (one, two) = (probe("one", 1), probe("two", 2));
        let mut map = Map::default();
        map.attach(Space::Memory, 0x2000..0x3000, MEMORY, two.clone()).unwrap();
        map.attach(Space::Memory, 0x1000..0x2000, MEMORY, one.clone()).unwrap();
        let absolute = Access { region: Region::Memory, offset: 0xc000_0000 };
        map.attach(Space::Memory, 0xc000_0000..0xd000_0000, absolute, two.clone()).unwrap();
        let bus = map.freeze();
        let mut data = [0; 4];
        bus.read(Space::Memory, 0x1ffc, &mut data);
        assert_eq!(data, [1; 4]);
        let _ = bus.write(Space::Memory, 0x2000, &[9]);
        let _ = bus.write(Space::Memory, 0xc000_0010, &[8]);
        assert_eq!(*one.seen.lock().unwrap(), [(Access { offset: 0xffc, ..MEMORY }, vec![1; 4])]);
        let expected = [(MEMORY, vec![9]), (Access { offset: 0xc000_0010, ..MEMORY }, vec![8])];
        assert_eq!(*two.seen.lock().unwrap(), expected);
        assert_eq!(bus.vacant_accesses(), 0);
    }

    #[test]
    fn the_spaces_are_apart() {
        let one = probe("one", 1);
        let mut map = Map::default();
        map.attach(Space::Port, 0x600..0x603, PORT, one).unwrap();
        let bus = map.freeze();
        let mut data = [0; 1];
        bus.read(Space::Memory, 0x600, &mut data);
        assert_eq!(data, [0xff]);
        bus.read(Space::Port, 0x600, &mut data);
        assert_eq!(data, [1]);
    }

    #[test]
    fn an_overlap_names_both() {
        let mut map = Map::default();
        map.attach(Space::Memory, 0x1000..0x2000, MEMORY, probe("one", 1)).unwrap();
        map.attach(Space::Memory, 0x3000..0x4000, MEMORY, probe("three", 3)).unwrap();
        for range in [0x0..0x1001, 0x1fff..0x2000, 0x1000..0x2000, 0x1400..0x1800, 0x800..0x5000] {
            let error = map.attach(Space::Memory, range, MEMORY, probe("two", 2)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("two") && text.contains("one"), "{text}");
        }
        let error = map.attach(Space::Memory, 0x2fff..0x3001, MEMORY, probe("two", 2)).unwrap_err();
        assert!(error.to_string().contains("three"));
        map.attach(Space::Memory, 0x2000..0x3000, MEMORY, probe("two", 2)).unwrap();
    }

    #[test]
    fn a_range_of_nothing_is_refused() {
        let mut map = Map::default();
        let far = Access { offset: u64::MAX, ..MEMORY };
        for (range, first) in [(5..5, MEMORY), (0x10..0x20, far)] {
            let error = map.attach(Space::Memory, range, first, probe("one", 1)).unwrap_err();
            assert!(matches!(error, MapError::Range { .. }));
        }
    }

    #[test]
    fn an_access_over_the_end_of_a_range_is_taken_apart() {
        let (one, two) = (probe("one", 1), probe("two", 2));
        let mut map = Map::default();
        map.attach(Space::Port, 0x10..0x12, PORT, one.clone()).unwrap();
        map.attach(Space::Port, 0x13..0x14, PORT, two.clone()).unwrap();
        let bus = map.freeze();
        let mut data = [0; 6];
        bus.read(Space::Port, 0xf, &mut data);
        assert_eq!(data, [0xff, 1, 1, 0xff, 2, 0xff]);
        assert_eq!(bus.vacant_accesses(), 3);
        assert_eq!(bus.write(Space::Port, 0x11, &[5, 6, 7]), Effect::None);
        assert_eq!(one.seen.lock().unwrap()[1], (Access { offset: 1, ..PORT }, vec![5]));
        assert_eq!(two.seen.lock().unwrap()[1], (PORT, vec![7]));
    }

    #[test]
    fn absent_addresses_read_all_ones_up_to_the_last() {
        let bus = Map::default().freeze();
        for address in [0, 0xfee0_0000, u64::MAX - 3, u64::MAX] {
            let mut data = [0; 8];
            bus.read(Space::Memory, address, &mut data);
            assert_eq!(data, [0xff; 8]);
            assert_eq!(bus.write(Space::Memory, address, &data), Effect::None);
        }
        assert!(bus.vacant_accesses() >= 8);
    }

    #[test]
    fn an_absent_serial_port_has_sent_everything_and_nothing_else() {
        let bus = Map::default().freeze();
        for base in SERIAL_PORTS {
            let mut data = [0; 8];
            bus.read(Space::Port, base.into(), &mut data);
            assert_eq!(data, [0xff, 0xff, 0xff, 0xff, 0xff, 0x60, 0xff, 0xff]);
        }
        let mut data = [0];
        bus.read(Space::Memory, 0x3fd, &mut data);
        assert_eq!(data, [0xff]);
    }

    #[test]
    fn the_end_of_the_run_is_passed_on() {
        let end = Effect::End(Reason::PowerOff);
        let power = Arc::new(Probe { name: "power", number: 0, seen: Mutex::default(), effect: end });
        let mut map = Map::default();
        map.attach(Space::Port, 0x600..0x601, PORT, power).unwrap();
        assert_eq!(map.freeze().write(Space::Port, 0x5ff, &[0, 0x34]), end);
    }
}
