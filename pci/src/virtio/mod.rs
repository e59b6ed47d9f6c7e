//! A virtio device as a PCI function (VIRTIO 1.3 §4.1).
//!
//! An access to a register is decoded here, acts on the [`Core`], and returns what it meant;
//! `VirtioFunction::act` is the one place that does what that asks for. Locks are taken in the order doorbells,
//! configuration, core, interrupt, line.

mod capabilities;
mod common;
mod interrupt;
mod registers;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use devices::chain::Memory;
use devices::core::{Core, Face, Meaning, status};
use devices::engine::Engine;
use devices::vdev::{Access, Effect, Region, Vdev};
use devices::virtio::VirtioDevice;
use log::debug;

use self::capabilities::{LEGACY_BAR, MEMORY_BAR, MEMORY_LEN, NOTIFY_MULTIPLIER, NOTIFY_SHIFT, Part, window};
use self::interrupt::FunctionInterrupt;
use self::registers::{COMMON, LEGACY, LEGACY_VECTORS};
use crate::config::{self, Bar, ConfigSpace, Identity, command, touches_decode};
use crate::function::{Function, Window};
use crate::host::{Bell, Host, Pages};
use crate::line::Pin;
use crate::lock;

/// Which interfaces a function presents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Faces {
    /// VIRTIO 1.0 and later alone.
    #[default]
    Modern,
    /// VIRTIO 0.9.5 alone.
    Legacy,
    /// Both, over one device.
    Transitional,
}

impl Faces {
    fn has(self, face: Face) -> bool {
        match face {
            Face::Modern => self != Self::Legacy,
            Face::Legacy => self != Self::Modern,
        }
    }
}

/// The vendor of virtio functions, and of their subsystem.
const VENDOR: u16 = 0x1af4;

/// A virtio device on the PCI bus.
pub struct VirtioFunction {
    name: &'static str,
    faces: Faces,
    host: Arc<dyn Host>,
    engine: Arc<Engine>,
    interrupt: Arc<FunctionInterrupt>,
    config: Mutex<Config>,
    placed: Mutex<Placed>,
}

/// What the machine was told of where the function is.
#[derive(Default)]
struct Placed {
    bells: Vec<(Bell, u16)>,
    /// Base of the memory BAR.
    memory: Option<u64>,
}

/// Configuration space, and where its active parts are.
struct Config {
    space: ConfigSpace,
    message_control: u16,
    /// The PCI_CFG capability.
    window: Option<u16>,
    /// Where the guest reads it without an exit, and the page's guest-physical address.
    page: Option<(Arc<dyn Pages>, u64)>,
}

