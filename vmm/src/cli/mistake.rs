//! What is wrong with a command line, in one line as mote's other errors have: what, why, and a hint.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Command, CommandFactory};
use devices::options::did_you_mean;

use super::Cli;

/// Says what clap found.
#[must_use]
pub fn explain(error: &Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        Some(ContextValue::Strings(texts)) => texts.first().map_or("", String::as_str),
        _ => "",
    };
    // Clap names a flag together with its value: `--memory <SIZE>`.
    let (flag, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    let (name, placeholder) = flag.split_once(' ').unwrap_or((flag, ""));
    match error.kind() {
        ErrorKind::UnknownArgument if flag.starts_with('-') => {
            let hint = match text(ContextKind::SuggestedArg) {
                "" => String::new(),
                other => format!(" (did you mean '{other}'?)"),
            };
            format!("there is no flag '{flag}'{hint}; 'mote --help' tells more")
        }
        ErrorKind::UnknownArgument => format!("'{flag}' is one word too many; 'mote --help' tells more"),
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand);
            let mote = Cli::command();
            let names: Vec<&str> = mote.get_subcommands().map(Command::get_name).collect();
            let hint = did_you_mean(word, names.iter().copied());
            format!("there is no command '{word}'{hint}; mote has {}", names.join(", "))
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{name} needs a value: {name} {}", placeholder.trim_matches(['<', '>']))
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let why = error.source().map_or_else(|| "this is no such value".to_owned(), ToString::to_string);
            // A vdev's errors show what they are about.
            if name == "--vdev" { format!("{name}: {why}") } else { format!("{name} '{value}': {why}") }
        }
        ErrorKind::TooManyValues => format!("{name} '{value}': this flag takes no value"),
        ErrorKind::ArgumentConflict => {
            let other = text(ContextKind::PriorArg);
            let other = other.split_once(' ').map_or(other, |(name, _)| name);
            format!("{name} and {other} exclude each other: leave one out")
        }
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[track_caller]
    fn says(line: &str, expected: &str) {
        let error = Cli::try_parse_from(format!("mote {line}").split(' ')).unwrap_err();
        assert_eq!(explain(&error), expected, "\n{line}");
    }

    #[test]
    fn flags_and_commands_that_there_are_not() {
        says("run --frobnicate", "there is no flag '--frobnicate'; 'mote --help' tells more");
        says(
            "run --kernle x",
            "there is no flag '--kernle' (did you mean '--kernel'?); 'mote --help' tells more",
        );
        says("run -k x", "there is no flag '-k'; 'mote --help' tells more");
        says("--foo", "there is no flag '--foo'; 'mote --help' tells more");
        says("chekc", "there is no command 'chekc' (did you mean 'check'?); mote has run, check, vdevs");
        says("frobnicate", "there is no command 'frobnicate'; mote has run, check, vdevs");
        says("vdevs a b", "'b' is one word too many; 'mote --help' tells more");
    }

    #[test]
    fn values_that_are_missing_or_wrong() {
        says("run --memory", "--memory needs a value: --memory SIZE");
        says(
            "run --memory much",
            "--memory 'much': a size is a number and a suffix K, M, G or T, such as 256M",
        );
        says("run --cpus 0", "--cpus '0': this is no number of 1 or more");
        says("run --cpus 2x", "--cpus '2x': this is no number of 1 or more");
        says("run --log loud", "--log 'loud': a level is off, error, warn, info, debug or trace");
        says(
            "run --log wran",
            "--log 'wran': a level is off, error, warn, info, debug or trace (did you mean 'warn'?)",
        );
        says("run --pci-config usb", "--pci-config 'usb': this is none of ecam, ports and both");
        says(
            "run --power-button-timeout soon",
            "--power-button-timeout 'soon': this is no number of seconds",
        );
        says("run --no-vdevs=yes", "--no-vdevs 'yes': this flag takes no value");
        says("run --vdev toaster", "--vdev: there is no vdev 'toaster'; 'mote vdevs' lists them");
        says("run --vdev virtio-entropy,rate", "--vdev: vdev virtio-entropy: rate needs a value: rate=BYTES");
        says(
            "run --vdev virtio-entropy,legcay",
            "--vdev: vdev virtio-entropy has no option 'legcay' (did you mean 'legacy'?); 'mote vdevs virtio-entropy' lists them",
        );
    }

    #[test]
    fn flags_that_cannot_be_together() {
        says("run --no-vdevs --vdev ser8250", "--no-vdevs and --vdev exclude each other: leave one out");
    }
}
