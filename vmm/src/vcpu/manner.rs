//! In which manner the vCPUs run: how the host schedules their threads, and what they do where mote cannot follow.

use std::io;
use std::thread::{self, Builder};

use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::config::{Cpu, Sched, Unsupported};
use crate::qvmconf::{self, Problem};

/// The manner of all vCPUs.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// The vCPUs; those that are not there have nothing special.
    pub cpus: Vec<Cpu>,
    /// What happens where the guest does what mote cannot.
    pub unsupported: Unsupported,
}

/// Checks that the host has the processors that `cpu` names, and lets mote have them.
///
/// # Errors
///
/// The first that it has not.
pub(crate) fn check_runmask(cpu: &Cpu) -> Result<(), qvmconf::Error> {
    // The host passes over what it has not, as long as it has one of them: so each is asked for alone, by a thread
    // whose processors do not matter.
    let is_missing = |number: &u16| set_affinity(&[*number]) == Err(Errno::INVAL);
    let find = || cpu.runmask.iter().copied().find(is_missing);
    // If that cannot be had, neither can the vCPU's thread, which will say so.
    let ask = || thread::scope(|scope| Builder::new().spawn_scoped(scope, find).ok()?.join().ok()?);
    let Some(number) = (!cpu.runmask.is_empty()).then(ask).flatten() else { return Ok(()) };
    let problem = Problem::Argument {
        option: "runmask",
        argument: runmask(cpu),
        problem: format!("this host has no processor {number} for mote to run on"),
    };
    Err(qvmconf::Error { origin: cpu.runmask_origin.clone(), problem })
}

/// Has the host run this thread on some of its processors.
fn set_affinity(numbers: &[u16]) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    numbers.iter().for_each(|number| set.set(usize::from(*number)));
    sched_setaffinity(None, &set)
}

/// Has the host schedule this thread as `cpu` says.
pub(super) fn apply(cpu: &Cpu) -> io::Result<()> {
    if !cpu.runmask.is_empty() {
        set_affinity(&cpu.runmask)?;
    }
    match cpu.sched {
        None => Ok(()),
        // On Linux this is the calling thread.
        Some(Sched::Other { nice }) => Ok(rustix::process::setpriority_process(None, nice)?),
        Some(Sched::RoundRobin(priority)) => set_real_time(libc::SCHED_RR, priority),
        Some(Sched::Fifo(priority)) => set_real_time(libc::SCHED_FIFO, priority),
    }
}

/// What `cpu` asks for, for an error.
pub(super) fn describe(cpu: &Cpu) -> String {
    let runmask = runmask(cpu);
    match (cpu.sched, runmask.is_empty()) {
        (Some(sched), true) => sched.to_string(),
        (Some(sched), false) => format!("{sched} on host processors {runmask}"),
        (None, _) => format!("host processors {runmask}"),
    }
}

/// The host's processors, as they were named.
fn runmask(cpu: &Cpu) -> String {
    cpu.runmask.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

fn set_real_time(policy: libc::c_int, priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority.into() };
    #[expect(unsafe_code, reason = "the scheduler's policy is a raw system call")]
    // SAFETY: thread 0 is the calling one, and the call reads one structure that lives across it.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
