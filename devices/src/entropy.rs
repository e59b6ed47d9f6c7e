//! `virtio-entropy`: random bytes for the guest (VIRTIO 1.3 §5.4).

mod rate;
mod source;

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::rate::Bucket;
use self::source::{Looked, Patience, Source};
use crate::options::Options;
use crate::queue::{Fault, MAX_BYTES, Queues};
use crate::vdev::{Machine, Reason};
use crate::virtio::{Desc, Doorbell, Next, QueueDesc, Timing, VirtioDevice, Wake};
use crate::{Built, Context, Error, Kind, OptionHelp};

/// The row of the table of vdevs.
pub(crate) const KIND: Kind = Kind {
    name: "virtio-entropy",
    about: "random bytes for the guest's /dev/hwrng",
    options: &[
        OptionHelp {
            name: "source",
            value: "PATH",
            about: "the device, pipe or file to read (default: /dev/urandom, the host's generator)",
        },
        OptionHelp {
            name: "delayed",
            value: "SECONDS|forever",
            about: "open the source at the guest's first request, and wait for it so long (default: at the start)",
        },
        OptionHelp { name: "rate", value: "BYTES", about: "the most bytes a second (default: no limit)" },
        OptionHelp {
            name: "burst",
            value: "BYTES",
            about: "the most bytes at once, with rate (default: the rate)",
        },
    ],
    is_virtio: true,
    build,
};

/// The host's generator: never empty, and a read of it never waits once the host has booted.
const SOURCE: &str = "/dev/urandom";

/// After how long a source that gave nothing is asked again.
const RETRY: Duration = Duration::from_millis(10);

/// The device.
pub struct Entropy {
    name: &'static str,
    source: Source,
    limit: Option<Bucket>,
    doorbell: Doorbell,
    /// The machine to tell when the source is at its end; without one, it is asked again and again.
    machine: Option<Arc<dyn Machine>>,
    /// It was told that the source fails.
    has_failed: bool,
    bytes: u64,
    requests: u64,
}

impl Entropy {
    /// Random bytes from `source`, a read of which must not wait.
    pub fn new(source: File) -> Self {
        Self::on(KIND.name, Source::of(source, Path::new(SOURCE)))
    }

    fn on(name: &'static str, source: Source) -> Self {
        let (limit, machine, doorbell) = (None, None, Doorbell::Inline);
        Self { name, source, limit, doorbell, machine, has_failed: false, bytes: 0, requests: 0 }
    }

    /// How many bytes a request for `wanted` may get now; else after what time to look again.
    fn allowed(&mut self, wanted: u32) -> Result<u32, Duration> {
        let wanted = wanted.min(MAX_BYTES);
        self.limit.as_mut().map_or(Ok(wanted), |limit| limit.available(wanted, Instant::now()))
    }

    /// There will be no more bytes.
    fn fail(&self, why: &dyn std::fmt::Display) {
        log::error!("{}: {}: {why}", self.name, self.source.path().display());
        if let Some(machine) = &self.machine {
            machine.end(Reason::Failed(self.name));
        }
    }
}

fn build(options: &Options, context: &Context<'_>) -> Result<Built, Error> {
    let path = Path::new(options.value("source").unwrap_or(SOURCE));
    let source = match options.parsed("delayed", Patience::parse)? {
        Some(patience) => Source::delayed(path, patience),
        None => {
            Source::open(path).map_err(|source| Error::Open { vdev: KIND.name, path: path.into(), source })?
        }
    };
    let limit = match (options.size("rate")?, options.size("burst")?) {
        (Some(0), _) => return Err(options.bad_value("rate", "a rate is at least one byte a second").into()),
        (_, Some(0)) => return Err(options.bad_value("burst", "a burst is at least one byte").into()),
        (Some(rate), burst) => Some(Bucket::new(rate, burst.unwrap_or(rate), Instant::now())),
        (None, Some(_)) => return Err(options.conflict("burst", "a burst needs a rate beside it").into()),
        (None, None) => None,
    };
    // A source that can be slow is never read by a vCPU.
    let is_usual = path == Path::new(SOURCE) && !options.has("delayed");
    let doorbell = if is_usual { Doorbell::Inline } else { Doorbell::Worker };
    let machine = Some(Arc::clone(&context.machine));
    Ok(Built::Virtio(Box::new(Entropy { limit, doorbell, machine, ..Entropy::on(context.name, source) })))
}

impl VirtioDevice for Entropy {
    fn desc(&self) -> Desc {
        Desc {
            name: self.name,
            device_type: 4,
            transitional_id: 0x1005,
            class: 0x00ff,
            features: 0,
            // Linux has one request in flight; a request is short and the usual source does not wait.
            queues: vec![QueueDesc { size: 64, doorbell: self.doorbell, timing: Timing::AtOnce }],
            config_len: 0,
        }
    }

    fn service(&mut self, _wake: Wake, queues: &mut Queues<'_>) -> Result<Next, Fault> {
        let mut deadline = None;
        while let Some(mut chain) = queues.pop(0)? {
            // Every buffer comes back with at least one byte (§5.4.6.2), so it needs room for one and nothing to read.
            if chain.readable() != 0 || chain.writable() == 0 {
                return Err(Fault::Direction { head: chain.head() });
            }
            let allowed = match self.allowed(chain.writable()) {
                Ok(allowed) => allowed,
                Err(wait) => {
                    queues.put_back(chain);
                    deadline = Some(wait);
                    break;
                }
            };
            let filled = match self.source.look(Instant::now()) {
                Looked::Open(file) => chain.fill(file, allowed),
                Looked::Wait(wait) => {
                    queues.put_back(chain);
                    deadline = Some(wait);
                    break;
                }
                Looked::Gone(error) => {
                    queues.put_back(chain);
                    self.fail(&error);
                    break;
                }
            };
            match filled {
                Ok(count) if count > 0 => {
                    let count = u64::from(chain.written_len());
                    self.limit.iter_mut().for_each(|limit| limit.take(count));
                    self.bytes = self.bytes.saturating_add(count);
                    self.requests = self.requests.saturating_add(1);
                    self.has_failed = false;
                    queues.complete(chain)?;
                }
                Ok(0) if self.machine.is_some() && self.source.ends() => {
                    queues.put_back(chain);
                    self.fail(&"the file is at its end");
                    break;
                }
                // The request stays where it is, and is tried again: a driver may wait for it and never ring.
                dry => {
                    let has_failed = !matches!(&dry, Err(error) if error.kind() == ErrorKind::WouldBlock);
                    if has_failed && !std::mem::replace(&mut self.has_failed, true) {
                        log::error!("{}: the source gives nothing: {dry:?}", self.name);
                    }
                    queues.put_back(chain);
                    deadline = Some(RETRY);
                    break;
                }
            }
        }
        Ok(Next { deadline, ..Next::default() })
    }

    fn status(&self) -> String {
        let source = self.source.path().display();
        format!("{} bytes in {} requests, from {source}", self.bytes, self.requests)
    }
}
