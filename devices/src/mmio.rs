//! A virtio device in memory (VIRTIO 1.3 §4.2): a page of registers and one interrupt, without a bus.
//!
//! Version 2 of the registers is the modern interface, version 1 the legacy one (§4.2.4). The guest is told of the device
//! by ACPI, as `LNRO0005`. Locks are taken in the order core, interrupt.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use acpi_tables::{Aml, aml};

use crate::chain::Memory;
use crate::core::{Core, Face, Meaning, status};
use crate::engine::Engine;
use crate::interrupt::{Cause, Interrupt, Line};
use crate::queue::Areas;
use crate::vdev::{Access, Effect, Vdev};
use crate::virtio::{VirtioDevice, feature};

/// Bytes of guest-physical addresses that a device has.
pub const LEN: u64 = 0x1000;

/// A register (VIRTIO 1.3 §4.2.2, §4.2.4). All of them have 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Magic,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSelect,
    DriverFeatures,
    DriverFeaturesSelect,
    GuestPageSize,
    QueueSelect,
    QueueMaxSize,
    QueueSize,
    QueueAlign,
    QueuePage,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueArea(Area, Half),
    SharedMemory,
    QueueReset,
    ConfigGeneration,
}

/// A part of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    Desc,
    Driver,
    Device,
}

/// Half of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

/// The registers and where they are.
const REGISTERS: &[(Register, u64)] = &[
    (Register::Magic, 0x00),
    (Register::Version, 0x04),
    (Register::DeviceId, 0x08),
    (Register::VendorId, 0x0c),
    (Register::DeviceFeatures, 0x10),
    (Register::DeviceFeaturesSelect, 0x14),
    (Register::DriverFeatures, 0x20),
    (Register::DriverFeaturesSelect, 0x24),
    (Register::GuestPageSize, 0x28),
    (Register::QueueSelect, 0x30),
    (Register::QueueMaxSize, 0x34),
    (Register::QueueSize, 0x38),
    (Register::QueueAlign, 0x3c),
    (Register::QueuePage, 0x40),
    (Register::QueueReady, 0x44),
    (Register::QueueNotify, 0x50),
    (Register::InterruptStatus, 0x60),
    (Register::InterruptAck, 0x64),
    (Register::Status, 0x70),
    (Register::QueueArea(Area::Desc, Half::Low), 0x80),
    (Register::QueueArea(Area::Desc, Half::High), 0x84),
    (Register::QueueArea(Area::Driver, Half::Low), 0x90),
    (Register::QueueArea(Area::Driver, Half::High), 0x94),
    (Register::QueueArea(Area::Device, Half::Low), 0xa0),
    (Register::QueueArea(Area::Device, Half::High), 0xa4),
    // Length and base of a region of memory that both sides share: all ones say that there is none.
    (Register::SharedMemory, 0xb0),
    (Register::SharedMemory, 0xb4),
    (Register::SharedMemory, 0xb8),
    (Register::SharedMemory, 0xbc),
    (Register::QueueReset, 0xc0),
    (Register::ConfigGeneration, 0xfc),
];
/// Where the device-specific configuration begins.
const CONFIG: u64 = 0x100;

impl Register {
    fn at(offset: u64, face: Face) -> Option<Self> {
        let (register, _) = REGISTERS.iter().find(|(_, at)| *at == offset)?;
        let face_of = match register {
            Self::GuestPageSize | Self::QueueAlign | Self::QueuePage => Some(Face::Legacy),
            Self::QueueReady
            | Self::QueueArea(..)
            | Self::SharedMemory
            | Self::QueueReset
            | Self::ConfigGeneration => Some(Face::Modern),
            _ => None,
        };
        face_of.is_none_or(|it| it == face).then_some(*register)
    }
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The vendor, as PCI names it.
const VENDOR: u32 = 0x1af4;
/// Bits of the interrupt status.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// The flags and the wire that they drive, under one lock.
struct Wire {
    status: Mutex<u32>,
    line: Arc<dyn Line>,
}

impl Wire {
    /// Changes the flags, then sets the line to what they say.
    fn change(&self, change: impl FnOnce(u32) -> u32) -> io::Result<()> {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *status;
        *status = change(before);
        match (before != 0, *status != 0) {
            (false, true) => self.line.set(true),
            (true, false) => self.line.set(false),
            _ => Ok(()),
        }
    }

