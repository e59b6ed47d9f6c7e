//! Unpacked kernels, kept in a directory from one guest to the next.
//!
//! An entry is named by the digest of the packed payload, and holds what the payload unpacks to, laid out as
//! in memory, with its relocations (see `format.rs`): it is read straight into guest memory. Nobody waits
//! for anybody: entries appear under their name when they are whole, and who reads one while it is evicted
//! reads on. That the cache fails never keeps a guest from starting.

mod format;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, Builder};
use std::time::{Duration, SystemTime};

pub(crate) use format::Cached;
use rustix::process::geteuid;

use crate::input::{Input, Part, STACK, file_error};
use crate::kernel::Flat;
use crate::payload::Payload;
use crate::{Error, Result};

/// What follows an entry's digest in its name.
const ENTRY: &str = "kernel";
/// The same, while it is being written.
const UNFINISHED: &str = "tmp";
/// An unfinished entry that is older than this was left behind by somebody who was killed.
const ABANDONED: Duration = Duration::from_secs(60);
/// Write permission of everybody but the owner.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// The digits of a digest.
const DIGEST_DIGITS: usize = 64;

/// A directory of unpacked kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
    limit: u64,
}

impl Cache {
    /// How many bytes a cache holds at most, if nobody says otherwise.
    pub const DEFAULT_LIMIT: u64 = 512 << 20;

    /// A cache in `directory`, which is made when there is something to put in.
    #[must_use]
    pub fn open(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), limit: Self::DEFAULT_LIMIT }
    }

    /// The same with room for `limit` bytes. What was not used for the longest time is removed first.
    #[must_use]
    pub fn limited_to(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// The entry for `key`, if there is one that was written whole, by this version, for this key, by this
    /// user or root.
    pub(crate) fn lookup(&self, key: &Key) -> Result<Option<Cached>> {
        let path = self.path(key, ENTRY);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|source| file_error("open", &path, source))?,
        };
        let metadata = file.metadata().map_err(|source| file_error("read", &path, source))?;
        if !is_trusted(&metadata) {
            return Err(Error::CacheOwner { path });
        }
        // When it was used last decides how long it stays. Somebody else's may not be touched, and need not.
        let _ = file.set_modified(SystemTime::now());
        Cached::read(Input::read(file, &path)?, key)
    }

    /// Begins an entry for `key`. `None` if somebody else is writing the same.
    pub(crate) fn begin(&self, key: &Key) -> Result<Option<Draft<'_>>> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| file_error("create", &self.directory, source))?;
        self.sweep().map_err(|source| file_error("clear", &self.directory, source))?;
        let path = self.path(key, UNFINISHED);
        let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            opened => opened.map_err(|source| file_error("create", &path, source))?,
        };
        Ok(Some(Draft { cache: self, key: *key, file, path, failure: None, is_whole: false }))
    }

    /// Removes what was left behind.
    fn sweep(&self) -> io::Result<()> {
        for (_, modified, path) in self.files(UNFINISHED)? {
            if modified.elapsed().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Removes the oldest entries until there is room for `size` more bytes.
    fn make_room(&self, size: u64) -> io::Result<()> {
        let mut entries = self.files(ENTRY)?;
        entries.sort_by_key(|(_, modified, _)| *modified);
        let mut total = entries.iter().map(|(size, ..)| *size).fold(size, u64::saturating_add);
        for (size, _, path) in entries {
            if total <= self.limit {
                break;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => total = total.saturating_sub(size),
            }
        }
        Ok(())
    }

    /// Size, time of the last change and path of all files of a kind.
    fn files(&self, wanted: &str) -> io::Result<Vec<(u64, SystemTime, PathBuf)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            // It may have gone since.
            if kind(&path) == Some(wanted)
                && let Ok(metadata) = fs::metadata(&path)
            {
                files.push((metadata.len(), metadata.modified()?, path));
            }
        }
        Ok(files)
    }

    fn path(&self, key: &Key, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}", key.0.to_hex()))
    }
}

/// An entry that is being written. Dropped before it is whole it leaves nothing behind: else the next one would believe that
/// it is still being written.
pub(crate) struct Draft<'a> {
    cache: &'a Cache,
    key: Key,
    file: File,
    path: PathBuf,
    /// What went wrong first.
    failure: Option<io::Error>,
    is_whole: bool,
}

impl Draft<'_> {
    /// Takes bytes of the image, which are `offset` from its first one. What goes wrong is told at the end.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) {
        if self.failure.is_none() {
            self.failure = format::put(&self.file, offset, bytes).err();
        }
    }

    /// Makes it the entry for the kernel `flat`, whose image was put, if there is room for it.
    pub(crate) fn finish(mut self, flat: &Flat) -> Result<()> {
        let size = format::size(flat);
        if size > self.cache.limit {
            return Ok(());
        }
        let failed = |source| file_error("write", &self.path, source);
        // Nothing makes room for an entry that cannot be.
        self.failure.take().map_or(Ok(()), Err).map_err(failed)?;
        format::complete(&self.file, &self.key, flat).map_err(failed)?;
        let room = self.cache.make_room(size);
        room.map_err(|source| file_error("clear", &self.cache.directory, source))?;
        fs::rename(&self.path, self.cache.path(&self.key, ENTRY)).map_err(failed)?;
        // From now on another may write one of the old name.
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What a file in the directory is, by its name. `None` if it is not the cache's.
fn kind(path: &Path) -> Option<&'static str> {
    let digest = path.file_stem()?.to_str()?;
    let is_digest = digest.len() == DIGEST_DIGITS && digest.bytes().all(|digit| digit.is_ascii_hexdigit());
    let extension = path.extension()?.to_str()?;
    [ENTRY, UNFINISHED].into_iter().find(|kind| is_digest && *kind == extension)
}

/// Whether nobody else could have written it: an entry is run as a kernel without a look at its content.
fn is_trusted(metadata: &Metadata) -> bool {
    let owner = metadata.uid();
    (owner == geteuid().as_raw() || owner == 0) && metadata.mode() & WRITABLE_BY_OTHERS == 0
}

/// What names an entry: the BLAKE3 digest of the digests of a packed payload's halves. Nobody can make another payload
/// with the same one, so the kernel that somebody wants me to try cannot take the place of the one that I trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(blake3::Hash);

impl Key {
    /// Two threads digest a half each: one alone takes a good part of the time in which the entry is read.
    pub(crate) fn of(input: &Input, payload: &Payload) -> Result<Self> {
        let middle = payload.length / 2;
        let first = || digest(input.part(payload.offset, middle));
        let second = || {
            let rest = payload.length.saturating_sub(middle);
            digest(input.part(payload.offset.saturating_add(middle), rest))
        };
        let halves = thread::scope(|scope| {
            let other = Builder::new().name("digest".into()).stack_size(STACK).spawn_scoped(scope, second);
            let first = first()?;
            let second = match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // The host had none to spare.
                Err(_) => second(),
            };
            Ok([first, second?])
        });
        let [first, second] = halves.map_err(|source| file_error("read", &input.path(), source))?;
        let mut both = blake3::Hasher::new();
        both.update(first.as_bytes()).update(second.as_bytes());
        Ok(Self(both.finalize()))
    }
}

fn digest(mut part: Part<'_>) -> io::Result<blake3::Hash> {
    const PIECE: usize = 128 << 10;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        match part.read(&mut piece) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(size) => hasher.update(piece.get(..size).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
}
