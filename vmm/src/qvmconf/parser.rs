//! From words to settings: options, their arguments, and the contexts that they belong to.

use devices::options::OptionError;

use super::options::{Act, CPU_OPTIONS, Context, LOAD_TYPES, OPTIONS, Row, load};
use super::{Error, Problem, Word};
use crate::config::Draft;

/// Puts what `words` say into `draft`, in their order.
pub(super) fn parse(words: Vec<Word>, draft: &mut Draft) -> Result<(), Error> {
    if let Some(word) = words.iter().find(|word| word.text.contains("$asinfo_")) {
        let reason = "the host has no QNX system page";
        return Err(Problem::Unsupported { option: word.text.clone(), reason }.at(&word.origin));
    }
    let mut parser = Parser { words: &words, context: None };
    while let Some((word, rest)) = parser.words.split_first() {
        parser.words = rest;
        parser.option(word, draft)?;
        draft.is_begun = true;
    }
    Ok(())
}

struct Parser<'a> {
    /// The words to come.
    words: &'a [Word],
    context: Option<Context>,
}

fn find<'a>(rows: &'a [Row], word: &Word) -> Option<&'a Row> {
    rows.iter().find(|row| row.name == word.text)
}

impl<'a> Parser<'a> {
    /// Does what the option `word` and its arguments ask for.
    fn option(&mut self, word: &'a Word, draft: &mut Draft) -> Result<(), Error> {
        if self.context == Some(Context::Vdev) && self.vdev_option(word, draft)? {
            return Ok(());
        }
        if self.context == Some(Context::Cpu)
            && let Some(row) = find(CPU_OPTIONS, word)
        {
            return self.act(row, word, draft);
        }
        if let Some(row) = find(OPTIONS, word) {
            return self.act(row, word, draft);
        }
        if let Some(next) = self.words.first()
            && matches!(next.text.as_str(), "load" | "pass")
        {
            return self.typed(word, next, draft);
        }
        Err(self.unknown(word, draft).at(&word.origin))
    }

    /// Tries `word` as an option of the vdev that is open.
    fn vdev_option(&mut self, word: &'a Word, draft: &mut Draft) -> Result<bool, Error> {
        let Some(vdev) = draft.vdevs.last_mut() else { return Ok(false) };
        let Some(help) = vdev.options.help(&word.text) else { return Ok(false) };
        let count = match self.words.first() {
            // One of the words in the brackets, or the next option.
            Some(next) if help.is_value_optional() => {
                help.value.trim_matches(['[', ']']).split('|').filter(|value| *value == next.text).count()
            }
            _ if help.is_value_optional() => 0,
            _ => help.value.split_whitespace().count(),
        };
        let values = self.take(word, count, help.value)?;
        let value: Vec<&str> = values.iter().map(|value| value.text.as_str()).collect();
        let value = (!value.is_empty()).then(|| value.join(" "));
        let set = vdev.options.set(&word.text, value.as_deref());
        set.map_err(|error| Problem::Vdev(error).at(&word.origin))?;
        vdev.said.push(Some(values.first().unwrap_or(word).origin.clone()));
        Ok(true)
    }

    fn act(&mut self, row: &Row, word: &'a Word, draft: &mut Draft) -> Result<(), Error> {
        let count = match (row.name, self.words.first()) {
            // A question instead of a variable.
            ("set", Some(next)) if next.text == "?" => 1,
            _ => row.count(),
        };
        let (act, context) = match row.act {
            Act::Refuse(reason) => {
                return Err(Problem::Unsupported { option: word.text.clone(), reason }.at(&word.origin));
            }
            Act::Load => {
                let words = self.take(word, 1, row.arguments)?;
                return words.iter().try_for_each(|file| {
                    load(draft, LOAD_TYPES[0].1, file).map_err(|it| it.at(&file.origin))
                });
            }
            Act::Set(act) => (act, self.context),
            Act::Open(context, act) => (act, Some(context)),
        };
        let words = self.take(word, count, row.arguments)?;
        let place = words.first().unwrap_or(word);
        act(draft, words).map_err(|problem| problem.at(&place.origin))?;
        self.context = context;
        Ok(())
    }

    /// `TYPE load FILE`; `word` is the type, and `next` what follows it.
    fn typed(&mut self, word: &'a Word, next: &'a Word, draft: &mut Draft) -> Result<(), Error> {
        let reason = match (next.text.as_str(), word.text.as_str()) {
            ("pass", _) => "there is no pass-through of the host's devices",
            (_, "fdt") => "device trees are ARM's; a PC's guest has ACPI",
            _ => "",
        };
        if !reason.is_empty() {
            let option = format!("{} {}", word.text, next.text);
            return Err(Problem::Unsupported { option, reason }.at(&word.origin));
        }
        let Some((_, kind)) = LOAD_TYPES.into_iter().find(|(name, _)| *name == word.text) else {
            let names = LOAD_TYPES.map(|(name, _)| name);
            let hint = devices::options::did_you_mean(&word.text, names);
            let problem = format!("a file to load is of type initrd, data or acpi, or of none{hint}");
            let argument = word.text.clone();
            return Err(Problem::Argument { option: "load", argument, problem }.at(&word.origin));
        };
        self.words = self.words.get(1..).unwrap_or_default();
        let arguments = find(OPTIONS, next).map_or("FILE", |row| row.arguments);
        let words = self.take(next, 1, arguments)?;
        words.iter().try_for_each(|file| load(draft, kind, file).map_err(|it| it.at(&file.origin)))
    }

    /// The next `count` words.
    fn take(&mut self, option: &Word, count: usize, arguments: &'static str) -> Result<&'a [Word], Error> {
        match self.words.split_at_checked(count) {
            Some((taken, rest)) => {
                self.words = rest;
                Ok(taken)
            }
            None => Err(Problem::NoArgument { option: option.text.clone(), arguments }.at(&option.origin)),
        }
    }

    fn unknown(&self, word: &Word, draft: &Draft) -> Problem {
        let text = word.text.clone();
        if text.starts_with('@') {
            let reason = "files are named on the command line, several if need be";
            return Problem::Unsupported { option: text, reason };
        }
        let vdev = draft.vdevs.last().filter(|_| self.context == Some(Context::Vdev));
        if let Some(error @ OptionError::AbsentOption { .. }) = vdev.map(|vdev| vdev.options.unknown(&text)) {
            return Problem::Vdev(error);
        }
        if self.context != Some(Context::Cpu) && find(CPU_OPTIONS, word).is_some() {
            return Problem::Elsewhere { word: text, context: "cpu" };
        }
        let is_common = devices::KINDS.iter().any(|kind| kind.all_options().any(|help| help.name == text));
        match vdev {
            None if is_common => Problem::Elsewhere { word: text, context: "vdev" },
            vdev => Problem::Unknown { word: text, vdev: vdev.map(|vdev| vdev.options.kind.clone()) },
        }
    }
}
