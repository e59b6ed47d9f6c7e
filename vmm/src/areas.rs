//! The memory map as its user shapes it with `ram`, `rom` and `reserve`.
//!
//! Areas are collected in their order and then settled ([`Areas::settle`]) into a [`MemoryMap`]: what is RAM to the
//! guest, what is memory but no RAM to it, where nothing may be, and which ranges have memory behind them at all.

use std::fmt;
use std::ops::Range;

use boot::layout::{ACPI, HIGH_RAM_START, LOW_RAM_END};

use crate::layout::{self, MIB, PAGE};
use crate::qvmconf::{Error, Origin, Problem, length};

/// What an area is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// RAM.
    Ram,
    /// Memory that the guest's memory map does not show.
    Rom,
    /// Nothing, and nothing will be put there; the memory map shows it as reserved.
    Reserved,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Rom => "rom",
            Self::Reserved => "reserve",
        }
    }
}

/// A range and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// What it is.
    pub what: Use,
    /// Where it is, in guest-physical addresses.
    pub range: Range<u64>,
    /// Where it was asked for.
    pub origin: Option<Origin>,
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x} to {:#x}", self.what.name(), self.range.start, self.range.end)?;
        self.origin.iter().try_for_each(|origin| write!(f, " {origin}"))
    }
}

/// An area as it was asked for: perhaps without an address.
#[derive(Clone, Debug)]
struct Asked {
    what: Use,
    address: Option<u64>,
    length: u64,
    origin: Option<Origin>,
}

/// The areas that were asked for.
#[derive(Clone, Debug, Default)]
pub struct Areas(Vec<Asked>);

impl Areas {
    /// Asks for RAM.
    pub fn ram(&mut self, address: Option<u64>, length: u64, origin: Option<&Origin>) {
        self.0.push(Asked { what: Use::Ram, address, length, origin: origin.cloned() });
    }

    /// Asks for memory that is not shown.
    pub fn rom(&mut self, address: Option<u64>, length: u64, origin: &Origin) {
        self.0.push(Asked { what: Use::Rom, address, length, origin: Some(origin.clone()) });
    }

    /// Asks for nothing to be at a place.
    pub fn reserve(&mut self, address: u64, length: u64, origin: &Origin) {
        let origin = Some(origin.clone());
        self.0.push(Asked { what: Use::Reserved, address: Some(address), length, origin });
    }

    /// Whether there is no memory yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|asked| asked.what == Use::Reserved)
    }

    /// Whether it is plain: some length of RAM, wherever it may be.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.0.iter().all(|asked| asked.what == Use::Ram && asked.address.is_none())
    }

    /// Decides where everything is.
    ///
    /// # Errors
    ///
    /// An area that cannot be where it was asked for.
    pub fn settle(&self) -> Result<MemoryMap, Error> {
        let mut settled: Vec<Area> = Vec::new();
        // What is reserved is known first: it is kept free wherever it was said.
        for reserved in self.0.iter().filter(|asked| asked.what == Use::Reserved) {
            insert(&mut settled, reserved, reserved.address.unwrap_or(0)..end(reserved, reserved.address)?)?;
        }
        let mut highest = 0;
        for asked in self.0.iter().filter(|asked| asked.what != Use::Reserved) {
            if let Some(address) = asked.address {
                let range = address..end(asked, Some(address))?;
                highest = highest.max(range.end);
                insert(&mut settled, asked, range)?;
                continue;
            }
            end(asked, None)?;
            // After the highest so far, around what is reserved and around the devices' hole.
            let mut left = asked.length;
            while left > 0 {
                let part = next_part(&settled, highest, left);
                left -= part.end - part.start;
                highest = part.end;
                insert(&mut settled, asked, part)?;
            }
        }
        settled.sort_by_key(|area| area.range.start);
        let map = MemoryMap { areas: settled };
        map.check()?;
        Ok(map)
    }
}

/// A problem with what was asked for.
fn wrong(asked: &Asked, problem: impl Into<String>) -> Error {
    let place = asked.address.map(|address| format!("{address:#x},")).unwrap_or_default();
    let loc = if asked.what == Use::Reserved { "loc " } else { "" };
    let area = format!("{} {loc}{place}{}", asked.what.name(), length(asked.length));
    Error { origin: asked.origin.clone(), problem: Problem::Area { area, problem: problem.into() } }
}

