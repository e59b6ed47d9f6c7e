//! The facts about a run that are known only once it runs, as JSON in a file (qvm: `/dev/qvm/<system>/env`).

use std::fmt::{self, Write};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A value of JSON (RFC 8259).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number, which readers may keep as a floating-point one: addresses are texts.
    Number(u64),
    /// A text.
    Text(String),
    /// Values.
    List(Vec<Json>),
    /// Values with names.
    Object(Vec<(&'static str, Json)>),
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl<T: Into<Json>> From<Option<T>> for Json {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl FromIterator<Json> for Json {
    fn from_iter<I: IntoIterator<Item = Json>>(values: I) -> Self {
        Self::List(values.into_iter().collect())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, 0)
    }
}

impl Json {
    fn print(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(text) => quote(f, text),
            Self::List(values) => {
                let values = values.iter().map(|value| (None, value));
                items(f, depth, ('[', ']'), values)
            }
            Self::Object(values) => {
                let values = values.iter().map(|(name, value)| (Some(*name), value));
                items(f, depth, ('{', '}'), values)
            }
        }
    }
}

fn items<'a>(
    f: &mut fmt::Formatter<'_>,
    depth: usize,
    (open, close): (char, char),
    values: impl Iterator<Item = (Option<&'a str>, &'a Json)>,
) -> fmt::Result {
    f.write_char(open)?;
    let mut is_empty = true;
    for (name, value) in values {
        write!(f, "{}\n{:indent$}", if is_empty { "" } else { "," }, "", indent = (depth + 1) * 2)?;
        is_empty = false;
        if let Some(name) = name {
            quote(f, name)?;
            f.write_str(": ")?;
        }
        value.print(f, depth + 1)?;
    }
    if !is_empty {
        write!(f, "\n{:indent$}", "", indent = depth * 2)?;
    }
    f.write_char(close)
}

fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for letter in text.chars() {
        match letter {
            '"' | '\\' => write!(f, "\\{letter}")?,
            '\n' => f.write_str("\\n")?,
            _ if letter.is_control() => write!(f, "\\u{:04x}", u32::from(letter))?,
            _ => f.write_char(letter)?,
        }
    }
    f.write_char('"')
}

/// The file of a run.
pub struct StateFile {
    path: PathBuf,
    facts: Vec<(&'static str, Json)>,
}

impl StateFile {
    /// Writes the facts to `state.json` in `directory`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// The host refuses.
    pub fn create(directory: &Path, facts: Vec<(&'static str, Json)>) -> io::Result<Self> {
        fs::create_dir_all(directory).map_err(about(directory))?;
        let this = Self { path: directory.join("state.json"), facts };
        this.write()?;
        Ok(this)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds further facts.
    ///
    /// # Errors
    ///
    /// The host refuses.
    pub fn add(&mut self, facts: Vec<(&'static str, Json)>) -> io::Result<()> {
        self.facts.extend(facts);
        self.write()
    }

    /// Puts the file in its place whole, so that a reader sees the old one or the new one.
    fn write(&self) -> io::Result<()> {
        let new = self.path.with_extension("json.new");
        fs::write(&new, format!("{}\n", Json::Object(self.facts.clone()))).map_err(about(&new))?;
        fs::rename(new, &self.path).map_err(about(&self.path))
    }
}

/// Names the path in an error.
fn about(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_json() {
        let value = Json::Object(vec![
            ("text", "a \"b\"\\\n\u{1}ä".into()),
            ("none", None::<u64>.into()),
            ("list", [1, 2].map(Json::Number).into_iter().collect()),
            ("empty", Json::List(Vec::new())),
            ("yes", Json::Bool(true)),
        ]);
        let text = "{\n  \"text\": \"a \\\"b\\\"\\\\\\n\\u0001ä\",\n  \"none\": null,\n  \"list\": [\n    1,\n    2\n  ],\n  \
                    \"empty\": [],\n  \"yes\": true\n}";
        assert_eq!(value.to_string(), text);
    }

    #[test]
    fn facts_are_added_and_the_file_is_always_whole() {
        let directory = std::env::temp_dir().join(format!("mote-state-{}", std::process::id()));
        let mut file = StateFile::create(&directory, vec![("pid", 1_u64.into())]).unwrap();
        file.add(vec![("end", "powered off".into())]).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        assert_eq!(text, "{\n  \"pid\": 1,\n  \"end\": \"powered off\"\n}\n");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        let error = StateFile::create(&directory.join("state.json"), Vec::new()).err().unwrap().to_string();
        assert!(error.contains("state.json: "), "{error}");
        fs::remove_dir_all(directory).unwrap();
    }
}
