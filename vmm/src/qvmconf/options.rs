//! The options of the language: a table from which they are read, explained and documented.

use std::time::Duration;

use devices::options::{Options, did_you_mean};
use devices::size::{Number, Size};

use super::{Problem, Word, variables};
use crate::config::{Cpu, Draft, DumpTo, LoadKind, Policy, Sched, Vdev};
use crate::log::Rule;

/// One option.
#[derive(Clone, Copy)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Its arguments, as placeholders; one word each.
    pub arguments: &'static str,
    /// What it does, in a few words.
    pub about: &'static str,
    /// What it does.
    pub(super) act: Act,
}

impl Row {
    /// Whether mote has it; an option of qvm's that it has not is refused by name.
    #[must_use]
    pub fn is_supported(&self) -> bool {
        !matches!(self.act, Act::Refuse(_))
    }

    /// How many words follow it.
    pub(super) fn count(&self) -> usize {
        self.arguments.split_whitespace().count()
    }
}

/// What an option does.
#[derive(Clone, Copy)]
pub(super) enum Act {
    /// Puts its arguments, as many as it has, into the draft.
    Set(fn(&mut Draft, &[Word]) -> Result<(), Problem>),
    /// As `Set`, for `load`, whose type is the word before it.
    Load,
    /// As `Set`, and opens a context.
    Open(Context, fn(&mut Draft, &[Word]) -> Result<(), Problem>),
    /// Nothing: mote has not got it, for this reason.
    Refuse(&'static str),
}

/// Whose options come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Context {
    Cpu,
    Vdev,
}

const fn row(name: &'static str, arguments: &'static str, about: &'static str, act: Act) -> Row {
    Row { name, arguments, about, act }
}

/// The options of a VM.
pub const OPTIONS: &[Row] = &[
    row("system", "NAME", "the VM's name; the first option, where there is one", Act::Set(system)),
    row("cpu", "", "one vCPU; opens a context", Act::Open(Context::Cpu, cpu)),
    row("ram", "[ADDRESS,]LENGTH", "RAM; without an address after what there is", Act::Set(ram)),
    row("rom", "[ADDRESS,]LENGTH", "RAM that the guest's memory map leaves out", Act::Set(rom)),
    row("reserve", "loc ADDRESS,LENGTH", "a place where no RAM may be", Act::Set(reserve)),
    row(
        "load",
        "[ADDRESS,]FILE",
        "a kernel; after a type: initrd, data (at an address) or acpi (a table)",
        Act::Load,
    ),
    row("cmdline", "TEXT", "the kernel's command line, after mote's own words", Act::Set(cmdline)),
    row("vdev", "TYPE", "a virtual device; opens a context", Act::Open(Context::Vdev, vdev)),
    row(
        "logger",
        "FILTER[,FILTER]... DEST",
        "where messages that are fatal, internal, error, warn, info, debug or verbose go: stdout, stderr, slog or none; may be repeated",
        Act::Set(logger),
    ),
    row("dump", "DIRECTORY", "where dumps of the guest go; or \"|COMMAND\", which reads one", Act::Set(dump)),
    row("set", "VARIABLE VALUE", "a variable; 'set ?' lists them", Act::Set(variables::set)),
    row(
        "unsupported",
        "WHAT POLICY",
        "what to do about a reference to where nothing is, a register or an instruction that cannot be emulated: abort, fail or ignore",
        Act::Set(unsupported),
    ),
    row("dryrun", "", "assemble everything, do not start the guest", Act::Set(dryrun)),
    row("pass", "", "a device of the host", Act::Refuse("there is no pass-through of the host's devices")),
    row("safety", "LEVEL", "certified parts", Act::Refuse("no part of mote is certified")),
    row("user", "NAME", "the user to run as", Act::Refuse("start mote as the user that it is to run as")),
    row("debug", "WHAT", "help for developers", Act::Refuse("use 'logger debug stderr', or gdb on a dump")),
];

/// The options of a `cpu`.
pub const CPU_OPTIONS: &[Row] = &[
    row("sched", "PRIORITY[r|f|o]", "how the host schedules the vCPU's thread", Act::Set(sched)),
    row("runmask", "CPU[,CPU]...", "the host's processors that it may run on", Act::Set(runmask)),
    row(
        "cluster",
        "NAME",
        "a group of host processors",
        Act::Refuse("Linux names no clusters; use 'runmask'"),
    ),
    row("partition", "NAME", "a scheduler partition", Act::Refuse("put mote into a cgroup")),
];

