//! `virtio-console`: the guest's hvc0 on the host's terminal (VIRTIO 1.3 §5.3).
//!
//! Nothing is lost and nothing waits: output that the host does not take stays in the guest's buffers, input that the
//! guest does not take stays with the host.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use log::warn;

use crate::options::Options;
use crate::queue::{Fault, MAX_BYTES, Queues};
use crate::stream::{Stream, Way};
use crate::virtio::{Desc, Doorbell, Interest, Next, QueueDesc, VirtioDevice, Wake, Watch};
use crate::{Built, Context, Error, Kind};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "virtio-console",
    about: "the guest's hvc0 on standard input and output",
    options: &[],
    is_virtio: true,
    build,
};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The tokens of what is watched are the queues that it serves.
const INPUT: u32 = RECEIVE as u32;
const OUTPUT: u32 = TRANSMIT as u32;

struct Console {
    input: Option<Stream>,
    output: Option<Stream>,
    /// Bytes of the oldest output buffer that the host has taken already.
    sent: u32,
    /// The guest has room for input that is not there yet.
    awaits_input: bool,
    /// The guest has output that the host does not take yet.
    awaits_output: bool,
    watched: [bool; 2],
    received: u64,
    transmitted: u64,
    dropped: u64,
}

fn build(_options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let error = |path: &str| {
        let path = path.into();
        move |source| Error::Open { vdev: KIND.name, path, source }
    };
    let input = context.claim_input.take();
    let input = input.then(|| Stream::of(io::stdin().as_fd(), Way::In)).transpose();
    let output = Stream::of(io::stdout().as_fd(), Way::Out);
    Ok(Built::Virtio(Box::new(Console::new(
        input.map_err(error("standard input"))?,
        Some(output.map_err(error("standard output"))?),
    ))))
}

impl Console {
    fn new(input: Option<Stream>, output: Option<Stream>) -> Self {
        Self {
            input,
            output,
            sent: 0,
            awaits_input: false,
            awaits_output: false,
            watched: [false; 2],
            received: 0,
            transmitted: 0,
            dropped: 0,
        }
    }

    /// Hands the host's input to the guest, as much as it has buffers for.
    fn receive(&mut self, queues: &mut Queues<'_>) -> Result<(), Fault> {
        self.awaits_input = false;
        while let Some(input) = &mut self.input {
            let Some(mut chain) = queues.pop(RECEIVE)? else { break };
            if chain.readable() != 0 || chain.writable() == 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            match chain.fill(input, MAX_BYTES) {
                Ok(0) => {
                    self.input = None;
                    queues.put_back(chain);
                }
                Ok(_) => {
                    self.received = self.received.saturating_add(chain.written_len().into());
                    queues.complete(chain)?;
                }
                Err(error) => {
                    queues.put_back(chain);
                    if error.kind() == ErrorKind::WouldBlock {
                        self.awaits_input = true;
                        break;
                    }
                    warn!("{}: cannot read input, so there is none from now on: {error}", KIND.name);
                    self.input = None;
                }
            }
        }
        Ok(())
    }

    /// Hands the guest's output to the host, as much as it takes.
    fn transmit(&mut self, queues: &mut Queues<'_>) -> Result<(), Fault> {
        self.awaits_output = false;
        while let Some(mut chain) = queues.pop(TRANSMIT)? {
            if chain.writable() != 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            chain.skip(self.sent);
            if let Some(output) = &mut self.output {
                match chain.drain(output, MAX_BYTES) {
                    Ok(count) => {
                        self.transmitted =
                            self.transmitted.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.awaits_output = true,
                    Err(error) => {
                        warn!("{}: cannot write output, so it is dropped from now on: {error}", KIND.name);
                        self.output = None;
                    }
                }
                if self.output.is_some() && chain.readable() != 0 {
                    self.sent = chain.read_len();
                    queues.put_back(chain);
                    if self.awaits_output {
                        break;
                    }
                    continue;
                }
            }
            self.dropped = self.dropped.saturating_add(chain.readable().into());
            self.sent = 0;
            queues.complete(chain)?;
        }
        Ok(())
    }

    /// What to watch from now on, if that changed.
    fn watch(&mut self) -> Option<Vec<Watch>> {
        let fd = |stream: &Option<Stream>, is_awaited: bool| {
            stream.as_ref().filter(|_| is_awaited).and_then(Stream::pollable)
        };
        let input = fd(&self.input, self.awaits_input);
        let output = fd(&self.output, self.awaits_output);
        let watched = [input.is_some(), output.is_some()];
        if watched == self.watched {
            return None;
        }
        self.watched = watched;
        let input = input.map(|fd| Watch { fd, interest: Interest::Read, token: INPUT });
        let output = output.map(|fd| Watch { fd, interest: Interest::Write, token: OUTPUT });
        Some(input.into_iter().chain(output).collect())
    }
}

impl VirtioDevice for Console {
    fn desc(&self) -> Desc {
        let queue = QueueDesc { size: 64, doorbell: Doorbell::Inline };
        Desc {
            name: KIND.name,
            device_type: 3,
            transitional_id: 0x1003,
            class: 0x0780,
            features: 0,
            queues: vec![queue; 2],
            config_len: 12,
        }
    }

    fn service(&mut self, wake: Wake, queues: &mut Queues<'_>) -> Result<Next, Fault> {
        match wake {
            Wake::Queue(RECEIVE) | Wake::Host(INPUT) => self.receive(queues)?,
            Wake::Queue(TRANSMIT) | Wake::Host(OUTPUT) => self.transmit(queues)?,
            Wake::Queue(_) | Wake::Host(_) | Wake::Deadline => {}
        }
        Ok(Next { watch: self.watch(), ..Next::default() })
    }

    fn reset_queue(&mut self, queue: u16) {
        match queue {
            RECEIVE => self.awaits_input = false,
            _ => self.sent = 0,
        }
    }

    fn reset(&mut self) {
        self.sent = 0;
        self.awaits_input = false;
        self.awaits_output = false;
        self.watched = [false; 2];
    }

    fn status(&self) -> String {
        format!("{} bytes in, {} out, {} dropped", self.received, self.transmitted, self.dropped)
    }
}
