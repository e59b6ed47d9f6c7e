//! The agent: starts programs for whoever holds the other end of a link, and carries their streams.
//!
//! It is the rig's `init`, and runs as a thread of the test process for what runs on this machine, so that a test sees
//! no difference.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use rustix::process::{Pid, WaitId, WaitIdOptions};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::wire::{self, CHUNK, Id, Message, Program, Size, Status, Stream, WINDOW};

/// Serves a link until it ends, then kills every session that is left.
///
/// # Errors
/// Those of the link. A program that cannot be started is an answer, not an error.
pub fn serve(from: impl Read, mut to: impl Write + Send + 'static) -> io::Result<()> {
    let (answers, outbox) = mpsc::channel::<(Id, Message)>();
    thread::spawn(move || {
        // Where the link is broken, the reader below finds out as well.
        outbox.iter().try_for_each(|(id, message)| wire::send(&mut to, id, &message))
    });
    let mut from = BufReader::with_capacity(CHUNK, from);
    let mut sessions: HashMap<Id, Session> = HashMap::new();
    answer(&answers, 0, Message::Hello);
    while let Some((id, message)) = wire::receive(&mut from)? {
        match (message, sessions.get(&id)) {
            (Message::Spawn(program), None) => match Session::start(id, &program, &answers) {
                Ok(session) => {
                    sessions.insert(id, session);
                }
                Err(error) => answer(&answers, id, Message::Failed(error.to_string())),
            },
            (Message::Data(Stream::Input, bytes), Some(session)) => session.input(bytes),
            (Message::Credit(Stream::Output, count), Some(session)) => session.output.grant(count),
            (Message::Credit(Stream::Errors, count), Some(session)) => session.errors.grant(count),
            (Message::Resize(size), Some(session)) => session.resize(size),
            (Message::Signal(number), Some(session)) => session.process.signal(number),
            (Message::Close, Some(_)) => drop(sessions.remove(&id)),
            // What comes too late for a session that is gone.
            _ => {}
        }
    }
    Ok(())
}

fn answer(answers: &Sender<(Id, Message)>, id: Id, message: Message) {
    // The link's writer is gone only when the link is, and then nobody waits for the answer.
    let _ = answers.send((id, message));
}

/// One program that runs, or has run and is not yet forgotten.
struct Session {
    process: Arc<Process>,
    terminal: Option<OwnedFd>,
    stdin: Sender<Vec<u8>>,
    output: Arc<Credit>,
    errors: Arc<Credit>,
}

impl Session {
    fn start(id: Id, program: &Program, answers: &Sender<(Id, Message)>) -> io::Result<Self> {
        let mut command = command(program)?;
        let (output, errors) = (Arc::new(Credit::new()), Arc::new(Credit::new()));
        let (stdin, inbox) = mpsc::channel();
        let terminal = program.terminal.map(|size| open_terminal(size, &mut command)).transpose()?;
        let mut child = command.spawn()?;
        // The command holds the terminal's other end, which must be the program's alone.
        drop(command);
        if let Some(terminal) = &terminal {
            feed(id, File::from(terminal.try_clone()?), inbox, answers.clone());
            pump(id, File::from(terminal.try_clone()?), Stream::Output, output.clone(), answers.clone());
            answer(answers, id, Message::Data(Stream::Errors, Vec::new()));
        } else {
            if let Some(to) = child.stdin.take() {
                feed(id, to, inbox, answers.clone());
            }
            if let Some(from) = child.stdout.take() {
                pump(id, from, Stream::Output, output.clone(), answers.clone());
            }
            if let Some(from) = child.stderr.take() {
                pump(id, from, Stream::Errors, errors.clone(), answers.clone());
            }
        }
        let process = Arc::new(Process::new(child));
        let (waiting, answers) = (process.clone(), answers.clone());
        thread::spawn(move || answer(&answers, id, Message::Exit(waiting.wait())));
        Ok(Self { process, terminal, stdin, output, errors })
    }

    fn input(&self, bytes: Vec<u8>) {
        // A program that has closed its input takes no more, as with any pipe.
        let _ = self.stdin.send(bytes);
    }

