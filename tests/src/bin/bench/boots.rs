//! Boots of Alpine Linux to the first line of its init, and what its devices cost then: seconds, and KVM's own counts of
//! exits. In the nested rig the seconds rank rather than measure; the counts repeat.

use std::fs;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use boot::Image;
use tests::guest::{Boot, Console, Distribution};
use tests::machine::Exits;
use tests::{Command, LATE, Machine, SOON};

use crate::table::Table;
use crate::vmms::{self, Guest, Vmm};
use crate::{Scratch, is_wanted, median, native, progress};

/// How often each is booted.
const ROUNDS: usize = 5;
/// Bytes of entropy, 64 a request.
const REQUESTS: u64 = 1024;
/// Lines of 79 characters for the console, each of which is two buffers: the line, and its end.
const LINES: u64 = 830;

/// What the guest does after its first line, a step for each line that it reads. Then its VMM is killed: not every one
/// ends when its guest powers off.
const STEPS: &str = "head -n 1; dd if=/dev/hwrng of=/dev/null bs=64 count=1024; \
                     head -n 1; yes $(printf %079d 0) | head -n 830 >/tmp/text; echo mote-made; \
                     head -n 1; cat /tmp/text; echo mote-shown; head -n 1";

/// One boot, as far as it went.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    to_init: f64,
    exits: Option<Exits>,
    entropy: Option<(Exits, f64)>,
    console: Option<Exits>,
    private: Option<u64>,
}

/// Somebody who boots, and what was seen.
struct Subject {
    name: &'static str,
    command: Box<dyn Fn(usize) -> Command>,
    /// Whether the devices are measured too.
    is_whole: bool,
    runs: Vec<Run>,
    problem: Option<String>,
}

/// All rows that need Linux.
pub fn rows(table: &mut Table) {
    progress("the rig");
    // What goes wrong is told in a line, not with all that was printed.
    panic::set_hook(Box::new(|_| ()));
    let machine = Machine::here();
    let guest = guest(machine);
    let mut subjects = subjects(machine, &guest);
    subjects.retain(|subject| is_wanted(subject.name));
    for round in 0..ROUNDS {
        for subject in &mut subjects {
            progress(&format!("boot {} of {ROUNDS}: {}", round + 1, subject.name));
            let command = (subject.command)(round);
            let is_whole = subject.is_whole && round == 0;
            let mut seen = Run::default();
            let run = AssertUnwindSafe(|| run(machine, &command, is_whole, &mut seen));
            // What was seen before something went wrong is seen.
            if let Err(why) = catch_unwind(run) {
                subject.problem = why.downcast::<String>().ok().map(|why| *why);
            }
            progress(&format!("  {seen:?}"));
            if seen.to_init > 0.0 {
                subject.runs.push(seen);
            }
        }
    }
    for subject in &subjects {
        if let Some(problem) = &subject.problem {
            let problem = problem.lines().next().unwrap_or_default();
            progress(&format!("{}: {problem}", subject.name));
        }
    }
    time_to_init(table, &subjects);
    exits_to_init(table, &subjects);
    entropy(table, &subjects);
    console(table, &subjects);
    private_memory(table, &subjects);
}

