//! A machine for small guests: a recorder that they can talk to, the power registers, and the assembler's help.

use std::path::Path;
use std::sync::{Arc, Mutex};

use boot::{Entry, Segment, TableRegister};
use devices::power::Power;
use devices::vdev::{Access, Effect, Region, Vdev};
use kvm_ioctls::VcpuFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm::bus::{Bus, Map, Space};
use vmm::cpu;
use vmm::kvm::{Kvm, Vm};
use vmm::layout::{self, MIB};
use vmm::memory::{Pages, Ram};
use vmm::vcpu::{Manner, Outcome, Vcpus};

/// Where a guest's code begins.
pub const CODE: u64 = 0x10_0000;
/// Where a guest keeps data.
pub const DATA: u64 = 0x20_0000;
/// Where the processors begin that the guest starts itself, in 16-bit mode.
pub const TRAMPOLINE: u64 = 0x8000;
/// The recorder's registers.
const PORTS: u64 = 0x500;
pub const MEMORY: u64 = layout::PLATFORM_MEMORY.start;

/// Defines a function that returns the machine code of these lines of assembly.
macro_rules! guest {
    ($name:ident: $($line:literal)+) => {
        std::arch::global_asm!(
            ".pushsection .rodata.guests, \"a\"",
            concat!("guest_", stringify!($name), ":"),
            $($line,)+
            concat!("guest_", stringify!($name), "_end:"),
            ".code64",
            ".popsection",
            concat!(".globl guest_", stringify!($name)),
            concat!(".globl guest_", stringify!($name), "_end"),
        );
        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("guest_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("guest_", stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: the bytes between the two symbols are those assembled above.
            unsafe {
                let (start, end) = (&raw const START, &raw const END);
                std::slice::from_raw_parts(start, end.addr() - start.addr())
            }
        }
    };
}
pub(crate) use guest;

/// Remembers accesses; reads as 0x11, 0x22, ...
#[derive(Default)]
pub struct Recorder {
    seen: Mutex<Vec<Seen>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Read(Region, u64, usize),
    Write(Region, u64, Vec<u8>),
}

impl Vdev for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }
    fn vread(&self, at: Access, data: &mut [u8]) {
        data.iter_mut().zip(1..).for_each(|(byte, n): (_, u8)| *byte = n * 0x11);
        self.seen.lock().unwrap().push(Seen::Read(at.region, at.offset, data.len()));
    }
    fn vwrite(&self, at: Access, data: &[u8]) -> Effect {
        self.seen.lock().unwrap().push(Seen::Write(at.region, at.offset, data.to_vec()));
        Effect::None
    }
}

/// A machine with the recorder and the power registers.
pub struct Machine {
    pub vm: Vm,
    pub ram: Ram,
    pub vcpus: Vec<VcpuFd>,
    pub bus: Arc<Bus>,
    recorder: Arc<Recorder>,
}

pub fn kvm() -> Option<Kvm> {
    if !Path::new(vmm::kvm::DEVICE).exists() {
        eprintln!("no {}: nothing tested", vmm::kvm::DEVICE);
        return None;
    }
    Some(Kvm::open().unwrap())
}

impl Machine {
    pub fn new(cpus: u32, code: &[u8]) -> Option<Self> {
        let kvm = kvm()?;
        kvm.check(cpus, &layout::ram(64 * MIB)).unwrap();
        let vm = Vm::new(&kvm, cpus).unwrap();
        let ram = Ram::new(&layout::ram(64 * MIB), Pages::Transparent, false).unwrap();
        vm.map_ram(&ram).unwrap();
        vm.create_interrupt_chips().unwrap();
        let vcpus: Vec<VcpuFd> = (0..cpus).map(|index| vm.create_vcpu(index).unwrap()).collect();
        ram.guest().write_slice(code, GuestAddress(CODE)).unwrap();
        cpu::configure(&kvm, &vm, &vcpus, &entry(&ram)).unwrap();

        let recorder = Arc::new(Recorder::default());
        let mut map = Map::default();
        let at = |region| Access { region, offset: 0 };
        map.attach(Space::Port, PORTS..PORTS + 16, at(Region::Port), recorder.clone()).unwrap();
        map.attach(Space::Port, layout::POWER_PORTS, at(Region::Port), Arc::new(Power)).unwrap();
        map.attach(Space::Memory, layout::PLATFORM_MEMORY, at(Region::Memory), recorder.clone()).unwrap();
        Some(Self { vm, ram, vcpus, bus: Arc::new(map.freeze()), recorder })
    }

    pub fn start(&mut self) -> Vcpus {
        Vcpus::start(std::mem::take(&mut self.vcpus), Arc::clone(&self.bus), &Manner::default()).unwrap()
    }

    /// Runs the guest until it ends by itself.
    pub fn run(&mut self) -> Outcome {
        let mut vcpus = self.start();
        wait(&vcpus);
        vcpus.stop_and_join().unwrap()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.recorder.seen.lock().unwrap().clone()
    }

    pub fn qword(&self, address: u64) -> u64 {
        self.ram.guest().read_obj(GuestAddress(address)).unwrap()
    }
}

pub fn wait(vcpus: &Vcpus) {
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    let count = poll(&mut [PollFd::new(vcpus.ended(), PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(count, 1, "the guest does not end");
}

/// The state of 64-bit code at [`CODE`], with page tables to match in `ram`.
fn entry(ram: &Ram) -> Entry {
    const PML4: u64 = 0x3000;
    let put = |address, value: u64| ram.guest().write_obj(value, GuestAddress(address)).unwrap();
    put(PML4, 0x4000 | 3);
    for table in 0..4 {
        put(0x4000 + table * 8, (0x5000 + table * 0x1000) | 3);
        for page in 0..512 {
            put(0x5000 + table * 0x1000 + page * 8, table << 30 | page << 21 | 0x83);
        }
    }
    let code = Segment { selector: 0x10, kind: 0xb, is_64_bit: true, is_32_bit: false };
    let data = Segment { selector: 0x18, kind: 0x3, is_64_bit: false, is_32_bit: true };
    put(0x1010, code.descriptor());
    put(0x1018, data.descriptor());
    Entry {
        rip: CODE,
        rsp: 0xb000,
        rbx: 0,
        rsi: DATA,
        rflags: 2,
        cr0: 0x8000_0031,
        cr3: PML4,
        cr4: 0x20,
        efer: 0x500,
        gdt: TableRegister { base: 0x1000, limit: 31 },
        code,
        data,
    }
}
