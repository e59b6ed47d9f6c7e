//! What one device waits for on the host, behind a single descriptor that its thread watches.
//!
//! A wait is armed for one event and then spent. So whoever serves the device, a vCPU or its thread, changes what is
//! waited for by itself, a descriptor may be closed at any time, and nothing that nobody takes can keep a thread busy.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::virtio::Interest;

/// The descriptors that a device waits for.
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// The descriptor that is readable while an event waits to be taken.
    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Waits for the next event on `fd`, once. Descriptors that are always ready, such as files, refuse.
    pub(crate) fn arm(&self, fd: impl AsFd, interest: Interest, token: u64) -> io::Result<()> {
        let flags = match interest {
            Interest::Read => EventFlags::IN | EventFlags::RDHUP,
            Interest::Write => EventFlags::OUT,
        };
        self.set(fd, flags | EventFlags::ONESHOT, token)
    }

    /// Waits for the other end of `fd` to go away, once.
    pub(crate) fn arm_hang_up(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.set(fd, EventFlags::ONESHOT, token)
    }

    /// Waits for every event on `fd`, whose bytes must be taken each time.
    pub(crate) fn keep(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.set(fd, EventFlags::IN, token)
    }

    fn set(&self, fd: impl AsFd, flags: EventFlags, token: u64) -> io::Result<()> {
        let data = EventData::new_u64(token);
        match epoll::modify(&self.0, &fd, data, flags) {
            Err(Errno::NOENT) => Ok(epoll::add(&self.0, &fd, data, flags)?),
            result => Ok(result?),
        }
    }

    /// Waits for `fd` no more. Needed before it is closed, since a duplicate elsewhere would keep the wait alive.
    pub(crate) fn forget(&self, fd: impl AsFd) {
        // It may never have been armed.
        let _ = epoll::delete(&self.0, fd);
    }

    /// Takes the events that have come.
    pub(crate) fn take(&self) -> Vec<u64> {
        let mut events: Vec<Event> = Vec::with_capacity(32);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // What cannot be had now is there the next time.
        let _ = epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), Some(&now));
        events.iter().map(|event| event.data.u64()).collect()
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A clock that a [`Poller`] waits for.
pub(crate) struct Timer(OwnedFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?))
    }

    /// Rings once after `delay`.
    pub(crate) fn start(&self, delay: Duration) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let delay = delay.max(Duration::from_nanos(1));
        let it_value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: delay.subsec_nanos().into(),
        };
        let timer = Itimerspec { it_interval: zero, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &timer)?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_wait_is_spent_by_its_event() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let poller = Poller::new().unwrap();
        poller.arm(&there, Interest::Read, 7).unwrap();
        assert!(poller.take().is_empty());
        here.write_all(b"x").unwrap();
        assert_eq!(poller.take(), [7]);
        assert!(poller.take().is_empty(), "nobody took the byte, and it is not told again");
        poller.arm(&there, Interest::Read, 8).unwrap();
        assert_eq!(poller.take(), [8]);
    }

    #[test]
    fn what_is_forgotten_tells_nothing() {
        let (here, there) = UnixStream::pair().unwrap();
        let poller = Poller::new().unwrap();
        poller.arm(&there, Interest::Read, 7).unwrap();
        poller.forget(&there);
        drop(here);
        assert!(poller.take().is_empty());
    }
}
