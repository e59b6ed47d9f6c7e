//! A vdev as its user wrote it: `TYPE[,OPTION[=VALUE]]...`, or the same words in a configuration file.

use std::borrow::Cow;
use std::str::FromStr;

use thiserror::Error;

use crate::location::{Location, Space};
use crate::size::Size;
use crate::{Kind, OptionHelp};

/// What is wrong with a vdev's options.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// There is no vdev of that type.
    #[error("there is no vdev '{0}'{hint}; 'mote vdevs' lists them", hint = type_hint(.0))]
    UnknownType(String),
    /// The vdev is one of qvm's.
    #[error("vdev {vdev}: mote has not this vdev of qvm's: {instead}")]
    Absent {
        /// The vdev's type.
        vdev: String,
        /// Why, or what there is instead.
        instead: &'static str,
    },
    /// The vdev has no such option.
    #[error("vdev {vdev} has no option '{option}'{hint}; 'mote vdevs {vdev}' lists them", hint = option_hint(vdev, option))]
    UnknownOption {
        /// The vdev's type.
        vdev: String,
        /// The option.
        option: String,
    },
    /// The option is one of qvm's.
    #[error("vdev {vdev}: mote has not qvm's option '{option}': {reason}")]
    AbsentOption {
        /// The vdev's type.
        vdev: String,
        /// The option.
        option: String,
        /// Why not.
        reason: &'static str,
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
        problem: Cow<'static, str>,
    },
    /// An option needs a value and has none.
    #[error("vdev {vdev}: {option} needs a value: {option}={placeholder}")]
    NoValue {
        /// The vdev's type.
        vdev: String,
        /// The option.
        option: String,
        /// What the value would be.
        placeholder: &'static str,
    },
    /// Options that cannot be together, or not apart.
    #[error("vdev {vdev}: {option}: {problem}")]
    Conflict {
        /// The vdev's type.
        vdev: String,
        /// The option to look at first.
        option: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl OptionError {
    /// The option that is wrong, where it is one.
    #[must_use]
    pub fn option(&self) -> Option<&str> {
        match self {
            Self::UnknownType(_) | Self::Absent { .. } => None,
            Self::UnknownOption { option, .. }
            | Self::AbsentOption { option, .. }
            | Self::BadValue { option, .. }
            | Self::NoValue { option, .. }
            | Self::Conflict { option, .. } => Some(option),
        }
    }
}

/// The vdevs of qvm that mote has not.
const ABSENT: &[(&str, &str)] = &[
    ("8259", "the machine has no PIC, interrupts go to the I/O APIC"),
    ("gic", "it is an interrupt controller of ARM"),
    ("hpet", "guests have kvmclock and the TSC deadline timer"),
    ("pci", "the PCI bus is always there"),
    ("pl011", "it is a serial port of ARM; ser8250 is the PC's"),
    ("shmem", "there is no shared memory yet"),
    ("smmu", "it is an IOMMU of ARM"),
    ("trace", "docs/writing-a-vdev.md has an example of its own"),
    ("virtio-blk", "there is no block device yet; an initrd can hold a root file system"),
    ("virtio-gpu", "there is no graphics"),
    ("virtio-input", "there is no graphics"),
    ("virtio-net", "there is no network yet"),
    ("wdt-sp805", "it is a watchdog of ARM; wdt-ib700 is the PC's"),
];

/// The options of qvm's vdevs that no vdev of mote has, or not each of them.
const ABSENT_OPTIONS: &[(&str, &str)] = &[
    ("batch", "output goes out as soon as the guest has written it"),
    ("hostvector", "there is no pass-through of the host's devices"),
    ("intr", "this vdev raises no interrupt"),
    ("sched", "the threads of vdevs are scheduled as mote itself is"),
];

/// The word of `words` that is most like `word`, if one is like it.
pub fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const ALIKE: f64 = 0.72;
    let word = word.to_ascii_lowercase();
    let scored = words.into_iter().map(|other| (strsim::normalized_damerau_levenshtein(&word, other), other));
    scored.filter(|(score, _)| *score > ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

/// ` (did you mean 'that'?)`, or nothing.
pub fn did_you_mean<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, words).map_or_else(String::new, |other| format!(" (did you mean '{other}'?)"))
}

