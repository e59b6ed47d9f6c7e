//! The guest's processors: a thread each, which runs the guest and serves its accesses to devices until the run ends.

mod deferred;
mod exit;
mod manner;
mod pause;

use std::ffi::{c_int, c_void};
use std::fmt;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use devices::thread::named;
use devices::timeline;
use devices::vdev::{Effect, Reason};
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

pub use self::manner::Manner;
pub(crate) use self::manner::check_runmask;
pub use self::pause::Registers;
use crate::bus::{Bus, Space};
use crate::config::{Cpu, Policy, Unsupported};
use crate::kvm::Error;
use crate::vcpu::deferred::Deferred;
use crate::vcpu::exit::Page;
use crate::vcpu::pause::Gate;

/// How a run ended, as its vCPUs saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest ended it.
    Guest(Reason),
    /// The guest met a fault in the handling of a fault in the handling of a fault: a crash of its kernel, or the reset
    /// of last resort.
    TripleFault {
        /// The vCPU.
        vcpu: u32,
        /// Its instruction pointer.
        rip: u64,
    },
    /// KVM stopped the guest for something that mote does not do.
    Unsupported {
        /// The vCPU.
        vcpu: u32,
        /// Its instruction pointer.
        rip: u64,
        /// What it was stopped for.
        exit: String,
    },
    /// KVM does not run the guest on.
    Failed {
        /// The vCPU.
        vcpu: u32,
        /// Its instruction pointer.
        rip: u64,
        /// What KVM says.
        source: errno::Error,
    },
    /// The thread of a vCPU panicked: a defect of mote.
    Panicked {
        /// The vCPU.
        vcpu: u32,
    },
}

impl Outcome {
    /// The status that mote ends with.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Guest(reason) => reason.exit_status(),
            Self::Unsupported { .. } => 5,
            Self::Panicked { .. } => 7,
            Self::TripleFault { .. } | Self::Failed { .. } => 96,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Where AMD's processors are after a triple fault: KVM has to reset them, and the true place is lost.
        const RESET_VECTOR: u64 = 0xfff0;
        match self {
            Self::Guest(reason) => write!(f, "the guest {reason}"),
            Self::TripleFault { vcpu, rip: RESET_VECTOR } => {
                write!(f, "triple fault of vCPU {vcpu}, RIP 0xfff0 (KVM has reset it, where it was is lost)")
            }
            Self::TripleFault { vcpu, rip } => write!(f, "triple fault of vCPU {vcpu}, RIP {rip:#x}"),
            Self::Unsupported { vcpu, rip, exit } => {
                write!(f, "vCPU {vcpu}, RIP {rip:#x}, did what mote does not support: {exit}")
            }
            Self::Failed { vcpu, rip, source } => {
                write!(f, "vCPU {vcpu}, RIP {rip:#x}, cannot run on: KVM_RUN says: {source}")
            }
            Self::Panicked { vcpu } => write!(f, "the thread of vCPU {vcpu} panicked"),
        }
    }
}

/// How often a vCPU left the guest, by what for. Only its own thread counts.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Exits {
    memory: AtomicU64,
    port: AtomicU64,
    other: AtomicU64,
}

/// How often a vCPU left the guest for mote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    /// For a device's memory.
    pub memory: u64,
    /// For I/O ports; a string instruction's run of bytes is one.
    pub port: u64,
    /// For anything else, signals among them.
    pub other: u64,
}

/// What the vCPUs' threads share.
struct Shared {
    bus: Arc<Bus>,
    is_stopping: AtomicBool,
    /// Writes that KVM kept back.
    deferred: Option<Deferred>,
    outcome: Mutex<Option<Outcome>>,
    ended: OwnedFd,
    exits: Box<[Exits]>,
    gate: Gate,
    unsupported: Unsupported,
}

impl Shared {
    /// The first to end the run says how.
    fn end(&self, outcome: Outcome) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
        // A full counter wakes just as well.
        let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
    }
}

