//! `virtio-entropy`: random bytes for the guest (VIRTIO 1.3 §5.4).

use std::fs::File;
use std::io::ErrorKind;

use crate::options::Options;
use crate::queue::{Fault, MAX_BYTES, Queues};
use crate::virtio::{Desc, Doorbell, Next, QueueDesc, VirtioDevice, Wake};
use crate::{Built, Context, Error, Kind};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "virtio-entropy",
    about: "random bytes for the guest's /dev/hwrng",
    options: &[],
    is_virtio: true,
    build,
};

/// The host's generator: never empty, and a read of it never waits once the host has booted.
const SOURCE: &str = "/dev/urandom";

struct Entropy {
    source: File,
    bytes: u64,
    requests: u64,
}

fn build(_options: &Options, _context: &Context<'_>) -> Result<Built, Error> {
    let open = File::open(SOURCE);
    let source = open.map_err(|source| Error::Open { vdev: KIND.name, path: SOURCE.into(), source })?;
    Ok(Built::Virtio(Box::new(Entropy { source, bytes: 0, requests: 0 })))
}

impl VirtioDevice for Entropy {
    fn desc(&self) -> Desc {
        Desc {
            name: KIND.name,
            device_type: 4,
            transitional_id: 0x1005,
            class: 0x00ff,
            features: 0,
            // Linux has one request in flight; a request is short and the source does not wait.
            queues: vec![QueueDesc { size: 64, doorbell: Doorbell::Inline }],
            config_len: 0,
        }
    }

    fn service(&mut self, _wake: Wake, queues: &mut Queues<'_>) -> Result<Next, Fault> {
        while let Some(mut chain) = queues.pop(0)? {
            // Every buffer comes back with at least one byte (§5.4.6.2), so it needs room for one and nothing to read.
            if chain.readable() != 0 || chain.writable() == 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            match chain.fill(&mut self.source, MAX_BYTES) {
                Ok(count) if count > 0 => {
                    self.bytes = self.bytes.saturating_add(u64::from(chain.written_len()));
                    self.requests = self.requests.saturating_add(1);
                    queues.complete(chain)?;
                }
                // The request stays where it is; the next doorbell tries again.
                Ok(_) => {
                    queues.put_back(chain);
                    break;
                }
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        log::error!("{}: cannot read {SOURCE}: {error}", KIND.name);
                    }
                    queues.put_back(chain);
                    break;
                }
            }
        }
        Ok(Next::default())
    }

    fn status(&self) -> String {
        format!("{} bytes in {} requests", self.bytes, self.requests)
    }
}
