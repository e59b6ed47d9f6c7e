//! vCPUs that stand still for a moment, so that their registers and the guest's memory belong together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// A vCPU's registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// The general ones.
    pub general: kvm_regs,
    /// Segments, control registers, descriptor tables.
    pub system: kvm_sregs,
    /// `IA32_KERNEL_GS_BASE`.
    pub kernel_gs_base: u64,
}

impl Registers {
    /// The registers of a vCPU that does not run; zeros are what KVM does not tell.
    pub(super) fn of(vcpu: &VcpuFd) -> Self {
        const KERNEL_GS_BASE: u32 = 0xc000_0102;
        let mut this = Self {
            general: vcpu.get_regs().unwrap_or_default(),
            system: vcpu.get_sregs().unwrap_or_default(),
            kernel_gs_base: 0,
        };
        let wanted = kvm_msr_entry { index: KERNEL_GS_BASE, ..Default::default() };
        if let Ok(mut msrs) = Msrs::from_entries(&[wanted])
            && vcpu.get_msrs(&mut msrs).is_ok_and(|count| count == 1)
        {
            this.kernel_gs_base = msrs.as_slice().first().map_or(0, |msr| msr.data);
        }
        this
    }
}

/// Where vCPUs wait, and what they leave while they do.
pub(super) struct Gate {
    is_wanted: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    is_closed: bool,
    /// Threads that have not ended.
    running: usize,
    waiting: usize,
    registers: Vec<Registers>,
}

impl Gate {
    /// For so many vCPUs. It is open.
    pub(super) fn new(vcpus: usize) -> Self {
        let registers = vec![Registers::default(); vcpus];
        let state = State { is_closed: false, running: vcpus, waiting: 0, registers };
        Self { is_wanted: AtomicBool::new(false), state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a vCPU has to wait. It costs a vCPU one look at each exit.
    pub(super) fn is_closed(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// Has vCPUs that come by wait. Those that do not come have to be kicked after this.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.is_wanted.store(true, Ordering::SeqCst);
    }

    /// Lets them go on.
    pub(super) fn open(&self) {
        self.is_wanted.store(false, Ordering::SeqCst);
        self.state().is_closed = false;
        self.changed.notify_all();
    }

    /// Waits until every vCPU that has not ended waits, and returns the registers of all.
    pub(super) fn registers(&self) -> Vec<Registers> {
        let mut state = self.state();
        while state.waiting < state.running {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.registers.clone()
    }

    /// A vCPU leaves its registers and waits until the gate is open.
    pub(super) fn wait(&self, index: u32, vcpu: &VcpuFd) {
        let mut state = self.state();
        state.leave(index, vcpu);
        state.waiting += 1;
        self.changed.notify_all();
        while state.is_closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    /// A vCPU leaves its registers for good.
    pub(super) fn end(&self, index: u32, vcpu: Option<&VcpuFd>) {
        let mut state = self.state();
        if let Some(vcpu) = vcpu {
            state.leave(index, vcpu);
        }
        state.running = state.running.saturating_sub(1);
        self.changed.notify_all();
    }
}

impl State {
    fn leave(&mut self, index: u32, vcpu: &VcpuFd) {
        let place = usize::try_from(index).ok().and_then(|index| self.registers.get_mut(index));
        if let Some(place) = place {
            *place = Registers::of(vcpu);
        }
    }
}
