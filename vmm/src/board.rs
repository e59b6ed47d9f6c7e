//! The board that vdevs are put into: PCI slots, BARs, interrupt lines, ports, and what the guest is told of them.

mod host;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use boot::acpi::{Legacy, Route};
use devices::chain::Memory;
use devices::core::Face;
use devices::interrupt;
use devices::location::Location;
use devices::mmio::{self, VirtioMmio};
use devices::options::Options;
use devices::vdev::{Access, Region, Vdev};
use devices::virtio::VirtioDevice;
use devices::{Built, Part, Platform};
use log::debug;
use pci::bridge::Bridge;
use pci::config::Bar;
use pci::function::Function;
use pci::host::Host;
use pci::line::{Line, Pin};
use pci::ports::{self, ConfigPorts};
use pci::root::Root;
use pci::virtio::{Faces, VirtioFunction};

pub(crate) use self::host::Unplugged;
use crate::bus::{Bus, Map, Space};
use crate::config::{self, PciConfig};
use crate::layout;
use crate::vm::Error;

/// The machine while vdevs are put in.
pub(crate) struct Board {
    host: Arc<dyn Host>,
    memory: Arc<Memory>,
    root: Root,
    map: Map,
    vdevs: Vec<Arc<dyn Vdev>>,
    placed: Vec<Placed>,
    lines: Vec<Arc<Line>>,
    /// Who has an input of the I/O APIC for itself.
    taken: BTreeMap<u32, String>,
    routes: Vec<Route>,
    parts: Vec<Vec<u8>>,
    kvm: Vec<Part>,
    legacy: Legacy,
    in_memory: u8,
    memory_free: Range<u64>,
    ports_free: Range<u64>,
}

/// The machine when all vdevs are in.
pub(crate) struct Assembled {
    /// Who answers where.
    pub(crate) bus: Arc<Bus>,
    /// Every vdev, in the order of their life's events.
    pub(crate) vdevs: Vec<Arc<dyn Vdev>>,
    /// Where the user's vdevs are.
    pub(crate) placed: Vec<Placed>,
    /// Where the interrupt pins of PCI lead.
    pub(crate) routes: Vec<Route>,
    /// The platform vdevs' AML.
    pub(crate) parts: Vec<Vec<u8>>,
    /// What KVM has to make.
    pub(crate) kvm: Vec<Part>,
    /// Which parts of the old PC there are.
    pub(crate) legacy: Legacy,
}

/// A vdev and where it was put.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) name: &'static str,
    pub(crate) kind: String,
    /// As `loc` has it; several for several ranges of ports.
    pub(crate) places: Vec<Location>,
    pub(crate) interrupt: Option<u32>,
}

impl Board {
    pub(crate) fn new(host: Arc<dyn Host>, memory: Arc<Memory>) -> Self {
        Self {
            memory,
            root: Root::default(),
            map: Map::default(),
            vdevs: Vec::new(),
            placed: Vec::new(),
            lines: layout::PCI_GSIS.map(|gsi| Line::new(Arc::clone(&host), gsi)).collect(),
            taken: BTreeMap::from([(layout::EVENT_GSI, "the power button".to_owned())]),
            routes: Vec::new(),
            parts: Vec::new(),
            kvm: Vec::new(),
            legacy: Legacy::default(),
            in_memory: 0,
            memory_free: layout::PCI_MEMORY,
            ports_free: layout::PCI_PORTS,
            host,
        }
    }

    /// Puts a part of the machine itself at its ports.
    pub(crate) fn attach_own(&mut self, ports: Range<u64>, vdev: Arc<dyn Vdev>) -> Result<(), Error> {
        self.map.attach(Space::Port, ports, Access { region: Region::Port, offset: 0 }, Arc::clone(&vdev))?;
        self.vdevs.push(vdev);
        Ok(())
    }

    /// Puts a vdev where its user wants it, or where there is a place for it.
    pub(crate) fn attach(&mut self, vdev: &config::Vdev, built: Built) -> Result<(), Error> {
        let (places, interrupt) = match (built, vdev.place.location) {
            (Built::Virtio(device), Some(Location::Memory(address))) => {
                self.attach_mmio(vdev, address, device)?
            }
            (Built::Virtio(device), _) => self.attach_pci(vdev, device)?,
            (Built::Platform(platform), _) => self.attach_platform(vdev, platform)?,
            (Built::Kvm(part), _) => self.attach_kvm(part)?,
        };
        let (name, kind) = (vdev.name, vdev.options.kind.clone());
        let at = places.iter().map(ToString::to_string);
        let line = interrupt.map(|gsi| format!("ioapic:{gsi}"));
        let assigned: Vec<String> = at.chain(line).collect();
        debug!("{name}: assigned {}", assigned.join(" "));
        self.placed.push(Placed { name, kind, places, interrupt });
        Ok(())
    }

