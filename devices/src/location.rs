//! Where the guest sees a vdev and which interrupt it raises: `loc` and `intr`.

use std::fmt;

use crate::size::{Number, SizeError};

/// Where the guest sees a vdev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Guest-physical addresses from here on: `mem:0xf8000000`.
    Memory(u64),
    /// I/O ports from here on: `io:0x3f8`.
    Port(u16),
    /// A function of PCI bus 0: `pci:0:5.0`.
    Pci {
        /// The device number, 0 to 31.
        device: u8,
        /// The function, 0 to 7.
        function: u8,
    },
}

/// What a location is when its user does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// `mem:`
    Memory,
    /// `io:`
    Port,
    /// `pci:`
    Pci,
}

impl Location {
    /// Reads `[mem:|io:|pci:]PLACE`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str, default: Space) -> Result<Self, &'static str> {
        let (space, place) = match text.split_once(':') {
            Some(("mem", place)) => (Space::Memory, place),
            Some(("io", place)) => (Space::Port, place),
            Some(("pci", place)) => (Space::Pci, place),
            // A virtio vdev's place without a prefix is on PCI, but a plain number cannot be.
            _ if default == Space::Pci && number(text).is_ok() => (Space::Memory, text),
            _ => (default, text),
        };
        match space {
            Space::Memory => number(place).map(Self::Memory),
            Space::Port => u16::try_from(number(place)?).map(Self::Port).map_err(|_| "ports end at 0xffff"),
            Space::Pci => pci(place),
        }
    }

    /// The kind of place.
    #[must_use]
    pub fn space(self) -> Space {
        match self {
            Self::Memory(_) => Space::Memory,
            Self::Port(_) => Space::Port,
            Self::Pci { .. } => Space::Pci,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(address) => write!(f, "mem:{address:#x}"),
            Self::Port(port) => write!(f, "io:{port:#x}"),
            Self::Pci { device, function } => write!(f, "pci:0:{device:x}.{function:x}"),
        }
    }
}

fn number(text: &str) -> Result<u64, &'static str> {
    let number = text.parse::<Number>().map_err(|error| match error {
        SizeError::Form => "a location is mem:ADDRESS, io:PORT or pci:BUS:DEVICE.FUNCTION",
        other => other.text(),
    })?;
    Ok(number.0)
}

/// `BUS:DEVICE[.FUNCTION]`, in hexadecimal as lspci prints it.
fn pci(place: &str) -> Result<Location, &'static str> {
    const FORM: &str = "a PCI vdev has loc=pci:BUS:DEVICE.FUNCTION, such as pci:0:5.0";
    if place.contains('/') {
        return Err("a device of the host is named so for pass-through, which mote has not");
    }
    let (bus, rest) = place.split_once(':').ok_or(FORM)?;
    let (device, function) = rest.split_once('.').unwrap_or((rest, "0"));
    let number = |digits: &str| u8::from_str_radix(digits, 16).map_err(|_| FORM);
    match (number(bus)?, number(device)?, number(function)?) {
        (0, device @ 0..32, function @ 0..8) => Ok(Location::Pci { device, function }),
        (0, ..) => Err("a bus has devices 0 to 1f with functions 0 to 7"),
        _ => Err("there is only bus 0"),
    }
}

/// The place that a vdev's user chose for it, as far as he did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// `loc`.
    pub location: Option<Location>,
    /// `intr`, as a global system interrupt number: the I/O APIC's input.
    pub interrupt: Option<u32>,
}

impl Placement {
    /// The first port, `default` where none was chosen. The machine has seen to it that a platform vdev has no other
    /// place than ports, unless its row says otherwise.
    #[must_use]
    pub fn port_or(&self, default: u16) -> u16 {
        match self.location {
            Some(Location::Port(port)) => port,
            _ => default,
        }
    }

    /// The interrupt, `default` where none was chosen.
    #[must_use]
    pub fn interrupt_or(&self, default: u32) -> u32 {
        self.interrupt.unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_wins_over_the_default() {
        assert_eq!(Location::parse("io:0x3f8", Space::Pci), Ok(Location::Port(0x3f8)));
        assert_eq!(Location::parse("0x3f8", Space::Port), Ok(Location::Port(0x3f8)));
        assert_eq!(Location::parse("mem:0xf8000000", Space::Pci), Ok(Location::Memory(0xf800_0000)));
        assert_eq!(Location::parse("0:5", Space::Pci), Ok(Location::Pci { device: 5, function: 0 }));
        assert_eq!(Location::parse("0xf8000000", Space::Pci), Ok(Location::Memory(0xf800_0000)));
    }

    #[test]
    fn a_pci_location_is_hexadecimal_as_lspci_prints_it() {
        let place = |text| Location::parse(text, Space::Pci);
        assert_eq!(place("pci:00:1f.7"), Ok(Location::Pci { device: 31, function: 7 }));
        assert_eq!(place("pci:0:a"), Ok(Location::Pci { device: 10, function: 0 }));
        for text in ["pci:1:0.0", "pci:0:20.0", "pci:0:1.8", "pci:0", "5.0", "pci:0:x.0", "pci:0:1.0.0"] {
            assert!(place(text).is_err(), "{text}");
        }
        assert!(place("pci:1af4/1005").is_err_and(|text| text.contains("pass-through")));
    }

    #[test]
    fn a_number_without_a_base_is_refused() {
        assert!(Location::parse("mem:4096", Space::Pci).is_err_and(|text| text.contains("0x")));
        assert!(Location::parse("io:0x10000", Space::Pci).is_err());
        assert!(Location::parse("elsewhere", Space::Port).is_err());
    }

    #[test]
    fn a_location_is_printed_as_it_is_read() {
        for text in ["mem:0xf8000000", "io:0x3f8", "pci:0:1f.7"] {
            assert_eq!(Location::parse(text, Space::Pci).map(|place| place.to_string()).as_deref(), Ok(text));
        }
    }
}