/// The running vCPUs.
pub struct Vcpus {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a thread for each vCPU and, when all are there, with them the guest. It begins on processor 0.
    ///
    /// # Errors
    ///
    /// The host has no thread or event descriptor to spare, or refuses a thread's manner. No vCPU has run then.
    pub fn start(vcpus: Vec<VcpuFd>, bus: Arc<Bus>, manner: &Manner) -> Result<Self, Error> {
        register_signal_handler(kick_signal(), kick)
            .map_err(Error::call("prepare the signal that stops vCPUs", "sigaction"))?;
        let ended = eventfd(0, EventfdFlags::CLOEXEC).map_err(|source| {
            let source = errno::Error::new(source.raw_os_error());
            Error::call("make an event descriptor", "eventfd")(source)
        })?;
        let deferred = vcpus.first().map(Deferred::of).transpose().map_err(|source| {
            let source = errno::Error::new(source.raw_os_error().unwrap_or(0));
            Error::call("map the ring of deferred writes", "mmap")(source)
        })?;
        let shared = Arc::new(Shared {
            bus,
            is_stopping: AtomicBool::new(false),
            deferred,
            outcome: Mutex::new(None),
            ended,
            exits: vcpus.iter().map(|_| Exits::default()).collect(),
            gate: Gate::new(vcpus.len()),
            unsupported: manner.unsupported,
        });
        // If a later thread cannot be had, dropping this stops the earlier ones.
        let mut running = Self { shared, threads: Vec::with_capacity(vcpus.len()) };
        let (ready, readiness) = mpsc::channel();
        let cpus = manner.cpus.iter().cloned().chain(std::iter::repeat(Cpu::default()));
        let mut all = (0..).zip(vcpus).zip(cpus).map(|((index, vcpu), cpu)| {
            let (shared, ready) = (Arc::clone(&running.shared), ready.clone());
            (index, move || enter(index, vcpu, &cpu, &shared, &ready))
        });
        // Processor 0 is the last: nothing runs before it, and it need not wait for anybody to tell it to go.
        let first = all.next();
        for (index, thread) in all.chain(first) {
            if index == 0 {
                running.threads.iter().try_for_each(|_| readiness.recv().unwrap_or(Ok(())))?;
            }
            let thread = named(format!("vcpu{index}")).spawn(thread);
            running.threads.push(thread.map_err(|source| Error::Thread { index, source })?);
        }
        drop(ready);
        readiness.recv().unwrap_or(Ok(()))?;
        Ok(running)
    }

    /// Stands all vCPUs still, hands their registers to `look`, and lets them go on.
    pub fn pause<T>(&self, look: impl FnOnce(&[Registers]) -> T) -> T {
        self.shared.gate.close();
        self.kick();
        let looked = look(&self.shared.gate.registers());
        self.shared.gate.open();
        looked
    }

    /// The registers that vCPUs left when they were stopped.
    #[must_use]
    pub fn last_registers(&self) -> Vec<Registers> {
        self.shared.gate.registers()
    }

    /// Gets all vCPUs out of the guest.
    fn kick(&self) {
        for thread in &self.threads {
            // It may have ended already.
            let _ = thread.kill(kick_signal());
        }
    }

    /// Becomes readable when the run has ended, and stays so: it is for polling, not for reading.
    #[must_use]
    pub fn ended(&self) -> &OwnedFd {
        &self.shared.ended
    }

    /// How the run ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.shared.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The exits of each vCPU so far.
    #[must_use]
    pub fn exit_counts(&self) -> Vec<ExitCounts> {
        let count = |exits: &Exits| ExitCounts {
            memory: exits.memory.load(Ordering::Relaxed),
            port: exits.port.load(Ordering::Relaxed),
            other: exits.other.load(Ordering::Relaxed),
        };
        self.shared.exits.iter().map(count).collect()
    }

