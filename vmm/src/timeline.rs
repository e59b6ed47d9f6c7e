//! What `--timeline` prints: the moments of a run, and how far apart they are.

use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

use devices::timeline::{self, Moment};

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line for each moment: milliseconds from the start of the process and from the moment before.
    Text,
    /// One line: an array of objects with the moment's name and the nanoseconds from the start of the process.
    Json,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("a timeline is text or json"),
        }
    }
}

/// Prints the moments so far to standard error.
pub fn print(format: Format) {
    eprint!("{}", text(&timeline::so_far(), format));
}

fn text(moments: &[Moment], format: Format) -> String {
    let Some((_, start)) = moments.first() else { return String::new() };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let mut text = String::new();
    let mut before = *start;
    for (name, at) in moments {
        let since = at.duration_since(*start);
        // Writing to a string succeeds.
        let _ = match format {
            Format::Text => {
                let step = milliseconds(at.duration_since(before));
                writeln!(text, "{:10.3} ms {step:+10.3}  {name}", milliseconds(since))
            }
            Format::Json => {
                let separator = if text.is_empty() { '[' } else { ',' };
                write!(text, "{separator}{{\"moment\":\"{name}\",\"ns\":{}}}", since.as_nanos())
            }
        };
        before = *at;
    }
    if format == Format::Json {
        text.push_str("]\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn moments_are_relative_to_the_first_one() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let moments = [("exec".into(), start), ("options".into(), at(1500)), ("end".into(), at(20_000))];
        assert_eq!(
            text(&moments, Format::Text),
            "     0.000 ms     +0.000  exec\n     1.500 ms     +1.500  options\n    20.000 ms    +18.500  end\n"
        );
        assert_eq!(
            text(&moments, Format::Json),
            "[{\"moment\":\"exec\",\"ns\":0},{\"moment\":\"options\",\"ns\":1500000},{\"moment\":\"end\",\"ns\":20000000}]\n"
        );
        assert_eq!(text(&[], Format::Json), "");
    }
}