    fn status(&self) -> u32 {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt for Wire {
    fn signal(&self, cause: Cause) -> io::Result<()> {
        let bit = match cause {
            Cause::Queue(_) => USED_BUFFER,
            Cause::Config => CONFIG_CHANGE,
        };
        self.change(|status| status | bit)
    }
}

/// What a legacy driver says of how it lays queues out, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    page: u32,
    align: u32,
}

/// A virtio device behind registers in memory.
pub struct VirtioMmio {
    name: &'static str,
    face: Face,
    engine: Arc<Engine>,
    wire: Arc<Wire>,
    layout: Mutex<Layout>,
}

impl VirtioMmio {
    /// Puts `device` behind registers that interrupt by `line`, which is level-triggered and the device's own.
    ///
    /// # Errors
    ///
    /// What the device's queues or the host's supply of event descriptors do not allow.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        face: Face,
        memory: Arc<Memory>,
        line: Arc<dyn Line>,
    ) -> Result<Arc<Self>, crate::Error> {
        let wire = Arc::new(Wire { status: Mutex::new(0), line });
        let core = Core::new(device, memory, Arc::<Wire>::clone(&wire))?;
        let name = core.desc().name;
        Ok(Arc::new(Self { name, face, engine: Engine::new(core)?, wire, layout: Mutex::default() }))
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, register: Register) -> u32 {
        let mut core = self.engine.core();
        let queue = core.select.queue;
        match register {
            Register::Magic => MAGIC,
            Register::Version if self.face == Face::Legacy => 1,
            Register::Version => 2,
            Register::DeviceId => core.desc().device_type.into(),
            Register::VendorId => VENDOR,
            // The legacy interface has 32 feature bits (VIRTIO 1.3 §4.2.4).
            Register::DeviceFeatures if self.face == Face::Legacy && core.select.device_feature != 0 => 0,
            Register::DeviceFeatures => core.device_features(core.select.device_feature),
            Register::QueueMaxSize => core.queue_max_size(queue).unwrap_or(0).into(),
            Register::QueuePage if core.is_queue_enabled(queue) => {
                let page = core.queue_areas(queue).desc.checked_div(self.layout().page.into());
                u32::try_from(page.unwrap_or(0)).unwrap_or(0)
            }
            Register::QueueReady => core.is_queue_enabled(queue).into(),
            Register::InterruptStatus => self.wire.status(),
            Register::Status => core.status().into(),
            Register::SharedMemory => u32::MAX,
            Register::ConfigGeneration => core.config_generation().into(),
            // A queue reset is over when the write that asks for it returns; the others are for writing.
            Register::QueueReset
            | Register::QueuePage
            | Register::DeviceFeaturesSelect
            | Register::DriverFeatures
            | Register::DriverFeaturesSelect
            | Register::GuestPageSize
            | Register::QueueSelect
            | Register::QueueSize
            | Register::QueueAlign
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueArea(..) => 0,
        }
    }

    fn write(&self, core: &mut Core, register: Register, value: u32) -> Meaning {
        let queue = core.select.queue;
        let [byte, second, ..] = value.to_le_bytes();
        let short = u16::from_le_bytes([byte, second]);
        // A number of 32 bits for one of 16: what is too large names nothing.
        let narrow = u16::try_from(value).unwrap_or(u16::MAX);
        match register {
            Register::DeviceFeaturesSelect => core.select.device_feature = value,
            Register::DriverFeaturesSelect => core.select.driver_feature = value,
            Register::DriverFeatures if self.face == Face::Legacy => {
                if core.select.driver_feature == 0 {
                    core.set_legacy_features(value);
                }
            }
            Register::DriverFeatures => core.set_driver_features(core.select.driver_feature, value),
            Register::GuestPageSize => self.layout().page = value,
            Register::QueueAlign => self.layout().align = value,
            Register::QueueSelect => core.select.queue = narrow,
            Register::QueueSize => core.set_queue_size(queue, narrow),
            Register::QueuePage => return self.set_page(core, queue, value),
            Register::QueueReady if value == 1 => core.enable_queue(queue, Face::Modern),
            Register::QueueReady if value == 0 => return core.reset_queue(queue),
            Register::QueueReset if value == 1 && core.has_accepted(feature::RING_RESET) => {
                return core.reset_queue(queue);
            }
            Register::QueueArea(area, half) => {
                let mut areas = core.queue_areas(queue);
                let address = match area {
                    Area::Desc => &mut areas.desc,
                    Area::Driver => &mut areas.driver,
                    Area::Device => &mut areas.device,
                };
                let (kept, shift) = match half {
                    Half::Low => (0xffff_ffff_0000_0000, 0),
                    Half::High => (0xffff_ffff, 32),
                };
                *address = *address & kept | u64::from(value) << shift;
                core.set_queue_areas(queue, areas);
            }
            Register::QueueNotify => return Meaning::Notify(short),
            Register::InterruptAck => {
                // The level follows; a line that the machine refuses to lower would be no better off with an error.
                let _ = self.wire.change(|status| status & !value);
            }
            Register::Status => return core.set_status(byte, self.face),
            Register::Magic
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueMaxSize
            | Register::QueueReady
            | Register::QueueReset
            | Register::InterruptStatus
            | Register::SharedMemory
            | Register::ConfigGeneration => {}
        }
        Meaning::Nothing
    }

