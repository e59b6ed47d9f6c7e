//! What a `hostdev` option says: which way, and where to.

use std::path::PathBuf;

use crate::stream::Way;

/// One `hostdev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// `None`: both ways.
    pub(crate) way: Option<Way>,
    pub(crate) place: Place,
}

/// Where the guest's bytes go, or come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Standard input and output.
    Stdio,
    /// A character device, a FIFO, a file, or a socket that listens.
    Path(PathBuf),
    /// A file that is kept and grows.
    Append(PathBuf),
    /// The standard input of a command.
    Command(String),
    /// A new pseudo-terminal, and a symbolic link to it.
    Pty(Option<PathBuf>),
    /// A Unix socket of ours.
    Listen(PathBuf),
    /// A Unix socket of somebody else.
    Connect(PathBuf),
}

impl Spec {
    /// Reads the value of a `hostdev` option, or says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix(">>") {
            return Ok(Self { way: Some(Way::Out), place: Place::Append(some(path)?) });
        }
        let (way, rest) = match text.split_at_checked(1) {
            Some(("<", rest)) => (Some(Way::In), rest),
            Some((">", rest)) => (Some(Way::Out), rest),
            _ => (None, text),
        };
        let quoted = rest.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(rest);
        if let Some(command) = quoted.strip_prefix('|') {
            return match way {
                Some(Way::Out) if !command.trim().is_empty() => {
                    Ok(Self { way, place: Place::Command(command.to_owned()) })
                }
                Some(Way::Out) => Err("there is no command behind the |"),
                _ => Err("a command takes output and nothing else: write >\"|command\""),
            };
        }
        let both = |place| match way {
            None => Ok(Self { way, place }),
            Some(_) => Err("this goes both ways: write it without < or >"),
        };
        if rest == "-" {
            return Ok(Self { way, place: Place::Stdio });
        }
        if rest == "pty" {
            return both(Place::Pty(None));
        }
        match rest.split_once(':') {
            Some(("pty", link)) => both(Place::Pty(Some(some(link)?))),
            Some(("unix", path)) => both(Place::Listen(some(path)?)),
            Some(("unix-connect", path)) => both(Place::Connect(some(path)?)),
            _ => Ok(Self { way, place: Place::Path(some(rest)?) }),
        }
    }
}

fn some(path: &str) -> Result<PathBuf, &'static str> {
    if path.is_empty() { Err("a path is missing") } else { Ok(path.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qnx_forms_and_ours_are_understood() {
        let cases = [
            ("-", None, Place::Stdio),
            (">-", Some(Way::Out), Place::Stdio),
            ("</dev/null", Some(Way::In), Place::Path("/dev/null".into())),
            (">log", Some(Way::Out), Place::Path("log".into())),
            (">>log", Some(Way::Out), Place::Append("log".into())),
            ("/dev/ttyS0", None, Place::Path("/dev/ttyS0".into())),
            (">\"|tee log\"", Some(Way::Out), Place::Command("tee log".into())),
            (">|tee log", Some(Way::Out), Place::Command("tee log".into())),
            ("pty", None, Place::Pty(None)),
            ("pty:/tmp/link", None, Place::Pty(Some("/tmp/link".into()))),
            ("unix:/tmp/s", None, Place::Listen("/tmp/s".into())),
            ("unix-connect:/tmp/s", None, Place::Connect("/tmp/s".into())),
        ];
        for (text, way, place) in cases {
            assert_eq!(Spec::parse(text), Ok(Spec { way, place }), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "<", ">", ">>", "|tee", "<|tee", ">|", ">\"|\"", ">pty", "<unix:/s", "unix:", "pty:"]
        {
            assert!(Spec::parse(text).is_err(), "{text}");
        }
    }
}
