//! The transport in memory, as a driver finds it: the registers of both interfaces, and requests from the queue to the
//! interrupt.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::chain::Memory;
use devices::core::Face;
use devices::entropy::Entropy;
use devices::interrupt::Line;
use devices::mmio::VirtioMmio;
use devices::vdev::{Access, Region, Vdev};
use vm_memory::{Bytes, GuestAddress};

const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SELECT: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const GUEST_PAGE_SIZE: u64 = 0x28;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_MAX_SIZE: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_ALIGN: u64 = 0x3c;
const QUEUE_PAGE: u64 = 0x40;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;

/// Where the parts of the queue are, as the legacy interface lays out eight entries, and a buffer.
const DESC: u64 = 0x1000;
const DRIVER: u64 = DESC + 8 * 16;
const DEVICE: u64 = 0x2000;
const BUFFER: u64 = 0x5000;
const BUFFER_LEN: u32 = 64;

#[derive(Default)]
struct Wire(AtomicBool);

impl Line for Wire {
    fn set(&self, is_high: bool) -> io::Result<()> {
        self.0.store(is_high, Ordering::SeqCst);
        Ok(())
    }
}

struct Driver {
    device: Arc<VirtioMmio>,
    memory: Arc<Memory>,
    wire: Arc<Wire>,
}

impl Driver {
    fn new(face: Face) -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
        let wire = Arc::new(Wire::default());
        let source = Box::new(Entropy::new(File::open("/dev/urandom").unwrap()));
        let device = VirtioMmio::new(source, face, memory.clone(), wire.clone()).unwrap();
        Arc::<VirtioMmio>::clone(&device).guest_configured().unwrap();
        Self { device, memory, wire }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.device.vread(Access { region: Region::Memory, offset }, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        let _ = self.device.vwrite(Access { region: Region::Memory, offset }, &value.to_le_bytes());
    }

    /// Asks for random bytes by the first descriptor, and tells what came.
    fn request(&self) -> Vec<u8> {
        let (memory, buffer) = (&self.memory, vec![0; BUFFER_LEN as usize]);
        memory.write_slice(&buffer, GuestAddress(BUFFER)).unwrap();
        memory.write_obj(BUFFER, GuestAddress(DESC)).unwrap();
        memory.write_obj(BUFFER_LEN, GuestAddress(DESC + 8)).unwrap();
        // For the device to write; no other follows.
        memory.write_obj([2_u16, 0], GuestAddress(DESC + 12)).unwrap();
        let index: u16 = memory.read_obj(GuestAddress(DRIVER + 2)).unwrap();
        memory.write_obj(0_u16, GuestAddress(DRIVER + 4 + 2 * u64::from(index % 8))).unwrap();
        memory.write_obj(index + 1, GuestAddress(DRIVER + 2)).unwrap();
        self.write(QUEUE_NOTIFY, 0);
        assert_eq!(memory.read_obj::<u16>(GuestAddress(DEVICE + 2)).unwrap(), index + 1, "used");
        let used: [u32; 2] = memory.read_obj(GuestAddress(DEVICE + 4 + 8 * u64::from(index % 8))).unwrap();
        assert_eq!(used, [0, BUFFER_LEN]);
        let mut bytes = buffer;
        memory.read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
        bytes
    }

    /// The device interrupts until it is acknowledged.
    fn acknowledge(&self) {
        assert_eq!((self.read(INTERRUPT_STATUS), self.wire.0.load(Ordering::SeqCst)), (1, true));
        self.write(INTERRUPT_ACK, 1);
        assert_eq!((self.read(INTERRUPT_STATUS), self.wire.0.load(Ordering::SeqCst)), (0, false));
    }

    fn set_up_legacy(&self) {
        self.write(STATUS, 0);
        self.write(STATUS, 1 | 2);
        self.write(DRIVER_FEATURES_SELECT, 0);
        self.write(DRIVER_FEATURES, 0);
        self.write(QUEUE_SELECT, 0);
        assert_eq!(self.read(QUEUE_PAGE), 0, "not in use");
        assert!(self.read(QUEUE_MAX_SIZE) >= 8);
        self.write(QUEUE_SIZE, 8);
        self.write(QUEUE_ALIGN, 0x1000);
        self.write(QUEUE_PAGE, u32::try_from(DESC / 0x1000).unwrap());
        assert_eq!(u64::from(self.read(QUEUE_PAGE)), DESC / 0x1000);
        self.write(STATUS, 1 | 2 | 4);
    }

    fn set_up_modern(&self) {
        self.write(STATUS, 0);
        self.write(STATUS, 1 | 2);
        for (half, features) in [(0, 0), (1, 1)] {
            self.write(DRIVER_FEATURES_SELECT, half);
            self.write(DRIVER_FEATURES, features);
        }
        self.write(STATUS, 1 | 2 | 8);
        assert_eq!(self.read(STATUS), 1 | 2 | 8, "VERSION_1 alone will do");
        self.write(QUEUE_SELECT, 0);
        self.write(QUEUE_SIZE, 8);
        for (register, address) in [(0x80, DESC), (0x90, DRIVER), (0xa0, DEVICE)] {
            self.write(register, u32::try_from(address).unwrap());
            self.write(register + 4, 0);
        }
        self.write(QUEUE_READY, 1);
        assert_eq!(self.read(QUEUE_READY), 1);
        self.write(STATUS, 1 | 2 | 4 | 8);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.device.terminate();
    }
}

#[test]
fn a_request_is_answered_and_interrupts_over_the_modern_interface() {
    let driver = Driver::new(Face::Modern);
    assert_eq!((driver.read(0), driver.read(VERSION), driver.read(DEVICE_ID)), (0x7472_6976, 2, 4));
    driver.set_up_modern();
    let first = driver.request();
    driver.acknowledge();
    assert_ne!(first, driver.request());
}

/// In the order of Linux, which tells its page size once, before it resets the device for the first time.
#[test]
fn a_request_is_answered_and_interrupts_over_the_legacy_interface() {
    let driver = Driver::new(Face::Legacy);
    assert_eq!((driver.read(0), driver.read(VERSION), driver.read(DEVICE_ID)), (0x7472_6976, 1, 4));
    driver.write(DEVICE_FEATURES_SELECT, 1);
    assert_eq!(driver.read(DEVICE_FEATURES), 0, "32 bits are all");
    driver.write(GUEST_PAGE_SIZE, 0x1000);
    for _ in 0..2 {
        driver.memory.write_slice(&[0; 0x2000], GuestAddress(DESC)).unwrap();
        driver.set_up_legacy();
        let first = driver.request();
        driver.acknowledge();
        assert_ne!(first, driver.request());
    }
}

#[test]
fn a_reset_lowers_the_line_and_takes_the_queue_away() {
    for face in [Face::Modern, Face::Legacy] {
        let driver = Driver::new(face);
        driver.write(GUEST_PAGE_SIZE, 0x1000);
        let (set_up, in_use): (fn(&Driver), u64) = match face {
            Face::Modern => (Driver::set_up_modern, QUEUE_READY),
            Face::Legacy => (Driver::set_up_legacy, QUEUE_PAGE),
        };
        set_up(&driver);
        let _ = driver.request();
        driver.write(STATUS, 0);
        assert_eq!((driver.read(STATUS), driver.read(INTERRUPT_STATUS), driver.read(in_use)), (0, 0, 0));
        assert!(!driver.wire.0.load(Ordering::SeqCst));
        driver.write(QUEUE_NOTIFY, 0);
        assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    }
}