    /// Stops all vCPUs wherever they are, and waits for their threads' ends. When this returns, the guest runs no more.
    /// Says how the run ended if it did so by itself.
    pub fn stop_and_join(&mut self) -> Option<Outcome> {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        self.shared.gate.open();
        self.kick();
        for thread in self.threads.drain(..) {
            // A panic has left its outcome.
            let _ = thread.join();
        }
        self.outcome()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

/// The signal that gets a vCPU's thread out of the guest. No other thread gets it.
#[must_use]
pub fn kick_signal() -> c_int {
    SIGRTMIN()
}

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: AtomicPtr<u8> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// Has the thread's next KVM_RUN return at once. A signal alone would be lost between a look at `is_stopping` and the
/// entry to the guest.
extern "C" fn kick(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.with(|flag| flag.load(Ordering::Relaxed));
    if let Some(flag) = NonNull::new(flag) {
        #[expect(unsafe_code, reason = "a signal handler finds what it needs by address")]
        // SAFETY: the pointer is into the page that this thread's `Runner` shares with KVM; its drop takes the pointer
        // back before it unmaps the page. Only KVM reads the byte, and it reads it in a system call.
        unsafe { AtomicU8::from_ptr(flag.as_ptr()) }.store(1, Ordering::Relaxed);
    }
}

/// The thread of a vCPU, which tells whether it has the manner that it is to have.
fn enter(index: u32, vcpu: VcpuFd, cpu: &Cpu, shared: &Shared, ready: &mpsc::Sender<Result<(), Error>>) {
    let applied = manner::apply(cpu).map_err(|source| {
        let manner = manner::describe(cpu);
        Error::Manner { index, manner, source }
    });
    let may_run = applied.is_ok();
    // The main thread listens, unless another thread's manner was refused.
    let _ = ready.send(applied);
    match may_run {
        true => run(index, vcpu, shared),
        false => shared.gate.end(index, None),
    }
}

/// Runs a vCPU to the end of the run.
fn run(index: u32, vcpu: VcpuFd, shared: &Shared) {
    /// Says that the thread panicked, unless it is forgotten.
    struct Panic<'a>(u32, &'a Shared);
    impl Drop for Panic<'_> {
        fn drop(&mut self) {
            self.1.gate.end(self.0, None);
            self.1.end(Outcome::Panicked { vcpu: self.0 });
        }
    }
    let panic = Panic(index, shared);
    let Some(exits) = usize::try_from(index).ok().and_then(|index| shared.exits.get(index)) else { return };
    let mut runner = Runner::new(index, vcpu, shared, exits);
    let outcome = runner.run(shared);
    shared.gate.end(index, Some(&runner.vcpu));
    drop(runner);
    std::mem::forget(panic);
    if let Some(outcome) = outcome {
        shared.end(outcome);
    }
}

/// A vCPU in the thread that runs it.
struct Runner<'a> {
    index: u32,
    vcpu: VcpuFd,
    page: Page,
    bus: &'a Bus,
    deferred: Option<&'a Deferred>,
    exits: &'a Exits,
    unsupported: Unsupported,
}

impl<'a> Runner<'a> {
    fn new(index: u32, mut vcpu: VcpuFd, shared: &'a Shared, exits: &'a Exits) -> Self {
        let flag = &raw mut vcpu.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.with(|place| place.store(flag, Ordering::Relaxed));
        #[expect(unsafe_code, reason = "the page goes with the vCPU, which the compiler cannot see")]
        // SAFETY: both go to the `Runner`, which keeps them to itself and drops them together.
        let page = unsafe { Page::of(&mut vcpu) };
        let Shared { bus, deferred, unsupported, .. } = shared;
        Self { index, vcpu, page, bus, deferred: deferred.as_ref(), exits, unsupported: *unsupported }
    }

    /// Runs the guest until it ends, or until it is told to stop: then there is no outcome.
    fn run(&mut self, shared: &Shared) -> Option<Outcome> {
        timeline::mark("first KVM_RUN");
        while !shared.is_stopping.load(Ordering::SeqCst) {
            if shared.gate.is_closed() {
                if let Some(outcome) = self.complete() {
                    return Some(outcome);
                }
                shared.gate.wait(self.index, &self.vcpu);
                continue;
            }
            let outcome = self.step();
            if outcome.is_some() {
                return outcome;
            }
        }
        None
    }

