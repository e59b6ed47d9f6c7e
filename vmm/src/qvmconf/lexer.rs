//! From text to words.
//!
//! Words are separated by white space, of which line breaks are a kind. A `#` at the start of a word begins a comment
//! that ends with the line. Quotes may be anywhere in a word and keep white space and `#` in it; there `\"` and `\\`
//! stand for the second character, and a backslash at the end of a line lets the word go on in the next.

use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

use super::{Error, Origin, Problem, Word};

/// The words of `text`, which is the content of the file `path`.
pub(super) fn words(path: &str, text: &str) -> Result<Vec<Word>, Error> {
    let mut lexer = Lexer { path: path.into(), line: 1, letters: text.chars().peekable() };
    let mut words = Vec::new();
    while let Some(word) = lexer.word()? {
        words.push(word);
    }
    Ok(words)
}

struct Lexer<'a> {
    path: Arc<str>,
    line: u32,
    letters: Peekable<Chars<'a>>,
}

impl Lexer<'_> {
    fn origin(&self) -> Origin {
        Origin::File { path: Arc::clone(&self.path), line: self.line }
    }

    /// The next letter, counting lines. Lines may end as on Windows.
    fn next(&mut self) -> Option<char> {
        let letter = self.letters.next()?;
        if letter == '\n' {
            self.line = self.line.saturating_add(1);
        }
        Some(letter)
    }

    /// Passes over white space, comments, and backslashes at the ends of lines.
    fn skip(&mut self) {
        while let Some(&letter) = self.letters.peek() {
            match letter {
                '#' => while self.letters.next_if(|letter| *letter != '\n').is_some() {},
                '\\' if self.ends_line() => drop(self.next()),
                _ if letter.is_whitespace() || letter == '\u{feff}' => drop(self.next()),
                _ => return,
            }
        }
    }

    /// Whether what comes is a backslash and the end of its line.
    fn ends_line(&self) -> bool {
        let mut ahead = self.letters.clone().skip(1);
        matches!((ahead.next(), ahead.next()), (Some('\n') | None, _) | (Some('\r'), Some('\n')))
    }

    fn word(&mut self) -> Result<Option<Word>, Error> {
        self.skip();
        let origin = self.origin();
        let mut text = String::new();
        let mut is_word = false;
        while let Some(&letter) = self.letters.peek() {
            if letter.is_whitespace() {
                break;
            }
            is_word = true;
            match self.next() {
                Some('"') => self.quoted(&mut text)?,
                Some(letter) if letter.is_control() => {
                    return Err(Problem::Control(letter).at(&self.origin()));
                }
                Some(letter) => text.push(letter),
                None => {}
            }
        }
        Ok(is_word.then_some(Word { text, origin }))
    }

    /// What stands between quotes, of which the first is behind us.
    fn quoted(&mut self, text: &mut String) -> Result<(), Error> {
        let start = self.origin();
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('\\') => match self.letters.peek() {
                    Some('"' | '\\') => text.extend(self.next()),
                    Some('\n') => drop(self.next()),
                    Some('\r') => {
                        self.next();
                        self.letters.next_if_eq(&'\n').inspect(|_| self.line = self.line.saturating_add(1));
                    }
                    _ => text.push('\\'),
                },
                Some('\n' | '\r') | None => return Err(Problem::OpenQuote.at(&start)),
                Some('\0') => return Err(Problem::Control('\0').at(&start)),
                Some(letter) => text.push(letter),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        words("f", text).unwrap().into_iter().map(|word| word.text).collect()
    }

    fn lines(text: &str) -> Vec<String> {
        words("f", text).unwrap().into_iter().map(|word| word.origin.to_string()).collect()
    }

    #[test]
    fn line_breaks_and_comments_separate_words_as_spaces_do() {
        assert_eq!(texts("cpu # the first\n\n sched\t8\r\nram 32m"), ["cpu", "sched", "8", "ram", "32m"]);
        assert_eq!(lines("a\n# b\n\nc d\n"), ["[f:1]", "[f:4]", "[f:4]"]);
        assert_eq!(texts(""), [""; 0]);
    }

    #[test]
    fn a_hash_within_a_word_is_a_letter() {
        assert_eq!(texts("load vm#1 #2"), ["load", "vm#1"]);
    }

    #[test]
    fn quotes_keep_spaces_and_may_be_within_a_word() {
        assert_eq!(texts(r#"cmdline "a b # c" x>"|tee l""#), ["cmdline", "a b # c", "x>|tee l"]);
        assert_eq!(texts(r#""" "a\"b" "c\\" "d\n""#), ["", "a\"b", "c\\", "d\\n"]);
    }

    #[test]
    fn a_backslash_at_the_end_of_a_line_continues_it() {
        assert_eq!(texts("cmdline \"a \\\n b\" \\\n ram 1m"), ["cmdline", "a  b", "ram", "1m"]);
        assert_eq!(lines("\"a\\\n\\\r\nb\"\nc"), ["[f:1]", "[f:4]"]);
    }

    #[test]
    fn a_quote_that_is_not_closed_is_shown_where_it_begins() {
        for text in ["\n\"a", "\n\"a\nb\"", "\n\"a\\"] {
            let error = words("f", text).unwrap_err().to_string();
            assert!(error.starts_with("[f:2] a quote is not closed"), "{error}");
        }
    }
}