fn bad(option: &'static str, word: &Word, problem: impl Into<String>) -> Problem {
    Problem::Argument { option, argument: word.text.clone(), problem: problem.into() }
}

/// The arguments, which the parser has counted.
pub(super) fn arguments<const N: usize>(words: &[Word]) -> Result<&[Word; N], Problem> {
    words.first_chunk().ok_or(Problem::NoArgument { option: String::new(), arguments: "" })
}

fn system(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [name] = arguments(words)?;
    if draft.is_begun {
        return Err(Problem::SystemNotFirst(name.text.clone()));
    }
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if name.text.is_empty() || name.text.starts_with('.') || !name.text.chars().all(is_plain) {
        return Err(bad(
            "system",
            name,
            "a name is made of letters, digits, '-', '_' and '.', as files are named by it",
        ));
    }
    draft.system = Some(name.text.clone());
    Ok(())
}

fn cpu(draft: &mut Draft, _: &[Word]) -> Result<(), Problem> {
    draft.cpus.push(Cpu::default());
    Ok(())
}

/// The `cpu` that is open; the parser has seen to it that there is one.
fn this_cpu(draft: &mut Draft) -> Result<&mut Cpu, Problem> {
    draft.cpus.last_mut().ok_or(Problem::Elsewhere { word: "sched".into(), context: "cpu" })
}

fn sched(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [word] = arguments(words)?;
    let text = word.text.as_str();
    let (digits, letter) = match text.char_indices().next_back() {
        Some((at, letter)) if letter.is_ascii_alphabetic() => (&text[..at], letter),
        _ => (text, 'o'),
    };
    let Ok(priority) = digits.parse::<u8>() else {
        let problem = match text.contains('s') {
            true => "Linux has no sporadic scheduling; use a priority and r, f or o",
            false => {
                "a priority is a number and r (round robin), f (first in, first out) or o (the host's usual way)"
            }
        };
        return Err(bad("sched", word, problem));
    };
    let sched = match letter {
        'o' => Sched::Other { nice: (10 - i32::from(priority)).clamp(-20, 19) },
        'r' if (1..=99).contains(&priority) => Sched::RoundRobin(priority),
        'f' if (1..=99).contains(&priority) => Sched::Fifo(priority),
        'r' | 'f' => return Err(bad("sched", word, "Linux has real-time priorities from 1 to 99")),
        _ => return Err(bad("sched", word, "the letter is r, f or o")),
    };
    this_cpu(draft)?.sched = Some(sched);
    Ok(())
}

fn runmask(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [word] = arguments(words)?;
    let mut cpus = Vec::new();
    for number in word.text.split(',') {
        match number.parse::<u16>() {
            Ok(number) if number < 1024 => cpus.push(number),
            _ => {
                return Err(bad(
                    "runmask",
                    word,
                    "the host's processors are numbered from 0 to 1023, as in 0,2,3",
                ));
            }
        }
    }
    let cpu = this_cpu(draft)?;
    (cpu.runmask, cpu.runmask_origin) = (cpus, Some(word.origin.clone()));
    Ok(())
}

/// `[ADDRESS,]LENGTH`.
fn area(option: &'static str, word: &Word) -> Result<(Option<u64>, u64), Problem> {
    let number = |text: &str| text.parse::<Number>().map_err(|error| bad(option, word, error.to_string()));
    match word.text.split_once(',') {
        Some((address, length)) => Ok((Some(number(address)?.0), number(length)?.0)),
        None => Ok((None, number(&word.text)?.0)),
    }
}

fn ram(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [word] = arguments(words)?;
    let (address, length) = area("ram", word)?;
    draft.areas.ram(address, length, Some(&word.origin));
    Ok(())
}

fn rom(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [word] = arguments(words)?;
    let (address, length) = area("rom", word)?;
    draft.areas.rom(address, length, &word.origin);
    Ok(())
}

fn reserve(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [loc, word] = arguments(words)?;
    if loc.text != "loc" {
        return Err(bad("reserve", loc, "a place follows: reserve loc ADDRESS,LENGTH"));
    }
    let place = match word.text.split_once(':') {
        Some(("mem", place)) => Word { text: place.to_owned(), origin: word.origin.clone() },
        Some(_) => return Err(bad("reserve", word, "only memory (mem:) can be reserved")),
        None => word.clone(),
    };
    match area("reserve", &place)? {
        (Some(address), length) => draft.areas.reserve(address, length, &word.origin),
        (None, _) => {
            return Err(bad("reserve", word, "an address and a length are needed, as in 0xa0000,0x20000"));
        }
    }
    Ok(())
}

