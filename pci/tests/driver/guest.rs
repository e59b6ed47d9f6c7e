//! The driver: registers of either interface by name, initialisation, doorbells, interrupts.

use super::function::{Function, Kind};
use super::machine::Machine;
use super::ring::Ring;
use super::way::{Face, Way, Wire};
use super::{NO_VECTOR, feature, status};

/// A register, whichever interface shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    QueueCount,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    NotifyOffset,
    QueueDesc,
    QueueDriver,
    QueueDevice,
    QueueReset,
    /// Legacy alone: where the queue is, in pages.
    QueuePage,
    /// Legacy alone.
    Notify,
    /// Legacy alone: the modern interface has a capability for it.
    Isr,
}

impl Reg {
    /// Offset and width in the common configuration (VIRTIO 1.3 §4.1.4.3).
    fn modern(self) -> (u64, usize) {
        match self {
            Self::DeviceFeatureSelect => (0x00, 4),
            Self::DeviceFeature => (0x04, 4),
            Self::DriverFeatureSelect => (0x08, 4),
            Self::DriverFeature => (0x0c, 4),
            Self::ConfigVector => (0x10, 2),
            Self::QueueCount => (0x12, 2),
            Self::Status => (0x14, 1),
            Self::Generation => (0x15, 1),
            Self::QueueSelect => (0x16, 2),
            Self::QueueSize => (0x18, 2),
            Self::QueueVector => (0x1a, 2),
            Self::QueueEnable => (0x1c, 2),
            Self::NotifyOffset => (0x1e, 2),
            Self::QueueDesc => (0x20, 8),
            Self::QueueDriver => (0x28, 8),
            Self::QueueDevice => (0x30, 8),
            Self::QueueReset => (0x3a, 2),
            Self::QueuePage | Self::Notify | Self::Isr => panic!("{self:?} is legacy"),
        }
    }

    /// Offset and width in the ports of the legacy interface (VIRTIO 1.3 §4.1.4.10).
    fn legacy(self) -> (u64, usize) {
        match self {
            Self::DeviceFeature => (0x00, 4),
            Self::DriverFeature => (0x04, 4),
            Self::QueuePage => (0x08, 4),
            Self::QueueSize => (0x0c, 2),
            Self::QueueSelect => (0x0e, 2),
            Self::Notify => (0x10, 2),
            Self::Status => (0x12, 1),
            Self::Isr => (0x13, 1),
            Self::ConfigVector => (0x14, 2),
            Self::QueueVector => (0x16, 2),
            _ => panic!("{self:?} is modern"),
        }
    }
}

/// A driver of one function.
pub struct Driver<'m> {
    pub machine: &'m Machine,
    pub function: Function<'m>,
    pub way: Way,
}

impl<'m> Driver<'m> {
    /// Finds the function in `slot` and prepares its interrupts; the device is left as it is.
    pub fn find(machine: &'m Machine, slot: u8, way: Way) -> Self {
        let function = Function::find(machine, slot);
        let this = Self { machine, function, way };
        if way.wire == Wire::Msix {
            for vector in 0..this.function.vectors() {
                let (address, data) = this.message(vector);
                this.function.set_vector(vector, address, data.into(), false);
            }
            this.function.set_msix(true, false);
        }
        this
    }

    /// The same function, driven through another of its faces.
    pub fn through(&self, face: Face) -> Self {
        let way = Way { face, ..self.way };
        Self { machine: self.machine, function: self.function.clone(), way }
    }

    /// The message of a vector.
    pub fn message(&self, vector: u64) -> (u64, u32) {
        (0xfee0_0000 | u64::from(self.function.slot) << 12, 0x40 + u32::try_from(vector).unwrap())
    }

    /// The vector that belongs to queue `queue`; vector 0 is the configuration's.
    pub fn vector_of(queue: u16) -> u64 {
        u64::from(queue) + 1
    }

    /// Reads a register at its natural width.
    pub fn get(&self, reg: Reg) -> u64 {
        match self.way.face {
            Face::Modern => {
                let (offset, width) = reg.modern();
                self.common(offset, width)
            }
            Face::Legacy => {
                let (offset, width) = reg.legacy();
                self.machine.port_in(self.function.bars[0] + offset, width)
            }
        }
    }

