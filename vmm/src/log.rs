//! mote's own messages: lines on standard error, never on the guest's console.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

use crate::terminal;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // A raw terminal does not return to the line's start by itself.
        let end = if terminal::is_raw() { "\r\n" } else { "\n" };
        let level = record.level().as_str().to_ascii_lowercase();
        let line = match record.level() {
            log::Level::Info => format!("mote: {}{end}", record.args()),
            _ => format!("mote: {level}: {}{end}", record.args()),
        };
        // One call, so that lines of several threads stay whole. There is nobody to tell of a failure.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// From now on messages of `level` and above are printed.
pub fn init(level: LevelFilter) {
    // Set once, at the start of the process; a second time changes nothing but the level.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
