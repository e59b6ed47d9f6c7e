//! The VMMs that are measured, and how each is told to boot the same guest.

use std::env;
use std::path::{Path, PathBuf};

use tests::{Command, Machine};

use crate::Scratch;

/// What QEMU loads into its guests.
const FIRMWARE: &[&str] = &[
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
];

/// A guest: files by their paths on the machine.
#[derive(Clone, Debug)]
pub struct Guest {
    /// What the VMM boots best.
    pub bzimage: PathBuf,
    pub vmlinux: PathBuf,
    pub initrd: Option<PathBuf>,
    /// The kernel's command line, but for the console.
    pub words: String,
    pub memory_mib: u32,
}

/// A VMM in one configuration.
pub struct Vmm {
    pub name: &'static str,
    program: PathBuf,
    command: fn(&Machine, &Path, &Guest) -> Command,
}

impl Vmm {
    /// The command that boots `guest`.
    pub fn command(&self, machine: &Machine, guest: &Guest) -> Command {
        (self.command)(machine, &self.program, guest)
    }
}

/// The one whose time and exits are a bar.
pub const FIRECRACKER: &str = "Firecracker, vmlinux";
/// Those whose time for a burst of output is a bar.
pub const CLOUD_HYPERVISOR: &str = "Cloud Hypervisor, vmlinux";
pub const KVMTOOL: &str = "kvmtool, bzImage";

/// All but mote that are at hand, available on `machine` with their libraries.
pub fn others(machine: &Machine) -> Vec<Vmm> {
    let qemu = install_qemu(machine);
    let mut vmms = vec![
        Vmm { name: "QEMU q35, bzImage", program: qemu.clone(), command: qemu_q35 },
        Vmm { name: "QEMU microvm, vmlinux", program: qemu, command: qemu_microvm },
    ];
    type Row = (&'static str, &'static str, fn(&Machine, &Path, &Guest) -> Command);
    const PEERS: &[Row] = &[
        ("firecracker", FIRECRACKER, firecracker),
        ("firecracker", "Firecracker PCI, vmlinux", firecracker_pci),
        ("cloud-hypervisor", CLOUD_HYPERVISOR, cloud_hypervisor),
        ("crosvm", "crosvm, bzImage", crosvm),
        ("lkvm", KVMTOOL, kvmtool),
        ("alioth", "alioth, bzImage", alioth),
    ];
    let Some(directory) = env::var_os("PEERS").map(PathBuf::from) else { return vmms };
    for (file, name, command) in PEERS {
        let path = directory.join(file);
        if path.exists() {
            let path = path.canonicalize().unwrap_or(path);
            machine.install(&path.display().to_string(), &[]);
            vmms.push(Vmm { name, program: path, command: *command });
        }
    }
    vmms
}

fn install_qemu(machine: &Machine) -> PathBuf {
    let firmware: Vec<&str> = FIRMWARE.iter().copied().filter(|path| Path::new(path).exists()).collect();
    machine.install("qemu-system-x86_64", &firmware);
    "qemu-system-x86_64".into()
}

/// mote with these further options.
pub fn mote(machine: &Machine, guest: &Guest, options: &[&str]) -> Command {
    let memory = format!("{}M", guest.memory_mib);
    let command = machine.mote(&["run", "--memory", &memory, "--kernel"]).arg(&guest.bzimage);
    let command = with_initrd(command, "--initrd", guest).args(options);
    command.arg("--cmdline").arg(&guest.words)
}

fn with_initrd(command: Command, option: &str, guest: &Guest) -> Command {
    match &guest.initrd {
        Some(initrd) => command.arg(option).arg(initrd),
        None => command,
    }
}

fn qemu(program: &Path, guest: &Guest, kernel: &Path, arguments: &[&str], console: &str) -> Command {
    let memory = format!("{}M", guest.memory_mib);
    let command = Command::new(program).args(["-accel", "kvm", "-cpu", "host", "-m", &memory]);
    let command = command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    let command = command.args(arguments).arg("-kernel").arg(kernel).arg("-append");
    let command = command.arg(format!("{console} {}", guest.words));
    with_initrd(command, "-initrd", guest)
}

fn qemu_q35(_: &Machine, program: &Path, guest: &Guest) -> Command {
    let devices = ["-machine", "q35", "-device", "virtio-rng-pci", "-chardev", "stdio,id=console"];
    let console = ["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console"];
    let all: Vec<&str> = devices.into_iter().chain(console).collect();
    qemu(program, guest, &guest.bzimage, &all, "console=hvc0")
}

/// QEMU with a port beside the console, whose other end takes all.
pub fn qemu_with_port(machine: &Machine, guest: &Guest) -> Command {
    let command = qemu_q35(machine, &install_qemu(machine), guest);
    command.args([
        "-chardev",
        "file,id=bulk,path=/dev/null",
        "-device",
        "virtserialport,chardev=bulk,name=bulk",
    ])
}

