//! KVM: the host's device, checked before anything is made with it, and the virtual machine.
//!
//! The order of calls is that of [`Vm::new`], memory slots, [`Vm::create_interrupt_chips`], [`Vm::create_vcpu`] and, last of
//! all, doorbells and deferred writes. On Linux 6.18 a change of memory slots takes 6 to 11 ms instead of 0.1 if it follows
//! a registration on KVM's own bus, as the interrupt chips, deferred writes and doorbells are; other kernels let the first
//! vCPU wait for a doorbell.

mod error;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use devices::interrupt::Line;
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_PMU_CAPABILITY, KVM_CAP_X2APIC_API,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_MAX_CPUID_ENTRIES,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_msi,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VcpuFd, VmFd};
use pci::host::{Bell, Host, Pages, Sight};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

pub use self::error::Error;
use crate::config::Policy;
use crate::cpuid::{self, MOST_SHORT_IDS};
use crate::layout;
use crate::memory::Ram;
use crate::pages::SlotPages;

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

/// What mote cannot do without, and its name in KVM's API. All of it is older than Linux 4.11.
const REQUIRED: [(u32, &str); 11] = [
    (Cap::Irqchip as u32, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory as u32, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr as u32, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr as u32, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid as u32, "KVM_CAP_EXT_CPUID"),
    (Cap::IrqRouting as u32, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi as u32, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Ioeventfd as u32, "KVM_CAP_IOEVENTFD"),
    (KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH"),
    (Cap::ReadonlyMem as u32, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit as u32, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The host's KVM, found able to run mote's guests.
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    cpuid: CpuId,
}

impl Kvm {
    /// Opens [`DEVICE`] and looks whether it has all that mote needs.
    ///
    /// # Errors
    ///
    /// There is no KVM, none for this user, or one that lacks something.
    pub fn open() -> Result<Self, Error> {
        Self::open_at(Path::new(DEVICE))
    }

    /// Opens KVM's device at `path`.
    ///
    /// # Errors
    ///
    /// As [`Kvm::open`].
    pub fn open_at(path: &Path) -> Result<Self, Error> {
        let name = || path.display().to_string();
        let file =
            File::options().read(true).write(true).open(path).map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => Error::Forbidden { path: name(), source },
                _ if is_absent(&source) => Error::Absent { path: name(), source },
                _ => Error::Open { path: name(), source },
            })?;
        #[expect(unsafe_code, reason = "kvm-ioctls takes raw descriptors")]
        // SAFETY: the descriptor is open, and `file` gave it away.
        let fd = unsafe { kvm_ioctls::Kvm::from_raw_fd(file.into_raw_fd()) };

        let found = fd.get_api_version();
        if u32::try_from(found) != Ok(KVM_API_VERSION) {
            return Err(Error::ApiVersion { path: name(), found });
        }
        let has = |&(capability, _): &(u32, &str)| fd.check_extension_raw(capability.into()) > 0;
        let missing: Vec<&str> = REQUIRED.iter().filter(|it| !has(it)).map(|it| it.1).collect();
        if !missing.is_empty() {
            return Err(Error::Lacks { missing: missing.join(", ") });
        }
        let cpuid = fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::call("learn what processors KVM has", "KVM_GET_SUPPORTED_CPUID"))?;
        Ok(Self { fd, cpuid })
    }

    /// Looks whether KVM can have a guest of `cpus` processors and memory at `ranges`, before any is made.
    ///
    /// # Errors
    ///
    /// What the guest has too much of, or too little.
    pub fn check(&self, cpus: u32, ranges: &[Range<u64>]) -> Result<(), Error> {
        // An APIC id is a vCPU's number, so both limits count.
        let limit = self.fd.get_max_vcpus().min(self.fd.get_max_vcpu_id());
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        if cpus == 0 || cpus > limit {
            return Err(Error::Cpus { asked: cpus, limit });
        }
        if cpus > MOST_SHORT_IDS && !self.fd.check_extension(Cap::X2ApicApi) {
            return Err(Error::ApicIds { asked: cpus });
        }
        let bits = cpuid::physical_bits(&self.cpuid);
        let last = ranges.last().map_or(0, |range| range.end.saturating_sub(1));
        if last.checked_shr(bits).is_some_and(|beyond| beyond != 0) {
            let size = ranges.iter().map(|range| range.end - range.start).sum();
            return Err(Error::PhysicalBits { size, bits });
        }
        Ok(())
    }

    /// The processor that KVM can show to a guest.
    pub(crate) fn supported_cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// Whether KVM's local APICs have the TSC deadline timer.
    pub(crate) fn has_tsc_deadline(&self) -> bool {
        self.fd.check_extension(Cap::TscDeadlineTimer)
    }
}

