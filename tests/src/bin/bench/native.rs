//! What mote costs before and beside its guest, on this machine's own `/dev/kvm`: guests of a few instructions need no more.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use tests::bzimage::{self, Flaw};
use tests::{Machine, paths};

use crate::table::Table;
use crate::vmms::{self, Guest, Vmm};
use crate::{Scratch, elf, median, progress};

/// How often each is started.
const RUNS: usize = 31;

/// As a process of its own that prints into a pipe.
fn spawn(argv: &[String]) -> Child {
    let [program, arguments @ ..] = argv else { panic!("an empty command") };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn words(command: &tests::Command) -> Vec<String> {
    command.words().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// mote with a kernel of a few instructions.
fn mote(kernel: &Path, options: &[&str]) -> Vec<String> {
    let kernel = kernel.display().to_string();
    let mote = paths::mote().display().to_string();
    [&mote, "run", "--kernel", &kernel]
        .into_iter()
        .chain(options.iter().copied())
        .map(str::to_owned)
        .collect()
}

/// From exec to the first byte that the guest prints, its first instruction but for the port's number. `None` if it
/// prints something else, or nothing.
fn time_to_byte(argv: &[String]) -> Option<Duration> {
    let started = Instant::now();
    let mut child = spawn(argv);
    let mut byte = [0];
    let read = child.stdout.as_mut().map(|output| output.read(&mut byte));
    let time = started.elapsed();
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    (matches!(read, Some(Ok(1))) && byte[0] == elf::BYTE).then_some(time)
}

/// Compiles the program that only makes the KVM calls.
fn bare() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/bare.c");
    let program = Scratch::path("bare");
    let compiled = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(source).status();
    assert!(compiled.is_ok_and(|status| status.success()), "cc does not compile resources/bare.c");
    program
}

/// From exec to the guest's first instruction.
pub fn first_byte(table: &mut Table) {
    const WHAT: &str = "exec to the guest's first byte, ms";
    progress("starts natively");
    let kernel = Scratch::file("stop", &bzimage::wrap(&elf::bare_code(), Flaw::None));
    let pvh = Scratch::file("pvh", &elf::pvh());
    let guest =
        Guest { bzimage: kernel.clone(), vmlinux: pvh, initrd: None, words: String::new(), memory_mib: 256 };
    let this = Machine::this();
    let mut subjects = vec![
        ("bare C program".to_owned(), vec![bare().display().to_string()]),
        ("mote, ser8250 alone".to_owned(), mote(&kernel, &["--vdev", "ser8250"])),
        (
            "mote, with entropy and console".to_owned(),
            mote(
                &kernel,
                &[
                    "--vdev",
                    "ser8250",
                    "--vdev",
                    "virtio-entropy",
                    "--vdev",
                    "virtio-console,hostdev=>/dev/null",
                ],
            ),
        ),
        ("QEMU microvm".to_owned(), words(&vmms::qemu_serial(&guest))),
    ];
    // What is not on disk yet starts with fewer page faults (docs/performance.md): the C program, without this.
    rustix::fs::sync();
    // QEMU is here already, kvmtool starts no ELF file, and alioth needs a terminal.
    let is_fit = |vmm: &Vmm| !["QEMU", "kvmtool", "alioth"].iter().any(|name| vmm.name.starts_with(name));
    let peers = vmms::others(this).into_iter().filter(is_fit);
    subjects.extend(peers.map(|vmm| {
        let name = vmm.name.split(',').next().unwrap_or_default();
        (name.to_owned(), words(&vmm.command(this, &guest)))
    }));
    let mut times = vec![Vec::new(); subjects.len()];
    for _ in 0..RUNS {
        for ((_, argv), times) in subjects.iter().zip(&mut times) {
            times.extend(time_to_byte(argv).map(|time| time.as_secs_f64() * 1e3));
        }
    }
    let bare = median(&times[0]);
    for ((name, _), times) in subjects.iter().zip(&times) {
        let Some(value) = median(times).filter(|_| times.len() == RUNS) else {
            table.row(WHAT, name, format!("{} of {RUNS} started", times.len()));
            continue;
        };
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        table.row(WHAT, name, format!("{value:.2} (least {least:.2})"));
        if let Some(bare) = bare.filter(|_| name.starts_with("mote")) {
            table.bar(format!("at most 1.3 times bare C, {:.2}", 1.3 * bare), value <= 1.3 * bare);
        }
    }
}

/// System calls of all threads before the first KVM_RUN.
pub fn system_calls(table: &mut Table) {
    progress("system calls");
    let kernel = Scratch::file("stop", &bzimage::wrap(&elf::bare_code(), Flaw::None));
    let log = Scratch::path("strace");
    let strace = ["strace", "-f", "-qq", "-o"].map(str::to_owned).into_iter();
    let argv: Vec<String> = strace.chain([log.display().to_string()]).chain(mote(&kernel, &[])).collect();
    let _ = spawn(&argv).wait();
    let log = fs::read_to_string(&log).unwrap_or_default();
    let before = log.lines().take_while(|line| !line.contains("KVM_RUN"));
    let count = before.filter(|line| !line.contains("resumed>") && !line.contains("+++")).count();
    table.row("system calls before the first KVM_RUN", "mote, entropy and console", count);
}

/// Private memory outside the guest's RAM, which mote keeps out of core dumps: that is how it is known.
pub fn private_memory(table: &mut Table) {
    const WHAT: &str = "private memory outside the guest's, KiB";
    progress("private memory");
    let kernel = Scratch::file("halt", &bzimage::wrap(&elf::halting_code(), Flaw::None));
    let vdevs =
        ["--vdev", "ser8250", "--vdev", "virtio-entropy", "--vdev", "virtio-console,hostdev=>/dev/null"];
    let measure = |cpus: &str| {
        let mut child = spawn(&mote(&kernel, &[&vdevs[..], &["--cpus", cpus]].concat()));
        let mut byte = [0];
        let read = child.stdout.as_mut().map(|output| output.read(&mut byte));
        assert!(matches!(read, Some(Ok(1))), "a small guest did not start");
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", child.id())).unwrap_or_default();
        let _ = child.kill();
        let _ = child.wait();
        private(&smaps)
    };
    let (one, four) = (measure("1"), measure("4"));
    table.row(WHAT, "mote, 1 vCPU", one);
    table.bar("at most 3072", one <= 3072);
    let more = four.saturating_sub(one) / 3;
    table.row(WHAT, "mote, each further vCPU", more);
    table.bar("at most 64", more <= 64);
}

/// KiB in the maps of processes, without mappings that have the flag `dd`. A page that several share counts as one.
pub fn private(smaps: &str) -> u64 {
    let (mut sum, mut mapping) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Pss:") => {
                mapping = words.next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            }
            // The last line of a mapping.
            Some("VmFlags:") => {
                sum += if words.any(|flag| flag == "dd") { 0 } else { mapping };
                mapping = 0;
            }
            _ => {}
        }
    }
    sum
}

/// The size of the binary.
pub fn binary_size(table: &mut Table) {
    let size = fs::metadata(paths::mote()).map_or(0, |metadata| metadata.len());
    table.row("binary, KiB", "mote", size / 1024);
    table.bar("at most 3072", size <= 3 << 20);
}
