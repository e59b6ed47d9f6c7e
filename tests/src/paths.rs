//! Where the Makefile puts what the tests run.

use std::path::{Path, PathBuf};

/// A file under the workspace's `target` directory.
///
/// # Panics
/// When it is not there: no test passes for want of its subject.
#[must_use]
#[track_caller]
pub fn built(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(name);
    path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}; `make test` builds it", path.display()))
}

/// The `mote` binary under test: `$MOTE`, else `target/mote`.
///
/// # Panics
/// When it is not there.
#[must_use]
#[track_caller]
pub fn mote() -> PathBuf {
    std::env::var_os("MOTE").map_or_else(|| built("mote"), PathBuf::from)
}
