//! The table that is printed.

use std::fmt;

/// All that was measured.
#[derive(Default)]
pub struct Table(Vec<Row>);

struct Row {
    what: String,
    subject: String,
    value: String,
    bars: Vec<(String, bool)>,
}

impl Table {
    /// Adds what was measured on somebody.
    pub fn row(&mut self, what: &str, subject: &str, value: impl fmt::Display) {
        let (what, subject, value) = (what.to_owned(), subject.to_owned(), value.to_string());
        self.0.push(Row { what, subject, value, bars: Vec::new() });
    }

    /// The last row has a bar, which may not be its only one.
    pub fn bar(&mut self, bar: impl fmt::Display, is_met: bool) {
        if let Some(row) = self.0.last_mut() {
            row.bars.push((bar.to_string(), is_met));
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |cell: fn(&Row) -> &str| self.0.iter().map(|row| cell(row).len()).max().unwrap_or(0);
        let (whats, subjects) = (width(|row| &row.what), width(|row| &row.subject));
        let values = width(|row| &row.value);
        let mut last = "";
        for Row { what, subject, value, bars } in &self.0 {
            if last != what {
                writeln!(f)?;
            }
            let title = if last == what { "" } else { what };
            last = what;
            write!(f, "{title:<whats$}  {subject:<subjects$}  {value:>values$}")?;
            for (bar, is_met) in bars {
                write!(f, "   {}: {bar}", if *is_met { "met" } else { "MISSED" })?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
