//! Unix sockets: one that listens for one client after the other, and one that connects, again and again.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::info;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::stream::{Stream, Way};

/// A socket of ours that others connect to.
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens at any more makes way.
    pub(crate) fn open(vdev: &str, path: &Path) -> io::Result<Self> {
        let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
            fs::remove_file(path)?;
        }
        let socket = UnixListener::bind(path)?;
        socket.set_nonblocking(true)?;
        info!("{vdev}: listening at {}", path.display());
        Ok(Self { socket, path: path.to_owned() })
    }

    /// The next client, if one waits.
    pub(crate) fn accept(&self) -> io::Result<(Stream, Stream)> {
        streams(self.socket.accept()?.0)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have removed it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Both ways to who listens at `path`.
pub(crate) fn connect(path: &Path) -> io::Result<(Stream, Stream)> {
    streams(UnixStream::connect(path)?)
}

fn streams(socket: UnixStream) -> io::Result<(Stream, Stream)> {
    socket.set_nonblocking(true)?;
    Ok((Stream::own(socket.try_clone()?, Way::In), Stream::own(socket, Way::Out)))
}

/// Whether the other end of a socket is gone for good, and has not just finished writing.
pub(crate) fn is_hung_up(fd: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::empty())];
    poll(&mut fds, Some(&now)).is_err() || fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
}
