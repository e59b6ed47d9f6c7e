//! The host's end of a console port or a serial line: where its output goes and its input comes from.
//!
//! Nothing here waits. Output that the host does not take is left with the guest, or dropped and counted if the user
//! wants that; input is read when the guest has room for it. What comes and goes, a pseudo-terminal's user or a
//! socket's client, is shown the last of what was printed while it was away.

mod input;
mod link;
mod open;
mod output;
mod pty;
mod replay;
mod socket;
mod spec;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, warn};
use rustix::io::ioctl_fionread;
use rustix::termios::{Winsize, tcgetwinsize};

pub(crate) use self::input::Input;
use self::link::RETRY;
use self::open::Kept;
use self::pty::Pty;
use self::replay::Replay;
use self::socket::Listener;
pub(crate) use self::spec::{Place, Spec};
use crate::chain::Chain;
use crate::poller::{Poller, Timer};
use crate::stream::Stream;
use crate::terminal::Terminal;
use crate::virtio::Interest;

/// How a back end is made.
#[derive(Clone)]
pub(crate) struct Setup {
    /// The vdev's type, for messages.
    pub(crate) vdev: &'static str,
    /// Where to.
    pub(crate) specs: Vec<Spec>,
    /// Open it only when the guest uses the device, and try for so long.
    pub(crate) delayed: Option<Duration>,
    /// Output waits for a host that is slow.
    pub(crate) has_backpressure: bool,
    /// Show who comes later the last of what was printed.
    pub(crate) has_replay: bool,
    /// The terminal, for standard input.
    pub(crate) terminal: Arc<dyn Terminal>,
}

/// What comes and goes at the other end.
enum Link {
    /// Nothing: it is there from the start, or never.
    Fixed,
    Pty(Pty),
    Listen(Listener),
    Connect(PathBuf),
    /// It is to be opened when the guest uses the device; since when that is tried.
    Delayed(Option<Instant>),
}

/// What an event of the host means for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There may be input.
    Input,
    /// Output may be taken again.
    Output,
    /// Somebody came or went.
    Link,
    /// The size may have changed.
    Size,
}

/// How many tokens of a [`Poller`] a back end uses, from the first on.
pub(crate) const TOKENS: u64 = 8;
const INPUT: u64 = 0;
const OUTPUT: u64 = 1;
const LINK: u64 = 2;
const TIMER: u64 = 3;
const SIZE: u64 = 4;

/// A back end.
pub(crate) struct HostDevice {
    setup: Setup,
    poller: Arc<Poller>,
    token: u64,
    input: Option<Input>,
    /// The other end has sent its last byte, but may still read.
    is_half_closed: bool,
    output: Option<Stream>,
    link: Link,
    replay: Replay,
    /// What who just came has not been shown yet.
    backlog: VecDeque<u8>,
    sized: Option<OwnedFd>,
    resized: Option<OwnedFd>,
    timer: Option<Timer>,
    received: u64,
    sent: u64,
    dropped: u64,
    // Last, so that the streams are closed before a command is waited for.
    kept: Vec<Kept>,
}

impl HostDevice {
    /// Opens it, unless that is delayed. It uses `TOKENS` tokens of `poller` from `token` on. An error names what cannot
    /// be opened.
    pub(crate) fn open(setup: Setup, poller: Arc<Poller>, token: u64) -> Result<Self, (String, io::Error)> {
        let mut this = Self::closed(setup, poller, token);
        match this.setup.delayed {
            Some(_) => this.link = Link::Delayed(None),
            None => this.open_now()?,
        }
        Ok(this)
    }

    /// Streams that are there already.
    pub(crate) fn with_streams(
        setup: Setup,
        poller: Arc<Poller>,
        input: Option<Stream>,
        output: Option<Stream>,
    ) -> Self {
        Self { input: input.map(Input::new), output, ..Self::closed(setup, poller, 0) }
    }

    fn closed(setup: Setup, poller: Arc<Poller>, token: u64) -> Self {
        Self {
            setup,
            poller,
            token,
            input: None,
            is_half_closed: false,
            output: None,
            link: Link::Fixed,
            replay: Replay::default(),
            backlog: VecDeque::new(),
            sized: None,
            resized: None,
            timer: None,
            received: 0,
            sent: 0,
            dropped: 0,
            kept: Vec::new(),
        }
    }

    fn open_now(&mut self) -> Result<(), (String, io::Error)> {
        let specs = std::mem::take(&mut self.setup.specs);
        let opened = open::open_all(&self.setup, &specs);
        self.setup.specs = specs;
        let open::Opened { input, output, link, kept, sized } = opened?;
        (self.input, self.output, self.kept, self.sized) = (input, output, kept, sized);
        self.link = link.unwrap_or(Link::Fixed);
        if self.sized.is_some() {
            self.resized = self.setup.terminal.take_resized();
        }
        let waits = match &self.link {
            Link::Pty(pty) => self.poller.keep(pty.opens(), self.token(LINK)),
            Link::Listen(listener) => self.poller.arm(listener, Interest::Read, self.token(LINK)),
            Link::Fixed | Link::Connect(_) | Link::Delayed(_) => Ok(()),
        };
        let waits = waits.and_then(|()| match &self.resized {
            Some(resized) => self.poller.keep(resized, self.token(SIZE)),
            None => Ok(()),
        });
        waits.map_err(|error| ("an event descriptor".to_owned(), error))?;
        self.await_input(false);
        Ok(())
    }

