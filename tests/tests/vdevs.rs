//! The platform's vdevs, VIRTIO in memory, and what signals ask for, with Linux as the guest.

use tests::guest::{Boot, Console, Distribution};
use tests::{LATE, Machine, SOON, Status};

const SIGQUIT: i32 = 3;
const SIGUSR1: i32 = 10;
const SIGUSR2: i32 = 12;
const SIGTERM: i32 = 15;

fn alpine() -> Boot {
    Boot::new(Distribution::Alpine, Console::Hvc0)
}

/// Debian with a console, and with these vdevs before it.
fn debian(vdevs: &[&str]) -> Boot {
    let boot = Boot::new(Distribution::Debian, Console::Hvc0);
    vdevs.iter().chain(&["virtio-console"]).fold(boot, |boot, vdev| boot.option("--vdev", vdev))
}

#[test]
fn the_power_button_reaches_linux_which_shuts_down_by_itself() {
    let guest = debian(&[]).start(Machine::here());
    guest.session.send("(head -c 24 /dev/input/event0 >/dev/null; poweroff -f) &\n");
    guest.ask("sleep 1");
    guest.session.signal(SIGTERM);
    let end = guest.session.wait(SOON);
    assert_eq!(end.status, Status::Code(0), "{}", end.messages());
    let messages = end.messages();
    assert!(
        messages.contains("the power button is pressed") && messages.contains("powered off"),
        "{messages}"
    );
}

#[test]
fn a_guest_that_heeds_no_button_is_cut_off_by_the_second_signal() {
    let guest = alpine().start(Machine::here());
    guest.session.signal(SIGTERM);
    guest.session.expect_message("the power button is pressed", SOON);
    assert_eq!(guest.ask("echo still here").trim(), "still here");
    guest.session.signal(SIGTERM);
    let end = guest.session.wait(SOON);
    assert_eq!(end.status, Status::Code(3));
    assert!(end.messages().contains("power cut: SIGTERM"), "{}", end.messages());
}

#[test]
fn a_guest_that_heeds_no_button_is_cut_off_in_time() {
    let guest = alpine().option("--power-button-timeout", "2").start(Machine::here());
    guest.session.signal(SIGTERM);
    let end = guest.session.wait(SOON);
    assert_eq!(end.status, Status::Code(3));
    assert!(end.messages().contains("did not heed its power button"), "{}", end.messages());
}

#[test]
fn status_and_dump_leave_the_guest_running_and_a_power_cut_does_not() {
    let machine = Machine::here();
    let guest = alpine().option("--cpus", "2").start(machine);
    guest.session.signal(SIGUSR1);
    let status = guest.session.expect_message("accesses to where nothing is", SOON);
    for part in ["vcpu1: ", "virtio-entropy: ", "virtio-console: "] {
        assert!(status.contains(part), "{status}");
    }
    guest.session.signal(SIGUSR2);
    guest.session.expect_message("the guest was dumped to ./mote-guest-", LATE);
    assert_eq!(guest.ask("echo still here").trim(), "still here");
    guest.session.signal(SIGQUIT);
    assert_eq!(guest.session.wait(SOON).status, Status::Code(3));
}

#[test]
fn a_panic_of_the_kernel_has_an_exit_status_of_its_own() {
    let guest = debian(&["pvpanic"]).start(Machine::here());
    guest.session.send("echo c >/proc/sysrq-trigger\n");
    let end = guest.session.wait(SOON);
    assert_eq!(end.status, Status::Code(32), "{}", end.messages());
    assert!(end.messages().contains("the guest panicked"), "{}", end.messages());
}

#[test]
fn the_keyboard_controller_resets() {
    let guest = debian(&["pckeyboard"]).words("reboot=k").start(Machine::here());
    let end = guest.reset();
    assert!(end.messages().contains("reset"), "{}", end.messages());
}

