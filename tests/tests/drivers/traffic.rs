//! Drivers that are taken away, devices that are reset, and interrupts that wander, all in the middle of traffic.

use std::time::Instant;

use tests::{Command, Session};

use super::*;

/// Where hvc0 is in the machine that mote runs on.
const HVC0: &str = "/tmp/mote-drivers-hvc0";

/// A guest with the shell on the serial port, so that hvc0 can be taken away.
fn boot_aside(distribution: Distribution, interface: Interface, wire: Wire) -> Boot {
    let face = face(interface);
    let vdevs =
        [&format!("virtio-entropy{face}"), "ser8250", &format!("virtio-console{face},hostdev=pty:{HVC0}")];
    Boot::with(distribution, Console::Serial, &vdevs).words(&words(interface, wire))
}

/// Whoever is at the other end of hvc0 while the guest's shell is at the serial port.
fn user() -> Session {
    // What cat copies from a terminal comes a piece late: it has the kernel copy it.
    Machine::here().spawn(&Command::shell(&format!("exec 3<>{HVC0}; dd bs=4k <&3 & exec dd bs=4k >&3")))
}

/// Has the guest wait at hvc0 for lines and send them back, when it has read all that was typed before.
#[track_caller]
fn listen_on_hvc0(guest: &Guest, user: &Session) {
    let answer =
        "stty raw -echo; grep -q 'over$'; echo ready; head -n 64 >/tmp/typed; cat /tmp/typed; echo done";
    guest.ask(&format!("({answer}) </dev/hvc0 >/dev/hvc0 2>/dev/null & true"));
    user.send("over\n");
    user.expect("ready\n", SOON);
}

#[track_caller]
fn both_work(guest: &Guest, user: &Session) {
    read_random(guest);
    listen_on_hvc0(guest, user);
    user.send(lines());
    assert_eq!(user.expect("done\n", SOON), lines() + "done\n");
    guest.ask("wait");
}

/// Has both devices work for as long as their drivers are there. hvc0 is only typed at: a buffer that Linux 6.18 prints from
/// when its console driver is taken away stays in the queue, and is then freed as what it is not (`put_chars` and
/// `remove_vqs` in virtio_console.c).
#[track_caller]
fn start_traffic(guest: &Guest, user: &Session) {
    let bytes = |way| count(&told(&guest.status(), CONSOLE), way);
    // What is typed before the terminal is told not to echo would be printed.
    guest.ask("exec 4</dev/hvc0; stty raw -echo <&4; cat <&4 >/dev/null 2>&1 & exec 4<&-");
    guest.ask("cat /dev/hwrng >/dev/null 2>&1 & true");
    let [taken, printed] = ["bytes", "out"].map(bytes);
    user.send("traffic\n".repeat(20_000));
    let end = Instant::now() + SOON;
    while bytes("bytes") == taken {
        assert!(Instant::now() < end, "nothing of what is typed arrives");
    }
    assert_eq!(bytes("out"), printed);
}

#[track_caller]
fn stop_traffic(guest: &Guest) {
    guest.ask("kill $(jobs -p) 2>/dev/null; wait");
}

/// The place on the PCI bus of what a driver drives.
#[track_caller]
fn function(guest: &Guest, driver: &str) -> String {
    let device = device(guest, driver);
    guest
        .ask(&format!("basename $(dirname $(readlink -f /sys/bus/virtio/devices/{device}))"))
        .trim()
        .to_owned()
}

/// Nobody drives the devices, and they do nothing: whatever the guest does meanwhile, nothing of them changes.
#[track_caller]
fn nothing_runs(guest: &Guest) {
    let tell = || {
        let status = guest.status();
        [RNG, CONSOLE].map(|driver| told(&status, driver))
    };
    let before = tell();
    // Reset, and at most noticed again by the bus.
    let rests = ["status 0x00, features 0x0;", "status 0x01, features 0x0;"];
    assert!(before.iter().all(|told| rests.iter().any(|rest| told.starts_with(rest))), "{before:?}");
    assert_eq!(guest.ask("cat /sys/class/misc/hw_random/rng_current").trim(), "none");
    assert_eq!(guest.ask("cat /proc/interrupts | grep -c virtio || true").trim(), "0");
    assert_eq!(tell(), before);
}

/// Writes the low byte of a function's command register, while 3 is decoding and 7 bus mastering too.
#[track_caller]
fn command(guest: &Guest, function: &str, byte: u8) {
    let config = format!("/sys/bus/pci/devices/{function}/config");
    guest.ask(&format!("printf '\\{byte:03o}' | dd of={config} bs=1 seek=4 conv=notrunc 2>/dev/null"));
}

