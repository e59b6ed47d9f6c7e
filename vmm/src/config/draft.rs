//! Where flags and a configuration's words meet, before it is known that they make sense together.

use std::path::PathBuf;
use std::time::Duration;

use devices::escape::EscapeKey;
use devices::location::{Location, Placement, Space};
use devices::options::Options;

use super::{Config, Cpu, DumpTo, Load, LoadKind, PciConfig, Size, Unsupported, Vdev};
use crate::areas::{Areas, MemoryMap};
use crate::layout::{IO_APIC_PINS, MIB};
use crate::log::Rule;
use crate::qvmconf::{Error, Origin, Problem};

/// RAM where nobody says how much.
const USUAL_MEMORY: u64 = 256 * MIB;
/// From the power button to the power cut where nobody says how long.
const USUAL_WAIT: Duration = Duration::from_secs(10);

/// What has been said so far.
#[derive(Debug, Default)]
pub struct Draft {
    pub(crate) system: Option<String>,
    pub(crate) areas: Areas,
    pub(crate) command_line: Option<String>,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) vdevs: Vec<Vdev>,
    pub(crate) loggers: Vec<Rule>,
    pub(crate) unsupported: Unsupported,
    pub(crate) dump: Option<DumpTo>,
    pub(crate) pci_config: Option<PciConfig>,
    pub(crate) escape: Option<EscapeKey>,
    pub(crate) has_early_console: bool,
    pub(crate) power_button_wait: Option<Option<Duration>>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) kernel_cache: Option<PathBuf>,
    pub(crate) has_no_words: bool,
    pub(crate) has_no_vdevs: bool,
    pub(crate) is_dry: bool,
    /// The user wants to know the variables.
    pub(crate) lists_variables: bool,
    /// Something has been said.
    pub(crate) is_begun: bool,
    loads: Vec<Load>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    memory: Option<MemoryMap>,
}

/// What the command line's flags say; they win over words.
#[derive(Debug, Default)]
pub struct Flags {
    /// `--kernel`
    pub kernel: Option<PathBuf>,
    /// `--initrd`
    pub initrd: Option<PathBuf>,
    /// `--cmdline`
    pub command_line: Option<String>,
    /// `--memory`
    pub memory: Option<Size>,
    /// `--cpus`
    pub cpus: Option<u32>,
    /// `--vdev`
    pub vdevs: Vec<Options>,
    /// `--no-vdevs`
    pub has_no_vdevs: bool,
}

impl Draft {
    /// Notes a file to load.
    pub(crate) fn load(
        &mut self,
        kind: LoadKind,
        address: Option<u64>,
        path: &str,
        origin: &Origin,
    ) -> Result<(), Problem> {
        let (place, what) = match kind {
            LoadKind::Kernel => (&mut self.kernel, "kernel"),
            LoadKind::Initrd => (&mut self.initrd, "initrd"),
            LoadKind::Data | LoadKind::Acpi => {
                self.loads.push(Load { kind, address, path: path.into(), origin: origin.clone() });
                return Ok(());
            }
        };
        if let Some(first) = place {
            return Err(Problem::Twice { what, first: first.display().to_string() });
        }
        *place = Some(path.into());
        Ok(())
    }

    /// Adds what the flags say.
    ///
    /// # Errors
    ///
    /// A flag that would undo more of the words than the user may want.
    pub fn apply(&mut self, flags: Flags) -> Result<(), Error> {
        let exclusive = |flag, option: &str| Err(Problem::Flag { flag, option: option.into() }.anywhere());
        if let Some(size) = flags.memory {
            if !self.areas.is_plain() {
                return exclusive("--memory", "ram, rom and reserve with addresses");
            }
            // Sizes that no guest can have are for later, with what else the host says of them.
            self.memory = Some(MemoryMap::plain(size.0));
        }
        if let Some(count) = flags.cpus {
            if self.cpus.iter().any(|cpu| *cpu != Cpu::default()) {
                return exclusive("--cpus", "cpu with options");
            }
            self.cpus = vec![Cpu::default(); usize::try_from(count).unwrap_or(usize::MAX)];
        }
        self.vdevs.extend(flags.vdevs.into_iter().map(|options| Vdev::new(options, None)));
        self.has_no_vdevs |= flags.has_no_vdevs;
        if flags.has_no_vdevs && !self.vdevs.is_empty() {
            return exclusive("--no-vdevs", "vdev");
        }
        self.kernel = flags.kernel.or(self.kernel.take());
        self.initrd = flags.initrd.or(self.initrd.take());
        self.command_line = flags.command_line.or(self.command_line.take());
        Ok(())
    }

    /// Makes a configuration of it.
    ///
    /// # Errors
    ///
    /// What does not make sense, or is missing.
    pub fn finish(self) -> Result<Config, Error> {
        let kernel = self.kernel.ok_or_else(|| Problem::NoKernel.anywhere())?;
        let memory = match self.memory {
            Some(memory) => memory,
            None if self.areas.is_empty() && self.areas.is_plain() => MemoryMap::plain(USUAL_MEMORY),
            None => self.areas.settle()?,
        };
        let mut vdevs = match self.vdevs.is_empty() && !self.has_no_vdevs {
            true => default_vdevs(),
            false => self.vdevs,
        };
        if self.has_early_console {
            vdevs.extend("ser8250,early".parse().map(|options| Vdev::new(options, None)));
        }
        Ok(Config {
            name: self.system,
            kernel,
            initrd: self.initrd,
            loads: self.loads,
            command_line: self.command_line.unwrap_or_default(),
            has_default_words: !self.has_no_words,
            memory,
            cpus: if self.cpus.is_empty() { vec![Cpu::default()] } else { self.cpus },
            vdevs: understand(vdevs)?,
            pci_config: self.pci_config.unwrap_or_default(),
            escape: self.escape.unwrap_or_default(),
            loggers: self.loggers,
            unsupported: self.unsupported,
            dump: self.dump.unwrap_or_default(),
            power_button_wait: self.power_button_wait.unwrap_or(Some(USUAL_WAIT)),
            state_dir: self.state_dir.filter(|path| !path.as_os_str().is_empty()),
            kernel_cache: super::kernel_cache(self.kernel_cache),
            is_dry: self.is_dry,
        })
    }
}

