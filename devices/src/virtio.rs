//! The view of whoever writes a virtio device: facts as a struct, behaviour as two or three methods.

use std::os::fd::RawFd;
use std::time::Duration;

use crate::queue::{Fault, Queues};

/// Ring features that the core offers for every device (VIRTIO 1.3 §6).
pub mod feature {
    /// Descriptors may point to a table of descriptors (VIRTIO 1.3 §2.7.5.3).
    pub const INDIRECT_DESC: u128 = 1 << 28;
    /// `used_event` and `avail_event` say when to notify (VIRTIO 1.3 §2.7.7, §2.7.10).
    pub const EVENT_IDX: u128 = 1 << 29;
    /// The device follows VIRTIO 1.0 or later (VIRTIO 1.3 §6.1).
    pub const VERSION_1: u128 = 1 << 32;
    /// Queues can be reset one by one (VIRTIO 1.3 §2.6.1).
    pub const RING_RESET: u128 = 1 << 40;
    /// What the core implements by itself, whatever the device.
    pub const RING: u128 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;
}

/// Who serves a queue when its doorbell rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// The vCPU that rang it, before its guest goes on: no wake-up; for requests that are short and never block.
    Inline,
    /// The device's own thread: the vCPU goes on at once.
    Worker,
}

/// When it is decided whether a driver wants an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// As soon as a request has been used.
    AtOnce,
    /// With EVENT_IDX, at the queue's next doorbell or a millisecond later: by then a driver that polls has found what
    /// was used by itself, and needs none. For queues whose drivers poll.
    Late,
}

/// What is fixed about one queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueDesc {
    /// Its largest number of entries, a power of two.
    pub size: u16,
    /// Who serves it.
    pub doorbell: Doorbell,
    /// When it is decided whether to interrupt for what was used.
    pub timing: Timing,
}

/// What is fixed about a device.
#[derive(Clone, Debug)]
pub struct Desc {
    /// The vdev's name, as on the command line.
    pub name: &'static str,
    /// The virtio device type (VIRTIO 1.3 §5).
    pub device_type: u16,
    /// The PCI device id that legacy and transitional functions of this type bear (VIRTIO 1.3 §4.1.2.1).
    pub transitional_id: u16,
    /// Base class and subclass, as a PCI function reports them.
    pub class: u16,
    /// The feature bits of the device type that this device offers; the core adds [`feature::RING`].
    pub features: u128,
    /// The queues, in the order of the specification.
    pub queues: Vec<QueueDesc>,
    /// Length of the device-specific configuration, in bytes.
    pub config_len: usize,
}

/// Why a device is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The driver may have made buffers of this queue available.
    Queue(u16),
    /// A watched descriptor of the host is ready; the number is the one given in [`Watch`].
    Host(u32),
    /// The deadline asked for in [`Next`] has come.
    Deadline,
}

/// What to wait for on a descriptor of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something can be read, or the other end is gone.
    Read,
    /// Something can be written.
    Write,
}

/// A descriptor of the host that the device's thread waits on (level-triggered).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The descriptor; the device owns it and keeps it open while it is watched.
    pub fd: RawFd,
    /// What to wait for.
    pub interest: Interest,
    /// The number that [`Wake::Host`] will carry.
    pub token: u32,
}

/// What a device asks for when it has been served.
#[derive(Debug, Default)]
pub struct Next {
    /// The device's configuration changed: the driver is to be told.
    pub config_changed: bool,
    /// From now on watch exactly these descriptors. `None`: as before.
    pub watch: Option<Vec<Watch>>,
    /// Serve the device again after this time. `None`: a deadline that was asked for before stays.
    pub deadline: Option<Duration>,
}

/// A virtio device. One lock holds it, its queues and its registers, so a method has the device to itself; it must not
/// block.
pub trait VirtioDevice: Send {
    /// The facts. They never change.
    fn desc(&self) -> Desc;

    /// Does what there is to do after `wake`. Queues that are not running have no buffers.
    ///
    /// # Errors
    ///
    /// A broken ring: the core asks the driver for a reset and serves no more until then.
    fn service(&mut self, wake: Wake, queues: &mut Queues<'_>) -> Result<Next, Fault>;

    /// What is watched whatever the driver does: from the start on, and through resets.
    fn watches(&self) -> Vec<Watch> {
        Vec::new()
    }

    /// Reads the device-specific configuration. Bytes beyond it stay 0.
    fn config_read(&self, _offset: u64, _data: &mut [u8]) {}

    /// Writes the device-specific configuration, at any time and in any state.
    fn config_write(&mut self, _offset: u64, _data: &[u8]) {}

    /// Forgets what it remembers of the requests of one queue (VIRTIO 1.3 §2.6.1).
    fn reset_queue(&mut self, _queue: u16) {}

    /// Forgets everything that the driver said. Watches and deadlines are forgotten by the core.
    fn reset(&mut self) {}

    /// The device's part of the status text.
    fn status(&self) -> String {
        String::new()
    }
}