fn type_hint(kind: &str) -> String {
    did_you_mean(kind, crate::KINDS.iter().map(|kind| kind.name))
}

fn option_hint(vdev: &str, option: &str) -> String {
    let kind = crate::KINDS.iter().find(|kind| kind.name == vdev);
    did_you_mean(option, kind.iter().flat_map(|kind| kind.all_options()).map(|help| help.name))
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

    /// A comma that belongs to a value is written twice.
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut words = split(text).into_iter();
        let mut options = Self::new(&words.next().unwrap_or_default())?;
        for word in words {
            match word.split_once('=') {
                Some((name, value)) => options.set(name, Some(value))?,
                None => options.set(&word, None)?,
            }
        }
        Ok(options)
    }
}

/// The words between single commas, with double ones as commas in them.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(letter);
        }
    }
    words
}

impl Options {
    /// A vdev without options.
    ///
    /// # Errors
    ///
    /// There is none of that type.
    pub fn new(kind: &str) -> Result<Self, OptionError> {
        if crate::KINDS.iter().any(|row| row.name == kind) {
            return Ok(Self { kind: kind.to_owned(), options: Vec::new() });
        }
        Err(match ABSENT.iter().find(|(name, _)| *name == kind) {
            Some((name, instead)) => OptionError::Absent { vdev: (*name).into(), instead },
            None => OptionError::UnknownType(kind.to_owned()),
        })
    }

