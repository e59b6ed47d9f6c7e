//! The state in which the guest's processors start: CPUID, model specific registers, and the boot processor's registers.
//!
//! What KVM's reset leaves right is not set again: floating point (control word 0x37f, MXCSR 0x1f80), PAT, the system
//! call registers, the time stamp counters, which KVM starts together, and the local APICs. LINT0 stays as KVM has it,
//! open for a PIC on the boot processor: no interrupt is routed to KVM's PIC, and Linux writes both LINTs itself. The
//! other processors wait for INIT and SIPI, as KVM makes them.

use boot::{Entry, Segment, TableRegister};
use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::cpuid::{self, Facts};
use crate::kvm::{Error, Kvm, Vm};

/// `IA32_MISC_ENABLE`: fast strings, without which Linux copies memory in a slower way; no branch traces, no precise
/// event sampling (Intel SDM volume 4, table 2-2).
const MISC_ENABLE: kvm_msr_entry = msr(0x1a0, 1 << 0 | 1 << 11 | 1 << 12);
/// `IA32_MTRR_DEF_TYPE`: MTRRs on, all memory write-back, the fixed ranges off. Devices' memory is uncached by the
/// guest's page tables (Intel SDM volume 3, 12.11.2.1).
const MTRR_DEFAULT: kvm_msr_entry = msr(0x2ff, 1 << 11 | 6);

const fn msr(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, reserved: 0 }
}

/// Makes processor 0 of `vcpus` ready to start at `entry`, and the others to be started by the guest.
///
/// # Errors
///
/// A call that failed.
pub fn configure(kvm: &Kvm, vm: &Vm, vcpus: &[VcpuFd], entry: &Entry) -> Result<(), Error> {
    let Some(boot) = vcpus.first() else { return Ok(()) };
    let facts = Facts {
        cpus: u32::try_from(vcpus.len()).unwrap_or(u32::MAX),
        tsc_khz: boot.get_tsc_khz().ok().filter(|&khz| khz != 0),
        has_tsc_deadline: kvm.has_tsc_deadline(),
    };
    let mut cpuid = kvm.supported_cpuid().clone();
    cpuid::prepare(&mut cpuid, &facts);
    for (index, vcpu) in (0..).zip(vcpus) {
        let attempt = || format!("set up vCPU {index}");
        cpuid::set_apic_id(&mut cpuid, index);
        vcpu.set_cpuid2(&cpuid).map_err(|e| Error::call(attempt(), "KVM_SET_CPUID2")(e))?;
        set_msrs(vcpu).map_err(|e| Error::call(attempt(), "KVM_SET_MSRS")(e))?;
        if vm.has_extended_ids() {
            enable_x2apic(vcpu).map_err(|e| Error::call(attempt(), "KVM_SET_SREGS")(e))?;
        }
    }
    set_system_registers(boot, entry).map_err(Error::call("set up vCPU 0", "KVM_SET_SREGS"))?;
    let registers = kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rbx: entry.rbx,
        rsi: entry.rsi,
        rflags: entry.rflags,
        ..Default::default()
    };
    boot.set_regs(&registers).map_err(Error::call("set up vCPU 0", "KVM_SET_REGS"))
}

/// Sets those of the registers that this KVM and its processor have.
fn set_msrs(vcpu: &VcpuFd) -> Result<(), vmm_sys_util::errno::Error> {
    let mut wanted = &[MISC_ENABLE, MTRR_DEFAULT][..];
    while !wanted.is_empty() {
        let Ok(msrs) = Msrs::from_entries(wanted) else { break };
        // KVM stops at the first that it does not know, and tells how many were before.
        let done = vcpu.set_msrs(&msrs)?;
        wanted = wanted.get(done.saturating_add(1)..).unwrap_or_default();
    }
    Ok(())
}

/// Switches the local APIC to x2APIC mode, as firmware does where APIC ids exceed 8 bits: Linux ignores processors that
/// it cannot address from the start.
fn enable_x2apic(vcpu: &VcpuFd) -> Result<(), vmm_sys_util::errno::Error> {
    const X2APIC: u64 = 1 << 10;
    let mut registers = vcpu.get_sregs()?;
    registers.apic_base |= X2APIC;
    vcpu.set_sregs(&registers)
}

fn set_system_registers(vcpu: &VcpuFd, entry: &Entry) -> Result<(), vmm_sys_util::errno::Error> {
    let mut registers = vcpu.get_sregs()?;
    registers.cs = segment(entry.code);
    let data = segment(entry.data);
    (registers.ds, registers.es, registers.fs, registers.gs, registers.ss) = (data, data, data, data, data);
    let TableRegister { base, limit } = entry.gdt;
    registers.gdt = kvm_dtable { base, limit, ..Default::default() };
    registers.idt = kvm_dtable::default();
    (registers.cr0, registers.cr3, registers.cr4) = (entry.cr0, entry.cr3, entry.cr4);
    registers.efer = entry.efer;
    vcpu.set_sregs(&registers)
}

fn segment(segment: Segment) -> kvm_segment {
    kvm_segment {
        base: Segment::BASE,
        limit: Segment::LIMIT,
        selector: segment.selector,
        type_: segment.kind,
        present: Segment::IS_PRESENT.into(),
        dpl: Segment::PRIVILEGE,
        db: segment.is_32_bit.into(),
        s: Segment::IS_CODE_OR_DATA.into(),
        l: segment.is_64_bit.into(),
        g: Segment::IS_LIMIT_IN_PAGES.into(),
        ..Default::default()
    }
}
