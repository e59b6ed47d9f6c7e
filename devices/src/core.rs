//! The core of every virtio device: status, features and queues, independent of the transport (VIRTIO 1.3 §2).
//!
//! One lock holds all of it. The register code of a transport and the device's thread take that lock, so a device is
//! quiet when the write that resets it returns.

mod announce;
mod service;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::announce::{LATE, Late};

use crate::chain::Memory;
use crate::interrupt::{Cause, Interrupt};
use crate::queue::{Areas, Ring};
use crate::virtio::{Desc, VirtioDevice, Watch, feature};

/// Bits of the device status (VIRTIO 1.3 §2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// The features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// Only a reset helps.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Which interface the driver uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// VIRTIO 1.0 and later.
    Modern,
    /// VIRTIO 0.9.5 (VIRTIO 1.3 §7.4).
    Legacy,
}

/// What an access to a register meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Meaning {
    /// Nothing that concerns anybody else.
    Nothing,
    /// The doorbell of this queue.
    Notify(u16),
    /// The device-specific configuration was written at this offset.
    Config(u64),
    /// These status bits were newly set.
    Status(u8),
    /// The device was reset.
    Reset,
    /// This queue alone was reset.
    QueueReset(u16),
}

/// What the device's thread has to wait for.
#[derive(Debug, Default)]
pub(crate) struct Wants {
    /// A new set of descriptors to watch.
    pub(crate) watch: Option<Vec<Watch>>,
    /// The deadline that was asked for before is off.
    pub(crate) drops_deadline: bool,
    /// A deadline.
    pub(crate) deadline: Option<Duration>,
    /// A queue has more to do.
    pub(crate) again: bool,
    /// It is to be decided after [`LATE`] whether to interrupt.
    pub(crate) late: bool,
}

impl Wants {
    /// Nothing, and no longer what there is.
    fn nothing(is_watching: &mut bool, has_deadline: &mut bool) -> Self {
        Self {
            watch: std::mem::take(is_watching).then(Vec::new),
            drops_deadline: std::mem::take(has_deadline),
            ..Self::default()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let Self { watch, drops_deadline, deadline, again, late } = self;
        watch.is_none() && !drops_deadline && deadline.is_none() && !again && !late
    }
}

/// Counters for the status text.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    services: u64,
    interrupts: u64,
    lost_interrupts: u64,
    faults: u64,
    /// How often a fault made the device ask for a reset.
    breakages: u64,
    resets: u64,
}

/// A device, its queues and what the driver agreed on. See the module.
pub struct Core {
    device: Box<dyn VirtioDevice>,
    desc: Desc,
    memory: Arc<Memory>,
    interrupt: Arc<dyn Interrupt>,
    status: u8,
    /// What the driver wrote; valid and invalid bits alike.
    driver_features: u128,
    /// The driver set a bit above 127.
    has_unknown_features: bool,
    /// The transport's select registers.
    pub select: Select,
    rings: Vec<Ring>,
    generation: Generation,
    may_access_memory: bool,
    wants: Wants,
    /// The device's thread watches descriptors for it.
    is_watching: bool,
    /// The device waits for a deadline.
    has_deadline: bool,
    /// The device's thread comes back for decisions that were put off.
    has_late_timer: bool,
    counters: Counters,
}

/// The registers of a transport that choose what its other registers show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Select {
    /// Which 32 of the offered feature bits.
    pub device_feature: u32,
    /// Which 32 of the driver's feature bits.
    pub driver_feature: u32,
    /// Which queue.
    pub queue: u16,
}

/// The configuration generation (VIRTIO 1.3 §2.5.2): however many changes, it moves once between two looks at it, so
/// that it can't come back to where it was unseen.
#[derive(Clone, Copy, Debug, Default)]
struct Generation {
    value: u8,
    is_stale: bool,
}

