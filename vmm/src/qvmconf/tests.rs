//! What configurations mean.

use std::fs;
use std::time::Duration;

use super::*;
use crate::config::{Config, Cpu, DumpTo, Flags, LoadKind, Policy, Sched};
use devices::location::{Location, Placement};

/// The configuration that the file `f` of this text describes.
pub(super) fn parse(text: &str) -> Result<Config, Error> {
    let mut draft = Draft::default();
    parser::parse(lexer::words("f", text)?, &mut draft)?;
    draft.finish()
}

#[track_caller]
fn config(text: &str) -> Config {
    parse(text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_context_lasts_until_the_next_one_and_what_has_none_does_not_end_it() {
    let plain = config("load k cpu sched 8 ram 128m cpu");
    let mixed = config("load k cpu ram 128m # in between\nsched 8 cpu");
    assert_eq!(plain, mixed);
    assert_eq!(plain.cpus, [Cpu { sched: Some(Sched::Other { nice: 2 }), ..Cpu::default() }, Cpu::default()]);
}

#[test]
fn the_last_of_several_counts() {
    let config = config("load k cmdline one cmdline two cpu sched 1 sched 9r runmask 0 runmask 1,3");
    assert_eq!(config.command_line, "two");
    let [cpu] = config.cpus.try_into().unwrap();
    assert_eq!((cpu.sched, cpu.runmask), (Some(Sched::RoundRobin(9)), vec![1, 3]));
}

#[test]
fn without_cpu_ram_and_vdev_there_are_the_usual_ones() {
    let config = config("load k");
    assert_eq!((config.cpus.len(), config.memory.size()), (1, 256 << 20));
    let names: Vec<_> = config.vdevs.iter().map(|vdev| vdev.name).collect();
    assert_eq!(names, ["virtio-entropy", "virtio-console"]);
    assert_eq!(config.power_button_wait, Some(Duration::from_secs(10)));
    assert_eq!(config.dump, DumpTo::Directory(".".into()));
    assert!(!config.is_dry && config.loggers.is_empty());
}

#[test]
fn files_are_loaded_by_type() {
    let text = "ram 0,64m load vmlinuz initrd load 0initrd data load 0x2000000,blob acpi load ssdt.aml";
    let config = config(text);
    assert_eq!(config.kernel.to_str(), Some("vmlinuz"));
    assert_eq!(config.initrd.as_ref().and_then(|path| path.to_str()), Some("0initrd"));
    let loads: Vec<_> = config.loads.iter().map(|load| (load.kind, load.address)).collect();
    assert_eq!(loads, [(LoadKind::Data, Some(0x200_0000)), (LoadKind::Acpi, None)]);
}

#[test]
fn vdevs_have_their_options_their_places_and_their_names() {
    let config = config(
        "load k vdev ioapic name pic vdev ser8250 loc 0x2f8 intr pic:3 log error,warning none log info stdout
         vdev virtio-entropy loc mem:0xf8000000 intr ioapic:12 legacy vdev virtio-entropy loc pci:0:1f.7",
    );
    let places: Vec<_> = config.vdevs.iter().map(|vdev| vdev.place).collect();
    let at = |location, interrupt| Placement { location: Some(location), interrupt };
    assert_eq!(
        places,
        [
            Placement::default(),
            at(Location::Port(0x2f8), Some(3)),
            at(Location::Memory(0xf800_0000), Some(12)),
            at(Location::Pci { device: 31, function: 7 }, None),
        ]
    );
    let names: Vec<_> = config.vdevs.iter().map(|vdev| vdev.name).collect();
    assert_eq!(names, ["pic", "ser8250", "virtio-entropy", "virtio-entropy-2"]);
    let rules: Vec<_> = config.vdevs[1].loggers.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["error,warn none", "info stdout"]);
    assert!(config.vdevs[2].options.has("legacy"));
}

#[test]
fn a_value_that_can_be_left_out_is_taken_if_it_is_one_of_those_that_there_are() {
    let value = |text: &str| {
        let config = config(&format!("load k vdev virtio-console tx-backpressure {text}"));
        let options = &config.vdevs[0].options;
        assert!(options.has("tx-backpressure"));
        options.value("tx-backpressure").map(str::to_owned)
    };
    assert_eq!(value("off name c").as_deref(), Some("off"));
    assert_eq!(value("name c"), None);
    assert_eq!(value(""), None);
}

#[test]
fn everything_else_is_understood_too() {
    let config = config(
        "system demo-1 load k dryrun dump \"|gzip > x\" logger error,fatal stderr logger info none
         unsupported reference abort unsupported register ignore unsupported instruction abort
         set power-button-timeout 0 set default-cmdline no set default-vdevs OFF set pci-config both
         set escape none set state-dir /run/x",
    );
    assert_eq!(config.name.as_deref(), Some("demo-1"));
    assert_eq!(config.dump, DumpTo::Command("gzip > x".into()));
    assert_eq!((config.unsupported.reference, config.unsupported.register), (Policy::Abort, Policy::Ignore));
    assert_eq!((config.power_button_wait, config.loggers.len()), (None, 2));
    assert!(config.is_dry && !config.has_default_words && config.vdevs.is_empty());
    assert!(config.pci_config.has_ecam() && config.pci_config.has_ports());
    assert_eq!(config.state_dir.as_ref().and_then(|path| path.to_str()), Some("/run/x"));
}

#[test]
fn flags_do_not_undo_what_words_shaped() {
    let apply = |text: &str, flags| {
        let mut draft = Draft::default();
        parser::parse(lexer::words("f", text).unwrap(), &mut draft).unwrap();
        draft.apply(flags).unwrap_err().to_string()
    };
    let flags = || Flags { kernel: Some("k".into()), ..Flags::default() };
    assert_eq!(
        apply("ram 0,640k ram 1m,64m", Flags { memory: Some(devices::size::Size(1 << 28)), ..flags() }),
        "--memory and 'ram, rom and reserve with addresses' exclude each other: leave one out"
    );
    assert_eq!(
        apply("cpu sched 8", Flags { cpus: Some(2), ..flags() }),
        "--cpus and 'cpu with options' exclude each other: leave one out"
    );
    assert_eq!(
        apply("vdev ser8250", Flags { has_no_vdevs: true, ..flags() }),
        "--no-vdevs and 'vdev' exclude each other: leave one out"
    );
}

#[test]
fn files_are_spliced_in_where_they_are_named() {
    let directory = std::env::temp_dir().join(format!("mote-qvmconf-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, bytes).unwrap();
        format!("@{}", path.display())
    };
    let read = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut draft = Draft::default();
        read(&words, &mut draft).and_then(|()| draft.finish())
    };
    let (one, two) = (file("one", b"system demo load k"), file("two", b"cmdline \"a b\"\n"));
    let both = read(&[&one, "ram", "128m", &two]).unwrap();
    assert_eq!((both.name.as_deref(), both.command_line.as_str()), (Some("demo"), "a b"));

    let error = read(&["load", "k", "ram", "128"]).unwrap_err().to_string();
    assert!(error.starts_with("[command line] ram '128': "), "{error}");
    let error = read(&["@/nowhere/x"]).unwrap_err().to_string();
    assert_eq!(error, "[command line] cannot read /nowhere/x: No such file or directory (os error 2)");
    let latin = file("latin", b"load k\ncmdline \"\xe4\"");
    let error = read(&[&latin]).unwrap_err().to_string();
    assert_eq!(error, format!("[{}:2] this is not UTF-8; a configuration is text", &latin[1..]));
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn no_option_of_a_vdev_hides_one_of_the_vm() {
    for kind in devices::KINDS {
        for help in kind.all_options() {
            assert!(OPTIONS.iter().all(|row| row.name != help.name), "{} {}", kind.name, help.name);
        }
    }
}
