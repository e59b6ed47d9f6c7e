//! Writes mote's man pages and completions as they are installed below `share`: `generate DIRECTORY`.
//!
//! They come from the definitions that the command line, the configuration language and the vdevs' options are read by.

mod pages;

use std::path::Path;
use std::{env, fs, io};

use clap::CommandFactory;
use clap_complete::Shell;
use vmm::cli::Cli;

fn main() -> io::Result<()> {
    let Some(directory) = env::args_os().nth(1) else {
        eprintln!("usage: generate DIRECTORY");
        std::process::exit(2);
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = Path::new(&directory).join(name);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(path, bytes)
    };
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write("man/man1/mote.1", &pages::command(&command)?)?;
    for subcommand in command.get_subcommands() {
        write(&format!("man/man1/mote-{}.1", subcommand.get_name()), &pages::command(subcommand)?)?;
    }
    write("man/man5/mote-qvmconf.5", &pages::language())?;
    for (shell, name) in [
        (Shell::Bash, "bash-completion/completions/mote"),
        (Shell::Zsh, "zsh/site-functions/_mote"),
        (Shell::Fish, "fish/vendor_completions.d/mote.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "mote", &mut script);
        write(name, &script)?;
    }
    Ok(())
}
