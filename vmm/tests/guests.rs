//! Small guests of a few instructions on the host's KVM: what the runner makes of their exits, and how it stops them.
//!
//! They start as boot starts a kernel, in 64-bit mode with 4 GiB mapped to themselves, but without one. A host without
//! KVM passes them by.

mod machine;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::vdev::{Access, Effect, Reason, Region, Vdev};
use pci::host::{Bell, Host};
use vm_memory::{Bytes, GuestAddress};
use vmm::bus::{Map, Space};
use vmm::kvm::{Error, Kvm};
use vmm::layout::{self, MIB};
use vmm::vcpu::Outcome;
use vmm_sys_util::eventfd::EventFd;

use machine::{CODE, DATA, MEMORY, Machine, Seen, TRAMPOLINE, guest, kvm, wait};

const POWERED_OFF: Outcome = Outcome::Guest(Reason::PowerOff);

guest! { accesses:
    "mov dx, 0x500"
    "mov al, 0x41"
    "out dx, al"
    "in ax, dx"
    "mov [rsi], ax"
    "mov ebx, 0xf8000000"
    "mov rax, 0x1122334455667788"
    "mov [rbx + 8], rax"
    "mov [rbx + 3], al"
    "mov ecx, [rbx + 4]"
    "mov [rsi + 8], rcx"
    "mov edx, 0x604"
    "in eax, dx"
    "mov [rsi + 16], rax"
    "mov edx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "ud2"
}

