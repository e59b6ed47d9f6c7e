//! The nested rig: QEMU emulates a machine with SVM, whose Linux has a real kvm_amd and runs our agent as its init.

use std::env;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::link::Link;
use crate::paths;

/// How long the rig may take to greet.
const START: Duration = Duration::from_secs(180);

/// How long QEMU may take to end when the link has.
const END: Duration = Duration::from_secs(5);

/// Where Debian's QEMU has its firmware, its own and others'.
const FIRMWARE: &[&str] = &["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"];

/// With xsave on, current kernels panic in the nested guest; five-level paging only slows the emulation; and where a
/// processor claims to move bytes fast, kernels copy and clear memory byte by byte, which is what the emulation does.
const HARDWARE: &[&str] = &[
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "max,la57=off,xsave=off,erms=off,fsrm=off",
    "-m",
    "8G",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
];

/// The link is a virtio port on QEMU's standard streams. The console goes to its standard error, for diagnosis.
const DEVICES: &[&str] = &[
    "-chardev",
    "stdio,id=link,signal=off",
    "-device",
    "virtio-serial-pci",
    "-device",
    "virtserialport,chardev=link,name=link",
    "-chardev",
    "file,id=log,path=/dev/fd/2",
    "-serial",
    "chardev:log",
];

/// The environment's variable for the number of the rig's processors: 1 where nothing is said. With two, the emulation of
/// SVM (seen with QEMU 7.2) now and then runs the guest with the registers of the rig's own kernel, and the guest stands still or
/// meets a triple fault.
const PROCESSORS: &str = "RIG_CPUS";

/// The tick is periodic: a timer that is set for each time anew is lost now and then while a guest runs, and with one
/// processor the rig then never takes it from the guest again.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check highres=off nohz=off";

/// Starts the rig and waits until its agent greets. It ends with this process, however that ends.
///
/// # Errors
/// No QEMU, or a rig that does not come up: with the end of what its console said.
pub fn start() -> io::Result<Arc<Link>> {
    let log = Arc::new(Log::default());
    let started = Instant::now();
    let (sender, answer) = mpsc::channel();
    let running = log.clone();
    thread::spawn(move || run(&sender, &running));
    let explain = |what: &str| {
        io::Error::other(format!("the rig did not start after {:?}: {what}{}", started.elapsed(), log.tail()))
    };
    match answer.recv_timeout(START) {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(error)) => Err(explain(&error.to_string())),
        Err(_) => Err(explain("no answer")),
    }
}

/// Runs QEMU. The kernel kills it together with the thread that started it, so this thread stays for as long as it runs.
fn run(sender: &mpsc::Sender<io::Result<Arc<Link>>>, log: &Arc<Log>) {
    let (kernel, initramfs) = (paths::built("rig/vmlinuz"), paths::built("rig/initramfs"));
    let qemu = paths::built("rig/qemu");
    let mut command = Command::new(&qemu);
    command.arg("-smp").arg(env::var_os(PROCESSORS).unwrap_or_else(|| "1".into()));
    command.args(FIRMWARE).args(HARDWARE).args(DEVICES).arg("-append").arg(COMMAND_LINE);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let enter = || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // A terminal's Ctrl-C is for the test; the rig ends after it.
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and touches no memory that is shared.
    unsafe { command.pre_exec(enter) };
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // The other end waits for as long as this thread may take.
            let _ = sender.send(Err(io::Error::new(error.kind(), format!("{}: {error}", qemu.display()))));
            return;
        }
    };
    if let Some(errors) = child.stderr.take() {
        let log = log.clone();
        thread::spawn(move || log.keep(errors));
    }
    if let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) {
        let log = log.clone();
        let _ = sender.send(Link::open(from, to, move || log.wait_for_end()));
    }
    let end = child.wait();
    log.end(format!("\nQEMU has ended: {end:?}"));
}

/// What the console of the rig said last, and how QEMU ended.
#[derive(Default)]
struct Log {
    /// The text, and whether it is complete.
    text: Mutex<(Vec<u8>, bool)>,
    ended: Condvar,
}

impl Log {
    fn keep(&self, mut from: ChildStderr) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            self.lock().0.extend_from_slice(&buffer[..count]);
        }
    }

    fn end(&self, how: String) {
        let mut text = self.lock();
        text.0.extend_from_slice(how.as_bytes());
        text.1 = true;
        self.ended.notify_all();
    }

    /// The link ends a moment before QEMU does, or long before, where only the agent has died.
    fn wait_for_end(&self) -> String {
        let text = self.lock();
        drop(self.ended.wait_timeout_while(text, END, |text| !text.1));
        self.tail()
    }

    fn tail(&self) -> String {
        let text = self.lock();
        let last = &text.0[text.0.len().saturating_sub(4096)..];
        format!("\n--- the console of the rig:\n{}\n---", String::from_utf8_lossy(last))
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
