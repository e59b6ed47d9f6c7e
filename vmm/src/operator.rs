//! What is asked of a running machine from outside: by signals, by keys, by the threads of its devices.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::interrupt::Line;
use devices::vdev::{Button, Reason, Vdev};
use log::{error, info};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestMemoryMmap;

use crate::bus::Bus;
use crate::config::Config;
use crate::dump;
use crate::ending::Ending;
use crate::signals::{Request, Signals, Stop};
use crate::terminal::Terminal;
use crate::vcpu::{Registers, Vcpus};

/// Who looks after a running machine.
pub(crate) struct Operator<'a> {
    pub(crate) config: &'a Config,
    pub(crate) vdevs: &'a [Arc<dyn Vdev>],
    pub(crate) bus: &'a Bus,
    pub(crate) memory: &'a GuestMemoryMmap,
    pub(crate) signals: &'a Signals,
    pub(crate) terminal: &'a Terminal,
    pub(crate) ending: &'a Ending,
    /// The interrupt of the event device that tells the guest of its power button.
    pub(crate) button: Arc<dyn Line>,
    pub(crate) started: Instant,
}

/// What ended the run.
pub(crate) enum Ended {
    /// The guest, or what it did: its vCPUs know.
    Guest,
    /// A device's thread.
    Device(Reason),
    /// Somebody outside.
    Stop(Stop),
}

impl Operator<'_> {
    /// Does what is asked for until something ends the run.
    pub(crate) fn wait(&self, vcpus: &Vcpus) -> io::Result<Ended> {
        // When the power is cut, once the button has been pressed.
        let mut pressed: Option<Option<Instant>> = None;
        loop {
            let deadline = pressed.flatten();
            self.sleep(vcpus, deadline)?;
            if vcpus.outcome().is_some() {
                return Ok(Ended::Guest);
            }
            if let Some(reason) = self.ending.reason() {
                return Ok(Ended::Device(reason));
            }
            let requests = self.signals.take();
            if let Some(stop) = self.terminal.attend(requests.contains(&Request::Continued)) {
                return Ok(Ended::Stop(stop));
            }
            for request in requests {
                match request {
                    Request::Continued => {}
                    Request::Status => info!("{}", self.status(vcpus)),
                    Request::Dump => vcpus.pause(|registers| self.dump(registers)),
                    Request::Cut(stop) => return Ok(Ended::Stop(stop)),
                    Request::Button(stop) if pressed.is_some() => return Ok(Ended::Stop(stop)),
                    Request::Button(stop) => pressed = Some(self.press(stop)),
                }
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(Ended::Stop(Stop::Unheeded));
            }
        }
    }

    /// Waits until something may have to be done, at most until `deadline`.
    fn sleep(&self, vcpus: &Vcpus, deadline: Option<Instant>) -> io::Result<()> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [
            PollFd::new(vcpus.ended(), PollFlags::IN),
            PollFd::new(self.signals, PollFlags::IN),
            PollFd::new(self.terminal, PollFlags::IN),
            PollFd::new(self.ending, PollFlags::IN),
        ];
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Presses the power button, and says until when the guest has time.
    fn press(&self, stop: Stop) -> Option<Instant> {
        let wait = self.config.power_button_wait;
        let cut = match wait {
            Some(wait) => format!("in {} s, or at once at another {stop}", wait.as_secs()),
            None => format!("at another {stop}"),
        };
        info!("{stop}: the power button is pressed; if the guest does not heed it, the power is cut {cut}");
        for vdev in self.vdevs {
            vdev.button(Button::Power);
        }
        if let Err(error) = self.button.set(true).and_then(|()| self.button.set(false)) {
            error!("the power button does not reach the guest: {error}");
        }
        Instant::now().checked_add(wait?)
    }

    /// The state of everything, as text.
    pub(crate) fn status(&self, vcpus: &Vcpus) -> String {
        let name = self.config.name.as_deref().unwrap_or("the guest");
        let since = Duration::from_secs(self.started.elapsed().as_secs());
        let mut lines = vec![format!("status of {name}, after {since:?}:")];
        for (index, exits) in vcpus.exit_counts().iter().enumerate() {
            lines.push(format!(
                "  vcpu{index}: {} exits for memory, {} for ports, {} others",
                exits.memory, exits.port, exits.other
            ));
        }
        for vdev in self.vdevs {
            let status = vdev.status();
            if !status.is_empty() {
                lines.push(format!("  {}: {status}", vdev.name()));
            }
        }
        lines.push(format!("  {} accesses to where nothing is", self.bus.vacant_accesses()));
        lines.join("\n")
    }

    /// Dumps the guest, whose vCPUs stand still.
    pub(crate) fn dump(&self, registers: &[Registers]) {
        let Config { dump: to, name, .. } = self.config;
        match dump::dump(to, name.as_deref(), self.memory, registers) {
            Ok(place) => info!("the guest was dumped to {place}"),
            Err(error) => error!("the guest was not dumped: {error}"),
        }
    }
}
