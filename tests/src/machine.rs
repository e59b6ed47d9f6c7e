//! Where a guest runs: on this machine, or in the nested rig.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use crate::command::Command;
use crate::link::Link;
use crate::session::{Output, Session};
use crate::wire::Status;
use crate::{LATE, agent, paths, rig};

/// A machine with a KVM, and an agent that starts programs on it.
pub struct Machine {
    link: Arc<Link>,
    /// What was sent to the other machine, by its path there; `None` where it is this one.
    sent: Option<Mutex<HashSet<PathBuf>>>,
}

impl Machine {
    /// A machine that runs unmodified Linux kernels: this one where it has hardware virtualisation and a `/dev/kvm`
    /// that opens, otherwise the rig. It is started once a process and ends with it.
    ///
    /// # Panics
    /// When the rig is needed and does not start.
    #[must_use]
    pub fn here() -> &'static Self {
        if has_hardware_kvm() { Self::this() } else { Self::rig() }
    }

    /// A machine that runs guests of a few instructions: this one where `/dev/kvm` is any good for them, otherwise
    /// the rig.
    ///
    /// # Panics
    /// When the rig is needed and does not start.
    #[must_use]
    pub fn local() -> &'static Self {
        if opens_kvm() { Self::this() } else { Self::rig() }
    }

    /// This very machine, whatever KVM it has.
    ///
    /// # Panics
    /// When it has no resources left for a thread and a socket.
    #[must_use]
    pub fn this() -> &'static Self {
        static THIS: OnceLock<Machine> = OnceLock::new();
        THIS.get_or_init(|| Self { link: local_link().expect("an agent on this machine"), sent: None })
    }

    /// The nested rig, even where there is hardware KVM.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn rig() -> &'static Self {
        static RIG: OnceLock<Machine> = OnceLock::new();
        RIG.get_or_init(|| match rig::start() {
            Ok(link) => Self { link, sent: Some(Mutex::default()) },
            Err(error) => panic!("{error}"),
        })
    }

    /// Tells whether programs run on this machine, and see its files.
    #[must_use]
    pub fn is_this(&self) -> bool {
        self.sent.is_none()
    }

    /// Waits until no other Linux guest runs there, and keeps others from it until the guard is dropped. Where two run
    /// at once in the rig, one of them now and then meets a triple fault or stands still, in QEMU as in mote: the
    /// emulation of SVM is not right then. Hardware runs as many as there are.
    #[must_use]
    pub fn alone(&self) -> Option<MutexGuard<'static, ()>> {
        static ALONE: Mutex<()> = Mutex::new(());
        // A test that has failed has killed its guest.
        (!self.is_this()).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts a program.
    #[must_use]
    pub fn spawn(&self, command: &Command) -> Session {
        self.link.spawn(command)
    }

    /// Runs a program to its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn run(&self, command: &Command) -> Output {
        let session = self.spawn(command);
        session.close_input();
        session.wait(LATE)
    }

    /// The path there of a file from here, which is sent over once.
    ///
    /// # Panics
    /// When it cannot be read here or written there.
    #[track_caller]
    pub fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref().canonicalize().unwrap_or_else(|error| {
            panic!("{}: {error}", path.as_ref().display());
        });
        // The names may be the same where the directories are not.
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        let directory = format!("{:016x}", hasher.finish());
        let there = Path::new("/files").join(directory).join(path.file_name().unwrap_or_default());
        self.send(path, there)
    }

    /// Sends a file to a place, where it is not there yet.
    #[track_caller]
    fn send(&self, path: PathBuf, there: PathBuf) -> PathBuf {
        let Some(sent) = &self.sent else { return path };
        // Held while the file is sent, so that nobody starts with half of it.
        let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.insert(there.clone()) {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            self.put(&there, &bytes);
        }
        there
    }

    /// Makes a program of this machine, its libraries and these further files available there by the same paths.
    ///
    /// # Panics
    /// When the program is not on the search path, or a file cannot be read here or written there.
    #[track_caller]
    pub fn install(&self, program: &str, files: &[&str]) {
        if self.is_this() {
            return;
        }
        let line = r#"path=$(command -v "$0") && echo "$path" && { ldd "$path" | grep -o '/[^ ]*' || :; }"#;
        let found = Self::this().run(&Command::shell(line).arg(program));
        assert!(found.status == Status::Code(0), "{program} is not installed: {}", found.messages());
        for path in found.text().lines().chain(files.iter().copied()) {
            self.send(path.into(), path.into());
        }
    }

    /// Writes an executable file there, and the directories above it.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let script = r#"mkdir -p "${0%/*}" && cat >"$0" && chmod 755 "$0""#;
        let session = self.spawn(&Command::shell(script).arg(path));
        session.send(bytes);
        session.close_input();
        let end = session.wait(LATE);
        assert!(end.status == Status::Code(0), "{} was not written: {}", path.display(), end.messages());
    }

    /// Reads a file there.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn get(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let end = self.run(&Command::new("cat").arg(path.as_ref()));
        assert!(
            end.status == Status::Code(0),
            "{} was not read: {}",
            path.as_ref().display(),
            end.messages()
        );
        end.output
    }

    /// The exits of all virtual machines that run there now, as KVM counts them. `None` where its statistics, which are
    /// root's, cannot be read.
    #[must_use]
    pub fn exits(&self) -> Option<Exits> {
        let line = "cd /sys/kernel/debug/kvm && cat exits io_exits mmio_exits halt_exits";
        let counts: Vec<u64> =
            self.run(&Command::shell(line)).text().lines().filter_map(|line| line.parse().ok()).collect();
        let [all, io, mmio, halt] = counts[..] else { return None };
        Some(Exits { all, io, mmio, halt })
    }

    /// A command that runs the `mote` under test with these arguments.
    ///
    /// # Panics
    /// When there is no such binary.
    #[must_use]
    #[track_caller]
    pub fn mote(&self, arguments: &[&str]) -> Command {
        Command::new(self.file(paths::mote())).args(arguments)
    }
}

