//! mote's own threads.

use std::thread::Builder;

/// Bytes of stack. The usual 2 MiB are a large page to a host that has them to spare, and private memory as a whole
/// as soon as one byte is touched; none of the threads needs a tenth of it.
const STACK: usize = 256 << 10;

/// A thread with a small stack, and a name for `ps`.
pub fn named(name: impl Into<String>) -> Builder {
    Builder::new().name(name.into()).stack_size(STACK)
}
