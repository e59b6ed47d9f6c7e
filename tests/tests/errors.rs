//! What keeps a guest from starting is told in one line, before a VM is made.

use std::fs;
use std::path::{Path, PathBuf};

use tests::bzimage::{self, Flaw};
use tests::{Command, Machine, SOON, Status};

/// The guest did not start.
const NOT_STARTED: Status = Status::Code(64);
/// What was asked for makes no sense.
const CONFIGURATION: Status = Status::Code(65);

/// Writes a file that is this test's alone, and returns its path on the machine that runs small guests.
fn scratch(name: &str, bytes: &[u8]) -> String {
    let path = here(name, bytes);
    Machine::local().file(path).to_str().unwrap().to_owned()
}

fn here(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("errors-{name}"));
    fs::write(&path, bytes).unwrap();
    path
}

/// A kernel that loads. Its code is a jump to itself, so a guest that starts after all fails the test by its deadline.
fn kernel(name: &str) -> String {
    scratch(name, &bzimage::wrap(&[0xeb, 0xfe], Flaw::None))
}

/// Runs mote and returns its one line.
#[track_caller]
fn refused(status: Status, arguments: &[&str]) -> String {
    let machine = Machine::local();
    check(machine, &machine.mote(&["run"]).args(arguments), status)
}

#[track_caller]
fn check(machine: &Machine, command: &Command, status: Status) -> String {
    let end = machine.spawn(command).wait(SOON);
    let messages = end.messages();
    assert_eq!(end.status, status, "{messages}");
    assert_eq!(end.text(), "", "standard output is the guest's");
    assert!(messages.starts_with("mote: error: "), "{messages}");
    assert_eq!(messages.lines().count(), 1, "{messages}");
    messages
}

#[track_caller]
fn names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

#[test]
fn a_kernel_that_is_not_there() {
    names(&refused(NOT_STARTED, &["--kernel", "/nowhere/vmlinuz"]), &["/nowhere/vmlinuz", "No such file"]);
}

#[test]
fn a_kernel_that_is_a_directory() {
    names(&refused(NOT_STARTED, &["--kernel", "/proc"]), &["/proc"]);
}

#[test]
fn a_kernel_that_is_empty() {
    names(&refused(NOT_STARTED, &["--kernel", &scratch("empty", b"")]), &["errors-empty"]);
}

#[test]
fn a_file_that_is_no_bzimage() {
    let text = scratch("text", &b"This is no kernel.\n".repeat(1000));
    names(&refused(NOT_STARTED, &["--kernel", &text]), &["errors-text", "bzImage"]);
    let magic = scratch("magic", &bzimage::wrap(&[0xeb, 0xfe], Flaw::Magic));
    names(&refused(NOT_STARTED, &["--kernel", &magic]), &["errors-magic", "bzImage"]);
}

#[test]
fn a_kernel_of_an_old_protocol() {
    let old = scratch("old", &bzimage::wrap(&[0xeb, 0xfe], Flaw::Protocol));
    names(&refused(NOT_STARTED, &["--kernel", &old]), &["errors-old", "2.11", "2.12"]);
}

#[test]
fn a_kernel_without_a_64_bit_entry() {
    let small = scratch("32-bit", &bzimage::wrap(&[0xeb, 0xfe], Flaw::Entry));
    names(&refused(NOT_STARTED, &["--kernel", &small]), &["errors-32-bit", "64-bit"]);
}

#[test]
fn a_kernel_that_is_cut_short() {
    let cut = scratch("cut", &bzimage::wrap(&[0x90; 8192], Flaw::Truncated));
    names(&refused(NOT_STARTED, &["--kernel", &cut]), &["errors-cut", "truncated"]);
    let header = scratch("header", &bzimage::wrap(&[0xeb, 0xfe], Flaw::None)[..0x210]);
    names(&refused(NOT_STARTED, &["--kernel", &header]), &["errors-header"]);
}

#[test]
fn an_initrd_that_is_not_there() {
    let message = refused(NOT_STARTED, &["--kernel", &kernel("k1"), "--initrd", "/nowhere/initrd"]);
    names(&message, &["/nowhere/initrd", "No such file"]);
}

#[test]
fn an_initrd_that_does_not_fit() {
    let large = scratch("large", &vec![0; 70 << 20]);
    let message = refused(NOT_STARTED, &["--kernel", &kernel("k2"), "--initrd", &large, "--memory", "64M"]);
    names(&message, &["initrd", "memory"]);
}

