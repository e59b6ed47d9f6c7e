//! Standard streams that are closed, or that nobody reads.

mod workplace;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use workplace::{MOTE, directory, is_understood, mote};

#[test]
fn a_listing_that_nobody_reads_ends_in_silence() {
    let directory = directory("unread");
    for words in [&["vdevs"][..], &["run", "set", "?"], &["check", "--kernel", "vmlinuz"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(MOTE);
        command.args(words).current_dir(&directory).stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{words:?}");
    }
}

#[test]
fn a_closed_stream_is_not_taken_for_a_file_of_motes() {
    let directory = directory("closed");
    for (redirection, number) in [("<&-", 0), (">&-", 1), ("<&- >&-", 1)] {
        let check = format!("exec \"$0\" check --kernel vmlinuz {redirection}");
        is_understood(&shell(&directory, &check), redirection);
        // What is there instead can be seen from within.
        let look = format!("exec \"$0\" check --kernel /proc/self/fd/{number} {redirection}");
        let message = String::from_utf8(shell(&directory, &look).stderr).unwrap();
        assert!(message.contains("is not a regular file"), "{message}");
    }
    // Its messages go nowhere, but its status tells.
    let wrong = ["check", "--kernel", "nothing"];
    let output = shell(&directory, "exec \"$0\" check --kernel nothing <&- >&- 2>&-");
    assert_eq!(output.status.code(), mote(&directory, &wrong).status.code());
}

#[test]
fn a_listing_ends_in_silence_where_the_signal_was_ignored_too() {
    let directory = directory("ignored");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' PIPE; exec \"$0\" vdevs", MOTE]).current_dir(&directory).stdout(writer);
    let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE));
}

/// Runs `script`, whose `$0` is mote.
fn shell(directory: &Path, script: &str) -> Output {
    Command::new("sh").args(["-c", script, MOTE]).current_dir(directory).output().unwrap()
}
