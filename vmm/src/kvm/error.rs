//! What can go wrong between the command line and the guest's first instruction, as far as KVM is concerned.

use std::io;

use thiserror::Error;
use vmm_sys_util::errno;

use crate::cpuid::MOST_SHORT_IDS;
use crate::layout::{MIB, PAGE};
use crate::memory::{LEAST, Pages};

/// What can go wrong between the command line and the guest's first instruction, as far as KVM is concerned.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no KVM.
    #[error(
        "cannot open {path}: {source}; load the module kvm_intel or kvm_amd, or enable virtualisation in the firmware \
         (in a virtual machine: nested virtualisation in its host)"
    )]
    Absent {
        /// The device.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// There is a KVM, for others.
    #[error(
        "cannot open {path}: {source}; add the user to the group kvm (usermod -aG kvm NAME) and log in again"
    )]
    Forbidden {
        /// The device.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The host has trouble of its own.
    #[error("cannot open {path}: {source}; see to that on the host first")]
    Open {
        /// The device.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The device is not KVM.
    #[error(
        "{path} speaks version {found} of the KVM API instead of 12; is it KVM's device, on Linux 2.6.22 or later?"
    )]
    ApiVersion {
        /// The device.
        path: String,
        /// What it answered; -1 from what does not know the question.
        found: i32,
    },
    /// KVM cannot do all that mote needs.
    #[error("this host's KVM lacks {missing}; mote needs Linux 4.11 or later on the host")]
    Lacks {
        /// The missing capabilities, by name.
        missing: String,
    },
    /// A number of vCPUs that KVM has not.
    #[error("cannot make {asked} vCPUs; ask for 1 to {limit}, which is what this host's KVM has for a guest")]
    Cpus {
        /// What was asked for.
        asked: u32,
        /// The most that there are.
        limit: u32,
    },
    /// More vCPUs than APIC ids of 8 bits can tell apart, and a KVM that has no others.
    #[error(
        "cannot make {asked} vCPUs: this host's KVM lacks KVM_CAP_X2APIC_API; ask for at most {MOST_SHORT_IDS}"
    )]
    ApicIds {
        /// What was asked for.
        asked: u32,
    },
    /// RAM that the processors could not address.
    #[error("cannot give the guest {} MiB of memory: its processors have {bits} bits of physical address, which end below; \
             ask for less", size / MIB)]
    PhysicalBits {
        /// The size in bytes.
        size: u64,
        /// The width of the addresses.
        bits: u32,
    },
    /// A size that no guest can have.
    #[error("cannot give the guest {size} bytes of memory; ask for at least {} MiB, in multiples of {} KiB",
            LEAST / MIB, PAGE >> 10)]
    MemorySize {
        /// The size in bytes.
        size: u64,
    },
    /// RAM that the host has not.
    #[error("cannot map {} MiB of memory for the guest: {source}; {}", size / MIB, match pages {
        Pages::Reserved => "reserve as many large pages (vm.nr_hugepages), or do without",
        Pages::Transparent | Pages::Plain =>
            "ask for less, or look at the limits for memory (ulimit -v, vm.overcommit_memory)",
    })]
    Memory {
        /// The size in bytes.
        size: u64,
        /// The pages that were wanted.
        pages: Pages,
        /// Why not.
        source: io::Error,
    },
    /// Another hypervisor has the processor.
    #[error(
        "cannot make a VM: {source}; another hypervisor uses the processor's virtualisation (VirtualBox, VMware): stop it"
    )]
    Busy {
        /// What KVM said.
        source: errno::Error,
    },
    /// A call to KVM failed that should not.
    #[error("cannot {attempt}: {call} says: {source}; the host's kernel log may tell more")]
    Call {
        /// What was attempted.
        attempt: String,
        /// The call.
        call: &'static str,
        /// Why not.
        source: errno::Error,
    },
    /// The host does not schedule a vCPU's thread as its user wants.
    #[error(
        "cannot give vCPU {index} {manner}: {source}; real-time priorities and less nice need CAP_SYS_NICE or a limit \
         (ulimit -r, ulimit -e), and processors have to be there"
    )]
    Manner {
        /// The vCPU.
        index: u32,
        /// What was asked for.
        manner: String,
        /// Why not.
        source: io::Error,
    },
    /// The host has no thread for a vCPU.
    #[error(
        "cannot start the thread of vCPU {index}: {source}; look at the limits for processes (ulimit -u, pids.max)"
    )]
    Thread {
        /// The vCPU.
        index: u32,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` after the call that KVM's documentation names so.
    pub(crate) fn call(attempt: impl Into<String>, call: &'static str) -> impl FnOnce(errno::Error) -> Self {
        let attempt = attempt.into();
        move |source| Self::Call { attempt, call, source }
    }
}
