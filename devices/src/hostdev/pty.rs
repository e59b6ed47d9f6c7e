//! A pseudo-terminal that programs of the host open and close as they like.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use log::info;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcgetwinsize, tcsetattr};

use crate::stream::{Stream, Way};

/// The master's side of a pseudo-terminal.
pub(crate) struct Pty {
    master: OwnedFd,
    /// Tells of each open and close of the slave, which the master by itself does not.
    opens: OwnedFd,
    name: PathBuf,
    link: Option<PathBuf>,
}

impl Pty {
    /// Makes one, raw, with a symbolic link to it if there is to be one, and prints its name.
    pub(crate) fn open(vdev: &str, link: Option<&Path>) -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let opens = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // Until a slave has been closed, a master does not tell that there is none.
        drop(open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?);
        inotify::add_watch(&opens, &name, WatchFlags::OPEN | WatchFlags::CLOSE)?;
        let name = PathBuf::from(name.to_string_lossy().into_owned());
        if let Some(link) = link {
            replace_link(link, &name)?;
        }
        info!("{vdev}: {}", name.display());
        let this = Self { master, opens, name, link: link.map(Path::to_owned) };
        this.make_raw()?;
        Ok(this)
    }

    /// Sets the line raw, as whoever opens it next shall find it.
    pub(crate) fn make_raw(&self) -> io::Result<()> {
        let mut modes = tcgetattr(&self.master)?;
        modes.make_raw();
        Ok(tcsetattr(&self.master, OptionalActions::Now, &modes)?)
    }

    /// The slave's path.
    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    /// The descriptor that tells of opens and closes.
    pub(crate) fn opens(&self) -> &OwnedFd {
        &self.opens
    }

    /// Takes note of the opens and closes so far, and tells whether anybody has the slave open.
    pub(crate) fn is_open(&self) -> bool {
        while rustix::io::read(&self.opens, &mut [0; 1024]).is_ok_and(|count| count != 0) {}
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.master, PollFlags::empty())];
        poll(&mut fds, Some(&now)).is_ok() && fds.iter().all(|fd| !fd.revents().contains(PollFlags::HUP))
    }

    /// Both ways to who has it open.
    pub(crate) fn streams(&self) -> io::Result<(Stream, Stream)> {
        let duplicate = || fcntl_dupfd_cloexec(self.master.as_fd(), 3);
        Ok((Stream::own(duplicate()?, Way::In), Stream::own(duplicate()?, Way::Out)))
    }

    /// The size that its user gave it.
    pub(crate) fn size(&self) -> io::Result<Winsize> {
        Ok(tcgetwinsize(&self.master)?)
    }
}

/// Makes a symbolic link where there is none, or one that may be old.
fn replace_link(link: &Path, target: &Path) -> io::Result<()> {
    if fs::symlink_metadata(link).is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(link)?;
    }
    symlink(target, link)
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            // It may have been removed already.
            let _ = fs::remove_file(link);
        }
    }
}
