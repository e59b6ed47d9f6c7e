//! The files that a guest is booted from: opened and measured once, read straight into guest memory once.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, Builder};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::{Error, Result};

/// Bytes of stack for a thread that reads. The usual 2 MiB may become one large page, which the C library keeps.
pub(crate) const STACK: usize = 128 << 10;

/// A regular file of known length.
#[derive(Debug)]
pub(crate) struct Input {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Input {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| file_error("open", path, source))?;
        Self::read(file, path)
    }

    pub(crate) fn read(file: File, path: &Path) -> Result<Self> {
        let metadata = file.metadata().map_err(|source| file_error("read", path, source))?;
        if !metadata.is_file() {
            return Err(Error::NotRegular { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file, length: metadata.len() })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The first bytes of the file, as many as there are of `N`; the rest is zero.
    pub(crate) fn head<const N: usize>(&self) -> Result<[u8; N]> {
        let mut head = [0; N];
        let known = usize::try_from(self.length).unwrap_or(N).min(N);
        if let Some(part) = head.get_mut(..known) {
            self.file.read_exact_at(part, 0).map_err(|source| file_error("read", &self.path, source))?;
        }
        Ok(head)
    }

    /// `N` bytes at `offset`.
    pub(crate) fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// `length` bytes at `offset`. The caller knows that this is not too much for the host.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.read_exact(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn read_exact(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|source| file_error("read", &self.path, source))
    }

    /// `length` bytes at `offset`, to be read one after the other. They end early where the file does.
    pub(crate) fn part(&self, offset: u64, length: u64) -> Part<'_> {
        Part { file: &self.file, offset, left: length }
    }

    /// Reads `length` bytes at `offset` of the file into guest memory at `address`, without a copy in between. Two threads
    /// do it where there is much: most of the time goes into guest memory that is touched for the first time.
    pub(crate) fn load(
        &self,
        offset: u64,
        length: u64,
        memory: &GuestMemoryMmap,
        address: u64,
    ) -> Result<()> {
        /// Each large page is touched by one of them.
        const LARGE_PAGE: u64 = 2 << 20;
        let other = if length < 4 * LARGE_PAGE { None } else { self.reopen() };
        let middle = address.saturating_add(length / 2).checked_next_multiple_of(LARGE_PAGE);
        let (Some(other), Some(middle)) = (other, middle) else {
            return self.load_by(&self.file, offset, length, memory, address);
        };
        let lower = middle.saturating_sub(address);
        let load_upper = |file: &File| {
            let offset = offset.saturating_add(lower);
            self.load_by(file, offset, length.saturating_sub(lower), memory, middle)
        };
        thread::scope(|scope| {
            let started = Builder::new()
                .name("reader".into())
                .stack_size(STACK)
                .spawn_scoped(scope, || load_upper(&other));
            self.load_by(&self.file, offset, lower, memory, address)?;
            match started {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // The host had none to spare.
                Err(_) => load_upper(&self.file),
            }
        })
    }

    /// The same file with a position of its own, where the host has `/proc`.
    fn reopen(&self) -> Option<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).ok()
    }

    fn load_by(
        &self,
        mut file: &File,
        offset: u64,
        length: u64,
        memory: &GuestMemoryMmap,
        address: u64,
    ) -> Result<()> {
        file.seek(SeekFrom::Start(offset)).map_err(|source| file_error("read", &self.path, source))?;
        let mut done: u64 = 0;
        while done < length {
            let at = GuestAddress(address.saturating_add(done));
            let count = usize::try_from(length.saturating_sub(done)).unwrap_or(usize::MAX);
            match memory.read_volatile_from(at, &mut file, count) {
                Ok(0) => {
                    return Err(Error::Truncated {
                        path: self.path.clone(),
                        expected: self.length,
                        actual: offset.saturating_add(done),
                    });
                }
                Ok(read) => done = done.saturating_add(u64::try_from(read).unwrap_or(u64::MAX)),
                Err(GuestMemoryError::IOError(cause)) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(GuestMemoryError::IOError(cause)) => return Err(file_error("read", &self.path, cause)),
                Err(source) => return Err(Error::Memory { what: "a file", address: at.0, source }),
            }
        }
        Ok(())
    }
}

