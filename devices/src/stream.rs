//! A stream of the host that a device reads or writes without ever waiting, and without touching what it inherited.
//!
//! The flags of a descriptor belong to everyone who shares it: O_NONBLOCK on standard input would reach the shell. So
//! a stream is opened anew where the host can do that. Where it cannot, the descriptor is asked whether it is ready
//! before each use.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::termios::isatty;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

/// The most bytes that go to a descriptor that might wait: what is ready takes a page, whatever it is.
const BLOCKING_CHUNK: usize = 2048;

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

/// One way of a terminal, a pipe, a file.
pub(crate) struct Stream {
    file: File,
    way: Way,
    /// Reads and writes may wait, so ask first.
    may_block: bool,
    /// It can be waited for; other files are always ready.
    is_pollable: bool,
}

impl Stream {
    /// A stream of our own to what `fd` is open on.
    pub(crate) fn of(fd: BorrowedFd<'_>, way: Way) -> io::Result<Self> {
        let flags = match way {
            Way::In => OFlags::RDONLY,
            Way::Out => OFlags::WRONLY,
        };
        let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
        let is_pollable = matches!(kind, FileType::Fifo | FileType::Socket) || isatty(fd);
        // A regular file opened anew would begin at its start, and a device like /dev/null never waits.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let (file, may_block) = match is_pollable.then(|| openat(CWD, path, flags, Mode::empty())) {
            Some(Ok(own)) => (own, false),
            Some(Err(_)) | None => (fcntl_dupfd_cloexec(fd, 3)?, is_pollable),
        };
        Ok(Self { file: file.into(), way, may_block, is_pollable })
    }

    /// The descriptor to wait for; `None` where there is never a reason to wait.
    pub(crate) fn pollable(&self) -> Option<RawFd> {
        self.is_pollable.then(|| self.file.as_raw_fd())
    }

    /// A duplicate to wait on; `None` where there is never a reason to wait.
    pub(crate) fn duplicate(&self) -> Option<OwnedFd> {
        self.is_pollable.then(|| fcntl_dupfd_cloexec(&self.file, 3).ok()).flatten()
    }

    /// `Err(WouldBlock)` where a use might wait.
    fn check(&self) -> io::Result<()> {
        if !self.may_block {
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
        if self.may_block { len.min(BLOCKING_CHUNK) } else { len }
    }
}

impl ReadVolatile for Stream {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        self.check().map_err(VolatileMemoryError::IOError)?;
        self.file.read_volatile(buf)
    }
}

impl WriteVolatile for Stream {
    fn write_volatile<B: BitmapSlice>(
        &mut self,
        buf: &VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        self.check().map_err(VolatileMemoryError::IOError)?;
        self.file.write_volatile(&buf.subslice(0, self.chunk(buf.len()))?)
    }
}

impl io::Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.file.read(buf)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.file.write(buf.get(..self.chunk(buf.len())).unwrap_or(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
