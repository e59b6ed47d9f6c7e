//! The guest's output on its way to the host.

use std::io::{self, ErrorKind, Write};

use log::warn;

use super::{HostDevice, Link, OUTPUT};
use crate::chain::Chain;
use crate::queue::MAX_BYTES;
use crate::virtio::Interest;

impl HostDevice {
    /// Whether output goes straight to the host: then [`drain`](Self::drain) needs no copy.
    pub(crate) fn is_direct(&self) -> bool {
        self.output.is_some() && self.backlog.is_empty() && !self.setup.has_replay
    }

    /// Moves a chain's bytes straight to the host. True: some are left, and the guest is to be served again.
    pub(crate) fn drain(&mut self, chain: &mut Chain<'_>) -> bool {
        while let Some(output) = self.output.as_mut().filter(|_| chain.readable() != 0) {
            match chain.drain(output, MAX_BYTES) {
                Ok(0) => return self.refuse(chain),
                Ok(count) => self.sent = self.sent.saturating_add(u64::try_from(count).unwrap_or(u64::MAX)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.refuse(chain),
                Err(error) => self.end_output(&error),
            }
        }
        // The other end went away in the middle.
        if chain.readable() != 0 && matches!(self.link, Link::Fixed) {
            self.drop_rest(chain);
        }
        chain.readable() != 0
    }

    /// The host takes no more for now: the rest waits, or is dropped.
    fn refuse(&mut self, chain: &mut Chain<'_>) -> bool {
        if self.setup.has_backpressure {
            self.await_output();
            return true;
        }
        self.drop_rest(chain);
        false
    }

    fn drop_rest(&mut self, chain: &mut Chain<'_>) {
        self.dropped = self.dropped.saturating_add(chain.readable().into());
        chain.skip(chain.readable());
    }

    pub(super) fn await_output(&mut self) {
        if let Some(output) = &self.output
            && let Err(error) = self.poller.arm(output, Interest::Write, self.token(OUTPUT))
        {
            warn!("{}: cannot wait for a slow reader: {error}", self.setup.vdev);
        }
    }

    /// Hands bytes to the host and returns how many are done with. If that is not all, the guest is to be served again
    /// when the host takes more.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> usize {
        self.flush();
        let mut done = 0_usize;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let taken = match &mut self.output {
                Some(output) if self.backlog.is_empty() => match output.write(rest) {
                    Ok(0) => Err(ErrorKind::WouldBlock.into()),
                    result => result,
                },
                Some(_) => Err(ErrorKind::WouldBlock.into()),
                None => return done.saturating_add(self.send_to_nobody(rest)),
            };
            match taken {
                Ok(count) => {
                    if self.setup.has_replay {
                        self.replay.push(rest.get(..count).unwrap_or(rest));
                    }
                    self.sent = self.sent.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                    done = done.saturating_add(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.await_output();
                    if self.setup.has_backpressure {
                        return done;
                    }
                    self.dropped = self.dropped.saturating_add(u64::try_from(rest.len()).unwrap_or(u64::MAX));
                    return bytes.len();
                }
                Err(error) => self.end_output(&error),
            }
        }
        done
    }

    /// Output while nobody is there: it is kept for who comes next, or waits, or is dropped.
    fn send_to_nobody(&mut self, bytes: &[u8]) -> usize {
        let is_fixed = matches!(self.link, Link::Fixed);
        if self.setup.has_replay && !is_fixed && !matches!(self.link, Link::Delayed(_)) {
            let lost = self.replay.push(bytes);
            self.dropped = self.dropped.saturating_add(u64::try_from(lost).unwrap_or(u64::MAX));
            return bytes.len();
        }
        if self.setup.has_backpressure && !is_fixed {
            return 0;
        }
        self.dropped = self.dropped.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        bytes.len()
    }

    /// Shows who came what was printed before.
    pub(super) fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let Some(output) = &mut self.output else { return self.backlog.clear() };
            match output.write(self.backlog.as_slices().0) {
                Ok(count) if count > 0 => drop(self.backlog.drain(..count.min(self.backlog.len()))),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() != ErrorKind::WouldBlock => self.end_output(&error),
                _ => return self.await_output(),
            }
        }
    }

    /// The other end takes nothing any more.
    pub(super) fn end_output(&mut self, error: &io::Error) {
        if !matches!(self.link, Link::Fixed | Link::Delayed(_)) {
            return self.leave();
        }
        warn!("{}: cannot write output, so it is dropped from now on: {error}", self.setup.vdev);
        if let Some(output) = self.output.take() {
            self.poller.forget(&output);
        }
    }
}