    /// Gives an input of the I/O APIC to one device alone.
    fn take_line(&mut self, gsi: u32, name: &str) -> Result<(), Error> {
        let pci = self.routes.iter().any(|route| route.gsi == gsi).then(|| "PCI".to_owned());
        match self.taken.get(&gsi).cloned().or(pci) {
            Some(other) => Err(Error::Line { gsi, name: name.into(), other }),
            None => {
                self.taken.insert(gsi, name.to_owned());
                Ok(())
            }
        }
    }

    fn attach_platform(&mut self, vdev: &config::Vdev, platform: Platform) -> Result<Where, Error> {
        let Platform { vdev: device, ports, memory, interrupt, aml } = platform;
        if let Some(gsi) = interrupt {
            self.take_line(gsi, vdev.name)?;
        }
        let first = ports.first().map_or(0, |range| range.start);
        for range in &ports {
            let offset = u64::from(range.start).saturating_sub(first.into());
            let range = u64::from(range.start)..u64::from(range.end);
            let access = Access { region: Region::Port, offset };
            self.map.attach(Space::Port, range, access, Arc::clone(&device))?;
        }
        let first = memory.first().map_or(0, |range| range.start);
        for range in &memory {
            check_memory(vdev, range)?;
            let access = Access { region: Region::Memory, offset: range.start.saturating_sub(first) };
            self.map.attach(Space::Memory, range.clone(), access, Arc::clone(&device))?;
        }
        match vdev.options.kind.as_str() {
            "pckeyboard" => self.legacy.has_8042 = true,
            "mc146818" => self.legacy.has_cmos_clock = true,
            _ => {}
        }
        self.legacy.has_isa_devices = true;
        self.parts.extend(Some(aml).filter(|aml| !aml.is_empty()));
        self.vdevs.push(device);
        let ports = ports.iter().map(|range| Location::Port(range.start));
        let memory = memory.iter().map(|range| Location::Memory(range.start));
        Ok((ports.chain(memory).collect(), interrupt))
    }

    fn attach_kvm(&mut self, part: Part) -> Result<Where, Error> {
        let place = match part {
            Part::IoApic => (vec![Location::Memory(layout::IO_APIC.start)], None),
            Part::Timer => {
                self.take_line(0, "the timer")?;
                (vec![Location::Port(0x40), Location::Port(0x61)], Some(0))
            }
        };
        self.kvm.push(part);
        Ok(place)
    }

