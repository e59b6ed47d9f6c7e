//! The control queues of several ports: who is there, what they are, who has them open (VIRTIO 1.3 §5.3.6.2).

use std::collections::VecDeque;

use log::debug;

use super::port::{Kind, Port};
use crate::queue::{Fault, Queues};

/// Control messages to the driver, and from it.
pub(super) const RECEIVE: u16 = 2;
pub(super) const TRANSMIT: u16 = 3;

/// What a message is about.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const RESIZE: u16 = 5;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// Messages that may wait for the driver's buffers. When there are as many, it is heard no more until it takes some.
const MAX_WAITING: usize = 256;
/// The longest message from the driver that means anything.
const MESSAGE_LEN: usize = 8;

/// What the driver knows of one port.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    is_added: bool,
    is_ready: bool,
    /// The last news of it that the driver was told, or will be.
    is_connected: bool,
    size: Option<(u16, u16)>,
}

/// The device's side of the protocol.
#[derive(Debug)]
pub(super) struct Control {
    waiting: VecDeque<Vec<u8>>,
    ports: Vec<Known>,
    is_started: bool,
    ignored: u64,
}

impl Control {
    pub(super) fn new(ports: usize) -> Self {
        Self { waiting: VecDeque::new(), ports: vec![Known::default(); ports], is_started: false, ignored: 0 }
    }

    /// Forgets everything that the driver said or was to be told.
    pub(super) fn reset(&mut self) {
        let Self { waiting, ports, is_started, ignored: _ } = self;
        waiting.clear();
        ports.fill(Known::default());
        *is_started = false;
    }

    /// Messages that mean nothing.
    pub(super) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Hears what the driver says, and returns the ports that it has opened or closed by that.
    pub(super) fn hear(&mut self, queues: &mut Queues<'_>, ports: &mut [Port]) -> Result<Vec<usize>, Fault> {
        let mut changed = Vec::new();
        while self.waiting.len() < MAX_WAITING {
            let Some(mut chain) = queues.pop(TRANSMIT)? else { break };
            if chain.writable() != 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            let mut message = [0; MESSAGE_LEN];
            if chain.read(&mut message) == MESSAGE_LEN {
                changed.extend(self.take(message, ports));
            } else {
                self.ignored = self.ignored.saturating_add(1);
            }
            queues.complete(chain)?;
        }
        Ok(changed)
    }

    /// One message. Returns the port that was opened or closed by it.
    fn take(&mut self, message: [u8; MESSAGE_LEN], ports: &mut [Port]) -> Option<usize> {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        let (event, value) = (u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        match (event, value) {
            (event::DEVICE_READY, 0) => {
                self.reset();
                ports.iter_mut().for_each(|port| port.is_open = false);
                None
            }
            (event::DEVICE_READY, _) => {
                self.is_started = true;
                self.add_ports();
                None
            }
            (event::PORT_READY, _) => {
                let known = self.ports.get_mut(index).filter(|known| known.is_added);
                let (Some(known), Some(port)) = (known, ports.get_mut(index)) else {
                    return self.ignore(id, event);
                };
                let was_ready = std::mem::replace(&mut known.is_ready, value != 0);
                if value == 0 {
                    *known = Known { is_added: known.is_added, ..Known::default() };
                    port.is_open = false;
                } else if !was_ready {
                    self.introduce(id, port);
                }
                None
            }
            (event::PORT_OPEN, _) => {
                let is_ready = self.ports.get(index).is_some_and(|known| known.is_ready);
                let Some(port) = ports.get_mut(index).filter(|_| is_ready) else {
                    return self.ignore(id, event);
                };
                let was_open = std::mem::replace(&mut port.is_open, value != 0);
                (was_open != port.is_open).then_some(index)
            }
            _ => self.ignore(id, event),
        }
    }

    fn ignore(&mut self, id: u32, event: u16) -> Option<usize> {
        self.ignored = self.ignored.saturating_add(1);
        debug!("virtio-console: a control message without meaning: event {event}, port {id:#x}");
        None
    }

    /// Tells of every port that the driver has not been told of.
    fn add_ports(&mut self) {
        for (id, known) in (0..).zip(&mut self.ports) {
            if !std::mem::replace(&mut known.is_added, true) {
                self.waiting.push_back(message(id, event::PORT_ADD, 0));
            }
        }
    }

    /// Tells what a port is, now that the driver is ready for it.
    fn introduce(&mut self, id: u32, port: &Port) {
        if port.kind == Kind::Console {
            // The text leaves the value open; Linux wants it not to be 0.
            self.waiting.push_back(message(id, event::CONSOLE_PORT, 1));
        }
        if !port.name.is_empty() {
            let mut named = message(id, event::PORT_NAME, 1);
            named.extend(port.name.as_bytes());
            self.waiting.push_back(named);
        }
    }

    /// Has the driver told what has changed on the host: who is at the other end of a port, and its size.
    pub(super) fn update(&mut self, ports: &[Port], has_size: bool) {
        for ((id, known), port) in (0..).zip(&mut self.ports).zip(ports) {
            // Two messages at most; what does not fit is news for later.
            if !known.is_ready || self.waiting.len() >= MAX_WAITING {
                continue;
            }
            let size = port.host.size().filter(|_| has_size && port.kind == Kind::Console);
            if size.is_some() && size != known.size {
                known.size = size;
                let (columns, rows) = size.unwrap_or_default();
                let mut resized = message(id, event::RESIZE, 0);
                resized.extend(columns.to_le_bytes());
                resized.extend(rows.to_le_bytes());
                self.waiting.push_back(resized);
            }
            // A console that nobody looks at still is one.
            let is_connected = port.kind == Kind::Console || port.host.is_connected();
            if is_connected != known.is_connected {
                known.is_connected = is_connected;
                self.waiting.push_back(message(id, event::PORT_OPEN, is_connected.into()));
            }
        }
    }

    /// Sends what waits, a message a buffer.
    pub(super) fn tell(&mut self, queues: &mut Queues<'_>) -> Result<(), Fault> {
        while let Some(message) = self.waiting.front().filter(|_| self.is_started) {
            let Some(mut chain) = queues.pop(RECEIVE)? else { return Ok(()) };
            if chain.readable() != 0 || chain.writable() == 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            if usize::try_from(chain.writable()).is_ok_and(|room| room < message.len()) {
                // A part of a message would be another message.
                debug!("virtio-console: a control buffer is too short for a message, which is left out");
                self.ignored = self.ignored.saturating_add(1);
                queues.put_back(chain);
            } else {
                chain.write(message);
                queues.complete(chain)?;
            }
            self.waiting.pop_front();
        }
        Ok(())
    }
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}