/// A virtual machine. A clone is the same machine.
#[derive(Clone, Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    has_extended_ids: bool,
    /// The next memory slot for a page.
    next_slot: Arc<AtomicU32>,
}

impl Vm {
    /// Makes a VM for `cpus` processors, which [`Kvm::check`] found possible.
    ///
    /// # Errors
    ///
    /// A call that failed.
    pub fn new(kvm: &Kvm, cpus: u32) -> Result<Self, Error> {
        let fd = create_vm(&kvm.fd)?;
        // Both before the interrupt chips, and clear of RAM: KVM makes memory slots of its own there.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP.start)
            .map_err(Error::call("place KVM's identity map", "KVM_SET_IDENTITY_MAP_ADDR"))?;
        let tss = usize::try_from(layout::KVM_TSS.start).unwrap_or(usize::MAX);
        fd.set_tss_address(tss).map_err(Error::call("place KVM's TSS", "KVM_SET_TSS_ADDR"))?;
        let has_extended_ids = cpus > MOST_SHORT_IDS;
        if has_extended_ids {
            // APIC ids of 32 bits in MSIs, and id 255 as one processor instead of all.
            let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
            enable(&fd, KVM_CAP_X2APIC_API, flags)
                .map_err(Error::call("enable APIC ids of 32 bits", "KVM_ENABLE_CAP(KVM_CAP_X2APIC_API)"))?;
        }
        withhold_counters(&fd);
        Ok(Self {
            fd: Arc::new(fd),
            has_extended_ids,
            next_slot: Arc::new(AtomicU32::new(layout::FIRST_PAGE_SLOT)),
        })
    }

    /// Gives the guest its RAM: a memory slot for each range, which are one below the hole and one above it where its
    /// user did not shape it otherwise.
    ///
    /// # Errors
    ///
    /// A call that failed.
    pub fn map_ram(&self, ram: &Ram) -> Result<(), Error> {
        let usual = [layout::LOW_RAM_SLOT, layout::HIGH_RAM_SLOT].into_iter();
        let further = std::iter::repeat_with(|| self.next_slot.fetch_add(1, Ordering::Relaxed));
        for (region, slot) in ram.guest().iter().zip(usual.chain(further)) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr().addr() as u64,
            };
            #[expect(unsafe_code, reason = "the guest will write to host memory that is named by address")]
            // SAFETY: `Ram` is mapped for as long as the process lives, and holds nothing but guest memory. Its
            // ranges are disjoint, and each has a slot of its own.
            unsafe { self.fd.set_user_memory_region(region) }.map_err(Error::call(
                format!("give the guest {} MiB of memory", region.memory_size / layout::MIB),
                "KVM_SET_USER_MEMORY_REGION",
            ))?;
        }
        Ok(())
    }

    /// Makes the interrupt chips, and a routing table with the I/O APIC alone. vCPUs come after it.
    ///
    /// # Errors
    ///
    /// A call that failed.
    pub fn create_interrupt_chips(&self) -> Result<(), Error> {
        let failed = Error::call("make the interrupt chips", "KVM_CREATE_IRQCHIP");
        self.fd.create_irq_chip().map_err(failed)?;
        route_to_io_apic(&self.fd)
    }

    /// Makes KVM's interval timer (Intel 8254), at ports 0x40 to 0x43 and 0x61 and at input 0 of the I/O APIC.
    ///
    /// # Errors
    ///
    /// A call that failed.
    pub(crate) fn create_timer(&self) -> Result<(), Error> {
        // With it comes port 0x61, by which Linux gates the timer's third channel.
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(config).map_err(Error::call("make the interval timer", "KVM_CREATE_PIT2"))
    }

    /// Has accesses to model-specific registers that KVM does not know end in mote, unless they fault in the guest.
    ///
    /// # Errors
    ///
    /// This KVM always lets them fault.
    pub(crate) fn set_register_policy(&self, policy: Policy) -> Result<(), Error> {
        if policy == Policy::Fail {
            return Ok(());
        }
        enable(&self.fd, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN).map_err(Error::call(
            "see accesses to registers that KVM does not know",
            "KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)",
        ))
    }

    /// Makes the vCPU with APIC id `index`. All but that of index 0 wait for another's INIT and SIPI.
    ///
    /// # Errors
    ///
    /// A call that failed.
    pub fn create_vcpu(&self, index: u32) -> Result<VcpuFd, Error> {
        let attempt = || format!("make vCPU {index}");
        self.fd.create_vcpu(index.into()).map_err(|source| Error::call(attempt(), "KVM_CREATE_VCPU")(source))
    }

    /// The machine's own calls.
    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Whether there are processors whose APIC ids 8 bits cannot name.
    pub(crate) fn has_extended_ids(&self) -> bool {
        self.has_extended_ids
    }

    /// Input `gsi` of the I/O APIC, for a device that drives no other.
    #[must_use]
    pub fn line(&self, gsi: u32) -> Arc<dyn Line> {
        Arc::new(Input { vm: self.clone(), gsi })
    }
}

