//! What to run on a machine.

use std::ffi::{OsStr, OsString};

use crate::wire::{Program, Size};

/// A program to spawn on a [`Machine`](crate::Machine), with pipes for its streams unless it is given a terminal.
#[derive(Clone, Debug)]
pub struct Command(pub(crate) Program);

impl Command {
    /// A program by its path on that machine, or by its name on the search path there.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self(Program {
            argv: vec![program.as_ref().into()],
            env: Vec::new(),
            directory: OsString::new(),
            terminal: None,
        })
    }

    /// A command line for the machine's shell.
    pub fn shell(line: &str) -> Self {
        Self::new("sh").arg("-c").arg(line)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.0.argv.push(argument.as_ref().into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// The program and its arguments.
    pub fn words(&self) -> impl Iterator<Item = &OsStr> {
        self.0.argv.iter().map(OsString::as_os_str)
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.0.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Sets the directory to start in.
    #[must_use]
    pub fn directory(mut self, path: impl AsRef<OsStr>) -> Self {
        self.0.directory = path.as_ref().into();
        self
    }

    /// Gives the program a terminal of this many lines and columns, which carries all three of its streams.
    #[must_use]
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.0.terminal = Some(Size { rows, columns });
        self
    }
}
