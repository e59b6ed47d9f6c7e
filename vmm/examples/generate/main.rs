//! Writes mote's man pages and completions into a directory: `generate DIRECTORY`.
//!
//! They come from the definitions that the command line is parsed by.

use std::path::Path;
use std::{env, fs, io};

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use vmm::cli::Cli;

fn main() -> io::Result<()> {
    let Some(directory) = env::args_os().nth(1) else {
        eprintln!("usage: generate DIRECTORY");
        std::process::exit(2);
    };
    let directory = Path::new(&directory);
    fs::create_dir_all(directory)?;
    let mut command = Cli::command();
    clap_mangen::generate_to(command.clone(), directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "mote", directory)?;
    }
    Ok(())
}
