//! `make install`: what is where, and whether the pages and the shells' completions are any good.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const INSTALLED: [&str; 9] = [
    "bin/mote",
    "share/bash-completion/completions/mote",
    "share/fish/vendor_completions.d/mote.fish",
    "share/man/man1/mote-check.1",
    "share/man/man1/mote-run.1",
    "share/man/man1/mote-vdevs.1",
    "share/man/man1/mote.1",
    "share/man/man5/mote-qvmconf.5",
    "share/zsh/site-functions/_mote",
];

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs it"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a program that has nothing to complain of, and returns what it printed.
#[track_caller]
fn quiet(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.stderr.is_empty(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn make(target: &str, root: &Path) {
    run("make", &[target, "SUDO_USER=", "PREFIX=/usr", &format!("DESTDIR={}", root.display())]);
}

/// Where it is installed, once for all tests.
fn installed() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
        let _ = std::fs::remove_dir_all(&root);
        make("install", &root);
        root.join("usr")
    })
}

fn path(name: &str) -> String {
    installed().join(name).to_str().unwrap().to_owned()
}

fn files(directory: &Path) -> BTreeSet<String> {
    let list = quiet("find", &[directory.to_str().unwrap(), "-type", "f", "-printf", "%P\n"]);
    list.lines().map(str::to_owned).collect()
}

#[test]
fn everything_is_in_its_usual_place_and_can_be_removed() {
    assert_eq!(files(installed()), INSTALLED.map(str::to_owned).into());
    assert!(quiet(&path("bin/mote"), &["--version"]).starts_with("mote "));
    let other = Path::new(env!("CARGO_TARGET_TMPDIR")).join("uninstalled");
    make("install", &other);
    make("uninstall", &other);
    assert_eq!(files(&other), BTreeSet::new());
}

/// A man page as plain text in one line, without a warning on the way there.
fn page(name: &str) -> String {
    let plain = ["-man", "-ww", "-Tascii", "-P-cbou", "-rLL=1000n", "-rHY=0", &path(name)];
    quiet("groff", &plain).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_man_pages_are_well_formed() {
    for name in INSTALLED.iter().filter(|name| name.contains("/man/")) {
        assert!(page(name).contains("SEE ALSO"), "{name}");
    }
}

#[test]
fn the_man_pages_leave_nothing_out() {
    let mote = path("bin/mote");
    let has = |page: &str, word: &str| assert!(page.contains(word), "{word} is not in:\n{page}");
    let run = page("share/man/man1/mote-run.1");
    let help = quiet(&mote, &["run", "--help"]);
    let flags = help.lines().filter_map(|line| line.trim().strip_prefix("--")?.split(' ').next());
    let flags: Vec<&str> = flags.collect();
    assert!(flags.contains(&"kernel"), "{help}");
    flags.iter().for_each(|flag| has(&run, &format!("--{flag}")));
    let vdevs = page("share/man/man1/mote-vdevs.1");
    let list = quiet(&mote, &["vdevs"]);
    assert!(list.contains("virtio-entropy"), "{list}");
    for kind in list.lines().filter_map(|line| line.split(' ').next()) {
        let options = quiet(&mote, &["vdevs", kind]);
        options.lines().for_each(|line| has(&vdevs, line.split_whitespace().next().unwrap()));
    }
    let language = page("share/man/man5/mote-qvmconf.5");
    let variables = quiet(&mote, &["run", "set", "?"]);
    variables.lines().for_each(|line| has(&language, line.split(' ').next().unwrap()));
}

#[test]
fn bash_completes_commands_flags_and_vdevs() {
    let script = r#"source "$0"; COMP_WORDS=(mote "$@"); COMP_CWORD=$#
        _mote mote "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; echo "${COMPREPLY[@]}""#;
    let file = path("share/bash-completion/completions/mote");
    let completed =
        |words: &[&str]| quiet("bash", &[&["-c", script, &file], words].concat()).trim().to_owned();
    assert_eq!(completed(&["r"]), "run");
    assert_eq!(completed(&["run", "--ini"]), "--initrd");
    assert_eq!(completed(&["run", "--vdev", "virtio-"]), "virtio-entropy virtio-console");
    assert_eq!(completed(&["run", "--pci-config", "p"]), "ports");
    assert_eq!(completed(&["run", "dry"]), "dryrun");
    assert_eq!(completed(&["vdevs", "ser"]), "ser8250");
}

#[test]
fn fish_completes_them_too() {
    let file = path("share/fish/vendor_completions.d/mote.fish");
    let completed = |line: &str| {
        let script = format!("source {file}; complete -C '{line}'");
        let list = quiet("fish", &["--no-config", "-c", &script]);
        list.lines().filter_map(|line| line.split('\t').next()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(completed("mote r"), "run");
    assert_eq!(completed("mote run --vdev virtio-e"), "virtio-entropy");
}

#[test]
fn zsh_finds_and_understands_its_script() {
    let script = path("share/zsh/site-functions/_mote");
    quiet("zsh", &["-n", &script]);
    let directory = Path::new(&script).parent().unwrap().display();
    let find =
        format!("fpath=({directory} $fpath); autoload -U compinit; compinit -u -D; echo $_comps[mote]");
    assert_eq!(quiet("zsh", &["-f", "-c", &find]).trim(), "_mote");
}
