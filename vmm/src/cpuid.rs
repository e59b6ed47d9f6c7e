//! What the guest's processors say of themselves: KVM's list of what it supports, made true for this machine.
//!
//! KVM's list describes the host's processor. Three kinds of things in it are not the guest's: where a processor sits
//! (package, core, shared caches), how fast its clock is, and what mote does not offer (performance counters, AMX).
//! Leaf and register names are those of the Intel SDM (volume 2, CPUID) and the AMD APM (volume 3, appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What the leaves depend on beside the host's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How many processors there are: the cores of one package, of one thread each. A core's APIC id is its index.
    pub cpus: u32,
    /// Their time stamp counter's frequency in kHz, where the host tells it.
    pub tsc_khz: Option<u32>,
    /// Whether KVM's local APIC has the TSC deadline timer, which its list did not say before Linux 6.14.
    pub has_tsc_deadline: bool,
}

/// With more processors than this, some have APIC ids that 8 bits cannot name (255 means all).
pub const MOST_SHORT_IDS: u32 = 255;

/// Local APIC timers count this many times a second (KVM's `APIC_BUS_CYCLE_NS` is 1).
const APIC_HZ: u32 = 1_000_000_000;
const APIC_KHZ: u32 = APIC_HZ / 1000;

/// KVM's features (`Documentation/virt/kvm/x86/cpuid.rst`), and where the frequencies are by VMware's convention.
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
const FREQUENCIES: u32 = 0x4000_0010;
/// "KVMK", the first word of KVM's signature.
const KVM_SIGNATURE_EBX: u32 = u32::from_le_bytes(*b"KVMK");
/// `KVM_FEATURE_MSI_EXT_DEST_ID`: MSI addresses name 15 bits of APIC id.
const MSI_EXTENDED_DESTINATIONS: u32 = 1 << 15;

/// Changes KVM's list to what all processors of the machine have in common.
pub fn prepare(cpuid: &mut CpuId, facts: &Facts) {
    let vendor = Vendor::of(cpuid);
    for entry in cpuid.as_mut_slice() {
        set_features(entry, facts);
        set_topology(entry, facts.cpus, vendor);
    }
    withhold_amx(cpuid);
    replace_extended_topology(cpuid, facts.cpus);
    if let Some(khz) = facts.tsc_khz {
        set_frequency(cpuid, khz, vendor);
    }
}

/// Changes the list to that of processor `index`, whosever it was before.
pub fn set_apic_id(cpuid: &mut CpuId, index: u32) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = field(entry.ebx, 24, 8, index & 0xff),
            0xb => entry.edx = index,
            0x8000_001e => {
                entry.eax = index;
                entry.ebx = field(entry.ebx, 0, 8, index & 0xff);
            }
            _ => {}
        }
    }
}

/// The width of the guest's physical addresses in bits.
#[must_use]
pub fn physical_bits(cpuid: &CpuId) -> u32 {
    match find(cpuid, 0x8000_0008).map(|entry| entry.eax & 0xff) {
        // What a processor without the leaf has.
        None | Some(0) => 36,
        Some(bits) => bits,
    }
}

/// Who made the processor, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD and Hygon, and whoever else keeps to AMD's extended leaves.
    Amd,
}

impl Vendor {
    fn of(cpuid: &CpuId) -> Self {
        match find(cpuid, 0).map(|entry| entry.ebx.to_le_bytes()) {
            Some(name) if name == *b"Genu" => Self::Intel,
            _ => Self::Amd,
        }
    }
}

fn set_features(entry: &mut kvm_cpuid_entry2, facts: &Facts) {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const PERFORMANCE_CAPABILITIES: u32 = 1 << 15;
    // PerfCtrExtCore, PerfCtrExtNB and PerfCtrExtLLC.
    const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
    match entry.function {
        1 => {
            entry.ecx |= X2APIC | HYPERVISOR;
            entry.ecx &= !PERFORMANCE_CAPABILITIES;
            if facts.has_tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
        }
        // No performance counters: with them Linux runs its lockup detector on one, at the price of exits.
        0xa | 0x8000_0022 => clear(entry),
        0x8000_0001 => entry.ecx &= !AMD_COUNTERS,
        KVM_FEATURES if facts.cpus > MOST_SHORT_IDS => entry.eax |= MSI_EXTENDED_DESTINATIONS,
        _ => {}
    }
}

