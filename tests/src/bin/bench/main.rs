//! Measures mote beside other VMMs, in one run, and prints one table: what was measured, on whom, the bar and whether it
//! was met. docs/performance.md has the method. `PEERS=DIRECTORY` adds the VMMs whose binaries are there.
//!
//! A measurement is a function that adds rows to the [`Table`]. `bench native`, `bench linux` and `bench console` make a part
//! of them; further words leave only those subjects of the latter two that have one of them in their name.

mod boots;
mod console;
mod elf;
mod native;
mod table;
mod vmms;

use std::path::PathBuf;
use std::{env, fs, process};

use table::Table;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    if let [user, vmm @ ..] = &words[..]
        && user == "user"
    {
        return console::user(vmm);
    }
    let _scratch = Scratch;
    let mut table = Table::default();
    let part = words.first();
    let wants = |name: &str| part.is_none_or(|part| part == name);
    if wants("native") {
        native::first_byte(&mut table);
        native::system_calls(&mut table);
        native::private_memory(&mut table);
        native::binary_size(&mut table);
    }
    if wants("linux") {
        boots::rows(&mut table);
    }
    if wants("console") {
        console::rows(&mut table);
    }
    print!("{table}");
}

/// The directory of this run's own files. It goes with this.
struct Scratch;

impl Scratch {
    fn directory() -> PathBuf {
        env::temp_dir().join(format!("mote-bench-{}", process::id()))
    }

    /// A path in it.
    fn path(name: &str) -> PathBuf {
        let directory = Self::directory();
        fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        directory.join(name)
    }

    /// A file in it.
    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = Self::path(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing may have been put there.
        let _ = fs::remove_dir_all(Self::directory());
    }
}

/// Whether a subject is wanted.
fn is_wanted(name: &str) -> bool {
    let mut words = env::args().skip(2).peekable();
    words.peek().is_none() || words.any(|word| name.contains(&word))
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
