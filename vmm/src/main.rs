//! The command `mote`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use vmm::cli::{Cli, Command};
use vmm::config::Config;
use vmm::vm::{self, Checked};

/// The configuration is wrong.
const CONFIGURATION: u8 = 65;
/// The guest did not start.
const NOT_STARTED: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // There is nobody to tell if this cannot be printed.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(CONFIGURATION),
            };
        }
    };
    match cli.command {
        Command::Run(guest) => {
            vmm::log::init(guest.log);
            let config = Config::from(guest);
            report(vm::run(&config).map(|end| end.exit_status()))
        }
        Command::Check(guest) => {
            vmm::log::init(guest.log);
            let config = Config::from(guest);
            report(Checked::new(&config).map(|_| {
                println!("{config:#?}");
                0
            }))
        }
        Command::Vdevs { kind } => vdevs(kind.as_deref()),
    }
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
                if !text.ends_with(&next_text) {
                    text = format!("{text}: {next_text}");
                }
                cause = next.source();
            }
            eprintln!("mote: error: {text}");
            ExitCode::from(NOT_STARTED)
        }
    }
}

/// Prints the table of vdevs, or one row with its options.
fn vdevs(kind: Option<&str>) -> ExitCode {
    let rows: Vec<_> = devices::KINDS.iter().filter(|row| kind.is_none_or(|kind| kind == row.name)).collect();
    if rows.is_empty() {
        eprintln!("mote: error: there is no vdev '{}'; 'mote vdevs' lists them", kind.unwrap_or_default());
        return ExitCode::from(CONFIGURATION);
    }
    for row in rows {
        println!("{:<16} {}", row.name, row.about);
        for option in row.all_options() {
            let value = if option.value.is_empty() { String::new() } else { format!("={}", option.value) };
            println!("  {:<24} {}", format!("{}{value}", option.name), option.about);
        }
    }
    ExitCode::SUCCESS
}