    fn token(&self, kind: u64) -> u64 {
        self.token.saturating_add(kind)
    }

    /// The path of its pseudo-terminal, if it is one.
    pub(crate) fn pty(&self) -> Option<&Path> {
        match &self.link {
            Link::Pty(pty) => Some(pty.name()),
            _ => None,
        }
    }

    /// Whether somebody is at the other end.
    pub(crate) fn is_connected(&self) -> bool {
        match &self.link {
            Link::Fixed => true,
            Link::Pty(_) | Link::Listen(_) | Link::Connect(_) => self.output.is_some(),
            Link::Delayed(_) => false,
        }
    }

    /// The other end's size in columns and rows, where it has one.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        let size: Winsize = match (&self.sized, &self.link) {
            (Some(terminal), _) => tcgetwinsize(terminal).ok()?,
            (None, Link::Pty(pty)) => pty.size().ok()?,
            (None, _) => return None,
        };
        Some((size.ws_col, size.ws_row))
    }

    /// Whether [`size`](Self::size) is ever known.
    pub(crate) fn has_size(&self) -> bool {
        let will_be = |spec: &Spec| matches!(spec.place, Place::Pty(_));
        self.sized.is_some() || self.setup.specs.iter().any(will_be)
    }

    /// Takes note of an event with one of the tokens.
    pub(crate) fn handle(&mut self, token: u64) -> Option<Event> {
        match token.checked_sub(self.token)? {
            INPUT => self.handle_input(),
            OUTPUT => {
                self.flush();
                Some(Event::Output)
            }
            LINK => self.handle_link(),
            TIMER => self.handle_timer(),
            SIZE => {
                if let Some(resized) = &self.resized {
                    while rustix::io::read(resized, &mut [0; 64]).is_ok_and(|count| count == 64) {}
                }
                Some(Event::Size)
            }
            _ => None,
        }
    }

    fn handle_input(&mut self) -> Option<Event> {
        if self.is_half_closed || self.is_abandoned() {
            self.disconnect();
            return Some(Event::Link);
        }
        match self.input.as_mut().map(Input::look_ahead) {
            Some(Ok(true)) | None => {}
            Some(Ok(false)) => self.end_input(None),
            Some(Err(error)) => self.end_input(Some(error)),
        }
        Some(Event::Input)
    }

    /// Fills the guest's buffers with input. 0: there is none for now, and the guest is to be served again when there is.
    pub(crate) fn receive(&mut self, chain: &mut Chain<'_>) -> usize {
        self.take_input(|input| input.fill(chain))
    }

    /// As [`receive`](Self::receive), for a device that has no chains.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> usize {
        self.take_input(|input| input.read(buf))
    }

    fn take_input(&mut self, take: impl FnOnce(&mut Input) -> io::Result<usize>) -> usize {
        let Some(input) = self.input.as_mut().filter(|_| !self.is_half_closed) else { return 0 };
        match take(input) {
            Ok(0) => self.end_input(None),
            Ok(count) => {
                self.received = self.received.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                return count;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                self.await_input(true);
            }
            Err(error) => self.end_input(Some(error)),
        }
        0
    }

    /// Waits for input, if the guest has room for it or it is read ahead of the guest.
    pub(crate) fn await_input(&mut self, has_room: bool) {
        let Some(input) = self.input.as_ref().filter(|_| !self.is_half_closed) else { return };
        if input.is_background() {
            return self.start_timer(RETRY);
        }
        let token = self.token(INPUT);
        let armed = match has_room || input.is_eager() {
            true => self.poller.arm(input, Interest::Read, token),
            // The next client need not wait for the guest. One that has gone already has left input.
            false if self.is_socket() && !socket::is_hung_up(input) => self.poller.arm_hang_up(input, token),
            false => Ok(()),
        };
        // Files refuse, and are always ready.
        if let Err(error) = armed {
            debug!("{}: cannot wait for input: {error}", self.setup.vdev);
        }
    }

    fn is_socket(&self) -> bool {
        matches!(self.link, Link::Listen(_) | Link::Connect(_))
    }

    /// Whether a socket's other end is gone and has left nothing for the guest.
    fn is_abandoned(&self) -> bool {
        let is_done =
            |input: &Input| socket::is_hung_up(input) && ioctl_fionread(input).is_ok_and(|left| left == 0);
        self.is_socket() && self.input.as_ref().is_some_and(is_done)
    }

    /// There is no more input from who is there now.
    fn end_input(&mut self, error: Option<io::Error>) {
        let Some(input) = &self.input else { return };
        if matches!(self.link, Link::Fixed | Link::Delayed(_)) {
            if let Some(error) = error {
                warn!("{}: cannot read input, so there is none from now on: {error}", self.setup.vdev);
            }
            self.poller.forget(input);
            self.input = None;
        } else if error.is_some() || socket::is_hung_up(input) {
            self.disconnect();
        } else {
            self.is_half_closed = true;
            let _ = self.poller.arm_hang_up(input, self.token(INPUT));
        }
    }

    /// The counters, for the status text.
    pub(crate) fn status(&self) -> String {
        let state = if self.is_connected() { "" } else { ", nobody at the other end" };
        format!("{} bytes in, {} out, {} dropped{state}", self.received, self.sent, self.dropped)
    }
}