fn qemu_microvm(_: &Machine, program: &Path, guest: &Guest) -> Command {
    let devices =
        ["-machine", "microvm,pit=off,pic=off,rtc=on,isa-serial=off", "-device", "virtio-rng-device"];
    let console = ["-chardev", "stdio,id=console", "-device", "virtio-serial-device"];
    let port = ["-device", "virtconsole,chardev=console"];
    let all: Vec<&str> = devices.into_iter().chain(console).chain(port).collect();
    qemu(program, guest, &guest.vmlinux, &all, "console=hvc0")
}

/// QEMU's microvm with its serial port, for a guest that knows nothing else.
pub fn qemu_serial(guest: &Guest) -> Command {
    let machine = ["-machine", "microvm,pit=off,pic=off,rtc=off,isa-serial=on", "-serial", "stdio"];
    qemu(Path::new("qemu-system-x86_64"), guest, &guest.vmlinux, &machine, "")
}

fn firecracker_pci(machine: &Machine, program: &Path, guest: &Guest) -> Command {
    firecracker(machine, program, guest).arg("--enable-pci")
}

fn firecracker(machine: &Machine, program: &Path, guest: &Guest) -> Command {
    // Its own defaults, but for the modules and the serial port that they leave out. It adds `pci=off` where it is due.
    let defaults = "reboot=k panic=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";
    let words = format!("console=ttyS0 {defaults} {}", guest.words).replace('"', "\\\"");
    let initrd = guest.initrd.as_ref().map(|path| format!(r#","initrd_path":"{}""#, path.display()));
    let file = |name: &str, text: &str| {
        let path = Scratch::path(&format!("firecracker-{name}"));
        machine.put(&path, text.as_bytes());
        path.display().to_string()
    };
    // It refuses a KVM without XCR0, which the rig's is; nothing but the check goes.
    let cpu = file("cpu", r#"{"kvm_capabilities":["!56"]}"#);
    let config = format!(
        r#"{{"boot-source":{{"kernel_image_path":"{}"{},"boot_args":"{words}"}},"drives":[],"entropy":{{}},
            "cpu-config":"{cpu}","machine-config":{{"vcpu_count":1,"mem_size_mib":{}}}}}"#,
        guest.vmlinux.display(),
        initrd.unwrap_or_default(),
        guest.memory_mib,
    );
    // It logs to where the guest prints.
    let command = Command::new(program).args(["--no-api", "--level", "Off", "--config-file"]);
    command.arg(file("config", &config))
}

fn cloud_hypervisor(_: &Machine, program: &Path, guest: &Guest) -> Command {
    let memory = format!("size={}M", guest.memory_mib);
    let command = Command::new(program).arg("--kernel").arg(&guest.vmlinux);
    // A guest without an initrd knows the serial port alone.
    let (console, serial) = if guest.initrd.is_some() { ("tty", "off") } else { ("off", "tty") };
    let command =
        command.args(["--memory", &memory, "--cpus", "boot=1", "--console", console, "--serial", serial]);
    let command = command.args(["--rng", "src=/dev/urandom"]);
    with_initrd(command, "--initramfs", guest).arg("--cmdline").arg(format!("console=hvc0 {}", guest.words))
}

fn crosvm(_: &Machine, program: &Path, guest: &Guest) -> Command {
    let memory = guest.memory_mib.to_string();
    let (hardware, kernel) = match &guest.initrd {
        Some(_) => ("virtio-console", &guest.bzimage),
        None => ("serial", &guest.vmlinux),
    };
    let serial = format!("type=stdout,hardware={hardware},console=true,stdin=true");
    let command = Command::new(program).args(["run", "--disable-sandbox", "--mem", &memory, "--cpus", "1"]);
    let command = command.args(["--serial", &serial, "--params", &guest.words]);
    with_initrd(command, "--initrd", guest).arg(kernel)
}

fn kvmtool(_: &Machine, program: &Path, guest: &Guest) -> Command {
    let memory = guest.memory_mib.to_string();
    let command =
        Command::new(program).args(["run", "--rng", "--console", "virtio", "--network", "mode=none"]);
    let command = command.args(["-c", "1", "-m", &memory, "-k"]).arg(&guest.bzimage);
    with_initrd(command, "-i", guest).arg("-p").arg(format!("console=hvc0 {}", guest.words))
}

fn alioth(_: &Machine, program: &Path, guest: &Guest) -> Command {
    let kernel = match &guest.initrd {
        Some(_) => ("--kernel", &guest.bzimage),
        None => ("--pvh", &guest.vmlinux),
    };
    let memory = format!("size={}M", guest.memory_mib);
    let command = Command::new(program).args(["boot", "--memory", &memory, "--cpu", "count=1", "--entropy"]);
    let command = with_initrd(command.arg(kernel.0).arg(kernel.1), "--initramfs", guest);
    command.arg("--cmdline").arg(format!("console=ttyS0 {}", guest.words))
}
