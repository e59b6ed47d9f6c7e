//! Guests of a few instructions, through the real loader and the real runner, on any KVM.

use std::arch::global_asm;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::bzimage::{self, Flaw};
use tests::elf;
use tests::{Machine, Output, SOON, Session, Status};

global_asm!(include_str!("small/guests.s"));

/// A guest, by the address of its first instruction in the code that all of them share.
type Guest = unsafe extern "C" fn();

unsafe extern "C" {
    static small_begin: u8;
    static small_which: u8;
    static small_end: u8;
    fn small_prints();
    fn small_absent();
    fn small_no_serial();
    fn small_power_off();
    fn small_reset();
    fn small_triple_fault();
    fn small_unsupported();
    fn small_halts();
    fn small_e820();
    fn small_boot_params();
    fn small_functions();
    fn small_entropy();
    fn small_console();
    fn small_bitten();
    fn small_panics();
    fn small_register();
    fn small_timer();
    fn small_place();
    static small_word: u8;
}

/// The code of all guests, with one selected.
fn code(guest: Guest) -> Vec<u8> {
    let (begin, end) = (&raw const small_begin, &raw const small_end);
    let length = end as usize - begin as usize;
    // SAFETY: the two symbols enclose bytes of one read-only section, which live as long as the process.
    let mut code = unsafe { std::slice::from_raw_parts(begin, length) }.to_vec();
    let which = &raw const small_which as usize - begin as usize;
    let offset = (guest as usize - begin as usize) as u32;
    code[which..which + 4].copy_from_slice(&offset.to_le_bytes());
    code
}

/// Writes a file that is this test's alone.
fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("small-{name}"));
    fs::write(&path, bytes).unwrap();
    path
}

fn start(name: &str, guest: Guest, options: &[&str]) -> Session {
    let kernel = scratch(name, &bzimage::wrap(&code(guest), Flaw::None));
    let machine = Machine::local();
    let command = machine.mote(&["run", "--kernel"]).arg(machine.file(kernel)).args(options);
    let session = machine.spawn(&command);
    session.close_input();
    session
}

#[track_caller]
fn run(name: &str, guest: Guest, options: &[&str]) -> Output {
    start(name, guest, options).wait(SOON)
}

/// Runs a guest that prints to the serial port and powers off, and returns what it printed.
#[track_caller]
fn printed(name: &str, guest: Guest, options: &[&str]) -> String {
    let end = run(name, guest, &[&["--vdev", "ser8250"], options].concat());
    assert_eq!(end.status, Status::Code(0), "{}\n{}", end.text(), end.messages());
    end.text()
}

#[test]
fn the_serial_port_prints_bytes_and_strings() {
    assert_eq!(
        printed("prints", small_prints, &[]),
        "out: hello, serial port\nouts: hello again\n",
        "standard output carries the console and nothing else"
    );
}

#[test]
fn what_is_absent_reads_as_ones() {
    assert_eq!(printed("absent", small_absent, &[]), "ff ffff ffffffff ffffffffffffffff \n");
}

#[test]
fn an_absent_serial_port_is_idle() {
    let end = run("no-serial", small_no_serial, &["--vdev", "virtio-entropy"]);
    assert_eq!(end.status, Status::Code(0), "{}", end.messages());
}

#[test]
fn the_sleep_control_register_powers_off() {
    let end = run("power-off", small_power_off, &[]);
    assert_eq!((end.status, end.text().as_str()), (Status::Code(0), ""), "{}", end.messages());
    assert!(end.messages().contains("powered off"), "{}", end.messages());
}

#[test]
fn the_reset_register_resets() {
    let end = run("reset", small_reset, &[]);
    assert_eq!((end.status, end.text().as_str()), (Status::Code(0), ""), "{}", end.messages());
    assert!(end.messages().contains("reset"), "{}", end.messages());
}