/// Where an area ends that begins at `address`, which may be anywhere if there is none.
fn end(asked: &Asked, address: Option<u64>) -> Result<u64, Error> {
    /// The most that x86 processors address (Intel SDM volume 3, 5.1.1).
    const MOST: u64 = 1 << 52;
    let start = address.unwrap_or(0);
    if asked.length == 0 {
        return Err(wrong(asked, "it has no bytes"));
    }
    if !start.is_multiple_of(PAGE) || !asked.length.is_multiple_of(PAGE) {
        return Err(wrong(asked, "it must begin and end on a page, at multiples of 4K"));
    }
    start
        .checked_add(asked.length)
        .filter(|end| *end <= MOST)
        .ok_or_else(|| wrong(asked, "this is more than can be addressed"))
}

/// The next part, of at most `length` bytes, of RAM that begins at `from` or above.
fn next_part(settled: &[Area], from: u64, length: u64) -> Range<u64> {
    let is_taken = |range: &&Range<u64>| range.end > from;
    let holes = settled.iter().map(|area| &area.range).chain(std::iter::once(&layout::HOLE));
    match holes.filter(is_taken).min_by_key(|range| range.start) {
        Some(hole) if hole.start <= from => next_part(settled, hole.end, length),
        Some(hole) => from..(from + length).min(hole.start),
        None => from..from + length,
    }
}

/// Puts an area among the others, if it can be there.
fn insert(settled: &mut Vec<Area>, asked: &Asked, range: Range<u64>) -> Result<(), Error> {
    let hole = &layout::HOLE;
    let is_rom = asked.what == Use::Rom && layout::ROM.start <= range.start && range.end <= layout::ROM.end;
    if range.start < hole.end && hole.start < range.end && !is_rom {
        return Err(wrong(
            asked,
            "the devices are from 3G to 4G; there is room for a rom from 0xff000000 on alone",
        ));
    }
    if asked.what == Use::Reserved && range.start < ACPI.end && ACPI.start < range.end {
        return Err(wrong(asked, "mote puts the ACPI tables at 0xe0000 to 0x100000"));
    }
    let area = Area { what: asked.what, range, origin: asked.origin.clone() };
    let meets = |other: &&Area| other.range.start < area.range.end && area.range.start < other.range.end;
    if let Some(other) = settled.iter().find(meets) {
        let one = Area { origin: None, ..area.clone() }.to_string();
        let problem = Problem::Overlap { one, other: other.to_string() };
        return Err(Error { origin: asked.origin.clone(), problem });
    }
    settled.push(area);
    Ok(())
}

/// Where everything is, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    areas: Vec<Area>,
}

impl MemoryMap {
    /// So much RAM, from 0 on, around the devices' hole.
    #[must_use]
    pub fn plain(size: u64) -> Self {
        let area = |range| Area { what: Use::Ram, range, origin: None };
        Self { areas: layout::ram(size).into_iter().map(area).collect() }
    }

    /// The areas.
    #[must_use]
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    fn of(&self, what: Use) -> impl Iterator<Item = Range<u64>> {
        self.areas.iter().filter(move |area| area.what == what).map(|area| area.range.clone())
    }

