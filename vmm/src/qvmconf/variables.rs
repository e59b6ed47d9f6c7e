//! The variables that `set` sets: what the language has no option for.

use devices::options::did_you_mean;

use super::options::{arguments, seconds};
use super::{Problem, Word};
use crate::config::Draft;

/// One variable.
#[derive(Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its type: boolean, number, string.
    pub kind: &'static str,
    /// Its value unless it is set.
    pub default: &'static str,
    /// What it does.
    pub about: &'static str,
    set: fn(&mut Draft, &str) -> Result<(), String>,
}

/// The variables.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: "default-cmdline",
        kind: "boolean",
        default: "on",
        about: "mote's own words come before the command line's (--no-default-cmdline)",
        set: |draft, value| boolean(value).map(|is_on| draft.has_no_words = !is_on),
    },
    Variable {
        name: "default-vdevs",
        kind: "boolean",
        default: "on",
        about: "virtio-entropy and virtio-console where no vdev is named (--no-vdevs)",
        set: |draft, value| boolean(value).map(|is_on| draft.has_no_vdevs = !is_on),
    },
    Variable {
        name: "escape",
        kind: "string",
        default: "ctrl-a",
        about: "the key that leads to mote's menu on the console, or none (--escape)",
        set: |draft, value| put(&mut draft.escape, value),
    },
    Variable {
        name: "pci-config",
        kind: "string",
        default: "ecam",
        about: "how the guest reaches PCI configuration space: ecam, ports or both (--pci-config)",
        set: |draft, value| put(&mut draft.pci_config, value),
    },
    Variable {
        name: "power-button-timeout",
        kind: "number",
        default: "10",
        about: "seconds from the power button to the power cut; 0: no cut (--power-button-timeout)",
        set: |draft, value| seconds(value).map(|wait| draft.power_button_wait = Some(wait)),
    },
    Variable {
        name: "kernel-cache",
        kind: "string",
        default: "~/.cache/mote",
        about: "the directory for unpacked kernels, or none (--kernel-cache)",
        set: |draft, value| {
            draft.kernel_cache = Some(value.into());
            Ok(())
        },
    },
    Variable {
        name: "state-dir",
        kind: "string",
        default: "",
        about: "the directory for a file of facts about the run (--state-dir)",
        set: |draft, value| {
            draft.state_dir = Some(value.into());
            Ok(())
        },
    },
];

/// The variables of qvm that mote has not.
const ABSENT: &[(&str, &str)] = &[
    ("exit-on-halt", "a guest that halts waits for an interrupt"),
    ("fdt-dump-file", "device trees are ARM's; a PC's guest has ACPI"),
    ("grow-heap", "memory is the host's to give"),
    ("legacy-free", "ACPI tells the guest what there is"),
    ("message-block-timeout", "no device of mote waits for the host"),
    ("posted-interrupts", "KVM uses them where the host has them"),
    ("slog-buffer", "Linux's syslog has its own buffers"),
    ("vdev-message-block-timeout", "no device of mote waits for the host"),
    ("virtual-interrupts", "KVM uses them where the host has them"),
];

/// `set VARIABLE VALUE`.
pub(super) fn set(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    if let [only] = words
        && only.text == "?"
    {
        draft.lists_variables = true;
        return Ok(());
    }
    let [name, value] = arguments(words)?;
    let Some(row) = VARIABLES.iter().find(|row| row.name == name.text) else {
        return Err(match ABSENT.iter().find(|(absent, _)| *absent == name.text) {
            Some((_, reason)) => Problem::Unsupported { option: format!("set {}", name.text), reason },
            None => Problem::Variable(name.text.clone()),
        });
    };
    (row.set)(draft, &value.text).map_err(|problem| {
        let argument = format!("{} {}", name.text, value.text);
        Problem::Argument { option: "set", argument, problem }
    })
}

fn boolean(text: &str) -> Result<bool, String> {
    const WORDS: [(&str, bool); 8] = [
        ("on", true),
        ("1", true),
        ("yes", true),
        ("true", true),
        ("off", false),
        ("0", false),
        ("no", false),
        ("false", false),
    ];
    let lower = text.to_ascii_lowercase();
    let found = WORDS.iter().find(|(word, _)| *word == lower).map(|(_, value)| *value);
    let hint = || did_you_mean(text, WORDS.iter().map(|(word, _)| *word));
    found.ok_or_else(|| format!("a boolean is on or off, yes or no, true or false, 1 or 0{}", hint()))
}

fn put<T>(place: &mut Option<T>, text: &str) -> Result<(), String>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    *place = Some(text.parse().map_err(|error: T::Err| error.to_string())?);
    Ok(())
}

/// What `set ?` prints.
pub(crate) fn list() -> String {
    let line =
        |row: &Variable| format!("{:<21} {:<8} {:<13} VM  {}\n", row.name, row.kind, row.default, row.about);
    VARIABLES.iter().map(line).collect()
}
