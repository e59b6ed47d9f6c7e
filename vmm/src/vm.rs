//! A machine from its description to its end. This is the file to read first: it names every step.
//!
//! The steps are those of the vdevs' life (options end, assign, guest configured, guest starting, terminate) with the
//! machine's own between them, in the order that costs least (see `kvm.rs`). What can go wrong for a reason that the
//! user can mend goes wrong before there is a VM.

mod error;

use std::cell::Cell;
use std::error::Error as _;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use boot::acpi::{self, IoApic, PciHost, Power};
use boot::{Cache, CommandLine, Image, Initrd, Kernel, Plan, SEED_SIZE};
use devices::chain::Memory;
use devices::terminal::NoTerminal;
use devices::timeline::{self, Teller};
use devices::vdev::{Reason, Vdev};
use devices::{Context, Part, power, thread};
use log::{debug, info};
use pci::host::Host;
use rustix::rand::{GetRandomFlags, getrandom};

pub use self::error::Error;
use crate::board::{Assembled, Board, Unplugged};
use crate::config::Config;
use crate::ending::Ending;
use crate::files::Files;
use crate::kvm::{Kvm, Vm};
use crate::memory::{Pages, Ram};
use crate::operator::{Ended, Operator};
use crate::signals::{Signals, Stop};
use crate::state::StateFile;
use crate::terminal::Terminal;
use crate::vcpu::{Manner, Outcome, Vcpus, check_runmask};
use crate::{cpu, heap, layout, memory, summary};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// By the guest, or by what it did.
    Guest(Outcome),
    /// By somebody outside: the power was cut.
    Cut(Stop),
    /// Before the guest started, as was asked for.
    Dry,
}

impl End {
    /// The status that mote exits with.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Guest(outcome) => outcome.exit_status(),
            Self::Cut(Stop::Reset) | Self::Dry => 0,
            Self::Cut(_) => 3,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Guest(outcome) => write!(f, "{outcome}"),
            Self::Cut(stop) => write!(f, "power cut: {stop}"),
            Self::Dry => f.write_str("Exiting: dryrun completed"),
        }
    }
}

/// What can be checked, and is, before a VM is made.
pub struct Checked<'a> {
    config: &'a Config,
    plan: Plan,
    files: Files,
}

impl<'a> Checked<'a> {
    /// Looks at every file that `config` names.
    ///
    /// # Errors
    ///
    /// Whatever would keep the guest from starting, as far as it can be known without KVM.
    pub fn new(config: &'a Config) -> Result<Self, Error> {
        config.cpus.iter().try_for_each(check_runmask)?;
        memory::check(&config.memory.backed(), Pages::default())?;
        let image = Image::open(&config.kernel)?;
        let initrd = config.initrd.as_deref().map(Initrd::open).transpose()?;
        let command_line = CommandLine::new(&config.default_words(), &config.command_line)?;
        let mut reserved = config.memory.reserved();
        reserved.push(layout::ECAM);
        let plan = Plan::new(image, initrd, command_line, &config.memory.ram(), &reserved)?;
        let taken: Vec<_> = std::iter::once(plan.kernel()).chain(plan.initrd()).collect();
        let files = Files::open(&config.loads, &config.memory.backed(), &taken)?;
        Ok(Self { config, plan, files })
    }

    /// Puts the machine together without KVM, and tells what was understood.
    ///
    /// # Errors
    ///
    /// What keeps the machine from being put together.
    pub fn describe(&self) -> Result<String, Error> {
        let ending = Arc::new(Ending::new().map_err(Error::host("make an event descriptor"))?);
        // Nothing runs, so nothing is read or written.
        let memory = Arc::new(Memory::default());
        let context = Surroundings { terminal: Arc::new(NoTerminal), ending, is_check: true };
        let (assembled, _) = assemble(self.config, Arc::new(Unplugged), memory, &context)?;
        Ok(summary::text(self.config, &assembled.placed))
    }

    /// Looks whether this host's KVM can have the guest.
    ///
    /// # Errors
    ///
    /// It cannot.
    pub fn check_host(&self) -> Result<Kvm, Error> {
        let kvm = Kvm::open()?;
        kvm.check(self.cpus(), &self.config.memory.backed())?;
        Ok(kvm)
    }

    fn cpus(&self) -> u32 {
        u32::try_from(self.config.cpus.len()).unwrap_or(u32::MAX)
    }

