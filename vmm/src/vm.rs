//! A machine from its description to its end. This is the file to read first: it names every step.
//!
//! The steps are those of the vdevs' life (options end, assign, guest configured, guest starting, terminate) with the
//! machine's own between them, in the order that costs least (see `kvm.rs`). What can go wrong for a reason that the
//! user can mend goes wrong before there is a VM.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use boot::acpi::{self, IoApic, Legacy, PciHost, Power, Route};
use boot::{CommandLine, Image, Initrd, Plan, SEED_SIZE};
use devices::vdev::Vdev;
use devices::{Built, Context, power};
use log::{debug, info};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;

use crate::board::{Assembled, Board};
use crate::bus::MapError;
use crate::config::{Config, PciConfig};
use crate::kvm::{self, Kvm, Vm};
use crate::memory::{Pages, Ram};
use crate::signals::{Signals, Stop};
use crate::terminal::Raw;
use crate::vcpu::{Outcome, Vcpus};
use crate::{cpu, layout};

/// Why no guest runs.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel, the initial ramdisk, the command line or the ACPI tables.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// KVM, or the guest's memory.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// A vdev.
    #[error(transparent)]
    Vdev(#[from] devices::Error),
    /// Two vdevs in one place.
    #[error(transparent)]
    Map(#[from] MapError),
    /// More PCI functions than slots.
    #[error("there is no PCI slot left for vdev {vdev}; a bus has 32")]
    Slots {
        /// The vdev that found none.
        vdev: String,
    },
    /// Two PCI functions in one place.
    #[error("vdev {vdev} cannot be PCI function 00:{slot:02x}.{number}: another one is there")]
    Taken {
        /// The vdev that came second.
        vdev: String,
        /// The slot.
        slot: u8,
        /// The function in it.
        number: u8,
    },
    /// Functions that no guest looks for.
    #[error(
        "PCI slot {slot:#x} has functions but no function 0, so no guest looks for them; give one vdev loc=pci:0:{slot:x}.0"
    )]
    NoFunction0 {
        /// The slot.
        slot: u8,
    },
    /// The BARs do not fit their window.
    #[error("there is no address left for a BAR of vdev {vdev}")]
    Window {
        /// The vdev that found none.
        vdev: String,
    },
    /// The host.
    #[error("cannot {attempt}: {source}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    fn host(attempt: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { attempt, source }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By the guest, or by what it did.
    Guest(Outcome),
    /// By a signal to mote: the power was cut.
    Cut(Stop),
}

impl End {
    /// The status that mote exits with.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Guest(outcome) => outcome.exit_status(),
            Self::Cut(_) => 3,
        }
    }
}

/// What can be checked, and is, before a VM is made.
pub struct Checked<'a> {
    config: &'a Config,
    kvm: Kvm,
    plan: Plan,
}

impl<'a> Checked<'a> {
    /// Looks at everything that `config` names.
    ///
    /// # Errors
    ///
    /// Whatever would keep the guest from starting, as far as it can be known.
    pub fn new(config: &'a Config) -> Result<Self, Error> {
        let image = Image::open(&config.kernel)?;
        let initrd = config.initrd.as_deref().map(Initrd::open).transpose()?;
        let command_line = CommandLine::new(&config.default_words(), &config.command_line)?;
        let plan = Plan::new(image, initrd, command_line, &layout::ram(config.memory.0), &[layout::ECAM])?;
        let kvm = Kvm::open()?;
        kvm.check(config.cpus, config.memory.0)?;
        Ok(Self { config, kvm, plan })
    }

