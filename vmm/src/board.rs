//! The board that vdevs are put into: PCI slots, BARs, interrupt lines, ports, and what the guest is told of them.

use std::ops::Range;
use std::sync::Arc;

use boot::acpi::Route;
use devices::chain::Memory;
use devices::options::{OptionError, Options};
use devices::vdev::{Access, Region, Vdev};
use devices::virtio::VirtioDevice;
use log::debug;
use pci::bridge::Bridge;
use pci::config::Bar;
use pci::function::Function;
use pci::host::Host;
use pci::line::{Line, Pin};
use pci::ports::{self, ConfigPorts};
use pci::root::{Address, Root};
use pci::virtio::{Faces, VirtioFunction};

use crate::bus::{Bus, Map, Space};
use crate::config::PciConfig;
use crate::kvm::Vm;
use crate::layout;
use crate::memory::Ram;
use crate::vm::Error;

/// The machine while vdevs are put in.
pub(crate) struct Board<'a> {
    vm: &'a Vm,
    memory: Arc<Memory>,
    root: Root,
    map: Map,
    vdevs: Vec<Arc<dyn Vdev>>,
    lines: Vec<Arc<Line>>,
    routes: Vec<Route>,
    parts: Vec<Vec<u8>>,
    memory_free: Range<u64>,
    ports_free: Range<u64>,
}

/// The machine when all vdevs are in.
pub(crate) struct Assembled {
    /// Who answers where.
    pub(crate) bus: Arc<Bus>,
    /// Every vdev, in the order of their life's events.
    pub(crate) vdevs: Vec<Arc<dyn Vdev>>,
    /// Where the interrupt pins of PCI lead.
    pub(crate) routes: Vec<Route>,
    /// The platform vdevs' AML.
    pub(crate) parts: Vec<Vec<u8>>,
}

impl<'a> Board<'a> {
    pub(crate) fn new(vm: &'a Vm, ram: &Ram) -> Self {
        let host: Arc<dyn Host> = Arc::new(vm.clone());
        Self {
            vm,
            memory: Arc::new(ram.guest().clone()),
            root: Root::default(),
            map: Map::default(),
            vdevs: Vec::new(),
            lines: layout::PCI_GSIS.map(|gsi| Line::new(Arc::clone(&host), gsi)).collect(),
            routes: Vec::new(),
            parts: Vec::new(),
            memory_free: layout::PCI_MEMORY,
            ports_free: layout::PCI_PORTS,
        }
    }

    /// Puts a vdev at fixed ports, with its description for the guest.
    pub(crate) fn attach_platform(
        &mut self,
        ports: Range<u64>,
        vdev: Arc<dyn Vdev>,
        aml: Vec<u8>,
    ) -> Result<(), Error> {
        let first = Access { region: Region::Port, offset: 0 };
        self.map.attach(Space::Port, ports, first, Arc::clone(&vdev))?;
        self.parts.extend(Some(aml).filter(|aml| !aml.is_empty()));
        self.vdevs.push(vdev);
        Ok(())
    }

    /// Puts a virtio device behind a PCI function at its `loc` or in the next free slot, with BARs and interrupt line.
    pub(crate) fn attach_virtio(
        &mut self,
        options: &Options,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), Error> {
        let vdev = options.kind.clone();
        let address = match options.value("loc") {
            Some(text) => location(options, text)?,
            None => self.root.free_slot().ok_or_else(|| Error::Slots { vdev: vdev.clone() })? << 3,
        };
        let (slot, number) = (address >> 3, address & 7);
        // All functions use INTA, so a slot has one line.
        let line = &self.lines[usize::from(slot) % self.lines.len()];
        let pin = Pin::new(Arc::clone(line), ((slot / 8) << 3 | number).into());
        if !self.routes.iter().any(|route| route.slot == slot) {
            self.routes.push(Route { slot, pin: 0, gsi: pin.gsi() });
        }
        debug!("{vdev}: PCI function 00:{slot:02x}.{number}, interrupt line {}", pin.gsi());
        let host: Arc<dyn Host> = Arc::new(self.vm.clone());
        let function = VirtioFunction::new(device, faces(options)?, Arc::clone(&self.memory), host, pin)?;
        for (index, bar) in function.bars() {
            let (free, len) = match bar {
                Bar::Memory(len) => (&mut self.memory_free, len),
                Bar::Io(len) => (&mut self.ports_free, len),
            };
            let base = take(free, len.into()).ok_or_else(|| Error::Window { vdev: vdev.clone() })?;
            function.place_bar(index, base);
        }
        if !self.root.attach(address, Arc::clone(&function) as Arc<dyn Function>) {
            return Err(Error::Taken { vdev, slot, number });
        }
        self.vdevs.push(function);
        Ok(())
    }

