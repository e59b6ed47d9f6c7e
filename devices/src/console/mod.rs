//! `virtio-console`: the guest's hvc0 on the host's terminal, or wherever its user wants it (VIRTIO 1.3 §5.3).
//!
//! Nothing is lost and nothing waits: output that the host does not take stays in the guest's buffers, input that the
//! guest does not take stays with the host.

mod control;
mod port;
pub(crate) mod setup;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use self::control::Control;
use self::port::{Kind as PortKind, Port, queue};
use crate::hostdev::{Event, HostDevice, Setup, TOKENS};
use crate::options::Options;
use crate::poller::Poller;
use crate::queue::{Fault, Queues};
use crate::stream::{Stream, Way};
use crate::terminal::NoTerminal;
use crate::virtio::{Desc, Doorbell, Interest, Next, QueueDesc, Timing, VirtioDevice, Wake, Watch};
use crate::{Built, Context, Error, Kind, OptionHelp};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "virtio-console",
    about: "the guest's hvc0 on the terminal, further consoles and named ports",
    options: &[
        HOSTDEV,
        DELAYED,
        OptionHelp {
            name: "tx-backpressure",
            value: "[on|off]",
            about: "output waits for a slow host (default), or is dropped and counted",
        },
        OptionHelp {
            name: "console",
            value: "NAME",
            about: "one more console, /dev/hvc1 and so on; the options behind it are its own; may be repeated",
        },
        OptionHelp {
            name: "port",
            value: "NAME",
            about: "a stream of bytes, /dev/virtio-ports/NAME; the options behind it are its own; may be repeated",
        },
    ],
    is_virtio: true,
    build,
};

/// Where a console port or a serial line goes.
pub(crate) const HOSTDEV: OptionHelp = OptionHelp {
    name: "hostdev",
    value: "[<|>]HOSTDEV",
    about: "- (terminal, default), a path, >\"|COMMAND\", pty[:LINK], unix:PATH, unix-connect:PATH; < in, > out alone",
};

/// When it is opened.
pub(crate) const DELAYED: OptionHelp = OptionHelp {
    name: "delayed",
    value: "SECONDS|forever",
    about: "open hostdev only when the guest uses it, and try for so long (default: at the start)",
};

/// Feature bits (VIRTIO 1.3 §5.3.3).
mod feature {
    pub(super) const SIZE: u128 = 1;
    pub(super) const MULTIPORT: u128 = 1 << 1;
    pub(super) const EMERG_WRITE: u128 = 1 << 2;
}

/// Offset of `emerg_wr` in the configuration (VIRTIO 1.3 §5.3.4).
const EMERGENCY: u64 = 8;

/// The device.
pub struct Console {
    ports: Vec<Port>,
    control: Control,
    poller: Arc<Poller>,
    features: u128,
    /// Columns and rows of port 0, as the driver may read them.
    size: (u16, u16),
    /// The driver uses MULTIPORT.
    has_control: bool,
}

fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let vdev = if context.name.is_empty() { KIND.name } else { context.name };
    let mut setups = setup::ports(options, context, vdev)?;
    setups.iter_mut().for_each(|port| setup::claim_input(&mut port.host, context));
    let poller = Poller::new().map(Arc::new).map_err(|source| Error::Worker { vdev, source })?;
    let ports = (0_u16..).zip(setups).map(|(index, port)| {
        let mut host = port.host;
        if context.is_check {
            host.specs.clear();
        }
        let host = HostDevice::open(host, Arc::clone(&poller), u64::from(index).saturating_mul(TOKENS));
        let host = host.map_err(|(what, source)| Error::Open { vdev, path: what.into(), source })?;
        if let Some(pty) = host.pty() {
            let name = Some(port.name.as_str()).filter(|name| !name.is_empty());
            context.machine.add_pty(vdev, name, pty);
        }
        Ok(Port::new(index, port.kind, port.name, host))
    });
    let ports = ports.collect::<Result<Vec<_>, Error>>()?;
    Ok(Built::Virtio(Box::new(Console::new(ports, poller))))
}

impl Console {
    /// A console of one port on streams of the host, of which there may be none.
    ///
    /// # Errors
    ///
    /// A descriptor that cannot be used.
    pub fn open(input: Option<BorrowedFd<'_>>, output: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let open = |fd: Option<BorrowedFd<'_>>, way| fd.map(|fd| Stream::of(fd, way)).transpose();
        let setup = Setup {
            vdev: KIND.name,
            specs: Vec::new(),
            delayed: None,
            has_backpressure: true,
            has_replay: false,
            terminal: Arc::new(NoTerminal),
        };
        let poller = Arc::new(Poller::new()?);
        let (input, output) = (open(input, Way::In)?, open(output, Way::Out)?);
        let host = HostDevice::with_streams(setup, Arc::clone(&poller), input, output);
        Ok(Self::new(vec![Port::new(0, PortKind::Console, String::new(), host)], poller))
    }

    fn new(ports: Vec<Port>, poller: Arc<Poller>) -> Self {
        let mut features = feature::EMERG_WRITE;
        if ports.len() > 1 {
            features |= feature::MULTIPORT;
        }
        if ports.iter().any(|port| port.host.has_size()) {
            features |= feature::SIZE;
        }
        let size = ports.first().and_then(|port| port.host.size()).unwrap_or_default();
        let control = Control::new(ports.len());
        Self { ports, control, poller, features, size, has_control: false }
    }

