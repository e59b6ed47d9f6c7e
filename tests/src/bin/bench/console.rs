//! The console as its user meets it: what a burst of output costs, how long an echo takes, how fast a port is.
//!
//! The user is a program (`bench user VMM...`) on the machine where the VMM runs, so that nothing but a terminal lies
//! between. Cloud Hypervisor and kvmtool take input from nothing else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{self, Child};
use std::time::{Duration, Instant};
use std::{env, fs};

use tests::{Command, Machine, Output, SOON, Size, agent};

use crate::boots;
use crate::table::Table;
use crate::vmms::{self, Guest, Vmm};
use crate::{is_wanted, median, progress};

/// Lines of 79 characters, each of which is two buffers: the line, and its end.
const LINES: u64 = 840;
const BUFFERS: f64 = 2.0 * LINES as f64;
/// How often they are shown; the median counts.
const SHOWS: usize = 5;
/// Keys that are echoed.
const KEYS: usize = 200;
/// Bytes through a port, 32 KiB at a time.
const BULK: u64 = 256 << 20;

/// What a user saw.
#[derive(Clone, Copy)]
struct Seen {
    /// All exits, those to user space, reads and writes of the VMM, for each buffer.
    exits: f64,
    user_exits: f64,
    calls: f64,
    /// Of all the lines, in milliseconds.
    show: f64,
    /// In microseconds: the median, and the 95th of 100.
    echo: f64,
    slow_echo: f64,
    /// Megabytes a second, where there is a port.
    bulk: f64,
}

/// The rows of the console.
pub fn rows(table: &mut Table) {
    let machine = Machine::here();
    let guest = Guest { words: "quiet".into(), ..boots::guest(machine) };
    let port = "virtio-console,port=bulk,hostdev=>/dev/null";
    let mote = vmms::mote(machine, &guest, &["--vdev", "virtio-entropy", "--vdev", port]);
    let qemu = vmms::qemu_with_port(machine, &guest);
    let user = machine.file(env::current_exe().unwrap_or_else(|error| panic!("this program: {error}")));
    let mut seen = Vec::new();
    let mut subjects = vec![("mote", mote), ("QEMU q35", qemu)];
    // QEMU is here already; Firecracker and alioth have a serial port alone.
    let is_fit = |vmm: &Vmm| !["QEMU", "Firecracker", "alioth"].iter().any(|name| vmm.name.starts_with(name));
    let peers = vmms::others(machine).into_iter().filter(is_fit);
    subjects.extend(peers.map(|vmm| (vmm.name, vmm.command(machine, &guest))));
    subjects.retain(|(name, _)| is_wanted(name));
    for (name, command) in subjects {
        let command = Command::new(&user).arg("user").args(command.words());
        progress(&format!("console of {name}"));
        let Ok(end) = catch_unwind(AssertUnwindSafe(|| watch(machine, &command))) else {
            progress("  it did not come to an end");
            continue;
        };
        let text = end.text();
        let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [exits, user_exits, calls, show, echo, slow_echo, bulk] = numbers[..] else {
            progress(&format!("  it failed: {}", end.messages()));
            continue;
        };
        seen.push((name, Seen { exits, user_exits, calls, show, echo, slow_echo, bulk }));
    }
    let lines = format!("console, {LINES} lines of 79, each buffer");
    for (name, it) in &seen {
        let value = format!("{:.2} exits, {:.2} to user space", it.exits, it.user_exits);
        table.row(&lines, name, format!("{value}, {:.2} reads and writes", it.calls));
        if *name == "mote" {
            let all = it.exits * BUFFERS;
            table.bar(format!("at most 1.2, and 2,100 in all ({all:.0})"), it.exits <= 1.2 && all <= 2100.0);
        }
    }
    for (name, it) in &seen {
        table.row("the same lines, ms", name, format!("{:.0}", it.show));
        if *name != "mote" {
            continue;
        }
        let bars =
            [(vmms::CLOUD_HYPERVISOR, 0.5, "half of Cloud Hypervisor's"), (vmms::KVMTOOL, 1.0, "kvmtool's")];
        for (peer, part, what) in bars {
            if let Some((_, peer)) = seen.iter().find(|(name, _)| *name == peer) {
                let bar = part * peer.show;
                table.bar(format!("at most {what}, {bar:.0}"), it.show <= bar);
            }
        }
    }
    for (name, it) in &seen {
        table.row(
            "echo of a key, µs: median, slowest of 20",
            name,
            format!("{:.0}, {:.0}", it.echo, it.slow_echo),
        );
    }
    for (name, it) in seen.iter().filter(|(_, it)| it.bulk.is_finite()) {
        table.row("port, 32 KiB a buffer, MB/s", name, format!("{:.0}", it.bulk));
    }
}

/// Runs a user to its end. In a rig of two processors a guest may stand still.
fn watch(machine: &Machine, user: &Command) -> Output {
    let _alone = machine.alone();
    boots::scrub(machine);
    machine.spawn(user).wait(2 * SOON)
}

