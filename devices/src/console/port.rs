//! One port: the host's end, and the two queues that carry its bytes (VIRTIO 1.3 §5.3.6).

use crate::hostdev::HostDevice;
use crate::queue::{Fault, Queues};

/// The most bytes of short buffers that are gathered for one write, and the least of a buffer that is written by itself,
/// straight from guest memory.
const GATHER: usize = 4096;

/// What a port is to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A console, as /dev/hvc1.
    Console,
    /// A plain stream of bytes, as /dev/vport0p1.
    Plain,
}

/// A port.
pub(super) struct Port {
    pub(super) kind: Kind,
    /// What the driver calls it; port 0 may have none.
    pub(super) name: String,
    pub(super) host: HostDevice,
    /// The queues of the specification: to the driver, from the driver.
    pub(super) receive_queue: u16,
    pub(super) transmit_queue: u16,
    /// The guest has it open; with one port alone there is no such thing, and it always is.
    pub(super) is_open: bool,
    /// Bytes of the oldest output buffer that the host has taken already.
    sent: u32,
    gathered: Vec<u8>,
}

impl Port {
    /// Port `index`, with its queues.
    pub(super) fn new(index: u16, kind: Kind, name: String, host: HostDevice) -> Self {
        let receive_queue = queue(index, 0);
        let transmit_queue = queue(index, 1);
        let gathered = vec![0; GATHER];
        Self { kind, name, host, receive_queue, transmit_queue, is_open: false, sent: 0, gathered }
    }

    /// Forgets what it remembers of the requests of one queue.
    pub(super) fn reset_queue(&mut self, queue: u16) {
        if queue == self.transmit_queue {
            self.sent = 0;
        }
    }

    /// Forgets everything that the driver said.
    pub(super) fn reset(&mut self) {
        self.is_open = false;
        self.sent = 0;
    }

    /// Hands the host's input to the guest, as much as it has buffers for.
    pub(super) fn receive(&mut self, queues: &mut Queues<'_>) -> Result<(), Fault> {
        while let Some(mut chain) = queues.pop(self.receive_queue)? {
            if chain.readable() != 0 || chain.writable() == 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            if self.host.receive(&mut chain) == 0 {
                queues.put_back(chain);
                return Ok(());
            }
            queues.complete(chain)?;
        }
        self.host.await_input(false);
        Ok(())
    }

    /// Hands the guest's output to the host, as much as it takes.
    pub(super) fn transmit(&mut self, queues: &mut Queues<'_>) -> Result<(), Fault> {
        while let Some(mut chain) = queues.pop(self.transmit_queue)? {
            if chain.writable() != 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            chain.skip(self.sent);
            let is_long = usize::try_from(chain.readable()).is_ok_and(|len| len >= GATHER);
            if !(is_long && self.host.is_direct()) {
                if !self.transmit_gathered(chain, queues)? {
                    return Ok(());
                }
                continue;
            }
            let must_wait = self.host.drain(&mut chain);
            if chain.readable() == 0 {
                self.sent = 0;
                queues.complete(chain)?;
                continue;
            }
            self.sent = chain.read_len();
            queues.put_back(chain);
            if must_wait {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends `first` and what follows it in one write, if they are short. False: the host takes no more for now.
    fn transmit_gathered<'m>(
        &mut self,
        first: crate::chain::Chain<'m>,
        queues: &mut Queues<'m>,
    ) -> Result<bool, Fault> {
        // Given back whatever comes of it: a ring may turn out to be broken on the way.
        let mut bytes = std::mem::take(&mut self.gathered);
        let is_all = self.gather(first, queues, &mut bytes);
        self.gathered = bytes;
        is_all
    }

    fn gather<'m>(
        &mut self,
        first: crate::chain::Chain<'m>,
        queues: &mut Queues<'m>,
        bytes: &mut [u8],
    ) -> Result<bool, Fault> {
        let mut len = 0_usize;
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(mut chain) = next.take() {
            if chain.writable() != 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            let start = chain.read_len();
            let count = chain.read(bytes.get_mut(len..).unwrap_or_default());
            len = len.saturating_add(count);
            let is_whole = chain.readable() == 0;
            batch.push((chain, start, count));
            if is_whole && len < bytes.len() {
                next = queues.pop(self.transmit_queue)?;
            }
        }
        let mut taken = self.host.send(bytes.get(..len).unwrap_or_default());
        let is_all = taken == len;
        self.sent = 0;
        let mut has_rest = false;
        for (chain, start, count) in batch {
            let of_this = taken.min(count);
            taken = taken.saturating_sub(of_this);
            if !has_rest && of_this == count && chain.readable() == 0 {
                queues.complete(chain)?;
                continue;
            }
            if !has_rest {
                self.sent = start.saturating_add(u32::try_from(of_this).unwrap_or(u32::MAX));
            }
            has_rest = true;
            queues.put_back(chain);
        }
        Ok(is_all)
    }
}

/// A queue of port `index`: those of port 0 come first, then those of control, then the others (VIRTIO 1.3 §5.3.2).
pub(super) fn queue(index: u16, direction: u16) -> u16 {
    let first = if index == 0 { 0 } else { index.saturating_add(1).saturating_mul(2) };
    first.saturating_add(direction)
}
