//! The checklist itself: `docs/conformance.md` and the tests say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top of the repository.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// An id and what its row says of the proof.
fn rows(page: &str) -> Vec<(String, String)> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = cells.map(|line| line.split(" | ").map(str::trim).collect::<Vec<_>>());
    rows.filter(|row| row.len() == 3 && is_id(row[0])).map(|row| (row[0].into(), row[2].into())).collect()
}

/// Capital letters, a hyphen, two digits.
fn is_id(text: &str) -> bool {
    let Some((family, number)) = text.split_once('-') else { return false };
    family.chars().all(|c| c.is_ascii_uppercase())
        && !family.is_empty()
        && number.len() == 2
        && number.chars().all(|c| c.is_ascii_digit())
}

/// What stands between back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The names of all tests below `folder`.
fn tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = source.lines().map(str::trim).collect();
            for (n, _) in lines.iter().enumerate().filter(|(_, line)| **line == "#[test]") {
                let named = lines[n..].iter().find_map(|line| line.strip_prefix("fn ")?.split_once('('));
                found.extend(named.map(|(name, _)| name.to_owned()));
            }
        }
    }
}

/// The ids that a test's name begins with: one, or several of a family.
fn ids_of(test: &str) -> Vec<String> {
    let mut words = test.split('_');
    let family = words.next().unwrap_or_default().to_uppercase();
    let ids = words.map(|word| format!("{family}-{word}"));
    ids.take_while(|id| is_id(id)).collect()
}

#[test]
fn every_id_has_a_test_or_a_written_reason() {
    let page = fs::read_to_string(top().join("docs/conformance.md")).unwrap();
    let mut found = BTreeSet::new();
    for folder in ["pci/tests", "devices/tests", "devices/src"] {
        tests(&top().join(folder), &mut found);
    }
    let rows = rows(&page);
    let mut wrong = Vec::new();
    let mut listed = BTreeMap::new();
    let mut counts = [0; 3];
    for (id, proof) in &rows {
        if listed.insert(id.clone(), proof.clone()).is_some() {
            wrong.push(format!("{id} is listed twice"));
        }
        let missing = quoted(proof).filter(|name| !ids_of(name).is_empty() && !found.contains(*name));
        wrong.extend(missing.map(|name| format!("{id}: there is no test {name}")));
        let reason = |start: &str| proof.strip_prefix(start).is_some_and(|reason| reason.trim().len() > 5);
        if reason("not applicable: ") {
            counts[1] += 1;
        } else if reason("later: ") {
            counts[2] += 1;
        } else if quoted(proof).any(|name| ids_of(name).contains(id)) {
            counts[0] += 1;
        } else {
            wrong.push(format!("{id} has neither a test nor a reason"));
        }
    }
    for (test, id) in found.iter().flat_map(|test| ids_of(test).into_iter().map(move |id| (test, id))) {
        let is_told = listed.get(&id).is_some_and(|proof| quoted(proof).any(|name| name == test));
        if !is_told {
            wrong.push(format!("docs/conformance.md does not tell of {test} at {id}"));
        }
    }
    let [proven, excused, later] = counts;
    let sum = format!("{} ids: {proven} by tests, {excused} by a reason, {later} later.", rows.len());
    if !page.contains(&sum) {
        wrong.push(format!("docs/conformance.md does not say: {sum}"));
    }
    assert_eq!(wrong, [""; 0], "\n{}", wrong.join("\n"));
}
