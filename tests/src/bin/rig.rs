//! Runs a program where guests run, on the terminal it is called from: `rig run -- file:target/mote run ...`.
//!
//! An argument `file:PATH` names a file of this machine, which is sent to the rig first. With hardware KVM the program
//! simply takes this one's place. The exit status is the program's, 128 and its number where a signal killed it.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::{panic, process, thread};

use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;
use tests::session::Piece;
use tests::{Command, Machine, Session, Status};

const USAGE: &str = "usage: rig run -- PROGRAM [ARGUMENT | file:PATH]...";

/// What the terminal was like before, while it is raw.
static COOKED: Mutex<Option<Termios>> = Mutex::new(None);

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.len() < 3 || arguments[0] != "run" || arguments[1] != "--" {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    match run(&arguments.split_off(2)) {
        Ok(status) => ExitCode::from(status),
        Err(why) => {
            eprintln!("rig: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[OsString]) -> Result<u8, String> {
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if has_terminal {
        eprintln!("mote: preparing a machine with KVM ...");
    }
    let machine = Machine::here();
    let words: Vec<OsString> = words.iter().map(|word| translate(machine, word)).collect();
    if machine.is_this() {
        return Err(process::Command::new(&words[0]).args(&words[1..]).exec().to_string());
    }
    let mut command = Command::new(&words[0]).args(&words[1..]);
    if has_terminal {
        let (rows, columns) = size();
        let kind = std::env::var_os("TERM").unwrap_or_else(|| "linux".into());
        command = command.terminal(rows, columns).env("TERM", kind);
    }
    let session = Arc::new(machine.spawn(&command));
    session.hold();
    let signals =
        Signals::new([SIGWINCH, SIGTERM, SIGINT, SIGHUP, SIGQUIT]).map_err(|error| error.to_string())?;
    watch(signals, session.clone());
    if has_terminal {
        make_raw().map_err(|error| error.to_string())?;
    }
    type_into(session.clone());
    let end = show(&session);
    restore();
    end.map(|status| match status {
        Status::Code(code) => (code & 0xff) as u8,
        Status::Signal(number) => 128 | number as u8,
    })
}

fn translate(machine: &Machine, word: &OsStr) -> OsString {
    match word.as_bytes().strip_prefix(b"file:") {
        Some(path) => machine.file(OsString::from_vec(path.to_vec())).into_os_string(),
        None => word.to_owned(),
    }
}

fn size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

/// Makes the terminal raw. However this program ends, but for SIGKILL, it calls [`restore`] first.
fn make_raw() -> rustix::io::Result<()> {
    let cooked = rustix::termios::tcgetattr(stdin())?;
    let mut raw = cooked.clone();
    raw.make_raw();
    *COOKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(cooked);
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        restore();
        usual(info);
    }));
    rustix::termios::tcsetattr(stdin(), OptionalActions::Now, &raw)
}

fn restore() {
    if let Some(cooked) = COOKED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs nothing.
        let _ = rustix::termios::tcsetattr(stdin(), OptionalActions::Now, &cooked);
    }
}

/// Passes the terminal's size on, and leaves on the signals that mean to end us.
fn watch(mut signals: Signals, session: Arc<Session>) {
    thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGWINCH {
                let (rows, columns) = size();
                session.resize(rows, columns);
            } else {
                restore();
                process::exit(128 | signal);
            }
        }
    });
}

fn type_into(session: Arc<Session>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            if session.feed(&buffer[..count]).is_err() {
                return;
            }
        }
        session.close_input();
    });
}

/// Shows what the program prints until it has ended.
fn show(session: &Session) -> Result<Status, String> {
    loop {
        let written = match session.read()? {
            Piece::Output(bytes) => io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()),
            Piece::Errors(bytes) => io::stderr().write_all(&bytes),
            Piece::End(status) => return Ok(status),
        };
        written.map_err(|error| error.to_string())?;
    }
}