/// KVM's own counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exits {
    /// Exits of every kind.
    pub all: u64,
    /// Of these, accesses to ports.
    pub io: u64,
    /// Of these, accesses to memory that no slot holds.
    pub mmio: u64,
    /// Of these, halts.
    pub halt: u64,
}

/// An agent on a thread of this process.
fn local_link() -> io::Result<Arc<Link>> {
    let (ours, theirs) = UnixStream::pair()?;
    let answers = theirs.try_clone()?;
    thread::spawn(move || agent::serve(theirs, answers));
    Link::open(ours.try_clone()?, ours, String::new)
}

fn opens_kvm() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

fn has_hardware_kvm() -> bool {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")) && opens_kvm()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::SOON;
    use crate::session::Piece;
    use crate::wire::WINDOW;

    fn spawn(command: &Command) -> Session {
        Machine::this().spawn(command)
    }

    #[test]
    fn streams_and_status_are_told_apart() {
        let end = Machine::this().run(&Command::shell("echo out; echo err >&2; exit 7").env("A", "b"));
        assert_eq!(
            (end.status, end.text(), end.messages()),
            (Status::Code(7), "out\n".into(), "err\n".into())
        );
    }

    #[test]
    fn environment_directory_and_arguments_arrive() {
        let command =
            Command::shell(r#"echo "$A $PWD $1""#).arg("sh").arg("x y").env("A", "b").directory("/");
        assert_eq!(Machine::this().run(&command).text(), "b / x y\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let result = std::panic::catch_unwind(|| Machine::this().run(&Command::new("/nowhere/program")));
        let message = result.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("No such file") && message.contains("/nowhere/program"), "{message}");
    }

    #[test]
    fn ten_megabytes_come_back_as_they_went() {
        let bytes: Vec<u8> = (0..10_u32 << 20).map(|index| (index.wrapping_mul(index) >> 7) as u8).collect();
        let session = spawn(&Command::new("cat"));
        session.send(&bytes);
        session.close_input();
        assert!(session.wait(SOON).output == bytes);
    }

    #[test]
    fn a_held_program_blocks_until_it_is_released() {
        let session = spawn(&Command::shell("head -c 4000000 /dev/zero; echo done >&2"));
        session.hold();
        let mut held = 0;
        while held < WINDOW {
            match session.read().unwrap() {
                Piece::Output(bytes) => held += bytes.len(),
                other => panic!("{other:?} after {held} bytes"),
            }
        }
        session.release();
        let end = session.wait(SOON);
        assert_eq!((held + end.output.len(), end.messages().as_str()), (4_000_000, "done\n"));
    }

    #[test]
    fn a_slow_session_does_not_hold_up_another() {
        let slow = spawn(&Command::shell("yes"));
        slow.hold();
        assert_eq!(Machine::this().run(&Command::shell("echo quick")).text(), "quick\n");
    }

    #[test]
    fn a_terminal_has_a_size_that_changes() {
        let script = "trap 'stty size' WINCH; stty -echo; stty size; while read line; do echo $line; done";
        let session = spawn(&Command::shell(script).terminal(24, 80));
        session.expect("24 80\r\n", SOON);
        session.resize(50, 132);
        session.send("go\n");
        session.expect("50 132\r\n", SOON);
    }

    #[test]
    fn signals_arrive_and_a_death_by_one_is_told() {
        let session = spawn(&Command::shell(
            "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.01; done",
        ));
        session.expect("ready", SOON);
        session.signal(15);
        let end = session.wait(SOON);
        assert_eq!((end.status, end.text()), (Status::Code(3), "ready\ncaught\n".into()));
        let session = spawn(&Command::new("cat"));
        session.signal(9);
        assert_eq!(session.wait(SOON).status, Status::Signal(9));
    }

    #[test]
    fn what_never_comes_fails_with_the_end_of_the_output() {
        for (line, deadline) in
            [("echo this came", SOON), ("echo this came; cat", Duration::from_millis(200))]
        {
            let session = std::panic::AssertUnwindSafe(spawn(&Command::shell(line)));
            session.expect("this", SOON);
            let result = std::panic::catch_unwind(|| session.expect("that", deadline));
            let message = result.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains("\"that\"") && message.contains("this came"), "{message}");
        }
    }

    #[test]
    fn dropping_a_session_kills_its_program() {
        let session = spawn(&Command::shell("echo $$; exec sleep 1000"));
        let pid = session.expect("\n", SOON);
        drop(session);
        let end = spawn(&Command::shell("while kill -0 $0 2>/dev/null; do sleep 0.01; done").arg(pid.trim()));
        assert_eq!(end.wait(SOON).status, Status::Code(0));
    }
}