/// The guest's files, and those that are made of them.
pub fn guest(machine: &Machine) -> Guest {
    let [bzimage, initramfs] = Boot::new(Distribution::Alpine, Console::Hvc0).files();
    let image = Image::open(&bzimage).unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = Vec::new();
    let unpacked = image.unpack(&mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    assert!(matches!(unpacked, Ok(true)), "{}: {unpacked:?}", bzimage.display());
    Guest {
        vmlinux: machine.file(Scratch::file("vmlinux", &bytes)),
        bzimage: machine.file(bzimage),
        initrd: Some(machine.file(initramfs)),
        words: format!("quiet mote.run=\"{STEPS}\""),
        memory_mib: 256,
    }
}

/// The same kernel with a header that names no payload: mote lets it unpack itself.
fn self_unpacking(machine: &Machine) -> PathBuf {
    const PAYLOAD_LENGTH: usize = 0x24c;
    let [bzimage, _] = Boot::new(Distribution::Alpine, Console::Hvc0).files();
    let mut bytes = fs::read(&bzimage).unwrap_or_else(|error| panic!("{}: {error}", bzimage.display()));
    bytes[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].fill(0);
    machine.file(Scratch::file("self-unpacking", &bytes))
}

fn subjects(machine: &'static Machine, guest: &Guest) -> Vec<Subject> {
    let subject = |name, is_whole, command: Box<dyn Fn(usize) -> Command>| Subject {
        name,
        command,
        is_whole,
        runs: Vec::new(),
        problem: None,
    };
    // `None`: no cache.
    let mote = |guest: &Guest, cache: fn(usize) -> Option<usize>| -> Box<dyn Fn(usize) -> Command> {
        let guest = guest.clone();
        Box::new(move |round| {
            let cache = cache(round).map(|number| Scratch::path(&format!("cache-{number}")));
            let cache = cache.map_or("none".into(), |path| path.display().to_string());
            vmms::mote(machine, &guest, &["--kernel-cache", &cache])
        })
    };
    let own = Guest { bzimage: self_unpacking(machine), ..guest.clone() };
    let large = Guest { memory_mib: 16 << 10, ..guest.clone() };
    let mut all = vec![
        // The first round's leaves the cache warm.
        subject(COLD, false, mote(guest, Some)),
        subject(WARM, true, mote(guest, |_| Some(0))),
        subject("mote, no cache", false, mote(guest, |_| None)),
        subject(ITSELF, false, mote(&own, |_| None)),
        subject(LARGE, false, mote(&large, |_| Some(0))),
    ];
    for vmm in vmms::others(machine) {
        let (guest, name) = (guest.clone(), vmm.name);
        all.push(subject(name, true, Box::new(move |_| Vmm::command(&vmm, machine, &guest))));
    }
    all
}

const COLD: &str = "mote, cold cache";
const WARM: &str = "mote, warm cache";
const ITSELF: &str = "mote, kernel unpacks itself";
const LARGE: &str = "mote, warm cache, 16 GiB";

/// Boots, and does the rest if `is_whole`.
fn run(machine: &Machine, command: &Command, is_whole: bool, run: &mut Run) {
    let _alone = machine.alone();
    scrub(machine);
    let started = Instant::now();
    // Without a terminal alioth does not start, and Cloud Hypervisor and kvmtool take no input.
    let session = machine.spawn(&command.clone().terminal(24, 80));
    session.expect("mote-guest: init on", LATE);
    run.to_init = started.elapsed().as_secs_f64();
    run.exits = machine.exits();
    run.private = private(machine);
    if !is_whole {
        return;
    }
    session.expect("\n", SOON);
    let before = machine.exits();
    session.send("\n");
    session.expect("copied, ", SOON);
    let seconds = session.expect(" seconds", SOON);
    let seconds = seconds.trim_end_matches(" seconds").parse().unwrap_or(f64::NAN);
    run.entropy = since(machine, before).map(|exits| (exits, seconds));
    session.send("\n");
    session.expect("mote-made", SOON);
    let before = machine.exits();
    session.send("\n");
    session.expect("mote-shown", SOON);
    run.console = since(machine, before);
    run.private = private(machine);
}

/// Writes to the rig's free memory. Its QEMU remembers by page what code it has translated, and forgets it piece by piece as
/// the page is written to. To clear memory in which an earlier guest's kernel was takes some five times as long, and which
/// guest gets it is chance.
pub fn scrub(machine: &Machine) {
    if !machine.is_this() {
        machine.run(&Command::shell("dd if=/dev/zero of=/dev/null bs=1G count=1"));
    }
}

fn since(machine: &Machine, before: Option<Exits>) -> Option<Exits> {
    let (before, now) = (before?, machine.exits()?);
    let less = |one: u64, other: u64| one.saturating_sub(other);
    Some(Exits {
        all: less(now.all, before.all),
        io: less(now.io, before.io),
        mmio: less(now.mmio, before.mmio),
        halt: less(now.halt, before.halt),
    })
}

/// Of the mote that runs there, if it is one, its guardian included.
fn private(machine: &Machine) -> Option<u64> {
    let end = machine.run(&Command::shell("for pid in $(pidof mote); do cat /proc/$pid/smaps; done"));
    Some(native::private(&end.text())).filter(|size| *size > 0)
}

fn seconds(subjects: &[Subject], name: &str) -> Option<f64> {
    let subject = subjects.iter().find(|subject| subject.name == name)?;
    median(&subject.runs.iter().map(|run| run.to_init).collect::<Vec<_>>())
}

fn time_to_init(table: &mut Table, subjects: &[Subject]) {
    let what = format!("exec to init, s (median of {ROUNDS})");
    let qemu = subjects.iter().filter(|subject| subject.name.starts_with("QEMU"));
    let qemu = qemu.filter_map(|subject| seconds(subjects, subject.name)).reduce(f64::min);
    for subject in subjects {
        let Some(value) = seconds(subjects, subject.name) else {
            table.row(&what, subject.name, "did not boot");
            continue;
        };
        table.row(&what, subject.name, format!("{value:.2}"));
        let bars = match subject.name {
            WARM => vec![
                (qemu.map(|best| 0.8 * best), "0.8 of QEMU's best"),
                (seconds(subjects, vmms::FIRECRACKER), "Firecracker's"),
            ],
            COLD => vec![(seconds(subjects, ITSELF).map(|own| 0.8 * own), "0.8 of self-unpacking")],
            LARGE => {
                vec![(seconds(subjects, WARM).map(|small| 1.1 * small), "that with 256 MiB, and a tenth")]
            }
            _ => vec![],
        };
        for (bar, what) in bars.into_iter().filter_map(|(bar, what)| Some((bar?, what))) {
            table.bar(format!("at most {what}, {bar:.2}"), value <= bar);
        }
    }
}

fn exits_to_init(table: &mut Table, subjects: &[Subject]) {
    let measured = |subject: &Subject, count: fn(&Exits) -> u64| {
        median(&subject.runs.iter().filter_map(|run| run.exits.as_ref().map(count)).collect::<Vec<_>>())
    };
    for subject in subjects {
        let Some(user) = measured(subject, |exits| exits.io + exits.mmio) else { continue };
        table.row("exits to user space up to init", subject.name, user);
        if subject.name.starts_with("mote") {
            table.bar("at most 150", user <= 150);
        }
    }
    let firecracker = subjects.iter().find(|subject| subject.name == vmms::FIRECRACKER);
    let firecracker = firecracker.and_then(|subject| measured(subject, |exits| exits.all));
    for subject in subjects {
        let Some(all) = measured(subject, |exits| exits.all) else { continue };
        table.row("exits of all kinds up to init", subject.name, all);
        if subject.name == WARM {
            table.bar("at most 5,400", all <= 5400);
            if let Some(bar) = firecracker {
                table.bar(format!("at most Firecracker's, {bar}"), all <= bar);
            }
        }
    }
}

fn entropy(table: &mut Table, subjects: &[Subject]) {
    const WHAT: &str = "/dev/hwrng, 64 bytes a request";
    for subject in subjects {
        let Some((exits, seconds)) = subject.runs.iter().find_map(|run| run.entropy) else { continue };
        let each = |count: u64| count as f64 / REQUESTS as f64;
        let (all, user, halts) = (each(exits.all), each(exits.io + exits.mmio), each(exits.halt));
        let rate = (REQUESTS * 64) as f64 / seconds / 1e3;
        let value = format!("{all:.2} exits, {user:.2} to user space, {halts:.2} halts; {rate:.0} kB/s");
        table.row(WHAT, subject.name, value);
        if subject.name == WARM {
            table.bar("at most 2.5 exits, no halt", all <= 2.5 && halts < 0.1);
        }
    }
}

fn console(table: &mut Table, subjects: &[Subject]) {
    const WHAT: &str = "exits for a buffer of console output";
    for subject in subjects {
        let Some(exits) = subject.runs.iter().find_map(|run| run.console) else { continue };
        table.row(WHAT, subject.name, format!("{:.2}", exits.all as f64 / (2 * LINES) as f64));
    }
}

fn private_memory(table: &mut Table, subjects: &[Subject]) {
    const WHAT: &str = "private memory outside the guest's with Linux, KiB";
    for subject in subjects {
        let Some(size) = subject.runs.iter().find_map(|run| run.private) else { continue };
        table.row(WHAT, subject.name, size);
        table.bar("at most 3072", size <= 3072);
    }
}
