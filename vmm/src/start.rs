//! What Rust's runtime does before `main`, as far as mote wants it.
//!
//! It also asks where each thread's stack is, reading `/proc/self/maps` for the first one, and gives each a second stack, to
//! name the thread whose stack overflows. That is 0.06 ms of a start, and system calls and memory for each thread
//! (docs/performance.md). Without it an overflow is a plain SIGSEGV, and the guardian gives the terminal back.

use std::io;

/// Puts `/dev/null` where a standard stream is closed: else the next file to be opened would be taken for it.
pub fn fill_streams() {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    #[expect(unsafe_code, reason = "only raw calls take descriptors that may not be open")]
    // SAFETY: `poll` writes to the three that it is told of, and the path ends with a zero.
    unsafe {
        while libc::poll(streams.as_mut_ptr(), 3, 0) == -1 {
            // Where it cannot tell, each is taken to be open.
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return;
            }
        }
        for stream in streams {
            // The lowest number that is free is this one's. Nobody can be told that there is no /dev/null.
            if stream.revents & libc::POLLNVAL != 0 && libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) == -1 {
                libc::abort();
            }
        }
    }
}

/// Has writes to a pipe or socket whose reader has gone fail, instead of ending mote: a guest goes on without it. Before
/// that, SIGPIPE ends a listing that nobody reads to its end, as it does with every tool.
pub fn outlive_readers() {
    #[expect(unsafe_code, reason = "the action for a signal is set by a raw call")]
    // SAFETY: to ignore a signal runs nothing.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}
