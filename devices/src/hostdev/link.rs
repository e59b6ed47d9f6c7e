//! Who comes and goes at the other end, and what is opened late.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::input::Input;
use super::{Event, HostDevice, LINK, Link, TIMER, socket};
use crate::poller::Timer;
use crate::stream::Stream;
use crate::virtio::Interest;

/// How long until the next attempt to reach what is not there.
pub(super) const RETRY: Duration = Duration::from_millis(200);

impl HostDevice {
    /// The guest uses the device: what was delayed is opened now.
    pub(crate) fn touch(&mut self) {
        let Link::Delayed(since) = &mut self.link else { return };
        if since.is_none() {
            *since = Some(Instant::now());
            self.try_delayed();
        }
    }

    pub(super) fn try_delayed(&mut self) {
        let Link::Delayed(Some(since)) = self.link else { return };
        let Err((what, error)) = self.open_now() else { return };
        if self.setup.delayed.is_some_and(|patience| since.elapsed() < patience) {
            debug!("{}: cannot open {what} yet: {error}", self.setup.vdev);
            return self.start_timer(RETRY);
        }
        warn!("{}: cannot open {what}, so there is neither input nor output: {error}", self.setup.vdev);
        self.link = Link::Fixed;
    }

    pub(super) fn start_timer(&mut self, delay: Duration) {
        if self.timer.is_none() {
            self.timer = Timer::new().inspect_err(|e| warn!("{}: no timer: {e}", self.setup.vdev)).ok();
        }
        if let Some(timer) = &self.timer {
            let armed =
                timer.start(delay).and_then(|()| self.poller.arm(timer, Interest::Read, self.token(TIMER)));
            if let Err(error) = armed {
                warn!("{}: no timer: {error}", self.setup.vdev);
            }
        }
    }

    pub(super) fn handle_timer(&mut self) -> Option<Event> {
        match &self.link {
            Link::Delayed(_) => self.try_delayed(),
            Link::Connect(path) if self.output.is_none() => match socket::connect(path) {
                Ok(streams) => self.connect(streams),
                Err(_) => self.start_timer(RETRY),
            },
            _ => return self.handle_input(),
        }
        Some(Event::Link)
    }

    pub(super) fn handle_link(&mut self) -> Option<Event> {
        match &self.link {
            Link::Pty(pty) => match (pty.is_open(), self.output.is_some()) {
                (true, false) => match pty.streams() {
                    Ok(streams) => self.connect(streams),
                    Err(error) => warn!("{}: the pty's user cannot be served: {error}", self.setup.vdev),
                },
                (false, true) => self.leave(),
                _ => return Some(Event::Size),
            },
            Link::Listen(listener) => match listener.accept() {
                Ok(streams) => self.connect(streams),
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        warn!("{}: a client cannot be served: {error}", self.setup.vdev);
                    }
                    self.listen();
                }
            },
            Link::Fixed | Link::Connect(_) | Link::Delayed(_) => return None,
        }
        Some(Event::Link)
    }

    pub(super) fn listen(&mut self) {
        if let Link::Listen(listener) = &self.link
            && let Err(error) = self.poller.arm(listener, Interest::Read, self.token(LINK))
        {
            warn!("{}: no more clients can be served: {error}", self.setup.vdev);
        }
    }

    /// Somebody came.
    pub(super) fn connect(&mut self, (input, output): (Stream, Stream)) {
        debug!("{}: somebody is at the other end", self.setup.vdev);
        self.forget_streams();
        self.input = Some(Input::new(input));
        self.is_half_closed = false;
        self.output = Some(output);
        if self.setup.has_replay {
            self.backlog = self.replay.bytes();
        }
        self.flush();
        self.await_input(false);
    }

    /// Who is at the other end takes no more output. What they sent before is still for the guest.
    pub(super) fn leave(&mut self) {
        self.backlog.clear();
        if let Some(output) = self.output.take() {
            self.poller.forget(&output);
        }
        if self.input.is_none() || self.is_half_closed {
            self.disconnect();
        }
    }

    pub(super) fn forget_streams(&mut self) {
        if let Some(input) = self.input.take() {
            self.poller.forget(&input);
        }
        if let Some(output) = self.output.take() {
            self.poller.forget(&output);
        }
        self.is_half_closed = false;
        self.backlog.clear();
    }

    /// Lets go of who is at the other end, and waits for the next one. No effect on what has no other end.
    pub(crate) fn disconnect(&mut self) {
        if matches!(self.link, Link::Fixed | Link::Delayed(_)) {
            return;
        }
        debug!("{}: nobody is at the other end", self.setup.vdev);
        self.forget_streams();
        match &self.link {
            Link::Pty(pty) => {
                // What one user set is not for the next one.
                let _ = pty.make_raw();
            }
            Link::Listen(_) => self.listen(),
            Link::Connect(_) => self.start_timer(RETRY),
            Link::Fixed | Link::Delayed(_) => {}
        }
    }
}
