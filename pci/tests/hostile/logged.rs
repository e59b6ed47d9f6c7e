//! A log that counts the lines that a user would see.

use std::sync::Mutex;
use std::sync::Once;

use log::{Level, LevelFilter, Log, Metadata, Record};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static START: Once = Once::new();

struct Lines;

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Begins to count.
pub fn start() {
    START.call_once(|| log::set_logger(&Lines).unwrap());
    log::set_max_level(LevelFilter::Warn);
}

/// Takes the lines that begin with `name`.
pub fn take(name: &str) -> Vec<String> {
    let mut lines = LINES.lock().unwrap();
    let (taken, left) = std::mem::take(&mut *lines).into_iter().partition(|line| line.starts_with(name));
    *lines = left;
    taken
}