    /// Has KVM complete the access that the last exit was for, which it does at the next KVM_RUN, without running the
    /// guest. One that crosses a page has two parts.
    fn complete(&mut self) -> Option<Outcome> {
        (0..2).find_map(|_| {
            self.vcpu.set_kvm_immediate_exit(1);
            self.step()
        })
    }

    /// Runs the guest up to its next exit, and serves that. If that touches what is not there, the run may end.
    fn step(&mut self) -> Option<Outcome> {
        if self.unsupported.reference != Policy::Abort {
            return self.serve();
        }
        let before = self.bus.vacant_accesses();
        let outcome = self.serve();
        let has_strayed = self.bus.vacant_accesses() != before;
        let stray = || {
            let exit = format!("an access to where nothing is: {}", exit::describe(self.vcpu.get_kvm_run()));
            Outcome::Unsupported { vcpu: self.index, rip: self.vcpu.get_regs().map_or(0, |it| it.rip), exit }
        };
        outcome.or_else(|| has_strayed.then(stray))
    }

    fn serve(&mut self) -> Option<Outcome> {
        let exit = self.vcpu.run();
        timeline::mark("first exit");
        // Before anything else happens: what came before this exit.
        if let Some(Effect::End(reason)) = self.deferred.map(|deferred| deferred.pass_on(self.bus)) {
            return Some(Outcome::Guest(reason));
        }
        let exit = match exit {
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&self.exits.memory);
                self.bus.read(Space::Memory, address, data);
                return None;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&self.exits.memory);
                return ended(self.bus.write(Space::Memory, address, data));
            }
            // A string instruction's items come as one slice, all for the same port.
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&self.exits.port);
                for item in data.chunks_mut(self.page.port_width()) {
                    self.bus.read(Space::Port, port.into(), item);
                }
                return None;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&self.exits.port);
                let items = data.chunks(self.page.port_width());
                return items.map(|item| self.bus.write(Space::Port, port.into(), item)).find_map(ended);
            }
            exit => exit,
        };
        count(&self.exits.other);
        let exit = match exit {
            Ok(VcpuExit::Intr) => return None,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Some(Outcome::Guest(Reason::PowerOff));
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                return Some(Outcome::Guest(Reason::Reset));
            }
            Ok(VcpuExit::Shutdown) => {
                return Some(Outcome::TripleFault { vcpu: self.index, rip: self.rip() });
            }
            // KVM leaves the guest for these only if they do not fault there.
            Ok(VcpuExit::X86Rdmsr(access)) if self.unsupported.register == Policy::Ignore => {
                (*access.error, *access.data) = (0, 0);
                return None;
            }
            Ok(VcpuExit::X86Wrmsr(access)) if self.unsupported.register == Policy::Ignore => {
                *access.error = 0;
                return None;
            }
            Ok(_) => exit::describe(self.vcpu.get_kvm_run()),
            Err(error) if error.errno() == libc::EINTR => {
                // Whoever set it for a stop told so before, and `run` looks again after this.
                self.vcpu.set_kvm_immediate_exit(0);
                return None;
            }
            // What a processor says that waited for its INIT or SIPI.
            Err(error) if error.errno() == libc::EAGAIN => return None,
            Err(source) => return Some(Outcome::Failed { vcpu: self.index, rip: self.rip(), source }),
        };
        Some(Outcome::Unsupported { vcpu: self.index, rip: self.rip(), exit })
    }

    fn rip(&self) -> u64 {
        self.vcpu.get_regs().map_or(0, |registers| registers.rip)
    }
}

impl Drop for Runner<'_> {
    /// Before the page goes that the handler writes to.
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|flag| flag.store(ptr::null_mut(), Ordering::Relaxed));
    }
}

fn ended(effect: Effect) -> Option<Outcome> {
    match effect {
        Effect::None => None,
        Effect::End(reason) => Some(Outcome::Guest(reason)),
    }
}

/// Counts one more. There is one writer: no need for a locked addition.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}
