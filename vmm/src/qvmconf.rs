//! The configuration language: that of qvm's `*.qvmconf` files, in files and on the command line.
//!
//! ```text
//! system demo
//! ram 256m
//! load vmlinuz
//! initrd load initramfs
//! cmdline "quiet panic=1"
//! vdev virtio-entropy loc pci:0:5.0
//! vdev virtio-console
//! ```
//!
//! Text becomes words (`lexer`), words become settings (`parser`, by the table in `options`), and those meet with
//! the command line's flags in one [`Draft`], which makes the [`Config`](crate::config::Config).

mod lexer;
mod options;
mod parser;
mod problem;
mod variables;

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

pub(crate) use self::options::length;
pub use self::options::{CPU_OPTIONS, OPTIONS, Row};
pub use self::problem::Problem;
pub use self::variables::VARIABLES;
pub(crate) use self::variables::list as variables;
use crate::config::Draft;

/// Where something was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a line of a file.
    File {
        /// The file, as it was named.
        path: Arc<str>,
        /// The line, from 1.
        line: u32,
    },
    /// Among the words of the command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "[{path}:{line}]"),
            Self::CommandLine => f.write_str("[command line]"),
        }
    }
}

/// A word, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// What it says, without quotes.
    pub text: String,
    /// Where it is.
    pub origin: Origin,
}

/// What is wrong with a configuration, and where.
#[derive(Debug, Error)]
#[error("{}{problem}", origin.as_ref().map(|origin| format!("{origin} ")).unwrap_or_default())]
pub struct Error {
    /// Where; `None` for what is said nowhere, or by a flag.
    pub origin: Option<Origin>,
    /// What.
    pub problem: Problem,
}

impl Problem {
    /// The problem, and where it is.
    #[must_use]
    pub fn at(self, origin: &Origin) -> Error {
        Error { origin: Some(origin.clone()), problem: self }
    }

    /// The problem, where there is no place to show.
    #[must_use]
    pub fn anywhere(self) -> Error {
        Error { origin: None, problem: self }
    }
}

/// Reads the words of a command line into `draft`. `@FILE` stands for the words of a file.
///
/// # Errors
///
/// The first problem.
pub fn read(words: &[String], draft: &mut Draft) -> Result<(), Error> {
    let mut all = Vec::new();
    for word in words {
        match word.strip_prefix('@') {
            Some(path) => all.extend(file(path)?),
            None => all.push(Word { text: word.clone(), origin: Origin::CommandLine }),
        }
    }
    parser::parse(all, draft)
}

/// The words of a file.
fn file(path: &str) -> Result<Vec<Word>, Error> {
    let bytes = fs::read(Path::new(path)).map_err(|source| {
        let problem = Problem::File { path: path.to_owned(), source };
        problem.at(&Origin::CommandLine)
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        Problem::NotText.at(&Origin::File { path: path.into(), line })
    })?;
    lexer::words(path, &text)
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
