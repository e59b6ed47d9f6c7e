//! The init of the rig's Linux: brings up KVM and the port to the host, serves it, and powers off when it ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::inotify;
use rustix::mount::MountFlags;
use rustix::process::WaitOptions;
use rustix::system::RebootCommand;
use tests::agent::{self, Port};

/// What to mount: source, place, type.
const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("debugfs", "/sys/kernel/debug"),
];

/// The modules, in the order of their dependencies, one path a line.
const MODULES: &str = "/lib/modules/order";

/// The first virtio port of the first controller.
const PORT: &str = "/dev/vport0p1";

fn main() {
    let is_init = rustix::process::getpid().is_init();
    let result = if is_init { init() } else { serve() };
    if let Err(error) = &result {
        eprintln!("rig-init: {error}");
    }
    if is_init {
        rustix::fs::sync();
        // Nothing is left to do where even this fails; the kernel panics and QEMU ends.
        let _ = rustix::system::reboot(RebootCommand::PowerOff);
    }
}

/// Process 1: prepares the machine, starts the agent, and buries the dead until the agent is among them.
fn init() -> io::Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place)?;
        rustix::mount::mount(*kind, *place, *kind, MountFlags::empty(), None)
            .map_err(|error| io::Error::other(format!("mount {place}: {error}")))?;
    }
    for module in fs::read_to_string(MODULES)?.lines() {
        let bytes = fs::read(module).map_err(|error| io::Error::other(format!("{module}: {error}")))?;
        rustix::system::init_module(&bytes, c"")
            .map_err(|error| io::Error::other(format!("{module}: {error}")))?;
    }
    Command::new("/bin/busybox").args(["--install", "-s", "/bin"]).status()?;
    let agent = Command::new("/proc/self/exe")
        .env("PATH", "/bin:/usr/bin:/usr/sbin:/sbin")
        .env("HOME", "/root")
        .spawn()?;
    let agent = rustix::process::Pid::from_child(&agent);
    while let Some((dead, _)) = rustix::process::wait(WaitOptions::empty())? {
        if dead == agent {
            break;
        }
    }
    Ok(())
}

/// The agent: serves the port until the host lets go of it.
fn serve() -> io::Result<()> {
    let path = wait_for(Path::new(PORT))?;
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let port = File::options().read(true).write(true).custom_flags(nonblocking).open(path)?;
    agent::serve(Port::new(port.try_clone()?), Port::new(port))
}

/// Waits until the driver has made the node.
fn wait_for(path: &Path) -> io::Result<PathBuf> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, path.parent().unwrap_or(path), inotify::WatchFlags::CREATE)?;
    let mut events = [0; 4096];
    while !path.exists() {
        rustix::io::read(&watch, &mut events)?;
    }
    Ok(path.to_owned())
}
