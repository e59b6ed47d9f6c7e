//! Tables of both shapes, and tables of none.

use super::*;
use crate::sample::{FILLED_END, LINKED, MIB, memory, table};

const IMAGE: Range<u64> = LINKED..FILLED_END;

fn refusal(bytes: &[u8]) -> &'static str {
    Relocations::parse(bytes, &IMAGE).unwrap_err()
}

fn words(list: &[u64]) -> Vec<u32> {
    list.iter().map(|address| *address as u32).collect()
}

#[test]
fn two_lists_are_quads_and_words() {
    let table = Relocations::parse(&table(&[&[LINKED, LINKED + 9], &[LINKED + 32]]), &IMAGE).unwrap();
    assert_eq!(table.quads, words(&[LINKED, LINKED + 9]));
    assert_eq!((table.inverse.as_slice(), table.words), (&[][..], words(&[LINKED + 32])));
}

#[test]
fn three_lists_have_the_inverse_ones_in_the_middle() {
    let lists: [&[u64]; 3] = [&[LINKED], &[LINKED + 8, LINKED + 12], &[LINKED + 16]];
    let table = Relocations::parse(&table(&lists), &IMAGE).unwrap();
    assert_eq!([table.quads, table.inverse, table.words], lists.map(words));
}

#[test]
fn lists_may_be_empty() {
    assert_eq!(Relocations::parse(&table(&[&[], &[]]), &IMAGE), Ok(Relocations::default()));
    assert_eq!(Relocations::parse(&table(&[&[], &[], &[]]), &IMAGE), Ok(Relocations::default()));
    let last = Relocations::parse(&table(&[&[], &[], &[LINKED]]), &IMAGE).unwrap();
    assert_eq!(last.words, words(&[LINKED]));
}

#[test]
fn another_shape_is_refused() {
    let unknown = "has relocations in an unknown form";
    assert_eq!(refusal(&[]), "has no relocations");
    assert_eq!(refusal(&table(&[&[LINKED]])), unknown);
    assert_eq!(refusal(&table(&[&[LINKED], &[], &[], &[LINKED]])), unknown);
    assert_eq!(refusal(&table(&[&[LINKED], &[LINKED]])[4..]), unknown, "it starts with a zero");
    assert_eq!(refusal(&table(&[&[LINKED], &[LINKED]])[..15]), unknown, "it is made of whole words");
    assert_eq!(refusal(&[0; 3]), unknown);
}

#[test]
fn each_entry_lies_in_the_kernel_as_a_whole() {
    let outside = "has relocations outside of itself";
    let parse = |quad: u64, inverse: u64, word: u64| {
        Relocations::parse(&table(&[&[quad], &[inverse], &[word]]), &IMAGE)
    };
    assert!(parse(FILLED_END - 8, FILLED_END - 4, FILLED_END - 4).is_ok());
    for (quad, inverse, word) in [
        (FILLED_END - 7, LINKED, LINKED),
        (LINKED, FILLED_END - 3, LINKED),
        (LINKED, LINKED, FILLED_END - 3),
        (LINKED - 1, LINKED, LINKED),
        (LINKED, LINKED - 1, LINKED),
        (LINKED, LINKED, LINKED - 1),
        (LINKED, LINKED, 0x7fff_ffff),
    ] {
        assert_eq!(parse(quad, inverse, word), Err(outside), "{quad:#x} {inverse:#x} {word:#x}");
    }
    let low = [0u32, 0x100_0000, 0].map(u32::to_le_bytes).concat();
    assert_eq!(refusal(&low), outside, "not in the upper half of the addresses");
}

#[test]
fn each_word_changes_as_its_list_says_and_no_other() {
    let shift = 8 * MIB;
    let memory = memory(40 * MIB);
    let at = |address: u64| GuestAddress(address + shift);
    let quad: u64 = 0xffff_ffff_8100_1234;
    let word: u32 = 0x8100_5678;
    memory.write_obj(quad, at(LINKED + 3)).unwrap();
    memory.write_obj(word, at(LINKED + 0x1001)).unwrap();
    memory.write_obj(word, at(FILLED_END - 4)).unwrap();
    let lists: [&[u64]; 3] = [&[LINKED + 3], &[LINKED + 0x1001], &[FILLED_END - 4]];
    let table = Relocations::parse(&table(&lists), &IMAGE).unwrap();
    let offset = 0x1f00_0000;
    table.apply(&memory, &IMAGE, shift, offset).unwrap();
    assert_eq!(memory.read_obj::<u64>(at(LINKED + 3)).unwrap(), quad + offset);
    assert_eq!(memory.read_obj::<u32>(at(LINKED + 0x1001)).unwrap(), word - offset as u32);
    assert_eq!(memory.read_obj::<u32>(at(FILLED_END - 4)).unwrap(), word + offset as u32);
    for untouched in [LINKED, LINKED + 11, LINKED + 0x1005, FILLED_END] {
        let byte: u8 = memory.read_obj(at(untouched)).unwrap();
        assert_eq!(byte, 0, "{untouched:#x}");
    }
    table.apply(&memory, &IMAGE, shift, 0u64.wrapping_sub(offset)).unwrap();
    assert_eq!(memory.read_obj::<u64>(at(LINKED + 3)).unwrap(), quad, "and back");
}

#[test]
fn a_kernel_that_is_not_there_is_an_error() {
    let table = Relocations::parse(&table(&[&[LINKED], &[]]), &IMAGE).unwrap();
    let error = table.apply(&memory(MIB), &IMAGE, 0, 0).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{error}");
}
