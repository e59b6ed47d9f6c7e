//! The machine of a test: memory, one bus with the functions under test, and the accesses that a vCPU makes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use devices::chain::Memory;
use devices::vdev::{Access, Effect, Region, Vdev};
use devices::virtio::VirtioDevice;
use pci::bridge::Bridge;
use pci::host::{Bell, Host};
use pci::line::{Line, Pin};
use pci::ports::{self, ConfigPorts};
use pci::root::{ECAM_LEN, Root};
use pci::virtio::{Faces, VirtioFunction};
use vm_memory::{Bytes, GuestAddress};

use super::host::{Notes, PATIENCE};
use super::way::Way;

/// Bytes of RAM from address 0 on.
pub const LOW: u64 = 4 << 20;
/// Where more RAM is, above 4 GiB.
pub const HIGH: u64 = 6 << 30;
/// Bytes of it.
pub const HIGH_LEN: u64 = 4 << 20;
/// An address that is not RAM.
pub const HOLE: u64 = 0xd000_0000;
/// Where configuration space is.
pub const ECAM: u64 = 0xe000_0000;
/// Where the guest begins to place memory BARs.
const BARS: u64 = 0xc000_0000;
/// Where the guest begins to place port BARs.
const PORTS: u64 = 0x1000;

/// A device to plug in.
pub struct Plug {
    /// It.
    pub device: Box<dyn VirtioDevice>,
    /// The interfaces that its function presents.
    pub faces: Faces,
    /// Its interrupt line.
    pub gsi: u32,
}

/// The machine.
pub struct Machine {
    pub memory: Arc<Memory>,
    pub host: Arc<Notes>,
    /// Writes that have not come yet.
    late: Mutex<Vec<(u64, usize, u64)>>,
    root: Arc<Root>,
    config_ports: ConfigPorts,
    functions: Vec<Arc<VirtioFunction>>,
    next_ram: AtomicU64,
    next_high: AtomicU64,
    next_bar: AtomicU64,
    next_port: AtomicU64,
}

impl Machine {
    /// A machine whose slots from 1 on hold `plugs`; slot 0 is the host bridge. `is_showing` says whether it has pages to
    /// show to the guest.
    pub fn new(plugs: Vec<Plug>, is_showing: bool) -> Self {
        let ranges = [
            (GuestAddress(0), usize::try_from(LOW).unwrap()),
            (GuestAddress(HIGH), usize::try_from(HIGH_LEN).unwrap()),
        ];
        let memory = Arc::new(Memory::from_ranges(&ranges).unwrap());
        let host = Arc::new(if is_showing { Notes::showing() } else { Notes::default() });
        let mut root = Root::default();
        let is_attached = root.attach(0, Arc::new(Bridge::default()));
        assert!(is_attached, "slot 0 is free");
        let mut lines: Vec<Arc<Line>> = Vec::new();
        let mut functions = Vec::new();
        for (slot, Plug { device, faces, gsi }) in (1_u8..).zip(plugs) {
            let line = match lines.iter().find(|l| l.gsi() == gsi) {
                Some(line) => Arc::clone(line),
                None => {
                    lines.push(Line::new(Arc::<Notes>::clone(&host), gsi));
                    Arc::clone(lines.last().unwrap())
                }
            };
            let pin = Pin::new(line);
            let host: Arc<dyn Host> = Arc::<Notes>::clone(&host);
            let function = VirtioFunction::new(device, faces, Arc::clone(&memory), host, pin).unwrap();
            let is_attached = root.attach(slot << 3, Arc::<VirtioFunction>::clone(&function));
            assert!(is_attached, "slot {slot} is free");
            functions.push(function);
        }
        root.show_config(&*host, ECAM);
        let root = Arc::new(root);
        for function in &functions {
            Arc::<VirtioFunction>::clone(function).guest_configured().unwrap();
        }
        Self {
            memory,
            host,
            late: Mutex::default(),
            config_ports: ConfigPorts::new(Arc::clone(&root)),
            root,
            functions,
            next_ram: AtomicU64::new(0x1_0000),
            next_high: AtomicU64::new(HIGH),
            next_bar: AtomicU64::new(BARS),
            next_port: AtomicU64::new(PORTS),
        }
    }

    /// A machine with one device, in slot 1, on line 16.
    pub fn with(device: impl VirtioDevice + 'static, way: Way) -> Self {
        Self::new(vec![Plug { device: Box::new(device), faces: way.faces, gsi: 16 }], way.is_showing)
    }

    /// The status text of the device in `slot`.
    pub fn describe(&self, slot: u8) -> String {
        self.functions[usize::from(slot) - 1].status()
    }

    /// The name of the device in `slot`.
    pub fn name(&self, slot: u8) -> &str {
        self.functions[usize::from(slot) - 1].name()
    }

