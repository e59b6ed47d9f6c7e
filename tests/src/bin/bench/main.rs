//! Measures a boot of Alpine Linux to the first line of its init, in mote and in QEMU, side by side: seconds from exec,
//! and KVM's own counts of exits. In the nested rig the seconds rank rather than measure; the counts repeat.

use std::path::Path;
use std::time::Instant;

use tests::guest::{Boot, Console, Distribution};
use tests::machine::Exits;
use tests::{Command, LATE, Machine, SOON};

/// How often each is booted; the middle one counts.
const RUNS: usize = 3;

/// What QEMU loads into its guests.
const FIRMWARE: &[&str] = &[
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
];

const QEMU: &[&str] = &[
    "-accel",
    "kvm",
    "-machine",
    "q35",
    "-cpu",
    "host",
    "-m",
    "256M",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
    "-device",
    "virtio-rng-pci",
    "-chardev",
    "stdio,id=console",
    "-device",
    "virtio-serial-pci",
    "-device",
    "virtconsole,chardev=console",
];

/// After its first line the guest is to be quiet, until it is told to go.
const WORDS: &str = r#"mote.run="head -n 1""#;

fn main() {
    let machine = Machine::here();
    let boot = Boot::new(Distribution::Alpine, Console::Hvc0).words(WORDS);
    let mote = boot.command(machine);
    let firmware: Vec<&str> = FIRMWARE.iter().copied().filter(|path| Path::new(path).exists()).collect();
    machine.install("qemu-system-x86_64", &firmware);
    let [kernel, initramfs] = boot.files().map(|path| machine.file(path));
    let qemu = Command::new("qemu-system-x86_64").args(QEMU).arg("-kernel").arg(kernel).arg("-initrd");
    let qemu = qemu.arg(initramfs).arg("-append").arg(format!("console=hvc0 quiet {WORDS}"));

    println!(
        "{:<28} {:>8} {:>9} {:>9} {:>9} {:>9}",
        "to init, median of 3", "seconds", "exits", "io", "mmio", "halt"
    );
    for (name, command) in [("mote, bzImage", mote), ("QEMU q35, bzImage", qemu)] {
        let mut runs: Vec<_> = (0..RUNS).map(|_| run(machine, &command)).collect();
        runs.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (seconds, exits) = runs[RUNS / 2];
        print!("{name:<28} {seconds:>8.1}");
        match exits {
            Some(Exits { all, io, mmio, halt }) => println!(" {all:>9} {io:>9} {mmio:>9} {halt:>9}"),
            None => println!(" (KVM's statistics are for root)"),
        }
    }
}

fn run(machine: &Machine, command: &Command) -> (f64, Option<Exits>) {
    let started = Instant::now();
    let session = machine.spawn(command);
    session.expect("mote-guest: init on hvc0", LATE);
    let seconds = started.elapsed().as_secs_f64();
    let exits = machine.exits();
    session.send("\n");
    session.wait(SOON);
    (seconds, exits)
}
