//! The command `mote`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use devices::options::did_you_mean;
use devices::timeline;
use vmm::cli::{Cli, Command, Guest, Wish, explain};
use vmm::config::Config;
use vmm::vm::{self, Checked};

/// The configuration is wrong.
const CONFIGURATION: u8 = 65;

fn main() -> ExitCode {
    vmm::heap::keep_small();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match cli.command {
        Command::Run(guest) => act(guest, |config| vm::run(config).map(|end| end.exit_status())),
        Command::Check(guest) => act(guest, |config| {
            let checked = Checked::new(config)?;
            print!("{}", checked.describe()?);
            checked.check_host().map(|_| 0)
        }),
        Command::Vdevs { kind } => vdevs(kind.as_deref()),
    }
}

/// Prints the help that was asked for, or what is wrong with the command line.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // There is nobody to tell if this cannot be printed.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => drop(error.print()),
        _ => vmm::log::fatal(&explain(error)),
    }
    ExitCode::from(CONFIGURATION)
}

/// Finds out what guest is meant, and does something with it.
fn act(guest: Guest, what: impl FnOnce(&Config) -> Result<u8, vm::Error>) -> ExitCode {
    let Some(format) = guest.timeline else { return act_on(guest, what) };
    timeline::start();
    let status = act_on(guest, what);
    timeline::mark("end");
    vmm::timeline::print(format);
    status
}

fn act_on(guest: Guest, what: impl FnOnce(&Config) -> Result<u8, vm::Error>) -> ExitCode {
    let config = match guest.wish() {
        Ok(Wish::Guest(config)) => config,
        Ok(Wish::Variables(list)) => {
            print!("{list}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return report(Err(error.into())),
    };
    let vdevs = config.vdevs.iter().map(|vdev| (vdev.name, vdev.loggers.as_slice()));
    if let Err(source) = vmm::log::init(&config.loggers, vdevs) {
        return report(Err(vm::Error::Host { attempt: "reach the syslog at /dev/log", source }));
    }
    timeline::mark("options read");
    report(what(&config))
}

/// The one place where errors are printed: the chain of causes on one line.
fn report(result: Result<u8, vm::Error>) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(next) = cause {
                let next_text = next.to_string();
                if !text.contains(&next_text) {
                    text = format!("{text}: {next_text}");
                }
                cause = next.source();
            }
            vmm::log::fatal(&text);
            ExitCode::from(error.exit_status())
        }
    }
}

/// Prints the table of vdevs, or one row with its options.
fn vdevs(kind: Option<&str>) -> ExitCode {
    let rows: Vec<_> = devices::KINDS.iter().filter(|row| kind.is_none_or(|kind| kind == row.name)).collect();
    if let (Some(kind), true) = (kind, rows.is_empty()) {
        let hint = did_you_mean(kind, devices::KINDS.iter().map(|row| row.name));
        vmm::log::fatal(&format!("there is no vdev '{kind}'{hint}; 'mote vdevs' lists them"));
        return ExitCode::from(CONFIGURATION);
    }
    for row in rows {
        println!("{:<16} {}", row.name, row.about);
        if kind.is_none() {
            continue;
        }
        for option in row.all_options() {
            println!("  {:<15} {:<23} {}", option.name, option.value, option.about);
        }
    }
    ExitCode::SUCCESS
}