impl VirtioFunction {
    /// Puts `device` behind the registers of a PCI function whose interrupt pin is `pin`.
    ///
    /// # Errors
    ///
    /// What the device's queues or the host's supply of event descriptors do not allow.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        faces: Faces,
        memory: Arc<Memory>,
        host: Arc<dyn Host>,
        pin: Pin,
    ) -> Result<Arc<Self>, devices::Error> {
        let desc = device.desc();
        let queues = u16::try_from(desc.queues.len()).unwrap_or(u16::MAX);
        let identity = Identity {
            vendor: VENDOR,
            device: if faces.has(Face::Legacy) {
                desc.transitional_id
            } else {
                desc.device_type.saturating_add(0x1040)
            },
            revision: if faces.has(Face::Legacy) { 0 } else { 1 },
            class: desc.class,
            subsystem_vendor: VENDOR,
            subsystem: if faces.has(Face::Legacy) { desc.device_type } else { 0x40 },
        };
        let line = u8::try_from(pin.gsi()).unwrap_or(u8::MAX);
        let mut space =
            ConfigSpace::new(identity).with_bar(MEMORY_BAR, Bar::Memory(MEMORY_LEN)).with_interrupt(line);
        if faces.has(Face::Legacy) {
            space = space.with_bar(LEGACY_BAR, Bar::Io(legacy_len(desc.config_len)));
        }
        let window =
            faces.has(Face::Modern).then(|| capabilities::add_modern(&mut space, queues, desc.config_len));
        let message_control = capabilities::add_msix(&mut space, queues.saturating_add(1));
        let needs_bus_master = faces == Faces::Modern;
        let interrupt = Arc::new(FunctionInterrupt::new(Arc::clone(&host), pin, queues, needs_bus_master));
        let mut core = Core::new(device, memory, Arc::<FunctionInterrupt>::clone(&interrupt))?;
        core.set_memory_access(!needs_bus_master);
        Ok(Arc::new(Self {
            name: desc.name,
            faces,
            host,
            engine: Engine::new(core)?,
            interrupt,
            config: Mutex::new(Config { space, message_control, window, page: None }),
            placed: Mutex::default(),
        }))
    }

    /// The base address registers that want a place.
    pub fn bars(&self) -> Vec<(u8, Bar)> {
        lock(&self.config).space.bars().collect()
    }

    /// Places a base address register, as firmware does.
    pub fn place_bar(&self, index: u8, base: u32) {
        lock(&self.config).space.place_bar(index, base);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = lock(&self.config);
        if let Some(window) = config.window
            && overlaps(offset, data.len(), window, window::DATA, window::END)
            && let Some((access, len)) = config.window_access(window)
        {
            let mut bytes = [0; 4];
            let bytes = bytes.get_mut(..len).unwrap_or_default();
            self.read_memory(access, bytes);
            let at = usize::from(window).saturating_add(window::DATA);
            config.space.set_bytes(at, bytes);
        }
        config.space.set_interrupt_status(self.interrupt.is_asserted());
        config.space.read(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = lock(&self.config);
        config.space.write(offset, data);
        let control = config.space.word(config.message_control.into());
        let command = config.space.command();
        if self.faces == Faces::Modern {
            // Once this returns, a function that is no bus master touches no memory.
            self.engine.core().set_memory_access(command & command::BUS_MASTER != 0);
        }
        self.interrupt.set_control(command, control);
        if config.window.is_some_and(|w| overlaps(offset, data.len(), w, window::BAR, window::END))
            && let Some((page, _)) = config.page.take()
        {
            // Reading the window acts, so from now on it has to be seen.
            let _ = page.show(None);
            self.interrupt.set_config_page(None);
        }
        config.publish();
        let access = config.window.filter(|w| overlaps(offset, data.len(), *w, window::DATA, window::END));
        let access = access.and_then(|window| {
            let (access, len) = config.window_access(window)?;
            let mut bytes = [0; 4];
            config.space.read(u64::from(window).saturating_add(window::DATA as u64), &mut bytes);
            Some((access, bytes, len))
        });
        drop(config);
        if touches_decode(offset, data.len()) {
            self.settle();
            if command & command::BUS_MASTER != 0 {
                // What was made available meanwhile is served now.
                self.engine.serve(|core| {
                    if core.is_live() {
                        core.serve_all()
                    }
                });
            }
        }
        if let Some((access, bytes, len)) = access {
            self.write_memory(access, bytes.get(..len).unwrap_or_default());
        }
    }

    /// Reads the memory BAR.
    fn read_memory(&self, offset: u64, data: &mut [u8]) {
        let Some((part, offset)) = Part::at(offset) else { return data.fill(0) };
        match part {
            Part::Common | Part::Device | Part::InterruptStatus | Part::Notify
                if !self.faces.has(Face::Modern) => {}
            Part::Common => {
                let mut core = self.engine.core();
                registers::read(COMMON, offset, data, |r| common::read(&mut core, &self.interrupt, r));
            }
            Part::Device => self.engine.core().config_read(offset, data),
            Part::InterruptStatus => {
                data.fill(0);
                if let (0, Some(first)) = (offset, data.first_mut()) {
                    *first = self.interrupt.take_status();
                }
            }
            Part::Notify => data.fill(0),
            Part::MsixTable => self.interrupt.read_table(offset, data),
            Part::MsixPending => self.interrupt.read_pending(offset, data),
        }
    }

    /// Writes the memory BAR.
    fn write_memory(&self, offset: u64, data: &[u8]) {
        let Some((part, offset)) = Part::at(offset) else { return };
        match part {
            Part::Common | Part::Device | Part::InterruptStatus | Part::Notify
                if !self.faces.has(Face::Modern) => {}
            Part::Common => {
                let Some(written) = registers::written(COMMON, offset, data) else { return };
                let mut core = self.engine.core();
                let meaning = common::write(&mut core, &self.interrupt, written);
                self.act(core, meaning);
            }
            Part::Device => {
                let mut core = self.engine.core();
                core.config_write(offset, data);
                self.act(core, Meaning::Config(offset));
            }
            Part::Notify => {
                let queue = u16::try_from(offset >> NOTIFY_SHIFT).unwrap_or(u16::MAX);
                self.engine.notify(queue);
            }
            Part::MsixTable => self.interrupt.write_table(offset, data),
            Part::InterruptStatus | Part::MsixPending => {}
        }
    }

    /// Reads the legacy interface. Device configuration follows the registers, wherever they end now.
    fn read_legacy(&self, offset: u64, data: &mut [u8]) {
        let mut core = self.engine.core();
        let registers = self.legacy_registers();
        let config_at = registers::len(LEGACY).saturating_add(registers::len(registers));
        data.fill(0);
        let split = usize::try_from(config_at.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let (low, high) = data.split_at_mut_checked(split).unwrap_or_default();
        registers::read(LEGACY.iter().chain(registers), offset, low, |r| {
            common::read(&mut core, &self.interrupt, r)
        });
        if !high.is_empty() {
            core.config_read(offset.saturating_sub(config_at), high);
        }
    }

    fn write_legacy(&self, offset: u64, data: &[u8]) {
        let mut core = self.engine.core();
        let registers = self.legacy_registers();
        let config_at = registers::len(LEGACY).saturating_add(registers::len(registers));
        let meaning = match offset.checked_sub(config_at) {
            Some(offset) => {
                core.config_write(offset, data);
                Meaning::Config(offset)
            }
            None => match registers::written(LEGACY.iter().chain(registers), offset, data) {
                Some(written) => common::write(&mut core, &self.interrupt, written),
                None => Meaning::Nothing,
            },
        };
        self.act(core, meaning);
    }

    /// The vector registers are there only while MSI-X is enabled (VIRTIO 1.3 §4.1.4.10).
    fn legacy_registers(&self) -> registers::Layout {
        if self.interrupt.is_msix_enabled() { LEGACY_VECTORS } else { &[] }
    }

    /// Does what a register access meant.
    fn act(&self, core: MutexGuard<'_, Core>, meaning: Meaning) {
        match meaning {
            Meaning::Nothing | Meaning::Config(_) => {}
            Meaning::Notify(queue) => {
                drop(core);
                self.engine.notify(queue);
            }
            Meaning::Status(added) => {
                let is_live = core.is_live();
                drop(core);
                if added & status::DRIVER_OK != 0 && is_live {
                    self.settle();
                    self.engine.serve(Core::serve_all);
                }
            }
            Meaning::Reset => {
                // Under the core's lock, so that nothing is sent once the status reads 0.
                self.interrupt.reset();
                drop(core);
                self.settle();
                self.engine.serve(|_| ());
            }
            Meaning::QueueReset(_) => drop(core),
        }
    }

    /// Tells the machine where the function is now: the doorbells that the device's thread listens to, only while the
    /// device is live, the vector table, and the registers that only take note of what is written.
    fn settle(&self) {
        let mut placed = lock(&self.placed);
        let windows = lock(&self.config).space.windows();
        let memory = windows.iter().find(|w| w.bar == MEMORY_BAR).map(|w| w.base);
        if placed.memory != memory {
            self.defer_writes(placed.memory, false);
            // In this order: KVM takes its time to show pages after writes have been deferred.
            self.interrupt.place_table(memory.map(|base| base.saturating_add(Part::MsixTable.offset())));
            self.defer_writes(memory, true);
            placed.memory = memory;
        }
        let bells = self.doorbells(&windows);
        let note = |(bell, queue): &(Bell, u16), result: io::Result<()>| {
            if let Err(error) = result {
                debug!("{}: doorbell {queue} at {bell:x?}: {error}", self.name);
            }
        };
        for old in placed.bells.iter().filter(|b| !bells.contains(b)) {
            if let Some(event) = self.engine.doorbell(old.1) {
                note(old, self.host.unbind_doorbell(old.0, event));
            }
        }
        for new in bells.iter().filter(|b| !placed.bells.contains(b)) {
            if let Some(event) = self.engine.doorbell(new.1) {
                note(new, self.host.bind_doorbell(new.0, event));
            }
        }
        placed.bells = bells;
    }

    /// Allows or forbids late writes to the registers whose effect waits for another access.
    fn defer_writes(&self, base: Option<u64>, is_on: bool) {
        let Some(base) = base.filter(|_| self.faces.has(Face::Modern)) else { return };
        for range in registers::notes() {
            let range = base.saturating_add(range.start)..base.saturating_add(range.end);
            if let Err(error) = self.host.defer_writes(range, is_on) {
                debug!("{}: writes are not deferred: {error}", self.name);
            }
        }
    }

    /// Where doorbells are to be bound at this moment.
    fn doorbells(&self, windows: &[Window]) -> Vec<(Bell, u16)> {
        let core = self.engine.core();
        if !core.is_live() {
            return Vec::new();
        }
        let queues = (0..core.queue_count()).filter(|q| self.engine.doorbell(*q).is_some());
        let bell = |window: &Window, queue: u16| match window.bar {
            MEMORY_BAR if self.faces.has(Face::Modern) => {
                let offset = u64::from(queue).saturating_mul(NOTIFY_MULTIPLIER.into());
                Some(Bell::Memory(window.base.saturating_add(Part::Notify.offset()).saturating_add(offset)))
            }
            LEGACY_BAR => Some(Bell::Port(u16::try_from(window.base).ok()?.checked_add(NOTIFY_PORT)?, queue)),
            _ => None,
        };
        let bells =
            queues.flat_map(|queue| windows.iter().filter_map(move |w| Some((bell(w, queue)?, queue))));
        bells.collect()
    }
}

/// Bytes of a page, the extended configuration space included.
const PAGE_LEN: usize = 4096;

/// Offset of the legacy doorbell, which all queues share.
const NOTIFY_PORT: u16 = 0x10;

/// Ports of the legacy interface: the registers, the vectors, and the device's configuration.
fn legacy_len(config_len: usize) -> u32 {
    let registers = registers::len(LEGACY).saturating_add(registers::len(LEGACY_VECTORS));
    let len = registers.saturating_add(u64::try_from(config_len).unwrap_or(u64::MAX));
    u32::try_from(len).unwrap_or(u32::MAX).checked_next_power_of_two().unwrap_or(256)
}

/// Whether an access touches bytes `start` to `end` of the capability at `capability`.
fn overlaps(offset: u64, len: usize, capability: u16, start: usize, end: usize) -> bool {
    let at = |within: usize| usize::from(capability).saturating_add(within) as u64;
    offset < at(end) && at(start) < offset.saturating_add(len as u64)
}

impl Config {
    /// Brings the page that the guest reads up to date, but for the byte that the interrupt writes.
    fn publish(&self) {
        let Some((page, _)) = &self.page else { return };
        let (before, rest) = self.space.bytes().split_at_checked(config::STATUS).unwrap_or_default();
        page.write(0, before);
        page.write((config::STATUS as u64).saturating_add(1), rest.get(1..).unwrap_or_default());
    }

    /// What the PCI_CFG window points at: an offset in the memory BAR and a length, if they make sense.
    fn window_access(&self, window: u16) -> Option<(u64, usize)> {
        let field = |at: usize| usize::from(window).saturating_add(at);
        let [bar, _] = self.space.word(field(window::BAR)).to_le_bytes();
        let offset = self.space.double_word(field(window::OFFSET));
        let len = self.space.double_word(field(window::LENGTH));
        let is_sound = bar == MEMORY_BAR
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && offset < MEMORY_LEN;
        is_sound.then_some((offset.into(), usize::try_from(len).ok()?))
    }
}

impl Vdev for VirtioFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn guest_configured(self: Arc<Self>) -> Result<(), devices::Error> {
        {
            let config = lock(&self.config);
            if let Some((_, at)) = config.page {
                for range in config.space.inert() {
                    let range = at.saturating_add(range.start)..at.saturating_add(range.end);
                    let _ = self.host.defer_writes(range, true);
                }
            }
        }
        self.engine.start();
        Ok(())
    }

    fn vread(&self, at: Access, data: &mut [u8]) {
        match at.region {
            Region::PciConfig => self.read_config(at.offset, data),
            Region::Bar(MEMORY_BAR) => self.read_memory(at.offset, data),
            Region::Bar(LEGACY_BAR) => self.read_legacy(at.offset, data),
            Region::Bar(_) | Region::Memory | Region::Port => {}
        }
    }

    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        match at.region {
            Region::PciConfig => self.write_config(at.offset, data),
            Region::Bar(MEMORY_BAR) => self.write_memory(at.offset, data),
            Region::Bar(LEGACY_BAR) => self.write_legacy(at.offset, data),
            Region::Bar(_) | Region::Memory | Region::Port => {}
        }
        Effect::None
    }

    fn status(&self) -> String {
        self.engine.core().describe()
    }

    fn terminate(&self) {
        self.engine.stop();
    }
}

impl Function for VirtioFunction {
    fn windows(&self) -> Vec<Window> {
        lock(&self.config).space.windows()
    }

    fn show_config(&self, page: Arc<dyn Pages>, at: u64) {
        let mut config = lock(&self.config);
        page.write(0, &[0; PAGE_LEN]);
        config.page = Some((Arc::clone(&page), at));
        config.publish();
        self.interrupt.set_config_page(Some(page));
    }

    fn set_multi_function(&self) {
        lock(&self.config).space.set_multi_function();
    }
}
