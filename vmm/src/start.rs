//! What Rust's runtime does before `main`, as far as mote wants it.
//!
//! It also asks where each thread's stack is, reading `/proc/self/maps` for the first one, and gives each a second stack, to
//! name the thread whose stack overflows. That was 0.05 and 0.16 ms of a start in two measurements, and system calls and memory for each thread
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

/// Has SIGPIPE end mote where nobody reads a listing to its end, as it does with every tool, even where whoever started mote
/// ignores that signal, as a service manager may.
pub fn end_with_readers() {
    on_broken_pipe(libc::SIG_DFL);
}

/// Has writes to a pipe or socket whose reader has gone fail, instead of ending mote: a guest goes on without it.
pub fn outlive_readers() {
    on_broken_pipe(libc::SIG_IGN);
}

fn on_broken_pipe(action: libc::sighandler_t) {
    #[expect(unsafe_code, reason = "the action for a signal is set by a raw call")]
    // SAFETY: neither action runs any code of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, action);
    }
}