/// A part of a file.
pub(crate) struct Part<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let read = self.file.read_at(bytes.get_mut(..room).unwrap_or_default(), self.offset)?;
        let count = u64::try_from(read).unwrap_or(u64::MAX);
        self.offset = self.offset.saturating_add(count);
        self.left = self.left.saturating_sub(count);
        Ok(read)
    }
}

pub(crate) fn file_error(attempt: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { attempt, path: path.to_owned(), source }
}

/// An initial ramdisk: any file, its content is the kernel's business.
#[derive(Debug)]
pub struct Initrd(pub(crate) Input);

impl Initrd {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if the host refuses, [`Error::NotRegular`] and [`Error::EmptyInitrd`] as they say.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(Input::open(path)?)
    }

    /// Takes a file that is open already; `path` is its name in errors.
    ///
    /// # Errors
    ///
    /// As [`Initrd::open`].
    pub fn read(file: File, path: &Path) -> Result<Self> {
        Self::new(Input::read(file, path)?)
    }

    fn new(input: Input) -> Result<Self> {
        match input.length() {
            0 => Err(Error::EmptyInitrd { path: input.path() }),
            _ => Ok(Self(input)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempfile::TempFile;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
    }

    fn file(bytes: &[u8]) -> TempFile {
        let file = TempFile::new().unwrap();
        file.as_file().write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn a_part_of_a_file_arrives_at_its_address_and_nowhere_else() {
        let (file, memory) = (file(b"0123456789"), memory());
        Input::open(file.as_path()).unwrap().load(2, 5, &memory, 0x1000).unwrap();
        let mut seen = [0; 7];
        memory.read_slice(&mut seen, GuestAddress(0xfff)).unwrap();
        assert_eq!(&seen, b"\x0023456\0");
    }

    #[test]
    fn a_large_file_is_read_by_two_and_arrives_whole() {
        let bytes: Vec<u8> = (0..9_u32 << 20).map(|index| (index % 251) as u8).collect();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let file = file(&bytes);
        let input = Input::open(file.as_path()).unwrap();
        input.load(3, bytes.len() as u64 - 5, &memory, 0x12_3456).unwrap();
        let mut seen = vec![0; bytes.len()];
        memory.read_slice(&mut seen, GuestAddress(0x12_3453)).unwrap();
        assert_eq!(seen[..3], [0; 3]);
        assert!(seen[3..seen.len() - 2] == bytes[3..bytes.len() - 2]);
        assert_eq!(seen[seen.len() - 2..], [0; 2]);
        file.as_file().set_len(8 << 20).unwrap();
        let error = input.load(0, 9 << 20, &memory, 0).unwrap_err();
        assert!(matches!(error, Error::Truncated { actual, .. } if actual == 8 << 20), "{error}");
    }

    #[test]
    fn a_file_that_shrank_after_it_was_opened_is_truncated() {
        let file = file(b"0123456789");
        let input = Input::open(file.as_path()).unwrap();
        file.as_file().set_len(4).unwrap();
        let error = input.load(0, 10, &memory(), 0).unwrap_err();
        assert!(matches!(error, Error::Truncated { expected: 10, actual: 4, .. }), "{error}");
    }

    #[test]
    fn a_load_outside_guest_memory_is_an_error() {
        let file = file(&[1; 64]);
        let error = Input::open(file.as_path()).unwrap().load(0, 64, &memory(), u64::MAX).unwrap_err();
        assert!(matches!(error, Error::Memory { .. }), "{error}");
    }

    #[test]
    fn the_head_of_a_short_file_ends_in_zeros() {
        let file = file(b"ab");
        assert_eq!(&Input::open(file.as_path()).unwrap().head::<4>().unwrap(), b"ab\0\0");
    }

    #[test]
    fn a_missing_file_is_named_in_the_error() {
        let error = Initrd::open(Path::new("/does/not/exist")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /does/not/exist");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn an_initrd_is_a_regular_file_with_bytes_in_it() {
        assert!(matches!(Initrd::open(Path::new("/")).unwrap_err(), Error::NotRegular { .. }));
        assert!(matches!(Initrd::open(file(b"").as_path()).unwrap_err(), Error::EmptyInitrd { .. }));
        assert_eq!(Initrd::open(file(b"abc").as_path()).unwrap().0.length(), 3);
    }
}
