//! The platform's vdevs, VIRTIO in memory, and what signals ask for, with Linux as the guest.

use std::fs;
use std::path::Path;

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
    // From here on events wait for whoever reads.
    guest.ask("exec 3</dev/input/event0");
    guest.session.signal(SIGTERM);
    guest.session.send("head -c 24 <&3 >/dev/null; poweroff -f\n");
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
    let size = "/tmp/vdevs-dump.size";
    let pipe = format!("|wc -c >{size}");
    let guest = alpine().option("--cpus", "2").option("dump", &pipe).start(machine);
    guest.session.signal(SIGUSR1);
    let status = guest.session.expect_message("accesses to where nothing is", SOON);
    for part in ["vcpu1: ", "virtio-entropy: ", "virtio-console: "] {
        assert!(status.contains(part), "{status}");
    }
    guest.session.signal(SIGUSR2);
    guest.session.expect_message("the guest was dumped to ", LATE);
    assert_eq!(guest.ask("echo still here").trim(), "still here");
    let size: u64 = String::from_utf8(machine.get(size)).unwrap().trim().parse().unwrap();
    assert!(size > 256 << 20, "{size}");
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
fn entropy_and_a_console_are_in_memory_modern_and_legacy() {
    for face in ["", ",legacy"] {
        let rng = format!("virtio-entropy,loc=mem:0xf8000000,intr=ioapic:12{face}");
        let console = format!("virtio-console,loc=mem:0xf8001000,intr=ioapic:13{face}");
        let boot = Boot::new(Distribution::Debian, Console::Hvc0).option("--vdev", &rng);
        let guest = boot.option("--vdev", &console).start(Machine::here());
        let device = guest.ask("cat /sys/bus/platform/devices/LNRO0005:00/virtio*/device");
        assert_eq!(device.trim(), "0x0004");
        assert_eq!(guest.ask("head -c 4096 /dev/hwrng | wc -c").trim(), "4096");
        let interrupts = guest.ask("grep 'IO-APIC *12' /proc/interrupts");
        let count: u64 = interrupts.split_whitespace().nth(1).and_then(|it| it.parse().ok()).unwrap();
        assert!(count > 0, "{interrupts}");
        guest.power_off();
    }
}

/// Writes a file that is this test's alone, and returns its path on the machine.
fn scratch(machine: &Machine, name: &str, bytes: &[u8]) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("vdevs-{name}"));
    fs::write(&path, bytes).unwrap();
    machine.file(path).to_str().unwrap().to_owned()
}

/// An ACPI table with nothing in it.
fn table() -> [u8; 36] {
    let mut table = *b"SSDT\x24\0\0\0\x02\0MOTE  NOTHING \x01\0\0\0MOTE\x01\0\0\0";
    table[9] = 0_u8.wrapping_sub(table.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
    table
}

#[test]
fn a_pc_that_a_file_describes_boots_with_everything_in_it() {
    let machine = Machine::here();
    let firmware = scratch(machine, "firmware", b"mote");
    let ssdt = scratch(machine, "ssdt", &table());
    let text = format!(
        "system pc
         ram 0,0xa0000  reserve loc 0xa0000,0x20000  rom 0xc0000,0x40000  ram 1m,255m
         cpu sched 10 runmask 0
         data load 0xc0000,{firmware}  acpi load {ssdt}
         vdev ioapic intr apic name myioapic
         vdev ser8250 intr myioapic:4 hostdev \">/dev/null\"
         vdev timer8254 intr myioapic:0
         vdev mc146818
         vdev pckeyboard
         vdev wdt-ib700
         vdev pvpanic
         vdev virtio-entropy delayed 10
         vdev virtio-console"
    );
    let file = format!("@{}", scratch(machine, "pc.qvmconf", text.as_bytes()));
    let boot = Boot::new(Distribution::Debian, Console::Hvc0).word(&file);
    let dry = machine.run(&boot.clone().word("dryrun").command(machine));
    assert!(
        dry.status == Status::Code(0) && dry.messages().contains("dryrun completed"),
        "{}",
        dry.messages()
    );
    let guest = boot.start(machine);
    let parts = guest.ask("ls /sys/bus/acpi/devices; cat /sys/class/rtc/rtc0/name /proc/ioports");
    for part in
        ["PNP0501:00", "PNP0B00:00", "QEMU0001:00", "PNP0C0C:00", "rtc_cmos", ": keyboard", ": serial"]
    {
        assert!(parts.contains(part), "no {part} in\n{parts}");
    }
    assert_eq!(guest.ask("wc -c </sys/firmware/acpi/tables/SSDT").trim(), "36");
    assert_eq!(guest.ask("busybox devmem 0xc0000 32").trim(), "0x65746F6D");
    assert_eq!(guest.ask("head -c 1024 /dev/hwrng | wc -c").trim(), "1024");
    guest.power_off();
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
    let guest = map.split(' ').fold(alpine(), |boot, word| boot.word(word)).start(Machine::here());
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
