//! Sample configurations through `mote check`: what it prints of each is in the file beside it. `UPDATE=1` writes those
//! anew.

mod workplace;

use std::path::Path;
use std::{env, fs};

use workplace::{directory, is_understood, mote};

#[track_caller]
fn check(name: &str) {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qvmconf");
    let directory = directory(name);
    let file = format!("{name}.qvmconf");
    fs::copy(beside.join(&file), directory.join(&file)).unwrap();
    let output = mote(&directory, &["check", &format!("@{file}")]);
    is_understood(&output, name);
    let seen = String::from_utf8(output.stdout).unwrap();
    let expected = beside.join(format!("{name}.txt"));
    if env::var_os("UPDATE").is_some() {
        fs::write(&expected, &seen).unwrap();
    }
    assert_eq!(seen, fs::read_to_string(expected).unwrap());
}

#[test]
fn the_least_configuration() {
    check("small");
}

#[test]
fn a_guest_like_a_pc() {
    check("pc");
}

#[test]
fn vdevs_at_places_of_their_own() {
    check("placed");
}

#[test]
fn logs_dumps_and_variables() {
    check("run");
}

#[test]
fn an_error_shows_its_line_and_has_its_status() {
    let directory = directory("errors");
    let wrong = |name: &str, text: &str| {
        fs::write(directory.join(name), text).unwrap();
        let output = mote(&directory, &["run", &format!("@{name}")]);
        assert_eq!(output.status.code(), Some(65));
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        wrong("unknown", "load vmlinuz\nvdv ser8250\n"),
        "mote: error: [unknown:2] there is no option 'vdv' (did you mean 'vdev'?)\n"
    );
    // Found out only when the vdevs are made or placed.
    let check = |name: &str, text: &str| {
        fs::write(directory.join(name), text).unwrap();
        let output = mote(&directory, &["check", &format!("@{name}")]);
        assert_eq!(output.status.code(), Some(65), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    let start = "load vmlinuz\nvdev virtio-entropy\n";
    assert_eq!(
        check("value", &format!("{start}rate fast\n")),
        "mote: error: [value:3] vdev virtio-entropy: rate=fast: a size is a number and a suffix K, M, G or T, such as 256M\n"
    );
    assert_eq!(
        check("place", &format!("{start}loc pci:0:5.0\nvdev virtio-console loc\npci:0:5.0")),
        "mote: error: [place:5] vdev virtio-console cannot be PCI function 00:05.0: another one is there\n"
    );
    assert_eq!(
        check("line", "load vmlinuz vdev ser8250 vdev ser8250 loc 0x2f8\nintr ioapic:4"),
        "mote: error: [line:2] vdev ser8250-2 cannot have interrupt ioapic:4: ser8250 has it\n"
    );
    assert_eq!(
        check("ports", "load vmlinuz vdev pvpanic vdev counter loc 0x503"),
        "mote: error: [ports:1] counter cannot have ports 0x503 to 0x507: pvpanic is there; move one of the two\n"
    );
    assert_eq!(
        check("both", &format!("{start}legacy transitional")),
        "mote: error: [both:3] vdev virtio-entropy: transitional: a vdev is legacy or transitional, not both\n"
    );
    assert_eq!(
        check("memory", &format!("{start}loc mem:0x80000000 intr ioapic:12")),
        "mote: error: [memory:3] vdev virtio-entropy: loc=mem:0x80000000: \
         vdevs in memory are from 0xf8000000 on, below the I/O APIC at 0xfec00000\n"
    );
    assert_eq!(
        check("page", &format!("{start}loc 0xf8000800 intr ioapic:12")),
        "mote: error: [page:3] vdev virtio-entropy: loc=0xf8000800: \
         a vdev in memory begins on a page, at a multiple of 0x1000\n"
    );
    assert_eq!(
        check("pci-line", &format!("{start}intr ioapic:5")),
        "mote: error: [pci-line:3] vdev virtio-entropy: intr=ioapic:5: PCI's lines are ioapic:16 to ioapic:23\n"
    );
    assert_eq!(
        check(
            "slot-line",
            &format!(
                "{start}loc pci:0:5.0 intr ioapic:20\nvdev virtio-console loc pci:0:5.1\nintr ioapic:21"
            )
        ),
        "mote: error: [slot-line:5] vdev virtio-console: intr=ioapic:21: \
         another function of the same slot has another line, and a slot has one\n"
    );
    assert_eq!(
        check("function-0", &format!("{start}loc pci:0:5.1")),
        "mote: error: PCI slot 0x5 has functions but no function 0, so no guest looks for them; \
         give one vdev loc=pci:0:5.0\n"
    );
    assert_eq!(
        check("slots", &format!("load vmlinuz {}\nvdev virtio-entropy", "vdev virtio-entropy ".repeat(31))),
        "mote: error: [slots:2] there is no PCI slot left for vdev virtio-entropy-32; a bus has 32\n"
    );
    assert_eq!(
        check("data", "ram 64m load vmlinuz\ndata load 0x5000000,initramfs"),
        "mote: error: [data:2] initramfs cannot be at 0x5000000 to 0x5000009: there is no 'ram' or 'rom' for all of it\n"
    );
    assert_eq!(
        check("action", "load vmlinuz vdev wdt-ib700 action fiq"),
        "mote: error: [action:1] vdev wdt-ib700: action=fiq: a fast interrupt is ARM's; use terminate or dump,terminate\n"
    );
}

#[test]
fn a_vdev_that_has_one_place_is_there() {
    let directory = directory("only");
    let mut count = 0;
    for (kind, place) in devices::KINDS.iter().filter_map(|kind| Some((kind.name, kind.only_place()?))) {
        let place = place.to_string();
        let output = mote(&directory, &["check", "load", "vmlinuz", "vdev", kind, "loc", &place]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("vdev         {kind} at {place}")), "{text}");
        count += 1;
    }
    assert!(count >= 5, "{count}");
}

#[test]
fn the_variables_are_listed() {
    let output = mote(Path::new("."), &["run", "set", "?"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.lines().count() == vmm::qvmconf::VARIABLES.len(), "{text}");
    assert!(text.starts_with("default-cmdline"), "{text}");
}

#[test]
fn every_option_variable_and_vdev_is_in_the_documentation() {
    let page = include_str!("../../docs/configuration.md");
    let options = vmm::qvmconf::OPTIONS.iter().chain(vmm::qvmconf::CPU_OPTIONS).map(|row| row.name);
    let variables = vmm::qvmconf::VARIABLES.iter().map(|row| row.name);
    let vdevs = devices::KINDS
        .iter()
        .flat_map(|kind| std::iter::once(kind.name).chain(kind.options.iter().map(|help| help.name)));
    for name in options.chain(variables).chain(vdevs) {
        assert!(page.contains(&format!("`{name}`")) || page.contains(&format!("`{name} ")), "`{name}`");
    }
}