/// Uses the console of the VMM that `words` start, and prints what it saw.
pub fn user(words: &[String]) {
    let mut user = User::start(words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    user.wait("mote-guest# ");
    user.run(&format!("yes $(printf %079d 0) | head -n {LINES} >/tmp/text; sleep 1"));
    let shows: Vec<_> = (0..SHOWS).map(|_| user.show()).collect();
    let middle =
        |of: fn(&[f64; 4]) -> f64| median(&shows.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN);
    let [exits, user_exits, calls, show] =
        [middle(|it| it[0]), middle(|it| it[1]), middle(|it| it[2]), middle(|it| it[3])];
    let mut echoes = user.echoes();
    echoes.sort_by(f64::total_cmp);
    // Those without ports have no such word among theirs.
    let has_port = words.iter().any(|argument| argument.contains("bulk"));
    let bulk = if has_port { user.bulk() } else { f64::NAN };
    println!("{exits} {user_exits} {calls} {show} {} {} {bulk}", echoes[KEYS / 2], echoes[KEYS * 19 / 20]);
}

struct User {
    terminal: File,
    vmm: Child,
    seen: Vec<u8>,
}

impl Drop for User {
    /// A VMM whose user is gone would go on, some even when their guest powers off.
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

impl User {
    /// Starts a VMM in a session of its own, whose terminal the user has.
    fn start(words: &[String]) -> io::Result<Self> {
        let mut command = process::Command::new("setsid");
        command.arg("-c").args(words);
        let terminal = agent::open_terminal(Size { rows: 24, columns: 80 }, &mut command)?;
        let vmm = command.spawn()?;
        Ok(Self { terminal: terminal.into(), vmm, seen: Vec::new() })
    }

    /// Waits until the guest has printed `text`, and forgets what came before.
    fn wait(&mut self, text: &str) {
        let mut bytes = vec![0; 1 << 16];
        loop {
            let found = self.seen.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                self.seen.drain(..at + text.len());
                return;
            }
            // What is found nowhere is not looked through again.
            self.seen.drain(..self.seen.len().saturating_sub(text.len()));
            match self.terminal.read(&mut bytes) {
                Ok(count @ 1..) => self.seen.extend_from_slice(&bytes[..count]),
                other => panic!("waited for {text:?}: {other:?}"),
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("the console: {error}"));
    }

    /// Runs a command in the guest. The quotes keep the echo of what is typed from looking like the answer.
    fn run(&mut self, line: &str) {
        self.send(&format!("{line}; echo mote-do''ne\n"));
        self.wait("mote-done");
        self.wait("mote-guest# ");
    }

    /// Exits, those to user space, and reads and writes of the VMM for each buffer, and milliseconds.
    fn show(&mut self) -> [f64; 4] {
        let before = self.counts();
        let start = Instant::now();
        self.run("cat /tmp/text");
        let time = start.elapsed();
        let after = self.counts();
        let each = |index: usize| (after[index] - before[index]) as f64 / BUFFERS;
        [each(0), each(1), each(2), time.as_secs_f64() * 1e3]
    }

    /// All exits, those to user space, reads and writes.
    fn counts(&self) -> [u64; 3] {
        let number = |path: String, name: &str| -> u64 {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("{path}: {text}"))
        };
        let kvm = |name: &str| number(format!("/sys/kernel/debug/kvm/{name}"), "");
        let io = |name: &str| number(format!("/proc/{}/io", self.vmm.id()), name);
        [kvm("exits"), kvm("io_exits") + kvm("mmio_exits"), io("syscr:") + io("syscw:")]
    }

    /// How long each key takes to come back from the guest's line discipline, in microseconds.
    fn echoes(&mut self) -> Vec<f64> {
        // The shell's line editor does not echo as the terminal does: it has to be gone.
        self.send("echo rea''dy; cat >/dev/null\n");
        self.wait("ready");
        let echo = |user: &mut Self| {
            // A person's keys are apart.
            std::thread::sleep(Duration::from_millis(5));
            let start = Instant::now();
            user.send("k");
            user.wait("k");
            start.elapsed().as_secs_f64() * 1e6
        };
        let echoes = (0..KEYS).map(|_| echo(self)).collect();
        self.send("\n\x04");
        self.wait("mote-guest# ");
        echoes
    }

    /// Megabytes a second through a port whose other end takes all.
    fn bulk(&mut self) -> f64 {
        let port = "/dev/$(cd /sys/class/virtio-ports && grep -l bulk */name | cut -d/ -f1)";
        let count = BULK >> 15;
        let start = Instant::now();
        self.run(&format!("dd if=/dev/zero of={port} bs=32k count={count} 2>/dev/null"));
        BULK as f64 / 1e6 / start.elapsed().as_secs_f64()
    }
}
