//! mote's own messages: whose they are, how grave they are, and where they go.
//!
//! A message has one of seven severities, after qvm. Where each of them goes is a `Route`; what the user says of it
//! is a [`Rule`], whose filters are a set: `logger error stderr` shows errors and nothing else. A message of a vdev
//! begins with the vdev's name and a colon, and takes the vdev's own routes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

use devices::options::did_you_mean;
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::terminal;

/// How grave a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// mote cannot go on, or did not start.
    Fatal,
    /// A defect of mote.
    Internal,
    /// Something needs attention.
    Error,
    /// Something is not as it should be, and mote goes on.
    Warn,
    /// What the user asked for, and the end of the run.
    Info,
    /// The steps of the run.
    Debug,
    /// Everything.
    Verbose,
}

/// The severities by the names that filters have; `warning` is how a vdev's `log` spells it in qvm.
const SEVERITIES: [(&str, Severity); 8] = [
    ("fatal", Severity::Fatal),
    ("internal", Severity::Internal),
    ("error", Severity::Error),
    ("warn", Severity::Warn),
    ("warning", Severity::Warn),
    ("info", Severity::Info),
    ("debug", Severity::Debug),
    ("verbose", Severity::Verbose),
];
/// How many there are.
const COUNT: usize = Severity::Verbose as usize + 1;

impl Severity {
    fn name(self) -> &'static str {
        SEVERITIES.iter().find(|(_, severity)| *severity == self).map_or("", |(name, _)| name)
    }

    /// The level of the crate `log` that such messages have, at least.
    fn level(self) -> LevelFilter {
        match self {
            Self::Fatal | Self::Internal | Self::Error => LevelFilter::Error,
            Self::Warn => LevelFilter::Warn,
            Self::Info => LevelFilter::Info,
            Self::Debug => LevelFilter::Debug,
            Self::Verbose => LevelFilter::Trace,
        }
    }

    /// The number that syslog has for it (RFC 5424, 6.2.1).
    fn syslog(self) -> u8 {
        match self {
            Self::Fatal => 2,
            Self::Internal => 1,
            Self::Error => 3,
            Self::Warn => 4,
            Self::Info => 6,
            Self::Debug | Self::Verbose => 7,
        }
    }
}

/// Where messages go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// Standard output, among what the guest prints.
    Stdout,
    /// Standard error.
    Stderr,
    /// The host's syslog.
    Slog,
    /// Nowhere.
    #[default]
    None,
}

/// The destinations by their names.
const DESTINATIONS: [(&str, Destination); 4] = [
    ("stdout", Destination::Stdout),
    ("stderr", Destination::Stderr),
    ("slog", Destination::Slog),
    ("none", Destination::None),
];

/// What the user says of some severities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    severities: Vec<Severity>,
    destination: Destination,
}

impl Rule {
    /// Reads `FILTER[,FILTER]...` and a destination.
    ///
    /// # Errors
    ///
    /// The word that is wrong, and what is wrong with it.
    pub fn parse(filters: &str, destination: &str) -> Result<Self, (String, String)> {
        let severity = |word: &str| {
            let found = SEVERITIES.iter().find(|(name, _)| *name == word).map(|(_, severity)| *severity);
            let names = "a filter is fatal, internal, error, warn, info, debug or verbose";
            let hint = did_you_mean(word, SEVERITIES.iter().map(|(name, _)| *name));
            found.ok_or_else(|| (word.to_owned(), format!("{names}{hint}")))
        };
        let severities = filters.split(',').map(severity).collect::<Result<_, _>>()?;
        let found = DESTINATIONS.iter().find(|(name, _)| *name == destination);
        let hint = did_you_mean(destination, DESTINATIONS.iter().map(|(name, _)| *name));
        let (_, destination) = found.ok_or_else(|| {
            (destination.to_owned(), format!("messages go to stdout, stderr, slog or none{hint}"))
        })?;
        Ok(Self { severities, destination: *destination })
    }