    /// Gives the PCI root its windows and the guest its way to configuration space, and closes the map.
    pub(crate) fn finish(self, pci_config: PciConfig) -> Result<Assembled, Error> {
        let Self { mut root, mut map, mut vdevs, routes, parts, .. } = self;
        // Guests that use the ports look for a bridge first; with ECAM and ACPI nobody does. Slot 0 was kept free.
        if pci_config.has_ports() && !root.attach(0, Arc::new(Bridge::default())) {
            return Err(Error::Taken { vdev: "the host bridge".into(), slot: 0, number: 0 });
        }
        root.check().map_err(|slot| Error::NoFunction0 { slot })?;
        let root: Arc<Root> = Arc::new(root);
        let mut windows = vec![
            (Space::Memory, layout::PCI_MEMORY, absolute(Region::Memory, &layout::PCI_MEMORY)),
            (Space::Port, layout::PCI_PORTS, absolute(Region::Port, &layout::PCI_PORTS)),
        ];
        if pci_config.has_ecam() {
            windows.push((Space::Memory, layout::ECAM, Access { region: Region::PciConfig, offset: 0 }));
            root.show_config(self.vm, layout::ECAM.start);
        }
        for (space, range, first) in windows {
            map.attach(space, range, first, Arc::<Root>::clone(&root))?;
        }
        if pci_config.has_ports() {
            let range = u64::from(ports::FIRST)..u64::from(ports::FIRST + ports::COUNT);
            let config_ports = Arc::new(ConfigPorts::new(Arc::clone(&root)));
            map.attach(Space::Port, range, Access { region: Region::Port, offset: 0 }, config_ports)?;
        }
        vdevs.push(root);
        Ok(Assembled { bus: Arc::new(map.freeze()), vdevs, routes, parts })
    }
}

/// Which virtio interfaces the options ask for.
fn faces(options: &Options) -> Result<Faces, Error> {
    match (options.has("legacy"), options.has("transitional")) {
        (false, false) => Ok(Faces::Modern),
        (true, false) => Ok(Faces::Legacy),
        (false, true) => Ok(Faces::Transitional),
        (true, true) => {
            Err(bad_value(options, "transitional", "", "a vdev is legacy or transitional, not both"))
        }
    }
}

/// The place on the bus that `pci:BUS:DEVICE[.FUNCTION]` names, in hexadecimal as lspci has it.
fn location(options: &Options, text: &str) -> Result<Address, Error> {
    let bad = |problem| bad_value(options, "loc", text, problem);
    let form = || bad("a PCI vdev has loc=pci:BUS:DEVICE.FUNCTION, such as pci:0:5.0");
    let (bus, rest) = text.strip_prefix("pci:").and_then(|place| place.split_once(':')).ok_or_else(form)?;
    let (device, function) = rest.split_once('.').unwrap_or((rest, "0"));
    let number = |digits: &str| u8::from_str_radix(digits, 16).map_err(|_| form());
    match (number(bus)?, number(device)?, number(function)?) {
        (0, device @ 0..32, function @ 0..8) => Ok(device << 3 | function),
        (0, ..) => Err(bad("a bus has devices 0 to 1f with functions 0 to 7")),
        _ => Err(bad("there is only bus 0")),
    }
}

fn bad_value(options: &Options, option: &str, value: &str, problem: &'static str) -> Error {
    let vdev = options.kind.clone();
    devices::Error::from(OptionError::BadValue { vdev, option: option.into(), value: value.into(), problem })
        .into()
}

/// The root decodes addresses, so its offsets are addresses.
fn absolute(region: Region, range: &Range<u64>) -> Access {
    Access { region, offset: range.start }
}

/// Takes `len` bytes, a power of two, at a multiple of their length.
fn take(free: &mut Range<u64>, len: u64) -> Option<u32> {
    let base = free.start.checked_next_multiple_of(len)?;
    let end = base.checked_add(len).filter(|end| *end <= free.end)?;
    free.start = end;
    u32::try_from(base).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        text.parse().unwrap()
    }

    #[test]
    fn a_location_is_hexadecimal_as_lspci_prints_it() {
        let place = |text: &str| location(&options("virtio-entropy"), text);
        assert_eq!(place("pci:0:5.0").unwrap(), 5 << 3);
        assert_eq!(place("pci:00:1f.7").unwrap(), 0xff);
        assert_eq!(place("pci:0:a").unwrap(), 10 << 3);
        for text in
            ["pci:1:0.0", "pci:0:20.0", "pci:0:1.8", "pci:0", "5.0", "mem:0x1000", "pci:0:x.0", "pci:0:1.0.0"]
        {
            assert!(place(text).unwrap_err().to_string().contains(text), "{text}");
        }
    }

    #[test]
    fn a_vdev_is_not_both_legacy_and_transitional() {
        assert_eq!(faces(&options("virtio-entropy")).unwrap(), Faces::Modern);
        assert_eq!(faces(&options("virtio-entropy,legacy")).unwrap(), Faces::Legacy);
        assert_eq!(faces(&options("virtio-console,transitional")).unwrap(), Faces::Transitional);
        assert!(faces(&options("virtio-console,transitional,legacy")).is_err());
    }

    #[test]
    fn bars_are_aligned_to_their_size_and_stay_in_their_window() {
        let mut free = 0x1004..0x9000;
        assert_eq!(take(&mut free, 0x40), Some(0x1040));
        assert_eq!(take(&mut free, 0x4000), Some(0x4000));
        assert_eq!(take(&mut free, 0x4000), None);
        assert_eq!(take(&mut free, 0x1000), Some(0x8000));
        assert_eq!(take(&mut free, 0x1000), None);
    }
}
