//! A Linux guest in mote, at whose shell a test types.

use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use crate::command::Command;
use crate::machine::Machine;
use crate::session::{Output, Session};
use crate::wire::Status;
use crate::{LATE, SOON, paths};

/// Whose kernel a guest runs, each with an initramfs of its own that `resources/guests` describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Linux 6.18, gzip, the virtio bus and console built in.
    Alpine,
    /// Linux 6.1, lz4, all of virtio in modules.
    Debian,
}

/// The console that a guest's init is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// `virtio-console`, as mote has it by default.
    Hvc0,
    /// `ser8250`, by request.
    Serial,
}

/// How to boot a guest.
#[derive(Clone, Debug)]
pub struct Boot {
    distribution: Distribution,
    console: Console,
    kernel: Option<PathBuf>,
    options: Vec<String>,
    words: Vec<String>,
    terminal: Option<(u16, u16)>,
}

impl Boot {
    /// A guest with entropy and this console, as mote sizes it where nothing else is said.
    #[must_use]
    pub fn new(distribution: Distribution, console: Console) -> Self {
        match console {
            Console::Hvc0 => Self::with(distribution, console, &[]),
            Console::Serial => Self::with(distribution, console, &["virtio-entropy", "ser8250"]),
        }
    }

    /// A guest with these vdevs, its console among them.
    #[must_use]
    pub fn with(distribution: Distribution, console: Console, vdevs: &[&str]) -> Self {
        let words = match console {
            Console::Hvc0 => "quiet",
            Console::Serial => "quiet console=ttyS0",
        };
        let boot = Self {
            distribution,
            console,
            kernel: None,
            options: Vec::new(),
            words: vec![words.to_owned()],
            terminal: None,
        };
        vdevs.iter().fold(boot, |boot, vdev| boot.option("--vdev", vdev))
    }

    /// Boots this kernel instead, by its path on the machine.
    #[must_use]
    pub fn kernel(mut self, path: &Path) -> Self {
        self.kernel = Some(path.to_owned());
        self
    }

    /// Adds an option of `mote run` and its value.
    #[must_use]
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Adds a word of the configuration language, or `@` and a file's path on the machine.
    #[must_use]
    pub fn word(mut self, word: &str) -> Self {
        self.options.push(word.to_owned());
        self
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn words(mut self, words: &str) -> Self {
        self.words.push(words.to_owned());
        self
    }

    /// Runs mote on a terminal of this many rows and columns instead of pipes.
    #[must_use]
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.terminal = Some((rows, columns));
        self
    }

    /// The kernel and the initramfs, on this machine.
    ///
    /// # Panics
    /// When they have not been built.
    #[must_use]
    #[track_caller]
    pub fn files(&self) -> [PathBuf; 2] {
        let directory = match self.distribution {
            Distribution::Alpine => "guests/alpine",
            Distribution::Debian => "guests/debian",
        };
        ["vmlinuz", "initramfs"].map(|name| paths::built(&format!("{directory}/{name}")))
    }

    /// The command that boots it on a machine.
    ///
    /// # Panics
    /// When something that it needs has not been built.
    #[must_use]
    #[track_caller]
    pub fn command(&self, machine: &Machine) -> Command {
        let [kernel, initramfs] = self.files();
        let kernel = self.kernel.clone().unwrap_or_else(|| machine.file(kernel));
        let initramfs = machine.file(initramfs);
        let command = machine.mote(&["run", "--kernel"]).arg(kernel).arg("--initrd").arg(initramfs);
        // In the rig an idle guest now and then sleeps through what it was woken for (docs/decisions/007): its tick wakes it.
        let tick = (!machine.is_this()).then_some("nohz=off".to_owned());
        let words: Vec<_> = self.words.iter().cloned().chain(tick).collect();
        let command = command.args(&self.options).arg("--cmdline").arg(words.join(" "));
        match self.terminal {
            Some((rows, columns)) => command.terminal(rows, columns).env("TERM", "linux"),
            None => command,
        }
    }

    /// Boots it and waits for its shell.
    ///
    /// # Panics
    /// When it does not get there.
    #[must_use]
    #[track_caller]
    pub fn start(&self, machine: &Machine) -> Guest {
        self.start_by(machine, &self.command(machine))
    }

    /// As [`start`](Self::start), by a command of the test's own.
    ///
    /// # Panics
    /// When it does not get there.
    #[must_use]
    #[track_caller]
    pub fn start_by(&self, machine: &Machine, command: &Command) -> Guest {
        let alone = machine.alone();
        let session = machine.spawn(command);
        self.wait_for_shell(&session);
        Guest { session, _alone: alone }
    }

    /// Waits until the guest's shell asks for a command, on the right console.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_for_shell(&self, session: &Session) {
        let tty = match self.console {
            Console::Hvc0 => "hvc0",
            Console::Serial => "ttyS0",
        };
        session.expect(&format!("mote-guest: init on {tty}"), LATE);
        session.expect("mote-guest# ", SOON);
    }
}

/// A guest whose shell waits for commands.
pub struct Guest {
    /// The `mote` process; its output is the guest's console.
    pub session: Session,
    /// Dropped after the session, which takes the guest with it.
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Guest {
    /// Types a command and returns what it printed.
    ///
    /// # Panics
    /// When it fails or does not end.
    #[track_caller]
    pub fn ask(&self, command: &str) -> String {
        // What is typed is echoed; the quotes keep the echo from looking like the answer.
        self.session.send(format!("echo mote-be''gin; {command}; echo mote-e''nd $?\n"));
        self.session.expect("mote-begin\r\n", SOON);
        let printed = self.session.expect("mote-end ", LATE);
        let status = self.session.expect("\r\n", SOON);
        assert_eq!(status.trim(), "0", "{command} failed; it printed:\n{printed}");
        printed.trim_end_matches("mote-end ").replace('\r', "")
    }

    /// Asks mote how it is doing, by SIGUSR1, and returns what it prints.
    ///
    /// # Panics
    /// When it prints nothing.
    #[track_caller]
    pub fn status(&self) -> String {
        const LAST_LINE: &str = "accesses to where nothing is";
        let before = self.session.messages();
        self.session.signal(10);
        let times = before.matches(LAST_LINE).count() + 1;
        let all = self.session.expect_messages(LAST_LINE, times, SOON);
        all[before.len()..].to_owned()
    }

    /// Powers the guest off and returns what mote made of it.
    ///
    /// # Panics
    /// When mote does not end, or with another status than 0.
    #[track_caller]
    pub fn power_off(self) -> Output {
        self.end("poweroff -f")
    }

    /// Resets the guest and returns what mote made of it.
    ///
    /// # Panics
    /// When mote does not end, or with another status than 0.
    #[track_caller]
    pub fn reset(self) -> Output {
        self.end("reboot -f")
    }

    #[track_caller]
    fn end(self, command: &str) -> Output {
        self.session.send(format!("{command}\n"));
        let end = self.session.wait(SOON);
        assert_eq!(end.status, Status::Code(0), "after {command}; mote said:\n{}", end.messages());
        end
    }
}