    /// Reads both as one text, as a vdev's option has them.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn parse_both(text: &str) -> Result<Self, String> {
        let (filters, destination) =
            text.split_once(' ').ok_or("filters and a destination are needed, as in 'error,warn stderr'")?;
        Self::parse(filters, destination).map_err(|(word, problem)| format!("'{word}': {problem}"))
    }

    /// Everything up to `most`, to standard error.
    #[must_use]
    pub fn up_to(most: LevelFilter) -> Self {
        let severities = SEVERITIES.iter().map(|(_, severity)| *severity);
        // What is fatal is always told.
        let is_in = |severity: &Severity| severity.level() <= most || *severity <= Severity::Internal;
        let mut severities: Vec<_> = severities.filter(is_in).collect();
        severities.dedup();
        Self { severities, destination: Destination::Stderr }
    }
}

impl Default for Rule {
    /// What qvm does without a `logger`.
    fn default() -> Self {
        Self::up_to(LevelFilter::Info)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.severities.iter().map(|severity| severity.name()).collect();
        let to = DESTINATIONS.iter().find(|(_, destination)| *destination == self.destination);
        write!(f, "{} {}", names.join(","), to.map_or("", |(name, _)| name))
    }
}

/// Where each severity goes; `None` is what nobody said.
#[derive(Clone, Copy, Debug, Default)]
struct Route([Option<Destination>; COUNT]);

impl Route {
    /// The rules in their order; of several for one severity the last counts.
    fn of(rules: &[Rule]) -> Self {
        let mut route = Self::default();
        for rule in rules {
            for severity in &rule.severities {
                route.0[*severity as usize] = Some(rule.destination);
            }
        }
        route
    }

    fn destination(&self, severity: Severity) -> Option<Destination> {
        self.0[severity as usize]
    }

    /// The level up to which messages go anywhere.
    fn level(&self) -> LevelFilter {
        let severities = SEVERITIES.iter().map(|(_, severity)| *severity);
        let shown = severities.filter(|it| !matches!(self.destination(*it), None | Some(Destination::None)));
        shown.map(Severity::level).max().unwrap_or(LevelFilter::Off)
    }
}

/// Where messages go in this run.
struct Routes {
    all: Route,
    vdevs: BTreeMap<&'static str, Route>,
    syslog: Option<UnixDatagram>,
}

static ROUTES: OnceLock<Routes> = OnceLock::new();

struct Router;

impl Log for Router {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let severity = match record.level() {
            Level::Error => Severity::Error,
            Level::Warn => Severity::Warn,
            Level::Info => Severity::Info,
            Level::Debug => Severity::Debug,
            Level::Trace => Severity::Verbose,
        };
        write(severity, &record.args().to_string());
    }

    fn flush(&self) {}
}

/// Says that mote cannot go on.
pub fn fatal(text: &str) {
    write(Severity::Fatal, text);
}

/// Says that mote has a defect.
pub fn internal(text: &str) {
    write(Severity::Internal, text);
}

fn write(severity: Severity, text: &str) {
    let destination = match ROUTES.get() {
        Some(routes) => {
            let vdev = text.split_once(": ").and_then(|(name, _)| routes.vdevs.get(name));
            let own = vdev.and_then(|route| route.destination(severity));
            own.or_else(|| routes.all.destination(severity)).unwrap_or_default()
        }
        None => Destination::Stderr,
    };
    // There is nobody to tell of a failure.
    let _ = match destination {
        Destination::Stdout => std::io::stdout().write_all(line(severity, text).as_bytes()),
        Destination::Stderr => std::io::stderr().write_all(line(severity, text).as_bytes()),
        Destination::Slog => {
            // Facility 1: a user's program.
            let text = format!("<{}>mote[{}]: {text}", 8 | severity.syslog(), std::process::id());
            let syslog = ROUTES.get().and_then(|routes| routes.syslog.as_ref());
            syslog.map_or(Ok(0), |syslog| syslog.send(text.as_bytes())).map(drop)
        }
        Destination::None => Ok(()),
    };
}

