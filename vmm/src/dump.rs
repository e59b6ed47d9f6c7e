//! A dump of the guest: an ELF core file with its processors' registers and its memory.
//!
//! Memory is at its guest-physical addresses. Each processor has two notes: `NT_PRSTATUS`, by which gdb shows its
//! registers as a thread's, and QEMU's, by which `crash` finds out where the kernel is (its KASLR offset).

mod elf;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::config::DumpTo;
use crate::vcpu::Registers;

/// Why there is no dump.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be made.
    #[error("cannot create {}: {source}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Ten dumps of one second.
    #[error("{} and its nine alternatives are there already", .0.display())]
    Exists(PathBuf),
    /// The command cannot be run.
    #[error("cannot run {command}: {source}")]
    Command {
        /// The command.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// The command did not like it.
    #[error("{command} failed: {status}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// Not all could be written.
    #[error("cannot write all of it to {place}: {source}")]
    Write {
        /// Where to.
        place: String,
        /// Why not.
        source: io::Error,
    },
}

/// Dumps the guest, and says where to.
///
/// # Errors
///
/// There is no whole dump.
pub fn dump(
    to: &DumpTo,
    name: Option<&str>,
    memory: &GuestMemoryMmap,
    vcpus: &[Registers],
) -> Result<String, Error> {
    match to {
        DumpTo::Directory(directory) => {
            let prefix = format!("{}-{}", name.unwrap_or("mote-guest"), now());
            let (path, file) = create(directory, &prefix)?;
            let place = path.display().to_string();
            write(Sparse(file), memory, vcpus)
                .map_err(|source| Error::Write { place: place.clone(), source })?;
            Ok(place)
        }
        DumpTo::Command(line) => {
            let command = || line.clone();
            let mut child = Command::new("/bin/sh")
                .args(["-c", line])
                .stdin(Stdio::piped())
                // Standard output is the guest's.
                .stdout(Stdio::null())
                .spawn()
                .map_err(|source| Error::Command { command: command(), source })?;
            let written = child.stdin.take().map_or(Ok(()), |input| write(input, memory, vcpus));
            let status = child.wait().map_err(|source| Error::Command { command: command(), source })?;
            if !status.success() {
                return Err(Error::Failed { command: command(), status });
            }
            written.map_err(|source| Error::Write { place: command(), source })?;
            Ok(format!("|{line}"))
        }
    }
}

/// A file that is not there yet: without a number, or with one up to 9.
fn create(directory: &std::path::Path, prefix: &str) -> Result<(PathBuf, File), Error> {
    let numbers = std::iter::once(String::new()).chain((1..=9).map(|number| format!("-{number}")));
    for number in numbers {
        let path = directory.join(format!("{prefix}{number}.gcore"));
        // Memory holds secrets: for nobody else.
        let options = &mut File::options();
        match std::os::unix::fs::OpenOptionsExt::mode(options, 0o600).write(true).create_new(true).open(&path)
        {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::Create { path, source }),
        }
    }
    Err(Error::Exists(directory.join(format!("{prefix}.gcore"))))
}

/// A file in which zeros take no room: the guest stands still while it is written, and most memory may never have been
/// used.
struct Sparse(File);

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.iter().any(|byte| *byte != 0) {
            return self.0.write(bytes);
        }
        self.0.seek_relative(i64::try_from(bytes.len()).map_err(io::Error::other)?)?;
        Ok(bytes.len())
    }

    /// Gives the file its length, as nothing may have been written at its end.
    fn flush(&mut self) -> io::Result<()> {
        let length = self.0.stream_position()?;
        self.0.set_len(length)
    }
}

/// `YYYYMMDD-hhmmss`, in UTC.
fn now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |since| since.as_secs());
    let time = i64::try_from(seconds).unwrap_or(0);
    let mut tm = std::mem::MaybeUninit::<libc::tm>::zeroed();
    #[expect(unsafe_code, reason = "the calendar is the C library's")]
    // SAFETY: both pointers are to live variables, and all zeros are a valid `tm` should the call fail.
    let tm = unsafe {
        libc::gmtime_r(&raw const time, tm.as_mut_ptr());
        tm.assume_init()
    };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    format!("{year:04}{month:02}{:02}-{:02}{:02}{:02}", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}