    /// Makes the machine, runs its guest, and says how it ended.
    ///
    /// # Errors
    ///
    /// The guest did not start.
    pub fn run(self) -> Result<End, Error> {
        timeline::mark("files open");
        let kvm = self.check_host()?;
        timeline::mark("KVM checked");
        let cpus = self.cpus();
        let Self { config, plan, files } = self;

        // Before there are threads and memory: it sets a guardian over the terminal.
        let terminal = Terminal::open(config.escape).map_err(Error::host("look at the terminal"))?;
        let ram = Ram::new(&config.memory.backed(), Pages::default(), false)?;
        timeline::mark("memory mapped");
        let is_small = plan.is_small();
        // The kernel is put into memory while KVM makes the machine.
        let loading = load_kernel(config, plan, &files, &ram)?;
        let vm = Vm::new(&kvm, cpus)?;
        vm.set_register_policy(config.unsupported.register)?;
        vm.map_ram(&ram)?;
        timeline::mark("VM made");

        // Options end, assign: the vdevs are made and get their places.
        let ending = Arc::new(Ending::new().map_err(Error::host("make an event descriptor"))?);
        let surroundings =
            Surroundings { terminal: terminal.clone(), ending: Arc::clone(&ending), is_check: config.is_dry };
        let host: Arc<dyn Host> = Arc::new(vm.clone());
        let memory = Arc::new(ram.guest().clone());
        let (assembled, is_read) = assemble(config, host, memory, &surroundings)?;

        timeline::mark("vdevs in place");

        // All memory slots are there now: `kvm.rs` says why this comes after them.
        vm.create_interrupt_chips()?;
        let vcpus = (0..cpus).map(|index| vm.create_vcpu(index)).collect::<Result<Vec<_>, _>>()?;
        if assembled.kvm.contains(&Part::Timer) {
            vm.create_timer()?;
        }
        timeline::mark("vCPUs made");

        let tables = acpi::tables(&describe(cpus, config, &assembled, files.tables.clone()))?;
        let mut seed = [0; SEED_SIZE];
        getrandom(&mut seed, GetRandomFlags::empty())
            .map_err(|e| Error::host("get random bytes")(e.into()))?;
        let (plan, kernel) = loading.finish()?;
        let loaded = plan.load_rest(ram.guest(), &tables, &mut seed, kernel)?;
        debug!("kernel: {}", loaded.kernel);
        for note in &loaded.kernel.notes {
            let cause = note.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            info!("{note}{cause}");
        }
        files.load(ram.guest())?;
        boot::write_reset_vector(ram.guest(), layout::RESET_PORT, power::RESET_VALUE)?;
        cpu::configure(&kvm, &vm, &vcpus, &loaded.entry)?;
        timeline::mark("all loaded");
        if config.is_dry {
            return Ok(End::Dry);
        }

        // Guest configured: threads may start from here on.
        let signals = Signals::catch().map_err(Error::host("catch signals"))?;
        let raw = is_read.then(|| terminal.enter_raw()).transpose();
        let _raw = raw.map_err(Error::host("put the terminal into raw mode"))?;
        let Assembled { bus, vdevs, placed, .. } = assembled;
        let running = Running::start(vdevs)?;
        let state = config.state_dir.as_ref().map(|directory| {
            StateFile::create(directory, summary::facts(config, &loaded.kernel, &placed, &ending.ptys()))
                .map_err(Error::host("write the run's state"))
        });
        let mut state = state.transpose()?;

        // Guest starting.
        timeline::mark("guest configured");
        debug!("guest starting");
        if !is_small {
            // It ends by itself.
            let _ = ram.take_descriptors();
        }
        let manner = Manner { cpus: config.cpus.clone(), unsupported: config.unsupported };
        let mut vcpus = Vcpus::start(vcpus, Arc::clone(&bus), &manner)?;
        let operator = Operator {
            config,
            vdevs: &running.0,
            bus: &bus,
            memory: ram.guest(),
            signals: &signals,
            terminal: &terminal,
            ending: &ending,
            button: vm.line(layout::EVENT_GSI),
            started: Instant::now(),
        };
        let ended = operator.wait(&vcpus).map_err(Error::host("wait for the guest"))?;
        let outcome = vcpus.stop_and_join();
        timeline::mark("guest ended");
        let end = match (outcome, ended) {
            (Some(outcome), _) => End::Guest(outcome),
            (None, Ended::Device(reason)) => End::Guest(Outcome::Guest(reason)),
            (None, Ended::Stop(stop)) => End::Cut(stop),
            (None, Ended::Guest) => End::Cut(Stop::Unknown),
        };
        debug!("{}", operator.status(&vcpus));
        if let End::Guest(Outcome::Guest(reason)) = &end
            && Reason::is_dumped(*reason)
        {
            operator.dump(&vcpus.last_registers());
        }
        if let Some(state) = &mut state {
            let facts =
                vec![("end", end.to_string().into()), ("exitStatus", u64::from(end.exit_status()).into())];
            state.add(facts).map_err(Error::host("write the run's state"))?;
        }
        // Terminate: the vdevs and then the terminal end with their guards.
        Ok(end)
    }
}

/// The plan for the rest, and the kernel that is in memory.
type Load = Result<(Plan, Kernel), boot::Error>;

/// A kernel on its way into memory.
enum Loading {
    Done(Box<Load>),
    OnThread(JoinHandle<Load>),
}

impl Loading {
    fn finish(self) -> Result<(Plan, Kernel), Error> {
        let load = match self {
            Self::Done(load) => *load,
            Self::OnThread(thread) => {
                let load = thread.join().map_err(|_| Error::LoaderPanicked)?;
                heap::trim();
                load
            }
        };
        Ok(load?)
    }
}

