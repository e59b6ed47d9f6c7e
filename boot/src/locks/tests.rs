//! Kernels with lock prefixes, and files whose sections are broken.

use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::sample::{self, LINKED, MIB, Part, laid_out, read, vmlinux};
use crate::{Cache, CommandLine, Compressor, Image, Plan};

/// Where the list is: in the second segment.
const TABLE: u64 = LINKED + 0x4100;
/// The size of the code.
const TEXT: u64 = 0x1800;
const NAMES: &[u8] = b"\0.shstrtab\0.text\0.smp_locks\0";

/// A section header (System V ABI, "Sections"): name, address, offset and size.
fn section(name: u32, address: u64, offset: u64, size: u64) -> Vec<u8> {
    let mut header = [name, 1].map(u32::to_le_bytes).concat();
    header.extend([0, address, offset, size, 0, 0, 0].map(u64::to_le_bytes).concat());
    header
}

/// The sample with these prefixes in its code, and a list of these distances.
fn kernel(locks: &[u64], list: &[i32]) -> Vec<u8> {
    let [mut first, mut second] = [laid_out()[..0x2000].to_vec(), laid_out()[0x4000..0x5800].to_vec()];
    first.iter_mut().filter(|byte| **byte == LOCK).for_each(|byte| *byte = 0);
    locks.iter().for_each(|lock| first[(lock - LINKED) as usize] = LOCK);
    for (index, distance) in list.iter().enumerate() {
        second[0x100 + 4 * index..][..4].copy_from_slice(&distance.to_le_bytes());
    }
    let parts = [Part::load(LINKED, first, 0x2000), Part::load(LINKED + 0x4000, second, 0x4000)];
    let mut file = sample::elf(sample::ENTRY, &parts);
    let names = file.len() as u64;
    file.extend_from_slice(NAMES);
    let headers = file.len() as u64;
    file.extend(section(0, 0, 0, 0));
    file.extend(section(11, LINKED + KERNEL_MAP, 0, TEXT));
    file.extend(section(17, TABLE + KERNEL_MAP, 0, 4 * list.len() as u64));
    file.extend(section(1, 0, names, NAMES.len() as u64));
    file[40..48].copy_from_slice(&headers.to_le_bytes());
    file[60..64].copy_from_slice(&[4, 0, 3, 0]);
    file
}

fn find(file: &[u8]) -> Option<Locks> {
    let elf = Elf::parse(&file[..crate::elf::HEAD_SIZE.min(file.len())]).unwrap();
    Locks::find(&elf, |offset, size| {
        let end = offset.checked_add(size)?;
        file.get(offset as usize..end as usize).map(<[u8]>::to_vec)
    })
}

/// The distance of `lock` from the list's entry `index`.
fn distance(lock: u64, index: u64) -> i32 {
    (lock as i64 - (TABLE + 4 * index) as i64) as i32
}

#[test]
fn what_is_listed_in_the_code_and_is_a_lock_is_taken_and_nothing_else() {
    let locks = [LINKED, LINKED + 0x777, LINKED + TEXT - 1, LINKED + TEXT];
    let unlisted = LINKED + 0x500;
    let no_lock = LINKED + 0x600;
    let listed = [locks[0], locks[1], locks[2], locks[3], no_lock, LINKED + 0x10_0000, LINKED - 1];
    let mut list: Vec<i32> = (0..).zip(listed).map(|(index, lock)| distance(lock, index)).collect();
    list.extend([0, 0, i32::MIN, i32::MAX]);
    let file = kernel(&[&locks[..], &[unlisted]].concat(), &list);
    let found = find(&file).unwrap();
    assert_eq!(found.table, TABLE..TABLE + 4 * list.len() as u64);
    assert_eq!(found.text, LINKED..LINKED + TEXT);
    for shift in [0, 8 * MIB, 0u64.wrapping_sub(8 * MIB)] {
        let memory = sample::memory(40 * MIB);
        let elf = Elf::parse(&file[..crate::elf::HEAD_SIZE]).unwrap();
        let mut keep = |_, _: &[u8]| ();
        let room = LINKED..sample::MEMORY_END;
        let mut scatter = crate::scatter::Scatter::new(&memory, shift, room, &mut keep);
        scatter.take(&file).unwrap_or_else(|_| panic!("the sample"));
        let before = read(&memory, LINKED.wrapping_add(shift), 0x5800);
        assert_eq!(found.take(&memory, &elf.filled(), shift).unwrap(), 3);
        let mut expected = before.clone();
        [0, 0x777, TEXT as usize - 1].iter().for_each(|at| expected[*at] = DS);
        assert!(read(&memory, LINKED.wrapping_add(shift), 0x5800) == expected);
        assert_eq!(found.take(&memory, &elf.filled(), shift).unwrap(), 0, "they are taken already");
    }
}

#[test]
fn a_kernel_without_sections_or_with_broken_ones_keeps_its_locks() {
    assert_eq!(find(&vmlinux()), None, "its section headers are no such thing");
    let whole = kernel(&[LINKED], &[distance(LINKED, 0)]);
    assert!(find(&whole).is_some());
    let headers = whole.len() - 4 * 64;
    let with = |at: usize, value: u64| {
        let mut file = whole.clone();
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        file
    };
    for (what, file) in [
        ("headers beyond the end", with(40, whole.len() as u64 - 100)),
        ("names beyond the end", with(headers + 3 * 64 + 24, u64::MAX - 3)),
        ("names without an end", with(headers + 3 * 64 + 32, u64::MAX)),
        ("a list outside of the image", with(headers + 2 * 64 + 16, LINKED + KERNEL_MAP + 0x5800)),
        ("a list below all addresses", with(headers + 2 * 64 + 16, 3)),
        ("a list beyond all bounds", with(headers + 2 * 64 + 32, u64::MAX)),
        ("code larger than the image", with(headers + 64 + 32, 0x5801)),
        ("a name that is another", with(headers + 2 * 64, 18)),
    ] {
        assert_eq!(find(&file), None, "{what}");
    }
}

#[test]
fn a_plan_takes_them_for_one_processor_alone_unless_the_user_keeps_them() {
    let directory = TempDir::new().unwrap();
    let file = kernel(&[LINKED, LINKED + 0x777], &[distance(LINKED, 0), distance(LINKED + 0x777, 1)]);
    let load = |image: Image, line: &str, is_alone: bool| {
        let line = CommandLine::new(&[], line).unwrap();
        let plan = Plan::new(image, None, line, &[0..64 * MIB], &[]).unwrap();
        let plan = plan.cached(Cache::open(directory.as_path()));
        let plan = if is_alone { plan.alone() } else { plan };
        let memory = sample::memory(64 * MIB);
        let kernel = plan.load_kernel(&memory).unwrap();
        assert_eq!(read(&memory, LINKED, 1), [if kernel.locks > 0 { DS } else { LOCK }]);
        kernel.locks
    };
    // The first one fills the cache, the others read from it.
    let packed = || sample::image(Compressor::Gzip, &file);
    assert_eq!(load(packed(), "quiet", true), 2);
    assert_eq!(load(packed(), "quiet", true), 2);
    assert_eq!(load(packed(), "quiet", false), 0);
    assert_eq!(load(packed(), "noreplace-smp", true), 0);
    assert_eq!(load(packed(), "noreplace_smp quiet", true), 0);
    assert_eq!(load(sample::image_of(&file), "quiet", true), 2);
    assert_eq!(load(sample::image_of(&file), "quiet", false), 0);
}