    /// The port that a queue belongs to, if it is not one of control.
    fn port_of(&self, queue: u16) -> Option<usize> {
        let index = match queue {
            0 | 1 => 0,
            control::RECEIVE | control::TRANSMIT => return None,
            _ => usize::from(queue).checked_div(2)?.checked_sub(1)?,
        };
        Some(index).filter(|index| *index == 0 || self.has_control)
    }

    fn serve_queue(&mut self, queue: u16, queues: &mut Queues<'_>) -> Result<(), Fault> {
        let has_control = self.has_control;
        if let Some(port) = self.port_of(queue).and_then(|index| self.ports.get_mut(index)) {
            port.host.touch();
            return match queue == port.receive_queue {
                true => receive(port, has_control, queues),
                false => port.transmit(queues),
            };
        }
        if !has_control {
            return Ok(());
        }
        // What the driver takes makes room for more of what it says.
        self.control.tell(queues)?;
        for index in self.control.hear(queues, &mut self.ports)? {
            let Some(port) = self.ports.get_mut(index) else { continue };
            match port.is_open {
                true => receive(port, has_control, queues)?,
                // The host sees that the guest has finished.
                false if port.kind == PortKind::Plain => {
                    port.transmit(queues)?;
                    port.host.disconnect();
                }
                false => {}
            }
        }
        Ok(())
    }

    /// Serves what has come from the host.
    fn serve_host(&mut self, queues: &mut Queues<'_>) -> Result<(), Fault> {
        let has_control = self.has_control;
        for token in self.poller.take() {
            let index = token.checked_div(TOKENS).and_then(|index| usize::try_from(index).ok());
            let Some(port) = index.and_then(|index| self.ports.get_mut(index)) else { continue };
            match port.host.handle(token) {
                Some(Event::Input) => receive(port, has_control, queues)?,
                Some(Event::Output) => port.transmit(queues)?,
                Some(Event::Link) => {
                    receive(port, has_control, queues)?;
                    port.transmit(queues)?;
                }
                Some(Event::Size) | None => {}
            }
        }
        Ok(())
    }
}

/// A port that the guest has closed gets nothing (VIRTIO 1.3 §5.3.6.2). Consoles are always open.
fn receive(port: &mut Port, has_control: bool, queues: &mut Queues<'_>) -> Result<(), Fault> {
    if has_control && !port.is_open && port.kind == PortKind::Plain {
        return Ok(());
    }
    port.receive(queues)
}

impl VirtioDevice for Console {
    fn desc(&self) -> Desc {
        // Linux waits for what it sends in a loop. What it receives interrupts it.
        let queue = |timing| QueueDesc { size: 64, doorbell: Doorbell::Inline, timing };
        let last = u16::try_from(self.ports.len().saturating_sub(1)).unwrap_or(u16::MAX);
        let queues = self::queue(last, 1).saturating_add(1);
        Desc {
            name: KIND.name,
            device_type: 3,
            transitional_id: 0x1003,
            class: 0x0780,
            features: self.features,
            queues: [Timing::AtOnce, Timing::Late]
                .into_iter()
                .cycle()
                .take(queues.into())
                .map(queue)
                .collect(),
            config_len: 12,
        }
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch { fd: self.poller.fd(), interest: Interest::Read, token: 0 }]
    }

    fn service(&mut self, wake: Wake, queues: &mut Queues<'_>) -> Result<Next, Fault> {
        self.has_control = queues.accepted() & feature::MULTIPORT != 0;
        match wake {
            Wake::Queue(queue) => self.serve_queue(queue, queues)?,
            Wake::Host(_) => self.serve_host(queues)?,
            Wake::Deadline => {}
        }
        let has_size = queues.accepted() & feature::SIZE != 0;
        if self.has_control {
            self.control.update(&self.ports, has_size);
            self.control.tell(queues)?;
        }
        if matches!(wake, Wake::Queue(_)) || self.features & feature::SIZE == 0 {
            return Ok(Next::default());
        }
        let size = self.ports.first().and_then(|port| port.host.size()).unwrap_or(self.size);
        let is_new = std::mem::replace(&mut self.size, size) != size;
        // It is told to every driver: the fields may be read, and the generation has to tell, before SIZE is accepted.
        Ok(Next { config_changed: is_new, ..Next::default() })
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = if self.features & feature::SIZE != 0 { self.size } else { (0, 0) };
        let ports = if self.features & feature::MULTIPORT != 0 { self.ports.len() } else { 0 };
        let ports = u32::try_from(ports).unwrap_or(0).to_le_bytes();
        let config = [&columns.to_le_bytes()[..], &rows.to_le_bytes(), &ports].concat();
        let from = config.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }

    /// An emergency write, which a driver may do in any state (VIRTIO 1.3 §5.3.5.1): out it goes.
    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let (EMERGENCY, Some(byte), Some(port)) = (offset, data.first(), self.ports.first_mut()) else {
            return;
        };
        port.host.touch();
        port.host.send(&[*byte]);
    }

    fn reset_queue(&mut self, queue: u16) {
        if let Some(port) = self.port_of(queue).and_then(|index| self.ports.get_mut(index)) {
            port.reset_queue(queue);
        }
    }

    fn reset(&mut self) {
        let Self { ports, control, poller: _, features: _, size: _, has_control } = self;
        ports.iter_mut().for_each(Port::reset);
        control.reset();
        *has_control = false;
    }

    fn status(&self) -> String {
        let ports = self.ports.iter().map(|port| match port.name.as_str() {
            "" => port.host.status(),
            name => format!("{name}: {}", port.host.status()),
        });
        let ports: Vec<String> = ports.collect();
        match self.control.ignored() {
            0 => ports.join("; "),
            ignored => format!("{}; {ignored} control messages ignored", ports.join("; ")),
        }
    }
}
