//! The escape key: what a person types between it and the next key is for mote, everything else is for the guest.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::terminal::Key;

/// The key that leads to the menu: a control character, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EscapeKey(Option<u8>);

/// What is no escape key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("an escape key is written ctrl-a, ^a or none; a to z and one of @ [ ] \\ ^ _ are possible")]
pub struct NoKey;

impl EscapeKey {
    /// No key: all that is typed goes to the guest.
    pub const NONE: Self = Self(None);

    /// The character that it sends.
    pub fn byte(self) -> Option<u8> {
        self.0
    }
}

impl Default for EscapeKey {
    /// Ctrl-a.
    fn default() -> Self {
        Self(Some(1))
    }
}

impl FromStr for EscapeKey {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let lower = text.to_ascii_lowercase();
        if lower == "none" {
            return Ok(Self::NONE);
        }
        let key = ["ctrl-", "c-", "^"].iter().find_map(|prefix| lower.strip_prefix(prefix)).ok_or(NoKey)?;
        match *key.as_bytes() {
            [key @ (b'a'..=b'z' | b'@' | b'[' | b']' | b'\\' | b'^' | b'_')] => Ok(Self(Some(key & 0x1f))),
            _ => Err(NoKey),
        }
    }
}

impl fmt::Display for EscapeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(byte @ 1..=26) => write!(f, "Ctrl-{}", char::from(byte | 0x60)),
            Some(byte) => write!(f, "Ctrl-{}", char::from(byte | 0x40)),
            None => f.write_str("none"),
        }
    }
}

/// The state of the filter: whether the escape key was the last one.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    key: Option<u8>,
    is_escaped: bool,
}

impl Escape {
    pub(crate) fn new(key: EscapeKey) -> Self {
        Self { key: key.byte(), is_escaped: false }
    }

    /// Passes what is typed on to `guest`, and returns what was for mote. A key that is not on the menu goes to the
    /// guest, and the escape key before it too, so nothing that was typed is lost.
    pub(crate) fn filter(&mut self, typed: &[u8], guest: &mut impl Extend<u8>) -> Vec<Key> {
        let Some(escape) = self.key else {
            guest.extend(typed.iter().copied());
            return Vec::new();
        };
        let mut keys = Vec::new();
        for &byte in typed {
            if !std::mem::take(&mut self.is_escaped) {
                match byte == escape {
                    true => self.is_escaped = true,
                    false => guest.extend([byte]),
                }
                continue;
            }
            match byte {
                b'x' => keys.push(Key::Quit),
                b'r' => keys.push(Key::Reset),
                b'z' => keys.push(Key::Suspend),
                b'?' | b'h' => keys.push(Key::Help),
                b'a' => guest.extend([escape]),
                _ if byte == escape => guest.extend([escape]),
                _ => guest.extend([escape, byte]),
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Key>) {
        let mut escape = Escape::new(EscapeKey::default());
        let mut guest = Vec::new();
        let keys = chunks.iter().flat_map(|chunk| escape.filter(chunk, &mut guest)).collect();
        (guest, keys)
    }

    #[test]
    fn the_keys_of_the_menu_are_for_mote() {
        let expected = vec![Key::Quit, Key::Reset, Key::Suspend, Key::Help];
        assert_eq!(filter(&[b"ab\x01xcd\x01r\x01z\x01?e"]), (b"abcde".to_vec(), expected));
    }

    #[test]
    fn the_two_keys_may_come_apart() {
        assert_eq!(filter(&[b"ab\x01", b"xcd"]), (b"abcd".to_vec(), vec![Key::Quit]));
    }

    #[test]
    fn the_escape_key_itself_can_be_sent() {
        assert_eq!(filter(&[b"\x01a-\x01\x01-"]), (b"\x01-\x01-".to_vec(), vec![]));
    }

    #[test]
    fn what_is_not_on_the_menu_reaches_the_guest_whole() {
        assert_eq!(filter(&[b"\x01q\x01\x03"]), (b"\x01q\x01\x03".to_vec(), vec![]));
    }

    #[test]
    fn without_an_escape_key_everything_is_for_the_guest() {
        let (mut escape, mut guest) = (Escape::new(EscapeKey::NONE), Vec::new());
        assert!(escape.filter(b"\x01x\x00", &mut guest).is_empty());
        assert_eq!(guest, b"\x01x\x00");
    }

    #[test]
    fn keys_are_written_as_people_write_them() {
        for (text, byte, name) in [("ctrl-a", 1, "Ctrl-a"), ("^]", 0x1d, "Ctrl-]"), ("C-T", 20, "Ctrl-t")] {
            let key: EscapeKey = text.parse().unwrap();
            assert_eq!((key.byte(), key.to_string().as_str()), (Some(byte), name));
        }
        assert_eq!("none".parse(), Ok(EscapeKey::NONE));
        for text in ["", "a", "ctrl-", "ctrl-aa", "^1", "ctrl-é"] {
            assert_eq!(text.parse::<EscapeKey>(), Err(NoKey), "{text}");
        }
    }
}