    fn resize(&self, size: Size) {
        if let Some(terminal) = &self.terminal {
            // A program that is gone has no window.
            let _ = rustix::termios::tcsetwinsize(terminal, window(size));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.process.kill();
        self.output.grant(u32::MAX);
        self.errors.grant(u32::MAX);
    }
}

fn command(program: &Program) -> io::Result<Command> {
    let (name, arguments) = program
        .argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    let mut command = Command::new(name);
    command.args(arguments).envs(program.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !program.directory.is_empty() {
        command.current_dir(&program.directory);
    }
    let has_terminal = program.terminal.is_some();
    let enter = move || {
        rustix::process::setsid()?;
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if has_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes three system calls and touches no memory that is shared.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

/// Opens a pseudo-terminal, gives its slave to the command and returns its master.
///
/// # Errors
/// Where there is none left.
pub fn open_terminal(size: Size, command: &mut Command) -> io::Result<OwnedFd> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(
        name,
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::termios::tcsetwinsize(&slave, window(size))?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    Ok(master)
}

fn window(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Writes what arrives for the program's input, and grants as much again once the program has taken it.
fn feed(
    id: Id,
    mut to: impl Write + Send + 'static,
    inbox: Receiver<Vec<u8>>,
    answers: Sender<(Id, Message)>,
) {
    thread::spawn(move || {
        for bytes in inbox {
            // Without a reader left the rest goes nowhere, but the sender's credit still does.
            if bytes.is_empty() {
                break;
            }
            let _ = to.write_all(&bytes);
            answer(&answers, id, Message::Credit(Stream::Input, bytes.len() as u32));
        }
    });
}

/// Carries one of the program's output streams to its end, as fast as there is credit for it.
fn pump(
    id: Id,
    mut from: impl Read + Send + 'static,
    stream: Stream,
    credit: Arc<Credit>,
    answers: Sender<(Id, Message)>,
) {
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let room = credit.room().min(buffer.len());
            match from.read(&mut buffer[..room]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose last holder is gone reads as EIO.
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    credit.spend(count);
                    answer(&answers, id, Message::Data(stream, buffer[..count].to_vec()));
                }
            }
        }
        answer(&answers, id, Message::Data(stream, Vec::new()));
    });
}

/// How many bytes of a stream the other end still takes.
struct Credit {
    left: Mutex<usize>,
    granted: Condvar,
}

impl Credit {
    fn new() -> Self {
        Self { left: Mutex::new(WINDOW), granted: Condvar::new() }
    }

    fn room(&self) -> usize {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *self.granted.wait_while(left, |left| *left == 0).unwrap_or_else(PoisonError::into_inner)
    }

    fn spend(&self, count: usize) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_sub(count);
    }

    fn grant(&self, count: u32) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_add(count as usize);
        self.granted.notify_all();
    }
}

/// A child process whose number is used only while it is still ours to use.
struct Process {
    pid: Pid,
    child: Mutex<Option<Child>>,
}

impl Process {
    fn new(child: Child) -> Self {
        Self { pid: Pid::from_child(&child), child: Mutex::new(Some(child)) }
    }

    /// Waits for the end without holding the lock, then reaps under it.
    fn wait(&self) -> Status {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(self.pid), options) {}
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        child.and_then(|mut child| child.wait().ok()).map_or(Status::Signal(0), status)
    }

    fn signal(&self, number: i32) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.is_some()
            && let Some(signal) = rustix::process::Signal::from_named_raw(number)
        {
            // It may have ended by itself, and then there is nobody to tell.
            let _ = rustix::process::kill_process(self.pid, signal);
        }
    }

    /// Kills the program and what else is left in its process group.
    fn kill(&self) {
        let _ = rustix::process::kill_process_group(self.pid, rustix::process::Signal::KILL);
    }
}

fn status(status: ExitStatus) -> Status {
    status.code().map_or_else(|| Status::Signal(status.signal().unwrap_or_default()), Status::Code)
}

/// Makes a byte stream of a descriptor that is opened without blocking, as the virtio port of the rig must be: a
/// blocking write to it would spin in the kernel until the host has taken the bytes.
pub struct Port<F>(F);

impl<F: AsFd> Port<F> {
    /// Wraps a non-blocking descriptor.
    pub fn new(file: F) -> Self {
        Self(file)
    }

    fn wait(&self, events: rustix::event::PollFlags) -> io::Result<()> {
        let mut poll = [rustix::event::PollFd::new(&self.0, events)];
        match rustix::event::poll(&mut poll, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl<F: AsFd> Read for Port<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.0, &mut *buffer) {
                Err(rustix::io::Errno::AGAIN) => self.wait(rustix::event::PollFlags::IN)?,
                other => return Ok(other?),
            }
        }
    }
}

impl<F: AsFd> Write for Port<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Err(rustix::io::Errno::AGAIN) => self.wait(rustix::event::PollFlags::OUT)?,
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