#[test]
fn a_command_line_that_is_too_long() {
    let message = refused(NOT_STARTED, &["--kernel", &kernel("k3"), "--cmdline", &"x ".repeat(1024)]);
    names(&message, &["command line", "2047"]);
}

#[test]
fn too_little_memory() {
    for memory in ["0M", "1M", "62M"] {
        let message = refused(NOT_STARTED, &["--kernel", &kernel("k4"), "--memory", memory]);
        names(&message, &["memory", "at least 64 MiB"]);
    }
}

#[test]
fn more_vcpus_than_kvm_has() {
    let message = refused(NOT_STARTED, &["--kernel", &kernel("k5"), "--cpus", "100000"]);
    names(&message, &["100000", "vCPUs"]);
}

#[test]
fn what_is_no_configuration_has_a_status_of_its_own() {
    let machine = Machine::local();
    let kernel = kernel("k6");
    for (arguments, part) in [
        (&["--kernel", &kernel, "--memory", "much"][..], "--memory"),
        (&["--kernel", &kernel, "--cpus", "0"], "--cpus"),
        (&["--kernel", &kernel, "--vdev", "virtio-toaster"], "virtio-toaster"),
        (&["--kernel", &kernel, "--vdev", "virtio-entropy,colour=red"], "colour"),
        (&["--kernel", &kernel, "--frobnicate"], "--frobnicate"),
        (&[], "--kernel"),
    ] {
        names(&check(machine, &machine.mote(&["run"]).args(arguments), CONFIGURATION), &[part]);
    }
}

#[test]
fn a_processor_that_the_host_has_not() {
    let machine = Machine::local();
    let kernel = kernel("k10");
    for (cpus, mask) in
        [("cpu\ncpu runmask 1023", "'1023'"), ("cpu runmask 0\ncpu runmask 0,1023", "'0,1023'")]
    {
        let file = format!("@{}", scratch("runmask", format!("load {kernel}\n{cpus}\n").as_bytes()));
        for command in ["check", "run"] {
            let message = check(machine, &machine.mote(&[command, &file]), CONFIGURATION);
            names(&message, &["errors-runmask:3] ", "runmask", mask, "no processor 1023"]);
        }
    }
}

/// Runs mote in the rig, in a namespace whose mounts `prepare` changes first.
#[track_caller]
fn refused_in_the_rig(prepare: &str, arguments: &[&str]) -> String {
    let rig = Machine::rig();
    let script = format!("{prepare} && exec \"$@\"");
    let command = Command::new("unshare").args(["-m", "sh", "-c", &script, "sh"]);
    let command = command.arg(rig.file(tests::paths::mote())).arg("run").args(arguments);
    check(rig, &command, NOT_STARTED)
}

/// The kernel, as the rig sees it.
fn rig_kernel(name: &str) -> String {
    let kernel = here(name, &bzimage::wrap(&[0xeb, 0xfe], Flaw::None));
    Machine::rig().file(kernel).to_str().unwrap().to_owned()
}

/// Takes `/dev/kvm` away, and the rest of the devices with it.
const NO_KVM: &str = "mount -t tmpfs none /dev";

#[test]
fn no_kvm() {
    let message = refused_in_the_rig(NO_KVM, &["--kernel", &rig_kernel("k7")]);
    names(&message, &["/dev/kvm", "No such file", "module"]);
}

#[test]
fn no_permission_for_kvm() {
    let script = r#"mkdir -p /etc && echo user:x:1000:1000::/:/bin/sh >/etc/passwd &&
        exec start-stop-daemon -S -c user -n no-such-process -a "$0" -- "$@""#;
    let rig = Machine::rig();
    let command = Command::shell(script).arg(rig.file(tests::paths::mote())).arg("run");
    let message = check(rig, &command.arg("--kernel").arg(rig_kernel("k8")), NOT_STARTED);
    names(&message, &["/dev/kvm", "Permission denied", "group kvm"]);
}

#[test]
fn something_else_in_the_place_of_kvm() {
    let message = refused_in_the_rig("mount -o bind /dev/null /dev/kvm", &["--kernel", &rig_kernel("k9")]);
    names(&message, &["/dev/kvm"]);
}

#[test]
fn a_bad_kernel_is_found_before_kvm_is_opened() {
    let kernel = here("early", &bzimage::wrap(&[0xeb, 0xfe], Flaw::Entry));
    let kernel = Machine::rig().file(kernel);
    names(&refused_in_the_rig(NO_KVM, &["--kernel", kernel.to_str().unwrap()]), &["64-bit"]);
}