/// Takes the devices from their drivers at the virtio bus and at the PCI bus, and from the bus altogether.
fn come_back(distribution: Distribution, interface: Interface, wire: Wire) {
    let guest = boot_aside(distribution, interface, wire).option("--cpus", "2").start(Machine::here());
    let user = user();
    both_work(&guest, &user);
    let drivers = [RNG, CONSOLE];
    for is_busy in [false, true] {
        if is_busy {
            start_traffic(&guest, &user);
        }
        let devices = drivers.map(|driver| (driver, device(&guest, driver)));
        for (driver, device) in &devices {
            guest.ask(&format!("echo {device} >/sys/bus/virtio/drivers/{driver}/unbind"));
        }
        stop_traffic(&guest);
        nothing_runs(&guest);
        for (driver, device) in &devices {
            guest.ask(&format!("echo {device} >/sys/bus/virtio/drivers/{driver}/bind"));
        }
        both_work(&guest, &user);
    }
    for (off, on) in [
        (
            "echo $it >/sys/bus/pci/drivers/virtio-pci/unbind",
            "echo $it >/sys/bus/pci/drivers/virtio-pci/bind",
        ),
        ("echo 1 >/sys/bus/pci/devices/$it/remove", "echo 1 >/sys/bus/pci/rescan"),
    ] {
        let functions = drivers.map(|driver| function(&guest, driver)).join(" ");
        start_traffic(&guest, &user);
        guest.ask(&format!("for it in {functions}; do {off}; done"));
        stop_traffic(&guest);
        nothing_runs(&guest);
        guest.ask(&format!("for it in {functions}; do {on}; done"));
        both_work(&guest, &user);
    }
    nobody_complains(&guest);
    guest.power_off();
}

#[test]
fn drivers_come_and_go_on_modern_functions_with_msix() {
    come_back(Alpine, Modern, Msix);
}

#[test]
fn drivers_come_and_go_on_modern_functions_with_intx() {
    come_back(Debian, Modern, Intx);
}

#[test]
fn drivers_come_and_go_on_legacy_functions_with_intx() {
    come_back(Alpine, Legacy, Intx);
}

#[test]
fn drivers_come_and_go_on_legacy_functions_with_msix() {
    come_back(Debian, Legacy, Msix);
}

/// Linux's console driver spins until the device has taken what it prints, so hvc0 only listens meanwhile.
#[test]
fn without_bus_mastering_a_modern_function_stands_still_and_goes_on_later() {
    let guest = boot_aside(Alpine, Modern, Msix).start(Machine::here());
    let user = user();
    let [rng, console] = [RNG, CONSOLE].map(|driver| function(&guest, driver));
    guest.ask("cat /dev/hwrng >/dev/null 2>&1 & true");
    listen_on_hvc0(&guest, &user);
    command(&guest, &rng, 3);
    command(&guest, &console, 3);
    user.send(lines());
    let tell = || {
        let status = guest.status();
        let interrupts = [RNG, CONSOLE].map(|driver| count(&told(&status, driver), "interrupts"));
        (interrupts, count(&told(&status, CONSOLE), "bytes"))
    };
    let before = tell();
    guest.ask("cat /proc/interrupts");
    assert_eq!(tell(), before);
    command(&guest, &console, 7);
    assert_eq!(user.expect("done\n", SOON), lines() + "done\n");
    assert_eq!(tell().0[0], before.0[0], "the other one still stands");
    command(&guest, &rng, 7);
    stop_traffic(&guest);
    both_work(&guest, &user);
    guest.power_off();
}

#[test]
fn a_legacy_function_needs_no_bus_mastering() {
    let guest = boot_aside(Alpine, Legacy, Msix).start(Machine::here());
    let user = user();
    let functions = [RNG, CONSOLE].map(|driver| function(&guest, driver));
    guest.ask("cat /dev/hwrng >/dev/null & yes traffic >/dev/hvc0 & true");
    functions.iter().for_each(|function| command(&guest, function, 3));
    (0..20).for_each(|_| drop(user.expect("traffic\r\n", SOON)));
    stop_traffic(&guest);
    both_work(&guest, &user);
    guest.power_off();
}

/// Reads and prints while each interrupt goes from vCPU to vCPU.
fn interrupts_wander(distribution: Distribution, interface: Interface, wire: Wire) {
    let boot = boot(distribution, interface, wire).option("--cpus", "4");
    let guest = boot.start(Machine::here());
    guest.ask(r"irqs=$(sed -n 's/^ *\([0-9]*\):.*virtio.*/\1/p' /proc/interrupts); echo $irqs");
    let moving = "for cpu in 1 2 4 8; do for irq in $irqs; do echo $cpu >/proc/irq/$irq/smp_affinity && \
                  moves=$((moves + 1)); done; done";
    guest.ask(&format!(
        "(moves=0; while [ ! -e /tmp/over ]; do {moving}; done; echo $moves >/tmp/moves) & true"
    ));
    let count = guest.ask("dd if=/dev/hwrng bs=64 count=1000 2>/dev/null | wc -c");
    assert_eq!(count.trim(), "64000");
    let printed = guest.ask("seq 1000 1499");
    assert!(printed.lines().filter_map(|line| line.parse::<u32>().ok()).eq(1000..1500), "{printed}");
    echo_lines(&guest);
    let moves: u64 = guest.ask("touch /tmp/over; wait; cat /tmp/moves").trim().parse().unwrap();
    assert!(moves >= 100, "{moves} moves");
    let handled = handled(&guest, RNG, wire);
    assert!(handled.len() == 4 && handled.iter().filter(|count| **count > 0).count() > 1, "{handled:?}");
    // A level is delivered again when it is sent elsewhere before its handler has asked the device.
    interrupts_are_exact(&guest, wire, if wire == Intx { moves } else { 0 });
    guest.power_off();
}

#[test]
fn msix_is_exact_while_it_goes_from_vcpu_to_vcpu() {
    interrupts_wander(Alpine, Modern, Msix);
}

#[test]
fn intx_is_exact_while_it_goes_from_vcpu_to_vcpu() {
    interrupts_wander(Debian, Legacy, Intx);
}