/// One package of `cpus` cores of one thread: the first two levels of cache belong to a core, the others to all.
fn set_topology(entry: &mut kvm_cpuid_entry2, cpus: u32, vendor: Vendor) {
    const HYPER_THREADING: u32 = 1 << 28;
    const CMP_LEGACY: u32 = 1 << 1;
    let is_shared = |eax: u32| eax >> 5 & 7 >= 3;
    let ids = 1 << apic_id_bits(cpus);
    match entry.function {
        1 => {
            entry.ebx = field(entry.ebx, 8, 8, 8); // CLFLUSH in units of 8 bytes
            entry.ebx = field(entry.ebx, 16, 8, ids.min(255));
            entry.edx = set(entry.edx, HYPER_THREADING, cpus > 1);
        }
        4 if entry.eax & 0x1f != 0 => {
            let sharing = if is_shared(entry.eax) { ids - 1 } else { 0 };
            entry.eax = field(entry.eax, 14, 12, sharing.min(0xfff));
            entry.eax = field(entry.eax, 26, 6, (ids - 1).min(0x3f));
        }
        0x8000_0001 if vendor == Vendor::Amd => entry.ecx = set(entry.ecx, CMP_LEGACY, cpus > 1),
        0x8000_0008 if vendor == Vendor::Amd => {
            entry.ecx = field(entry.ecx, 0, 8, (cpus - 1).min(0xff));
            entry.ecx = field(entry.ecx, 12, 4, apic_id_bits(cpus));
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if is_shared(entry.eax) { cpus - 1 } else { 0 };
            entry.eax = field(entry.eax, 14, 12, sharing.min(0xfff));
        }
        // One thread a core, one node a package.
        0x8000_001e => (entry.ebx, entry.ecx) = (0, 0),
        _ => {}
    }
}

/// How many bits tell the cores of a package apart.
fn apic_id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Writes leaf 0xb, whose levels KVM leaves empty, and drops its successor 0x1f, which would have to say the same.
fn replace_extended_topology(cpuid: &mut CpuId, cpus: u32) {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    if find(cpuid, 0).is_some_and(|entry| entry.eax >= 0xb) {
        let level = |index, shift, processors, kind| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: kind | index,
            ..Default::default()
        };
        push(cpuid, level(0, 0, 1, THREADS));
        push(cpuid, level(1, apic_id_bits(cpus), cpus, CORES));
        push(cpuid, level(2, 0, 0, 0));
    }
}

/// KVM's list has AMX's instructions even where its state is withheld, as it is from who has not asked the host for
/// it (`ARCH_REQ_XCOMP_GUEST_PERM`): 8 KiB a processor that few guests want.
fn withhold_amx(cpuid: &mut CpuId) {
    const TILE_STATE: u32 = 1 << 17 | 1 << 18;
    // AMX-BF16, AMX-TILE and AMX-INT8; AMX-FP16 and AMX-COMPLEX.
    const IN_EDX_OF_7_0: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const IN_EAX_OF_7_1: u32 = 1 << 21;
    const IN_EDX_OF_7_1: u32 = 1 << 8;
    let has_state = find(cpuid, 0xd).is_some_and(|entry| entry.eax & TILE_STATE == TILE_STATE);
    if has_state {
        return;
    }
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (7, 0) => entry.edx &= !IN_EDX_OF_7_0,
            (7, 1) => {
                entry.eax &= !IN_EAX_OF_7_1;
                entry.edx &= !IN_EDX_OF_7_1;
            }
            (0x1d | 0x1e, _) => clear(entry),
            _ => {}
        }
    }
}