/// Puts the kernel into memory, at a random place unless the user wants none, on a thread of its own where that takes
/// time.
fn load_kernel(config: &Config, plan: Plan, files: &Files, ram: &Ram) -> Result<Loading, Error> {
    let mut random = [0; 16];
    getrandom(&mut random, GetRandomFlags::empty()).map_err(|e| Error::host("get random bytes")(e.into()))?;
    let random = u128::from_le_bytes(random);
    let plan = plan.randomised([random as u64, (random >> 64) as u64], &files.ranges());
    let plan = if config.cpus.len() == 1 { plan.alone() } else { plan };
    let plan = match &config.kernel_cache {
        Some(directory) => plan.cached(Cache::open(directory)),
        None => plan,
    };
    let (memory, is_small) = (ram.guest().clone(), plan.is_small());
    let load = move || {
        let kernel = plan.load_kernel(&memory)?;
        timeline::mark(format!("kernel in memory: {}", kernel.method));
        Ok((plan, kernel))
    };
    if is_small {
        return Ok(Loading::Done(Box::new(load())));
    }
    let thread = thread::named("loader").spawn(load);
    thread.map(Loading::OnThread).map_err(Error::host("start a thread"))
}

/// What vdevs find around them.
struct Surroundings {
    terminal: Arc<dyn devices::terminal::Terminal>,
    ending: Arc<Ending>,
    is_check: bool,
}

/// Makes the vdevs and puts them into the machine. Also tells whether one of them reads from standard input.
fn assemble(
    config: &Config,
    host: Arc<dyn Host>,
    memory: Arc<Memory>,
    surroundings: &Surroundings,
) -> Result<(Assembled, bool), Error> {
    let mut board = Board::new(host, memory);
    board.attach_own(layout::POWER_PORTS, Arc::new(power::Power))?;
    if let Some(teller) = Teller::wanted() {
        board.attach_own(timeline::PORT.into()..u64::from(timeline::PORT) + 1, teller)?;
    }
    let claim_input = Cell::new(true);
    for vdev in &config.vdevs {
        let built = {
            let context = Context {
                name: vdev.name,
                place: vdev.place,
                machine: surroundings.ending.clone(),
                is_check: surroundings.is_check,
                claim_input: Cell::new(claim_input.get()),
                terminal: Arc::clone(&surroundings.terminal),
                line: &|gsi| board.line(gsi),
            };
            let built = devices::build(&vdev.options, &context);
            claim_input.set(context.claim_input.get());
            built.map_err(|error| Error::from(error).about(vdev))?
        };
        debug!("{}: options end", vdev.name);
        board.attach(vdev, built).map_err(|error| error.about(vdev))?;
    }
    Ok((board.finish(config.pci_config)?, !claim_input.get()))
}

/// The vdevs between guest configured and terminate.
struct Running(Vec<Arc<dyn Vdev>>);

impl Running {
    fn start(vdevs: Vec<Arc<dyn Vdev>>) -> Result<Self, Error> {
        // From the first one on they have to be stopped, whatever happens.
        let running = Self(vdevs);
        for vdev in &running.0 {
            Arc::clone(vdev).guest_configured()?;
            debug!("{}: guest configured", vdev.name());
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for vdev in &self.0 {
            vdev.terminate();
            debug!("{}: terminate", vdev.name());
        }
    }
}

/// The machine for ACPI.
fn describe(cpus: u32, config: &Config, assembled: &Assembled, tables: Vec<Vec<u8>>) -> acpi::Machine {
    let address = |range: Range<u64>| u32::try_from(range.start).unwrap_or(u32::MAX);
    acpi::Machine {
        apic_ids: (0..cpus).collect(),
        local_apic: address(layout::LOCAL_APIC),
        io_apic: IoApic { id: 0, address: address(layout::IO_APIC), gsi_base: 0 },
        pci: PciHost {
            ecam: config.pci_config.has_ecam().then(|| address(layout::ECAM)),
            last_bus: 0,
            memory: layout::PCI_MEMORY,
            memory_above_4g: None,
            io: layout::PCI_PORTS,
            routes: assembled.routes.clone(),
        },
        power: Power {
            sleep_control: layout::SLEEP_CONTROL_PORT,
            sleep_type_off: power::SLEEP_TYPE_OFF,
            sleep_status: layout::SLEEP_STATUS_PORT,
            reset: layout::RESET_PORT,
            reset_value: power::RESET_VALUE,
        },
        power_button: Some(layout::EVENT_GSI),
        legacy: assembled.legacy,
        parts: assembled.parts.clone(),
        tables,
    }
}

/// Runs the guest that `config` describes to its end.
///
/// # Errors
///
/// The guest did not start.
pub fn run(config: &Config) -> Result<End, Error> {
    let end = Checked::new(config)?.run()?;
    info!("{end}");
    Ok(end)
}