    /// A legacy driver places a queue, or takes its place away with 0 (VIRTIO 1.3 §2.7.2, §4.2.4).
    fn set_page(&self, core: &mut Core, queue: u16, page: u32) -> Meaning {
        let meaning = if core.is_queue_enabled(queue) { core.reset_queue(queue) } else { Meaning::Nothing };
        let Layout { page: page_size, align } = *self.layout();
        if page == 0 || !page_size.is_power_of_two() || !align.is_power_of_two() {
            return meaning;
        }
        let size = u64::from(core.queue_size(queue));
        let desc = u64::from(page).saturating_mul(page_size.into());
        let driver = desc.saturating_add(size.saturating_mul(16));
        let end = driver.saturating_add(size.saturating_mul(2)).saturating_add(6);
        let device = end.checked_next_multiple_of(align.into()).unwrap_or(u64::MAX);
        core.set_queue_areas(queue, Areas { desc, driver, device });
        core.enable_queue(queue, Face::Legacy);
        meaning
    }

    /// Does what a register access meant.
    fn act(&self, core: MutexGuard<'_, Core>, meaning: Meaning) {
        match meaning {
            Meaning::Nothing | Meaning::Config(_) | Meaning::QueueReset(_) => drop(core),
            Meaning::Notify(queue) => {
                drop(core);
                self.engine.notify(queue);
            }
            Meaning::Status(added) => {
                let is_live = core.is_live();
                drop(core);
                if added & status::DRIVER_OK != 0 && is_live {
                    self.engine.serve(Core::serve_all);
                }
            }
            Meaning::Reset => {
                // Under the core's lock, so that nothing is sent once the status reads 0.
                let _ = self.wire.change(|_| 0);
                // Not the size of a page: drivers write that once, before they reset the device.
                self.layout().align = 0;
                drop(core);
                self.engine.serve(|_| ());
            }
        }
    }
}

impl Vdev for VirtioMmio {
    fn name(&self) -> &str {
        self.name
    }

    fn guest_configured(self: Arc<Self>) -> Result<(), crate::Error> {
        self.engine.start();
        Ok(())
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        if let Some(offset) = at.offset.checked_sub(CONFIG) {
            return self.engine.core().config_read(offset, data);
        }
        // Registers are read whole (VIRTIO 1.3 §4.2.2.2).
        let value = Register::at(at.offset, self.face).filter(|_| data.len() == 4);
        let bytes = value.map_or(0, |register| self.read(register)).to_le_bytes();
        data.fill(0);
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        let mut core = self.engine.core();
        let meaning = match (at.offset.checked_sub(CONFIG), data.first_chunk()) {
            (Some(offset), _) => {
                core.config_write(offset, data);
                Meaning::Config(offset)
            }
            (None, Some(bytes)) if data.len() == 4 => match Register::at(at.offset, self.face) {
                Some(register) => self.write(&mut core, register, u32::from_le_bytes(*bytes)),
                None => Meaning::Nothing,
            },
            _ => Meaning::Nothing,
        };
        self.act(core, meaning);
        Effect::None
    }

    fn status(&self) -> String {
        self.engine.core().describe()
    }

    fn terminate(&self) {
        self.engine.stop();
    }
}

/// The device at `address` for the guest's ACPI namespace, where `index` tells it from its like.
pub fn describe(index: u8, address: u32, interrupt: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = u32::try_from(LEN).unwrap_or(u32::MAX);
    aml::Device::new(
        format!("VM{index:02X}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            &aml::Name::new("_CCA".into(), &1_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, address, len),
                    // Level, active high: the line is high until the driver has acknowledged.
                    &aml::Interrupt::new(true, false, false, false, interrupt),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut bytes);
    bytes
}
