//! What the user asked for, as one typed structure, whichever way it was said: by flags, by a configuration's words, or
//! by both.

mod draft;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use devices::escape::EscapeKey;
use devices::location::Placement;
use devices::options::Options;
pub use devices::size::{Size, SizeError};

pub use self::draft::{Draft, Flags};
use crate::areas::MemoryMap;
use crate::layout::HOLE;
use crate::log::Rule;
use crate::qvmconf::Origin;

/// A guest as its user described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the VM is called; files about it are named so.
    pub name: Option<String>,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub initrd: Option<PathBuf>,
    /// Further files.
    pub loads: Vec<Load>,
    /// The user's words of the kernel's command line.
    pub command_line: String,
    /// Whether mote adds words of its own that make the vdevs useful.
    pub has_default_words: bool,
    /// RAM, and what else the user said of the memory map.
    pub memory: MemoryMap,
    /// The vCPUs.
    pub cpus: Vec<Cpu>,
    /// The vdevs, in the order that they are placed.
    pub vdevs: Vec<Vdev>,
    /// How the guest reaches PCI configuration space.
    pub pci_config: PciConfig,
    /// The key that leads to mote's menu on the guest's console.
    pub escape: EscapeKey,
    /// Where mote's messages go; nothing is what qvm does by default.
    pub loggers: Vec<Rule>,
    /// What happens where the guest does what mote cannot.
    pub unsupported: Unsupported,
    /// Where dumps of the guest go.
    pub dump: DumpTo,
    /// How long a guest has from the power button to the power cut; `None` is for ever.
    pub power_button_wait: Option<Duration>,
    /// Where a file of facts about the run goes.
    pub state_dir: Option<PathBuf>,
    /// The directory for unpacked kernels.
    pub kernel_cache: Option<PathBuf>,
    /// Whether the guest is not to be started.
    pub is_dry: bool,
}

/// Where unpacked kernels are kept: as the user says, of which `none` means nowhere, or where such things go
/// (XDG Base Directory Specification).
fn kernel_cache(said: Option<PathBuf>) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match said {
        Some(path) if path.as_os_str() == "none" => None,
        Some(path) => Some(path),
        None => variable("XDG_CACHE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .map(|cache| cache.join("mote")),
    }
}

/// Linux's word for an early console on a serial port.
fn early_word(port: u16) -> Option<&'static str> {
    match port {
        0x3f8 => Some("earlycon=uart8250,io,0x3f8"),
        0x2f8 => Some("earlycon=uart8250,io,0x2f8"),
        0x3e8 => Some("earlycon=uart8250,io,0x3e8"),
        0x2e8 => Some("earlycon=uart8250,io,0x2e8"),
        _ => None,
    }
}

/// A file to copy into guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// What it is.
    pub kind: LoadKind,
    /// Where it goes, if that is the user's to say.
    pub address: Option<u64>,
    /// The file.
    pub path: PathBuf,
    /// Where it was asked for.
    pub origin: Origin,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadKind {
    /// What is started.
    Kernel,
    /// The initial ramdisk.
    Initrd,
    /// Bytes at an address.
    Data,
    /// An ACPI table.
    Acpi,
}

/// A vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// How the host schedules its thread; `None` as it does mote itself.
    pub sched: Option<Sched>,
    /// The host's processors that it may run on; none are all.
    pub runmask: Vec<u16>,
    /// Where they were named.
    pub runmask_origin: Option<Origin>,
}

/// How the host schedules a thread (sched(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sched {
    /// SCHED_OTHER.
    Other {
        /// From -20, the most, to 19.
        nice: i32,
    },
    /// SCHED_RR of this priority.
    RoundRobin(u8),
    /// SCHED_FIFO of this priority.
    Fifo(u8),
}

impl fmt::Display for Sched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other { nice } => write!(f, "SCHED_OTHER with nice {nice}"),
            Self::RoundRobin(priority) => write!(f, "SCHED_RR {priority}"),
            Self::Fifo(priority) => write!(f, "SCHED_FIFO {priority}"),
        }
    }
}

/// A vdev.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdev {
    /// Its type and options.
    pub options: Options,
    /// What messages call it: unique.
    pub name: &'static str,
    /// Where its user wants it.
    pub place: Placement,
    /// Where its messages go.
    pub loggers: Vec<Rule>,
    /// Where it was asked for; `None` by a flag, or by nobody.
    pub origin: Option<Origin>,
    /// Where each of its options was given.
    pub said: Vec<Option<Origin>>,
}

