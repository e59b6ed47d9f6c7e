//! Numbers of bytes and addresses as users write them: `512M`, `0x2000_0000` without the underscore, `0d655360`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A number of bytes, as `512M`, `4096` or `0x20000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// An address, a port or a length in a configuration: `0x1000`, `1m`, `0d4096`, `0`. Without prefix and suffix a number
/// could be meant in either base, so it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u64);

/// What is not a size.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    /// No number with one of the suffixes.
    #[error("a size is a number and a suffix K, M, G or T, such as 256M")]
    Form,
    /// More than 64 bits.
    #[error("this is more than can be addressed")]
    Overflow,
    /// A number that says nothing of its base.
    #[error("say whether this is hexadecimal or decimal: 0x, 0d or a suffix K, M, G or T")]
    Base,
}

impl SizeError {
    /// The text of the error.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Form => "a size is a number and a suffix K, M, G or T, such as 256M",
            Self::Overflow => "this is more than can be addressed",
            Self::Base => "say whether this is hexadecimal or decimal: 0x, 0d or a suffix K, M, G or T",
        }
    }
}

/// The suffixes, of either case, and the powers of two that they stand for.
const SUFFIXES: [(char, u32); 4] = [('k', 10), ('m', 20), ('g', 30), ('t', 40)];

/// The number, and whether its base is plain to see.
fn parse(text: &str) -> Result<(u64, bool), SizeError> {
    let lower = text.to_ascii_lowercase();
    let with_suffix =
        SUFFIXES.iter().find_map(|(letter, shift)| lower.strip_suffix(*letter).map(|rest| (rest, *shift)));
    let (digits, shift) = with_suffix.unwrap_or((&lower, 0));
    let (digits, radix, is_prefixed) = match (digits.strip_prefix("0x"), digits.strip_prefix("0d")) {
        (Some(digits), _) => (digits, 16, true),
        (None, Some(digits)) => (digits, 10, true),
        (None, None) => (digits, 10, false),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SizeError::Form);
    }
    let number = u64::from_str_radix(digits, radix).map_err(|_| SizeError::Overflow)?;
    let bytes = number.checked_mul(1 << shift).ok_or(SizeError::Overflow)?;
    Ok((bytes, is_prefixed || with_suffix.is_some() || bytes == 0))
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        parse(text).map(|(bytes, _)| Self(bytes))
    }
}

impl FromStr for Number {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        match parse(text)? {
            (bytes, true) => Ok(Self(bytes)),
            (_, false) => Err(SizeError::Base),
        }
    }
}

impl fmt::Display for Size {
    /// The number with the largest suffix that leaves it whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        let suffix = SUFFIXES.iter().rev().find(|(_, shift)| bytes != 0 && bytes.is_multiple_of(1 << shift));
        match suffix {
            Some((letter, shift)) => write!(f, "{}{}", bytes >> shift, letter.to_ascii_uppercase()),
            None => write!(f, "{bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes_of_either_case() {
        for (text, bytes) in [
            ("256M", 256 << 20),
            ("5g", 5 << 30),
            ("64k", 64 << 10),
            ("4096", 4096),
            ("0x10000000", 1 << 28),
            ("0d4096", 4096),
            ("0xfK", 15 << 10),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "1.5G", "-1", "+1", "12 M", "0x", "0d", "M256", "1MB", "ä"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Form), "{text}");
        }
        for text in ["99999999999999999999", "99999999T"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Overflow), "{text}");
        }
    }

    #[test]
    fn a_number_shows_its_base() {
        for (text, number) in [("0x20", 0x20), ("0d20", 20), ("1m", 1 << 20), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Number(number)), "{text}");
        }
        assert_eq!("20".parse::<Number>(), Err(SizeError::Base));
    }

    #[test]
    fn a_size_is_printed_as_short_as_it_can_be() {
        for (bytes, text) in
            [(256 << 20, "256M"), (5 << 30, "5G"), (0xa_0000, "640K"), (1000, "1000"), (0, "0")]
        {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