/// Tells the frequency of the time stamp counter, so that no guest has to measure it. Linux takes it from kvmclock; leaf
/// 0x15 serves a Linux without (on Intel, where alone it looks), 0x4000_0010 the BSDs and others.
fn set_frequency(cpuid: &mut CpuId, khz: u32, vendor: Vendor) {
    let is_kvm = |entry: &kvm_cpuid_entry2| entry.ebx == KVM_SIGNATURE_EBX;
    if let Some(entry) = find_mut(cpuid, KVM_SIGNATURE).filter(|entry| is_kvm(entry)) {
        entry.eax = entry.eax.max(FREQUENCIES);
        cpuid.retain(|entry| entry.function != FREQUENCIES);
        let frequencies =
            kvm_cpuid_entry2 { function: FREQUENCIES, eax: khz, ebx: APIC_KHZ, ..Default::default() };
        push(cpuid, frequencies);
    }
    let ratio = find_mut(cpuid, 0x15).filter(|_| vendor == Vendor::Intel).zip(ratio(khz));
    if let Some((entry, (numerator, denominator))) = ratio {
        // Linux takes the crystal's frequency for that of the local APIC's timer too.
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (denominator, numerator, APIC_HZ, 0);
    }
}

/// The last convergent of `khz / APIC_KHZ` whose numerator times [`APIC_KHZ`] fits the 32 bits that Linux reckons in:
/// exact for a round frequency, and off by a few parts in 100,000 at worst.
fn ratio(khz: u32) -> Option<(u32, u32)> {
    const LARGEST: u32 = u32::MAX / APIC_KHZ;
    let (mut dividend, mut divisor) = (khz, APIC_KHZ);
    let (mut before, mut last) = ((0, 1), (1, 0));
    while divisor != 0 {
        let quotient = dividend / divisor;
        let next = |before: u32, last: u32| quotient.checked_mul(last)?.checked_add(before);
        let (numerator, denominator) = (next(before.0, last.0)?, next(before.1, last.1)?);
        if numerator > LARGEST {
            break;
        }
        (before, last) = (last, (numerator, denominator));
        (dividend, divisor) = (divisor, dividend % divisor);
    }
    Some(last).filter(|&(numerator, denominator)| numerator > 0 && denominator > 0)
}

fn find(cpuid: &CpuId, function: u32) -> Option<&kvm_cpuid_entry2> {
    cpuid.as_slice().iter().find(|entry| entry.function == function)
}

fn find_mut(cpuid: &mut CpuId, function: u32) -> Option<&mut kvm_cpuid_entry2> {
    cpuid.as_mut_slice().iter_mut().find(|entry| entry.function == function)
}