impl Core {
    /// The core around `device`.
    ///
    /// # Errors
    ///
    /// A queue size that is no power of two.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<Memory>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, crate::Error> {
        let desc = device.desc();
        let rings = desc.queues.iter().map(|q| Ring::new(q.size)).collect::<Result<_, _>>();
        let rings = rings.map_err(|source| crate::Error::Queue { vdev: desc.name, source })?;
        Ok(Self {
            device,
            desc,
            memory,
            interrupt,
            status: 0,
            driver_features: 0,
            has_unknown_features: false,
            select: Select::default(),
            rings,
            generation: Generation::default(),
            may_access_memory: true,
            wants: Wants::default(),
            is_watching: false,
            has_deadline: false,
            has_late_timer: false,
            counters: Counters::default(),
        })
    }

    /// The facts about the device.
    pub fn desc(&self) -> &Desc {
        &self.desc
    }

    /// Guest memory.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The device status byte.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// 32 of the offered feature bits; 0 where none is offered.
    pub fn device_features(&self, select: u32) -> u32 {
        word(self.offered(), select)
    }

    /// 32 of the feature bits that the driver wrote.
    pub fn driver_features(&self, select: u32) -> u32 {
        word(self.driver_features, select)
    }

    /// The driver writes 32 of its feature bits. They are frozen while FEATURES_OK is set.
    pub fn set_driver_features(&mut self, select: u32, bits: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match shift(select) {
            Some(shift) => {
                let mask = u128::from(u32::MAX) << shift;
                self.driver_features = (self.driver_features & !mask) | (u128::from(bits) << shift);
            }
            None => self.has_unknown_features |= bits != 0,
        }
    }

    /// A legacy driver writes its 32 feature bits; the others count as refused (VIRTIO 1.3 §4.1.4.10). It may do so until
    /// it has set DRIVER_OK.
    pub fn set_legacy_features(&mut self, bits: u32) {
        if self.status & (status::FEATURES_OK | status::DRIVER_OK) == 0 {
            self.driver_features = bits.into();
        }
    }

    fn offered(&self) -> u128 {
        self.desc.features | feature::RING
    }

    /// The feature bits that both sides have agreed on.
    fn accepted(&self) -> u128 {
        self.driver_features & self.offered()
    }

    /// The driver writes the status register. 0 resets the device; bits can only be added otherwise.
    pub fn set_status(&mut self, value: u8, face: Face) -> Meaning {
        if value == 0 {
            self.reset();
            return Meaning::Reset;
        }
        let settable = status::ACKNOWLEDGE | status::DRIVER | status::FAILED;
        let mut added = value & settable & !self.status;
        let wants_features = value & status::FEATURES_OK != 0 && self.status & status::FEATURES_OK == 0;
        if wants_features && face == Face::Modern && self.can_accept_features() {
            added |= status::FEATURES_OK;
        }
        let has_features = face == Face::Legacy || (self.status | added) & status::FEATURES_OK != 0;
        if value & status::DRIVER_OK != 0 && self.status & status::DRIVER_OK == 0 && has_features {
            added |= status::DRIVER_OK;
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 && self.is_broken() {
            // It could not be told before (VIRTIO 1.3 §2.1.2).
            self.signal(Cause::Config);
        }
        Meaning::Status(added)
    }

    fn can_accept_features(&self) -> bool {
        let has_version_1 = self.driver_features & feature::VERSION_1 != 0;
        has_version_1 && !self.has_unknown_features && self.driver_features & !self.offered() == 0
    }

    /// Has the device's thread watch what the device wants watched whatever its driver does.
    pub(crate) fn watch_lasting(&mut self) {
        let watches = self.device.watches();
        if !watches.is_empty() {
            self.is_watching = true;
            self.wants.watch = Some(watches);
        }
    }

    /// Back to the state after power-on (VIRTIO 1.3 §2.4).
    fn reset(&mut self) {
        let Self {
            device,
            desc: _,
            memory: _,
            interrupt: _,
            status,
            driver_features,
            has_unknown_features,
            select,
            rings,
            generation: _, // it only ever moves on
            may_access_memory: _,
            wants,
            is_watching,
            has_deadline,
            has_late_timer,
            counters: _,
        } = self;
        // Should the thread come all the same, it finds nothing.
        *has_late_timer = false;
        device.reset();
        *status = 0;
        *driver_features = 0;
        *has_unknown_features = false;
        *select = Select::default();
        rings.iter_mut().for_each(Ring::reset);
        *wants = Wants::nothing(is_watching, has_deadline);
        self.watch_lasting();
        let Self { counters, .. } = self;
        counters.resets = counters.resets.saturating_add(1);
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.rings.len()).unwrap_or(u16::MAX)
    }

    /// The largest size of queue `index`; `None` if there is no such queue.
    pub fn queue_max_size(&self, index: u16) -> Option<u16> {
        self.rings.get(usize::from(index)).map(Ring::max_size)
    }

    /// The size of queue `index`, in entries; 0 if there is no such queue.
    pub fn queue_size(&self, index: u16) -> u16 {
        self.rings.get(usize::from(index)).map_or(0, |r| r.size)
    }

    /// The driver chooses a smaller queue. Anything but a power of two within the largest size is ignored.
    pub fn set_queue_size(&mut self, index: u16, size: u16) {
        if let Some(ring) = self.idle_ring(index)
            && size.is_power_of_two()
            && size <= ring.max_size()
        {
            ring.size = size;
        }
    }

    /// Where the driver put queue `index`.
    pub fn queue_areas(&self, index: u16) -> Areas {
        self.rings.get(usize::from(index)).map(|r| r.areas).unwrap_or_default()
    }

    /// The driver places queue `index`; ignored while the queue is enabled.
    pub fn set_queue_areas(&mut self, index: u16, areas: Areas) {
        if let Some(ring) = self.idle_ring(index) {
            ring.areas = areas;
        }
    }

    fn idle_ring(&mut self, index: u16) -> Option<&mut Ring> {
        self.rings.get_mut(usize::from(index)).filter(|r| !r.is_enabled)
    }

    /// Whether queue `index` is enabled.
    pub fn is_queue_enabled(&self, index: u16) -> bool {
        self.rings.get(usize::from(index)).is_some_and(|r| r.is_enabled)
    }

    /// The driver enables queue `index` at the addresses it wrote. Addresses that cannot be used break the device.
    pub fn enable_queue(&mut self, index: u16, face: Face) {
        let memory = Arc::clone(&self.memory);
        let Some(ring) = self.idle_ring(index) else { return };
        ring.is_legacy = face == Face::Legacy;
        if let Err(fault) = ring.enable(&memory) {
            self.fail(fault);
        }
    }

    /// The driver resets queue `index` alone (VIRTIO 1.3 §2.6.1), or a legacy driver takes its address away.
    pub fn reset_queue(&mut self, index: u16) -> Meaning {
        match self.rings.get_mut(usize::from(index)) {
            Some(ring) => ring.reset(),
            None => return Meaning::Nothing,
        }
        self.device.reset_queue(index);
        Meaning::QueueReset(index)
    }

    /// Whether the driver accepted a feature bit.
    pub fn has_accepted(&self, bit: u128) -> bool {
        self.accepted() & bit != 0
    }

    /// Whether queues run: a modern driver has to set DRIVER_OK, and nothing may be broken.
    pub fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && !self.is_broken()
    }

    fn is_broken(&self) -> bool {
        self.status & status::DEVICE_NEEDS_RESET != 0
    }

    /// Allows or forbids access to guest memory (PCI's Bus Master Enable).
    pub fn set_memory_access(&mut self, is_allowed: bool) {
        self.may_access_memory = is_allowed;
    }

    /// Reads the device-specific configuration; beyond its end there are zeros.
    pub fn config_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.config_read(offset, data);
    }

    /// Writes the device-specific configuration.
    pub fn config_write(&mut self, offset: u64, data: &[u8]) {
        self.device.config_write(offset, data);
    }

    /// The configuration generation; looking at it takes note of changes.
    pub fn config_generation(&mut self) -> u8 {
        if std::mem::take(&mut self.generation.is_stale) {
            self.generation.value = self.generation.value.wrapping_add(1);
        }
        self.generation.value
    }

    /// The state as text, for the status signal.
    pub fn describe(&self) -> String {
        let Counters { services, interrupts, lost_interrupts, faults, breakages: _, resets } = self.counters;
        let queues: String = (self.rings.iter().enumerate())
            .filter(|(_, r)| r.is_enabled)
            .map(|(i, r)| format!(", queue {i} of {} entries", r.size))
            .collect();
        let device = self.device.status();
        let device = if device.is_empty() { device } else { format!("; {device}") };
        format!(
            "status {:#04x}, features {:#x}{queues}; {services} services, {interrupts} interrupts \
             ({lost_interrupts} lost), {faults} faults, {resets} resets{device}",
            self.status,
            self.accepted(),
        )
    }
}

fn shift(select: u32) -> Option<u32> {
    (select < 4).then(|| select.wrapping_mul(32))
}

/// 32 bits of `bits`; 0 beyond them.
fn word(bits: u128, select: u32) -> u32 {
    let word = shift(select).map_or(0, |shift| bits >> shift) & u128::from(u32::MAX);
    u32::try_from(word).unwrap_or(0)
}
