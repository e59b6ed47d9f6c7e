//! Linux in mote: what a distribution's own kernel makes of the machine.

use std::path::Path;
use std::time::{Duration, Instant};

use tests::guest::{Boot, Console, Distribution};
use tests::{Command, LATE, Machine, SOON, Status, paths};

/// Boots, asks a few words and powers off.
#[track_caller]
fn reaches_init(distribution: Distribution, console: Console, release: &str) {
    let guest = Boot::new(distribution, console).start(Machine::here());
    let answer = guest.ask("uname -r");
    assert!(answer.starts_with(release), "{answer}");
    let end = guest.power_off();
    assert!(end.messages().contains("powered off"), "{}", end.messages());
}

#[test]
fn alpine_reaches_init_on_hvc0() {
    reaches_init(Distribution::Alpine, Console::Hvc0, "6.18.");
}

#[test]
fn alpine_reaches_init_on_the_serial_port() {
    reaches_init(Distribution::Alpine, Console::Serial, "6.18.");
}

#[test]
fn debian_reaches_init_on_hvc0() {
    reaches_init(Distribution::Debian, Console::Hvc0, "6.");
}

#[test]
fn debian_reaches_init_on_the_serial_port() {
    reaches_init(Distribution::Debian, Console::Serial, "6.");
}

/// Takes bytes from /dev/hwrng out of the guest, as text.
#[track_caller]
fn random(distribution: Distribution, count: usize) -> Vec<u8> {
    let guest = Boot::new(distribution, Console::Hvc0).start(Machine::here());
    let rng = guest.ask("cat /sys/class/misc/hw_random/rng_current");
    assert!(rng.starts_with("virtio_rng"), "{rng}");
    let text = guest.ask(&format!("head -c {count} /dev/hwrng | base64"));
    guest.power_off();
    let bytes = decode(&text);
    assert_eq!(bytes.len(), count);
    bytes
}

