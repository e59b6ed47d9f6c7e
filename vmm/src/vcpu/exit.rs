//! What KVM's shared page says of an exit beyond what kvm-ioctls shows of it.

use std::ptr::NonNull;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO,
    KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
    kvm_run,
};
use kvm_ioctls::VcpuFd;

/// The page that a vCPU shares with KVM, to be looked at while kvm-ioctls has lent out the data of an exit.
pub(super) struct Page(NonNull<kvm_run>);

impl Page {
    #[expect(unsafe_code, reason = "the page goes with the vCPU, which the compiler cannot see")]
    /// The page of `vcpu`.
    ///
    /// # Safety
    ///
    /// No method may be called after `vcpu` was dropped.
    pub(super) unsafe fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(vcpu.get_kvm_run()))
    }

    /// After an exit for a port: the bytes of one access (1, 2 or 4), of which a string instruction makes several.
    pub(super) fn port_width(&self) -> usize {
        #[expect(unsafe_code, reason = "what an exit means is in a union")]
        // SAFETY: the page is mapped (see `of`), any bytes are a valid `io`, and KVM writes only inside KVM_RUN. The
        // data that kvm-ioctls lends out for such an exit lies on another page.
        let io = unsafe { (*self.0.as_ptr()).__bindgen_anon_1.io };
        usize::from(io.size).max(1)
    }
}

/// The name of the exit that `run` tells, with what KVM adds to it.
pub(super) fn describe(run: &kvm_run) -> String {
    let reason = run.exit_reason;
    let name = usize::try_from(reason).ok().and_then(|reason| NAMES.get(reason));
    let name = name.map_or_else(|| format!("KVM exit {reason}"), |name| format!("KVM_EXIT_{name}"));
    let detail = &run.__bindgen_anon_1;
    #[expect(unsafe_code, reason = "what an exit means is in a union")]
    // SAFETY: all of these are plain integers, for which any bytes are valid.
    let (entry, internal, event, fault) =
        unsafe { (detail.fail_entry, detail.internal, detail.system_event, detail.memory_fault) };
    #[expect(unsafe_code, reason = "what an exit means is in a union")]
    // SAFETY: as above.
    let (io, mmio, msr) = unsafe { (detail.io, detail.mmio, detail.msr) };
    match reason {
        KVM_EXIT_FAIL_ENTRY => {
            let (reason, cpu) = (entry.hardware_entry_failure_reason, entry.cpu);
            format!("{name}: the processor refuses the guest's state, reason {reason:#x} on host CPU {cpu}")
        }
        KVM_EXIT_INTERNAL_ERROR => {
            let data = internal.data.get(..internal.ndata as usize).unwrap_or(&internal.data);
            format!("{name}: {}, data {data:x?}", suberror(internal.suberror))
        }
        KVM_EXIT_SYSTEM_EVENT => format!("{name}: type {}", event.type_),
        KVM_EXIT_IO => {
            let way = if io.direction == 0 { "read of" } else { "write to" };
            format!("{name}: {}-byte {way} port {:#x}", io.size, io.port)
        }
        KVM_EXIT_MMIO => {
            let way = if mmio.is_write == 0 { "read" } else { "write" };
            format!("{name}: {}-byte {way} at guest address {:#x}", mmio.len, mmio.phys_addr)
        }
        KVM_EXIT_X86_RDMSR => format!("{name}: model-specific register {:#x}", msr.index),
        KVM_EXIT_X86_WRMSR => format!("{name}: model-specific register {:#x}, {:#x}", msr.index, msr.data),
        KVM_EXIT_MEMORY_FAULT => format!("{name}: {:#x} bytes at guest address {:#x}", fault.size, fault.gpa),
        _ => name,
    }
}

fn suberror(number: u32) -> String {
    match number {
        KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM cannot emulate".into(),
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once".into(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered".into(),
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that KVM itself does not know".into(),
        other => format!("suberror {other}"),
    }
}

/// The exits by number, as `linux/kvm.h` names them after `KVM_EXIT_`.
const NAMES: [&str; 40] = [
    "UNKNOWN",
    "EXCEPTION",
    "IO",
    "HYPERCALL",
    "DEBUG",
    "HLT",
    "MMIO",
    "IRQ_WINDOW_OPEN",
    "SHUTDOWN",
    "FAIL_ENTRY",
    "INTR",
    "SET_TPR",
    "TPR_ACCESS",
    "S390_SIEIC",
    "S390_RESET",
    "DCR",
    "NMI",
    "INTERNAL_ERROR",
    "OSI",
    "PAPR_HCALL",
    "S390_UCONTROL",
    "WATCHDOG",
    "S390_TSCH",
    "EPR",
    "SYSTEM_EVENT",
    "S390_STSI",
    "IOAPIC_EOI",
    "HYPERV",
    "ARM_NISV",
    "X86_RDMSR",
    "X86_WRMSR",
    "DIRTY_RING_FULL",
    "AP_RESET_HOLD",
    "X86_BUS_LOCK",
    "XEN",
    "RISCV_SBI",
    "RISCV_CSR",
    "NOTIFY",
    "LOONGARCH_IOCSR",
    "MEMORY_FAULT",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: u32) -> kvm_run {
        kvm_run { exit_reason: reason, ..Default::default() }
    }

    #[test]
    fn exits_have_their_names() {
        assert_eq!(describe(&exit(kvm_bindings::KVM_EXIT_HYPERCALL)), "KVM_EXIT_HYPERCALL");
        assert_eq!(describe(&exit(kvm_bindings::KVM_EXIT_NOTIFY)), "KVM_EXIT_NOTIFY");
        assert_eq!(describe(&exit(77)), "KVM exit 77");
    }

    #[test]
    fn an_internal_error_tells_what_kvm_adds() {
        let mut run = exit(KVM_EXIT_INTERNAL_ERROR);
        run.__bindgen_anon_1.internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
        run.__bindgen_anon_1.internal.ndata = 2;
        run.__bindgen_anon_1.internal.data = [0xab; 16];
        let text = "KVM_EXIT_INTERNAL_ERROR: an instruction that KVM cannot emulate, data [ab, ab]";
        assert_eq!(describe(&run), text);
        run.__bindgen_anon_1.internal.ndata = u32::MAX;
        assert!(describe(&run).len() > text.len());
    }

    #[test]
    fn a_refused_entry_tells_the_reason() {
        let mut run = exit(KVM_EXIT_FAIL_ENTRY);
        run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason = 0x8000_0021;
        assert!(describe(&run).contains("0x80000021"));
    }
}