impl Host for Vm {
    /// As [`Host::send_msi`] says, but for a message that no processor listens to, which is lost as on hardware: that is
    /// the guest's affair (Intel SDM volume 3, 11.11).
    fn send_msi(&self, address: u64, data: u32) -> io::Result<()> {
        let (mut address_lo, mut address_hi) = (address as u32, (address >> 32) as u32);
        if self.has_extended_ids {
            // Guests name APIC ids of 15 bits: bits 8 to 14 are bits 5 to 11 of the address (KVM_FEATURE_MSI_EXT_DEST_ID).
            // KVM wants bits 8 to 31 at their place in the upper half.
            address_hi = (address_lo >> 5 & 0x7f) << 8;
            address_lo &= !(0x7f << 5);
        }
        match self.fd.signal_msi(kvm_msi { address_lo, address_hi, data, ..Default::default() }) {
            // KVM's -1 for "no such processor" arrives as EPERM.
            Err(error) if error.errno() != libc::EPERM => Err(error.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn set_line(&self, gsi: u32, is_high: bool) -> io::Result<()> {
        Ok(self.fd.set_irq_line(gsi, is_high)?)
    }

    fn bind_doorbell(&self, bell: Bell, event: &EventFd) -> io::Result<()> {
        match bell {
            Bell::Memory(address) => {
                self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)?;
            }
            Bell::Port(port, value) => {
                self.fd.register_ioevent(event, &IoEventAddress::Pio(port.into()), value)?;
            }
        }
        Ok(())
    }

    fn unbind_doorbell(&self, bell: Bell, event: &EventFd) -> io::Result<()> {
        match bell {
            Bell::Memory(address) => {
                self.fd.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)?;
            }
            Bell::Port(port, value) => {
                self.fd.unregister_ioevent(event, &IoEventAddress::Pio(port.into()), value)?;
            }
        }
        Ok(())
    }

    fn pages(&self, sight: Sight, count: u64) -> io::Result<Box<dyn Pages>> {
        let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(SlotPages::new(self.clone(), slot, sight, count)?))
    }

    fn defer_writes(&self, range: Range<u64>, is_on: bool) -> io::Result<()> {
        let address = IoEventAddress::Mmio(range.start);
        let len = u32::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
        match is_on {
            true => self.fd.register_coalesced_mmio(address, len)?,
            false => self.fd.unregister_coalesced_mmio(address, len)?,
        }
        Ok(())
    }
}

/// An input of the I/O APIC.
struct Input {
    vm: Vm,
    gsi: u32,
}

impl Line for Input {
    fn set(&self, is_high: bool) -> io::Result<()> {
        self.vm.set_line(self.gsi, is_high)
    }
}

/// Whether the device's file, or the driver behind it, is what is missing.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

/// KVM_CREATE_VM fails when a signal arrives, a child's end for one.
fn create_vm(kvm: &kvm_ioctls::Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            Err(source) if source.errno() == libc::EBUSY => return Err(Error::Busy { source }),
            result => return result.map_err(Error::call("make a VM", "KVM_CREATE_VM")),
        }
    }
}

fn enable(vm: &VmFd, capability: u32, argument: u32) -> Result<(), errno::Error> {
    let args = [argument.into(), 0, 0, 0];
    vm.enable_cap(&kvm_enable_cap { cap: capability, args, ..Default::default() })
}

/// No performance counters, as CPUID says. AMD's are there whatever CPUID says unless they are disabled; a KVM that
/// cannot disable them leaves them to a guest that tries.
fn withhold_counters(vm: &VmFd) {
    let offered = u32::try_from(vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into())).unwrap_or(0);
    if offered & KVM_PMU_CAP_DISABLE != 0 {
        let _ = enable(vm, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE);
    }
}

/// Routes each GSI to the I/O APIC's pin of that number, and nowhere else. KVM's own table has the first 16 at the PIC
/// too, which no guest without one masks.
fn route_to_io_apic(vm: &VmFd) -> Result<(), Error> {
    let mut routes = [kvm_irq_routing_entry::default(); layout::IO_APIC_PINS as usize];
    for (gsi, route) in (0..).zip(&mut routes) {
        route.gsi = gsi;
        route.type_ = KVM_IRQ_ROUTING_IRQCHIP;
        let irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin: gsi };
        route.u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
    }
    KvmIrqRouting::from_entries(&routes)
        .map_err(|_| errno::Error::new(libc::E2BIG))
        .and_then(|table| vm.set_gsi_routing(&table))
        .map_err(Error::call("route interrupts to the I/O APIC", "KVM_SET_GSI_ROUTING"))
}
