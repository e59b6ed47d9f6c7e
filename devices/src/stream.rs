//! A stream of the host that a device reads or writes without ever waiting, and without touching what it inherited.
//!
//! The flags of a descriptor belong to everyone who shares it: O_NONBLOCK on standard input would reach the shell. So
//! a stream is opened anew where the host can do that. Where it cannot, a socket is told with each use not to wait,
//! and any other descriptor is asked whether it is ready before each use.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::timeline::{self, FIRST_OUTPUT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::termios::isatty;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

/// The most bytes that go to a descriptor that might wait: what is ready takes a page, whatever it is.
const BLOCKING_CHUNK: usize = 2048;
/// The most bytes that are copied on their way to or from a socket.
const SOCKET_CHUNK: usize = 4096;

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

/// How a stream is kept from waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// By flags of its own, or it never waits.
    Own,
    /// By flags of each call.
    Socket,
    /// By a question before each call.
    Ask,
}

/// One way of a terminal, a pipe, a socket, a file.
pub(crate) struct Stream {
    file: File,
    way: Way,
    manner: Manner,
}

impl Stream {
    /// A stream of our own to what the inherited `fd` is open on.
    pub(crate) fn of(fd: BorrowedFd<'_>, way: Way) -> io::Result<Self> {
        let flags = match way {
            Way::In => OFlags::RDONLY,
            Way::Out => OFlags::WRONLY,
        };
        let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
        let can_wait = kind == FileType::Fifo || isatty(fd);
        // A regular file opened anew would begin at its start, and a device like /dev/null never waits.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let (file, manner) = match can_wait.then(|| openat(CWD, path, flags, Mode::empty())) {
            Some(Ok(own)) => (own, Manner::Own),
            Some(Err(_)) => (fcntl_dupfd_cloexec(fd, 3)?, Manner::Ask),
            None if kind == FileType::Socket => (fcntl_dupfd_cloexec(fd, 3)?, Manner::Socket),
            None => (fcntl_dupfd_cloexec(fd, 3)?, Manner::Own),
        };
        Ok(Self { file: file.into(), way, manner })
    }

    /// A stream to what nobody else has open and does not wait.
    pub(crate) fn own(file: impl Into<OwnedFd>, way: Way) -> Self {
        Self { file: file.into().into(), way, manner: Manner::Own }
    }

    /// `Err(WouldBlock)` where a use might wait.
    fn check(&self) -> io::Result<()> {
        if self.manner != Manner::Ask {
            return Ok(());
        }
        let flags = match self.way {
            Way::In => PollFlags::IN,
            Way::Out => PollFlags::OUT,
        };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut [PollFd::from_borrowed_fd(self.file.as_fd(), flags)], Some(&now))? {
            0 => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }

    fn chunk(&self, len: usize) -> usize {
        if self.manner == Manner::Ask { len.min(BLOCKING_CHUNK) } else { len }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl ReadVolatile for Stream {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        if self.manner == Manner::Socket {
            let mut bytes = [0; SOCKET_CHUNK];
            let bytes = bytes.get_mut(..buf.len().min(SOCKET_CHUNK)).unwrap_or_default();
            let count = self.read(bytes).map_err(VolatileMemoryError::IOError)?;
            return buf.write(bytes.get(..count).unwrap_or_default(), 0);
        }
        self.check().map_err(VolatileMemoryError::IOError)?;
        self.file.read_volatile(buf)
    }
}

impl WriteVolatile for Stream {
    fn write_volatile<B: BitmapSlice>(
        &mut self,
        buf: &VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        if self.manner == Manner::Socket {
            let mut bytes = [0; SOCKET_CHUNK];
            let count = buf.read(&mut bytes, 0)?;
            let bytes = bytes.get(..count).unwrap_or_default();
            return self.write(bytes).map_err(VolatileMemoryError::IOError);
        }
        self.check().map_err(VolatileMemoryError::IOError)?;
        timeline::mark(FIRST_OUTPUT);
        self.file.write_volatile(&buf.subslice(0, self.chunk(buf.len()))?)
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.manner == Manner::Socket {
            return Ok(recv(&self.file, buf, RecvFlags::DONTWAIT)?.0);
        }
        self.check()?;
        self.file.read(buf)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.manner == Manner::Socket {
            return Ok(send(&self.file, buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?);
        }
        self.check()?;
        timeline::mark(FIRST_OUTPUT);
        self.file.write(buf.get(..self.chunk(buf.len())).unwrap_or(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