/// Decodes base64 (RFC 4648).
fn decode(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u8> = text.bytes().filter_map(value).collect();
    let group = |group: &[u8]| {
        let bits =
            group.iter().fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

#[test]
fn hwrng_gives_65536_bytes_that_differ_from_run_to_run() {
    let one = random(Distribution::Alpine, 65_536);
    let other = random(Distribution::Debian, 65_536);
    let same = one.iter().zip(&other).filter(|(one, other)| one == other).count();
    // Of 65,536 pairs 256 are the same by chance, give or take 16.
    assert!((128..512).contains(&same), "{same} bytes are the same in both runs");
}

#[test]
fn hwrng_passes_the_tests_of_fips_140_2() {
    // Each test takes 20,000 bits; the first word is set aside for the comparison with the next.
    const BLOCKS: usize = 160;
    let sample = random(Distribution::Alpine, 4 + BLOCKS * 2500);
    let rngtest = Machine::this().spawn(&Command::new("rngtest"));
    rngtest.send(&sample);
    rngtest.close_input();
    let report = rngtest.wait(SOON).messages();
    let count = |what: &str| -> usize {
        let line = report.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{report}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(count("FIPS 140-2 successes") + count("FIPS 140-2 failures"), BLOCKS, "{report}");
    // One block in 1,250 of a perfect source fails; four of 160 do once in 100,000 runs.
    assert!(count("FIPS 140-2 failures") < 4, "{report}");
}

/// How often the request queue's vector of the entropy device has fired, and the line that says so.
fn entropy_interrupts(interrupts: &str, device: &str) -> (u64, String) {
    let line = interrupts
        .lines()
        .find(|line| line.contains(&format!("{device}-")) && !line.contains("-config"))
        .unwrap_or_else(|| panic!("no vector of {device} in\n{interrupts}"));
    let count = line.split_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok()).sum();
    (count, line.to_owned())
}

#[test]
fn the_entropy_devices_msix_vector_counts() {
    let guest = Boot::new(Distribution::Alpine, Console::Hvc0).start(Machine::here());
    let device = guest.ask("basename /sys/bus/virtio/drivers/virtio_rng/virtio*").trim().to_owned();
    let (before, line) = entropy_interrupts(&guest.ask("cat /proc/interrupts"), &device);
    assert!(line.contains("PCI-MSIX"), "{line}");
    guest.ask("head -c 6400 /dev/hwrng >/dev/null");
    let (after, _) = entropy_interrupts(&guest.ask("cat /proc/interrupts"), &device);
    assert!(after > before, "{before} before, {after} after: {line}");
    guest.power_off();
}

#[test]
fn four_vcpus_come_up() {
    let boot = Boot::new(Distribution::Alpine, Console::Hvc0).option("--cpus", "4");
    let guest = boot.start(Machine::here());
    assert_eq!(guest.ask("cat /sys/devices/system/cpu/online").trim(), "0-3");
    // Each of them has a timer that ticks.
    let ticks = guest.ask("grep LOC: /proc/interrupts");
    let ticks: Vec<u64> = ticks.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    assert!(ticks.len() == 4 && ticks.iter().all(|ticks| *ticks > 0), "{ticks:?}");
    guest.power_off();
}

#[test]
fn five_gigabytes_are_seen() {
    let boot = Boot::new(Distribution::Alpine, Console::Hvc0).option("--memory", "5G");
    let guest = boot.start(Machine::here());
    let total = guest.ask("grep MemTotal /proc/meminfo");
    let kilobytes: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The kernel keeps a few per cent for itself.
    assert!((5 * 950_000..=5 << 20).contains(&kilobytes), "{total}");
    guest.power_off();
}

#[test]
fn reboot_ends_the_run_and_is_told_from_poweroff() {
    for (distribution, console) in
        [(Distribution::Alpine, Console::Hvc0), (Distribution::Debian, Console::Serial)]
    {
        let guest = Boot::new(distribution, console).start(Machine::here());
        let end = guest.reset();
        assert!(end.messages().contains("reset"), "{}", end.messages());
        assert!(!end.messages().contains("powered off"), "{}", end.messages());
    }
}

#[test]
fn a_power_off_ends_mote_at_once() {
    let guest = Boot::new(Distribution::Alpine, Console::Hvc0).start(Machine::here());
    // The guest's last word, and then only the kernel's own path to the sleep register.
    guest.session.send("echo go''ing; poweroff -f\n");
    guest.session.expect("going\r\n", SOON);
    let started = Instant::now();
    let end = guest.session.wait(SOON);
    assert_eq!(end.status, Status::Code(0), "{}", end.messages());
    // A second is asked for, of which emulation takes its share.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_line_typed_on_a_terminal_is_answered() {
    let boot = Boot::new(Distribution::Alpine, Console::Hvc0).terminal(24, 80);
    let guest = boot.start(Machine::here());
    guest.session.send("echo 6 times 7 is $((6 * 7))\r");
    guest.session.expect("6 times 7 is 42\r\n", SOON);
    // What a person may press goes to the guest: Ctrl-C ends its sleep, not mote.
    guest.session.send("echo sleep''ing; sleep 1000\r");
    guest.session.expect("sleeping\r\n", SOON);
    guest.session.send("\x03");
    guest.session.send("echo a''wake\r");
    guest.session.expect("awake\r\n", SOON);
    guest.session.send("poweroff -f\r");
    assert_eq!(guest.session.wait(SOON).status, Status::Code(0));
}

#[test]
fn the_terminal_is_given_back_as_it_was() {
    let machine = Machine::here();
    let boot = Boot::new(Distribution::Alpine, Console::Hvc0);
    let [kernel, initramfs] = boot.files().map(|path| machine.file(path));
    // Settings that no program makes by itself, to see that they are kept.
    let script =
        r#"stty -echoctl intr ^X; stty -g; "$0" run --kernel "$1" --initrd "$2" --cmdline quiet; stty -g"#;
    let command = Command::shell(script).arg(machine.file(paths::mote())).arg(kernel).arg(initramfs);
    let _alone = machine.alone();
    let session = machine.spawn(&command.terminal(24, 80).env("TERM", "linux"));
    let before = session.expect("\r\n", SOON);
    boot.wait_for_shell(&session);
    session.send("poweroff -f\r");
    let end = session.wait(LATE);
    let text = end.text();
    let after = text.lines().last().unwrap_or_default();
    assert_eq!(after.trim(), before.trim(), "{text}");
    assert!(before.contains(':'), "{before}");
}

/// What `make run` does, typed at by a newcomer, on whatever machine this is.
#[test]
fn a_newcomer_logs_in_to_alpine() {
    let file = |path: &Path| format!("file:{}", path.display());
    let script = r#"stty -g; "$@"; echo "status $?"; stty -g"#;
    let command = Command::shell(script).arg("sh").arg(paths::built("tools/rig")).args(["run", "--"]);
    let command =
        command.arg(file(&paths::mote())).args(["run", "--memory", "512M", "--cmdline", "quiet", "--kernel"]);
    let command = command.arg(file(&paths::built("guests/alpine/vmlinuz"))).arg("--initrd");
    let command = command.arg(file(&paths::built("guests/alpine-login/initramfs")));
    let session = Machine::this().spawn(&command.terminal(30, 100).env("TERM", "xterm"));
    let before = session.expect("\r\n", SOON);
    session.expect("login: ", LATE);
    session.send("root\r");
    session.expect("mote:~# ", LATE);
    session.send("grep -h ^NAME /etc/os-release; lsmod; tty\r");
    let answer = session.expect("/dev/hvc0", SOON);
    assert!(answer.contains("Alpine Linux") && answer.contains("virtio_rng"), "{answer}");
    session.send("poweroff\r");
    session.expect("status 0\r\n", LATE);
    let text = session.wait(SOON).text();
    assert_eq!(text.lines().last().unwrap_or_default().trim(), before.trim(), "{text}");
}