#[test]
fn a_triple_fault_is_a_failure_and_names_the_rip() {
    let end = run("triple-fault", small_triple_fault, &[]);
    assert_eq!(end.status, Status::Code(96), "{}", end.messages());
    let messages = end.messages().to_lowercase();
    assert!(messages.contains("triple fault") && messages.contains("rip"), "{messages}");
}

#[test]
fn an_exit_that_mote_does_not_know_is_named_with_the_rip() {
    let end = run("unsupported", small_unsupported, &[]);
    assert_eq!(end.status, Status::Code(5), "{}", end.messages());
    let messages = end.messages().to_lowercase();
    assert!(messages.contains("rip") && messages.contains("e0000000"), "{messages}");
}

#[test]
fn what_is_not_emulated_is_ignored_fails_or_ends_the_run_as_its_user_wants() {
    let run = |name, guest, policy: &[&str]| run(name, guest, &[&["--vdev", "ser8250"], policy].concat());
    let reference = run("reference", small_absent, &["unsupported", "reference", "abort"]);
    assert_eq!(reference.status, Status::Code(5), "{}", reference.messages());
    assert!(reference.messages().to_lowercase().contains("rip"), "{}", reference.messages());
    let ignored = run("register-ignored", small_register, &["unsupported", "register", "ignore"]);
    assert_eq!((ignored.status, ignored.text().as_str()), (Status::Code(0), "0000000000000000 "));
    let aborted = run("register-aborted", small_register, &["unsupported", "register", "abort"]);
    assert_eq!(aborted.status, Status::Code(5), "{}", aborted.messages());
    assert!(aborted.messages().contains("0xdead"), "{}", aborted.messages());
    // A fault, for which this guest is not made.
    let failed = run("register-failed", small_register, &[]);
    assert_eq!(failed.status, Status::Code(96), "{}", failed.messages());
}

#[test]
fn a_bite_of_the_watchdog_and_a_panic_have_statuses_of_their_own() {
    for (name, guest, vdev, status, message) in [
        ("bitten", small_bitten as Guest, "wdt-ib700", 4, "watchdog"),
        ("panics", small_panics, "pvpanic", 32, "panicked"),
    ] {
        let end = run(name, guest, &["--vdev", vdev]);
        assert_eq!(end.status, Status::Code(status), "{}", end.messages());
        assert!(end.messages().contains(message) && !end.messages().contains("dump"), "{}", end.messages());
        let dump = format!("/tmp/small-{name}.start");
        let pipe = format!("|(head -c 4; cat >/dev/null) >{dump}");
        let options = ["--vdev", &format!("{vdev},action=dump,,terminate"), "dump", &pipe];
        let end = run(name, guest, &options);
        assert_eq!(end.status, Status::Code(status), "{}", end.messages());
        assert_eq!(Machine::local().get(&dump), b"\x7fELF", "{}", end.messages());
    }
}

#[test]
fn the_interval_timer_counts() {
    let end = run("timer", small_timer, &["--vdev", "timer8254"]);
    assert_eq!(end.status, Status::Code(0), "{}", end.messages());
}