fn cmdline(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [text] = arguments(words)?;
    draft.command_line = Some(text.text.clone());
    Ok(())
}

fn vdev(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [kind] = arguments(words)?;
    draft.vdevs.push(Vdev::new(Options::new(&kind.text)?, Some(kind.origin.clone())));
    Ok(())
}

fn logger(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [filters, destination] = arguments(words)?;
    draft.loggers.push(
        Rule::parse(&filters.text, &destination.text).map_err(|(argument, problem)| Problem::Argument {
            option: "logger",
            argument,
            problem,
        })?,
    );
    Ok(())
}

fn dump(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [word] = arguments(words)?;
    draft.dump = Some(match word.text.strip_prefix('|') {
        Some(command) if command.trim().is_empty() => return Err(bad("dump", word, "there is no command")),
        Some(command) => DumpTo::Command(command.to_owned()),
        None => DumpTo::Directory(word.text.clone().into()),
    });
    Ok(())
}

fn unsupported(draft: &mut Draft, words: &[Word]) -> Result<(), Problem> {
    let [what, word] = arguments(words)?;
    let policies = [("abort", Policy::Abort), ("fail", Policy::Fail), ("ignore", Policy::Ignore)];
    let Some((_, policy)) = policies.into_iter().find(|(name, _)| *name == word.text) else {
        let hint = did_you_mean(&word.text, policies.map(|(name, _)| name));
        return Err(bad("unsupported", word, format!("a policy is abort, fail or ignore{hint}")));
    };
    let no = |reason| {
        let option = format!("unsupported {} {}", what.text, word.text);
        Err(Problem::Unsupported { option, reason })
    };
    match (what.text.as_str(), policy) {
        ("instruction", Policy::Abort) => {}
        ("instruction", _) => {
            return no("KVM emulates what it can; where it cannot, it stops the guest for good (abort)");
        }
        ("reference", Policy::Fail) => return no("a PC has no bus errors; use ignore (all ones) or abort"),
        ("reference", policy) => draft.unsupported.reference = policy,
        ("register", policy) => draft.unsupported.register = policy,
        (other, _) => {
            let hint = did_you_mean(other, ["instruction", "reference", "register"]);
            return Err(bad(
                "unsupported",
                what,
                format!("this is none of instruction, reference and register{hint}"),
            ));
        }
    }
    Ok(())
}

fn dryrun(draft: &mut Draft, _: &[Word]) -> Result<(), Problem> {
    draft.is_dry = true;
    Ok(())
}

/// The types of `load`.
pub(super) const LOAD_TYPES: [(&str, LoadKind); 4] = [
    ("kernel", LoadKind::Kernel),
    ("initrd", LoadKind::Initrd),
    ("data", LoadKind::Data),
    ("acpi", LoadKind::Acpi),
];

/// `[ADDRESS,]FILE`, where what comes before a comma may be part of a file's name.
pub(super) fn load(draft: &mut Draft, kind: LoadKind, word: &Word) -> Result<(), Problem> {
    let (address, path) = match word.text.split_once(',') {
        Some((address, path)) if address.starts_with(|letter: char| letter.is_ascii_digit()) => {
            let number = address.parse::<Number>().map_err(|error| bad("load", word, error.to_string()))?;
            (Some(number.0), path)
        }
        _ => (None, word.text.as_str()),
    };
    if path.is_empty() {
        return Err(bad("load", word, "there is no file"));
    }
    if address.is_some() && draft.areas.is_empty() {
        return Err(Problem::BeforeMemory(format!("load {}", word.text)));
    }
    match (kind, address) {
        (LoadKind::Kernel | LoadKind::Initrd, Some(_)) => {
            Err(bad("load", word, "mote places the kernel and the initrd by itself; leave the address out"))
        }
        (LoadKind::Acpi, Some(_)) => {
            Err(bad("load", word, "mote places ACPI tables by itself; leave the address out"))
        }
        (LoadKind::Data, None) => Err(bad("load", word, "data needs its address: data load ADDRESS,FILE")),
        (kind, address) => draft.load(kind, address, path, &word.origin),
    }
}

/// Seconds, of which 0 is for ever.
pub(super) fn seconds(text: &str) -> Result<Option<Duration>, String> {
    match text.parse::<u32>() {
        Ok(0) => Ok(None),
        Ok(number) => Ok(Some(Duration::from_secs(number.into()))),
        Err(_) => Err("this is no number of seconds".into()),
    }
}

/// Prints a length as users write it.
pub(crate) fn length(bytes: u64) -> String {
    Size(bytes).to_string()
}
