//! All that can be wrong with a configuration, each with its text.

use std::io;
use std::path::Path;

use devices::options::{OptionError, did_you_mean};
use thiserror::Error;

use super::options::{CPU_OPTIONS, OPTIONS};
use super::variables::VARIABLES;

/// What is wrong with a configuration.
#[derive(Debug, Error)]
pub enum Problem {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A file holds bytes that are no text.
    #[error("this is not UTF-8; a configuration is text")]
    NotText,
    /// A control character outside quotes.
    #[error("character {:#04x} is no part of a word", u32::from(*.0))]
    Control(char),
    /// A quote without its partner on the same line.
    #[error("a quote is not closed; to go on in the next line, end this one with a backslash")]
    OpenQuote,
    /// A word where an option should be.
    #[error("there is no option '{word}'{}", option_hint(word, vdev.as_deref()))]
    Unknown {
        /// The word.
        word: String,
        /// The type of the vdev whose options these are.
        vdev: Option<String>,
    },
    /// An option of a context that is not open.
    #[error("'{word}' belongs to a {context}: write it after '{context}{}'", if *context == "vdev" { " TYPE" } else { "" })]
    Elsewhere {
        /// The option.
        word: String,
        /// The option that opens its context.
        context: &'static str,
    },
    /// An option at the end, without its arguments.
    #[error("'{option}' needs an argument: {option} {arguments}")]
    NoArgument {
        /// The option.
        option: String,
        /// Its arguments.
        arguments: &'static str,
    },
    /// An argument that cannot be used.
    #[error("{option} '{argument}': {problem}")]
    Argument {
        /// The option.
        option: &'static str,
        /// The argument.
        argument: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An option of qvm that mote has not.
    #[error("mote does not support '{option}': {reason}")]
    Unsupported {
        /// The option.
        option: String,
        /// Why not, or what there is instead.
        reason: &'static str,
    },
    /// `system` after something else.
    #[error("'system {0}' must be the first option")]
    SystemNotFirst(String),
    /// Something that can be said once.
    #[error("mote takes one {what}, and has '{first}' already")]
    Twice {
        /// What it is.
        what: &'static str,
        /// The first.
        first: String,
    },
    /// Something that needs guest memory, before there is any.
    #[error("'{0}' refers to guest memory: write it after 'ram' and 'rom'")]
    BeforeMemory(String),
    /// A variable that there is not.
    #[error("there is no variable '{0}'{hint}; 'mote run set ?' lists them",
            hint = did_you_mean(.0, VARIABLES.iter().map(|row| row.name)))]
    Variable(String),
    /// A vdev's options.
    #[error(transparent)]
    Vdev(#[from] OptionError),
    /// No kernel.
    #[error("there is no kernel to load: give --kernel FILE, or 'load FILE' in a configuration")]
    NoKernel,
    /// Two vdevs of one name.
    #[error("vdev {kind}: name={name}: another vdev has that name")]
    Name {
        /// The second vdev's type.
        kind: String,
        /// The name.
        name: String,
    },
    /// Ranges of the memory map that meet.
    #[error("{one} meets {other}")]
    Overlap {
        /// The second.
        one: String,
        /// The first, with its place.
        other: String,
    },
    /// A range of the memory map that cannot be there.
    #[error("{area}: {problem}")]
    Area {
        /// The range.
        area: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Flags that a configuration has contradicted.
    #[error("{flag} and '{option}' exclude each other: leave one out")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// The option.
        option: String,
    },
}

/// What `word` may have been meant to be.
fn option_hint(word: &str, vdev: Option<&str>) -> String {
    const ELSEWHERE: [(&str, &str); 3] =
        [("kernel", "load FILE"), ("initrd", "initrd load FILE"), ("memory", "ram LENGTH")];
    if let Some((_, meant)) = ELSEWHERE.iter().find(|(flag, _)| *flag == word) {
        return format!(" (did you mean '{meant}'?)");
    }
    if word.ends_with(".qvmconf") {
        return format!(" (did you mean '@{word}'?)");
    }
    if Path::new(word).is_file() {
        return format!(" (did you mean 'load {word}'?)");
    }
    if let Some(variable) = VARIABLES.iter().find(|row| row.name == word) {
        return format!(" (did you mean 'set {}'?)", variable.name);
    }
    let rows = OPTIONS.iter().chain(CPU_OPTIONS).map(|row| row.name);
    let kind = devices::KINDS.iter().find(|kind| Some(kind.name) == vdev);
    let own = kind.iter().flat_map(|kind| kind.all_options()).map(|help| help.name);
    let hint = did_you_mean(word, own.chain(rows));
    match vdev {
        Some(vdev) if hint.is_empty() => format!(", neither of a VM nor of vdev {vdev}"),
        _ => hint,
    }
}
