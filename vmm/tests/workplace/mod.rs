//! A directory in which `mote check` finds what it asks for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary under test.
pub const MOTE: &str = env!("CARGO_BIN_EXE_mote");

/// A directory with a kernel and an initrd that can be checked, though not run.
pub fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("workplace-{name}"));
    fs::create_dir_all(&directory).unwrap();
    let mut kernel = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    // Linux/x86 boot protocol 2.15: one sector of setup, 64-bit entry, loaded high.
    put(0x1f1, &[1]);
    put(0x1f4, &0xc0_u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21, 3]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    fs::write(directory.join("vmlinuz"), kernel).unwrap();
    fs::write(directory.join("initramfs"), "an initrd").unwrap();
    directory
}

/// Runs mote there.
pub fn mote(directory: &Path, words: &[&str]) -> Output {
    Command::new(MOTE).args(words).current_dir(directory).output().unwrap()
}

/// Whether `what` was understood. A host without a KVM for this guest says so after that.
#[track_caller]
pub fn is_understood(output: &Output, what: &str) {
    let messages = String::from_utf8_lossy(&output.stderr);
    let is_understood =
        output.status.success() || output.status.code() == Some(64) && messages.contains("vm");
    assert!(is_understood, "{what}\n{messages}");
}