#[test]
fn accesses_reach_their_device_with_their_width_and_the_guest_powers_off() {
    let Some(mut machine) = Machine::new(1, accesses()) else { return };
    let outcome = machine.run();
    assert_eq!(outcome, POWERED_OFF);
    assert_eq!(outcome.exit_status(), 0);
    use Region::{Memory, Port};
    assert_eq!(
        machine.seen(),
        [
            Seen::Write(Port, 0, vec![0x41]),
            Seen::Read(Port, 0, 2),
            Seen::Write(Memory, 8, vec![0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
            Seen::Write(Memory, 3, vec![0x88]),
            Seen::Read(Memory, 4, 4),
        ]
    );
    assert_eq!(machine.qword(DATA), 0x2211);
    assert_eq!(machine.qword(DATA + 8), 0x4433_2211);
    assert_eq!(machine.qword(DATA + 16), 0xffff_ffff);
    assert_eq!(machine.bus.vacant_accesses(), 1);
}

guest! { strings:
    "cld"
    "mov edx, 0x500"
    "mov ecx, 5"
    "rep outsb"
    "mov edx, 0x502"
    "mov ecx, 2"
    "rep outsw"
    "mov edx, 0x504"
    "mov ecx, 3"
    "mov edi, 0x201000"
    "rep insw"
    "mov edx, 0x602"
    "mov al, 1"
    "out dx, al"
    "ud2"
}

#[test]
fn string_instructions_hand_out_one_item_at_a_time() {
    let Some(mut machine) = Machine::new(1, strings()) else { return };
    machine.ram.guest().write_slice(b"hello1234", GuestAddress(DATA)).unwrap();
    assert_eq!(machine.run(), Outcome::Guest(Reason::Reset));
    let write = |offset, text: &[u8]| Seen::Write(Region::Port, offset, text.to_vec());
    let mut expected: Vec<Seen> = b"hello".iter().map(|&byte| write(0, &[byte])).collect();
    expected.extend([write(2, b"12"), write(2, b"34")]);
    expected.extend(vec![Seen::Read(Region::Port, 4, 2); 3]);
    assert_eq!(machine.seen(), expected);
    assert_eq!(machine.qword(DATA + 0x1000), 0x2211_2211_2211);
}

guest! { crash: "ud2" }

#[test]
fn a_triple_fault_is_not_a_clean_end() {
    let Some(mut machine) = Machine::new(1, crash()) else { return };
    let outcome = machine.run();
    // AMD's processors leave the reset vector behind.
    assert!(matches!(outcome, Outcome::TripleFault { vcpu: 0, rip: CODE | 0xfff0 }), "{outcome}");
    assert_eq!(outcome.exit_status(), 96);
    assert!(outcome.to_string().starts_with("triple fault of vCPU 0, RIP 0x"), "{outcome}");
}

guest! { astray:
    "mov eax, 0xd0000000"
    "jmp rax"
}

#[test]
fn what_kvm_cannot_run_is_named_with_its_place() {
    let Some(mut machine) = Machine::new(1, astray()) else { return };
    let outcome = machine.run();
    assert_eq!(outcome.exit_status(), 5, "{outcome}");
    let text = outcome.to_string();
    assert!(text.contains("RIP 0xd0000000") && text.contains("KVM_EXIT_INTERNAL_ERROR"), "{text}");
}

guest! { poke: "mov edx, 0x700" "out dx, al" }

#[test]
fn a_defect_of_a_device_ends_the_run_and_is_no_clean_end() {
    struct Broken;
    impl Vdev for Broken {
        fn name(&self) -> &str {
            "broken"
        }
        fn vread(&self, _: Access, _: &mut [u8]) {}
        fn vwrite(&self, _: Access, _: &[u8]) -> Effect {
            panic!("this panic is part of a test")
        }
    }
    let Some(mut machine) = Machine::new(2, poke()) else { return };
    let mut map = Map::default();
    map.attach(Space::Port, 0x700..0x701, Access { region: Region::Port, offset: 0 }, Arc::new(Broken))
        .unwrap();
    machine.bus = Arc::new(map.freeze());
    let outcome = machine.run();
    assert_eq!(outcome, Outcome::Panicked { vcpu: 0 });
    assert_eq!(outcome.exit_status(), 7);
}

guest! { spin: "2: jmp 2b" }
guest! { halt: "2: hlt" "jmp 2b" }
guest! { storm: "mov edx, 0x500" "2: out dx, al" "jmp 2b" }

#[test]
fn a_guest_stops_promptly_wherever_it_is() {
    for code in [spin(), halt(), storm()] {
        let Some(mut machine) = Machine::new(2, code) else { return };
        let mut vcpus = machine.start();
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        assert_eq!(vcpus.stop_and_join(), None);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        let seen = machine.seen().len();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(machine.seen().len(), seen);
    }
}

#[test]
fn a_stop_is_not_lost_at_the_start() {
    for round in 0..40 {
        let Some(mut machine) = Machine::new(2, halt()) else { return };
        let vcpus = machine.start();
        std::thread::sleep(Duration::from_micros(round * 13));
        drop(vcpus);
    }
}

guest! { count:
    "mov edx, 0x500"
    "mov ecx, 7"
    "2: out dx, al"
    "loop 2b"
    "mov ebx, 0xf8000000"
    "mov eax, [rbx]"
    "mov edx, 0x602"
    "mov al, 1"
    "out dx, al"
}

#[test]
fn exits_are_counted_by_kind() {
    let Some(mut machine) = Machine::new(1, count()) else { return };
    let mut vcpus = machine.start();
    wait(&vcpus);
    vcpus.stop_and_join();
    let counts = vcpus.exit_counts();
    assert_eq!((counts.len(), counts[0].memory, counts[0].port), (1, 1, 8));
}

// Enables its local APIC, starts processor 1, waits for its sign at DATA, and powers off.
guest! { start_other:
    "mov ebx, 0xfee00000"
    "mov dword ptr [rbx + 0xf0], 0x1ff"
    "mov dword ptr [rbx + 0x310], 0x01000000"
    "mov dword ptr [rbx + 0x300], 0x00004500"
    "mov dword ptr [rbx + 0x310], 0x01000000"
    "mov dword ptr [rbx + 0x300], 0x00004608"
    "2: pause"
    "cmp dword ptr [rsi], 0"
    "je 2b"
    "mov edx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "ud2"
}
// Tells its APIC id, by leaf 1 and by leaf 0xb, and sleeps.
guest! { other:
    ".code16"
    "mov eax, 1"
    "cpuid"
    "mov eax, ebx"
    "mov dx, 0x500"
    "out dx, eax"
    "mov eax, 0x0b"
    "mov ecx, 1"
    "cpuid"
    "mov eax, edx"
    "mov dx, 0x500"
    "out dx, eax"
    "2: hlt"
    "jmp 2b"
}

#[test]
fn another_processor_waits_for_init_and_sipi_and_knows_its_apic_id() {
    let Some(mut machine) = Machine::new(2, start_other()) else { return };
    machine.ram.guest().write_slice(other(), GuestAddress(TRAMPOLINE)).unwrap();
    let mut vcpus = machine.start();
    let start = Instant::now();
    while machine.seen().len() < 2 && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    machine.ram.guest().write_obj(1u32, GuestAddress(DATA)).unwrap();
    wait(&vcpus);
    assert_eq!(vcpus.stop_and_join(), Some(POWERED_OFF));
    let Seen::Write(_, 0, first) = &machine.seen()[0] else { panic!("{:?}", machine.seen()) };
    assert_eq!(first[3], 1, "APIC id of leaf 1");
    assert_eq!(machine.seen()[1], Seen::Write(Region::Port, 0, vec![1, 0, 0, 0]), "x2APIC id of leaf 0xb");
}

guest! { ring:
    "mov ebx, 0xf8000000"
    "mov eax, 7"
    "mov [rbx], al"
    "mov [rbx], ax"
    "mov [rbx], eax"
    "mov [rbx + 4], eax"
    "mov edx, 0x500"
    "out dx, ax"
    "mov eax, 8"
    "out dx, ax"
    "out dx, al"
    "mov edx, 0x600"
    "mov al, 0x34"
    "out dx, al"
    "ud2"
}

#[test]
fn doorbells_ring_without_an_exit_and_others_do_not() {
    let Some(mut machine) = Machine::new(1, ring()) else { return };
    let (memory, port) =
        (EventFd::new(libc::EFD_NONBLOCK).unwrap(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
    machine.vm.bind_doorbell(Bell::Memory(MEMORY), &memory).unwrap();
    machine.vm.bind_doorbell(Bell::Port(0x500, 7), &port).unwrap();
    assert!(machine.vm.bind_doorbell(Bell::Memory(MEMORY), &memory).is_err(), "taken");
    machine.vm.bind_doorbell(Bell::Memory(MEMORY + 4), &memory).unwrap();
    machine.vm.unbind_doorbell(Bell::Memory(MEMORY + 4), &memory).unwrap();
    assert_eq!(machine.run(), POWERED_OFF);
    assert_eq!((memory.read().unwrap(), port.read().unwrap()), (3, 1));
    assert_eq!(
        machine.seen(),
        [
            Seen::Write(Region::Memory, 4, vec![7, 0, 0, 0]),
            Seen::Write(Region::Port, 0, vec![8, 0]),
            Seen::Write(Region::Port, 0, vec![8]),
        ]
    );
}

#[test]
fn interrupts_are_accepted_and_messages_to_nobody_are_lost() {
    let Some(machine) = Machine::new(1, halt()) else { return };
    machine.vm.send_msi(0xfee0_0000, 0x41).unwrap();
    machine.vm.send_msi(0xfee3_f000, 0x41).unwrap();
    machine.vm.send_msi(0xffff_ffff_0000_0000, 0).unwrap();
    let line = machine.vm.line(layout::PCI_GSIS.end - 1);
    line.set(true).unwrap();
    line.set(false).unwrap();
}

#[test]
fn what_kvm_resets_needs_no_setting() {
    let Some(machine) = Machine::new(2, halt()) else { return };
    for vcpu in &machine.vcpus {
        let region = vcpu.get_xsave().unwrap().region;
        assert_eq!((region[0] & 0xffff, region[6]), (0x37f, 0x1f80), "FCW and MXCSR");
    }
    let states: Vec<u32> = machine.vcpus.iter().map(|vcpu| vcpu.get_mp_state().unwrap().mp_state).collect();
    assert_eq!(states, [kvm_bindings::KVM_MP_STATE_RUNNABLE, kvm_bindings::KVM_MP_STATE_UNINITIALIZED]);
}

#[test]
fn more_processors_than_eight_bits_can_name_are_set_up() {
    let Some(mut machine) = Machine::new(300, halt()) else { return };
    let cpuid = machine.vcpus[299].get_cpuid2(256).unwrap();
    let id = cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (0xb, 1)).unwrap();
    assert_eq!((id.eax, id.ebx, id.edx), (9, 300, 299));
    assert_ne!(machine.vcpus[299].get_sregs().unwrap().apic_base & 1 << 10, 0);
    machine.vm.send_msi(0xfee2_b020, 0x41).unwrap();
    let mut vcpus = machine.start();
    assert_eq!(vcpus.stop_and_join(), None);
}

#[test]
fn a_device_that_is_no_kvm_is_refused_with_what_to_do() {
    let error = |path: &str| Kvm::open_at(Path::new(path)).map(|_| ()).unwrap_err();
    let absent = error("/nonexistent/kvm");
    assert!(matches!(absent, Error::Absent { .. }) && absent.to_string().contains("kvm_intel"), "{absent}");
    let other = error("/dev/null");
    assert!(matches!(other, Error::ApiVersion { .. }) && other.to_string().contains("/dev/null"), "{other}");
}

#[test]
fn a_guest_that_kvm_cannot_have_is_refused_before_it_is_made() {
    let Some(kvm) = kvm() else { return };
    assert!(matches!(kvm.check(0, &layout::ram(64 * MIB)), Err(Error::Cpus { asked: 0, .. })));
    let many = kvm.check(1 << 20, &layout::ram(64 * MIB)).unwrap_err();
    assert!(many.to_string().starts_with("cannot make 1048576 vCPUs"), "{many}");
    assert!(matches!(kvm.check(1, &layout::ram(1 << 60)), Err(Error::PhysicalBits { .. })));
    kvm.check(1, &layout::ram(8 << 30)).unwrap();
}
