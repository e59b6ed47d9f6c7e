//! Linux's own drivers of the entropy device and the console: by every interface and interrupt that there is, bound and
//! unbound, and interrupted in the middle of what they do.

#[path = "drivers/traffic.rs"]
mod traffic;

use tests::guest::{Boot, Console, Distribution, Guest};
use tests::{Machine, SOON};

use Distribution::{Alpine, Debian};
use Interface::{Forced, Legacy, Modern};
use Wire::{Intx, Msix};

/// The interface that Linux finds, or is made to use.
#[derive(Clone, Copy, PartialEq)]
enum Interface {
    Modern,
    /// The legacy one of a transitional function, by `virtio_pci.force_legacy=1`.
    Forced,
    Legacy,
}

/// The interrupt that it finds, or is left with by `pci=nomsi`.
#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Msix,
    Intx,
}

const RNG: &str = "virtio_rng";
const CONSOLE: &str = "virtio_console";

/// A driver's vdev, as mote calls it.
fn vdev(driver: &str) -> &'static str {
    if driver == RNG { "virtio-entropy" } else { "virtio-console" }
}

/// The option of a vdev that presents an interface.
fn face(interface: Interface) -> &'static str {
    match interface {
        Modern => "",
        Forced => ",transitional",
        Legacy => ",legacy",
    }
}

/// Words for the kernel that keep it to an interface and an interrupt.
fn words(interface: Interface, wire: Wire) -> String {
    let force = if interface == Forced { "virtio_pci.force_legacy=1" } else { "" };
    let no_msi = if wire == Intx { "pci=nomsi" } else { "" };
    format!("{force} {no_msi}")
}

/// A guest with the shell on hvc0.
fn boot(distribution: Distribution, interface: Interface, wire: Wire) -> Boot {
    let vdevs = ["virtio-entropy", "virtio-console"].map(|vdev| format!("{vdev}{}", face(interface)));
    let boot = Boot::with(distribution, Console::Hvc0, &vdevs.each_ref().map(String::as_str));
    boot.words(&words(interface, wire))
}

/// The name on the virtio bus of what a driver drives.
#[track_caller]
fn device(guest: &Guest, driver: &str) -> String {
    guest.ask(&format!("basename /sys/bus/virtio/drivers/{driver}/virtio*")).trim().to_owned()
}

/// How often a driver's handlers have run on each vCPU since it was bound.
#[track_caller]
fn handled(guest: &Guest, driver: &str, wire: Wire) -> Vec<u64> {
    let device = device(guest, driver);
    let table = guest.ask("cat /proc/interrupts");
    let is_its =
        |name: &str| name.strip_prefix(&device).is_some_and(|rest| !rest.starts_with(char::is_numeric));
    let lines: Vec<&str> =
        table.lines().filter(|line| line.split(' ').next_back().is_some_and(is_its)).collect();
    let chip = if wire == Msix { "PCI-MSI" } else { "IO-APIC" };
    assert!(
        !lines.is_empty() && lines.iter().all(|line| line.contains(chip)),
        "not {chip} for {device}:\n{table}"
    );
    let counts = lines.iter().map(|line| {
        line.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect::<Vec<u64>>()
    });
    counts.reduce(|all, line| all.iter().zip(&line).map(|(all, count)| all + count).collect()).unwrap()
}

/// What mote's status says of a driver's vdev.
#[track_caller]
fn told(status: &str, driver: &str) -> String {
    let line = status.lines().find_map(|line| line.trim().strip_prefix(&format!("{}: ", vdev(driver))));
    line.unwrap_or_else(|| panic!("no {} in\n{status}", vdev(driver))).to_owned()
}

/// One of the counts in it.
#[track_caller]
fn count(told: &str, what: &str) -> u64 {
    let counts = told.split([',', ';']).filter_map(|part| part.trim().split_once(' '));
    let mut counts = counts.filter(|(_, name)| name.split(' ').next() == Some(what));
    counts.next().and_then(|(count, _)| count.parse().ok()).unwrap_or_else(|| panic!("no {what} in {told}"))
}

/// Reads random bytes, of which none are missing and which are not all alike.
#[track_caller]
fn read_random(guest: &Guest) {
    let current = guest.ask("cat /sys/class/misc/hw_random/rng_current");
    assert!(current.starts_with(RNG), "{current}");
    let text = guest.ask("head -c 2048 /dev/hwrng | od -An -v -tx1");
    let bytes: Vec<u8> = text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    assert_eq!(bytes.len(), 2048);
    let mut kinds = [0; 256];
    bytes.iter().for_each(|byte| kinds[usize::from(*byte)] += 1);
    // Eight of each, give or take three: none is 40 in a hundred thousand million runs.
    assert!(kinds.iter().all(|kind| *kind < 40), "{kinds:?}");
}