    /// Writes a register at its natural width; addresses as Linux does, in halves.
    pub fn set(&self, reg: Reg, value: u64) {
        match self.way.face {
            Face::Modern => {
                let (offset, width) = reg.modern();
                self.set_common(offset, width.min(4), value & 0xffff_ffff);
                if width == 8 {
                    self.set_common(offset + 4, 4, value >> 32);
                }
            }
            Face::Legacy => {
                let (offset, width) = reg.legacy();
                self.machine.port_out(self.function.bars[0] + offset, width, value);
            }
        }
    }

    /// Reads the common configuration.
    pub fn common(&self, offset: u64, width: usize) -> u64 {
        self.machine.load(self.function.address(Kind::Common) + offset, width)
    }

    /// Writes the common configuration.
    pub fn set_common(&self, offset: u64, width: usize, value: u64) {
        self.machine.store(self.function.address(Kind::Common) + offset, width, value);
    }

    pub fn status(&self) -> u64 {
        self.get(Reg::Status)
    }

    pub fn set_status(&self, status: u64) {
        self.set(Reg::Status, status);
    }

    pub fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    pub fn reset(&self) {
        self.set_status(0);
        assert_eq!(self.status(), 0, "a reset is over when the write returns");
    }

    /// The features that the device offers through this interface.
    pub fn offered(&self) -> u128 {
        match self.way.face {
            Face::Legacy => self.get(Reg::DeviceFeature).into(),
            Face::Modern => (0..4).fold(0, |all, select| {
                self.set(Reg::DeviceFeatureSelect, select);
                all | u128::from(self.get(Reg::DeviceFeature)) << (32 * select)
            }),
        }
    }

    /// Writes the driver's features.
    pub fn accept(&self, bits: u128) {
        match self.way.face {
            Face::Legacy => self.set(Reg::DriverFeature, u64::try_from(bits & 0xffff_ffff).unwrap()),
            Face::Modern => {
                for select in 0..4 {
                    self.set(Reg::DriverFeatureSelect, select);
                    let word = bits >> (32 * select) & 0xffff_ffff;
                    self.set(Reg::DriverFeature, u64::try_from(word).unwrap());
                }
            }
        }
    }

    /// Resets the device and agrees on `bits`, which VERSION_1 is added to where the interface is modern.
    pub fn negotiate(&self, bits: u128) {
        self.reset();
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        match self.way.face {
            Face::Legacy => self.accept(bits),
            Face::Modern => {
                self.accept(bits | feature::VERSION_1);
                self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
                assert_ne!(self.status() & status::FEATURES_OK, 0, "{bits:#x} are accepted");
            }
        }
    }

    /// Maps the configuration's vector and says DRIVER_OK.
    pub fn finish(&self) {
        if self.way.wire == Wire::Msix {
            self.set(Reg::ConfigVector, 0);
            assert_eq!(self.get(Reg::ConfigVector), 0);
        }
        self.set_status(self.status() | status::DRIVER_OK);
    }