    /// How much RAM there is, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.of(Use::Ram).map(|range| range.end - range.start).sum()
    }

    /// RAM as the boot protocol's map is made from it: a piece that ends at the PC's hole below 1 MiB and one that
    /// begins behind it are one, since the hole is cut out of every map.
    #[must_use]
    pub fn ram(&self) -> Vec<Range<u64>> {
        let mut ram = merge(self.of(Use::Ram));
        if let [low, high, ..] = &mut ram[..]
            && low.end == LOW_RAM_END
            && high.start == HIGH_RAM_START
        {
            high.start = 0;
            ram.remove(0);
        }
        ram
    }

    /// What the memory map shows as reserved, outside of the PC's hole below 1 MiB, which it always shows so.
    #[must_use]
    pub fn reserved(&self) -> Vec<Range<u64>> {
        self.of(Use::Reserved).filter(|range| range.start >= HIGH_RAM_START).collect()
    }

    /// The ranges that have memory behind them: RAM, ROM, and the place of the ACPI tables.
    #[must_use]
    pub fn backed(&self) -> Vec<Range<u64>> {
        let shown = self.of(Use::Ram).chain(self.of(Use::Rom));
        let mut ranges: Vec<_> = shown.chain(std::iter::once(ACPI)).collect();
        ranges.sort_by_key(|range| range.start);
        merge(ranges)
    }

    /// What boot needs: RAM from 0 to the PC's hole below 1 MiB, and from 1 MiB on.
    fn check(&self) -> Result<(), Error> {
        let mut ram = self.areas.iter().filter(|area| area.what == Use::Ram);
        let problem = |area: Option<&Area>, problem: &str| Error {
            origin: area.and_then(|area| area.origin.clone()),
            problem: Problem::Area {
                area: area
                    .map_or_else(|| "ram".into(), |area| Area { origin: None, ..area.clone() }.to_string()),
                problem: problem.to_owned(),
            },
        };
        match ram.next() {
            Some(area) if area.range.start != 0 => Err(problem(Some(area), "RAM begins at 0")),
            Some(area) if area.range.end > HIGH_RAM_START => Ok(()),
            Some(area) if area.range.end != LOW_RAM_END => {
                Err(problem(Some(area), "below 1M a PC has RAM up to 0xa0000, no more and no less"))
            }
            Some(area) => match ram.next() {
                Some(next) if next.range.start == HIGH_RAM_START => Ok(()),
                next => Err(problem(next.or(Some(area)), "a PC has RAM from 1M on: ram 1m,LENGTH")),
            },
            None => Err(problem(None, "there is none")),
        }
    }
}

/// Joins ranges, in ascending order, that touch or meet.
fn merge(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

impl fmt::Display for MemoryMap {
    /// A line for each area.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Area { what, range, .. } in &self.areas {
            let size = length(range.end - range.start);
            writeln!(f, "  {:#012x} to {:#012x}  {:<8} {size}", range.start, range.end, what.name())?;
        }
        Ok(())
    }
}

const _: () = assert!(HIGH_RAM_START == MIB);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::GIB;

    fn ranges(ranges: &[Range<u64>]) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn plain_ram_is_one_piece_below_the_hole_and_one_above() {
        let mut areas = Areas::default();
        areas.ram(None, 5 * GIB, None);
        let map = areas.settle().unwrap();
        assert_eq!(map, MemoryMap::plain(5 * GIB));
        assert_eq!(ranges(&map.backed()), [(0, 3 * GIB), (4 * GIB, 6 * GIB)]);
        assert_eq!((map.size(), areas.is_plain()), (5 * GIB, true));
    }

    #[test]
    fn the_map_that_qvm_recommends_keeps_the_graphics_window_empty() {
        let here = Origin::CommandLine;
        let mut areas = Areas::default();
        areas.ram(Some(0), 0xa_0000, Some(&here));
        areas.reserve(0xa_0000, 0x2_0000, &here);
        areas.rom(Some(0xc_0000), 0x4_0000, &here);
        areas.ram(Some(MIB), 1023 * MIB, Some(&here));
        let map = areas.settle().unwrap();
        assert_eq!(ranges(&map.ram()), [(0, GIB)]);
        assert_eq!(ranges(&map.backed()), [(0, 0xa_0000), (0xc_0000, GIB)]);
        assert_eq!(ranges(&map.reserved()), []);
        assert!(!areas.is_plain());
    }

    #[test]
    fn what_is_reserved_stays_free_wherever_it_was_said() {
        let here = Origin::CommandLine;
        let mut areas = Areas::default();
        areas.ram(None, 256 * MIB, Some(&here));
        areas.reserve(64 * MIB, 16 * MIB, &here);
        let map = areas.settle().unwrap();
        assert_eq!(ranges(&map.backed()), [(0, 64 * MIB), (80 * MIB, 272 * MIB)]);
        assert_eq!(ranges(&map.reserved()), [(64 * MIB, 80 * MIB)]);
        assert_eq!(map.size(), 256 * MIB);
    }
}