/// One call, so that lines of several threads stay whole.
fn line(severity: Severity, text: &str) -> String {
    // A raw terminal does not return to the line's start by itself.
    let end = if terminal::is_raw() { "\r\n" } else { "\n" };
    let text = text.replace('\n', end);
    match severity {
        Severity::Info => format!("mote: {text}{end}"),
        Severity::Fatal => format!("mote: error: {text}{end}"),
        other => format!("mote: {}: {text}{end}", other.name()),
    }
}

/// From now on messages go where `rules` say, and those of the vdevs where theirs do. What happened before, and what
/// happens where there are no rules, goes to standard error.
///
/// # Errors
///
/// There is no syslog, and a rule names it.
pub fn init<'a>(
    rules: &[Rule],
    vdevs: impl IntoIterator<Item = (&'static str, &'a [Rule])>,
) -> std::io::Result<()> {
    let usual = [Rule::default()];
    let all = Route::of(if rules.is_empty() { &usual } else { rules });
    let vdevs: BTreeMap<_, _> = vdevs
        .into_iter()
        .filter(|(_, rules)| !rules.is_empty())
        .map(|(name, rules)| (name, Route::of(rules)))
        .collect();
    let mut routes = vdevs.values().chain(std::iter::once(&all));
    let needs_syslog = routes.any(|route| route.0.contains(&Some(Destination::Slog)));
    let level = vdevs.values().map(Route::level).max().max(Some(all.level())).unwrap_or(LevelFilter::Off);
    let syslog = needs_syslog.then(syslog).transpose()?;
    // Set once, at the start of the process; a second time changes nothing but the level.
    let _ = ROUTES.set(Routes { all, vdevs, syslog });
    let _ = log::set_logger(&Router);
    log::set_max_level(level);
    Ok(())
}

/// The host's syslog, which never makes us wait.
fn syslog() -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect("/dev/log")?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(filters: &str, destination: &str) -> Rule {
        Rule::parse(filters, destination).unwrap()
    }

    #[test]
    fn filters_are_a_set_and_no_level() {
        let route = Route::of(&[rule("error", "stderr")]);
        assert_eq!(route.destination(Severity::Error), Some(Destination::Stderr));
        assert_eq!(route.destination(Severity::Fatal), None);
        assert_eq!(route.level(), LevelFilter::Error);
    }

    #[test]
    fn the_last_rule_for_a_severity_counts() {
        let route = Route::of(&[rule("error,info", "stderr"), rule("info", "none"), rule("verbose", "slog")]);
        assert_eq!(route.destination(Severity::Info), Some(Destination::None));
        assert_eq!(route.destination(Severity::Error), Some(Destination::Stderr));
        assert_eq!(route.level(), LevelFilter::Trace);
    }

    #[test]
    fn without_rules_everything_but_debug_goes_to_standard_error() {
        assert_eq!(Rule::default().to_string(), "fatal,internal,error,warn,info stderr");
        assert_eq!(Rule::up_to(LevelFilter::Off).to_string(), "fatal,internal stderr");
    }

    #[test]
    fn both_spellings_of_a_warning_are_understood() {
        assert_eq!(rule("warn", "none"), rule("warning", "none"));
    }

    #[test]
    fn what_is_no_rule_is_explained() {
        let (word, problem) = Rule::parse("error,wran", "stderr").unwrap_err();
        assert_eq!((word.as_str(), problem.contains("did you mean 'warn'?")), ("wran", true), "{problem}");
        let (word, problem) = Rule::parse("error", "stdrr").unwrap_err();
        assert_eq!((word.as_str(), problem.contains("did you mean 'stderr'?")), ("stdrr", true), "{problem}");
        assert!(Rule::parse_both("error").is_err());
    }
}
