//! The man pages.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use devices::OptionHelp;
use vmm::qvmconf::{CPU_OPTIONS, OPTIONS, Row, VARIABLES};

const MANUAL: &str = "mote";
const PAGES: [&str; 5] = ["mote(1)", "mote-run(1)", "mote-check(1)", "mote-vdevs(1)", "mote-qvmconf(5)"];

/// The page of a command.
pub fn command(command: &Command) -> io::Result<Vec<u8>> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let source = format!("mote {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    if let Some(help) = command.get_after_help() {
        sections(&mut roff, &help.to_string());
    }
    if command.get_name() == "vdevs" {
        vdevs(&mut roff);
    }
    see_also(&mut roff, &format!("{name}(1)"));
    // Without the preamble, which the title has brought.
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// The page of the configuration language.
pub fn language() -> Vec<u8> {
    let mut roff = Roff::new();
    let source = format!("mote {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["mote-qvmconf", "5", "", source.as_str(), MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("mote-qvmconf - the language of mote's configuration files, which is that of qvm")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("mote run @"), italic("FILE"), roman(" ["), italic("WORD"), roman("]...")]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in [
        "A file is a sequence of words, separated by spaces or line breaks. A # at the start of a word begins a comment, \
         which ends with the line. Quotes keep spaces in a word; in them a backslash stands before a quote or a \
         backslash, and at the end of a line continues the word in the next.",
        "A word is an option or an argument of the option before it. The options cpu and vdev open a context, to which \
         their own options belong; it lasts until the next of the two. Said twice in one context, the last counts, \
         unless an option can be repeated.",
        "Addresses, ports and lengths show their base: 0x1000, 0d4096, or a suffix K, M, G, T.",
    ] {
        roff.control("PP", []);
        roff.text([roman(paragraph)]);
    }
    for (title, rows) in [("OPTIONS OF THE VM", OPTIONS), ("OPTIONS OF A CPU", CPU_OPTIONS)] {
        roff.control("SH", [title]);
        for Row { name, arguments, about, .. } in rows.iter().filter(|row| row.is_supported()) {
            entry(&mut roff, name, arguments, about);
        }
    }
    roff.control("SH", ["OPTIONS OF A VDEV"]);
    roff.text([bold("mote-vdevs"), roman("(1) lists the types of vdevs, each with its options.")]);
    roff.control("SH", ["VARIABLES"]);
    roff.text([roman("They are set by "), bold("set "), italic("VARIABLE VALUE"), roman(".")]);
    for row in VARIABLES {
        let default =
            if row.default.is_empty() { String::new() } else { format!(" (default: {})", row.default) };
        entry(&mut roff, row.name, row.kind, &format!("{}{default}", row.about));
    }
    see_also(&mut roff, "mote-qvmconf(5)");
    roff.render().into_bytes()
}

/// All types of vdevs with all their options.
fn vdevs(roff: &mut Roff) {
    roff.control("SH", ["VDEVS"]);
    roff.text([
        roman("As "),
        bold("--vdev "),
        italic("TYPE,OPTION=VALUE,..."),
        roman(" a comma within a value is "),
    ]);
    roff.text([roman("written twice; in a configuration file options and values are words of their own.")]);
    for kind in devices::KINDS {
        roff.control("SS", [kind.name]);
        roff.text([roman(kind.about)]);
        for OptionHelp { name, value, about } in kind.all_options() {
            entry(roff, name, value, about);
        }
    }
}

/// A term with its placeholder, and what it means.
fn entry(roff: &mut Roff, name: &str, placeholder: &str, about: &str) {
    roff.control("TP", []);
    roff.text([bold(name), roman(" "), italic(placeholder)]);
    roff.text([roman(about)]);
}

/// The paragraphs of a help text: a title and rows of terms and meanings, or text.
fn sections(roff: &mut Roff, help: &str) {
    for paragraph in help.split("\n\n") {
        let Some((title, rows)) = paragraph.split_once(":\n") else {
            roff.control("PP", []);
            roff.text([roman(paragraph)]);
            continue;
        };
        roff.control("SH", [title.to_uppercase().as_str()]);
        for row in rows.lines().map(str::trim) {
            let (term, meaning) = row.split_once("  ").unwrap_or((row, ""));
            roff.control("TP", []);
            roff.text([bold(term)]);
            roff.text([roman(meaning.trim())]);
        }
    }
}

/// The other pages.
fn see_also(roff: &mut Roff, this: &str) {
    roff.control("SH", ["SEE ALSO"]);
    let others: Vec<_> = PAGES.into_iter().filter(|page| *page != this).collect();
    roff.text([roman(others.join(", "))]);
}
