//! Measures mote beside other VMMs, in one run, and prints one table: what was measured, on whom, the bar and whether it
//! was met. docs/performance.md has the method. `PEERS=DIRECTORY` adds the VMMs whose binaries are there.
//!
//! A measurement is a function that adds rows to the [`Table`]. `bench native` and `bench linux` make the half of them.

mod boots;
mod elf;
mod native;
mod table;
mod vmms;

use table::Table;

fn main() {
    let mut table = Table::default();
    let part = std::env::args().nth(1);
    let wants = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wants("native") {
        native::first_byte(&mut table);
        native::system_calls(&mut table);
        native::private_memory(&mut table);
        native::binary_size(&mut table);
    }
    if wants("linux") {
        boots::rows(&mut table);
    }
    print!("{table}");
}

/// Says what is being done, while it is.
fn progress(what: &str) {
    eprintln!("bench: {what}");
}

/// The middle one.
fn median<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    let mut values = values.to_vec();
    values.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied()
}
