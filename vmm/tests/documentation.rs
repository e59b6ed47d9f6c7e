//! What the documentation shows is tried: its command lines, its configurations, its errors.

mod workplace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use workplace::{MOTE, is_understood, mote};

const README: &str = include_str!("../../README.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
const CONSOLE: &str = include_str!("../../docs/console.md");

/// A directory with the files that the examples name.
fn directory(name: &str) -> PathBuf {
    let directory = workplace::directory(name);
    fs::write(directory.join("guest.qvmconf"), "load vmlinuz\n").unwrap();
    fs::write(directory.join("more.qvmconf"), "cmdline quiet\n").unwrap();
    directory
}

fn shell(directory: &Path, line: &str) -> Output {
    Command::new("sh").args(["-c", line]).env("MOTE", MOTE).current_dir(directory).output().unwrap()
}

/// The pieces of code of a page.
fn blocks(page: &str) -> impl Iterator<Item = &str> {
    page.split("```").skip(1).step_by(2)
}

#[test]
fn command_lines_are_understood() {
    let directory = directory("lines");
    let help = Command::new(MOTE).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let pages = [README, CONFIGURATION, CONSOLE].into_iter().flat_map(blocks).chain([help.as_str()]);
    let lines = pages.flat_map(str::lines).map(str::trim).filter(|line| line.starts_with("mote "));
    let mut count = 0;
    for line in lines.filter(|line| !line.starts_with("mote: ")) {
        // What comes after two spaces explains.
        let command = line.split("  ").next().unwrap_or(line);
        let command = command.replacen("mote run", "mote check", 1).replacen("mote", "\"$MOTE\"", 1);
        is_understood(&shell(&directory, &command), line);
        count += 1;
    }
    assert!(count >= 15, "{count}");
}

#[test]
fn the_consoles_of_a_vdev_are_understood() {
    let directory = directory("consoles");
    let flags = blocks(CONSOLE).find(|block| block.contains("--vdev virtio-console")).unwrap();
    let output = shell(&directory, &format!("\"$MOTE\" check @guest.qvmconf {}", flags.trim()));
    is_understood(&output, flags);
}

#[test]
fn the_memory_map_of_a_pc_is_understood() {
    let directory = directory("map");
    let map = blocks(CONFIGURATION).find(|block| block.contains("ram 0,0xa0000")).unwrap();
    fs::write(directory.join("map.qvmconf"), map).unwrap();
    let output = mote(&directory, &["check", "@map.qvmconf", "load", "vmlinuz"]);
    is_understood(&output, map);
    assert!(String::from_utf8_lossy(&output.stdout).contains("rom      256K"), "{output:?}");
}

#[test]
fn the_error_is_the_one_that_mote_makes() {
    let directory = directory("error");
    let shown = blocks(CONFIGURATION).find(|block| block.contains("mote: error")).unwrap();
    fs::write(directory.join("guest.qvmconf"), "load vmlinuz\n\n\n\n\n\nvdv ser8250\n").unwrap();
    let output = mote(&directory, &["run", "@guest.qvmconf"]);
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()),
        (Some(65), shown.trim_start())
    );
}

#[test]
fn every_block_is_tried() {
    let is_tried = |block: &str| {
        ["mote ", "mote: error", "ram 0,0xa0000", "--vdev virtio-console"].iter().any(|it| block.contains(it))
    };
    for block in [CONFIGURATION, CONSOLE].into_iter().flat_map(blocks) {
        assert!(is_tried(block), "nobody tries this:\n{block}");
    }
}
