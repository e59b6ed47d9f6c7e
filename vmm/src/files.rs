//! The further files that a configuration loads: bytes at an address, and ACPI tables.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use boot::layout::{ACPI, COMMAND_LINE};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::config::{Load, LoadKind};
use crate::qvmconf::Origin;

/// Why a file cannot be loaded.
#[derive(Debug, Error)]
pub enum Error {
    /// The host refuses.
    #[error("{origin} cannot read {}: {source}", path.display())]
    Read {
        /// Where it was asked for.
        origin: Origin,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be where it is wanted.
    #[error("{origin} {} cannot be at {:#x} to {:#x}: {problem}", path.display(), range.start, range.end)]
    Place {
        /// Where it was asked for.
        origin: Origin,
        /// The file.
        path: PathBuf,
        /// Where it was wanted.
        range: Range<u64>,
        /// What is in the way.
        problem: &'static str,
    },
    /// It is no ACPI table that a guest could have besides those that mote makes.
    #[error("{origin} {} is no ACPI table to add: {problem}", path.display())]
    Table {
        /// Where it was asked for.
        origin: Origin,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The files, looked at.
#[derive(Debug, Default)]
pub(crate) struct Files {
    data: Vec<(Load, File, Range<u64>)>,
    /// ACPI tables.
    pub(crate) tables: Vec<Vec<u8>>,
}

impl Files {
    /// Looks at all of `loads`. `backed` are the ranges that have memory, `taken` those that boot fills.
    pub(crate) fn open(loads: &[Load], backed: &[Range<u64>], taken: &[Range<u64>]) -> Result<Self, Error> {
        let mut files = Self::default();
        for load in loads {
            let read = |source| Error::Read { origin: load.origin.clone(), path: load.path.clone(), source };
            if load.kind == LoadKind::Acpi {
                files.tables.push(check_table(load, fs::read(&load.path).map_err(read)?)?);
                continue;
            }
            let file = File::open(&load.path).map_err(read)?;
            let metadata = file.metadata().map_err(read)?;
            if !metadata.is_file() {
                return Err(read(io::Error::new(io::ErrorKind::InvalidInput, "this is no regular file")));
            }
            let start = load.address.unwrap_or(0);
            let range = start..start.saturating_add(metadata.len());
            let placed = |range: &Range<u64>, problem| {
                let (origin, path) = (load.origin.clone(), load.path.clone());
                Error::Place { origin, path, range: range.clone(), problem }
            };
            if !backed.iter().any(|memory| memory.start <= range.start && range.end <= memory.end) {
                return Err(placed(&range, "there is no 'ram' or 'rom' for all of it"));
            }
            let own = [0..COMMAND_LINE.end, ACPI];
            let mut fixed = own.iter().chain(taken);
            if fixed.any(|other| other.start < range.end && range.start < other.end) {
                return Err(placed(&range, "mote puts the kernel, the initrd, or what they need there"));
            }
            if files.data.iter().any(|(_, _, other)| other.start < range.end && range.start < other.end) {
                return Err(placed(&range, "another file is there"));
            }
            files.data.push((load.clone(), file, range));
        }
        Ok(files)
    }

    /// The places in memory that the kernel must not take.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        self.data.iter().map(|(_, _, range)| range.clone()).collect()
    }

    /// Copies them into guest memory.
    pub(crate) fn load(&self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        for (load, file, range) in &self.data {
            let read = |source| Error::Read { origin: load.origin.clone(), path: load.path.clone(), source };
            let mut buffer = vec![0; 1 << 20];
            let mut done = 0;
            while done < range.end - range.start {
                let left = usize::try_from(range.end - range.start - done).unwrap_or(usize::MAX);
                let part = buffer.get_mut(..left.min(1 << 20)).unwrap_or_default();
                file.read_exact_at(part, done).map_err(read)?;
                let at = GuestAddress(range.start + done);
                memory.write_slice(part, at).map_err(|error| read(io::Error::other(error)))?;
                done += part.len() as u64;
            }
        }
        Ok(())
    }
}

/// An ACPI table begins with its signature and its length, and the sum of its bytes is 0 (ACPI 6.5, 5.2.6).
fn check_table(load: &Load, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    const OWN: [&[u8; 4]; 7] = [b"RSDT", b"XSDT", b"FACP", b"FACS", b"DSDT", b"APIC", b"MCFG"];
    let length = bytes.get(4..8).and_then(|it| it.try_into().ok()).map_or(0, u32::from_le_bytes);
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let signature: Option<&[u8; 4]> = bytes.first_chunk();
    let rules = [
        (bytes.len() >= 36, "it is shorter than a table's header"),
        (u64::from(length) == bytes.len() as u64, "its length is not what its header says"),
        (sum == 0, "its checksum is wrong"),
        (signature.is_some_and(|it| it.is_ascii()), "its signature is no text"),
        (signature.is_some_and(|it| !OWN.contains(&it)), "mote makes the table of this signature itself"),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        Some((_, problem)) => {
            Err(Error::Table { origin: load.origin.clone(), path: load.path.clone(), problem })
        }
        None => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempfile::TempFile;

    fn file(bytes: &[u8]) -> TempFile {
        let file = TempFile::new().unwrap();
        file.as_file().write_all_at(bytes, 0).unwrap();
        file
    }

    fn load(kind: LoadKind, address: Option<u64>, file: &TempFile) -> Load {
        Load { kind, address, path: file.as_path().to_owned(), origin: Origin::CommandLine }
    }

    fn table(signature: &[u8; 4]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[..4].copy_from_slice(signature);
        bytes[4] = 40;
        bytes[9] = 0_u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
        bytes
    }

    #[test]
    fn data_arrives_at_its_address() {
        let file = file(b"some data");
        let backed = std::iter::once(0..0x40_0000).collect::<Vec<_>>();
        let loads = [load(LoadKind::Data, Some(0x20_0ffe), &file)];
        let files = Files::open(&loads, &backed, &[]).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap();
        files.load(&memory).unwrap();
        let mut seen = [0; 10];
        memory.read_slice(&mut seen, GuestAddress(0x20_0ffe)).unwrap();
        assert_eq!(&seen, b"some data\0");
    }

    #[test]
    fn data_is_only_where_there_is_memory_that_boot_leaves_alone() {
        let file = file(&[1; 0x1000]);
        let backed = [0..0xa_0000, 0x10_0000..0x40_0000];
        let kernel = std::iter::once(0x20_0000..0x30_0000).collect::<Vec<_>>();
        for address in [0x9_f001, 0xb_0000, 0x3f_f001, u64::MAX] {
            let error =
                Files::open(&[load(LoadKind::Data, Some(address), &file)], &backed, &kernel).unwrap_err();
            assert!(error.to_string().contains("no 'ram' or 'rom'"), "{error}");
        }
        for address in [0, 0x1_f000, 0x1f_f001, 0x2f_ffff] {
            let error =
                Files::open(&[load(LoadKind::Data, Some(address), &file)], &backed, &kernel).unwrap_err();
            assert!(error.to_string().contains("mote puts"), "{error}");
        }
        let twice = [0x30_0000, 0x30_0fff].map(|at| load(LoadKind::Data, Some(at), &file));
        let error = Files::open(&twice, &backed, &kernel).unwrap_err();
        assert!(error.to_string().contains("another file is there"), "{error}");
    }

    #[test]
    fn a_table_is_checked() {
        let open = |bytes: &[u8]| {
            let file = file(bytes);
            Files::open(&[load(LoadKind::Acpi, None, &file)], &[], &[]).map(|files| files.tables)
        };
        assert_eq!(open(&table(b"SSDT")).unwrap(), [table(b"SSDT")]);
        let mut broken = table(b"SSDT");
        broken[39] ^= 1;
        for (bytes, problem) in [
            (&table(b"SSDT")[..20], "shorter"),
            (&[table(b"SSDT"), vec![0]].concat(), "length"),
            (&broken, "checksum"),
            (&table(b"DSDT"), "itself"),
        ] {
            let error = open(bytes).unwrap_err().to_string();
            assert!(error.starts_with("[command line] ") && error.contains(problem), "{error}");
        }
    }
}
