//! The command `mote`.
#![no_main]

use std::error::Error;
use std::ffi::{c_char, c_int};
use std::process;

use clap::Parser;
use clap::error::ErrorKind;
use devices::options::did_you_mean;
use devices::timeline;
use vmm::cli::{Cli, Command, Guest, Wish, explain};
use vmm::config::Config;
use vmm::vm::{self, Checked};

/// All is well.
const SUCCESS: u8 = 0;
/// The configuration is wrong.
const CONFIGURATION: u8 = 65;

/// Called by the C library and not by Rust's runtime, which takes its time to prepare a message for the case that a stack
/// overflows (`vmm/src/start.rs`).
#[expect(unsafe_code, reason = "this is the name that the C library knows")]
// SAFETY: nothing else here has that name.
#[unsafe(no_mangle)]
extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    vmm::start::fill_streams();
    vmm::start::end_with_readers();
    vmm::heap::keep_small();
    // It writes out what is printed and still held back, which a return would not.
    process::exit(run().into())
}

/// Does what the command line says, and tells the exit status.
fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match cli.command {
        Command::Run(guest) => act(guest, |config| {
            vmm::start::outlive_readers();
            vm::run(config).map(|end| end.exit_status())
        }),
        Command::Check(guest) => act(guest, |config| {
            let checked = Checked::new(config)?;
            print!("{}", checked.describe()?);
            checked.check_host().map(|_| 0)
        }),
        Command::Vdevs { kind } => vdevs(kind.as_deref()),
    }
}

/// Prints the help that was asked for, or what is wrong with the command line.
fn refuse(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // There is nobody to tell if this cannot be printed.
            let _ = error.print();
            return SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => drop(error.print()),
        _ => vmm::log::fatal(&explain(error)),
    }
    CONFIGURATION
}

/// Finds out what guest is meant, and does something with it.
fn act(guest: Guest, what: impl FnOnce(&Config) -> Result<u8, vm::Error>) -> u8 {
    let Some(format) = guest.timeline else { return act_on(guest, what) };
    timeline::start();
    let status = act_on(guest, what);
    timeline::mark("end");
    vmm::timeline::print(format);
    status
}

fn act_on(guest: Guest, what: impl FnOnce(&Config) -> Result<u8, vm::Error>) -> u8 {
    let config = match guest.wish() {
        Ok(Wish::Guest(config)) => config,
        Ok(Wish::Variables(list)) => {
            print!("{list}");
            return SUCCESS;
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
fn report(result: Result<u8, vm::Error>) -> u8 {
    match result {
        Ok(status) => status,
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
            error.exit_status()
        }
    }
}

/// Prints the table of vdevs, or one row with its options.
fn vdevs(kind: Option<&str>) -> u8 {
    let rows: Vec<_> = devices::KINDS.iter().filter(|row| kind.is_none_or(|kind| kind == row.name)).collect();
    if let (Some(kind), true) = (kind, rows.is_empty()) {
        let hint = did_you_mean(kind, devices::KINDS.iter().map(|row| row.name));
        vmm::log::fatal(&format!("there is no vdev '{kind}'{hint}; 'mote vdevs' lists them"));
        return CONFIGURATION;
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
    SUCCESS
}
