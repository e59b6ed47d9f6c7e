//! In which manner the vCPUs run: how the host schedules their threads, and what they do where mote cannot follow.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::config::{Cpu, Sched, Unsupported};

/// The manner of all vCPUs.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// The vCPUs; those that are not there have nothing special.
    pub cpus: Vec<Cpu>,
    /// What happens where the guest does what mote cannot.
    pub unsupported: Unsupported,
}

/// Has the host schedule this thread as `cpu` says.
pub(super) fn apply(cpu: &Cpu) -> io::Result<()> {
    if !cpu.runmask.is_empty() {
        let mut set = CpuSet::new();
        cpu.runmask.iter().for_each(|number| set.set(usize::from(*number)));
        sched_setaffinity(None, &set)?;
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
    let runmask = cpu.runmask.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    match (cpu.sched, runmask.is_empty()) {
        (Some(sched), true) => sched.to_string(),
        (Some(sched), false) => format!("{sched} on host processors {runmask}"),
        (None, _) => format!("host processors {runmask}"),
    }
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