    /// An access that leaves the guest; writes that were late come before it.
    fn exit(&self, access: impl FnOnce()) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, width, value) in late.drain(..) {
            self.write(memory(at), width, value);
        }
        drop(late);
        access();
    }

    fn read(&self, at: Access, width: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..width].fill(0xff);
        self.exit(|| match config_port(at) {
            Some(at) => self.config_ports.vread(at, &mut bytes[..width]),
            None => self.root.vread(at, &mut bytes[..width]),
        });
        u64::from_le_bytes(bytes)
    }

    fn write(&self, at: Access, width: usize, value: u64) {
        let bytes = &value.to_le_bytes()[..width];
        let effect = match config_port(at) {
            Some(at) => self.config_ports.vwrite(at, bytes),
            None => self.root.vwrite(at, bytes),
        };
        assert_eq!(effect, Effect::None, "no virtio device ends the run");
    }

    /// Reads configuration space.
    pub fn config(&self, slot: u8, offset: u64, width: usize) -> u64 {
        self.load(ECAM + (u64::from(slot) << 15) + offset, width)
    }

    /// Writes configuration space.
    pub fn set_config(&self, slot: u8, offset: u64, width: usize, value: u64) {
        self.store(ECAM + (u64::from(slot) << 15) + offset, width, value);
    }

    /// Reads device memory, or a page that the guest sees there.
    pub fn load(&self, address: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        match &self.host.slots {
            Some(slots) if slots.load(address, &mut bytes[..width]) => u64::from_le_bytes(bytes),
            _ => self.read(memory(address), width),
        }
    }

    /// Writes device memory or a page that the guest sees there, rings a doorbell bound there, or has the write come late.
    pub fn store(&self, address: u64, width: usize, value: u64) {
        if self.host.ring(|bell| bell == Bell::Memory(address)) {
            return;
        }
        if let Some(slots) = &self.host.slots {
            if slots.store(address, &value.to_le_bytes()[..width]) {
                return;
            }
            let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
            if late.len() < MOST_LATE && self.host.is_late(address, width) {
                late.push((address, width, value));
                return;
            }
        }
        self.exit(|| self.write(memory(address), width, value));
    }

    /// Reads configuration space by leaving the guest, whatever it can see without.
    pub fn config_by_access(&self, slot: u8, offset: u64, width: usize) -> u64 {
        self.read(memory(ECAM + (u64::from(slot) << 15) + offset), width)
    }

    /// Reads a port.
    pub fn port_in(&self, port: u64, width: usize) -> u64 {
        self.read(Access { region: Region::Port, offset: port }, width)
    }

    /// Writes a port, or rings a doorbell bound there.
    pub fn port_out(&self, port: u64, width: usize, value: u64) {
        let bell = (u16::try_from(port), u16::try_from(value));
        let is_rung = |b| width == 2 && matches!(bell, (Ok(p), Ok(v)) if b == Bell::Port(p, v));
        if !self.host.ring(is_rung) {
            self.exit(|| self.write(Access { region: Region::Port, offset: port }, width, value));
        }
    }

    fn take(next: &AtomicU64, len: u64, align: u64) -> u64 {
        let end = |at: u64| at.next_multiple_of(align) + len;
        let before = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(end(at)));
        before.unwrap().next_multiple_of(align)
    }

    /// RAM below 4 GiB that nobody else uses, full of zeros.
    pub fn ram(&self, len: u64, align: u64) -> u64 {
        let at = Self::take(&self.next_ram, len, align);
        assert!(at + len <= LOW, "the test asks for too much RAM");
        at
    }

    /// RAM above 4 GiB that nobody else uses, full of zeros.
    pub fn high_ram(&self, len: u64, align: u64) -> u64 {
        let at = Self::take(&self.next_high, len, align);
        assert!(at + len <= HIGH + HIGH_LEN, "the test asks for too much RAM above 4 GiB");
        at
    }

    /// Addresses for a memory BAR.
    pub fn bar_space(&self, len: u64) -> u64 {
        Self::take(&self.next_bar, len, len)
    }

    /// Ports for a BAR.
    pub fn port_space(&self, len: u64) -> u64 {
        Self::take(&self.next_port, len, len)
    }

    /// `len` bytes of RAM.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Fills RAM.
    pub fn set_bytes(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}

/// How many writes can be late, as in KVM's ring of one page.
const MOST_LATE: usize = 169;

/// What an address in memory is to the bus.
fn memory(address: u64) -> Access {
    match address.checked_sub(ECAM) {
        Some(offset) if offset < 2 * ECAM_LEN => Access { region: Region::PciConfig, offset },
        _ => Access { region: Region::Memory, offset: address },
    }
}

/// What an access is to the ports of configuration space, which come before any BAR.
fn config_port(at: Access) -> Option<Access> {
    let offset = at.offset.checked_sub(ports::FIRST.into())?;
    (at.region == Region::Port && offset < ports::COUNT.into()).then_some(Access { offset, ..at })
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.functions.iter().for_each(|f| f.terminate());
    }
}

/// Waits until `is_so`, by looking again and again; the test fails if it never is.
pub fn patiently(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: never");
        std::thread::yield_now();
    }
}