    /// A fresh ring of `size` entries for `queue`, not yet known to the device.
    pub fn ring(&self, queue: u16, size: u16, bits: u128) -> Ring<'m> {
        match self.way.face {
            Face::Modern => Ring::scattered(self.machine, queue, size, bits),
            Face::Legacy => Ring::legacy(self.machine, queue, size, bits),
        }
    }

    /// Tells the device where `ring` is, maps its vector, and enables it.
    pub fn enable(&self, ring: &Ring<'_>) {
        self.set(Reg::QueueSelect, ring.queue.into());
        match self.way.face {
            Face::Legacy => self.set(Reg::QueuePage, ring.desc >> 12),
            Face::Modern => {
                self.set(Reg::QueueSize, ring.size.into());
                self.set(Reg::QueueDesc, ring.desc);
                self.set(Reg::QueueDriver, ring.avail);
                self.set(Reg::QueueDevice, ring.used);
            }
        }
        if self.way.wire == Wire::Msix {
            let vector = Self::vector_of(ring.queue);
            self.set(Reg::QueueVector, vector);
            assert_eq!(self.get(Reg::QueueVector), vector);
        }
        if self.way.is_modern() {
            self.set(Reg::QueueEnable, 1);
        }
    }

    /// How many entries a queue has at most.
    pub fn queue_size(&self, queue: u16) -> u16 {
        self.set(Reg::QueueSelect, queue.into());
        u16::try_from(self.get(Reg::QueueSize)).unwrap()
    }

    /// Reset, features, a full-size ring for every queue, DRIVER_OK.
    pub fn start(&self, bits: u128) -> Vec<Ring<'m>> {
        self.negotiate(bits);
        let sizes = (0..).map(|queue| (queue, self.queue_size(queue))).take_while(|(_, size)| *size != 0);
        let rings: Vec<_> = sizes
            .map(|(queue, size)| {
                let ring = self.ring(queue, size, bits);
                self.enable(&ring);
                ring
            })
            .collect();
        self.finish();
        rings
    }

    /// Where the doorbell of `queue` is in memory.
    pub fn doorbell(&self, queue: u16) -> u64 {
        let notify = self.function.part(Kind::Notify);
        let multiplier = self.function.config(notify.at + 16, 4);
        self.set(Reg::QueueSelect, queue.into());
        self.function.address(Kind::Notify) + self.get(Reg::NotifyOffset) * multiplier
    }

    /// Rings the doorbell of `queue`.
    pub fn kick(&self, queue: u16) {
        match self.way.face {
            Face::Legacy => self.set(Reg::Notify, queue.into()),
            Face::Modern => self.machine.store(self.doorbell(queue), 2, queue.into()),
        }
    }

    /// Reads the interrupt status, which clears it.
    pub fn isr(&self) -> u64 {
        match self.way.face {
            Face::Legacy => self.get(Reg::Isr),
            Face::Modern => self.machine.load(self.function.address(Kind::Isr), 1),
        }
    }

    fn device_config(&self, offset: u64) -> (bool, u64) {
        match self.way.face {
            Face::Modern => (false, self.function.address(Kind::Device) + offset),
            Face::Legacy => {
                let is_msix = self.function.msix_control() & 1 << 15 != 0;
                (true, self.function.bars[0] + if is_msix { 24 } else { 20 } + offset)
            }
        }
    }

    /// Reads the device-specific configuration.
    pub fn read_config(&self, offset: u64, width: usize) -> u64 {
        match self.device_config(offset) {
            (true, port) => self.machine.port_in(port, width),
            (false, address) => self.machine.load(address, width),
        }
    }

    /// Writes the device-specific configuration.
    pub fn write_config(&self, offset: u64, width: usize, value: u64) {
        match self.device_config(offset) {
            (true, port) => self.machine.port_out(port, width, value),
            (false, address) => self.machine.store(address, width, value),
        }
    }

    /// One interrupt for `queue` has come or comes; it is taken, and there is no other.
    pub fn expect_queue(&self, queue: u16) {
        self.expect(Self::vector_of(queue), 1);
    }

    /// One interrupt for the configuration has come or comes; it is taken, and there is no other.
    pub fn expect_config(&self) {
        self.expect(0, 2);
    }

    fn expect(&self, vector: u64, bit: u64) {
        match self.way.wire {
            Wire::Msix => {
                let mut messages = self.machine.host.wait_messages(1);
                self.settle();
                messages.extend(self.machine.host.take_messages());
                assert_eq!(messages, [self.message(vector)]);
                if bit == 2 {
                    assert_eq!(self.isr() & 2, 2, "a configuration change sets its bit with MSI-X too");
                }
            }
            Wire::Intx => {
                let gsi = self.function.gsi();
                assert!(self.machine.host.wait_high(gsi), "the line rises");
                self.settle();
                assert_eq!(self.isr(), bit, "the interrupt status says why");
                assert!(!self.machine.host.is_high(gsi), "reading the status lowers the line");
                assert_eq!(self.machine.host.take_messages(), [], "no message while MSI-X is off");
            }
        }
    }

    /// No interrupt has come.
    pub fn expect_quiet(&self) {
        self.settle();
        assert_eq!(self.machine.host.take_messages(), [], "no interrupt");
        assert!(!self.machine.host.is_high(self.function.gsi()), "no interrupt");
    }

    /// Lets a service that is under way come to its end: a register waits for the lock that it holds.
    pub fn settle(&self) -> u64 {
        self.get(Reg::Status)
    }

    /// Takes the vectors of everything away.
    pub fn unmap(&self, queues: u16) {
        self.set(Reg::ConfigVector, NO_VECTOR);
        for queue in 0..queues {
            self.set(Reg::QueueSelect, queue.into());
            self.set(Reg::QueueVector, NO_VECTOR);
        }
    }
}