/// Four kilobytes in lines of 64 characters, each another.
fn lines() -> String {
    (1..=64_u128).map(|line| format!("{:063}\n", line * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced)).collect()
}

/// Types four kilobytes at the guest's shell and has them back.
#[track_caller]
fn echo_lines(guest: &Guest) {
    guest
        .session
        .send("stty -echo; echo rea''dy; head -n 64 >/tmp/typed; stty echo; cat /tmp/typed; echo do''ne\n");
    guest.session.expect("ready\r\n", SOON);
    guest.session.send(lines());
    assert_eq!(guest.session.expect("done\r\n", SOON).replace('\r', ""), lines() + "done\n");
}

/// The guest's interrupts are those that mote has sent: none is lost, and none is made up but for `spare` ones.
#[track_caller]
fn interrupts_are_exact(guest: &Guest, wire: Wire, spare: u64) {
    let sum = |driver| handled(guest, driver, wire).iter().sum::<u64>();
    let (rng, console) = (sum(RNG), sum(CONSOLE));
    let status = guest.status();
    let (before, sent, after) = (rng, count(&told(&status, RNG), "interrupts"), sum(RNG));
    // A request at a time, and an interrupt for each: the kernel's own reader may be at it too.
    let is_exact = before <= sent + spare && sent <= after;
    assert!(is_exact, "{before} handled, {sent} sent, {after} handled: {status}");
    assert!(sent <= count(&told(&status, RNG), "services"), "{status}");
    // Two that are sent before the first is handled are one.
    assert!(console <= count(&told(&status, CONSOLE), "interrupts") + spare, "{console} handled: {status}");
    nobody_complains(guest);
}

/// Linux has met no interrupt that is nobody's.
#[track_caller]
fn nobody_complains(guest: &Guest) {
    let complaints = guest.ask("dmesg | grep -e 'nobody cared' -e 'No irq handler' || true");
    assert_eq!(complaints.trim(), "");
}

/// Boots, and does with both devices what they are for.
#[track_caller]
fn are_driven(distribution: Distribution, interface: Interface, wire: Wire) {
    let guest = boot(distribution, interface, wire).start(Machine::here());
    for (driver, modern, transitional) in [(RNG, "0x1044", "0x1005"), (CONSOLE, "0x1043", "0x1003")] {
        let device = device(&guest, driver);
        let at = format!("/sys/bus/virtio/devices/{device}");
        let id = guest.ask(&format!("cat {at}/../device"));
        assert_eq!(id.trim(), if interface == Modern { modern } else { transitional });
        // VIRTIO_F_VERSION_1: the driver uses the modern interface.
        let features = guest.ask(&format!("cat {at}/features"));
        assert_eq!(features.as_bytes()[32] == b'1', interface == Modern, "{features}");
    }
    let before: u64 = handled(&guest, RNG, wire).iter().sum();
    read_random(&guest);
    let after: u64 = handled(&guest, RNG, wire).iter().sum();
    assert!(after >= before + 2048 / 64, "{before} before, {after} after");
    let before: u64 = handled(&guest, CONSOLE, wire).iter().sum();
    echo_lines(&guest);
    let after: u64 = handled(&guest, CONSOLE, wire).iter().sum();
    assert!(after > before, "{before} before, {after} after");
    interrupts_are_exact(&guest, wire, 0);
    guest.power_off();
}

#[test]
fn alpine_drives_modern_functions_by_msix() {
    are_driven(Alpine, Modern, Msix);
}

#[test]
fn alpine_drives_modern_functions_by_intx() {
    are_driven(Alpine, Modern, Intx);
}

#[test]
fn alpine_drives_the_legacy_face_of_transitional_functions_by_msix() {
    are_driven(Alpine, Forced, Msix);
}

#[test]
fn alpine_drives_the_legacy_face_of_transitional_functions_by_intx() {
    are_driven(Alpine, Forced, Intx);
}

#[test]
fn alpine_drives_legacy_functions_by_msix() {
    are_driven(Alpine, Legacy, Msix);
}

#[test]
fn alpine_drives_legacy_functions_by_intx() {
    are_driven(Alpine, Legacy, Intx);
}

#[test]
fn debian_drives_modern_functions_by_msix() {
    are_driven(Debian, Modern, Msix);
}

#[test]
fn debian_drives_modern_functions_by_intx() {
    are_driven(Debian, Modern, Intx);
}

#[test]
fn debian_drives_the_legacy_face_of_transitional_functions_by_msix() {
    are_driven(Debian, Forced, Msix);
}

#[test]
fn debian_drives_the_legacy_face_of_transitional_functions_by_intx() {
    are_driven(Debian, Forced, Intx);
}

#[test]
fn debian_drives_legacy_functions_by_msix() {
    are_driven(Debian, Legacy, Msix);
}

#[test]
fn debian_drives_legacy_functions_by_intx() {
    are_driven(Debian, Legacy, Intx);
}