    /// The row of the table of vdevs.
    pub fn row(&self) -> Option<&'static Kind> {
        crate::KINDS.iter().find(|row| row.name == self.kind)
    }

    /// What help says of an option of this vdev, if it has one of that name.
    pub fn help(&self, name: &str) -> Option<&'static OptionHelp> {
        self.row()?.all_options().find(|help| help.name == name)
    }

    /// Adds an option as its user gave it.
    ///
    /// # Errors
    ///
    /// The vdev has no such option, or it has a value and should not, or the reverse.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), OptionError> {
        let Some(help) = self.help(name) else { return Err(self.unknown(name)) };
        let (vdev, option) = (self.kind.clone(), name.to_owned());
        match (help.value, value) {
            ("", Some(value)) => {
                let problem = "this option takes no value";
                return Err(OptionError::BadValue {
                    vdev,
                    option,
                    value: value.into(),
                    problem: problem.into(),
                });
            }
            (placeholder, None) if !placeholder.is_empty() && !help.is_value_optional() => {
                return Err(OptionError::NoValue { vdev, option, placeholder });
            }
            _ => {}
        }
        self.options.push((option, value.map(str::to_owned)));
        Ok(())
    }

    /// The error that this vdev has no option of that name.
    pub fn unknown(&self, name: &str) -> OptionError {
        let (vdev, option) = (self.kind.clone(), name.to_owned());
        match ABSENT_OPTIONS.iter().find(|(absent, _)| *absent == name) {
            Some((_, reason)) => OptionError::AbsentOption { vdev, option, reason },
            None => OptionError::UnknownOption { vdev, option },
        }
    }

    /// Whether an option of that name was given.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(n, _)| n == name)
    }

    /// The value of the last option of that name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(n, _)| n == name).and_then(|(_, v)| v.as_deref())
    }

    /// The values of all options of that name, in their order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.options.iter().filter(move |(n, _)| n == name).filter_map(|(_, v)| v.as_deref())
    }

    /// The value of the last option of that name, understood by `parse`, which says what is wrong with it.
    ///
    /// # Errors
    ///
    /// [`OptionError::BadValue`].
    pub fn parsed<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Result<Option<T>, OptionError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        parse(value).map(Some).map_err(|problem| self.bad_value(name, problem))
    }

    /// A number of bytes.
    ///
    /// # Errors
    ///
    /// [`OptionError::BadValue`].
    pub fn size(&self, name: &str) -> Result<Option<u64>, OptionError> {
        self.parsed(name, |text| text.parse::<Size>().map(|size| size.0).map_err(|error| error.text()))
    }

    /// The place that the option `loc` names.
    ///
    /// # Errors
    ///
    /// [`OptionError::BadValue`].
    pub fn location(&self) -> Result<Option<Location>, OptionError> {
        let is_virtio = self.row().is_some_and(|row| row.is_virtio);
        let usual = if is_virtio { Space::Pci } else { Space::Port };
        let Some(only) = self.row().and_then(Kind::only_place) else {
            return self.parsed("loc", |text| Location::parse(text, usual));
        };
        match self.parsed("loc", |text| Location::parse(text, only.space()))? {
            Some(other) if other != only => {
                Err(self.bad_value("loc", format!("it is at {only} and nowhere else; leave 'loc' out")))
            }
            location => Ok(location),
        }
    }

    /// The error that the value of the last option of that name is wrong.
    pub fn bad_value(&self, name: &str, problem: impl Into<Cow<'static, str>>) -> OptionError {
        let value = self.value(name).unwrap_or_default().to_owned();
        let (vdev, option) = (self.kind.clone(), name.to_owned());
        OptionError::BadValue { vdev, option, value, problem: problem.into() }
    }

    /// The error that an option of that name cannot be beside, or without, another.
    pub fn conflict(&self, name: &str, problem: &'static str) -> OptionError {
        OptionError::Conflict { vdev: self.kind.clone(), option: name.to_owned(), problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Options>().unwrap_err().to_string()
    }

    #[test]
    fn a_double_comma_is_one_in_a_value() {
        let options: Options = "virtio-entropy,log=error,,info stderr,legacy".parse().unwrap();
        assert_eq!(options.value("log"), Some("error,info stderr"));
        assert!(options.has("legacy"));
    }

    #[test]
    fn the_last_value_counts_and_all_can_be_had() {
        let options: Options = "virtio-entropy,name=a,name=b".parse().unwrap();
        assert_eq!(options.value("name"), Some("b"));
        assert_eq!(options.values("name").collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_word_that_is_nearly_right_is_suggested() {
        assert_eq!(
            error("virtio-entrpoy"),
            "there is no vdev 'virtio-entrpoy' (did you mean 'virtio-entropy'?); 'mote vdevs' lists them"
        );
        assert_eq!(
            error("virtio-entropy,legcay"),
            "vdev virtio-entropy has no option 'legcay' (did you mean 'legacy'?); \
             'mote vdevs virtio-entropy' lists them"
        );
        assert_eq!(error("toaster"), "there is no vdev 'toaster'; 'mote vdevs' lists them");
    }

    #[test]
    fn what_qvm_has_and_mote_has_not_is_said_by_name() {
        assert!(error("virtio-net").contains("qvm"), "{}", error("virtio-net"));
        assert!(ABSENT.iter().all(|(name, _)| crate::KINDS.iter().all(|kind| kind.name != *name)));
    }

    #[test]
    fn options_of_qvm_that_mote_has_not_are_named() {
        assert_eq!(
            error("ser8250,batch=100"),
            "vdev ser8250: mote has not qvm's option 'batch': output goes out as soon as the guest has written it"
        );
        assert_eq!(
            error("mc146818,intr=ioapic:8"),
            "vdev mc146818: mote has not qvm's option 'intr': this vdev raises no interrupt"
        );
    }

    #[test]
    fn a_vdev_with_one_place_has_it_said_or_not() {
        let location = |text: &str| text.parse::<Options>().unwrap().location();
        assert_eq!(location("mc146818"), Ok(None));
        assert_eq!(location("mc146818,loc=0x70"), Ok(Some(Location::Port(0x70))));
        assert_eq!(location("ioapic,loc=0xfec00000"), Ok(Some(Location::Memory(0xfec0_0000))));
        assert_eq!(
            location("mc146818,loc=0x72").unwrap_err().to_string(),
            "vdev mc146818: loc=0x72: it is at io:0x70 and nowhere else; leave 'loc' out"
        );
    }

    #[test]
    fn flags_take_no_value_and_others_need_one() {
        assert!(error("virtio-entropy,legacy=yes").contains("takes no value"));
        assert!(error("virtio-entropy,name").contains("needs a value: name=NAME"));
    }
}
