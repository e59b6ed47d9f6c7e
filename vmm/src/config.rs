//! What the user asked for, as one typed structure, whichever way it was said.

use std::path::PathBuf;
use std::str::FromStr;

use devices::options::Options;
use thiserror::Error;

/// A guest as its user described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// The user's words of the kernel's command line.
    pub command_line: String,
    /// Whether mote adds words of its own that make the vdevs useful.
    pub has_default_words: bool,
    /// RAM.
    pub memory: Size,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The vdevs, in the order that they are placed.
    pub vdevs: Vec<Options>,
    /// How the guest reaches PCI configuration space.
    pub pci_config: PciConfig,
}

/// How the guest reaches PCI configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PciConfig {
    /// Memory-mapped, as PCI Express has it: an access costs one exit at most.
    #[default]
    Ecam,
    /// Ports 0xcf8 and 0xcfc, at two exits an access.
    Ports,
    /// Both; a guest that has the choice may prefer the ports, as Linux does.
    Both,
}

impl PciConfig {
    /// Whether there is ECAM.
    #[must_use]
    pub fn has_ecam(self) -> bool {
        self != Self::Ports
    }

    /// Whether there are the ports.
    #[must_use]
    pub fn has_ports(self) -> bool {
        self != Self::Ecam
    }
}

impl FromStr for PciConfig {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "ecam" => Ok(Self::Ecam),
            "ports" => Ok(Self::Ports),
            "both" => Ok(Self::Both),
            _ => Err("this is none of ecam, ports and both"),
        }
    }
}

/// The vdevs of a guest whose user names none.
#[must_use]
pub fn default_vdevs() -> Vec<Options> {
    ["virtio-entropy", "virtio-console"].iter().filter_map(|text| text.parse().ok()).collect()
}

impl Config {
    /// The words that mote puts before the user's on the kernel's command line: the consoles that the vdevs make, and
    /// what spares the kernel a search for hardware that is not there.
    #[must_use]
    pub fn default_words(&self) -> Vec<&'static str> {
        if !self.has_default_words {
            return Vec::new();
        }
        let has = |kind: &str| self.vdevs.iter().any(|vdev| vdev.kind == kind);
        let mut words = Vec::new();
        // The last console is the one that init gets.
        match has("ser8250") {
            true => words.push("console=ttyS0"),
            false => words.push("8250.nr_uarts=0"),
        }
        if has("virtio-console") {
            words.push("console=hvc0");
        }
        if !self.pci_config.has_ports() {
            // The early quirks go by ports 0xcf8 and 0xcfc.
            words.push("pci=noearly");
        }
        words
    }
}

/// A number of bytes, as `512M` or `0x20000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// What is not a size.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    /// No number with one of the suffixes.
    #[error("a size is a number and a suffix K, M, G or T, such as 256M")]
    Form,
    /// More than 64 bits.
    #[error("this is more than can be addressed")]
    Overflow,
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let (digits, shift) = match text.chars().last() {
            Some('k' | 'K') => (&text[..text.len() - 1], 10),
            Some('m' | 'M') => (&text[..text.len() - 1], 20),
            Some('g' | 'G') => (&text[..text.len() - 1], 30),
            Some('t' | 'T') => (&text[..text.len() - 1], 40),
            _ => (text, 0),
        };
        let (digits, radix) = match digits.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (digits, 10),
        };
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return Err(SizeError::Form);
        }
        let number = u64::from_str_radix(digits, radix).map_err(|_| SizeError::Overflow)?;
        number.checked_mul(1 << shift).map(Self).ok_or(SizeError::Overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vdevs: &[&str]) -> Config {
        Config {
            kernel: "vmlinuz".into(),
            initrd: None,
            command_line: String::new(),
            has_default_words: true,
            memory: Size(256 << 20),
            cpus: 1,
            vdevs: vdevs.iter().map(|v| v.parse().unwrap()).collect(),
            pci_config: PciConfig::default(),
        }
    }

    #[test]
    fn sizes_have_suffixes_of_either_case() {
        for (text, bytes) in
            [("256M", 256 << 20), ("5g", 5 << 30), ("64k", 64 << 10), ("4096", 4096), ("0x10000000", 1 << 28)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "1.5G", "-1", "+1", "12 M", "0x", "M256", "1MB", "ä"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Form), "{text}");
        }
        for text in ["99999999999999999999", "99999999T"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Overflow), "{text}");
        }
    }

    #[test]
    fn the_last_console_is_the_virtio_console() {
        let words = config(&["ser8250", "virtio-console"]).default_words();
        let consoles: Vec<_> = words.into_iter().filter(|w| w.starts_with("console=")).collect();
        assert_eq!(consoles, ["console=ttyS0", "console=hvc0"]);
    }

    #[test]
    fn no_word_is_added_where_the_user_wants_none() {
        let mut config = config(&["virtio-console"]);
        config.has_default_words = false;
        assert!(config.default_words().is_empty());
    }
}
