//! Writes an initramfs: `mkinitramfs LIST OUTPUT [NAME=VALUE...]`; see `tests::initramfs` for the list.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use tests::initramfs::Initramfs;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [list, output, values @ ..] => match build(list, output, values) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("mkinitramfs: {list}: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: mkinitramfs LIST OUTPUT [NAME=VALUE...]");
            ExitCode::FAILURE
        }
    }
}

fn build(list: &str, output: &str, values: &[String]) -> io::Result<()> {
    let values: Vec<_> = values
        .iter()
        .filter_map(|value| value.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let archive = Initramfs::from_list(&fs::read_to_string(list)?, &values)?;
    // Written beside and renamed, so that an interrupted build leaves nothing half done.
    let beside = format!("{output}.new");
    let mut to = BufWriter::new(File::create(&beside)?);
    archive.write(&mut to)?;
    to.flush()?;
    fs::rename(beside, output)
}