#[test]
fn the_clock_shows_the_hosts_time() {
    let machine = Machine::here();
    let guest = debian(&["mc146818"]).start(machine);
    let guests: u64 = guest.ask("cat /sys/class/rtc/rtc0/since_epoch").trim().parse().unwrap();
    let hosts: u64 =
        machine.run(&tests::Command::shell("date +%s")).text().trim().parse().expect("the host's time");
    assert!(guests.abs_diff(hosts) < 60, "{guests} {hosts}");
    guest.power_off();
}

#[test]
fn entropy_comes_over_virtio_in_memory_modern_and_legacy() {
    for face in ["", ",legacy"] {
        let rng = format!("virtio-entropy,loc=mem:0xf8000000,intr=ioapic:12{face}");
        let guest = debian(&[&rng]).start(Machine::here());
        let device = guest.ask("cat /sys/bus/platform/devices/LNRO0005:00/virtio*/device");
        assert_eq!(device.trim(), "0x0004");
        assert_eq!(guest.ask("head -c 4096 /dev/hwrng | wc -c").trim(), "4096");
        let interrupts = guest.ask("grep 'IO-APIC *12' /proc/interrupts");
        let count: u64 = interrupts.split_whitespace().nth(1).and_then(|it| it.parse().ok()).unwrap();
        assert!(count > 0, "{interrupts}");
        guest.power_off();
    }
}

#[test]
fn the_example_of_the_documentation_counts() {
    let guest = debian(&["counter,loc=mem:0xf8010000,step=5"]).start(Machine::here());
    let read = "busybox devmem 0xf8010000 32";
    let counts = guest.ask(&format!("{read}; busybox devmem 0xf8010000 32 0x28; {read}; {read}"));
    let counts: Vec<&str> = counts.split_whitespace().collect();
    assert_eq!(counts, ["0x00000000", "0x00000028", "0x0000002D"]);
    guest.power_off();
}

#[test]
fn a_memory_map_can_be_shaped() {
    let map =
        "ram 0,640k reserve loc 0xa0000,0x20000 rom 0xc0000,0x40000 ram 1m,127m reserve loc 128m,16m ram 64m";
    let words: Vec<&str> = map.split(' ').collect();
    let boot = words.chunks(2).fold(alpine(), |boot, pair| boot.option(pair[0], pair[1]));
    let guest = boot.start(Machine::here());
    let iomem = guest.ask("grep -v '^ ' /proc/iomem");
    for line in
        ["00100000-07ffffff : System RAM", "08000000-08ffffff : Reserved", "09000000-0cffffff : System RAM"]
    {
        assert!(iomem.contains(line), "no {line} in\n{iomem}");
    }
    guest.power_off();
}

#[test]
fn a_slow_source_holds_nobody_up_and_one_that_ends_ends_the_run() {
    let machine = Machine::here();
    let make =
        "mkfifo /tmp/slow.$$ && echo /tmp/slow.$$; head -c 8192 /dev/urandom >/tmp/short && echo /tmp/short";
    let made = machine.run(&tests::Command::shell(make)).text();
    let [slow, short] = made.lines().collect::<Vec<_>>()[..] else { panic!("{made}") };
    let guest = debian(&[&format!("virtio-entropy,source={slow}")]).start(machine);
    guest.session.send("dd if=/dev/hwrng bs=4 count=1 2>/dev/null | wc -c &\n");
    assert_eq!(guest.ask("echo the shell goes on").trim(), "the shell goes on");
    machine.run(&tests::Command::shell(&format!("head -c 8192 /dev/urandom >{slow}")));
    guest.session.expect("4\r\n", SOON);
    guest.power_off();

    let guest = debian(&[&format!("virtio-entropy,source={short}")]).start(machine);
    guest.session.send("head -c 100000 /dev/hwrng | wc -c\n");
    let end = guest.session.wait(SOON);
    assert_eq!(end.status, Status::Code(6), "{}", end.messages());
    assert!(end.messages().contains("vdev virtio-entropy cannot go on"), "{}", end.messages());
}