#[test]
fn a_dump_has_the_registers_of_every_processor() {
    let dump = "/tmp/small-dump.start";
    let pipe = format!("|(head -c 65536; cat >/dev/null) >{dump}");
    let options = ["--cpus", "2", "--memory", "64M", "--vdev", "ser8250", "dump", &pipe];
    let session = start("dumped", small_halts, &options);
    session.expect("halting\n", SOON);
    session.signal(12);
    session.expect_message("the guest was dumped to ", SOON);
    session.signal(3);
    let end = session.wait(SOON);
    assert_eq!(end.status, Status::Code(3), "a dump does not end the run: {}", end.messages());
    let start = scratch("dump.start", &Machine::local().get(dump));
    let read = Command::new("readelf").args(["-hln", start.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&read.stdout);
    assert!(text.contains("CORE (Core file)") && text.contains("X86-64"), "{text}");
    assert_eq!(text.matches("NT_PRSTATUS").count(), 2, "{text}");
    let load = text.lines().skip_while(|line| !line.contains("LOAD")).nth(1).unwrap_or_default();
    assert!(load.contains("0x0000000004000000"), "{text}");
}

#[test]
fn a_command_has_no_signals_blocked() {
    let blocked = "/tmp/small-blocked";
    // By the shell alone: a command of its own might be started without what the shell was.
    let lines = "while read line; do case $line in SigBlk*) echo $line;; esac; done";
    let pipe = format!("|{lines} </proc/self/status >{blocked}; cat >/dev/null");
    let session = start("blocked", small_halts, &["--memory", "64M", "--vdev", "ser8250", "dump", &pipe]);
    session.expect("halting\n", SOON);
    session.signal(12);
    session.expect_message("the guest was dumped to ", SOON);
    session.signal(3);
    let end = session.wait(SOON);
    let blocked = String::from_utf8(Machine::local().get(blocked)).unwrap();
    assert_eq!(blocked.trim(), "SigBlk: 0000000000000000", "{}", end.messages());
}

#[test]
fn the_state_directory_has_the_facts_of_a_run() {
    let directory = "/tmp/small-state";
    let end = run("state", small_power_off, &["--state-dir", directory, "--vdev", "ser8250"]);
    assert_eq!(end.status, Status::Code(0), "{}", end.messages());
    let state = String::from_utf8(Machine::local().get(format!("{directory}/state.json"))).unwrap();
    for fact in [
        "\"pid\": ",
        "\"kernelOffset\": null",
        "\"io:0x3f8\"",
        "\"ioapic:4\"",
        "\"end\": \"the guest powered off\"",
        "\"exitStatus\": 0",
    ] {
        assert!(state.contains(fact), "no {fact} in {state}");
    }
}

#[test]
fn the_state_names_the_pseudo_terminals() {
    let directory = "/tmp/small-ptys";
    let console = "virtio-console,name=con,hostdev=>/dev/null,console=log,port=data,hostdev=pty";
    let vdevs = ["--vdev", "ser8250,hostdev=pty", "--vdev", console];
    let end = run("ptys", small_power_off, &[&["--state-dir", directory][..], &vdevs].concat());
    assert_eq!(end.status, Status::Code(0), "{}", end.messages());
    let state = String::from_utf8(Machine::local().get(format!("{directory}/state.json"))).unwrap();
    let state: String = state.split_whitespace().collect();
    let (_, ptys) = state.split_once(r#""ptys":["#).unwrap_or_else(|| panic!("no ptys in {state}"));
    let (ptys, _) = ptys.split_once(']').unwrap();
    // mote has printed the same names, in the same order.
    let messages = end.messages();
    let printed = messages.lines().filter_map(|line| line.find("/dev/pts/").map(|at| &line[at..]));
    let whose = [("ser8250", "null"), ("con", r#""log""#), ("con", r#""data""#)];
    let expected: Vec<String> = whose
        .into_iter()
        .zip(printed)
        .map(|((vdev, port), path)| format!(r#"{{"vdev":"{vdev}","port":{port},"path":"{path}"}}"#))
        .collect();
    assert_eq!((expected.len(), ptys), (3, expected.join(",").as_str()), "{messages}");
}

#[test]
fn the_log_and_the_state_tell_where_the_kernel_is() {
    const DIRECTORY: &str = "/tmp/small-place";
    let word = &raw const small_word as usize - &raw const small_begin as usize;
    let kernel = scratch("place", &elf::wrap(&code(small_place), word));
    let machine = Machine::local();
    let kernel = machine.file(kernel);
    for (words, is_random) in [("", true), ("", true), ("nokaslr", false)] {
        let options = ["--state-dir", DIRECTORY, "--log", "debug", "--vdev", "ser8250", "--cmdline", words];
        let session = machine.spawn(&machine.mote(&["run", "--kernel"]).arg(&kernel).args(options));
        session.close_input();
        let end = session.wait(SOON);
        assert_eq!(end.status, Status::Code(0), "{}", end.messages());
        let text = end.text();
        let mut places = text.split_whitespace().map(|place| u64::from_str_radix(place, 16).unwrap());
        let physical = places.next().unwrap() - elf::LINKED;
        let offset = places.next().unwrap() - (elf::KERNEL_MAP + elf::LINKED + word as u64);
        assert!(is_random || (physical, offset) == (0, 0), "{text}");
        let state = String::from_utf8(machine.get(format!("{DIRECTORY}/state.json"))).unwrap();
        let state: String = state.split_whitespace().collect();
        let fact = format!(r#""kernelOffset":{{"physical":"{physical:#x}","virtual":"{offset:#x}"}}"#);
        assert!(state.contains(&fact), "no {fact} in {state}");
        let place = match is_random {
            true => format!("address, {physical:#x} and {offset:#x} from where it is linked"),
            false => "at its usual address".to_owned(),
        };
        assert!(end.messages().contains(&place), "no {place} in {}", end.messages());
    }
}

#[test]
fn signals_cut_the_power() {
    for (name, signal) in [("sighup", 1), ("sigint", 2), ("sigterm", 15)] {
        let session = start(name, small_halts, &["--vdev", "ser8250", "--power-button-timeout", "1"]);
        session.expect("halting\n", SOON);
        session.signal(signal);
        let end = session.wait(SOON);
        assert_eq!(end.status, Status::Code(3), "{name}: {}", end.messages());
    }
}

/// Address and size of the ranges of one type in the guest's memory map.
fn ranges(map: &str, kind: &str) -> Vec<(u64, u64)> {
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    map.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[2] == kind)
        .map(|fields| (number(fields[0]), number(fields[1])))
        .collect()
}

#[test]
fn the_memory_map_has_the_memory_that_was_asked_for() {
    const GIB: u64 = 1 << 30;
    for (memory, size) in [("64M", 64 << 20), ("256M", 256 << 20), ("5G", 5 * GIB)] {
        let map = printed(&format!("e820-{memory}"), small_e820, &["--memory", memory]);
        let ram = ranges(&map, "1");
        let total: u64 = ram.iter().map(|(_, size)| size).sum();
        // Less the legacy area, which is reserved, and at most as much again for tables.
        assert!(total <= size && total >= size - 0x0010_0000, "{memory}:\n{map}");
        assert_eq!(ram[0].0, 0, "{memory}:\n{map}");
        assert!(ram.iter().all(|(at, size)| at + size <= 0xa0000 || *at >= 0x10_0000), "{memory}:\n{map}");
        assert!(ram.iter().all(|(at, size)| at + size <= 3 * GIB || *at >= 4 * GIB), "{memory}:\n{map}");
        assert_eq!(ram.iter().any(|(at, _)| *at >= 4 * GIB), size > 3 * GIB, "{memory}:\n{map}");
        let ecam = ranges(&map, "2").into_iter().any(|(at, _)| (3 * GIB..4 * GIB).contains(&at));
        assert!(ecam, "the configuration window is reserved\n{map}");
    }
}

#[test]
fn the_command_line_the_ramdisk_and_a_seed_arrive() {
    let ramdisk = scratch("ramdisk", b"this is the ramdisk");
    let ramdisk = Machine::local().file(ramdisk);
    let ramdisk = ramdisk.to_str().unwrap();
    let printed =
        printed("boot-params", small_boot_params, &["--cmdline", "one two=3 four", "--initrd", ramdisk]);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].ends_with("one two=3 four"), "{printed}");
    assert!(lines[0].contains("console=ttyS0"), "{printed}");
    let (address, text) = lines[1].split_once(' ').unwrap();
    assert_eq!(text, "this is the ramdisk");
    assert_eq!(u32::from_str_radix(address, 16).unwrap() % 4096, 0, "{printed}");
    assert!(u32::from_str_radix(lines[2].trim(), 16).unwrap() >= 32, "{printed}");
}

#[test]
fn the_vdevs_are_functions_behind_ecam() {
    let vdevs = ["--vdev", "virtio-entropy", "--vdev", "virtio-entropy"];
    let printed = printed("functions", small_functions, &vdevs);
    let identities: Vec<&str> = printed.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    // With ECAM there is no host bridge.
    assert_eq!(identities, ["10441af4"; 2], "{printed}");
}

#[test]
fn entropy_arrives_and_differs() {
    let printed: Vec<String> = ["entropy-1", "entropy-2"]
        .iter()
        .map(|name| printed(name, small_entropy, &["--vdev", "virtio-entropy"]))
        .collect();
    let answers: Vec<&str> = printed.iter().flat_map(|printed| printed.lines()).collect();
    assert_eq!(answers.len(), 6, "{printed:?}");
    let mut words: Vec<&str> = Vec::new();
    for answer in answers {
        let fields: Vec<&str> = answer.split_whitespace().collect();
        assert_eq!(fields[0], "20", "the device tells how much it wrote: {answer}");
        words.extend(&fields[1..]);
    }
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), 24, "no 64-bit word comes twice: {printed:?}");
}

#[test]
fn a_source_of_entropy_that_comes_late_is_waited_for_if_its_user_wants_that() {
    let machine = Machine::local();
    let entropy = |options: &str| format!("virtio-entropy,source=/tmp/small-late{options}");
    machine.run(&tests::Command::shell("rm -f /tmp/small-late"));
    let refused = run("late-refused", small_entropy, &["--vdev", &entropy("")]);
    assert_eq!(refused.status, Status::Code(64), "{}", refused.messages());
    let failed = run("late-failed", small_entropy, &["--vdev", "ser8250", "--vdev", &entropy(",delayed=0")]);
    assert_eq!((failed.status, failed.text().as_str()), (Status::Code(6), ""), "{}", failed.messages());
    let vdevs = ["--vdev", "ser8250", "--vdev", &entropy(",delayed=forever")];
    let session = start("late", small_entropy, &vdevs);
    machine.run(&tests::Command::shell("ln -s /dev/urandom /tmp/small-late"));
    let end = session.wait(SOON);
    assert_eq!((end.status, end.text().lines().count()), (Status::Code(0), 3), "{}", end.messages());
}

#[test]
fn messages_go_where_their_users_want_them() {
    let vdev = "vdev ser8250 vdev virtio-entropy source /nowhere delayed 0".split(' ');
    for (words, in_output, in_errors) in [
        ("logger error stderr", false, true),
        ("log error none", false, false),
        ("log error none log error,warning stdout", true, false),
        ("name rng log error stderr logger error none", false, true),
        ("log debug stderr logger error stdout", true, false),
    ] {
        let words: Vec<&str> = vdev.clone().chain(words.split(' ')).collect();
        let end = run("messages", small_entropy, &words);
        let told = [end.text(), end.messages()].map(|text| text.contains("mote: error: "));
        assert_eq!((end.status, told), (Status::Code(6), [in_output, in_errors]), "{words:?} {end:?}");
    }
}

#[test]
fn the_events_of_a_vdevs_life_come_in_their_order() {
    let end = run("events", small_power_off, &["--vdev", "virtio-entropy,name=rng", "--log", "debug"]);
    let messages = end.messages();
    let events = [
        "rng: options end",
        "rng: assigned pci:0:1.0 ioapic:17",
        "rng: guest configured",
        "guest starting",
        "rng: terminate",
        "the guest powered off",
    ];
    let places: Vec<_> = events.iter().map(|event| messages.find(event)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{messages}");
}

#[test]
fn entropy_comes_at_the_rate_that_is_set() {
    // Three requests of 32 bytes: one at once, half a second for each of the others.
    let began = Instant::now();
    let answers = printed("rate", small_entropy, &["--vdev", "virtio-entropy,rate=64,burst=32"]);
    assert_eq!(answers.lines().count(), 3, "{answers}");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn the_console_prints_on_standard_output() {
    let end = run("console", small_console, &["--vdev", "virtio-console"]);
    assert_eq!(
        (end.status, end.text().as_str()),
        (Status::Code(0), "hello, console\n"),
        "{}",
        end.messages()
    );
}