/// Adds a leaf. KVM's list is far from its limit of 256, and a guest does without these if it should not be.
fn push(cpuid: &mut CpuId, entry: kvm_cpuid_entry2) {
    let _ = cpuid.push(entry);
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// `register` with `value` in its `width` bits from `shift` on.
fn field(register: u32, shift: u32, width: u32, value: u32) -> u32 {
    let mask = (1 << width) - 1;
    register & !(mask << shift) | (value & mask) << shift
}

/// `register` with `bits` all one or all zero.
fn set(register: u32, bits: u32, is_one: bool) -> u32 {
    if is_one { register | bits } else { register & !bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// A host with 64 processors, of the vendor whose name begins so.
    fn host(vendor: &[u8; 4]) -> CpuId {
        CpuId::from_entries(&[
            leaf(0, 0, [0x20, u32::from_le_bytes(*vendor), 0, 0]),
            leaf(1, 0, [0, 0x2a40_0f00, 0x8000, 0]),
            leaf(4, 0, [0xfc00_4121, 1, 2, 3]),
            leaf(4, 2, [0xfc00_4143, 1, 2, 3]),
            leaf(4, 3, [0xfc0f_c163, 1, 2, 3]),
            leaf(4, 4, [0; 4]),
            leaf(7, 0, [2, 0, 0, 0x0340_0010]),
            leaf(0xa, 0, [0x0730_0405, 0, 0, 0x603]),
            leaf(0xb, 0, [0, 0, 0, 42]),
            leaf(0xd, 0, [0xe7, 0, 0, 0]),
            leaf(0x15, 0, [0; 4]),
            leaf(0x1f, 0, [0, 0, 0, 42]),
            leaf(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, 0x1180_0000, 0]),
            leaf(0x8000_0008, 0, [0x3930, 0, 0x703f, 0]),
            leaf(0x8000_001d, 0, [0x0010_4121, 0, 0, 0]),
            leaf(0x8000_001d, 3, [0x0010_4163, 0, 0, 0]),
            leaf(0x8000_001e, 0, [42, 0x0115, 0x0301, 0]),
        ])
        .unwrap()
    }

    const FACTS: Facts = Facts { cpus: 1, tsc_khz: None, has_tsc_deadline: true };

    fn guest(vendor: &[u8; 4], facts: Facts) -> CpuId {
        let mut cpuid = host(vendor);
        prepare(&mut cpuid, &facts);
        cpuid
    }

    fn at(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
        let entry = cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index));
        entry.map(|e| [e.eax, e.ebx, e.ecx, e.edx]).unwrap_or_else(|| panic!("no {function:#x}.{index}"))
    }

    #[test]
    fn leaf_1_tells_hypervisor_timer_and_count() {
        let one = at(&guest(b"Genu", FACTS), 1, 0);
        assert_eq!(one[1] >> 8 & 0xffff, 0x0108);
        assert_eq!(one[2], 1 << 31 | 1 << 24 | 1 << 21);
        assert_eq!(one[3] & 1 << 28, 0);
        let six = at(&guest(b"Genu", Facts { cpus: 6, has_tsc_deadline: false, ..FACTS }), 1, 0);
        assert_eq!(six[1] >> 8 & 0xffff, 0x0808);
        assert_eq!(six[2] & 1 << 24, 0);
        assert_ne!(six[3] & 1 << 28, 0);
        let many = at(&guest(b"Genu", Facts { cpus: 300, ..FACTS }), 1, 0);
        assert_eq!(many[1] >> 16 & 0xff, 255);
    }

    #[test]
    fn caches_are_shared_from_the_third_level_on() {
        let cpuid = guest(b"Genu", Facts { cpus: 6, ..FACTS });
        assert_eq!(at(&cpuid, 4, 0), [7 << 26 | 0x121, 1, 2, 3]);
        assert_eq!(at(&cpuid, 4, 2)[0], 7 << 26 | 0x143);
        assert_eq!(at(&cpuid, 4, 3)[0], 7 << 26 | 7 << 14 | 0x163);
        assert_eq!(at(&cpuid, 4, 4), [0; 4]);
        let amd = guest(b"Auth", Facts { cpus: 6, ..FACTS });
        assert_eq!(at(&amd, 0x8000_001d, 0)[0], 0x121);
        assert_eq!(at(&amd, 0x8000_001d, 3)[0], 5 << 14 | 0x163);
    }

    #[test]
    fn counts_that_no_field_can_hold_are_cut() {
        let cpuid = guest(b"Genu", Facts { cpus: 5000, ..FACTS });
        assert_eq!(at(&cpuid, 4, 3)[0] >> 14, 0x3f << 12 | 0xfff);
        let amd = guest(b"Auth", Facts { cpus: 5000, ..FACTS });
        assert_eq!(at(&amd, 0x8000_0008, 0)[2], 13 << 12 | 0xff);
    }

    #[test]
    fn extended_topology_has_threads_and_cores() {
        let cpuid = guest(b"Genu", Facts { cpus: 6, ..FACTS });
        assert_eq!(at(&cpuid, 0xb, 0)[..3], [0, 1, 0x100]);
        assert_eq!(at(&cpuid, 0xb, 1)[..3], [3, 6, 0x201]);
        assert_eq!(at(&cpuid, 0xb, 2)[..3], [0, 0, 2]);
        assert!(find(&cpuid, 0x1f).is_none());
        let one = guest(b"Genu", FACTS);
        assert_eq!(at(&one, 0xb, 1)[..3], [0, 1, 0x201]);
    }

    #[test]
    fn amd_counts_cores_in_its_own_leaves() {
        let amd = guest(b"Auth", Facts { cpus: 4, ..FACTS });
        assert_eq!(at(&amd, 0x8000_0008, 0), [0x3930, 0, 2 << 12 | 3, 0]);
        assert_eq!(at(&amd, 0x8000_0001, 0)[2], 1 << 1);
        assert_eq!(at(&guest(b"Auth", FACTS), 0x8000_0001, 0)[2], 0);
        let intel = guest(b"Genu", Facts { cpus: 4, ..FACTS });
        assert_eq!(at(&intel, 0x8000_0008, 0), [0x3930, 0, 0x703f, 0]);
    }

    #[test]
    fn each_processor_gets_its_own_apic_id_everywhere() {
        let mut cpuid = guest(b"Auth", Facts { cpus: 300, ..FACTS });
        for index in [0, 1, 299] {
            set_apic_id(&mut cpuid, index);
            assert_eq!(at(&cpuid, 1, 0)[1] >> 24, index & 0xff);
            for level in 0..3 {
                assert_eq!(at(&cpuid, 0xb, level)[3], index);
            }
            assert_eq!(at(&cpuid, 0x8000_001e, 0), [index, index & 0xff, 0, 0]);
        }
    }

    #[test]
    fn counters_and_amx_are_not_offered() {
        let cpuid = guest(b"Genu", FACTS);
        assert_eq!(at(&cpuid, 0xa, 0), [0; 4]);
        assert_eq!(at(&cpuid, 1, 0)[2] & 1 << 15, 0);
        assert_eq!(at(&cpuid, 7, 0)[3], 0x10);
        assert_eq!(at(&cpuid, 0x8000_0001, 0)[2], 0);
    }

    #[test]
    fn kvms_leaves_stay_and_the_frequency_joins_them() {
        let quiet = guest(b"Genu", FACTS);
        assert_eq!(at(&quiet, 0x4000_0000, 0)[0], 0x4000_0001);
        assert_eq!(at(&quiet, 0x15, 0), [0; 4]);
        let told = guest(b"Genu", Facts { tsc_khz: Some(2_600_000), ..FACTS });
        assert_eq!(at(&told, 0x4000_0000, 0), [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        assert_eq!(at(&told, 0x4000_0001, 0)[0], 0x0100_7efb);
        assert_eq!(at(&told, 0x4000_0010, 0), [2_600_000, 1_000_000, 0, 0]);
        assert_eq!(at(&told, 0x15, 0), [5, 13, 1_000_000_000, 0]);
        let amd = guest(b"Auth", Facts { tsc_khz: Some(2_600_000), ..FACTS });
        assert_eq!(at(&amd, 0x15, 0), [0; 4]);
    }

    #[test]
    fn msis_reach_many_processors_only_when_there_are_many() {
        let has_bit = |cpus| at(&guest(b"Genu", Facts { cpus, ..FACTS }), 0x4000_0001, 0)[0] & 1 << 15 != 0;
        assert!(!has_bit(255) && has_bit(256));
    }

    #[test]
    fn the_ratio_is_near_and_linux_can_reckon_with_it() {
        for khz in [999_999, 1_000_000, 1_999_998, 2_249_998, 2_494_140, 2_599_999, 3_400_123, 4_200_000] {
            let (numerator, denominator) = ratio(khz).unwrap();
            let told = numerator.checked_mul(APIC_KHZ).unwrap() / denominator;
            assert!(u64::from(told.abs_diff(khz)) * 20_000 < khz.into(), "{khz} told as {told}");
        }
        assert_eq!(ratio(0), None);
    }

    #[test]
    fn physical_addresses_have_the_width_that_kvm_tells() {
        assert_eq!(physical_bits(&host(b"Genu")), 0x30);
        assert_eq!(physical_bits(&CpuId::new(0).unwrap()), 36);
    }
}