impl Vdev {
    /// A vdev as it was asked for; [`Draft::finish`] finds out the rest.
    #[must_use]
    pub fn new(options: Options, origin: Option<Origin>) -> Self {
        let said = vec![None; options.options.len()];
        Self { options, name: "", place: Placement::default(), loggers: Vec::new(), origin, said }
    }

    /// Where the last option of that name was given, or the vdev itself.
    #[must_use]
    pub fn origin_of(&self, option: Option<&str>) -> Option<Origin> {
        let names = self.options.options.iter().map(|(name, _)| name.as_str());
        let given = names.zip(&self.said).rfind(|(name, _)| Some(*name) == option);
        given.and_then(|(_, origin)| origin.clone()).or_else(|| self.origin.clone())
    }
}

/// What happens where the guest does what mote cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// An access to where nothing is: all ones (`Ignore`), or the end of the run (`Abort`).
    pub reference: Policy,
    /// An access to a model-specific register that KVM does not know: a fault in the guest (`Fail`), zero (`Ignore`),
    /// or the end of the run (`Abort`).
    pub register: Policy,
}

impl Default for Unsupported {
    fn default() -> Self {
        Self { reference: Policy::Ignore, register: Policy::Fail }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// End the run.
    Abort,
    /// Let the guest see a fault.
    Fail,
    /// Let it read something and go on.
    Ignore,
}

/// Where dumps of the guest go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpTo {
    /// Files in a directory.
    Directory(PathBuf),
    /// The standard input of a command, which a shell runs.
    Command(String),
}

impl Default for DumpTo {
    fn default() -> Self {
        Self::Directory(".".into())
    }
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

impl Config {
    /// The words that mote puts before the user's on the kernel's command line: the consoles that the vdevs make, and
    /// what spares the kernel work that has no use here.
    #[must_use]
    pub fn default_words(&self) -> Vec<&'static str> {
        if !self.has_default_words {
            return Vec::new();
        }
        let has = |kind: &str| self.vdevs.iter().any(|vdev| vdev.options.kind == kind);
        let mut words = Vec::new();
        // The last console is the one that init gets.
        let serial = |vdev: &&Vdev| vdev.options.kind == "ser8250";
        let (early, late): (Vec<_>, Vec<_>) =
            self.vdevs.iter().filter(serial).partition(|vdev| vdev.options.has("early"));
        // Linux gives an early console up for the first real one, and does not print again what was printed there.
        words.extend(early.iter().filter_map(|vdev| early_word(vdev.place.port_or(0x3f8))));
        match late.is_empty() {
            false => words.push("console=ttyS0"),
            true => words.push("8250.nr_uarts=0"),
        }
        if has("virtio-console") {
            words.push("console=hvc0");
        }
        if !self.pci_config.has_ports() {
            // The early quirks go by ports 0xcf8 and 0xcfc.
            words.push("pci=noearly");
        }
        if self.memory.ram().last().is_some_and(|range| range.end > HOLE.end) {
            // Memory for devices that do not reach above 4 GiB, 64 MiB of it. Ours do.
            words.push("swiotlb=noforce");
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vdevs: &[&str]) -> Config {
        let mut draft = Draft::default();
        let vdevs = vdevs.iter().map(|text| text.parse().unwrap()).collect();
        draft.apply(Flags { kernel: Some("vmlinuz".into()), vdevs, ..Flags::default() }).unwrap();
        draft.finish().unwrap()
    }

    #[test]
    fn the_last_console_is_the_virtio_console() {
        let words = config(&["ser8250", "virtio-console"]).default_words();
        let consoles: Vec<_> = words.into_iter().filter(|w| w.starts_with("console=")).collect();
        assert_eq!(consoles, ["console=ttyS0", "console=hvc0"]);
    }

    #[test]
    fn bounce_buffers_are_left_out_where_memory_is_above_4_gib() {
        let is_without = |memory: &str| {
            let mut draft = Draft::default();
            let memory = Some(memory.parse().unwrap());
            draft.apply(Flags { kernel: Some("vmlinuz".into()), memory, ..Flags::default() }).unwrap();
            draft.finish().unwrap().default_words().contains(&"swiotlb=noforce")
        };
        assert!(!is_without("3G"));
        assert!(is_without("4G"));
    }

    #[test]
    fn no_word_is_added_where_the_user_wants_none() {
        let mut config = config(&["virtio-console"]);
        config.has_default_words = false;
        assert!(config.default_words().is_empty());
    }
}
