//! Opens what `hostdev` names, and keeps what has to be put right at the end.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::input::Input;
use super::pty::Pty;
use super::socket::{self, Listener};
use super::spec::{Place, Spec};
use super::{Link, Setup};
use crate::stream::{Stream, Way};

/// What an opened back end consists of.
#[derive(Default)]
pub(super) struct Opened {
    pub(super) input: Option<Input>,
    pub(super) output: Option<Stream>,
    pub(super) link: Option<Link>,
    pub(super) kept: Vec<Kept>,
    /// The terminal whose size is the guest's.
    pub(super) sized: Option<OwnedFd>,
}

/// What the end of the back end has to put right.
pub(super) enum Kept {
    /// A line that was made raw.
    Line { line: OwnedFd, before: Box<Termios> },
    /// A command that has to see the end of its input and may then finish.
    Command(Child),
}

/// How long a command may take to finish when its input has ended.
const FINISH: Duration = Duration::from_secs(5);

impl Drop for Kept {
    fn drop(&mut self) {
        match self {
            // A line that is gone needs no mending.
            Self::Line { line, before } => drop(tcsetattr(line, OptionalActions::Now, before)),
            Self::Command(child) => {
                if wait(child, FINISH).is_err() {
                    warn!("the command of a hostdev is still running");
                }
            }
        }
    }
}

/// Waits for a child's end, for a while.
fn wait(child: &mut Child, patience: Duration) -> io::Result<()> {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    let patience = Timespec { tv_sec: i64::try_from(patience.as_secs()).unwrap_or(1), tv_nsec: 0 };
    if poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&patience))? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    child.wait().map(drop)
}

/// Opens all of `specs`, which together have at most one input and one output.
pub(super) fn open_all(setup: &Setup, specs: &[Spec]) -> Result<Opened, (String, io::Error)> {
    let mut opened = Opened::default();
    for spec in specs {
        opened.add(setup, spec).map_err(|error| (name(&spec.place), error))?;
    }
    Ok(opened)
}

/// A place as an error names it.
pub(super) fn name(place: &Place) -> String {
    match place {
        Place::Stdio => "standard input and output".to_owned(),
        Place::Command(command) => format!("|{command}"),
        Place::Pty(_) => "pty".to_owned(),
        Place::Path(path) | Place::Append(path) | Place::Listen(path) | Place::Connect(path) => {
            path.display().to_string()
        }
    }
}

impl Opened {
    fn add(&mut self, setup: &Setup, spec: &Spec) -> io::Result<()> {
        match &spec.place {
            Place::Stdio => self.add_stdio(setup, spec.way),
            Place::Path(path) => self.add_path(setup, path, spec.way),
            Place::Append(path) => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK | OFlags::CLOEXEC;
                self.output = Some(Stream::own(open(path, flags, Mode::from(0o644))?, Way::Out));
                Ok(())
            }
            Place::Command(command) => {
                let mut child = Command::new("sh").arg("-c").arg(command).stdin(Stdio::piped()).spawn()?;
                if let Some(pipe) = child.stdin.take() {
                    let pipe = OwnedFd::from(pipe);
                    rustix::io::ioctl_fionbio(&pipe, true)?;
                    self.output = Some(Stream::own(pipe, Way::Out));
                }
                self.kept.push(Kept::Command(child));
                Ok(())
            }
            Place::Pty(link) => {
                self.link = Some(Link::Pty(Pty::open(setup.vdev, link.as_deref())?));
                Ok(())
            }
            Place::Listen(path) => {
                self.link = Some(Link::Listen(Listener::open(setup.vdev, path)?));
                Ok(())
            }
            Place::Connect(path) => self.connect(path),
        }
    }

    fn connect(&mut self, path: &Path) -> io::Result<()> {
        let (input, output) = socket::connect(path)?;
        self.input = Some(Input::new(input));
        self.output = Some(output);
        self.link = Some(Link::Connect(path.to_owned()));
        Ok(())
    }

    fn add_stdio(&mut self, setup: &Setup, way: Option<Way>) -> io::Result<()> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        if way != Some(Way::Out) {
            let stream = Stream::of(stdin.as_fd(), Way::In)?;
            self.input = Some(match isatty(&stdin) {
                true => Input::typed(stream, Arc::clone(&setup.terminal)),
                false => Input::new(stream),
            });
        }
        if way != Some(Way::In) {
            self.output = Some(Stream::of(stdout.as_fd(), Way::Out)?);
        }
        let terminal = [stdin.as_fd(), stdout.as_fd()].into_iter().find(|fd| isatty(fd));
        if let (Some(terminal), true) = (terminal, way != Some(Way::Out)) {
            self.sized = Some(fcntl_dupfd_cloexec(terminal, 3)?);
        }
        Ok(())
    }

    fn add_path(&mut self, setup: &Setup, path: &Path, way: Option<Way>) -> io::Result<()> {
        let found = std::fs::metadata(path).map(|found| found.file_type());
        let is = |test: fn(&std::fs::FileType) -> bool| found.as_ref().is_ok_and(test);
        if is(FileTypeExt::is_socket) && way.is_none() {
            return self.connect(path);
        }
        // A FIFO that is open both ways waits for the other end instead of failing without it.
        let access = match way {
            _ if is(FileTypeExt::is_fifo) => OFlags::RDWR,
            Some(Way::In) => OFlags::RDONLY,
            Some(Way::Out) => OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC,
            None if found.is_ok() && !is(FileTypeExt::is_char_device) => {
                return Err(io::Error::new(
                    ErrorKind::InvalidInput,
                    "it goes one way: write it with < or >; only a character device or a socket goes both ways",
                ));
            }
            None => OFlags::RDWR,
        };
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(open(path, flags, Mode::from(0o644))?);
        if isatty(&file) {
            let before = tcgetattr(&file)?;
            let mut raw = before.clone();
            raw.make_raw();
            self.kept.push(Kept::Line { line: file.try_clone()?.into(), before: Box::new(before) });
            tcsetattr(&file, OptionalActions::Now, &raw)?;
        }
        debug_assert!(setup.specs.len() <= 2, "one each way");
        if way != Some(Way::Out) {
            self.input = Some(Input::new(Stream::own(file.try_clone()?, Way::In)));
        }
        if way != Some(Way::In) {
            self.output = Some(Stream::own(file, Way::Out));
        }
        Ok(())
    }
}
