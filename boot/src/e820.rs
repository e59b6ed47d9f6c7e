//! The guest's memory map as e820 shows it (boot protocol, `e820_table`; ACPI 6.5, chapter 15).

use std::ops::Range;

use linux_loader::loader::bootparam::E820_MAX_ENTRIES_ZEROPAGE;

use crate::layout::{ACPI, HIGH_RAM_START, LOW_RAM_END, MAPPED_END, PAGE_SIZE};
use crate::{Error, Result};

/// What a range is (ACPI 6.5, chapter 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// AddressRangeMemory.
    Ram,
    /// AddressRangeReserved.
    Reserved,
    /// AddressRangeACPI: tables. Kernels pass this kind on to those that they start by kexec or after a
    /// crash.
    Acpi,
}

impl Kind {
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
            Self::Acpi => 3,
        }
    }
}

/// One line of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) range: Range<u64>,
    pub(crate) kind: Kind,
}

/// The map: entries in ascending order, none empty, none overlapping.
#[derive(Clone, Debug)]
pub(crate) struct MemoryMap(Vec<Entry>);

impl MemoryMap {
    /// Makes the map from the RAM that the guest has, in ascending order, and the ranges that it must leave
    /// alone.
    ///
    /// The first range of RAM starts at 0 and ends below 4 GiB; the PC's hole below 1 MiB is cut out here.
    pub(crate) fn new(ram: &[Range<u64>], reserved: &[Range<u64>]) -> Result<Self> {
        let (low, high) = ram.split_first().ok_or(Error::MemoryMap { reason: "there is no RAM" })?;
        if low.start != 0 || low.end <= HIGH_RAM_START || low.end > MAPPED_END {
            return Err(Error::MemoryMap {
                reason: "the first RAM must start at 0 and end between 1 MiB and 4 GiB",
            });
        }
        let entry = |kind| move |range: &Range<u64>| Entry { range: range.clone(), kind };
        let mut entries = vec![
            Entry { range: 0..LOW_RAM_END, kind: Kind::Ram },
            Entry { range: LOW_RAM_END..ACPI.start, kind: Kind::Reserved },
            Entry { range: ACPI, kind: Kind::Acpi },
            Entry { range: HIGH_RAM_START..low.end, kind: Kind::Ram },
        ];
        entries.extend(high.iter().map(entry(Kind::Ram)));
        entries.extend(reserved.iter().map(entry(Kind::Reserved)));
        entries.sort_by_key(|entry| entry.range.start);
        if entries.iter().any(|Entry { range, .. }| range.is_empty()) {
            return Err(Error::MemoryMap { reason: "a range is empty" });
        }
        if ram
            .iter()
            .any(|range| !range.start.is_multiple_of(PAGE_SIZE) || !range.end.is_multiple_of(PAGE_SIZE))
        {
            return Err(Error::MemoryMap { reason: "RAM must start and end on a page" });
        }
        if entries.windows(2).any(|pair| matches!(pair, [a, b] if a.range.end > b.range.start)) {
            return Err(Error::MemoryMap { reason: "two ranges overlap" });
        }
        if entries.len() > E820_MAX_ENTRIES_ZEROPAGE {
            return Err(Error::MemoryMap { reason: "it has more than 128 entries" });
        }
        Ok(Self(entries))
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.0
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "memory of one range is meant")]
mod tests {
    use super::*;
    use Kind::{Acpi, Ram, Reserved};

    const GIB: u64 = 1 << 30;

    fn lines(ram: &[Range<u64>], reserved: &[Range<u64>]) -> Vec<(u64, u64, Kind)> {
        let map = MemoryMap::new(ram, reserved).unwrap();
        map.entries().iter().map(|entry| (entry.range.start, entry.range.end, entry.kind)).collect()
    }

    fn reason(ram: &[Range<u64>], reserved: &[Range<u64>]) -> &'static str {
        match MemoryMap::new(ram, reserved) {
            Err(Error::MemoryMap { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sixty_four_mebibytes_are_ram_but_for_the_hole_below_one() {
        assert_eq!(
            lines(&[0..64 << 20], &[]),
            [
                (0, 0xa_0000, Ram),
                (0xa_0000, 0xe_0000, Reserved),
                (0xe_0000, 0x10_0000, Acpi),
                (0x10_0000, 64 << 20, Ram)
            ]
        );
    }

    #[test]
    fn five_gibibytes_lie_on_both_sides_of_the_hole_with_ecam_reserved_in_it() {
        assert_eq!(
            lines(&[0..3 * GIB, 4 * GIB..6 * GIB], &[0xe000_0000..0xe010_0000]),
            [
                (0, 0xa_0000, Ram),
                (0xa_0000, 0xe_0000, Reserved),
                (0xe_0000, 0x10_0000, Acpi),
                (0x10_0000, 3 * GIB, Ram),
                (0xe000_0000, 0xe010_0000, Reserved),
                (4 * GIB, 6 * GIB, Ram)
            ]
        );
    }

    #[test]
    fn ram_that_no_pc_has_is_refused() {
        let first = "the first RAM must start at 0 and end between 1 MiB and 4 GiB";
        assert_eq!(reason(&[], &[]), "there is no RAM");
        assert_eq!(reason(&[GIB..2 * GIB], &[]), first);
        assert_eq!(reason(&[0..0x10_0000], &[]), first);
        assert_eq!(reason(&[0..5 * GIB], &[]), first);
        assert_eq!(reason(&[0..GIB, 4 * GIB..4 * GIB], &[]), "a range is empty");
        assert_eq!(reason(&[0..GIB + 1], &[]), "RAM must start and end on a page");
    }

    #[test]
    fn ranges_that_overlap_are_refused() {
        assert_eq!(reason(&[0..GIB, GIB - PAGE_SIZE..2 * GIB], &[]), "two ranges overlap");
        assert_eq!(reason(&[0..GIB], &[0..PAGE_SIZE]), "two ranges overlap");
        assert_eq!(
            reason(&[0..GIB, 4 * GIB..!0xfff], &[u64::MAX - 1..u64::MAX, 5 * GIB..6 * GIB]),
            "two ranges overlap"
        );
    }

    #[test]
    fn more_entries_than_the_page_holds_are_refused() {
        let reserved: Vec<_> = (0..125).map(|n| 0xc000_0000 + n * 0x2000..0xc000_1000 + n * 0x2000).collect();
        assert_eq!(reason(&[0..GIB], &reserved), "it has more than 128 entries");
        assert_eq!(lines(&[0..GIB], &reserved[1..]).len(), 128);
    }
}