/// The vdevs of a guest whose user names none.
fn default_vdevs() -> Vec<Vdev> {
    let options = ["virtio-entropy", "virtio-console"].iter().filter_map(|kind| Options::new(kind).ok());
    options.map(|options| Vdev::new(options, None)).collect()
}

/// Finds out what the options say that all vdevs have: names, places, interrupts, messages.
fn understand(mut vdevs: Vec<Vdev>) -> Result<Vec<Vdev>, Error> {
    let mut names: Vec<&'static str> = Vec::new();
    for vdev in &mut vdevs {
        vdev.name = match vdev.options.value("name") {
            Some(name) if names.contains(&name) => {
                let problem = Problem::Name { kind: vdev.options.kind.clone(), name: name.to_owned() };
                return Err(Error { origin: vdev.origin_of(Some("name")), problem });
            }
            Some(name) if name.is_empty() || name.chars().any(|it| it.is_whitespace() || it.is_control()) => {
                return Err(bad(vdev, "name", "a name has no spaces in it"));
            }
            Some(name) => keep(name),
            None => unused(&vdev.options.kind, &names),
        };
        names.push(vdev.name);
    }
    let pics: Vec<&'static str> =
        vdevs.iter().filter(|vdev| vdev.options.kind == "ioapic").map(|vdev| vdev.name).collect();
    for vdev in &mut vdevs {
        vdev.place = place(vdev, &pics)?;
        let rules = vdev.options.values("log").map(Rule::parse_both);
        vdev.loggers = rules.collect::<Result<_, _>>().map_err(|problem| Error {
            origin: vdev.origin_of(Some("log")),
            problem: Problem::Argument {
                option: "log",
                argument: vdev.options.value("log").unwrap_or_default().to_owned(),
                problem,
            },
        })?;
    }
    Ok(vdevs)
}

/// The name lives as long as the process, as the vdev does.
fn keep(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

/// The type's name, or that with a number where it has been given.
fn unused(kind: &str, names: &[&'static str]) -> &'static str {
    let numbered = (2..).map(|number| format!("{kind}-{number}"));
    let mut candidates = std::iter::once(kind.to_owned()).chain(numbered);
    candidates.find(|name| !names.contains(&name.as_str())).map_or("", |name| keep(&name))
}

fn bad(vdev: &Vdev, option: &str, problem: &'static str) -> Error {
    let problem = Problem::Vdev(vdev.options.bad_value(option, problem));
    Error { origin: vdev.origin_of(Some(option)), problem }
}

fn conflict(vdev: &Vdev, option: &str, problem: &'static str) -> Error {
    let problem = Problem::Vdev(vdev.options.conflict(option, problem));
    Error { origin: vdev.origin_of(Some(option)), problem }
}

/// `loc` and `intr`.
fn place(vdev: &Vdev, pics: &[&str]) -> Result<Placement, Error> {
    let located = vdev.options.location();
    let location = located
        .map_err(|error| Error { origin: vdev.origin_of(Some("loc")), problem: Problem::Vdev(error) })?;
    let interrupt = match vdev.options.value("intr") {
        Some("apic") if vdev.options.kind == "ioapic" => None,
        Some(text) => Some(interrupt(text, pics).map_err(|problem| bad(vdev, "intr", problem))?),
        None => None,
    };
    let is_virtio = vdev.options.row().is_some_and(|row| row.is_virtio);
    match location {
        Some(Location::Memory(_)) if is_virtio && interrupt.is_none() => {
            return Err(conflict(vdev, "loc", "a vdev in memory needs an interrupt: intr ioapic:LINE"));
        }
        Some(Location::Memory(_)) if is_virtio && vdev.options.has("transitional") => {
            return Err(conflict(vdev, "transitional", "a vdev in memory is modern or legacy, not both"));
        }
        Some(Location::Memory(_))
            if vdev.options.help("loc").is_some_and(|loc| loc.value.contains("mem:")) => {}
        Some(location) => {
            let problem = match (location.space(), is_virtio) {
                (Space::Port, true) => "a virtio vdev is on PCI or in memory",
                (Space::Memory | Space::Pci, false) => "a platform vdev is at I/O ports, such as io:0x3f8",
                _ => return Ok(Placement { location: Some(location), interrupt }),
            };
            return Err(bad(vdev, "loc", problem));
        }
        None => {}
    }
    Ok(Placement { location, interrupt })
}

/// `PIC:LINE`: an input of the I/O APIC, by that name or the user's.
fn interrupt(text: &str, pics: &[&str]) -> Result<u32, &'static str> {
    // A name may have colons in it.
    let (pic, line) = text.rsplit_once(':').ok_or("an interrupt is PIC:LINE, such as ioapic:12")?;
    if pic != "ioapic" && !pics.contains(&pic) {
        return Err("there is no interrupt controller of that name; the I/O APIC is 'ioapic'");
    }
    match line.parse::<u32>() {
        Ok(line) if line < IO_APIC_PINS => Ok(line),
        _ => Err("the I/O APIC has lines 0 to 23"),
    }
}
