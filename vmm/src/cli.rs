//! The command line.

mod mistake;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::StringValueParser;
use clap::{Args, Parser, Subcommand, ValueHint};
use devices::escape::EscapeKey;
use devices::options::Options;
use log::LevelFilter;

pub use self::mistake::explain;
use self::values::Value;
use crate::config::{Config, Draft, Flags, PciConfig, Size};
use crate::log::Rule;
use crate::qvmconf;
use crate::timeline::Format;

/// Boot a Linux kernel on KVM and talk to it.
#[derive(Debug, Parser)]
#[command(name = "mote", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  mote run --kernel vmlinuz --initrd initramfs      boot to a shell or login on hvc0
  mote run --kernel vmlinuz --cpus 4 --memory 2G --cmdline 'quiet panic=1'
  mote run --kernel vmlinuz --vdev virtio-entropy --vdev ser8250
  mote run @guest.qvmconf                           the same from a file, in qvm's language
  mote run @guest.qvmconf --memory 1G dryrun        a file, a flag and a word together
  mote check @guest.qvmconf                         everything but starting the guest
  mote vdevs                                        the virtual devices
  mote vdevs virtio-console                         one of them with its options

Signals:
  SIGTERM, SIGINT   press the guest's power button; the second one cuts the power
  SIGQUIT, SIGHUP   cut the power at once
  SIGUSR1           print the status of vCPUs and vdevs
  SIGUSR2           dump the guest, which goes on

Exit status:
  0    the guest powered off or reset
  3    power cut
  4    the watchdog bit (vdev wdt-ib700)
  5    the guest did what mote does not support
  6    a vdev cannot go on
  7    a defect of mote
  32   the guest's kernel panicked (vdev pvpanic)
  64   the guest did not start
  65   the configuration is wrong
  96   the guest crashed, or KVM does not run it on";

const LANGUAGE: &str = "\
Words:
  system NAME                        names the VM; comes first
  ram [ADDRESS,]LENGTH               RAM; also rom, and reserve loc ADDRESS,LENGTH
  cpu sched PRIORITY runmask CPU,... a vCPU, and how the host runs it
  load FILE, initrd load FILE        the kernel and the initial ramdisk
  cmdline TEXT                       words for the kernel's command line
  vdev TYPE OPTION VALUE ...         a virtual device
  logger FILTER,... DEST             where messages go
  dump DIRECTORY                     where dumps of the guest go
  set VARIABLE VALUE                 a variable; 'set ?' lists them
  dryrun                             everything but starting the guest

Words are of the language of qvm's configuration files, in files (@FILE) or here; flags win over them. \
docs/configuration.md and mote-qvmconf(5) explain all of it.";

/// What to do.
#[derive(Debug, Subcommand)]
// The options of a command are made when it is the one that is wanted.
#[command(defer = true)]
pub enum Command {
    /// Run a guest until it powers off or resets.
    #[command(after_help = LANGUAGE, args_override_self = true)]
    Run(Guest),
    /// Check everything that `run` would need, and print what was understood.
    #[command(after_help = LANGUAGE, args_override_self = true)]
    Check(Guest),
    /// List the virtual devices, or one with its options.
    Vdevs {
        /// The vdev's type.
        #[arg(
            value_name = "TYPE",
            value_parser = Value { read: StringValueParser::new(), offers: values::vdevs },
            hide_possible_values = true
        )]
        kind: Option<String>,
    },
}

/// A guest.
#[derive(Args, Debug)]
pub struct Guest {
    /// Configuration: files of qvm's language, and words of it.
    #[arg(
        value_name = "@FILE | WORD",
        value_parser = Value { read: StringValueParser::new(), offers: values::words },
        hide_possible_values = true
    )]
    words: Vec<String>,
    /// Linux kernel: a bzImage with a 64-bit entry, or an ELF vmlinux.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    kernel: Option<PathBuf>,
    /// Initial ramdisk.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    initrd: Option<PathBuf>,
    /// Words for the kernel's command line; they come after mote's own and win over them.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Add nothing to the kernel's command line.
    #[arg(long)]
    no_default_cmdline: bool,
    /// RAM: at least 64M [default: 256M].
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Number of vCPUs [default: 1].
    #[arg(long, value_name = "NUMBER", value_parser = values::count)]
    cpus: Option<u32>,
    /// Virtual device, may be repeated. Without any: virtio-entropy and virtio-console.
    #[arg(
        long = "vdev",
        value_name = "TYPE[,OPTION[=VALUE]]...",
        value_parser = Value { read: str::parse::<Options>, offers: values::vdevs },
        hide_possible_values = true
    )]
    vdevs: Vec<Options>,
    /// No virtio-entropy and virtio-console either.
    #[arg(long, conflicts_with = "vdevs")]
    no_vdevs: bool,
    /// How the guest reaches PCI configuration space: ecam, ports (0xcf8 and 0xcfc) or both [default: ecam].
    #[arg(
        long,
        value_name = "WAY",
        value_parser = Value { read: str::parse::<PciConfig>, offers: values::pci_config },
        hide_possible_values = true
    )]
    pci_config: Option<PciConfig>,
    /// Key that leads to mote's menu on the console, such as ctrl-a or ^]; none to have none [default: ctrl-a].
    #[arg(long, value_name = "KEY")]
    escape: Option<EscapeKey>,
    /// Show the kernel's messages from the first line on, by a serial port that hvc0 takes over from.
    #[arg(long)]
    early_console: bool,
    /// Seconds from the power button to the power cut; 0: no cut [default: 10].
    #[arg(long, value_name = "SECONDS", value_parser = values::seconds)]
    power_button_timeout: Option<u32>,
    /// Keep unpacked kernels in this directory, or 'none' [default: $XDG_CACHE_HOME/mote or ~/.cache/mote].
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    kernel_cache: Option<PathBuf>,
    /// Write facts about the run to state.json in this directory.
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
    /// Print when each phase of the run began, to standard error at its end: text or json [default: text].
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub timeline: Option<Format>,
    /// Print messages of this level and above to standard error: off, error, warn, info, debug, trace [default: info].
    #[arg(
        long,
        value_name = "LEVEL",
        value_parser = Value { read: values::level, offers: values::levels },
        hide_possible_values = true
    )]
    log: Option<LevelFilter>,
}

