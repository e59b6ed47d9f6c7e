//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use devices::options::Options;
use log::LevelFilter;

use crate::config::{Config, PciConfig, Size, default_vdevs};

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
  mote check --kernel vmlinuz --initrd initramfs    everything but starting the guest
  mote vdevs                                        the virtual devices

Exit status: 0 the guest powered off or reset, 3 power cut by a signal, 5 unsupported operation,
6 vdev error, 7 unexpected error, 64 failed before the guest started, 65 configuration error,
96 failed after it started.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest until it powers off or resets.
    Run(Guest),
    /// Check everything that `run` would need, and print what was understood.
    Check(Guest),
    /// List the virtual devices, or one with its options.
    Vdevs {
        /// The vdev's type.
        kind: Option<String>,
    },
}

/// A guest.
#[derive(Args, Debug)]
pub struct Guest {
    /// Linux kernel, a bzImage with a 64-bit entry.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial ramdisk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Words for the kernel's command line; they come after mote's own and win over them.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// Add nothing to the kernel's command line.
    #[arg(long)]
    no_default_cmdline: bool,
    /// RAM: at least 64M, in multiples of 2M.
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: Size,
    /// Number of vCPUs.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// Virtual device, may be repeated. Without any: virtio-entropy and virtio-console.
    #[arg(long = "vdev", value_name = "TYPE[,OPTION[=VALUE]]...")]
    vdevs: Vec<Options>,
    /// No virtio-entropy and virtio-console either.
    #[arg(long, conflicts_with = "vdevs")]
    no_vdevs: bool,
    /// How the guest reaches PCI configuration space: ecam, ports (0xcf8 and 0xcfc) or both.
    #[arg(long, value_name = "WAY", default_value = "ecam")]
    pci_config: PciConfig,
    /// Print messages of this level and above to standard error: off, error, warn, info, debug.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: LevelFilter,
}

impl From<Guest> for Config {
    fn from(guest: Guest) -> Self {
        let vdevs = match guest.vdevs.is_empty() && !guest.no_vdevs {
            true => default_vdevs(),
            false => guest.vdevs,
        };
        Self {
            kernel: guest.kernel,
            initrd: guest.initrd,
            command_line: guest.cmdline,
            has_default_words: !guest.no_default_cmdline,
            memory: guest.memory,
            cpus: guest.cpus,
            vdevs,
            pci_config: guest.pci_config,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn config(words: &[&str]) -> Config {
        let words = ["mote", "run", "--kernel", "k"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(guest) => guest.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_guest_has_entropy_and_console_unless_told_otherwise() {
        let kinds = |words: &[&str]| config(words).vdevs.into_iter().map(|v| v.kind).collect::<Vec<_>>();
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
}
