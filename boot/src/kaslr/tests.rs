//! Properties of random places, over many random numbers.

#![expect(clippy::single_range_in_vec_init, reason = "one range is meant")]

use std::collections::BTreeSet;

use super::*;

const MIB: u64 = 1 << 20;
/// As Alpine's kernel has it.
const SHAPE: Shape = Shape { linked: 16 * MIB, size: 0x260_a000, alignment: 16 * MIB };

/// Numbers that differ in all of their bits.
fn numbers() -> impl Iterator<Item = u64> {
    (0..20_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n << 7).chain([0, 1, u64::MAX])
}

#[test]
fn a_physical_place_is_aligned_in_ram_and_clear_of_the_initrd() {
    for alignment in [2 * MIB, 16 * MIB] {
        for (ram_end, taken) in [
            (64 * MIB, vec![]),
            (256 * MIB, vec![250 * MIB..256 * MIB]),
            (256 * MIB, vec![100 * MIB..130 * MIB + 1]),
            (3072 * MIB, vec![2000 * MIB..2048 * MIB]),
            (128 * MIB, vec![MIB..15 * MIB]),
            (
                512 * MIB,
                vec![400 * MIB..512 * MIB, 64 * MIB..65 * MIB, 60 * MIB..100 * MIB, 70 * MIB..71 * MIB],
            ),
            (512 * MIB, vec![510 * MIB..514 * MIB, 4 << 30..5 << 30, 200 * MIB..200 * MIB]),
        ] {
            let shape = Shape { alignment, ..SHAPE };
            for number in numbers() {
                let start = shape.physical(number, ram_end, taken.clone()).unwrap();
                let end = start + shape.size;
                assert!(start.is_multiple_of(alignment) && start >= 16 * MIB && end <= ram_end);
                assert!(taken.iter().all(|taken| end <= taken.start || taken.end <= start));
            }
        }
    }
}

#[test]
fn every_physical_place_is_taken_and_none_much_more_often() {
    let mut counts = std::collections::BTreeMap::new();
    for number in numbers() {
        let start = SHAPE.physical(number, 256 * MIB, vec![96 * MIB..100 * MIB]).unwrap();
        *counts.entry(start / MIB).or_insert(0) += 1;
    }
    let places: Vec<u64> = counts.keys().copied().collect();
    assert_eq!(places, [16, 32, 48, 112, 128, 144, 160, 176, 192, 208]);
    assert!(counts.values().all(|count| (1700..2300).contains(count)), "{counts:?}");
}

#[test]
fn where_there_is_no_room_there_is_no_place() {
    assert_eq!(SHAPE.physical(7, 54 * MIB, vec![]), None);
    assert_eq!(SHAPE.physical(7, 64 * MIB, vec![0..64 * MIB]), None);
    assert_eq!(Shape { size: u64::MAX, ..SHAPE }.physical(7, 64 * MIB, vec![]), None);
    assert_eq!(Shape { alignment: 1 << 63, ..SHAPE }.physical(7, 64 * MIB, vec![]), None);
}

#[test]
fn a_kernel_linked_high_is_looked_a_place_for_below_too() {
    let shape = Shape { linked: 1 << 30, ..SHAPE };
    let starts: BTreeSet<u64> = numbers().filter_map(|n| shape.physical(n, 3 << 30, vec![])).collect();
    assert_eq!(starts.first(), Some(&(512 * MIB)));
}

#[test]
fn a_virtual_place_is_aligned_and_ends_in_the_mapping_of_the_kernel() {
    for alignment in [2 * MIB, 16 * MIB] {
        let shape = Shape { alignment, ..SHAPE };
        for number in numbers() {
            let start = shape.linked + shape.virtual_offset(number).unwrap();
            assert!(start.is_multiple_of(alignment) && start + shape.size <= 1 << 30);
        }
    }
}

#[test]
fn alpine_has_61_virtual_places() {
    let offsets: BTreeSet<u64> = numbers().filter_map(|number| SHAPE.virtual_offset(number)).collect();
    assert_eq!(offsets.len(), 61);
    assert_eq!(offsets.first(), Some(&0));
    assert_eq!(offsets.last(), Some(&(60 * 16 * MIB)));
}

#[test]
fn a_kernel_as_large_as_its_mapping_has_no_offset() {
    assert_eq!(Shape { size: 1008 * MIB, ..SHAPE }.virtual_offset(5), Some(0));
    assert_eq!(Shape { size: 1008 * MIB + 1, ..SHAPE }.virtual_offset(5), None);
}

#[test]
fn the_command_line_has_the_last_word() {
    let wish = |text: &str| Wish::of(&CommandLine::new(&["quiet"], text).unwrap());
    assert_eq!(wish(""), Wish::On);
    assert_eq!(wish("nokaslr"), Wish::Off);
    assert_eq!(wish("mem=64M nokaslr"), Wish::Off);
    assert_eq!(wish("x=nokaslr nokaslr=1 kaslr \"a nokaslr b\""), Wish::On);
    for limit in ["mem=64M", "memmap=1M@16M", "memmap=exactmap", "hugepagesz=1G hugepages=1"] {
        assert_eq!(wish(limit), Wish::VirtualOnly, "{limit}");
    }
    assert_eq!(wish("hugepagesz=2M"), Wish::On);
}
