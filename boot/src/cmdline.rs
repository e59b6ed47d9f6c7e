//! The kernel's command line: mote's defaults first, the user's words last, and the user's words win.

use crate::{Error, Result};

/// A command line without a NUL byte. Its length is checked by [`crate::Plan::new`], against the kernel's own
/// limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// Joins the words of `defaults` and the text of `user`, which is kept as it is.
    ///
    /// A default whose parameter the user names too is left out, since a later word does not always undo an
    /// earlier one (`console=` adds up). As for the kernel, `-` and `_` in a name are the same, a word in
    /// double quotes may hold spaces, and what follows `--` goes to init.
    ///
    /// # Errors
    ///
    /// [`Error::CommandLineNul`] if there is a NUL byte in either.
    pub fn new(defaults: &[&str], user: &str) -> Result<Self> {
        let user = user.trim();
        let named: Vec<String> = words(user).take_while(|word| *word != "--").map(name).collect();
        let mut line: Vec<&str> =
            defaults.iter().copied().filter(|default| !named.contains(&name(default))).collect();
        if !user.is_empty() {
            line.push(user);
        }
        let line = line.join(" ");
        if line.contains('\0') { Err(Error::CommandLineNul) } else { Ok(Self(line)) }
    }

    /// The text, without a terminating zero.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its words.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> + Clone {
        words(&self.0)
    }
}

/// The words of a command line: split at white space outside double quotes.
fn words(line: &str) -> impl Iterator<Item = &str> + Clone {
    let mut is_quoted = false;
    line.split(move |letter: char| {
        is_quoted ^= letter == '"';
        letter.is_whitespace() && !is_quoted
    })
    .filter(|word| !word.is_empty())
}

/// The parameter that a word sets, in one spelling.
fn name(word: &str) -> String {
    let name = word.trim_matches('"').split('=').next().unwrap_or_default();
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(defaults: &[&str], user: &str) -> String {
        CommandLine::new(defaults, user).unwrap().as_str().to_owned()
    }

    #[test]
    fn the_users_words_come_last() {
        assert_eq!(
            line(&["console=hvc0", "quiet"], "  root=/dev/vda rw "),
            "console=hvc0 quiet root=/dev/vda rw"
        );
        assert_eq!(line(&["quiet"], ""), "quiet");
        assert_eq!(line(&[], ""), "");
    }

    #[test]
    fn a_default_that_the_user_names_is_left_out() {
        assert_eq!(line(&["console=hvc0", "quiet"], "console=ttyS0"), "quiet console=ttyS0");
        assert_eq!(line(&["no_timer_check", "quiet"], "no-timer-check"), "quiet no-timer-check");
        assert_eq!(line(&["quiet"], "loud=quiet"), "quiet loud=quiet");
    }

    #[test]
    fn words_within_quotes_and_for_init_name_no_parameter() {
        assert_eq!(line(&["quiet"], "a=\"b quiet c\""), "quiet a=\"b quiet c\"");
        assert_eq!(line(&["quiet"], "rw -- quiet"), "quiet rw -- quiet");
    }

    #[test]
    fn a_nul_byte_is_refused() {
        assert!(matches!(CommandLine::new(&[], "a\0b"), Err(Error::CommandLineNul)));
    }
}