/// Writes the core file.
fn write(mut out: impl Write, memory: &GuestMemoryMmap, vcpus: &[Registers]) -> io::Result<()> {
    let ranges: Vec<_> = memory.iter().map(|region| (region.start_addr().0, region.len())).collect();
    out.write_all(&elf::head(&ranges, vcpus))?;
    // A copy, since the guest may run elsewhere than on its processors: in devices.
    let mut buffer = vec![0; 1 << 16];
    for (start, length) in ranges {
        let mut done = 0;
        while done < length {
            let count = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..count).unwrap_or_default();
            let read = vm_memory::Bytes::read_slice(memory, part, GuestAddress(start + done));
            read.map_err(io::Error::other)?;
            out.write_all(part)?;
            done += count as u64;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mote-dump-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn memory() -> GuestMemoryMmap {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x3000), (GuestAddress(0x10_0000), 0x2000)])
                .unwrap();
        memory.write_slice(b"low", GuestAddress(0x1000)).unwrap();
        memory.write_slice(b"high", GuestAddress(0x10_1ffc)).unwrap();
        memory
    }

    #[test]
    fn a_dump_is_a_core_file_with_notes_and_all_memory() {
        let directory = directory("whole");
        let to = DumpTo::Directory(directory.clone());
        let place = dump(&to, Some("demo"), &memory(), &[Registers::default(); 2]).unwrap();
        assert!(place.contains("/demo-20") && place.ends_with(".gcore"), "{place}");
        let bytes = std::fs::read(&place).unwrap();
        assert_eq!(&bytes[..4], b"\x7fELF");
        // Type core, for x86-64; one segment of notes and two of memory.
        assert_eq!((bytes[16], bytes[18], bytes[56]), (4, 62, 3));
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let segment = |number: usize| 64 + number * 56;
        let load = segment(2);
        assert_eq!((bytes[load], word(load + 24), word(load + 32)), (1, 0x10_0000, 0x2000));
        assert_eq!(
            word(load + 48),
            0,
            "an alignment, by which crash would take it for a dump of another kind"
        );
        let offset = usize::try_from(word(load + 8)).unwrap();
        assert_eq!(&bytes[offset + 0x1ffc..], b"high");
        let low = usize::try_from(word(segment(1) + 8)).unwrap();
        assert_eq!(&bytes[low + 0x1000..][..3], b"low");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn memory_that_was_never_used_takes_no_room() {
        let directory = directory("sparse");
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        memory.write_slice(b"used", GuestAddress(16 << 20)).unwrap();
        let place = dump(&DumpTo::Directory(directory.clone()), None, &memory, &[]).unwrap();
        let metadata = std::fs::metadata(&place).unwrap();
        let on_disk = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(metadata.len() >= 32 << 20 && on_disk < 1 << 20, "{} {on_disk}", metadata.len());
        let bytes = std::fs::read(&place).unwrap();
        assert_eq!(&bytes[bytes.len() - (16 << 20)..][..4], b"used");
        assert!(bytes[bytes.len() - (15 << 20)..].iter().all(|byte| *byte == 0));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_registers_are_where_gdb_looks_for_them() {
        let mut registers = Registers::default();
        (registers.general.rip, registers.general.rbx, registers.system.cr3) = (0x1234, 0xb, 0xc3);
        let notes = elf::notes(&[registers]);
        // Name "CORE", type NT_PRSTATUS; the registers begin at byte 112 of the structure.
        assert_eq!((notes[0], notes[4], notes[8], &notes[12..16]), (5, 80, 1, &b"CORE"[..]));
        let word = |at: usize| u64::from_le_bytes(notes[at..at + 8].try_into().unwrap());
        let first = 20 + 112;
        assert_eq!((word(first + 5 * 8), word(first + 16 * 8)), (0xb, 0x1234));
    }

    #[test]
    fn ten_dumps_of_one_second_are_enough() {
        let directory = directory("ten");
        for _ in 0..10 {
            create(&directory, "demo-20260101-000000").unwrap();
        }
        assert!(directory.join("demo-20260101-000000-9.gcore").exists());
        assert!(matches!(create(&directory, "demo-20260101-000000"), Err(Error::Exists(_))));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_command_gets_the_dump_and_its_failure_is_told() {
        let directory = directory("command");
        let path = directory.join("out");
        let to = DumpTo::Command(format!("head -c 4 > {}; cat > /dev/null", path.display()));
        dump(&to, None, &memory(), &[Registers::default()]).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"\x7fELF");
        let error =
            dump(&DumpTo::Command("cat > /dev/null; exit 3".into()), None, &memory(), &[]).unwrap_err();
        assert!(matches!(error, Error::Failed { .. }), "{error}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let to = DumpTo::Directory("/nowhere".into());
        let error = dump(&to, None, &memory(), &[]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/mote-guest-"), "{error}");
    }
}