/// What a guest's user wants.
#[derive(Debug)]
pub enum Wish {
    /// A guest.
    Guest(Box<Config>),
    /// The list of variables.
    Variables(String),
}

impl Guest {
    /// Puts flags, files and words together.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with them.
    pub fn wish(self) -> Result<Wish, qvmconf::Error> {
        let mut draft = Draft::default();
        qvmconf::read(&self.words, &mut draft)?;
        if draft.lists_variables {
            return Ok(Wish::Variables(qvmconf::variables()));
        }
        draft.has_no_words |= self.no_default_cmdline;
        draft.pci_config = self.pci_config.or(draft.pci_config);
        draft.escape = self.escape.or(draft.escape);
        draft.has_early_console |= self.early_console;
        draft.kernel_cache = self.kernel_cache.or(draft.kernel_cache);
        draft.state_dir = self.state_dir.or(draft.state_dir);
        if let Some(seconds) = self.power_button_timeout {
            let wait = Duration::from_secs(seconds.into());
            draft.power_button_wait = Some(Some(wait).filter(|wait| !wait.is_zero()));
        }
        if let Some(level) = self.log {
            draft.loggers = vec![Rule::up_to(level)];
        }
        draft.apply(Flags {
            kernel: self.kernel,
            initrd: self.initrd,
            command_line: self.cmdline,
            memory: self.memory,
            cpus: self.cpus,
            vdevs: self.vdevs,
            has_no_vdevs: self.no_vdevs,
        })?;
        Ok(Wish::Guest(Box::new(draft.finish()?)))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn config(words: &[&str]) -> Config {
        let words = ["mote", "run", "--kernel", "k"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(guest) => match guest.wish().unwrap() {
                Wish::Guest(config) => *config,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_guest_has_entropy_and_console_unless_told_otherwise() {
        let kinds =
            |words: &[&str]| config(words).vdevs.into_iter().map(|v| v.options.kind).collect::<Vec<_>>();
        assert_eq!(kinds(&[]), ["virtio-entropy", "virtio-console"]);
        assert_eq!(kinds(&["--vdev", "ser8250"]), ["ser8250"]);
        assert_eq!(kinds(&["--no-vdevs"]), [""; 0]);
    }

    #[test]
    fn an_unknown_vdev_and_an_unknown_option_are_refused() {
        for vdev in ["virtio-disk", "virtio-entropy,speed=9"] {
            assert!(Cli::try_parse_from(["mote", "run", "--kernel", "k", "--vdev", vdev]).is_err(), "{vdev}");
        }
    }

    #[test]
    fn flags_and_words_may_be_mixed() {
        let words = ["ram", "1g", "--cpus", "3", "vdev", "ser8250", "--vdev", "virtio-entropy", "dryrun"];
        let config = config(&words);
        assert_eq!((config.memory.size(), config.cpus.len(), config.is_dry), (1 << 30, 3, true));
        let kinds: Vec<_> = config.vdevs.iter().map(|vdev| vdev.options.kind.as_str()).collect();
        assert_eq!(kinds, ["ser8250", "virtio-entropy"]);
    }

    #[test]
    fn the_last_of_several_flags_counts_and_vdevs_add_up() {
        let config = config(&[
            "--memory",
            "64M",
            "--memory",
            "1G",
            "--vdev",
            "ser8250",
            "--vdev",
            "pvpanic",
            "--early-console",
            "--early-console",
        ]);
        assert_eq!((config.memory.size(), config.vdevs.len()), (1 << 30, 3));
    }

    #[test]
    fn flags_win_over_words() {
        let config =
            config(&["load", "other", "ram", "1g", "--memory", "64M", "cmdline", "a", "--cmdline", "b"]);
        assert_eq!((config.kernel.to_str(), config.memory.size()), (Some("k"), 64 << 20));
        assert_eq!(config.command_line, "b");
    }
}
