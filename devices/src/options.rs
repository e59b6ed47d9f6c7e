//! A vdev as its user wrote it: `TYPE[,OPTION[=VALUE]]...`.

use std::str::FromStr;

use thiserror::Error;

/// What is wrong with a vdev's options.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// There is no vdev of that type.
    #[error("there is no vdev '{0}'; 'mote vdevs' lists them")]
    UnknownType(String),
    /// The vdev has no such option.
    #[error("vdev {vdev} has no option '{option}'; 'mote vdevs {vdev}' lists them")]
    UnknownOption {
        /// The vdev's type.
        vdev: String,
        /// The option.
        option: String,
    },
    /// An option's value cannot be used.
    #[error("vdev {vdev}: {option}={value}: {problem}")]
    BadValue {
        /// The vdev's type.
        vdev: String,
        /// The option.
        option: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The type of a vdev and its options, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The vdev's type.
    pub kind: String,
    /// Names and values; a flag has no value.
    pub options: Vec<(String, Option<String>)>,
}

impl FromStr for Options {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut words = text.split(',');
        let kind = words.next().unwrap_or_default();
        let kind = crate::KINDS.iter().find(|k| k.name == kind);
        let kind =
            kind.ok_or_else(|| OptionError::UnknownType(text.split(',').next().unwrap_or_default().into()))?;
        let options = words
            .map(|word| {
                let (name, value) = match word.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (word, None),
                };
                match kind.all_options().any(|o| o.name == name) {
                    true => Ok((name.to_owned(), value)),
                    false => Err(OptionError::UnknownOption { vdev: kind.name.into(), option: name.into() }),
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { kind: kind.name.into(), options })
    }
}

impl Options {
    /// Whether an option of that name was given.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(n, _)| n == name)
    }

    /// The value of the last option of that name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(n, _)| n == name).and_then(|(_, v)| v.as_deref())
    }
}