    /// Puts a virtio device behind registers in memory.
    fn attach_mmio(
        &mut self,
        vdev: &config::Vdev,
        address: u64,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Where, Error> {
        let range = address..address.saturating_add(mmio::LEN);
        check_memory(vdev, &range)?;
        let Some(gsi) = vdev.place.interrupt else {
            let problem = "a vdev in memory needs an interrupt: intr ioapic:LINE";
            return Err(Error::Vdev(devices::Error::Options(vdev.options.conflict("loc", problem))));
        };
        self.take_line(gsi, vdev.name)?;
        let face = if vdev.options.has("legacy") { Face::Legacy } else { Face::Modern };
        let device = VirtioMmio::new(device, face, Arc::clone(&self.memory), self.line(gsi))?;
        let first = Access { region: Region::Memory, offset: 0 };
        self.map.attach(Space::Memory, range, first, Arc::<VirtioMmio>::clone(&device))?;
        self.parts.push(mmio::describe(self.in_memory, u32::try_from(address).unwrap_or(u32::MAX), gsi));
        self.in_memory = self.in_memory.saturating_add(1);
        self.vdevs.push(device);
        Ok((vec![Location::Memory(address)], Some(gsi)))
    }

    /// Puts a virtio device behind a PCI function, with BARs and interrupt line.
    fn attach_pci(&mut self, vdev: &config::Vdev, device: Box<dyn VirtioDevice>) -> Result<Where, Error> {
        let name = || vdev.name.to_owned();
        let address = match vdev.place.location {
            Some(Location::Pci { device, function }) => device << 3 | function,
            _ => self.root.free_slot().ok_or_else(|| Error::Slots { vdev: name() })? << 3,
        };
        let (slot, number) = (address >> 3, address & 7);
        let pin = self.pin(vdev, slot)?;
        let gsi = pin.gsi();
        let function = VirtioFunction::new(
            device,
            faces(&vdev.options)?,
            Arc::clone(&self.memory),
            Arc::clone(&self.host),
            pin,
        )?;
        for (index, bar) in function.bars() {
            let (free, len) = match bar {
                Bar::Memory(len) => (&mut self.memory_free, len),
                Bar::Io(len) => (&mut self.ports_free, len),
            };
            let base = take(free, len.into()).ok_or_else(|| Error::Window { vdev: name() })?;
            function.place_bar(index, base);
        }
        if !self.root.attach(address, Arc::clone(&function) as Arc<dyn Function>) {
            return Err(Error::Taken { vdev: name(), slot, number });
        }
        self.vdevs.push(function);
        Ok((vec![Location::Pci { device: slot, function: number }], Some(gsi)))
    }

    /// The interrupt pin of a function. All functions use INTA, so a slot has one line.
    fn pin(&mut self, vdev: &config::Vdev, slot: u8) -> Result<Pin, Error> {
        let bad = |problem| Error::Vdev(devices::Error::Options(vdev.options.bad_value("intr", problem)));
        let known = self.routes.iter().find(|route| route.slot == slot).map(|route| route.gsi);
        let gsi = match (vdev.place.interrupt, known) {
            (Some(gsi), Some(known)) if gsi != known => {
                return Err(bad("another function of the same slot has another line, and a slot has one"));
            }
            (Some(gsi), _) => gsi,
            (None, Some(known)) => known,
            (None, None) => layout::PCI_GSIS.start + u32::from(slot) % self.lines.len() as u32,
        };
        if let Some(other) = self.taken.get(&gsi) {
            return Err(Error::Line { gsi, name: vdev.name.to_owned(), other: other.clone() });
        }
        let line = self.lines.iter().find(|line| line.gsi() == gsi);
        let line = line.ok_or_else(|| bad("PCI's lines are ioapic:16 to ioapic:23"))?;
        if known.is_none() {
            self.routes.push(Route { slot, pin: 0, gsi });
        }
        Ok(Pin::new(Arc::clone(line)))
    }

    /// Input `gsi` of the I/O APIC, for a device that drives no other.
    pub(crate) fn line(&self, gsi: u32) -> Arc<dyn interrupt::Line> {
        host::line(&self.host, gsi)
    }

    /// Gives the PCI root its windows and the guest its way to configuration space, and closes the map.
    pub(crate) fn finish(self, pci_config: PciConfig) -> Result<Assembled, Error> {
        let Self { host, mut root, mut map, mut vdevs, placed, routes, parts, kvm, legacy, .. } = self;
        // Guests that use the ports look for a bridge first; with ECAM and ACPI nobody does. Slot 0 was kept free.
        if pci_config.has_ports() && !root.attach(0, Arc::new(Bridge::default())) {
            return Err(Error::Taken { vdev: "the host bridge".into(), slot: 0, number: 0 });
        }
        root.check().map_err(|slot| Error::NoFunction0 { slot })?;
        map.count_in(root.vacant());
        let root: Arc<Root> = Arc::new(root);
        let mut windows = vec![
            (Space::Memory, layout::PCI_MEMORY, absolute(Region::Memory, &layout::PCI_MEMORY)),
            (Space::Port, layout::PCI_PORTS, absolute(Region::Port, &layout::PCI_PORTS)),
        ];
        if pci_config.has_ecam() {
            windows.push((Space::Memory, layout::ECAM, Access { region: Region::PciConfig, offset: 0 }));
            root.show_config(&*host, layout::ECAM.start);
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
        Ok(Assembled { bus: Arc::new(map.freeze()), vdevs, placed, routes, parts, kvm, legacy })
    }
}

/// Devices in memory are in the hole between low and high RAM, below the interrupt chips.
fn check_memory(vdev: &config::Vdev, range: &Range<u64>) -> Result<(), Error> {
    let bad = |problem| Err(Error::Vdev(devices::Error::Options(vdev.options.bad_value("loc", problem))));
    if !range.start.is_multiple_of(layout::PAGE) {
        return bad("a vdev in memory begins on a page, at a multiple of 0x1000");
    }
    if range.start < layout::HOLE.start || range.end > layout::IO_APIC.start {
        return bad("vdevs in memory are from 0xf8000000 on, below the I/O APIC at 0xfec00000");
    }
    Ok(())
}

/// Where a vdev is, and its interrupt.
type Where = (Vec<Location>, Option<u32>);

/// Which virtio interfaces the options ask for.
fn faces(options: &Options) -> Result<Faces, Error> {
    match (options.has("legacy"), options.has("transitional")) {
        (false, false) => Ok(Faces::Modern),
        (true, false) => Ok(Faces::Legacy),
        (false, true) => Ok(Faces::Transitional),
        (true, true) => {
            let error = options.conflict("transitional", "a vdev is legacy or transitional, not both");
            Err(devices::Error::from(error).into())
        }
    }
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

    #[test]
    fn a_vdev_is_not_both_legacy_and_transitional() {
        let options = |text: &str| text.parse::<Options>().unwrap();
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