    /// Makes the machine, runs its guest, and says how it ended.
    ///
    /// # Errors
    ///
    /// The guest did not start.
    pub fn run(self) -> Result<End, Error> {
        let Self { config, kvm, plan } = self;

        let ram = Ram::new(config.memory.0, Pages::default(), false)?;
        let vm = Vm::new(&kvm, config.cpus)?;
        vm.map_ram(&ram)?;
        let vcpus = (0..config.cpus).map(|index| vm.create_vcpu(index)).collect::<Result<Vec<_>, _>>()?;

        // Options end, assign: the vdevs are made and get their places.
        let mut board = Board::new(&vm, &ram);
        board.attach_platform(layout::POWER_PORTS, Arc::new(power::Power), Vec::new())?;
        let context = Context { claim_input: Cell::new(true), line: &|gsi| vm.line(gsi) };
        for options in &config.vdevs {
            match devices::build(options, &context)? {
                Built::Virtio(device) => board.attach_virtio(options, device)?,
                Built::Platform(platform) => {
                    let ports =
                        u64::from(platform.port)..u64::from(platform.port) + u64::from(platform.ports);
                    board.attach_platform(ports, platform.vdev, platform.aml)?;
                }
            }
        }
        let Assembled { bus, vdevs, routes, parts } = board.finish(config.pci_config)?;

        let tables = acpi::tables(&describe(config.cpus, config.pci_config, routes, parts))?;
        let mut seed = [0; SEED_SIZE];
        getrandom(&mut seed, GetRandomFlags::empty())
            .map_err(|e| Error::host("get random bytes")(e.into()))?;
        let entry = plan.load(ram.guest(), &tables, &mut seed)?;
        cpu::configure(&kvm, &vm, &vcpus, &entry)?;

        // Guest configured: threads may start from here on.
        let _running = Running::start(vdevs)?;
        let signals = Signals::catch().map_err(Error::host("catch signals"))?;
        let _raw = Raw::enter().map_err(Error::host("put the terminal into raw mode"))?;

        // Guest starting.
        let mut vcpus = Vcpus::start(vcpus, bus)?;
        let stop = wait(&vcpus, &signals).map_err(Error::host("wait for the guest"))?;
        let outcome = vcpus.stop_and_join();
        for (index, exits) in vcpus.exit_counts().iter().enumerate() {
            debug!(
                "vCPU {index}: {} exits for memory, {} for ports, {} others",
                exits.memory, exits.port, exits.other
            );
        }
        // Terminate: the vdevs and then the terminal end with their guards.
        Ok(match (outcome, stop) {
            (Some(outcome), _) => End::Guest(outcome),
            (None, Some(stop)) => End::Cut(stop),
            (None, None) => End::Cut(Stop::Unknown),
        })
    }
}

/// Waits until the guest ends the run or a signal does.
fn wait(vcpus: &Vcpus, signals: &Signals) -> io::Result<Option<Stop>> {
    loop {
        let ended = vcpus.ended();
        let mut fds = [PollFd::new(ended, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) if vcpus.outcome().is_some() => return Ok(None),
            Ok(_) => {
                if let Some(stop) = signals.take() {
                    return Ok(Some(stop));
                }
            }
        }
    }
}

/// The vdevs between guest configured and terminate.
struct Running(Vec<Arc<dyn Vdev>>);

impl Running {
    fn start(vdevs: Vec<Arc<dyn Vdev>>) -> Result<Self, Error> {
        // From the first one on they have to be stopped, whatever happens.
        let running = Self(vdevs);
        for vdev in &running.0 {
            Arc::clone(vdev).guest_configured()?;
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for vdev in &self.0 {
            vdev.terminate();
            debug!("{}: {}", vdev.name(), vdev.status());
        }
    }
}

/// The machine for ACPI.
fn describe(cpus: u32, pci_config: PciConfig, routes: Vec<Route>, parts: Vec<Vec<u8>>) -> acpi::Machine {
    let address = |range: Range<u64>| u32::try_from(range.start).unwrap_or(u32::MAX);
    acpi::Machine {
        apic_ids: (0..cpus).collect(),
        local_apic: address(layout::LOCAL_APIC),
        io_apic: IoApic { id: 0, address: address(layout::IO_APIC), gsi_base: 0 },
        pci: PciHost {
            ecam: pci_config.has_ecam().then(|| address(layout::ECAM)),
            last_bus: 0,
            memory: layout::PCI_MEMORY,
            memory_above_4g: None,
            io: layout::PCI_PORTS,
            routes,
        },
        power: Power {
            sleep_control: layout::SLEEP_CONTROL_PORT,
            sleep_type_off: power::SLEEP_TYPE_OFF,
            sleep_status: layout::SLEEP_STATUS_PORT,
            reset: layout::RESET_PORT,
            reset_value: power::RESET_VALUE,
        },
        power_button: None,
        legacy: Legacy { has_isa_devices: !parts.is_empty(), ..Legacy::default() },
        parts,
    }
}

/// Runs the guest that `config` describes to its end.
///
/// # Errors
///
/// The guest did not start.
pub fn run(config: &Config) -> Result<End, Error> {
    let end = Checked::new(config)?.run()?;
    match &end {
        End::Guest(outcome) => info!("{outcome}"),
        End::Cut(stop) => info!("power cut: {stop}"),
    }
    Ok(end)
}
