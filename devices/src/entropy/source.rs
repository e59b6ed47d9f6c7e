//! Where random bytes come from: a device, a pipe or a file of the host, opened at the start or when it is first needed,
//! and read without ever waiting.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, stat};

/// After how long a source that is not there yet is looked for again.
const RETRY: Duration = Duration::from_millis(100);

/// How long to wait for a source that is not there when the guest needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// So long; 0 is exactly one try.
    For(Duration),
    /// For ever.
    Forever,
}

impl Patience {
    /// Reads `num|forever`.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        match text.parse::<u32>() {
            _ if text == "forever" => Ok(Self::Forever),
            Ok(seconds) => Ok(Self::For(Duration::from_secs(seconds.into()))),
            Err(_) => Err("a delay is a number of seconds, or forever"),
        }
    }
}

/// A source, open or not yet.
pub(super) struct Source {
    path: PathBuf,
    file: Option<File>,
    patience: Patience,
    /// When it was first missed.
    missed: Option<Instant>,
}

/// What came of looking for a source.
pub(super) enum Looked<'a> {
    /// It is there.
    Open(&'a mut File),
    /// Look again after this time.
    Wait(Duration),
    /// Patience is at its end.
    Gone(io::Error),
}

impl Source {
    /// A source that is open.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(open(path)?, path))
    }

    /// A file that is open; `path` is its name in messages.
    pub(super) fn of(file: File, path: &Path) -> Self {
        Self { path: path.to_owned(), file: Some(file), patience: Patience::Forever, missed: None }
    }

    /// A source that is opened when it is first needed.
    pub(super) fn delayed(path: &Path, patience: Patience) -> Self {
        Self { path: path.to_owned(), file: None, patience, missed: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it ends some day, as a regular file does.
    pub(super) fn ends(&self) -> bool {
        let kind = self.file.as_ref().and_then(|file| fstat(file).ok());
        kind.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    }

    /// The open file, which is looked for at `now` if it is not open.
    pub(super) fn look(&mut self, now: Instant) -> Looked<'_> {
        let file = match self.file.take().map_or_else(|| open(&self.path), Ok) {
            Ok(file) => file,
            Err(error) => {
                let since = now.saturating_duration_since(*self.missed.get_or_insert(now));
                return match self.patience {
                    Patience::For(wait) if since >= wait => Looked::Gone(error),
                    Patience::For(wait) => Looked::Wait(RETRY.min(wait.saturating_sub(since))),
                    Patience::Forever => Looked::Wait(RETRY),
                };
            }
        };
        Looked::Open(self.file.insert(file))
    }
}

/// Opens `path` for reading so that neither this nor a read waits.
fn open(path: &Path) -> io::Result<File> {
    // A pipe that is open for writing too has no end when its writers go.
    let access = match FileType::from_raw_mode(stat(path)?.st_mode) {
        FileType::Fifo => OFlags::RDWR,
        FileType::Directory => return Err(ErrorKind::IsADirectory.into()),
        _ => OFlags::RDONLY,
    };
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("mote-source-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_delayed_source_is_waited_for_so_long() {
        let path = path("late");
        let now = Instant::now();
        let mut source = Source::delayed(&path, Patience::For(Duration::from_secs(2)));
        assert!(matches!(source.look(now), Looked::Wait(RETRY)));
        let later = now + Duration::from_millis(1950);
        assert!(matches!(source.look(later), Looked::Wait(wait) if wait == Duration::from_millis(50)));
        assert!(matches!(source.look(now + Duration::from_secs(2)), Looked::Gone(_)));
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(source.look(later), Looked::Open(_)));
        std::fs::remove_file(path).unwrap();
        assert!(matches!(source.look(later), Looked::Open(_)), "it stays open");
    }

    #[test]
    fn no_patience_is_one_try_and_endless_patience_never_ends() {
        let now = Instant::now();
        let mut source = Source::delayed(Path::new("/nowhere"), Patience::parse("0").unwrap());
        assert!(matches!(source.look(now), Looked::Gone(_)));
        let mut source = Source::delayed(Path::new("/nowhere"), Patience::parse("forever").unwrap());
        assert!(matches!(source.look(now), Looked::Wait(_)));
        assert!(matches!(source.look(now + Duration::from_secs(1 << 20)), Looked::Wait(_)));
        assert!(Patience::parse("soon").is_err() && Patience::parse("-1").is_err());
    }

    #[test]
    fn a_pipe_without_writers_is_empty_and_not_at_its_end() {
        let path = path("pipe");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let mut source = Source::open(&path).unwrap();
        assert!(!source.ends());
        let Looked::Open(file) = source.look(Instant::now()) else { panic!() };
        assert_eq!(file.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::WouldBlock);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_directory_is_no_source_and_a_file_is_one_with_an_end() {
        assert!(Source::open(Path::new("/")).is_err());
        assert!(Source::open(Path::new("/proc/self/exe")).unwrap().ends());
        assert!(!Source::open(Path::new("/dev/urandom")).unwrap().ends());
    }
}
